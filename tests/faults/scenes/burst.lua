--- A thousand jobs due at once and four workers, above a hundred thousand rows of history: each slot is done
--- once, quickly, and a job beside them is on time.

local hosts = require "tests.faults.hosts"
local process = require "tests.support.process"
local t = require "tests.support"
local witness = require "tests.faults.witness"

local M = {}

local LATE = 1.0       -- seconds from due to done, for a job alone above all that history
local MEMORY_MB = 100
local RATE = 100       -- runs a second, on a loaded machine

---@param long boolean
---@return string[] problems
function M.play(long)
  local count, history = long and 1000 or 100, long and 100000 or 10000
  local server = t.start_server()
  local problems = {}
  witness.prepare(server)
  local text = {}
  for i = 1, count do
    text[i] = ("lock.job('burst %d', { schedule = '@start', run = function(job) end })"):format(i)
  end
  text[#text + 1] = "lock.job('steady', { every = '1s', run = function(job) end })"
  local files = { t.tempfile('local lock = require "lockkeeper"\n' .. table.concat(text, "\n"), "jobs.lua") }
  assert(t.run("init", { env = { DATABASE_URL = server:conninfo() } }) == 0)
  server:psql(([[
    insert into lockkeeper.run (job, origin, slot, state, due_at, ended_at, runner)
    select 'burst ' || i %% %d, 'trigger', at, 'succeeded', at, at, gen_random_uuid()
      from generate_series(1, %d) i, lateral (select now() - make_interval(secs => i) as at) a;
    analyze]]):format(count, history))
  local host = hosts.start { files = files, server = server, witness = server,
    args = { "--workers", "4", "--warm", "4", "--keep-runs", "1000000" } }
  hosts.await_serving(host)
  local begun = t.now()
  local done = "select count(*) from lockkeeper.run where origin = 'start' and state = 'succeeded'"
  pcall(t.wait_until, function()
    t.sleep(0.2)
    return tonumber(server:psql(done)) == count
  end, 120)
  local seconds = t.now() - begun
  if count / seconds < RATE then
    problems[1] = ("%d empty jobs took 4 warm workers %.1f s above %d rows: %.0f a second"):format(count,
      seconds, history, count / seconds)
  end
  local function expect(what, sql, wanted)
    local got = server:psql(sql)
    if got ~= wanted then
      problems[#problems + 1] = ("%s: %s, not %s"):format(what, got, wanted)
    end
  end
  expect("runs done", done, tostring(count))
  expect("runs at all", "select count(*) from lockkeeper.run where origin = 'start'", tostring(count))
  expect("claimed more than once", "select count(*) from lockkeeper.run where claims > 1", "0")
  local since = server:psql("select clock_timestamp()")
  t.sleep(long and 10 or 3)
  expect("steady runs that are late", ([[select count(*) from lockkeeper.run
    where job = 'steady' and slot > '%s' and slot < now() - interval '2 seconds'
      and (state <> 'succeeded' or ended_at > slot + make_interval(secs => %f))]]):format(since, LATE), "0")
  local status = process.read_file(("/proc/%d/status"):format(host:pid()))
  local memory = tonumber(status:match("VmRSS:%s*(%d+)")) / 1024
  if memory > MEMORY_MB then
    problems[#problems + 1] = ("the supervisor has %.0f MB"):format(memory)
  end
  hosts.stop(host)
  server:stop()
  return problems
end

return M
