-- lua-api.md, "Sessions": begin, commit, rollback, transaction, savepoints.

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local raised, usage = expect.raised, expect.usage

local db

-- What is in the table.
local function rows()
  return db:value("select coalesce(string_agg(a::text, ' ' order by a), '') from work")
end

local function insert(session, value)
  session:exec("insert into work values ($1)", value)
end

describe("begin", function()
  before_each(function()
    db = t.connect()
    db:exec("create temporary table work (a int)")
  end)
  after_each(function() db:close() end)

  it("opens a transaction, which commit keeps", function()
    local tx <close> = db:begin()
    assert.is_true(db.in_transaction)
    assert.is_true(tx.in_transaction)
    insert(tx, 1)
    assert.equal("transaction (open)", tostring(tx))
    tx:commit()
    assert.equal("transaction (over)", tostring(tx))
    assert.is_false(db.in_transaction)
    assert.equal("1", rows())
  end)

  it("gives what rolls back when it is left without commit", function()
    do
      local tx <close> = db:begin()
      insert(tx, 1)
    end
    assert.is_false(db.in_transaction)
    assert.equal("", rows())
    local function leave()
      local tx <close> = db:begin()
      insert(tx, 1)
      do return "early" end
    end
    assert.equal("early", leave())
    assert.equal("", rows())
  end)

  it("gives what rolls back when it is left by an error, which goes on", function()
    local err = raised(function()
      local tx <close> = db:begin()
      insert(tx, 1)
      tx:exec("select 1/0")
    end)
    assert.equal("22012", err.sqlstate)
    assert.is_false(db.in_transaction)
    assert.equal("", rows())
    assert.equal("mine", raised(function()
      local tx <close> = db:begin()
      insert(tx, 1)
      error("mine", 0)
    end))
    assert.equal("", rows())
  end)

  it("gives what has every method of its session", function()
    local tx <close> = db:begin()
    assert.same({ { v = 1 } }, tx:query("select 1 as v"))
    assert.same({ v = 1 }, tx:one("select 1 as v"))
    assert.equal(2, tx:value("select $1::int", 2))
    assert.equal("a", tx:format("%I", "a"))
    assert.equal(db.pid, tx.pid)
    assert.is_true(tx:ping())
    assert.is_true((tx:advisory(1, { xact = true })):is_held())
    for row in tx:rows("select 1 as v") do
      assert.same({ v = 1 }, row)
    end
    local held = lock.advisory(2, { using = tx, xact = true })
    assert.is_true(held:is_held())
  end)

  it("takes isolation, read_only and deferrable", function()
    local function shows(setting, expected, options)
      local tx <close> = db:begin(options)
      assert.equal(expected, tx:value("show " .. setting))
    end
    shows("transaction_isolation", "read committed")
    for _, level in ipairs({ "read committed", "repeatable read", "serializable", "read uncommitted" }) do
      shows("transaction_isolation", level, { isolation = level })
      shows("transaction_isolation", level, { isolation = level:upper() })
    end
    shows("transaction_read_only", "on", { read_only = true })
    shows("transaction_read_only", "off", { read_only = false })
    shows("transaction_deferrable", "on",
      { isolation = "serializable", read_only = true, deferrable = true })
    db:exec("set default_transaction_read_only = on")
    shows("transaction_read_only", "off", { read_only = false })
    local err = raised(function()
      local tx <close> = db:begin({ read_only = true })
      tx:exec("create table never (a int)")
    end)
    assert.equal("25006", err.sqlstate)
  end)

  it("refuses wrong values", function()
    usage("begin: isolation must be a text, not 1", db.begin, db, { isolation = 1 })
    usage([[begin: unknown isolation "x'; drop"]], db.begin, db, { isolation = "x'; drop" })
    usage("begin: read_only must be true or false, not 1", db.begin, db, { read_only = 1 })
    assert.is_false(db.in_transaction)
  end)

  it("inside a transaction makes a savepoint", function()
    local tx <close> = db:begin()
    insert(tx, 1)
    do
      local inner <close> = tx:begin()
      insert(inner, 2)
    end
    do
      local inner <close> = db:begin()
      insert(inner, 3)
      inner:commit()
    end
    local inner = tx:begin()
    insert(inner, 4)
    inner:rollback()
    tx:commit()
    assert.equal("1 3", rows())
  end)

  it("takes no options inside a transaction, where they would do nothing", function()
    local tx <close> = db:begin()
    usage("belong to the outermost one", tx.begin, tx, { isolation = "serializable" })
    usage("belong to the outermost one", tx.begin, tx, { read_only = true })
    tx:begin({}):commit()
    tx:commit()
  end)

  it("keeps the transaction usable when an inner one fails", function()
    local tx <close> = db:begin()
    insert(tx, 1)
    for _ = 1, 3 do
      raised(function()
        local inner <close> = tx:begin()
        inner:exec("select 1/0")
      end)
    end
    local inner = tx:begin()
    raised(inner.exec, inner, "select 1/0")
    local err = raised(inner.commit, inner)
    assert.equal("25P02", err.sqlstate)
    insert(tx, 2)
    tx:commit()
    assert.equal("1 2", rows())
  end)

  it("nests 32 deep and no deeper", function()
    local list = {}
    for i = 1, 32 do
      list[i] = db:begin()
    end
    usage("nested deeper than 32", db.begin, db)
    for i = 32, 1, -1 do
      list[i]:commit()
    end
    assert.is_false(db.in_transaction)
  end)

  it("inside a manual BEGIN makes a savepoint too", function()
    db:exec("begin")
    insert(db, 1)
    do
      local tx <close> = db:begin()
      insert(tx, 2)
    end
    local tx = db:begin()
    insert(tx, 3)
    tx:commit()
    assert.is_true(db.in_transaction)
    db:exec("commit")
    assert.equal("1 3", rows())
  end)

  it("in a failed transaction fails with 25P02", function()
    local tx <close> = db:begin()
    raised(tx.exec, tx, "select 1/0")
    assert.equal("25P02", raised(tx.begin, tx).sqlstate)
  end)
end)

describe("a transaction", function()
  before_each(function()
    db = t.connect()
    db:exec("create temporary table work (a int)")
  end)
  after_each(function() db:close() end)

  it("that has failed is rolled back by commit, which raises", function()
    local tx <close> = db:begin()
    insert(tx, 1)
    raised(tx.exec, tx, "select 1/0")
    local err = raised(tx.commit, tx)
    assert.equal("sql", err.kind)
    assert.equal("25P02", err.sqlstate)
    assert.matches("rolled back, not committed", err.message)
    assert.is_false(db.in_transaction)
    assert.equal("", rows())
  end)

  it("that a deferred constraint refuses at commit raises that, and is over", function()
    db:exec("create temporary table one (a int unique deferrable initially deferred)")
    local tx <close> = db:begin()
    tx:exec("insert into one values (1), (1)")
    assert.equal("23505", raised(tx.commit, tx).sqlstate)
    assert.is_false(db.in_transaction)
    assert.equal(0, db:value("select count(*) from one"))
  end)

  it("that is over can't be used", function()
    local tx = db:begin()
    tx:commit()
    for _, method in ipairs({ "commit", "rollback", "exec", "query", "begin", "ping", "rows" }) do
      usage("the transaction is already over", tx[method], tx, "select 1")
    end
    usage("the transaction is already over", lock.advisory, 1, { using = tx })
    tx = db:begin()
    tx:rollback()
    usage("the transaction is already over", tx.rollback, tx)
    usage("the transaction is already over", tx.commit, tx)
  end)

  it("ends all inside it with it, in whatever order they are ended", function()
    local outer = db:begin()
    local middle = outer:begin()
    local inner = middle:begin()
    insert(inner, 1)
    outer:commit()
    assert.equal("1", rows())
    usage("the transaction is already over", inner.commit, inner)
    usage("the transaction is already over", middle.exec, middle, "select 1")

    outer = db:begin()
    middle = outer:begin()
    inner = middle:begin()
    insert(inner, 2)
    middle:rollback()
    usage("the transaction is already over", inner.rollback, inner)
    insert(outer, 3)
    outer:commit()
    assert.equal("1 3", rows())
  end)

  it("that was ended by SQL is over", function()
    for _, sql in ipairs({ "commit", "rollback", "commit; begin", "commit and chain", "end" }) do
      local tx = db:begin()
      local inner = tx:begin()
      db:exec(sql)
      usage("the transaction is already over", tx.commit, tx)
      usage("the transaction is already over", inner.rollback, inner)
      if db.in_transaction then
        db:exec("rollback")
      end
    end
    do
      local tx <close> = db:begin()
      tx:exec("commit")
    end
    assert.is_false(db.in_transaction)
  end)

  it("has the name of a savepoint that no SQL of the user's meets", function()
    local tx <close> = db:begin()
    tx:exec("savepoint a")
    local inner = tx:begin()
    insert(inner, 1)
    tx:exec("savepoint a; rollback to a; release a")
    inner:commit()
    tx:commit()
    assert.equal("1", rows())
  end)

  it("that is left while rows are streamed, or copied, in it is rolled back all the same", function()
    local left = {}
    do
      local tx <close> = db:begin()
      insert(tx, 1)
      left.rows = tx:rows("select generate_series(1, 100000) as v")
      assert.equal(1, left.rows().v)
    end
    assert.is_false(db.in_transaction)
    assert.equal("", rows())
    usage("these rows ended with their transaction or their connection", left.rows)
    do
      local tx <close> = db:begin()
      left.copy = require("lockkeeper.core").start_copy_in(tx, "copy work from stdin")
      left.copy:put("5\n")
    end
    assert.equal("", rows())
    usage("the copy is already over", left.copy.finish, left.copy)
    -- what is dropped later does not touch the next ones
    local other = db:rows("select generate_series(1, 3) as v")
    assert.equal(1, other().v)
    left.rows, left.copy = nil, nil
    collectgarbage()
    collectgarbage()
    assert.equal(2, other().v)
    assert.equal(3, other().v)
    assert.is_nil(other())
  end)

  it("whose session is closed is over", function()
    local tx <close> = db:begin()
    insert(tx, 1)
    tx:close()
    usage("the session is closed", db.query, db, "select 1")
    usage("the transaction is already over", tx.commit, tx)
    db:reconnect()
    assert.is_false(db.in_transaction)
  end)
end)

describe("transaction", function()
  before_each(function()
    db = t.connect()
    db:exec("create temporary table work (a int)")
  end)
  after_each(function() db:close() end)

  it("commits, and returns what the function returned", function()
    assert.same({ 1, nil, 3, n = 3 }, table.pack(db:transaction(function(tx)
      insert(tx, 1)
      return 1, nil, 3
    end)))
    assert.equal("1", rows())
    assert.equal("select", select("#", db:transaction(function() end)) == 0 and "select")
  end)

  it("rolls back and raises again", function()
    local mine = {}
    assert.equal(mine, raised(db.transaction, db, function(tx)
      insert(tx, 1)
      error(mine)
    end))
    assert.is_false(db.in_transaction)
    assert.equal("", rows())
  end)

  it("nested is a savepoint", function()
    db:transaction(function(tx)
      insert(tx, 1)
      raised(tx.transaction, tx, function(inner)
        insert(inner, 2)
        inner:exec("select 1/0")
      end)
      db:transaction(function(inner) insert(inner, 3) end)
      insert(tx, 4)
    end)
    assert.equal("1 3 4", rows())
  end)

  it("takes begin's options", function()
    assert.equal("serializable", db:transaction({ isolation = "serializable" }, function(tx)
      return tx:value("show transaction_isolation")
    end))
  end)

  it("that swallows an error of its SQL raises that it was not committed", function()
    local err = raised(db.transaction, db, function(tx)
      insert(tx, 1)
      pcall(tx.exec, tx, "select 1/0")
    end)
    assert.equal("25P02", err.sqlstate)
    assert.equal("", rows())
  end)

  it("needs a function", function()
    usage("transaction: the last argument must be a function, not a nil", db.transaction, db)
    usage("transaction: the last argument must be a function", db.transaction, db, {}, {})
    assert.is_false(db.in_transaction)
  end)

  it("may be in a coroutine, and is rolled back when that is closed", function()
    local co = coroutine.create(function()
      db:transaction(function(tx)
        insert(tx, 1)
        coroutine.yield()
      end)
    end)
    assert(coroutine.resume(co))
    assert.is_true(db.in_transaction)
    assert.is_true(coroutine.close(co))
    assert.is_false(db.in_transaction)
    assert.equal("", rows())
  end)
end)
