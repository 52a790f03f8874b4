-- `lockkeeper jobs`, `trigger`, `pause`, `resume` and `cancel` (cli.md; runner.md 10 and 11): jobs as the
-- database knows them, from any host. The test itself is the supervisor, but for the last scenes.

local core = require "lockkeeper.core"
local lock = require "lockkeeper"
local t = require "tests.support"

local DATABASE = "jobs_cli_spec"
local SOON = 15

local db, runner

local function conninfo(opts)
  local all = { dbname = DATABASE }
  for name, value in pairs(opts or {}) do
    all[name] = value
  end
  return t.conninfo(all)
end

local function with_database(...)
  local words = { ... }
  local opts = type(words[#words]) == "table" and table.remove(words) or {}
  opts.env = opts.env or {}
  opts.env.DATABASE_URL = opts.env.DATABASE_URL or conninfo()
  opts.env.TZ = opts.env.TZ or "UTC"
  words[#words + 1] = opts
  return table.unpack(words)
end

local function run(...)
  return t.run(with_database(...))
end

-- What it prints where it must succeed.
local function shown(...)
  local code, out, err = run(...)
  assert.equal(0, code, err)
  return out, err
end

local function decoded(...)
  local out = shown(...)
  return lock.json.decode(out)
end

local function jobs_by_name(...)
  local found = {}
  for _, job in ipairs(decoded("jobs", "--format", "json", ...)) do
    found[job.job] = job
  end
  return found
end

local function named(name, more)
  local job = { name = name, file = "/srv/jobs.lua", line = 1, enabled = true, tags = {}, timezone = "UTC",
    settings = {} }
  for key, value in pairs(more or {}) do
    job[key] = value
  end
  return job
end

-- As a supervisor that serves /srv/jobs.lua records them: a name, or a name and more of its description.
local function record(list)
  local jobs = {}
  for i, job in ipairs(list) do
    jobs[i] = { name = job.name, file = job.file, enabled = job.enabled, definition = lock.json.encode(job),
      schedule = job.schedule and lock.json.encode(job.schedule), overlap = job.settings.overlap,
      after = job.after and job.after.job, retry_attempts = job.settings.attempts }
  end
  core.store_record_jobs(db, jobs, { "/srv/jobs.lua" })
end

-- Take the only run that waits, and begin it.
local function begin(job)
  local taken = core.store_take(db, runner, { job }, 1)
  assert.equal(1, #taken)
  local state = core.store_step(db, { run = taken[1].id, runner = runner.uuid, guards = {}, conflicts = {},
    grace = 1, waited = 0.25, fenced = true })
  assert.equal("running", state)
  return taken[1].id
end

local function finish(id, state, more)
  local row = { run = id, runner = runner.uuid, state = state, ran = 1.5, waited = 0.25 }
  for key, value in pairs(more or {}) do
    row[key] = value
  end
  assert.is_true((core.store_end(db, row)))
end

-- A run of the job that ended so.
local function ran(job, state, more)
  core.store_trigger(db, job)
  local id = begin(job)
  finish(id, state, more)
  return id
end

local function awaited_run(job, state)
  return t.wait_until(function()
    local list = core.store_history(db, { job = job, states = { state } })
    return list[1]
  end, SOON, job .. " to be " .. state)
end

setup(function()
  t.psql("drop database if exists " .. DATABASE)
  t.psql("create database " .. DATABASE)
end)

teardown(function()
  t.psql(("drop database %s with (force)"):format(DATABASE))
end)

before_each(function()
  core.log_configure("error")
  db = t.connect({ conninfo = conninfo() })
  db:exec("drop schema if exists lockkeeper cascade")
  core.schema_migrate(db)
  runner = core.store_register(db, { host = "db1", version = "1", zones = "", workers = 4 })
end)

after_each(function()
  db:close()
  core.log_configure("info")
end)

describe("without the schema", function()
  before_each(function() db:exec("drop schema lockkeeper cascade") end)

  it("every command names lockkeeper init", function()
    for _, words in ipairs { { "jobs" }, { "trigger", "j" }, { "trigger", "j", "--wait" }, { "pause", "j" },
      { "resume", "j" }, { "cancel", "j" }, { "cancel", "#1" }, { "history" }, { "history", "1" } } do
      local code, out, err = run(table.unpack(words))
      assert.equal(1, code, words[1])
      assert.equal("", out)
      assert.matches("this database has no schema lockkeeper", err, 1, true)
      assert.matches("lockkeeper init makes it", err, 1, true)
    end
  end)

  it("jobs PATH shows what the files say", function()
    local path = t.tempfile([[
      local lock = require "lockkeeper"
      lock.job("nightly", { schedule = "30 2 * * *", run = print })]], "jobs.lua")
    local out, err = shown("jobs", path)
    assert.matches("nightly +30 2 %* %* %* UTC +%d%d%-%d%d 02:30:00 +never served", out)
    assert.matches("lockkeeper init makes the tables", err, 1, true)
  end)
end)

it("a newer schema is refused by name of its version", function()
  db:exec("insert into lockkeeper.schema_version (version) values (999)")
  for _, command in ipairs { "jobs", "history" } do
    local code, _, err = run(command)
    assert.equal(1, code)
    assert.matches("the schema lockkeeper has version 999", err, 1, true)
  end
end)

it("without a server the exit code is 69", function()
  for _, words in ipairs { { "jobs" }, { "trigger", "j" }, { "cancel", "j" }, { "history" } } do
    words[#words + 1] = { env = { DATABASE_URL = "host=/nowhere" } }
    assert.equal(69, (run(table.unpack(words))))
  end
end)

describe("jobs", function()
  it("says how jobs become known where none is", function()
    local out = shown("jobs")
    assert.matches("^database jobs_cli_spec on .+: 0 jobs; 1 supervisor\n", out)
    assert.matches("lockkeeper serve PATH", out, 1, true)
    assert.equal("[]\n", (shown("jobs", "--format", "json")))
  end)

  it("shows schedule, next slot, last slot and result by name, in the columns of cli.md", function()
    record { named("etl:staging", { schedule = { cron = "30 2 * * *" }, timezone = "Europe/Paris" }),
      named("etl:mart", { after = { job = "etl:staging", on = "succeeded" } }), named("by-hand") }
    ran("etl:staging", "succeeded", { ran = 602 })
    local out = shown("jobs")
    assert.matches("\nJOB +SCHEDULE +NEXT +LAST +RESULT +RAN\n", out)
    assert.matches("\netl:staging  30 2 %* %* %* Europe/Paris  %d%d%-%d%d 0[01]:30:00  "
      .. "%d%d%-%d%d %d%d:%d%d:%d%d  succeeded  10m02s\n", out)
    assert.matches("\netl:mart +after etl:staging +%d%d%-%d%d %d%d:%d%d:%d%d +due\n", out)
    assert.is_true(out:find("by-hand", 1, true) < out:find("etl:mart", 1, true))
  end)

  it("as JSON has instants in UTC, durations in seconds, and null for what there is not", function()
    record { named("j", { schedule = { cron = "0 0 1 1 *" }, description = "ours" }), named("by-hand") }
    local id = ran("j", "failed", { error = "no", error_kind = "sql" })
    local found = jobs_by_name()
    local j = found.j
    assert.matches("^%d%d%d%d%-01%-01T00:00:00Z$", j.next)
    assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.?%d*Z$", j.last)
    assert.same({ "0 0 1 1 * UTC", "failed", 1.5, false, false, true, id, "ours" },
      { j.schedule, j.result, j.ran, j.paused, j.gone, j.enabled, j.last_run, j.description })
    assert.same({ lock.null, lock.null, lock.null, lock.null, lock.null },
      { found["by-hand"].next, found["by-hand"].last, found["by-hand"].result, found["by-hand"].ran,
        found["by-hand"].schedule })
  end)

  it("every: the next slot is the one that lockkeeper next tells", function()
    record { named("j", { schedule = { every = 86400 } }) }
    local path = t.tempfile('require("lockkeeper").job("j", { every = "1d", run = print })', "j.lua")
    local due = decoded("next", "j", path, "-n", "1", "--format", "json")[1]
    assert.equal(due, jobs_by_name().j.next)
  end)

  it('every … from = "finish": from the last end, and not known while a run is at work', function()
    record { named("j", { schedule = { every = 600, from = "finish" } }) }
    local first_next = jobs_by_name().j.next
    core.store_trigger(db, "j")
    assert.equal(lock.null, jobs_by_name().j.next)
    finish(begin("j"), "succeeded")
    assert.is_true(jobs_by_name().j.next >= first_next)
  end)

  it("marks a paused job, one that is in no file any more, one that is not enabled, one that runs", function()
    record { named("a", { schedule = { every = 60 } }), named("b", { schedule = { every = 60 } }), named("c"),
      named("d", { schedule = { every = 60 }, enabled = false }) }
    core.store_pause(db, "a", true)
    core.store_trigger(db, "c")
    begin("c")
    record { named("a", { schedule = { every = 60 } }), named("c"),
      named("d", { schedule = { every = 60 }, enabled = false }) }
    local out = shown("jobs")
    assert.matches("4 jobs, 1 paused; 1 supervisor", out, 1, true)
    assert.matches("\na +every 1m +paused\n", out)
    assert.matches("\nb +every 1m +in no file\n", out)
    assert.matches("\nc +%d%d%-%d%d %d%d:%d%d:%d%d +running +%d", out)
    assert.matches("\nd +every 1m, %(not enabled%)\n", out)
    local found = jobs_by_name()
    assert.is_true(found.a.paused and found.b.gone)
    assert.is_string(found.a.next)
    assert.same({ lock.null, lock.null, 1 }, { found.b.next, found.d.next, found.c.active })
  end)

  it("of a schedule that this host can't read shows the rest", function()
    record { named("j", { schedule = { cron = "0 1 * * *" }, timezone = "Mars/Olympus" }) }
    assert.matches("\nj +0 1 %* %* %* Mars/Olympus\n", shown("jobs"))
  end)

  it("is not cut to a width without a terminal, and shows nothing that could do harm", function()
    record { named("j" .. ("x"):rep(300)), named("evil\27[31m\n\u{202e}") }
    local out = shown("jobs")
    assert.matches("j" .. ("x"):rep(300), out, 1, true)
    assert.is_nil(out:find("\27", 1, true))
  end)

  describe("PATH...", function()
    local folder, path

    before_each(function()
      folder = t.tempdir()
      path = folder .. "/jobs.lua"
    end)

    local function write(text)
      local file <close> = assert(io.open(path, "w"))
      file:write('local lock = require "lockkeeper"\n', text)
    end

    it("shows what the files say with what the database knows, also jobs that it does not know", function()
      record { named("known", { file = path, schedule = { every = 60 } }), named("elsewhere"),
        named("dropped", { file = path }) }
      core.store_pause(db, "known", true)
      write [[
        lock.job("new", { schedule = "@daily", run = print })
        lock.job("known", { every = "5m", run = print })]]
      local out = shown("jobs", folder)
      assert.matches("\ndropped +in no file\n", out)
      assert.matches("\nknown +every 5m +paused\n", out)
      assert.matches("\nnew +@daily UTC +%d%d%-%d%d 00:00:00 +never served\n", out)
      assert.not_matches("elsewhere", out)
      local found = jobs_by_name(folder)
      assert.same({ false, true, true }, { found.new.known, found.known.known, found.dropped.gone })
    end)

    it("names the faults of the files, shows the rest, and ends with 2", function()
      write 'lock.job("bad", { schedule = "@daly", run = print })\n lock.job("good", { run = print })'
      record { named("was", { file = path }) }
      local code, out, err = run("jobs", path)
      assert.equal(2, code)
      assert.matches("jobs.lua:2", err, 1, true)
      assert.matches("\ngood ", out)
      assert.matches("\nwas *\n", out) -- a broken file may define it
    end)
  end)

  it("needs no right but to read", function()
    record { named("j") }
    t.psql("drop role if exists jobs_cli_reader")
    t.psql("create role jobs_cli_reader login")
    finally(function()
      db:exec("drop owned by jobs_cli_reader; drop role jobs_cli_reader")
    end)
    local env = { env = { DATABASE_URL = conninfo { user = "jobs_cli_reader" } } }
    local code, _, err = run("jobs", env)
    assert.equal(1, code)
    assert.matches("GRANT USAGE ON SCHEMA lockkeeper TO jobs_cli_reader", err, 1, true)
    db:exec("grant usage on schema lockkeeper to jobs_cli_reader;"
      .. "grant select on all tables in schema lockkeeper to jobs_cli_reader")
    assert.matches("\nj", shown("jobs", env))
    assert.matches("No run matches", shown("history", env))
    code, _, err = run("pause", "j", env)
    assert.equal(1, code)
    assert.matches("permission denied", err)
  end)
end)

describe("pause and resume", function()
  it("pause and resume a job, also twice", function()
    record { named("j") }
    assert.equal("j is paused\n", (shown("pause", "j")))
    assert.equal("j was paused already\n", (shown("pause", "j")))
    assert.is_true(jobs_by_name().j.paused)
    assert.equal("j is resumed\n", (shown("resume", "j")))
    assert.equal("j was not paused\n", (shown("resume", "j")))
    assert.is_false(jobs_by_name().j.paused)
  end)

  it("an unknown job is one of the words: exit code 2, and the nearest is named", function()
    record { named("nightly") }
    for _, command in ipairs { "pause", "resume", "trigger", "cancel", "history" } do
      local code, out, err = run(command, "nightli")
      assert.equal(2, code, command)
      assert.equal("", out)
      assert.matches('"nightli"; did you mean "nightly"?', err, 1, true)
    end
  end)

  it("the words are checked", function()
    for _, command in ipairs { "pause", "resume", "trigger", "cancel" } do
      assert.equal(2, (run(command)))
      assert.equal(2, (run(command, "a", "b")))
    end
    assert.equal(2, (run("cancel", "#x")))
    assert.equal(2, (run("cancel", "#0")))
    assert.equal(2, (run("cancel", "")))
    assert.equal(2, (run("completion", "tcsh")))
  end)
end)

describe("trigger", function()
  it("makes a run that is due now, and tells its number (runner.md 7, 11)", function()
    record { named("j") }
    local out, err = shown("trigger", "j")
    local row = core.store_history(db, { job = "j" })[1]
    assert.matches(("^run %d of j is due since "):format(row.id), out)
    assert.equal("", err)
    assert.same({ "trigger", "due" }, { row.origin, row.state })
  end)

  it("says that it waits where no supervisor serves", function()
    record { named("j") }
    core.store_leave(db, runner)
    local _, err = shown("trigger", "j")
    assert.matches("no supervisor serves jobs from this database now", err, 1, true)
  end)

  it("of a paused job is skipped, exit code 1; of one at work 75", function()
    record { named("j") }
    core.store_pause(db, "j", true)
    local code, out, err = run("trigger", "j", "--wait")
    assert.equal(1, code)
    assert.matches("is skipped: the job is paused\n$", out)
    assert.matches("lockkeeper resume j", err, 1, true)
    core.store_pause(db, "j", false)
    core.store_trigger(db, "j")
    code, out = run("trigger", "j")
    assert.equal(75, code)
    assert.matches("is skipped: the job is at work\n$", out)
  end)

  -- Trigger and wait, while the test runs the job so.
  local function waited(job, play)
    local child = t.lockkeeper(with_database("trigger", job, "--wait"))
    awaited_run(job, "due")
    play()
    local code = child:wait(SOON)
    return code, child:stdout(), child:stderr()
  end

  it("--wait ends when the run does, as lockkeeper run would", function()
    record { named("j") }
    for _, case in ipairs {
      { 0, "succeeded" },
      { 1, "failed", { error = "no", error_kind = "sql", sqlstate = "22012" } },
      { 75, "failed", { error = "no", error_kind = "not_acquired" } },
      { 75, "failed", { error = "no", error_kind = "lock_timeout", sqlstate = "55P03" } },
      { 69, "failed", { error = "no", error_kind = "connection" } },
      { 125, "failed", { error = "no", error_kind = "lock_lost" } },
      { 124, "timed_out" }, { 125, "lost" }, { 1, "cancelled" },
      { 75, "skipped", { reason = "busy" } }, { 0, "skipped", { reason = "window" } },
    } do
      local expected, state, more = table.unpack(case)
      local code, out, err = waited("j", function() finish(begin("j"), state, more) end)
      assert.equal(expected, code, state .. err)
      assert.matches("^run %d+ of j: " .. state:gsub("_", " "), out)
      if more and more.error then
        assert.matches("no\n", err, 1, true)
      end
    end
  end)

  it("--wait waits for the runs that try it again", function()
    record { named("j", { settings = { attempts = 2 } }) }
    local code, out = waited("j", function()
      finish(begin("j"), "failed", { error = "no", retry_after = 0.1 })
      awaited_run("j", "due")
      t.wait_until(function() return #core.store_waiting(db) == 1 end, SOON, "the retry's time")
      finish(begin("j"), "succeeded")
    end)
    assert.equal(0, code, out)
    assert.matches("^run %d+ of j: succeeded, ran 1.5s, attempt 2\n$", out)
  end)

  it("Ctrl-C ends the waiting, leaves the run alone, and says so", function()
    record { named("j") }
    local child = t.lockkeeper(with_database("trigger", "j", "--wait"))
    local row = awaited_run("j", "due")
    begin("j")
    child:signal_group("INT")
    assert.equal(130, child:wait(SOON))
    assert.matches(("run %d of j is not waited for any more, and goes on"):format(row.id), child:stderr(), 1,
      true)
    assert.equal("running", core.store_run(db, row.id).state)
  end)
end)

describe("cancel", function()
  it("cancels what waits at once, and tells the host of what runs (runner.md 11)", function()
    record { named("j", { settings = { overlap = "allow" } }) }
    core.store_trigger(db, "j")
    local id = begin("j")
    core.store_trigger(db, "j")
    local out = shown("cancel", "j")
    assert.matches(("run %d of j is to end: its host has been told\n"):format(id), out, 1, true)
    assert.matches(("run %d of j is cancelled\n"):format(id + 1), out, 1, true)
    assert.equal(id, core.store_requests(db, runner)[1].id)
  end)

  it("'#RUN' is one run", function()
    record { named("j", { settings = { overlap = "allow" } }) }
    local first, second = core.store_trigger(db, "j"), core.store_trigger(db, "j")
    assert.equal(("run %d of j is cancelled\n"):format(first.id), (shown("cancel", "#" .. first.id, "-y")))
    assert.equal("due", core.store_run(db, second.id).state)
  end)

  it("ends with 3 where nothing was there to be cancelled", function()
    record { named("j") }
    ran("j", "succeeded")
    for _, word in ipairs { "j", "#1", "#999999" } do
      assert.equal(3, (run("cancel", word)))
    end
  end)

  it("on a terminal lists them and asks first", function()
    record { named("j") }
    core.store_trigger(db, "j")
    local keyboard = t.tempdir() .. "/keyboard"
    assert(os.execute("mkfifo " .. keyboard))
    for _, case in ipairs { { "n", 3 }, { "y", 0 } } do
      local answer, expected = case[1], case[2]
      local child = t.spawn { "sh", "-c",
        [[exec script -qefc '"$LK" cancel j; echo "code $?"' /dev/null <"$0"]], keyboard,
        env = { DATABASE_URL = conninfo(), LK = t.binary() } }
      local typed <close> = assert(io.open(keyboard, "w"))
      t.wait_until(function() return child:stdout():find("Cancel it? [y/N]", 1, true) end, SOON, "a question")
      typed:write(answer, "\n")
      typed:flush()
      t.wait_until(function() return child:stdout():find("code " .. expected, 1, true) end, SOON, "its end")
      assert.matches("run %d+ of j: due", child:stdout())
      typed:close()
      child:wait(SOON)
      assert.equal(answer == "n" and "due" or "cancelled", core.store_history(db, { job = "j" })[1].state)
    end
  end)
end)

describe("beside a supervisor that runs", function()
  local child

  before_each(function()
    core.store_leave(db, runner)
    db:close()
    db = t.connect({ conninfo = conninfo() })
    child = t.lockkeeper(with_database("serve", t.tempfile([[
      local lock = require "lockkeeper"
      lock.job("hello", { run = function() print("hello") return { n = 1 } end })
      lock.job("no", { policy = { retry = { attempts = 2, delay = "100ms" } },
        run = function(job) print("trying") job.db:query("select 1/0") end })
      lock.job("long", { run = function(job) job.db:query("select pg_sleep(600)") end })]], "jobs.lua")))
    t.wait_until(function() return child:stderr():find("msg=serving", 1, true) end, SOON, "the supervisor")
  end)

  after_each(function()
    child:signal("TERM")
    child:wait(30)
  end)

  it("trigger --wait, cancel from another process, and history go together", function()
    local out = shown("trigger", "hello", "--wait")
    local id = out:match("^run (%d+) of hello: succeeded, ran ")
    assert.matches("output:\nhello\n", shown("history", id), 1, true)

    local code, text, err = run("trigger", "no", "--wait")
    assert.equal(1, code)
    assert.matches("failed, ran .*attempt 2, 22012 sql: division by zero", text)
    assert.matches("lockkeeper history %d+ shows what it printed", err)

    local long = t.lockkeeper(with_database("trigger", "long", "--wait"))
    awaited_run("long", "running")
    shown("cancel", "long")
    assert.equal(1, long:wait(SOON))
    assert.matches("run %d+ of long: cancelled", long:stdout())
  end)
end)
