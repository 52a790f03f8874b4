-- lua-api.md, "model", and locks.md 1, 2 and 7.

local expect = require "tests.support.expect"
local t = require "tests.support"
local lock = require "lockkeeper"

local bindir = require("tests.support.target").bindir()

local MODES = { "ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE",
  "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE" }

local raised = expect.kind

-- The relations that a backend has locked, with the modes: "orders ShareLock, …" in order of name.
local function locked(pid)
  return t.observe(([[
    select string_agg(c.relname || ' ' || l.mode, ', ' order by c.relname, l.mode)
      from pg_locks l join pg_class c on c.oid = l.relation
     where l.pid = %d and l.granted and c.relnamespace::regnamespace::text not like 'pg\_%%']]):format(pid))
end

-- "SHARE ROW EXCLUSIVE" as pg_locks writes it.
local function pg_mode(mode)
  return mode:lower():gsub("%f[%a]%a", string.upper):gsub(" ", "") .. "Lock"
end

describe("model", function()
  local db, other

  setup(function()
    t.psql([[
      create schema model;
      create schema "Odd.Schema";
      create table model.first (a int);
      create table model.second (a int);
      create table model.parent (a int);
      create table model.child () inherits (model.parent);
      create table model.parts (a int) partition by range (a);
      create table model.parts_1 partition of model.parts for values from (0) to (10);
      create table model.parts_2 partition of model.parts for values from (10) to (20);
      create view model.seen as select * from model.first;
      create materialized view model.kept as select * from model.first;
      create sequence model.numbers;
      create index first_a on model.first (a);
      create type model.composite as (a int);
      create table "Odd.Schema"."Odd.Name" (a int);
      create table "Odd.Schema"."quo""te's\" (a int);
      create table "Odd.Schema"."select" (a int);
      create table "Odd.Schema"."first; drop table model.first; --" (a int);
      create table "Odd.Schema"."ключ – ü" (a int);
      create table "Odd.Schema"." " (a int);
      grant usage on schema model to lk_app;
    ]])
  end)

  teardown(function()
    t.psql([[ drop schema model cascade; drop schema "Odd.Schema" cascade ]])
  end)

  before_each(function()
    db = t.connect({ options = "-c search_path=model" })
    other = t.connect({ options = "-c search_path=model" })
  end)

  after_each(function()
    db:close()
    other:close()
  end)

  it("locks a table until the transaction ends, in ACCESS EXCLUSIVE mode by default", function()
    db:transaction(function()
      assert.is_true(lock.model("model.first", { using = db }))
      assert.equal("first AccessExclusiveLock", locked(db.pid))
    end)
    assert.equal("", locked(db.pid))
    local tx = db:begin()
    tx:model("first")
    tx:rollback()
    assert.equal("", locked(db.pid))
  end)

  it("takes PostgreSQL's eight modes by their own names, in any case, and as constants", function()
    for _, mode in ipairs(MODES) do
      for _, spelling in ipairs({ mode, mode:lower(), mode:sub(1, 1) .. mode:sub(2):lower(),
        lock[mode:gsub(" ", "_")] }) do
        db:transaction(function(tx)
          assert.is_true(tx:model("first", { mode = spelling }))
          assert.equal("first " .. pg_mode(mode), locked(db.pid))
        end)
      end
      assert.equal(mode, lock[mode:gsub(" ", "_")])
    end
  end)

  it("refuses an unknown mode, and names it and the nearest", function()
    db:transaction(function(tx)
      local err = raised("usage", tx.model, tx, "first", { mode = "ACESS SHARE" })
      assert.matches('"ACESS SHARE"; did you mean "ACCESS SHARE"?', err.message, 1, true)
      for _, wrong in ipairs({ "", "ACCESS_SHARE", " SHARE", "SHARE ", "SHARE MODE NOWAIT; select 1",
        "AccessShareLock", ("x"):rep(10000000), "SHARE\0", 5, true, {} }) do
        raised("usage", tx.model, tx, "first", { mode = wrong })
      end
      assert.equal("", locked(db.pid))
      assert.equal(1, tx:value("select 1"))
    end)
  end)

  describe("names", function()
    it("are parsed as PostgreSQL parses them", function()
      for name, table_name in pairs({ ["first"] = "first", ["FIRST"] = "first", ["Model.First"] = "first",
        [" model . first "] = "first", ['"model"."first"'] = "first",
        ['"Odd.Schema"."Odd.Name"'] = "Odd.Name", ['"Odd.Schema"."select"'] = "select",
        [ [["Odd.Schema"."quo""te's\"]] ] = [[quo"te's\]], ['"Odd.Schema"."ключ – ü"'] = "ключ – ü",
        ['"Odd.Schema"." "'] = " ",
        ['"Odd.Schema"."first; drop table model.first; --"'] = "first; drop table model.first; --" }) do
        db:transaction(function(tx)
          assert.is_true(tx:model(name, { timeout = "5s" }), name)
          assert.equal(table_name .. " AccessExclusiveLock", locked(db.pid))
        end)
      end
    end)

    it("can't smuggle anything into the statement", function()
      for _, name in ipairs({ "first; drop table model.first", "first in share mode; --", "first, second",
        "first nowait", "only first", "first *", "first -- x", "first/**/", "(select 1)", '"first',
        'first"', "'first'", "model.'first'", "$1", "%I", "first\nin share mode", "\\", "{first}",
        '{"first"}', "first,second", "NULL" }) do
        db:transaction(function(tx)
          local ok, err = pcall(tx.model, tx, name)
          assert.is_false(ok, name)
          assert.is_true(#err.message < 1000)
          assert.equal("", locked(db.pid), name)
          assert.equal(1, tx:value("select 1"), name)
        end)
      end
      assert.equal("1", t.observe("select count(*) from pg_class where oid = 'model.first'::regclass"))
    end)

    it("that nobody has, or that are malformed, are an error that names them", function()
      db:transaction(function(tx)
        for _, name in ipairs({ "nowhere", "model.nowhere", "nowhere.first", "public.first", '"First"' }) do
          local err = raised("sql", tx.model, tx, name)
          assert.equal("42P01", err.sqlstate)
          assert.matches(name, err.message, 1, true)
          assert.matches(name, raised("sql", tx.model, tx, { "first", name, "second" }).message, 1, true)
        end
        for _, name in ipairs({ "a b", '"', "a..b", ".", "a.", ".a", '""', "a.b.c.d" }) do
          local ok, err = pcall(tx.model, tx, name)
          assert.is_false(ok, name)
          assert.matches(name, err.message, 1, true)
          assert.is_false(err.busy)
        end
        assert.equal("", locked(db.pid))
        assert.is_true(tx:model("first"))
      end)
    end)

    it("that are of wrong types, empty, with a NUL or none are usage errors", function()
      db:transaction(function(tx)
        for _, wrong in ipairs({ false, true, 5, 1259, 1.5, {}, print, "", "first\0", { "" }, { "first", 5 },
          { "first", false }, { {} }, { "first", { "second" } }, { "a\0b" }, { first = true } }) do
          raised("usage", tx.model, tx, wrong)
        end
        raised("usage", tx.model, tx)
        raised("usage", tx.model, tx, nil, {})
        assert.equal("", locked(db.pid))
      end)
    end)

    it("of 10 MB, of other databases and of bytes that are no text leave the transaction usable", function()
      db:transaction(function(tx)
        for _, name in ipairs({ ("x"):rep(10 * 1024 * 1024), "otherdb.public.first", "\xff\xfe" }) do
          local ok, err = pcall(tx.model, tx, name)
          assert.is_false(ok)
          assert.is_true(#err.message < 1000)
          assert.equal(1, tx:value("select 1"))
        end
      end)
    end)

    it("of what is no table are an error that names it", function()
      db:transaction(function(tx)
        for _, name in ipairs({ "numbers", "first_a", "composite", "kept" }) do
          local err = raised("sql", tx.model, tx, name)
          assert.equal("42809", err.sqlstate)
          assert.matches(name, err.message, 1, true)
          assert.equal(1, tx:value("select 1"))
        end
      end)
    end)

    it("locks.md 7: are resolved once, whatever the search_path shadows", function()
      db:exec([[
        create schema shadow;
        create table shadow.first (a int);
        create table shadow.pg_class (oid oid, relname text);
        create table shadow.pg_namespace (oid oid, nspname text);
        create function shadow.to_regclass(text) returns regclass language sql as 'select 0::regclass';
        create function shadow.format(text, name, name) returns text
          language sql as 'select ''model.second''::text';
        create function shadow.set_config(text, text, bool) returns text language sql as 'select null::text';
        create function shadow.no(oid, oid) returns bool language sql as 'select false';
        create operator shadow.= (leftarg = oid, rightarg = oid, function = shadow.no);
        create domain shadow.text as int;
      ]])
      finally(function() t.psql("drop schema shadow cascade") end)
      local held <close> = other:begin()
      held:model("model.first", { mode = "ROW EXCLUSIVE" })
      db:exec("set search_path = shadow, pg_catalog")
      db:transaction(function(tx)
        assert.is_true(tx:model("model.second", { mode = "SHARE", timeout = "1s" }))
        assert.equal("second ShareLock", locked(db.pid))
        local _, err = tx:model("model.first", { timeout = "10ms" })
        assert.equal("lock_timeout", err.kind)
        assert.is_true(tx:model("first"))
        assert.equal("first AccessExclusiveLock, second ShareLock", locked(db.pid))
        assert.equal("1", t.observe(([[
          select 1 from pg_locks where pid = %d and relation = 'shadow.first'::regclass]]):format(db.pid)))
      end)
    end)
  end)

  describe("when the lock is not to be had", function()
    it("timeout = 0 is NOWAIT: nil and not_acquired, with the transaction usable", function()
      local held <close> = other:begin()
      held:model("first")
      db:transaction(function(tx)
        tx:exec("insert into second values (1)")
        local ok, err = tx:model("first", { timeout = 0 })
        assert.is_nil(ok)
        assert.equal("not_acquired", err.kind)
        assert.equal("55P03", err.sqlstate)
        assert.is_true(err.busy)
        assert.matches("first", err.message)
        tx:exec("insert into second values (2)")
      end)
      assert.equal(2, db:value("select count(*) from second"))
      db:exec("truncate second")
    end)

    it("a timeout gives nil and lock_timeout, and lock_timeout is what it was", function()
      local held <close> = other:begin()
      held:model("first")
      for _, before in ipairs({ "0", "1min", "30s" }) do
        db:exec("set lock_timeout = '" .. before .. "'")
        db:transaction(function(tx)
          tx:exec("insert into second values (1)")
          for _ = 1, 2 do
            local ok, err = tx:model("first", { timeout = "15ms" })
            assert.is_nil(ok)
            assert.equal("lock_timeout", err.kind)
            assert.equal("55P03", err.sqlstate)
            assert.equal(before, tx:value("show lock_timeout"))
          end
          assert.is_true(tx:model("second", { timeout = "5s" }))
          assert.equal(before, tx:value("show lock_timeout"))
        end)
        assert.equal(before, db:value("show lock_timeout"))
      end
      db:exec("truncate second")
    end)

    it("raises where it says so, or where the limit is the session's lock_timeout", function()
      local held <close> = other:begin()
      held:model("first")
      db:exec("set lock_timeout = '15ms'")
      db:transaction(function(tx)
        raised("not_acquired", tx.model, tx, "first", { timeout = 0, on_busy = "raise" })
        raised("lock_timeout", tx.model, tx, "first", { timeout = "10ms", on_busy = "raise" })
        raised("lock_timeout", tx.model, tx, "first")
        raised("lock_timeout", tx.model, tx, "first", {})
        raised("lock_timeout", tx.model, tx, "first", { mode = "SHARE" })
        local ok, err = tx:model("first", { on_busy = "return" })
        assert.is_nil(ok)
        assert.equal("lock_timeout", err.kind)
        assert.equal("15ms", tx:value("show lock_timeout"))
      end)
    end)

    it("with timeout = false waits on, whatever the session's lock_timeout", function()
      local child = t.spawn({ bindir .. "/psql", "-Xqd", t.conninfo(), "-c", [[
        begin; lock table model.first;
        do $$ begin
          while not exists (select from pg_locks
                             where relation = 'model.first'::regclass and not granted) loop
            perform pg_sleep(0.005);
          end loop;
        end $$; commit]] })
      t.wait_until(function()
        return t.observe("select 1 from pg_locks where relation = 'model.first'::regclass and granted") == "1"
      end, "the holder")
      db:exec("set lock_timeout = '10ms'")
      db:transaction(function(tx)
        assert.is_true(tx:model("first", { timeout = false }))
        assert.equal("10ms", tx:value("show lock_timeout"))
      end)
      assert.equal(0, child:wait(), child:stderr())
    end)

    it("takes all or none of several tables", function()
      local held <close> = other:begin()
      held:model("second")
      db:transaction(function(tx)
        assert.is_nil((tx:model({ "first", "second" }, { timeout = 0 })))
        assert.equal("", locked(db.pid))
        assert.is_nil((tx:model({ "first", "second" }, { timeout = "10ms" })))
        assert.equal("", locked(db.pid))
        tx:model("parent", { only = true })
        assert.is_nil((tx:model({ "first", "second" }, { timeout = "10ms" })))
        assert.equal("parent AccessExclusiveLock", locked(db.pid))
      end)
    end)

    it("locks.md 1: a shorter statement_timeout is 57014, raised, with the transaction usable", function()
      local held <close> = other:begin()
      held:model("first")
      db:exec("set statement_timeout = '15ms'")
      db:transaction(function(tx)
        for _, options in ipairs({ {}, { timeout = "5s" }, { timeout = "5s", on_busy = "return" } }) do
          local err = raised("sql", tx.model, tx, "first", options)
          assert.equal("57014", err.sqlstate)
          assert.is_false(err.busy)
          assert.equal(1, tx:value("select 1"))
        end
      end)
    end)

    it("locks.md 1: a deadlock is 40P01, raised, with the transaction usable", function()
      db:exec("set deadlock_timeout = '5ms'")
      local tx <close> = db:begin()
      tx:model("first")
      local child = t.spawn({ bindir .. "/psql", "-Xqd", t.conninfo(), "-c",
        "begin; set local deadlock_timeout = '1h'; lock table model.second; lock table model.first; commit" })
      t.wait_until(function()
        return t.observe([[select 1 from pg_locks
          where relation = 'model.first'::regclass and not granted]]) == "1"
      end, "the other side")
      for _ = 1, 2 do
        local err = raised("deadlock", tx.model, tx, "second", { timeout = "20s", on_busy = "return" })
        assert.equal("40P01", err.sqlstate)
        assert.is_false(err.busy)
        assert.equal("first AccessExclusiveLock", locked(db.pid))
      end
      tx:rollback()
      assert.equal(0, child:wait(), child:stderr())
    end)

    it("a missing right is 42501, raised, with the transaction usable", function()
      local app = t.connect({ user = "lk_app" })
      app:transaction(function(tx)
        local err = raised("sql", tx.model, tx, "model.first")
        assert.equal("42501", err.sqlstate)
        assert.matches("first", err.message)
        err = raised("sql", tx.model, tx, '"Odd.Schema"."Odd.Name"', { timeout = 0 })
        assert.equal("42501", err.sqlstate)
        assert.equal(1, tx:value("select 1"))
      end)
      app:close()
    end)

    it("a table renamed or dropped while it waited is an error that names it", function()
      for _, sql in ipairs({ "alter table model.doomed rename to renamed", "drop table model.doomed" }) do
        t.psql("create table model.doomed (a int)")
        local child = t.spawn({ bindir .. "/psql", "-Xqd", t.conninfo(), "-c", ([[
          begin; lock table model.doomed;
          do $$ begin
            while not exists (select from pg_locks
                               where relation = 'model.doomed'::regclass and not granted) loop
              perform pg_sleep(0.005);
            end loop;
          end $$; %s; commit]]):format(sql) })
        t.wait_until(function()
          return t.observe([[select 1 from pg_locks l join pg_class c on c.oid = l.relation
            where c.relname = 'doomed' and l.granted]]) == "1"
        end, "the holder")
        db:transaction(function(tx)
          local err = raised("sql", tx.model, tx, "doomed", { timeout = "20s" })
          assert.equal("42P01", err.sqlstate)
          assert.matches("doomed", err.message)
          assert.equal(1, tx:value("select 1"))
          assert.equal("", locked(db.pid))
        end)
        assert.equal(0, child:wait(), child:stderr())
        t.psql("drop table if exists model.renamed, model.doomed")
      end
    end)
  end)

  describe("several tables", function()
    it("are all locked, also named twice", function()
      db:transaction(function(tx)
        assert.is_true(tx:model({ "second", "first", "model.second", "FIRST" }, { mode = "SHARE" }))
        assert.equal("first ShareLock, second ShareLock", locked(db.pid))
      end)
    end)

    it("locks.md 7: are taken in the order of their oids, whatever order they are named in", function()
      local held <close> = other:begin()
      held:model("first")
      for _, names in ipairs({ { "first", "second" }, { "second", "first" } }) do
        local child = t.lockkeeper("run", "-", { stdin = ([[
          local lock = require "lockkeeper"
          lock.db:transaction(function(tx)
            io.stdout:write(lock.db.pid, "\n"):flush()
            print(tx:model({ "model.%s", "model.%s" }))
          end)
        ]]):format(names[1], names[2]) })
        local pid = t.wait_until(function()
          return math.tointeger(child:stdout():match("^(%d+)\n"))
        end, "its pid")
        t.wait_until(function() return t.is_waiting(pid) end, "its wait")
        -- first was made before second, so second comes later and is not locked yet.
        assert.equal("", locked(pid))
        t.observe(("select pg_terminate_backend(%d)"):format(pid))
        child:wait()
      end
    end)

    it("locks.md 7: never deadlock two callers who name them in opposite orders", function()
      local children = {}
      for i, names in ipairs({ { "first", "second" }, { "second", "first" } }) do
        children[i] = t.lockkeeper("run", "-", { stdin = ([[
          local lock = require "lockkeeper"
          lock.db:exec("set deadlock_timeout = '1ms'")
          for _ = 1, 100 do
            lock.db:transaction(function(tx) tx:model({ "model.%s", "model.%s" }) end)
          end
          print("done")
        ]]):format(names[1], names[2]) })
      end
      for _, child in ipairs(children) do
        assert.equal(0, child:wait(), child:stderr())
        assert.equal("done\n", child:stdout())
      end
    end)

    it("may be many", function()
      local tx <close> = db:begin()
      tx:exec([[do $$ begin
        for i in 1 .. 300 loop execute format('create table model.many_%s ()', i); end loop;
      end $$]])
      local names = {}
      for i = 1, 300 do
        names[i] = "many_" .. (i * 7 % 300 + 1)
      end
      assert.is_true(tx:model(names, { mode = "SHARE", timeout = "5s" }))
      assert.equal("300", t.observe(([[select count(*) from pg_locks
        where pid = %d and mode = 'ShareLock' and locktype = 'relation']]):format(db.pid)))
      tx:rollback()
      assert.equal("", locked(db.pid))
    end)
  end)

  describe("descendants", function()
    it("are locked with their parents, and left out with only", function()
      db:transaction(function(tx)
        tx:model("parent", { mode = "SHARE" })
        assert.equal("child ShareLock, parent ShareLock", locked(db.pid))
      end)
      db:transaction(function(tx)
        tx:model({ "parent", "first" }, { mode = "SHARE", only = true })
        assert.equal("first ShareLock, parent ShareLock", locked(db.pid))
      end)
      db:transaction(function(tx)
        tx:model({ "parent" }, { mode = "SHARE", only = false })
        assert.equal("child ShareLock, parent ShareLock", locked(db.pid))
      end)
    end)

    it("of a partitioned table are its partitions", function()
      db:transaction(function(tx)
        tx:model("parts", { mode = "SHARE" })
        assert.equal("parts ShareLock, parts_1 ShareLock, parts_2 ShareLock", locked(db.pid))
      end)
      db:transaction(function(tx)
        tx:model("parts", { mode = "SHARE", only = true, timeout = 0 })
        assert.equal("parts ShareLock", locked(db.pid))
      end)
    end)

    it("of a view are the tables it reads", function()
      db:transaction(function(tx)
        tx:model("seen", { mode = "SHARE" })
        assert.equal("first ShareLock, seen ShareLock", locked(db.pid))
      end)
    end)

    it("only is true or false", function()
      db:transaction(function(tx)
        for _, wrong in ipairs({ 1, "true", {} }) do
          raised("usage", tx.model, tx, "first", { only = wrong })
        end
      end)
    end)
  end)

  describe("the transaction", function()
    it("must be open: a usage error that names the table", function()
      for _, options in ipairs({ {}, { timeout = 0 }, { timeout = "5s", on_busy = "return" } }) do
        local err = raised("usage", db.model, db, "model.first", options)
        assert.matches("transaction", err.message)
        assert.matches("model.first", err.message, 1, true)
      end
      raised("usage", lock.model, { "first" }, { using = db })
      assert.equal("", locked(db.pid))
    end)

    it("that has failed is 25P02", function()
      local tx <close> = db:begin()
      pcall(tx.exec, tx, "select 1/0")
      assert.equal("25P02", raised("sql", tx.model, tx, "first").sqlstate)
      assert.equal("25P02", raised("sql", tx.model, tx, "first", { timeout = 0 }).sqlstate)
    end)

    it("may be a savepoint, whose rollback releases the lock", function()
      db:transaction(function(tx)
        local inner = tx:begin()
        inner:model("first", { timeout = "5s" })
        inner:rollback()
        assert.equal("", locked(db.pid))
        tx:transaction(function(nested) nested:model("first", { timeout = "5s" }) end)
        assert.equal("first AccessExclusiveLock", locked(db.pid))
      end)
    end)

    it("may be the user's own BEGIN", function()
      db:exec("begin")
      assert.is_true(db:model("first", { timeout = "1s" }))
      db:exec("commit")
      assert.equal("", locked(db.pid))
    end)

    it("that is over takes no lock, even by its own method", function()
      local tx = db:begin()
      tx:commit()
      raised("usage", tx.model, tx, "first")
      raised("usage", lock.model, "first", { using = tx })
    end)

    it("keeps its savepoints and what it did", function()
      db:transaction(function(tx)
        tx:exec("savepoint lockkeeper_model; insert into second values (1)")
        assert.is_true(tx:model("first", { timeout = "1s" }))
        tx:exec("rollback to lockkeeper_model")
        assert.equal(0, tx:value("select count(*) from second"))
        assert.equal("", locked(db.pid):gsub("second [^,]*", ""))
      end)
    end)

    it("whose session ends raises lock_lost, since the table's lock is gone", function()
      local tx = db:begin()
      tx:model("first")
      t.observe(("select pg_terminate_backend(%d, 5000)"):format(db.pid))
      raised("lock_lost", tx.exec, tx, "select 1")
      pcall(tx.rollback, tx)
      db:reconnect()
      assert.equal(1, db:value("select 1"))
    end)
  end)

  describe("options", function()
    it("that are unknown, or of wrong types, are usage errors", function()
      db:transaction(function(tx)
        assert.matches('unknown option "mod"; did you mean "mode"?',
          raised("usage", tx.model, tx, "first", { mod = "SHARE" }).message, 1, true)
        assert.matches('unknown option "nowait"',
          raised("usage", tx.model, tx, "first", { nowait = true }).message, 1, true)
        for _, wrong in ipairs({ "SHARE", 5, true }) do
          raised("usage", tx.model, tx, "first", wrong)
        end
        for _, wrong in ipairs({ "skip", "wait", 5, true }) do
          raised("usage", tx.model, tx, "first", { on_busy = wrong })
        end
        for _, wrong in ipairs({ -1, "5", "25d", 1 / 0, 0 / 0, true, {} }) do
          raised("usage", tx.model, tx, "first", { timeout = wrong })
        end
        assert.equal("", locked(db.pid))
      end)
    end)

    it("using: a session, its name, or a transaction", function()
      local named = t.connect({ name = "model_spec" })
      local tx = named:begin()
      for _, using in ipairs({ named, "model_spec", tx }) do
        assert.is_true(lock.model("model.first", { using = using, mode = "SHARE" }))
      end
      assert.equal("first ShareLock", locked(named.pid))
      tx:rollback()
      raised("usage", lock.model, "model.first", { using = "nobody" })
      raised("usage", lock.model, "model.first", { using = 5 })
      named:close()
    end)
  end)

  it("works inside coroutines that yield", function()
    local step = coroutine.wrap(function()
      return db:transaction(function(tx)
        coroutine.yield(tx:model("first", { timeout = "5s" }))
        return tx:model("second", { timeout = "5s", mode = "SHARE" })
      end)
    end)
    assert.is_true(step())
    assert.equal("first AccessExclusiveLock", locked(db.pid))
    assert.is_true(step())
    assert.equal("", locked(db.pid))
  end)
end)
