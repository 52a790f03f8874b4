-- The module in stock Lua: what `require "lockkeeper"` does by itself.

local t = require "tests.support"

-- Where the module under test is, for a Lua of its own.
local function env(more)
  local module = t.binary():gsub("[^/]*$", "") .. "module/?.so"
  local all = {
    LUA_PATH = "lua/?.lua;lua/?/init.lua;;",
    LUA_CPATH = module .. ";;",
    DATABASE_URL = t.conninfo(),
    LOCKKEEPER_LUA_DIR = false,
  }
  for name, value in pairs(more or {}) do
    all[name] = value
  end
  return all
end

-- The module built with the address sanitizer can't be loaded into a Lua that is not.
local is_sanitized = t.spawn({ "lua5.4", "-e", 'require "lockkeeper"', env = env() }):wait() ~= 0

local describe = is_sanitized and pending or describe

describe("stock lua5.4", function()
  local function lua(text, more)
    local child = t.spawn({ "lua5.4", "-e", text, env = env(more) })
    return child:wait(), child:stdout(), child:stderr()
  end

  it("gives the key of a name", function()
    local code, out, err = lua('print(require("lockkeeper").key("hello"))', { DATABASE_URL = false })
    assert.equal(0, code, err)
    assert.equal("1054880662928880172\n", out)
    assert.equal("", err)
  end)

  it("has no more globals after require", function()
    local code, out = lua([[
      local before = {}
      for name in pairs(_G) do before[name] = true end
      local lock = require "lockkeeper"
      lock.db:query("select 1")
      for name in pairs(_G) do if not before[name] then print(name) end end]])
    assert.equal(0, code)
    assert.equal("", out)
  end)

  it("changes nothing of Lua's own libraries, handlers and signals", function()
    local code, out = lua([[
      local function look()
        local all = {}
        for name, library in pairs(package.loaded) do
          if type(library) == "table" and not name:find("lockkeeper") then
            for key, value in pairs(library) do all[name .. "." .. key] = value end
          end
        end
        for line in io.lines("/proc/self/status") do
          if line:find("^Sig[BIC]") then all[#all + 1] = line end
        end
        return all
      end
      local before = look()
      require "lockkeeper"
      local after = look()
      for key, value in pairs(after) do
        if before[key] ~= value and not key:find("package.loaded.") then print(key) end
      end]])
    assert.equal(0, code)
    assert.equal("", out)
  end)

  it("takes a lock, gives it back, and closes its sessions at the end", function()
    local code, out = lua([[
      local lock = require "lockkeeper"
      do
        local held <close> = lock.advisory(42, { timeout = 0 })
        print(held:is_held())
      end
      print(lock.db:value("select count(*) from pg_locks where locktype = 'advisory'"))]])
    assert.equal(0, code)
    assert.equal("true\n0\n", out)
  end)

  it("shows an error as its text, with the script's line", function()
    local path = t.tempfile('local lock = require "lockkeeper"\nlock.db:query("select 1/0")', "job.lua")
    local child = t.spawn({ "lua5.4", path, env = env() })
    assert.equal(1, child:wait())
    assert.matches("job.lua:2: division by zero (SQLSTATE 22012)", child:stderr(), 1, true)
  end)

  it("Ctrl-C ends a wait at once, and the lock is free", function()
    for _, wait in ipairs { "lock.sleep(60)", "lock.db:query('select pg_sleep(60)')",
      "lock.db:listen('x') lock.db:wait_notify(60)", "while true do end" } do
      local child = t.spawn({ "lua5.4", "-e", [[
        local lock = require "lockkeeper"
        local held <close> = lock.advisory(42)
        io.stdout:setvbuf("no")
        print "ready"
        ]] .. wait, env = env() })
      t.wait_until(function() return child:stdout() == "ready\n" end, "the script")
      t.sleep(0.05)
      local begun = t.now()
      child:signal("INT")
      assert.equal(1, child:wait(5), child:stderr()) -- stock Lua's own way to end
      assert.is_true(t.now() - begun < 1)
      assert.matches("interrupted", child:stderr())
      t.wait_until(function() return #t.holders(0, 42, 1) == 0 end, "the release")
    end
  end)

  it("can be loaded twice in one process, in states that come and go", function()
    local code, out = lua([[
      for i = 1, 3 do
        local lock = require "lockkeeper"
        print(lock.db:value("select 1"))
        lock.db:close()
        package.loaded["lockkeeper"], package.loaded["lockkeeper.core"] = nil, nil
        lock = nil
        collectgarbage() collectgarbage()
      end]])
    assert.equal(0, code)
    assert.equal("1\n1\n1\n", out)
  end)

  it("tells its version, the same as the program's", function()
    local _, version = t.run("--version")
    local _, out = lua('print("lockkeeper " .. require("lockkeeper").version)')
    assert.equal(version, out)
  end)
end)
