--- Faults at random over several supervisors: see chaos.lua.

local hosts = require "tests.faults.hosts"
local process = require "tests.support.process"
local t = require "tests.support"
local wire = require "tests.faults.wire"
local witness = require "tests.faults.witness"

local M = {}

local OVER = 90 -- seconds that runs have to come to their end when the faults are over

---------------------------------------------------------------------------------------------------
-- the jobs

local SHELL = [[=function(job)
      job:sh { "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; echo $i; done" }
    end]]

-- Kinds of jobs: how many, what they are.
local KINDS = {
  { 14, "plain", { every = 5 } },
  { 4, "quick", { every = 2, seconds = 0.05 } },
  { 6, "retried", { every = 6, policy = { retry = { attempts = 3, delay = "1s" } },
    after_work = "function(job) if job.attempt < 2 then error('once more') end end" } },
  { 5, "queued", { every = 4, overlap = "queue", seconds = 1.5 } },
  { 4, "replaced", { every = 4, overlap = "replace", seconds = 3 } },
  { 4, "each", { every = 5, catchup = "all", seconds = 0.05 } },
  { 3, "none", { every = 5, catchup = "none" } },
  { 4, "shared", { every = 4, seconds = 0.3, alone = "shared", policy = { timeout = "3s", on_busy = "skip" },
    guards = { '=lock.guard.advisory("shared")' } } },
  { 3, "commands", { every = 7, policy = { grace = "1s" }, after_work = SHELL:sub(2) } },
  { 3, "following", { after = { "plain 1", on = "finished" } } },
}

local grids = {}

local function file(enabled)
  local jobs = {}
  for _, kind in ipairs(KINDS) do
    local count, name, definition = table.unpack(kind)
    for i = 1, count do
      local all = { enabled = enabled }
      for key, value in pairs(definition) do
        all[key] = value
      end
      if all.every then
        grids["^" .. name .. " "] = all.every
        all.every = all.every .. "s"
      end
      jobs[#jobs + 1] = witness.job(name .. " " .. i, all)
    end
  end
  return witness.file(table.unpack(jobs))
end

---------------------------------------------------------------------------------------------------
-- the hosts

local server, path, logs

local function start(host)
  host.child = hosts.start { files = { path }, server = host.wire, witness = server,
    args = { "--workers", "6", "--warm", tostring(host.number - 1), "--drain", "2s",
      "--keep-runs", "1000000" } }
  logs[#logs + 1] = { host = host.number, child = host.child }
  host.busy = false
end

-- What is to be done later: { at, fn }, in no order.
local later, longest

local function after(seconds, fn)
  later[#later + 1] = { at = t.now() + seconds, fn = fn }
end

local function do_what_is_due(everything)
  for i = #later, 1, -1 do
    if everything or later[i].at <= t.now() then
      table.remove(later, i).fn()
    end
  end
end

local function between(low, high)
  return low + math.random() * (high - low)
end

local function is_worker(pid)
  return process.command_line(pid):find(" work --fd", 1, true) ~= nil
end

-- The pid of a worker at work or ready, nil where there is none.
local function pick_worker(host)
  local workers, above = {}, {}
  for _, pid in ipairs(hosts.family(host.child:pid())) do
    -- What a worker keeps its commands with looks like itself.
    if is_worker(pid) and not above[pid] then
      workers[#workers + 1] = pid
      for _, below in ipairs(hosts.family(pid)) do
        above[below] = true
      end
    end
  end
  return workers[1] and workers[math.random(#workers)]
end

-- The pid of a command that a job has started.
local function pick_command(host)
  for _, pid in ipairs(hosts.family(host.child:pid())) do
    if process.command_line(pid):find("^sh %-c for") then
      return pid
    end
  end
end

-- A keeper of a worker's or of a command's: see src/base/process.h.
local function pick_keeper(host)
  for _, pid in ipairs(hosts.family(host.child:pid())) do
    if pid ~= host.child:pid() and math.random() < 0.3
      and process.command_line(pid):find(" serve ", 1, true) then
      return pid
    end
  end
end

-- Each does its fault and returns what it did, or nil where it can't be done just now. Those of processes are
-- done to one process of a host at a time: a worker and its supervisor both gone at once is more than is
-- promised for commands.
local FAULTS = {
  function(host)
    if host.busy then return end
    host.busy = true
    host.child:signal("KILL")
    after(between(0, 4), function()
      host.child:wait()
      start(host)
    end)
    return "SIGKILL to the supervisor"
  end,
  function(host)
    if host.busy then return end
    host.busy = true
    local child, seconds = host.child, between(0.5, math.min(longest, 15))
    child:signal("STOP")
    after(seconds, function()
      child:signal("CONT")
      host.busy = false
    end)
    return ("SIGSTOP to the supervisor for %.1f s"):format(seconds)
  end,
  function(host)
    local pid = not host.busy and pick_worker(host)
    if not pid then return end
    process.signal("KILL", pid)
    return ("SIGKILL to worker %d"):format(pid)
  end,
  function(host)
    local pid = not host.busy and pick_worker(host)
    if not pid then return end
    local seconds = between(0.2, math.min(longest, 8))
    host.busy = true
    process.signal("STOP", pid)
    after(seconds, function()
      process.signal("CONT", pid)
      host.busy = false
    end)
    return ("SIGSTOP to worker %d for %.1f s"):format(pid, seconds)
  end,
  function(host)
    local pid = pick_command(host)
    if not pid then return end
    process.signal("KILL", pid)
    return ("SIGKILL to command %d"):format(pid)
  end,
  function(host)
    local pid = not host.busy and pick_keeper(host)
    if not pid then return end
    process.signal("KILL", pid)
    return ("SIGKILL to keeper %d"):format(pid)
  end,
  function()
    if math.random() > 0.2 then return end
    server:restart("immediate")
    return "the server crashes and starts again"
  end,
  function(host)
    if host.cut then return end
    local seconds = between(0.05, math.min(longest, 5))
    host.cut = true
    host.wire:cut()
    after(seconds, function()
      host.wire:pass()
      host.cut = false
    end)
    return ("wire cut for %.1f s"):format(seconds)
  end,
  function(host)
    if host.cut then return end
    local seconds = between(0.5, longest)
    host.cut = true
    host.wire:hold()
    after(seconds, function()
      host.wire:pass()
      host.cut = false
    end)
    return ("wire silent for %.1f s"):format(seconds)
  end,
  function()
    local name = server:psql([[
      select application_name || ' (' || pid || ')' from (
        select pid, application_name from pg_stat_activity where application_name like 'lockkeeper%'
         order by random() limit 1) a where pg_terminate_backend(pid)]])
    return name ~= "" and "the server ends " .. name or nil
  end,
  function(host)
    if host.busy or not host.child:stderr():find("jobs are known", 1, true) then return end
    host.child:signal("HUP")
    return "SIGHUP"
  end,
  function(host)
    if host.busy then return end
    host.busy = true
    host.child:signal("TERM")
    after(between(3, 8), function()
      host.child:signal("KILL") -- where it has not ended yet
      host.child:wait()
      start(host)
    end)
    return "SIGTERM"
  end,
}

local function keep_logs(folder)
  for i, log in ipairs(logs) do
    process.write_file(("%s/%02d-host%d.log"):format(folder, i, log.host), log.child:stderr())
  end
  process.write_file(folder .. "/server.log", server:log())
  os.execute(("%s/pg_dump -d %q -a -t lockkeeper.run -t public.witness >%s/dump.sql"):format(
    require("tests.support.target").bindir(), server:conninfo(), folder))
end

---@class Chaos
---@field seconds number
---@field hosts integer
---@field seed integer
---@field longest number             seconds that a silence or a stop lasts at most
---@field tell? fun(text: string)    what is done to whom
---@field folder? string             where logs are put

--- Returns what is wrong.
---@param spec Chaos
---@return string[] problems
function M.play(spec)
  local tell = spec.tell or function() end
  local text = file(true)
  local all = {}
  math.randomseed(spec.seed)
  server = t.start_server { settings = { max_connections = 300 } }
  path = t.tempfile(text, "jobs.lua")
  longest, later, logs = spec.longest, {}, {}
  witness.prepare(server)
  for i = 1, spec.hosts do
    all[i] = { number = i, wire = wire.open(server) }
    all[i].wire:pass()
    start(all[i])
  end
  for _, host in ipairs(all) do
    hosts.await_serving(host.child, 60)
  end
  local begun, done = t.now(), 0
  while t.now() < begun + spec.seconds do
    local host = all[math.random(spec.hosts)]
    local what = FAULTS[math.random(#FAULTS)](host)
    if what then
      done = done + 1
      tell(("%7.2f host %d: %s"):format(t.now() - begun, host.number, what))
      local pause = t.now() + between(0, 2.5)
      while t.now() < pause do
        do_what_is_due()
        t.sleep(0.02)
      end
    end
    do_what_is_due()
  end
  do_what_is_due(true)
  -- No slot is due from here on; what waits is finished.
  process.write_file(path, file(false))
  for _, host in ipairs(all) do
    hosts.await_serving(host.child, 60)
    host.child:signal("HUP")
  end
  witness.await_over(server, OVER)
  local problems = witness.check(server, grids)
  for _, host in ipairs(all) do
    host.child:signal("TERM")
    local code = host.child:wait(60)
    if code ~= 0 then
      problems[#problems + 1] = ("the supervisor of host %d has ended with code %d:\n%s"):format(host.number,
        code, host.child:stderr():sub(-4000))
    end
    host.wire:close()
  end
  tell(("%d faults; runs: %s; marks: %s"):format(done, witness.tally(server),
    server:psql("select count(*) from public.witness")))
  if spec.folder then
    keep_logs(spec.folder)
  end
  server:stop()
  return problems
end

return M
