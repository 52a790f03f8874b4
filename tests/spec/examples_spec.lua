-- Every example in scripts/examples and every code block of the README runs as it stands.

local lock = require "lockkeeper"
local t = require "tests.support"

local function read(path)
  local file = assert(io.open(path))
  local text = file:read("a")
  file:close()
  return text
end

-- The README's fenced blocks in one language.
local function blocks(language)
  local found = {}
  for text in read("README.md"):gmatch("\n```" .. language .. "\n(.-)\n```") do
    found[#found + 1] = text
  end
  return found
end

describe("scripts/examples/non_overlapping.lua", function()
  it("works when it is alone, and skips with exit code 75 while another works", function()
    local first = t.lockkeeper("run", "scripts/examples/non_overlapping.lua", "20", "first")
    t.wait_until(function() return first:stdout():find("first: I have the lock", 1, true) end, "the lock")

    local code, out, err = t.run("run", "scripts/examples/non_overlapping.lua", "0", "second")
    assert.equal(75, code)
    assert.equal("", out)
    assert.matches('lock "nightly%-report" is held by another session', err)

    first:signal("TERM")
    assert.equal(143, first:wait())
    code, out = t.run("run", "scripts/examples/non_overlapping.lua", "0", "second")
    assert.equal(0, code)
    assert.matches("second: done", out)
  end)
end)

describe("scripts/examples/table_lock.lua", function()
  it("changes a table that is free, and leaves one that is in use alone", function()
    local code, out = t.run("run", "scripts/examples/table_lock.lua")
    assert.equal(0, code)
    assert.matches("total is now 110.00", out)

    local other <close> = t.connect()
    local tx <close> = other:begin()
    tx:exec("lock table lockkeeper_example in row exclusive mode")
    code, out = t.run("run", "scripts/examples/table_lock.lua")
    assert.equal(75, code)
    assert.matches("nothing was changed", out)
    tx:rollback()
    assert.equal("110", t.psql("select total from lockkeeper_example"))
    t.psql("drop table lockkeeper_example")
  end)
end)

-- Run a script that changes lockkeeper_orders, while five visitors a tenth of a second work there for
-- 20 ms each, and one session for `long`. Gives the script's process and that session's backend.
local function migrate_under_load(script, long)
  local child, report_pid
  local longest, count = 0, 0
  local function is_over() return child and not child:is_running() end

  local function visitor()
    local db <close> = t.connect()
    repeat
      local begun = t.now()
      db:transaction(function(tx)
        tx:exec("insert into lockkeeper_orders default values")
        lock.sleep("20ms")
      end)
      longest, count = math.max(longest, t.now() - begun), count + 1
      lock.sleep(math.max(begun + 0.1 - t.now(), 0.001))
    until is_over()
  end

  lock.tasks(function(spawn)
    for _ = 1, 5 do
      spawn(visitor)
    end
    lock.sleep("1s") -- they are at work
    local report <close> = t.connect({ application_name = "report" })
    report_pid = report.pid
    pcall(report.transaction, report, function(tx)
      tx:query("select count(*) from lockkeeper_orders")
      child = t.lockkeeper("run", "scripts/examples/" .. script .. ".lua")
      tx:query("select pg_sleep(extract(epoch from $1::interval))", long)
    end)
  end)
  assert.is_true(longest < 2, ("%g s"):format(longest))
  assert.is_true(count > 20, count)
  return child, report_pid
end

describe("scripts/examples/add_column.lua", function()
  before_each(function() t.psql("create table lockkeeper_orders (id bigserial primary key)") end)
  after_each(function() t.psql("drop table lockkeeper_orders") end)

  it("lets a table's other users pass while it waits for one of them, and gets through in the end", function()
    local other <close> = t.connect()
    local tx <close> = other:begin()
    tx:exec("insert into lockkeeper_orders default values")
    local child = t.lockkeeper("run", "scripts/examples/add_column.lua", "lockkeeper_orders", "Note;")
    t.wait_until(function() return child:stderr():find("attempt 1 of 30 was rolled back", 1, true) end)
    t.psql("insert into lockkeeper_orders default values")
    tx:commit()
    assert.equal(0, child:wait(), child:stderr())
    assert.matches("^lockkeeper_orders has the column Note;, at attempt %d+\n$", child:stdout())
    assert.equal("2", t.observe('select count(*) from lockkeeper_orders where "Note;" is null'))
  end)

  it("makes nobody wait over 2 s under 50 short transactions a second and a long one", function()
    local child = migrate_under_load("add_column", "1500ms")
    assert.equal(0, child:wait(), child:stderr())
    assert.matches("attempt 1 of 30 was rolled back", child:stderr(), 1, true)
    assert.matches("lockkeeper_orders has the column note", child:stdout(), 1, true)
  end)
end)

describe("scripts/examples/prioritized_migration.lua", function()
  before_each(function() t.psql("create table lockkeeper_orders (id bigserial primary key)") end)
  after_each(function() t.psql("drop table lockkeeper_orders") end)

  it("ends a session that is in the way for too long, and says whose", function()
    local idler = t.connect({ application_name = "idler" })
    local pid = idler.pid
    local tx = idler:begin()
    tx:query("select * from lockkeeper_orders")
    local code, out, err = t.run("run", "scripts/examples/prioritized_migration.lua")
    assert.equal(0, code, err)
    assert.equal(("terminate pid %d (postgres, idler): signalled\nlockkeeper_orders has the column note\n")
      :format(pid), out)
    assert.is_false(pcall(tx.query, tx, "select 1"))
    idler:close()
  end)

  it("gives up where it is a dump that is in the way", function()
    local dump <close> = t.connect({ application_name = "pg_dump" })
    local tx <close> = dump:begin()
    tx:query("select * from lockkeeper_orders")
    local code, out = t.run("run", "scripts/examples/prioritized_migration.lua")
    assert.equal(75, code)
    assert.equal("", out)
    assert.equal(0, tx:value("select count(*) from lockkeeper_orders"))
  end)

  it("makes nobody wait over 2 s under 50 short transactions a second; ends the long one only", function()
    local child, long = migrate_under_load("prioritized_migration", "60s")
    assert.equal(0, child:wait(), child:stderr())
    assert.equal(("terminate pid %d (postgres, report): signalled\n"):format(long)
      .. "lockkeeper_orders has the column note\n", child:stdout())
  end)
end)

describe("scripts/examples/lock_report.lua", function()
  after_each(function() t.psql("drop table lockkeeper_orders") end)

  it("shows who waits for whom, and which tables are locked", function()
    t.psql("create table lockkeeper_orders (id bigserial primary key)")
    local code, out, err = t.run("run", "scripts/examples/lock_report.lua")
    assert.equal(0, code, err)
    assert.equal("nobody waits\nno table is locked\n", out)

    local holder <close> = t.connect()
    local tx <close> = holder:begin()
    tx:query("select\n id from lockkeeper_orders")
    local waiter = t.lockkeeper("run", "-", { stdin = [[
      require("lockkeeper").db:exec("alter table lockkeeper_orders add note text")]] })
    t.wait_until(function()
      return t.observe("select 1 from pg_locks where not granted limit 1") == "1"
    end)
    code, out, err = t.run("run", "scripts/examples/lock_report.lua")
    assert.equal(0, code, err)
    assert.matches(("^waits:\n"
      .. "  pid %%d+ %%(postgres, active%%) has waited %%d+%%.%%d s "
      .. "for ACCESS EXCLUSIVE on lockkeeper_orders\n"
      .. "    behind pid %d %%(postgres, idle in transaction%%), which has ACCESS SHARE\n"
      .. "    select id from lockkeeper_orders\n"
      .. "locks on tables:\n"
      .. "  public.lockkeeper_orders: 1\n$"):format(holder.pid), out)
    code, out = t.run("run", "scripts/examples/lock_report.lua", "1000")
    assert.equal(0, code)
    assert.matches("^nobody waits\n", out)
    tx:rollback()
    assert.equal(0, waiter:wait(), waiter:stderr())
  end)
end)

describe("scripts/examples/api_calls.lua", function()
  it("lets three hosts make their calls, no more than two at a time", function()
    local hosts, most = {}, 0
    for i, name in ipairs { "red", "green", "blue" } do
      hosts[i] = t.lockkeeper("run", "scripts/examples/api_calls.lua", name, "3", "0.2")
    end
    t.wait_until(function()
      local now = tonumber(t.observe("select count(*) from pg_locks where locktype = 'advisory' and granted"))
      most = math.max(most, now)
      return not (hosts[1]:is_running() or hosts[2]:is_running() or hosts[3]:is_running())
    end, 30, "the hosts' end")
    assert.equal(2, most)
    for i, name in ipairs { "red", "green", "blue" } do
      assert.equal(0, hosts[i]:wait(), hosts[i]:stderr())
      local _, calls = hosts[i]:stdout():gsub(name .. ": call %d in slot [12], after waiting [%d.]+ s\n", "")
      assert.equal(3, calls, hosts[i]:stdout())
    end
  end)
end)

describe("scripts/examples/many_databases.lua", function()
  local conninfos = {}

  setup(function()
    for i = 1, 8 do
      t.psql(("create database lockkeeper_shop_%d"):format(i))
      conninfos[i] = t.conninfo({ dbname = "lockkeeper_shop_" .. i })
    end
  end)

  teardown(function()
    for i = 1, 8 do
      t.psql(("drop database lockkeeper_shop_%d"):format(i))
    end
  end)

  it("works in eight databases at once, and leaves out one where somebody else does", function()
    local other <close> = t.connect({ dbname = "lockkeeper_shop_8" })
    local held <close> = other:advisory("maintenance")
    local code, out, err = t.run("run", "scripts/examples/many_databases.lua", table.unpack(conninfos))
    assert.equal(0, code, err)
    for i = 1, 7 do
      assert.matches(("lockkeeper_shop_%d: analyzed, %%d+ kB\n"):format(i), out)
    end
    assert.matches("lockkeeper_shop_8: somebody is at it already\n", out)
    assert.is_true(held:is_held())
  end)

  it("without arguments works in the one of the environment", function()
    local code, out, err = t.run("run", "scripts/examples/many_databases.lua")
    assert.equal(0, code, err)
    assert.matches("^postgres: analyzed, %d+ kB\n$", out)
  end)
end)

describe("scripts/examples/housekeeping.lua", function()
  it("deletes the oldest rows, a thousand at a time, and vacuums after it", function()
    finally(function() t.psql("drop table if exists lockkeeper_visits") end)
    local code, _, err = t.run("run", "scripts/examples/housekeeping.lua")
    assert.equal(0, code, err) -- there is no such table
    t.psql("create table lockkeeper_visits as select generate_series(1, 11500) as id")
    for _, expected in ipairs { "10500|1001", "10000|1501", "10000|1501" } do
      code, _, err = t.run("run", "scripts/examples/housekeeping.lua")
      assert.equal(0, code, err)
      assert.equal(expected, t.psql("select count(*), min(id) from lockkeeper_visits"))
    end
    assert.matches("vacuumed", err)
  end)
end)

-- Its Lua blocks that begin with the name of a file, such as "-- jobs.lua", by that name.
local function named_blocks()
  local files = {}
  for _, text in ipairs(blocks("lua")) do
    local name = text:match("^%-%- ([%w_]+%.lua)\n")
    if name then
      files[name] = text
    end
  end
  return files
end

describe("the README", function()
  it("has Lua scripts that run", function()
    local scripts = blocks("lua")
    assert.is_true(#scripts >= 4)
    for _, text in ipairs(scripts) do
      local code, _, err = t.run("run", t.tempfile(text, "readme.lua"))
      assert.equal(0, code, text .. "\n" .. err)
    end
    t.psql("drop table if exists orders, reports")
  end)

  it("has commands that run", function()
    local commands = blocks("sh")
    assert.is_true(#commands >= 3)
    local root = require("tests.support.sandbox").start_dir
    local binary = os.getenv("LOCKKEEPER_BIN") or "build/lockkeeper"
    local folder = t.tempdir()
    for name, text in pairs(named_blocks()) do
      assert(io.open(folder .. "/" .. name, "w")):write(text, "\n"):close()
    end
    for _, text in ipairs(commands) do
      -- in a folder of its own, where the checkout's files are found under their names
      local child = t.spawn({ "sh", "-ec", ([[
        ln -sfn "%s/lua" "%s/build" .
        mkdir -p bin
        ln -sfn "$(cd "%s" && realpath "%s")" bin/lockkeeper
        PATH=$PWD/bin:$PATH
        %s]]):format(root, root, root, binary, text),
        env = { DATABASE_URL = t.conninfo() }, cwd = folder })
      assert.equal(0, child:wait(), text .. "\n" .. child:stderr())
    end
    t.psql("set client_min_messages = warning; drop schema if exists lockkeeper cascade")
  end)
end)
