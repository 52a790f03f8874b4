--- Rows as comma-separated values. Source: RFC 4180; as in PostgreSQL's COPY a missing value is empty and
--- an empty text "".
local csv = {}

local function field(value)
  if value == nil then
    return ""
  end
  local text = tostring(value)
  if text == "" or text:find('[",\r\n]') or text:find("^%s") or text:find("%s$") then
    return '"' .. text:gsub('"', '""') .. '"'
  end
  return text
end

--- One record, with its end.
---@param values table  a list, nil inside allowed
---@param count integer
---@return string
function csv.record(values, count)
  local fields = {}
  for i = 1, count do
    fields[i] = field(values[i])
  end
  return table.concat(fields, ",") .. "\r\n"
end

return csv
