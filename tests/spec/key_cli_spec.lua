-- `lockkeeper key` and `lockkeeper who` (cli.md, locks.md 6 and 9).

local t = require "tests.support"

local json = require("lockkeeper").json

local SCHEMES = { "pglock", "pglocks", "postgresql-lock", "with_advisory_lock", "hashtext" }

-- The keys of names as other tools derive them; nil for hashtext is what the server says.
local NAMES = {
  ["hello"] = { "1054880662928880172", "907060870", "-6128055361384093534", "(907060870, 0)" },
  ["my_lock_id"] = { "-3531142854575798568", "160729585", "6667811999011059282", "(160729585, 0)" },
  ["shared-identifier"] = { "-3749073756651130", "-1519155049", "-464685171814670893", "(628328599, 0)" },
  ["some lock"] = { "-1292339565357005894", "-205618829", "-5588203449678238657", "(1941864819, 0)" },
  ["naïve – ключ"] = { "4817169191344289581", "-787362974", "-1272168034166448891", "(1360120674, 0)" },
}

-- Without a server.
local function key(...)
  local words = { "key", ... }
  words[#words + 1] = { env = { DATABASE_URL = false, PGHOST = false } }
  local code, out, err = t.run(table.unpack(words))
  assert.equal(0, code, err)
  assert.equal("", err)
  return out
end

-- The rows of a table, by their first word.
local function rows(text)
  local found = {}
  for line in text:gmatch("[^\n]+") do
    local name, rest = line:match("^(%S+) +(.*)$")
    found[name] = rest
  end
  return found
end

describe("key", function()
  it("gives every scheme's key of a name, without a server", function()
    for name, keys in pairs(NAMES) do
      local found = rows(key(name))
      for i = 1, 4 do
        assert.equal(keys[i], found[SCHEMES[i]]:match("^(%(.-%))") or found[SCHEMES[i]]:match("^(%S+)"))
      end
      assert.is_nil(found.hashtext)
    end
  end)

  it("gives the key of one scheme", function()
    for name, keys in pairs(NAMES) do
      for i = 1, 4 do
        local found = rows(key(name, "--scheme", SCHEMES[i]))
        assert.matches(keys[i], found[SCHEMES[i]], 1, true)
        found[SCHEMES[i]], found.SCHEME = nil, nil
        assert.same({}, found)
      end
    end
  end)

  it("shows what pg_locks shows: unsigned halves, or two int4 keys", function()
    local out = key("hello")
    assert.matches("SCHEME +KEY +CLASSID +OBJID +OBJSUBID\n", out)
    assert.matches("pglock +1054880662928880172 +245608543 +3125670444 +1\n", out)
    assert.matches("with_advisory_lock +%(907060870, 0%) +907060870 +0 +2\n", out)
    assert.matches("%-1 +4294967295 +4294967295 +1\n", key("-1"))
    assert.matches("%(%-1, 2%) +4294967295 +2 +2\n", key("-1,2"))
    assert.matches("9223372036854775807 +2147483647 +4294967295 +1\n", key("9223372036854775807"))
    assert.matches("%-9223372036854775808 +2147483648 +0 +1\n", key("-9223372036854775808"))
  end)

  it("agrees with what pg_locks shows once the lock is held", function()
    local held <close> = t.connect()
    for _, name in ipairs { "hello", "naïve – ключ", "it's", '"', "a|b", ("x"):rep(10000) } do
      for _, scheme in ipairs(SCHEMES) do
        local guard <close> = held:advisory(name, { scheme = scheme })
        local _, out = t.run("key", name, "--scheme", scheme, "--format", "json")
        local row = json.decode(out)[1]
        assert.same({ held.pid }, t.holders(row.classid, row.objid, row.objsubid), guard)
      end
    end
  end)

  it("takes a number for a name where a scheme says so", function()
    assert.matches("pglocks +841265288 ", key("42", "--scheme", "pglocks"))
    assert.matches("\n *42 +0 +42 +1\n", key("42"))
  end)

  it("gives with_advisory_lock its prefix", function()
    assert.matches("%(907060870, 7%) +907060870 +7 +2", key("hello", "--scheme", "with_advisory_lock",
      "--prefix", "7"))
  end)

  it("has the server's hashtext where a server is named, and says whose key it is", function()
    local code, out = t.run("key", "hello")
    assert.equal(0, code)
    assert.matches("^database postgres on " .. t.server.host:gsub("%p", "%%%0") .. " %(PostgreSQL %d+", out)
    local hash = t.observe("select hashtext('hello')")
    assert.matches("hashtext +" .. hash:gsub("%-", "%%-") .. " ", out)
    code, out = t.run("key", "hello", "--scheme", "hashtext")
    assert.equal(0, code)
    assert.matches(hash, out, 1, true)
  end)

  it("does without a server that only the environment names, and says so", function()
    local code, out, err = t.run("key", "hello", { env = { DATABASE_URL = "host=/nonexistent" } })
    assert.equal(0, code)
    assert.matches("1054880662928880172", out, 1, true)
    assert.not_matches("hashtext", out)
    assert.matches("not connected, so hashtext is left out", err, 1, true)
    code, out = t.run("key", "hello", "--dsn", "host=/nonexistent")
    assert.equal(69, code)
    assert.equal("", out)
  end)

  it("as JSON: a list of objects, keys as strings, which are IDs", function()
    local list = json.decode(key("hello", "--format", "json"))
    assert.equal(4, #list)
    assert.same({ scheme = "pglock", key = "1054880662928880172", classid = 245608543, objid = 3125670444,
      objsubid = 1 }, list[1])
    assert.same({ scheme = "with_advisory_lock", key = "907060870,0", classid = 907060870, objid = 0,
      objsubid = 2 }, list[4])
    assert.same({ { key = "-5", classid = 4294967295, objid = 4294967291, objsubid = 1 } },
      json.decode(key("-5", "--format", "json")))
    for _, id in ipairs { "-5", "-1,2" } do
      assert.equal(id, json.decode(key(id, "--format", "json"))[1].key)
    end
    local _, out = t.run("key", "hello", "--format", "json")
    assert.equal("postgres", json.decode(out)[5].database)
  end)

  it("takes names of any length and with anything in them", function()
    for _, name in ipairs { " ", "\n", "\27[31m", "'\"\\", "--", ("x"):rep(100000), "\xff\xfe" } do
      assert.matches("\npglock ", "\n" .. key("--", name))
    end
  end)
end)

describe("who", function()
  local function who(...)
    local code, out, err = t.run("who", ...)
    assert.equal(0, code, err)
    return out, err
  end

  it("says whose locks it speaks of, and that nobody holds it", function()
    local out = who("hello")
    assert.matches("^database postgres on %S+ %(PostgreSQL %d+[^\n]*%)\n"
      .. "Nobody holds it, and nobody waits for it.\n$", out)
  end)

  it("shows holders and waiters, under every scheme where none is given", function()
    local holder <close> = t.connect({ application_name = "the holder" })
    holder:query("select pg_advisory_lock(907060870)")
    local waiter = t.lockkeeper("exec", "--lock", "hello", "--scheme", "pglocks", "--no-poll", "--", "true",
      { env = { PGAPPNAME = "the waiter" } })
    local pid = t.wait_until(function()
      local found = t.observe("select pid from pg_locks where locktype = 'advisory' and not granted")
      return found ~= "" and found
    end, "the waiter")
    for _, words in ipairs { { "hello" }, { "hello", "--scheme", "pglocks" } } do
      local out = who(table.unpack(words))
      assert.matches("pglocks +" .. holder.pid .. " +holds exclusive +idle +[%d.]+s +postgres +the holder\n",
        out)
      assert.matches("pglocks +" .. pid .. " +wants exclusive +[%d.]+s +active +[%d.]+s +postgres "
        .. "+the waiter\n", out)
    end
    assert.matches("Nobody", (who("hello", "--scheme", "pglock")))
    local list = json.decode(who("hello", "--format", "json"))
    assert.equal(2, #list)
    assert.equal(holder.pid, list[1].pid)
    assert.is_true(list[1].granted)
    assert.equal("pglocks", list[1].scheme)
    assert.equal("907060870", list[1].key)
    assert.equal("exclusive", list[1].mode)
    assert.equal("the holder", list[1].application_name)
    assert.equal("postgres", list[1].database)
    assert.is_false(list[2].granted)
    assert.is_true(list[2].waited >= 0)
    waiter:signal("TERM")
    waiter:wait()
  end)

  it("shows shared locks, numbers and pairs", function()
    local holder <close> = t.connect()
    holder:query("select pg_advisory_lock_shared(42), pg_advisory_lock(1, -2)")
    assert.matches(holder.pid .. " +holds shared", (who("42")))
    assert.matches(holder.pid .. " +holds exclusive", (who("1,-2")))
    assert.matches("Nobody", (who("1,2")))
    assert.equal("1,-2", json.decode((who("1,-2", "--format", "json")))[1].key)
  end)

  it("as JSON an empty list where nobody has it", function()
    assert.equal("[]\n", (who("hello", "--format", "json")))
  end)

  it("speaks of its own database only (locks.md 6)", function()
    t.psql("create database who_spec")
    local holder = t.connect({ dbname = "who_spec" })
    holder:query("select pg_advisory_lock(42)")
    assert.matches("Nobody", (who("42")))
    assert.matches("database who_spec .*holds exclusive",
      (who("42", "--dsn", t.conninfo({ dbname = "who_spec" }))))
    holder:close()
    t.wait_until(function() return pcall(t.psql, "drop database who_spec") end, "the end of its sessions")
  end)

  it("a role without pg_monitor sees the rows, and is told what to grant (locks.md 9)", function()
    local holder <close> = t.connect({ application_name = "hidden" })
    holder:query("select pg_advisory_lock(42)")
    local out, err = who("42", "--dsn", t.conninfo({ user = "lk_app" }))
    assert.matches("^database postgres on a Unix socket ", out)
    assert.matches(holder.pid .. " +holds exclusive", out)
    assert.matches("hidden from this role: GRANT pg_monitor", err, 1, true)
    local list = json.decode((who("42", "--format", "json", "--dsn", t.conninfo({ user = "lk_app" }))))
    assert.equal(holder.pid, list[1].pid)
    assert.is_nil(list[1].state)
    t.psql("grant pg_monitor to lk_app")
    finally(function() t.psql("revoke pg_monitor from lk_app") end)
    out, err = who("42", "--dsn", t.conninfo({ user = "lk_app" }))
    assert.matches("hidden\n", out, 1, true)
    assert.not_matches("GRANT", err)
  end)

  it("is not led astray by what a schema in the search path holds", function()
    t.psql([[create schema trap; create view trap.pg_locks as select 1 as pid;
      create function trap.current_database() returns name language sql as $$ select 'trapped'::name $$]])
    finally(function() t.psql("drop schema trap cascade") end)
    local holder <close> = t.connect()
    holder:query("select pg_advisory_lock(42)")
    local out = who("42", "--dsn", t.conninfo({ options = "-c search_path=trap,pg_catalog" }))
    assert.matches(holder.pid .. " +holds exclusive", out)
    assert.not_matches("trapped", out)
  end)

  it("shows nothing of an application's name that could do harm on a terminal", function()
    local holder <close> = t.connect()
    holder:query("select pg_advisory_lock(42), set_config('application_name', E'a\\nb\\tc', false)")
    assert.not_matches("[\27\t]", (who("42")))
  end)
end)
