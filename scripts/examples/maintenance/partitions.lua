#!/usr/bin/env -S lockkeeper run
-- Partitions by day or month: those to come are made ahead of time, those that are too old are dropped.
--
--   lockkeeper run partitions.lua
--
-- For tables that are partitioned by range of one date or timestamp. Partitions are attached, and from
-- PostgreSQL 14 on detached, in a way beside which the table is read and written. A default partition is
-- in the way of that: then, and before 14, a drop needs the whole table for a moment. Whatever needs a
-- lock asks for two seconds only, so that nobody waits longer behind it, and comes again.
--
-- Needs: the owner of the tables and their partitions, with CREATE in their schemas.
local lock = require "lockkeeper"

local settings = {
  timezone = "UTC", -- says where a day begins
  tables = {
    -- this day's and seven more; what is older than 90 days is dropped, with all that is in it
    { name = "public.events", by = "day", ahead = 7, keep = 90 },
    { name = "public.invoices", by = "month", ahead = 2, keep = false }, -- nothing is ever dropped
  },
  patience = { timeout = "2s", attempts = 60, delay = "5s" }, -- half an hour at most
}

local STEP = { day = "1 day", month = "1 month" }
local SUFFIX = { day = '"_p"YYYYMMDD', month = '"_p"YYYYMM' }

local TABLE = [[
  select c.oid, n.nspname as schema, c.relname as name, pg_get_userbyid(c.relowner) as owner,
         exists (select from pg_inherits h join pg_class p on p.oid = h.inhrelid
                  where h.inhparent = c.oid
                    and pg_get_expr(p.relpartbound, p.oid) = 'DEFAULT') as has_default
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join pg_partitioned_table t on t.partrelid = c.oid
   where c.oid = to_regclass($1) and t.partstrat = 'r' and t.partnatts = 1]]

-- The bounds of its partitions; null where there is none (MINVALUE, MAXVALUE).
local BOUNDS = [[
  with bounds as (
    select n.nspname as schema, p.relname as name,
           substring(pg_get_expr(p.relpartbound, p.oid) from $$FROM \('([^']*)'\)$$)::timestamptz as lower,
           substring(pg_get_expr(p.relpartbound, p.oid) from $$TO \('([^']*)'\)$$)::timestamptz as upper
      from pg_inherits h
      join pg_class p on p.oid = h.inhrelid
      join pg_namespace n on n.oid = p.relnamespace
     where h.inhparent = $1 and pg_get_expr(p.relpartbound, p.oid) <> 'DEFAULT'
  )]]

local MISSING = BOUNDS .. [[
  select s::text as lower, (s + $3::interval)::text as upper, to_char(s, $5) as suffix
    from generate_series(date_trunc($2, now()), date_trunc($2, now()) + $4::int * $3::interval,
                         $3::interval) s
   where not exists (select from bounds b
                      where coalesce(b.lower, '-infinity') <= s
                        and coalesce(b.upper, 'infinity') >= s + $3::interval)
   order by s]]

local TOO_OLD = BOUNDS .. [[
  select schema, name from bounds
   where upper <= date_trunc($2, now()) - $4::int * $3::interval
   order by upper]]

-- What a run that was ended in the middle has left, known by its comment: tables that are detached and not
-- dropped, and, from PostgreSQL 14 on, partitions whose DETACH CONCURRENTLY was not completed.
local LEFT = [[
  select n.nspname as schema, c.relname as name, %s as pending
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_inherits h on h.inhrelid = c.oid
   where c.relkind in ('r', 'p') and obj_description(c.oid, 'pg_class') = $1
     and (h.inhrelid is null or %s)]]

local function mark_of(tbl)
  return ("was a partition of %s.%s, is to be dropped by lockkeeper"):format(tbl.schema, tbl.name)
end

local function left_by_earlier_runs(db, tbl)
  local pending = db.server_version >= 140000 and "coalesce(h.inhdetachpending, false)" or "false"
  return db:query(LEFT:format(pending, pending), mark_of(tbl))
end

-- ATTACH leaves readers and writers alone, where CREATE TABLE … PARTITION OF would lock them out. A table's
-- own settings (fillfactor, tablespace, grants) are not copied: add them here.
local function create(job, tbl, part)
  local name = tbl.name .. part.suffix
  job.db:retry(settings.patience, function(tx)
    tx:exec(tx:format("create table %I.%I (like %I.%I including defaults including constraints "
      .. "including generated including storage)", tbl.schema, name, tbl.schema, tbl.name))
    tx:exec(tx:format("alter table %I.%I owner to %I", tbl.schema, name, tbl.owner))
    tx:exec(tx:format("alter table %I.%I attach partition %I.%I for values from (%L) to (%L)",
      tbl.schema, tbl.name, tbl.schema, name, part.lower, part.upper))
  end)
  job:log("info", ("created %s.%s"):format(tbl.schema, name), { from = part.lower, to = part.upper })
end

local function drop(job, part)
  job.db:retry(settings.patience, function(tx)
    tx:exec(tx:format("drop table %I.%I", part.schema, part.name))
  end)
  job:log("info", ("dropped %s.%s"):format(part.schema, part.name))
end

-- It waits for all who use the table now, but nobody waits for it; so it may take its time. If that was not
-- enough, the next run completes it.
local function detach(job, tbl, part)
  local db = job.db
  db:retry(settings.patience, function(tx)
    tx:exec(tx:format("comment on table %I.%I is %L", part.schema, part.name, mark_of(tbl)))
  end)
  db:timeout("5m", function()
    db:exec(db:format("alter table %I.%I detach partition %I.%I concurrently", tbl.schema, tbl.name,
      part.schema, part.name))
  end)
end

local function complete_detach(job, tbl, part)
  job.db:retry(settings.patience, function(tx)
    tx:exec(tx:format("alter table %I.%I detach partition %I.%I finalize", tbl.schema, tbl.name,
      part.schema, part.name))
  end)
end

local function remove(job, tbl, part)
  if job.db.server_version >= 140000 and not tbl.has_default then
    detach(job, tbl, part)
  end
  drop(job, part)
end

local function remove_left(job, tbl, part)
  if part.pending then
    complete_detach(job, tbl, part)
  end
  drop(job, part)
end

-- What is to be done: the word under which it counts, how, and with which partitions.
local STEPS = {
  { word = "created", fn = create, find = function(db, tbl, spec)
    return db:query(MISSING, tbl.oid, spec.by, STEP[spec.by], spec.ahead, SUFFIX[spec.by])
  end },
  { word = "dropped", fn = remove_left, find = left_by_earlier_runs },
  { word = "dropped", fn = remove, find = function(db, tbl, spec)
    return spec.keep and db:query(TOO_OLD, tbl.oid, spec.by, STEP[spec.by], spec.keep) or {}
  end },
}

local function attend_to(job, spec, result)
  local tbl = job.db:one(TABLE, spec.name)
  if not tbl then
    error("there is no table of this name that is partitioned by range of one column", 0)
  end
  local first_error
  for _, step in ipairs(STEPS) do
    local list = step.find(job.db, tbl, spec)
    for i, part in ipairs(list) do
      local ok, err = pcall(step.fn, job, tbl, part)
      if ok then
        result[step.word] = result[step.word] + 1
      else
        job:log("warning", ("%s.%s: %s"):format(tbl.schema, part.name or part.suffix, err))
        first_error = first_error or err
      end
      job:progress(i, #list, spec.name)
      if not ok and err.busy then
        break -- the others would wait for the same
      end
    end
  end
  if first_error then
    error(first_error, 0)
  end
end

local function run(job)
  local result = { created = 0, dropped = 0 }
  local first_error
  for _, spec in ipairs(settings.tables) do
    local ok, err = pcall(attend_to, job, spec, result)
    if not ok then
      job:log("error", ("%s: %s"):format(spec.name, err))
      first_error = first_error or err
    end
  end
  job:log("info", "done", result)
  if first_error then
    error(first_error, 0)
  end
  return result
end

lock.job("partitions", {
  description = "Partitions made ahead of time, old ones dropped",
  schedule = "30 3 * * *",
  timezone = settings.timezone,
  policy = {
    max_run = "4h", lock_timeout = "10s",
    session = { search_path = "pg_catalog", timezone = settings.timezone, datestyle = "ISO" },
  },
  run = run,
})
