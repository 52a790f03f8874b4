--- Rows as text, one field a line.
local safe = require "lockkeeper.report.safe"
local width_of = require("lockkeeper.report.width").of

local expanded = {}

-- How long the line between rows is where the output goes to no terminal.
local RULE = 60

local TITLE_STYLE = "1"

--- One row after the other, each below a line with its number; values are whole, with their lines.
---@param columns { title: string, key: string }[]
---@param rows table[]
---@param width? integer    of the terminal
---@param colours? boolean
---@return string
function expanded.format(columns, rows, width, colours)
  local room = 0
  for _, column in ipairs(columns) do
    room = math.max(room, width_of(column.title))
  end
  local lines, indent = {}, (" "):rep(room + 2)
  for number, row in ipairs(rows) do
    local head = ("── %d "):format(number)
    lines[#lines + 1] = head .. ("─"):rep((width or RULE) - width_of(head))
    for _, column in ipairs(columns) do
      local value = row[column.key]
      if value ~= nil and value ~= "" then
        local title = column.title .. (" "):rep(room - width_of(column.title))
        lines[#lines + 1] = (colours and ("\27[%sm%s\27[0m"):format(TITLE_STYLE, title) or title) .. "  "
          .. safe.block(tostring(value)):gsub("\n", "\n" .. indent)
      end
    end
  end
  return #lines > 0 and table.concat(lines, "\n") .. "\n" or ""
end

return expanded
