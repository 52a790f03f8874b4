--- lockkeeper who: who holds an advisory lock, and who waits for it.
local failure = require "lockkeeper.cli.failure"
local field = require "lockkeeper.report.field"
local host = require "lockkeeper.host"
local ids = require "lockkeeper.cli.ids"
local keys = require "lockkeeper.cli.keys"
local lock = require "lockkeeper"
local span = require "lockkeeper.report.span"
local text_table = require "lockkeeper.report.table"

local who = {}

who.spec = {
  usage = "lockkeeper who ID [--scheme SCHEME] [options]",
  summary = "Who holds an advisory lock, and who waits for it; under every scheme where none is given.",
  text = { ids.TEXT, "Whoever waits by trying again, as exec does, stands in no queue of the "
    .. "server's and is not seen." },
  operands = { min = 1, max = 1, name = "ID" },
  options = { ids.OPTIONS[1], ids.OPTIONS[2], keys.FORMAT },
  uses_config = true,
}

-- waitstart is PostgreSQL 14's. state and the rest are null for other roles' sessions without
-- pg_read_all_stats.
local SQL = [[
SELECT l.pid, l.granted, l.mode, a.usename AS "user", a.application_name, a.state,
       pg_catalog.host(a.client_addr) AS client_addr,
       {since a.backend_start} AS connected, {since a.state_change} AS in_state, {waited} AS waited
  FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
 WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory'
   AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d
         WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
   AND l.classid OPERATOR(pg_catalog.=) $1::pg_catalog.text::pg_catalog.oid
   AND l.objid OPERATOR(pg_catalog.=) $2::pg_catalog.text::pg_catalog.oid
   AND l.objsubid OPERATOR(pg_catalog.=) $3
 ORDER BY l.granted DESC, waited DESC NULLS LAST, l.pid]]
local SINCE = "EXTRACT(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) %s)"
  .. "::pg_catalog.float8"

local MODES = { ExclusiveLock = "exclusive", ShareLock = "shared" }

local COLUMNS = {
  { title = "SCHEME", key = "scheme" },
  { title = "PID", key = "pid", right = true },
  { title = "LOCK", key = "lock" },
  { title = "WAITED", key = "waited_text", right = true },
  { title = "STATE", key = "state" },
  { title = "FOR", key = "in_state_text", right = true },
  { title = "USER", key = "user" },
  { title = "CLIENT", key = "client_addr" },
  { title = "APPLICATION", key = "application_name" },
}

local function sessions(rows_of_keys)
  local has_waitstart = lock.db.server_version >= 140000
  local sql = SQL:gsub("{waited}", has_waitstart and "{since l.waitstart}" or "NULL::pg_catalog.float8")
    :gsub("{since (%S+)}", function(column) return SINCE:format(column) end)
  local found = {}
  for _, key in ipairs(rows_of_keys) do
    for _, row in ipairs(lock.db:query(sql, tostring(key.classid), tostring(key.objid), key.objsubid)) do
      row.scheme = key.scheme
      row.key = field.key_word(key.key)
      row.mode = MODES[row.mode] or row.mode
      found[#found + 1] = row
    end
  end
  return found
end

local function show(rows)
  local hidden = false
  for _, row in ipairs(rows) do
    row.lock = (row.granted and "holds " or "wants ") .. row.mode
    row.waited_text = not row.granted and row.waited and span(row.waited) or nil
    row.in_state_text = row.in_state and span(row.in_state) or nil
    hidden = hidden or not row.state
  end
  io.stdout:write(text_table.format(COLUMNS, rows, host.terminal(1)))
  if hidden then
    failure.say("the state of other roles' sessions is hidden from this role: GRANT pg_monitor to see it")
  end
end

function who.main(values, operands)
  local place, database = keys.place()
  local rows = sessions(keys.of(operands[1], values, true))
  if values.format == "json" then
    for _, row in ipairs(rows) do
      row.database = database
    end
    print(#rows == 0 and "[]" or lock.json.encode(rows))
    return 0
  end
  print(place)
  if #rows == 0 then
    print("Nobody holds it, and nobody waits for it.")
  else
    show(rows)
  end
  return 0
end

return who
