--- The tab of `lockkeeper top` with what `lockkeeper ls` shows: lock.locks.
local arrange = require "lockkeeper.top.arrange"
local described = require "lockkeeper.report.object"
local filter = require "lockkeeper.filter"
local listing = require "lockkeeper.cli.listing"
local lock = require "lockkeeper"
local row_format = require "lockkeeper.cli.rows"
local session_page = require "lockkeeper.top.session_page"

local locks_tab = { name = "locks", title = "Locks", fields = filter.FIELDS.locks,
  empty = "Nobody holds a lock.", none = "No lock matches.",
  example = 'wait_duration > 5 and mode == "ACCESS EXCLUSIVE"' }

local COLUMNS = row_format.for_people(listing.columns("locks"))

function locks_tab.columns()
  return COLUMNS
end

-- Names are asked for when one is needed first: now, and not while the picture is drawn.
local function fetch_names(rows)
  local has_key, has_relation = false, false
  for _, row in ipairs(rows) do
    local is_key = row.type == "advisory"
    if is_key and not has_key then
      described(row)
    elseif not is_key and not has_relation then
      described(row)
    end
    has_key, has_relation = has_key or is_key, has_relation or row.relation ~= nil
    if has_key and has_relation then
      return
    end
  end
end

--- Look. On the reader's task.
---@return TopData
function locks_tab.read()
  local rows = lock.locks()
  fetch_names(rows)
  return { rows = rows, now = rows.taken_at, counts = listing.counts(rows, "locks") }
end

---@param data TopData
---@param order TopOrder
---@return TopItem[]
function locks_tab.arrange(data, order)
  return arrange.list(data.rows, COLUMNS, order)
end

--- Is it the same lock, in another look?
---@param a LockRow
---@param b LockRow
---@return boolean
function locks_tab.is_same(a, b)
  return a.pid == b.pid and a.mode == b.mode and a.type == b.type and described(a) == described(b)
end

---@param row LockRow
---@return TopSubject
function locks_tab.subject(row)
  return { pid = row.pid, gid = row.activity.gid, activity = row.activity }
end

function locks_tab.statement(row)
  return row.activity.query
end

function locks_tab.page(row)
  return session_page.new(locks_tab.subject(row))
end

return locks_tab
