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
local unset = require "lockkeeper.unset"

local type = type
local check_function, option, shift = call.check_function, call.option, call.shift
local call_in_block = call.in_block

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
---@field release? "deferred"           the release is sent at once, its reply read at the session's next use

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
  unset = unset,
  version = core.version,
}
for constant, mode in pairs(core.modes) do
  lock[constant] = mode
end

local session_methods = core.session_methods

---------------------------------------------------------------------------------------------------
-- advisory

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
-- all, semaphore, row_locks, retry

--- Hold several advisory locks, all of them or none, without deadlocks (see lockkeeper.all). With a
--- function: calls fn(guard, ...) and returns its results.
---@param list (string|integer|integer[]|AllElement)[]
---@param options? AdvisoryOptions
---@param fn? fun(held: AllGuard, ...): ...
---@return AllGuard? held
---@return Error? err
function lock.all(list, options, fn, ...)
  return require("lockkeeper.all")(nil, list, options, fn, ...)
end

function session_methods:all(list, options, fn, ...)
  return require("lockkeeper.all")(self, list, options, fn, ...)
end

--- Have one of n slots, so that there are at most n holders (see lockkeeper.semaphore). With a function:
--- calls fn(guard, ...) and returns its results.
---@param id string
---@param n integer
---@param options? SemaphoreOptions
---@param fn? fun(held: SlotGuard, ...): ...
---@return SlotGuard? held
---@return Error? err
function lock.semaphore(id, n, options, fn, ...)
  return require("lockkeeper.semaphore")(nil, id, n, options, fn, ...)
end

function session_methods:semaphore(id, n, options, fn, ...)
  return require("lockkeeper.semaphore")(self, id, n, options, fn, ...)
end

--- Lock the rows of a query until the transaction, which must be open, ends (see lockkeeper.row_locks).
---@param sql string
---@param parameters? any[]
---@param options? RowLocksOptions
---@return table[]? rows
---@return Error? err
function lock.row_locks(sql, parameters, options)
  return require("lockkeeper.row_locks")(nil, sql, parameters, options)
end

function session_methods:row_locks(sql, parameters, options)
  return require("lockkeeper.row_locks")(self, sql, parameters, options)
end

--- Run fn(tx) in a transaction under a short lock timeout, again and again until it has its locks (see
--- lockkeeper.retry).
---@param options? RetryOptions
---@param fn fun(tx: Session): ...
---@return any ...  fn's results
function lock.retry(options, fn)
  return require("lockkeeper.retry")(nil, options, fn)
end

function session_methods:retry(options, fn)
  return require("lockkeeper.retry")(self, options, fn)
end

---------------------------------------------------------------------------------------------------
-- prioritize

--- While a statement of this session waits for a lock, end the sessions that block it (see
--- lockkeeper.prioritize). With a function: calls fn(handle, ...) and returns its results.
---@param options? PrioritizeOptions
---@param fn? fun(handle: PrioritizeHandle, ...): ...
---@return PrioritizeHandle|any
function lock.prioritize(options, fn, ...)
  return require("lockkeeper.prioritize")(nil, options, fn, ...)
end

function session_methods:prioritize(options, fn, ...)
  return require("lockkeeper.prioritize")(self, options, fn, ...)
end

---------------------------------------------------------------------------------------------------
-- locks, blocked, graph, names

--- Every lock of the database that is held or waited for (see lockkeeper.query).
---@param filter? table|fun(row: LockRow): any   see lockkeeper.filter
---@return LockList
function lock.locks(filter)
  return require("lockkeeper.query").locks(nil, filter)
end

function session_methods:locks(filter)
  return require("lockkeeper.query").locks(self, filter)
end

--- Who is blocked by whom: one row a blocked lock and blocker (see lockkeeper.query).
---@param filter? table|fun(row: BlockedRow): any
---@return BlockedList
function lock.blocked(filter)
  return require("lockkeeper.query").blocked(nil, filter)
end

function session_methods:blocked(filter)
  return require("lockkeeper.query").blocked(self, filter)
end

--- Who waits for whom, worked out from one snapshot (see lockkeeper.graph).
---@param options? { exact?: boolean, using?: string|Session }
---@return Graph
function lock.graph(options)
  return require("lockkeeper.graph").take(nil, options)
end

function session_methods:graph(options)
  return require("lockkeeper.graph").take(self, options)
end

--- Names to try, under every scheme, when an advisory key is to be shown as a name (see lockkeeper.names).
---@param spec table  { "nightly-report", pattern = "job:%s" }
function lock.names(spec)
  require("lockkeeper.names").add(spec)
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

--- Run a command, without a shell (see lockkeeper.command).
---@param given table       { "pg_dump", "-Fc", stdin =, stdout =, stderr =, env =, cwd =, grace = }
---@return integer code     its exit code; 128 + N where signal N ended it
---@return string? stdout   nil where a function or a file got it
---@return string? stderr
function lock.sh(given)
  return require("lockkeeper.command").run(given)
end

---------------------------------------------------------------------------------------------------
-- jobs and policies (lockkeeper.definition, which is loaded when something is defined)

--- Define a job.
---@param name string
---@param definition JobDefinition
---@return Job?
function lock.job(name, definition)
  return require("lockkeeper.definition").job(name, definition)
end

--- Define a policy, for the jobs and policies below it in the file, or, in the configuration, for all.
---@param name string
---@param definition Policy
function lock.policy(name, definition)
  require("lockkeeper.definition").policy(name, definition)
end

--- Define an audit (see lockkeeper.audit).
---@param name string
---@param definition AuditSpec
function lock.audit(name, definition)
  require("lockkeeper.audit").define(name, definition)
end

--- A named set of options for `lockkeeper ls --view`; belongs in the configuration (see lockkeeper.view).
---@param name string
---@param view View
function lock.view(name, view)
  require("lockkeeper.view").define(name, view)
end

--- Sessions that nothing here ever cancels or terminates; belongs in the configuration (see
--- lockkeeper.untouchable).
---@param list table|table[]|fun(session: Activity): any  a filter of sessions, or a list of filters
function lock.protect(list)
  require("lockkeeper.untouchable").protect(list)
end

--- What an audit's `find` gets (see lockkeeper.audit_snapshot): a snapshot of now, or one that was saved.
---@param saved? string|table  the file that `lockkeeper ls --all --format json` has made, or its rows
---@return AuditSnapshot
function lock.snapshot(saved)
  return require("lockkeeper.audit_snapshot").new(nil, saved)
end

function session_methods:snapshot()
  return require("lockkeeper.audit_snapshot").new(self)
end

--- What a job holds while it runs: lock.guard.advisory(id, options), semaphore(id, n, options),
--- model(names, options), row_locks(sql, parameters, options).
lock.guard = setmetatable({}, {
  __index = function(_, kind)
    return require("lockkeeper.definition").guard_of_kind(kind)
  end,
})

--- What a file defines: its jobs, policies and audits, for tests of it. Runs nothing but the file itself.
---@param path string
---@return LoadedFile
function lock.load(path)
  return require("lockkeeper.load").load(path)
end

-- lock.db is the default session, made when it is first asked for.
return setmetatable(lock, {
  __index = function(_, name)
    if name == "db" then
      return core.session()
    end
  end,
})
