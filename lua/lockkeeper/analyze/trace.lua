--- Statements traced one by one in a transaction that is rolled back: what each locked, rewrote, scanned.
--
-- Never commits. Statements go to the server one at a time by the extended protocol, which takes no second
-- one with them; those that begin or end a transaction are not sent; the server refuses COMMIT inside of a
-- function, a DO block or a procedure that was called in a transaction; and after each statement the trace
-- looks whether the transaction is still the one that it began.
--
-- Two sessions: in one the statements run, and are looked at, since no other sees what they have made. A
-- second one, which sees what is committed, tells what existed before.
local core = require "lockkeeper.core"
local modes = require "lockkeeper.analyze.modes"
local statement = require "lockkeeper.analyze.statement"

local trace = {}

---@class TraceRelation
---@field oid integer
---@field schema? string
---@field name string            before the file, or as the file has made it
---@field called string          as its last statement has left it
---@field on string              "public.orders"; its oid where the name is not to be had
---@field kind string            "table", "index", "partitioned table", "view", …
---@field existed boolean        before the file, and not as a temporary one
---@field rows? integer          about, as of the last ANALYZE
---@field bytes? integer         about
---@field table_name? string     of an index: its table
---@field partition_of? string

---@class TraceLock
---@field mode string
---@field on string              what it is on: "public.orders", "advisory 42", "type public.mood"
---@field type "relation"|"advisory"|"object"|"each table"
---@field relation? TraceRelation
---@field since_line? integer    held since an earlier statement of the file's transaction
---@field held? number           seconds, from the statement's begin to the end of the file's transaction
---@field is_measured boolean    false: by the manual, of a statement that was not run

---@class TraceEntry
---@field line integer
---@field text string
---@field words string[]
---@field state "ran"|"not_run"|"failed"
---@field reason? string         why it was not run
---@field control? string        see StatementReading
---@field took? number           seconds
---@field locks TraceLock[]
---@field rewrites { relation: TraceRelation }[]
---@field scans { relation: TraceRelation, rows: integer, under: string }[]   rows: that were read
---@field changes { relation: TraceRelation, rows: integer }[]                rows updated or deleted
---@field error? Error
---@field has_timeout boolean    the file, or the role, has set a lock_timeout of its own

-- Toast tables are locked with theirs. Of the system's catalogs only what keeps others from their work.
local PROBE_SQL = [[
SELECT l.locktype AS type, l.virtualtransaction AS transaction, l.relation AS oid, l.mode,
       l.classid, l.objid, l.objsubid, c.relname AS name, c.relfilenode AS filenode,
       pg_catalog.pg_stat_get_xact_numscans(l.relation) AS scans,
       pg_catalog.pg_stat_get_xact_tuples_returned(l.relation) AS read,
       pg_catalog.pg_stat_get_xact_tuples_updated(l.relation)
         OPERATOR(pg_catalog.+) pg_catalog.pg_stat_get_xact_tuples_deleted(l.relation) AS changed,
       pg_catalog.current_setting('lock_timeout') AS lock_timeout
  FROM pg_catalog.pg_locks l
  LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) l.relation
 WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND l.granted
   AND (l.locktype OPERATOR(pg_catalog.=) ANY (ARRAY['virtualxid', 'advisory'])
        OR l.locktype OPERATOR(pg_catalog.=) 'object'
           AND l.mode OPERATOR(pg_catalog.=) 'AccessExclusiveLock'
        OR l.locktype OPERATOR(pg_catalog.=) 'relation'
           AND (c.relname IS NULL OR c.relname OPERATOR(pg_catalog.!~) '^pg_toast_[0-9]')
           AND (l.relation OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
                OR NOT l.mode OPERATOR(pg_catalog.=) ANY (
                  ARRAY['AccessShareLock', 'RowShareLock', 'RowExclusiveLock'])))
 ORDER BY l.relation, l.mode]]

-- $1: oids. As the asking session sees them.
local RELATIONS_SQL = [[
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::pg_catalog.text AS kind,
       c.relpersistence::pg_catalog.text AS persistence, c.relfilenode AS filenode,
       c.reltuples::pg_catalog.float8 AS rows,
       c.relpages::pg_catalog.int8 OPERATOR(pg_catalog.*)
         pg_catalog.current_setting('block_size')::pg_catalog.int8 AS bytes,
       tn.nspname AS table_schema, t.relname AS table_name,
       pn.nspname AS parent_schema, p.relname AS parent_name
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
  LEFT JOIN pg_catalog.pg_index i ON i.indexrelid OPERATOR(pg_catalog.=) c.oid
  LEFT JOIN pg_catalog.pg_class t ON t.oid OPERATOR(pg_catalog.=) i.indrelid
  LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid OPERATOR(pg_catalog.=) t.relnamespace
  LEFT JOIN pg_catalog.pg_inherits h ON c.relispartition AND h.inhrelid OPERATOR(pg_catalog.=) c.oid
  LEFT JOIN pg_catalog.pg_class p ON p.oid OPERATOR(pg_catalog.=) h.inhparent
  LEFT JOIN pg_catalog.pg_namespace pn ON pn.oid OPERATOR(pg_catalog.=) p.relnamespace
 WHERE c.oid OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.oid[])]]

local OBJECT_SQL = [[
SELECT pg_catalog.pg_describe_object($1::pg_catalog.text::pg_catalog.oid,
         $2::pg_catalog.text::pg_catalog.oid, $3::pg_catalog.int4)]]

-- $1: a name; the oid, and where it is an index's its table's.
local RESOLVE_SQL = [[
SELECT r.oid, i.indrelid AS table_oid
  FROM (SELECT pg_catalog.to_regclass($1)::pg_catalog.oid AS oid) r
  LEFT JOIN pg_catalog.pg_index i ON i.indexrelid OPERATOR(pg_catalog.=) r.oid]]

local SET_TIMEOUT_SQL = "SELECT pg_catalog.set_config('lock_timeout', $1, true)"

-- What the file has set, unless it is longer than $1 (in seconds), or endless.
local BOUND_SQL = [[
SELECT CASE WHEN s.seconds OPERATOR(pg_catalog.=) 0 OR s.seconds OPERATOR(pg_catalog.>) $1::pg_catalog.float8
            THEN pg_catalog.set_config('lock_timeout', $2, true) END, s.seconds
  FROM (SELECT EXTRACT(epoch FROM pg_catalog.current_setting('lock_timeout')::pg_catalog.interval)
                 ::pg_catalog.float8 AS seconds) s]]

local KINDS = {
  r = "table", p = "partitioned table", i = "index", I = "partitioned index", S = "sequence", v = "view",
  m = "materialized view", f = "foreign table", c = "composite type",
}

-- The name of the savepoint that stands for a BEGIN of the file's.
local BLOCK = "lockkeeper_analyze"

local function qualified(schema, name)
  return schema and ("%s.%s"):format(schema, name) or name
end

---------------------------------------------------------------------------------------------------
-- what is known of relations

-- Add what one session sees of the relations that are not known yet.
local function learn(run, session, oids, existed)
  if #oids == 0 then
    return
  end
  for _, row in ipairs(session:query(RELATIONS_SQL, core.array(oids))) do
    run.relations[row.oid] = {
      oid = row.oid, schema = row.schema, name = row.name, called = row.name,
      on = qualified(row.schema, row.name), kind = KINDS[row.kind] or row.kind,
      existed = existed and row.persistence ~= "t",
      rows = row.rows > 0 and math.tointeger(row.rows // 1) or nil, bytes = row.bytes,
      table_name = row.table_name and qualified(row.table_schema, row.table_name),
      partition_of = row.parent_name and qualified(row.parent_schema, row.parent_name),
      filenode = existed and row.filenode or nil,
      scans = 0, read = 0, changed = 0, held = {}, since = {},
    }
  end
end

local function unknown_of(run, oids)
  local list, seen = {}, {}
  for _, oid in ipairs(oids) do
    if not run.relations[oid] and not seen[oid] then
      seen[oid] = true
      list[#list + 1] = oid
    end
  end
  return list
end

-- Know all of them: from before the file, else as the file made them. What is unknown then was made and
-- dropped by the file.
local function know(run, oids)
  local unknown = unknown_of(run, oids)
  if #unknown == 0 then
    return
  end
  learn(run, run.side, unknown, true)
  learn(run, run.db, unknown_of(run, unknown), false)
end

---------------------------------------------------------------------------------------------------
-- what a statement has left

local function strongest(since)
  local best
  for mode in pairs(since) do
    if modes.strength(mode) > modes.strength(best) then
      best = mode
    end
  end
  return best
end

local function add_lock(run, entry, lock)
  if lock.is_measured == nil then
    lock.is_measured = true
  end
  entry.locks[#entry.locks + 1] = lock
  lock.started = entry.started
  run.open[#run.open + 1] = lock
end

-- A lock that the file takes on a relation in this statement, or has had since an earlier one.
local function relation_lock(run, entry, relation, mode)
  local since = relation.since[mode]
  relation.since[mode] = since or entry.line
  add_lock(run, entry, { type = "relation", mode = mode, relation = relation, on = relation.on,
    since_line = since })
end

-- Taking again what the transaction has already does not show: the manual says what the statement takes
-- of the tables that it names.
local function held_already(run, entry, names, taken)
  local mode = statement.mode(entry.words)
  local tables = {} -- an index is dropped under a lock of its table
  for _, relation in ipairs(run.held) do
    if relation.table_name and names[relation.called]
      and statement.stands(entry.words, 1, "DROP", "INDEX") then
      tables[relation.table_name] = true
    end
  end
  for _, relation in ipairs(mode and run.held or {}) do
    local is_named = names[relation.called] or tables[relation.on]
    if relation.held[mode] and is_named and not (taken[relation] or {})[mode] then
      relation_lock(run, entry, relation, mode)
    end
  end
end

-- What was measured of an earlier statement of the same words.
local function same_locks(run, entry, earlier)
  for _, lock in ipairs(earlier.locks) do
    add_lock(run, entry, { type = lock.type, mode = lock.mode, relation = lock.relation, on = lock.on,
      since_line = lock.since_line or earlier.line })
  end
end

-- Work that the counters and the file tell of.
local function note_work(entry, relation, row)
  if relation.filenode and row.filenode ~= relation.filenode and row.filenode and relation.existed
    and entry.words[1] ~= "TRUNCATE" then
    entry.rewrites[#entry.rewrites + 1] = { relation = relation }
  end
  if row.scans > relation.scans and relation.existed and not relation.kind:find("index") then
    entry.scans[#entry.scans + 1] = { relation = relation, rows = row.read - relation.read,
      under = strongest(relation.since) }
  end
  if row.changed > relation.changed and relation.existed then
    entry.changes[#entry.changes + 1] = { relation = relation, rows = row.changed - relation.changed }
  end
end

local function advisory_name(row)
  if row.objsubid == 1 then
    return ("advisory %d"):format(row.classid << 32 | row.objid)
  end
  return ("advisory (%d, %d)"):format(row.classid, row.objid)
end

-- What an object of no table is called; nil where it did not exist before. Best effort.
local function object_name(run, row)
  local ok, name = pcall(run.side.value, run.side, OBJECT_SQL, tostring(row.classid), tostring(row.objid),
    row.objsubid)
  return ok and name or nil
end

local function other_locks(run, entry, rows)
  local fresh = {}
  for _, row in ipairs(rows) do
    if row.type == "object" or row.type == "advisory" then
      local key = ("%s %s/%s/%s %s"):format(row.type, row.classid, row.objid, row.objsubid, row.mode)
      if not run.others[key] then
        run.others[key] = true
        fresh[#fresh + 1] = row
      end
    end
  end
  local has_relation = #entry.locks > 0
  for _, row in ipairs(fresh) do
    -- What belongs to a table is locked with it.
    local on = row.type == "advisory" and advisory_name(row)
      or row.type == "object" and not has_relation and object_name(run, row)
    if on then
      add_lock(run, entry, { type = row.type, mode = modes.of_lock(row.mode), on = on })
    end
  end
end

local function bound_timeout(run, text)
  run.timeout_text = text
  local row = run.db:one(BOUND_SQL, run.timeout or math.huge, run.timeout_setting)
  run.has_timeout = row.seconds > 0
  run.timeout_text = run.db:value("SELECT pg_catalog.current_setting('lock_timeout')")
end

local function lost_transaction(entry)
  core.fail("sql", ("line %d: the statement ended the transaction that was to be rolled back: what the "
    .. "file did up to there is committed"):format(entry.line), true)
end

-- The relation of a row of the probe; nil where nobody cares: a toast table is locked with its own.
local function relation_of(run, row)
  local relation = row.type == "relation" and run.relations[row.oid] or nil
  return relation and not (relation.schema or ""):find("^pg_toast") and relation or nil
end

-- Look at what is held now. `is_undone`: a savepoint was rolled back, so files may be earlier ones.
-- `is_repeated`: the locks that it has taken again are known.
local function probe(run, entry, names, is_undone, is_repeated)
  if not run.db.in_transaction then
    lost_transaction(entry)
  end
  local rows = run.db:query(PROBE_SQL)
  local oids = {}
  for _, row in ipairs(rows) do
    if row.transaction ~= run.transaction then
      lost_transaction(entry)
    end
    if row.type == "relation" then
      oids[#oids + 1] = row.oid
    end
  end
  know(run, oids)
  for _, relation in ipairs(run.held) do
    relation.held, relation.before = {}, relation.held
  end
  local held, is_held, taken = {}, {}, {}
  for _, row in ipairs(rows) do
    local relation = relation_of(run, row)
    if relation then
      relation.called = row.name or relation.called
      if not is_held[relation] then
        is_held[relation] = true
        held[#held + 1] = relation
      end
      local mode = modes.of_lock(row.mode)
      relation.held[mode] = true
      if not is_undone and not (relation.before and relation.before[mode]) then
        taken[relation] = taken[relation] or {}
        taken[relation][mode] = true
        relation_lock(run, entry, relation, mode)
      end
    end
  end
  for _, relation in ipairs(run.held) do
    relation.before = nil
    for mode in pairs(is_undone and relation.since or {}) do
      if not relation.held[mode] then
        relation.since[mode] = nil
      end
    end
  end
  run.held = held
  if not is_undone then
    if not is_repeated then
      held_already(run, entry, names, taken)
    end
    other_locks(run, entry, rows)
  end
  local seen = {}
  for _, row in ipairs(rows) do
    local relation = relation_of(run, row)
    if relation and not seen[relation] then
      seen[relation] = true
      if not is_undone then
        note_work(entry, relation, row)
      end
      relation.filenode = row.filenode or relation.filenode
      relation.scans, relation.read, relation.changed = row.scans, row.read, row.changed
    end
  end
  if rows[1].lock_timeout ~= run.timeout_text then
    bound_timeout(run, rows[1].lock_timeout)
  end
end

---------------------------------------------------------------------------------------------------
-- the file's transactions

-- Locks are held from their statement to here.
local function end_block(run)
  local now = core.monotonic()
  for _, lock in ipairs(run.open) do
    lock.held = lock.is_measured and now - lock.started or nil
    lock.started = nil
  end
  run.open = {}
  for _, relation in pairs(run.relations) do
    relation.since = {}
  end
end

local function control(run, entry, kind)
  if kind == "begin" then
    if not run.in_block then
      end_block(run)
      run.db:exec("SAVEPOINT " .. BLOCK)
      run.in_block = true
    end
    return
  end
  if run.in_block then
    if kind == "rollback" then
      run.db:exec("ROLLBACK TO " .. BLOCK)
    end
    run.db:exec("RELEASE " .. BLOCK)
  end
  end_block(run)
  if kind == "rollback" and run.in_block then
    probe(run, entry, {}, true)
  end
  run.in_block = false
  local last = #entry.words
  if entry.words[last] == "CHAIN" and entry.words[last - 1] == "AND" then
    control(run, entry, "begin")
  end
end

-- What a statement that is not run would take, by the manual. Best effort: it says what it can.
local function would_take(run, entry, reading)
  for _, wanted in ipairs(reading.takes or {}) do
    local ok, row = pcall(run.db.transaction, run.db, function(tx)
      return tx:one(RESOLVE_SQL, wanted.name)
    end)
    if not ok and not run.db.in_transaction then
      error(row, 0)
    end
    if ok and row.oid then
      know(run, { row.oid, row.table_oid })
      local relation = run.relations[row.oid]
      add_lock(run, entry, { type = "relation", mode = wanted.mode, relation = relation, on = relation.on,
        is_measured = false })
      local owner = wanted.with_table and row.table_oid and run.relations[row.table_oid]
      if owner then
        add_lock(run, entry, { type = "relation", mode = wanted.table_mode, relation = owner, on = owner.on,
          is_measured = false })
      end
    else
      add_lock(run, entry, { type = "object", mode = wanted.mode, on = wanted.name, is_measured = false })
    end
  end
  if reading.everywhere then
    add_lock(run, entry, { type = "each table", mode = reading.everywhere, on = "one table after the other",
      is_measured = false })
  end
end

---------------------------------------------------------------------------------------------------
-- statements

-- These say that a statement needs to be outside a transaction, or would end it.
local ENDS = { ["25001"] = true, ["2D000"] = true }

-- In a savepoint, since it may be refused. True, or false and the reason.
local function execute_guarded(db, text)
  local ok, err = pcall(db.transaction, db, function() core.run_alone(db, text) end)
  if ok then
    return true
  elseif type(err) == "table" and ENDS[err.sqlstate] and db.in_transaction then
    return false, ("it can't run in a transaction: %s"):format(err.message)
  end
  error(err, 0)
end

-- Errors of a statement; others, such as a lost connection, are not its own.
local OF_STATEMENT = { sql = true, usage = true, lock_timeout = true, not_acquired = true, deadlock = true }

local function fail(run, entry, err)
  if type(err) ~= "table" or not OF_STATEMENT[err.kind] or not run.db.in_transaction then
    error(err, 0)
  end
  entry.state, entry.error = "failed", err
  run.failed = entry
end

local function undoes(words)
  return words[1] == "ROLLBACK"
end

-- Statements of the same words as one that was looked at take the same locks. In a file full of data they
-- are looked at together, after the last of them; those that change rows once there are many.
local LOOKED_AT = { UPDATE = 1000, DELETE = 1000, MERGE = 1000, WITH = 1000 }

local function is_repeated(run, entry)
  local seen = run.seen[entry.words]
  return seen and seen.count >= (LOOKED_AT[entry.words[1]] or 1)
end

local function settle(run)
  local pending = run.pending
  if pending then
    run.pending = nil
    probe(run, pending, nil, false, true)
  end
end

local function step(run, entry, parsed)
  local reading = statement.read(entry.words)
  entry.control, entry.reason = reading.control, reading.not_run
  local repeated = is_repeated(run, entry)
  if not repeated then
    settle(run)
  end
  entry.has_timeout = run.has_timeout
  entry.started = core.monotonic()
  if reading.not_run then
    entry.state = "not_run"
    would_take(run, entry, reading)
    if reading.control then
      control(run, entry, reading.control == "prepare" and "commit" or reading.control)
    end
    run.seen = {}
    return
  end
  local ok, err = pcall(function()
    if reading.may_end then
      local done, reason = execute_guarded(run.db, entry.text)
      if not done then
        entry.state, entry.reason = "not_run", reason
      end
    else
      core.run_alone(run.db, entry.text)
    end
  end)
  entry.took = core.monotonic() - entry.started
  if not ok then
    fail(run, entry, err)
    return
  end
  if repeated then
    same_locks(run, entry, run.seen[entry.words].entry)
    run.pending = entry
    return
  end
  probe(run, entry, parsed.names, undoes(entry.words) or entry.state == "not_run")
  if not reading.is_plain then
    run.seen = {}
  elseif not parsed.is_cut then
    local seen = run.seen[entry.words] or { entry = entry, count = 0 }
    seen.count, run.seen[entry.words] = seen.count + 1, seen
  end
end

local function begin(run)
  local db = run.db
  local before = db:value("SELECT pg_catalog.current_setting('lock_timeout')")
  run.has_timeout = before ~= "0"
  db:query(SET_TIMEOUT_SQL, run.timeout_setting)
  run.timeout_text = db:value("SELECT pg_catalog.current_setting('lock_timeout')")
  for _, row in ipairs(db:query(PROBE_SQL)) do
    run.transaction = row.transaction
    if row.type == "relation" then
      know(run, { row.oid })
      local relation = relation_of(run, row)
      if relation then
        relation.held[modes.of_lock(row.mode)] = true
        run.held[#run.held + 1] = relation
      end
    elseif row.type ~= "virtualxid" then
      run.others[("%s %s/%s/%s %s"):format(row.type, row.classid, row.objid, row.objsubid, row.mode)] = true
    end
  end
  run.counts = db:value("SELECT pg_catalog.current_setting('track_counts')") == "on"
end

--- Trace statements. The transaction is rolled back however it ends. Raises what is not a statement's own
--- error: a lost connection, an interrupt.
---@param db Session                         no transaction may be open on it
---@param statements SqlStatement[]
---@param timeout number|false               lock_timeout in seconds; false: without limit
---@return TraceEntry[] entries              one a statement
---@return { failed?: TraceEntry, counts: boolean } result
--- `failed`: the statement that did, after which none was run; `counts`: full scans could be seen
function trace.run(db, statements, timeout)
  local side <close> = core.beside(db)
  side:value("SELECT pg_catalog.set_config('lock_timeout', '500ms', false)")
  local run = {
    db = db, side = side, timeout = timeout,
    timeout_setting = timeout and ("%dms"):format(math.ceil(timeout * 1000)) or "0",
    relations = {}, held = {}, others = {}, open = {}, seen = {},
  }
  local entries = {}
  local tx <close> = db:begin()
  begin(run)
  for i, parsed in ipairs(statements) do
    local entry = {
      line = parsed.line, text = parsed.text, words = parsed.words, state = "ran",
      locks = {}, rewrites = {}, scans = {}, changes = {}, has_timeout = run.has_timeout,
    }
    entries[i] = entry
    if run.failed then
      entry.state, entry.reason = "not_run", ("the statement in line %d failed"):format(run.failed.line)
    else
      step(run, entry, parsed)
    end
  end
  if not run.failed then
    settle(run)
  end
  end_block(run)
  tx:rollback()
  return entries, { failed = run.failed, counts = run.counts }
end

return trace
