--- What a job ends up with, and where each value comes from; of a description (lockkeeper.describe).
local definition = require "lockkeeper.definition"
local host = require "lockkeeper.host"
local lock = require "lockkeeper"
local policy = require "lockkeeper.policy"
local text_table = require "lockkeeper.report.table"

local explain = {}

local UNITS = { { 86400, "d" }, { 3600, "h" }, { 60, "m" }, { 1, "s" } }

--- Seconds as the API takes them: "1h30m", "250ms".
---@param seconds number
---@return string
function explain.duration(seconds)
  local whole = math.tointeger(seconds)
  if seconds == 0 then
    return "0"
  elseif not whole then
    return seconds < 1 and ("%.6gms"):format(seconds * 1000) or ("%.14gs"):format(seconds)
  end
  local text = ""
  for _, unit in ipairs(UNITS) do
    local count = whole // unit[1]
    text = text .. (count > 0 and ("%d%s"):format(count, unit[2]) or "")
    whole = whole % unit[1]
  end
  return text
end

local function bytes(count)
  for _, unit in ipairs { { 1024 ^ 3, "GB" }, { 1024 ^ 2, "MB" }, { 1024, "kB" } } do
    if count % unit[1] == 0 then
      return ("%d%s"):format(count // unit[1], unit[2])
    end
  end
  return ("%dB"):format(count)
end

-- A value of any kind on one line, as Lua would write it, but texts alone without quotes.
local function inner(value)
  if type(value) ~= "table" then
    return type(value) == "string" and ('"%s"'):format(value) or tostring(value)
  end
  local parts, names = {}, {}
  for i, element in ipairs(value) do
    parts[i] = inner(element)
  end
  for name in pairs(value) do
    if type(name) == "string" then
      names[#names + 1] = name
    end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    parts[#parts + 1] = ("%s = %s"):format(name, inner(value[name]))
  end
  return "{ " .. table.concat(parts, ", ") .. " }"
end

local function shown(value)
  return type(value) == "string" and value or inner(value)
end

--- 'advisory "nightly"', with its options if they are wanted.
---@param guard table
---@param with_options? boolean
---@return string
function explain.guard(guard, with_options)
  local args = {}
  for i, value in ipairs(guard.args) do
    args[i] = value ~= lock.null and inner(value) or nil
  end
  local options = with_options and next(guard.options) ~= nil and " " .. inner(guard.options) or ""
  return ("%s %s%s"):format(guard.kind, table.concat(args, ", "), options)
end

--- "30 2 * * * Europe/Paris", "every 10m", "after extract"
---@param job table
---@return string
function explain.schedule(job)
  local parts, schedule = {}, job.schedule
  if schedule and schedule.cron then
    parts[1] = ("%s %s"):format(schedule.cron, job.timezone)
  elseif schedule then
    parts[1] = ("every %s%s"):format(explain.duration(schedule.every),
      schedule.from == "finish" and " from the last run's end" or "")
  end
  if job.after then
    parts[#parts + 1] = ("after %s%s"):format(job.after.job,
      job.after.on ~= "succeeded" and " " .. job.after.on or "")
  end
  if not job.enabled then
    parts[#parts + 1] = "(not enabled)"
  end
  return table.concat(parts, ", ")
end

-- How values of these keys are shown.
local SHOWN = {
  timeout = explain.duration, max_run = explain.duration, grace = explain.duration,
  lock_timeout = explain.duration, statement_timeout = explain.duration,
  catchup_window = explain.duration, ["retry.delay"] = explain.duration, memory_limit = bytes,
  on_failure = function() return "a function" end,
}

-- What it means that nobody has said anything.
local NOTHING = {
  timeout = "lock_timeout's", max_run = "no limit", lock_timeout = "the server's",
  statement_timeout = "the server's", memory_limit = "no limit", retry = "none", prioritize = "no",
  session = "none", on_failure = "none",
}

local function origin_text(origin, job)
  if not origin then
    return "default"
  end
  local place = definition.place_text(origin)
  if origin.unset then
    return ("unset%s, %s"):format(origin.policy and " by policy " .. origin.policy or "", place)
  elseif origin.policy then
    return ("policy %s, %s"):format(origin.policy, place)
  end
  return (place == definition.place_text(job) and "the job, " or "") .. place
end

local function value_text(key, value)
  if value == nil then
    return NOTHING[key]
  elseif value == false then
    return key == "prioritize" and "no" or "no limit"
  elseif SHOWN[key] then
    return SHOWN[key](value)
  end
  return shown(value)
end

local function sorted_keys(tbl)
  local keys = {}
  for key in pairs(tbl) do
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end

-- One row a key; of a table one a key of it.
local function add_setting(rows, job, key)
  local value = job.settings[key]
  if type(value) ~= "table" or next(value) == nil then
    local text = type(value) == "table" and "with its defaults" or value_text(key, value)
    rows[#rows + 1] = { key = key, value = text, from = origin_text(job.origins[key], job) }
    return
  end
  for _, name in ipairs(sorted_keys(value)) do
    local path = ("%s.%s"):format(key, name)
    rows[#rows + 1] = { key = path, value = value_text(path, value[name]),
      from = origin_text(job.origins[path], job) }
  end
  for _, path in ipairs(sorted_keys(job.origins)) do
    if job.origins[path].unset and path:sub(1, #key + 1) == key .. "." then
      rows[#rows + 1] = { key = path, value = "none", from = origin_text(job.origins[path], job) }
    end
  end
end

local function work_of(job)
  if job.run then
    return "run", "a function"
  elseif job.sql then
    return "sql", job.sql
  end
  return "command", shown(job.command)
end

local COLUMNS = {
  { title = "KEY", key = "key" },
  { title = "FROM", key = "from", least = 30 },
  { title = "VALUE", key = "value" },
}

--- Show it.
---@param job table
function explain.show(job)
  local rows = {}
  local function own(key, value)
    if value ~= nil and value ~= "" then
      rows[#rows + 1] = { key = key, value = value, from = "the job, " .. definition.place_text(job) }
    end
  end
  own("job", job.name)
  own("description", job.description)
  own("tags", table.concat(job.tags, ", "))
  own("schedule", explain.schedule(job))
  own("window", job.window)
  own("using", job.using)
  own(work_of(job))
  if job.settings.overlap ~= "allow" then
    rows[#rows + 1] = { key = "guard", value = ('advisory "job:%s"'):format(job.name), from = "every job" }
  end
  for _, guard in ipairs(job.guards) do
    rows[#rows + 1] = { key = "guard", value = explain.guard(guard, true),
      from = origin_text(guard, job) }
  end
  for _, key in ipairs(policy.KEYS) do
    add_setting(rows, job, key)
  end
  io.stdout:write(text_table.format(COLUMNS, rows, host.terminal(1)))
end

return explain
