-- lua-api.md, lock.all; locks.md 1, 2 and 7.

local expect = require "tests.support.expect"
local process = require "tests.support.process"
local t = require "tests.support"
local lock = require "lockkeeper"

local bindir = require("tests.support.target").bindir()
local raised, usage = expect.kind, expect.usage
local holders = t.holders_of

local function lines(list)
  table.sort(list)
  return table.concat(list, "\n")
end

-- What a session holds, one line a lock.
local function held_by(session)
  local list = {}
  for found in t.observe(([[
    select concat_ws(' ', classid, objid, objsubid, replace(mode, 'Lock', '')) from pg_locks
     where locktype = 'advisory' and granted and pid = %d]]):format(session.pid)):gmatch("[^\n]+") do
    list[#list + 1] = found
  end
  return lines(list)
end

local function line(id, mode)
  local classid, objid, objsubid = lock.key_parts(type(id) == "string" and lock.key(id) or id)
  if type(id) == "table" then
    classid, objid, objsubid = lock.key_parts(id[1], id[2])
  end
  return ("%d %d %d %s"):format(classid, objid, objsubid, mode or "Exclusive")
end

describe("lock.all", function()
  local db, other

  before_each(function()
    db, other = t.connect(), t.connect()
  end)

  after_each(function()
    db:close()
    other:close()
  end)

  describe("has all of the locks", function()
    it("whatever an id is: text, integer, two int4 keys, shared or not", function()
      local held = db:all({ "a", 42, -42, { 1, 2 }, { -1, -2 }, { id = "c", shared = true },
        { id = { 3, -4 }, shared = true }, { id = -7, shared = false }, "", 0, math.mininteger,
        math.maxinteger, { -2147483648, 2147483647 } }, { timeout = 0 })
      local all = lines({ line("a"), line(42), line(-42), line({ 1, 2 }), line({ -1, -2 }),
        line("c", "Share"),
        line({ 3, -4 }, "Share"), line(-7), line(""), line(0), line(math.mininteger), line(math.maxinteger),
        line({ -2147483648, 2147483647 }) })
      assert.equal(all, held_by(db))
      assert.is_true(held:is_held())
      held:release()
      assert.equal("", held_by(db))
    end)

    it("until its scope is left, by an error too", function()
      do
        local held <close> = db:all({ "a", "b" })
        assert.same({ db.pid }, holders(lock.key("a")))
        assert.is_true(held:is_held())
      end
      assert.equal("", held_by(db))
      local mine = {}
      local _, err = pcall(function()
        local _ <close> = db:all({ "a", "b" })
        error(mine)
      end)
      assert.equal(mine, err)
      assert.equal("", held_by(db))
    end)

    it("while a function runs, which gets the guard and the arguments", function()
      assert.same({ n = 3, 2, nil, "z" }, table.pack(db:all({ "a", "b" }, { timeout = 0 }, function(held, ...)
        assert.is_true(held:is_held())
        return select("#", ...), ...
      end, nil, "z")))
      assert.equal("", held_by(db))
      assert.equal("x", lock.all({ "a" }, { using = db }, function() return "x" end))
      assert.equal("y", db:all({ "a" }, function() return "y" end))
      assert.equal("", held_by(db))
    end)

    it("of a list of 10,000 ids", function()
      local ids = {}
      for i = 1, 10000 do
        ids[i] = i % 2 == 0 and "job-" .. i or i
      end
      local held = db:all(ids, { timeout = "10s" })
      assert.equal("10000", t.observe("select count(*) from pg_locks where locktype = 'advisory'"))
      assert.is_true(held:is_held())
      local got, err = other:all({ "job-10000", "free" }, { timeout = 0 })
      assert.is_nil(got)
      assert.matches('"job-10000"', err.message, 1, true)
      held:release()
      assert.equal("0", t.observe("select count(*) from pg_locks where locktype = 'advisory'"))
    end)

    it("under each scheme", function()
      for _, scheme in ipairs({ "pglock", "pglocks", "postgresql-lock", "with_advisory_lock", "hashtext" }) do
        local held <close> = db:all({ "a", "b" }, { scheme = scheme, prefix = 7 })
        assert.equal(2, #held.keys)
        local single <close> = db:advisory("a", { scheme = scheme, prefix = 7 })
        assert.same(single.key, held.keys[1])
        assert.is_nil((other:advisory("b", { scheme = scheme, prefix = 7, timeout = 0 })))
      end
    end)
  end)

  it("gives one guard, with ids, keys, waited and acquired_at in the order that was written", function()
    local before = os.time()
    local held <close> = db:all({ "b", { 1, 2 }, "a", { id = "c", shared = true } })
    assert.same({ "b", { 1, 2 }, "a", "c" }, held.ids)
    assert.same({ lock.key("b"), { 1, 2 }, lock.key("a"), lock.key("c") }, held.keys)
    assert.equal(0, held.waited)
    assert.is_false(held.xact)
    assert.is_true(held.acquired_at >= before - 1 and held.acquired_at <= os.time() + 1)
    assert.matches("^locks .* and 2 others %(held%)$", tostring(held))
    held:release()
    assert.matches("%(released%)$", tostring(held))
    held:release()
    assert.is_false(held:is_held())
    assert.is_nil(held.unknown)
  end)

  describe("has none of them where one is not to be had", function()
    for name, options in pairs({
      ["timeout = 0"] = { timeout = 0 },
      ["a timeout"] = { timeout = "30ms" },
      ["polling"] = { timeout = "30ms", poll = "5ms" },
    }) do
      it("and the error names that one: " .. name, function()
        local key = lock.key("a")
        local theirs <close> = other:advisory("a")
        for _, list in ipairs({ { "a" }, { "b", "a", "c" }, { key - 1, "a", key + 1 },
          { { id = "a", shared = true }, 1 } }) do
          local got, err = db:all(list, options)
          assert.is_nil(got)
          assert.is_true(err.busy)
          assert.equal(options.timeout == 0 and "not_acquired" or "lock_timeout", err.kind)
          assert.matches('lock "a"', err.message, 1, true)
          assert.equal("", held_by(db))
          assert.is_false(db.in_transaction)
        end
        assert.is_true(theirs:is_held())
      end)
    end

    it("but those that it had before stay held, each as often", function()
      local theirs <close> = other:advisory("z")
      local before = db:all({ "a", "b", "c" })
      local single = db:advisory("a")
      local now = held_by(db)
      for _, options in ipairs({ { timeout = 0 }, { timeout = "20ms" } }) do
        assert.is_nil((db:all({ "a", "b", "z", "c" }, options)))
        assert.equal(now, held_by(db))
      end
      before:release()
      assert.equal(line("a"), held_by(db))
      single:release()
      assert.equal("", held_by(db))
      assert.is_true(theirs:is_held())
    end)

    it("shared locks go together, a shared and an exclusive one do not", function()
      local first <close> = db:all({ "a", "b" }, { shared = true })
      local second = other:all({ { id = "a" }, "b" }, { timeout = 0, shared = true })
      assert.is_true(second:is_held())
      second:release()
      assert.is_nil((other:all({ "a", { id = "b", shared = false } }, { timeout = 0, shared = true })))
      assert.is_nil((other:all({ "a", "b" }, { timeout = 0 })))
      assert.is_true(first:is_held())
    end)

    it("on_busy: returns where a timeout is given, else raises; skips a function", function()
      local _ <close> = other:advisory("a")
      local called = false
      local function fn() called = true end
      raised("not_acquired", db.all, db, { "a", "b" }, { timeout = 0, on_busy = "raise" })
      raised("not_acquired", db.all, db, { "a", "b" }, { timeout = 0 }, fn)
      local got, err = db:all({ "a", "b" }, { timeout = 0, on_busy = "skip" }, fn)
      assert.is_nil(got)
      assert.equal("not_acquired", err.kind)
      assert.is_false(called)
      db:exec("set lock_timeout = '20ms'")
      raised("lock_timeout", db.all, db, { "a", "b" })
      raised("lock_timeout", db.all, db, { "a", "b" }, { poll = "5ms" })
      assert.equal("20ms", db:value("show lock_timeout"))
      usage('"skip" needs a function', db.all, db, { "a" }, { on_busy = "skip" })
      usage('"return" is for calls without', db.all, db, { "a" }, { on_busy = "return" }, fn)
    end)
  end)

  describe("the timeout", function()
    it("is for all together, not for each", function()
      -- Ten locks, each of which becomes free 60 ms after the one before is asked for: 250 ms do not do.
      local keys = {}
      for i = 1, 10 do
        keys[i] = i
      end
      local child = t.spawn({ bindir .. "/psql", "-Xqd", t.conninfo({ application_name = "gives_way" }), "-c",
        "select pg_advisory_lock(i) from generate_series(1, 10) i",
        "-c", [[do $$ begin
          for i in 1 .. 10 loop
            while not exists (select from pg_locks where locktype = 'advisory' and not granted) loop
              if exists (select from pg_locks where locktype = 'advisory' and objid = 99) then return; end if;
              perform pg_sleep(0.002);
            end loop;
            perform pg_sleep(0.06);
            perform pg_advisory_unlock(i);
          end loop;
        end $$]] })
      t.wait_until(function() return #holders(10) == 1 end, "the holder")
      local start = t.now()
      local got, err = db:all(keys, { timeout = "250ms" })
      local took = t.now() - start
      assert.is_nil(got)
      assert.equal("lock_timeout", err.kind)
      assert.equal("55P03", err.sqlstate)
      assert.is_true(took >= 0.24, took)
      assert.equal("", held_by(db))
      local stop <close> = other:advisory(99) -- the helper ends
      assert.equal(0, child:wait(), child:stderr())
      assert.is_true(stop:is_held())
    end)

    it("false waits until all are had; waited tells how long", function()
      local child = t.holder_until_awaited(5)
      local held <close> = db:all({ 4, 5, 6 }, { timeout = false })
      assert.is_true(held.waited > 0)
      assert.equal(lines({ line(4), line(5), line(6) }), held_by(db))
      assert.equal(0, child:wait(), child:stderr())
    end)

    it("locks.md 2: leaves lock_timeout as it was", function()
      db:exec("set lock_timeout = '7s'")
      local _ <close> = other:advisory(2)
      assert.is_nil((db:all({ 1, 2 }, { timeout = "10ms" })))
      assert.equal("7s", db:value("show lock_timeout"))
      db:transaction(function(tx)
        assert.is_nil((tx:all({ 1, 2 }, { timeout = "10ms" })))
        assert.is_nil((tx:all({ 1, 2 }, { timeout = "10ms", xact = true })))
        assert.equal("7s", tx:value("show lock_timeout"))
        local held = tx:all({ 1, 3 }, { timeout = "10ms", xact = true })
        assert.is_true(held:is_held())
        assert.equal("7s", tx:value("show lock_timeout"))
      end)
    end)
  end)

  it("is one round trip to take them, one to give them back, and one to undo a failure", function()
    local name = "all-" .. math.random(1 << 30)
    local session = t.connect({ application_name = name, options = "-c log_statement=all" })
    local function sent(fn)
      local list
      fn()
      session:exec("select 'from here'")
      fn()
      session:exec("select 'to here'")
      for found in t.server:log():gmatch("[^\n]+") do
        local sql = found:find(name, 1, true) and
          (found:match("statement: (.*)") or found:match("execute %S+: (.*)"))
        if sql == "select 'from here'" then
          list = {}
        elseif sql and list and sql ~= "select 'to here'" then
          list[#list + 1] = sql
        end
      end
      return list
    end
    for _, options in ipairs({ {}, { timeout = 0 }, { timeout = "5s" }, { timeout = "5s", poll = 1 } }) do
      local list = sent(function()
        session:all({ "a", { 1, 2 }, { id = 3, shared = true } }, options):release()
      end)
      assert.equal(2, #list, table.concat(list, "\n"))
      assert.matches("pg_try_advisory_lock", list[1])
      assert.matches("pg_advisory_unlock", list[2])
    end
    local _ <close> = other:advisory(2)
    local list = sent(function() session:all({ 1, 2, 3 }, { timeout = 0 }) end)
    assert.equal(2, #list, table.concat(list, "\n"))
    assert.matches("pg_advisory_unlock", list[2])
    session:close()
  end)

  it("a key that is in the list twice is taken once, exclusively if either asks for that", function()
    local key = lock.key("a")
    for _, list in ipairs({ { "a", "a" }, { "a", key }, { { id = "a", shared = true }, "a" },
      { "a", { id = key, shared = true }, { id = "a", shared = true } } }) do
      local held = db:all(list, { timeout = 0 })
      assert.equal(line("a"), held_by(db))
      assert.equal(#list, #held.ids)
      held:release()
      assert.equal("", held_by(db))
    end
    local held <close> = db:all({ { id = "a", shared = true }, { id = key, shared = true } })
    assert.equal(line("a", "Share"), held_by(db))
    assert.is_true(held:is_held())
  end)

  it("locks.md 4: nests with what the session holds; each guard releases its own", function()
    local single = db:advisory("a")
    local first = db:all({ "a", "b" })
    local second = db:all({ "b", "a", "c" })
    first:release()
    assert.is_true(second:is_held())
    assert.is_true(single:is_held())
    second:release()
    assert.equal(line("a"), held_by(db))
    single:release()
    assert.equal("", held_by(db))
  end)

  describe("locks.md 7: takes them in the order of their keys", function()
    it("and holds none behind the one that it waits for", function()
      -- bigint keys by their signed value, then pairs
      local order = { math.mininteger, -5, 0, 5, math.maxinteger, { -3, 9 }, { 1, -1 }, { 1, 2 } }
      for i, id in ipairs(order) do
        local theirs = other:advisory(id)
        local list = {}
        for j = #order, 1, -1 do
          list[#list + 1] = order[j]
        end
        lock.tasks(function(spawn)
          spawn(function()
            local held <close> = db:all(list, { timeout = "20s" })
            assert.is_true(held.waited > 0)
          end)
          spawn(function()
            while not t.is_waiting(db.pid) do
              lock.sleep("2ms")
            end
            local expected = {}
            for j = 1, i - 1 do
              expected[j] = line(order[j])
            end
            assert.equal(lines(expected), held_by(db))
            theirs:release()
          end)
        end)
        assert.equal("", held_by(db))
      end
    end)

    it("so that two processes which take {a, b} and {b, a} 1,000 times never deadlock", function()
      local function taker(list)
        return t.lockkeeper("run", "-", { stdin = ([[
          local lock = require "lockkeeper"
          local list, waits = %s, 0
          for _ = 1, 1000 do
            lock.all(list, { timeout = "20s" }, function(held)
              waits = waits + (held.waited > 0 and 1 or 0)
            end)
          end
          print(waits)
        ]]):format(list) })
      end
      local first, second = taker('{ "a", "b" }'), taker('{ "b", "a" }')
      assert.equal(0, first:wait(60), first:stderr())
      assert.equal(0, second:wait(60), second:stderr())
      assert.is_true(tonumber(first:stdout()) + tonumber(second:stdout()) > 0)
      assert.equal("0", t.observe("select count(*) from pg_locks where locktype = 'advisory'"))
    end)
  end)

  it("poll waits without a snapshot and without holding what it has so far", function()
    local theirs = other:advisory(2)
    local done = false
    lock.tasks(function(spawn)
      spawn(function()
        local held <close> = db:all({ 1, 2, 3 }, { timeout = "20s", poll = "20ms" })
        assert.is_true(held.waited > 0)
        done = true
      end)
      spawn(function()
        for _ = 1, 10 do
          lock.sleep("5ms")
          assert.is_false(t.is_waiting(db.pid))
        end
        local one <close> = other:advisory(1, { timeout = "10s" }) -- between two of its tries
        assert.is_true(one:is_held())
        theirs:release()
      end)
    end)
    assert.is_true(done)
    assert.equal("", held_by(db))
  end)

  describe("in a transaction", function()
    it("that times out or does not have them leaves the transaction usable", function()
      local _ <close> = other:advisory(2)
      db:exec("create temp table written (a int)")
      db:transaction(function(tx)
        tx:exec("insert into written values (1)")
        for _, xact in ipairs({ false, true }) do
          for _, options in ipairs({ { timeout = 0 }, { timeout = 0.01 }, { timeout = 0.01, poll = 1 } }) do
            options.xact = xact
            local got, err = tx:all({ 1, 2, 3 }, options)
            assert.is_nil(got)
            assert.is_true(err.busy)
            assert.equal("", held_by(db))
            assert.equal(1, tx:value("select count(*) from written"))
          end
        end
      end)
      assert.equal(1, db:value("select count(*) from written"))
    end)

    it("session-level locks survive its rollback, transaction-level ones end with it", function()
      local held
      raised("sql", db.transaction, db, function(tx)
        held = tx:all({ 1, 2 })
        local inside = tx:all({ 3, { 4, 5 } }, { xact = true })
        assert.is_true(inside:is_held())
        assert.is_true(inside.xact)
        raised("usage", inside.release, inside)
        tx:exec("select 1/0")
      end)
      assert.equal(lines({ line(1), line(2) }), held_by(db))
      assert.is_true(held:is_held())
      held:release()
      assert.equal("", held_by(db))
    end)

    it("xact with a function opens the transaction and commits it; without one it must be open", function()
      db:exec("create temp table written (a int)")
      db:all({ 1, 2 }, { xact = true }, function(held)
        assert.is_true(db.in_transaction)
        assert.is_true(held:is_held())
        db:exec("insert into written values (1)")
      end)
      assert.is_false(db.in_transaction)
      assert.equal("", held_by(db))
      assert.equal(1, db:value("select count(*) from written"))
      usage("needs an open transaction", db.all, db, { 1 }, { xact = true })
    end)

    it("an error in the function is rolled back before the locks are released", function()
      db:exec("create temp table written (a int)")
      db:transaction(function(tx)
        local ok = pcall(tx.all, tx, { 1, 2 }, {}, function()
          tx:exec("insert into written values (1)")
          error("mine")
        end)
        assert.is_false(ok)
        assert.equal(0, tx:value("select count(*) from written"))
        assert.equal("", held_by(db))
      end)
    end)

    it("that has failed: taking is 25P02, releasing is queued until its rollback", function()
      local held = db:all({ 1, 2 })
      raised("sql", db.transaction, db, function(tx)
        pcall(tx.exec, tx, "select 1/0")
        local err = raised("sql", tx.all, tx, { 3, 4 })
        assert.equal("25P02", err.sqlstate)
        held:release()
        assert.equal(lines({ line(1), line(2) }), held_by(db))
        error(err)
      end)
      assert.equal("", held_by(db))
    end)
  end)

  it("while rows are streamed the release is queued until their end", function()
    local held = db:all({ 1, 2 })
    for row in db:rows("select g from generate_series(1, 3) g") do
      if row.g == 1 then
        held:release()
      end
    end
    assert.equal("", held_by(db))
  end)

  describe("a lock of it that is gone", function()
    it("is a lock_lost error at the release, which names it and releases the others", function()
      for _, options in ipairs({ {}, { release = "deferred" } }) do
        local held = db:all({ "a", "b", "c" }, options)
        db:value("select pg_advisory_unlock($1)", lock.key("b"))
        assert.is_false(held:is_held())
        local err
        if options.release then
          held:release()
          err = raised("lock_lost", db.query, db, "select 1")
        else
          err = raised("lock_lost", held.release, held)
        end
        assert.matches('lock "b" was not held any more', err.message, 1, true)
        assert.equal("", held_by(db))
        held:release()
      end
    end)

    it("with its session is a lock_lost error at the next use and at the release", function()
      local held = db:all({ "a", "b" })
      t.observe(("select pg_terminate_backend(%d, 5000)"):format(db.pid))
      raised("lock_lost", db.query, db, "select 1")
      raised("lock_lost", held.release, held)
      assert.is_false(held:is_held())
      db:reconnect()
      held = db:all({ "a", "b" })
      db:close()
      local err = raised("lock_lost", held.release, held)
      assert.matches('"a"', err.message, 1, true)
      assert.is_false(held:is_held())
      db:reconnect()
    end)
  end)

  it('release = "deferred" sends the release at once and waits for no reply', function()
    local held = db:all({ 1, 2, 3 }, { timeout = 0, release = "deferred" })
    local pid = db.pid
    process.signal("STOP", pid)
    held:release()
    assert.matches("released", tostring(held))
    process.signal("CONT", pid)
    t.wait_until(function() return held_by(db) == "" end, "the release")
    for _ = 1, 20 do
      db:all({ 1, 2, 3 }, { release = "deferred" }, function(inside) assert.is_true(inside:is_held()) end)
    end
    assert.equal(1, db:value("select 1"))
    assert.equal("", held_by(db))
  end)

  it("dropping the guard releases nothing; the session's end does, with a warning", function()
    local code, stdout, stderr = t.run("run", "-", { stdin = [[
      local lock = require "lockkeeper"
      do lock.all({ "a", "b" }) end
      collectgarbage() collectgarbage()
      print(lock.db:value("select count(*) from pg_locks where locktype = 'advisory'"))
    ]] })
    assert.equal(0, code, stderr)
    assert.equal("2\n", stdout)
    assert.matches("was never released", stderr)
  end)

  it("locks.md 1: a deadlock, a cancel and a lost connection are raised, and nothing is left", function()
    local theirs = other:advisory(2)
    lock.tasks(function(spawn)
      spawn(function()
        local err = raised("sql", db.all, db, { 1, 2, 3 }, { timeout = "20s" })
        assert.equal("57014", err.sqlstate)
        assert.equal("", held_by(db))
        err = raised("deadlock", db.all, db, { 1, 2, 3 }, { timeout = "20s" })
        assert.equal("40P01", err.sqlstate)
        assert.equal("", held_by(db))
      end)
      spawn(function()
        local function wait(session)
          while not t.is_waiting(session.pid) do lock.sleep("2ms") end
        end
        wait(db)
        t.observe(("select pg_cancel_backend(%d)"):format(db.pid))
        while t.is_waiting(db.pid) do lock.sleep("2ms") end
        wait(db)
        -- Out of order, so this one is the other half of a deadlock; db is its victim, who looks first.
        other:exec("set deadlock_timeout = '60s'")
        local one <close> = other:advisory(1, { timeout = "20s" })
        assert.is_true(one:is_held())
        theirs:release()
      end)
    end)
    theirs = other:advisory(2)
    local pid = db.pid
    lock.tasks(function(spawn)
      spawn(function() raised("connection", db.all, db, { 1, 2, 3 }, { timeout = "20s" }) end)
      spawn(function()
        while not t.is_waiting(pid) do lock.sleep("2ms") end
        t.observe(("select pg_terminate_backend(%d, 5000)"):format(pid))
      end)
    end)
    theirs:release()
    db:reconnect()
  end)

  it("a task that is cancelled while it waits holds nothing", function()
    local theirs <close> = other:advisory(2)
    pcall(lock.tasks, function(spawn)
      spawn(function() db:all({ 1, 2, 3 }) end)
      spawn(function()
        while not t.is_waiting(db.pid) do lock.sleep("2ms") end
        error("enough")
      end)
    end)
    assert.equal("", held_by(db))
    assert.is_true(theirs:is_held())
  end)

  it("that times out at the very moment when a lock is granted leaves nothing to nobody", function()
    local child = t.spawn({ bindir .. "/psql", "-Xqd", t.conninfo(), "-c", [[do $$ begin
      for i in 1 .. 600 loop
        perform pg_advisory_lock(2);
        perform pg_sleep(0.001 + i % 30 / 10000.0);
        perform pg_advisory_unlock(2);
      end loop; end $$]] })
    local timeouts = 0
    while child:is_running() do
      local held, err = db:all({ 1, 2, 3 }, { timeout = 0.001 })
      if held then
        held:release()
      else
        assert.equal("lock_timeout", err.kind)
        timeouts = timeouts + 1
      end
      assert.equal(0, db:value([[
        select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()]]))
    end
    assert.equal(0, child:wait(), child:stderr())
    assert.is_true(timeouts > 0)
  end)

  it("that is cancelled in the middle again and again leaves nothing", function()
    local ids = {}
    for i = 1, 300 do
      ids[i] = i
    end
    local child = t.spawn({ bindir .. "/psql", "-Xqd", t.conninfo(), "-c",
      ([[do $$ begin for i in 1 .. 2000 loop
        perform pg_cancel_backend(%d); perform pg_sleep(0.0003);
      end loop; end $$]]):format(db.pid) })
    local had, cancelled = 0, 0
    while child:is_running() do
      local ok, held = pcall(db.all, db, ids, { timeout = 0 })
      if ok then
        had = had + 1
        pcall(held.release, held)
      else
        assert.equal("57014", held.sqlstate, tostring(held))
        cancelled = cancelled + 1
      end
    end
    assert.equal(0, child:wait(), child:stderr())
    while not pcall(db.query, db, "select 1") do end
    assert.equal("", held_by(db))
    assert.is_true(had > 0 and cancelled > 0, had .. " had, " .. cancelled .. " cancelled")
  end)

  it("more locks than the server has room for is its error, and none of them stays", function()
    local ids = {}
    for i = 1, 100000 do
      ids[i] = i
    end
    local mine <close> = db:advisory("mine")
    local err = raised("sql", db.all, db, ids)
    assert.equal("53200", err.sqlstate)
    assert.equal(line("mine"), held_by(db))
    err = raised("sql", db.transaction, db, function(tx) tx:all(ids) end)
    assert.equal("53200", err.sqlstate)
    assert.equal(line("mine"), held_by(db))
    assert.is_true(mine:is_held())
  end)

  describe("is a usage error", function()
    it("for anything that is no list of locks", function()
      for _, list in ipairs({ "a", 1, true, print }) do
        usage("all: a list of locks was expected, not", db.all, db, list)
      end
      usage("all: a list of locks was expected, not nil", db.all, db)
      usage("the list of locks is empty", db.all, db, {})
      usage('the list of locks has a field "id"', db.all, db, { id = "a" })
      usage('the list of locks has a field "id"', db.all, db, { "x", id = "a" })
      usage("the list of locks has a field 7", db.all, db, { "x", [7] = "a" })
    end)

    it("for an element that is no lock, and names it", function()
      usage("all: element 3: an id must be a text, an integer or {int4, int4}, not true", db.all, db,
        { "a", "b", true })
      usage("all: element 2: an id must be a text, an integer or {int4, int4}, not nil", db.all, db,
        { "a", nil, "b" })
      usage("all: element 1: an id that is a number must be an integer", db.all, db, { 1.5 })
      usage("all: element 2: an id that is a table must be two int4 keys", db.all, db,
        { "a", { "b", "c", "d" } })
      usage("all: element 1: an id's second int4 key must be", db.all, db, { { 1, 2147483648 } })
      usage("all: element 1: an id must be", db.all, db, { {} })
      usage("all: element 1: an id must be", db.all, db, { { shared = true } })
      usage('all: element 1: unknown option "shred"; did you mean "shared"?', db.all, db,
        { { id = "a", shred = true } })
      usage("all: element 2: shared must be true or false", db.all, db, { "b", { id = "a", shared = 1 } })
      usage('all: element 1: two int4 keys have no field "shared"', db.all, db, { { 1, 2, shared = true } })
      assert.equal("", held_by(db))
    end)

    it("for options that it does not know, or of a wrong type", function()
      usage('all: unknown option "timeuot"; did you mean "timeout"?', db.all, db, { "a" }, { timeuot = 1 })
      usage("all: the options must be a table", db.all, db, { "a" }, 5)
      usage("all: shared must be true or false", db.all, db, { "a" }, { shared = 1 })
      usage("timeout", db.all, db, { "a" }, { timeout = -1 })
      usage("all: poll must be longer than 0", db.all, db, { "a" }, { poll = 0 })
      usage('all: release can only be "deferred"', db.all, db, { "a" }, { release = "now" })
      usage("all: the last argument must be a function", db.all, db, { "a" }, {}, 5)
    end)
  end)

  it("through a pooler that shares sessions is refused, with xact it works", function()
    local bouncer = t.start_pgbouncer()
    local pooled = lock.connect({ conninfo = bouncer:conninfo() })
    assert.matches("pooler", raised("usage", pooled.all, pooled, { "a", "b" }).message)
    assert.equal("done", pooled:all({ "a", "b" }, { xact = true, timeout = "5s" }, function(held)
      assert.is_true(held:is_held())
      return "done"
    end))
    pooled:close()
    bouncer:stop()
  end)

  it("uses nothing that a search_path could shadow", function()
    local shadowed = t.connect({ options = "-csearch_path=evil,pg_catalog" })
    shadowed:exec([[
      create schema evil;
      create function evil.unnest(bigint[]) returns setof bigint language sql as 'select 666';
      create function evil.pg_try_advisory_lock(bigint) returns bool language sql as 'select true';
      create function evil.eq(smallint, smallint) returns bool language sql as 'select false';
      create operator evil.= (leftarg = smallint, rightarg = smallint, function = evil.eq);
    ]])
    local held = shadowed:all({ 1, { 2, 3 }, { id = 4, shared = true } })
    assert.equal(lines({ line(1), line({ 2, 3 }), line(4, "Share") }), held_by(shadowed))
    assert.is_true(held:is_held())
    held:release()
    assert.equal("", held_by(shadowed))
    shadowed:exec("drop schema evil cascade")
    shadowed:close()
  end)
end)
