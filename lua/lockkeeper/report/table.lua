--- Rows as text: aligned columns that fit a terminal.
local text_table = {}

-- The least room that a cut cell makes sense in.
local LEAST = 4

-- Characters, not bytes; what is not UTF-8 is counted in bytes.
local function width_of(text)
  return utf8.len(text) or #text
end

local function cut(text, width)
  if width_of(text) <= width then
    return text
  end
  local stop = utf8.len(text) and utf8.offset(text, width) or width
  return text:sub(1, stop - 1) .. "…"
end

local function pad(text, width, right)
  local space = (" "):rep(width - width_of(text))
  return right and space .. text or text .. space
end

-- Those with a value in some row.
local function used(columns, rows)
  local list = {}
  for _, column in ipairs(columns) do
    for _, row in ipairs(rows) do
      if row[column.key] ~= nil and row[column.key] ~= "" then
        list[#list + 1] = column
        break
      end
    end
  end
  return list
end

--- Lines of a table. `columns`: { { title =, key =, right = true }, … }; `width`: of the terminal,
--- nil where nothing is to be cut. Empty columns are left out; the last one gets what room is left.
---@param columns table[]
---@param rows table[]
---@param width? integer
---@return string
function text_table.format(columns, rows, width)
  local widths = {}
  columns = used(columns, rows)
  for i, column in ipairs(columns) do
    widths[i] = width_of(column.title)
    for _, row in ipairs(rows) do
      widths[i] = math.max(widths[i], width_of(tostring(row[column.key] == nil and "" or row[column.key])))
    end
  end
  local lines = {}
  local function add(cells)
    local parts, taken = {}, 0
    for i, column in ipairs(columns) do
      local last = i == #columns
      local cell = tostring(cells[i]):gsub("%c", " ")
      if last and width and width - taken >= LEAST then
        cell = cut(cell, width - taken)
      end
      parts[i] = last and not column.right and cell or pad(cell, widths[i], column.right)
      taken = taken + widths[i] + 2
    end
    lines[#lines + 1] = (table.concat(parts, "  "):gsub("%s+$", ""))
  end
  local titles = {}
  for i, column in ipairs(columns) do
    titles[i] = column.title
  end
  add(titles)
  for _, row in ipairs(rows) do
    local cells = {}
    for i, column in ipairs(columns) do
      cells[i] = row[column.key] == nil and "" or row[column.key]
    end
    add(cells)
  end
  return table.concat(lines, "\n") .. "\n"
end

return text_table
