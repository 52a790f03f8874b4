--- How many columns of a terminal a text takes.
--
-- Source: Unicode's East Asian Width (wide and fullwidth) and general categories Mn and Me, as in
-- M. Kuhn's wcwidth, in ranges that are coarse where a terminal shows nothing anyway.
local width = {}

-- First and last code points, in order: those that take no column, and those that take two.
local NONE = {
  0x0300, 0x036F, 0x0483, 0x0489, 0x0591, 0x05BD, 0x0610, 0x061A, 0x064B, 0x065F, 0x0E31, 0x0E31,
  0x0E34, 0x0E3A, 0x0E47, 0x0E4E, 0x1AB0, 0x1AFF, 0x1DC0, 0x1DFF, 0x200B, 0x200F, 0x20D0, 0x20FF,
  0xFE00, 0xFE0F, 0xFE20, 0xFE2F, 0xFEFF, 0xFEFF,
}
local TWO = {
  0x1100, 0x115F, 0x2329, 0x232A, 0x2E80, 0x303E, 0x3041, 0xA4CF, 0xA960, 0xA97F, 0xAC00, 0xD7A3,
  0xF900, 0xFAFF, 0xFE10, 0xFE19, 0xFE30, 0xFE6F, 0xFF00, 0xFF60, 0xFFE0, 0xFFE6, 0x1F300, 0x1F64F,
  0x1F680, 0x1F6FF, 0x1F900, 0x1F9FF, 0x1FA70, 0x1FAFF, 0x20000, 0x3FFFD,
}

local function is_in(ranges, code)
  for i = 1, #ranges, 2 do
    if code <= ranges[i + 1] then
      return code >= ranges[i]
    end
  end
  return false
end

local function of_code(code)
  if code < 0x0300 then
    return 1
  end
  return is_in(NONE, code) and 0 or is_in(TWO, code) and 2 or 1
end

--- Of valid UTF-8 without controls.
---@param text string
---@return integer columns
function width.of(text)
  if not text:find("[\x80-\xFF]") then
    return #text
  end
  local columns = 0
  for _, code in utf8.codes(text) do
    columns = columns + of_code(code)
  end
  return columns
end

--- What fits into that many columns; where something is cut off, it ends in "…".
---@param text string
---@param columns integer  at least 1
---@return string
function width.cut(text, columns)
  if #text <= columns or width.of(text) <= columns then
    return text
  end
  local taken, stop = 0, 1
  for at, code in utf8.codes(text) do
    taken = taken + of_code(code)
    stop = at
    if taken > columns - 1 then
      break
    end
  end
  return text:sub(1, stop - 1) .. "…"
end

return width
