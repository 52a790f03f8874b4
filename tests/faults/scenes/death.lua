--- runner.md 20 and 22: kill -9 of a supervisor. Its workers and their commands are gone within a second, another
--- host finds the runs lost within 15 s and tries again those whose policy says so.

local hosts = require "tests.faults.hosts"
local process = require "tests.support.process"
local t = require "tests.support"
local witness = require "tests.faults.witness"

local M = {}

local GONE = 1   -- seconds
local FOUND = 15

---@param long boolean  five deaths instead of one
---@return string[] problems
function M.play(long)
  local server = t.start_server()
  local problems = {}
  witness.prepare(server)
  local files = { t.tempfile(witness.file(
    witness.job("tried again", { schedule = "@start", seconds = 600, policy = { retry = { attempts = 9, delay = 0 } } }),
    witness.job("given up", { schedule = "@start", seconds = 600 }),
    witness.job("command", { schedule = "@start", seconds = 0.01, policy = { grace = "5s" },
      after_work = [[function(job)
        job:sh { "sh", "-c", "trap '' TERM; while :; do sleep 0.01; done" }
      end]] })), "jobs.lua") }
  local function start()
    local host = hosts.start { files = files, server = server, witness = server }
    hosts.await_serving(host)
    return host
  end
  local first, second = start(), nil
  local function at_work(host)
    return ("select count(*) from lockkeeper.run where state = 'running' and host is not null and runner::text = '%s'")
      :format(host:stderr():match("runner=(%S+)"))
  end
  t.wait_until(function() return server:psql(at_work(first)) == "3" end, 20, "three runs at work")
  for _ = 1, long and 5 or 1 do
    second = start()
    t.sleep(0.3)
    local family = hosts.family(first:pid())
    local killed = t.now()
    first:signal("KILL")
    first:wait()
    local ok = pcall(t.wait_until, function()
      for _, pid in ipairs(family) do
        if process.is_alive(pid) then
          return false
        end
      end
      return true
    end, GONE)
    if not ok then
      for _, pid in ipairs(family) do
        if process.is_alive(pid) then
          problems[#problems + 1] = ("%d lives on: %s"):format(pid, process.command_line(pid))
        end
      end
    end
    ok = pcall(t.wait_until, function()
      return server:psql([[select count(*) filter (where state = 'lost') >= 1 and count(*) filter (
          where state = 'running') >= 1 from lockkeeper.run where job = 'tried again']]) == "t"
        and server:psql("select count(*) > 0 from lockkeeper.run where state = 'lost' and ended_at < now()") == "t"
    end, FOUND)
    if not ok then
      problems[#problems + 1] = "not lost and tried again within 15 s: " .. witness.tally(server)
    end
    local slowest = tonumber(server:psql(
      "select coalesce(extract(epoch from max(ended_at) - min(ended_at)), 0) from lockkeeper.run where state = 'lost'"))
    if not long and slowest > FOUND then
      problems[#problems + 1] = ("found lost after %.1f s"):format(t.now() - killed)
    end
    first = second
  end
  if server:psql("select count(*) from lockkeeper.run where job <> 'tried again' and attempt > 1") ~= "0" then
    problems[#problems + 1] = "what is not to be tried again was"
  end
  second:signal("TERM")
  second:signal("TERM")
  second:wait()
  witness.await_over(server, 20)
  for _, problem in ipairs(witness.check(server)) do
    problems[#problems + 1] = problem
  end
  server:stop()
  return problems
end

return M
