--- Policies: how runs of a job wait, are bounded and tried again. A policy is a table of the keys below;
--- several are merged left to right, by key; a later lock.unset takes away what an earlier one has set.
local core = require "lockkeeper.core"
local probe = require "lockkeeper.probe"
local unset = require "lockkeeper.unset"
local validation = require "lockkeeper.validation"

---@class Policy
---@field timeout? number|string|false           how long to wait for the guards, all together; 0: one try
---@field on_busy? "raise"|"skip"                where they are not to be had: the run fails, or is skipped
---@field max_run? number|string|false           how long a run may take
---@field grace? number|string                   between SIGTERM and SIGKILL to a job's commands; default 5 s
---@field retry? PolicyRetry
---@field prioritize? boolean|PrioritizeOptions
---@field lock_timeout? number|string|false      of the job's session
---@field statement_timeout? number|string|false of the job's session
---@field memory_limit? integer|string|false     of the Lua state: bytes, or as "256MB"
---@field session? table<string, string|number|boolean>  settings of the job's session
---@field timezone? string                       of schedule and window; an IANA name; default UTC
---@field overlap? "skip"|"queue"|"replace"|"allow"
---@field catchup? "last"|"all"|"none"
---@field catchup_window? number|string|false    how far back missed slots count; default one day
---@field on_failure? fun(job, err)              once, after the last attempt
---@field extend? string|string[]                policies that this one begins with

---@class PolicyRetry
---@field attempts integer          how many in all
---@field delay? number|string      before the second attempt
---@field factor? number            by which the delay grows with each attempt
---@field on? string|string[]       after which ends: a run's state or an error's kind

local type, tostring, tonumber, ipairs, pairs = type, tostring, tonumber, ipairs, pairs
local next, require = next, require

local policy = {}

-- What holds where nobody has said anything.
policy.DEFAULTS = {
  on_busy = "raise", grace = 5, overlap = "skip", catchup = "last", catchup_window = 86400, timezone = "UTC",
}

local RETRY_ON = { "failed", "timed_out", "lost", "lock_timeout", "not_acquired", "deadlock", "lock_lost",
  "connection", "sql" }

local RETRY_KEYS = { "attempts", "delay", "factor", "on" }

-- Units of PostgreSQL's memory settings.
local UNITS = { B = 1, kB = 1024, MB = 1024 ^ 2, GB = 1024 ^ 3 }

local MEMORY_LEAST = 1024 ^ 2

local described = validation.described

---------------------------------------------------------------------------------------------------
-- values

local function duration(limits)
  return function(value, what, fault)
    return validation.duration(value, what, fault, limits)
  end
end

local function choice(words)
  return function(value, what, fault)
    return validation.choice(value, what, fault, words)
  end
end

local function retry_on(value, what, fault)
  if type(value) == "string" then
    value = { value }
  end
  return validation.list(value, what, fault, choice(RETRY_ON))
end

-- Of each key of `retry`.
local RETRY = {
  attempts = function(value, what, fault) return validation.integer(value, what, fault, 1, 1000000) end,
  delay = duration { zero = true },
  factor = function(value, what, fault) return validation.number(value, what, fault, 1, 1000) end,
  on = retry_on,
}

local function no_table(value, what, fault)
  fault(("%s must be a table, not %s"):format(what, described(value)))
end

-- lock.unset for a key of a table within a policy stays for the merge.
local function each(value, what, fault, check)
  local result = {}
  for key, element in pairs(value) do
    local name = ("%s.%s"):format(what, tostring(key))
    if element == unset then
      result[key] = unset
    else
      result[key] = check(key, element, name, fault)
    end
  end
  return result
end

local function retry(value, what, fault)
  if type(value) ~= "table" then
    return no_table(value, what, fault)
  end
  validation.keys(value, RETRY_KEYS, function(message) fault(what .. ": " .. message) end)
  return each(value, what, fault, function(key, element, name)
    return RETRY[key] and RETRY[key](element, name, fault)
  end)
end

local function setting(value, what, fault)
  if type(value) == "boolean" then
    return value and "on" or "off"
  elseif math.type(value) == "integer" then
    return tostring(value)
  elseif type(value) == "number" and value == value and math.abs(value) ~= math.huge then
    return ("%.17g"):format(value)
  elseif type(value) == "string" and not value:find("\0", 1, true) then
    return value
  end
  fault(("%s must be a text, a number or a boolean, not %s"):format(what, described(value)))
end

local function session(value, what, fault)
  if type(value) ~= "table" then
    return no_table(value, what, fault)
  end
  return each(value, what, fault, function(key, element, name)
    if type(key) ~= "string" or not key:find("^[%a_][%w_$.]*$") then
      return fault(("%s: %s is no name of a setting"):format(what, described(key)))
    end
    return setting(element, name, fault)
  end)
end

local function prioritize(value, what, fault)
  if type(value) == "boolean" then
    return value
  elseif type(value) ~= "table" then
    return fault(("%s must be true, false or a table of its options, not %s"):format(what, described(value)))
  elseif value.using ~= nil then
    return fault(what .. ": using has no meaning here: the job's session is meant")
  end
  local given, result = {}, {}
  for key, element in pairs(value) do
    result[key] = element
    if element ~= unset then
      given[key] = element
    end
  end
  local wrong = probe(require "lockkeeper.prioritize", nil, given)
  if wrong then
    return fault(wrong)
  end
  return result
end

local function memory_limit(value, what, fault)
  local bytes
  if value == false then
    return false
  elseif math.type(value) == "integer" then
    bytes = value
  elseif type(value) == "string" then
    local number, unit = value:match("^(%d+%.?%d*) ?(%a+)$")
    if UNITS[unit] then
      bytes = math.tointeger(math.floor(tonumber(number) * UNITS[unit]))
    end
  end
  if not bytes then
    return fault(('%s must be bytes, a text such as "256MB" (units B, kB, MB, GB), or false for no limit, '
      .. "not %s"):format(what, described(value)))
  elseif bytes < MEMORY_LEAST then
    return fault(("%s must be at least 1MB, not %s"):format(what, described(value)))
  end
  return bytes
end

local function timezone(value, what, fault)
  local name = validation.text(value, what, fault)
  return name and validation.try(fault, core.check_timezone, name) and name
end

-- Of each key: (value, what, fault) to the value as it is kept.
local CHECKS = {
  timeout = duration { endless = true, zero = true },
  on_busy = choice { "raise", "skip" },
  max_run = duration { endless = true },
  grace = duration { zero = true },
  retry = retry,
  prioritize = prioritize,
  lock_timeout = duration { endless = true, setting = true },
  statement_timeout = duration { endless = true, setting = true },
  memory_limit = memory_limit,
  session = session,
  timezone = timezone,
  overlap = choice { "skip", "queue", "replace", "allow" },
  catchup = choice { "last", "all", "none" },
  catchup_window = duration { endless = true },
  on_failure = validation.callable,
}

--- The keys, in the order in which they are shown.
policy.KEYS = { "timeout", "on_busy", "max_run", "grace", "retry", "prioritize", "lock_timeout",
  "statement_timeout", "memory_limit", "session", "timezone", "overlap", "catchup", "catchup_window",
  "on_failure" }

--- Is it a key of policies?
---@param key any
---@return boolean
function policy.is_key(key)
  return CHECKS[key] ~= nil
end

--- The value of one key as it is kept, or nil after a fault; lock.unset stays.
---@param key string
---@param value any
---@param fault Fault
---@return any
function policy.value(key, value, fault)
  if value == unset then
    return unset
  end
  return CHECKS[key](value, key, fault)
end

local TABLE_KEYS = table.move(policy.KEYS, 1, #policy.KEYS, 2, { "extend" })

--- The values of a policy's table; `extend` is left alone.
---@param tbl table
---@param fault Fault
---@return table<string, any>
function policy.values(tbl, fault)
  validation.keys(tbl, TABLE_KEYS, fault)
  local values = {}
  for _, key in ipairs(policy.KEYS) do
    if tbl[key] ~= nil then
      values[key] = policy.value(key, tbl[key], fault)
    end
  end
  return values
end

---------------------------------------------------------------------------------------------------
-- merging

---@class Layer
---@field values table<string, any>
---@field origin Origin

---@class Origin
---@field file? string
---@field line? integer
---@field policy? string   its name, where it has one
---@field unset? boolean   it took the value away

-- Tables within a policy merge by key, too.
local NESTED = { retry = true, session = true, prioritize = true }

local function removed(origin)
  return { file = origin.file, line = origin.line, policy = origin.policy, unset = true }
end

local function apply(settings, origins, key, value, origin)
  if value == unset then
    settings[key], origins[key] = nil, removed(origin)
  else
    settings[key], origins[key] = value, origin
  end
end

local function apply_nested(settings, origins, key, value, origin)
  local inner = settings[key]
  if type(inner) ~= "table" then
    inner = {}
    settings[key] = inner
  end
  for name, element in pairs(value) do
    local path = ("%s.%s"):format(key, name)
    if element == unset then
      inner[name], origins[path] = nil, removed(origin)
    else
      inner[name], origins[path] = element, origin
    end
  end
  origins[key] = origin
end

local function forget_nested(origins, key)
  for path in pairs(origins) do
    if path:sub(1, #key + 1) == key .. "." then
      origins[path] = nil
    end
  end
end

--- Merge layers, the first one first, with the defaults below all.
---@param layers Layer[]
---@return table<string, any> settings
---@return table<string, Origin> origins  by key, and by "retry.attempts" within tables; none: the default
function policy.merge(layers)
  local settings, origins = {}, {}
  for _, layer in ipairs(layers) do
    for key, value in pairs(layer.values) do
      if NESTED[key] and type(value) == "table" and value ~= unset then
        apply_nested(settings, origins, key, value, layer.origin)
      else
        if NESTED[key] then
          forget_nested(origins, key)
        end
        apply(settings, origins, key, value, layer.origin)
      end
    end
  end
  if settings.retry and next(settings.retry) == nil then
    settings.retry = nil
  end
  for key, value in pairs(policy.DEFAULTS) do
    if settings[key] == nil then
      settings[key] = value
    end
  end
  return settings, origins
end

--- What is wrong with what the layers come to, if something is.
---@param settings table<string, any>
---@param fault Fault
function policy.check(settings, fault)
  if settings.retry and settings.retry.attempts == nil then
    fault("retry says no attempts")
  end
end

return policy
