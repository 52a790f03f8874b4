-- lua-api.md, "Jobs, policies and audits": job:run, and what a job's function gets.

local core = require "lockkeeper.core"
local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local usage = expect.usage

-- Every job of the process has a name of its own.
local count = 0

local function define(fn, more)
  count = count + 1
  local definition = {}
  for key, value in pairs(more or {}) do
    definition[key] = value
  end
  if not definition.sql and not definition.command then
    definition.run = fn
  end
  return lock.job("job-spec-" .. count, definition)
end

setup(function() core.log_configure("error") end)
teardown(function() core.log_configure("info") end)

-- Run fn as a job on a session of the test's own.
local function run(fn, more, options)
  local db <close> = t.connect()
  local all = { db = db, output = "quiet" }
  for key, value in pairs(options or {}) do
    all[key] = value
  end
  return define(fn, more):run(all)
end

-- It succeeds.
local function succeeds(fn, more, options)
  local outcome = run(fn, more, options)
  assert.equal("succeeded", outcome.state, outcome.error and tostring(outcome.error))
  return outcome
end

local function fails(text, fn, more, options)
  local outcome = run(fn, more, options)
  assert.equal("failed", outcome.state)
  assert.matches(text, outcome.error.message, 1, true)
  return outcome
end

describe("job:run", function()
  it("runs the job once and tells how it ended", function()
    local calls = 0
    local outcome = succeeds(function() calls = calls + 1 end)
    assert.equal(1, calls)
    assert.equal(0, outcome.exit_code)
    assert.equal(1, outcome.attempt)
    assert.equal(1, outcome.attempts)
    assert.is_nil(outcome.error)
    assert.is_nil(outcome.reason)
    assert.is_nil(outcome.result)
    assert.is_true(outcome.ran >= 0 and outcome.waited >= 0)
  end)

  it("gives it name, slot, attempt and parent", function()
    local before = os.time()
    succeeds(function(job)
      assert(job.name:find("^job%-spec%-%d+$"))
      assert(job.slot >= before and job.slot <= os.time() + 1)
      assert(job.attempt == 1 and job.run_id == nil and job.parent == nil)
    end)
    local parent = { name = "p", state = "failed" }
    succeeds(function(job)
      assert(job.slot == 1700000000 and job.attempt == 3 and job.parent.state == "failed")
    end, nil, { slot = 1700000000, attempt = 3, parent = parent })
  end)

  it("opens a session where none is given, and closes it", function()
    local pid, name
    local job = define(function(job)
      pid = job.db.pid
      name = job.db:value("select current_setting('application_name')")
    end, { using = "job_spec" })
    lock.database("job_spec", t.conninfo { application_name = "mine" })
    assert.equal("succeeded", job:run({ output = "quiet" }).state)
    assert.equal("lockkeeper: " .. job.name, name)
    t.wait_until(function()
      return t.observe("select count(*) from pg_stat_activity where pid = " .. pid) == "0"
    end, "the session's end")
  end)

  it("tells errors of the job in its outcome, with the place and the script's lines", function()
    local outcome = fails("boom", function() error("boom") end)
    assert.matches("^.*job_spec.lua:%d+: boom$", outcome.error.message)
    assert.matches("job_spec.lua:%d+", outcome.error.traceback)
    assert.equal(1, outcome.exit_code)
    outcome = fails("division by zero", function(job) job.db:query("select 1/0") end)
    assert.equal("22012", outcome.error.sqlstate)
    assert.equal("sql", outcome.error.kind)
  end)

  it("takes any error, also one that is no text", function()
    fails("nil", function() error(nil) end)
    fails("42", function() error(42) end)
    fails("an error whose __tostring fails", function()
      error(setmetatable({}, { __tostring = function() error("again") end }))
    end)
    local own = { message = "mine", code = 7 }
    assert.equal(7, fails("mine", function() error(own) end).error.code)
  end)

  it("refuses wrong options, and a second job at once", function()
    local job = define(function() end)
    usage('unknown option "slots"; did you mean "slot"?', job.run, job, { slots = 1 })
    usage("slot must be a number of seconds", job.run, job, { slot = "now" })
    usage("slot must be a number of seconds", job.run, job, { slot = 0 / 0 })
    usage("db must be a session", job.run, job, { db = "x" })
    usage("a job was expected", job.run)
    fails("jobs run one after another", function() job:run() end)
    assert.equal("succeeded", succeeds(function() end).state)
  end)

  it("leaves a session that it was given as it was", function()
    local db <close> = t.connect()
    db:exec("set lock_timeout = '7s'; set application_name = 'mine'; set work_mem = '1MB'")
    local job = define(function(job)
      assert(job.db:value("show lock_timeout") == "250ms")
      assert(job.db:value("show work_mem") == "2MB")
    end, { policy = { lock_timeout = "250ms", session = { work_mem = "2MB" } } })
    local outcome = job:run { db = db, output = "quiet" }
    assert.equal("succeeded", outcome.state, tostring(outcome.error))
    assert.equal("7s", db:value("show lock_timeout"))
    assert.equal("mine", db:value("show application_name"))
    assert.equal("1MB", db:value("show work_mem"))
    assert.is_true((db:ping()))
  end)
end)

describe("job.db", function()
  it("is lock.db and \"default\" in the job, and the name in using", function()
    lock.database("job_spec", t.conninfo())
    local outer = lock.db
    local outcome = succeeds(function(job)
      local held <close> = lock.advisory("job-spec", { timeout = 0 })
      assert(lock.db == job.db)
      assert(#t.holders_of(held.key) == 1 and t.holders_of(held.key)[1] == job.db.pid)
      local other <close> = lock.advisory("job-spec-2", { timeout = 0, using = "job_spec" })
      assert(t.holders_of(other.key)[1] == job.db.pid)
    end, { using = "job_spec" })
    assert.is_true(lock.db == outer)
    assert.equal("succeeded", outcome.state)
  end)

  it("can be neither closed nor reconnected inside the job", function()
    succeeds(function(job)
      usage("can't be closed inside the job", job.db.close, job.db)
      usage("can't be connected again", job.db.reconnect, job.db)
      assert(job.db:value("select 1") == 1)
    end)
    fails("can't be closed inside the job", function(job)
      local _ <close> = job.db
    end)
  end)

  it("has the policy's timeouts and settings", function()
    local seen = {}
    succeeds(function(job)
      for _, name in ipairs { "lock_timeout", "statement_timeout", "search_path", "app.tenant" } do
        seen[name] = job.db:value("select current_setting($1)", name)
      end
    end, { policy = { lock_timeout = "1500ms", statement_timeout = "1m",
      session = { search_path = "pg_catalog", ["app.tenant"] = "it's 7" } } })
    assert.same({ lock_timeout = "1500ms", statement_timeout = "1min", search_path = "pg_catalog",
      ["app.tenant"] = "it's 7" }, seen)
  end)

  it("fails the run where the server refuses a setting", function()
    local outcome = fails("invalid value for parameter", function() end,
      { policy = { session = { work_mem = "lots" } } })
    assert.equal("22023", outcome.error.sqlstate)
  end)

  it("keeps no transaction open that the job has left: it is rolled back, and the run has failed", function()
    local db <close> = t.connect()
    local outcome = fails("a transaction open: it was rolled back", function(job)
      job.db:exec("begin")
      job.db:exec("create table job_spec_left (x int)")
    end, nil, { db = db })
    assert.equal(1, outcome.exit_code)
    assert.is_false(db.in_transaction)
    assert.is_nil(db:value("select to_regclass('job_spec_left')"))
  end)

  it("is rolled back where the job throws while it holds a transaction, failed or not", function()
    local db <close> = t.connect()
    fails("thrown", function(job)
      job.db:exec("begin")
      error("thrown")
    end, nil, { db = db })
    assert.is_false(db.in_transaction)
    fails("division by zero", function(job)
      job.db:begin()
      job.db:query("select 1/0")
    end, { guards = { lock.guard.advisory("job-spec") } }, { db = db })
    assert.is_false(db.in_transaction)
    assert.equal(0, #t.holders_of(lock.key("job-spec")))
  end)
end)

describe("what a job returns", function()
  it("is kept as JSON keeps it", function()
    local outcome = succeeds(function()
      return { rows = 3, list = { 1, "two", lock.null }, big = 2 ^ 53 | 0 }
    end)
    assert.equal(3, outcome.result.rows)
    assert.equal(9007199254740992, outcome.result.big)
    assert.is_true(outcome.result.list[3] == lock.null)
    assert.equal('{"big":9007199254740992,"list":[1,"two",null],"rows":3}', outcome.result_json)
    assert.is_false(succeeds(function() return false end).result)
    assert.equal("", succeeds(function() return "" end).result)
  end)

  it("fails the run where JSON can't hold it, and says what", function()
    fails("can't be kept: ", function() return { rows = { { at = print } } } end)
    fails("rows[1].at", function() return { rows = { { at = print } } } end)
    fails("can't be kept", function() return 0 / 0 end)
    fails("can't be kept", function() return "\255" end)
    local loop = {}
    loop.self = loop
    fails("can't be kept", function() return loop end)
    fails("can't be kept", function(job) return job.db end)
  end)

  it("fails the run where it is longer than 64 KiB", function()
    assert.equal(65534, #succeeds(function() return ("x"):rep(65534) end).result)
    fails("65537 bytes of JSON, at most 65536", function() return ("x"):rep(65535) end)
  end)

  it("rolls the guards' transaction back where it can't be kept", function()
    t.psql("create table job_spec_result (x int)")
    finally(function() t.psql("drop table job_spec_result") end)
    fails("can't be kept", function(job)
      job.db:exec("insert into job_spec_result values (1)")
      return print
    end, { guards = { lock.guard.model("job_spec_result", { mode = "ROW EXCLUSIVE" }) } })
    assert.equal("0", t.psql("select count(*) from job_spec_result"))
  end)
end)

describe("sql and command jobs", function()
  it("run a text on the job's session; the result is the number of rows", function()
    t.psql("create table job_spec_sql (x int)")
    finally(function() t.psql("drop table job_spec_sql") end)
    assert.equal(3, succeeds(nil, { sql = "insert into job_spec_sql select generate_series(1, 3)" }).result)
    fails("does not exist", nil, { sql = "vacuum no_such_table" })
    succeeds(nil, { sql = "vacuum job_spec_sql" })
  end)

  it("run a command, whose output is the job's and whose exit code counts", function()
    local outcome = succeeds(nil, { command = { "sh", "-c", "echo out; echo err >&2" } })
    assert.is_nil(outcome.result)
    assert.matches("out\n", outcome.output, 1, true)
    assert.matches("err\n", outcome.output, 1, true)
    outcome = fails('"sh" has ended with code 7', nil, { command = { "sh", "-c", "exit 7" } })
    assert.equal(1, outcome.exit_code)
    fails('"sh" has ended with code 143', nil, { command = { "sh", "-c", "kill $$" } })
    fails("/no/such/command", nil, { command = { "/no/such/command" } })
  end)
end)

describe("job:sh", function()
  it("returns code, stdout and stderr, which are the job's output too", function()
    local outcome = succeeds(function(job)
      local code, out, err = job:sh { "sh", "-c", "printf a; printf b >&2; exit 3" }
      assert(code == 3 and out == "a" and err == "b")
    end)
    assert.equal(2, #outcome.output)
  end)

  it("points the command at the job's database, by PG* alone", function()
    succeeds(function(job)
      local code, out, err = job:sh { "psql", "-XAtc",
        "select current_database(), current_user, current_setting('application_name')",
        env = { PGSERVICE = false } }
      assert(code == 0, err)
      assert(out == "postgres|postgres|lockkeeper: " .. job.name .. "\n", out)
    end)
  end)

  it("tells it job, slot, attempt and the key of the job's own lock", function()
    succeeds(function(job)
      local _, out = job:sh { "sh", "-c",
        "echo $LOCKKEEPER_JOB $LOCKKEEPER_SLOT $LOCKKEEPER_ATTEMPT $LOCKKEEPER_KEY "
          .. "${LOCKKEEPER_FENCE-none}" }
      assert(out == ("%s 1700000000 2 %d none\n"):format(job.name, lock.key("job:" .. job.name)), out)
    end, nil, { slot = 1700000000, attempt = 2 })
  end)

  it("hands a password over in a file of mode 0600, which is gone afterwards", function()
    local db <close> = t.connect { user = "lk_pw", password = t.password }
    local path, mode, text, rest
    local outcome = succeeds(function(job)
      local _, out = job:sh { "sh", "-c",
        'echo "$PGPASSFILE"; stat -c %a "$PGPASSFILE"; cat "$PGPASSFILE"; env | grep -c PGPASSWORD' }
      path, mode, text, rest = out:match("^(%S+)\n(%d+)\n(.*)\n(%d+)\n$")
      local code, user, err = job:sh { "psql", "-XAtc", "select current_user" }
      assert(code == 0 and user == "lk_pw\n", err)
    end, nil, { db = db })
    assert.equal("600", mode)
    assert.equal("0", rest)
    assert.matches(t.password, text, 1, true)
    assert.is_nil(io.open(path))
    assert.is_nil(io.open(path:match("^(.*)/") .. "/" .. path:match("[^/]+$")))
    assert.equal("succeeded", outcome.state)
  end)

  it("streams to a function or a file, and takes stdin from one", function()
    local file = t.tempfile("in the file\n")
    local copy = t.tempfile("")
    succeeds(function(job)
      local pieces = {}
      local code, out, err = job:sh { "sh", "-c", "seq 3; echo e >&2",
        stdout = function(text) pieces[#pieces + 1] = text end }
      assert(code == 0 and out == nil and err == "e\n")
      assert(table.concat(pieces) == "1\n2\n3\n")
      local from <close> = io.open(file)
      local to <close> = io.open(copy, "w")
      code, out = job:sh { "cat", stdin = from, stdout = to }
      assert(code == 0 and out == nil)
    end)
    assert.equal("in the file\n", t.read_file(copy))
  end)

  it("stops the command where the function that gets its output raises an error", function()
    local began = t.now()
    fails("enough", function(job)
      job:sh { "sh", "-c", "echo x; sleep 60", stdout = function() error("enough") end }
    end)
    assert.is_true(t.now() - began < 20)
  end)

  it("refuses a wrong stdout and a closed file", function()
    succeeds(function(job)
      usage("stdout must be a function of a text or an open file, not 1", job.sh, job, { "true", stdout = 1 })
      local file = io.tmpfile()
      file:close()
      usage("stdout is a closed file", job.sh, job, { "true", stdout = file })
      usage("unknown option", job.sh, job, { "true", stduot = print })
      usage("env is a table", job.sh, job, { "true", env = 1 })
      usage("a list of the command", job.sh, job, "true")
    end)
  end)
end)

describe("a job's output", function()
  it("is what it prints and writes, its commands' and the server's notices, in order", function()
    local outcome = succeeds(function(job)
      print("one", 2, nil)
      io.write("three ", 4, "\n")
      io.stdout:write("five\n"):write("six\n")
      io.stderr:write("seven\n")
      job.db:exec("do $$ begin raise warning 'eight'; end $$")
      job:sh { "echo", "nine" }
    end)
    assert.equal("one\t2\tnil\nthree 4\nfive\nsix\nseven\nWARNING:  eight\nnine\n", outcome.output)
  end)

  it("keeps its last 64 KiB, from the begin of a line on", function()
    local outcome = succeeds(function()
      for i = 1, 20000 do
        print("line", i)
      end
    end)
    assert.is_true(#outcome.output <= 65536 and #outcome.output > 65000)
    assert.matches("^line\t%d+\n", outcome.output)
    assert.matches("\nline\t20000\n$", outcome.output)
  end)

  it("keeps the end of a line that is longer than all that is kept", function()
    local outcome = succeeds(function() io.write(("ä"):rep(100000), "end") end)
    assert.is_true(#outcome.output <= 65536)
    assert.is_not_nil(utf8.len(outcome.output))
    assert.matches("äend$", outcome.output)
  end)

  it("leaves print and io.write as they were", function()
    local before = { print, io.write, io.stdout.write }
    fails("x", function()
      error("x")
    end)
    assert.is_true(print == before[1] and io.write == before[2] and io.stdout.write == before[3])
  end)

  it("raises for what can't be written, as Lua does", function()
    succeeds(function()
      local ok, err = pcall(io.write, "a", {})
      assert(not ok and err:find("bad argument #2", 1, true), err)
    end)
  end)
end)

describe("job:time_left", function()
  it("is math.huge without max_run and window, else the seconds that are left", function()
    succeeds(function(job) assert(job:time_left() == math.huge) end)
    succeeds(function(job)
      local left = job:time_left()
      assert(left > 50 and left <= 60, left)
    end, { policy = { max_run = "1m" } })
  end)
end)

describe("a job's window", function()
  -- From now on so many hours, in a zone that is UTC all year.
  local function window(from, to)
    local now = os.time()
    return os.date("!%H:%M-", now + from * 3600) .. os.date("!%H:%M", now + to * 3600)
  end

  it("is where its runs begin: none outside, which is skipped with that reason", function()
    local ran = false
    local outcome = run(function() ran = true end, { window = window(2, 3) })
    assert.equal("skipped", outcome.state)
    assert.equal("window", outcome.reason)
    assert.equal(0, outcome.exit_code)
    assert.is_false(ran)
    succeeds(function() ran = true end, { window = window(-1, 1) })
    assert.is_true(ran)
  end)

  it("is of the job's zone", function()
    -- Etc/GMT+5 is five hours behind.
    local zone = { timezone = "Etc/GMT+5", window = window(-6, -4) }
    assert.equal("succeeded", run(function() end, zone).state)
    zone = { timezone = "Etc/GMT+5", window = window(-1, 1) }
    assert.equal("skipped", run(function() end, zone).state)
  end)

  it("is what time_left counts down to, unless max_run comes first", function()
    succeeds(function(job)
      local left = job:time_left()
      assert(left > 3000 and left <= 3660, left)
    end, { window = window(-1, 1) })
    succeeds(function(job) assert(job:time_left() <= 60) end,
      { window = window(-1, 1), policy = { max_run = "1m" } })
  end)
end)

describe("job:log and job:progress", function()
  it("refuse what is no level, no number, no label", function()
    succeeds(function(job)
      usage("the level must be", job.log, job, "loud", "text")
      usage("what is done must be a number", job.progress, job, "1")
      usage("what is done must be a number", job.progress, job, 0 / 0)
      usage("the total must be a number", job.progress, job, 1, "2")
      usage("the label must be a text", job.progress, job, 1, 2, 3)
      usage("a job was expected", job.progress, 1, 2)
      usage("a job was expected", job.sh, { "true" })
    end)
  end)
end)

describe("on_failure", function()
  it("is called once, with the job and the error, after the last attempt", function()
    local calls = {}
    local outcome = run(function(job) error("attempt " .. job.attempt, 0) end, {
      on_failure = function(job, err)
        calls[#calls + 1] = ("%s: %s, %s"):format(job.attempt, err.message, "text: " .. err)
        assert(job.db:value("select 1") == 1)
      end,
      policy = { retry = { attempts = 3, delay = 0 } },
    })
    assert.equal("failed", outcome.state)
    assert.same({ "3: attempt 3, text: attempt 3" }, calls)
    assert.equal(3, outcome.attempts)
  end)

  it("does not change how the run ended, whatever it does", function()
    local outcome = fails("first", function() error("first") end,
      { on_failure = function() error("second") end })
    assert.matches("first", outcome.error.message)
  end)

  it("is not called where the job succeeds or is skipped", function()
    local called = false
    local function on_failure() called = true end
    succeeds(function() end, { on_failure = on_failure })
    local holder <close> = t.connect()
    holder:advisory("job-spec")
    local outcome = run(function() end, { on_failure = on_failure,
      guards = { lock.guard.advisory("job-spec", { timeout = 0, on_busy = "skip" }) } })
    assert.equal("skipped", outcome.state)
    assert.is_false(called)
  end)
end)

describe("retry", function()
  it("tries again until an attempt succeeds; each has a number", function()
    local seen = {}
    local outcome = run(function(job)
      seen[#seen + 1] = job.attempt
      assert(job.attempt == 3, "not yet")
    end, { policy = { retry = { attempts = 5, delay = 0 } } })
    assert.equal("succeeded", outcome.state)
    assert.same({ 1, 2, 3 }, seen)
    assert.equal(3, outcome.attempt)
  end)

  it("waits delay, times factor", function()
    local at = {}
    run(function() at[#at + 1] = t.now(); error("x") end,
      { policy = { retry = { attempts = 3, delay = "50ms", factor = 3 } } })
    assert.is_true(at[2] - at[1] >= 0.05 and at[3] - at[2] >= 0.15)
  end)

  it("tries again only after the ends that `on` names: states, and kinds of errors", function()
    local function attempts(on, fn)
      return run(fn, { policy = { retry = { attempts = 2, delay = 0, on = on } } }).attempts
    end
    local function divides(job) job.db:query("select 1/0") end
    assert.equal(2, attempts("failed", divides))
    assert.equal(2, attempts({ "sql", "deadlock" }, divides))
    assert.equal(1, attempts({ "deadlock" }, divides))
    assert.equal(1, attempts({ "timed_out", "lost" }, divides))
  end)
end)
