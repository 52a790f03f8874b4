--- lock.guard.*: what a job is to hold while it runs.
--
-- A DefinedGuard's `options` keep what is the job's to see to and not the primitive's: on_busy ("raise" |
-- "skip"), using (a name), and for guards of all kinds poll (false: wait in the server).
local core = require "lockkeeper.core"
local probe = require "lockkeeper.probe"
local sets = require "lockkeeper.definition_set"
local validation = require "lockkeeper.validation"

local described = validation.described

-- Kept, since a file that is loaded may replace what it finds.
local type, tostring, ipairs, pairs = type, tostring, ipairs, pairs
local getmetatable, setmetatable, require = getmetatable, setmetatable, require

local guards = {}

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
  local set, where = sets.current(), sets.place()
  local fault = sets.faults_of(set, where, "guard." .. kind)
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
guards.kinds = {
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
function guards.of_kind(kind)
  local define = guards.kinds[kind]
  if not define then
    core.usage(("there is no lock.guard.%s%s"):format(tostring(kind),
      validation.nearest(kind, { "advisory", "semaphore", "model", "row_locks" })))
  end
  return define
end

--- The list of guards that a job's `guards` is.
---@param value any
---@param fault Fault
---@return DefinedGuard[]?
function guards.list(value, fault)
  if getmetatable(value) == Guard then
    return { value }
  elseif not validation.is_list(value) then
    return fault(("guards must be a list of lock.guard.…(…), not %s"):format(
      type(value) == "table" and "a table with other keys" or described(value)))
  end
  local list = {}
  for i, guard in ipairs(value) do
    if getmetatable(guard) == Guard then
      list[#list + 1] = guard
    else
      fault(("guards: element %d must be made by lock.guard.advisory, semaphore, model or row_locks, not %s")
        :format(i, described(guard)))
    end
  end
  return list
end

return guards
