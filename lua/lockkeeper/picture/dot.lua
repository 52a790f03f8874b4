--- The wait-for graph in Graphviz' DOT language: arrows go from who waits to who is in the way. Of those
-- who are only queued before somebody, the one that the tree shows is drawn: the others are on the way.
-- Source: Graphviz, "DOT Language".
local outline = require "lockkeeper.picture.outline"
local safe = require "lockkeeper.report.safe"
local span = require "lockkeeper.report.span"

-- A quoted text; lines are joined by "\n", which DOT knows.
local function quoted(lines)
  local parts = {}
  for _, line in ipairs(lines) do
    if line and line ~= "" then
      parts[#parts + 1] = (safe.line(line):gsub('[\\"]', "\\%0"))
    end
  end
  return '"' .. table.concat(parts, "\\n") .. '"'
end

local STYLES = {
  root = 'color="#b91c1c", penwidth=2, fillcolor="#fee2e2"',
  cycle = 'color="#7e22ce", penwidth=2, fillcolor="#f3e8ff"',
  waiter = 'color="#64748b", fillcolor="#f8fafc"',
}

local function id_of(node)
  return quoted { node.pid and tostring(node.pid) or "prepared " .. (node.gid or "?") }
end

local function node_line(node)
  local activity = node.activity
  local who = table.concat({ activity.user, activity.application_name ~= "" and activity.application_name
    or nil }, ", ")
  local label = { node.pid and tostring(node.pid) or ("prepared '%s'"):format(node.gid or "?"), who }
  if not node.waits_for then
    label[#label + 1] = outline.state(node)
  end
  if node.behind > 0 then
    label[#label + 1] = ("%d behind"):format(node.behind)
  end
  local style = node.in_cycle and STYLES.cycle or node.waits_for and STYLES.waiter or STYLES.root
  return ("  %s [label=%s, %s];"):format(id_of(node), quoted(label), style)
end

local function edge_line(entry, blocker)
  local edge = entry.edge
  local label = { entry.waits_for, entry.waited and span(entry.waited) }
  local style = {}
  if entry.in_cycle and blocker.in_cycle then
    style[#style + 1] = 'color="#7e22ce"'
  end
  if not edge.held_mode then
    style[#style + 1] = "style=dashed" -- only queued before it
  end
  return ("  %s -> %s [label=%s%s];"):format(id_of(entry), id_of(blocker), quoted(label),
    #style > 0 and ", " .. table.concat(style, ", ") or "")
end

---@param graph Graph
---@return string
return function(graph)
  local lines = {
    "digraph locks {",
    '  graph [rankdir=RL, fontname="Helvetica"];',
    '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=11];',
    '  edge [fontname="Helvetica", fontsize=10];',
  }
  for _, node in ipairs(graph:sessions()) do
    lines[#lines + 1] = node_line(node)
  end
  local function add(entry)
    for _, child in ipairs(entry.children) do
      lines[#lines + 1] = edge_line(child, entry)
      add(child)
    end
  end
  for _, tree in ipairs(graph:tree()) do
    add(tree)
  end
  lines[#lines + 1] = "}\n"
  return table.concat(lines, "\n")
end
