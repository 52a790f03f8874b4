-- The test harness itself: what the other specs rely on.

local t = require "tests.support"

local bindir = require("tests.support.target").bindir()

-- Run specs in a busted of their own, with this harness and another server.
local function run_specs(text)
  return t.spawn({ "lua5.4", "/usr/bin/busted", "--output=plainTerminal",
    t.tempfile(text, "planted_spec.lua"), env = { LOCKKEEPER_TEST_GRACE = "0.3" } })
end

-- A psql that stays connected for some seconds and is no child of ours: all that the check can see of
-- it is its session.
local KEEP_SESSION = [=[
  local function keep_session(sql)
    local bin = require("tests.support.target").bindir()
    os.execute(("unset LOCKKEEPER_TEST_CHILD; (echo %q; sleep 3) | %s/psql -Xqd %q >/dev/null 2>&1 &"):format(
      sql, bin, t.conninfo({ application_name = "planted" })))
    t.wait_until(function()
      return t.observe([[select 1 from pg_stat_activity
                         where application_name = 'planted' and state = 'idle']]) == "1"
    end, "the planted session")
  end
]=]

describe("the suite", function()
  it("runs under Lua 5.4", function()
    assert.equal("Lua 5.4", _VERSION)
  end)
end)

describe("psql and the observer", function()
  it("answer with the rows' text", function()
    assert.equal("1|a\n2|", t.psql("values (1, 'a'), (2, null)"))
    assert.equal("1|a\n2|", t.observe("values (1, 'a'), (2, null)"))
    assert.equal("", t.observe("select where false"))
  end)

  it("raise the server's message, and the observer goes on", function()
    assert.has_error(function() t.psql("select 1; select 1/0; select 2") end)
    for _, text in ipairs({ "select 1/0", "select 'open", 'select "open', "select (", "select $$", "/*" }) do
      local ok, err = pcall(t.observe, text)
      assert.is_false(ok, text)
      assert.matches("ERROR", err)
      assert.equal("7", t.observe("select 7"))
    end
  end)

  it("see who holds and who waits for a lock", function()
    local holder = t.spawn({ "sh", "-c", ([[(echo 'select pg_advisory_lock(-2);'; sleep 60) |
      exec %s/psql -Xqd "$0"]]):format(require("tests.support.target").bindir()), t.conninfo() })
    t.wait_until(function() return #t.holders(4294967295, 4294967294, 1) == 1 end, "the holder")
    local pid = t.holders(4294967295, 4294967294, 1)[1]
    assert.is_false(t.is_waiting(pid))

    local waiter = t.spawn({ bindir .. "/psql", "-XAtq", "-d",
      t.conninfo({ application_name = "waiter" }), "-c", "select pg_advisory_lock(-2)" })
    t.wait_until(function()
      local found = t.observe("select pid from pg_stat_activity where application_name = 'waiter'")
      return found ~= "" and t.is_waiting(math.tointeger(found))
    end, "the waiter")
    assert.same({ pid }, t.holders(4294967295, 4294967294, 1))

    holder:signal_group("KILL")
    assert.equal(137, holder:wait())
    assert.equal(0, waiter:wait())
  end)
end)

describe("wait_until", function()
  it("returns what came, and names what never came", function()
    local n = 0
    assert.equal(3, t.wait_until(function()
      n = n + 1
      return n == 3 and n
    end, "the third time"))
    local ok, err = pcall(t.wait_until, function() return false end, 0.02, "the end of days")
    assert.is_false(ok)
    assert.matches("waited 0.02 s for what never came: the end of days", err, 1, true)
  end)
end)

describe("spawn", function()
  it("passes every argument on as it is", function()
    local hostile = { "", " ", "'", "''", '"', "$HOME", "`id`", "$(id)", "a\nb", "\\", "-n", "--", "*", ";",
      "a=b", "\xff\x01", ("x"):rep(100000) }
    local child = t.spawn({ "printf", "%s\\0", table.unpack(hostile) })
    assert.equal(0, child:wait())
    assert.equal(table.concat(hostile, "\0") .. "\0", child:stdout())
    assert.has_error(function() t.spawn({ "printf", "a\0b" }) end)
  end)

  it("sets and takes away variables, gives input and a folder", function()
    local dir = t.tempdir()
    local child = t.spawn({ "sh", "-c", "echo \"$A|${HOME-none}\"; cat; pwd; echo problem >&2",
      env = { A = "it's $A", HOME = false }, stdin = "line\n", cwd = dir })
    assert.equal(0, child:wait())
    assert.equal("it's $A|none\nline\n" .. dir .. "\n", child:stdout())
    assert.equal("problem\n", child:stderr())
  end)

  it("gives the exit code, 128 + N for a signal", function()
    assert.equal(7, t.spawn({ "sh", "-c", "exit 7" }):wait())
    assert.equal(127, t.spawn({ "/no/such/command" }):wait())
    assert.equal(126, t.spawn({ "/etc/passwd" }):wait())
    for name, code in pairs({ INT = 130, QUIT = 131, TERM = 143, KILL = 137 }) do
      local child = t.spawn({ "sleep", "60" })
      assert.is_true(child:is_running())
      assert.is_true(t.is_alive(child:pid()))
      child:signal(name)
      assert.equal(code, child:wait())
      assert.is_false(child:is_running())
    end
  end)

  it("raises when the command cannot be started at all", function()
    local ok, err = pcall(t.spawn, { "true", cwd = "/no/such/folder" })
    assert.is_false(ok)
    assert.matches("could not be started: true: .*/no/such/folder", err)
  end)

  it("raises when a wait is over before the child", function()
    local child = t.spawn({ "sh", "-c", "echo so far; exec sleep 60" })
    t.wait_until(function() return child:stdout() == "so far\n" end, "its output")
    local ok, err = pcall(child.wait, child, 0.02)
    assert.is_false(ok)
    assert.matches("still running after 0.02 s: sh %-c .*so far", err)
    child:signal("KILL")
    child:wait()
  end)

  it("signals the whole group when told so", function()
    local child = t.spawn({ "sh", "-c", "sleep 60 & sleep 60 & echo $!; wait" })
    local grandchild = t.wait_until(function() return math.tointeger(child:stdout()) end, "its child")
    child:signal_group("TERM")
    assert.equal(143, child:wait())
    t.wait_until(function() return not t.is_alive(grandchild) end, "the end of its child")
  end)
end)

describe("a server of one's own", function()
  it("takes settings and access rules", function()
    local server = t.start_server({
      settings = { work_mem = "1234kB", cluster_name = "it's", enable_sort = false },
      hba = "local all all reject\n",
    })
    finally(function() server:stop() end)
    assert.equal("1234kB|it's|off",
      server:psql("select current_setting('work_mem'), current_setting('cluster_name'), "
        .. "current_setting('enable_sort')"))
    assert.has_error(function() server:psql("select 1", { user = "lk_app" }) end)
  end)

  it("listens on TCP, where lk_pw needs its password", function()
    local server = t.start_server({ tcp = true })
    finally(function() server:stop() end)
    local function user(opts)
      opts.host = "127.0.0.1"
      return server:psql("select current_user", opts)
    end
    assert.equal("lk_pw", user({ user = "lk_pw", password = t.password }))
    assert.equal("lk_app", user({ user = "lk_app" }))
    assert.has_error(function() user({ user = "lk_pw", password = "wrong" }) end)
    assert.has_error(function() user({ user = "lk_pw" }) end)
  end)

  it("stops, restarts, and starts again after a crash", function()
    local server = t.start_server()
    local first = server:pid()
    server:psql("create table kept (a int); insert into kept values (1); checkpoint")
    server:restart("immediate")
    assert.not_equal(first, server:pid())
    server:kill()
    assert.is_nil(server:pid())
    assert.has_error(function() server:psql("select 1") end)
    server:start()
    assert.equal("1", server:psql("select a from kept"))
    assert.matches("was not properly shut down", server:log())
    server:stop()
    assert.is_false(server:is_running())
    server:stop()
  end)

  it("has a standby", function()
    local standby = t.start_server({ standby_of = t.server })
    assert.equal("t", standby:psql("select pg_is_in_recovery()"))
    standby:stop()
  end)

  it("refuses an option that it does not know", function()
    assert.has_error(function() t.start_server({ setings = {} }) end, "unknown option: setings")
  end)
end)

describe("connection strings", function()
  it("carry any value in both forms", function()
    local name = [[it's a \ "name" & more? ü]]
    for _, form in ipairs({ "conninfo", "uri" }) do
      local text = t.server[form](t.server, { application_name = name })
      local child = t.spawn({ bindir .. "/psql", "-XAtqd", text, "-c",
        "show application_name" })
      assert.equal(0, child:wait(), child:stderr())
      -- PostgreSQL 15 shows bytes that are not ASCII as ?.
      assert.equal([[it's a \ "name" & more? ??]] .. "\n", child:stdout())
    end
  end)
end)

describe("PgBouncer", function()
  local bouncer

  after_each(function()
    bouncer:stop()
  end)

  it("gives the next client the same server connection, in transaction mode", function()
    bouncer = t.start_pgbouncer()
    local pid = bouncer:psql("select pg_backend_pid()")
    assert.equal(pid, bouncer:psql("select pg_backend_pid()"))
    assert.same({ math.tointeger(pid) }, bouncer:backend_pids())
    bouncer:psql("set lock_timeout = 1234")
    assert.equal("1234ms", bouncer:psql("show lock_timeout"))
  end)

  it("cleans up between clients, in session mode", function()
    bouncer = t.start_pgbouncer({ pool_mode = "session", tcp = true })
    bouncer:psql("set lock_timeout = 1234", { host = "127.0.0.1" })
    assert.equal("0", bouncer:psql("show lock_timeout"))
    assert.equal("lk_pw", bouncer:psql("select current_user", { user = "lk_pw" }))
  end)
end)

describe("the leak check", function()
  it("fails a test, by its name, for what it leaves", function()
    local child = run_specs([[
      local t = require "tests.support"
      ]] .. KEEP_SESSION .. [[

      it("is clean", function() t.psql("select pg_advisory_lock(1)") end)
      it("leaves a session", function() keep_session("select 1;") end)
      it("is clean again", function()
        assert.equal("0", t.psql("select count(*) from pg_locks where locktype = 'advisory'"))
      end)
      it("leaves a lock", function() keep_session("select pg_advisory_lock(77);") end)
      it("leaves a prepared transaction", function()
        t.psql("begin; select pg_advisory_xact_lock(78); prepare transaction 'it''s'")
      end)
      it("leaves a child", function() t.spawn { "sleep", "61" } end)
      it("leaves a grandchild", function() t.spawn({ "sh", "-c", "setsid sleep 62 & exit 0" }):wait() end)
      it("leaves a process that is ours", function() planted = io.popen("exec sleep 63") end)
      it("leaves a server", function() t.start_server() end)
      it("leaves a pooler", function() t.start_pgbouncer():psql("select 1") end)
      it("fails before it leaves a session", function() keep_session("select 1;"); error("its own error") end)
      describe("after_each", function()
        local child
        after_each(function() child:signal("KILL"); child:wait() end)
        it("may close what the test left", function() child = t.spawn { "sleep", "60" } end)
      end)
      describe("setup", function()
        local child
        setup(function() child = t.spawn { "sleep", "60" } end)
        teardown(function() child:signal("KILL"); child:wait() end)
        it("may open for several tests", function() end)
        it("as here", function() end)
      end)
      pending("is not run")
      it("ends clean", function()
        assert.equal("0", t.psql("select count(*) from pg_locks where locktype = 'advisory'"))
        assert.equal("0", t.psql("select count(*) from pg_prepared_xacts"))
      end)
    ]])
    assert.equal(1, child:wait(120))
    local out = child:stdout()
    assert.matches("6 successes / 8 failures / 1 error / 1 pending", out, 1, true)
    local function failed(name, what)
      assert.matches("Failure %-> %S+planted_spec.lua @ %d+\n" .. name .. "\nleft behind:\n[^\n]*"
        .. what, out)
    end
    failed("leaves a session", "session: pid %d+ of postgres %(planted%), idle: select 1;")
    failed("leaves a lock",
      "advisory lock: 0, 77, 1, ExclusiveLock of pid %d+\n  session: pid")
    failed("leaves a prepared transaction", "advisory lock: 0, 78, 1, .*\n  prepared transaction: it's in")
    failed("leaves a child", "process: %d+ sleep 61")
    failed("leaves a grandchild", "process: %d+ sleep 62")
    failed("leaves a process that is ours", "process: %d+ sleep 63")
    failed("leaves a server", "server: a PostgreSQL in /tmp/lk")
    failed("leaves a pooler", "server: a PgBouncer in /tmp/lk")
    assert.matches("Error %-> %S+ @ %d+\nfails before it leaves a session\n[^\n]*its own error", out)
  end)

  it("fails a spec file for what its setup leaves", function()
    local child = run_specs([[
      local t = require "tests.support"
      setup(function() t.spawn { "sleep", "64" } end)
      it("is clean", function() end)
    ]])
    assert.equal(1, child:wait(60))
    assert.matches("1 success / 0 failures / 1 error / 0 pending", child:stdout(), 1, true)
    assert.matches("planted_spec.lua\n[^\n]*left behind:\n  process: %d+ sleep 64", child:stdout())
  end)
end)

describe("the end of a run", function()
  -- The specs tell where they work and go on for a minute.
  local ENDLESS = [[
    local t = require "tests.support"
    it("goes on", function()
      local server, bouncer = t.start_server(), t.start_pgbouncer()
      t.spawn { "sh", "-c", "setsid sleep 65 & sleep 65" }
      io.stderr:write(t.server.dir:match("^/tmp/lk%.[^/]*"), "\n")
      t.wait_until(function() return false end, 60)
    end)
    it("is not reached after an interruption", function() io.stderr:write("reached") end)
  ]]

  local function everything_of(dir)
    -- The pattern by way of a file, since grep and its shell are processes too.
    local pipe <close> = io.popen("grep -slF -f " .. t.tempfile(dir .. "/\n")
      .. " /proc/[0-9]*/cmdline /proc/[0-9]*/environ")
    return pipe:read("a")
  end

  for name, code in pairs({ INT = 130, TERM = 143, KILL = 137 }) do
    it("leaves nothing after SIG" .. name, function()
      local child = run_specs(ENDLESS)
      local dir = t.wait_until(function() return child:stderr():match("^(%S+)\n") end, 30, "the start")
      assert.not_equal("", everything_of(dir))
      child:signal(name)
      assert.equal(code, child:wait())
      t.wait_until(function() return everything_of(dir) == "" and not io.open(dir) end, 30, "the end of all")
      assert.not_matches("reached", child:stderr())
    end)
  end

  it("leaves nothing after all went well", function()
    local child = run_specs([[
      local t = require "tests.support"
      it("tells where", function() io.stderr:write(t.server.dir:match("^/tmp/lk%.[^/]*"), "\n") end)
    ]])
    assert.equal(0, child:wait(60))
    local dir = child:stderr():match("^(%S+)\n")
    assert.equal("", everything_of(dir))
    assert.is_nil(io.open(dir))
  end)
end)
