-- lua-api.md, "advisory", and locks.md 1 and 2, in transactions: session-level locks that outlive them
-- and transaction-level ones that end with them.

local expect = require "tests.support.expect"
local t = require "tests.support"
local lock = require "lockkeeper"

local bindir = require("tests.support.target").bindir()

local raised = expect.kind

local holders = t.holders_of

-- A script in a process of its own: its code, what it printed, what it logged.
local function script(text)
  return t.run("run", "-", { stdin = 'local lock = require "lockkeeper"\n' .. text })
end

describe("advisory in a transaction", function()
  local db, other

  before_each(function()
    db, other = t.connect(), t.connect()
    db:exec("create temporary table work (a int)")
  end)

  after_each(function()
    db:close()
    other:close()
  end)

  local function rows() return db:value("select count(*) from work") end

  describe("when the lock is not to be had", function()
    -- Each way in which a wait or a try fails busy.
    local WAYS = {
      ["a try"] = { { timeout = 0 }, "not_acquired" },
      ["a timeout"] = { { timeout = "15ms" }, "lock_timeout" },
      ["a timeout and polling"] = { { timeout = "15ms", poll = "5ms" }, "lock_timeout" },
      ["an inherited lock_timeout"] = { { on_busy = "return" }, "lock_timeout" },
      ["an inherited lock_timeout and polling"] = { { on_busy = "return", poll = "5ms" }, "lock_timeout" },
    }
    for way, case in pairs(WAYS) do
      for _, xact in ipairs({ false, true }) do
        for _, shared in ipairs({ false, true }) do
          it(("after %s the transaction is usable, and lock_timeout what it was (%s, %s)"):format(way,
            xact and "transaction-level" or "session-level", shared and "shared" or "exclusive"), function()
            local held <close> = other:advisory("x")
            db:exec("set lock_timeout = '25ms'")
            local options = { xact = xact, shared = shared }
            for name, value in pairs(case[1]) do options[name] = value end
            db:transaction(function(tx)
              tx:exec("insert into work values (1)")
              for _ = 1, 3 do
                local got, err = tx:advisory("x", options)
                assert.is_nil(got)
                assert.equal(case[2], err.kind)
                assert.equal("25ms", tx:value("show lock_timeout"))
                tx:exec("insert into work values (2)")
              end
              options.on_busy = "raise"
              raised(case[2], tx.advisory, tx, "x", options)
              options.on_busy = "skip"
              local got, err = tx:advisory("x", options, error)
              assert.is_nil(got)
              assert.equal(case[2], err.kind)
              tx:exec("insert into work values (3)")
            end)
            assert.equal(5, rows())
            assert.equal("25ms", db:value("show lock_timeout"))
            assert.same({ other.pid }, holders(held.key))
          end)
        end
      end
    end

    it("a deadlock is raised as one, and leaves the transaction usable, too", function()
      db:exec("set deadlock_timeout = '5ms'")
      for _, xact in ipairs({ false, true }) do
        local held <close> = db:advisory(1)
        local child = t.spawn({ bindir .. "/psql", "-Xqd", t.conninfo(), "-c", "set deadlock_timeout = '1h'",
          "-c", "select pg_advisory_lock(2)", "-c", "select pg_advisory_lock(1)" })
        t.wait_until(function() return holders(2)[1] and t.is_waiting(holders(2)[1]) end, "the other side")
        db:transaction(function(tx)
          tx:exec("insert into work values (1)")
          local options = { timeout = "20s", xact = xact, on_busy = "skip" }
          local err = raised("deadlock", tx.advisory, tx, 2, options, error)
          assert.equal("40P01", err.sqlstate)
          tx:exec("insert into work values (2)")
        end)
        held:release()
        assert.equal(0, child:wait(), child:stderr())
      end
      assert.equal(4, rows())
    end)

    it("a statement_timeout that is shorter is 57014, raised, and leaves the transaction usable", function()
      local held <close> = other:advisory("x")
      db:exec("set statement_timeout = '20ms'")
      db:transaction(function(tx)
        tx:exec("insert into work values (1)")
        for _, xact in ipairs({ false, true }) do
          for _, options in ipairs({ { timeout = "10s" }, {}, { timeout = false } }) do
            options.xact = xact
            assert.equal("57014", raised("sql", tx.advisory, tx, "x", options).sqlstate)
            tx:exec("insert into work values (2)")
          end
        end
      end)
      assert.equal(7, rows())
      assert.is_true(held:is_held())
    end)

    it("is reported in the isolation levels and in read-only transactions alike", function()
      local held <close> = other:advisory("x")
      for _, isolation in ipairs({ "read committed", "repeatable read", "serializable" }) do
        for _, read_only in ipairs({ false, true }) do
          local tx <close> = db:begin({ isolation = isolation, read_only = read_only })
          for _, xact in ipairs({ false, true }) do
            assert.is_nil((tx:advisory("x", { timeout = "5ms", xact = xact })))
            local mine = tx:advisory("y", { timeout = "5s", xact = xact })
            assert.is_true(mine:is_held())
            if not xact then
              mine:release()
            end
          end
          tx:commit()
        end
      end
      assert.is_true(held:is_held())
    end)
  end)

  describe("waiting for it", function()
    for _, xact in ipairs({ false, true }) do
      local level = xact and "transaction-level" or "session-level"

      it(("locks.md 2: leaves lock_timeout what it was (%s)"):format(level), function()
        local function wait(tx)
          local child = t.holder_until_awaited(7)
          local held = tx:advisory(7, { timeout = "20s", xact = xact })
          assert.is_true(held.waited > 0)
          assert.is_true(held:is_held())
          assert.equal(0, child:wait(), child:stderr())
          return held
        end
        -- In RESET state; after a session's SET; after SET and after SET LOCAL in the transaction.
        for _, case in ipairs({
          { before = "reset lock_timeout", inside = "select", during = "0", after = "0" },
          { before = "set lock_timeout = '1min'", inside = "select", during = "1min", after = "1min" },
          { before = "set lock_timeout = '1min'", inside = "set lock_timeout = '3s'", during = "3s",
            after = "3s" },
          { before = "reset lock_timeout", inside = "set local lock_timeout = '1500ms'", during = "1500ms",
            after = "0" },
        }) do
          db:exec(case.before)
          local held
          db:transaction(function(tx)
            tx:exec(case.inside)
            held = wait(tx)
            assert.equal(case.during, tx:value("show lock_timeout"))
            if not xact then
              held:release()
            end
          end)
          assert.equal(case.after, db:value("show lock_timeout"), case.inside)
          -- And where the transaction is rolled back.
          db:exec(case.before)
          raised("usage", db.transaction, db, function(tx)
            tx:exec(case.inside)
            held = wait(tx)
            if not xact then
              held:release()
            end
            db:advisory(nil)
          end)
          assert.equal(case.before:match("1min") or "0", db:value("show lock_timeout"), case.inside)
          assert.is_false(held:is_held())
        end
        assert.same({}, holders(7))
      end)
    end

    it("does not undo what the transaction had done before", function()
      local child = t.holder_until_awaited(7)
      db:transaction(function(tx)
        tx:exec("insert into work values (1)")
        tx:advisory(7, { timeout = "20s" }, function()
          tx:exec("insert into work values (2)")
        end)
      end)
      assert.equal(2, rows())
      assert.equal(0, child:wait(), child:stderr())
    end)
  end)

  describe("session-level", function()
    it("is held beyond the transaction, whether that commits or rolls back", function()
      local one, two
      db:transaction(function(tx) one = tx:advisory("one") end)
      pcall(db.transaction, db, function(tx)
        two = tx:advisory("two", { timeout = "5s" })
        error("rolled back")
      end)
      assert.is_true(one:is_held() and two:is_held())
      one:release()
      two:release()
      assert.same({}, holders(two.key))
    end)

    it("outlives a savepoint that is rolled back", function()
      db:transaction(function(tx)
        local held
        pcall(tx.transaction, tx, function(inner)
          held = inner:advisory("x", { timeout = "5s" })
          error("rolled back")
        end)
        assert.is_true(held:is_held())
        held:release()
      end)
    end)

    it("with a function: an error in it is rolled back before the lock is released", function()
      local mine, seen = {}, {}
      local ok, err = pcall(db.transaction, db, function(tx)
        tx:exec("insert into work values (1)")
        local inner_ok, inner_err = pcall(tx.advisory, tx, "x", { timeout = "5s" }, function()
          tx:exec("insert into work values (2)")
          -- Runs before the savepoint is rolled back: the lock is held.
          local function look() seen.closing = holders(lock.key("x")) end
          local _ <close> = setmetatable({}, { __close = look })
          error(mine)
        end)
        assert.is_false(inner_ok)
        assert.equal(mine, inner_err)
        assert.same({}, holders(lock.key("x")))
        assert.equal(1, rows())
        tx:exec("insert into work values (3)")
      end)
      assert.is_true(ok, tostring(err))
      assert.same({ db.pid }, seen.closing)
      assert.equal(2, rows())
    end)

    it("with a function: the server sees the rollback first and the release after it", function()
      local name = "rollback-order"
      local logged = t.connect({ application_name = name, options = "-c log_statement=all" })
      logged:transaction(function(tx)
        pcall(tx.advisory, tx, "x", {}, function() tx:exec("select 1/0") end)
        assert.same({}, holders(lock.key("x")))
      end)
      logged:close()
      local order = {}
      for line in t.server:log():gmatch("[^\n]+") do
        if line:find(name, 1, true) then
          local word = line:match("1/0$") or line:match(": (ROLLBACK TO) lockkeeper_%d")
            or line:match("pg_advisory_unlock") or line:match(": (COMMIT)")
          if word and not line:find("ERROR") and order[#order] ~= word then
            order[#order + 1] = word
          end
        end
      end
      assert.same({ "1/0", "ROLLBACK TO", "pg_advisory_unlock", "COMMIT" }, order)
    end)

    it("with a function: an SQL error in it leaves the transaction usable", function()
      db:transaction(function(tx)
        tx:exec("insert into work values (1)")
        local err = raised("sql", tx.advisory, tx, "x", {}, function() tx:exec("select 1/0") end)
        assert.equal("22012", err.sqlstate)
        tx:exec("insert into work values (2)")
      end)
      assert.equal(2, rows())
      assert.same({}, holders(lock.key("x")))
    end)

    it("with a function that swallows an SQL error: what it did can't be kept, which is said", function()
      db:transaction(function(tx)
        tx:exec("insert into work values (1)")
        local err = raised("sql", tx.advisory, tx, "x", {}, function()
          tx:exec("insert into work values (2)")
          pcall(tx.exec, tx, "select 1/0")
        end)
        assert.equal("25P02", err.sqlstate)
        assert.equal(1, rows())
      end)
      assert.equal(1, rows())
      assert.same({}, holders(lock.key("x")))
    end)

    it("released before the transaction has committed: a warning is logged", function()
      local code, out, err = script([[
        local function count(fn)
          io.stderr:write("--\n")
          fn()
        end
        count(function() lock.db:transaction(function(tx) tx:advisory("early"):release() end) end)
        count(function() lock.db:transaction(function(tx) tx:advisory("function", print) end) end)
        count(function() lock.db:advisory("late", function() lock.db:transaction(function() end) end) end)
        count(function() lock.db:transaction(function(tx) tx:advisory("xact", { xact = true }) end) end)
        count(function()
          pcall(lock.db.transaction, lock.db, function(tx)
            local held <close> = tx:advisory("failed")
            tx:exec("select 1/0")
          end)
        end)
      ]])
      assert.equal(0, code, err)
      assert.matches("function", out)
      local parts = {}
      for part in (err .. "--\n"):gmatch("(.-)%-%-\n") do
        parts[#parts + 1] = part:gsub("WARNING: password[^\n]*\n", "")
      end
      assert.matches('level=warning msg="lock \\"early\\" is released before', parts[2], 1, true)
      assert.matches('level=warning msg="lock \\"function\\" is released before', parts[3], 1, true)
      assert.equal("", parts[4])
      assert.equal("", parts[5])
      assert.equal("", parts[6])
    end)

    it("gone at its release is a lock_lost error, too, and the transaction is usable", function()
      db:transaction(function(tx)
        local held = tx:advisory("x")
        tx:exec("select pg_advisory_unlock_all()")
        raised("lock_lost", held.release, held)
        assert.equal(1, tx:value("select 1"))
        raised("lock_lost", tx.advisory, tx, "x", { timeout = "5s" }, function()
          tx:exec("select pg_advisory_unlock_all()")
        end)
        tx:exec("insert into work values (1)")
      end)
      assert.equal(1, rows())
    end)
  end)

  describe("in a transaction that has failed", function()
    local function fail(tx) pcall(tx.exec, tx, "select 1/0") end

    it("a release waits for its rollback, and is done then", function()
      local held
      local tx = db:begin()
      held = tx:advisory("x")
      fail(tx)
      held:release()
      held:release()
      assert.same({ db.pid }, holders(held.key))
      tx:rollback()
      assert.same({}, holders(held.key))
      assert.is_false(held:is_held())
    end)

    it("many releases wait, each for its own hold", function()
      local kept = db:advisory("kept")
      db:advisory("kept")
      local tx = db:begin()
      local guards = {}
      for i = 1, 20 do
        guards[i] = tx:advisory(i % 7, { shared = i % 2 == 0 })
      end
      guards[#guards + 1] = tx:advisory({ -3, 2147483647 })
      guards[#guards + 1] = tx:advisory(math.mininteger)
      fail(tx)
      for _, guard in ipairs(guards) do guard:release() end
      kept:release()
      guards = nil -- luacheck: ignore
      kept = nil -- luacheck: ignore
      collectgarbage()
      collectgarbage()
      local function objids()
        return t.observe(([[
          select string_agg(objid::text, ' ' order by objid) from pg_locks
           where locktype = 'advisory' and pid = %d]]):format(db.pid))
      end
      assert.is_true(#objids() > 20)
      tx:rollback()
      local _, objid = lock.key_parts(lock.key("kept"))
      assert.equal(tostring(objid), objids())
    end)

    it("a scope that is left releases at the rollback, whichever is outside", function()
      local err = raised("sql", db.transaction, db, function(tx)
        local _ <close> = tx:advisory("x")
        tx:exec("select 1/0")
      end)
      assert.equal("22012", err.sqlstate)
      assert.same({}, holders(lock.key("x")))
      err = raised("sql", function()
        local _ <close> = db:advisory("x")
        db:transaction(function(tx) tx:exec("select 1/0") end)
      end)
      assert.equal("22012", err.sqlstate)
      assert.same({}, holders(lock.key("x")))
    end)

    it("a rollback to a savepoint is enough", function()
      db:transaction(function(tx)
        local held = tx:advisory("x")
        local inner = tx:begin()
        fail(inner)
        held:release()
        assert.same({ db.pid }, holders(held.key))
        inner:rollback()
        assert.same({}, holders(held.key))
        tx:exec("insert into work values (1)")
      end)
      assert.equal(1, rows())
    end)

    it("a rollback by the user's own SQL is enough", function()
      for _, ending in ipairs({ "rollback", "commit", "rollback; select 1" }) do
        db:exec("begin")
        local held = db:advisory("x")
        fail(db)
        held:release()
        assert.same({ db.pid }, holders(held.key))
        db:exec(ending)
        assert.same({}, holders(held.key))
      end
      db:exec("begin; savepoint mine")
      local held = db:advisory("x")
      fail(db)
      held:release()
      db:exec("rollback to mine")
      assert.same({}, holders(held.key))
      db:exec("rollback")
    end)

    it("acquiring raises 25P02, in any form", function()
      for _, options in ipairs({ {}, { timeout = 0 }, { timeout = "5s" }, { timeout = "5s", poll = "10ms" },
        { xact = true }, { xact = true, timeout = 0 }, { xact = true, timeout = "5s" } }) do
        local tx = db:begin()
        fail(tx)
        assert.equal("25P02", raised("sql", tx.advisory, tx, "x", options).sqlstate)
        assert.equal("25P02", raised("sql", tx.advisory, tx, "x", options, print).sqlstate)
        tx:rollback()
      end
      assert.same({}, holders(lock.key("x")))
    end)

    it("a queued release goes with its session", function()
      local tx = db:begin()
      local held = tx:advisory("x")
      fail(tx)
      held:release()
      db:close()
      assert.is_false(held:is_held())
      held:release()
      t.wait_until(function() return #holders(lock.key("x")) == 0 end, "the end of its session")

      tx = other:begin()
      held = tx:advisory("x")
      fail(tx)
      held:release()
      t.observe(("select pg_terminate_backend(%d, 5000)"):format(other.pid))
      pcall(tx.rollback, tx)
      raised("lock_lost", other.query, other, "select 1")
      held:release()
      other:reconnect()
      assert.equal(1, other:value("select 1"))
    end)

    it("a queued release of a lock that is gone is logged as an error", function()
      local code, _, err = script([[
        local db = lock.db
        db:exec("begin")
        local held = db:advisory("vanished")
        db:exec("select pg_advisory_unlock_all()")
        pcall(db.exec, db, "select 1/0")
        held:release()
        db:exec("rollback")
        print(db:value("select 1"))
      ]])
      assert.equal(0, code, err)
      assert.matches('level=error msg="lock \\"vanished\\" was not held any more', err, 1, true)
    end)
  end)

  describe("transaction-level", function()
    it("is a usage error outside a transaction, without a function", function()
      for _, options in ipairs({ {}, { timeout = 0 }, { timeout = "5s" }, { shared = true } }) do
        options.xact = true
        assert.matches("transaction", raised("usage", db.advisory, db, "x", options).message)
      end
      assert.same({}, holders(lock.key("x")))
    end)

    it("ends with the transaction, committed or rolled back", function()
      local held
      db:transaction(function(tx)
        held = tx:advisory("x", { xact = true })
        assert.is_true(held.xact)
        assert.is_true(held:is_held())
        assert.same({ db.pid }, holders(held.key))
        assert.is_nil((other:advisory("x", { timeout = 0 })))
      end)
      assert.is_false(held:is_held())
      assert.same({}, holders(held.key))
      local tx = db:begin()
      held = tx:advisory("x", { xact = true, timeout = "5s" })
      tx:rollback()
      assert.is_false(held:is_held())
      assert.same({}, holders(held.key))
    end)

    it("ends with the savepoint that it was taken in, when that is rolled back", function()
      db:transaction(function(tx)
        local inner = tx:begin()
        local held = inner:advisory("x", { xact = true })
        inner:rollback()
        assert.is_false(held:is_held())
        inner = tx:begin()
        held = inner:advisory("x", { xact = true })
        inner:commit()
        assert.is_true(held:is_held())
      end)
      assert.same({}, holders(lock.key("x")))
    end)

    it("can't be released by hand, nor by the end of a scope", function()
      local held
      db:transaction(function(tx)
        do
          local scoped <close> = tx:advisory("x", { xact = true })
          assert.matches("transaction", raised("usage", scoped.release, scoped).message)
          held = scoped
        end
        assert.is_true(held:is_held())
        assert.same({ db.pid }, holders(held.key))
      end)
      raised("usage", held.release, held)
      assert.same({}, holders(held.key))
    end)

    it("with a function opens the transaction and commits it", function()
      local results = table.pack(db:advisory("x", { xact = true, timeout = "5s" }, function(held, ...)
        assert.is_true(db.in_transaction)
        assert.is_true(held.xact and held:is_held())
        db:exec("insert into work values (1)")
        return ...
      end, nil, 2, nil))
      assert.same({ n = 3, nil, 2, nil }, results)
      assert.is_false(db.in_transaction)
      assert.equal(1, rows())
      assert.same({}, holders(lock.key("x")))
    end)

    it("with a function rolls back when it raises", function()
      local mine = {}
      local ok, err = pcall(db.advisory, db, "x", { xact = true }, function()
        db:exec("insert into work values (1)")
        error(mine)
      end)
      assert.is_false(ok)
      assert.equal(mine, err)
      assert.is_false(db.in_transaction)
      assert.equal(0, rows())
      assert.same({}, holders(lock.key("x")))
      assert.equal("22012",
        raised("sql", db.advisory, db, "x", { xact = true }, function() db:exec("select 1/0") end).sqlstate)
      assert.is_false(db.in_transaction)
    end)

    it("with a function leaves no transaction open when the lock is not to be had", function()
      local held <close> = other:advisory("x")
      local got, err = db:advisory("x", { xact = true, timeout = 0, on_busy = "skip" }, error)
      assert.is_nil(got)
      assert.equal("not_acquired", err.kind)
      assert.is_false(db.in_transaction)
      raised("lock_timeout", db.advisory, db, "x", { xact = true, timeout = "5ms" }, error)
      assert.is_false(db.in_transaction)
      raised("usage", db.advisory, db, "x", { xact = true, timout = 0 }, error)
      assert.is_false(db.in_transaction)
      assert.is_true(held:is_held())
    end)

    it("with a function in an open transaction is a savepoint: its lock lasts until the outer end", function()
      db:transaction(function(tx)
        local held
        tx:advisory("x", { xact = true }, function(guard)
          tx:exec("insert into work values (1)")
          held = guard
        end)
        assert.is_true(held:is_held())
        pcall(tx.advisory, tx, "y", { xact = true }, function(guard)
          tx:exec("insert into work values (2)")
          held = guard
          error("rolled back")
        end)
        assert.is_false(held:is_held())
      end)
      assert.equal(1, rows())
      assert.same({}, holders(lock.key("x")))
    end)

    it("nests with session-level ones of the same session", function()
      local held <close> = db:advisory("x")
      db:transaction(function(tx)
        assert.is_true(tx:advisory("x", { xact = true, timeout = 0 }):is_held())
      end)
      assert.is_true(held:is_held())
      assert.is_nil((other:advisory("x", { timeout = 0 })))
    end)

    it("is also taken shared, and as a pair", function()
      db:transaction(function(tx)
        tx:advisory({ 1, -2 }, { xact = true, shared = true, timeout = "5s" })
        local too <close> = other:advisory({ 1, -2 }, { shared = true, timeout = 0 })
        assert.is_true(too:is_held())
        assert.is_nil((other:advisory({ 1, -2 }, { timeout = 0 })))
      end)
    end)
  end)

  describe("methods", function()
    it("of the transaction do what the session's do, until it is over", function()
      local tx = db:begin()
      tx:advisory("x", { xact = true })
      tx:guarded("y", { xact = true }, function() assert.is_true(#holders(lock.key("y")) == 1) end)()
      local held = lock.advisory("z", { using = tx })
      assert.same({ db.pid }, holders(held.key))
      tx:commit()
      raised("usage", tx.advisory, tx, "x", { xact = true })
      raised("usage", tx.advisory, tx, "x", { xact = true }, error)
      raised("usage", lock.advisory, "x", { using = tx }, error)
      held:release()
    end)
  end)

  describe("in a coroutine", function()
    it("locks are held, and transactions open, while it yields", function()
      local step = coroutine.wrap(function()
        return db:transaction(function(tx)
          tx:exec("insert into work values (1)")
          tx:advisory("x", { xact = true, timeout = "5s" }, function(held)
            coroutine.yield(held.key)
          end)
          return tx:advisory("y", function(held)
            tx:exec("insert into work values (2)")
            return coroutine.yield(held.key)
          end)
        end)
      end)
      local x, y = step(), step()
      assert.same({ db.pid }, holders(x))
      assert.same({ db.pid }, holders(y))
      assert.is_true(db.in_transaction)
      assert.equal("done", step("done"))
      assert.same({}, holders(x))
      assert.same({}, holders(y))
      assert.equal(2, rows())
    end)

    it("an error after a yield is rolled back and raised through", function()
      local step = coroutine.wrap(function()
        db:transaction(function(tx)
          tx:advisory("x", { timeout = "5s" }, function()
            tx:exec("insert into work values (2)")
            coroutine.yield()
            error("after the yield", 0)
          end)
        end)
      end)
      step()
      local ok, err = pcall(step)
      assert.is_false(ok)
      assert.equal("after the yield", err)
      assert.is_false(db.in_transaction)
      assert.equal(0, rows())
      assert.same({}, holders(lock.key("x")))
    end)
  end)

  describe("whatever the search_path", function()
    it("PostgreSQL's own functions, operators and catalogs are used", function()
      db:exec([[
        create schema hostile;
        create function hostile.pg_try_advisory_lock(int8) returns bool language sql as 'select true';
        create function hostile.pg_try_advisory_xact_lock(int8) returns bool language sql as 'select true';
        create function hostile.pg_advisory_lock(int8) returns void language sql as 'select';
        create function hostile.pg_advisory_unlock(int8) returns bool language sql as 'select true';
        create function hostile.set_config(text, text, bool) returns text language sql as 'select null::text';
        create function hostile.current_setting(text) returns text language sql as 'select ''1ms''::text';
        create function hostile.hashtext(text) returns int language sql as 'select 1';
        create function hostile.pg_backend_pid() returns int language sql as 'select 1';
        create function hostile.no(text, text) returns bool language sql as 'select false';
        create function hostile.no(oid, oid) returns bool language sql as 'select false';
        create function hostile.no(int2, int2) returns bool language sql as 'select false';
        create function hostile.no(int4, int4) returns bool language sql as 'select false';
        create operator hostile.= (leftarg = text, rightarg = text, function = hostile.no);
        create operator hostile.= (leftarg = oid, rightarg = oid, function = hostile.no);
        create operator hostile.= (leftarg = int2, rightarg = int2, function = hostile.no);
        create operator hostile.= (leftarg = int4, rightarg = int4, function = hostile.no);
        create table hostile.pg_locks (pid int, locktype text);
        create table hostile.pg_database (oid oid, datname text);
        create domain hostile.text as int;
        create domain hostile.oid as int;
        create domain hostile.int8 as int;
        create domain hostile.interval as int;
      ]])
      finally(function() t.psql("drop schema hostile cascade") end)
      local hash = lock.key("hello", { scheme = "hashtext", using = other })
      db:exec("set search_path = hostile, pg_catalog; set lock_timeout = '2s'")
      assert.equal(hash, db:key("hello", "hashtext"))
      for _, shared in ipairs({ false, true }) do
        local held = db:advisory("x", { shared = shared })
        assert.is_true(held:is_held())
        assert.same({ db.pid }, holders(held.key))
        held:release()
        assert.is_false(held:is_held())
        assert.same({}, holders(held.key))
      end
      local busy <close> = other:advisory("busy")
      for _, options in ipairs({ { timeout = 0 }, { timeout = "5ms" }, { timeout = "5ms", poll = "2ms" } }) do
        assert.is_nil((db:advisory("busy", options)))
        db:transaction(function(tx)
          assert.is_nil((tx:advisory("busy", options)))
          options.xact = true
          assert.is_nil((tx:advisory("busy", options)))
          assert.is_true(tx:advisory("free", options):is_held())
        end)
      end
      local start = t.now()
      raised("lock_timeout", db.advisory, db, "busy", { poll = "10ms" })
      assert.is_true(t.now() - start >= 2)
      assert.equal("2s", db:value("show lock_timeout"))
      db:transaction(function(tx)
        lock.timeout("7s", { using = tx }, function()
          assert.equal("7s", tx:value("show lock_timeout"))
        end)
        assert.equal("2s", tx:value("show lock_timeout"))
      end)
      lock.timeout("7s", { using = db }, function() assert.equal("7s", db:value("show lock_timeout")) end)
      assert.equal("2s", db:value("show lock_timeout"))
      assert.is_true(busy:is_held())
    end)
  end)
end)
