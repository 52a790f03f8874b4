-- lua-api.md, "advisory": release = "deferred".

local expect = require "tests.support.expect"
local process = require "tests.support.process"
local t = require "tests.support"
local lock = require "lockkeeper"

local raised, usage = expect.kind, expect.usage
local holders = t.holders_of

local function gone(key)
  t.wait_until(function() return #holders(key) == 0 end, "the release of " .. tostring(key))
end

describe('release = "deferred"', function()
  local db, other

  before_each(function()
    db, other = t.connect(), t.connect()
  end)

  after_each(function()
    pcall(db.close, db)
    other:close()
  end)

  local function take(id)
    return db:advisory(id, { timeout = 0, release = "deferred" })
  end

  -- A lock whose release will be answered with "was not held".
  local function release_a_lost_one(id)
    local held = take(id or "lost")
    db:exec("set client_min_messages = error; select pg_advisory_unlock_all()")
    held:release()
  end

  describe("sends the unlock at once", function()
    it("so that others have the lock though this session does nothing more", function()
      local held = take("x")
      assert.same({ db.pid }, holders(held.key))
      held:release()
      gone(held.key)
      local theirs <close> = other:advisory("x", { timeout = "10s" })
      assert.is_true(theirs:is_held())
    end)

    it("and the guard says released, release is idempotent", function()
      local held = take("x")
      assert.is_true(held:is_held())
      held:release()
      assert.matches("released", tostring(held))
      assert.is_false(held:is_held())
      held:release()
      assert.is_false(held:is_held())
    end)

    it("at the end of a to-be-closed scope and of a function, too", function()
      do
        local held <close> = take(1)
        assert.same({ db.pid }, holders(held.key))
      end
      gone(1)
      assert.equal("done", db:advisory(2, { timeout = 0, release = "deferred" }, function(held)
        assert.same({ db.pid }, holders(held.key))
        return "done"
      end))
      gone(2)
      local mine = {}
      local ok, err = pcall(db.advisory, db, 3, { release = "deferred" }, function() error(mine) end)
      assert.is_false(ok)
      assert.equal(mine, err)
      gone(3)
      assert.equal(4, db:guarded(4, { release = "deferred" }, function(n) return n end)(4))
      gone(4)
    end)

    it("of many guards, and of a lock that nests one hold each time", function()
      local held = {}
      for i = 1, 100 do
        held[i] = take(i)
      end
      for i = 1, 100 do
        held[i]:release()
      end
      gone(1)
      t.wait_until(function()
        return t.observe("select count(*) from pg_locks where locktype = 'advisory'") == "0"
      end, "the release of all")
      local first, second = take("x"), take("x")
      first:release()
      assert.is_true(second:is_held())
      second:release()
      gone(lock.key("x"))
    end)
  end)

  it("leaves the session to every use that may come next", function()
    local key = lock.key("x")
    local uses = {
      query = function() assert.equal(1, db:query("select 1 as one")[1].one) end,
      parameters = function() assert.equal(7, db:value("select $1::int", 7)) end,
      several = function() assert.equal(2, db:value("select 1; select 2")) end,
      in_transaction = function() assert.is_false(db.in_transaction) end,
      transaction = function()
        assert.equal("r", db:transaction(function(tx)
          assert.is_true(tx.in_transaction)
          return tx:value("select 'r'")
        end))
      end,
      rows = function()
        local n = 0
        for row in db:rows("select g from generate_series(1, 100) g") do n = n + row.g end
        assert.equal(5050, n)
      end,
      copy = function()
        db:exec("create temp table if not exists copied (a int)")
        take("x"):release()
        assert.equal(2, db:copy_in("copy copied from stdin", "1\n2\n"))
        take("x"):release()
        assert.equal("1\n2\n", db:copy_out("copy copied to stdout"))
        db:exec("drop table copied")
      end,
      copy_as_query = function()
        usage("copy_in and copy_out", db.query, db, "copy (select 1) to stdout")
      end,
      notify = function()
        db:listen("deferred")
        take("x"):release()
        db:notify("deferred", "hello")
        take("x"):release()
        assert.equal("hello", db:wait_notify("5s").payload)
        take("x"):release()
        db:unlisten("deferred")
      end,
      ping = function() assert.is_true(db:ping()) end,
      timeout = function()
        lock.timeout("3s", { using = db }, function()
          assert.equal("3s", db:value("show lock_timeout"))
          take("x"):release()
        end)
        assert.equal("0", db:value("show lock_timeout"))
      end,
      failing = function()
        assert.equal("42601", raised("sql", db.query, db, "selekt").sqlstate)
      end,
      advisory = function()
        local y <close> = db:advisory("y", { timeout = "5s" })
        assert.is_true(y:is_held())
      end,
      polling = function()
        local y <close> = db:advisory("y", { timeout = "5s", poll = "10ms" })
        assert.is_true(y:is_held())
      end,
      busy = function()
        local theirs <close> = other:advisory("y")
        assert.equal("not_acquired", select(2, db:advisory("y", { timeout = 0 })).kind)
        take("x"):release()
        assert.equal("lock_timeout", select(2, db:advisory("y", { timeout = "20ms" })).kind)
        assert.is_true(theirs:is_held())
      end,
      all = function()
        local y <close> = db:all({ "y", "z" }, { timeout = 0 })
        assert.is_true(y:is_held())
      end,
      hashtext = function() assert.equal(db:value("select hashtext('x')::int8"), db:key("x", "hashtext")) end,
      deallocate = function() db:exec("deallocate all") end,
      discard = function()
        db:exec("discard plans")
        db:exec("do $$ begin execute 'deallocate all'; end $$")
        local y <close> = take("y")
        assert.is_true(y:is_held())
      end,
      reconnect = function() db:reconnect() end,
    }
    for name, use in pairs(uses) do
      for round = 1, 3 do -- so that the statements are prepared in one of them
        local held = take("x")
        assert.same({ db.pid }, holders(key), name)
        held:release()
        local ok, err = pcall(use)
        assert(ok, name .. ", round " .. round .. ": " .. tostring(err))
        gone(key) -- where the use asked nothing, the server may still be at the unlock
      end
    end
  end)

  it("waits for nothing: not even for a server that has stopped", function()
    local first, second = take("x"), take("y")
    local pid = db.pid
    process.signal("STOP", pid)
    first:release()
    second:release()
    assert.is_false(first:is_held())
    process.signal("CONT", pid)
    gone(first.key)
    gone(second.key)
  end)

  describe("a lock that was gone when it was released", function()
    it("is a lock_lost error at the next use, raised after that use's own work was done", function()
      db:exec("create temp table done (a int)")
      for _, use in ipairs({
        function() db:exec("insert into done values (1)") end,
        function() db:query("insert into done values ($1)", 1) end,
        function() db:exec("insert into done values (1); insert into done values (2)") end,
        function() db:copy_in("copy done from stdin", "1\n") end,
        function() for _ in db:rows("insert into done values (1) returning a") do end end,
      }) do
        release_a_lost_one()
        local err = raised("lock_lost", use)
        assert.matches('"lost"', err.message, 1, true)
        assert.is_true(db:value("select count(*) > 0 from done"))
        db:exec("truncate done")
      end
    end)

    it("is raised once", function()
      release_a_lost_one()
      raised("lock_lost", db.query, db, "select 1")
      assert.equal(1, db:value("select 1"))
    end)

    it("is raised when the next use acquires: that lock is released first", function()
      for _, options in ipairs({ {}, { timeout = 0 }, { timeout = "5s" }, { release = "deferred" } }) do
        release_a_lost_one()
        raised("lock_lost", db.advisory, db, "next", options)
        assert.same({}, holders(lock.key("next")))
        release_a_lost_one()
        local called = false
        raised("lock_lost", db.advisory, db, "next", options, function() called = true end)
        assert.is_false(called)
        assert.same({}, holders(lock.key("next")))
        release_a_lost_one()
        raised("lock_lost", db.all, db, { "next", "other" }, options)
        assert.same({}, holders(lock.key("next")))
      end
    end)

    it("is raised though that lock was not to be had", function()
      local theirs <close> = other:advisory("next")
      release_a_lost_one()
      raised("lock_lost", db.advisory, db, "next", { timeout = 0 })
      release_a_lost_one()
      raised("lock_lost", db.all, db, { "next" }, { timeout = 0 })
      assert.is_true(theirs:is_held())
    end)

    it("is raised when the next use begins a transaction, which is rolled back", function()
      release_a_lost_one()
      local called = false
      raised("lock_lost", db.transaction, db, function() called = true end)
      assert.is_false(called)
      assert.is_false(db.in_transaction)
      assert.equal(1, db:transaction(function(tx) return tx:value("select 1") end))
    end)

    it("is not lost where the next use fails by itself: the use after that raises it", function()
      release_a_lost_one()
      raised("sql", db.query, db, "select 1/0")
      raised("lock_lost", db.query, db, "select 1")
    end)

    it("is raised by close, which closes all the same", function()
      release_a_lost_one()
      raised("lock_lost", db.close, db)
      assert.matches("closed", tostring(db))
      db:close()
    end)

    it("is raised by the end of the session's scope, but not over another error", function()
      local function leave(fn)
        local session <close> = lock.connect({ conninfo = t.conninfo() })
        local held = session:advisory("lost", { release = "deferred" })
        session:exec("set client_min_messages = error; select pg_advisory_unlock_all()")
        held:release()
        fn()
      end
      raised("lock_lost", leave, function() end)
      local mine = {}
      local _, err = pcall(leave, function() error(mine) end)
      assert.equal(mine, err)
    end)

    it("is logged where nobody closes the session, and by reconnect", function()
      for _, ending in ipairs({ "", "db:reconnect()", "db = nil collectgarbage() collectgarbage()" }) do
        local code, _, stderr = t.run("run", "-", { stdin = [[
          local db = require("lockkeeper").db
          local held = db:advisory("lost", { release = "deferred" })
          db:exec("select pg_advisory_unlock_all()")
          held:release()
          held = nil
        ]] .. ending })
        assert.equal(0, code, stderr)
        assert.matches('level=error msg="lock %S"lost%S" was not held any more', stderr)
      end
    end)

    it("never shows in the release of another lock", function()
      local second = take("second")
      local plain = db:advisory("plain")
      local held = take("lost")
      db:value("select pg_advisory_unlock($1)", held.key)
      held:release()
      second:release()
      plain:release()
      assert.matches('"lost"', raised("lock_lost", db.query, db, "select 1").message, 1, true)
    end)

    it("of several, tells the first and logs the others", function()
      local code, stdout, stderr = t.run("run", "-", { stdin = [[
        local db = require("lockkeeper").db
        local held = {}
        for i = 1, 3 do held[i] = db:advisory(i, { release = "deferred" }) end
        db:exec("select pg_advisory_unlock_all()")
        for i = 1, 3 do held[i]:release() end
        local ok, err = pcall(db.query, db, "select 1")
        print(ok, err.kind, err.message:match("lock (%d)"), (pcall(db.query, db, "select 1")))
      ]] })
      assert.equal(0, code, stderr)
      assert.equal("false\tlock_lost\t1\ttrue\n", stdout)
      assert.matches("lock 2 was not held", stderr)
      assert.matches("lock 3 was not held", stderr)
    end)
  end)

  describe("in a transaction", function()
    it("waits for the reply: whether the lock was still held is known before COMMIT", function()
      local held = take("x")
      db:transaction(function(tx)
        tx:exec("select pg_advisory_unlock_all()")
        raised("lock_lost", held.release, held)
        assert.equal(1, tx:value("select 1"))
      end)
      assert.equal(1, db:value("select 1"))
    end)

    it("that has failed is queued until its rollback", function()
      local held = take("x")
      raised("sql", db.transaction, db, function(tx)
        pcall(tx.exec, tx, "select 1/0")
        held:release()
        assert.same({ db.pid }, holders(held.key))
        error(select(2, pcall(tx.exec, tx, "select 1")))
      end)
      gone(held.key)
    end)
  end)

  it("while rows are streamed is queued until their end", function()
    local held = take("x")
    for row in db:rows("select g from generate_series(1, 3) g") do
      if row.g == 1 then
        held:release()
        assert.same({ db.pid }, holders(held.key))
      end
    end
    assert.same({}, holders(held.key))
  end)

  describe("a session that ends before the reply was read", function()
    it("is told at the next use, and is usable again after reconnect", function()
      local held = take("x")
      local pid = db.pid
      held:release()
      t.observe(("select pg_terminate_backend(%d, 5000)"):format(pid))
      local ok, err = pcall(db.query, db, "select 1")
      assert.is_false(ok)
      assert.is_true(err.kind == "connection" or err.kind == "lock_lost", err.kind)
      assert.is_false(held:is_held())
      db:reconnect()
      assert.equal(1, db:value("select 1"))
    end)

    it("does not make close fail, nor a release that comes after", function()
      local first, second = take("x"), take("y")
      first:release()
      t.observe(("select pg_terminate_backend(%d, 5000)"):format(db.pid))
      local ok, err = pcall(second.release, second)
      assert.is_true(ok or err.kind == "lock_lost" or err.kind == "connection", tostring(err))
      db:close()
    end)
  end)

  it("is done again where another session's pg_cancel_backend has hit it", function()
    local acquired, tries, rounds = 0, 0, 0
    repeat -- until one of the requests has come in the middle of an acquisition
      local child = t.spawn({ require("tests.support.target").bindir() .. "/psql", "-Xqd", t.conninfo(), "-c",
        ([[do $$ begin for i in 1..3000 loop
             perform pg_cancel_backend(%d); perform pg_sleep(0.0001);
           end loop; end $$]]):format(db.pid) })
      while child:is_running() do
        tries = tries + 1
        local ok, held = pcall(take, tries)
        if ok then
          acquired = acquired + 1
          held:release()
        else
          assert.equal("57014", held.sqlstate, tostring(held))
        end
      end
      assert.equal(0, child:wait(), child:stderr())
      rounds = rounds + 1
    until acquired > 0 and acquired < tries or rounds == 30
    assert.is_true(acquired > 0 and acquired < tries, acquired .. " of " .. tries)
    while not pcall(db.query, db, "select 1") do end
    assert.equal("0", t.observe("select count(*) from pg_locks where locktype = 'advisory'"))
  end)

  it("in tasks: the session can be the next task's before the reply was read", function()
    lock.tasks(function(spawn)
      spawn(function()
        for i = 1, 20 do
          local held = take(i)
          lock.sleep("1ms")
          held:release()
        end
      end)
      spawn(function()
        for _ = 1, 20 do
          local _ <close> = other:advisory("busy", { timeout = "5s" })
          assert.equal(1, other:value("select 1"))
        end
      end)
    end)
    assert.equal(1, db:value("select 1"))
    assert.equal("0", t.observe("select count(*) from pg_locks where locktype = 'advisory'"))
  end)

  describe("is a usage error", function()
    it("with any other word", function()
      usage('release can only be "deferred", not "later"', db.advisory, db, "x", { release = "later" })
      usage("release must be a text, not true", db.advisory, db, "x", { release = true })
      usage('did you mean "release"', db.advisory, db, "x", { releas = "deferred" })
    end)

    it("for a transaction-level lock, which nobody releases by hand", function()
      db:transaction(function(tx)
        usage("session-level", tx.advisory, tx, "x", { xact = true, release = "deferred" })
      end)
      usage("session-level", db.advisory, db, "x", { xact = true, release = "deferred" }, print)
    end)
  end)
end)

describe("through a pooler", function()
  it('in transaction mode release = "deferred" is refused as every session-level lock is', function()
    local bouncer = t.start_pgbouncer()
    local db = lock.connect({ conninfo = bouncer:conninfo() })
    assert.matches("pooler", raised("usage", db.advisory, db, "x", { release = "deferred" }).message)
    db:close()
    bouncer:stop()
  end)

  it('that keeps the session (pooler = "session") it works', function()
    local bouncer = t.start_pgbouncer({ pool_mode = "session" })
    local db = lock.connect({ conninfo = bouncer:conninfo(), pooler = "session" })
    for i = 1, 5 do
      db:advisory(i, { timeout = 0, release = "deferred" }):release()
    end
    assert.equal(1, db:value("select 1"))
    assert.equal("0", t.observe("select count(*) from pg_locks where locktype = 'advisory'"))
    db:close()
    bouncer:stop()
  end)
end)
