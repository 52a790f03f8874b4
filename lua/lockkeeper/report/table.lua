--- Rows as text: aligned columns that fit a terminal.
local safe = require "lockkeeper.report.safe"
local width_of, cut = require("lockkeeper.report.width").of, require("lockkeeper.report.width").cut

local text_table = {}

---@class ReportColumn
---@field title string
---@field key string
---@field right? boolean        aligned to the right
---@field least? integer        to how many columns its cells may be cut where the terminal is narrow
---@field keep? boolean         shown even if it is empty in every row
---@field style? fun(row: table): string?  parameters of the terminal's SGR sequence: "1;31"

-- The least room that a cut cell makes sense in, and what the last column is cut to before others.
local LEAST, LAST_LEAST = 4, 20

local TITLE_STYLE = "1"

local function pad(text, width, right)
  local space = (" "):rep(width - width_of(text))
  return right and space .. text or text .. space
end

local function painted(text, style)
  return style and text:find("%S") and ("\27[%sm%s\27[0m"):format(style, text) or text
end

-- Those with a value in some row.
local function used(columns, rows)
  local list = {}
  for _, column in ipairs(columns) do
    local is_used = column.keep
    for _, row in ipairs(rows) do
      if is_used then
        break
      end
      is_used = row[column.key] ~= nil and row[column.key] ~= ""
    end
    if is_used then
      list[#list + 1] = column
    end
  end
  return list
end

--- Cut columns until `width` has room for all, with two spaces between them: the last one first, then from
--- the right those that say to how little they may be cut, then the last one again.
---@param columns ReportColumn[]
---@param widths integer[]  what they would take; changed
---@param width integer
function text_table.fit(columns, widths, width)
  local over = 2 * (#widths - 1) - width
  for i = 1, #widths do
    over = over + widths[i]
  end
  local function narrow(i, least)
    local less = math.max(0, math.min(over, widths[i] - least))
    widths[i], over = widths[i] - less, over - less
  end
  local last = #columns
  narrow(last, math.max(LAST_LEAST, width_of(columns[last].title)))
  for i = last - 1, 1, -1 do
    if columns[i].least then
      narrow(i, math.max(columns[i].least, width_of(columns[i].title)))
    end
  end
  narrow(last, LEAST)
end

local function line(columns, widths, cells, styles)
  local parts = {}
  for i, column in ipairs(columns) do
    local text = cut(cells[i], widths[i])
    if i < #columns or column.right then
      text = pad(text, widths[i], column.right)
    end
    parts[i] = text
  end
  -- The end is cleared of spaces before it is painted.
  local last = #parts
  while last > 0 and parts[last]:find("^ *$") do
    parts[last], last = nil, last - 1
  end
  if last > 0 then
    parts[last] = parts[last]:gsub(" +$", "")
  end
  for i = 1, last do
    parts[i] = painted(parts[i], styles and styles[i])
  end
  return table.concat(parts, "  ")
end

--- Lines of a table. Columns that are empty in every row are left out, unless they are to be kept.
---@param columns ReportColumn[]
---@param rows table[]
---@param width? integer    of the terminal; nil where nothing is to be cut
---@param colours? boolean
---@return string
function text_table.format(columns, rows, width, colours)
  columns = used(columns, rows)
  if #columns == 0 then
    return ""
  end
  local widths, titles, cells = {}, {}, {}
  for i, column in ipairs(columns) do
    widths[i], titles[i] = width_of(column.title), column.title
  end
  for r, row in ipairs(rows) do
    local list = {}
    for i, column in ipairs(columns) do
      local value = row[column.key]
      list[i] = value == nil and "" or safe.line(tostring(value))
      widths[i] = math.max(widths[i], width_of(list[i]))
    end
    cells[r] = list
  end
  if width then
    text_table.fit(columns, widths, width)
  end
  local title_styles = {}
  for i = 1, colours and #columns or 0 do
    title_styles[i] = TITLE_STYLE
  end
  local lines = { line(columns, widths, titles, title_styles) }
  for r, row in ipairs(rows) do
    local styles = {}
    for i, column in ipairs(columns) do
      styles[i] = colours and column.style and column.style(row) or nil
    end
    lines[#lines + 1] = line(columns, widths, cells[r], styles)
  end
  return table.concat(lines, "\n") .. "\n"
end

return text_table
