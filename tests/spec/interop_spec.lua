-- peers.md: a job here and an application elsewhere hold the same lock. What PostgreSQL computes from
-- each tool's rule by itself is what we compute, and what psql holds keeps us out, and the other way
-- round.

local t = require "tests.support"
local lock = require "lockkeeper"

local bindir = require("tests.support.target").bindir()

local NAMES = { "hello", "my_lock_id", "shared-identifier", "some lock", "naïve – ключ", "", " ", "it's",
  [[back\slash]], ("long "):rep(1000) }

-- The rules in SQL, without an extension: SHA-256 is PostgreSQL's own; $1 is the name.
local SQL = {
  -- The first 8 bytes, the last one first, as a signed bigint.
  pglock = [[
    select ('x' || string_agg(lpad(to_hex(get_byte(sha256(convert_to($1, 'UTF8')), i)), 2, '0'), ''
                              order by i desc))::bit(64)::int8
      from generate_series(0, 7) i]],
  hashtext = [[select hashtext($1)::int8]],
}

-- CRC-32 bit by bit: PostgreSQL 15 has no function for it.
local CRC32 = [[
  create function pg_temp.crc32(text) returns int8 language plpgsql as $$
  declare
    crc int8 := 4294967295;
    bytes bytea := convert_to($1, 'UTF8');
  begin
    for i in 0 .. length(bytes) - 1 loop
      crc := crc # get_byte(bytes, i);
      for bit in 1 .. 8 loop
        crc := case when crc & 1 = 1 then (crc >> 1) # 3988292384 else crc >> 1 end;
      end loop;
    end loop;
    return crc # 4294967295;
  end $$]]
SQL.pglocks = [[
  select case when crc > 2147483647 then crc - 4294967296 else crc end from pg_temp.crc32($1) crc]]

local holders = t.holders_of

-- A psql that has taken a lock and keeps its session until it is ended.
local function keep(sql)
  local child = t.spawn({ "sh", "-c", [[(echo "$2"; exec sleep 60) | exec "$0" -Xqd "$1"]],
    bindir .. "/psql", t.conninfo({ application_name = "kept" }), sql })
  t.wait_until(function()
    return t.observe([[select 1 from pg_locks join pg_stat_activity using (pid)
      where locktype = 'advisory' and application_name = 'kept']]) == "1"
  end, "psql's lock")
  return child
end

local function stop(child)
  child:signal_group("KILL")
  child:wait()
end

describe("the key that SQL computes", function()
  local db

  before_each(function() db = t.connect() end)
  after_each(function() db:close() end)

  it("is ours under pglock and hashtext", function()
    for scheme, sql in pairs({ pglock = SQL.pglock, hashtext = SQL.hashtext }) do
      for _, name in ipairs(NAMES) do
        assert.equal(db:value(sql, name), db:key(name, scheme))
      end
    end
  end)

  it("is ours under pglocks and with_advisory_lock", function()
    db:exec(CRC32)
    for _, name in ipairs(NAMES) do
      assert.equal(db:value(SQL.pglocks, name), lock.key(name, "pglocks"))
      assert.same({ db:value("select pg_temp.crc32($1) & 2147483647", name), 0 },
        { lock.key(name, "with_advisory_lock") })
    end
  end)

  it("is ours under postgresql-lock: SHA-1, which sha1sum computes", function()
    for _, name in ipairs(NAMES) do
      local child = t.spawn({ "sha1sum", stdin = name })
      assert.equal(0, child:wait())
      local expected = math.tointeger(tonumber("0x" .. child:stdout():sub(1, 16)))
      assert.equal(expected, lock.key(name, "postgresql-lock"))
    end
  end)
end)

describe("a lock", function()
  local db

  before_each(function() db = t.connect() end)
  after_each(function() db:close() end)

  local KEYS = { pglock = "1054880662928880172", pglocks = "907060870", hashtext = "hashtext('hello')",
    ["postgresql-lock"] = "-6128055361384093534", with_advisory_lock = "907060870, 0" }

  for scheme, key in pairs(KEYS) do
    it(("under %s keeps psql's pg_try_advisory_lock out, until it is released"):format(scheme), function()
      local try = ("select pg_try_advisory_lock(%s)"):format(key)
      local share = ("select pg_try_advisory_lock_shared(%s)"):format(key)
      local held = db:advisory("hello", { scheme = scheme })
      assert.equal("f", t.psql(try))
      assert.equal("f", t.psql(share))
      assert.equal("f", t.psql(("select pg_try_advisory_xact_lock(%s)"):format(key)))
      held:release()
      assert.equal("t", t.psql(try))
      held = db:advisory("hello", { scheme = scheme, shared = true })
      assert.equal("f", t.psql(try))
      assert.equal("t", t.psql(share))
      held:release()
      db:advisory("hello", { scheme = scheme, xact = true }, function() assert.equal("f", t.psql(share)) end)
      assert.equal("t", t.psql(try))
    end)

    it(("of psql's keeps ours under %s out, until it is released"):format(scheme), function()
      local child = keep(("select pg_advisory_lock(%s);"):format(key))
      finally(function() stop(child) end)
      for _, options in ipairs({ { timeout = 0 }, { timeout = "5ms" }, { timeout = 0, shared = true } }) do
        options.scheme = scheme
        local got, err = db:advisory("hello", options)
        assert.is_nil(got)
        assert.is_true(err.busy)
      end
      stop(child)
      local held <close> = db:advisory("hello", { scheme = scheme, timeout = "5s" })
      assert.is_true(held:is_held())
    end)
  end

  it("of psql's that is shared lets ours share", function()
    local child = keep("select pg_advisory_lock_shared(1054880662928880172);")
    finally(function() stop(child) end)
    assert.is_nil((db:advisory("hello", { timeout = 0 })))
    local held <close> = db:advisory("hello", { timeout = 0, shared = true })
    assert.equal(2, #holders(held.key))
  end)

  it("of two int4 keys is not the one of the bigint with the same halves", function()
    local held <close> = db:advisory({ 245608543, -1169296852 })
    assert.equal("t", t.psql("select pg_try_advisory_lock(1054880662928880172)"))
    assert.equal("f", t.psql("select pg_try_advisory_lock(245608543, -1169296852)"))
    assert.same({ db.pid }, t.holders(245608543, 3125670444, 2))
    held:release()
    local child = keep("select pg_advisory_lock(-1, 2147483647);")
    finally(function() stop(child) end)
    assert.is_nil((db:advisory({ -1, 2147483647 }, { timeout = 0 })))
    db:advisory(-1 << 32 | 2147483647, { timeout = 0 }):release()
  end)

  it("with a prefix of with_advisory_lock is the pair of both", function()
    local held <close> = db:advisory("hello", { scheme = "with_advisory_lock", prefix = -7 })
    assert.equal("f", t.psql("select pg_try_advisory_lock(907060870, -7)"))
    assert.equal("t", t.psql("select pg_try_advisory_lock(907060870, 0)"))
    assert.same({ 907060870, -7 }, held.key)
  end)

  it("is one that psql's own unlock in the same session would take away, which we notice", function()
    local held = db:advisory("hello")
    db:exec("select pg_advisory_unlock(1054880662928880172)")
    local ok, err = pcall(held.release, held)
    assert.is_false(ok)
    assert.equal("lock_lost", err.kind)
  end)
end)
