-- `lockkeeper exec` (cli.md; runner.md 13, 17, 19, 20).

local process = require "tests.support.process"
local t = require "tests.support"

-- The keys of "hello" and 42, as pg_locks shows them.
local HELLO = { 245608543, 3125670444, 1 }
local KEY = { 0, 42, 1 }

local function holders(key)
  return t.holders(table.unpack(key))
end

local function wait_held(key, child)
  return t.wait_until(function()
    assert.is_true(child == nil or child:is_running(), child and child:stderr())
    return holders(key)[1]
  end, "the lock")
end

local function wait_free(key)
  t.wait_until(function() return #holders(key) == 0 end, "the release")
end

-- Processes of this run that were called so; their command line is theirs alone.
local function running(command)
  local pids = {}
  local pipe <close> = io.popen("pgrep -xf -- '" .. command .. "'")
  for pid in pipe:read("a"):gmatch("%d+") do
    if t.is_alive(math.tointeger(pid)) then
      pids[#pids + 1] = math.tointeger(pid)
    end
  end
  return pids
end

local function wait_gone(command, seconds)
  t.wait_until(function() return #running(command) == 0 end, seconds or 5, "the end of " .. command)
end

-- A duration that no other process sleeps.
local sleeps = 0
local function a_sleep()
  sleeps = sleeps + 1
  return ("sleep 60.%d%d"):format(os.time() % 100000, sleeps)
end

local function words(text)
  local list = {}
  for word in text:gmatch("%S+") do
    list[#list + 1] = word
  end
  return table.unpack(list)
end

-- Start `exec --lock 42 … -- sh -c SCRIPT`; when the lock is held its command runs soon.
local function start(script, ...)
  local argv = { "exec", "--lock", "42", ... }
  local opts = type(argv[#argv]) == "table" and table.remove(argv) or {}
  table.move({ "--", "sh", "-c", script }, 1, 4, #argv + 1, argv)
  argv[#argv + 1] = opts
  return t.lockkeeper(table.unpack(argv))
end

local function wait_for_output(child, text)
  t.wait_until(function()
    return child:stdout():find(text, 1, true) or not child:is_running()
  end, text)
  assert.matches(text, child:stdout(), 1, true)
end

local function terminate(pid)
  t.observe(("select pg_terminate_backend(%d)"):format(pid))
end

describe("exec", function()
  it("holds the lock while the command runs, visible in pg_locks, and gives it back", function()
    local command = a_sleep()
    local child = t.lockkeeper("exec", "--lock", "hello", "--", words(command))
    wait_held(HELLO, child)
    t.wait_until(function() return #running(command) == 1 end, "the command")
    local pid = holders(HELLO)[1]
    assert.equal("lockkeeper: hello",
      t.observe("select application_name from pg_stat_activity where pid = " .. pid))
    local code, _, err = t.run("exec", "--lock", "hello", "--timeout", "0", "--", "true")
    assert.equal(75, code)
    assert.matches(("held by pid %d (postgres, lockkeeper: hello)"):format(pid), err, 1, true)
    child:signal("TERM")
    assert.equal(143, child:wait())
    wait_free(HELLO)
    assert.equal(0, #running(command))
  end)

  it("passes the command's exit code and output on, and its arguments as they are", function()
    local code, out, err = t.run("exec", "--lock", "42", "--", "sh", "-c",
      "echo out; echo err >&2; exit 7")
    assert.equal(7, code)
    assert.equal("out\n", out)
    assert.matches("err\n$", err)
    for _, n in ipairs { 0, 1, 2, 69, 75, 124, 125, 126, 255 } do
      assert.equal(n, (t.run("exec", "--lock", "42", "sh", "-c", "exit " .. n)))
    end
    code, out = t.run("exec", "--lock", "42", "--", "printf", "%s|", "", " ", "$HOME", "--", "-n",
      "a\nb", "*")
    assert.equal(0, code)
    assert.equal("| |$HOME|--|-n|a\nb|*|", out)
  end)

  it("ends with 128 + N where signal N ended the command", function()
    assert.equal(137, (t.run("exec", "--lock", "42", "sh", "-c", "kill -KILL $$")))
    assert.equal(139, (t.run("exec", "--lock", "42", "sh", "-c", "ulimit -c 0; kill -SEGV $$")))
  end)

  it("126: the command can't be executed; 127: it is not found; the lock is given back", function()
    local code, out, err = t.run("exec", "--lock", "42", "--", "/etc/passwd")
    assert.equal(126, code)
    assert.equal("", out)
    assert.matches('command "/etc/passwd": permission denied', err, 1, true)
    code, out, err = t.run("exec", "--lock", "42", "--", "no-such-command")
    assert.equal(127, code)
    assert.equal("", out)
    assert.matches('command "no-such-command": not found', err, 1, true)
    assert.equal(126, (t.run("exec", "--lock", "42", "--", "/")))
    assert.equal(127, (t.run("exec", "--lock", "42", "--", "/no/such/command")))
    assert.equal(127, (t.run("exec", "--lock", "42", "--", "")))
    assert.equal(126, (t.run("exec", "--lock", "42", "--", t.tempfile("echo no"))))
    assert.equal(0, #holders(KEY))
  end)

  it("tells the command the key as LOCKKEEPER_KEY", function()
    local function key(...)
      local argv = { "exec", ... }
      table.move({ "--", "sh", "-c", "echo ${LOCKKEEPER_KEY-none}" }, 1, 4, #argv + 1, argv)
      argv[#argv + 1] = { env = { LOCKKEEPER_KEY = "inherited" } }
      return select(2, t.run(table.unpack(argv)))
    end
    assert.equal("1054880662928880172\n", key("--lock", "hello"))
    assert.equal("-5\n", key("--lock", "-5"))
    assert.equal("1,-2\n", key("--lock", "1,-2"))
    assert.equal("907060870\n", key("--lock", "hello", "--scheme", "pglocks"))
    assert.equal("907060870,7\n", key("--lock", "hello", "--scheme", "with_advisory_lock", "--prefix", "7"))
    assert.equal("none\n", key("--model", "pg_catalog.pg_class", "--mode", "ACCESS SHARE"))
  end)

  it("leaves the environment as it is otherwise, and the working directory", function()
    local dir = t.tempdir()
    local code, out = t.run("exec", "--lock", "42", "--", "sh", "-c", "pwd; echo $A; echo ${PGAPPNAME-none}",
      { cwd = dir, env = { A = "b" } })
    assert.equal(0, code)
    assert.equal(dir .. "\nb\nnone\n", out)
  end)

  it("--lock-timeout reaches the command's sessions through PGOPTIONS, with what was there", function()
    local function options(value, before)
      return select(2, t.run("exec", "--lock", "42", "--lock-timeout", value, "--", "sh", "-c",
        "echo $PGOPTIONS", { env = { PGOPTIONS = before or false } }))
    end
    assert.equal("-c lock_timeout=2000\n", options("2s"))
    assert.equal("-c lock_timeout=250\n", options("250ms"))
    assert.equal("-c lock_timeout=1500\n", options("1.5"))
    assert.equal("-c lock_timeout=0\n", options("false"))
    assert.equal("-c work_mem=1MB -c lock_timeout=2000\n", options("2s", "-c work_mem=1MB"))
    local bindir = require("tests.support.target").bindir()
    local code, out = t.run("exec", "--lock", "42", "--lock-timeout", "2s", "--", bindir .. "/psql", "-XAtqc",
      "show lock_timeout", t.conninfo())
    assert.equal(0, code)
    assert.equal("2s\n", out)
  end)

  it("--shared: sharers hold it together, others must wait", function()
    local first = start("sleep 60", "--shared")
    wait_held(KEY, first)
    assert.equal(0, (t.run("exec", "--lock", "42", "--shared", "-n", "--", "true")))
    assert.equal(75, (t.run("exec", "--lock", "42", "-n", "--", "true")))
    first:signal("TERM")
    assert.equal(143, first:wait())
  end)

  it("--scheme says how the name becomes a key", function()
    for scheme, key in pairs { with_advisory_lock = { 907060870, 0, 2 },
      hashtext = { 4294967295, 2424674345, 1 } } do
      local child = t.lockkeeper("exec", "--lock", "hello", "--scheme", scheme, "--", "sleep", "60")
      wait_held(key, child)
      child:signal("TERM")
      child:wait()
    end
  end)
end)

describe("exec where the lock is busy", function()
  local holder

  before_each(function()
    holder = t.connect()
    holder:query("select pg_advisory_lock(42)")
  end)
  after_each(function()
    holder:close()
  end)

  local function seconds(...)
    local begun = t.now()
    local code, out, err = t.run("exec", "--lock", "42", ...)
    assert.equal("", out)
    return code, t.now() - begun, err
  end

  it("-n, --timeout 0 and -w 0 do not wait: exit code 75", function()
    for _, options in ipairs { { "-n" }, { "--timeout", "0" }, { "-w", "0" }, { "--timeout=0ms" },
      { "-n", "--no-poll" } } do
      table.move({ "--", "echo", "ran" }, 1, 3, #options + 1, options)
      local code, took, err = seconds(table.unpack(options))
      assert.equal(75, code)
      assert.is_true(took < 0.5)
      assert.matches("held by pid " .. holder.pid, err, 1, true)
    end
  end)

  it("--timeout waits that long", function()
    for _, options in ipairs { { "--timeout", "0.3" }, { "-w", "300ms" }, { "-w0.3", "--no-poll" } } do
      table.move({ "--", "echo", "ran" }, 1, 3, #options + 1, options)
      local code, took = seconds(table.unpack(options))
      assert.equal(75, code)
      assert.is_true(took >= 0.3 and took < 1, took)
    end
  end)

  it("--busy-exit chooses the exit code", function()
    assert.equal(0, (seconds("-n", "--busy-exit", "0", "--", "echo", "ran")))
    assert.equal(7, (seconds("-w", "10ms", "--busy-exit=7", "--", "echo", "ran")))
    assert.equal(75, (t.run("exec", "--busy-exit", "7", "--lock", "43", "--", "sh", "-c", "exit 75")))
  end)

  it("runner.md 13: waits by trying again, never inside the server", function()
    local child = t.lockkeeper("exec", "--lock", "42", "--", "echo", "ran")
    t.wait_until(function()
      return t.observe("select 1 from pg_stat_activity where application_name = 'lockkeeper: 42' "
        .. "and state = 'idle' and query like '%pg_locks%'") == "1"
    end, "its first try")
    local until_then = t.now() + 0.8
    while t.now() < until_then do
      assert.equal("0", t.observe("select count(*) from pg_locks where locktype = 'advisory' "
        .. "and not granted"))
      -- Between two tries nothing is left that others would wait for.
      assert.equal("0", t.observe("select count(*) from pg_stat_activity where application_name = "
        .. "'lockkeeper: 42' and (backend_xmin is not null and state <> 'active' "
        .. "or backend_xid is not null)"))
    end
    assert.is_true(child:is_running())
    holder:close()
    assert.equal(0, child:wait(2))
    assert.equal("ran\n", child:stdout())
  end)

  it("runner.md 13: --no-poll waits in the server's queue", function()
    local child = t.lockkeeper("exec", "--lock", "42", "--no-poll", "--", "echo", "ran")
    t.wait_until(function()
      return t.observe("select count(*) from pg_locks where locktype = 'advisory' and not granted") == "1"
    end, "the wait")
    holder:close()
    assert.equal(0, child:wait(2))
    assert.equal("ran\n", child:stdout())
  end)

  it("runner.md 13: a poller that sees the holder change three times warns and names it", function()
    local child = t.lockkeeper("exec", "--lock", "42", "--", "echo", "ran")
    local waiters = { holder }
    for i = 2, 5 do
      -- In the server's queue, so that it has the lock before the poller tries again.
      waiters[i] = t.connect({ application_name = "waiter " .. i })
    end
    for i = 2, 5 do
      t.wait_until(function()
        return t.observe(("select 1 from pg_stat_activity where application_name = 'lockkeeper: 42' "
          .. "and query like '%%pg_locks%%' and query_start > to_timestamp(%f)"):format(
          tonumber(t.observe("select extract(epoch from clock_timestamp())")) - 0.001)) == "1"
          or child:stderr():find("warning", 1, true)
      end, "a try")
      waiters[i - 1]:query("select pg_advisory_unlock_all()")
      waiters[i]:query("select pg_advisory_lock(42)")
    end
    t.wait_until(function() return child:stderr():find("warning", 1, true) end, "the warning")
    assert.matches("lock 42 went to others 3 times while this command tried; %-%-no%-poll waits in the "
      .. "server's queue. It is held by pid %d+ %(postgres, waiter %d%)", child:stderr())
    for i = 2, 5 do
      waiters[i]:close()
    end
    assert.equal(0, child:wait(5))
    local _, warnings = child:stderr():gsub("warning", "")
    assert.equal(1, warnings)
  end)

  it("a signal ends the wait: 130, 143, 129", function()
    for _, options in ipairs { {}, { "--no-poll" } } do
      for name, code in pairs { INT = 130, TERM = 143, HUP = 129 } do
        local child = t.lockkeeper("exec", "--lock", "42", options[1] or "--shared", "--", "echo", "ran")
        t.wait_until(function()
          return t.observe("select 1 from pg_stat_activity where application_name = 'lockkeeper: 42' "
            .. "and query like '%advisory%'") == "1"
        end, "the wait")
        child:signal(name)
        assert.equal(code, child:wait(2))
        assert.equal("", child:stdout())
        t.wait_until(function()
          return t.observe("select 1 from pg_stat_activity where application_name = 'lockkeeper: 42'") == ""
        end, "the end of its session")
      end
    end
  end)

  it("says who holds it while it waits, on a terminal only", function()
    local child = t.spawn({ "script", "-qefc", ("'%s' exec --lock 42 -w 0.1 -- true"):format(t.binary()),
      "/dev/null", env = { DATABASE_URL = t.conninfo() } })
    assert.equal(75, child:wait())
    assert.matches("waiting for lock 42, held by pid " .. holder.pid, child:stdout(), 1, true)
    local _, _, err = seconds("-w", "10ms", "--", "true")
    assert.not_matches("waiting for", err)
  end)
end)

describe("exec --model", function()
  setup(function() t.psql([[create table "exec spec" (a int); create view exec_spec_view as select 1]]) end)
  teardown(function() t.psql([[drop table "exec spec"; drop view exec_spec_view]]) end)

  local function modes()
    return t.observe([[select string_agg(mode, ',') from pg_locks where relation = '"exec spec"'::regclass
      and granted]])
  end

  it("locks a table, ACCESS EXCLUSIVE unless --mode says otherwise, alone or with --lock", function()
    for _, case in ipairs { { "AccessExclusiveLock" },
      { "ShareRowExclusiveLock", "--mode", "share row exclusive" },
      { "AccessExclusiveLock", "--lock", "42" } } do
      local argv = { "exec", "--model", '"exec spec"', table.unpack(case, 2) }
      table.move({ "--", "sleep", "60" }, 1, 3, #argv + 1, argv)
      local child = t.lockkeeper(table.unpack(argv))
      t.wait_until(function() return modes() == case[1] or not child:is_running() end, "the table's lock")
      assert.equal(case[1], modes(), child:stderr())
      assert.equal(case[2] == "--lock" and 1 or 0, #holders(KEY))
      child:signal("TERM")
      assert.equal(143, child:wait())
      t.wait_until(function() return modes() == "" end, "the release")
    end
  end)

  it("busy: 75, says who holds it; waits by trying again; --no-poll in the server", function()
    local holder <close> = t.connect()
    holder:query('begin; lock table "exec spec" in share mode')
    local code, out, err = t.run("exec", "--model", '"exec spec"', "-n", "--", "echo", "ran")
    assert.equal(75, code)
    assert.equal("", out)
    assert.matches("held by pid " .. holder.pid, err, 1, true)
    assert.equal(7, (t.run("exec", "--model", '"exec spec"', "-w", "0.3", "--busy-exit", "7", "--", "true")))
    local child = t.lockkeeper("exec", "--model", '"exec spec"', "--", "echo", "ran")
    t.wait_until(function()
      return t.observe([[select 1 from pg_stat_activity where application_name like 'lockkeeper: "exec%'
        and state = 'idle' and query like '%pg_locks%']]) == "1"
    end, "its first try")
    local until_then = t.now() + 0.6
    while t.now() < until_then do
      assert.equal("0", t.observe([[select count(*) from pg_locks where not granted
        and relation = '"exec spec"'::regclass]]))
      assert.equal("0", t.observe([[select count(*) from pg_stat_activity
        where application_name like 'lockkeeper: "exec%' and state like 'idle in%'
          and state_change < clock_timestamp() - interval '100 ms']]))
    end
    local queued = t.lockkeeper("exec", "--model", '"exec spec"', "--no-poll", "--", "echo", "ran")
    t.wait_until(function()
      return t.observe([[select 1 from pg_locks where not granted
        and relation = '"exec spec"'::regclass]]) == "1"
    end, "the wait")
    holder:query("rollback")
    assert.equal(0, child:wait(5))
    assert.equal(0, queued:wait(5))
    assert.equal("ran\nran\n", child:stdout() .. queued:stdout())
  end)

  it("--timeout is for the lock and the table together", function()
    local holder <close> = t.connect()
    holder:query('select pg_advisory_lock(42); begin; lock table "exec spec"')
    local child = t.lockkeeper("exec", "--lock", "42", "--model", '"exec spec"', "--timeout", "0.8",
      "--", "true")
    local begun = t.now()
    t.sleep(0.4)
    holder:query("select pg_advisory_unlock(42)")
    assert.equal(75, child:wait())
    assert.is_true(t.now() - begun < 5)
    wait_free(KEY)
  end)

  it("an unknown table or mode is an error", function()
    local code, out, err = t.run("exec", "--model", "no_such_table", "--", "echo", "ran")
    assert.equal(1, code, err)
    assert.equal("", out)
    assert.matches('relation "no_such_table" does not exist', err, 1, true)
    code, out, err = t.run("exec", "--model", "pg_class", "--mode", "EXCLUSIV", "--", "echo", "ran")
    assert.equal(2, code, err)
    assert.equal("", out)
    assert.matches("EXCLUSIV", err, 1, true)
    code = t.run("exec", "--model", 'x"; drop table "exec spec', "--", "echo", "ran")
    assert.is_true(code == 1 or code == 2)
  end)

  it("is lost with its session: the command is stopped, exit code 125", function()
    local command = a_sleep()
    local child = t.lockkeeper("exec", "--model", '"exec spec"', "--", words(command))
    t.wait_until(function() return #running(command) == 1 end, "the command")
    terminate(math.tointeger(t.observe([[select pid from pg_locks
      where relation = '"exec spec"'::regclass]])))
    assert.equal(125, child:wait(5))
    assert.equal(0, #running(command))
  end)
end)

describe("exec and signals", function()
  it("passes signals on to the command, whose exit code counts", function()
    for _, name in ipairs { "INT", "TERM", "HUP", "QUIT", "USR1", "USR2" } do
      local child = start(("trap 'echo got %s; exit 9' %s; echo ready; while :; do sleep 0.02; done")
        :format(name, name))
      wait_for_output(child, "ready")
      child:signal(name)
      assert.equal(9, child:wait(5))
      assert.equal("ready\ngot " .. name .. "\n", child:stdout())
    end
  end)

  it("does not end before the command does, however often it is told", function()
    local file = t.tempdir() .. "/go"
    local child = start(("trap 'echo got it' TERM; echo ready; n=0; while [ $n -lt 3 ]; do sleep 0.02; "
      .. "[ -e %s.$n ] && n=$((n + 1)); done; exit 9"):format(file))
    wait_for_output(child, "ready")
    for n = 0, 2 do
      child:signal("TERM")
      t.wait_until(function()
        return select(2, child:stdout():gsub("got it", "")) == n + 1
      end, "the trap")
      assert.is_true(child:is_running())
      assert(io.open(file .. "." .. n, "w")):close()
    end
    assert.equal(9, child:wait(5))
  end)

  it("nohup: SIGHUP is neither noticed nor passed on", function()
    local child = t.spawn({ "nohup", t.binary(), "exec", "--lock", "42", "--", "sh", "-c",
      "echo ready; sleep 60", env = { DATABASE_URL = t.conninfo() } })
    wait_for_output(child, "ready")
    child:signal_group("HUP")
    t.sleep(0.1)
    assert.is_true(child:is_running())
    child:signal("TERM")
    assert.equal(143, child:wait(5))
  end)

  it("kill -9 of lockkeeper frees the lock at once, and the command and all it started are gone", function()
    local command, setsid, deep = a_sleep(), a_sleep(), a_sleep()
    local child = start(("setsid %s & (trap '' HUP; %s & wait) & %s"):format(setsid, deep, command))
    wait_held(KEY, child)
    for _, each in ipairs { command, setsid, deep } do
      t.wait_until(function() return #running(each) == 1 end, each)
    end
    local begun = t.now()
    child:signal("KILL")
    assert.equal(137, child:wait())
    wait_free(KEY)
    assert.is_true(t.now() - begun < 1)
    for _, each in ipairs { command, setsid, deep } do
      wait_gone(each, 2)
    end
  end)

  it("with SIGKILL the lock is not free before the command is gone", function()
    -- It ignores SIGTERM for some time: who has the lock next must not run beside it.
    local file = t.tempdir() .. "/alive"
    local child = start(("trap '' TERM; : >%s; for i in 1 2 3 4 5 6; do sleep 0.1; done; rm %s")
      :format(file, file))
    t.wait_until(function() return io.open(file) end, "the command")
    child:signal("KILL")
    child:wait()
    local code, out = t.run("exec", "--lock", "42", "--", "sh", "-c",
      ("[ -e %s ] && echo beside it; exit 0"):format(file))
    assert.equal(0, code)
    assert.equal("", out)
  end)
end)

describe("exec when the lock is lost (runner.md 17)", function()
  it("stops the command and exits 125", function()
    local command = a_sleep()
    local child = start(command)
    local pid = wait_held(KEY, child)
    t.wait_until(function() return #running(command) == 1 end, "the command")
    local begun = t.now()
    terminate(pid)
    assert.equal(125, child:wait(5))
    assert.is_true(t.now() - begun < 1)
    assert.equal(0, #running(command))
    assert.matches("the lock was lost", child:stderr(), 1, true)
  end)

  it("gives the command SIGTERM first, and whatever it exits with then: 125", function()
    local child = start("trap 'echo cleaned up; exit 0' TERM; echo ready; while :; do sleep 0.02; done")
    wait_for_output(child, "ready")
    terminate(wait_held(KEY, child))
    assert.equal(125, child:wait(5))
    assert.equal("ready\ncleaned up\n", child:stdout())
  end)

  it("kills a command that ignores SIGTERM after the grace of 5 s", function()
    local child = start("trap '' TERM; echo ready; while :; do sleep 0.1; done")
    wait_for_output(child, "ready")
    local begun = t.now()
    terminate(wait_held(KEY, child))
    assert.equal(125, child:wait(8))
    assert.is_true(t.now() - begun > 4.5 and t.now() - begun < 6.5)
  end)

  it("also when lockkeeper itself is stopped at that moment", function()
    local command = a_sleep()
    local child = start(command)
    local pid = wait_held(KEY, child)
    t.wait_until(function() return #running(command) == 1 end, "the command")
    child:signal("STOP")
    terminate(pid)
    wait_gone(command, 2)
    child:signal("CONT")
    assert.equal(125, child:wait(5))
  end)

  it("ends what the command started too: in a session of its own, a daemon, in the background", function()
    local sleep = { a_sleep(), a_sleep(), a_sleep() }
    local child = start(("setsid sh -c '%s & wait' & (setsid %s >/dev/null 2>&1 &) ; %s")
      :format(table.unpack(sleep)))
    local pid = wait_held(KEY, child)
    for _, each in ipairs(sleep) do
      t.wait_until(function() return #running(each) == 1 end, each)
    end
    terminate(pid)
    assert.equal(125, child:wait(5))
    for _, each in ipairs(sleep) do
      assert.equal(0, #running(each))
    end
  end)

  it("when the server is killed in the middle", function()
    local server = t.start_server()
    finally(function() server:stop() end)
    local command = a_sleep()
    local child = t.lockkeeper("exec", "--dsn", server:conninfo(), "--lock", "42", "--", words(command))
    t.wait_until(function() return #running(command) == 1 end, "the command")
    server:kill()
    assert.equal(125, child:wait(5))
    assert.equal(0, #running(command))
  end)

  it("ends descendants of a command that has ended by itself, and exits with its code", function()
    local left = a_sleep()
    local child = start(("setsid %s >/dev/null 2>&1 & exit 9"):format(left))
    assert.equal(9, child:wait(5))
    assert.equal(0, #running(left))
  end)
end)

describe("exec when nothing is heard of the server any more (runner.md 19)", function()
  it("stops the command within 20 s, while the server still holds the lock", function()
    local command = a_sleep()
    local child = start(command)
    local pid = wait_held(KEY, child)
    t.wait_until(function() return #running(command) == 1 end, "the command")
    local begun = t.now()
    -- A backend that is stopped keeps its socket open and says nothing: as a cut network, or a proxy
    -- that swallows, looks from here.
    os.execute("kill -STOP " .. pid)
    finally(function() os.execute("kill -CONT " .. pid .. " 2>/dev/null") end)
    assert.equal(125, child:wait(25))
    assert.is_true(t.now() - begun < 20)
    assert.equal(0, #running(command))
    assert.same({ pid }, holders(KEY))
    os.execute("kill -CONT " .. pid)
    t.wait_until(function() return #holders(KEY) == 0 end, "the backend's end")
  end)
end)

describe("exec --max-run", function()
  it("stops the command after that long: exit code 124", function()
    local command = a_sleep()
    local begun = t.now()
    local code, _, err = t.run("exec", "--lock", "42", "--max-run", "0.3", "--", words(command))
    assert.equal(124, code)
    assert.is_true(t.now() - begun >= 0.3 and t.now() - begun < 2)
    assert.matches("--max-run passed", err, 1, true)
    assert.equal(0, #running(command))
    assert.equal(0, #holders(KEY))
  end)

  it("does nothing to a command that ends in time", function()
    assert.equal(9, (t.run("exec", "--lock", "42", "--max-run", "20s", "--", "sh", "-c", "exit 9")))
    assert.equal(0, (t.run("exec", "--lock", "42", "--max-run", "false", "--", "true")))
  end)

  it("is counted from the command's start, not from the wait for the lock", function()
    local holder <close> = t.connect()
    holder:query("select pg_advisory_lock(42)")
    local child = start("exit 9", "--max-run", "0.2")
    t.sleep(0.4)
    holder:query("select pg_advisory_unlock(42)")
    assert.equal(9, child:wait(5))
  end)
end)

describe("exec --prioritize", function()
  local PSQL = require("tests.support.target").bindir() .. "/psql"
  local holder

  before_each(function()
    t.psql("create table prioritized (v int)")
    holder = t.connect({ application_name = "in the way" })
    holder:exec("begin; lock table prioritized in access exclusive mode")
  end)
  after_each(function()
    holder:close()
    t.psql("drop table prioritized")
  end)

  it("ends the sessions that block the command's own, which are known by PGAPPNAME", function()
    local child = t.lockkeeper("exec", "--lock", "hello", "--prioritize", "--", PSQL, "-Xqd", t.conninfo(),
      "-c", "insert into prioritized values (1)")
    assert.equal(0, child:wait())
    assert.equal("57P01", select(2, holder:ping()).sqlstate)
    assert.equal("1", t.observe("select count(*) from prioritized"))
    assert.matches("terminated pid %d+, which blocks pid %d+", child:stderr())
    assert.matches('application="in the way"', child:stderr(), 1, true)
  end)

  it("leaves others alone, those that wait for others than the command's sessions too", function()
    local stranger = t.lockkeeper("exec", "--lock", "other", "--", PSQL, "-Xqd", t.conninfo(), "-c",
      "insert into prioritized values (1)")
    local child = t.lockkeeper("exec", "--lock", "hello", "--prioritize", "--", "sleep", "1.6")
    assert.equal(0, child:wait())
    assert.equal("", child:stderr())
    assert.is_true(holder:ping())
    holder:exec("rollback")
    assert.equal(0, stranger:wait())
  end)

  it("never ends a session of the command's own that is in the way of another of them", function()
    holder:exec("rollback")
    local child = t.lockkeeper("exec", "--lock", "hello", "--prioritize", "--", "sh", "-c", [[
      exec 3>&1
      (echo 'begin; lock table prioritized in access exclusive mode;'; sleep 1.5; echo 'commit;') |
        "$0" -Xqd "$1" &
      until "$0" -XAtqd "$1" -c "select 1 from pg_locks where mode = 'AccessExclusiveLock' and granted
        and relation = 'prioritized'::regclass" | grep -q 1; do sleep 0.01; done
      "$0" -Xqd "$1" -c 'insert into prioritized values (1)' && wait $! && echo both]], PSQL, t.conninfo())
    assert.equal(0, child:wait())
    assert.equal("both\n", child:stdout())
    assert.matches("left alone: its own waits are protected", child:stderr(), 1, true)
  end)

  it("exports a PGAPPNAME of its own, after the one that was there, and only then", function()
    local function shown(name, ...)
      local argv = { "exec", "--lock", "hello", ... }
      table.move({ "--", "sh", "-c", [[printf %s "${PGAPPNAME-none}"]], { env = { PGAPPNAME = name } } },
        1, 5, #argv + 1, argv)
      local code, out = t.run(table.unpack(argv))
      assert.equal(0, code)
      return out
    end
    local first = shown(false, "--prioritize")
    assert.matches("^sh %(lockkeeper %d+%)$", first)
    assert.are_not.equal(first, shown(false, "--prioritize"))
    assert.matches("^nightly %(lockkeeper %d+%)$", shown("nightly", "--prioritize"))
    local long = shown(("é"):rep(100), "--prioritize")
    assert.equal(63, #long)
    assert.matches("^%?+ %(lockkeeper %d+%)$", long)
    assert.equal("none", shown(false))
    assert.equal("nightly", shown("nightly"))
  end)

  it("passes the command's exit code on, and gives the lock back", function()
    local code, out = t.run("exec", "--lock", "hello", "--prioritize", "--", "sh", "-c", "echo out; exit 7")
    assert.equal(7, code)
    assert.equal("out\n", out)
    assert.equal(127, (t.run("exec", "--lock", "hello", "--prioritize", "--", "no-such-command-here")))
    wait_free(HELLO)
  end)

  it("is an error before the command runs where a second session can't be had", function()
    t.psql("create role one_session login connection limit 1")
    local code, out, err = t.run("exec", "--lock", "hello", "--prioritize", "--dsn",
      t.conninfo({ user = "one_session" }), "--", "echo", "ran")
    t.psql("drop role one_session")
    assert.equal(69, code)
    assert.equal("", out)
    assert.matches("too many connections", err)
  end)

  it("ends the command when the lock is lost, all the same", function()
    local command = a_sleep()
    local child = t.lockkeeper("exec", "--lock", "hello", "--prioritize", "--", words(command))
    local pid = wait_held(HELLO, child)
    t.wait_until(function() return #running(command) == 1 end, "the command")
    terminate(pid)
    assert.equal(125, child:wait())
    wait_gone(command)
  end)

  it("--max-run and signals reach the command as without it", function()
    assert.equal(124, (t.run("exec", "--lock", "hello", "--prioritize", "--max-run", "300ms", "--",
      words(a_sleep()))))
    local child = t.lockkeeper("exec", "--lock", "hello", "--prioritize", "--", "sh", "-c",
      "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
    wait_for_output(child, "ready")
    child:signal("TERM")
    assert.equal(9, child:wait())
  end)
end)

describe("exec and the terminal", function()
  -- A terminal in which a shell runs; what is typed, and what has been shown.
  local function terminal(command, opts)
    local fifo = t.tempdir() .. "/keyboard"
    assert(os.execute("mkfifo " .. fifo))
    local file = t.tempfile(command, "command.sh")
    local child = t.spawn({ "sh", "-c", ('exec script -qefc "exec %s %s" /dev/null <"$0"'):format(
      opts and opts.shell or "sh", file), fifo, env = { DATABASE_URL = t.conninfo(), LK = t.binary() } })
    local keyboard = assert(io.open(fifo, "w"))
    return child, keyboard
  end

  local function shows(child, text)
    t.wait_until(function() return child:stdout():find(text, 1, true) or not child:is_running() end, text)
    assert.matches(text, child:stdout(), 1, true)
  end

  it("standard input and output are the command's", function()
    local code, out = t.run("exec", "--lock", "42", "--", "cat", { stdin = "in\nput" })
    assert.equal(0, code)
    assert.equal("in\nput", out)
    local child, keyboard = terminal([[
      exec "$LK" exec --lock 42 -- sh -c '[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo tty
      read x; echo "read $x"']])
    shows(child, "tty")
    keyboard:write("typed\n"):flush()
    assert.equal(0, child:wait(5))
    assert.matches("read typed", child:stdout(), 1, true)
    keyboard:close()
  end)

  it("Ctrl-C ends the command: exit code 130, it got the signal once", function()
    local child, keyboard = terminal('exec "$LK" exec --lock 42 -- sleep 60')
    wait_held(KEY, child)
    t.wait_until(function() return #running("sleep 60") >= 1 end, "the command")
    keyboard:write("\3"):flush()
    assert.equal(130, child:wait(5))
    keyboard:close()
    child, keyboard = terminal([[
      exec "$LK" exec --lock 42 -- sh -c 'n=0; trap "n=\$((n + 1)); echo got \$n" INT
      echo ready; while [ $n = 0 ]; do sleep 0.05; done; sleep 0.2; echo total $n; exit 9']])
    shows(child, "ready")
    keyboard:write("\3"):flush()
    assert.equal(9, child:wait(5))
    assert.matches("total 1", child:stdout(), 1, true)
    keyboard:close()
  end)

  it("Ctrl-Z stops both and fg goes on, the lock is held all the time", function()
    local child, keyboard = terminal([[
      set -m
      "$LK" exec --lock 42 -- sh -c 'echo ready; read x; echo "read $x"'
      echo "stopped with $?"
      fg
      echo "ended with $?"]], { shell = "bash" })
    shows(child, "ready")
    keyboard:write("\26"):flush()
    shows(child, "stopped with 148")
    assert.equal(1, #holders(KEY))
    keyboard:write("typed\n"):flush()
    shows(child, "ended with 0")
    assert.matches("read typed", child:stdout(), 1, true)
    child:wait(5)
    keyboard:close()
  end)
end)

describe("exec leaves nothing behind", function()
  it("no zombie and no process of its own", function()
    local child = start("for i in 1 2 3 4 5; do (sleep 0.01 &); done; echo ready; sleep 60")
    wait_for_output(child, "ready")
    t.sleep(0.1)
    local function look(pid)
      for _, below in ipairs(process.children(pid)) do
        assert.not_matches("State:%s+Z", t.read_file(("/proc/%d/status"):format(below)) or "")
        look(below)
      end
    end
    look(child:pid())
    child:signal("TERM")
    assert.equal(143, child:wait())
  end)

  it("no descriptor of its own reaches the command", function()
    local plain = t.spawn({ "sh", "-c", "ls /proc/$$/fd" })
    plain:wait()
    local code, out = t.run("exec", "--lock", "42", "--", "sh", "-c", "ls /proc/$$/fd")
    assert.equal(0, code)
    assert.equal(plain:stdout(), out)
  end)

  it("runs many at once, one after another", function()
    local log = t.tempdir() .. "/log"
    local children = {}
    for i = 1, 8 do
      children[i] = start(("echo begin >>%s; sleep 0.03; echo end >>%s"):format(log, log), "--no-poll")
    end
    for _, child in ipairs(children) do
      assert.equal(0, child:wait(20))
    end
    assert.equal(("begin\nend\n"):rep(8), t.read_file(log))
  end)
end)

describe("exec through a pooler", function()
  it("that shares sessions is refused, before the command runs", function()
    local bouncer = t.start_pgbouncer()
    finally(function() bouncer:stop() end)
    local code, out, err = t.run("exec", "--dsn", bouncer:conninfo(), "--lock", "42", "--", "echo", "ran")
    assert.equal(2, code, err)
    assert.equal("", out)
    assert.matches("pooler", err)
  end)
end)
