-- `lockkeeper run` with jobs: which run, what is seen of them, their limits (cli.md; runner.md 12 to 21).

local t = require "tests.support"

local LIBRARY = 'local lock = require "lockkeeper"\n'

-- Run the text of a job file to its end.
local function run(text, ...)
  return t.run("run", t.tempfile(LIBRARY .. text, "jobs.lua"), ...)
end

-- With options of `run`.
local function run_with(words, text)
  words[#words + 1] = t.tempfile(LIBRARY .. text, "jobs.lua")
  return t.run("run", table.unpack(words))
end

local function ends(code, text)
  local got, out, err = run(text)
  assert.equal(code, got, out:sub(-1000) .. err:sub(-3000))
  return out, err
end

describe("lockkeeper run, of a script that defines jobs,", function()
  it("runs the script, then each job once, in the order of definition", function()
    local code, out, err = run([[
      lock.job("b", { run = function() print("b", arg[1]) end })
      lock.job("a", { run = function() print("a") end })
      print("script", ...)
    ]], "x")
    assert.equal(0, code, err)
    assert.equal("script\tx\nb\tx\na\n", out)
  end)

  it("runs none where the script fails", function()
    local out, err = ends(1, [[
      lock.job("a", { run = function() print("a") end })
      error("no")
    ]])
    assert.equal("", out)
    assert.matches("jobs.lua:3: no", err, 1, true)
  end)

  it("ends with the code of the first that did not succeed; the others run all the same", function()
    local out = ends(124, [[
      lock.job("slow", { policy = { max_run = "100ms" }, run = function() lock.sleep("1h") end })
      lock.job("bad", { run = function() error("no") end })
      lock.job("good", { run = function() print("good") end })
    ]])
    assert.equal("good\n", out)
  end)

  it("has an exit code for each end: 1 failed, 75 busy, 69 no connection", function()
    ends(1, 'lock.job("a", { run = function() error("no") end })')
    ends(1, 'lock.job("a", { command = { "sh", "-c", "exit 5" } })')
    ends(1, 'lock.job("a", { sql = "select 1/0" })')
    ends(0, 'lock.job("a", { sql = "select 1" })')
    local holder <close> = t.connect()
    local held <close> = holder:advisory("job:a") -- luacheck: ignore held
    local _, err = ends(75, 'lock.job("a", { run = function() end })')
    assert.matches("reason=busy", err, 1, true)
    ends(69, [[
      lock.database("worker-nowhere", "host=/nonexistent")
      lock.job("b", { using = "worker-nowhere", run = function() end })
    ]])
  end)

  it("runs one of them with --job, names them with --list", function()
    local text = [[
      lock.job("one", { run = function() print("1") end })
      lock.job("two", { enabled = false, after = "one", run = function() print("2", job) end })
    ]]
    local code, out, err = run_with({ "--job", "two" }, text)
    assert.equal(0, code, err)
    assert.equal("2\tnil\n", out)
    code, out = run_with({ "--list" }, text)
    assert.equal(0, code)
    assert.equal("one\ntwo\n", out)
    code, out, err = run_with({ "--job", "tow" }, text)
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches('there is no job "tow"; did you mean "two"?', err, 1, true)
    code, out, err = run_with({ "--job", "x" }, "print(1)")
    assert.equal(2, code)
    assert.equal("1\n", out)
    assert.matches("defines no jobs", err, 1, true)
  end)

  it("leaves out one that is disabled, and says so", function()
    local out, err = ends(0, 'lock.job("a", { enabled = false, run = function() print("a") end })')
    assert.equal("", out)
    assert.matches("it is disabled", err, 1, true)
  end)

  it("runs an `after` job only if its parent ended so in this call, with the parent's slot", function()
    local out = ends(1, [[
      local slot
      lock.job("on-success", { after = "good", run = function(job)
        print("on-success", job.parent.name, job.parent.state, job.parent.result.n, job.slot == slot)
      end })
      lock.job("on-failure", { after = { "good", on = "failed" }, run = function() print("never") end })
      lock.job("good", { run = function(job) slot = job.slot; print("good"); return { n = 7 } end })
      lock.job("bad", { run = function() print("bad"); error("no", 0) end })
      lock.job("after-bad", { after = "bad", run = function() print("never") end })
      lock.job("third", { after = { "after-bad", on = "finished" }, run = function() print("never") end })
      lock.job("whatever", { after = { "bad", on = "finished" }, run = function(job)
        print("whatever", job.parent.state, job.parent.error.message)
      end })
      lock.job("elsewhere", { after = "not-here", run = function() print("never") end })
    ]])
    assert.equal("good\non-success\tgood\tsucceeded\t7\ttrue\nbad\nwhatever\tfailed\tno\n", out)
  end)

  it("does not load with a faulty definition: 2, the place and the reason", function()
    local _, err = ends(2, '\nlock.job("a", { rnu = print })')
    assert.matches("jobs.lua:3", err, 1, true)
    assert.matches("rnu", err, 1, true)
  end)
end)

describe("what a job prints", function()
  local JOB = [[
    lock.job("talk", { run = function(job)
      print("printed")
      io.stderr:write("to stderr\n")
      job:sh { "sh", "-c", "echo by a command; echo its error >&2" }
      job.db:exec("do $$ begin raise notice 'from the server'; end $$")
      job:log("warning", "logged", { x = 1 })
    end })]]

  it("goes to stdout, and line by line into the log with the job's name", function()
    local out, err = ends(0, JOB)
    assert.equal("printed\nby a command\n", out)
    for _, text in ipairs { "msg=printed from=stdout job=talk", 'msg="to stderr" from=stderr job=talk',
      'msg="by a command" from=stdout job=talk', 'msg="its error" from=stderr job=talk',
      'msg="from the server" from=server severity=NOTICE job=talk',
      "level=warning msg=logged x=1 job=talk" } do
      assert.matches(text, err, 1, true)
    end
    assert.not_matches("\nto stderr", err, 1, true)
  end)

  it("goes into the log alone where both are the same file", function()
    local file = t.tempfile(LIBRARY .. JOB, "jobs.lua")
    local child = t.spawn { "sh", "-c", 'exec "$@" 2>&1', "sh", t.binary(), "run", file,
      env = { DATABASE_URL = t.conninfo() } }
    assert.equal(0, child:wait())
    local out = child:stdout()
    assert.matches("msg=printed", out, 1, true)
    assert.is_nil(("\n" .. out):find("\nprinted\n", 1, true))
  end)

  it("is as it is on a terminal, without the log's lines", function()
    local file = t.tempfile(LIBRARY .. JOB, "jobs.lua")
    local child = t.spawn { "script", "-qec", t.binary() .. " run " .. file, "/dev/null",
      env = { DATABASE_URL = t.conninfo() } }
    assert.equal(0, child:wait())
    local out = child:stdout():gsub("\r", "")
    assert.matches("^printed\nto stderr\nby a command\nits error\n", out)
    assert.matches("lockkeeper: talk: succeeded", out, 1, true)
    assert.not_matches("msg=printed", out, 1, true)
  end)

  it("is followed by how it ended: what it returned, or the error with its detail and hint", function()
    local jobs = LIBRARY .. [[
      lock.job("counts", { run = function() return { rows = 4 } end })
      lock.job("long", { run = function() return ("é"):rep(150) end })
      lock.job("too-long", { run = function() return ("x"):rep(65535) end })
      lock.job("fails", { run = function(job)
        job.db:exec("do $$ begin raise exception 'bad' using detail = 'it was 3', hint = 'make it 2'; end $$")
      end })
      lock.job("table", { run = function() error({ message = "none of ours", detail = "more" }) end })
      lock.job("unlocks", { run = function(job)
        job.db:exec("select pg_advisory_unlock_all()")
        return { rows = 5 }
      end })]]
    local file = t.tempfile(jobs, "jobs.lua")
    local _, _, err = t.run("run", file)
    local long = ("é"):rep(99) .. "…"
    for job, words in pairs {
      counts = 'msg="job succeeded" [^\n]*result="{\\"rows\\":4}"',
      long = 'msg="job succeeded" [^\n]*result="\\"' .. long .. '"',
      ["too%-long"] = 'msg="job failed" [^\n]*too long to be kept: 65537 bytes[^\n]* detail="\\"xxxx',
      fails = 'msg="job failed" [^\n]*error=bad kind=sql sqlstate=P0001 detail="it was 3" hint="make it 2"',
      table = 'msg="job failed" [^\n]*error="none of ours" detail=more',
      unlocks = 'msg="job failed" [^\n]*kind=lock_lost [^\n]*result="{\\"rows\\":5}"',
    } do
      assert.matches(words .. "[^\n]* job=" .. job, err)
    end
    local child = t.spawn { "script", "-qec", t.binary() .. " run " .. file, "/dev/null",
      env = { DATABASE_URL = t.conninfo() } }
    child:wait()
    local out = child:stdout():gsub("\r", "")
    for _, words in ipairs {
      'counts: succeeded %([^\n]*%), it returned {"rows":4}\n',
      'long: succeeded %([^\n]*%), it returned "' .. long .. "\n",
      'lockkeeper: what the job returned is too long [^\n]*\n  detail: "xxxx',
      "SQLSTATE P0001%)\n  detail: it was 3\n  hint: make it 2\n",
      "lockkeeper: none of ours\n  detail: more\n",
      'unlocks: failed %([^\n]*%), it returned {"rows":5}\n',
    } do
      assert.matches(words, out)
    end
  end)

  it("is progress, too: at most one line a second off a terminal, a bar on one", function()
    local job = [[
      lock.job("far", { run = function(job)
        for i = 1, 300 do job:progress(i, 300, "steps"); lock.sleep("2ms") end
      end })]]
    local _, err = ends(0, job)
    local _, lines = err:gsub("msg=progress", "")
    assert.is_true(lines >= 2 and lines <= 6, err)
    assert.matches("msg=progress done=300 total=300 percent=100 label=steps job=far", err, 1, true)
    local file = t.tempfile(LIBRARY .. job, "jobs.lua")
    local command = t.binary() .. " run " .. file
    local child = t.spawn { "script", "-qec", command, "/dev/null", env = { DATABASE_URL = t.conninfo() } }
    child:wait()
    assert.matches("\rfar %[#+ +%] +%d+%% %d+/300", child:stdout())
    child = t.spawn { "script", "-qec", command, "/dev/null",
      env = { DATABASE_URL = t.conninfo(), NO_COLOR = "1" } }
    child:wait()
    assert.not_matches("\rfar [", child:stdout(), 1, true)
    assert.matches("msg=progress", child:stdout(), 1, true)
  end)

  it("is a bar that is full once all is done, however quickly that came", function()
    local file = t.tempfile(LIBRARY .. [[
      lock.job("quick", { run = function(job)
        job:progress(3, 4)
        job:progress(4, 4)
        lock.sleep("50ms")
      end })]], "jobs.lua")
    local child = t.spawn { "script", "-qec", t.binary() .. " run " .. file, "/dev/null",
      env = { DATABASE_URL = t.conninfo() } }
    child:wait()
    assert.matches("\rquick %[#+%] 100%% 4/4\27%[K.*\r\27%[Klockkeeper: quick: succeeded", child:stdout())
  end)

  it("may be endless, without a line end, or none", function()
    local out, err = ends(0, [[
      lock.job("much", { run = function(job)
        for i = 1, 20000 do print(i) end
        job:sh { "sh", "-c", "head -c 3000000 /dev/zero" }
        io.write("no end")
      end })]])
    assert.is_true(#out > 3000000)
    assert.is_truthy(err:find("msg=20000 from=stdout job=much", 1, true))
    assert.is_truthy(err:find('msg="no end" from=stdout job=much', 1, true))
  end)
end)

describe("runner.md 21: max_run", function()
  for name, code in pairs {
    ["a loop"] = "while true do end",
    ["a loop that swallows errors"] = "while true do pcall(function() while true do end end) end",
    ["a statement"] = 'job.db:query("select pg_sleep(600)")',
    ["a command"] = 'job:sh { "sleep", "600" }',
    ["a sleep"] = 'lock.sleep("1h")',
  } do
    it("ends " .. name .. ": timed_out, 124", function()
      local began = t.now()
      local _, err = ends(124, ([[
        lock.job("long", { policy = { max_run = "200ms", grace = "200ms" }, run = function(job) %s end })
      ]]):format(code))
      assert.is_true(t.now() - began < 20)
      assert.matches('msg="job timed out"', err, 1, true)
      assert.matches("kind=timed_out", err, 1, true)
      assert.same({}, t.holders_of(require("lockkeeper").key("job:long")))
    end)
  end

  it("is what time_left counts down to", function()
    local out = ends(0, [[
      lock.job("a", { policy = { max_run = "1h" }, run = function(job)
        print(job:time_left() > 3590 and job:time_left() <= 3600)
      end })]])
    assert.equal("true\n", out)
  end)
end)

describe("runner.md 21: memory_limit", function()
  it("fails a run that allocates without end, with that reason; nothing else is hurt", function()
    local out, err = ends(1, [[
      lock.job("greedy", { policy = { memory_limit = "16MB" }, run = function()
        local all = {}
        for i = 1, 1e9 do all[i] = ("x"):rep(1000) .. i end
      end })
      lock.job("next", { run = function() print(#("x"):rep(32 * 1024 * 1024)) end })
    ]])
    assert.matches("reason=memory_limit", err, 1, true)
    assert.matches("the job has reached its memory_limit (16 MB) at ", err, 1, true)
    assert.matches("jobs.lua:4", err, 1, true)
    assert.equal("33554432\n", out)
  end)

  it("fails one that asks for gigabytes at once", function()
    local _, err = ends(1, [[
      lock.job("greedy", { policy = { memory_limit = "64MB" },
        run = function() return ("x"):rep(1 << 30) end })
    ]])
    assert.matches("reason=memory_limit", err, 1, true)
  end)

  it("bounds what a command's output comes to in the job", function()
    local _, err = ends(1, [[
      lock.job("greedy", { policy = { memory_limit = "16MB" }, run = function(job)
        job:sh { "sh", "-c", "head -c 60000000 /dev/zero | tr '\\0' x" }
      end })
    ]])
    assert.is_truthy(err:find("reason=memory_limit", 1, true))
  end)

  it("does not fail one that frees what it takes", function()
    ends(0, [[
      lock.job("frugal", { policy = { memory_limit = "16MB" }, run = function()
        for i = 1, 100 do local _ = ("x"):rep(1024 * 1024) end
      end })
    ]])
  end)
end)

describe("a job that", function()
  it("forks and leaves children has none when its guards are given back (runner.md 20)", function()
    local pids = t.tempfile("")
    ends(0, ([[
      lock.job("forks", { run = function(job)
        job:sh { "sh", "-c", "setsid sleep 600 & echo $! >> %s" }
        os.execute("sleep 601 & echo $! >> %s")
        os.execute("setsid sh -c 'sleep 602 & echo $! >> %s' &")
        while true do
          local n = 0
          for _ in io.lines("%s") do n = n + 1 end
          if n == 3 then break end
          lock.sleep("10ms")
        end
      end })]]):format(pids, pids, pids, pids))
    local count = 0
    for pid in t.read_file(pids):gmatch("%d+") do
      count = count + 1
      assert.is_false(t.is_alive(math.tointeger(pid)))
    end
    assert.equal(3, count)
  end)

  it("ignores SIGTERM is killed after grace", function()
    local began = t.now()
    ends(124, [[
      lock.job("deaf", { policy = { max_run = "200ms", grace = "300ms" },
        command = { "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done" } })]])
    assert.is_true(t.now() - began < 20)
  end)

  it("calls os.exit ends the process, with its locks", function()
    ends(7, 'lock.job("exits", { run = function() os.exit(7) end })')
    assert.same({}, t.holders_of(require("lockkeeper").key("job:exits")))
  end)

  it("loses its session is lost: 125 (runner.md 17)", function()
    local _, err = ends(125, [[
      lock.job("gone", { run = function(job)
        pcall(job.db.exec, job.db, "select pg_terminate_backend(pg_backend_pid())")
      end })]])
    assert.matches('msg="job lost"', err, 1, true)
    assert.matches("kind=lock_lost", err, 1, true)
  end)

  it("is interrupted is cancelled, gives its guards back, and no other is begun", function()
    local file = t.tempfile(LIBRARY .. [[
      lock.job("one", { run = function() print("begun"); io.stdout:flush(); lock.sleep("1h") end,
        on_failure = function() print("on_failure") end })
      lock.job("two", { run = function() print("two") end })
    ]])
    local child = t.lockkeeper("run", file)
    t.wait_until(function() return child:stdout():find("begun", 1, true) end, "the job")
    child:signal("INT")
    assert.equal(130, child:wait())
    assert.equal("begun\n", child:stdout())
    assert.matches('msg="job cancelled"', child:stderr(), 1, true)
  end)

  it("holds locks on sessions beside its own gives those back, too", function()
    ends(0, [[
      lock.database("other", os.getenv("DATABASE_URL"))
      lock.job("holds", { run = function() lock.advisory("worker-spec", { using = "other" }) end })
      lock.job("needs", { guards = { lock.guard.advisory("worker-spec", { timeout = 0 }) },
        run = function() end })
    ]])
  end)

  it("uses tasks has sessions by name in each", function()
    local out = ends(0, [[
      lock.job("tasks", { run = function(job)
        local pids = { [job.db.pid] = true }
        lock.tasks(function(spawn)
          for _ = 1, 3 do
            spawn(function() pids[lock.db.pid] = true; lock.sleep("50ms") end)
          end
        end)
        local n = 0
        for _ in pairs(pids) do n = n + 1 end
        print(n)
      end })]])
    assert.equal("4\n", out)
  end)
end)

describe("prioritize, as a policy,", function()
  it("ends what blocks the job's statements", function()
    t.psql("create table worker_spec (x int)")
    finally(function() t.psql("drop table worker_spec") end)
    local holder <close> = t.connect()
    holder:exec("begin; lock table worker_spec")
    ends(0, [[
      lock.job("first", { policy = { prioritize = { interval = "100ms" } }, run = function(job)
        job.db:exec("insert into worker_spec values (1)")
      end })]])
  end)
end)
