-- runner.md, "No job runs on without its lock": rules 17, 19, 20 and 21, in `lockkeeper run`.
--
-- tests/faults/lock_loss.lua does the first part twenty times for each place and tells how long it took.

local lock = require "lockkeeper"
local places = require "tests.support.places"
local t = require "tests.support"

-- How long a loaded machine may take for what is promised within 100 ms.
local SLACK = 1.5
local GRACE = 0.3

local KEY = lock.key("job:watched")

-- Starts the job; returns when it has marked, or sits, and its backend's pid.
local function start(place, more, env)
  local path = t.tempdir() .. "/marks"
  local child = t.lockkeeper("run", t.tempfile(places.file(place, path, more), "job.lua"), { env = env })
  t.wait_until(function()
    return places.last_mark(path) or not child:is_running()
  end, 10, "the job's first mark: " .. place.name)
  assert.is_true(child:is_running(), child:stderr())
  local pid = t.holders_of(KEY)[1]
  return child, path, pid
end

local function terminate(pid)
  return tonumber(t.observe(("select extract(epoch from clock_timestamp()) from pg_terminate_backend(%d)")
    :format(pid)))
end

local function by_name(name)
  for _, place in ipairs(places) do
    if place.name == name then
      return place
    end
  end
end

describe("runner.md 17: a job that loses its lock stops", function()
  for _, place in ipairs(places) do
    it("in " .. place.name, function()
      local holder <close> = t.connect()
      holder:advisory("held elsewhere", function()
        local child, path, pid = start(place)
        local ended = terminate(pid)
        assert.equal(125, child:wait(10), child:stderr())
        local last = places.last_mark(path)
        assert.is_true(last - ended < SLACK + (place.command and GRACE or 0),
          ("%.0f ms after the session's end"):format((last - ended) * 1000))
        t.wait_until(function()
          return os.execute("pgrep -f '[s]leep 30.125' >/dev/null") == nil
        end, "the command's end")
        t.wait_until(function()
          return t.observe("select 1 from pg_stat_activity where query like '%pg_sleep(30)%' "
            .. "and state = 'active' and pid <> pg_backend_pid()") == ""
        end, "the statement's end")
      end)
    end)
  end

  it("so that nothing of it is left when another takes the lock", function()
    local child, path, pid = start(by_name("Lua code"))
    terminate(pid)
    child:wait(10)
    local last = places.last_mark(path)
    local other <close> = t.connect()
    other:advisory(KEY, function()
      t.sleep(0.05)
      assert.equal(last, places.last_mark(path))
    end)
  end)
end)

describe("runner.md 20: a job that was stopped while its session ended", function()
  for _, name in ipairs { "Lua code", "lock.sleep", "code that swallows errors with pcall" } do
    it("does not go on, in " .. name, function()
      local child, path, pid = start(by_name(name))
      child:signal("STOP")
      terminate(pid)
      local other <close> = t.connect()
      other:advisory(KEY, function()
        local size = #t.read_file(path)
        child:signal("CONT")
        assert.equal(125, child:wait(10))
        assert.equal(size, #t.read_file(path))
      end)
    end)
  end
end)

describe("runner.md 19: when nothing is heard of the server any more", function()
  local function start_behind(bouncer, name)
    local path = t.tempdir() .. "/marks"
    local config = t.tempfile(("require('lockkeeper').connect { name = 'default', pooler = 'session', "
      .. "conninfo = %q }"):format(bouncer:conninfo()), "lockkeeper.lua")
    local file = t.tempfile(places.file(by_name(name), path, nil, name), "job.lua")
    local child = t.lockkeeper("run", "--config", config, "-d", bouncer:conninfo(), file)
    t.wait_until(function() return places.last_mark(path) or not child:is_running() end, "the first mark")
    assert.is_true(child:is_running(), child:stderr())
    return child, t.holders_of(lock.key("job:" .. name))[1]
  end

  it("the job stops within 20 s while the server still holds the lock, idle or in a statement", function()
    -- A PgBouncer that is stopped keeps every connection open, and swallows what is sent.
    local bouncer = t.start_pgbouncer({ pool_mode = "session", pool_size = 4 })
    local pid = bouncer:pid()
    finally(function()
      os.execute("kill -CONT " .. pid)
      bouncer:stop()
    end)
    local children, backends = {}, {}
    local names = { "lock.sleep", "SQL on the job's session" }
    for i, name in ipairs(names) do
      children[i], backends[i] = start_behind(bouncer, name)
    end
    os.execute("kill -STOP " .. pid)
    local began = t.now()
    for i, name in ipairs(names) do
      assert.equal(125, children[i]:wait(30), children[i]:stderr())
      assert.is_true(t.now() - began < 20 + SLACK)
      assert.same({ backends[i] }, t.holders_of(lock.key("job:" .. name)))
      t.observe(("select pg_terminate_backend(%d)"):format(backends[i]))
    end
  end)
end)

describe("runner.md 21: max_run", function()
  for _, name in ipairs { "Lua code", "code that swallows errors with pcall", "SQL on the job's session",
    "string.find that backtracks", "os.execute", "job:sh" } do
    it("stops a job in " .. name .. ": exit code 124", function()
      local child = start(by_name(name), 'policy = { max_run = "500ms", grace = "300ms" },')
      assert.equal(124, child:wait(10), child:stderr())
      t.wait_until(function() return #t.holders_of(KEY) == 0 end, "the lock to be free")
      t.wait_until(function()
        return os.execute("pgrep -f '[s]leep 30.125' >/dev/null") == nil
      end, "the command's end")
    end)
  end
end)
