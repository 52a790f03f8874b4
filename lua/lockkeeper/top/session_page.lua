--- All that is known of one session: what it does, what it waits for, whom it blocks, what it holds.
local described = require "lockkeeper.report.object"
local field = require "lockkeeper.report.field"
local lock = require "lockkeeper"
local outline = require "lockkeeper.picture.outline"
local page = require "lockkeeper.top.page"
local span = require "lockkeeper.report.span"

local session_page = {}

-- Locks shown at most.
local LOCKS_MOST = 1000

-- Parameters of SGR sequences.
local YELLOW = "33"

local function is_of(subject)
  if subject.pid then
    return { pid = subject.pid }
  end
  return { where = function(row) return row.pid == nil and row.activity.gid == subject.gid end }
end

local function read(subject)
  local rows = lock.locks(is_of(subject))
  local data = { rows = {}, count = #rows, activity = rows[1] and rows[1].activity,
    waits = {}, blocks = {}, now = rows.taken_at }
  for i = 1, math.min(#rows, LOCKS_MOST) do
    local row = rows[i]
    data.rows[i] = { granted = row.granted, text = ("%s %s"):format(row.mode, described(row)),
      waited = row.wait_duration }
  end
  local graph = lock.graph()
  for _, node in ipairs(graph:sessions()) do
    if node.pid == subject.pid and node.gid == subject.gid then
      data.node, data.activity = node, data.activity or node.activity
    end
  end
  for _, edge in ipairs(data.node and graph:edges() or {}) do
    if edge.waiter_pid == subject.pid then
      table.insert(data.waits, edge)
    elseif edge.blocker_pid == subject.pid and edge.blocker_gid == subject.gid then
      table.insert(data.blocks, edge)
    end
  end
  return data
end

local function since(epoch, seconds)
  local ago = seconds and (", %s ago"):format(span(seconds)) or ""
  return epoch and field.local_time(epoch) .. ago
end

local function wait_text(activity)
  return activity.wait_event and ("%s: %s"):format(activity.wait_event_type or "?", activity.wait_event)
end

local function add_facts(lines, activity, node)
  page.fact(lines, "user", activity.user)
  page.fact(lines, "database", activity.database)
  page.fact(lines, "application", activity.application_name)
  page.fact(lines, "client", activity.client_addr)
  page.fact(lines, "backend", activity.backend_type)
  page.fact(lines, "leader", activity.leader_pid and tostring(activity.leader_pid))
  page.fact(lines, "prepared as", activity.gid)
  if activity.hidden then
    page.fact(lines, "state", "not visible to this role: GRANT pg_monitor", YELLOW)
  end
  page.fact(lines, "state", activity.state and activity.state_duration
    and ("%s, for %s"):format(activity.state, span(activity.state_duration)) or activity.state)
  page.fact(lines, "waits", wait_text(activity))
  page.fact(lines, "connected", since(activity.backend_start))
  page.fact(lines, "transaction", since(activity.xact_start, activity.xact_duration))
  page.fact(lines, "statement", since(activity.query_start, activity.duration))
  page.fact(lines, "behind it", node and node.behind > 0 and tostring(node.behind))
end

local HOW = { hard = "holds", soft = "queued before", confirmed = "in the way" }

local function blocker_text(edge)
  local who = edge.blocker_pid or ("prepared '%s'"):format(edge.blocker_gid or "?")
  return ("%s %s %s"):format(who, HOW[edge.certainty], edge.held_mode or "")
end

local function add_waits(lines, data)
  if #data.waits == 0 then
    return
  end
  page.head(lines, "Waits for")
  local lock_shown
  for _, edge in ipairs(data.waits) do
    if edge.lock ~= lock_shown then
      lock_shown = edge.lock
      page.fact(lines, edge.waited and span(edge.waited) or "?",
        ("%s %s"):format(edge.requested_mode, described(edge.lock)), YELLOW)
    end
    page.fact(lines, "", blocker_text(edge))
  end
end

local function add_blocked(lines, data)
  if #data.blocks == 0 then
    return
  end
  page.head(lines, ("Right behind it: %d"):format(#data.blocks))
  for _, edge in ipairs(data.blocks) do
    page.fact(lines, tostring(edge.waiter_pid or "?"), ("%s %s%s"):format(edge.requested_mode,
      described(edge.lock), edge.waited and ", for " .. span(edge.waited) or ""))
  end
end

local function add_locks(lines, data)
  page.head(lines, ("Locks: %d"):format(data.count))
  for _, row in ipairs(data.rows) do
    page.fact(lines, row.granted and "holds" or "wants", row.text
      .. (row.waited and not row.granted and (", for %s"):format(span(row.waited)) or ""),
      not row.granted and YELLOW or nil)
  end
  if data.count > #data.rows then
    page.fact(lines, "", ("and %d more"):format(data.count - #data.rows))
  end
end

local function lines_of(data, columns)
  local lines = {}
  local activity = data.activity
  if not activity then
    return { { text = "The session has ended, or holds no lock and waits for none." } }
  end
  add_facts(lines, activity, data.node)
  local class = data.node and data.node.class
  if class ~= "client" and class ~= "idle_in_transaction" then
    page.fact(lines, "it is", data.node and outline.state(data.node))
  end
  add_waits(lines, data)
  add_blocked(lines, data)
  if activity.query and activity.query ~= "" then
    page.head(lines, (activity.state or ""):find("^idle") and "Ran last" or "Runs")
    page.text(lines, activity.query, columns, "  ")
  end
  add_locks(lines, data)
  return lines
end

---@param subject TopSubject
---@return TopPage
function session_page.new(subject)
  return {
    title = subject.pid and ("Session %d"):format(subject.pid)
      or ("Prepared transaction '%s'"):format(subject.gid or "?"),
    read = function() return read(subject) end,
    lines = lines_of, subject = subject, first = 1,
  }
end

return session_page
