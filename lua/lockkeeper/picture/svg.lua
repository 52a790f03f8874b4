--- The wait-for graph as an SVG file that needs nothing else: who waits for whom from top to bottom, on what,
-- for how long, and whom to end. Source: W3C, "SVG 1.1".
local markup = require "lockkeeper.picture.markup"
local outline = require "lockkeeper.picture.outline"
local safe = require "lockkeeper.report.safe"
local span = require "lockkeeper.report.span"
local width = require "lockkeeper.report.width"

-- Pixels.
local WIDE, MARGIN, HEAD, ROW, STATEMENT = 1120, 24, 78, 30, 20
local INDENT, INDENT_MOST = 26, 390
local TEXT_X, BAR_X, BAR_WIDE, BEHIND_X, WHO_X = 300, 700, 90, 845, 862
local ADVICE = 26

-- About how wide a character of each font is.
local SANS, BOLD, TITLE, MONO = 6.9, 8, 8.4, 7.3

local STYLE = [[
text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif; fill: #1e293b }
.title { font-size: 14px; font-weight: 600 }
.head { font-size: 11px; fill: #64748b; letter-spacing: .04em }
.pid { font-weight: 600 }
.root .pid { fill: #b91c1c }
.root .what { fill: #b91c1c; font-weight: 600 }
.cycle .pid, .cycle .what { fill: #7e22ce; font-weight: 600 }
.quiet text, text.quiet { fill: #64748b }
.mono { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace }
.line { fill: none; stroke: #94a3b8; stroke-width: 1.5 }
.soft { stroke-dasharray: 4 3 }
.loop { stroke: #7e22ce }
.card { fill: #f8fafc; stroke: #e2e8f0 }
.root .card { fill: #fef2f2; stroke: #fca5a5 }
.cycle .card { fill: #faf5ff; stroke: #d8b4fe }
.track { fill: #e2e8f0 }
.bar { fill: #f59e0b }
.advice { fill: #1e293b }
.advice-text { fill: #fff }
]]

local function cut(text, pixels, per_character)
  return width.cut(text, math.max(4, math.floor(pixels / per_character)))
end

local function text_at(x, y, class, text, more)
  return ('<text x="%d" y="%d" class="%s"%s>%s</text>'):format(x, y, class, more or "", text)
end

-- A text of somebody's, in at most that many pixels; whole in its tooltip where it is cut.
local function shown(x, y, class, text, pixels, per_character)
  local line = safe.line(text)
  local short = cut(line, pixels, per_character)
  if short == line then
    return text_at(x, y, class, markup.line(line))
  end
  return ('<text x="%d" y="%d" class="%s">%s<title>%s</title></text>'):format(x, y, class,
    markup.line(short), markup.block(text))
end

-- "shop · gunicorn web-3"
local function who_of(row)
  local parts = {}
  for _, text in ipairs { row.user or "", row.application or "" } do
    if text ~= "" then
      parts[#parts + 1] = text
    end
  end
  return table.concat(parts, " · ")
end

local function step_of(rows)
  local deepest = 1
  for _, row in ipairs(rows) do
    deepest = math.max(deepest, row.depth)
  end
  return math.min(INDENT, INDENT_MOST / deepest)
end

-- Where each row is: its top, and the height that it and its statement take.
local function place_rows(rows)
  local y = HEAD
  for _, row in ipairs(rows) do
    if row.depth == 0 and y > HEAD then
      y = y + 12
    end
    row.y, row.height = y, ROW + (row.statement and STATEMENT or 0)
    y = y + row.height + 4
  end
  return y
end

-- The line from a row up to its parent's.
local function connector(row, parent, step)
  local class = "line" .. (row.entry.edge and not row.entry.edge.held_mode and " soft" or "")
    .. (row.entry.in_cycle and parent.entry.in_cycle and " loop" or "")
  local x, y = MARGIN + parent.depth * step + 12, row.y + ROW // 2
  return ('<path class="%s" d="M%.1f %d V%d H%.1f"/>'):format(class, x, parent.y + parent.height, y,
    MARGIN + row.depth * step)
end

local function row_class(row)
  if row.kind ~= "session" then
    return "quiet"
  elseif row.entry.cycle or row.entry.in_cycle then
    return "cycle"
  end
  return row.depth == 0 and "root" or "waiter"
end

-- Classes whose texts are bold.
local IS_BOLD = { root = true, cycle = true }

local function row_parts(row, step, longest)
  local class = row_class(row)
  local x, y = math.floor(MARGIN + row.depth * step), row.y + 20
  local card_right = WIDE - MARGIN
  local text_x = math.max(TEXT_X, x + 110)
  local parts = {
    ('<g class="%s"><rect class="card" x="%.1f" y="%d" width="%.1f" height="%d" rx="6"/>'):format(
      class, x, row.y, card_right - x, row.height),
    ('<text x="%.1f" y="%d" class="pid">%s</text>'):format(x + 12, y, markup.line(row.label)),
    shown(text_x, y, "what", row.text, BAR_X - text_x - 10, IS_BOLD[class] and BOLD or SANS),
  }
  if row.seconds then
    if row.depth > 0 then
      parts[#parts + 1] = ('<rect class="track" x="%d" y="%d" width="%d" height="6" rx="3"/>'):format(BAR_X,
        row.y + 20, BAR_WIDE)
      parts[#parts + 1] = ('<rect class="bar" x="%d" y="%d" width="%.1f" height="6" rx="3"/>'):format(BAR_X,
        row.y + 20, math.max(2, BAR_WIDE * math.min(1, row.seconds / longest)))
    end
    parts[#parts + 1] = text_at(BAR_X, row.y + (row.depth > 0 and 15 or 20), "for", span(row.seconds))
  end
  if row.behind and row.behind > 0 then
    parts[#parts + 1] = text_at(BEHIND_X, y, "pid", tostring(row.behind), ' text-anchor="end"')
  end
  parts[#parts + 1] = shown(WHO_X, y, "who", who_of(row), card_right - WHO_X - 8, SANS)
  if row.statement then
    parts[#parts + 1] = shown(x + 12, row.y + ROW + 10, "mono quiet",
      (row.is_running and "runs: " or "last: ") .. row.statement, card_right - x - 24, MONO)
  end
  parts[#parts + 1] = "</g>"
  return table.concat(parts)
end

-- The rows that each row stands below.
local function parents_of(rows)
  local parents, path = {}, {}
  for i, row in ipairs(rows) do
    path[row.depth] = row
    parents[i] = path[row.depth - 1]
  end
  return parents
end

local function advice_parts(graph, y)
  local parts = {}
  for _, advice in ipairs(outline.advice(graph)) do
    local text = ("%s  %s"):format(advice.label, advice.command or advice.text)
    parts[#parts + 1] = ('<rect class="advice" x="%d" y="%d" width="%d" height="%d" rx="6"/>'):format(
      MARGIN, y, WIDE - 2 * MARGIN, ADVICE)
    parts[#parts + 1] = shown(MARGIN + 12, y + 17, "mono advice-text", text, WIDE - 2 * MARGIN - 24, MONO)
    y = y + ADVICE + 6
  end
  return parts, y
end

---@param graph Graph
---@param title? string
---@param unfolded? boolean  a line for each session
---@return string
return function(graph, title, unfolded)
  local rows = outline.rows(graph, { fold = not unfolded })
  local step, parents, longest = step_of(rows), parents_of(rows), 0.1
  for _, row in ipairs(rows) do
    longest = math.max(longest, row.depth > 0 and row.seconds or 0)
  end
  local bottom = place_rows(rows)
  local advice, height = advice_parts(graph, bottom + 8)
  height = math.max(height, HEAD + 40) + MARGIN - 8
  title = title or "Who waits for whom"
  local parts = {
    '<?xml version="1.0" encoding="UTF-8"?>',
    ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">'):format(
      WIDE, height, WIDE, height),
    ("<title>%s</title>"):format(markup.line(title)),
    "<style>" .. STYLE .. "</style>",
    ('<rect width="%d" height="%d" fill="#fff"/>'):format(WIDE, height),
    shown(MARGIN, 34, "title", title, WIDE - 2 * MARGIN, TITLE),
  }
  if #rows == 0 then
    parts[#parts + 1] = text_at(MARGIN, HEAD, "quiet", "Nobody waits.")
  else
    local y = HEAD - 12
    table.move({ text_at(MARGIN + 12, y, "head", "PID"), text_at(TEXT_X, y, "head", "WAITS FOR, OR STATE"),
      text_at(BAR_X, y, "head", "FOR"), text_at(BEHIND_X, y, "head", "BEHIND", ' text-anchor="end"'),
      text_at(WHO_X, y, "head", "USER · APPLICATION") }, 1, 5, #parts + 1, parts)
  end
  for i, row in ipairs(rows) do
    if parents[i] then
      parts[#parts + 1] = connector(row, parents[i], step)
    end
  end
  for _, row in ipairs(rows) do
    parts[#parts + 1] = row_parts(row, step, longest)
  end
  table.move(advice, 1, #advice, #parts + 1, parts)
  parts[#parts + 1] = "</svg>\n"
  return table.concat(parts, "\n")
end
