--- Rows by columns, in the formats of the command line: for people as a table that fits the terminal, for
--- programs as JSON with every column's full value.
local field = require "lockkeeper.report.field"
local host = require "lockkeeper.host"
local lock = require "lockkeeper"
local safe = require "lockkeeper.report.safe"
local text_table = require "lockkeeper.report.table"

local rows = {}

---@class RowColumn: ReportColumn
---@field kind string                    of its values, see lockkeeper.report.field
---@field get fun(row: table): any
---@field show? fun(value: any, row: table): string?  in place of the kind's way
---@field missing? string                what is shown for nil
---@field is_data? boolean               for programs only

--- May this descriptor's output be coloured?
---@param fd integer
---@return boolean
function rows.colours(fd)
  return host.terminal(fd) ~= nil and (os.getenv("NO_COLOR") or "") == ""
end

--- "1 lock", "2 locks"
---@param number integer
---@param one string
---@param many? string  default: with an s
---@return string
function rows.counted(number, one, many)
  return ("%d %s"):format(number, number == 1 and one or many or one .. "s")
end

--- The columns that people see.
---@param columns RowColumn[]
---@return RowColumn[]
function rows.for_people(columns)
  local shown = {}
  for _, column in ipairs(columns) do
    if not column.is_data then
      shown[#shown + 1] = column
    end
  end
  return shown
end

--- The first `count` rows as cells for people.
---@param columns RowColumn[]
---@param list table[]
---@param count? integer  default: all
---@return table[]
function rows.cells(columns, list, count)
  local all = {}
  for i = 1, count or #list do
    local row, cells = list[i], {}
    for _, column in ipairs(columns) do
      local value = column.get(row)
      if column.show then
        value = column.show(value, row)
      else
        value = field.shown(column.kind, value)
      end
      if value == nil then
        value = column.missing
      end
      cells[column.key] = value
    end
    all[i] = cells
  end
  return all
end

--- Print them for people, as a table.
---@param columns RowColumn[]
---@param list table[]
---@param count? integer  default: all
function rows.print_table(columns, list, count)
  local shown = rows.for_people(columns)
  io.stdout:write(text_table.format(shown, rows.cells(shown, list, count), host.terminal(1), rows.colours(1)))
end

--- A value in JSON: a missing one is null, bytes that are no UTF-8 are replaced.
---@param value any
---@return any
function rows.json_value(value)
  if value == nil then
    return lock.null
  end
  return type(value) == "string" and safe.utf8(value) or value
end

--- What makes a row an object of the columns' full values.
---@param columns RowColumn[]
---@return fun(row: table): table
function rows.object_by(columns)
  return function(row)
    local object = {}
    for _, column in ipairs(columns) do
      object[column.key] = rows.json_value(field.full(column.kind, column.get(row)))
    end
    return object
  end
end

--- Print a JSON list, an object a line.
---@param list table[]
---@param object_of fun(row: table): table
function rows.print_json(list, object_of)
  if #list == 0 then
    print("[]")
    return
  end
  for i, row in ipairs(list) do
    io.stdout:write(i == 1 and "[\n" or ",\n", lock.json.encode(object_of(row)))
  end
  io.stdout:write("\n]\n")
end

return rows
