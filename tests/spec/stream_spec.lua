-- lua-api.md, "Sessions": rows, copy_in, copy_out.

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local raised, usage = expect.raised, expect.usage

-- This process's resident memory, in MB.
local function resident()
  collectgarbage()
  return tonumber(t.read_file("/proc/self/status"):match("VmRSS:%s+(%d+)")) / 1024
end

-- How much it grows, in MB, when fn is called again: the first time allocators take what they keep.
local function growth(fn)
  fn()
  local before = resident()
  fn()
  return resident() - before
end

local db

describe("rows", function()
  before_each(function() db = t.connect() end)
  after_each(function() db:close() end)

  it("gives one row after the other", function()
    local list = {}
    for row in db:rows("select i, i * 2 as double from generate_series(1, $1) i", 3) do
      list[#list + 1] = row
    end
    assert.same({ { i = 1, double = 2 }, { i = 2, double = 4 }, { i = 3, double = 6 } }, list)
    for _ in db:rows("select 1 where false") do
      error("a row of none")
    end
    local n = 0
    for row in db:rows("select from generate_series(1, 3)") do
      assert.same({}, row)
      n = n + 1
    end
    assert.equal(3, n)
    assert.equal(1, db:value("select 1"))
  end)

  it("gives values with their types, as query does", function()
    local sql = [[select 1 as i, 0.5::float8 as f, true as b, null as n, array[1, 2] as a,
      '{"k": 1}'::jsonb as j, '\x00ff'::bytea as y]]
    local expected = db:one(sql)
    for row in db:rows(sql) do
      assert.same(expected, row)
    end
    for row in db:rows("select $1::bytea as v", "\0\\\255") do
      assert.equal("\0\\\255", row.v)
    end
  end)

  it("runs a statement that gives none", function()
    for _ in db:rows("create temporary table x (a int)") do
      error("a row of none")
    end
    local list = {}
    for row in db:rows("insert into x values (1), (2) returning a") do
      list[#list + 1] = row.a
    end
    assert.same({ 1, 2 }, list)
    assert.equal(2, db:value("select count(*) from x"))
  end)

  it("lets memory not grow with the result", function()
    local function stream()
      local n = 0
      for row in db:rows("select repeat('x', 1000) || i as v from generate_series(1, 200000) i") do
        n = n + 1
        assert(#row.v > 1000)
      end
      assert.equal(200000, n)
    end
    assert.is_true(growth(stream) < 60)
  end)

  it("drains what is left at a break, a return and an error", function()
    for row in db:rows("select generate_series(1, 100000) as v") do
      if row.v == 3 then break end
    end
    assert.equal(1, db:value("select 1"))
    local function find(wanted)
      for row in db:rows("select generate_series(1, 100000) as v") do
        if row.v == wanted then return row.v end
      end
    end
    assert.equal(7, find(7))
    assert.equal(1, db:value("select 1"))
    assert.equal("mine", raised(function()
      for _ in db:rows("select generate_series(1, 100000) as v") do
        error("mine", 0)
      end
    end))
    assert.equal(1, db:value("select 1"))
  end)

  it("makes another statement inside the loop a usage error, and goes on", function()
    local n = 0
    for _ in db:rows("select generate_series(1, 3)") do
      n = n + 1
      for _, use in ipairs({
        function() db:query("select 1") end,
        function() db:exec("select $1::int", 1) end,
        function() db:rows("select 1") end,
        function() db:begin() end,
        function() db:transaction(print) end,
        function() db:listen("x") end,
        function() db:wait_notify(0) end,
        function() db:copy_out("copy pg_class to stdout") end,
        function() db:advisory(1) end,
      }) do
        local err = usage("the session is streaming rows", use)
        assert.matches("query%(%)", err.hint)
      end
      local ok, err = db:ping()
      assert.is_nil(ok)
      assert.equal("usage", err.kind)
    end
    assert.equal(3, n)
    assert.same({}, t.holders(0, 1, 1))
  end)

  it("raises an error in the middle, after which the session goes on", function()
    local n = 0
    local err = raised(function()
      for _ in db:rows("select 1 / (5000 - i) from generate_series(1, 10000) i") do
        n = n + 1
      end
    end)
    assert.equal("22012", err.sqlstate)
    assert.is_true(n >= 4000 and n < 5000, n)
    assert.equal(1, db:value("select 1"))
    assert.equal("42P01", raised(db.rows, db, "select * from no_such_table").sqlstate)
    assert.equal("42601", raised(db.rows, db, "select 1; select 2").sqlstate)
    usage("the statement is empty", function()
      for _ in db:rows("") do end
    end)
    assert.equal(1, db:value("select 1"))
  end)

  it("can be called by hand, and says nil at the end as often as asked", function()
    local next_row = db:rows("select generate_series(1, 2) as v")
    assert.equal(1, next_row().v)
    assert.equal(2, next_row().v)
    assert.is_nil(next_row())
    assert.is_nil(next_row())
    assert.equal(1, db:value("select 1"))
  end)

  it("that is dropped half-way frees the session", function()
    db:rows("select generate_series(1, 100000)")()
    collectgarbage()
    collectgarbage()
    assert.equal(1, db:value("select 1"))
  end)

  it("ends with its connection", function()
    local next_row = db:rows("select generate_series(1, 100000) as v")
    assert.equal(1, next_row().v)
    db:close()
    db:reconnect()
    usage("these rows ended", next_row)
    assert.equal(1, db:value("select 1"))
  end)

  it("can be in the loop over another session's", function()
    local other <close> = lock.connect({ conninfo = t.conninfo() })
    local sum = 0
    for a in db:rows("select generate_series(1, 3) as v") do
      for b in other:rows("select generate_series(1, $1) as v", a.v) do
        sum = sum + b.v
      end
    end
    assert.equal(10, sum)
  end)
end)

describe("copy_in", function()
  before_each(function()
    db = t.connect()
    db:exec("create temporary table work (a int, b text)")
  end)
  after_each(function() db:close() end)

  local function all()
    return db:value("select coalesce(string_agg(a || '=' || b, ' ' order by a), '') from work")
  end

  it("takes a text, a list of texts, a function, an open file, cut anywhere", function()
    assert.equal(2, db:copy_in("copy work from stdin", "1\tone\n2\ttwo\n"))
    assert.equal(1, db:copy_in("copy work from stdin", { "3", "\tth", "", "ree", "\n" }))
    local i = 3
    assert.equal(2, db:copy_in("copy work from stdin", function()
      i = i + 1
      return i <= 5 and i .. "\tx\n" or nil
    end))
    local file <close> = assert(io.open(t.tempfile("6,six\n7,seven\n")))
    assert.equal(2, db:copy_in("copy work from stdin with (format csv)", file))
    assert.equal("1=one 2=two 3=three 4=x 5=x 6=six 7=seven", all())
    assert.equal(0, db:copy_in("copy work from stdin", ""))
    assert.equal(0, db:copy_in("copy work from stdin", {}))
  end)

  it("copies nothing where the source raises", function()
    local n = 0
    assert.equal("mine", raised(db.copy_in, db, "copy work from stdin", function()
      n = n + 1
      if n == 3 then error("mine", 0) end
      return n .. "\tx\n"
    end))
    assert.equal("", all())
    usage("copy_in: the source must give texts, not a table", db.copy_in, db, "copy work from stdin",
      { "1\tx\n", {} })
    assert.equal("", all())
  end)

  it("raises what the server makes of the data, and the session goes on", function()
    local err = raised(db.copy_in, db, "copy work from stdin", "1\tone\nx\ttwo\n")
    assert.equal("22P02", err.sqlstate)
    assert.equal("", all())
    assert.equal(1, db:copy_in("copy work from stdin", "1\tone\n"))
  end)

  it("refuses what is no source, and what is no COPY FROM STDIN", function()
    for _, source in ipairs({ 1, true, io.stdout.close, db }) do
      if type(source) ~= "function" then
        usage("copy_in: the source must be a text", db.copy_in, db, "copy work from stdin", source)
      end
    end
    usage("copy_in: the source must be a text", db.copy_in, db, "copy work from stdin")
    usage("the statement is not a COPY … FROM STDIN", db.copy_in, db, "select 1", "")
    usage("the statement is not a COPY … FROM STDIN", db.copy_in, db, "copy work to stdout", "")
    usage("the statement is not a COPY … FROM STDIN", db.copy_in, db, "", "")
    assert.equal("42P01", raised(db.copy_in, db, "copy no_such_table from stdin", "").sqlstate)
    assert.equal("", all())
  end)

  it("lets another statement wait", function()
    usage("the session is copying", db.copy_in, db, "copy work from stdin", function()
      db:query("select 1")
    end)
    assert.equal("", all())
  end)

  it("takes 100 MB without keeping it", function()
    db:exec("create temporary table big (v text)")
    local piece = (("x"):rep(999) .. "\n"):rep(1024)
    assert.is_true(growth(function()
      local n = 0
      assert.equal(100 * 1024, db:copy_in("copy big from stdin", function()
        n = n + 1
        return n <= 100 and piece or nil
      end))
    end) < 60)
  end)

  it("is part of a transaction", function()
    do
      local tx <close> = db:begin()
      assert.equal(1, tx:copy_in("copy work from stdin", "1\tone\n"))
    end
    assert.equal("", all())
  end)
end)

describe("copy_out", function()
  before_each(function() db = t.connect() end)
  after_each(function() db:close() end)

  it("gives the text, or calls a function with pieces of it, or writes a file", function()
    local sql = "copy (select i, i * i from generate_series(1, 3) i) to stdout"
    assert.equal("1\t1\n2\t4\n3\t9\n", db:copy_out(sql))
    local list = {}
    assert.equal(3, db:copy_out(sql, function(piece) list[#list + 1] = piece end))
    assert.equal("1\t1\n2\t4\n3\t9\n", table.concat(list))
    local path = t.tempfile("")
    do
      local file <close> = assert(io.open(path, "w"))
      assert.equal(3, db:copy_out(sql, file))
    end
    assert.equal("1\t1\n2\t4\n3\t9\n", t.read_file(path))
    assert.equal("", db:copy_out("copy (select where false) to stdout"))
    assert.equal("PGCOPY", db:copy_out("copy (select 1) to stdout with (format binary)"):sub(1, 6))
  end)

  it("drains what is left where the sink raises", function()
    assert.equal("mine", raised(db.copy_out, db, "copy (select generate_series(1, 100000)) to stdout",
      function() error("mine", 0) end))
    assert.equal(1, db:value("select 1"))
  end)

  it("raises an error in the middle, after which the session goes on", function()
    local err = raised(db.copy_out, db,
      "copy (select 1 / (5000 - i) from generate_series(1, 10000) i) to stdout")
    assert.equal("22012", err.sqlstate)
    assert.equal(1, db:value("select 1"))
  end)

  it("refuses what is no sink, and what is no COPY TO STDOUT", function()
    usage("copy_out: the sink must be a function or an open file, not a table", db.copy_out, db,
      "copy pg_class to stdout", {})
    usage("the statement is not a COPY … TO STDOUT", db.copy_out, db, "select 1")
    db:exec("create temporary table work (a int)")
    usage("the statement is not a COPY … TO STDOUT", db.copy_out, db, "copy work from stdin")
    assert.equal(1, db:value("select 1"))
  end)

  it("gives 100 MB without keeping it", function()
    assert.is_true(growth(function()
      local bytes = 0
      assert.equal(100 * 1024, db:copy_out(
        "copy (select repeat('x', 1023) from generate_series(1, 100 * 1024)) to stdout",
        function(piece) bytes = bytes + #piece end))
      assert.equal(100 * 1024 * 1024, bytes)
    end) < 60)
  end)
end)
