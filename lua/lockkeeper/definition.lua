--- What a file defines: lock.job, lock.policy, lock.guard.*.
--
-- Everything is checked when it is defined (lockkeeper.definition_set tells what becomes of faults).
-- Whoever loads a file calls begin(), then finish() or, where it has failed, abandon().
--
-- A Job, as the runner gets it:
--   name, file, line, description, tags, enabled, using
--   schedule   { cron = text } or { every = seconds, from = "epoch" | "finish" }, or nil
--   timezone, window (texts), after = { job =, on = "succeeded" | "failed" | "finished" }
--   guards     a list of DefinedGuards (lockkeeper.defined_guard)
--   policy     the names of its policies, as written
--   fn, sql, command   one of them: a function, a text, a list of texts with env, cwd, stdin, grace
--   on_failure
--   settings   the merged policy with its defaults (lockkeeper.policy): durations in seconds, false
--              without limit, nil where nobody has said anything; memory_limit in bytes
--   origins    where each came from, by key, and by "retry.attempts" within tables: an Origin
local check_after = require "lockkeeper.after"
local core = require "lockkeeper.core"
local guards = require "lockkeeper.defined_guard"
local policies = require "lockkeeper.defined_policy"
local policy = require "lockkeeper.policy"
local probe = require "lockkeeper.probe"
local sets = require "lockkeeper.definition_set"
local validation = require "lockkeeper.validation"

local described = validation.described

-- Kept, since a file that is loaded may replace what it finds.
local type, tostring, ipairs, pairs = type, tostring, ipairs, pairs
local setmetatable, require = setmetatable, require

local definition = {
  begin = sets.begin, abandon = sets.abandon, seal = sets.seal, place = sets.place,
  place_text = sets.place_text, policy = policies.define, guard_of_kind = guards.of_kind,
  check_after = check_after,
}

---@class JobDefinition
---@field schedule? string               a cron expression
---@field every? number|string|table     a duration, or { duration, from = "finish" }
---@field timezone? string
---@field window? string                 "01:00-03:45"
---@field after? string|table            a job's name, or { name, on = "succeeded"|"failed"|"finished" }
---@field guards? DefinedGuard[]
---@field policy? string|Policy|table    a name, a table, or a list merged left to right
---@field run? fun(job): any
---@field sql? string
---@field command? table
---@field description? string
---@field tags? string[]
---@field enabled? boolean
---@field using? string                  the database of job.db and its guards
---@field overlap? "skip"|"queue"|"replace"|"allow"
---@field catchup? "last"|"all"|"none"
---@field catchup_window? number|string|false
---@field on_failure? fun(job, err)

local KEYS = { "schedule", "every", "timezone", "window", "after", "guards", "policy", "run", "sql",
  "command", "description", "tags", "enabled", "using", "overlap", "catchup", "catchup_window",
  "on_failure" }

-- Keys of policies that a job may have itself; they are stronger than its policy's.
local OWN_SETTINGS = { "timezone", "overlap", "catchup", "catchup_window", "on_failure" }

---@class Job
local Job = {}

--- A Job's methods.
definition.Job = Job

--- Run it once, for users' own tests (see lockkeeper.worker).
---@param options? table  { slot =, db = }
function Job:run(options)
  return require("lockkeeper.worker").run(self, options)
end

local JOB = { __name = "lockkeeper.Job", __index = Job }

function JOB:__tostring()
  return ("job %s (%s)"):format(described(self.name), sets.place_text(self))
end

local EVERY_KEYS = { 1, "from" }

local function every_of(value, fault)
  local from = "epoch"
  if type(value) == "table" then
    validation.keys(value, EVERY_KEYS, function(message) fault("every: " .. message) end)
    if value.from ~= nil then
      from = validation.choice(value.from, "every: from", fault, { "finish", "epoch" })
    end
    value = value[1]
  end
  local seconds = validation.duration(value, "every", fault, {})
  return seconds and from and { every = seconds, from = from }
end

local function schedule_of(tbl, fault)
  if tbl.schedule ~= nil and tbl.every ~= nil then
    return fault("it has both a schedule and every")
  elseif tbl.every ~= nil then
    return every_of(tbl.every, fault)
  elseif tbl.schedule ~= nil then
    local cron = validation.text(tbl.schedule, "schedule", fault)
    return cron and { cron = cron }
  end
end

local ON = { "succeeded", "failed", "finished" }
local AFTER_KEYS = { 1, "on" }

local function after_of(value, fault)
  local on = "succeeded"
  if type(value) == "table" then
    validation.keys(value, AFTER_KEYS, function(message) fault("after: " .. message) end)
    if value.on ~= nil then
      on = validation.choice(value.on, "after: on", fault, ON)
    end
    value = value[1]
  end
  local name = validation.text(value, "after", fault)
  return name and on and { job = name, on = on }
end

local function word(value, what, fault)
  if type(value) == "number" then
    return tostring(value)
  elseif type(value) ~= "string" then
    return fault(("%s must be a text, not %s"):format(what, described(value)))
  elseif value:find("\0", 1, true) then
    return fault(what .. " has a NUL byte")
  end
  return value
end

local function env_of(value, fault)
  if type(value) ~= "table" then
    return fault(("command: env must be a table, not %s"):format(described(value)))
  end
  for name, element in pairs(value) do
    if type(name) ~= "string" or name == "" or name:find("[=%z]") then
      fault(("command: env: %s is no name of a variable"):format(described(name)))
    elseif element ~= false then
      word(element, "command: env: " .. name, fault)
    end
  end
  return value
end

-- As lock.sh takes it.
local function command_of(value, fault)
  if type(value) ~= "table" then
    return fault(("command must be a list of the command and its arguments, not %s"):format(described(value)))
  end
  local command, known = {}, { "env", "cwd", "stdin", "grace" }
  for i = 1, #value do
    command[i], known[#known + 1] = word(value[i], ("command: element %d"):format(i), fault), i
  end
  validation.keys(value, known, function(message) fault("command: " .. message) end)
  if #value == 0 then
    fault("command is empty")
  elseif command[1] == "" then
    fault("command: element 1 is empty")
  end
  command.env = value.env ~= nil and env_of(value.env, fault) or nil
  command.cwd = value.cwd ~= nil and validation.text(value.cwd, "command: cwd", fault) or nil
  command.stdin = value.stdin
  if value.stdin ~= nil and type(value.stdin) ~= "string" then
    fault(("command: stdin must be a text, not %s"):format(described(value.stdin)))
  end
  if value.grace ~= nil then
    command.grace = validation.duration(value.grace, "command: grace", fault, { zero = true })
  end
  return command
end

-- Exactly one of run, sql and command.
local function work_of(job, tbl, fault)
  local given = {}
  for _, key in ipairs { "run", "sql", "command" } do
    if tbl[key] ~= nil then
      given[#given + 1] = key
    end
  end
  if #given == 0 then
    fault("it has nothing to do: run, sql or command is missing")
  elseif #given > 1 then
    fault(("it has %s: exactly one of run, sql and command says what is done"):format(
      table.concat(given, " and ")))
  end
  job.fn = tbl.run ~= nil and validation.callable(tbl.run, "run", fault) or nil
  job.sql = tbl.sql ~= nil and validation.text(tbl.sql, "sql", fault) or nil
  job.command = tbl.command ~= nil and command_of(tbl.command, fault) or nil
end

--- The schedule of a job that has one: schedule:next(instant) gives the next due time.
---@param job { schedule: table, timezone: string, name: string }
---@return userdata
function definition.schedule(job)
  local spec = job.schedule
  return core.schedule { cron = spec.cron, every = spec.every, from = spec.from, timezone = job.timezone,
    job = job.name }
end

-- What the clock's part says of them: window, an expression that never fires.
local function check_times(job, fault)
  if job.window then
    validation.try(fault, core.window, job.window, job.timezone)
  end
  if job.schedule then
    validation.try(fault, definition.schedule, job)
  end
end

-- A key that is not a job's: of a policy's, say where it belongs.
local function key_reason(key)
  if policy.is_key(key) then
    return (": it is a policy's; write policy = { %s = … }"):format(key)
  end
end

local function details_of(job, tbl, fault)
  local function optional(key, check)
    local value
    if tbl[key] ~= nil then
      value = check(tbl[key], key, fault)
    end
    return value
  end
  job.description = optional("description", validation.text)
  job.tags = tbl.tags ~= nil and validation.list(tbl.tags, "tags", fault, validation.text) or {}
  job.enabled = optional("enabled", validation.boolean) ~= false
  job.using = optional("using", validation.text)
  job.window = optional("window", validation.text)
  job.schedule = schedule_of(tbl, fault)
  job.after = tbl.after ~= nil and after_of(tbl.after, fault) or nil
  job.guards = tbl.guards ~= nil and guards.list(tbl.guards, fault) or {}
end

local function settings_of(job, set, tbl, where, fault)
  local layers = policies.layers(set, tbl.policy, where, fault)
  local own = {}
  for _, key in ipairs(OWN_SETTINGS) do
    if tbl[key] ~= nil then
      own[key] = policy.value(key, tbl[key], fault)
    end
  end
  job.policy = {}
  for _, value in ipairs(type(tbl.policy) == "table" and tbl.policy or { tbl.policy }) do
    job.policy[#job.policy + 1] = type(value) == "string" and value or nil
  end
  layers[#layers + 1] = { values = own, origin = { file = where.file, line = where.line } }
  job.settings, job.origins = policy.merge(layers)
  policy.check(job.settings, fault)
  job.timezone, job.on_failure = job.settings.timezone, job.settings.on_failure
  job.settings.window = job.window
end

--- Define a job.
---@param name string
---@param tbl JobDefinition
---@return Job?
function definition.job(name, tbl)
  local set, where, fault = sets.begin_definition("job", name, tbl)
  if not fault then
    return
  elseif set.configuration then
    return fault("jobs belong in files of their own, not in the configuration")
  end
  local earlier = set.jobs[name]
  if earlier then
    fault(("two jobs have this name: here and at %s"):format(sets.place_text(earlier)))
  end
  if name:sub(1, 1) == "#" then
    fault("the name begins with #, which stands for a run's number")
  end
  validation.keys(tbl, KEYS, fault, key_reason)
  local job = setmetatable({ name = name, file = where.file, line = where.line }, JOB)
  details_of(job, tbl, fault)
  work_of(job, tbl, fault)
  settings_of(job, set, tbl, where, fault)
  check_times(job, fault)
  sets.add(set.jobs, job)
  return job
end

---------------------------------------------------------------------------------------------------
-- files

--- The file was loaded, or has failed to. Jobs that would wait for themselves are a fault.
---@return Set
function definition.finish()
  local set = sets.finish()
  check_after(set.jobs, function(where, message) sets.fault(set, where, message) end)
  return set
end

--- Tell of sessions that the jobs name and nobody has declared.
---@param set Set
function definition.check_sessions(set)
  local function check(name, where, what)
    local wrong = name ~= nil and probe(core.session, name)
    if wrong then
      sets.fault(set, where, ("%s: using: %s"):format(what, wrong))
    end
  end
  for _, audit in ipairs(set.audits) do
    check(audit.using, audit, "audit " .. described(audit.name))
  end
  for _, job in ipairs(set.jobs) do
    check(job.using, job, "job " .. described(job.name))
    for _, guard in ipairs(job.guards) do
      if type(guard.options.using) == "string" then
        check(guard.options.using, guard, "guard." .. guard.kind)
      end
    end
  end
end

return definition
