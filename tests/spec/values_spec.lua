-- lua-api.md, "Sessions": what PostgreSQL's values are in Lua and the other way round; format,
-- ident, json, null, array.

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local raised, usage = expect.raised, expect.usage

describe("a value from the server", function()
  local db

  setup(function() db = lock.connect { conninfo = t.conninfo() } end)
  teardown(function() db:close() end)

  -- The literal, and what it is in Lua.
  local function gives(expected, sql)
    local value = db:value("select " .. sql)
    assert.equal(math.type(expected) or type(expected), math.type(value) or type(value), sql)
    if expected ~= expected then
      assert.is_true(value ~= value, sql)
    else
      assert.same(expected, value, sql)
    end
  end

  it("is an integer for int2, int4, int8 and oid", function()
    gives(-32768, "(-32768)::int2")
    gives(2147483647, "2147483647::int4")
    gives(math.maxinteger, "9223372036854775807::int8")
    gives(math.mininteger, "(-9223372036854775808)::int8")
    gives(4294967295, "4294967295::oid")
    gives(0, "0")
  end)

  it("is a number for float4 and float8", function()
    gives(1.0, "1::float8")
    gives(0.1, "0.1::float8")
    gives(1e300, "1e300::float8")
    gives(1.5, "1.5::float4")
    gives(5e-324, "5e-324::float8")
    gives(math.huge, "'infinity'::float8")
    gives(-math.huge, "'-infinity'::float4")
    gives(0 / 0, "'nan'::float8")
    assert.equal(-math.huge, 1 / db:value("select '-0'::float8"))
  end)

  it("is a boolean for bool, nil for null", function()
    gives(true, "true")
    gives(false, "false")
    assert.is_nil(db:value("select null::int"))
    assert.same({ a = 1 }, db:one("select 1 as a, null as b"))
  end)

  it("is an integer or number for numeric where that converts back to the same text, else its text",
    function()
      gives(12, "12::numeric")
      gives(math.maxinteger, "9223372036854775807::numeric")
      gives("9223372036854775808", "9223372036854775808::numeric")
      gives(0.25, "0.25::numeric")
      gives(-123456789.012345, "-123456789.012345::numeric")
      gives("0.10", "0.10::numeric")
      gives("1.00", "1::numeric(5, 2)")
      gives("0.1234567890123456789", "0.1234567890123456789::numeric")
      gives("NaN", "'nan'::numeric")
      gives("Infinity", "'infinity'::numeric")
      gives(("9"):rep(100), ("9"):rep(100) .. "::numeric")
    end)

  it("is a table for json and jsonb, with lock.null inside", function()
    gives({ a = { 1, 2.5, "x", true, lock.null } }, [['{"a": [1, 2.5, "x", true, null]}'::jsonb]])
    gives({ b = {} }, [['{"b": {}}'::json]])
    gives("text", [['"text"'::json]])
    gives(lock.null, "'null'::json")
    gives(9007199254740993, "'9007199254740993'::jsonb")
  end)

  it("is a list for an array, of lists where it has more dimensions", function()
    gives({ 1, 2, 3 }, "array[1, 2, 3]")
    gives({}, "'{}'::int[]")
    gives({ { 1, 2 }, { 3, 4 } }, "array[[1, 2], [3, 4]]")
    gives({ "a", "b c", [["\,{}]], "", "NULL", lock.null }, [[array['a', 'b c', '"\,{}', '', 'NULL', null] ]])
    gives({ 0.5, lock.null }, "array[0.5, null]::float8[]")
    gives({ true, false }, "array[true, false]")
    gives({ { k = 1 } }, [[array['{"k": 1}']::jsonb[] ]])
    gives({ 7, 8 }, "'[5:6]={7,8}'::int[]")
    gives("1 2", "'1 2'::int2vector")
  end)

  it("is the bytes for bytea, whatever bytea_output is", function()
    local all = {}
    for byte = 0, 255 do
      all[#all + 1] = string.char(byte)
    end
    all = table.concat(all)
    for _, output in ipairs({ "hex", "escape" }) do
      db:exec(db:format("set bytea_output = %L", output))
      assert.equal(all, db:value(("select '\\x%s'::bytea"):format((all:gsub(".", function(c)
        return ("%02x"):format(c:byte())
      end)))))
      assert.equal("", db:value("select ''::bytea"))
      assert.same({ "\\x", "\0" }, db:value("select array['\\x5c78', '\\x00']::bytea[]"))
    end
    db:exec("reset bytea_output")
  end)

  it("is text for everything else", function()
    gives("2026-02-03", "date '2026-02-03'")
    gives("1 day", "interval '1 day'")
    gives("x", "'x'::text")
    gives("", "''")
    gives("(1,\"a b\")", "row(1, 'a b')")
    gives("f47ac10b-58cc-4372-a567-0e02b2c3d479", "'f47ac10b-58cc-4372-a567-0e02b2c3d479'::uuid")
    gives("(1,2),(0,0)", "box '(1,2),(0,0)'")
    gives("{(1,1),(0,0);(2,2),(0,0)}", "array[box '(1,1),(0,0)', box '(2,2),(0,0)']")
    gives("ünïcödé ✓", "'ünïcödé ✓'")
  end)

  it("is a list for an array of the user's own type", function()
    local tx <close> = db:begin()
    tx:exec("create type mood as enum ('sad', 'so so')")
    tx:exec("create domain positive as int check (value > 0)")
    assert.same({ "sad", "so so" }, tx:value("select array['sad', 'so so']::mood[]"))
    assert.same({ "so so", lock.null }, tx:value("select array['so so', null]::mood[] as m"))
    assert.equal("sad", tx:value("select 'sad'::mood"))
    assert.equal(3, tx:value("select 3::positive"))
    for row in tx:rows("select array['sad']::mood[] as moods from generate_series(1, 2)") do
      assert.same({ moods = { "sad" } }, row)
    end
  end)

  it("may be 100 MB", function()
    assert.equal(100 * 1024 * 1024, #db:value("select repeat('x', 100 * 1024 * 1024)"))
  end)

  it("may be one of 1,600 in a row", function()
    local list = {}
    for i = 1, 1600 do
      list[i] = i .. " as c" .. i
    end
    local row = db:one("select " .. table.concat(list, ", "))
    assert.equal(1, row.c1)
    assert.equal(1600, row.c1600)
  end)
end)

describe("a parameter", function()
  local db

  setup(function() db = lock.connect { conninfo = t.conninfo() } end)
  teardown(function() db:close() end)

  -- The value is sent and comes back the same, once unprepared and twice prepared.
  local function returns(value, as)
    for _ = 1, 3 do
      assert.same(value, db:value("select " .. (as or "$1"), value))
    end
  end

  it("is bound, never spliced", function()
    for _, text in ipairs({ "'; drop table x; --", [[\'; --]], "$1", "$$", "%s", "" }) do
      returns(text, "$1::text")
    end
  end)

  it("comes back as what it was", function()
    returns(0)
    returns(-1)
    returns(math.maxinteger)
    returns(math.mininteger)
    returns(0.1)
    returns(1e308)
    returns(5e-324)
    returns(math.huge)
    returns(true)
    returns(false)
    returns("ünïcödé", "$1::text")
    returns({ a = { b = 1 } })
    returns({ 1, "two", 3.5 })
  end)

  it("has the type that it would have as a literal", function()
    local function typed(expected, value)
      assert.equal(expected, db:value("select pg_typeof($1)::text", value))
    end
    typed("integer", 1)
    typed("bigint", 2147483648)
    typed("double precision", 1.0)
    typed("boolean", true)
    typed("jsonb", { a = 1 })
    typed("integer[]", lock.array { 1, 2 })
    typed("bigint[]", lock.array { 1, 2 ^ 40 | 0 })
    typed("double precision[]", lock.array { 1, 0.5 })
    typed("boolean[]", lock.array { true })
    assert.equal("2026-01-02", db:value("select $1::date", "2026-01-02"))
    assert.is_true(db:value("select $1 < now()", "2026-01-02"))
  end)

  it("is null for nil and lock.null, in the middle and at the end", function()
    assert.same({ a = 1, c = 3 }, db:one("select $1::int as a, $2::int as b, $3::int as c, $4::int as d",
      1, nil, 3, nil))
    assert.is_true(db:value("select $1::int is null", lock.null))
  end)

  it("is an array where lock.array made it, with NULL for nil and lock.null", function()
    returns(lock.array { 1, 2, 3 })
    returns(lock.array { { 1, 2 }, { 3, 4 } })
    returns(lock.array { "a", [["\,{}'']], "NULL", "", lock.null }, "$1::text[]")
    assert.is_true(db:value("select 2 = any($1)", lock.array { 1, 2 }))
    assert.same({}, db:value("select $1::int[]", lock.array {}))
    returns(lock.array { "\0\1\\x", "\255" }, "$1::bytea[]")
  end)

  it("is the bytes for bytea, and text with a NUL or no UTF-8 is refused for all else", function()
    returns("\0\1\2\\\255", "$1::bytea")
    returns("\\x41", "$1::bytea")
    returns("\\x41", "$1::text")
    usage("parameter 1 has a NUL byte", db.value, db, "select $1::text", "a\0b")
    usage("parameter 2 is not valid UTF-8", db.value, db, "select $1::int, $2::text", 1, "\255")
    assert.equal(1, db:value("select 1"))
  end)

  it("may be 100 MB", function()
    assert.equal(100 * 1024 * 1024, db:value("select length($1::text)", ("x"):rep(100 * 1024 * 1024)))
  end)

  it("may be one of 65,535, not one more", function()
    local places, values = {}, {}
    for i = 1, 65535 do
      places[i] = "($" .. i .. "::int)"
      values[i] = i
    end
    assert.equal(65535 * 65536 // 2, db:value("select sum(v) from (values "
      .. table.concat(places, ",") .. ") as x (v)", table.unpack(values)))
    values[65536] = 0
    usage("65536 parameters; PostgreSQL takes 65535 at most", db.value, db, "select 1",
      table.unpack(values))
  end)

  it("that PostgreSQL can't have is a usage error which names it", function()
    usage("parameter 1 is a function", db.query, db, "select $1", print)
    usage("parameter 2 is a userdata", db.query, db, "select $1, $2", 1, db)
    usage("parameter 1 is a thread", db.query, db, "select $1", coroutine.create(print))
    usage("parameter 1: value.f is a function", db.query, db, "select $1", { f = print })
    usage("parameter 1: value[2] is NaN", db.query, db, "select $1", { 1, 0 / 0 })
    usage("parameter 1: array[2] is a function", db.query, db, "select $1", lock.array { 1, print })
    usage("parameter 1: array is a table whose keys are not 1..n", db.query, db, "select $1",
      lock.array { x = 1 })
    local cycle = {}
    cycle.again = cycle
    usage("parameter 1: value.again is a table that it stands in: a cycle", db.query, db, "select $1", cycle)
    assert.equal(1, db:value("select 1"))
  end)

  it("must be as many as the statement has", function()
    assert.equal("sql", raised(db.query, db, "select $1::int, $2::int", 1).kind)
    assert.equal("sql", raised(db.query, db, "select $1::int").kind)
    usage("the statement has 1 parameters, but 0 values were given", db.rows, db, "select $1::int")
    assert.equal(1, db:value("select 1"))
  end)

  it("keeps out of messages what it was", function()
    local err = raised(db.query, db, "select $1::int", "hunter2x")
    assert.equal("22P02", err.sqlstate)
    assert.equal("select $1::int", err.statement)
  end)
end)

describe("format", function()
  local db

  setup(function() db = lock.connect { conninfo = t.conninfo() } end)
  teardown(function() db:close() end)

  it("does what PostgreSQL's format() does", function()
    for _, case in ipairs({
      { "vacuum (analyze) %I", "orders" },
      { "%I %I %I", "Odd Name", 'a"b', "select" },
      { "%L %L %L", "it's", [[back\slash]], "ünï" },
      { "%s|%10s|%-10s|%%", "a", "b", "c" },
      { "%2$s %1$I %2$L", "x", "y" },
      { "%*s|%-*s|%*1$s", 5, "a", 5, "b" },
      { "" },
    }) do
      local holes = {}
      for i = 2, #case do
        holes[i - 1] = "$" .. i .. "::text"
      end
      local expected = db:value("select format($1::text" .. (#holes > 0 and ", " or "")
        .. table.concat(holes, ", ") .. ")", table.unpack((function()
          local texts = {}
          for i, value in ipairs(case) do
            texts[i] = tostring(value)
          end
          return texts
        end)()))
      assert.equal(expected, db:format(table.unpack(case)), case[1])
    end
  end)

  it("writes NULL for nil, and numbers exactly", function()
    assert.equal("NULL ||", db:format("%L |%s|", nil, nil))
    assert.equal("NULL", db:format("%L", lock.null))
    assert.equal("'1' 0.1 1e+300 't'", db:format("%L %s %s %L", 1, 0.1, 1e300, true))
    assert.equal("9007199254740993", db:format("%s", 9007199254740993))
    assert.equal("0.30000000000000004", db:format("%s", 0.1 + 0.2))
  end)

  it("raises a usage error for what it can't write", function()
    usage("there is no argument 2", db.format, db, "%s %s", "a")
    usage("no such conversion", db.format, db, "%d", 1)
    usage("unfinished", db.format, db, "100%")
    usage("no identifier", db.format, db, "%I", nil)
    usage("empty", db.format, db, "%I", "")
    usage("NUL", db.format, db, "%L", "a\0b")
    usage("UTF-8", db.format, db, "%L", "\255")
    usage("argument 1 is a table", db.format, db, "%s", {})
    usage("the format must be a text, not nil", db.format, db)
    usage("NUL", db.format, db, "a\0b")
  end)

  it("makes an identifier of any name, of any length", function()
    for _, name in ipairs({ 'q"uo"te', "dot.ted", "ünï", "x y", "--", "a'b", "1st" }) do
      local tx <close> = db:begin()
      tx:exec(tx:format("create temporary table %I (a int)", name))
      assert.equal(name, tx:value("select relname from pg_class where oid = $1::regclass", lock.ident(name)))
    end
    assert.equal(10 * 1024 * 1024 + 2, #lock.ident(("X"):rep(10 * 1024 * 1024)))
  end)
end)

describe("lock.ident", function()
  it("quotes a name where it must be", function()
    assert.equal("orders", lock.ident("orders"))
    assert.equal('"Orders"', lock.ident("Orders"))
    assert.equal('"select"', lock.ident("select"))
    assert.equal('"a""b"', lock.ident('a"b'))
    assert.equal('"a.b"', lock.ident("a.b"))
  end)

  it("raises a usage error for what can be no name", function()
    usage("ident: the name must be a text, not nil", lock.ident)
    usage("ident: the name must be a text, not 1", lock.ident, 1)
    usage("empty", lock.ident, "")
    usage("NUL", lock.ident, "a\0b")
    usage("UTF-8", lock.ident, "\255")
  end)
end)

describe("lock.json", function()
  it("encodes and decodes without loss", function()
    for _, value in ipairs({ 1, 1.5, "x", true, { 1, 2 }, { a = { b = "c" } }, math.maxinteger, 1e300,
      "a\0b\n\"\\ü" }) do
      assert.same(value, lock.json.decode(lock.json.encode(value)))
    end
    assert.equal('{"a":[1,2.0,null],"b":{}}', lock.json.encode({ b = {}, a = { 1, 2.0, lock.null } }))
    assert.equal("[]", lock.json.encode(lock.array {}))
    assert.equal("[]", lock.json.encode(lock.json.decode("[]")))
    assert.equal("null", lock.json.encode(nil))
    assert.equal(lock.null, lock.json.decode("null"))
  end)

  it("raises a usage error that says where", function()
    usage("line 1, column", lock.json.decode, "{")
    usage("invalid JSON", lock.json.decode, "")
    usage("value.a[1] is a function", lock.json.encode, { a = { print } })
    usage("not valid UTF-8", lock.json.encode, "\255")
    usage("json.decode takes a text, not no value", lock.json.decode)
  end)

  it("survives what is nested deep", function()
    usage("", lock.json.decode, ("["):rep(100000))
    local deep = {}
    for _ = 1, 100000 do
      deep = { deep }
    end
    usage("nested too deep", lock.json.encode, deep)
  end)
end)

describe("lock.array", function()
  it("takes a list and nothing else", function()
    usage("array: a list was expected, not nil", lock.array)
    usage('array: a list was expected, not "x"', lock.array, "x")
  end)
end)
