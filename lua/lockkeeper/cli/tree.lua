--- lockkeeper tree: who waits for whom, as a tree, a picture or JSON.
local field = require "lockkeeper.report.field"
local listing = require "lockkeeper.cli.listing"
local lock = require "lockkeeper"
local outline = require "lockkeeper.picture.outline"
local rows_of = require "lockkeeper.cli.rows"
local host = require "lockkeeper.host"
local safe = require "lockkeeper.report.safe"
local span = require "lockkeeper.report.span"
local target = require "lockkeeper.cli.target"
local width = require "lockkeeper.report.width"

local tree = {}

tree.spec = {
  usage = "lockkeeper tree [options]",
  summary = "Who waits for whom: root blockers first, the heaviest of them at the top, and below each "
    .. "those who wait for it.",
  text = {
    "FOR: how long a session has waited; of one that does not wait, been in its state. BEHIND: how many "
      .. "wait for it, also through others. Sessions that wait for the same and block nobody are folded "
      .. "into one line; \"again\" marks one that is shown in full below another who blocks it too.",
    "svg and html are files that need nothing else: lockkeeper tree --format html > incident.html",
    "Exit code: 0; 69 no connection.",
  },
  operands = { min = 0, max = 0 },
  options = {
    { "--format", value = "FORMAT", key = "format", kind = "choice",
      choices = { "tree", "dot", "svg", "html", "json" }, help = "tree (default), dot, svg, html or json" },
    { "--all", key = "all", help = "a line for each session: nothing is folded" },
    { "--exact", key = "exact",
      help = "ask pg_blocking_pids about everybody who waits, and not only where it is in doubt" },
  },
  uses_config = true,
}

-- What each column takes at least; between them there are two spaces, and after the text one.
local PID, FOR, BEHIND, TEXT, USER = 14, 5, 6, 19, 4

-- What they are cut to where the terminal is narrow.
local TEXT_LEAST, USER_LEAST, APPLICATION_LEAST = 24, 6, 12

-- How much of the tree's lines a terminal has room for.
local PREFIX_MOST = 30

-- Parameters of SGR sequences.
local BOLD, RED, YELLOW = "1", "31", "33"

---------------------------------------------------------------------------------------------------
-- the first line

--- Who waits: "3 sessions wait, 1 root blocker, longest 9m40s".
---@param graph Graph
---@return string
function tree.counts(graph)
  local waiting, longest = 0, 0
  for _, node in ipairs(graph:sessions()) do
    if node.waits_for then
      waiting, longest = waiting + 1, math.max(longest, node.waited or 0)
    end
  end
  if waiting == 0 then
    return "nobody waits"
  end
  local roots, cycles = #graph:roots(), #graph:cycles()
  local parts = { rows_of.counted(waiting, "session waits", "sessions wait"),
    rows_of.counted(roots, "root blocker") }
  if cycles > 0 then
    parts[#parts + 1] = rows_of.counted(cycles, "deadlock")
  end
  parts[#parts + 1] = "longest " .. span(longest)
  return table.concat(parts, ", ")
end

local function title(graph)
  return safe.line(("%s, %s: %s"):format(listing.place(), field.local_time(graph.taken_at, true),
    tree.counts(graph)))
end

---------------------------------------------------------------------------------------------------
-- as text

local function painted(text, style)
  return style and text:find("%S") and ("\27[%sm%s\27[0m"):format(style, text) or text
end

local function pad(text, columns, right)
  local space = (" "):rep(columns - width.of(text))
  return right and space .. text or text .. space
end

-- The tree's lines of one that is far down: the right end of them.
local function short_prefix(prefix, most)
  local columns = width.of(prefix)
  if columns <= most then
    return prefix
  end
  return "…" .. prefix:sub(utf8.offset(prefix, columns - most + 2))
end

local function cells_of(row, is_terminal)
  return {
    prefix = is_terminal and short_prefix(row.prefix, PREFIX_MOST) or row.prefix,
    label = row.label,
    seconds = row.seconds and span(row.seconds) or "",
    behind = row.behind and tostring(row.behind) or "",
    text = safe.line(row.text),
    user = safe.line(row.user or ""),
    application = safe.line(row.application or ""),
  }
end

-- How wide each column is.
local function widths_of(list, columns)
  local widths = { pid = PID, seconds = FOR, behind = BEHIND, text = TEXT, user = USER, application = 11 }
  for _, cells in ipairs(list) do
    widths.pid = math.max(widths.pid, width.of(cells.prefix) + width.of(cells.label))
    for _, name in ipairs { "seconds", "behind", "text", "user", "application" } do
      widths[name] = math.max(widths[name], width.of(cells[name]))
    end
  end
  if columns then
    local over = widths.pid + widths.seconds + widths.behind + widths.text + widths.user + widths.application
      + 9 - columns
    for _, least in ipairs { { "application", APPLICATION_LEAST }, { "text", TEXT_LEAST },
      { "user", USER_LEAST }, { "application", 4 }, { "text", 8 } } do
      local less = math.max(0, math.min(over, widths[least[1]] - least[2]))
      widths[least[1]], over = widths[least[1]] - less, over - less
    end
  end
  return widths
end

local function line_of(cells, widths, styles)
  local text = table.concat {
    cells.prefix, painted(cells.label, styles.label),
    (" "):rep(widths.pid - width.of(cells.prefix) - width.of(cells.label)), "  ",
    painted(pad(cells.seconds, widths.seconds), styles.seconds), "  ",
    pad(cells.behind, widths.behind, true), "  ",
    painted(pad(width.cut(cells.text, widths.text), widths.text), styles.text), " ",
    pad(width.cut(cells.user, widths.user), widths.user), "  ",
    width.cut(cells.application, widths.application),
  }
  return (text:gsub(" +$", ""))
end

local HEAD = { prefix = "", label = "PID", seconds = "FOR", behind = "BEHIND", text = "WAITS FOR, OR STATE",
  user = "USER", application = "APPLICATION" }

local function styles_of(row, colours)
  if not colours then
    return {}
  end
  local at_top = row.depth == 0
  return { label = at_top and RED .. ";" .. BOLD or nil, seconds = not at_top and YELLOW or nil,
    text = at_top and (row.entry.cycle or row.text:find("^idle in transaction")) and RED or nil }
end

-- What a session at the top runs, or ran last.
local function statement_line(row, widths, columns)
  local head = row.has_children and "│" or " "
  local text = (row.is_running and "runs: " or "last: ") .. safe.line(row.statement)
  local room = columns and math.max(columns - widths.pid - 2, 8)
  return pad(head, widths.pid + 2) .. (room and width.cut(text, room) or text)
end

local function print_tree(graph, values)
  local columns, colours = host.terminal(1), rows_of.colours(1)
  io.stdout:write(title(graph), "\n")
  local rows = outline.rows(graph, { fold = not values.all })
  if #rows == 0 then
    io.stdout:write("Nobody waits.\n")
    return
  end
  local list = {}
  for i, row in ipairs(rows) do
    list[i] = cells_of(row, columns ~= nil)
  end
  local widths = widths_of(list, columns)
  io.stdout:write(painted(line_of(HEAD, widths, {}), colours and BOLD), "\n")
  for i, row in ipairs(rows) do
    io.stdout:write(line_of(list[i], widths, styles_of(row, colours)), "\n")
    if row.statement then
      io.stdout:write(statement_line(row, widths, columns), "\n")
    end
  end
  for _, advice in ipairs(outline.advice(graph)) do
    io.stdout:write(pad(advice.label, 8), " ", safe.line(advice.command or advice.text), "\n")
  end
end

---------------------------------------------------------------------------------------------------
-- as JSON: an edge and a session a line

local LISTS = { "edges", "sessions", "roots", "cycles" }

local function print_json(graph)
  local object = graph:to_table()
  io.stdout:write("{\n", '"taken_at": ', lock.json.encode(object.taken_at))
  for _, name in ipairs(LISTS) do
    io.stdout:write(",\n\"", name, '": [')
    for i, value in ipairs(object[name]) do
      io.stdout:write(i == 1 and "\n" or ",\n", lock.json.encode(value))
    end
    io.stdout:write("]")
  end
  io.stdout:write("\n}\n")
end

---------------------------------------------------------------------------------------------------

local FORMATS = {
  tree = print_tree,
  json = print_json,
  dot = function(graph) io.stdout:write(graph:to_dot()) end,
  svg = function(graph, values) io.stdout:write(graph:to_svg(title(graph), values.all)) end,
  html = function(graph, values) io.stdout:write(graph:to_html(title(graph), values.all)) end,
}

function tree.main(values)
  target.name_sessions("tree")
  local graph = lock.graph { exact = values.exact or false }
  FORMATS[values.format or "tree"](graph, values)
  return 0
end

return tree
