-- lua-api.md, "lock.retry", and locks.md 1.

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local raised, usage = expect.kind, expect.usage

-- Options that cost a test no time.
local function quick(more)
  local options = { timeout = "10ms", attempts = 3, delay = "1ms", max_delay = "5ms" }
  for name, value in pairs(more or {}) do
    options[name] = value
  end
  return options
end

local psql = require("tests.support.target").bindir() .. "/psql"

local function columns()
  return t.observe("select count(*) from information_schema.columns where table_schema = 'retry' "
    .. "and table_name = 'busy'")
end

describe("retry", function()
  local db, other

  setup(function()
    t.psql("create schema retry; create table retry.log (a int)")
  end)

  teardown(function() t.psql("drop schema retry cascade") end)

  before_each(function()
    t.psql([[
      drop table if exists retry.busy;
      create table retry.busy (a int primary key);
      insert into retry.busy values (1), (2);
      truncate retry.log]])
    db, other = t.connect(), t.connect()
  end)

  after_each(function()
    db:close()
    other:close()
  end)

  it("runs fn in a transaction under a lock timeout, and returns its results", function()
    local results = table.pack(db:retry({ timeout = "1234ms" }, function(tx, ...)
      assert.equal(0, select("#", ...))
      assert.equal("1234ms", tx:value("show lock_timeout"))
      assert.is_true(tx.in_transaction)
      tx:exec("insert into retry.log values (1)")
      return nil, "two", nil
    end))
    assert.same({ nil, "two", nil, n = 3 }, results)
    assert.is_false(db.in_transaction)
    assert.equal("0", db:value("show lock_timeout"))
    assert.equal(1, db:value("select count(*) from retry.log"))
  end)

  it("takes its options' defaults: 2s", function()
    assert.equal("2s", db:retry(function(tx) return tx:value("show lock_timeout") end))
    assert.equal("2s", db:retry({}, function(tx) return tx:value("show lock_timeout") end))
    assert.equal("2s", db:retry(nil, function(tx) return tx:value("show lock_timeout") end))
  end)

  it("on a lock timeout rolls back, waits, and tries again", function()
    local tx = other:begin()
    tx:exec("lock table retry.busy in access share mode")
    local tries = 0
    assert.equal("done", lock.retry(quick { attempts = 10, using = db }, function(mine)
      tries = tries + 1
      mine:exec("insert into retry.log values ($1)", tries)
      if tries == 3 then
        tx:rollback()
      end
      mine:exec("alter table retry.busy add b int")
      return "done"
    end))
    assert.equal(3, tries)
    assert.equal("2", columns())
    assert.same({ { a = 3 } }, db:query("select a from retry.log"))
  end)

  it("on a deadlock tries again", function()
    db:exec("set deadlock_timeout = '10ms'")
    local child
    local tries = 0
    db:retry(quick { timeout = "30s" }, function(tx)
      tries = tries + 1
      tx:exec("update retry.busy set a = 11 where a = 1")
      if tries == 1 then
        child = t.spawn { psql, "-Xqd", t.conninfo(), "-c", "set deadlock_timeout = '1h'",
          "-c", "update retry.busy set a = 12 where a = 2; update retry.busy set a = 21 where a = 1" }
        t.wait_until(function()
          return t.observe("select 1 from pg_locks where not granted limit 1") == "1"
        end)
      end
      tx:exec("update retry.busy set a = 22 where a = 2")
    end)
    assert.equal(0, child:wait(), child:stderr())
    assert.equal(2, tries)
    assert.equal("12,21", t.observe("select string_agg(a::text, ',' order by a) from retry.busy"))
  end)

  it("after the last attempt raises its error, which says how many there were", function()
    local tx <close> = other:begin()
    tx:exec("lock table retry.busy in access share mode")
    for _, attempts in ipairs { 1, 4 } do
      local tries = 0
      local err = raised("lock_timeout", db.retry, db, quick { attempts = attempts }, function(mine)
        tries = tries + 1
        mine:exec("alter table retry.busy add b int")
      end)
      assert.equal(attempts, tries)
      assert.equal(attempts, err.attempts)
      assert.equal("55P03", err.sqlstate)
      assert.is_true(err.busy)
      assert.matches(attempts == 1 and "%(after 1 attempt%)" or "%(after 4 attempts%)", err.message)
      assert.matches("retry_spec.lua", err.traceback)
      assert.is_false(db.in_transaction)
    end
    assert.equal("1", columns())
  end)

  it("every other error is raised at once, after a rollback", function()
    local tries = 0
    local function failing(how)
      return function(tx)
        tries = tries + 1
        tx:exec("insert into retry.log values (1)")
        how(tx)
      end
    end
    local mine = {}
    assert.equal(mine, expect.raised(db.retry, db, quick(), failing(function() error(mine) end)))
    assert.is_nil(expect.raised(db.retry, db, quick(), failing(function() error() end)))
    assert.equal("lock_timeout", expect.raised(db.retry, db, quick(),
      failing(function() error("lock_timeout", 0) end)))
    for state, kind in pairs { ["40001"] = "sql", ["57014"] = "sql", ["23505"] = "sql" } do
      local err = raised(kind, db.retry, db, quick(), failing(function(tx)
        tx:exec(("do $$ begin raise exception 'x' using errcode = '%s'; end $$"):format(state))
      end))
      assert.equal(state, err.sqlstate)
      assert.is_nil(err.attempts)
    end
    raised("usage", db.retry, db, quick(), failing(function(tx) tx:advisory(1.5) end))
    assert.equal(7, tries)
    assert.equal(0, db:value("select count(*) from retry.log"))
    assert.is_false(db.in_transaction)
  end)

  it("a lock that a try in fn did not get is one that was not to be had", function()
    local held = other:advisory("retry")
    local tx = other:begin()
    tx:model("retry.busy", { mode = "ACCESS SHARE" })
    local tries = 0
    local err = raised("not_acquired", db.retry, db, quick { attempts = 2 }, function(mine)
      tries = tries + 1
      if tries == 1 then
        mine:model("retry.busy", { timeout = 0, on_busy = "raise" })
      else
        mine:advisory("retry", { timeout = 0, xact = true, on_busy = "raise" })
      end
    end)
    assert.equal(2, err.attempts)
    tx:rollback()
    held:release()
  end)

  it("a lock timeout that fn handles itself is no reason to try again", function()
    local tx <close> = other:begin()
    tx:model("retry.busy", { mode = "ACCESS SHARE" })
    local tries = 0
    assert.is_nil(db:retry(quick(), function(mine)
      tries = tries + 1
      return (mine:model("retry.busy", { timeout = "5ms" }))
    end))
    assert.equal(1, tries)
    -- but a transaction that has failed can't be committed
    assert.equal("25P02", raised("sql", db.retry, db, quick(), function(mine)
      pcall(mine.exec, mine, "alter table retry.busy add b int")
    end).sqlstate)
  end)

  it("also when another session's lock was not to be had: the work as a whole was not done", function()
    local held <close> = other:advisory("retry")
    local third <close> = t.connect()
    third:exec("set lock_timeout = '5ms'")
    local tries = 0
    raised("lock_timeout", db.retry, db, quick { attempts = 2 }, function()
      tries = tries + 1
      third:advisory("retry")
    end)
    assert.equal(2, tries)
    assert.is_true(held:is_held())
  end)

  it("a deferred constraint that waits at the commit is tried again, too", function()
    db:exec([[
      create table if not exists retry.deferred (a int);
      create or replace function retry.lock_it() returns trigger language plpgsql as
        $$ begin lock table retry.busy in access exclusive mode; return null; end $$;
      create constraint trigger deferred after insert on retry.deferred deferrable initially deferred
        for each row execute function retry.lock_it()]])
    local tx = other:begin()
    tx:model("retry.busy", { mode = "ACCESS SHARE" })
    local tries = 0
    db:retry(quick(), function(mine)
      tries = tries + 1
      mine:exec("insert into retry.deferred values ($1)", tries)
      if tries == 2 then
        tx:rollback()
      end
    end)
    assert.equal(2, tries)
    assert.same({ { a = 2 } }, db:query("select a from retry.deferred"))
    db:exec("drop table retry.deferred")
  end)

  it("the delays grow by the factor up to max_delay, and are shorter by chance, never longer", function()
    local tx <close> = other:begin()
    tx:model("retry.busy", { mode = "ACCESS SHARE" })
    local ends = {}
    raised("lock_timeout", db.retry, db,
      { timeout = "1ms", attempts = 6, delay = "20ms", factor = 3, max_delay = "100ms", jitter = 0.5 },
      function(mine)
        ends[#ends + 1] = t.now()
        mine:model("retry.busy", { on_busy = "raise" })
      end)
    local least = { 0.01, 0.03, 0.05, 0.05, 0.05 }
    for i, seconds in ipairs(least) do
      assert.is_true(ends[i + 1] - ends[i] >= seconds, i)
      assert.is_true(ends[i + 1] - ends[i] < 5)
    end
  end)

  it("last_without_timeout: the last attempt waits as long as it takes", function()
    local seen = {}
    local tx <close> = other:begin()
    tx:model("retry.busy", { mode = "ACCESS SHARE" })
    db:exec("set lock_timeout = '77s'")
    db:retry(quick { last_without_timeout = true }, function(mine)
      seen[#seen + 1] = mine:value("show lock_timeout")
      if #seen < 3 then
        mine:exec("alter table retry.busy add b int")
      end
    end)
    assert.same({ "10ms", "10ms", "0" }, seen)
    assert.equal("77s", db:value("show lock_timeout"))
  end)

  it("timeout = false waits as long as it takes in every attempt, whatever the session's is", function()
    db:exec("set lock_timeout = '77s'")
    assert.equal("0", db:retry({ timeout = false }, function(tx) return tx:value("show lock_timeout") end))
    assert.equal("77s", db:value("show lock_timeout"))
  end)

  it("logs each retry at info: attempt, waited and error", function()
    local tx <close> = other:begin()
    tx:model("retry.busy", { mode = "ACCESS SHARE" })
    local code, _, log = t.run("run", "--log-format", "json", "-", { stdin = [[
      local lock = require "lockkeeper"
      lock.retry({ timeout = "1ms", attempts = 3, delay = "1ms" }, function(tx)
        tx:exec("alter table retry.busy add b int")
      end)]] })
    assert.equal(75, code, log)
    local attempts = {}
    for line in log:gmatch("[^\n]+") do
      local ok, event = pcall(lock.json.decode, line)
      if ok and type(event) == "table" and event.attempt then
        assert.equal("info", event.level)
        assert.is_true(tonumber(event.waited) > 0)
        assert.matches("lock timeout", event.error)
        attempts[#attempts + 1] = tonumber(event.attempt)
      end
    end
    assert.same({ 1, 2 }, attempts)
    assert.matches("after 3 attempts", log)
  end)

  it("in an open transaction is a usage error: a rollback would lose the caller's work", function()
    db:transaction(function(tx)
      local function never() error("called") end
      usage("a transaction is open", tx.retry, tx, quick(), never)
      usage("a transaction is open", db.retry, db, quick(), never)
      usage("a transaction is open", lock.retry, quick { using = tx }, never)
      assert.equal(1, tx:value("select 1"))
    end)
    usage("a transaction is open", db.retry, db, quick(), function() db:retry(quick(), print) end)
  end)

  it("its wait is interrupted by a signal, and ends with its task", function()
    local tx <close> = other:begin()
    tx:model("retry.busy", { mode = "ACCESS SHARE" })
    local child = t.lockkeeper("run", "-", { stdin = [[
      local lock = require "lockkeeper"
      lock.retry({ timeout = "1ms", delay = "1h", max_delay = "1h" }, function(tx)
        tx:exec("alter table retry.busy add b int")
      end)]] })
    t.wait_until(function() return child:stderr():find("attempt 1 of 30", 1, true) end, "the first attempt")
    child:signal("INT")
    assert.equal(130, child:wait())
    local tries = 0
    assert.equal("enough", expect.raised(lock.tasks, function(spawn)
      spawn(function()
        db:retry({ timeout = "1ms", delay = "1h", max_delay = "1h" }, function(mine)
          tries = tries + 1
          mine:exec("alter table retry.busy add b int")
        end)
      end)
      spawn(function()
        while tries == 0 or db.in_transaction do
          lock.sleep("2ms")
        end
        error("enough", 0)
      end)
    end))
    assert.equal(1, tries)
  end)

  it("a session that ends in the middle is raised at once, and nothing is done twice", function()
    local tries = 0
    local err = expect.raised(db.retry, db, quick(), function(tx)
      tries = tries + 1
      tx:exec("insert into retry.log values (1)")
      t.observe(("select pg_terminate_backend(%d)"):format(db.pid))
      tx:exec("select 1")
    end)
    assert.equal("connection", err.kind)
    assert.equal(1, tries)
    err = expect.raised(db.retry, db, quick(), function() tries = tries + 1 end)
    assert.equal("connection", err.kind)
    assert.equal(1, tries)
  end)

  it("works through a pooler, and under a search_path that shadows PostgreSQL's names", function()
    local bouncer = t.start_pgbouncer()
    do
      local pooled <close> = lock.connect({ conninfo = bouncer:conninfo() })
      assert.equal("10ms", pooled:retry(quick(), function(tx) return tx:value("show lock_timeout") end))
      assert.equal("0", pooled:value("show lock_timeout"))
    end
    bouncer:stop()
    t.psql([[
      create schema shadow;
      create function shadow.set_config(text, text, bool) returns text language sql as 'select null::text']])
    local shadowed <close> = t.connect({ options = "-csearch_path=shadow,pg_catalog" })
    assert.equal("10ms", shadowed:retry(quick(), function(tx) return tx:value("show lock_timeout") end))
    t.psql("drop schema shadow cascade")
  end)

  it("refuses options that make no sense, and names them", function()
    local function refused(text, options)
      usage(text, db.retry, db, options, print)
    end
    refused('unknown option "atempts"; did you mean "attempts"?', { atempts = 3 })
    refused("the options must be a table", 5)
    refused("timeout of 0", { timeout = 0 })
    refused("longer than PostgreSQL can count", { timeout = "25d" })
    for _, name in ipairs { "timeout", "delay", "max_delay" } do
      for _, wrong in ipairs { "soon", -1, 0 / 0, true, {} } do
        refused("retry: " .. name, { [name] = wrong })
      end
    end
    refused("delay must be a time", { delay = false })
    refused("max_delay (1 s) is shorter than delay (2 s)", { delay = 2, max_delay = 1 })
    for _, wrong in ipairs { 0, -1, 1.5, "3", false, math.huge } do
      refused("attempts must be an integer", { attempts = wrong })
    end
    for _, wrong in ipairs { 0.5, -1, 0 / 0, math.huge, "2", true } do
      refused("factor must be a number from 1", { factor = wrong })
    end
    for _, wrong in ipairs { -0.1, 1.1, 0 / 0, "0.5", true } do
      refused("jitter must be a number from 0 to 1", { jitter = wrong })
    end
    refused("last_without_timeout must be true or false", { last_without_timeout = 1 })
    usage("the last argument must be a function, not a nil", db.retry, db, {})
    usage("the last argument must be a function, not a nil", db.retry, db)
    usage("the last argument must be a function, not a string", db.retry, db, {}, "x")
    usage("no session named", lock.retry, { using = "retry-nowhere" }, print)
  end)

  it("takes the session by using, as an object or a name", function()
    local named <close> = t.connect({ name = "retry-using" })
    assert.equal(named.pid, lock.retry({ using = "retry-using" }, function(tx) return tx.pid end))
    assert.equal(db.pid, lock.retry({ using = db }, function(tx) return tx.pid end))
  end)
end)
