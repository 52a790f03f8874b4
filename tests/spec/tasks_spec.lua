-- lua-api.md, "Tasks".

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local raised, usage = expect.raised, expect.usage

-- A name for sessions to the shared server, made anew in each test.
local function name_database(name)
  lock.database(name, t.conninfo({ application_name = "tasks-" .. name }))
  return name
end

local function count(from)
  return math.tointeger(t.observe("select count(*) from " .. from))
end

local function backends(name)
  return count(("pg_stat_activity where application_name = 'tasks-%s'"):format(name))
end

local function waiters()
  return count("pg_locks where not granted")
end

local function sleepers()
  return count("pg_stat_activity where query like '%pg_sleep(60)' and state = 'active'")
end

-- t.wait_until lets no other task go on between two looks.
local function wait_in_task(fn, what)
  t.wait_until(function()
    lock.sleep("2ms")
    return fn()
  end, what)
end

local function no_backend_is_left(name)
  t.wait_until(function() return backends(name) == 0 end, "the backends' end")
end

describe("lock.tasks", function()
  it("returns when every task has ended, and gives nothing back", function()
    local ended = 0
    assert.is_nil(lock.tasks(function(spawn)
      for _ = 1, 3 do
        spawn(function()
          lock.sleep("10ms")
          ended = ended + 1
        end)
      end
      assert.equal(0, ended)
    end))
    assert.equal(3, ended)
  end)

  it("passes a task its arguments, nil among them", function()
    local got
    lock.tasks(function(spawn)
      spawn(function(...) got = table.pack(...) end, 1, nil, "three", nil)
    end)
    assert.same({ 1, nil, "three", nil, n = 4 }, got)
  end)

  it("without a task is a call of the function", function()
    local called = false
    lock.tasks(function() called = true end)
    assert.is_true(called)
  end)

  it("lets the other tasks go on where one waits: sleep, query, sh, wait_notify", function()
    local began = t.now()
    lock.tasks(function(spawn)
      for _ = 1, 4 do
        spawn(function() lock.sleep("300ms") end)
        spawn(function()
          local db <close> = lock.connect { conninfo = t.conninfo() }
          db:query("select pg_sleep(0.3)")
        end)
        spawn(function() lock.sh { "sleep", "0.3" } end)
        spawn(function()
          local db <close> = lock.connect { conninfo = t.conninfo() }
          db:listen("c")
          db:wait_notify("300ms")
        end)
      end
    end)
    assert.is_true(t.now() - began < 3) -- one after another: 4.8 s
  end)

  it("waits for 50 locks with 50 tasks on one thread, and has each at once when it is free", function()
    local name = name_database("fifty")
    local holder <close> = t.connect()
    holder:query("select pg_advisory_lock(i) from generate_series(1, 50) i")
    local had = {}
    lock.tasks(function(spawn)
      for i = 1, 50 do
        spawn(function()
          lock.advisory(i, { using = name }, function(held)
            had[#had + 1] = i
            assert.is_true(held.waited > 0)
          end)
        end)
      end
      wait_in_task(function() return waiters() == 50 end, "50 waiters")
      assert.equal(0, #had)
      local _, threads = t.read_file("/proc/self/status"):match("Threads:%s*()(%d+)")
      assert.is_true(tonumber(threads) <= 2, threads)
      for i = 50, 1, -1 do
        holder:query("select pg_advisory_unlock($1)", i)
        while #had < 51 - i do
          lock.sleep("1ms")
        end
        assert.equal(i, had[#had])
      end
    end)
    assert.equal(50, #had)
    no_backend_is_left("fifty")
  end)

  it("runs at most max at once, in the order in which they were spawned", function()
    local running, most, order = 0, 0, {}
    lock.tasks({ max = 3 }, function(spawn)
      for i = 1, 20 do
        spawn(function()
          order[#order + 1] = i
          running = running + 1
          most = math.max(most, running)
          lock.sleep("2ms")
          running = running - 1
        end)
      end
    end)
    assert.equal(3, most)
    for i = 1, 20 do
      assert.equal(i, order[i])
    end
  end)

  it("can be spawned in by its tasks, and has 10,000 of them", function()
    local begun = 0
    lock.tasks({ max = 10 }, function(spawn)
      local function one(depth)
        begun = begun + 1
        if depth > 0 then
          spawn(one, depth - 1)
        end
      end
      for _ = 1, 1000 do
        spawn(one, 9)
      end
    end)
    assert.equal(10000, begun)
  end)

  it("nests", function()
    local trail = {}
    lock.tasks(function(spawn)
      spawn(function()
        lock.tasks(function(inner)
          inner(function()
            lock.sleep("20ms")
            trail[#trail + 1] = "inner"
          end)
        end)
        trail[#trail + 1] = "outer"
      end)
      spawn(function() trail[#trail + 1] = "beside" end)
    end)
    assert.same({ "beside", "inner", "outer" }, trail)
  end)

  it("waits also inside pcall, metamethods, sort and coroutines of the task's own", function()
    local trail = {}
    lock.tasks(function(spawn)
      spawn(function()
        pcall(function() lock.sleep("10ms") end)
        local _ = setmetatable({}, { __index = function() lock.sleep("10ms") end }).x
        table.sort({ 2, 1 }, function(a, b)
          lock.sleep("10ms")
          return a < b
        end)
        local step = coroutine.wrap(function()
          lock.sleep("10ms")
          coroutine.yield("yielded")
        end)
        assert.equal("yielded", step())
        trail[#trail + 1] = "slow"
      end)
      spawn(function()
        lock.sleep("5ms")
        trail[#trail + 1] = "quick"
      end)
    end)
    assert.same({ "quick", "slow" }, trail)
  end)

  it("says that a task can't yield by itself", function()
    local err = raised(lock.tasks, function(spawn) spawn(coroutine.yield) end)
    assert.matches("yield", tostring(err))
  end)
end)

describe("a session's name in a task", function()
  it("is a recipe: each task opens its own, which is closed when lock.tasks returns", function()
    local name = name_database("own")
    local pids = {}
    lock.tasks(function(spawn)
      for _ = 1, 3 do
        spawn(function()
          lock.advisory("same", { using = name, shared = true }, function()
            wait_in_task(function()
              pids = #pids == 3 and pids or t.holders_of(lock.key("same"))
              return #pids == 3
            end, "three holders")
          end)
        end)
      end
    end)
    assert.equal(3, #pids)
    no_backend_is_left("own")
  end)

  it("is the same session all through one task", function()
    local name = name_database("same")
    lock.tasks(function(spawn)
      spawn(function()
        lock.advisory("a", { using = name }, function()
          lock.advisory("b", { using = name }, function()
            assert.equal(1, backends("same"))
          end)
        end)
      end)
    end)
  end)

  it("is opened at most max_sessions times; the next task goes on with what the last one used", function()
    local name = name_database("few")
    local most = 0
    lock.tasks({ max_sessions = 2 }, function(spawn)
      for _ = 1, 8 do
        spawn(function()
          lock.advisory("s", { using = name, shared = true }, function()
            most = math.max(most, backends("few"))
            lock.sleep("5ms")
          end)
        end)
      end
    end)
    assert.equal(2, most)
    no_backend_is_left("few")
  end)

  it("is not used again where the task left a lock or a transaction on it", function()
    local name = name_database("unclean")
    lock.tasks({ max = 1 }, function(spawn)
      spawn(function() lock.advisory("left", { using = name }) end)
      spawn(function()
        t.wait_until(function() return #t.holders_of(lock.key("left")) == 0 end, "the lock's end")
        assert.is_truthy(lock.advisory("left", { using = name, timeout = 0 }))
      end)
    end)
    no_backend_is_left("unclean")
  end)

  it("can't deadlock silently where max_sessions is too small", function()
    local one, other = name_database("one"), name_database("other")
    local err = raised(lock.tasks, { max_sessions = 1 }, function(spawn)
      local function both(first, second)
        lock.advisory("x", { using = first, shared = true }, function()
          lock.sleep("20ms")
          lock.advisory("x", { using = second, shared = true }, function() end)
        end)
      end
      spawn(both, one, other)
      spawn(both, other, one)
    end)
    assert.equal("usage", err.kind)
    assert.matches("max_sessions = 1 is too small", err.message, 1, true)
  end)

  it("that nobody knows is a usage error", function()
    local err = raised(lock.tasks, function(spawn)
      spawn(function() lock.advisory("x", { using = "nobody" }) end)
    end)
    assert.equal("usage", err.kind)
    assert.matches("nobody", err.message)
  end)

  it("that can't be opened raises connection, and the other tasks end", function()
    lock.database("tasks-nowhere", "host=/nonexistent")
    local other
    local err = raised(lock.tasks, function(spawn)
      spawn(function()
        local _, sleep_error = pcall(lock.sleep, "10s")
        other = sleep_error.kind
      end)
      spawn(function() lock.advisory("x", { using = "tasks-nowhere" }) end)
    end)
    assert.equal("connection", err.kind)
    assert.equal("cancelled", other)
  end)
end)

describe("a session object in tasks", function()
  it("has one user at a time: a second gets a usage error, not garbled results", function()
    local db <close> = t.connect()
    local seen = {}
    lock.tasks(function(spawn)
      spawn(function() seen[1] = db:value("select 1 from pg_sleep(0.05)") end)
      spawn(function() seen[2] = raised(db.query, db, "select 2") end)
    end)
    assert.equal(1, seen[1])
    assert.equal("usage", seen[2].kind)
    assert.matches("in use by another task", seen[2].message, 1, true)
    assert.equal(3, db:value("select 3"))
  end)
end)

describe("a task that raises", function()
  it("cancels the others where they wait; then its error is raised from lock.tasks", function()
    local kinds = {}
    local mine = { mine = true }
    local err = raised(lock.tasks, function(spawn)
      for i = 1, 3 do
        spawn(function()
          local _, sleep_error = pcall(lock.sleep, "10s")
          kinds[i] = sleep_error.kind
          error(sleep_error, 0)
        end)
      end
      spawn(function()
        lock.sleep("5ms")
        error(mine)
      end)
    end)
    assert.equal(mine, err)
    assert.same({ "cancelled", "cancelled", "cancelled" }, kinds)
  end)

  it("cancels the function that spawns, too", function()
    local kind
    raised(lock.tasks, function(spawn)
      spawn(function() error("first") end)
      local _, err = pcall(lock.sleep, "10s")
      kind = err.kind
    end)
    assert.equal("cancelled", kind)
    lock.sleep("1ms") -- afterwards waiting is what it was
  end)

  it("is cancelled again at every further wait", function()
    local kinds = {}
    raised(lock.tasks, function(spawn)
      spawn(function()
        for i = 1, 3 do
          local _, err = pcall(lock.sleep, "10s")
          kinds[i] = err.kind
        end
      end)
      spawn(function()
        lock.sleep("5ms")
        error("stop")
      end)
    end)
    assert.same({ "cancelled", "cancelled", "cancelled" }, kinds)
  end)

  it("ends the statement that another task waits for, and what that holds is released", function()
    local name = name_database("holds")
    local db <close> = t.connect()
    local kind
    raised(lock.tasks, function(spawn)
      spawn(function()
        local _ <close> = lock.advisory("held by a task", { using = name })
        local db_of_task <close> = lock.connect { conninfo = t.conninfo() }
        local _, err = pcall(db_of_task.query, db_of_task, "select pg_sleep(60)")
        kind = err.kind
        error(err, 0)
      end)
      spawn(function()
        wait_in_task(function() return sleepers() == 1 end, "the statement")
        error("stop")
      end)
    end)
    assert.equal("cancelled", kind)
    db:advisory("held by a task", { timeout = 0 }):release()
    assert.equal(0, sleepers())
    no_backend_is_left("holds")
  end)

  it("lets a cancelled wait for a lock go, and the lock with it", function()
    local name = name_database("queue")
    local holder <close> = t.connect()
    holder:query("select pg_advisory_lock(77)")
    raised(lock.tasks, function(spawn)
      spawn(function() lock.advisory(77, { using = name }) end)
      spawn(function()
        wait_in_task(function() return waiters() == 1 end, "the waiter")
        error("stop")
      end)
    end)
    no_backend_is_left("queue")
    assert.equal(0, waiters())
  end)

  it("keeps those that were not begun from beginning", function()
    local begun = 0
    raised(lock.tasks, { max = 1 }, function(spawn)
      spawn(function() error("first") end)
      for _ = 1, 5 do
        spawn(function() begun = begun + 1 end)
      end
    end)
    assert.equal(0, begun)
  end)

  it("may raise anything: a table, nil, an error in its __close", function()
    assert.is_nil(select(2, pcall(lock.tasks, function(spawn) spawn(function() error(nil) end) end)))
    assert.is_false((pcall(lock.tasks, function(spawn) spawn(function() error(nil) end) end)))
    local err = raised(lock.tasks, function(spawn)
      spawn(function()
        local _ <close> = setmetatable({}, { __close = function() error("in close", 0) end })
      end)
    end)
    assert.equal("in close", err)
  end)

  it("with on_error = \"continue\" stops nobody: the errors are returned as a list", function()
    local ended = 0
    local errors = lock.tasks({ on_error = "continue" }, function(spawn)
      for i = 1, 4 do
        spawn(function()
          lock.sleep(i / 200)
          if i % 2 == 0 then
            error({ i })
          end
          ended = ended + 1
        end)
      end
    end)
    assert.same({ { 2 }, { 4 } }, errors)
    assert.equal(2, ended)
    assert.same({}, lock.tasks({ on_error = "continue" }, function() end))
  end)

  it("with on_error = \"continue\" lets an error of what spawns wait until all have ended", function()
    local ended = false
    local err = raised(lock.tasks, { on_error = "continue" }, function(spawn)
      spawn(function()
        lock.sleep("20ms")
        ended = true
      end)
      error("body", 0)
    end)
    assert.equal("body", err)
    assert.is_true(ended)
  end)

  it("in a group inside a task ends that task and, by it, the outer group", function()
    local beside
    local err = raised(lock.tasks, function(spawn)
      spawn(function()
        local _, sleep_error = pcall(lock.sleep, "10s")
        beside = sleep_error.kind
      end)
      spawn(function()
        lock.tasks(function(inner)
          inner(function() lock.sleep("10s") end)
          inner(function() error("inner", 0) end)
        end)
      end)
    end)
    assert.equal("inner", err)
    assert.equal("cancelled", beside)
  end)
end)

describe("what lock.tasks refuses", function()
  it("unknown options, naming the nearest", function()
    usage('did you mean "max_sessions"?', lock.tasks, { max_session = 1 }, print)
    usage('did you mean "on_error"?', lock.tasks, { onerror = "cancel" }, print)
  end)

  it("values that make no sense", function()
    for _, options in ipairs { { max = 0 }, { max = 1.5 }, { max = "3" }, { max_sessions = -1 },
      { on_error = "ignore" }, { [1] = 2 } } do
      usage("tasks: ", lock.tasks, options, print)
    end
    usage("the options must be a table", lock.tasks, "x", print)
    usage("must be a function", lock.tasks, {})
    usage("must be a function", lock.tasks)
    usage("spawn: a function was expected", lock.tasks, function(spawn) spawn("x") end)
  end)

  it("to spawn when it has returned", function()
    local kept
    lock.tasks(function(spawn) kept = spawn end)
    usage("has returned", kept, print)
  end)
end)

describe("an interrupt", function()
  it("ends every task, and the program with 130: the locks are free", function()
    local child = t.lockkeeper("run", "-", { stdin = [[
      local lock = require "lockkeeper"
      lock.tasks(function(spawn)
        for i = 1, 3 do
          spawn(function()
            lock.advisory(100 + i, function()
              print("has " .. i)
              io.stdout:flush()
              lock.sleep(false)
            end)
          end)
        end
        spawn(function() while true do lock.sleep(0) end end)
      end)
      print("never")
    ]] })
    t.wait_until(function() return select(2, child:stdout():gsub("has", "")) == 3 end, "three tasks")
    child:signal("INT")
    assert.equal(130, child:wait(10))
    assert.not_matches("never", child:stdout())
    for i = 1, 3 do
      t.wait_until(function() return #t.holders_of(100 + i) == 0 end, "the lock's end")
    end
  end)

  it("ends a task that computes without ever waiting", function()
    local child = t.lockkeeper("run", "-", { stdin = [[
      local lock = require "lockkeeper"
      lock.tasks(function(spawn)
        spawn(function() lock.sleep(false) end)
        spawn(function()
          print("computes")
          io.stdout:flush()
          while true do end
        end)
      end)
    ]] })
    t.wait_until(function() return child:stdout():find("computes") end, "the task")
    child:signal("TERM")
    assert.equal(143, child:wait(10))
  end)
end)

describe("for other event loops", function()
  it("db:fd() is readable when something has come, and db:poll() says what", function()
    local db <close> = t.connect()
    local other <close> = t.connect()
    db:listen("jobs")
    assert.is_nil(db:poll())
    assert.equal("integer", math.type(db:fd()))
    other:notify("jobs", "one")
    other:notify("jobs", "two")
    assert.equal("one", t.wait_until(function() return db:poll() end, "the notification").payload)
    assert.equal("two", t.wait_until(function() return db:poll() end, "the notification").payload)
    assert.is_nil(db:poll())
  end)

  it("db:poll() raises when the session has ended", function()
    local db <close> = t.connect()
    t.observe(("select pg_terminate_backend(%d)"):format(db.pid))
    local err
    t.wait_until(function()
      local ok, poll_error = pcall(db.poll, db)
      err = poll_error
      return not ok
    end, "the loss")
    assert.equal("connection", err.kind)
  end)
end)
