--- Which rows are shown, and in which order: the same for all tabs that are lists.
local arrange = {}

---@class TopItem
---@field row? table      nil: a note, which can't be selected
---@field note? string
---@field style? string   of the whole line; nil: as its columns say

---@class TopOrder
---@field condition? Expression
---@field sort? string     a column's key; nil: the order in which they came
---@field reverse boolean

-- Are values in this order? Those of one column are of one kind, but for keys of two parts.
local function is_less(a, b)
  if type(a) ~= type(b) or type(a) == "table" or type(a) == "boolean" then
    return tostring(a) < tostring(b)
  end
  return a < b
end

-- Nothing comes last, whatever the direction; equals stay as they came.
local function sort(list, column, reverse)
  local values, places = {}, {}
  for i, row in ipairs(list) do
    values[row], places[row] = column.get(row), i
  end
  table.sort(list, function(a, b)
    local x, y = values[a], values[b]
    if x == nil or y == nil or x == y then
      if x == y then
        return places[a] < places[b]
      end
      return y == nil
    elseif reverse then
      return is_less(y, x)
    end
    return is_less(x, y)
  end)
end

--- The rows of which the condition is true, in order. Raises a usage error where it can't be asked of one.
---@param list table[]
---@param columns RowColumn[]
---@param order TopOrder
---@param object_of? fun(row: table): table  what the condition is asked of; default: the row
---@return TopItem[]
function arrange.list(list, columns, order, object_of)
  local kept, items = {}, {}
  local condition = order.condition
  for _, row in ipairs(list) do
    if not condition or condition:matches(object_of and object_of(row) or row) then
      kept[#kept + 1] = row
    end
  end
  for _, column in ipairs(order.sort and columns or {}) do
    if column.key == order.sort then
      sort(kept, column, order.reverse)
    end
  end
  for i, row in ipairs(kept) do
    items[i] = { row = row }
  end
  return items
end

return arrange
