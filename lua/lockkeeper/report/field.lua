--- Values of fields, by their kinds (lockkeeper.filter), for people and for programs.
local span = require "lockkeeper.report.span"

local field = {}

-- Whole microseconds, which PostgreSQL counts in.
local function microseconds(seconds)
  return math.floor(seconds * 1e6 + 0.5)
end

--- An instant as RFC 3339 has it, in UTC: 2027-03-28T01:00:00Z, with a fraction where there is one.
---@param epoch number
---@return string
function field.instant(epoch)
  local us = microseconds(epoch)
  local fraction = us % 1000000
  return os.date("!%Y-%m-%dT%H:%M:%S", us // 1000000)
    .. (fraction > 0 and (".%06d"):format(fraction) or "") .. "Z"
end

--- The same for people: this host's time, with its offset where `offset` is true.
---@param epoch number
---@param offset? boolean
---@return string
function field.local_time(epoch, offset)
  return os.date(offset and "%Y-%m-%d %H:%M:%S %z" or "%Y-%m-%d %H:%M:%S", microseconds(epoch) // 1000000)
end

-- Half a year, less some days: a day and a month are one instant's only.
local SHORT_REACH = 180 * 86400

--- The same, short: 03-28 01:00:00; far from now it has its year, and no seconds.
---@param epoch number
---@param now number
---@return string
function field.short_time(epoch, now)
  local is_near = math.abs(epoch - now) < SHORT_REACH
  return os.date(is_near and "%m-%d %H:%M:%S" or "%Y-%m-%d %H:%M", microseconds(epoch) // 1000000)
end

--- An advisory key for people: a bigint, or "(1, 2)".
---@param key integer|integer[]
---@return string
function field.key(key)
  return type(key) == "table" and ("(%d, %d)"):format(key[1], key[2]) or tostring(key)
end

--- The same for programs, as list:to_json() has it and the command line takes it: "1,2".
---@param key integer|integer[]
---@return string
function field.key_word(key)
  return type(key) == "table" and ("%d,%d"):format(key[1], key[2]) or tostring(key)
end

local SHOWN = {
  duration = span,
  time = field.local_time,
  key = field.key,
}

--- For people; nil stays nil.
---@param kind string
---@param value any
---@return string|number|nil
function field.shown(kind, value)
  if value == nil then
    return nil
  end
  local show = SHOWN[kind]
  return show and show(value) or tostring(value)
end

local FULL = {
  duration = function(seconds) return microseconds(seconds) / 1e6 end,
  time = field.instant,
  key = field.key_word,
}

--- For programs: durations in seconds, instants as RFC 3339, keys as texts, "1,2" two int4; nil stays nil.
---@param kind string
---@param value any
---@return any
function field.full(kind, value)
  local full = FULL[kind]
  if value == nil or not full then
    return value
  end
  return full(value)
end

return field
