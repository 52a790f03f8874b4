--- Rows as lines of a screen, in columns that keep their places while one scrolls.
local row_format = require "lockkeeper.cli.rows"
local safe = require "lockkeeper.report.safe"
local text_table = require "lockkeeper.report.table"
local width_of = require("lockkeeper.report.width").of

local grid = {}

---@class TopColumn : RowColumn
---@field is_drawn? boolean  its text is ours, and its spaces count

---@class TopGrid            what is kept from picture to picture
---@field widths table<string, integer>  by column: the most that it needed so far
---@field used table<string, boolean>    columns with a value in some row so far

-- Parameters of SGR sequences.
local BOLD, REVERSE = "1", "7"

local ARROWS = { [false] = "▲", [true] = "▼" }

---@return TopGrid
function grid.new()
  return { widths = {}, used = {} }
end

-- What people see of the rows, on one line each.
local function cells_of(columns, list)
  local all = row_format.cells(columns, list)
  for _, cells in ipairs(all) do
    for _, column in ipairs(columns) do
      local value = cells[column.key]
      if value ~= nil and not column.is_drawn then
        cells[column.key] = safe.line(tostring(value))
      end
    end
  end
  return all
end

-- The columns that are shown, and how wide each is.
local function layout(self, columns, all, titles, width)
  local shown, widths = {}, {}
  for _, column in ipairs(columns) do
    local key = column.key
    local most = math.max(self.widths[key] or 0, width_of(titles[key]))
    for _, cells in ipairs(all) do
      if cells[key] and cells[key] ~= "" then
        self.used[key] = true
        most = math.max(most, width_of(cells[key]))
      end
    end
    self.widths[key] = most
    if column.keep or self.used[key] then
      shown[#shown + 1], widths[#widths + 1] = column, most
    end
  end
  if #shown > 0 then
    text_table.fit(shown, widths, width)
    local rest = width - 2 * (#widths - 1)
    for i = 1, #widths - 1 do
      rest = rest - widths[i]
    end
    widths[#widths] = math.max(rest, widths[#widths])
  end
  return shown, widths
end

local function put_line(screen, line, columns, widths, cells, style_of)
  local at = 1
  for i, column in ipairs(columns) do
    local text = cells[column.key] or ""
    if column.right and i < #columns then
      text = (" "):rep(widths[i] - width_of(text)) .. text
    end
    screen:put(line, at, text, widths[i], style_of(column))
    at = at + widths[i] + 2
  end
end

---@class TopPicture
---@field columns TopColumn[]
---@field items TopItem[]      all of them
---@field first integer        the one that is shown at the top
---@field selected integer
---@field sort? string         a column's key
---@field reverse boolean

--- Draw a line of titles and below it as many items as there is room for.
---@param self TopGrid
---@param screen table
---@param line integer    where the titles are
---@param count integer   how many lines there are below
---@param width integer
---@param picture TopPicture
function grid.draw(self, screen, line, count, width, picture)
  local columns, titles, list, places = picture.columns, {}, {}, {}
  local last = math.min(#picture.items, picture.first + count - 1)
  for i = picture.first, last do
    if picture.items[i].row then
      list[#list + 1] = picture.items[i].row
      places[i] = #list
    end
  end
  for _, column in ipairs(columns) do
    titles[column.key] = column.title .. (picture.sort == column.key and ARROWS[picture.reverse] or "")
  end
  local all = cells_of(columns, list)
  local shown, widths = layout(self, columns, all, titles, width)
  put_line(screen, line, shown, widths, titles, function() return BOLD end)
  for i = picture.first, last do
    local item, at, cells = picture.items[i], line + 1 + i - picture.first, all[places[i]]
    if i == picture.selected then
      screen:put(at, 1, "", width, REVERSE)
    end
    if cells then
      put_line(screen, at, shown, widths, cells, function(column)
        return i == picture.selected and REVERSE or item.style or column.style and column.style(cells) or ""
      end)
    else
      screen:put(at, 1, item.note, width, "")
    end
  end
end

return grid
