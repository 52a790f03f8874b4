--- A witness of what jobs did, whatever the runner says: each job writes to a table on a session of its own,
--- which no guard is on, at its start, every 10 ms and at its end. The time is the server's, so that it does
--- not matter which host wrote.
---
---   witness.prepare(server)                           makes the table
---   hosts.file(witness.job(name, { … }), …)           jobs that write to it
---   witness.check(server) -> list of words            what went wrong; an empty list: nothing

local sandbox = require "tests.support.sandbox"

local M = {}

local TABLE = [[
create table public.witness (
  id int8 generated always as identity,
  run int8 not null,
  job text not null,
  slot float8 not null,
  attempt int4 not null,
  fence int8,
  alone text not null,
  what text not null check (what in ('start', 'mark', 'end')),
  at timestamptz not null default clock_timestamp()
);
comment on column public.witness.alone is 'no two runs with the same are at work at once';
create index on public.witness (job, run);
]]

--- The beginning of a job file: `witnessed(seconds, fn, alone)` makes a job's function, which is at work for
--- so long, then calls fn(job); no other run with the same `alone` (default: the job's name) is at work then.
M.PRELUDE = [[
local lock = require "lockkeeper"
local INSERT = "insert into public.witness (run, job, slot, attempt, fence, alone, what) "
  .. "values ($1, $2, $3, $4, $5, $6, $7)"
local function witnessed(seconds, fn, alone)
  return function(job)
    local own <close> = lock.connect { conninfo = os.getenv "WITNESS_URL" .. " application_name=witness" }
    local function write(what)
      own:exec(INSERT, job.run_id, job.name, job.slot, job.attempt, job.fence, alone or job.name, what)
    end
    write "start"
    for _ = 1, seconds * 100 do
      lock.sleep(0.01)
      write "mark"
    end
    local result
    if fn then
      result = fn(job)
    end
    write "end"
    return result
  end
end
]]

local function value_text(value)
  if type(value) == "table" then
    local parts = {}
    for key, part in pairs(value) do
      parts[#parts + 1] = (type(key) == "string" and key .. " = " or "") .. value_text(part)
    end
    return "{ " .. table.concat(parts, ", ") .. " }"
  end
  if type(value) ~= "string" then
    return tostring(value)
  end
  return value:match("^=(.*)") or ("%q"):format(value)
end

--- The text of a witnessed job.
---@param name string
---@param definition table  keys of lock.job, and `seconds` that it is at work (default 0.2), `after_work`:
---                         the text of a function that is called then, `alone`; values that begin with "="
---                         are Lua
---@return string
function M.job(name, definition)
  local lines = { ("lock.job(%q, {"):format(name) }
  for key, value in pairs(definition) do
    if key ~= "seconds" and key ~= "after_work" and key ~= "alone" then
      lines[#lines + 1] = ("  %s = %s,"):format(key, value_text(value))
    end
  end
  lines[#lines + 1] = ("  run = witnessed(%s, %s, %s),\n})"):format(definition.seconds or 0.2,
    definition.after_work or "nil", definition.alone and ("%q"):format(definition.alone) or "nil")
  return table.concat(lines, "\n")
end

--- A job file's text.
---@param ... string  jobs
---@return string
function M.file(...)
  return M.PRELUDE .. table.concat({ ... }, "\n") .. "\n"
end

---@param server Server
function M.prepare(server)
  server:psql(TABLE)
end

--- Empty the witness and the runner's tables.
---@param server Server
function M.clear(server)
  server:psql("truncate public.witness; drop schema if exists lockkeeper cascade")
end

-- Each gives a text a row. `span` is what the witness saw of each run.
local SPAN = [[
with span as (
  select run, job, slot, attempt, alone, max(fence) as fence, min(at) as first, max(at) as last,
         count(*) filter (where what = 'start') as starts, count(*) filter (where what = 'end') as ends
    from public.witness group by run, job, slot, attempt, alone)
]]

--- Derived from the witness alone.
local SEEN = {
  -- Two runs of a job, or under the same guard, at work at once.
  [[select format('overlap: runs %s and %s of %s were at work at once for %s ms from %s', a.run, b.run,
           a.alone, round(1000 * extract(epoch from least(a.last, b.last) - greatest(a.first, b.first)), 1),
           greatest(a.first, b.first))
      from span a join span b on a.alone = b.alone and a.run < b.run
       and a.first <= b.last and b.first <= a.last]],
  -- One slot done twice.
  [[select format('double slot: %s has begun %s times for %s (attempt %s), in runs %s', job, sum(starts),
           to_timestamp(slot), attempt, string_agg(run::text, ', ' order by run))
      from span group by job, slot, attempt having sum(starts) > 1 or count(*) > 1]],
  -- Fences follow the order of the runs.
  [[select format('fence: run %s of %s has fence %s, run %s after it has %s', run, job, fence,
           next_run, next_fence)
      from (select *, lead(run) over w as next_run, lead(fence) over w as next_fence from span
            window w as (partition by job order by first)) s
     where next_fence <= fence]],
}

--- The witness against the runner's history, once all runs are over.
local TOLD = {
  [[select format('not over: run %s of %s is %s', id, job, state)
      from lockkeeper.run where state in ('due', 'claimed', 'running')]],
  [[select format('unknown: the witness saw run %s of %s, which has no row', s.run, s.job)
      from span s where not exists (select from lockkeeper.run r where r.id = s.run and r.job = s.job)]],
  [[select format('another slot: the witness saw run %s of %s for another slot than its row has', s.run,
           s.job)
      from span s join lockkeeper.run r on r.id = s.run
     where abs(extract(epoch from r.slot)::float8 - s.slot) > 0.000001 or r.attempt <> s.attempt]],
  [[select format('not seen: run %s of %s has succeeded, and the witness saw %s', r.id, r.job,
           case when s.run is null then 'nothing of it' else 'it not to its end' end)
      from lockkeeper.run r left join span s on s.run = r.id
     where r.state = 'succeeded' and s.ends is distinct from 1
       and exists (select from public.witness w where w.job = r.job)]],
  [[select format('seen: run %s of %s is %s (%s), and the witness saw it at work', r.id, r.job, r.state,
           r.reason)
      from lockkeeper.run r join span s on s.run = r.id where r.state = 'skipped']],
}

-- Slots of a grid: none is missing between the first and the last of a job.
local GRID = [[
select format('no row: %s has no run for any slot between %s and %s', job, before, slot)
  from (select job, slot, lag(slot) over (partition by job order by slot) as before
          from lockkeeper.run where origin = 'schedule' and attempt = 1 and job ~ '{jobs}') r
 where slot - before <> make_interval(secs => {seconds})]]

-- What the statements find, in their order. One psql for all: each costs a process.
local function found_by(server, statements)
  local found = {}
  for line in server:psql(table.concat(statements, " order by 1;\n") .. " order by 1;\n"):gmatch("[^\n]+") do
    found[#found + 1] = line
  end
  return found
end

local function with_span(into, list)
  for _, sql in ipairs(list) do
    into[#into + 1] = SPAN .. sql
  end
end

--- What the witness alone shows: overlaps, double slots, fences out of order.
---@param server Server
---@return string[]
function M.seen(server)
  local statements = {}
  with_span(statements, SEEN)
  return found_by(server, statements)
end

--- All of it: what the witness shows, and where the runner's history tells otherwise.
---@param server Server
---@param grids? table<string, number>  a pattern of jobs' names to the seconds between their slots
---@return string[]
function M.check(server, grids)
  local statements = {}
  with_span(statements, SEEN)
  with_span(statements, TOLD)
  for pattern, seconds in pairs(grids or {}) do
    statements[#statements + 1] = (GRID:gsub("{(%w+)}", { jobs = pattern, seconds = seconds }))
  end
  return found_by(server, statements)
end

--- Wait until no run is due or at work; says whether it came to that.
---@param server Server
---@param seconds number
---@return boolean
function M.await_over(server, seconds)
  local deadline = sandbox.now() + seconds
  local sql = "select count(*) from lockkeeper.run where state in ('due', 'claimed', 'running')"
  while server:psql(sql) ~= "0" do
    if sandbox.now() > deadline then
      return false
    end
    sandbox.sleep(0.05)
  end
  return true
end

--- How many runs of the history are in which state: "succeeded 12, lost 1".
---@param server Server
---@return string
function M.tally(server)
  return server:psql([[select string_agg(s, ', ' order by s) from (
    select state || coalesce(' (' || reason || ')', '') || ' ' || count(*) as s
      from lockkeeper.run group by state, reason) t]])
end

return M
