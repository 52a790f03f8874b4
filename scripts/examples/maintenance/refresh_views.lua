#!/usr/bin/env -S lockkeeper run
-- Refresh materialized views, each after those that it reads.
--
--   lockkeeper run refresh_views.lua
--
-- CONCURRENTLY where a unique index of the view allows it: then it can be read all the while. Without one,
-- readers wait while it is refreshed; to get at it the refresh waits two seconds only, so that nobody waits
-- longer behind it, and comes again. Where a view can't be refreshed, those that read it are left as they
-- were.
--
-- Needs: the views' owner; from PostgreSQL 17 on MAINTAIN on the views will do.
local lock = require "lockkeeper"

local settings = {
  schemas = {}, -- such as { "reports" }; none: all
  patience = { timeout = "2s", attempts = 10, delay = "5s" }, -- for each view
}

-- In the order in which they are refreshed: whoever reads another has more sources than that. `sources` are
-- the materialized views that one reads, also by way of plain views; what a function reads is not known.
local VIEWS = [[
  with recursive step as (
    select distinct r.ev_class as view, d.refobjid as source
      from pg_rewrite r
      join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
                      and d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
      join pg_class s on s.oid = d.refobjid and s.relkind in ('v', 'm')
  ), reads as (
    select view, source from step
    union
    select reads.view, step.source from reads join step on step.view = reads.source
  )
  select c.oid, n.nspname as schema, c.relname as name, s.sources,
         c.relispopulated and exists (
           select from pg_index i
            where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indimmediate
              and i.indpred is null and i.indexprs is null) as concurrently
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
   cross join lateral (
           select array(select m.oid from reads join pg_class m on m.oid = reads.source
                         where reads.view = c.oid and m.relkind = 'm') as sources) s
   where c.relkind = 'm' and (cardinality($1::text[]) = 0 or n.nspname = any ($1::text[]))
   order by cardinality(s.sources), n.nspname, c.relname]]

local function refresh(job, view)
  local concurrently = view.concurrently and "concurrently" or ""
  local begun = os.time()
  job.db:retry(settings.patience, function(tx)
    tx:exec(tx:format("refresh materialized view %s %I.%I", concurrently, view.schema, view.name))
  end)
  job:log("info", ("refreshed %s.%s"):format(view.schema, view.name),
    { concurrently = view.concurrently, seconds = os.time() - begun })
end

-- The first of its sources that could not be refreshed.
local function stale_source(view, stale)
  for _, oid in ipairs(view.sources) do
    if stale[oid] then
      return stale[oid]
    end
  end
end

local function run(job)
  local result = { refreshed = 0, left = 0, failed = 0 }
  local stale, first_error = {}, nil
  local views = job.db:query(VIEWS, lock.array(settings.schemas))
  for i, view in ipairs(views) do
    local name = view.schema .. "." .. view.name
    local source = stale_source(view, stale)
    job:progress(i - 1, #views, name)
    if source then
      result.left = result.left + 1
      job:log("warning", ("%s is left as it was: it reads %s"):format(name, source))
    else
      local ok, err = pcall(refresh, job, view)
      local word = ok and "refreshed" or "failed"
      result[word] = result[word] + 1
      if not ok then
        job:log("error", ("%s: %s"):format(name, err))
        stale[view.oid], first_error = name, first_error or err
      end
    end
    job:progress(i, #views, name)
  end
  job:log("info", "done", result)
  if first_error then
    error(first_error, 0)
  end
  return result
end

lock.job("refresh-views", {
  description = "Materialized views, in the order in which they read each other",
  schedule = "0 * * * *",
  policy = {
    max_run = "50m",
    -- Functions that a view calls find their tables by this, too (from PostgreSQL 17 on they do anyway).
    session = { search_path = "pg_catalog" },
  },
  run = run,
})
