--- What a file defines: lock.job, lock.policy, lock.guard.*.
--
-- While a file is loaded, what it defines goes into the current Set. Everything is checked when it is
-- defined; the first fault is raised there as a usage error, or, where the Set collects, all are kept
-- in its list of faults and loading goes on. A policy is looked up among those above it in the file,
-- then in the configuration, whose Set stays below all others. Where no file is being loaded (a script
-- in stock Lua), definitions go into a Set of the process.
--
-- A Job, as the runner gets it:
--   name, file, line, description, tags, enabled, using
--   schedule   { cron = text } or { every = seconds, from = "epoch" | "finish" }, or nil
--   timezone, window (texts), after = { job =, on = "succeeded" | "failed" | "finished" }
--   guards     a list of Guards { kind, args, options, file, line }; `options` keeps what is the job's
--              to see to and not the primitive's: on_busy ("raise" | "skip"), using (a name), and
--              for guards of all kinds poll (false: wait in the server)
--   policy     the names of its policies, as written
--   fn, sql, command   one of them: a function, a text, a list of texts with env, cwd, stdin, grace
--   on_failure
--   settings   the merged policy with its defaults (lockkeeper.policy): durations in seconds, false
--              without limit, nil where nobody has said anything; memory_limit in bytes
--   origins    where each came from, by key, and by "retry.attempts" within tables: an Origin
local core = require "lockkeeper.core"
local policy = require "lockkeeper.policy"
local probe = require "lockkeeper.probe"
local validation = require "lockkeeper.validation"

local described = validation.described

-- Kept, since a file that is loaded may replace what it finds.
local type, error, tostring, ipairs, pairs = type, error, tostring, ipairs, pairs
local getmetatable, setmetatable, require = getmetatable, setmetatable, require

local definition = {}

---@class Set
---@field file string
---@field configuration boolean
---@field jobs Job[]            in order of definition; jobs["NAME"] is the one of that name
---@field policies PolicyDefinition[]  likewise
---@field faults { file: string, line?: integer, message: string }[]
---@field collect boolean

---@class Place
---@field file string
---@field line? integer

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

local NAME_MAX = 200

---------------------------------------------------------------------------------------------------
-- sets

-- A list that finds its elements by their names, too.
local function new_list()
  return setmetatable({}, { __index = {} })
end

local function add(list, element)
  local by_name = getmetatable(list).__index
  list[#list + 1] = element
  by_name[element.name] = by_name[element.name] or element
end

local function new_set(file, options)
  return {
    file = file, configuration = options.configuration or false, collect = options.collect or false,
    jobs = new_list(), policies = new_list(), faults = {},
  }
end

-- Sets of the files that are being loaded, the innermost one last.
local open_sets = {}

-- The configuration's, once it was loaded; what a script without a file of its own defines.
local configuration
local process_set = new_set("the script", {})

local sealed

--- A file is about to be loaded: what is defined from now on goes into a new Set.
---@param file string
---@param options? { collect?: boolean, configuration?: boolean }
---@return Set
function definition.begin(file, options)
  local set = new_set(file, options or {})
  open_sets[#open_sets + 1] = set
  return set
end

local function current()
  return open_sets[#open_sets] or process_set
end

--- No more definitions, but in files that are loaded: jobs run now. `nil` undoes it.
---@param reason string?
function definition.seal(reason)
  sealed = reason
end

-- Our own files' chunk names begin so.
local HOME = debug.getinfo(1, "S").source:gsub("definition%.lua$", "")
local getinfo = debug.getinfo

--- The line of the script that is being executed.
---@return Place
function definition.place()
  local level = 2
  while true do
    local frame = getinfo(level, "Sl")
    if not frame then
      return { file = current().file }
    elseif frame.currentline > 0 and frame.source:sub(1, #HOME) ~= HOME then
      local file = frame.source:match("^[@=](.*)$") or current().file
      return { file = file, line = frame.currentline }
    end
    level = level + 1
  end
end

local place = definition.place

--- "jobs.lua:12"
---@param where Place
---@return string
function definition.place_text(where)
  return where.line and ("%s:%d"):format(where.file, where.line) or where.file
end

local place_text = definition.place_text

local function add_fault(set, where, message)
  if set.collect then
    set.faults[#set.faults + 1] = { file = where.file, line = where.line, message = message }
    return
  end
  local _, err = core.fail("usage", message)
  err.where = place_text(where)
  err.definition = true -- for the exit code: the file does not load
  error(err, 0)
end

-- What tells of faults in one definition.
local function faults_of(set, where, what)
  return function(message)
    add_fault(set, where, what .. ": " .. message)
  end
end

local function begin_definition(what, name, tbl)
  local set, where = current(), place()
  if sealed and set == process_set then
    core.usage(("%s: %s"):format(what, sealed))
  end
  if validation.text(name, what .. ": the name", function(message) add_fault(set, where, message) end) == nil
  then
    return set, where
  end
  local shown = ("%s %s"):format(what, described(name))
  local fault = faults_of(set, where, shown)
  if name:find("%c") then
    fault("the name has a control character")
  elseif #name > NAME_MAX then
    fault(("the name is longer than %d bytes"):format(NAME_MAX))
  end
  if type(tbl) ~= "table" or getmetatable(tbl) ~= nil then
    fault(("a table was expected, not %s"):format(described(tbl)))
    return set, where
  end
  return set, where, fault
end

---------------------------------------------------------------------------------------------------
-- guards

---@class DefinedGuard
---@field kind "advisory"|"semaphore"|"model"|"row_locks"
---@field args any[]     n of them, without the options
---@field options table
---@field file string
---@field line? integer

local Guard = { __name = "lockkeeper.DefinedGuard" }
Guard.__index = Guard

function Guard:__tostring()
  return ("guard.%s(%s)"):format(self.kind, described(self.args[1]))
end

-- The primitives' own checks, without the options that are the job's to see to.
local CHECKS = {
  advisory = function(args, options)
    return probe(core.key, args[1], { scheme = options.scheme, prefix = options.prefix })
      or probe(core.advisory, nil, args[1], options, true)
  end,
  semaphore = function(args, options)
    return probe(require "lockkeeper.semaphore", nil, args[1], args[2], options)
  end,
  model = function(args, options)
    return probe(core.model, nil, args[1], options)
  end,
  row_locks = function(args, options)
    return probe(require "lockkeeper.row_locks", nil, args[1], args[2], options)
  end,
}

-- How many arguments stand before the options.
local ARITY = { advisory = 1, semaphore = 2, model = 1, row_locks = 2 }

-- Guards of these kinds have no option `poll` as primitives; in a job they wait by polling, too.
local POLLED_HERE = { model = true, row_locks = true }

local function check_guard_options(kind, given, fault)
  local options, kept = {}, {}
  for key, value in pairs(given) do
    options[key], kept[key] = value, value
  end
  options.on_busy, options.using = nil, nil
  if given.on_busy ~= nil then
    validation.choice(given.on_busy, "on_busy", fault, { "raise", "skip" })
  end
  if given.using ~= nil then
    validation.text(given.using, "using (a session's name)", fault)
  end
  if POLLED_HERE[kind] and given.poll ~= nil then
    options.poll = nil
    kept.poll = validation.duration(given.poll, "poll", fault, { endless = true })
  end
  return options, kept
end

local function define_guard(kind, ...)
  local set, where = current(), place()
  local fault = faults_of(set, where, "guard." .. kind)
  local arity = ARITY[kind]
  local given = table.pack(...)
  local options = given[arity + 1]
  -- The parameters of row_locks may be left out.
  local args = table.pack(table.unpack(given, 1, arity))
  local guard = setmetatable({ kind = kind, args = args, options = {}, file = where.file, line = where.line },
    Guard)
  if given.n > arity + 1 or type(options) == "function" then
    fault("arguments after the options: the job's run is what is done under the guard")
  elseif options ~= nil and type(options) ~= "table" then
    fault(("the options must be a table, not %s"):format(described(options)))
  else
    local passed
    passed, guard.options = check_guard_options(kind, options or {}, fault)
    local wrong = CHECKS[kind](args, passed)
    if wrong then
      fault((wrong:gsub("^" .. kind .. ": ", "")))
    end
  end
  return guard
end

--- lock.guard: what a job holds while it runs. Each takes its primitive's options, which are stronger than
--- the policy's.
definition.guard = {
  ---@param id string|integer|integer[]
  ---@param options? AdvisoryOptions
  ---@return DefinedGuard
  advisory = function(id, options, ...) return define_guard("advisory", id, options, ...) end,
  ---@param id string
  ---@param n integer
  ---@param options? SemaphoreOptions
  ---@return DefinedGuard
  semaphore = function(id, n, options, ...) return define_guard("semaphore", id, n, options, ...) end,
  --- Opens a transaction around the job.
  ---@param names string|string[]
  ---@param options? ModelOptions
  ---@return DefinedGuard
  model = function(names, options, ...) return define_guard("model", names, options, ...) end,
  --- Opens a transaction around the job.
  ---@param sql string
  ---@param parameters? any[]
  ---@param options? RowLocksOptions
  ---@return DefinedGuard
  row_locks = function(sql, parameters, options, ...)
    return define_guard("row_locks", sql, parameters, options, ...)
  end,
}

--- The function that makes a guard of this kind; a usage error where there is no such kind.
---@param kind any
---@return fun(...): DefinedGuard
function definition.guard_of_kind(kind)
  local define = definition.guard[kind]
  if not define then
    core.usage(("there is no lock.guard.%s%s"):format(tostring(kind),
      validation.nearest(kind, { "advisory", "semaphore", "model", "row_locks" })))
  end
  return define
end

local function guards_of(value, fault)
  if getmetatable(value) == Guard then
    return { value }
  elseif not validation.is_list(value) then
    return fault(("guards must be a list of lock.guard.…(…), not %s"):format(
      type(value) == "table" and "a table with other keys" or described(value)))
  end
  local guards = {}
  for i, guard in ipairs(value) do
    if getmetatable(guard) == Guard then
      guards[#guards + 1] = guard
    else
      fault(("guards: element %d must be made by lock.guard.advisory, semaphore, model or row_locks, not %s")
        :format(i, described(guard)))
    end
  end
  return guards
end

---------------------------------------------------------------------------------------------------
-- policies

---@class PolicyDefinition
---@field name string
---@field file string
---@field line? integer
---@field values table<string, any>
---@field layers Layer[]   what it extends, then itself

local function names_of(list)
  local names = {}
  for _, element in ipairs(list) do
    names[#names + 1] = element.name
  end
  return names
end

local function find_policy(set, name)
  return set.policies[name] or not set.configuration and configuration and configuration.policies[name]
    or nil
end

local function layers_by_name(set, name, layers, fault)
  local found = find_policy(set, name)
  if not found then
    local known = names_of(set.policies)
    table.move(names_of(configuration and configuration.policies or {}), 1,
      configuration and #configuration.policies or 0, #known + 1, known)
    fault(("unknown policy %s%s%s"):format(described(name), validation.nearest(name, known),
      #known == 0 and ": none is defined above, nor in the configuration" or ""))
    return
  end
  table.move(found.layers, 1, #found.layers, #layers + 1, layers)
end

-- `extend`: a name or a list of names.
local function extended(set, value, layers, fault)
  if type(value) == "string" then
    value = { value }
  end
  local names = validation.list(value, "extend", fault, validation.text)
  for _, name in ipairs(names or {}) do
    layers_by_name(set, name, layers, fault)
  end
end

local function layers_of_table(set, tbl, where, name, fault)
  local layers = {}
  if tbl.extend ~= nil then
    extended(set, tbl.extend, layers, fault)
  end
  local values = policy.values(tbl, fault)
  layers[#layers + 1] = {
    values = values, origin = { file = where.file, line = where.line, policy = name },
  }
  return layers, values
end

--- Define a policy, for the jobs and policies below it in the file, or, in the configuration, for all.
---@param name string
---@param tbl Policy
function definition.policy(name, tbl)
  local set, where, fault = begin_definition("policy", name, tbl)
  if not fault then
    return
  end
  local earlier = set.policies[name]
  if earlier then
    return fault(("it is defined twice: here and at %s"):format(place_text(earlier)))
  end
  local layers, values = layers_of_table(set, tbl, where, name, fault)
  local settings = policy.merge(layers)
  policy.check(settings, fault)
  add(set.policies, { name = name, file = where.file, line = where.line, values = values, layers = layers })
end

local function add_layers(set, value, where, layers, fault)
  if type(value) == "string" then
    layers_by_name(set, value, layers, fault)
  elseif type(value) == "table" and getmetatable(value) == nil then
    local own = layers_of_table(set, value, where, nil, fault)
    table.move(own, 1, #own, #layers + 1, layers)
  else
    fault(("policy must be a name, a table or a list of them, not %s"):format(described(value)))
  end
end

-- The layers of a job's `policy`: a name, a table, or a list of both.
local function layers_of(set, value, where, fault)
  local layers = {}
  if value == nil then
    return layers
  elseif type(value) == "table" and #value > 0 then
    for _, element in ipairs(value) do
      add_layers(set, element, where, layers, fault)
    end
    for key in pairs(value) do
      if math.type(key) ~= "integer" then
        fault(("policy is a list with the key %s besides: put it into a table of the list"):format(
          described(key)))
      end
    end
  else
    add_layers(set, value, where, layers, fault)
  end
  return layers
end

---------------------------------------------------------------------------------------------------
-- jobs

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
  return ("job %s (%s)"):format(described(self.name), place_text(self))
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
  job.guards = tbl.guards ~= nil and guards_of(tbl.guards, fault) or {}
end

local function settings_of(job, set, tbl, where, fault)
  local layers = layers_of(set, tbl.policy, where, fault)
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
  local set, where, fault = begin_definition("job", name, tbl)
  if not fault then
    return
  elseif set.configuration then
    return fault("jobs belong in files of their own, not in the configuration")
  end
  local earlier = set.jobs[name]
  if earlier then
    fault(("two jobs have this name: here and at %s"):format(place_text(earlier)))
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
  add(set.jobs, job)
  return job
end

---------------------------------------------------------------------------------------------------
-- after, over all jobs

-- The cycle that the job leads into, as a list of jobs, if it has not been `seen` before.
local function cycle_from(job, by_name, seen)
  local path, place_of = {}, {}
  local at = job
  while at and not seen[at] do
    path[#path + 1], place_of[at], seen[at] = at, #path + 1, true
    at = at.after and by_name[at.after.job]
  end
  return at and place_of[at] and table.move(path, place_of[at], #path, 1, {})
end

-- It begins at the same job, wherever it was entered.
local function rotated(cycle)
  local first = 1
  for i, job in ipairs(cycle) do
    local least = cycle[first]
    if job.file < least.file or (job.file == least.file and (job.line or 0) < (least.line or 0)) then
      first = i
    end
  end
  local list = table.move(cycle, first, #cycle, 1, {})
  return table.move(cycle, 1, first - 1, #list + 1, list)
end

local function cycle_text(cycle)
  local words = {}
  for i, job in ipairs(cycle) do
    words[i] = ("%s (%s)"):format(described(job.name), place_text(job))
  end
  return table.concat(words, " after ") .. " after " .. described(cycle[1].name)
end

--- Tell of jobs that would wait for themselves, each cycle once; and with `whole`, where `jobs` are all
--- that there are, of those that follow a job that does not exist.
---@param jobs { name: string, file: string, line?: integer, after?: table }[]
---@param fault fun(where: Place, message: string)
---@param whole? boolean
function definition.check_after(jobs, fault, whole)
  local by_name, seen = {}, {}
  for _, job in ipairs(jobs) do
    by_name[job.name] = by_name[job.name] or job
  end
  for _, job in ipairs(jobs) do
    local cycle = cycle_from(job, by_name, seen)
    if cycle then
      cycle = rotated(cycle)
      fault(cycle[1], ("job %s: it would wait for itself: %s"):format(described(cycle[1].name),
        cycle_text(cycle)))
    elseif whole and job.after and not by_name[job.after.job] then
      fault(job, ("job %s: after: there is no job %s%s"):format(described(job.name),
        described(job.after.job), validation.nearest(job.after.job, names_of(jobs))))
    end
  end
end

--- The file was loaded, or has failed to.
---@return Set
function definition.finish()
  local set = table.remove(open_sets)
  if set.configuration then
    configuration = set
  end
  definition.check_after(set.jobs, function(where, message) add_fault(set, where, message) end)
  return set
end

--- As finish, but what was defined is forgotten.
function definition.abandon()
  table.remove(open_sets)
end

--- Tell of sessions that the jobs name and nobody has declared.
---@param set Set
function definition.check_sessions(set)
  local function check(name, where, what)
    local wrong = name ~= nil and probe(core.session, name)
    if wrong then
      add_fault(set, where, ("%s: using: %s"):format(what, wrong))
    end
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
