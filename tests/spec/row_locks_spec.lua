-- lua-api.md, "lock.row_locks", and locks.md 1 and 2.

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local raised, usage = expect.kind, expect.usage

local BY_ID = "select * from row_locks.queue where id = $1"
local ALL = "select id from row_locks.queue order by id"

-- The ids of rows.
local function ids(rows)
  local list = {}
  for i, row in ipairs(rows) do
    list[i] = row.id
  end
  return list
end

local function somebody_waits()
  return t.observe("select 1 from pg_locks where not granted limit 1") == "1"
end

describe("row_locks", function()
  local db, other

  -- What another session could lock FOR UPDATE, seen from outside.
  local function unlocked(clause)
    return t.observe(("select string_agg(id::text, ' ') from (%s for %s skip locked) rows"):format(ALL,
      clause or "update"))
  end

  setup(function()
    t.psql([[
      create schema row_locks;
      create table row_locks.queue (id int primary key, state text, data jsonb, parent int);
      insert into row_locks.queue values
        (1, 'new', '{"a": [1]}', null), (2, 'new', null, 1), (3, 'old', null, 1);
      create table row_locks."Odd ""Name" (id int);
      insert into row_locks."Odd ""Name" values (1);
      grant usage on schema row_locks to lk_app;
      grant select on row_locks.queue to lk_app;
    ]])
  end)

  teardown(function() t.psql("drop schema row_locks cascade") end)

  before_each(function()
    db = t.connect({ options = "-c search_path=row_locks" })
    other = t.connect({ options = "-c search_path=row_locks" })
  end)

  after_each(function()
    db:close()
    other:close()
  end)

  it("locks the rows of a query until the transaction ends, and returns them", function()
    db:transaction(function()
      local rows = lock.row_locks(BY_ID, { 1 }, { using = db })
      assert.same({ { id = 1, state = "new", data = { a = { 1 } } } }, rows)
      assert.equal("2 3", unlocked())
    end)
    assert.equal("1 2 3", unlocked())
  end)

  it("is a method of a session and of a transaction", function()
    db:transaction(function(tx)
      assert.same({ 1, 2, 3 }, ids(tx:row_locks(ALL)))
      assert.same({ 2 }, ids(db:row_locks(BY_ID, { 2 })))
      assert.equal("", unlocked())
    end)
  end)

  it("returns no rows where there are none", function()
    db:transaction(function(tx)
      assert.same({}, tx:row_locks(BY_ID, { 99 }, { timeout = 0 }))
      assert.equal("1 2 3", unlocked())
    end)
  end)

  describe("where another has a row", function()
    local tx

    before_each(function()
      tx = other:begin()
      tx:row_locks(BY_ID, { 2 })
    end)

    -- The transaction still works, and holds nothing of what was not to be had.
    local function is_usable(mine)
      assert.equal(1, mine:value("select 1"))
      assert.equal("1 3", unlocked())
    end

    it("timeout = 0 does not wait: nil and kind not_acquired; the transaction stays usable", function()
      db:transaction(function(mine)
        local rows, err = mine:row_locks(ALL, {}, { timeout = 0 })
        assert.is_nil(rows)
        assert.equal("not_acquired", err.kind)
        assert.equal("55P03", err.sqlstate)
        assert.is_true(err.busy)
        assert.matches("queue", err.message)
        is_usable(mine)
        assert.same({ 1 }, ids(mine:row_locks(BY_ID, { 1 }, { timeout = 0 })))
      end)
    end)

    it("a timeout is for this statement alone: nil and kind lock_timeout", function()
      db:exec("set lock_timeout = '7s'")
      db:transaction(function(mine)
        local start = t.now()
        local rows, err = mine:row_locks(ALL, nil, { timeout = "50ms" })
        assert.is_nil(rows)
        assert.equal("lock_timeout", err.kind)
        assert.equal("55P03", err.sqlstate)
        assert.is_true(t.now() - start >= 0.05)
        is_usable(mine)
        assert.equal("7s", mine:value("show lock_timeout"))
        assert.equal(1, #mine:row_locks(BY_ID, { 1 }, { timeout = "50ms" }))
        assert.equal("7s", mine:value("show lock_timeout"))
        mine:exec("set local lock_timeout = '8s'")
        assert.equal(1, #mine:row_locks(BY_ID, { 1 }, { timeout = false }))
        assert.equal("8s", mine:value("show lock_timeout"))
      end)
      assert.equal("7s", db:value("show lock_timeout"))
    end)

    it("the session's lock_timeout holds where the call gives none, and then it is raised", function()
      db:exec("set lock_timeout = '20ms'")
      db:transaction(function(mine)
        raised("lock_timeout", mine.row_locks, mine, ALL)
        is_usable(mine)
        local rows, err = mine:row_locks(ALL, {}, { on_busy = "return" })
        assert.is_nil(rows)
        assert.equal("lock_timeout", err.kind)
        is_usable(mine)
      end)
    end)

    it("on_busy = \"raise\" raises", function()
      db:transaction(function(mine)
        raised("not_acquired", mine.row_locks, mine, ALL, {}, { timeout = 0, on_busy = "raise" })
        local err = raised("lock_timeout", mine.row_locks, mine, ALL, {},
          { timeout = "5ms", on_busy = "raise" })
        assert.matches("row_locks_spec.lua", err.traceback)
        is_usable(mine)
      end)
    end)

    it("skip_locked leaves that row out", function()
      db:transaction(function(mine)
        for _, timeout in ipairs { 0, "5s", false } do
          assert.same({ 1, 3 }, ids(mine:row_locks(ALL, {}, { skip_locked = true, timeout = timeout })))
        end
        assert.same({ 1, 3 }, ids(mine:row_locks(ALL, {}, { skip_locked = true })))
        assert.equal("", unlocked())
        assert.equal(2, #mine:row_locks(ALL .. " limit 2", {}, { skip_locked = true }))
      end)
    end)

    it("without a timeout it waits as long as it takes", function()
      local child = t.lockkeeper("run", "-", { stdin = ([[
        local lock = require "lockkeeper"
        lock.db:transaction(function(tx)
          print(#tx:row_locks(%q), #tx:row_locks(%q, {}, { timeout = false }))
        end)]]):format(ALL, ALL) })
      t.wait_until(somebody_waits)
      tx:commit()
      assert.equal(0, child:wait(), child:stderr())
      assert.equal("3\t3\n", child:stdout())
    end)

    it("a deadlock is an error of its own kind, whatever on_busy says", function()
      db:exec("set deadlock_timeout = '10ms'")
      local mine = db:begin()
      mine:row_locks(BY_ID, { 1 })
      local child = t.lockkeeper("run", "-", { stdin = ([[
        local lock = require "lockkeeper"
        lock.db:exec("set deadlock_timeout = '1h'")
        lock.db:transaction(function(tx)
          tx:row_locks(%q, { 3 })
          tx:row_locks(%q, { 1 })
        end)]]):format(BY_ID, BY_ID) })
      t.wait_until(somebody_waits)
      raised("deadlock", mine.row_locks, mine, BY_ID, { 3 }, { timeout = "30s", on_busy = "return" })
      assert.equal(1, mine:value("select 1"))
      mine:rollback()
      assert.equal(0, child:wait(), child:stderr())
    end)

    after_each(function()
      pcall(tx.rollback, tx)
    end)
  end)

  it("timeout = 0 does not wait for the table either, which NOWAIT alone would", function()
    local tx <close> = other:begin()
    tx:model("queue")
    db:transaction(function(mine)
      for _, skip_locked in ipairs { false, true } do
        local rows, err = mine:row_locks(ALL, {}, { timeout = 0, skip_locked = skip_locked })
        assert.is_nil(rows)
        assert.equal("not_acquired", err.kind)
      end
      local _, err = mine:row_locks(ALL, {}, { timeout = "20ms", skip_locked = true })
      assert.equal("lock_timeout", err.kind)
      assert.equal(1, mine:value("select 1"))
      assert.equal("0", mine:value("show lock_timeout"))
    end)
  end)

  describe("strength", function()
    it("is PostgreSQL's four, in any case, with or without FOR", function()
      -- What another may still have of the row.
      local allowed = {
        ["update"] = {},
        ["no key update"] = { "key share" },
        ["share"] = { "key share", "share" },
        ["key share"] = { "key share", "share", "no key update" },
      }
      for strength, others in pairs(allowed) do
        local upper = strength:upper()
        for _, spelling in ipairs { strength, upper, "FOR " .. upper, "for " .. strength } do
          db:transaction(function(tx)
            assert.equal(1, #tx:row_locks(BY_ID, { 1 }, { strength = spelling }))
            local had = {}
            for _, clause in ipairs { "key share", "share", "no key update", "update" } do
              if unlocked(clause) == "1 2 3" then
                had[#had + 1] = clause
              end
            end
            assert.same(others, had, spelling)
          end)
        end
      end
    end)

    it("that is unknown is named, with the nearest", function()
      db:transaction(function(tx)
        usage('unknown strength "shore"; did you mean "share"?', tx.row_locks, tx, ALL, {},
          { strength = "shore" })
        for _, wrong in ipairs { "", "exclusive", "update nowait", "update; drop table x", 5, true, {},
          ("x"):rep(1000000) } do
          usage("strength", tx.row_locks, tx, ALL, {}, { strength = wrong })
        end
        assert.equal("1 2 3", unlocked())
      end)
    end)
  end)

  describe("of", function()
    local JOIN = "select c.id from queue c join queue p on p.id = c.parent where c.id = 2"

    it("names the tables of which rows are locked, by their aliases", function()
      for of, left in pairs { c = "1 3", p = "2 3" } do
        db:transaction(function(tx)
          assert.same({ 2 }, ids(tx:row_locks(JOIN, {}, { of = of })))
          assert.equal(left, unlocked())
        end)
      end
      db:transaction(function(tx)
        tx:row_locks(JOIN, {}, { of = { "c", "p" } })
        assert.equal("3", unlocked())
      end)
      db:transaction(function(tx)
        tx:row_locks(JOIN)
        assert.equal("3", unlocked())
      end)
    end)

    it("lets an outer join be locked", function()
      local outer = "select c.id from queue c left join queue p on p.id = c.parent"
      db:transaction(function(tx)
        assert.equal("0A000", raised("sql", tx.row_locks, tx, outer).sqlstate)
        assert.equal(3, #tx:row_locks(outer, {}, { of = "c" }))
      end)
    end)

    it("is quoted, so that nothing else can get into the statement", function()
      db:transaction(function(tx)
        assert.equal(1, #tx:row_locks([[select * from "Odd ""Name"]], {}, { of = 'Odd "Name' }))
        for _, name in ipairs { "c nowait", "c; drop table queue", 'c"', "C", "c, p", "", "-- c" } do
          local err = expect.raised(tx.row_locks, tx, JOIN, {}, { of = name })
          assert.is_true(err.kind == "sql" or err.kind == "usage", name)
          assert.equal(1, tx:value("select 1"))
        end
        for _, wrong in ipairs { 5, true, { 1 }, { "c", false } } do
          usage("of must be a table's alias or a list of them", tx.row_locks, tx, JOIN, {}, { of = wrong })
        end
        usage("of names no table", tx.row_locks, tx, JOIN, {}, { of = {} })
      end)
    end)
  end)

  describe("the query", function()
    it("may end with semicolons, space and comments", function()
      for _, ending in ipairs { ";", " ; ", "\n;;\n", " -- a comment", "; -- a comment\n",
        " /* a /* nested */ one */",
        ";/*x*/;--", " -- it's; a comment", "/* ; */", "--\r\n;" } do
        db:transaction(function(tx)
          assert.equal(1, #tx:row_locks(BY_ID .. ending, { 1 }, { timeout = 0 }), ending)
          assert.equal("2 3", unlocked())
        end)
      end
    end)

    it("may be anything that PostgreSQL locks rows of", function()
      for _, sql in ipairs { "table queue", "(select * from queue)", ALL .. " limit 3",
        "with x as (select 1) select * from queue", "-- a comment\n select * from queue",
        "/* one */ /* two */ SELECT * FROM queue",
        "select q.*, $1::text from queue q where $$;for update$$ <> $x$;$$ for update$x$",
        "select * from queue where ';' <> 'it''s; -- for update' and E'\\'; for update' <> ''",
        'select id as "for; update", id as for from queue',
        "select id, substring('abc' for 2) from queue",
        "select id from queue where u&'\\0041;' <> b'1'::text and n';' <> x'1f'::text",
        "select * from (select * from queue for update) q",
        "select id from queue where 1<2 and 5-(-3)>2 and id*-1<0 and (array[1,2])[1] = 1 and 1.5e3 > 1",
        "select id as ключ from queue" } do
        db:transaction(function(tx)
          local parameters = sql:find("$1", 1, true) and { "x" } or nil
          assert.equal(3, #tx:row_locks(sql, parameters, { timeout = 0 }), sql)
          assert.equal("", unlocked(), sql)
        end)
      end
    end)

    it("of more than one statement is refused", function()
      db:transaction(function(tx)
        for _, sql in ipairs { ALL .. "; select 1", ALL .. "; drop table queue; --", "select 1;;select 2",
          ALL .. " /* */ ; (select 1)", ALL .. "; 'x'", "select 1 -- x\n; select 2" } do
          usage("one query was expected, but the text goes on after it", tx.row_locks, tx, sql)
        end
        assert.equal("3", t.observe("select count(*) from row_locks.queue"))
        assert.equal(1, tx:value("select 1"))
      end)
    end)

    it("with a locking clause of its own is refused", function()
      db:transaction(function(tx)
        for clause, named in pairs { ["for update"] = "FOR UPDATE",
          ["FOR /* x */ UPDATE NOWAIT"] = "FOR UPDATE",
          ["for\nshare of queue skip locked"] = "FOR SHARE", ["for no key update"] = "FOR NO",
          ["for key share;"] = "FOR KEY",
          ["for update limit 1"] = "FOR UPDATE", ["for read only"] = "FOR READ" } do
          usage(("locking clause of its own (%q)"):format(named), tx.row_locks, tx, ALL .. " " .. clause)
        end
        assert.equal("1 2 3", unlocked())
      end)
    end)

    it("that is none is refused", function()
      db:transaction(function(tx)
        for _, sql in ipairs { "", "  ", ";", "-- nothing", "/* nothing */" } do
          usage(sql == ";" and "a query was expected" or "the query is empty", tx.row_locks, tx, sql)
        end
        for _, sql in ipairs { "update queue set state = ''", "delete from queue", "commit",
          "lock table queue", "explain select 1", "'select'", "5", "\"select\"", "selec 1" } do
          usage("a query was expected (SELECT …)", tx.row_locks, tx, sql)
        end
        for _, sql in ipairs { 5, true, {}, print } do
          usage("the query must be a text", tx.row_locks, tx, sql)
        end
        usage("the query must be a text, not nil", tx.row_locks, tx)
        usage("NUL byte", tx.row_locks, tx, "select 1\0")
        usage("comment that does not end", tx.row_locks, tx, "select 1 /* /* */")
      end)
    end)

    it("that PostgreSQL refuses is its error, and the transaction stays usable", function()
      db:transaction(function(tx)
        for _, sql in ipairs { "select 'x", "select $$x", 'select "x', "select * from nowhere",
          "select count(*) from queue", ALL .. " union all " .. ALL, "select (1; drop table queue",
          "select 1/0 from queue", "with x as (select 1) delete from queue" } do
          raised("sql", tx.row_locks, tx, sql, {}, { timeout = "5s" })
          assert.equal("0", tx:value("show lock_timeout"))
        end
        assert.equal("3", t.observe("select count(*) from row_locks.queue"))
      end)
    end)

    it("may be long", function()
      db:transaction(function(tx)
        local sql = ALL .. " -- " .. ("x"):rep(1000000)
        assert.equal(3, #tx:row_locks(sql))
        local list = {}
        for i = 1, 20000 do
          list[i] = "'a;b'"
        end
        assert.equal(3, #tx:row_locks("select id from queue where state not in (" .. table.concat(list, ",")
          .. ")"))
      end)
    end)
  end)

  describe("parameters", function()
    it("are bound, of every type", function()
      db:transaction(function(tx)
        assert.same({ 1 }, ids(tx:row_locks("select id from queue where data = $1", { { a = { 1 } } })))
        assert.same({ 1, 2 }, ids(tx:row_locks("select id from queue where id = any($1) order by id",
          { lock.array { 1, 2 } })))
        assert.same({}, tx:row_locks("select id from queue where state = $1", { "' or true; --" }))
        assert.same({ 3 }, ids(tx:row_locks("select id from queue where $1::int is null and state = $2",
          { nil, "old", n = 2 })))
      end)
    end)

    it("that could be bytea are looked at by the server first, under the same timeout", function()
      db:transaction(function(tx)
        assert.same({}, tx:row_locks("select id from queue where state = $1", { "a\\b" }, { timeout = 0 }))
        assert.equal(3, #tx:row_locks("select id from queue where $1::bytea is not null", { "\0\xff" }))
        usage("UTF", tx.row_locks, tx, "select id from queue where state = $1", { "\xff" })
        local err = raised("sql", tx.row_locks, tx, "select 1 from nowhere where $1 = 'x'", { "a\\b" })
        assert.equal("42P01", err.sqlstate)
        assert.equal(1, tx:value("select 1"))
        local busy <close> = other:begin()
        assert.is_nil((busy:row_locks(ALL, {}, { timeout = 0 }))) -- this transaction has them
      end)
      local busy <close> = other:begin()
      busy:model("queue")
      db:transaction(function(tx)
        for timeout, kind in pairs { [0] = "not_acquired", ["10ms"] = "lock_timeout" } do
          local rows, err = tx:row_locks("select id from queue where state = $1", { "a\\b" },
            { timeout = timeout })
          assert.is_nil(rows)
          assert.equal(kind, err.kind)
          assert.equal(1, tx:value("select 1"))
          assert.equal("0", tx:value("show lock_timeout"))
        end
      end)
    end)

    it("are a list of the right length", function()
      db:transaction(function(tx)
        for _, wrong in ipairs { 5, "x", true } do
          usage("the parameters must be a list, not", tx.row_locks, tx, BY_ID, wrong)
        end
        usage('without "timeout"; options come after them', tx.row_locks, tx, BY_ID, { timeout = 0 })
        usage("without 3", tx.row_locks, tx, BY_ID, { 1, [3] = 1, n = 2 })
        usage("n must be an integer", tx.row_locks, tx, BY_ID, { n = "x" })
        usage("n must be an integer", tx.row_locks, tx, BY_ID, { n = -1 })
        usage("70000 parameters are more than the 65535", tx.row_locks, tx, BY_ID, { n = 70000 })
        usage("parameter", tx.row_locks, tx, BY_ID, { print })
        raised("sql", tx.row_locks, tx, BY_ID, {})
        assert.equal(1, tx:value("select 1"))
      end)
    end)
  end)

  it("outside a transaction is a usage error, and in one that has failed 25P02", function()
    usage("open transaction", db.row_locks, db, BY_ID, { 1 })
    usage("open transaction", db.row_locks, db, BY_ID, { "a\\b" })
    local tx <close> = db:begin()
    expect.raised(tx.exec, tx, "select 1/0")
    assert.equal("25P02", raised("sql", tx.row_locks, tx, BY_ID, { 1 }, { timeout = 0 }).sqlstate)
    tx:rollback()
    usage("the transaction is already over", tx.row_locks, tx, BY_ID, { 1 })
  end)

  it("refuses unknown options by name", function()
    db:transaction(function(tx)
      usage('unknown option "skip_lockd"; did you mean "skip_locked"?', tx.row_locks, tx, ALL, {},
        { skip_lockd = true })
      usage("skip_locked must be true or false", tx.row_locks, tx, ALL, {}, { skip_locked = "yes" })
      usage("the options must be a table", tx.row_locks, tx, ALL, {}, 5)
      usage("the options must be a table", tx.row_locks, tx, ALL, {}, print)
      for _, wrong in ipairs { "skip", "wait", 5, true } do
        usage('on_busy must be "return" or "raise"', tx.row_locks, tx, ALL, {}, { on_busy = wrong })
      end
      for _, wrong in ipairs { "soon", -1, 0 / 0, true, {}, 0.0001, "40d" } do
        usage("timeout", tx.row_locks, tx, ALL, {}, { timeout = wrong })
      end
    end)
  end)

  it("lua-api.md: a session that ends while it holds rows raises lock_lost", function()
    local tx = db:begin()
    tx:row_locks(BY_ID, { 1 })
    t.observe(("select pg_terminate_backend(%d)"):format(db.pid))
    raised("lock_lost", tx.query, tx, "select 1")
    db:close()
  end)

  it("a session that ends while it waits is a connection's error, not a lock's that was not had", function()
    local tx <close> = other:begin()
    tx:row_locks(BY_ID, { 1 })
    local child = t.lockkeeper("run", "-", { stdin = ([[
      local lock = require "lockkeeper"
      lock.db:transaction(function(mine)
        local _, err = mine:row_locks(%q, { 1 }, { timeout = "60s" })
      end)]]):format(BY_ID) })
    local pid = t.wait_until(function()
      local found = t.observe("select pid from pg_locks where not granted limit 1")
      return found ~= "" and found
    end)
    t.observe(("select pg_terminate_backend(%s)"):format(pid))
    assert.equal(69, child:wait(), child:stderr())
  end)

  it("lets other tasks go on while it waits, and ends with its task", function()
    local tx <close> = other:begin()
    tx:row_locks(BY_ID, { 1 })
    local pid = db.pid
    assert.equal("enough", expect.raised(lock.tasks, function(spawn)
      spawn(function()
        db:transaction(function(mine) mine:row_locks(BY_ID, { 1 }) end)
      end)
      spawn(function()
        while not t.is_waiting(pid) do
          lock.sleep("2ms")
        end
        error("enough", 0)
      end)
    end))
    assert.is_false(db.in_transaction)
    assert.is_false(t.is_waiting(pid))
  end)

  it("in savepoints belongs to them: rolling back to one gives its rows back", function()
    db:transaction(function(tx)
      tx:row_locks(BY_ID, { 1 })
      expect.raised(tx.transaction, tx, function(inner)
        inner:row_locks(BY_ID, { 2 })
        assert.equal("3", unlocked())
        error("back")
      end)
      assert.equal("2 3", unlocked())
    end)
  end)

  it("under a search_path that shadows PostgreSQL's names, and through a pooler", function()
    t.psql([[
      create schema shadow;
      create function shadow.set_config(text, text, bool) returns text language sql as 'select null::text';
      create function shadow.current_setting(text) returns text language sql as 'select null::text';
    ]])
    local shadowed <close> = t.connect({ options = "-csearch_path=shadow,pg_catalog" })
    local tx <close> = other:begin()
    tx:row_locks(BY_ID, { 1 })
    shadowed:transaction(function(mine)
      local _, err = mine:row_locks(BY_ID, { 1 }, { timeout = "10ms" })
      assert.equal("lock_timeout", err.kind)
      assert.equal("0", mine:value("show lock_timeout"))
    end)
    t.psql("drop schema shadow cascade")
    local bouncer = t.start_pgbouncer()
    do
      local pooled <close> = lock.connect({ conninfo = bouncer:conninfo() })
      pooled:transaction(function(mine)
        local _, err = mine:row_locks(BY_ID, { 1 }, { timeout = "10ms" })
        assert.equal("lock_timeout", err.kind)
        assert.same({ 2 }, ids(mine:row_locks(BY_ID, { 2 }, { timeout = "10ms" })))
      end)
    end
    bouncer:stop()
  end)

  it("needs no more than what PostgreSQL asks for", function()
    local app <close> = t.connect({ user = "lk_app" })
    app:transaction(function(tx)
      assert.equal("42501", raised("sql", tx.row_locks, tx, BY_ID, { 1 }, { timeout = 0 }).sqlstate)
      assert.equal(1, tx:value("select 1"))
    end)
  end)
end)
