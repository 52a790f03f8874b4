--- runner.md 9: no host ran for an hour. With catchup "last" the newest missed slot runs, with "all" each in
--- order, with "none" none; each has its row.

local hosts = require "tests.faults.hosts"
local t = require "tests.support"
local witness = require "tests.faults.witness"

local M = {}

local MISSED = 30

---@return string[] problems
function M.play()
  local server = t.start_server()
  local problems = {}
  witness.prepare(server)
  local jobs = {}
  for _, catchup in ipairs { "last", "all", "none" } do
    jobs[#jobs + 1] = witness.job(catchup, { every = "2m", catchup = catchup, seconds = 0.01 })
  end
  local files = { t.tempfile(witness.file(table.unpack(jobs)), "jobs.lua") }
  local function serve(until_sql)
    local host = hosts.start { files = files, server = server, witness = server, args = { "--warm", "2" } }
    hosts.await_serving(host)
    t.wait_until(function() return server:psql(until_sql) == "t" end, 60, until_sql)
    witness.await_over(server, 60)
    hosts.stop(host)
  end
  serve("select count(*) = 3 from lockkeeper.job")
  -- The hosts went away an hour ago, after a slot of each.
  server:psql([[
    update lockkeeper.job set schedule_since = schedule_since - interval '2 hours';
    insert into lockkeeper.run (job, origin, slot, state, ended_at)
    select name, 'schedule', to_timestamp(floor(extract(epoch from now()) / 120) * 120 - 3600 + off),
           'succeeded', now()
      from (select name, coalesce((select extract(epoch from slot)::int8 % 120 from lockkeeper.run r
              where r.job = j.name order by slot limit 1), 0) as off from lockkeeper.job j) o]])
  serve([[select count(*) > 20 from lockkeeper.run where job = 'all' and state = 'succeeded']])
  local function count(job, what)
    return tonumber(server:psql(([[select count(*) from lockkeeper.run
      where id in (select run from public.witness) and job = '%s' and %s]]):format(job, what)))
  end
  if server:psql("select count(*) from lockkeeper.runner") ~= "0" then
    problems[#problems + 1] = "a runner that has ended in order has left its row"
  end
  local missed = "started_at > slot + interval '2 seconds'"
  for job, expected in pairs { last = { 0, 1 }, none = { 0, 0 }, all = { MISSED - 2, MISSED + 1 } } do
    local got = count(job, missed)
    if got < expected[1] or got > expected[2] then
      problems[#problems + 1] = ("catchup %s: %d missed slots were run"):format(job, got)
    end
  end
  local order = server:psql([[select count(*) from (
    select slot, lag(slot) over (order by started_at) as before from lockkeeper.run
     where job = 'all' and started_at is not null) r where before > slot]])
  if order ~= "0" then
    problems[#problems + 1] = "catchup all: not in the order of the slots"
  end
  for _, problem in ipairs(witness.check(server)) do
    if not problem:find("^not seen") then -- the planted ones
      problems[#problems + 1] = problem
    end
  end
  server:stop()
  return problems
end

return M
