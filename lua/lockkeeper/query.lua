--- Who holds and who wants which lock: lock.locks and lock.blocked.
--
-- Looking is done on a session of its own, so that the script's own is not disturbed, be it busy, in a
-- transaction or failed: one for all sessions that connect to the same place, opened when somebody first
-- looks, and closed when the last of them is.
--
-- A row's fields are read when they are asked for. Two things are asked of the server only then: names
-- (of relations, databases and roles, where there are many), and of blocked rows which lock is waited
-- for and since when, hence their order (src/locks/blocked.h says why). A list that is kept for longer
-- than its session is kept as list:to_table().
local core = require "lockkeeper.core"
local filter = require "lockkeeper.filter"
local json = core.json
local kill = require "lockkeeper.kill"
local names = require "lockkeeper.names"
local safe = require "lockkeeper.report.safe"
local untouchable = require "lockkeeper.untouchable"

local query = {}

-- With more rows than this, names are asked for when one is needed.
local NAMED_AT_ONCE = 1000

-- One row a name: its oid, or null.
local RELATIONS_SQL = [[
SELECT n.name, pg_catalog.to_regclass(
         CASE WHEN n.name OPERATOR(pg_catalog.!~) '^([0-9]+|-)$' THEN n.name END)::pg_catalog.oid AS oid
  FROM pg_catalog.unnest($1::pg_catalog.text[]) WITH ORDINALITY AS n(name, position)
 ORDER BY n.position]]
local TIMEOUT_SQL = "SELECT pg_catalog.set_config('lock_timeout', '500ms', true)"

---@class Activity
---@field pid? integer
---@field leader_pid? integer       of a parallel worker
---@field user? string
---@field database? string
---@field application_name? string
---@field client_addr? string
---@field backend_type? string
---@field state? string             "prepared" of a prepared transaction
---@field wait_event_type? string
---@field wait_event? string
---@field query? string
---@field query_id? integer         from PostgreSQL 14 on
---@field backend_start? number     epoch seconds, as all times
---@field xact_start? number
---@field query_start? number
---@field state_change? number
---@field duration? number          seconds since query_start, as all durations
---@field xact_duration? number
---@field state_duration? number
---@field hidden? true              this role may not see the session: its other fields are nil
---@field gid? string               a prepared transaction's name

---@class LockRow
---@field pid? integer              nil: a prepared transaction's
---@field type string               "relation", "advisory", "transactionid" … as in pg_locks
---@field mode string               "ACCESS EXCLUSIVE" …; "SIReadLock"
---@field granted boolean
---@field fastpath boolean
---@field relation? string          its oid where the name is not to be had
---@field relation_kind? string     "table", "index", "partitioned table" …
---@field schema? string
---@field database? string          nil: of no database, or of all
---@field key? integer|integer[]    an advisory lock's: a bigint, or two int4
---@field lock_name? string         see lock.names
---@field classid? integer          unsigned, as pg_locks shows it
---@field objid? integer
---@field objsubid? integer
---@field transactionid? integer
---@field virtualxid? string
---@field page? integer
---@field tuple? integer
---@field wait_start? number        epoch seconds; PostgreSQL 14
---@field wait_duration? number     seconds
---@field activity Activity

---@class BlockedRow : LockRow      what is waited for; of a wait that was over when it was looked for,
---                                 little more than pid and activity
---@field blocking_pid? integer     nil: a prepared transaction
---@field blocking_mode? string     what it holds; nil where it only stands before this one in the queue
---@field blocking_activity Activity

---------------------------------------------------------------------------------------------------
-- the sessions to look on

---@class Side
---@field session Session
---@field place string
---@field users integer    how many sessions look through it
---@field busy boolean     somebody looks; told of the end

-- By place. A session that has looked has a token, which is dropped when it closes or is collected.
local sides = {}
local tokens = setmetatable({}, { __mode = "k" })

-- Close it once nobody has a use for it.
local function dismiss(side)
  if side.users == 0 and not side.busy then
    if sides[side.place] == side then
      sides[side.place] = nil
    end
    side.session:close()
  end
end

local function drop(token)
  local side = token.side
  if side then
    token.side = nil
    side.users = side.users - 1
    dismiss(side)
  end
end

local TOKEN = { __gc = drop }

core.on_close(function(session)
  local token = tokens[session]
  if token then
    tokens[session] = nil
    drop(token)
  end
end)

---@param session Session
---@return Side
local function side_of(session)
  local token = tokens[session]
  if not token then
    local place = core.place(session)
    local side = sides[place]
    if not side then
      side = { session = core.beside(session), place = place, users = 0, busy = false }
      sides[place] = side
    end
    side.users = side.users + 1
    token = setmetatable({ side = side }, TOKEN)
    tokens[session] = token
  end
  return token.side
end

-- Connect it anew, to the server that the session is connected to: a pid means something else elsewhere.
local function connect(side, session)
  local ok, err = pcall(side.session.reconnect, side.session)
  if not ok then
    if type(err) == "table" and err.kind == "connection" then
      err.message = "no connection to look at the locks with, which takes one besides the session's own: "
        .. err.message
    end
    error(err, 0)
  elseif core.is_elsewhere(side.session, session) then
    core.fail("connection", "the session to look at the locks with came to another server than the session "
      .. "that it is for: name one host", true)
  end
  core.look_prepare(side.session)
end

local function is_connection_error(err)
  return type(err) == "table" and err.kind == "connection"
end

-- Run fn(session to look on, ...) and return its results. A connection that turns out to be broken is
-- made anew, once: nothing that could be lost was on it.
local function run(side, session, fn, ...)
  local fresh = core.backend_pid(side.session) == nil or core.is_elsewhere(side.session, session)
  if fresh then
    connect(side, session)
  end
  local results = table.pack(pcall(fn, side.session, ...))
  if not results[1] and not fresh and is_connection_error(results[2]) then
    connect(side, session)
    return fn(side.session, ...)
  elseif not results[1] then
    error(results[2], 0)
  end
  return table.unpack(results, 2, results.n)
end

local function exclusively(side, session, fn, ...)
  while side.busy do
    if not core.await(side) then
      core.raise_cancelled()
    end
  end
  side.busy = true
  local results = table.pack(pcall(run, side, session, fn, ...))
  side.busy = false
  core.tell(side)
  dismiss(side)
  if not results[1] then
    error(results[2], 0)
  end
  return table.unpack(results, 2, results.n)
end

--- How to ask: asker(fn, ...) calls fn(session to look on, ...), or raises.
---@param session Session
---@return fun(fn: function, ...): ...
local function asker_of(session)
  return function(fn, ...)
    return exclusively(side_of(session), session, fn, ...)
  end
end

---------------------------------------------------------------------------------------------------
-- looking

-- What a script does not need to be told of when it is about a help only, such as names.
local function pardon(ok, err)
  if not ok and (type(err) ~= "table" or err.kind == "cancelled") then
    error(err, 0)
  end
  return ok
end

-- What a look asks further, when one of its rows needs it.
local further = {}

function further.names(ask, look)
  pardon(pcall(ask, function(session) core.look_names(look, session) end))
end

function further.locks(ask, look)
  ask(function(session) core.look_further(look, session) end)
end

function further.lock_names(ask, look)
  local keys = core.look_keys(look)
  local ok, found = pcall(ask, names.of, keys)
  core.look_lock_names(look, pardon(ok, found) and found or names.of(nil, keys))
end

local function further_of(ask)
  return function(what, look) further[what](ask, look) end
end

--- For lockkeeper.graph: how to ask, and what a look asks further.
query.asker_of, query.further_of = asker_of, further_of

local function fail(kind, sqlstate, message)
  local _, err = core.fail(kind, message)
  err.sqlstate = sqlstate
  error(err, 0)
end

-- The oids of relations, as a set.
local function oids_of(session, list)
  local ok, rows = pcall(session.transaction, session, { read_only = true }, function(tx)
    tx:query(TIMEOUT_SQL)
    return tx:query(RELATIONS_SQL, core.array(list))
  end)
  if not ok then
    if type(rows) == "table" and (rows.sqlstate == "42602" or rows.sqlstate == "42601") then
      core.usage(('on: "%s" is not a relation\'s name: %s'):format(table.concat(list, '", "'), rows.message))
    end
    error(rows, 0)
  end
  local oids = {}
  for _, row in ipairs(rows) do
    if not row.oid then
      fail("sql", "42P01", ('relation "%s" does not exist'):format(row.name))
    end
    oids[row.oid] = true
  end
  return oids
end

---------------------------------------------------------------------------------------------------
-- lists

-- What a list's methods need to know of it.
---@class ListState
---@field look userdata
---@field order? userdata    of a blocked list
---@field ask fun(fn: function, ...): ...
---@field session Session    for whom it was asked: never signalled
---@field taken_at number
local states = setmetatable({}, { __mode = "k" })

---@class LockList
---@field [integer] LockRow
---@field taken_at number     epoch seconds by the server's clock: where durations end
local locks_methods = {}

---@class BlockedList : LockList
---@field [integer] BlockedRow
local blocked_methods = {}

-- Distinct sessions of the rows, in order: { pid, activity, why }; prepared transactions each once.
local function sessions_of(list, blocking)
  local pid_field = blocking and "blocking_pid" or "pid"
  local activity_field = blocking and "blocking_activity" or "activity"
  local found, seen = {}, {}
  local state = states[list]
  local activities = state and state.order
    and core.edge_activities(state.look, state.order, #list, blocking)
  for _, activity in ipairs(activities or {}) do
    found[#found + 1] = { pid = activity.pid, activity = activity }
  end
  for _, row in ipairs(activities and {} or list) do
    local pid, activity = row[pid_field], row[activity_field]
    local key = pid or activity.gid
    if key and not seen[key] then
      seen[key] = true
      found[#found + 1] = { pid = pid, activity = activity, why = blocking and row.pid or nil }
    end
  end
  return found
end

local function pids_of(list, blocking)
  local pids = {}
  for _, session in ipairs(sessions_of(list, blocking)) do
    pids[#pids + 1] = session.pid -- none of a prepared transaction
  end
  return pids
end

local DONE = { cancel = "a session's statement was cancelled", terminate = "a session was terminated" }
local FAILED = { cancel = "a session's statement was not cancelled",
  terminate = "a session was not terminated" }

local function log_outcome(outcome, target)
  local done = outcome.result == "signalled"
  local fields, values = {}, {}
  local function field(name, value)
    if value ~= nil then
      fields[#fields + 1], values[#values + 1] = name, tostring(value)
    end
  end
  field("pid", outcome.pid)
  field("gid", target.activity.gid)
  field("user", target.activity.user)
  field("application", target.activity.application_name)
  field("blocks", target.why)
  field("result", outcome.result)
  field("sqlstate", outcome.sqlstate)
  field("reason", outcome.message)
  field("hint", outcome.hint)
  core.log(done and "info" or "warning", (done and DONE or FAILED)[outcome.action], fields, values)
end

-- Whom each blocker blocks, by the rows: it is ended only if one of them still waits for it.
local function blocked_by_each(list)
  local waiters = {}
  for _, row in ipairs(list) do
    if row.blocking_pid then
      local of_blocker = waiters[row.blocking_pid] or {}
      of_blocker[#of_blocker + 1] = row.pid
      waiters[row.blocking_pid] = of_blocker
    end
  end
  return waiters
end

--- Signal the sessions of the rows, or of their blockers, as the lists' methods do, but log nothing.
---@param list table                    of lock.locks or lock.blocked
---@param action "cancel"|"terminate"
---@param blocking boolean
---@return KillOutcome[] outcomes       one a session
---@return KillTarget[] targets         the same, in that order
function query.signal(list, action, blocking)
  local state = states[list]
  if not state then
    core.usage(action .. ": this is no list of lock.locks or lock.blocked")
  end
  local wanted, targets = sessions_of(list, blocking), {}
  local waiters = blocking and blocked_by_each(list) or {}
  for _, target in ipairs(wanted) do
    target.pid = target.pid or 0
    target.blocks_any = waiters[target.pid]
    target.backend_start, target.gid = target.activity.backend_start, target.activity.gid
  end
  local spared = {}
  local outcomes = state.ask(function(session)
    local asker = session.pid
    local own = core.backend_pid(state.session) or asker
    for _, target in ipairs(wanted) do
      if target.pid ~= own and target.pid ~= asker then
        local is_spared = untouchable.is_protected(target.activity)
        table.insert(is_spared and spared or targets, target)
      end
    end
    return kill.signal(session, action, targets)
  end)
  for _, target in ipairs(spared) do
    targets[#targets + 1] = target
    outcomes[#outcomes + 1] = { pid = target.pid, action = action, result = "refused",
      message = "the configuration protects it" }
  end
  return outcomes, targets
end

-- Signal the sessions of the rows. Returns the pids that were, and what became of each.
local function signal(list, action, blocking)
  local outcomes, targets = query.signal(list, action, blocking)
  local pids = {}
  for i, outcome in ipairs(outcomes) do
    log_outcome(outcome, targets[i])
    if outcome.result == "signalled" then
      pids[#pids + 1] = outcome.pid
    end
  end
  return pids, outcomes
end

--- The backends, each once.
---@return integer[]
function locks_methods:pids()
  return pids_of(self, false)
end

--- Cancel the statements of the rows' sessions, but never this session's own. One failure does not stop
--- the others; each is logged.
--- Source: PostgreSQL manual, "Server Signaling Functions".
---@return integer[] pids          those that were signalled
---@return KillOutcome[] outcomes  one a session
function locks_methods:cancel()
  return signal(self, "cancel", false)
end

--- Terminate the rows' sessions, likewise; waits up to 2 s until they are gone.
---@return integer[] pids
---@return KillOutcome[] outcomes
function locks_methods:terminate()
  return signal(self, "terminate", false)
end

--- The blockers' backends, each once.
---@return integer[]
function blocked_methods:blocking_pids()
  return pids_of(self, true)
end

--- As cancel(), those that block.
---@return integer[] pids
---@return KillOutcome[] outcomes
function blocked_methods:cancel_blocking()
  return signal(self, "cancel", true)
end

--- As terminate(), those that block.
---@return integer[] pids
---@return KillOutcome[] outcomes
function blocked_methods:terminate_blocking()
  return signal(self, "terminate", true)
end

-- A copy with all fields; one activity for all rows of a session.
local function copy_row(row, copies)
  local copy = {}
  for name, value in pairs(row) do
    if name == "activity" or name == "blocking_activity" then
      copies[value] = copies[value] or copy_row(value, copies)
      value = copies[value]
    elseif name == "key" and type(value) == "table" then
      value = { value[1], value[2] }
    end
    copy[name] = value
  end
  return copy
end

--- The rows with all their fields as tables like any other, which need no session any more. The rows of
--- one session share its activity.
---@return table[]
function locks_methods:to_table()
  local copies, rows = {}, {}
  for i, row in ipairs(self) do
    rows[i] = copy_row(row, copies)
  end
  return rows
end

-- The texts of a row's fields, which a database of SQL_ASCII may have in any encoding, as UTF-8.
local function make_utf8(fields)
  for name, value in pairs(fields) do
    if type(value) == "string" then
      fields[name] = safe.utf8(value)
    end
  end
end

--- The rows as a JSON text; keys are strings there, "1,2" where they are two int4. What is no UTF-8 becomes
--- a replacement character.
---@return string
function locks_methods:to_json()
  local rows = core.array(locks_methods.to_table(self)) -- an array even if it is empty
  for _, row in ipairs(rows) do
    local key = row.key
    if key then
      row.key = type(key) == "table" and ("%d,%d"):format(key[1], key[2]) or tostring(key)
    end
    make_utf8(row)
    make_utf8(row.activity)
    make_utf8(row.blocking_activity or {})
  end
  return json.encode(rows)
end

for name, method in pairs(locks_methods) do
  blocked_methods[name] = method
end

local function metatable_of(name, methods)
  return {
    __name = name,
    __index = function(list, key)
      local method = methods[key]
      if method == nil and key == "taken_at" then
        return states[list] and states[list].taken_at
      end
      return method
    end,
  }
end

local LOCKS, BLOCKED = metatable_of("lockkeeper.Locks", locks_methods),
  metatable_of("lockkeeper.Blocked", blocked_methods)

--- Rows that were saved, or that a snapshot keeps, as a list like those of lock.locks and lock.blocked;
--- nobody can be signalled by it.
---@param rows table[]
---@param set "locks"|"blocked"
---@return LockList
function query.saved(rows, set)
  return setmetatable(rows, set == "blocked" and BLOCKED or LOCKS)
end

-- The places of what the filter lets through, or nil where it is all.
local function places_of(rows, wanted)
  if wanted.count == 0 and not wanted.where then
    return nil
  end
  local places = {}
  for i = 1, #rows do
    if wanted:matches(rows[i]) then
      places[#places + 1] = i
    end
  end
  wanted:report()
  return places
end

local function cut(rows, limit)
  for i = #rows, (limit or #rows) + 1, -1 do
    rows[i] = nil
  end
end

-- Sessions whose user was told that he does not see everything.
local told = setmetatable({}, { __mode = "k" })

--- Say once for a session that this role does not see all of the rows' activities, where it is so.
---@param session Session
---@param rows { activity: Activity, blocking_activity?: Activity }[]
local function tell_hidden(session, rows)
  if told[session] then
    return
  end
  for i = 1, #rows do
    local blocking = rows[i].blocking_activity
    if rows[i].activity.hidden or blocking and blocking.hidden then
      told[session] = true
      core.log("info", "this role may not see the state and the statements of other roles' sessions: "
        .. "GRANT pg_monitor", {}, {})
      return
    end
  end
end

query.tell_hidden = tell_hidden

local function finish(rows, metatable, look, order, ask, session)
  local taken_at, is_hidden = core.look_facts(look)
  states[rows] = { look = look, order = order, ask = ask, session = session, taken_at = taken_at }
  if is_hidden then
    tell_hidden(session, rows)
  end
  return setmetatable(rows, metatable)
end

---------------------------------------------------------------------------------------------------
-- lock.locks, lock.blocked

-- Splits `using` off a filter: the session it names, and the rest.
local function session_and_filter(session, spec)
  local using = type(spec) == "table" and spec.using
  if not using then
    return core.session(session), spec
  end
  local rest = {}
  for key, value in pairs(spec) do
    if key ~= "using" then
      rest[key] = value
    end
  end
  return core.session(using), rest
end

--- Every lock of the database that somebody holds or waits for: those on what is in it, on what all
--- databases share, and transaction ids of its sessions. In order of waiting first, the longest wait
--- first, then those of the longest running statement. Not those of the session that looks.
--- Source: PostgreSQL manual, "pg_locks".
---@param session? Session|string   nil: the default session, or the filter's `using`
---@param spec? table|fun(row: LockRow): any   see lockkeeper.filter; also on, where, limit
---@return LockList
function query.locks(session, spec)
  session, spec = session_and_filter(session, spec)
  local wanted = filter.compile(spec, { name = "locks" })
  local ask = asker_of(session)
  local further_asked = further_of(ask)
  local look, oids = ask(function(side)
    local relations = wanted.on and oids_of(side, wanted.on)
    local taken = core.look_locks(side, further_asked)
    if core.look_count(taken) <= NAMED_AT_ONCE then
      core.look_names(taken, side)
    end
    return taken, relations
  end)
  local rows = core.lock_rows(look, oids)
  local places = places_of(rows, wanted)
  if places then
    for i, place in ipairs(places) do
      rows[i] = rows[place]
    end
    cut(rows, #places)
  end
  cut(rows, wanted.limit)
  return finish(rows, LOCKS, look, nil, ask, session)
end

-- Of a look at who is blocked: those that the filter lets through.
local function blocked_list(look, oids, wanted, ask, session)
  local places = places_of(core.edge_rows(look), wanted)
  if oids then
    places = core.edges_on(look, oids, places)
  end
  local rows, order = core.blocked_rows(look, places)
  cut(rows, wanted.limit)
  return finish(rows, BLOCKED, look, order, ask, session)
end

--- One row for each lock that a session of the database waits for and each session that it waits for, as
--- pg_blocking_pids says. In order of the longest wait first.
--- Source: PostgreSQL manual, "System Information Functions", pg_blocking_pids.
---@param session? Session|string
---@param spec? table|fun(row: BlockedRow): any
---@return BlockedList
function query.blocked(session, spec)
  session, spec = session_and_filter(session, spec)
  local wanted = filter.compile(spec, { name = "blocked" })
  local ask = asker_of(session)
  local further_asked = further_of(ask)
  local look, oids = ask(function(side)
    local relations = wanted.on and oids_of(side, wanted.on)
    return core.look_blocked(side, further_asked), relations
  end)
  return blocked_list(look, oids, wanted, ask, session)
end

--- The same for some backends that wait, of whatever database, asked on this very session.
---@param session Session    a free one, in no transaction
---@param waiters integer[]  pids
---@param spec? table|fun(row: BlockedRow): any
---@return BlockedList
function query.blocked_by(session, waiters, spec)
  local wanted = filter.compile(spec, { name = "blocked" })
  local function ask(fn, ...)
    return fn(session, ...)
  end
  local oids = wanted.on and oids_of(session, wanted.on)
  local look = core.look_blocked(session, further_of(ask), waiters)
  return blocked_list(look, oids, wanted, ask, session)
end

return query
