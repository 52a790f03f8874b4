--- Checks of values that a definition gives. Each returns the value as it is kept, or nil after it has
--- told what is wrong: `fault(message)` collects, so that all faults of a definition are told at once.
local core = require "lockkeeper.core"

-- Kept, since a file that is loaded may replace what it finds.
local type, pcall, error, tostring, ipairs, pairs = type, pcall, error, tostring, ipairs, pairs
local getmetatable = getmetatable

local validation = {}

---@alias Fault fun(message: string)

-- How long a text may be to be shown, in bytes.
local SHOWN_MAX = 40

--- What a value is, for messages.
---@param value any
---@return string
function validation.described(value)
  local kind = type(value)
  if kind == "string" then
    if #value > SHOWN_MAX or value:find("://", 1, true) or value:lower():find("password", 1, true) then
      return ("a text of %d bytes"):format(#value)
    end
    return '"' .. value:gsub("%c", "?") .. '"'
  elseif kind == "number" or kind == "boolean" or kind == "nil" then
    return tostring(value)
  elseif kind == "table" then
    local meta = getmetatable(value)
    local name = type(meta) == "table" and meta.__name
    return name == "lock.unset" and name or "a table"
  end
  return "a " .. kind
end

local described = validation.described

--- The words, for messages: "a", "b" or "c".
---@param words string[]
---@return string
function validation.listed(words)
  local text = ""
  for i, word in ipairs(words) do
    text = text .. (i == 1 and "" or i == #words and " or " or ", ") .. '"' .. word .. '"'
  end
  return text
end

--- '; did you mean "x"?', or nothing.
---@param word any
---@param known string[]
---@return string
function validation.nearest(word, known)
  local near = type(word) == "string" and #word <= 100 and core.nearest(word, known)
  return near and ('; did you mean "%s"?'):format(near) or ""
end

-- Lists of keys as sets, each made once.
local sets = setmetatable({}, { __mode = "k" })

local function set_of(list)
  local set = sets[list]
  if not set then
    set = {}
    for _, element in ipairs(list) do
      set[element] = true
    end
    sets[list] = set
  end
  return set
end

--- Tell every key of a table that is not among `known`, a list that never changes, in order.
---@param tbl table
---@param known string[]
---@param fault Fault
---@param reason? fun(key: any): string?  what to say of a key instead of naming the nearest
function validation.keys(tbl, known, fault, reason)
  local is_known, unknown = set_of(known), nil
  for key in pairs(tbl) do
    if not is_known[key] then
      unknown = unknown or {}
      unknown[#unknown + 1] = key
    end
  end
  if not unknown then
    return
  end
  table.sort(unknown, function(a, b)
    if math.type(a) == "integer" and math.type(b) == "integer" then
      return a < b
    end
    return tostring(a) < tostring(b)
  end)
  for _, key in ipairs(unknown) do
    local better = reason and reason(key)
    fault(("unknown key %s%s"):format(described(key), better or validation.nearest(key, known)))
  end
end

--- Run a check that raises usage errors.
---@param fault Fault
---@return any result  nil where it raised
function validation.try(fault, fn, ...)
  local ok, result = pcall(fn, ...)
  if ok then
    return result
  elseif type(result) ~= "table" or result.kind ~= "usage" then
    error(result, 0)
  end
  fault(result.message)
end

---------------------------------------------------------------------------------------------------
-- kinds of values: (value, what, fault)

function validation.text(value, what, fault)
  if type(value) ~= "string" then
    fault(("%s must be a text, not %s"):format(what, described(value)))
  elseif value == "" then
    fault(what .. " is empty")
  elseif value:find("\0", 1, true) then
    fault(what .. " has a NUL byte")
  elseif not utf8.len(value) then
    fault(what .. " is not UTF-8")
  else
    return value
  end
end

function validation.boolean(value, what, fault)
  if type(value) ~= "boolean" then
    return fault(("%s must be true or false, not %s"):format(what, described(value)))
  end
  return value
end

function validation.callable(value, what, fault)
  if type(value) ~= "function" then
    return fault(("%s must be a function, not %s"):format(what, described(value)))
  end
  return value
end

--- Seconds, or false for no limit where `limits.endless`; at least `limits.least` seconds, 0 only where
--- `limits.zero`; with `limits.setting` what PostgreSQL can count.
---@param limits { endless?: boolean, zero?: boolean, setting?: boolean }
function validation.duration(value, what, fault, limits)
  local seconds = validation.try(fault, core.duration, value, what)
  if seconds == nil then
    return
  elseif seconds == false then
    if not limits.endless then
      return fault(what .. " must be a time: false, no limit, has no meaning here")
    end
  elseif seconds == 0 and not limits.zero then
    return fault(("%s must be longer than 0%s"):format(what,
      limits.endless and "; false is without limit" or ""))
  elseif limits.setting and seconds > (2^31 - 1) / 1000 then
    return fault(what .. " is longer than PostgreSQL can count (2147483647 ms)")
  end
  return seconds
end

function validation.choice(value, what, fault, words)
  for _, word in ipairs(words) do
    if value == word then
      return value
    end
  end
  fault(("%s must be %s, not %s%s"):format(what, validation.listed(words), described(value),
    validation.nearest(value, words)))
end

function validation.integer(value, what, fault, from, to)
  if math.type(value) ~= "integer" or value < from or value > to then
    return fault(("%s must be a whole number from %d to %d, not %s"):format(what, from, to,
      described(value)))
  end
  return value
end

function validation.number(value, what, fault, from, to)
  if type(value) ~= "number" or not (value >= from and value <= to) then
    return fault(("%s must be a number from %g to %g, not %s"):format(what, from, to, described(value)))
  end
  return value
end

--- Is it a table with keys from 1 on and no others (or none at all)?
---@param value any
---@return boolean
function validation.is_list(value)
  if type(value) ~= "table" or getmetatable(value) ~= nil then
    return false
  end
  local count = 0
  for _ in pairs(value) do
    count = count + 1
  end
  return count == #value
end

--- A list of texts, each checked by `element`.
---@param element fun(value: any, what: string, fault: Fault): any
function validation.list(value, what, fault, element)
  if not validation.is_list(value) then
    return fault(("%s must be a list, not %s"):format(what,
      type(value) == "table" and not getmetatable(value) and "a table with other keys" or described(value)))
  end
  local list = {}
  for i = 1, #value do
    list[#list + 1] = element(value[i], ("%s: element %d"):format(what, i), fault)
  end
  return #list == #value and list or nil
end

return validation
