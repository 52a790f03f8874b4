--- The wait-for graph as rows from top to bottom, each with its place in the tree: what `lockkeeper tree`,
-- its pictures and `top` show. Sessions that wait for the same and block nobody are folded into one row.
local outline = {}

---@class OutlineRow
---@field kind "session"|"more"|"again"
---@field depth integer           0: at the top
---@field prefix string           the tree's lines before the label: "│  └─ "
---@field label string            "12961", "36 more", "12961 again", "prepared"
---@field entry GraphEntry        of "more" the one that has waited longest
---@field folded? GraphEntry[]    of "more": all of them
---@field seconds? number         how long it has waited; of who does not wait, been in its state
---@field behind? integer
---@field text string             what it waits for, or its state
---@field user? string
---@field application? string
---@field statement? string       of a session at the top: what it runs, or ran last
---@field is_running? boolean     with `statement`

-- How many leaves are shown before they are folded.
local FOLDED_FROM = 3

local CLASS_TEXTS = {
  autovacuum = "autovacuum",
  autovacuum_wraparound = "autovacuum (to prevent wraparound)",
  walsender = "walsender",
  parallel_worker = "parallel worker",
}

--- What somebody who does not wait is doing: "idle in transaction", "prepared 'gid'".
---@param node GraphNode
---@return string
function outline.state(node)
  local activity = node.activity
  if node.gid then
    return ("prepared transaction '%s'"):format(node.gid)
  elseif not node.pid then
    return "prepared transaction"
  elseif activity.hidden then
    return "(not visible to this role)"
  end
  return CLASS_TEXTS[node.class] or activity.state or activity.backend_type or "(gone)"
end

local function seconds_of(entry)
  if entry.waits_for then
    return entry.waited
  end
  local activity = entry.activity
  if entry.class == "autovacuum" or entry.class == "autovacuum_wraparound" then
    return activity.xact_duration or activity.state_duration
  end
  return activity.state_duration or activity.xact_duration
end

-- "12961", the pids of the others: at most three.
local function pids_text(nodes)
  local parts = {}
  for i = 1, math.min(#nodes, 3) do
    parts[i] = nodes[i].pid and tostring(nodes[i].pid) or ("'%s'"):format(nodes[i].gid or "?")
  end
  return table.concat(parts, ", ") .. (#nodes > 3 and (" and %d more"):format(#nodes - 3) or "")
end

local function text_of(entry)
  if entry.cycle then
    return ("deadlock of %d: %s"):format(#entry.cycle, entry.waits_for)
  elseif not entry.waits_for then
    return outline.state(entry)
  elseif entry.again then
    return entry.waits_for
  end
  return entry.waits_for .. (#entry.also > 0 and (", also held by " .. pids_text(entry.also)) or "")
end

local function row_of(entry)
  local activity = entry.activity
  local at_top = not entry.waits_for or entry.cycle
  local has_statement = at_top and activity.query and activity.query ~= ""
  local label = entry.pid and tostring(entry.pid) or "prepared"
  return {
    kind = entry.again and "again" or "session", entry = entry,
    label = entry.again and label .. (entry.closes and " ↺" or " again") or label,
    seconds = seconds_of(entry), behind = not entry.again and entry.behind or nil, text = text_of(entry),
    user = activity.user, application = activity.application_name,
    statement = has_statement and activity.query or nil,
    is_running = has_statement and not (activity.state or ""):find("^idle") or nil,
  }
end

-- What the texts have in common: "gunicorn …".
local function common(texts)
  local shared = texts[1] or ""
  local differ = false
  for i = 2, #texts do
    while texts[i]:sub(1, #shared) ~= shared do
      shared = shared:sub(1, -2)
    end
    differ = differ or texts[i] ~= texts[1]
  end
  if not differ then
    return texts[1]
  end
  return (shared:match("^.*[%s:/%-_]") or "") .. "…"
end

local function shared_text(entries, name)
  local texts = {}
  for i, entry in ipairs(entries) do
    texts[i] = entry.activity[name] or ""
  end
  return common(texts)
end

local function more_of(entries)
  local longest, behind = entries[1], 0
  for _, entry in ipairs(entries) do
    longest = (entry.waited or 0) > (longest.waited or 0) and entry or longest
    behind = math.max(behind, entry.behind)
  end
  local row = row_of(longest)
  row.kind, row.folded = "more", entries
  row.label, row.behind = ("%d more"):format(#entries), not longest.again and behind or nil
  row.user, row.application = shared_text(entries, "user"), shared_text(entries, "application_name")
  return row
end

-- What may be folded with others has the same key.
local function fold_key(entry)
  if entry.closes or #entry.children > 0 or #entry.also > 0 then
    return nil
  end
  return (entry.again and "again " or "") .. entry.waits_for
end

-- The children in order, alike ones folded: lists of entries.
local function groups_of(children, fold)
  local groups, by_key = {}, {}
  for _, entry in ipairs(children) do
    local key = fold and fold_key(entry)
    local group = key and by_key[key]
    if group then
      group[#group + 1] = entry
    else
      groups[#groups + 1] = { entry }
      by_key[key or entry] = groups[#groups]
    end
  end
  return groups
end

-- The rows of one level: those of children, some of them folded.
local function level_of(children, fold)
  local rows = {}
  for _, group in ipairs(groups_of(children, fold)) do
    local shown = #group >= FOLDED_FROM and 1 or #group
    for i = 1, shown do
      rows[#rows + 1] = row_of(group[i])
    end
    if shown < #group then
      rows[#rows + 1] = more_of(table.move(group, shown + 1, #group, 1, {}))
    end
  end
  return rows
end

--- The rows of a graph.
---@param graph Graph
---@param options? { fold?: boolean }  fold = false: a row for each session
---@return OutlineRow[]
function outline.rows(graph, options)
  local fold = not options or options.fold ~= false
  local rows = {}
  local function add(row, prefix, stem, depth)
    row.prefix, row.stem, row.depth = prefix, stem, depth
    rows[#rows + 1] = row
    if row.kind ~= "session" then
      return
    end
    local level = level_of(row.entry.children, fold)
    row.has_children = #level > 0
    for i, child in ipairs(level) do
      local is_last = i == #level
      add(child, stem .. (is_last and "└─ " or "├─ "), stem .. (is_last and "   " or "│  "), depth + 1)
    end
  end
  for _, entry in ipairs(graph:tree()) do
    add(row_of(entry), "", "", 0)
  end
  return rows
end

--- What to do about it, as the lines under a tree; none where nobody waits.
---@param graph Graph
---@return { label: string, command?: string, text?: string }[]
function outline.advice(graph)
  local list, pids = {}, {}
  for _, node in ipairs(graph:culprits()) do
    if node.class == "prepared" then
      list[#list + 1] = { label = "End it:", gid = node.gid,
        command = node.gid and ("ROLLBACK PREPARED '%s'"):format(node.gid:gsub("'", "''"))
          or "ROLLBACK PREPARED, see pg_prepared_xacts" }
    elseif node.class == "walsender" then
      list[#list + 1] = { label = "Leave it:",
        text = ("%d is a walsender: replication needs it"):format(node.pid) }
    elseif node.class == "autovacuum_wraparound" then
      list[#list + 1] = { label = "Leave it:",
        text = ("%d prevents the wraparound of transaction ids: it would start again"):format(node.pid) }
    elseif node.pid then
      pids[#pids + 1] = tostring(node.pid)
    end
  end
  if #pids > 0 then
    table.insert(list, 1, { label = #pids > 1 and "End them:" or "End it:",
      command = ("lockkeeper ls %s --terminate"):format(table.concat(pids, " ")) })
  end
  local cycles = graph:cycles()
  if #cycles > 0 then
    list[#list + 1] = { label = "Deadlock:",
      text = ("%s wait for each other: PostgreSQL ends one of them after its deadlock_timeout"):format(
        table.concat(cycles[1], ", ")) }
  end
  return list
end

return outline
