--- runner.md 25: the database is away at the start, and in the middle; it takes no more connections; the
--- schema is locked, away, newer than the program; rights are taken away. The supervisor says so, stays, and
--- goes on when it can.

local hosts = require "tests.faults.hosts"
local process = require "tests.support.process"
local t = require "tests.support"
local witness = require "tests.faults.witness"

local M = {}

local GOES_ON = 45 -- seconds

local function signal_all(server, name)
  process.signal(name, server:pid(), table.unpack(process.children(server:pid())))
end

-- What is done to the server, and undone. fails_none: a run that could not begin for it is no failure.
local TROUBLES = {
  { name = "stopped",
    begin = function(server) server:stop() end,
    undo = function(server) server:start() end },
  { name = "frozen",
    begin = function(server) signal_all(server, "STOP") end,
    undo = function(server) signal_all(server, "CONT") end },
  { name = "schema locked", seconds = 14,
    begin = function(server)
      return t.spawn { require("tests.support.target").bindir() .. "/psql", "-Xqd", server:conninfo(), "-c",
        "begin; lock table lockkeeper.run, lockkeeper.job, lockkeeper.runner; select pg_sleep(600)" }
    end,
    undo = function(server, locker)
      server:psql("select pg_terminate_backend(pid) from pg_stat_activity where query ~ '^begin; lock table'")
      locker:wait()
    end },
  { name = "rights taken away",
    begin = function(server) server:psql("revoke all on all tables in schema lockkeeper from keeper") end,
    undo = function(server) server:psql("grant all on all tables in schema lockkeeper to keeper") end },
  { name = "schema hidden",
    begin = function(server) server:psql("alter schema lockkeeper rename to hidden") end,
    undo = function(server)
      server:psql("drop schema if exists lockkeeper cascade; alter schema hidden rename to lockkeeper")
    end },
  { name = "schema newer",
    begin = function(server)
      server:psql([[insert into lockkeeper.schema_version values (1000);
        select pg_terminate_backend(pid) from pg_stat_activity
         where application_name ~ '^lockkeeper: serve']])
    end,
    undo = function(server) server:psql("delete from lockkeeper.schema_version where version = 1000") end },
  { name = "no connections left",
    begin = function(server)
      server:psql("alter role keeper connection limit 2")
    end,
    undo = function(server) server:psql("alter role keeper connection limit -1") end,
    fails_none = true },
  { name = "sessions ended",
    begin = function(server)
      server:psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'keeper'")
    end,
    undo = function() end },
}

---@return string[] problems
function M.play()
  local problems = {}
  local server = t.start_server { settings = { max_connections = 40 } }
  witness.prepare(server)
  server:psql("create role keeper login; grant create on database postgres to keeper")
  local keeper = { conninfo = function() return server:conninfo { user = "keeper", connect_timeout = 4 } end }
  local files = { t.tempfile(witness.file(
    witness.job("steady", { every = "1s", seconds = 0.1, policy = { retry = { attempts = 3, delay = 0 } } }),
    witness.job("each", { every = "3s", seconds = 0.1, catchup = "all" })), "jobs.lua") }
  server:stop()
  local host = hosts.start { files = files, server = keeper, witness = server }
  t.wait_until(function() return host:stderr():find("no link to the database", 1, true) end, 20,
    "a word of the outage")
  server:start()
  hosts.await_serving(host, 40)
  for _, trouble in ipairs(TROUBLES) do
    local begun = server:psql("select clock_timestamp()")
    local state = trouble.begin(server)
    t.sleep(trouble.seconds or 5)
    trouble.undo(server, state)
    local since = server:psql("select clock_timestamp()")
    local ok = pcall(t.wait_until, function()
      return server:psql("select to_regclass('lockkeeper.run') is not null") == "t"
        and server:psql(([[select count(*) >= 3 from lockkeeper.run
        where job = 'steady' and state = 'succeeded' and started_at > '%s']]):format(since)) == "t"
    end, GOES_ON)
    if not ok then
      problems[#problems + 1] = ("%s: nothing is run any more: %s"):format(trouble.name,
        witness.tally(server))
    end
    local failed = server:psql(([[select count(*) from lockkeeper.run
      where state = 'failed' and slot > '%s']]):format(begun))
    if trouble.fails_none and failed ~= "0" then
      problems[#problems + 1] = ("%s: %s runs have failed"):format(trouble.name, failed)
    end
    if not host:is_running() then
      problems[#problems + 1] = ("%s: the supervisor has ended"):format(trouble.name)
      return problems
    end
  end
  hosts.stop(host)
  for _, problem in ipairs(witness.check(server, { ["^steady"] = 1, ["^each"] = 3 })) do
    if not problem:find("^not over: .* is due$") then
      problems[#problems + 1] = problem
    end
  end
  server:stop()
  return problems
end

return M
