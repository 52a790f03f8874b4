--- runner.md 25: the server is restarted, crashes, and is replaced by a promoted standby that a multi-host
--- conninfo names too: the runner goes on by itself, on the only server that takes writes.

local hosts = require "tests.faults.hosts"
local t = require "tests.support"
local witness = require "tests.faults.witness"

local M = {}

local GOES_ON = 40 -- seconds

-- Two servers by one connection string.
local function both(first, second)
  return {
    conninfo = function()
      return ("host='%s,%s' port='%d,%d' user=postgres dbname=postgres connect_timeout=5"):format(first.host,
        second.host, first.port, second.port)
    end,
  }
end

---@param long boolean  restarts in several ways before
---@return string[] problems
function M.play(long)
  local problems = {}
  local primary = t.start_server()
  witness.prepare(primary)
  local standby = t.start_server { standby_of = primary }
  -- What a client was told is on the standby, too: else a failover may forget a slot.
  primary:psql("alter system set synchronous_standby_names = '*'")
  primary:psql("select pg_reload_conf()")
  local pair = both(primary, standby)
  local witnesses = { conninfo = function() return pair.conninfo() .. " target_session_attrs=read-write" end }
  local files = { t.tempfile(witness.file(
    witness.job("steady", { every = "1s", seconds = 0.1, policy = { retry = { attempts = 3, delay = 0 } } }),
    witness.job("long", { every = "5s", seconds = 2, overlap = "queue" })), "jobs.lua") }
  local all = {}
  for i = 1, 2 do
    all[i] = hosts.start { files = files, server = pair, witness = witnesses }
    hosts.await_serving(all[i])
  end
  local function goes_on(server, what)
    local since = server:psql("select clock_timestamp()")
    local ok = pcall(t.wait_until, function()
      return server:psql(([[select count(*) >= 3 from lockkeeper.run
        where job = 'steady' and state = 'succeeded' and started_at > '%s']]):format(since)) == "t"
    end, GOES_ON)
    if not ok then
      problems[#problems + 1] = ("after %s nothing is run any more: %s"):format(what, witness.tally(server))
    end
  end
  goes_on(primary, "the start")
  for _, how in ipairs(long and { "fast", "immediate", "kill" } or {}) do
    if how == "kill" then
      primary:kill()
      primary:start()
    else
      primary:restart(how)
    end
    goes_on(primary, how .. " restart")
  end
  primary:kill()
  standby:psql("select pg_promote()")
  goes_on(standby, "the failover")
  for _, host in ipairs(all) do
    if host:is_running() then
      hosts.stop(host)
    else
      problems[#problems + 1] = "a supervisor has ended: " .. host:stderr()
    end
  end
  -- What was due when they ended waits for the next one.
  for _, problem in ipairs(witness.check(standby, { ["^steady"] = 1, ["^long"] = 5 })) do
    if not problem:find("^not over: .* is due$") then
      problems[#problems + 1] = problem
    end
  end
  primary:stop()
  standby:stop()
  return problems
end

return M
