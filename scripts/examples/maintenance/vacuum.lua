#!/usr/bin/env -S lockkeeper run
-- Vacuum the tables with the most dead rows, worst first, for as long as the night lasts.
--
--   lockkeeper run vacuum.lua        does nothing outside the window
--   lockkeeper run vacuum.lua now    whatever the time is
--
-- For what autovacuum does not keep up with by day. Readers and writers go on meanwhile. A table that
-- somebody has locked, or that autovacuum is at, is left for the next night; so is what there is no time for.
--
-- Needs: the tables' owner or the database's; from PostgreSQL 17 on MAINTAIN on the tables (pg_maintain)
-- will do. The job fails, after its work, where a table needs a VACUUM that its role may not do.
local lock = require "lockkeeper"

local settings = {
  window = "01:00-05:00",
  timezone = "UTC",
  schemas = {},       -- such as { "shop" }; none: all
  dead_rows = 1000,   -- a table with fewer is left to autovacuum
  dead_part = 0.05,   -- … or with a smaller part of its rows dead
  least_time = 60,    -- seconds that must be left for another table to be begun
}

-- Sizes are pg_class's, as of the last VACUUM or ANALYZE: pg_relation_size() would wait for a table that
-- is locked.
local TABLES = [[
  select n.nspname as schema, c.relname as name, c.oid, s.n_dead_tup as dead,
         pg_has_role(d.datdba, 'USAGE')
           or case when current_setting('server_version_num')::int >= 170000
                   then has_table_privilege(c.oid, 'MAINTAIN')
                   else pg_has_role(c.relowner, 'USAGE') end as allowed
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join pg_stat_user_tables s on s.relid = c.oid
    join pg_database d on d.datname = current_database()
   where c.relkind in ('r', 'm') and c.relpersistence <> 't'
     and (cardinality($3::text[]) = 0 or n.nspname = any ($3::text[]))
     and s.n_dead_tup >= $1 and s.n_dead_tup >= $2 * (s.n_live_tup + s.n_dead_tup)
   order by c.relpages * s.n_dead_tup::float8 / (s.n_live_tup + s.n_dead_tup) desc, c.oid]]

-- A VACUUM does not outlast the window. What one that is cancelled has removed stays removed.
local function end_statements_in(db, seconds)
  local ms = math.max(math.min(seconds, 86400) * 1000 // 1, 1)
  db:value("select set_config('statement_timeout', $1, false)", ("%d"):format(ms))
end

local function vacuum(job, tbl, name)
  local db = job.db
  end_statements_in(db, job:time_left())
  db:exec(db:format("vacuum (analyze) %I.%I", tbl.schema, tbl.name))
  local left = db:value("select pg_stat_get_dead_tuples($1)", tbl.oid)
  job:log("info", "vacuumed " .. name, { dead_rows = tbl.dead, still_dead = left })
  if left > tbl.dead // 2 then
    job:log("warning", name .. " keeps its dead rows: a transaction that began earlier may still see them")
  end
end

-- One table; gives the word under which it counts, and what is wrong, if anything is.
local function attend_to(job, tbl, name)
  if not tbl.allowed then
    local problem = name .. " needs a VACUUM, and this role may not do it"
    job:log("error", problem, { dead_rows = tbl.dead })
    return "not_allowed", problem
  elseif job:time_left() < settings.least_time then
    return "not_reached"
  end
  local ok, err = pcall(vacuum, job, tbl, name)
  if ok then
    return "vacuumed"
  elseif err.busy then
    job:log("info", name .. " is locked: left for the next time")
    return "locked"
  elseif err.sqlstate == "57014" and job:time_left() < 1 then
    job:log("info", name .. " was not finished in time")
    return "not_reached"
  end
  job:log("error", ("%s: %s"):format(name, err))
  return "failed", err
end

local function run(job)
  local result = { vacuumed = 0, locked = 0, not_reached = 0, not_allowed = 0, failed = 0 }
  local first_error
  local tables = job.db:query(TABLES, settings.dead_rows, settings.dead_part,
    lock.array(settings.schemas))
  for i, tbl in ipairs(tables) do
    local name = tbl.schema .. "." .. tbl.name
    job:progress(i - 1, #tables, name)
    local word, err = attend_to(job, tbl, name)
    result[word] = result[word] + 1
    first_error = first_error or err
    job:progress(i, #tables, name)
  end
  job:log("info", #tables == 0 and "nothing to do" or "done", result)
  if first_error then
    error(first_error, 0)
  end
  return result
end

lock.job("vacuum", {
  description = "VACUUM of the tables with the most dead rows",
  schedule = "0 1 * * *",
  window = ... ~= "now" and settings.window or nil,
  timezone = settings.timezone,
  -- shared with reindex.lua: both at once would only wait for each other
  guards = { lock.guard.advisory("maintenance") },
  policy = {
    timeout = "30m", on_busy = "skip", max_run = "4h",
    lock_timeout = "500ms", -- less than deadlock_timeout, after which an autovacuum is chased away
    session = { search_path = "pg_catalog" },
  },
  run = run,
})
