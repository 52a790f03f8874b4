-- `lockkeeper run`: scripts, their errors and exit codes, signals (cli.md, runner.md 17).

local t = require "tests.support"

local LIBRARY = 'local lock = require "lockkeeper"\n'

-- A file with a name of its own, so that its sessions can be told apart by application_name.
local function script(text, name)
  return t.tempfile(text, name or "job.lua")
end

--- Run the text of a script to its end.
local function run(text, opts)
  return t.run("run", script(text), opts or {})
end

-- What is shown of an error names the script's lines and none of ours.
local function assert_clean(err)
  assert.not_matches("stack traceback", err, 1, true)
  assert.not_matches("[C]", err, 1, true)
  assert.not_matches("(lockkeeper)", err, 1, true)
  assert.not_matches("lockkeeper/", err, 1, true)
  assert.not_matches("cli/", err, 1, true)
  assert.not_matches("xpcall", err, 1, true)
end

-- The script fails with this code and says this.
local function assert_fails(code, message, text, opts)
  local got, out, err = run(text, opts)
  assert.equal(code, got, err)
  assert.matches(message, err, 1, true)
  assert.matches("\nlockkeeper: ", "\n" .. err)
  assert_clean(err)
  return err, out
end

describe("a script", function()
  it("runs, with its arguments in arg and ...", function()
    local path = script("print(arg[0], #arg, ...)\nprint(arg[1] == (...), arg[-1])")
    local code, out, err = t.run("run", path, "one", "", "-x", "--help", "--", "ü\n")
    assert.equal(0, code, err)
    assert.equal(("%s\t6\tone\t\t-x\t--help\t--\tü\n\ntrue\tnil\n"):format(path), out)
  end)

  it("may come from standard input, as -", function()
    local code, out = t.run("run", "-", "one", { stdin = "print(arg[0], ...)" })
    assert.equal(0, code)
    assert.equal("-\tone\n", out)
    local err
    code, out, err = t.run("run", "-", { stdin = "\nerror('no')" })
    assert.equal(1, code)
    assert.equal("", out)
    assert.matches("lockkeeper: stdin:2: no", err, 1, true)
  end)

  it("may begin with #! or a byte order mark, or both, and have any line ends", function()
    local mark = "\xEF\xBB\xBF"
    for _, head in ipairs { "#!/usr/bin/env lockkeeper run\n", mark, mark .. "#!x\n", "# x\n", "" } do
      assert.equal("ran\n", (select(2, run(head .. "print 'ran'"))))
    end
    assert.equal("ran\n", (select(2, run("#!x\r\nprint 'ran'\r\n"))))
    assert_fails(1, "job.lua:3: here", "#!/bin/lockkeeper\n\nerror 'here'")
  end)

  it("may be named after --, and begin with a minus sign then", function()
    local dir = t.tempdir()
    assert(io.open(dir .. "/-x.lua", "w")):write("print(...)"):close()
    assert.equal("-d\n", (select(2, t.run("run", "--", "-x.lua", "-d", { cwd = dir }))))
  end)

  it("has the module as stock Lua has it, whatever lockkeeper.lua lies about", function()
    local dir = t.tempdir()
    assert(io.open(dir .. "/lockkeeper.lua", "w")):write("print 'the configuration'"):close()
    local code, out, err = t.run("run", script 'print(type(require("lockkeeper").advisory))', { cwd = dir })
    assert.equal(0, code, err)
    assert.equal("the configuration\nfunction\n", out)
  end)

  it("finds no globals but Lua's own and arg", function()
    local stock = t.spawn({ "lua5.4", "-e", "for k in pairs(_G) do print(k) end" })
    stock:wait()
    local known = { arg = true }
    for name in stock:stdout():gmatch("%S+") do
      known[name] = true
    end
    local _, out = run("require 'lockkeeper' for k in pairs(_G) do print(k) end")
    for name in out:gmatch("%S+") do
      assert.is_true(known[name], name)
    end
  end)

  it("has coroutines as stock Lua has them", function()
    local text = [[
      local function show(...) print((table.concat({ ... }, "|", 1, 0)), ...) end
      show(coroutine.resume(coroutine.create(function(...) return ... end), 1, nil, 3, nil))
      show(pcall(coroutine.resume, 1)) show(pcall(coroutine.wrap)) show(pcall(coroutine.close, 1))
      show(pcall(coroutine.close, coroutine.running()))
      show(pcall(coroutine.wrap(function() error("boom") end)))
      show(pcall(function() coroutine.wrap(function() error("boom") end)() end))
      show(pcall(coroutine.wrap(function() error() end)))
      local f = coroutine.wrap(function(...) local a = coroutine.yield(...) return a, nil end)
      show(f(1, 2, nil)) show(f(9)) show(pcall(f))
      show(coroutine.resume(coroutine.running()))
      local function closer(text)
        return setmetatable({}, { __close = function(_, err) error(text .. " after " .. tostring(err)) end })
      end
      local co = coroutine.create(function() local x <close> = closer("closed") coroutine.yield(1) end)
      show(coroutine.resume(co)) show(coroutine.close(co))
      show(coroutine.close(co)) show(coroutine.resume(co))
      show(pcall(coroutine.wrap(function() local x <close> = closer("closed") error("first") end)))
      local w w = coroutine.wrap(function() w() end) show(pcall(w))
      local function deep(n) return coroutine.wrap(function() return deep(n + 1) end)() end
      show((select(2, pcall(deep, 1))):sub(-30))
      for i in coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end) do show(i) end
    ]]
    local path = script(text)
    local stock = t.spawn({ "lua5.4", path })
    stock:wait()
    assert.equal("", stock:stderr())
    assert.equal(stock:stdout(), (select(2, t.run("run", path))))
  end)

  it("ends with exit code 0 whatever it returns", function()
    for _, value in ipairs { "", "return", "return 5", "return false", "return nil, 'no'" } do
      assert.equal(0, (run("print 'x' " .. value)))
    end
  end)

  it("gives the session its name as application_name, unless PGAPPNAME is set", function()
    local text = LIBRARY .. "print(lock.db:value('show application_name'))"
    assert.equal("lockkeeper: nightly.lua\n", (select(2, t.run("run", script(text, "nightly.lua")))))
    assert.equal("lockkeeper: -\n", (select(2, t.run("run", "-", { stdin = text }))))
    assert.equal("mine\n", (select(2, run(text, { env = { PGAPPNAME = "mine" } }))))
    local long = ("n"):rep(200) .. ".lua"
    assert.equal(("lockkeeper: " .. long):sub(1, 63) .. "\n", (select(2, t.run("run", script(text, long)))))
  end)

  it("takes its lock on the server of --dsn and gives it back at its end", function()
    local code, out = run(LIBRARY .. [[
      local held <close> = lock.advisory("hello", { timeout = 0 })
      print(held.key, lock.db:value("select count(*) from pg_locks where locktype = 'advisory'"))
    ]])
    assert.equal(0, code)
    assert.equal("1054880662928880172\t1\n", out)
  end)

  it("never overlaps itself: of two that compete for a lock one works, the other exits 75", function()
    local path = script(LIBRARY .. [[
      io.stdout:setvbuf("no")
      lock.advisory("nightly", { timeout = 0 }, function()
        print "working"
        io.read()
      end)
    ]])
    local fifo = t.tempdir() .. "/fifo"
    assert(os.execute("mkfifo " .. fifo))
    local first = t.spawn({ "sh", "-c", 'exec "$0" run "$1" <"$2"', t.binary(), path, fifo,
      env = { DATABASE_URL = t.conninfo() } })
    local go <close> = assert(io.open(fifo, "w"))
    t.wait_until(function() return first:stdout() == "working\n" end, "the first")
    local code, out, err = t.run("run", path)
    assert.equal(75, code)
    assert.equal("", out)
    assert.matches("nightly", err, 1, true)
    go:write("\n"):flush()
    assert.equal(0, first:wait())
    local again = t.spawn({ t.binary(), "run", path, env = { DATABASE_URL = t.conninfo() } })
    assert.equal(0, again:wait())
    assert.equal("working\n", again:stdout())
  end)
end)

describe("a script that does not load: exit code 2", function()
  local function assert_unloaded(message, path, ...)
    local code, out, err = t.run("run", path, ...)
    assert.equal(2, code, err)
    assert.equal("", out)
    assert.matches("^lockkeeper: [^\n]*\n$", err)
    assert.matches(message, err, 1, true)
    assert_clean(err)
  end

  it("is missing", function()
    assert_unloaded("cannot open the script /no/such/job.lua: No such file or directory", "/no/such/job.lua")
    assert_unloaded("File name too long", ("x"):rep(100000))
  end)

  it("is empty", function()
    for _, text in ipairs { "", "\n", " \t\r\n", "#!/bin/lockkeeper", "\xEF\xBB\xBF", "\xEF\xBB\xBF#!x\n" } do
      assert_unloaded("job.lua is empty", script(text))
    end
    assert_unloaded("the script on standard input is empty", "-")
  end)

  it("is a directory", function()
    local dir = t.tempdir()
    assert_unloaded(dir .. ": Is a directory", dir)
  end)

  it("may not be read", function()
    -- Not even by root.
    assert_unloaded("/proc/self/mem", "/proc/self/mem")
  end)

  it("is a binary file or compiled", function()
    assert_unloaded("is not a Lua script: it is a binary file", "/bin/true")
    assert_unloaded("is not a Lua script: it is a binary file", script("print 'x'\0"))
    assert_unloaded("is a compiled chunk: only the text of a script is run",
      script(string.dump(function() print "no" end)))
    assert_unloaded("is a compiled chunk", script("\27Lua"))
  end)

  it("has a syntax error: its line is named", function()
    assert_unloaded("job.lua:2: unexpected symbol near '='", script("\nx = = 1"))
    assert_unloaded("job.lua:1: unfinished string near", script('print("abc'))
    assert_unloaded("job.lua:1: no visible label 'nope'", script("goto nope"))
    assert_unloaded("job.lua:3: 'end' expected", script("do\n\n"))
  end)
end)

describe("a script that fails: exit code 1", function()
  it("names the script's line, and the lines that called it", function()
    local err = assert_fails(1, "job.lua:2: boom\n",
      "local function work()\n  error('boom')\nend\n\nwork()")
    assert.matches("\n  at [^\n]*job.lua:2 in function 'work'\n     [^\n]*job.lua:5 in the main chunk\n$",
      err)
  end)

  it("names the line of its own call, where the fault is found by the module", function()
    local err = assert_fails(1, "job.lua:3: division by zero (SQLSTATE 22012)", LIBRARY
      .. "local function work()\n  lock.db:query('select 1/0')\nend\nwork()")
    assert.matches("\n  statement: select 1/0\n", err, 1, true)
    assert.matches("job.lua:3 in function 'work'\n     [^\n]*job.lua:5 in the main chunk\n$", err)
    assert_fails(1, "job.lua:2: ", LIBRARY .. "lock.advisory({}, {}, function() end)")
    assert_fails(1, "job.lua:2: ", LIBRARY .. "lock.advisory('x', { tiemout = 1 })")
  end)

  it("by any value that it raises", function()
    assert_fails(1, "the script raised nil\n  at ", "error()")
    assert_fails(1, "the script raised a boolean: false\n  at ", "error(false)")
    assert_fails(1, "the script raised a number: 42\n  at ", "error(42)")
    assert_fails(1, "the script raised a function: function: ", "error(print)")
    assert_fails(1, "the script raised a table without __tostring\n  at ", "error({})")
    assert_fails(1, "the script raised a table without __tostring",
      "error({ kind = 'connection', exit = 0 })")
    assert_fails(1, "lockkeeper: as text\n",
      "error(setmetatable({}, { __tostring = function() return 'as text' end }))")
    assert_fails(1, "lockkeeper: no position\n  at ", "error('no position', 0)")
    assert_fails(1, "job.lua:1: in a coroutine", "coroutine.wrap(function() error 'in a coroutine' end)()")
  end)

  it("by an object that cannot be shown", function()
    assert_fails(1, "the script raised a table whose __tostring fails: ",
      "error(setmetatable({}, { __tostring = function() error 'in it' end }))")
    assert_fails(1, "the script raised a table whose __tostring fails: ",
      "error(setmetatable({}, { __tostring = function() return {} end }))")
    assert_fails(1, "the script raised a table without __tostring",
      "error(setmetatable({}, { __index = function() error 'strict' end, __metatable = false }))")
  end)

  it("by a huge message, which is cut, and one that could do harm on a terminal", function()
    local err = assert_fails(1, "… (30000000 bytes)", "error(('x'):rep(3e7), 0)")
    assert.is_true(#err < 10000)
    err = assert_fails(1, "a?b?[31mred", [[error("a\0b\27[31mred")]])
    assert.not_matches("[%z\27]", err)
  end)

  it("by a stack overflow and by want of memory", function()
    assert_fails(1, "stack overflow", "local function f() return 1 + f() end f()")
    assert_fails(1, "stack overflow",
      "local function f() return tostring(setmetatable({}, { __tostring = f })) end f()")
    if not os.getenv("ASAN_OPTIONS") then -- which needs all the address space that there is
      local path = script("local t = {} while true do t = { t, ('x'):rep(1e6) } end")
      local child = t.spawn({ "sh", "-c", 'ulimit -v 500000; exec "$0" run "$1"', t.binary(), path })
      assert.equal(1, child:wait())
      assert.equal("lockkeeper: not enough memory\n", child:stderr())
    end
  end)

  it("whatever it did to Lua's own functions", function()
    assert_fails(1, "job.lua:1: after", [[
local all, error, pairs = _G, error, pairs for k in pairs(all) do all[k] = nil end error("after")]])
    assert_fails(1, "job.lua:3: after", [[
local error, pairs, ipairs = error, pairs, ipairs
for _, l in ipairs { string, table, io, debug, coroutine } do for k in pairs(l) do l[k] = nil end end
error "after"]])
    assert_fails(1, "strict x",
      "setmetatable(_G, { __newindex = function(_, k) error('strict ' .. k, 2) end }) x = 1")
  end)

  it("because what it requires is not there", function()
    assert_fails(1, "module 'no.such.module' not found", "require 'no.such.module'")
  end)
end)

describe("the exit code", function()
  it("is 75 where a lock was not to be had", function()
    local holder <close> = t.connect()
    holder:query("select pg_advisory_lock(42)")
    assert_fails(75, "42", LIBRARY .. "lock.advisory(42, { timeout = 0 }, function() end)")
    assert_fails(75, "42", LIBRARY .. "lock.advisory(42, { timeout = '20ms', on_busy = 'raise' })")
    holder:query("create table run_spec_busy (a int)")
    finally(function() t.psql("drop table run_spec_busy") end)
    holder:transaction(function(tx)
      tx:query("lock table run_spec_busy")
      assert_fails(75, "run_spec_busy", LIBRARY .. [[
        lock.db:transaction(function() lock.model("run_spec_busy", { timeout = 0, on_busy = "raise" }) end)]])
    end)
  end)

  it("is 0 where the script made do without it", function()
    local holder <close> = t.connect()
    holder:query("select pg_advisory_lock(42)")
    local code, out = run(LIBRARY .. "print(lock.advisory(42, { timeout = 0 }))")
    assert.equal(0, code)
    assert.matches("^nil\t", out)
  end)

  it("is 125 where a lock was lost", function()
    assert_fails(125, "job.lua:4: ", LIBRARY .. [[
      local held = lock.advisory(42)
      local other <close> = lock.connect()
      other:query("select pg_terminate_backend($1, 5000)", lock.db.pid) lock.db:query("select 1")]])
    assert_fails(125, "job.lua:2: ", LIBRARY .. [[
      lock.advisory(42, function()
        lock.db:query("select pg_advisory_unlock_all()") end)]])
  end)

  it("is 69 where there is no connection, or no more", function()
    assert_fails(69, "job.lua:2: ", LIBRARY .. "lock.db:query('select 1')",
      { env = { DATABASE_URL = "host=/nonexistent" } })
    assert_fails(69, "job.lua:3: ", LIBRARY .. [[
      local other <close> = lock.connect()
      other:query("select pg_terminate_backend($1, 5000)", lock.db.pid) lock.db:query("select 1")]])
  end)

  it("is 1 for any other error of the module", function()
    assert_fails(1, "42P01", LIBRARY .. "lock.db:query('select * from no_such_table')")
    assert_fails(1, "57014", LIBRARY .. "lock.db:query('set statement_timeout = 10; select pg_sleep(60)')")
    assert_fails(1, "must be", LIBRARY .. "lock.advisory(nil)")
  end)

  it("is the error's own where it was caught and raised again, as it was", function()
    local holder <close> = t.connect()
    holder:query("select pg_advisory_lock(42)")
    assert_fails(75, "job.lua:2: ", LIBRARY
      .. "local ok, err = pcall(lock.advisory, 42, { timeout = 0 }, print)\nerror(err)")
  end)
end)

describe("os.exit", function()
  local function assert_exit(code, text)
    local got, _, err = run(text)
    assert.equal(code, got)
    assert.equal("", err)
  end

  it("gives the exit code in every form", function()
    assert_exit(0, "os.exit()")
    assert_exit(0, "os.exit(true)")
    assert_exit(1, "os.exit(false)")
    assert_exit(0, "os.exit(0)")
    assert_exit(7, "os.exit(7)")
    assert_exit(7, "os.exit(7.0, true)")
    assert_exit(7, "os.exit(7, false)")
    assert_exit(255, "os.exit(-1)")
    assert_exit(0, "os.exit(nil) error('not reached')")
  end)

  it("ends the script in a function, a pcall, a coroutine, a to-be-closed variable", function()
    assert_exit(7, "local function f() os.exit(7) end pcall(f) print 'not reached'")
    assert_exit(7, "coroutine.wrap(function() os.exit(7) end)()")
    assert_exit(7, "coroutine.wrap(function() pcall(coroutine.wrap(function() os.exit(7) end)) end)()")
    assert_exit(7, "do local x <close> = setmetatable({}, { __close = function() os.exit(7) end }) end")
    assert_exit(7, "setmetatable({}, { __gc = function() os.exit(7) end }) collectgarbage()")
  end)

  it("writes what was printed, and closes what is open", function()
    local code, out = run([[
      io.write("printed")
      local x <close> = setmetatable({}, { __close = function() io.write(", closed") end })
      os.exit(7)]])
    assert.equal(7, code)
    assert.equal("printed, closed", out)
  end)

  it("gives a held lock back and keeps the code, in a block, a transaction, a coroutine", function()
    for _, text in ipairs {
      "local held <close> = lock.advisory(42) os.exit(7)",
      "lock.advisory(42, function() os.exit(7) end)",
      "lock.db:transaction(function() lock.advisory(42, { xact = true }) os.exit(7) end)",
      "lock.advisory(42, function() coroutine.wrap(function() os.exit(7) end)() end)",
      "local held = lock.advisory(42) os.exit(7)",
      "lock.advisory(42) for _ in lock.db:rows('select generate_series(1, 100000)') do os.exit(7) end",
    } do
      assert.equal(7, (run(LIBRARY .. text)))
      t.wait_until(function() return #t.holders(0, 42, 1) == 0 end, "the release")
    end
  end)

  it("with a wrong argument is an error of the script's line", function()
    assert_fails(1, "job.lua:2: bad argument #1 to 'exit'", "\nos.exit('x')")
    assert_fails(1, "job.lua:2: bad argument #1 to 'exit'", "\nos.exit(1.5)")
  end)
end)

describe("--config", function()
  -- A folder with files in it.
  local function folder(files)
    local dir = t.tempdir()
    for name, text in pairs(files) do
      assert(os.execute(("mkdir -p %s/%s"):format(dir, name:match("^(.*)/") or ".")))
      local file <close> = assert(io.open(dir .. "/" .. name, "w"))
      file:write(text)
    end
    return dir
  end
  local SCRIPT = "print('script')"

  it("runs lockkeeper.lua of the current folder first, else the user's config.lua", function()
    local here = folder { ["lockkeeper.lua"] = "print 'here'", ["job.lua"] = SCRIPT }
    local home = folder { ["lockkeeper/config.lua"] = "print 'home'", ["job.lua"] = SCRIPT,
      [".config/lockkeeper/config.lua"] = "print 'dot config'" }
    local function output(cwd, env)
      local code, out, err = t.run("run", "job.lua", { cwd = cwd, env = env })
      assert.equal(0, code, err)
      return out
    end
    assert.equal("here\nscript\n", output(here, { XDG_CONFIG_HOME = home }))
    assert.equal("home\nscript\n", output(home, { XDG_CONFIG_HOME = home }))
    assert.equal("dot config\nscript\n", output(home, { XDG_CONFIG_HOME = false, HOME = home }))
    assert.equal("script\n", output(home, { XDG_CONFIG_HOME = "/nonexistent" }))
  end)

  it("names another one", function()
    local dir = folder { ["lockkeeper.lua"] = "print 'here'", ["my.lua"] = "print 'mine'",
      ["job.lua"] = SCRIPT }
    local code, out = t.run("run", "--config", "my.lua", "job.lua", { cwd = dir })
    assert.equal(0, code)
    assert.equal("mine\nscript\n", out)
  end)

  it("may declare databases", function()
    local config = script(([[require("lockkeeper").database("other", %q)]]):format(
      t.conninfo({ application_name = "declared" })), "config.lua")
    local code, out, err = t.run("run", "--config", config, script(LIBRARY .. [[
      local held <close> = lock.advisory("x", { using = "other" })
      for _, name in ipairs { "declared", "lockkeeper: job.lua" } do
        print(lock.db:value("select count(*) from pg_locks join pg_stat_activity using (pid) "
          .. "where locktype = 'advisory' and application_name = $1", name))
      end]]))
    assert.equal(0, code, err)
    assert.equal("1\n0\n", out)
  end)

  it("a fault in it: exit code 2, the file is named, the script is not run", function()
    local path = script(SCRIPT)
    local function assert_refused(message, config)
      local code, out, err = t.run("run", "--config", config, path)
      assert.equal(2, code, err)
      assert.equal("", out)
      assert.matches(message, err, 1, true)
      assert_clean(err)
      return err
    end
    assert_refused("cannot open the configuration /no/such/file: No such file", "/no/such/file")
    assert_refused("Is a directory", t.tempdir())
    assert_refused("config.lua is empty", script("", "config.lua"))
    assert_refused("config.lua:2: unexpected symbol", script("\n=", "config.lua"))
    local config = script("local function f() error('boom') end\nf()", "config.lua")
    local err = assert_refused(("the configuration %s failed: %s:1: boom"):format(config, config), config)
    assert.matches("config.lua:2 in the main chunk", err, 1, true)
    assert_refused("failed: the script raised a table without __tostring", script("error({})", "config.lua"))
    assert_refused("failed: ", script("require('lockkeeper').database()", "config.lua"))
    assert_refused("failed: ",
      script("require('lockkeeper').connect { conninfo = 'host=/none' }", "config.lua"))
  end)

  it("is refused where others could have written it", function()
    local path = script(SCRIPT)
    local config = script("print 'config'", "config.lua")
    os.execute("chmod 0666 " .. config)
    local pipe <close> = io.popen("id -u")
    if pipe:read("l") ~= "0" then
      return -- what follows is root's
    end
    local code, out, err = t.run("run", "--config", config, path)
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches("anybody may write to it", err, 1, true)
    -- In /tmp, say, another user's file is not ours to run.
    local dir = folder { ["lockkeeper.lua"] = "print 'theirs'", ["job.lua"] = SCRIPT }
    os.execute(("chmod 1777 %s; chown nobody %s/lockkeeper.lua"):format(dir, dir))
    code, out, err = t.run("run", "job.lua", { cwd = dir })
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches("it is another user's, in a folder that anybody may write to", err, 1, true)
  end)
end)

describe("a signal", function()
  local CODES = { INT = 130, TERM = 143, HUP = 129 }
  local APPLICATION = "waiting.lua"

  local function backends()
    return t.observe(("select pid from pg_stat_activity where application_name = 'lockkeeper: %s'")
      :format(APPLICATION))
  end

  local function is_active()
    return t.observe(("select 1 from pg_stat_activity where application_name = 'lockkeeper: %s' "
      .. "and state = 'active'"):format(APPLICATION)) == "1"
  end

  local function is_blocked()
    return t.observe(("select 1 from pg_stat_activity where application_name = 'lockkeeper: %s' "
      .. "and wait_event_type = 'Lock'"):format(APPLICATION)) == "1"
  end

  -- Whether a process waits in the kernel, as poll(2) does.
  local function is_asleep(child)
    local stat = t.read_file(("/proc/%d/stat"):format(child:pid()))
    return stat ~= nil and stat:match("^.*%) (%a)") == "S"
  end

  --- Start a script that says "ready" and then waits.
  local function start(text, opts)
    local path = script(LIBRARY .. "io.stdout:setvbuf('no')\n" .. text, APPLICATION)
    local child = t.lockkeeper("run", path, opts or {})
    t.wait_until(function()
      return child:stdout():find("ready", 1, true) or not child:is_running()
    end, "the script")
    assert.is_true(child:is_running(), child:stderr())
    return child
  end

  --- It ends at once, with its code; statement, locks and sessions are gone from the server.
  local function assert_ends(child, name, quiet)
    local begun = t.now()
    child:signal(name)
    assert.equal(CODES[name], child:wait(5), child:stderr())
    assert.is_true(t.now() - begun < 1.5, "it took " .. t.now() - begun)
    t.wait_until(function() return backends() == "" end, 2, "the end of its sessions")
    if not quiet then
      assert.matches("interrupted by signal", child:stderr(), 1, true)
      assert_clean(child:stderr())
    end
  end

  -- Each kind of wait: the script, and when it has come to wait.
  local WAITS = {
    { "a query", "print 'ready' lock.db:query('select pg_sleep(60)')", is_active },
    { "a query in a transaction, a lock held", [[lock.advisory(42, function() lock.db:transaction(function()
        print 'ready' lock.db:query('select pg_sleep(60)') end) end)]], is_active },
    { "a lock", "print 'ready' lock.advisory(4711, { timeout = false })", is_blocked },
    { "a lock, with a timeout", "print 'ready' lock.advisory(4711, { timeout = '1h' })", is_blocked },
    { "a lock, polling", "lock.db:ping() print 'ready' lock.advisory(4711, { poll = '10s' })", is_asleep },
    { "a table", "lock.db:transaction(function() print 'ready' lock.model('run_spec_waits') end)",
      is_blocked },
    { "a sleep", "print 'ready' lock.sleep(60)", is_asleep },
    { "a sleep, a lock held", "local held <close> = lock.advisory(42) print 'ready' lock.sleep(60)",
      is_asleep },
    { "a notification", "lock.db:listen('x') print 'ready' lock.db:wait_notify(60)", is_asleep },
    { "a command", "print 'ready' lock.sh { 'sleep', '61.5' }", is_asleep },
    { "rows", [[print 'ready'
        for _ in lock.db:rows('select pg_sleep(0.2) from generate_series(1, 1000)') do end]], is_active },
    { "COPY to us", "print 'ready' lock.db:copy_out('copy (select pg_sleep(60)) to stdout', print)",
      is_active },
    { "COPY from us", "print 'ready' lock.db:copy_in('copy run_spec_waits from stdin', '1\\n')",
      is_blocked },
    { "a busy loop", "print 'ready' while true do end" },
    { "a busy loop in a coroutine", "coroutine.wrap(function() print 'ready' while true do end end)()" },
    { "a busy loop in a coroutine in a coroutine", [[coroutine.resume(coroutine.create(function()
        coroutine.wrap(function() print 'ready' while true do end end)() end))]], nil, true },
    { "a busy loop after a coroutine", [[coroutine.wrap(function() coroutine.yield() end)()
        print 'ready' while true do end]] },
    { "many short coroutines", "print 'ready' while true do coroutine.wrap(function() end)() end" },
    { "a coroutine's cleanup", [[local x = coroutine.create(function()
        local c <close> = setmetatable({}, { __close = function() print 'ready' while true do end end })
        coroutine.yield() end) coroutine.resume(x) coroutine.close(x)]], nil, true },
    { "a query in a coroutine", [[coroutine.wrap(function()
        print 'ready' lock.db:query('select pg_sleep(60)') end)()]], is_active },
  }

  setup(function()
    t.psql("create table run_spec_waits (a int)")
  end)
  teardown(function()
    t.psql("drop table run_spec_waits")
  end)

  for _, wait in ipairs(WAITS) do
    local name, text, is_waiting, quiet = table.unpack(wait)
    it("ends at once what waits in " .. name, function()
      local holder <close> = t.connect()
      holder:query("select pg_advisory_lock(4711)")
      holder:transaction(function(tx)
        tx:query("lock table run_spec_waits")
        for signal in pairs(CODES) do
          local child = start(text)
          if is_waiting then
            t.wait_until(function() return is_waiting(child) end, "the wait")
          end
          assert_ends(child, signal, quiet)
        end
      end)
      assert.equal(0, #t.holders(0, 42, 1))
    end)
  end

  it("ends at once what connects to a host that does not answer", function()
    local dir = t.tempdir()
    local listener = t.spawn({ "perl", "-MSocket", "-e", [[
      socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un($ARGV[0])) or die; listen(S, 9); print "on\n";
      $| = 1; print "\n"; sleep 60]], dir .. "/.s.PGSQL.5432" })
    t.wait_until(function() return listener:stdout() ~= "" end, "the listener")
    for name in pairs(CODES) do
      local child = start("print 'ready' lock.db:query('select 1')",
        { env = { DATABASE_URL = "host=" .. dir } })
      t.wait_until(function() return is_asleep(child) end, "the wait")
      assert_ends(child, name)
    end
    listener:signal("KILL")
    listener:wait()
  end)

  it("ends at once what reads its input", function()
    local fifo = t.tempdir() .. "/fifo"
    assert(os.execute("mkfifo " .. fifo))
    local path = script("io.stdout:setvbuf('no') print 'ready' io.read() print 'not reached'", APPLICATION)
    local child = t.spawn({ "sh", "-c", 'exec "$0" run "$1" <"$2"', t.binary(), path, fifo })
    local input <close> = assert(io.open(fifo, "w"))
    t.wait_until(function() return child:stdout() == "ready\n" and is_asleep(child) end, "the wait")
    child:signal("INT")
    assert.equal(130, child:wait(5))
    assert.equal("ready\n", child:stdout())
    input:close()
  end)

  it("runs what is to be closed, in the order it should", function()
    local child = start([[
      local function closer(n)
        return setmetatable({}, { __close = function(_, err) print("closed " .. n, err.kind) end })
      end
      local a <close> = closer(1)
      local held <close> = lock.advisory(42)
      local b <close> = closer(2)
      print 'ready'
      lock.sleep(60)]])
    t.wait_until(function() return is_asleep(child) end, "the wait")
    assert_ends(child, "INT")
    assert.equal("ready\nclosed 2\tcancelled\nclosed 1\tcancelled\n", child:stdout())
  end)

  it("is raised as an error of kind cancelled, once, and again at every further wait", function()
    local child = start([[
      print 'ready'
      print(select(2, pcall(lock.sleep, 60)).kind)
      print(pcall(function() local i = 0 while i < 1e5 do i = i + 1 end end))
      print(select(2, pcall(lock.sleep, 60)).kind)
      print(select(2, pcall(lock.db.query, lock.db, 'select 1')).kind)]])
    t.wait_until(function() return is_asleep(child) end, "the wait")
    child:signal("TERM")
    assert.equal(143, child:wait(5))
    assert.equal("ready\ncancelled\ntrue\ncancelled\ncancelled\n", child:stdout())
  end)

  it("runs what is to be closed in a coroutine, too", function()
    local child = start([[
      coroutine.wrap(function()
        local a <close> = setmetatable({}, { __close = function() print("closed") end })
        print 'ready'
        lock.sleep(60)
      end)()]])
    t.wait_until(function() return is_asleep(child) end, "the wait")
    assert_ends(child, "INT")
    assert.equal("ready\nclosed\n", child:stdout())
  end)

  it("gives its code even where the script swallowed the error and came to its end", function()
    local child = start("print 'ready' pcall(lock.sleep, 60)")
    t.wait_until(function() return is_asleep(child) end, "the wait")
    assert_ends(child, "INT", true)
  end)

  it("a second one ends a script that swallows the first", function()
    for _, text in ipairs { "while true do pcall(function() while true do end end) end",
      "while true do pcall(lock.sleep, 60) end" } do
      local child = start("lock.advisory(42) print 'ready' " .. text)
      child:signal("INT")
      t.sleep(0.1)
      assert.is_true(child:is_running())
      assert.equal(1, #t.holders(0, 42, 1))
      assert_ends(child, "INT", true)
      t.wait_until(function() return #t.holders(0, 42, 1) == 0 end, "the release")
    end
  end)

  it("SIGHUP stays ignored under nohup", function()
    local path = script("io.stdout:setvbuf('no') print 'ready' require('lockkeeper').sleep(60)", APPLICATION)
    local child = t.spawn({ "nohup", t.binary(), "run", path })
    t.wait_until(function() return child:stdout() == "ready\n" and is_asleep(child) end, "the wait")
    child:signal("HUP")
    t.sleep(0.1)
    assert.is_true(child:is_running())
    child:signal("TERM")
    assert.equal(143, child:wait(5))
  end)

  it("Ctrl-C in a terminal reaches the script and its commands", function()
    local path = script(LIBRARY .. [[
      local held <close> = lock.advisory(42)
      print 'ready' io.stdout:flush()
      lock.sh { 'sleep', '61.5' }]], APPLICATION)
    local fifo = t.tempdir() .. "/fifo"
    assert(os.execute("mkfifo " .. fifo))
    local child = t.spawn({ "sh", "-c", 'exec script -qefc "\'$0\' run \'$1\'" /dev/null <"$2"',
      t.binary(), path, fifo, env = { DATABASE_URL = t.conninfo() } })
    local keyboard <close> = assert(io.open(fifo, "w"))
    t.wait_until(function() return child:stdout():find("ready", 1, true) end, "the script")
    t.wait_until(function() return #t.holders(0, 42, 1) == 1 end, "the lock")
    keyboard:write("\3"):flush()
    assert.equal(130, child:wait(5), child:stdout())
    t.wait_until(function() return #t.holders(0, 42, 1) == 0 end, "the release")
  end)

  it("SIGKILL: the server frees the locks", function()
    local child = start("lock.advisory(42) print 'ready' lock.sleep(60)")
    assert.equal(1, #t.holders(0, 42, 1))
    child:signal("KILL")
    assert.equal(137, child:wait())
    t.wait_until(function() return #t.holders(0, 42, 1) == 0 end, "the release")
  end)
end)

describe("the server", function()
  it("that dies in the middle of a query, a lock's wait, a stream: one clear error, no hang", function()
    local server = t.start_server()
    finally(function() server:stop() end)
    local url = server:conninfo()
    for _, case in ipairs {
      { 69, "lock.db:query('select pg_sleep(60)')" },
      { 125, "local held <close> = lock.advisory(42) lock.db:query('select pg_sleep(60)')" },
      { 69, "for _ in lock.db:rows('select pg_sleep(0.1) from generate_series(1, 1000)') do end" },
      { 69, "lock.db:listen('x') lock.db:wait_notify(60)" },
      { 69, "lock.db:transaction(function() lock.db:query('select pg_sleep(60)') end)" },
    } do
      local code, text = table.unpack(case)
      text = LIBRARY .. "lock.db:ping() print 'ready' io.stdout:flush() " .. text
      local child = t.lockkeeper("run", script(text), { env = { DATABASE_URL = url } })
      t.wait_until(function() return child:stdout() == "ready\n" end, "the script")
      t.sleep(0.05)
      server:kill()
      assert.equal(code, child:wait(5), child:stderr())
      assert_clean(child:stderr())
      assert.matches("job.lua:2: ", child:stderr(), 1, true)
      server:start()
    end
  end)
end)
