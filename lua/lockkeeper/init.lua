--- Lockkeeper: PostgreSQL's locks for Lua.
--
-- `local lock = require "lockkeeper"`. Every primitive takes `using =` a session or a session's
-- name, and is a method of a session too: `db:advisory("x")` is `lock.advisory("x", { using = db })`.
-- Durations are seconds or texts such as "250ms"; false means without limit. Errors raised are
-- tables with `kind`, `busy`, `message`, `sqlstate`, `detail`, `hint`, `statement`, `where` and
-- `traceback`.
local call = require "lockkeeper.call"
local core = require "lockkeeper.core"
local tasks = require "lockkeeper.tasks"

local type = type
local check_function, option, shift = call.check_function, call.option, call.shift

core.set_home((debug.getinfo(1, "S").source:gsub("init%.lua$", "")))

---@alias ErrorKind
---| "usage" | "lock_timeout" | "not_acquired" | "deadlock" | "lock_lost" | "connection" | "sql"
---| "cancelled" | "timed_out"

---@class Error
---@field kind ErrorKind
---@field busy boolean        true for not_acquired and lock_timeout
---@field message string
---@field sqlstate? string
---@field detail? string
---@field hint? string
---@field statement? string
---@field where? string       the script's line, "job.lua:12"
---@field traceback? string   the script's lines, one a line

---@class Guard
---@field id string|integer|integer[]
---@field key integer|integer[]
---@field shared boolean
---@field xact boolean
---@field waited number       seconds; 0 where the lock was had at once
---@field acquired_at number  epoch seconds by this host's clock
---@field release fun(self: Guard)           gives it back; idempotent
---@field is_held fun(self: Guard): boolean  asks the server

---@class AdvisoryOptions
---@field timeout? number|string|false  how long to wait; 0 tries once, false waits for ever
---@field shared? boolean
---@field xact? boolean                 transaction-level
---@field on_busy? "return"|"raise"|"skip"
---@field poll? number|string|false     wait with try calls at this interval
---@field using? string|Session
---@field scheme? "pglock"|"pglocks"|"postgresql-lock"|"with_advisory_lock"|"hashtext"
---@field prefix? integer               with_advisory_lock's number

---@class ModelOptions
---@field mode? string                  "SHARE", lock.SHARE, …; default "ACCESS EXCLUSIVE"
---@field timeout? number|string|false  0: NOWAIT; default: the session's lock_timeout
---@field on_busy? "return"|"raise"     default "return" where there is a timeout, else "raise"
---@field only? boolean                 without descendants
---@field using? string|Session

local lock = {
  connect = core.connect,
  database = core.database,
  ident = core.ident,
  key_parts = core.key_parts,
  json = core.json,
  null = core.null,
  array = core.array,
  sleep = core.sleep,
  tasks = tasks,
  version = core.version,
}
for constant, mode in pairs(core.modes) do
  lock[constant] = mode
end

local session_methods = core.session_methods

---------------------------------------------------------------------------------------------------
-- advisory

-- In a transaction an error in fn is rolled back before the lock is given back, so the guard is
-- declared before the block.
local function call_in_block(session, held, fn, ...)
  local tx <close> = session:begin()
  local results = table.pack(fn(held, ...))
  tx:commit()
  return table.unpack(results, 1, results.n)
end

local function call_with_xact_lock(session, id, options, fn, ...)
  local tx <close> = session:begin()
  local held, err = core.advisory(session, id, options, true)
  if not held then
    return nil, err
  end
  local results = table.pack(fn(held, ...))
  tx:commit()
  return table.unpack(results, 1, results.n)
end

local function call_with_lock(session, id, options, fn, ...)
  check_function("advisory", fn)
  session = session or core.session(option(options, "using"))
  if option(options, "xact") then
    return call_with_xact_lock(session, id, options, fn, ...)
  end
  local held <close>, err = core.advisory(session, id, options, true)
  if not held then
    return nil, err
  end
  if session.in_transaction then
    return call_in_block(session, held, fn, ...)
  end
  return fn(held, ...)
end

--- Hold an advisory lock. Session-level by default: it survives ROLLBACK.
--- With a function: calls fn(guard, ...) under the lock and returns its results.
--- Source: PostgreSQL manual, "Advisory Locks".
---@param id string|integer|integer[]  a name, a bigint key, or two int4 keys
---@param options? AdvisoryOptions     timeout in seconds or as "250ms"; default: the session's lock_timeout
---@param fn? fun(held: Guard, ...): ...
---@return Guard? held                 released by :release() or at the end of its to-be-closed scope
---@return Error? err                  kind "not_acquired" or "lock_timeout" (SQLSTATE 55P03)
lock.advisory, session_methods.advisory = core.advisory_forms(function(session, id, ...)
  return call_with_lock(session, id, shift(...))
end)

--- A function that takes the lock at each call, and is called without the guard.
---@param id string|integer|integer[]
---@param options? AdvisoryOptions
---@param fn fun(...): ...
---@return fun(...): ...
function lock.guarded(id, options, fn)
  options, fn = shift(options, fn)
  check_function("guarded", fn)
  return function(...)
    return lock.advisory(id, options, function(_, ...) return fn(...) end, ...)
  end
end

function session_methods:guarded(id, options, fn)
  options, fn = shift(options, fn)
  check_function("guarded", fn)
  return function(...)
    return self:advisory(id, options, function(_, ...) return fn(...) end, ...)
  end
end

--- The key of an id: one bigint, or both int4 keys.
---@param id string|integer|integer[]
---@param scheme? string|{ scheme?: string, prefix?: integer, using?: string|Session }
---@return integer key
---@return integer? second
function lock.key(id, scheme)
  return core.key(id, scheme)
end

function session_methods:key(id, scheme)
  return core.key(id, scheme, self)
end

---------------------------------------------------------------------------------------------------
-- model, timeout

--- Lock tables until the transaction, which must be open, ends.
--- Source: PostgreSQL manual, "LOCK".
---@param names string|string[]  as PostgreSQL parses them: orders, public.orders, "Odd Name"
---@param options? ModelOptions
---@return true? locked
---@return Error? err            kind "not_acquired" or "lock_timeout"; the transaction is still usable
function lock.model(names, options)
  return core.model(nil, names, options)
end

function session_methods:model(names, options)
  return core.model(self, names, options)
end

local function call_with_timeout(session, duration, options, fn, ...)
  check_function("timeout", fn)
  local _ <close> = core.timeout(session, duration, options)
  return fn(...)
end

--- Set lock_timeout for what runs inside, and put the earlier value back however it is left.
--- Source: PostgreSQL manual, "Statement Behavior".
---@param duration number|string|false  false: no limit
---@param options? { using?: string|Session }
---@param fn? fun(...): ...
---@return any                          fn's results; without fn a value to be closed
function lock.timeout(duration, options, fn, ...)
  if fn == nil and type(options) ~= "function" then
    return core.timeout(nil, duration, options)
  end
  return call_with_timeout(nil, duration, shift(options, fn, ...))
end

function session_methods:timeout(duration, options, fn, ...)
  if fn == nil and type(options) ~= "function" then
    return core.timeout(self, duration, options)
  end
  return call_with_timeout(self, duration, shift(options, fn, ...))
end

---------------------------------------------------------------------------------------------------
-- sessions

--- Run fn(tx) in a transaction: commits, or rolls back and raises again; nested: a savepoint.
---@param options? { isolation?: string, read_only?: boolean, deferrable?: boolean }
---@param fn fun(tx: Session): ...
function session_methods:transaction(options, fn)
  options, fn = shift(options, fn)
  check_function("transaction", fn)
  local tx <close> = self:begin(options)
  local results = table.pack(fn(tx))
  tx:commit()
  return table.unpack(results, 1, results.n)
end

-- What gives the next piece of a COPY source: a text, a list of texts, a function, or what has read().
local function pieces(source)
  local kind = type(source)
  if kind == "string" then
    source = { source }
    kind = "table"
  end
  if kind == "function" then
    return source
  elseif kind == "table" then
    local i = 0
    return function()
      i = i + 1
      return source[i]
    end
  elseif kind == "userdata" and io.type(source) == "file" then
    return function() return source:read(65536) end
  end
  core.usage("copy_in: the source must be a text, a list of texts, a function that returns the next "
    .. "text, or an open file, not a " .. kind)
end

--- COPY … FROM STDIN. The source's texts are pieces of the data, cut anywhere.
---@param sql string
---@param source string|string[]|file*|fun(): string?
---@return integer rows
function session_methods:copy_in(sql, source)
  local next_piece = pieces(source)
  local copy <close> = core.start_copy_in(self, sql)
  for piece in next_piece do
    copy:put(piece)
  end
  return copy:finish()
end

--- COPY … TO STDOUT, to a function, a file, or without a sink to the text that is returned.
---@param sql string
---@param sink? file*|fun(piece: string)
---@return string|integer result  the text, or the number of rows where there is a sink
function session_methods:copy_out(sql, sink)
  local list
  if sink == nil then
    list = {}
    sink = function(piece) list[#list + 1] = piece end
  elseif io.type(sink) == "file" then
    local file = sink
    sink = function(piece) assert(file:write(piece)) end
  elseif type(sink) ~= "function" then
    core.usage("copy_out: the sink must be a function or an open file, not a " .. type(sink))
  end
  local copy <close> = core.start_copy_out(self, sql)
  for piece in copy.get, copy do
    sink(piece)
  end
  local rows = copy:finish()
  return list and table.concat(list) or rows
end

---------------------------------------------------------------------------------------------------
-- log, sh

--- One event on stderr.
---@param level "debug"|"info"|"warning"|"error"
---@param text string
---@param fields? table<string, any>  written in the order of their names
function lock.log(level, text, fields)
  local names, values = {}, {}
  if fields ~= nil and type(fields) ~= "table" then
    core.usage("log: the fields must be a table, not a " .. type(fields))
  end
  for name in pairs(fields or {}) do
    names[#names + 1] = tostring(name)
  end
  table.sort(names)
  for i, name in ipairs(names) do
    values[i] = tostring(fields[name])
  end
  core.log(level, tostring(text), names, values)
end

--- Run a command, without a shell. It is stopped when a session of this process that holds a lock
--- ends, and with this process; so is everything that it started.
---@param command table  { "pg_dump", "-Fc", stdin = text, env = { NAME = value }, cwd =, grace = }
---@return integer code  its exit code; 128 + N where signal N ended it
---@return string stdout
---@return string stderr
function lock.sh(command)
  if type(command) ~= "table" then
    core.usage("sh: a list of the command and its arguments was expected, not a " .. type(command))
  end
  local argv, options = {}, {}
  for key, value in pairs(command) do
    if math.type(key) == "integer" then
      argv[key] = value
    else
      options[key] = value
    end
  end
  return core.command(argv, options)
end

-- lock.db is the default session, made when it is first asked for.
return setmetatable(lock, {
  __index = function(_, name)
    if name == "db" then
      return core.session()
    end
  end,
})
