--- runner.md 20 and 22: kill -9 of a supervisor. Its workers and their commands are gone within a second,
--- another host finds the runs lost within 15 s and tries again those whose policy says so.

local hosts = require "tests.faults.hosts"
local process = require "tests.support.process"
local t = require "tests.support"
local witness = require "tests.faults.witness"

local M = {}

local GONE = 1   -- seconds
local FOUND = 15

-- Does not end by SIGTERM.
local STUBBORN = [[function(job)
      job:sh { "sh", "-c", "trap '' TERM; while :; do sleep 0.01; done" }
    end]]

---@param long boolean  five deaths instead of one
---@return string[] problems
function M.play(long)
  local server = t.start_server()
  local problems = {}
  witness.prepare(server)
  local endless = { schedule = "@start", seconds = 600 }
  local files = { t.tempfile(witness.file(
    witness.job("tried again", { schedule = "@start", seconds = 600,
      policy = { retry = { attempts = 9, delay = 0 } } }),
    witness.job("given up", endless),
    witness.job("command", { schedule = "@start", seconds = 0.01, policy = { grace = "5s" },
      after_work = STUBBORN })), "jobs.lua") }

  local function start()
    local host = hosts.start { files = files, server = server, witness = server }
    hosts.await_serving(host)
    return host
  end

  -- How many runs a supervisor has at work, by the tables.
  local function at_work(host, job)
    return tonumber(server:psql(([[
      select count(*) from lockkeeper.run
       where state = 'running' and runner = '%s' and job like '%s']]):format(
      host:stderr():match("runner=(%S+)"), job or "%")))
  end

  -- What of a dead supervisor's family lives on.
  local function await_gone(family)
    local alive
    pcall(t.wait_until, function()
      alive = {}
      for _, pid in ipairs(family) do
        if process.is_alive(pid) then
          alive[#alive + 1] = ("%d lives on: %s"):format(pid, process.command_line(pid))
        end
      end
      return #alive == 0
    end, GONE)
    table.move(alive, 1, #alive, #problems + 1, problems)
  end

  local first = start()
  t.wait_until(function() return at_work(first) == 3 end, 20, "three runs at work")
  for _ = 1, long and 5 or 1 do
    local second = start()
    local family = hosts.family(first:pid())
    local killed = t.now()
    first:signal("KILL")
    await_gone(family)
    local found = pcall(t.wait_until, function() return at_work(first) == 0 end, FOUND - (t.now() - killed))
    local again = pcall(t.wait_until, function() return at_work(second, "tried again") == 1 end, FOUND)
    if not found or not again then
      problems[#problems + 1] = ("%s: %s"):format(found and "not tried again" or "not found lost within 15 s",
        witness.tally(server))
    end
    first:wait()
    first = second
  end
  if server:psql("select count(*) from lockkeeper.run where job <> 'tried again' and attempt > 1") ~= "0" then
    problems[#problems + 1] = "what is not to be tried again was"
  end
  first:signal("TERM")
  t.wait_until(function() return first:stderr():find('msg="ending', 1, true) end, 10, "a word of the drain")
  first:signal("TERM")
  first:wait()
  for _, problem in ipairs(witness.check(server)) do
    problems[#problems + 1] = problem
  end
  server:stop()
  return problems
end

return M
