-- Through PgBouncer: lua-api.md, "Sessions" and "advisory".

local expect = require "tests.support.expect"
local t = require "tests.support"
local lock = require "lockkeeper"

local raised = expect.kind

local holders = t.holders_of

describe("in transaction mode", function()
  local bouncer, db

  setup(function() bouncer = t.start_pgbouncer() end)
  teardown(function() bouncer:stop() end)
  before_each(function() db = lock.connect({ conninfo = bouncer:conninfo() }) end)
  after_each(function() db:close() end)

  -- Every setting of the one server connection, as another client meets it.
  local function settings()
    return bouncer:psql("select name, setting, source from pg_settings order by name")
  end

  local function prepared()
    return bouncer:psql("select count(*) from pg_prepared_statements")
  end

  it("a session-level lock is refused with the reason and what to do", function()
    for _, options in ipairs({ {}, { timeout = 0 }, { timeout = "5s", shared = true }, { poll = "10ms" },
      { on_busy = "return" } }) do
      local err = raised("usage", db.advisory, db, "x", options)
      assert.matches("pooler", err.message)
      assert.matches("xact = true", err.hint, 1, true)
      assert.matches('pooler = "session"', err.hint, 1, true)
      assert.is_false(err.busy)
    end
    raised("usage", db.advisory, db, "x", print)
    raised("usage", db.advisory, db, "x", { on_busy = "skip", timeout = 0 }, print)
    raised("usage", db:guarded("x", print))
    assert.same({}, holders(lock.key("x")))
  end)

  it("a session-level lock is refused inside a transaction, too, which stays usable", function()
    db:transaction(function(tx)
      raised("usage", tx.advisory, tx, "x", { timeout = "5s" })
      raised("usage", tx.advisory, tx, "x", { timeout = 0 }, print)
      assert.equal(1, tx:value("select 1"))
    end)
  end)

  it("a transaction-level lock works, in all its forms", function()
    local other <close> = t.connect()
    db:transaction(function(tx)
      local held = tx:advisory("x", { xact = true })
      assert.is_true(held:is_held())
      assert.same(bouncer:backend_pids(), holders(held.key))
      assert.is_nil((other:advisory("x", { timeout = 0 })))
    end)
    assert.same({}, holders(lock.key("x")))
    assert.equal("done", db:advisory("x", { xact = true, timeout = "5s" }, function(held)
      assert.same(bouncer:backend_pids(), holders(held.key))
      return "done"
    end))
    assert.same({}, holders(lock.key("x")))
    local busy <close> = other:advisory("x")
    db:transaction(function(tx)
      for _, options in ipairs({ { timeout = 0 }, { timeout = "9ms" }, { timeout = "9ms", poll = "3ms" } }) do
        options.xact = true
        local _, err = tx:advisory("x", options)
        assert.is_true(err.busy)
        assert.equal(1, tx:value("select 1"))
      end
    end)
    local _, err = db:advisory("x", { xact = true, timeout = "10ms", on_busy = "skip" }, error)
    assert.equal("lock_timeout", err.kind)
    assert.is_true(busy:is_held())
  end)

  it("a table lock works", function()
    t.psql("create table pooled_table (a int)")
    finally(function() t.psql("drop table pooled_table") end)
    db:transaction(function(tx)
      assert.is_true(tx:model("pooled_table", { timeout = "5s" }))
    end)
  end)

  it("timeout works inside a transaction and is refused outside, with the reason", function()
    local err = raised("usage", db.timeout, db, "1s")
    assert.matches("pooler", err.message)
    assert.is_string(err.hint)
    raised("usage", db.timeout, db, "1s", print)
    db:transaction(function(tx)
      tx:timeout("1s", function() assert.equal("1s", tx:value("show lock_timeout")) end)
      assert.equal("0", tx:value("show lock_timeout"))
      tx:timeout("2s")
    end)
    assert.equal("0", db:value("show lock_timeout"))
  end)

  it("no setting, statement or lock leaks to another client", function()
    local before = settings()
    assert.matches("\nlock_timeout|0|default\n", before, 1, true)
    local other <close> = t.connect()
    local busy <close> = other:advisory("busy")
    for _ = 1, 3 do
      db:query("select $1::int", 1)
      db:transaction(function(tx)
        tx:advisory("x", { xact = true, timeout = "5s" })
        tx:advisory("busy", { xact = true, timeout = "5ms" })
        tx:timeout("1s", function() end)
        tx:timeout("2s")
        tx:query("select $1::int", 1)
      end)
      pcall(db.transaction, db, function(tx)
        tx:advisory("x", { xact = true, timeout = "5s" })
        tx:timeout("3s")
        tx:exec("select 1/0")
      end)
      pcall(db.transaction, db, function(tx)
        tx:timeout("3s", function() tx:exec("select 1/0") end)
      end)
    end
    assert.equal(before, settings())
    assert.equal("0", prepared())
    assert.same({}, holders(lock.key("x")))
    -- Also where it had to wait for the lock, which sets lock_timeout.
    local waiter = t.lockkeeper("run", "-", { env = { DATABASE_URL = bouncer:conninfo() }, stdin = [[
      local lock = require "lockkeeper"
      print(lock.db:transaction(function(tx)
        return tx:advisory("busy", { xact = true, timeout = "20s" }).waited > 0
      end))
    ]] })
    t.wait_until(function() return t.is_waiting(bouncer:backend_pids()[1]) end, "its wait")
    busy:release()
    assert.equal(0, waiter:wait(), waiter:stderr())
    assert.equal("true\n", waiter:stdout())
    assert.equal(before, settings())
    assert.equal("0", prepared())
  end)

  it("each of two clients has its own application_name", function()
    local one <close> = lock.connect({ conninfo = bouncer:conninfo({ application_name = "one" }) })
    local two <close> = lock.connect({ conninfo = bouncer:conninfo({ application_name = "two" }) })
    for _ = 1, 2 do
      assert.equal("one", one:value("show application_name"))
      assert.equal("two", two:value("show application_name"))
    end
    assert.equal("0", one:value("show lock_timeout"))
  end)
end)

describe("in session mode", function()
  local bouncer

  setup(function() bouncer = t.start_pgbouncer({ pool_mode = "session", pool_size = 2 }) end)
  teardown(function() bouncer:stop() end)

  it("a session-level lock is refused all the same unless pooler = \"session\" is said", function()
    local db <close> = lock.connect({ conninfo = bouncer:conninfo() })
    raised("usage", db.advisory, db, "x", { timeout = 0 })
  end)

  it('pooler = "session" makes everything work', function()
    local db <close> = lock.connect({ conninfo = bouncer:conninfo(), pooler = "session" })
    local other <close> = t.connect()
    local held = db:advisory("x", { timeout = "5s" })
    assert.is_true(held:is_held())
    assert.same({ db:value("select pg_backend_pid()") }, holders(held.key))
    local _, err = other:advisory("x", { timeout = 0 })
    assert.equal("not_acquired", err.kind)
    held:release()
    assert.same({}, holders(held.key))
    local busy <close> = other:advisory("x")
    _, err = db:advisory("x", { timeout = "10ms" })
    assert.equal("lock_timeout", err.kind)
    assert.equal("0", db:value("show lock_timeout"))
    db:timeout("1s", function() assert.equal("1s", db:value("show lock_timeout")) end)
    assert.equal("0", db:value("show lock_timeout"))
    for _ = 1, 3 do -- the second time it is prepared
      assert.equal(1, db:value("select $1::int", 1))
    end
    assert.is_true(busy:is_held())
  end)

  it("a lock ends with its client, and its settings with it", function()
    local db = lock.connect({ conninfo = bouncer:conninfo(), pooler = "session" })
    db:exec("set lock_timeout = '5s'")
    local key = db:advisory("left").key
    db:close()
    t.wait_until(function() return #holders(key) == 0 end, "PgBouncer's reset")
    assert.equal("0", bouncer:psql("show lock_timeout"))
  end)

  it("a terminated server connection is a lost lock", function()
    local db <close> = lock.connect({ conninfo = bouncer:conninfo(), pooler = "session" })
    local held = db:advisory("x")
    t.observe(("select pg_terminate_backend(%d, 5000)"):format(holders(held.key)[1]))
    raised("lock_lost", held.release, held)
    raised("lock_lost", db.exec, db, "select 1")
  end)
end)
