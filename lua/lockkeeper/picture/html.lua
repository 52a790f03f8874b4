--- The wait-for graph as an HTML page that needs nothing else, and runs nothing: what to do, the picture, and
-- a table of everybody who waits or is waited for, with their statements.
local field = require "lockkeeper.report.field"
local markup = require "lockkeeper.picture.markup"
local outline = require "lockkeeper.picture.outline"
local span = require "lockkeeper.report.span"

local STYLE = [[
body { margin: 24px auto; max-width: 1168px; padding: 0 12px; color: #1e293b; background: #fff;
  font: 14px/1.45 system-ui, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif }
h1 { font-size: 20px; margin: 0 0 4px } h2 { font-size: 16px; margin: 28px 0 8px }
p { margin: 4px 0 } .quiet { color: #64748b }
.advice { background: #1e293b; color: #fff; border-radius: 6px; padding: 8px 12px; margin: 8px 0 }
.advice code { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; user-select: all }
svg { max-width: 100%; height: auto; border: 1px solid #e2e8f0; border-radius: 8px; margin-top: 12px }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th { text-align: left; font-size: 11px; color: #64748b; letter-spacing: .04em }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid #e2e8f0; vertical-align: top }
.number { text-align: right; white-space: nowrap } tr.root td:first-child { color: #b91c1c; font-weight: 600 }
tr.cycle td:first-child { color: #7e22ce; font-weight: 600 }
pre { margin: 4px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 20em; overflow: auto;
  font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; color: #475569 }
@media print { pre { max-height: none } }
]]

local function cell(text, class)
  return ("<td%s>%s</td>"):format(class and (' class="%s"'):format(class) or "", markup.line(text or ""))
end

-- By pid of the waiter: who is in its way, those that hold something first.
local function blockers_by_waiter(graph)
  local by_waiter = {}
  for _, edge in ipairs(graph:edges()) do
    local text = edge.blocker_pid and tostring(edge.blocker_pid) or ("'%s'"):format(edge.blocker_gid or "?")
    local lists = by_waiter[edge.waiter_pid] or { holders = {}, queued = {} }
    table.insert(edge.held_mode and lists.holders or lists.queued, text)
    by_waiter[edge.waiter_pid] = lists
  end
  return by_waiter
end

local BLOCKERS_SHOWN = 8

local function blockers_text(lists)
  if not lists then
    return ""
  end
  local list = table.move(lists.queued, 1, #lists.queued, #lists.holders + 1, lists.holders)
  return table.concat(list, ", ", 1, math.min(#list, BLOCKERS_SHOWN))
    .. (#list > BLOCKERS_SHOWN and (" and %d more"):format(#list - BLOCKERS_SHOWN) or "")
end

local function session_row(node, blockers)
  local activity = node.activity
  local class = node.in_cycle and "cycle" or not node.waits_for and "root" or "waiter"
  local statement = activity.query and activity.query ~= "" and ("<pre>%s</pre>"):format(
    markup.block(activity.query)) or ""
  return table.concat {
    ('<tr class="%s">'):format(class), cell(node.pid and tostring(node.pid) or node.gid or "prepared"),
    cell(node.waited and span(node.waited) or "", "number"), cell(tostring(node.behind), "number"),
    ("<td>%s%s</td>"):format(markup.line(node.waits_for or outline.state(node)), statement),
    cell(blockers_text(blockers)), cell(node.waits_for and activity.state or node.class),
    cell(activity.user), cell(activity.application_name), cell(activity.client_addr), "</tr>\n",
  }
end

---@param graph Graph
---@param title? string
---@param unfolded? boolean  a line for each session in the picture
---@return string
return function(graph, title, unfolded)
  title = title or "Who waits for whom"
  local sessions = graph:sessions()
  local parts = {
    "<h1>Who waits for whom</h1>\n",
    ('<p class="quiet">%s</p>\n'):format(markup.line(title)),
    ('<p class="quiet">Seen at %s</p>\n'):format(field.instant(graph.taken_at)),
  }
  for _, advice in ipairs(outline.advice(graph)) do
    parts[#parts + 1] = ('<div class="advice">%s <code>%s</code></div>\n'):format(markup.line(advice.label),
      markup.line(advice.command or advice.text))
  end
  if #sessions == 0 then
    parts[#parts + 1] = "<p>Nobody waits.</p>\n"
  else
    parts[#parts + 1] = graph:to_svg(title, unfolded):gsub("^<%?xml[^\n]*\n", "")
    parts[#parts + 1] = "<h2>Sessions</h2>\n<table>\n<tr><th>PID</th><th class=\"number\">WAITED</th>"
      .. '<th class="number">BEHIND</th><th>WAITS FOR, OR STATE</th><th>BLOCKED BY</th><th>CLASS</th>'
      .. "<th>USER</th><th>APPLICATION</th><th>CLIENT</th></tr>\n"
    local blockers = blockers_by_waiter(graph)
    for _, node in ipairs(sessions) do
      parts[#parts + 1] = session_row(node, blockers[node.pid])
    end
    parts[#parts + 1] = "</table>\n"
  end
  return markup.page(title, STYLE, table.concat(parts))
end
