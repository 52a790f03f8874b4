--- Snapshots: what an audit looks at. The locks of a database at one moment, whom they block, and facts of
--- the server; of now, or of a moment that was saved with `lockkeeper ls --all --format json`.
--
-- Whatever is asked of a snapshot comes from one look at pg_locks; only server() asks again.
local core = require "lockkeeper.core"
local filter = require "lockkeeper.filter"
local graph = require "lockkeeper.graph"
local query = require "lockkeeper.query"

local audit_snapshot = {}

---@class AuditSnapshot
---@field taken_at number  epoch seconds by the server's clock
local methods = {}

---@class SnapshotState
---@field rows LockRow[]
---@field graph? Graph
---@field blocked? BlockedRow[]
---@field server? ServerFacts
---@field session? Session  nil: it was saved
---@field told_hidden? boolean  that rows were left out whose fields this role may not see
local states = setmetatable({}, { __mode = "k" })

local SNAPSHOT = {
  __name = "lockkeeper.Snapshot",
  __index = methods,
  __tostring = function(self)
    return ("lockkeeper.Snapshot (%d locks)"):format(#states[self].rows)
  end,
}

local function new(taken_at, state)
  local self = setmetatable({ taken_at = taken_at }, SNAPSHOT)
  states[self] = state
  return self
end

---------------------------------------------------------------------------------------------------
-- filters

-- A name as PostgreSQL parses it, orders, public.orders or public."Odd Name", as { schema, name }.
local function parse_relation(text)
  local parts, at = {}, 1
  while at <= #text do
    local part, after = text:match('^"([^"]*)"()', at)
    if part then
      while text:sub(after, after) == '"' do -- a doubled quote
        local more, next_at = text:match('^"([^"]*)"()', after)
        if not more then
          return nil
        end
        part, after = part .. '"' .. more, next_at
      end
    else
      part, after = text:match('^([^"%.]+)()', at)
      part = part and part:lower()
    end
    if not part or after <= #text and text:sub(after, after) ~= "." then
      return nil
    end
    parts[#parts + 1] = part
    at = after + 1
  end
  if #parts == 1 then
    return { name = parts[1] }
  end
  return #parts == 2 and { schema = parts[1], name = parts[2] } or nil
end

local function relations_of(list, what)
  local relations = {}
  for i, text in ipairs(list) do
    relations[i] = parse_relation(text)
      or core.usage(('%s: on: "%s" is not a relation\'s name'):format(what, text))
  end
  return relations
end

local function is_on(row, relations)
  for _, relation in ipairs(relations) do
    if row.relation == relation.name and (not relation.schema or row.schema == relation.schema) then
      return true
    end
  end
  return false
end

local function selected(self, rows, spec, set)
  local wanted = filter.compile(spec, { name = set, what = "snapshot: " .. set })
  local on = wanted.on and relations_of(wanted.on, "snapshot: " .. set)
  local found = {}
  for _, row in ipairs(rows) do
    if #found == (wanted.limit or -1) then
      break
    elseif (not on or is_on(row, on)) and wanted:matches(row) then
      found[#found + 1] = row
    end
  end
  local state = states[self]
  if wanted.hidden_count > 0 and not state.told_hidden then -- once is enough
    state.told_hidden = true
    wanted:report()
  end
  return query.saved(found, set)
end

---------------------------------------------------------------------------------------------------
-- methods

--- Locks, as lock.locks has them.
---@param spec? table|fun(row: LockRow): any  see lockkeeper.filter; `on` names relations as they are called,
---                                           in any schema where none is given
---@return LockList
function methods:locks(spec)
  return selected(self, states[self].rows, spec, "locks")
end

--- Who waits for whom (see lockkeeper.graph).
---@return Graph
function methods:graph()
  local state = states[self]
  state.graph = state.graph or graph.of_rows(state.rows, self.taken_at)
  return state.graph
end

-- A row of lock.locks with a blocker: the waiter's fields are read where they are.
local function blocked_row(waiter, metatables)
  local meta = metatables[waiter]
  if not meta then
    meta = {
      __index = waiter,
      __pairs = function(row)
        local all = {}
        for name, value in pairs(waiter) do
          all[name] = value
        end
        for name, value in next, row do
          all[name] = value
        end
        return next, all
      end,
    }
    metatables[waiter] = meta
  end
  return setmetatable({}, meta)
end

local function blocked_rows(self)
  local made, by_pid, by_gid, metatables = self:graph(), {}, {}, {}
  for _, node in ipairs(made:sessions()) do
    by_pid[node.pid or 0], by_gid[node.gid or 0] = node.activity, node.activity
  end
  local rows, order = {}, {}
  for i, edge in ipairs(made:edges()) do
    local row = blocked_row(edge.lock, metatables)
    row.blocking_pid, row.blocking_mode = edge.blocker_pid, edge.held_mode
    row.blocking_activity = edge.blocker_pid and by_pid[edge.blocker_pid] or by_gid[edge.blocker_gid or 0]
      or { pid = edge.blocker_pid }
    rows[i], order[row] = row, i
  end
  table.sort(rows, function(a, b)
    local x, y = a.wait_duration or 0, b.wait_duration or 0
    if x ~= y then
      return x > y
    end
    return order[a] < order[b]
  end)
  return rows
end

--- Who is blocked by whom, as lock.blocked has it.
---@param spec? table|fun(row: BlockedRow): any
---@return BlockedList
function methods:blocked(spec)
  local state = states[self]
  state.blocked = state.blocked or blocked_rows(self)
  return selected(self, state.blocked, spec, "blocked")
end

--- What was saved: { taken_at, locks, server }; lock.snapshot takes it back.
---@return table
function methods:to_table()
  return { taken_at = self.taken_at, locks = self:locks():to_table(), server = self:server() }
end

--- The same as a JSON text; keys are strings there.
---@return string
function methods:to_json()
  return ('{"taken_at": %.6f, "server": %s, "locks": %s}'):format(self.taken_at,
    core.json.encode(self:server() or core.null), self:locks():to_json())
end

---------------------------------------------------------------------------------------------------
-- facts of the server

---@class ServerFacts
---@field version integer              server_version_num
---@field settings table<string, integer>   max_locks_per_transaction, max_connections,
---  max_prepared_transactions, max_worker_processes, max_wal_senders, autovacuum_max_workers,
---  autovacuum_worker_slots (PostgreSQL 18)
---@field lock_count integer           objects in the shared lock table, of all databases
---@field slots ReplicationSlot[]
---@field guards? GuardFact[]          of the jobs that the runner knows; nil: no state tables, or no right
---@field runs? RunFact[]              of the runner's that are at work

---@class ReplicationSlot
---@field name string
---@field type "physical"|"logical"
---@field active boolean
---@field pid? integer                 the walsender's that uses it
---@field database? string
---@field xmin_age? integer            transactions that the oldest row version it needs is old
---@field retained integer             bytes of WAL that the server keeps for it
---@field wal_status? string           "reserved", "extended", "unreserved", "lost"

---@class GuardFact
---@field job string
---@field classid integer              the advisory key, as pg_locks shows it
---@field objid integer
---@field objsubid integer

---@class RunFact
---@field job string
---@field pid integer
---@field backend_start? number        epoch seconds

local PATIENCE_SQL = [[
SELECT pg_catalog.set_config('lock_timeout', '500ms', true),
       pg_catalog.set_config('statement_timeout', '5s', true)]]

local SETTINGS_SQL = [[
SELECT s.name, pg_catalog.current_setting(s.name, true)::pg_catalog.int8 AS value
  FROM pg_catalog.unnest('{max_locks_per_transaction,max_connections,max_prepared_transactions,
    max_worker_processes,max_wal_senders,autovacuum_max_workers,autovacuum_worker_slots}'::pg_catalog.text[])
    AS s(name)
 WHERE pg_catalog.current_setting(s.name, true) IS NOT NULL]]

-- Fast-path locks are kept elsewhere, and so is what serializable transactions have read.
local LOCK_COUNT_SQL = [[
SELECT pg_catalog.count(*)
  FROM (SELECT DISTINCT l.locktype, l.database, l.relation, l.page, l.tuple, l.virtualxid,
               l.transactionid::pg_catalog.text, l.classid, l.objid, l.objsubid
          FROM pg_catalog.pg_lock_status() l
         WHERE NOT l.fastpath AND l.mode OPERATOR(pg_catalog.<>) 'SIReadLock') AS object]]

local SLOTS_SQL = [[
SELECT s.slot_name AS name, s.slot_type AS type, s.active, s.active_pid AS pid, s.database,
       GREATEST(pg_catalog.age(s.xmin), pg_catalog.age(s.catalog_xmin)) AS xmin_age, s.wal_status,
       COALESCE(GREATEST(pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery()
         THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END,
         s.restart_lsn), 0), 0)::pg_catalog.int8 AS retained
  FROM pg_catalog.pg_replication_slots s
 WHERE NOT s.temporary
 ORDER BY s.slot_name]]

-- Of each job the guards of its newest run that had any.
local GUARDS_SQL = [[
SELECT j.name AS job, r.guards
  FROM lockkeeper.job j
  LEFT JOIN LATERAL (SELECT r.guards FROM lockkeeper.run r
         WHERE r.job OPERATOR(pg_catalog.=) j.name AND r.guards IS NOT NULL
         ORDER BY r.id DESC LIMIT 1) r ON true
 WHERE NOT j.gone]]

local RUNS_SQL = [[
SELECT r.job, r.backend_pid AS pid, EXTRACT(epoch FROM r.backend_start)::pg_catalog.float8 AS backend_start
  FROM lockkeeper.run r
 WHERE r.state OPERATOR(pg_catalog.=) 'running' AND r.backend_pid IS NOT NULL]]

local HAS_TABLES_SQL = [[
SELECT pg_catalog.to_regclass('lockkeeper.job') IS NOT NULL
   AND pg_catalog.to_regclass('lockkeeper.run') IS NOT NULL
   AND COALESCE(pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('lockkeeper'), 'USAGE')
   AND pg_catalog.has_table_privilege(pg_catalog.to_regclass('lockkeeper.job'), 'SELECT')
   AND pg_catalog.has_table_privilege(pg_catalog.to_regclass('lockkeeper.run'), 'SELECT'), false)]]

-- What a part of the facts asks; without an answer it is nil, and said at debug level.
local function part(session, fn)
  local ok, result = pcall(session.transaction, session, { read_only = true }, function(tx)
    tx:query(PATIENCE_SQL)
    return fn(tx)
  end)
  if ok then
    return result
  elseif type(result) ~= "table" or result.kind == "cancelled" or result.kind == "connection"
    or result.kind == "timed_out" or result.kind == "lock_lost" then
    error(result, 0)
  end
  core.log("debug", "facts of the server: " .. tostring(result.message), {}, {})
  return nil
end

local function guards_of(rows)
  local guards = {}
  for _, row in ipairs(rows) do
    local classid, objid, objsubid = core.key_parts((core.key("job:" .. row.job)))
    guards[#guards + 1] = { job = row.job, classid = classid, objid = objid, objsubid = objsubid }
    for _, word in ipairs(row.guards or {}) do
      local a, b, c = word:match("^(%d+):(%d+):(%d+):[XS]$") -- an advisory lock of this database
      if a then
        guards[#guards + 1] = { job = row.job, classid = math.tointeger(a), objid = math.tointeger(b),
          objsubid = math.tointeger(c) }
      end
    end
  end
  return guards
end

local function facts_of(session)
  local settings = {}
  for _, row in ipairs(part(session, function(tx) return tx:query(SETTINGS_SQL) end) or {}) do
    settings[row.name] = row.value
  end
  local facts = {
    version = session.server_version, settings = settings,
    lock_count = part(session, function(tx) return tx:value(LOCK_COUNT_SQL) end),
    slots = part(session, function(tx) return tx:query(SLOTS_SQL) end) or {},
  }
  local has_tables = part(session, function(tx) return tx:value(HAS_TABLES_SQL) end)
  if has_tables then
    local guards = part(session, function(tx) return tx:query(GUARDS_SQL) end)
    facts.guards = guards and guards_of(guards)
    facts.runs = part(session, function(tx) return tx:query(RUNS_SQL) end)
  end
  return facts
end

--- Facts of the server that are no locks; asked at the first call. Nil of a snapshot that was saved without
--- them.
---@return ServerFacts?
function methods:server()
  local state = states[self]
  if not state.server and state.session then
    state.server = query.asker_of(state.session)(facts_of)
  end
  return state.server
end

---------------------------------------------------------------------------------------------------
-- what was saved

local FIELDS = filter.FIELDS.locks

-- Fields that activities and their rows both have.
local SHARED = { "pid", "database" }

-- The fields whose values are written otherwise in JSON than in Lua.
local KINDS = { time = true, key = true }

local function bad(what, reason)
  core.usage(("%s: %s; what is read here is what lockkeeper ls --all --format json saves"):format(what,
    reason))
end

-- Of which kinds a value of a type may be.
local NUMBERS = { integer = true, time = true, duration = true, key = true }
local TEXTS = { word = true, mode = true, text = true, relation = true, key = true }
local TYPES = setmetatable({ number = NUMBERS, string = TEXTS, boolean = { boolean = true } },
  { __index = function() return {} end })

local function value_of(known, value, what)
  if value == core.null then
    return nil
  elseif KINDS[known.kind] and type(value) == "string" then
    return filter.read(known.kind, value, what)
  elseif value ~= nil and not TYPES[type(value)][known.kind] then
    bad(what, ("its %s is a %s"):format(known.key, type(value)))
  end
  return value
end

local function activity_of(saved, what)
  local activity = { hidden = saved.hidden == true or nil }
  if saved.gid ~= nil and saved.gid ~= core.null then
    activity.gid = saved.gid
  end
  for _, known in ipairs(FIELDS) do
    if known.holder then
      activity[known.name] = value_of(known, saved[known.name], what)
    end
  end
  for _, name in ipairs(SHARED) do
    activity[name] = value_of(FIELDS[name], saved[name], what)
  end
  return activity
end

local function check_row(saved, what)
  if type(saved) ~= "table" then
    bad(what, "it is a " .. type(saved))
  elseif saved.blocking_pid ~= nil then
    bad(what, "it is a blocked row, saved with --blocking")
  elseif type(saved.activity) ~= "table" then
    bad(what, "it has no activity")
  end
  for _, name in ipairs { "type", "mode" } do
    if type(saved[name]) ~= "string" then
      bad(what, "it has no " .. name)
    end
  end
  if type(saved.granted) ~= "boolean" then
    bad(what, "it does not say whether it is granted")
  elseif not saved.granted and (saved.pid == nil or saved.pid == core.null) then
    bad(what, "it waits, but has no pid")
  end
  for _, holder in ipairs { saved, saved.activity } do
    if holder.pid ~= nil and holder.pid ~= core.null and math.type(holder.pid) ~= "integer" then
      bad(what, "its pid is no whole number")
    end
  end
end

-- Durations and what they are counted from, by which the moment of a snapshot is known.
local MOMENTS = { { "wait_start", "wait_duration" }, { "state_change", "state_duration" },
  { "query_start", "duration" }, { "xact_start", "xact_duration" } }

local function moment_of(holder)
  for _, pair in ipairs(MOMENTS) do
    local from, seconds = holder[pair[1]], holder[pair[2]]
    if type(from) == "number" and type(seconds) == "number" then
      return from + seconds
    end
  end
end

local function of_rows(list, source)
  local rows, activities, taken_at = {}, {}, nil
  for i, saved in ipairs(list) do
    local what = ("%s: row %d"):format(source, i)
    check_row(saved, what)
    local row = {}
    for _, known in ipairs(FIELDS) do
      if not known.holder then
        row[known.name] = value_of(known, saved[known.name], what)
      end
    end
    local gid = saved.activity.gid
    local name = row.pid or gid ~= core.null and gid or nil
    row.activity = name and activities[name] or activity_of(saved.activity, what)
    if name then
      activities[name] = row.activity
    end
    taken_at = taken_at or moment_of(row) or moment_of(row.activity)
    rows[i] = row
  end
  return rows, taken_at
end

-- Without what JSON writes for nil.
local function without_null(value)
  if type(value) ~= "table" then
    return value
  end
  local result = {}
  for name, element in pairs(value) do
    if element ~= core.null then
      result[name] = without_null(element)
    end
  end
  return result
end

-- What a snapshot saved with to_json has besides its rows.
local PARTS = { locks = true, taken_at = true, server = true }

local function of_table(saved, source)
  local list, taken_at, server = saved, nil, nil
  if saved.locks ~= nil then
    list, taken_at, server = saved.locks, saved.taken_at, saved.server
    for key in pairs(saved) do
      if not PARTS[key] then
        bad(source, ("another version may have saved it: %s is not known here"):format(tostring(key)))
      end
    end
    if type(list) ~= "table" or list == core.null then
      bad(source, "its locks are no list")
    elseif taken_at ~= nil then
      taken_at = filter.read("time", taken_at, source .. ": taken_at")
    end
  elseif #saved == 0 and next(saved) ~= nil then
    bad(source, "it is no list of locks")
  end
  local rows, moment = of_rows(list, source)
  return new(taken_at or moment or core.now(), {
    rows = rows, server = type(server) == "table" and server ~= core.null and without_null(server) or nil,
  })
end

local function read(path)
  local file <close>, reason = io.open(path, "rb")
  if not file then
    core.usage("snapshot: cannot open " .. reason)
  end
  local text, why = file:read("a")
  if not text then
    core.usage(("snapshot: cannot read %s: %s"):format(path, why))
  end
  local ok, saved = pcall(core.json.decode, text)
  if not ok then
    core.usage(("snapshot: %s is no JSON, or was cut short: %s"):format(path, saved.message))
  elseif type(saved) ~= "table" or saved == core.null or text:find("^%s*{%s*}") then
    bad("snapshot: " .. path, "it is no list of locks")
  end
  return of_table(saved, "snapshot: " .. path)
end

--- A snapshot of now, or one that was saved: the name of a file, or what it holds as tables, as
--- lock.locks():to_table() has them too.
---@param session? Session|string  where one of now is taken; nil: the default session
---@param saved? string|table
---@return AuditSnapshot
function audit_snapshot.new(session, saved)
  if type(saved) == "string" then
    return read(saved)
  elseif type(saved) == "table" then
    return of_table(saved, "snapshot")
  elseif saved ~= nil then
    core.usage("snapshot: the name of a file or its rows were expected, not a " .. type(saved))
  end
  session = core.session(session)
  local made, rows = graph.take_with_rows(session)
  return new(made.taken_at, { rows = rows, graph = made, session = session })
end

return audit_snapshot
