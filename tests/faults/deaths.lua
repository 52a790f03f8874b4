--- One death at one statement: see statements.lua.

local hosts = require "tests.faults.hosts"
local process = require "tests.support.process"
local t = require "tests.support"
local wire = require "tests.faults.wire"
local witness = require "tests.faults.witness"

local M = {}

local QUIET = 7 -- seconds without the statement: there are no more of them
local OVER = 30

---@class Series
---@field name string
---@field when "before"|"after"
---@field of_workers boolean  whose statements count: the workers', or the supervisor's own
---@field itself boolean      who is killed: the worker itself, or the supervisor
M.SERIES = {}

for _, when in ipairs { "before", "after" } do
  table.move({
    { name = "supervisor, " .. when .. " its own", when = when },
    { name = "supervisor, " .. when .. " a worker's", when = when, of_workers = true },
    { name = "worker, " .. when .. " its own", when = when, of_workers = true, itself = true },
  }, 1, 3, #M.SERIES + 1, M.SERIES)
end

local function file(enabled)
  local retry = { retry = { attempts = 3, delay = "100ms" } }
  return witness.file(
    witness.job("each", { enabled = enabled, every = "1s", seconds = 0.1, policy = retry, catchup = "all" }),
    witness.job("replaced", { enabled = enabled, every = "2s", seconds = 1.5, overlap = "replace" }),
    witness.job("child", { after = { "each", on = "finished" }, seconds = 0.05 }))
end

---@return table scene
function M.prepare()
  local server = t.start_server()
  witness.prepare(server)
  return { server = server, files = { t.tempdir() .. "/jobs.lua" } }
end

-- What came of each kill that is no matter of the witness: a dead supervisor's runs are tried again.
local function follow_up(server, problems)
  for line in server:psql([[
      select format('not tried again: run %s of each is lost', r.id) from lockkeeper.run r
       where r.job = 'each' and r.state in ('lost', 'failed') and r.attempt < 3 and not exists (
         select from lockkeeper.run n where n.job = r.job and n.slot = r.slot and n.attempt = r.attempt + 1)
      union all
      select format('not followed: run %s of each has %s', r.id, r.state) from lockkeeper.run r
       where r.job = 'each' and r.state = 'succeeded' and not exists (
         select from lockkeeper.run n where n.job = 'child' and n.parent = r.id)]]):gmatch("[^\n]+") do
    problems[#problems + 1] = line
  end
end

--- Returns what was killed where, nil where there was no such statement, and what is wrong after it.
---@param scene table
---@param series Series
---@param number integer
---@return string? killed
---@return string[] problems
function M.one(scene, series, number)
  local server, files = scene.server, scene.files
  local line <close> = wire.open(server)
  witness.clear(server)
  process.write_file(files[1], file(true))
  local first = hosts.start { files = files, server = line, witness = server, args = { "--workers", "3" } }
  local pid = first:pid()
  line:kill_at(series.when, number, series.of_workers and -pid or pid, not series.itself and pid or 0)
  line:pass()
  local killed = pcall(t.wait_until, function() return line:killed() end, QUIET)
  if not killed then
    first:signal("KILL")
    first:wait()
    return nil, {}
  end
  if not series.itself then
    first:wait(2)
  end
  local second = hosts.start { files = files, server = server, witness = server, args = { "--workers", "3" } }
  hosts.await_serving(second)
  local since = server:psql("select clock_timestamp()")
  local problems = {}
  local ok = pcall(t.wait_until, function()
    return server:psql(([[select count(*) > 2 from lockkeeper.run
      where job = 'each' and state = 'succeeded' and started_at > '%s']]):format(since)) == "t"
  end, OVER)
  if not ok then
    problems[1] = "hangs: nothing is run any more"
  end
  process.write_file(files[1], file(false))
  second:signal("HUP")
  first:signal("HUP")
  witness.await_over(server, OVER)
  for _, problem in ipairs(witness.check(server, { ["^each"] = 1, ["^replaced"] = 2 })) do
    problems[#problems + 1] = problem
  end
  follow_up(server, problems)
  hosts.stop(second)
  first:signal("KILL")
  first:wait()
  if #problems > 0 then
    problems[#problems + 1] = "the first's log:\n" .. first:stderr()
    problems[#problems + 1] = "the second's log:\n" .. second:stderr()
  end
  return line:killed(), problems
end

return M
