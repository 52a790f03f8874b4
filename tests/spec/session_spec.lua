-- lua-api.md, "Conventions" and "Sessions": durations, errors, options; connect, query, one, value,
-- exec, properties, close; statements that are kept prepared; names that shadow pg_catalog's.

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local raised, usage = expect.raised, expect.usage

describe("a duration", function()
  local db

  before_each(function() db = t.connect() end)
  after_each(function() db:close() end)

  -- What lock_timeout is, in milliseconds, while a duration is set.
  local function in_ms(duration)
    local tx <close> = db:begin()
    return tx:timeout(duration, function()
      return tx:value("select setting::int8 from pg_settings where name = 'lock_timeout'")
    end)
  end

  it("is seconds, or a text with units", function()
    for _, case in ipairs({ { 1, 1000 }, { 0.25, 250 }, { 0.001, 1 }, { "250ms", 250 }, { "5s", 5000 },
      { "2m", 120000 }, { "1h30m", 5400000 }, { "1d", 86400000 }, { "1.5s", 1500 },
      { 2147483.647, 2147483647 }, { "2147483647ms", 2147483647 } }) do
      assert.equal(case[2], in_ms(case[1]), tostring(case[1]))
    end
  end)

  it("is false for no limit", function()
    assert.equal(0, in_ms(false))
  end)

  it("is a usage error where it is anything else", function()
    for _, duration in ipairs({ "", "5", "5x", "s", "1m2h", "-5s", "1s ", " 1s", "1.s", "1s1s", "0x10s",
      "1e3s", "١s", "5 s", ("9"):rep(100) .. "s", "1\0s", -1, 0 / 0, math.huge, -math.huge, 0.0005,
      "0.5ms", true, {}, print }) do
      local err = raised(lock.sleep, duration)
      assert.equal("usage", err.kind, tostring(duration))
      assert.matches("sleep", err.message)
    end
    usage("sleep must be seconds, a text such as \"250ms\", or false for no limit; it is nil", lock.sleep)
  end)

  it("is a usage error over 2^31 - 1 ms where it becomes a setting, and only there", function()
    for _, duration in ipairs({ 2147483.648, "25d", "2147483648ms" }) do
      usage("longer than PostgreSQL can count", in_ms, duration)
    end
    db:notify("x")
    db:listen("x")
    db:notify("x")
    assert.equal("x", db:wait_notify("25d").channel)
  end)

  it("is what a sleep lasts", function()
    local began = t.now()
    lock.sleep("20ms")
    assert.is_true(t.now() - began >= 0.019)
    lock.sleep(0)
  end)
end)

describe("an error", function()
  local db

  before_each(function() db = t.connect() end)
  after_each(function() db:close() end)

  it("is a table that tells what it is", function()
    local err = raised(db.exec, db, "select 1/0")
    assert.equal("sql", err.kind)
    assert.is_false(err.busy)
    assert.equal("22012", err.sqlstate)
    assert.equal("division by zero", err.message)
    assert.equal("select 1/0", err.statement)
    assert.is_nil(err.detail)
    assert.is_nil(err.hint)
  end)

  it("has the server's detail and hint", function()
    local tx <close> = db:begin()
    tx:exec("create temporary table jobs (id int primary key)")
    tx:exec("insert into jobs values (1)")
    local sp <close> = tx:begin()
    local err = raised(sp.exec, sp, "insert into jobs values ($1)", 1)
    assert.equal("23505", err.sqlstate)
    assert.equal("Key (id)=(1) already exists.", err.detail)
    sp:rollback()
    err = raised(tx.exec, tx, "select idd from jobs")
    assert.matches('"jobs.id"', err.hint)
  end)

  it("names the script's line, as text and in its traceback, and nothing of ours", function()
    local function culprit()
      db:exec("select 1/0") -- this line
    end
    local line = debug.getinfo(culprit, "S").linedefined + 1
    local err = raised(culprit)
    assert.matches("session_spec.lua:" .. line .. ": division by zero (SQLSTATE 22012)", tostring(err),
      1, true)
    assert.matches("session_spec.lua:" .. line, err.traceback, 1, true)
    assert.not_matches("%[C%]", err.traceback)
    assert.not_matches("lua/lockkeeper", err.traceback)
    assert.not_matches("lockkeeper/init", err.traceback)
  end)

  it("names the script's line where one of our Lua functions raised it", function()
    local function culprit()
      db:transaction("not a function") -- this line
    end
    local line = debug.getinfo(culprit, "S").linedefined + 1
    local err = raised(culprit)
    assert.equal("usage", err.kind)
    assert.matches("session_spec.lua:" .. line .. ":", tostring(err), 1, true)
  end)

  it("is one of the user's own where the user raised one", function()
    local mine = setmetatable({}, { __tostring = function() return "mine" end })
    assert.equal(mine, raised(db.transaction, db, function() error(mine) end))
    assert.equal("text", raised(db.transaction, db, function() error("text", 0) end))
  end)

  it("keeps a long statement and message short, at a character", function()
    local err = raised(db.exec, db, "select '" .. ("ü"):rep(5000) .. "'::int")
    assert.is_true(#err.statement < 1100)
    assert.is_true(#err.message < 2100)
    assert.is_not_nil(utf8.len(err.statement))
    assert.is_not_nil(utf8.len(err.message))
    assert.matches("…$", err.statement)
  end)

  it("is sql for a statement that was cancelled by someone else", function()
    local child = t.lockkeeper("run", "-", { stdin = ([[
      local lock = require "lockkeeper"
      while not lock.db:value("select pg_cancel_backend(pid) from pg_stat_activity "
        .. "where pid = %d and wait_event = 'PgSleep'") do
        lock.sleep("5ms")
      end
    ]]):format(db.pid) })
    local err = raised(db.exec, db, "select pg_sleep(60)")
    assert.equal("sql", err.kind)
    assert.equal("57014", err.sqlstate)
    assert.equal(1, db:value("select 1"))
    child:wait()
  end)

  it("is a deadlock for 40P01", function()
    db:exec("set deadlock_timeout = '10ms'; begin; select pg_advisory_xact_lock(1)")
    local other = t.lockkeeper("run", "-", { stdin = [[
      local db = require("lockkeeper").db
      db:exec("set deadlock_timeout = '1h'; begin; select pg_advisory_xact_lock(2)")
      db:exec("select pg_advisory_xact_lock(1)")
    ]] })
    t.wait_until(function()
      return t.observe("select count(*) from pg_locks where locktype = 'advisory' and not granted") == "1"
    end, "the other")
    local err = raised(db.exec, db, "select pg_advisory_xact_lock(2)")
    assert.equal("deadlock", err.kind)
    assert.equal("40P01", err.sqlstate)
    assert.is_false(err.busy)
    db:exec("rollback")
    assert.equal(0, other:wait(), other:stderr())
  end)
end)

describe("an unknown option", function()
  it("is a usage error that names it and the nearest known one", function()
    usage('connect: unknown option "coninfo"; did you mean "conninfo"?', lock.connect, { coninfo = "" })
    usage('connect: unknown option "xyzzy"', lock.connect, { xyzzy = 1 })
    local db = t.connect()
    usage('begin: unknown option "isolaton"; did you mean "isolation"?', db.begin, db, { isolaton = 1 })
    usage('begin: unknown isolation "serialisable"; did you mean "serializable"?', db.begin, db,
      { isolation = "serialisable" })
    usage("begin: an option's name must be a text, not 1", db.begin, db, { "serializable" })
    usage('begin: the options must be a table, not "serializable"', db.begin, db, "serializable")
    assert.is_false(db.in_transaction)
    db:close()
  end)
end)

describe("lock.connect", function()
  it("refuses wrong values", function()
    usage("connect: conninfo must be a text, not 1", lock.connect, { conninfo = 1 })
    usage("connect: conninfo has a NUL byte (at byte 4)", lock.connect, { conninfo = "a=b\0" })
    usage("connect: name must be a text, not true", lock.connect, { name = true })
    usage('connect: pooler can only be "session"', lock.connect, { pooler = "transaction" })
    usage("connect: pooler must be a text, not true", lock.connect, { pooler = true })
    usage("connect: the options must be a table, not a function", lock.connect, print)
  end)

  it("makes a session that is reachable by its name", function()
    local replica <close> = lock.connect({ conninfo = t.conninfo(), name = "replica" })
    assert.equal("replica", replica.name)
    local held = assert(lock.advisory("session_spec", { using = "replica" }))
    assert.is_true(held:is_held())
    assert.equal(replica.pid, t.holders(lock.key_parts(lock.key("session_spec")))[1])
    held:release()
    usage('there is no session named "replika"', lock.advisory, 1, { using = "replika" })
  end)

  it("leaves a name as it was where it can't connect", function()
    local first <close> = lock.connect({ conninfo = t.conninfo(), name = "kept" })
    raised(lock.connect, { conninfo = "host=/no/such/folder", name = "kept" })
    local held = assert(lock.advisory(1, { using = "kept" }))
    assert.is_true(held:is_held())
    held:release()
    assert.is_true(first:ping())
  end)
end)

describe("a session", function()
  local db

  before_each(function() db = t.connect() end)
  after_each(function() db:close() end)

  it("gives rows by column name", function()
    assert.same({ { id = 1, name = "a" }, { id = 2, name = "b" } },
      db:query("select * from (values (1, 'a'), (2, 'b')) x (id, name) order by id"))
    assert.same({}, db:query("select 1 where false"))
    assert.same({ {}, {} }, db:query("select from generate_series(1, 2)"))
    assert.same({ { a = 2 } }, db:query("select 1 as a, 2 as a"))
    assert.same({ { ["Odd Name"] = 1, ["?column?"] = 2 } }, db:query([[select 1 as "Odd Name", 2]]))
  end)

  it("gives the first row, the first column, the number of rows", function()
    assert.same({ a = 1, b = 2 }, db:one("select * from (values (1, 2), (3, 4)) x (a, b)"))
    assert.is_nil(db:one("select 1 where false"))
    assert.same({}, db:one("select"))
    assert.equal(7, db:value("select 7, 8"))
    assert.is_nil(db:value("select 1 where false"))
    assert.is_nil(db:value("select"))
    assert.equal(0, db:exec("create temporary table x (a int)"))
    assert.equal(3, db:exec("insert into x select generate_series(1, 3)"))
    assert.equal(2, db:exec("update x set a = a where a > $1", 1))
    assert.equal(3, db:exec("delete from x"))
    assert.equal(0, db:exec("delete from x"))
    assert.equal(5, db:exec("select generate_series(1, 5)"))
  end)

  it("takes several statements in a text without parameters, and gives the last one's result", function()
    assert.equal(2, db:value("select 1; select 2"))
    assert.equal(1, db:value("select 1;;"))
    assert.equal(4, db:exec("create temporary table x (a int); insert into x select generate_series(1, 4)"))
    local err = raised(db.query, db, "select $1::int; select 2", 1)
    assert.equal("42601", err.sqlstate)
  end)

  it("does nothing of several statements where one fails", function()
    db:exec("create temporary table x (a int)")
    local err = raised(db.exec, db, "insert into x values (1); select 1/0; insert into x values (2)")
    assert.equal("22012", err.sqlstate)
    assert.equal(0, db:value("select count(*) from x"))
    err = raised(db.exec, db, "select 1; selec 2")
    assert.equal("42601", err.sqlstate)
  end)

  it("refuses a statement that is none", function()
    for _, text in ipairs({ "", " \n", ";", "-- nothing", "/* nothing */" }) do
      usage("the statement is empty", db.exec, db, text)
      usage("the statement is empty", db.query, db, text)
    end
    usage("the statement is empty", db.query, db, "-- $1", 1)
    usage("the statement must be a text, not nil", db.query, db)
    usage("the statement must be a text, not 1", db.exec, db, 1)
    usage("the statement has a NUL byte (at byte 8)", db.query, db, "select \0 1")
    assert.equal("22021", raised(db.query, db, "select '\255'").sqlstate)
    assert.equal(1, db:value("select 1"))
  end)

  it("refuses COPY, and goes on", function()
    db:exec("create temporary table x (a int)")
    for _, sql in ipairs({ "copy x from stdin", "copy x to stdout",
      "select 1; copy x from stdin; select 2" }) do
      usage("COPY … FROM STDIN and TO STDOUT go through copy_in and copy_out", db.exec, db, sql)
      assert.equal(1, db:value("select 1"))
    end
    for _, sql in ipairs({ "copy x from stdin", "copy x to stdout" }) do
      usage("COPY", function()
        for _ in db:rows(sql) do end
      end)
      assert.equal(1, db:value("select 1"))
    end
    assert.equal(0, db:value("select count(*) from x"))
  end)

  it("must be called with a colon", function()
    usage('a session was expected, not "select 1" (call methods with a colon: db:query(…))', db.query,
      "select 1")
    usage("a session was expected, not nil", db.query)
    usage("a session was expected, not a table", db.begin, {})
  end)

  it("knows what it is connected to", function()
    assert.equal(db:value("select pg_backend_pid()"), db.pid)
    assert.equal(db:value("select current_setting('server_version_num')::int"), db.server_version)
    assert.is_false(db.in_transaction)
    db:exec("begin")
    assert.is_true(db.in_transaction)
    raised(db.exec, db, "select 1/0")
    assert.is_true(db.in_transaction)
    db:exec("rollback")
    assert.is_false(db.in_transaction)
    assert.is_nil(db.no_such_property)
  end)

  it("shows its state as text, and no more", function()
    assert.equal(("session (database postgres, pid %d)"):format(db.pid), tostring(db))
    db:close()
    assert.equal("session (closed)", tostring(db))
  end)

  it("pings", function()
    local ok, seconds = db:ping()
    assert.is_true(ok)
    assert.is_true(seconds > 0 and seconds < 10)
  end)

  it("is in its own transaction in a ping", function()
    db:exec("begin")
    raised(db.exec, db, "select 1/0")
    local ok, err = db:ping()
    assert.is_nil(ok)
    assert.equal("25P02", err.sqlstate)
    db:exec("rollback")
  end)

  it("may be closed twice, and is used no more then", function()
    local pid = db.pid
    db:close()
    t.wait_until(function()
      return t.observe("select count(*) from pg_stat_activity where pid = " .. pid) == "0"
    end, "the end of the session")
    db:close()
    usage("the session is closed", db.query, db, "select 1")
    usage("the session is closed", db.begin, db)
    usage("the session is closed", db.advisory, db, 1)
    usage("the session is closed", lock.advisory, 1, { using = db })
    usage("the session is closed", function() return db.pid end)
    assert.is_false(db.in_transaction)
    assert.equal(db, db:reconnect())
    assert.equal(1, db:value("select 1"))
  end)

  it("is closed at the end of its scope", function()
    local pid
    do
      local inner <close> = lock.connect({ conninfo = t.conninfo() })
      pid = inner.pid
    end
    t.wait_until(function()
      return t.observe("select count(*) from pg_stat_activity where pid = " .. pid) == "0"
    end, "the end of the session")
  end)

  it("is closed when it is dropped", function()
    local pid = lock.connect({ conninfo = t.conninfo() }).pid
    collectgarbage()
    collectgarbage()
    t.wait_until(function()
      return t.observe("select count(*) from pg_stat_activity where pid = " .. pid) == "0"
    end, "the end of the session")
  end)

  it("that is dropped while it holds a lock stays until the end of the run, with a warning", function()
    local code, out, err = t.run("run", "-", { stdin = [[
      local lock = require "lockkeeper"
      lock.connect({}):advisory(4711)
      collectgarbage()
      collectgarbage()
      print(lock.db:value("select count(*) from pg_locks where objid = 4711 and granted"))
    ]] })
    assert.equal(0, code, err)
    assert.equal("1\n", out)
    assert.matches("level=warning", err, 1, true)
    assert.matches("4711", err, 1, true)
    assert.same({}, t.holders(0, 4711, 1))
  end)

  it("keeps its prepared statements, up to 64, and drops what is older", function()
    for round = 1, 3 do
      for i = 1, 100 do
        assert.equal(i + round, db:value("select $1::int + " .. i, round))
        assert.equal(i + round, db:value("select $1::int + " .. i, round))
      end
    end
    local kept = db:value("select count(*) from pg_prepared_statements where name like 'lockkeeper%'")
    assert.is_true(kept >= 60 and kept <= 66, kept)
  end)

  it("prepares a statement when it is sent again", function()
    local function names(sql)
      return db:value("select count(*) from pg_prepared_statements where statement = $1", sql)
    end
    assert.equal(1, db:value("select $1::int as once", 1))
    assert.equal(0, names("select $1::int as once"))
    assert.equal(2, db:value("select $1::int as once", 2))
    assert.equal(1, names("select $1::int as once"))
  end)

  local function thrice(sql, ...)
    local last
    for _ = 1, 3 do
      last = db:one(sql, ...)
    end
    return last
  end

  it("goes on after DISCARD ALL and DEALLOCATE ALL, in a transaction too", function()
    assert.same({ v = 1 }, thrice("select $1::int as v", 1))
    db:exec("discard all")
    assert.same({ v = 1 }, thrice("select $1::int as v", 1))
    local tx <close> = db:begin()
    db:exec("deallocate all")
    assert.same({ v = 1 }, thrice("select $1::int as v", 1))
    tx:commit()
    db:exec("do $$begin deallocate all; end$$")
    assert.same({ v = 1 }, thrice("select $1::int as v", 1))
    assert.equal(0, db:exec("select 1 from pg_prepared_statements where name = 'x'"))
  end)

  it("goes on after what it had prepared is gone unseen", function()
    db:exec([[create function pg_temp.clear() returns int language plpgsql as
      $$begin execute 'deallocate all'; return 1; end$$]])
    assert.same({ v = 1 }, thrice("select $1::int as v", 1))
    assert.equal(1, db:value("select pg_temp.clear()"))
    assert.same({ v = 1 }, thrice("select $1::int as v", 1))
  end)

  it("goes on after DDL has changed what a statement returns", function()
    db:exec("create temporary table x (a int); insert into x values (1)")
    local sql = "select * from x where a = $1"
    assert.same({ a = 1 }, thrice(sql, 1))
    db:exec("alter table x add b int default 2")
    assert.same({ a = 1, b = 2 }, thrice(sql, 1))
    -- in the transaction that changes it, and after it was rolled back, and in the next one
    local tx <close> = db:begin()
    tx:exec("alter table x add c int default 3")
    assert.same({ a = 1, b = 2, c = 3 }, thrice(sql, 1))
    assert.same({ c = 3 }, thrice("select c from x where a = $1", 1))
    assert.same({ d = 4, a = 1, b = 2, c = 3 }, thrice("select 4 as d, * from x where a = $1", 1))
    tx:rollback()
    local next_tx <close> = db:begin()
    assert.same({ a = 1, b = 2 }, thrice(sql, 1))
    assert.same({ d = 4, a = 1, b = 2 }, thrice("select 4 as d, * from x where a = $1", 1))
    next_tx:commit()
  end)

  it("goes on after another session's DDL, outside a transaction", function()
    t.psql("create table session_spec_x (a int); insert into session_spec_x values (1)")
    finally(function() t.psql("drop table session_spec_x") end)
    local sql = "select * from session_spec_x where a = $1"
    assert.same({ a = 1 }, thrice(sql, 1))
    t.psql("alter table session_spec_x add b int default 2")
    assert.same({ a = 1, b = 2 }, thrice(sql, 1))
  end)

  it("sees a table that now stands in another one's place", function()
    t.psql("create table session_spec_y (a int); insert into session_spec_y values (1)")
    finally(function() t.psql("drop table session_spec_y") end)
    local sql = "select a from session_spec_y where a = $1"
    assert.same({ a = 1 }, thrice(sql, 1))
    db:exec("create temporary table session_spec_y as select 2 as b, 1 as a, 3 as c")
    assert.same({ n = 3 }, thrice("select c as n from session_spec_y where a = $1", 1))
    assert.is_nil(thrice("select a from session_spec_y where a = $1", 9))
    db:exec("delete from session_spec_y")
    assert.is_nil(thrice(sql, 1))
  end)

  it("does not run out of prepared statements in one long transaction", function()
    local tx <close> = db:begin()
    for i = 1, 300 do
      tx:value("select $1::int + " .. i, 1)
      tx:value("select $1::int + " .. i, 1)
      if i % 90 == 0 then
        tx:exec("create temporary table t" .. i .. " (a int)")
      end
    end
    tx:commit()
    for i = 1, 3 do
      local short = db:begin()
      for j = 1, 80 do
        short:value("select $1::int - " .. j, i)
        short:value("select $1::int - " .. j, i)
      end
      short:exec("create temporary table u" .. i .. " (a int)")
      short:commit()
    end
    assert.equal(3, db:value("select $1::int", 3))
    assert.equal(3, db:value("select $1::int", 3))
    assert.is_true(db:value("select count(*) from pg_prepared_statements") <= 129)
  end)

  it("logs the server's notices", function()
    local code, _, err = t.run("run", "-", { stdin = [[
      require("lockkeeper").db:exec("do $$begin raise warning 'be %', 'careful'; raise notice 'n'; end$$")
    ]] })
    assert.equal(0, code, err)
    assert.matches('level=warning msg="be careful" from=server severity=WARNING', err, 1, true)
    assert.matches("level=info msg=n from=server severity=NOTICE", err, 1, true)
  end)
end)

describe("lock.db", function()
  local function run(script, opts)
    opts = opts or {}
    opts.stdin = 'local lock = require "lockkeeper"\n' .. script
    return t.run("run", "-", opts)
  end

  it("is the session of $DATABASE_URL, opened at first use", function()
    local code, out = run([[
      print(tostring(lock.db), lock.db:value("select current_database()"), lock.db == lock.db)
    ]])
    assert.equal(0, code)
    assert.equal("session default (not connected)\tpostgres\ttrue\n", out)
  end)

  it("is that of libpq's own PG* variables where nothing else is said", function()
    local code, out, err = run("print(lock.db:value('select current_user'))",
      { env = { DATABASE_URL = false, PGHOST = t.server.host, PGPORT = tostring(t.server.port),
        PGUSER = "lk_app", PGDATABASE = "postgres" } })
    assert.equal(0, code, err)
    assert.equal("lk_app\n", out)
  end)

  it("is what lock.connect connects to without a conninfo, and --dsn's", function()
    local code, out, err = t.run("run", "--dsn", t.conninfo({ user = "lk_app" }), "-", { stdin = [[
      local lock = require "lockkeeper"
      print(lock.db:value("select current_user"), lock.connect {}:value("select current_user"))
    ]], env = { DATABASE_URL = "host=/no/such" } })
    assert.equal(0, code, err)
    assert.equal("lk_app\tlk_app\n", out)
  end)
end)

describe("lock.database", function()
  it("declares a session without connecting", function()
    lock.database("declared", "host=/no/such/folder")
    assert.equal("connection", raised(lock.advisory, 1, { using = "declared" }).kind)
    lock.database("declared", t.conninfo({ application_name = "declared" }))
    assert.equal("0", t.observe("select count(*) from pg_stat_activity where application_name = 'declared'"))
    local held = assert(lock.advisory(1, { using = "declared" }))
    assert.equal("1", t.observe("select count(*) from pg_stat_activity where application_name = 'declared'"))
    held:release()
    require("lockkeeper.core").session("declared"):close()
  end)

  it("refuses wrong words", function()
    usage("database: the name must be a text, not nil", lock.database)
    usage("database: the conninfo must be a text, not nil", lock.database, "x")
    usage("NUL", lock.database, "x\0", "")
  end)
end)

describe("names that shadow those of pg_catalog", function()
  it("change nothing of what we ask", function()
    t.psql([[
      create schema evil;
      grant usage on schema evil to public;
      set search_path = evil, pg_catalog;
      create function evil.pg_backend_pid() returns int language sql as 'select -1';
      create function evil.pg_is_in_recovery() returns bool language sql as 'select true';
      create function evil.current_setting(text) returns text language sql as $$select '42'$$;
      create function evil.current_setting(text, bool) returns text language sql as $$select '42'$$;
      create function evil.set_config(text, text, bool) returns text language sql as $$select 'x'$$;
      create function evil.pg_advisory_lock(bigint) returns void language sql as '';
      create function evil.pg_try_advisory_lock(bigint) returns bool language sql as 'select true';
      create function evil.pg_advisory_unlock(bigint) returns bool language sql as 'select false';
      create function evil.pg_try_advisory_xact_lock(bigint) returns bool language sql as 'select true';
      create function evil.pg_notify(text, text) returns void language sql as '';
      create function evil.wrong(oid, oid) returns bool language sql as 'select false';
      create function evil.wrong(text, text) returns bool language sql as 'select false';
      create function evil.wrong("char", "char") returns bool language sql as 'select false';
      create function evil.wrong(name, name) returns bool language sql as 'select false';
      create function evil.wrong(int, int) returns bool language sql as 'select false';
      create operator evil.= (leftarg = oid, rightarg = oid, function = evil.wrong);
      create operator evil.= (leftarg = text, rightarg = text, function = evil.wrong);
      create operator evil.= (leftarg = "char", rightarg = "char", function = evil.wrong);
      create operator evil.= (leftarg = name, rightarg = name, function = evil.wrong);
      create operator evil.= (leftarg = int, rightarg = int, function = evil.wrong);
      create operator evil.<> (leftarg = oid, rightarg = oid, function = evil.wrong);
      create domain evil.oid as pg_catalog.text;
      create domain evil.text as pg_catalog.int4;
      create domain evil.int8 as pg_catalog.bool;
      create domain evil."char" as pg_catalog.int4;
      create domain evil.regclass as pg_catalog.int4;
      create type evil.mood as enum ('happy');
      create table evil.pg_type (oid int);
      create table evil.pg_class (oid int);
      create table evil.pg_locks (pid int);
      create table evil.pg_namespace (oid int);
      create table evil.pg_settings (name int);
      create table public.session_spec_z (a int);
      create role evil_user login in role lk_app;
      grant select on public.session_spec_z to evil_user;
      grant all on public.session_spec_z to evil_user;
      alter role evil_user set search_path = evil, public, pg_catalog;
    ]])
    finally(function()
      t.psql("drop owned by evil_user; drop role evil_user; drop table public.session_spec_z;"
        .. "drop schema evil cascade")
    end)
    local db <close> = lock.connect({ conninfo = t.conninfo({ user = "evil_user" }) })
    assert.equal("evil, public, pg_catalog", db:value("show search_path"))
    assert.equal(-1, db:value("select pg_backend_pid()"))
    assert.equal(db:value("select pg_catalog.pg_backend_pid()"), db.pid)
    assert.equal(15, db.server_version // 10000)
    assert.is_false(db.in_recovery)
    assert.same({ "happy" }, db:value("select array['happy']::evil.mood[]"))

    do
      local held <close> = assert(db:advisory(4712))
      assert.is_true(held:is_held())
      assert.same({ db.pid }, t.holders(0, 4712, 1))
    end
    assert.same({}, t.holders(0, 4712, 1))
    do
      local held <close> = assert(db:advisory("x", { timeout = "1s", scheme = "hashtext" }))
      assert.is_true(held:is_held())
    end
    db:transaction(function(tx)
      local held = assert(tx:advisory(4713, { xact = true, timeout = "1s" }))
      assert.is_true(held:is_held())
      assert.is_true(tx:model("session_spec_z", { timeout = "2s" }))
      assert.equal("1", t.observe(("select count(*) from pg_locks where pid = %d and mode = "
        .. "'AccessExclusiveLock' and relation = 'session_spec_z'::regclass"):format(db.pid)))
      tx:timeout("3s", function() assert.equal("3s", tx:value("show lock_timeout")) end)
    end)
    db:timeout("4s", function() assert.equal("4s", db:value("show lock_timeout")) end)
    assert.equal("0", db:value("show lock_timeout"))
    db:listen("channel")
    db:notify("channel", "heard")
    assert.equal("heard", db:wait_notify("5s").payload)
  end)
end)
