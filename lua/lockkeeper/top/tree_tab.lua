--- The tab of `lockkeeper top` with what `lockkeeper tree` shows.
local filter = require "lockkeeper.filter"
local lock = require "lockkeeper"
local outline = require "lockkeeper.picture.outline"
local safe = require "lockkeeper.report.safe"
local session_page = require "lockkeeper.top.session_page"
local tree = require "lockkeeper.cli.tree"

local tree_tab = { name = "tree", title = "Tree", is_tree = true,
  empty = "Nobody waits.", none = "Nobody who waits, or is waited for, matches.",
  example = "waited > 60 or behind >= 10" }

-- Parameters of SGR sequences.
local BOLD, DIM, RED, YELLOW = "1", "2", "1;31", "33"

-- What an expression knows of an entry: the session's fields, and its place in the tree.
tree_tab.fields = {}
for _, field in ipairs(filter.FIELDS.sessions) do
  tree_tab.fields[field.key] = { key = field.key, name = field.name, kind = field.kind, holder = "activity" }
end
for _, field in ipairs { { "behind", "integer" }, { "weight", "duration" }, { "waited", "duration" },
  { "waits_for", "text" }, { "class", "text" }, { "gid", "text" }, { "in_cycle", "boolean" } } do
  tree_tab.fields[field[1]] = { key = field[1], name = field[1], kind = field[2] }
end

-- Whoever has waited for as many seconds is marked.
local LONG = 60

-- How much of the tree's lines there is room for.
local PREFIX_MOST = 30

local function short_prefix(prefix)
  local length = utf8.len(prefix)
  return length <= PREFIX_MOST and prefix or "…" .. prefix:sub(utf8.offset(prefix, length - PREFIX_MOST + 2))
end

local COLUMNS = {
  { title = "PID", key = "pid", kind = "text", keep = true, is_drawn = true,
    get = function(row) return short_prefix(row.prefix) .. row.label end },
  { title = "FOR", key = "for", kind = "duration", keep = true, get = function(row) return row.seconds end },
  { title = "BEHIND", key = "behind", kind = "integer", keep = true, right = true,
    get = function(row) return row.behind end },
  { title = "WAITS FOR, OR STATE", key = "text", kind = "text", keep = true, least = 19,
    get = function(row) return row.text end },
  { title = "USER", key = "user", kind = "text", keep = true, least = 6,
    get = function(row) return row.user end },
  { title = "APPLICATION", key = "application", kind = "text", keep = true,
    get = function(row) return row.application end },
}

function tree_tab.columns()
  return COLUMNS
end

--- Look. On the reader's task.
---@return TopData
function tree_tab.read()
  local graph = lock.graph()
  return { graph = graph, now = graph.taken_at, counts = tree.counts(graph) }
end

-- Of rows without some of them: those above what is left stay, dim, and the lines are drawn anew. From the
-- last row to the first: `open` says at which depths more lines follow below.
local function only(rows, condition)
  local kept, open, parent_depth = {}, {}, -1
  for i = #rows, 1, -1 do
    local row = rows[i]
    local depth, matches = row.depth, condition:matches(row.entry)
    if matches or depth == parent_depth then
      kept[#kept + 1] = { row = row, style = not matches and DIM or nil }
      parent_depth = depth - 1
      local prefix = {}
      for above = 1, depth - 1 do
        prefix[above] = open[above] and "│  " or "   "
      end
      prefix[#prefix + 1] = depth > 0 and (open[depth] and "├─ " or "└─ ") or nil
      row.prefix, row.has_children = table.concat(prefix), open[depth + 1] or false
      open[depth] = true
      for below in pairs(open) do
        open[below] = below <= depth or nil
      end
    end
  end
  local items = {}
  for i = #kept, 1, -1 do
    items[#items + 1] = kept[i]
  end
  return items
end

-- What a session at the top runs, or ran last.
local function note_of(row)
  return ("%s  %s%s"):format(row.has_children and "│" or " ", row.is_running and "runs: " or "last: ",
    safe.line(row.statement))
end

local function style_of(row)
  if row.depth > 0 then
    return row.seconds and row.seconds >= LONG and YELLOW or nil
  end
  return (row.entry.cycle or row.entry.class == "idle_in_transaction") and RED or BOLD
end

--- The lines of the tree.
---@param data TopData
---@param order TopOrder
---@param options { unfolded: boolean }
---@return TopItem[]
function tree_tab.arrange(data, order, options)
  local condition = order.condition
  local rows = outline.rows(data.graph, { fold = not options.unfolded and not condition })
  local items, list = {}, {}
  if condition then
    list = only(rows, condition)
  else
    for i, row in ipairs(rows) do
      list[i] = { row = row }
    end
  end
  for _, item in ipairs(list) do
    item.style = item.style or style_of(item.row)
    items[#items + 1] = item
    if item.row.statement then
      items[#items + 1] = { note = note_of(item.row) }
    end
  end
  return items
end

--- Is it the same line, in another look?
---@param a OutlineRow
---@param b OutlineRow
---@return boolean
function tree_tab.is_same(a, b)
  local x, y = a.entry, b.entry
  return a.kind == b.kind and a.depth == b.depth and x.waits_for == y.waits_for
    and (a.kind == "more" or x.pid == y.pid and x.gid == y.gid)
end

--- Whose line it is, to be ended or looked at.
---@param row OutlineRow
---@return TopSubject? subject
---@return string? why  not
function tree_tab.subject(row)
  if row.kind == "more" then
    return nil, ("these are %d sessions: u shows a line for each"):format(#row.folded)
  end
  return { pid = row.entry.pid, gid = row.entry.gid, activity = row.entry.activity,
    behind = row.entry.behind }
end

function tree_tab.statement(row)
  return row.kind ~= "more" and row.entry.activity.query or nil
end

function tree_tab.page(row)
  local subject, why = tree_tab.subject(row)
  return subject and session_page.new(subject), why
end

return tree_tab
