-- lua-api.md, "advisory": lock.key and lock.key_parts; peers.md: the keys that other tools derive.

local t = require "tests.support"
local lock = require "lockkeeper"

-- peers.md. with_advisory_lock's second key is 0 without a prefix.
local KEYS = {
  ["hello"] = { 1054880662928880172, 907060870, -6128055361384093534, 907060870 },
  ["my_lock_id"] = { -3531142854575798568, 160729585, 6667811999011059282, 160729585 },
  ["shared-identifier"] = { -3749073756651130, -1519155049, -464685171814670893, 628328599 },
  ["some lock"] = { -1292339565357005894, -205618829, -5588203449678238657, 1941864819 },
  ["naïve – ключ"] = { 4817169191344289581, -787362974, -1272168034166448891, 1360120674 },
}

-- Runs fn, which must raise a usage error, and returns that.
local function usage(fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok, "no error")
  assert.equal("table", type(err), tostring(err))
  assert.equal("usage", err.kind, err.message)
  assert.is_false(err.busy)
  return err.message
end

describe("key", function()
  for name, keys in pairs(KEYS) do
    it(("gives the keys of peers.md for %q"):format(name), function()
      assert.equal(keys[1], lock.key(name))
      assert.equal(keys[1], lock.key(name, "pglock"))
      assert.equal(keys[2], lock.key(name, "pglocks"))
      assert.equal(keys[3], lock.key(name, "postgresql-lock"))
      assert.same({ keys[4], 0 }, { lock.key(name, "with_advisory_lock") })
      for _, scheme in ipairs({ "pglock", "pglocks", "postgresql-lock" }) do
        assert.equal(1, select("#", lock.key(name, scheme)))
        assert.equal("integer", math.type(lock.key(name, scheme)))
      end
    end)
  end

  it("takes with_advisory_lock's number prefix as the second key", function()
    for _, prefix in ipairs({ 7, 0, -1, 2147483647, -2147483648 }) do
      assert.same({ 907060870, prefix },
        { lock.key("hello", { scheme = "with_advisory_lock", prefix = prefix }) })
    end
  end)

  it("asks the server for hashtext, of the session that is named", function()
    local db <close> = t.connect({ name = "key_spec" })
    for name in pairs(KEYS) do
      local expected = math.tointeger(t.psql(("select hashtext('%s')"):format(name)))
      assert.equal(expected, db:key(name, "hashtext"))
      assert.equal(expected, db:key(name, { scheme = "hashtext" }))
      assert.equal(expected, lock.key(name, { scheme = "hashtext", using = db }))
      assert.equal(expected, lock.key(name, { scheme = "hashtext", using = "key_spec" }))
      assert.equal(expected, db:transaction(function(tx) return tx:key(name, "hashtext") end))
    end
    assert.equal(math.tointeger(t.psql("select hashtext('')")), db:key("", "hashtext"))
  end)

  it("gives hashtext of what PostgreSQL's text can hold, and no other", function()
    local db <close> = t.connect()
    assert.matches("NUL", usage(db.key, db, "a\0b", "hashtext"))
    local ok, err = pcall(db.key, db, "\xff", "hashtext")
    assert.is_false(ok)
    assert.equal("sql", err.kind)
    assert.equal("22021", err.sqlstate)
    assert.equal(db:key("after"), lock.key("after"))
  end)

  it("needs no server for the other schemes", function()
    local code, out, err = t.run("run", "-", {
      stdin = [[
        local lock = require "lockkeeper"
        print(lock.key("hello"), lock.key("hello", "pglocks"), lock.key("hello", "postgresql-lock"),
          lock.key("hello", "with_advisory_lock"))
      ]],
      env = { DATABASE_URL = "host=/nowhere" },
    })
    assert.equal(0, code, err)
    assert.equal("1054880662928880172\t907060870\t-6128055361384093534\t907060870\t0\n", out)
  end)

  it("takes a name of any bytes, none or 10 MB of them", function()
    -- SHA-256("") begins with e3b0c44298fc1c14, SHA-1("") with da39a3ee5e6b4b0d; CRC-32 is 0.
    assert.equal(0x141cfc9842c4b0e3, lock.key(""))
    assert.equal(math.tointeger(0xda39a3ee5e6b4b0d), lock.key("", "postgresql-lock"))
    assert.equal(0, lock.key("", "pglocks"))
    assert.same({ 0, 0 }, { lock.key("", "with_advisory_lock") })
    assert.not_equal(lock.key("a"), lock.key("a\0"))
    assert.not_equal(lock.key("a\0b"), lock.key("a\0c"))
    local huge = ("x"):rep(10 * 1024 * 1024)
    assert.equal(math.tointeger(t.psql([[
      select ('x' || encode(string_agg(substring(d from 9 - n for 1), '' order by n), 'hex'))::bit(64)::int8
        from sha256(repeat('x', 10485760)::bytea) d, generate_series(1, 8) n]])), lock.key(huge))
  end)

  it("gives the key of an integer or a pair as it is", function()
    for _, key in ipairs({ 0, 1, -1, 42, math.maxinteger, math.mininteger }) do
      assert.equal(key, lock.key(key))
      assert.equal(key, lock.key(key, "pglocks"))
    end
    assert.same({ 1, 2 }, { lock.key({ 1, 2 }) })
    assert.same({ -2147483648, 2147483647 }, { lock.key({ -2147483648, 2147483647 }) })
  end)

  it("refuses an unknown scheme and names the nearest", function()
    assert.matches('did you mean "postgresql-lock"?', usage(lock.key, "x", "postgresql_lock"), 1, true)
    assert.matches('did you mean "hashtext"?', usage(lock.key, "x", "hashtex"), 1, true)
    local message = usage(lock.key, "x", ("y"):rep(10000000))
    assert.matches("unknown scheme", message)
    assert.is_true(#message < 500)
    usage(lock.key, "x", "")
    assert.matches("NUL", usage(lock.key, "x", "pglock\0"))
  end)

  it("refuses options that it does not know and values of wrong types", function()
    assert.matches('unknown option "shceme"; did you mean "scheme"?',
      usage(lock.key, "x", { shceme = "pglock" }), 1, true)
    assert.matches("prefix", usage(lock.key, "x", { scheme = "with_advisory_lock", prefix = 2 ^ 40 }))
    assert.matches("prefix", usage(lock.key, "x", { scheme = "with_advisory_lock", prefix = "7" }))
    assert.matches("scheme", usage(lock.key, "x", { scheme = 5 }))
    usage(lock.key, "x", 5)
    usage(lock.key, "x", true)
    assert.matches("no session named", usage(lock.key, "x", { scheme = "hashtext", using = "nobody" }))
  end)

  it("locks.md 3: refuses nil and values of wrong types as ids", function()
    for _, wrong in ipairs({ false, true, 1.5, 5.0, 0 / 0, 1 / 0, 2 ^ 63, print, {}, { 1 }, { 1, 2, 3 },
      { 1, "2" }, { 1.5, 2 }, { 1.0, 2 }, { 2147483648, 0 }, { 0, -2147483649 }, { true, 1 },
      coroutine.create(print), io.stdout }) do
      assert.matches("id", usage(lock.key, wrong))
    end
    assert.matches("nil", usage(lock.key))
    assert.matches("nil", usage(lock.key, nil))
  end)
end)

describe("key_parts", function()
  it("gives classid, objid and objsubid as pg_locks shows them", function()
    assert.same({ 245608543, 3125670444, 1 }, { lock.key_parts(lock.key("hello")) })
    assert.same({ 907060870, 0, 2 }, { lock.key_parts(lock.key("hello", "with_advisory_lock")) })
    assert.same({ 907060870, 0, 2 }, { lock.key_parts({ 907060870, 0 }) })
  end)

  it("locks.md 6: gives unsigned halves, also of negative keys", function()
    assert.same({ 4294967295, 4294967295, 1 }, { lock.key_parts(-1) })
    assert.same({ 2147483648, 0, 1 }, { lock.key_parts(math.mininteger) })
    assert.same({ 2147483647, 4294967295, 1 }, { lock.key_parts(math.maxinteger) })
    assert.same({ 4294967295, 2147483648, 2 }, { lock.key_parts(-1, -2147483648) })
    assert.same({ 0, 0, 1 }, { lock.key_parts(0) })
    assert.same({ 0, 0, 2 }, { lock.key_parts(0, 0) })
  end)

  it("agrees with the server for every kind of key", function()
    local db <close> = t.connect()
    for _, id in ipairs({ "hello", "shared-identifier", 0, -1, math.mininteger, math.maxinteger,
      { 0, 0 }, { -1, -2 }, { 2147483647, -2147483648 } }) do
      local held <close> = db:advisory(id)
      assert.equal(("%d|%d|%d"):format(lock.key_parts(held.key)), t.observe(([[
        select classid, objid, objsubid from pg_locks
         where locktype = 'advisory' and pid = %d]]):format(db.pid)))
    end
  end)

  it("refuses what is no key", function()
    for _, wrong in ipairs({ { 1.5 }, { true }, { 2147483648, 1 }, { 1, 2147483648 }, { "1", 2 }, { 1, "2" },
      { {} } }) do
      usage(lock.key_parts, table.unpack(wrong))
    end
    usage(lock.key_parts)
  end)
end)
