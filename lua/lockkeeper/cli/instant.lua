--- Instants on the command line, as RFC 3339 has them.
local failure = require "lockkeeper.cli.failure"
local options = require "lockkeeper.cli.options"

local instant = {}

local MONTH_DAYS = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }

local function days_of(year, month)
  local is_leap = year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)
  return month == 2 and is_leap and 29 or MONTH_DAYS[month] or 0
end

-- Days since 1970-01-01 of a day of the Gregorian calendar; the year begins in March.
local function days_since_epoch(year, month, day)
  local y = month > 2 and year or year - 1
  local of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
  return 365 * y + y // 4 - y // 100 + y // 400 + of_year - 719468
end

-- "Z", "+02:00" or nothing, which is UTC, in seconds east.
local function offset_of(text)
  if text == "" or text:upper() == "Z" then
    return 0
  end
  local sign, hours, minutes = text:match("^([+-])(%d%d):?(%d%d)$")
  hours, minutes = tonumber(hours), tonumber(minutes)
  if not sign or hours > 23 or minutes > 59 then
    return nil
  end
  return (sign == "-" and -1 or 1) * (hours * 3600 + minutes * 60)
end

local function time_of(text)
  if text == "" then
    return 0, 0
  end
  local hour, minute, rest = text:match("^[Tt ](%d%d):(%d%d)(.*)$")
  if not hour then
    return nil
  end
  local second, after = rest:match("^:(%d%d%.?%d*)(.*)$")
  hour, minute, second = tonumber(hour), tonumber(minute), tonumber(second or 0)
  local offset = offset_of(after or rest)
  if hour > 23 or minute > 59 or not second or second >= 60 or not offset then
    return nil
  end
  return hour * 3600 + minute * 60 + second, offset
end

--- Seconds since the epoch of "2027-03-28T01:00:00Z", of "2027-03-28 03:00+02:00", or of a day; without an
--- offset it is UTC. Wrong words where it is none of these.
---@param text string
---@param name string  the option's
---@return number
function instant.parse(text, name)
  local year, month, day, rest = text:match("^(%d%d%d%d)%-(%d%d)%-(%d%d)(.*)$")
  if year then
    year, month, day = tonumber(year), tonumber(month), tonumber(day)
    local seconds, offset = time_of(rest)
    if seconds and day >= 1 and day <= days_of(year, month) then
      return days_since_epoch(year, month, day) * 86400 + seconds - offset
    end
  end
  failure.words(("%s takes an instant such as 2027-03-28T01:00:00Z, not %s"):format(name,
    options.quoted(text)))
end

return instant
