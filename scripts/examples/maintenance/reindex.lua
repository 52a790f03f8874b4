#!/usr/bin/env -S lockkeeper run
-- Rebuild indexes that are invalid or bloated, beside the work of the day (REINDEX CONCURRENTLY).
--
--   lockkeeper run reindex.lua        does nothing outside the window
--   lockkeeper run reindex.lua now    whatever the time is
--
-- First what a broken REINDEX CONCURRENTLY has left is dropped (…_ccnew, …_ccold: every write to the table
-- pays for it); then indexes that a CREATE INDEX CONCURRENTLY has left invalid are rebuilt; then B-trees
-- that are much larger than their entries need, the largest waste first. A table where another session
-- makes an index just now, or vacuums, is left alone. Each rebuild needs room for a second copy of its
-- index, and waits for the transactions that were there before it: a forgotten one makes it give up.
--
-- Needs: the tables' owner; from PostgreSQL 17 on MAINTAIN and SELECT on the tables will do for all but
-- dropping. The job fails, after its work, where there is something that its role may not do.
local lock = require "lockkeeper"

local settings = {
  window = "04:00-06:00",
  timezone = "UTC",
  schemas = {},                -- such as { "shop" }; none: all
  bloat = 0.4,                 -- rebuild where so much of an index is waste, by estimate …
  waste = 10 * 1024 * 1024,    -- … and the waste is so many bytes
  except = {},                 -- ["schema.index"] = true: where the estimate is wrong, see the warning below
  least_time = 60,             -- seconds that must be left for another index to be begun
}

-- Somebody who makes or rebuilds an index of the table, or vacuums it, holds this lock all the while.
local BUSY = [[
  exists (select from pg_locks l
           where l.relation = i.indrelid and l.mode = 'ShareUpdateExclusiveLock' and l.granted
             and l.database = (select oid from pg_database where datname = current_database())
             and l.pid <> pg_backend_pid())]]

local OURS = "(n.nspname !~ '^pg_' and (cardinality($1::text[]) = 0 or n.nspname = any ($1::text[])))"

local ALLOWED = [[
  case when current_setting('server_version_num')::int >= 170000 then has_table_privilege(t.oid, 'MAINTAIN')
       else pg_has_role(t.relowner, 'USAGE') end]]

-- A partitioned table's index is invalid while a partition lacks it: nothing to rebuild there.
local INVALID = ([[
  select n.nspname as schema, c.relname as name, c.relname ~ '_cc(new|old)[0-9]*$' as leftover,
         pg_has_role(t.relowner, 'USAGE') as owned, %s as allowed, %s as busy
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    join pg_class t on t.oid = i.indrelid
    join pg_namespace n on n.oid = c.relnamespace
   where not i.indisvalid and c.relkind = 'i' and %s
   order by leftover desc, c.oid]]):format(ALLOWED, BUSY, OURS)

-- What a B-tree needs: for each row a line pointer (4 bytes), a header (8, with a null 16) and the columns,
-- rounded up to 8; on each page 40 bytes are not for rows, and as much as fillfactor says stays free. How
-- many rows and pages there are was counted by the last VACUUM or ANALYZE; the columns' widths, by ANALYZE.
-- Many equal keys take less than that (deduplication): of an index that has them, waste goes unseen.
local BLOATED = ([[
  with btree as materialized (
    select i.indexrelid, i.indrelid, i.indkey, i.indnatts, n.nspname as schema, c.relname as name,
           t.relname as table_name, %s as allowed, c.reltuples, current_setting('block_size')::int8 as page,
           c.relpages * current_setting('block_size')::int8 as bytes,
           coalesce((select o.option_value::int from pg_options_to_table(c.reloptions) o
                      where o.option_name = 'fillfactor'), 90) / 100.0 as fill
      from pg_index i
      join pg_class c on c.oid = i.indexrelid
      join pg_class t on t.oid = i.indrelid
      join pg_namespace n on n.oid = c.relnamespace
      join pg_am m on m.oid = c.relam
     where i.indisvalid and c.relkind = 'i' and c.relpersistence <> 't' and m.amname = 'btree'
       and not i.indisexclusion and c.reltuples >= 0 and %s
  ), indexed as materialized ( -- an expression's statistics are kept under the index's name
    select b.indexrelid, b.indnatts, b.schema as schemaname, coalesce(ta.attname, a.attname) as attname,
           case when ta.attnum is null then b.name else b.table_name end as tablename
      from btree b
      join pg_attribute a on a.attrelid = b.indexrelid
      left join pg_attribute ta on ta.attrelid = b.indrelid and ta.attnum = b.indkey[a.attnum - 1]
     where b.bytes >= $2
  ), columns as materialized (
    select schemaname, tablename, attname, avg_width, null_frac from pg_stats where not inherited
  ), entry as (
    select c.indexrelid, sum(s.avg_width * (1 - s.null_frac)) as width, max(s.null_frac) as nulls
      from indexed c
      join columns s using (schemaname, tablename, attname)
     group by c.indexrelid, c.indnatts
    having count(*) = c.indnatts
  ), size as (
    select b.*, b.page + b.page * ceil(b.reltuples * (12 + 8 * e.nulls + 8 * ceil(e.width / 8))
                                       / ((b.page - 40) * b.fill)) as needed
      from btree b
      join entry e using (indexrelid)
  )
  select i.schema, i.name, i.allowed, i.bytes, (i.bytes - i.needed)::int8 as waste, %s as busy
    from size i
   where i.bytes - i.needed >= $2 and i.bytes - i.needed >= $3 * i.bytes
   order by waste desc, i.indexrelid]]):format(ALLOWED, OURS, BUSY)

-- A rebuild does not outlast the window.
local function end_statements_in(db, seconds)
  local ms = math.max(math.min(seconds, 86400) * 1000 // 1, 1)
  db:value("select set_config('statement_timeout', $1, false)", ("%d"):format(ms))
end

-- What is to be done, in order: rows with `name` as "schema.index" for people and `what` is wrong with it.
local function todo(db)
  local schemas = lock.array(settings.schemas)
  local list = db:query(INVALID, schemas)
  for _, index in ipairs(list) do
    index.what = index.leftover and "left by a broken REINDEX" or "invalid"
    index.allowed = index.allowed and (index.owned or not index.leftover)
  end
  for _, index in ipairs(db:query(BLOATED, schemas, settings.waste, settings.bloat)) do
    index.what = ("%d%% bloat"):format(index.waste * 100 // index.bytes)
    list[#list + 1] = not settings.except[index.schema .. "." .. index.name] and index or nil
  end
  return list
end

local function drop(job, index)
  local db = job.db
  end_statements_in(db, 60)
  db:timeout("10s", function()
    db:exec(db:format("drop index concurrently if exists %I.%I", index.schema, index.name))
  end)
  job:log("info", ("dropped %s.%s"):format(index.schema, index.name))
end

local function rebuild(job, index)
  local db, name = job.db, index.schema .. "." .. index.name
  end_statements_in(db, job:time_left())
  db:exec(db:format("reindex index concurrently %I.%I", index.schema, index.name))
  local bytes = db:value([[
    select c.relpages * current_setting('block_size')::int8
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = $1 and c.relname = $2]], index.schema, index.name)
  job:log("info", "rebuilt " .. name, { was = index.what, bytes_before = index.bytes, bytes = bytes })
  if index.waste and index.bytes - bytes < index.waste // 2 then
    job:log("warning", ("%s is as large as before: add it to settings.except"):format(name))
  end
end

-- One index; gives the word under which it counts, and what is wrong, if anything is.
local function attend_to(job, index)
  local name = index.schema .. "." .. index.name
  if not index.allowed then
    local problem = ("%s is to be seen to (%s), and this role may not do it"):format(name, index.what)
    job:log("error", problem)
    return "not_allowed", problem
  elseif index.busy then
    job:log("info", ("%s (%s) is left: another session is at work on its table"):format(name, index.what))
    return "busy"
  elseif job:time_left() < settings.least_time then
    return "not_reached"
  end
  local ok, err = pcall(index.leftover and drop or rebuild, job, index)
  if ok then
    return index.leftover and "dropped" or "rebuilt"
  elseif err.busy then
    job:log("warning", ("%s (%s) is left: another transaction was in the way"):format(name, index.what))
    return "busy"
  elseif err.sqlstate == "57014" and job:time_left() < 1 then
    job:log("info", ("%s (%s) was not finished in time"):format(name, index.what))
    return "not_reached"
  end
  job:log("error", ("%s (%s): %s"):format(name, index.what, err), { detail = err.detail })
  return "failed", err
end

-- A rebuild that did not get to its end has left an index of its own.
local function clean_up(job)
  for _, index in ipairs(job.db:query(INVALID, lock.array(settings.schemas))) do
    if index.leftover and index.owned and not index.busy then
      local ok, err = pcall(drop, job, index)
      if not ok then
        job:log("warning", ("%s.%s is left for the next time: %s"):format(index.schema, index.name, err))
      end
    end
  end
end

local function run(job)
  local result = { dropped = 0, rebuilt = 0, busy = 0, not_reached = 0, not_allowed = 0, failed = 0 }
  local first_error
  local indexes = todo(job.db)
  for i, index in ipairs(indexes) do
    local name = index.schema .. "." .. index.name
    job:progress(i - 1, #indexes, name)
    local word, err = attend_to(job, index)
    result[word] = result[word] + 1
    first_error = first_error or err
    job:progress(i, #indexes, name)
  end
  if result.rebuilt + result.dropped < #indexes then
    clean_up(job)
  end
  job:log("info", #indexes == 0 and "nothing to do" or "done", result)
  if first_error then
    error(first_error, 0)
  end
  return result
end

lock.job("reindex", {
  description = "REINDEX CONCURRENTLY of invalid and bloated indexes",
  schedule = "0 4 * * 0",
  window = ... ~= "now" and settings.window or nil,
  timezone = settings.timezone,
  -- shared with vacuum.lua: both at once would only wait for each other
  guards = { lock.guard.advisory("maintenance") },
  policy = {
    timeout = "30m", on_busy = "skip", max_run = "4h",
    lock_timeout = "5m", -- for the transactions that were there before: readers and writers go on
    session = { search_path = "pg_catalog" },
  },
  run = run,
})
