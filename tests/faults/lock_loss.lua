-- How long a job goes on after the session that holds its lock has ended, at every place where a job can
-- be (runner.md 17): Lua and SQL stop within 100 ms, commands within their grace.
--
-- Usage, from the source's folder:
--   LOCKKEEPER_BIN=build/lockkeeper build/lockkeeper run tests/faults/lock_loss.lua [ROUNDS]
-- Prints a line a place: rounds, median and largest, in milliseconds. Exit code 1 where one was late.
package.path = "./?.lua;" .. package.path
local lock = require "lockkeeper"
local places = require "tests.support.places"
local t = require "tests.support"

local ROUNDS = tonumber(arg[1]) or 20
local LUA_MS = 100
local GRACE_MS = 300
local KEY = lock.key("job:watched")

local function round(place)
  local path = t.tempdir() .. "/marks"
  local child = t.lockkeeper("run", t.tempfile(places.file(place, path), "job.lua"))
  t.wait_until(function() return places.last_mark(path) end, "the job's first mark")
  local pid = t.holders_of(KEY)[1]
  t.sleep(0.02 + math.random() * 0.05)
  local ended = tonumber(t.observe(
    ("select extract(epoch from clock_timestamp()) from pg_terminate_backend(%d)"):format(pid)))
  local code = child:wait(10)
  if code ~= 125 then
    error(("%s: exit code %d instead of 125\n%s"):format(place.name, code, child:stderr()), 0)
  end
  return math.max(0, (places.last_mark(path) - ended) * 1000)
end

local late = false
local holder = t.connect()
holder:advisory("held elsewhere")
print(("%-48s %6s %9s %9s"):format("place", "rounds", "median", "largest"))
for _, place in ipairs(places) do
  local times = {}
  for i = 1, ROUNDS do
    times[i] = round(place)
  end
  table.sort(times)
  local bound = LUA_MS + (place.command and GRACE_MS or 0)
  late = late or times[#times] > bound
  print(("%-48s %6d %6.1f ms %6.1f ms%s"):format(place.name, ROUNDS, times[(#times + 1) // 2], times[#times],
    times[#times] > bound and "  LATE" or ""))
end
holder:close()
t.server:stop()
os.exit(not late)
