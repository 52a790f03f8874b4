--- What a job holds while it runs: its guards, taken in one global order, by trying again and again
--- (runner.md 12, 13 and 16).
--
-- The order is that of the locks themselves, whatever order they are written in, and the same for all
-- jobs: first session-level advisory locks by their keys (a semaphore has the place of its first slot),
-- then what is held by a transaction: advisory locks by their keys, tables by their oids, rows by the
-- text of their query. Those of a transaction are tried together, each time in a new one: who waits for
-- them holds none, and keeps no snapshot.
local core = require "lockkeeper.core"
local holders = require "lockkeeper.holders"
local row_locks = require "lockkeeper.row_locks"
local semaphore = require "lockkeeper.semaphore"
local wait_patiently = require "lockkeeper.patience"

local guards = {}

-- Where the locks stand in the order that are not session-level.
local SESSION, XACT, TABLES, ROWS = 1, 2, 3, 4

local OIDS_SQL = [[
SELECT ARRAY(SELECT COALESCE(pg_catalog.to_regclass(n.name)::pg_catalog.oid::pg_catalog.int8, 0)
               FROM pg_catalog.unnest($1::pg_catalog.text[]) AS n(name)
              ORDER BY 1)]]

local LOCK_TIMEOUT_SQL = [[
SELECT EXTRACT(epoch FROM pg_catalog.current_setting('lock_timeout')::pg_catalog.interval
  )::pg_catalog.float8]]

---@class PlannedGuard
---@field kind "advisory"|"semaphore"|"model"|"row_locks"
---@field name string                 for messages
---@field session Session
---@field rank integer
---@field place any[]                 within the rank: integers, then texts
---@field on_busy "raise"|"skip"
---@field timeout number|false|nil    its own; nil: the policy's
---@field poll number|false|nil
---@field try fun(session: Session, seconds: number|false): any, Error?
---@field holders fun(): table[]
---@field own boolean                 the lock "job:NAME"
---@field key? integer|integer[]      of an advisory lock
---@field id? any                      of an advisory lock, as it was written
---@field shared? boolean
---@field oids? integer[]             of tables
---@field mode? string

---------------------------------------------------------------------------------------------------
-- kinds

local function shown(value)
  local text = type(value) == "table" and table.concat(value, ",") or tostring(value)
  return #text > 60 and text:sub(1, 60) .. "…" or text
end

-- Those of the options that the primitive is to see.
local function passed(options, names)
  local result = { on_busy = "return" }
  for _, name in ipairs(names) do
    result[name] = options[name]
  end
  return result
end

local function with_timeout(options, seconds)
  options.timeout = seconds
  return options
end

local function key_place(session, id, options)
  local key, second = core.key(id, { scheme = options.scheme, prefix = options.prefix }, session)
  return { second and 1 or 0, key, second or 0 }, second and { key, second } or key
end

local KINDS = {}

function KINDS.advisory(planned, args, options)
  local id, given = args[1], passed(options, { "shared", "xact", "scheme", "prefix" })
  local key
  planned.name = "lock " .. shown(id)
  planned.rank = options.xact and XACT or SESSION
  planned.place, key = key_place(planned.session, id, options)
  planned.key, planned.id, planned.shared = key, id, options.shared
  function planned.try(session, seconds)
    return core.advisory(session, id, with_timeout(given, seconds), false)
  end
  function planned.holders()
    return holders.advisory(planned.session, { key })
  end
end

function KINDS.semaphore(planned, args, options)
  local id, n, given = args[1], args[2], passed(options, { "xact", "scheme", "prefix" })
  planned.name = "semaphore " .. shown(id)
  planned.rank = options.xact and XACT or SESSION
  planned.place = key_place(planned.session, id .. "#1", options)
  function planned.try(session, seconds)
    return semaphore(session, id, n, with_timeout(given, seconds))
  end
  function planned.holders()
    local keys = {}
    for slot = 1, n do
      local _, key = key_place(planned.session, ("%s#%d"):format(id, slot), options)
      keys[slot] = key
    end
    return holders.advisory(planned.session, keys)
  end
end

function KINDS.model(planned, args, options)
  local names = type(args[1]) == "table" and args[1] or { args[1] }
  local given = passed(options, { "mode", "only" })
  planned.name = (#names == 1 and "table " or "tables ") .. shown(names)
  planned.rank = TABLES
  planned.oids = planned.session:value(OIDS_SQL, core.array(names))
  planned.place, planned.mode = { planned.oids[1] }, options.mode
  function planned.try(session, seconds)
    return core.model(session, names, with_timeout(given, seconds))
  end
  function planned.holders()
    return holders.relations(planned.session, names)
  end
end

function KINDS.row_locks(planned, args, options)
  local sql, parameters = args[1], args[2]
  local given = passed(options, { "skip_locked", "strength", "of" })
  planned.name = "rows of " .. shown(sql)
  planned.rank = ROWS
  planned.place = { sql }
  for _, parameter in ipairs(parameters or {}) do
    planned.place[#planned.place + 1] = tostring(parameter)
  end
  function planned.try(session, seconds)
    return row_locks(session, sql, parameters, with_timeout(given, seconds))
  end
  function planned.holders() return {} end -- PostgreSQL does not list who has a row
end

---------------------------------------------------------------------------------------------------
-- the order

local function comes_before(a, b)
  if a.rank ~= b.rank then
    return a.rank < b.rank
  end
  for i = 1, math.min(#a.place, #b.place) do
    if a.place[i] ~= b.place[i] then
      return a.place[i] < b.place[i]
    end
  end
  if #a.place ~= #b.place then
    return #a.place < #b.place
  end
  return a.written < b.written
end

local function plan_one(guard, written, session, settings)
  local options = guard.options
  local poll = options.poll
  if type(poll) == "string" or type(poll) == "number" then
    poll = core.duration(poll, "poll")
  end
  local planned = {
    kind = guard.kind, session = session, written = written, own = guard.own or false, poll = poll,
    on_busy = options.on_busy or settings.on_busy,
  }
  if options.timeout ~= nil then
    planned.timeout = core.duration(options.timeout, "timeout")
  end
  KINDS[guard.kind](planned, guard.args, options)
  return planned
end

-- The lock that keeps runs of a job from each other, whatever its policy says of its other guards.
local function own_guard(job)
  local waits = job.settings.overlap ~= "skip"
  return { kind = "advisory", args = { "job:" .. job.name }, own = true,
    options = { timeout = not waits and 0, on_busy = "skip" } }
end

--- A job's guards in the order in which they are taken.
---@param job Job
---@param session_of fun(name?: string): Session
---@return PlannedGuard[]
function guards.plan(job, session_of)
  local list = {}
  if job.settings.overlap ~= "allow" then
    list[1] = plan_one(own_guard(job), 0, session_of(nil), job.settings)
  end
  for i, guard in ipairs(job.guards) do
    list[#list + 1] = plan_one(guard, i, session_of(guard.options.using), job.settings)
  end
  table.sort(list, comes_before)
  return list
end

---------------------------------------------------------------------------------------------------
-- taking

---@class Taken
---@field settings table
---@field db Session
---@field held { planned: PlannedGuard, guard: Guard }[]
---@field transactions { session: Session, tx: any }[]
---@field waited number                  seconds, for all together
---@field policy_begun? number           since when the policy's time runs, of those without a timeout of
---                                      their own
---@field policy_timeout? number         seconds, once somebody has asked
---@field own? Guard                     "job:NAME"
---@field say fun(level: string, text: string, rows: table[])  what is worth a word while it waits; with
---                                      the holders
local Taken = {}
Taken.__index = Taken

---@param db Session
---@param settings table
---@param say fun(level: string, text: string, rows: table[])
---@return Taken
function guards.take(db, settings, say)
  return setmetatable({ db = db, settings = settings, say = say, held = {}, transactions = {}, waited = 0 },
    Taken)
end

-- When the policy's time for all guards together, which begins with the first, is over.
local function policy_deadline(taken)
  if not taken.policy_timeout then
    local timeout = taken.settings.timeout
    if timeout == nil then
      timeout = taken.db:value(LOCK_TIMEOUT_SQL)
      timeout = timeout > 0 and timeout
    end
    taken.policy_timeout = timeout or math.huge
  end
  return taken.policy_begun + taken.policy_timeout
end

local function deadline_of(taken, planned, begun)
  if planned.timeout == nil then
    return policy_deadline(taken)
  end
  return planned.timeout and begun + planned.timeout or math.huge
end

local function wanted(taken, planned, begun)
  return {
    poll = planned.poll,
    deadline = function() return deadline_of(taken, planned, begun) end,
    holders = function() return planned.holders() end,
    take = function(seconds) return planned.try(planned.session, seconds < math.huge and seconds) end,
    waiting = function(rows)
      taken.say("info", "waiting for " .. planned.name, rows)
    end,
    unlucky = function(changes, rows)
      taken.say("warning", ("%s went to others %d times while this job tried; poll = false on the guard "
        .. "waits in the server's queue"):format(planned.name, changes), rows)
    end,
  }
end

local function note_wait(taken, planned, begun, at_once)
  if at_once then
    return
  end
  local seconds = core.monotonic() - begun
  taken.waited = taken.waited + seconds
  if planned.own then -- waiting for an earlier run of the job is another matter
    taken.policy_begun = taken.policy_begun + seconds
  end
end

-- A wait by trying ends with a try that failed; it was a wait all the same.
local function after_wait(err, planned, begun, at_once)
  if err and err.kind == "not_acquired" and not at_once then
    local _, late = core.fail("lock_timeout", ("%s was not to be had within %.3g s"):format(planned.name,
      core.monotonic() - begun))
    return late
  end
  return err
end

--- Those that the session holds. False, the error and the guard where one was not to be had; those before
--- it are held until `release`.
---@param plan PlannedGuard[]
---@return boolean
---@return Error?
---@return PlannedGuard?
function Taken:session_level(plan)
  self.policy_begun = core.monotonic()
  for _, planned in ipairs(plan) do
    if planned.rank == SESSION then
      local begun = core.monotonic()
      local guard, err, at_once = wait_patiently(wanted(self, planned, begun))
      note_wait(self, planned, begun, at_once)
      if not guard then
        return false, after_wait(err, planned, begun, at_once), planned
      end
      self.held[#self.held + 1] = { planned = planned, guard = guard }
      if planned.own then
        self.own = guard
      end
    end
  end
  return true
end

local function roll_back(transactions)
  for i = #transactions, 1, -1 do
    transactions[i].tx:rollback()
    transactions[i] = nil
  end
end

local function transaction_on(transactions, session)
  for _, entry in ipairs(transactions) do
    if entry.session == session then
      return
    end
  end
  transactions[#transactions + 1] = { session = session, tx = session:begin() }
end

-- One try for all of them. `refused` gets the one that was not to be had.
local function try_together(list, transactions, seconds_for, refused)
  for _, planned in ipairs(list) do
    transaction_on(transactions, planned.session)
    local ok, err = planned.try(planned.session, planned.poll == false and seconds_for(planned) or 0)
    if not ok then
      roll_back(transactions)
      refused.planned = planned
      return nil, err
    end
  end
  return transactions
end

--- Those that a transaction holds, which is opened for them on each session.
---@param plan PlannedGuard[]
---@return boolean
---@return Error?
---@return PlannedGuard?
function Taken:transaction_level(plan)
  local list = {}
  for _, planned in ipairs(plan) do
    if planned.rank ~= SESSION then
      list[#list + 1] = planned
    end
  end
  if #list == 0 then
    return true
  end
  policy_deadline(self) -- inside a transaction to ask would take its snapshot
  local begun, refused = core.monotonic(), { planned = list[1] }
  local function current() return wanted(self, refused.planned, begun) end
  local function seconds_for(planned)
    local seconds = deadline_of(self, planned, begun) - core.monotonic()
    return seconds < math.huge and math.max(seconds, 0)
  end
  local got, err, at_once = wait_patiently {
    poll = refused.planned.poll or nil,
    take = function() return try_together(list, self.transactions, seconds_for, refused) end,
    deadline = function() return current().deadline() end,
    holders = function() return current().holders() end,
    waiting = function(rows) current().waiting(rows) end,
    unlucky = function(changes, rows) current().unlucky(changes, rows) end,
  }
  note_wait(self, refused.planned, begun, at_once)
  return got ~= nil, after_wait(err, refused.planned, begun, at_once), refused.planned
end

---------------------------------------------------------------------------------------------------
-- giving back

local function lost(message, ...)
  local _, err = core.fail("lock_lost", message:format(...))
  return err
end

-- Commit or roll back; an error where the transaction was not open any more, or could not commit.
local function end_transactions(self, commit)
  local problem
  for i = #self.transactions, 1, -1 do
    local tx = self.transactions[i].tx
    local ok, err = pcall(commit and tx.commit or tx.rollback, tx)
    if not ok and err.kind == "usage" then
      problem = problem or lost("the transaction that held guards of the job was ended inside the job")
    elseif not ok and commit then
      problem, commit = problem or err, false
    end
  end
  self.transactions = {}
  return problem
end

local function release_one(entry)
  local ok, err = pcall(entry.guard.release, entry.guard)
  if ok then
    return nil
  elseif type(err) == "table" and err.kind == "lock_lost" then
    return lost("guard %s was lost before the job had ended: %s", entry.planned.name, err.message)
  end
  return err
end

--- End the transactions that the guards opened: by commit where the job has done its work.
---@param commit boolean
---@return Error? problem
function Taken:finish(commit)
  return end_transactions(self, commit)
end

--- Give back what sessions hold, in the opposite order, each answer read. The first problem counts.
---@return Error? problem  kind lock_lost: one was not held any more
function Taken:release()
  local problem
  for i = #self.held, 1, -1 do
    problem = release_one(self.held[i]) or problem
  end
  self.held = {}
  return problem
end

return guards
