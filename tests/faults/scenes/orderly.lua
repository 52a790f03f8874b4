--- runner.md 23 and 24: SIGTERM lets runs finish and claims no more; a second one cancels them; a broken file
--- keeps its old jobs, a mended one changes them; nothing of it does a slot twice.

local hosts = require "tests.faults.hosts"
local process = require "tests.support.process"
local t = require "tests.support"
local witness = require "tests.faults.witness"

local M = {}

---@return string[] problems
function M.play()
  local server = t.start_server()
  local problems = {}
  witness.prepare(server)
  local files = { t.tempdir() .. "/jobs.lua" }
  local steady = witness.job("steady", { every = "1s", seconds = 0.1 })
  local function write(text)
    process.write_file(files[1], text)
  end
  local function count(what)
    return tonumber(server:psql("select count(*) from lockkeeper.run where " .. what))
  end
  local function await(what, sql)
    if not pcall(t.wait_until, function() return count(sql) > 0 end, 20) then
      problems[#problems + 1] = what .. ": " .. witness.tally(server)
    end
  end
  local function start()
    local host = hosts.start { files = files, server = server, witness = server, args = { "--drain", "20s" } }
    hosts.await_serving(host)
    return host
  end
  write(witness.file(steady, witness.job("long", { schedule = "@start", seconds = 3 })))
  local host = start()
  await("the long job does not begin", "job = 'long' and state = 'running'")
  write("this is no Lua\n" .. witness.file(steady))
  host:signal("HUP")
  t.wait_until(function() return host:stderr():find("faults=1", 1, true) end, 10, "a word of the fault")
  local newest = server:psql("select coalesce(max(id), 0) from lockkeeper.run")
  await("a broken file does not keep its jobs", "job = 'steady' and state = 'succeeded' and id > " .. newest)
  -- It ends when the long one has.
  host:signal("TERM")
  local asked = server:psql("select clock_timestamp()")
  if host:wait(25) ~= 0 then
    problems[#problems + 1] = "SIGTERM: code " .. host:code()
  end
  if count("job = 'long' and state = 'succeeded'") ~= 1 then
    problems[#problems + 1] = "SIGTERM has not let a run finish: " .. witness.tally(server)
  end
  if count(("claimed_at > timestamptz '%s' + interval '0.5 s'"):format(asked)) > 0 then
    problems[#problems + 1] = "a run was claimed while it was to end"
  end
  -- Another cancels at the second signal.
  write(witness.file(steady, witness.job("endless", { schedule = "@start", seconds = 600 })))
  host = start()
  await("the endless job does not begin", "job = 'endless' and state = 'running'")
  host:signal("TERM")
  t.wait_until(function() return host:stderr():find("msg=\"ending", 1, true) end, 10, "a word of the drain")
  local told = t.now()
  host:signal("TERM")
  if host:wait(25) ~= 0 or t.now() - told > 8 then
    problems[#problems + 1] = ("a second SIGTERM: code %d after %.1f s"):format(host:code(), t.now() - told)
  end
  if count("job = 'endless' and state = 'cancelled'") ~= 1 then
    problems[#problems + 1] = "a second SIGTERM: the run is not cancelled: " .. witness.tally(server)
  end
  if count("state in ('claimed', 'running')") > 0 then
    problems[#problems + 1] = "a supervisor that has ended in order has left runs behind"
  end
  for _, problem in ipairs(witness.check(server, { ["^steady"] = 1 })) do
    if not problem:find("^not over: .* is due$") then
      problems[#problems + 1] = problem
    end
  end
  server:stop()
  return problems
end

return M
