-- `lockkeeper history` (cli.md; runner.md 26): past runs and those that go on, one of them with its output.

local core = require "lockkeeper.core"
local field = require "lockkeeper.report.field"
local lock = require "lockkeeper"
local t = require "tests.support"
local width = require "lockkeeper.report.width"

local DATABASE = "history_spec"

local db, runner

local function run(...)
  local words = { "history", ... }
  local opts = type(words[#words]) == "table" and table.remove(words) or {}
  opts.env = { DATABASE_URL = t.conninfo { dbname = DATABASE }, TZ = "UTC" }
  words[#words + 1] = opts
  return t.run(table.unpack(words))
end

local function shown(...)
  local code, out, err = run(...)
  assert.equal(0, code, err)
  assert.equal("", err)
  return out
end

local function decoded(...)
  local words = { ... }
  words[#words + 1] = "--format"
  words[#words + 1] = "json"
  return lock.json.decode(shown(table.unpack(words)))
end

local function runs_of(...)
  local ids = {}
  for i, row in ipairs(decoded(...)) do
    ids[i] = row.run
  end
  return ids
end

local function record(...)
  local jobs = {}
  for i, name in ipairs { ... } do
    jobs[i] = { name = name, file = "/jobs.lua", overlap = "allow",
      definition = lock.json.encode { name = name, enabled = true, timezone = "UTC", tags = {} } }
  end
  core.store_record_jobs(db, jobs, { "/jobs.lua" })
end

local function begin(job)
  local id = core.store_trigger(db, job).id
  core.store_take(db, runner, { job }, 1)
  core.store_step(db, { run = id, runner = runner.uuid, guards = {}, conflicts = {}, grace = 1, waited = 0.5,
    fenced = true })
  return id
end

local function ran(job, state, more)
  local id = begin(job)
  local row = { run = id, runner = runner.uuid, state = state or "succeeded", ran = 5, waited = 0.5 }
  for key, value in pairs(more or {}) do
    row[key] = value
  end
  core.store_end(db, row)
  return id
end

setup(function()
  core.log_configure("error")
  t.psql("drop database if exists " .. DATABASE)
  t.psql("create database " .. DATABASE)
end)

teardown(function()
  t.psql(("drop database %s with (force)"):format(DATABASE))
  core.log_configure("info")
end)

before_each(function()
  db = t.connect({ conninfo = t.conninfo { dbname = DATABASE } })
  db:exec("drop schema if exists lockkeeper cascade")
  core.schema_migrate(db)
  runner = core.store_register(db, { host = "db1", version = "1", zones = "", workers = 4 })
  record("a", "b")
end)

after_each(function() db:close() end)

describe("history", function()
  it("lists runs, the newest first, in the columns of cli.md", function()
    ran("a")
    ran("b", "failed", { error = "canceling statement", error_kind = "lock_timeout", sqlstate = "55P03" })
    local out = shown()
    assert.matches("^database history_spec on .+: 2 runs, 1 failed\n"
      .. "RUN  JOB  ORIGIN   SLOT            WAIT   RAN  STATE      WHY\n"
      .. "  2  b    trigger  %d%d%-%d%d %d%d:%d%d:%d%d  0.5s  5.0s  failed     "
      .. "55P03 lock_timeout: canceling statement\n"
      .. "  1  a    trigger  %d%d%-%d%d %d%d:%d%d:%d%d  0.5s  5.0s  succeeded\n$", out)
  end)

  it("as JSON has whole values, durations in seconds, instants in UTC, null for what there is not", function()
    ran("a", "succeeded", { result = '{"rows":7}' })
    local row = decoded()[1]
    assert.same({ 1, "a", "trigger", 0.5, 5, "succeeded", lock.null, 1, "db1", 7 },
      { row.run, row.job, row.origin, row.wait, row.ran, row.state, row.why, row.attempt, row.host,
        row.result.rows })
    local slot = core.store_run(db, 1).slot
    assert.equal(field.instant(slot), row.slot)
    assert.equal(lock.null, row.error)
    assert.is_nil(row.output)
    db:exec("delete from lockkeeper.run")
    assert.equal("[]\n", shown("--format", "json"))
  end)

  it("of one that runs tells for how long so far", function()
    begin("a")
    local row = decoded()[1]
    assert.equal("running", row.state)
    assert.is_true(row.ran >= 0 and row.ran < 60)
    assert.matches("1 run, 1 not ended", shown())
  end)

  it("JOB, --state and --since narrow it down", function()
    local first, failed, other = ran("a"), ran("a", "failed", { error = "no" }), ran("b", "timed_out")
    assert.same({ failed, first }, runs_of("a"))
    assert.same({ other, failed }, runs_of("--state", "failed,timed_out"))
    assert.same({ other, failed }, runs_of("--state", "failed", "--state", "timed_out"))
    assert.same({}, runs_of("b", "--state", "failed"))
    db:exec("update lockkeeper.run set due_at = due_at - interval '2 hours' where id = $1", first)
    assert.same({ other, failed }, runs_of("--since", "1h"))
    assert.same({ other, failed, first }, runs_of("--since", "1d"))
    assert.same({ other, failed }, runs_of("--since", field.instant(core.now() - 3600)))
    assert.same({}, runs_of("--since", "2999-01-01"))
    assert.matches("No run matches", shown("--since", "2999-01-01"))
  end)

  it("a table has 25 rows and says that there are more; --limit says how many; JSON has all", function()
    db:exec([[insert into lockkeeper.run (job, origin, slot, state, due_at, ended_at)
      select 'a', 'schedule', now() - n * interval '1 minute', 'succeeded', now(), now()
        from generate_series(1, 30) n]])
    local _, lines = shown():gsub("\n", "")
    assert.equal(25 + 3, lines)
    assert.matches("the newest 25 runs\n.*there are more: %-%-limit 100, or %-%-limit all\n$", shown())
    assert.equal(30, #decoded())
    assert.equal(3, #decoded("--limit", "3"))
    assert.not_matches("more", shown("--limit", "30"))
    assert.not_matches("more", shown("--limit", "all"))
  end)

  it("shows why a run was skipped, cancelled, tried again", function()
    core.store_pause(db, "a", true)
    core.store_trigger(db, "a")
    core.store_pause(db, "a", false)
    ran("a", "cancelled", { error = "the run is cancelled", error_kind = "cancelled", reason = "replaced" })
    ran("a", "failed", { error = "no", retry_after = 0 })
    begin("b")
    core.store_cancel(db, "b")
    local why = {}
    for _, row in ipairs(decoded("--limit", "all")) do
      why[row.run] = row.why
    end
    assert.same({ "paused", "replaced", "no", "attempt 2", "to be cancelled" }, why)
  end)

  it("is not cut without a terminal, and fits one", function()
    ran("a", "failed", { error = ("long "):rep(200) })
    assert.matches(("long "):rep(199) .. "long\n$", shown())
    local child = t.spawn { "script", "-qefc", ("stty cols 80; exec '%s' history"):format(t.binary()),
      "/dev/null", env = { DATABASE_URL = t.conninfo { dbname = DATABASE }, NO_COLOR = "1" } }
    child:wait()
    local lines = 0
    for line in child:stdout():gsub("\r", ""):gmatch("[^\n]+") do
      lines = lines + 1
      assert.is_true(lines == 1 or width.of(line) <= 80, line)
    end
    assert.equal(3, lines)
  end)

  it("tells what is wrong with the words", function()
    for text, words in pairs {
      ['"faild"; did you mean "failed"?'] = { "--state", "faild" },
      ["--since"] = { "--since", "yesterday" },
      ["--limit takes a whole number from 1, or all"] = { "--limit", "0" },
      ["is one word too many"] = { "a", "b" },
      ["RUN is one"] = { "1", "--state", "failed" },
      ["is no number of a run"] = { "#99999999999999999999" },
    } do
      local code, out, err = run(table.unpack(words))
      assert.equal(2, code, text)
      assert.equal("", out)
      assert.matches(text, err, 1, true)
    end
  end)

  it("of 100,000 rows a table comes at once, and JSON has as many as are asked for", function()
    db:exec([[insert into lockkeeper.run (job, origin, slot, state, due_at, ended_at, output)
      select 'a', 'schedule', now() - n * interval '1 second', 'succeeded', now(), now(), repeat('x', 50)
        from generate_series(1, 100000) n]])
    local begun = t.now()
    shown("a")
    assert.is_true(t.now() - begun < 5)
    local _, count = shown("a", "--format", "json", "--limit", "20000"):gsub("\n{", "")
    assert.equal(20000, count)
  end)
end)

describe("history RUN", function()
  it("shows everything that is known, and the end of its output", function()
    local id = ran("a", "failed", { error = "no\nwonder", error_kind = "sql", sqlstate = "22012",
      detail = "D", result = "[1]", output = "one\ntwo" })
    local out = shown(tostring(id))
    assert.matches(("^run %d of a: failed\n"):format(id), out)
    for _, pattern in ipairs { "\n  origin +trigger\n", "\n  slot +%d%d%d%d%-", "\n  claimed +.+, by db1\n",
      "\n  started +.+, waited 0.5s for its locks\n", "\n  ended +.+, ran 5.0s\n", "\n  fence +1\n",
      "\n  error +22012 sql: no\n +wonder\n", "\n  detail +D\n", "\n  result +%[1%]\n",
      "\noutput:\none\ntwo\n$" } do
      assert.matches(pattern, out)
    end
    assert.equal(out, shown("#" .. id))
  end)

  it("as JSON is a list of one, with its output", function()
    local id = ran("a", "succeeded", { output = "bytes \xff\0 and\n" })
    local list = decoded(tostring(id))
    assert.equal(1, #list)
    assert.matches("^bytes .* and\n$", list[1].output)
  end)

  it("names the run that it came after", function()
    core.store_record_jobs(db, {
      { name = "p", file = "/f", definition = "{}" },
      { name = "c", file = "/f", definition = "{}", after = "p", after_on = "finished" },
    }, { "/f" })
    local id = ran("p", "timed_out")
    assert.matches(("\n  origin +after run %d of p, which was timed out\n"):format(id),
      shown(tostring(decoded("c")[1].run)))
  end)

  it("one that there is not is one of the words: exit code 2", function()
    local code, out, err = run("4711")
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches("there is no run 4711", err, 1, true)
  end)
end)
