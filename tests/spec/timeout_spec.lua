-- lua-api.md, "timeout", and locks.md 2.

local expect = require "tests.support.expect"
local t = require "tests.support"
local lock = require "lockkeeper"

local raised = expect.kind

-- Leaves the scope of what lock.timeout returned.
local function leave(timeout)
  getmetatable(timeout).__close(timeout)
end

describe("timeout", function()
  local db

  before_each(function() db = t.connect() end)
  after_each(function() db:close() end)

  local function shown() return db:value("show lock_timeout") end
  local function source() return db:value("select source from pg_settings where name = 'lock_timeout'") end

  describe("around a function", function()
    it("sets lock_timeout inside and puts the earlier value back", function()
      db:timeout("1s", function() assert.equal("1s", shown()) end)
      assert.equal("0", shown())
      db:exec("set lock_timeout = '1min'")
      db:timeout("1500ms", function() assert.equal("1500ms", shown()) end)
      assert.equal("1min", shown())
    end)

    it("passes arguments and results through", function()
      local function count(...) return select("#", ...), ... end
      local results = table.pack(db:timeout("1s", {}, count, nil, 2, nil))
      assert.same({ n = 4, 3, nil, 2, nil }, results)
      assert.same({ n = 1, 0 }, table.pack(db:timeout("1s", function(...) return select("#", ...) end)))
    end)

    it("puts it back when the function raises, and raises the same", function()
      local mine = {}
      local ok, err = pcall(db.timeout, db, "1s", function() error(mine) end)
      assert.is_false(ok)
      assert.equal(mine, err)
      assert.equal("0", shown())
      err = raised("sql", db.timeout, db, "1s", function() db:exec("select 1/0") end)
      assert.equal("22012", err.sqlstate)
      assert.equal("0", shown())
    end)

    it("makes a statement that waits longer fail with 55P03, of kind lock_timeout", function()
      local other <close> = t.connect()
      local held <close> = other:advisory("x")
      local err = raised("lock_timeout", db.timeout, db, "20ms", function()
        db:exec("select pg_advisory_lock($1)", held.key)
      end)
      assert.equal("55P03", err.sqlstate)
      assert.is_true(err.busy)
      -- A lock without a timeout of its own inherits it.
      raised("lock_timeout", db.timeout, db, "20ms", function() db:advisory("x") end)
      assert.equal("0", shown())
      assert.is_true(held:is_held())
    end)
  end)

  describe("with a scope", function()
    it("ends with the scope, also by an error or break", function()
      do
        local _ <close> = db:timeout("1500ms")
        assert.equal("1500ms", shown())
      end
      assert.equal("0", shown())
      pcall(function()
        local _ <close> = db:timeout("2s")
        error("left")
      end)
      assert.equal("0", shown())
      repeat
        local _ <close> = db:timeout("2s")
        assert.equal("2s", shown())
      until true
      assert.equal("0", shown())
    end)

    it("nests", function()
      local _ <close> = db:timeout("4s")
      do
        local _ <close> = db:timeout("3s")
        db:timeout("2s", function()
          db:timeout("1s", function() assert.equal("1s", shown()) end)
          assert.equal("2s", shown())
        end)
        assert.equal("3s", shown())
      end
      assert.equal("4s", shown())
    end)

    it("is closed once", function()
      local timeout = db:timeout("1s")
      leave(timeout)
      db:exec("set lock_timeout = '9s'")
      leave(timeout)
      assert.equal("9s", shown())
    end)
  end)

  describe("its duration", function()
    it("is in seconds or with units; false is without limit", function()
      for duration, expected in pairs({ [1] = "1s", [0.25] = "250ms", [0.001] = "1ms", ["250ms"] = "250ms",
        ["1h30m"] = "90min", ["1d"] = "1d", [2147483.647] = "2147483647ms" }) do
        db:timeout(duration, function() assert.equal(expected, shown()) end)
      end
      db:exec("set lock_timeout = '5s'")
      db:timeout(false, function() assert.equal("0", shown()) end)
      assert.equal("5s", shown())
    end)

    it("is never shorter than asked for: a part of a millisecond counts as one", function()
      db:timeout(0.0015, function() assert.equal("2ms", shown()) end)
    end)

    it("of 0 is a usage error, since PostgreSQL takes that for no limit", function()
      for _, zero in ipairs({ 0, 0.0, -0.0, "0s", "0ms" }) do
        raised("usage", db.timeout, db, zero)
        raised("usage", db.timeout, db, zero, error)
      end
      assert.equal("0", shown())
    end)

    it("over 2^31-1 ms, or no duration at all, is a usage error", function()
      for _, wrong in ipairs({ 2147483.648, "25d", 1e300, 1 / 0, 0 / 0, -1, "-1s", 0.0005, "", "5", "soon",
        "5 s", true, {}, print, ("9"):rep(10000000) .. "s", "1s\0" }) do
        raised("usage", db.timeout, db, wrong)
        raised("usage", db.timeout, db, wrong, error)
      end
      raised("usage", db.timeout, db)
      raised("usage", db.timeout, db, nil, error)
      assert.equal("default", source())
    end)
  end)

  describe("options", function()
    it("using: a session or its name; a session's own method needs none", function()
      local named = t.connect({ name = "timeout_spec" })
      for _, using in ipairs({ named, "timeout_spec" }) do
        lock.timeout("1s", { using = using }, function()
          assert.equal("1s", named:value("show lock_timeout"))
        end)
        do
          local _ <close> = lock.timeout("2s", { using = using })
          assert.equal("2s", named:value("show lock_timeout"))
        end
        assert.equal("0", named:value("show lock_timeout"))
      end
      assert.equal("0", shown())
      named:close()
    end)

    it("that are unknown, or no options, are a usage error", function()
      assert.matches('unknown option "usin"; did you mean "using"?',
        raised("usage", db.timeout, db, "1s", { usin = db }).message, 1, true)
      raised("usage", db.timeout, db, "1s", { timeout = "1s" }, error)
      raised("usage", db.timeout, db, "1s", "2s")
      raised("usage", db.timeout, db, "1s", 5, error)
      raised("usage", db.timeout, db, "1s", {}, "no function")
      for _, wrong in ipairs({ "nobody", 5, false, {}, print }) do
        raised("usage", lock.timeout, "1s", { using = wrong })
        raised("usage", lock.timeout, "1s", { using = wrong }, error)
      end
      assert.equal("default", source())
    end)
  end)

  describe("outside a transaction", function()
    it("locks.md 2: restores exactly what was: RESET where the session had no value of its own", function()
      assert.equal("default", source())
      db:timeout("1s", function() assert.equal("session", source()) end)
      assert.equal("default", source())
      local client = t.connect({ options = "-c lock_timeout=90s" })
      client:timeout("1s", function() end)
      assert.same({ setting = "90000", source = "client" },
        client:one("select setting, source from pg_settings where name = 'lock_timeout'"))
      client:exec("set lock_timeout = '1min'")
      client:timeout("1s", function() end)
      assert.equal("1min", client:value("show lock_timeout"))
      client:exec("reset lock_timeout")
      assert.equal("90s", client:value("show lock_timeout"))
      client:close()
    end)

    it("locks.md 2: keeps the earlier value per session, not per process", function()
      local other <close> = t.connect()
      db:exec("set lock_timeout = '5s'")
      other:exec("set lock_timeout = '6s'")
      local one, two = db:timeout("1s"), other:timeout("2s")
      leave(one)
      assert.equal("5s", shown())
      assert.equal("2s", other:value("show lock_timeout"))
      leave(two)
      assert.equal("6s", other:value("show lock_timeout"))
    end)

    it("puts it back in spite of what the inside sets, or resets", function()
      for _, sql in ipairs({ "set lock_timeout = '9s'", "reset lock_timeout", "reset all", "discard all" }) do
        db:exec("set lock_timeout = '5s'")
        db:timeout("1s", function() db:exec(sql) end)
        assert.equal("5s", shown(), sql)
      end
    end)

    it("holds for transactions inside, whether they commit or roll back", function()
      db:timeout("1s", function()
        db:transaction(function() assert.equal("1s", shown()) end)
        pcall(db.transaction, db, function() error("rolled back") end)
        assert.equal("1s", shown())
      end)
      assert.equal("0", shown())
    end)
  end)

  describe("inside a transaction", function()
    it("is SET LOCAL: nothing outlives the transaction, committed, rolled back or failed", function()
      db:exec("set lock_timeout = '5s'")
      local timeout
      db:transaction(function(tx)
        timeout = tx:timeout("1s")
        assert.equal("1s", shown())
      end)
      assert.equal("5s", shown())
      leave(timeout)
      assert.equal("5s", shown())
      pcall(db.transaction, db, function(tx)
        timeout = tx:timeout("1s")
        error("rolled back")
      end)
      assert.equal("5s", shown())
      pcall(db.transaction, db, function(tx)
        timeout = tx:timeout("1s")
        tx:exec("select 1/0")
      end)
      assert.equal("5s", shown())
      leave(timeout)
      assert.equal("5s", shown())
    end)

    it("puts the earlier value back within the transaction", function()
      db:exec("set lock_timeout = '5s'")
      db:transaction(function(tx)
        tx:timeout("1s", function() assert.equal("1s", shown()) end)
        assert.equal("5s", shown())
        tx:exec("set local lock_timeout = '7s'")
        tx:timeout("1s", function()
          tx:timeout("2s", function() assert.equal("2s", shown()) end)
          assert.equal("1s", shown())
        end)
        assert.equal("7s", shown())
      end)
      assert.equal("5s", shown())
      -- A value set for the session inside is kept by the commit.
      db:transaction(function(tx)
        tx:exec("set lock_timeout = '8s'")
        tx:timeout("1s", function() end)
        assert.equal("8s", shown())
      end)
      assert.equal("8s", shown())
    end)

    it("in one that has failed, puts it back at the rollback", function()
      db:exec("set lock_timeout = '5s'")
      local tx = db:begin()
      tx:exec("set local lock_timeout = '7s'")
      local inner = tx:begin()
      raised("sql", inner.timeout, inner, "1s", function() inner:exec("select 1/0") end)
      inner:rollback()
      assert.equal("7s", shown())
      -- Set before the savepoint, left after the failure inside it.
      local timeout = tx:timeout("1s")
      inner = tx:begin()
      pcall(inner.exec, inner, "select 1/0")
      leave(timeout)
      inner:rollback()
      assert.equal("7s", shown())
      raised("sql", tx.timeout, tx, "1s", function() tx:exec("select 1/0") end)
      tx:rollback()
      assert.equal("5s", shown())
    end)

    it("in one that has failed, can't be set: 25P02", function()
      local tx <close> = db:begin()
      pcall(tx.exec, tx, "select 1/0")
      assert.equal("25P02", raised("sql", tx.timeout, tx, "1s").sqlstate)
      assert.equal("25P02", raised("sql", tx.timeout, tx, "1s", error).sqlstate)
    end)

    it("left in the next transaction, does not touch that", function()
      local tx = db:begin()
      local timeout = tx:timeout("1s")
      tx:commit()
      tx = db:begin()
      tx:exec("set local lock_timeout = '7s'")
      leave(timeout)
      assert.equal("7s", shown())
      tx:commit()
      assert.equal("0", shown())
    end)

    it("with a lock that times out in it, stays what it is", function()
      local other <close> = t.connect()
      local held <close> = other:advisory("x")
      db:transaction(function(tx)
        tx:timeout("30ms", function()
          assert.equal("lock_timeout", raised("lock_timeout", tx.advisory, tx, "x").kind)
          assert.equal("30ms", shown())
          assert.is_nil((tx:advisory("x", { timeout = "5ms", xact = true })))
          assert.equal("30ms", shown())
        end)
        assert.equal("0", shown())
      end)
      assert.is_true(held:is_held())
    end)
  end)

  describe("entered outside and left inside a transaction", function()
    -- timeout() outside, then in the transaction `sql`, leave, `later`; how it ends; what is shown then.
    local CASES = {
      { "commit", nil, nil, "5s", "is restored" },
      { "rollback", nil, nil, "5s", "is restored although the rollback undoes that" },
      { "rollback", "select 1/0", nil, "5s", "is restored at the rollback where it had failed" },
      { "commit", "select 1/0", nil, "5s", "is restored at the failed commit" },
      { "rollback", "set lock_timeout = '7s'; select 1/0", nil, "5s",
        "is restored whatever was set before it failed" },
      { "commit", "set lock_timeout = '7s'", nil, "5s", "is restored whatever it had set itself" },
      { "rollback", "set lock_timeout = '7s'", nil, "5s", "is restored whatever was set and undone" },
      { "commit", nil, "set lock_timeout = '9s'", "9s", "leaves alone what is set after it" },
      { "rollback", nil, "set lock_timeout = '9s'", "5s",
        "is restored where what was set after it is undone" },
      { "commit", nil, "set local lock_timeout = '9s'", "5s", "leaves no SET LOCAL that came after it" },
    }
    for _, case in ipairs(CASES) do
      it(("%s (%s; leave; %s; %s)"):format(case[5], case[2], case[3], case[1]), function()
        db:exec("set lock_timeout = '5s'")
        local timeout = db:timeout("1s")
        db:exec("begin")
        pcall(db.exec, db, case[2] or "select 1")
        leave(timeout)
        if not case[2] or not case[2]:find("1/0") then
          assert.equal("5s", shown())
        end
        pcall(db.exec, db, case[3] or "select 1")
        db:exec(case[1])
        assert.equal(case[4], shown())
        -- Nothing is left to be done later.
        db:exec("set lock_timeout = '6s'")
        db:transaction(function() end)
        assert.equal("6s", shown())
      end)
    end

    it("nested ones are restored in their order", function()
      for _, ending in ipairs({ "commit", "rollback" }) do
        for _, fail in ipairs({ false, true }) do
          db:exec("set lock_timeout = '5s'")
          local one, two, three = db:timeout("1s"), db:timeout("2s"), db:timeout("3s")
          db:exec("begin")
          pcall(db.exec, db, fail and "select 1/0" or "select 1")
          leave(three)
          leave(two)
          leave(one)
          db:exec(ending)
          assert.equal("5s", shown())
        end
      end
      db:exec("reset lock_timeout")
      local one, two = db:timeout("1s"), db:timeout("2s")
      db:exec("begin")
      leave(two)
      leave(one)
      db:exec("rollback")
      assert.equal("0", shown())
      assert.equal("default", source())
    end)
  end)

  describe("a session that has ended", function()
    it("took the setting with it: leaving says nothing of its own", function()
      local closed = t.connect()
      local timeout = closed:timeout("1s")
      closed:close()
      leave(timeout)
      timeout = db:timeout("1s")
      t.observe(("select pg_terminate_backend(%d, 5000)"):format(db.pid))
      raised("connection", db.exec, db, "select 1")
      leave(timeout)
      db:reconnect()
      assert.equal("0", shown())
    end)

    it("and was opened again in between is not touched", function()
      local timeout = db:timeout("1s")
      db:reconnect()
      db:exec("set lock_timeout = '9s'")
      leave(timeout)
      assert.equal("9s", shown())
    end)
  end)

  describe("while rows are streamed", function()
    it("is refused, and put back after the loop where it was entered before", function()
      db:timeout("1s", function()
        for _ in db:rows("select generate_series(1, 3)") do
          raised("usage", db.timeout, db, "2s", error)
        end
      end)
      assert.equal("0", shown())
    end)

    it("is put back after rows that nobody read to their end", function()
      local rows
      db:timeout("1s", function()
        rows = db:rows("select generate_series(1, 3)")
        rows()
      end)
      while rows() do end
      assert.equal("0", shown())
    end)
  end)

  describe("in a coroutine", function()
    it("may yield inside", function()
      local step = coroutine.wrap(function()
        local _ <close> = db:timeout("1s")
        coroutine.yield()
        return db:timeout("2s", function() return coroutine.yield() end)
      end)
      step()
      assert.equal("1s", shown())
      step()
      assert.equal("2s", shown())
      assert.equal("sent", step("sent"))
      assert.equal("0", shown())
      local co = coroutine.create(function()
        db:timeout("1s", coroutine.yield)
      end)
      coroutine.resume(co)
      assert.equal("1s", shown())
      assert.is_true(coroutine.close(co))
      assert.equal("0", shown())
    end)
  end)

  it("works on the default session without using", function()
    local code, out, err = t.run("run", "-", { stdin = [[
      local lock = require "lockkeeper"
      local _ <close> = lock.timeout("1s")
      print(lock.db:value("show lock_timeout"))
      lock.timeout("2s", function(a) print(a, lock.db:value("show lock_timeout")) end, "argument")
    ]] })
    assert.equal(0, code, err)
    assert.equal("1s\nargument\t2s\n", out)
  end)
end)
