--- Texts of others made harmless: queries and names of applications and relations are whatever somebody
--- chose, and may carry a terminal's escape sequences or be no UTF-8 at all.
local safe = {}

local find, gsub, sub = string.find, string.gsub, string.sub

-- What stands in place of a character that is not shown.
local REPLACEMENT = "\u{FFFD}"

--- Each byte that is no UTF-8 becomes a replacement character.
---@param text string
---@return string
function safe.utf8(text)
  local length, bad = utf8.len(text)
  if length then
    return text
  end
  local parts, at = {}, 1
  repeat
    parts[#parts + 1] = sub(text, at, bad - 1) .. REPLACEMENT
    at = bad + 1
    length, bad = utf8.len(text, at)
  until length
  return table.concat(parts) .. sub(text, at)
end

local PLAIN = "^[\x20-\x7E]*$"

-- Controls of two and three bytes: C1; line and paragraph separators, marks and overrides of direction.
local function visible(text)
  text = gsub(safe.utf8(text), "\xC2[\x80-\x9F]", REPLACEMENT)
  text = gsub(text, "\xE2\x80[\x8E\x8F\xA8-\xAE]", REPLACEMENT)
  return (gsub(text, "\xE2\x81[\xA6-\xA9]", REPLACEMENT))
end

--- On one line: runs of white space become one space.
---@param text string
---@return string
function safe.line(text)
  if not find(text, PLAIN) then
    text = gsub(gsub(visible(text), "[\t-\r]+", " "), "[\0-\31\127]", REPLACEMENT)
  end
  return (gsub(gsub(text, "  +", " "), "^ +", ""))
end

--- Its lines kept, tabs as spaces.
---@param text string
---@return string
function safe.block(text)
  if find(text, PLAIN) then
    return text
  end
  text = gsub(gsub(gsub(visible(text), "\r\n", "\n"), "\t", "    "), "[\0-\9\11-\31\127]", REPLACEMENT)
  return text
end

return safe
