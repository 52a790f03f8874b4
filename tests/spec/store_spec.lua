-- The state tables (architecture.md, "State in the database"; runner.md 5 to 11, 15, 18, 22, 25 and 27), as
-- supervisors and workers use them.

local core = require "lockkeeper.core"
local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local server, admin

setup(function()
  core.log_configure("error")
  server = t.start_server()
  admin = lock.connect({ conninfo = server:conninfo() })
  core.schema_migrate(admin)
end)

teardown(function()
  admin:close()
  server:stop()
  core.log_configure("info")
end)

local TABLES = "lockkeeper.job, lockkeeper.run, lockkeeper.fence, lockkeeper.runner, lockkeeper.lock_name, "
  .. "lockkeeper.finding"

before_each(function() admin:exec("TRUNCATE " .. TABLES) end)

local function open(opts)
  return t.connect({ conninfo = server:conninfo(opts) })
end

-- A supervisor with a session of its own.
local function host(name, opts)
  local db = open(opts)
  local runner = core.store_register(db, { host = name or "a", version = "1", zones = "2026a", workers = 4 })
  return { db = db, runner = runner, uuid = runner.uuid }
end

-- Jobs are recorded by name, with what differs from the simplest one.
local function record(jobs, files)
  local list = {}
  for i, job in ipairs(jobs) do
    list[i] = { name = job, file = "/jobs.lua", definition = "{}", schedule = "every 1m" }
    if type(job) == "table" then
      for key, value in pairs(job) do
        list[i][key] = value
      end
    end
  end
  core.store_record_jobs(admin, list, files or { "/jobs.lua" })
end

-- A slot of today: `n` minutes after one that every test has in its past.
local BASE = core.now() // 60 * 60 - 3600
local function slot(n)
  return BASE + n * 60
end

local function claim(h, slots, workers)
  for _, one in ipairs(slots) do
    one.overlap = one.overlap or "skip"
  end
  return core.store_claim(h.db, h.runner, slots, workers or 100)
end

-- One slot of a job is claimed, and its number told.
local function claim_one(h, job, n, overlap)
  local runs = claim(h, { { job = job, slot = slot(n or 0), overlap = overlap } })
  assert.equal(1, #runs)
  return runs[1].id
end

local function step(h, run, more, db)
  local all = { run = run, runner = h.uuid, guards = {}, conflicts = {}, grace = 5, waited = 0,
    fenced = true }
  for key, value in pairs(more or {}) do
    all[key] = value
  end
  return core.store_step(db or h.db, all)
end

local function finish(h, run, state, more)
  local all = { run = run, runner = h.uuid, state = state or "succeeded" }
  for key, value in pairs(more or {}) do
    all[key] = value
  end
  return core.store_end(h.db, all)
end

local function row(run)
  return admin:one("SELECT * FROM lockkeeper.run WHERE id = $1", run)
end

local function states(job)
  return admin:value([[SELECT coalesce(string_agg(concat_ws(' ', state, reason), ', ' ORDER BY slot, id), '')
    FROM lockkeeper.run WHERE job = $1]], job)
end

local function take(h, jobs, workers)
  return core.store_take(h.db, h.runner, jobs, workers or 10)
end

local function fails(sqlstate, fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  assert.equal("table", type(err), tostring(err))
  assert.equal(sqlstate, err.sqlstate, err.message)
  return err
end

-- A database of the test's own.
local function database(name)
  admin:exec("DROP DATABASE IF EXISTS " .. name)
  admin:exec("CREATE DATABASE " .. name)
  return name
end

local function init(opts, ...)
  local argv = { "init", ... }
  argv[#argv + 1] = { env = { DATABASE_URL = server:conninfo(opts) } }
  return t.run(table.unpack(argv))
end

describe("the schema", function()
  it("is made by init, which says so and does no harm when it is run again", function()
    local db = database("made")
    local code, out = init({ dbname = db })
    assert.equal(0, code)
    assert.equal(("made the schema lockkeeper, version %d, in database made, as postgres\n"):format(
      core.schema_newest()), out)
    code, out = init({ dbname = db })
    assert.equal(0, code)
    assert.equal(("the schema lockkeeper is up to date, version %d, in database made, as postgres\n"):format(
      core.schema_newest()), out)
  end)

  it("is the same where init --print was piped into psql, once or twice", function()
    local shape = [[
      SELECT string_agg(line, E'\n' ORDER BY line) FROM (
        SELECT concat_ws(' ', c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
                 a.attnotnull, a.attidentity, a.attcollation::regcollation,
                 pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum),
                 obj_description(c.oid)) AS line
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
          LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
         WHERE c.relnamespace = 'lockkeeper'::regnamespace
        UNION ALL
        SELECT indexdef FROM pg_indexes WHERE schemaname = 'lockkeeper'
        UNION ALL
        SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
         WHERE connamespace = 'lockkeeper'::regnamespace
        UNION ALL
        SELECT 'version ' || version FROM lockkeeper.schema_version) AS shape(line)]]
    local db = database("printed")
    local code, sql = init({}, "--print")
    assert.equal(0, code)
    server:psql(sql, { dbname = db })
    server:psql(sql, { dbname = db })
    local printed <close> = open({ dbname = db })
    assert.equal(admin:value(shape), printed:value(shape))
    core.schema_check(printed)
  end)

  it("needs no server for init --print", function()
    local code, out = t.run("init", "--print", { env = { DATABASE_URL = "host=/nonexistent" } })
    assert.equal(0, code)
    assert.matches("CREATE SCHEMA IF NOT EXISTS lockkeeper", out, 1, true)
  end)

  it("is made once where several hosts begin at the same time", function()
    local db = database("raced")
    local holder <close> = open({ dbname = db })
    local held = holder:advisory("lockkeeper:schema")
    local children = {}
    for i = 1, 4 do
      children[i] = t.lockkeeper("init", { env = { DATABASE_URL = server:conninfo({ dbname = db }) } })
    end
    t.wait_until(function()
      return admin:value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == 4
    end, 30, "four that wait for their turn")
    held:release()
    local made = 0
    for _, child in ipairs(children) do
      assert.equal(0, child:wait(30), child:stderr())
      made = made + (child:stdout():find("made the schema", 1, true) and 1 or 0)
    end
    assert.equal(1, made)
  end)

  it("is refused by a program that is older than it", function()
    local db = database("newer")
    init({ dbname = db })
    local session <close> = open({ dbname = db })
    session:exec("INSERT INTO lockkeeper.schema_version (version) VALUES (99)")
    for _, refuses in ipairs({ core.schema_check, core.schema_migrate }) do
      local ok, err = pcall(refuses, session)
      assert.is_false(ok)
      assert.matches("version 99, and lockkeeper .* knows versions up to %d", err.message)
      assert.matches("newer lockkeeper", err.hint, 1, true)
    end
    local code, _, stderr = init({ dbname = db })
    assert.not_equal(0, code)
    assert.matches("version 99", stderr, 1, true)
    assert.equal(99, core.schema_version(session))
  end)

  it("is made by a role that may create schemas; another is told the GRANT that it lacks", function()
    local db = database("least")
    local code, _, stderr = init({ dbname = db, user = "lk_app" })
    assert.not_equal(0, code)
    local grant = stderr:match("GRANT CREATE ON DATABASE \"least\" TO lk_app")
    assert.is_string(grant, stderr)
    admin:exec(grant)
    assert.equal(0, (init({ dbname = db, user = "lk_app" })))
  end)

  it("serves a role that has what the last lines of init --print name, and no more", function()
    local db = database("granted")
    init({ dbname = db })
    local _, sql = init({}, "--print")
    local app <close> = open({ dbname = db, user = "lk_app" })
    local err = fails("42501", core.schema_check, app)
    assert.matches("may not use the schema lockkeeper", err.message, 1, true)
    local owner <close> = open({ dbname = db })
    for grant in sql:gmatch("%-%- (GRANT [^;]*);") do
      owner:exec((grant:gsub("lockkeeper_runner", "lk_app")))
    end
    core.schema_check(app)
    core.store_record_jobs(app, { { name = "a", file = "f", definition = "{}" } }, { "f" })
    local h = { db = app }
    h.runner = core.store_register(app, { host = "h", version = "1", zones = "", workers = 1 })
    h.uuid = h.runner.uuid
    local run = claim_one(h, "a")
    assert.equal("running", (step(h, run)))
    assert.is_true(finish(h, run))
    core.store_name_locks(app, { { classid = 1, objid = 2, objsubid = 1, name = "n" } })
    core.store_look(app)
    core.store_prune(app, 1, 1)
    core.store_leave(app, h.runner)
    owner:exec("REVOKE UPDATE ON lockkeeper.run FROM lk_app")
    err = fails("42501", core.schema_check, app)
    assert.matches("(run)", err.message, 1, true)
    assert.matches("GRANT", err.hint, 1, true)
  end)

  it("that is missing is an error that names init", function()
    local session <close> = open({ dbname = database("empty") })
    assert.equal(0, core.schema_version(session))
    assert.matches("lockkeeper init", fails("3F000", core.schema_check, session).hint, 1, true)
  end)

  it("may be dropped in the middle: an error each time, and all is well once it is made again", function()
    local db = database("dropped")
    local owner <close> = open({ dbname = db })
    core.schema_migrate(owner)
    local h = host("a", { dbname = db })
    claim_one(h, "a")
    owner:exec("DROP SCHEMA lockkeeper CASCADE")
    for _ = 1, 2 do
      fails("42P01", claim, h, { { job = "a", slot = slot(1) } })
      fails("42P01", core.store_look, h.db)
      fails("42P01", core.store_beat, h.db, h.runner)
    end
    assert.equal(1, h.db:value("SELECT 1"))
    core.schema_migrate(owner)
    core.store_beat(h.db, h.runner)
    claim_one(h, "a", 1)
  end)

  it("is made where transactions are read-only by default, and not on a standby", function()
    local db = database("readonly")
    admin:exec("ALTER DATABASE readonly SET default_transaction_read_only = on")
    assert.equal(0, (init({ dbname = db })))
    local standby = t.start_server({ standby_of = server })
    finally(function() standby:stop() end)
    local code, _, stderr = t.run("init", { env = { DATABASE_URL = standby:conninfo() } })
    assert.not_equal(0, code)
    assert.matches("standby", stderr, 1, true)
    local there <close> = lock.connect({ conninfo = standby:conninfo() })
    assert.equal(core.schema_newest(), core.schema_version(there))
    assert.same({}, core.store_history(there, {})) -- what only reads works there
  end)

  it("is used whatever a session has set: search_path, role, timeouts, what is read-only", function()
    local h = host()
    admin:exec([[
      CREATE SCHEMA trap;
      CREATE FUNCTION trap.clock_timestamp() RETURNS timestamptz LANGUAGE sql
        AS 'SELECT timestamptz ''epoch''';
      CREATE FUNCTION trap.eq(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false';
      CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.eq);
      CREATE TABLE trap.job (name text)]])
    finally(function() admin:exec("DROP SCHEMA trap CASCADE") end)
    for _, setting in ipairs({ "search_path = trap, pg_catalog", "ROLE lk_app", "statement_timeout = '500ms'",
      "default_transaction_read_only = on", "default_transaction_isolation = 'serializable'",
      "synchronous_commit = off", "array_nulls = off", "TimeZone = 'Asia/Kolkata'",
      "IntervalStyle = iso_8601", "DateStyle = 'SQL, DMY'" }) do
      h.db:exec("SET " .. setting)
    end
    local run = claim_one(h, "a")
    local result
    admin:exec("BEGIN; LOCK TABLE lockkeeper.fence") -- for longer than the session's statement_timeout
    lock.tasks(function(spawn)
      spawn(function() result = step(h, run, { guards = { 'a"\\b{},' }, conflicts = { "x" } }) end)
      spawn(function()
        lock.sleep("800ms")
        admin:exec("ROLLBACK")
      end)
    end)
    assert.equal("running", result)
    assert.is_true(finish(h, run, "failed", { error = "no" }))
    h.db:exec("SET statement_timeout = 0")
    assert.equal("lk_app", h.db:value("SELECT current_user"))
    assert.equal("off", h.db:value("SHOW synchronous_commit"))
    local left = row(run)
    assert.equal("failed", left.state)
    assert.is_nil(left.reason)
    assert.same({ 'a"\\b{},' }, left.guards)
  end)

  it("is not touched inside a transaction of the caller's", function()
    local h = host()
    h.db:exec("BEGIN")
    expect.usage("without an open transaction", claim, h, { { job = "a", slot = slot(0) } })
    h.db:exec("ROLLBACK")
  end)
end)

describe("clock and runners", function()
  it("runner.md 5: the database's clock is measured, whatever this host's says", function()
    local offset, off_by = core.store_clock(admin)
    local before = core.monotonic()
    local theirs = admin:value("SELECT extract(epoch FROM clock_timestamp())::float8")
    assert.is_true(off_by >= 0 and off_by < 1)
    assert.is_true(theirs - (before + offset) > -0.5 and theirs - (before + offset) < 0.5)
  end)

  it("runner.md 22: a supervisor is a uuid with a lock of its own; a new session is another", function()
    local a, b = host(), host()
    assert.not_equal(a.uuid, b.uuid)
    assert.not_equal(a.runner.started, b.runner.started)
    local key = admin:value("SELECT lock FROM lockkeeper.runner WHERE uuid = $1", a.uuid)
    local holder = admin:value([[SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
      AND objsubid = 1 AND (classid::int8 << 32 | objid::int8) = $1]], key)
    assert.equal(a.db.pid, holder)
    core.store_leave(a.db, a.runner)
    assert.equal(1, admin:value("SELECT count(*) FROM lockkeeper.runner"))
    core.store_beat(b.db, b.runner)
    assert.equal(1, admin:value("SELECT count(*) FROM lockkeeper.runner"))
  end)

  it("runner.md 4: the newest time-zone data of those that live is known", function()
    local a = host()
    local dead = open()
    core.store_register(dead, { host = "b", version = "1", zones = "2099z", workers = 1 })
    assert.equal("2099z", core.store_newest_zones(a.db))
    dead:close()
    t.wait_until(function() return core.store_newest_zones(a.db) == "2026a" end, "the dead one's end")
  end)

  it("runner.md 22: the row of one that is gone goes after a minute, if it has claimed nothing", function()
    local a = host()
    admin:exec([[INSERT INTO lockkeeper.runner VALUES (gen_random_uuid(), 1, 'x', '1', '', 1, now(),
      now() - interval '2 minutes')]])
    core.store_look(a.db)
    assert.equal(a.uuid, admin:value("SELECT uuid::text FROM lockkeeper.runner"))
  end)
end)

describe("jobs", function()
  it("runner.md 6: are recorded, with the time from which their schedule has slots", function()
    record({ "a", { name = "b", schedule = "x" } })
    local first = core.store_facts(admin, { "a", "none", "b" })
    assert.is_true(first[1].known and first[3].known)
    assert.is_false(first[2].known)
    assert.is_nil(first[1].newest)
    record({ "a", { name = "b", schedule = "y" } })
    local second = core.store_facts(admin, { "a", "b" })
    assert.equal(first[1].since, second[1].since)
    assert.is_true(second[2].since > first[3].since) -- another schedule has no past
  end)

  it("runner.md 6: the newest slot of origin schedule is known, and when the last run ended", function()
    local h = host()
    local run = claim_one(h, "a", 1)
    assert.equal(slot(1), core.store_facts(admin, { "a" })[1].newest)
    assert.is_true(core.store_facts(admin, { "a" })[1].at_work)
    claim(h, { { job = "a", slot = slot(2) } }) -- is skipped, and has ended before the first one
    finish(h, run)
    local facts = core.store_facts(admin, { "a" })[1]
    assert.equal(slot(2), facts.newest)
    assert.is_false(facts.at_work)
    local ended = admin:value(
      "SELECT extract(epoch FROM ended_at)::float8 FROM lockkeeper.run WHERE id = $1", run)
    assert.is_true(math.abs(facts.last_end - ended) < 1e-5)
  end)

  it("that their file does not define any more are gone: nothing of theirs waits or is triggered", function()
    record({ "a", "b" })
    local run = core.store_trigger(admin, "a").id
    record({ "b" })
    assert.equal("skipped gone", states("a"))
    assert.equal("gone", row(run).reason)
    expect.usage('no file that is served defines a job "a"', core.store_trigger, admin, "a")
    record({ "a", "b" })
    assert.equal("due", core.store_trigger(admin, "a").state)
    record({}, { "/other.lua" })
    assert.equal("due", core.store_trigger(admin, "b").state)
  end)

  it("may be many, with any text in them", function()
    local jobs, names = {}, {}
    for i = 1, 2000 do
      jobs[i] = { name = ("job \"%d\" {\\,} ü ' $1"):format(i), definition = '{"a": "\\u00fc"}' }
      names[i] = jobs[i].name
    end
    record(jobs)
    local facts = core.store_facts(admin, names)
    for i = 1, #names do
      assert.is_true(facts[i].known)
    end
    assert.equal(2000, #core.store_jobs(admin))
  end)

  it("may be none", function()
    record({})
    assert.same({}, core.store_facts(admin, {}))
    local runs, tally = claim(host(), {})
    assert.same({}, runs)
    assert.same({ claimed = 0, due = 0, skipped = 0, lost = 0 }, tally)
  end)
end)

describe("runner.md 7: a slot", function()
  it("is claimed once, whoever asks and however often", function()
    local a, b = host("a"), host("b")
    local slots = { { job = "x", slot = slot(0) }, { job = "y", slot = slot(0) } }
    local _, first = claim(a, slots)
    local runs, second = claim(b, slots)
    assert.same({ claimed = 2, due = 0, skipped = 0, lost = 0 }, first)
    assert.same({ claimed = 0, due = 0, skipped = 0, lost = 2 }, second)
    assert.same({}, runs)
    assert.equal(2, admin:value("SELECT count(*) FROM lockkeeper.run"))
  end)

  it("becomes due where no worker is free, those due first before others; any host takes it", function()
    local a, b = host("a"), host("b")
    local runs, tally = claim(a, { { job = "z", slot = slot(0) }, { job = "y", slot = slot(2) },
      { job = "x", slot = slot(1) } }, 1)
    assert.same({ claimed = 1, due = 2, skipped = 0, lost = 0 }, tally)
    assert.equal("z", runs[1].job)
    assert.same({ "x", "y" }, (core.store_waiting(b.db)))
    local taken = take(b, { "x", "y" }, 1)
    assert.equal(1, #taken)
    assert.equal("x", taken[1].job)
    assert.equal(slot(1), taken[1].slot)
    assert.equal(b.uuid, row(taken[1].id).runner)
  end)

  it("that another host is just taking is left to it, without waiting", function()
    local a, b = host("a"), host("b")
    claim(a, { { job = "x", slot = slot(0), overlap = "allow" },
      { job = "x", slot = slot(1), overlap = "allow" } }, 0)
    admin:exec("BEGIN; UPDATE lockkeeper.run SET host = host WHERE slot = to_timestamp(" .. slot(0) .. ")")
    local taken = take(b, { "x" })
    admin:exec("ROLLBACK")
    assert.equal(1, #taken)
    assert.equal(slot(1), taken[1].slot)
  end)

  it("is decided with hundreds of others; hosts that contend neither claim twice nor deadlock", function()
    local hosts, slots = {}, {}
    for i = 1, 6 do
      hosts[i] = host("h" .. i)
    end
    for i = 1, 300 do
      slots[i] = { job = "job" .. i, slot = slot(0) }
    end
    local claimed, seen = 0, {}
    for round = 1, 3 do
      for _, one in ipairs(slots) do
        one.slot = slot(round)
        one.overlap = "allow"
      end
      lock.tasks(function(spawn)
        for i, h in ipairs(hosts) do
          spawn(function()
            local mine = table.move(slots, 1, #slots, 1, {})
            for k = #mine, 2, -1 do -- in another order on each
              local other = (k * (i + round)) % k + 1
              mine[k], mine[other] = mine[other], mine[k]
            end
            local runs, tally = core.store_claim(h.db, h.runner, mine, 1000)
            assert.equal(#mine, tally.claimed + tally.lost)
            for _, run in ipairs(runs) do
              assert.is_nil(seen[run.id])
              seen[run.id] = true
              claimed = claimed + 1
            end
          end)
        end
      end)
    end
    assert.equal(900, claimed)
    assert.equal(900, admin:value("SELECT count(*) FROM lockkeeper.run WHERE state = 'claimed'"))
  end)
end)

describe("runner.md 8: a run that is given back", function()
  it("is due at once, or later: after a second, then twice as long each time, 30 s at most", function()
    local a = host("a")
    local run = claim_one(a, "x")
    assert.is_true(core.store_give_back(a.db, a.runner, run))
    assert.equal(run, take(a, { "x" })[1].id)
    for _, delay in ipairs { 2, 4, 8, 16, 30, 30 } do
      local before = admin:value("select clock_timestamp()::text")
      assert.is_true(core.store_give_back(a.db, a.runner, run, true))
      assert.same({}, take(a, { "x" }))
      assert.is_true(admin:value("select due_at between $2::timestamptz + $3 * interval '1 s'"
        .. " and clock_timestamp() + $3 * interval '1 s' from lockkeeper.run where id = $1",
        run, before, delay))
      admin:exec("update lockkeeper.run set due_at = slot where id = " .. run)
      assert.equal(run, take(a, { "x" })[1].id)
    end
  end)
end)

describe("runner.md 8: a change of state", function()
  it("is made by the runner that has claimed the run, in the state that it saw", function()
    local a, b = host("a"), host("b")
    local run = claim_one(a, "x")
    assert.equal("gone", (step(b, run)))
    assert.is_false((finish(b, run)))
    assert.is_false(core.store_give_back(b.db, b.runner, run))
    assert.equal("running", (step(a, run)))
    assert.equal("gone", (step(a, run)))
    assert.is_false(core.store_give_back(a.db, a.runner, run))
    assert.is_true((finish(a, run, "failed")))
    assert.is_false((finish(a, run, "succeeded")))
    assert.equal("failed", row(run).state)
  end)

  it("that ends a run inserts its retry, once, where it did end it", function()
    local a, b = host("a"), host("b")
    local run = claim_one(a, "x")
    step(a, run)
    local ended, retry = finish(b, run, "failed", { retry_after = 0 })
    assert.is_false(ended)
    assert.is_nil(retry)
    ended, retry = finish(a, run, "failed", { retry_after = 30, error = "no", error_kind = "sql" })
    assert.is_true(ended)
    local again = row(retry)
    assert.equal("due", again.state)
    assert.equal(2, again.attempt)
    assert.equal(row(run).slot, again.slot)
    ended, retry = finish(a, run, "failed", { retry_after = 30 })
    assert.is_false(ended)
    assert.is_nil(retry)
    local jobs, next_at = core.store_waiting(b.db)
    assert.same({}, jobs)
    assert.is_true(next_at - core.now() > 20 and next_at - core.now() < 40)
    assert.same({}, take(b, { "x" }))
  end)

  it("inserts retries by the recorded policy: delays grow, attempts end", function()
    local a = host("a")
    record({ { name = "x", retry_attempts = 3, retry_delay = 100, retry_factor = 3,
      retry_on = { "failed", "deadlock" } }, { name = "y", retry_attempts = 9 } })
    local function failed(job, state, kind, attempt)
      local run = admin:value([[INSERT INTO lockkeeper.run (job, origin, slot, attempt, state, runner)
        VALUES ($1, 'trigger', clock_timestamp(), $2, 'running', $3)
        RETURNING id]], job, attempt or 1, a.uuid)
      local _, retry = finish(a, run, state, { error_kind = kind, retry_after = "policy" })
      return retry and admin:value(
        "SELECT round(extract(epoch FROM due_at - now()))::int FROM lockkeeper.run WHERE id = $1", retry)
    end
    assert.equal(100, failed("x", "failed", nil, 1))
    assert.equal(300, failed("x", "failed", nil, 2))
    assert.is_nil(failed("x", "failed", nil, 3))
    assert.is_nil(failed("x", "timed_out", nil, 1))
    assert.equal(100, failed("x", "timed_out", "deadlock", 1))
    assert.equal(0, failed("y", "lost"))
    assert.is_nil(failed("y", "succeeded"))
    assert.is_nil(failed("none", "failed"))
  end)

  it("inserts the runs after it, when no attempt of it is to come", function()
    record({ "x", { name = "ok", after = "x" }, { name = "bad", after = "x", after_on = "failed" },
      { name = "any", after = "x", after_on = "finished" }, { name = "off", after = "x", enabled = false } })
    local a = host("a")
    local run = claim_one(a, "x")
    local _, retry = finish(a, run, "failed", { retry_after = 0 })
    assert.equal("", states("bad"))
    assert.equal(retry, take(a, { "x" })[1].id)
    finish(a, retry, "failed")
    assert.equal("due", states("bad"))
    assert.equal("due", states("any"))
    assert.equal("", states("ok") .. states("off"))
    local after = take(a, { "bad", "any" })
    assert.equal(retry, after[1].parent)
    assert.equal(slot(0), after[1].slot)
    assert.equal("after", after[1].origin)
    local told = core.store_run(admin, after[1].id)
    assert.equal("x", told.parent_job)
    assert.equal("failed", told.parent_state)
    run = claim_one(a, "x", 1)
    finish(a, run)
    assert.equal("due", states("ok"))
    assert.equal(0, admin:value("SELECT count(*) FROM lockkeeper.run WHERE job = 'bad' AND parent = $1", run))
  end)

  it("keeps what a run has printed and raised, whatever its bytes", function()
    local a = host("a")
    local run = claim_one(a, "x")
    local output = "a\0b\xff\xc3\xbc\n" .. ("x"):rep(65536)
    finish(a, run, "failed", { error = "no\xfe", output = output, result = '{"a": [1]}', detail = "d",
      error_kind = "sql", sqlstate = "22012", waited = 0.5, ran = 1.25 })
    local left = core.store_run(admin, run)
    assert.equal("no\u{fffd}", left.error)
    assert.equal("a\u{fffd}b\u{fffd}ü\n" .. ("x"):rep(65536), left.output)
    assert.same({ 1 }, left.result.a)
    assert.equal(0.5, left.waited)
    assert.equal(1.25, left.ran)
    assert.equal("22012", left.sqlstate)
  end)

  it("is refused where it is none that ends a run", function()
    local a = host("a")
    local run = claim_one(a, "x")
    expect.usage("does not end as running", finish, a, run, "running")
    expect.usage("state can't be", finish, a, run, "done")
    assert.equal("claimed", row(run).state)
  end)
end)

describe("runner.md 9: slots that were missed", function()
  it("and are all caught up with are taken one by one, oldest first", function()
    local a, b = host("a"), host("b")
    local missed = {}
    for i = 1, 3 do
      missed[i] = { job = "x", slot = slot(i), catches_up = true }
    end
    local runs, tally = claim(a, missed)
    assert.same({ claimed = 1, due = 2, skipped = 0, lost = 0 }, tally)
    assert.equal(slot(1), runs[1].slot)
    assert.same({}, (core.store_waiting(b.db)))
    assert.same({}, take(b, { "x" }))
    finish(a, runs[1].id)
    for i = 2, 3 do
      assert.same({ "x" }, (core.store_waiting(b.db)))
      local taken = take(b, { "x" })
      assert.equal(1, #taken)
      assert.equal(slot(i), taken[1].slot)
      finish(b, taken[1].id)
    end
  end)

  it("and do not run are recorded with the reason", function()
    local _, tally = claim(host(),
      { { job = "x", slot = slot(0), skip = "caught_up" }, { job = "x", slot = slot(1) } })
    assert.same({ claimed = 1, due = 0, skipped = 1, lost = 0 }, tally)
    assert.equal("skipped caught_up, claimed", states("x"))
  end)
end)

describe("runner.md 10: overlap", function()
  it("skip: a slot is skipped while an earlier run is at work, or waits for another attempt", function()
    local a = host("a")
    local run = claim_one(a, "x", 0)
    claim(a, { { job = "x", slot = slot(1) } })
    finish(a, run, "failed", { retry_after = 600 })
    claim(a, { { job = "x", slot = slot(2) } })
    assert.equal("failed, due, skipped busy, skipped busy", states("x"))
  end)

  it("queue: at most one waits, which begins when the one before it is over", function()
    local a, b = host("a"), host("b")
    local run = claim_one(a, "x", 0, "queue")
    local _, tally = claim(b, { { job = "x", slot = slot(1), overlap = "queue" } })
    assert.equal(1, tally.due)
    _, tally = claim(b, { { job = "x", slot = slot(2), overlap = "queue" } })
    assert.same({ claimed = 0, due = 0, skipped = 1, lost = 0 }, tally)
    assert.same({}, take(b, { "x" }))
    finish(a, run)
    assert.equal(slot(1), take(b, { "x" })[1].slot)
    assert.equal("succeeded, claimed, skipped busy", states("x"))
  end)

  it("queue: neither a retry nor a row that came back is one that waits", function()
    local a = host("a")
    local run = claim_one(a, "x", 0, "queue")
    assert.is_true(core.store_give_back(a.db, a.runner, run))
    local _, tally = claim(a, { { job = "x", slot = slot(1), overlap = "queue" } })
    assert.equal(1, tally.due)
    assert.equal(run, take(a, { "x" })[1].id)
    finish(a, run, "failed", { retry_after = 0 })
    assert.equal("failed, due, due", states("x"))
  end)

  it("queue: of two that are queued at the same instant, one waits, the other is skipped", function()
    local a, b = host("a"), host("b")
    claim_one(a, "x", 0, "queue")
    admin:exec("BEGIN")
    admin:exec(("INSERT INTO lockkeeper.run (job, origin, slot, state, overlap) "
      .. "VALUES ('x', 'schedule', to_timestamp(%d), 'due', 'queue')"):format(slot(1)))
    local tally
    lock.tasks(function(spawn)
      spawn(function()
        local _, counted = claim(b, { { job = "x", slot = slot(2), overlap = "queue" } })
        tally = counted
      end)
      spawn(function()
        while server:psql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "0" do
          lock.sleep(0.01)
        end
        admin:exec("COMMIT")
      end)
    end)
    assert.same({ claimed = 0, due = 0, skipped = 1, lost = 0 }, tally)
    assert.equal("claimed, due, skipped busy", states("x"))
  end)

  it("replace: the one at work is asked to end, whichever host has it; the newest begins then", function()
    local a, b = host("a"), host("b")
    local run = claim_one(a, "x", 0, "replace")
    step(a, run)
    assert.same({}, core.store_requests(a.db, a.runner))
    claim(b, { { job = "x", slot = slot(1), overlap = "replace" } })
    claim(b, { { job = "x", slot = slot(2), overlap = "replace" } })
    local asked = core.store_requests(a.db, a.runner)
    assert.equal(1, #asked)
    assert.equal(run, asked[1].id)
    assert.equal("replaced", asked[1].reason)
    assert.same({}, take(b, { "x" }))
    finish(a, run, "cancelled", { reason = "replaced" })
    assert.equal(slot(2), take(b, { "x" })[1].slot)
    assert.equal("cancelled replaced, skipped replaced, claimed", states("x"))
  end)

  it("replace: a newer slot is never replaced by an older one", function()
    local a = host("a")
    local run = claim_one(a, "x", 5, "replace")
    claim(a, { { job = "x", slot = slot(1), overlap = "replace" } })
    assert.same({}, core.store_requests(a.db, a.runner))
    assert.equal("skipped busy, claimed", states("x"))
    assert.is_true((finish(a, run)))
  end)

  it("allow: all begin at once", function()
    local a = host("a")
    local runs = claim(a, { { job = "x", slot = slot(0), overlap = "allow" },
      { job = "x", slot = slot(1), overlap = "allow" } })
    assert.equal(2, #runs)
    claim(a, { { job = "x", slot = slot(2), overlap = "allow" } }, 0)
    assert.equal(1, #take(a, { "x" }))
  end)

  it("a row does not begin beside a run whose slot is later", function()
    record({ "p", { name = "x", overlap = "queue", after = "p" } })
    local a = host("a")
    local parent = claim_one(a, "p", 0)
    local run = claim_one(a, "x", 3, "queue")
    finish(a, parent)
    assert.equal("due, claimed", states("x")) -- with the parent's slot
    assert.same({}, (core.store_waiting(a.db)))
    assert.same({}, take(a, { "x" }))
    finish(a, run)
    assert.equal(1, #take(a, { "x" }))
  end)
end)

describe("runner.md 11: what people ask for", function()
  -- What a listener is told while fn runs.
  local function news(fn)
    local ears = open()
    core.store_listen(ears)
    fn()
    local heard = {}
    while true do
      local told = ears:wait_notify(#heard == 0 and 5 or 0.05)
      if not told then
        break
      end
      heard[#heard + 1] = told.payload
    end
    table.sort(heard)
    return table.concat(heard, " ")
  end

  it("a trigger is a row, its slot its microsecond, and all are told", function()
    record({ "x" })
    local run
    assert.equal("due", news(function() run = core.store_trigger(admin, "x") end))
    assert.equal("due", run.state)
    assert.equal("trigger", run.origin)
    assert.equal("skipped", core.store_trigger(admin, "x").state)
    local a = host("a")
    assert.equal(run.id, take(a, { "x" })[1].id)
    assert.equal("end", news(function() finish(a, run.id) end))
  end)

  it("a trigger of an unknown job names the nearest", function()
    record({ "nightly" })
    expect.usage('did you mean "nightly"?', core.store_trigger, admin, "nigthly")
    expect.usage('did you mean "nightly"?', core.store_pause, admin, "nigthly", true)
    expect.usage('did you mean "nightly"?', core.store_cancel, admin, "nigthly")
  end)

  it("a job that is paused skips its slots, and what waited goes on waiting until it is resumed", function()
    record({ "x" })
    local a = host("a")
    core.store_trigger(admin, "x")
    assert.equal("job", news(function() assert.is_true(core.store_pause(admin, "x", true)) end))
    assert.is_false(core.store_pause(admin, "x", true))
    assert.is_true(core.store_facts(admin, { "x" })[1].paused)
    assert.same({}, (core.store_waiting(a.db)))
    assert.same({}, take(a, { "x" }))
    claim(a, { { job = "x", slot = slot(0) } })
    assert.equal("skipped paused, due", states("x"))
    assert.equal("due job", news(function() core.store_pause(admin, "x", false) end))
    assert.equal(1, #take(a, { "x" }))
  end)

  it("cancel ends what waits at once, and asks the runner of what is at work", function()
    record({ "x" })
    local a = host("a")
    local run = claim_one(a, "x", 0, "queue")
    step(a, run)
    claim(a, { { job = "x", slot = slot(1), overlap = "queue" } })
    local runs
    assert.equal("cancel", news(function() runs = core.store_cancel(admin, "x") end))
    assert.equal(2, #runs)
    assert.equal("running, cancelled", states("x"))
    assert.equal(run, core.store_requests(a.db, a.runner)[1].id)
    local _, retry = finish(a, run, "cancelled", { retry_after = 0 })
    assert.is_nil(retry)
    assert.same({}, core.store_cancel(admin, "x"))
    assert.same({}, core.store_cancel(admin, run))
  end)

  it("a claimed run that is cancelled does not begin", function()
    record({ "x" })
    local a = host("a")
    local run = claim_one(a, "x")
    core.store_cancel(admin, run)
    assert.equal("cancelled", (step(a, run)))
    assert.is_true(core.store_give_back(a.db, a.runner, run))
    assert.equal("cancelled", row(run).state)
  end)
end)

describe("runner.md 15: the fence", function()
  it("grows by one with each run, together with the step to running", function()
    local a = host("a")
    for i = 1, 3 do
      local run = claim_one(a, "x", i)
      local result, fence = step(a, run)
      assert.equal("running", result)
      assert.equal(i, fence)
      local left = row(run)
      assert.equal(i, left.fence)
      assert.equal(a.db.pid, left.backend_pid)
      finish(a, run)
    end
    local run = claim_one(a, "x", 4, "allow")
    local _, fence = step(a, run, { fenced = false })
    assert.is_nil(fence)
    assert.equal(3, admin:value("SELECT value FROM lockkeeper.fence WHERE job = 'x'"))
  end)

  it("does not grow where the step is not taken", function()
    local a, b = host("a"), host("b")
    step(b, claim_one(a, "x"))
    assert.equal(0, admin:value("SELECT count(*) FROM lockkeeper.fence"))
  end)
end)

describe("runner.md 18: a run that has got its guards", function()
  local GUARDS = { guards = { "1:2:1:X" }, conflicts = { "1:2:1:X", "1:2:1:S" }, grace = 2 }

  it("waits for another that holds one of them and is running, until its row ends", function()
    local a, b = host("a"), host("b")
    local run, other = claim_one(a, "x"), claim_one(b, "y")
    assert.equal("running", (step(a, run, GUARDS)))
    local result, fence, guarded, waits_for, most = step(b, other, GUARDS)
    assert.equal("wait", result)
    assert.is_nil(fence)
    assert.equal(run, waits_for)
    assert.is_true(most > 2.5 and most <= 3.1)
    assert.equal("claimed", row(other).state)
    finish(a, run)
    assert.equal("running",
      (step(b, other, { guards = GUARDS.guards, conflicts = GUARDS.conflicts, guarded = guarded })))
  end)

  it("waits 100 ms, the other's grace and a second at most, by the database's clock", function()
    local a, b = host("a"), host("b")
    local run, other = claim_one(a, "x"), claim_one(b, "y")
    step(a, run, GUARDS)
    local now = admin:value("SELECT extract(epoch FROM clock_timestamp())::float8")
    local function try(guarded)
      local held = { guards = GUARDS.guards, conflicts = GUARDS.conflicts, guarded = guarded }
      return (step(b, other, held))
    end
    assert.equal("wait", try(now - 1.5))
    assert.equal("running", try(now - 3.2))
  end)

  it("waits for one that was declared lost, and no longer than its commands may live", function()
    local a, b = host("a"), host("b")
    local run, other = claim_one(a, "x"), claim_one(b, "y")
    step(a, run, GUARDS) -- without its liveness lock
    assert.equal("lost", core.store_look(b.db)[1].state)
    assert.equal("wait", (step(b, other, GUARDS)))
    admin:exec("UPDATE lockkeeper.run SET over_at = clock_timestamp() WHERE state = 'lost'")
    assert.equal("running", (step(b, other, GUARDS)))
  end)

  it("does not wait for one whose guards do not conflict, nor for one that has not begun", function()
    local a, b = host("a"), host("b")
    local shared = { guards = { "1:2:1:S" }, conflicts = { "1:2:1:X" } }
    local first, second, third = claim_one(a, "x"), claim_one(b, "y"), claim_one(a, "z")
    assert.equal("running", (step(a, first, shared)))
    assert.equal("running", (step(b, second, shared)))
    assert.equal("wait", (step(a, third, GUARDS)))
    assert.equal("running", (step(a, third, { guards = { "1:3:1:X" }, conflicts = { "1:3:1:X" } })))
  end)
end)

describe("runner.md 22: the look-out", function()
  -- A worker's session with the liveness lock of a run.
  local function worker(run)
    local db = open()
    local alive = db:advisory(core.store_run_key(run), { timeout = 0 })
    return db, alive
  end

  it("declares a running run lost only when its liveness lock is free, and tries it again", function()
    record({ { name = "x", retry_attempts = 2 }, "y" })
    local a, b = host("a"), host("b")
    local run, other = claim_one(a, "x"), claim_one(a, "y")
    local db = worker(run)
    local second = worker(other)
    step(a, run, nil, db)
    step(a, other, nil, second)
    a.db:close() -- the supervisor is gone, its workers are not yet
    assert.same({}, core.store_look(b.db))
    db:close()
    local found = t.wait_until(function()
      local runs = core.store_look(b.db)
      return #runs > 0 and runs
    end, "the run to be lost")
    assert.equal(1, #found)
    assert.equal("lost", found[1].state)
    assert.equal("lost, due", states("x"))
    assert.equal("running", states("y"))
    second:close()
    t.wait_until(function() return #core.store_look(b.db) == 1 end, "the other run to be lost")
    assert.equal("lost", states("y"))
  end)

  it("leaves a run alone whose own supervisor is about to end it", function()
    record({ "x" })
    local a = host("a")
    local run = claim_one(a, "x")
    local db = worker(run)
    step(a, run, nil, db)
    local pid = db.pid
    db:close()
    t.wait_until(function()
      return admin:value("SELECT count(*) FROM pg_locks WHERE pid = $1", pid) == 0
    end, "its session's end")
    assert.same({}, core.store_look(a.db, run))
    assert.equal("running", states("x"))
    assert.equal(1, #core.store_look(a.db))
  end)

  it("gives a claimed run back when its liveness lock and its supervisor's are both free", function()
    local a, b = host("a"), host("b")
    local run = claim_one(a, "x")
    local db = worker(run)
    assert.same({}, core.store_look(b.db))
    local pid = a.db.pid
    a.db:close()
    t.wait_until(function()
      return #admin:query("SELECT FROM pg_stat_activity WHERE pid = $1", pid) == 0
    end, "the supervisor to be gone")
    assert.same({}, core.store_look(b.db))
    db:close()
    local found = t.wait_until(function()
      local runs = core.store_look(b.db)
      return #runs > 0 and runs
    end, "the run to come back")
    assert.equal("due", found[1].state)
    local taken = take(b, { "x" })
    assert.equal(run, taken[1].id)
    assert.equal("gone", (step(a, run, nil, b.db)))
    assert.equal("running", (step(b, run)))
  end)

  it("leaves a claimed run to a supervisor that lives; a cancelled one that comes back ends", function()
    record({ "x" })
    local a, b = host("a"), host("b")
    local run = claim_one(a, "x")
    assert.same({}, core.store_look(b.db))
    core.store_cancel(admin, run)
    a.db:close()
    t.wait_until(function() return #core.store_look(b.db) == 1 end, "the run to be found")
    assert.equal("cancelled", row(run).state)
  end)

  it("does not wait for a row that somebody is just changing", function()
    local a, b = host("a"), host("b")
    step(a, claim_one(a, "x"))
    admin:exec("BEGIN; UPDATE lockkeeper.run SET host = host")
    assert.same({}, core.store_look(b.db))
    admin:exec("ROLLBACK")
    assert.equal(1, #core.store_look(b.db))
  end)

  it("is done by many at once: each run is found once", function()
    local hosts = {}
    for i = 1, 4 do
      hosts[i] = host("h" .. i)
    end
    local dead = host("dead")
    local slots = {}
    for i = 1, 200 do
      slots[i] = { job = "job" .. i, slot = slot(0) }
    end
    for i, run in ipairs(claim(dead, slots, 1000)) do
      if i % 2 == 0 then
        step(dead, run.id)
      end
    end
    dead.db:close()
    local found = {}
    t.wait_until(function()
      lock.tasks(function(spawn)
        for _, h in ipairs(hosts) do
          spawn(function()
            for _, run in ipairs(core.store_look(h.db)) do
              assert.is_nil(found[run.id])
              found[run.id] = run.state
            end
          end)
        end
      end)
      return admin:value("SELECT count(*) FROM lockkeeper.run WHERE state IN ('claimed', 'running')") == 0
    end, "all to be found")
    local count = { due = 0, lost = 0 }
    for _, state in pairs(found) do
      count[state] = count[state] + 1
    end
    assert.same({ due = 100, lost = 100 }, count)
  end)
end)

describe("runner.md 27: history", function()
  -- Rows of a job that ended `age` seconds ago and earlier, one a minute.
  local function plant(job, count, age)
    admin:query([[
      INSERT INTO lockkeeper.run (job, origin, slot, state, ended_at)
      SELECT $1, 'schedule', at.time, 'succeeded', at.time
        FROM generate_series($2::int, 1, -1) g,
             LATERAL (SELECT now() - $3 * interval '1 second' - g * interval '1 minute') AS at(time)
      ]], job, count, age)
  end

  local function left(job)
    return admin:value("SELECT count(*) FROM lockkeeper.run WHERE job = $1", job)
  end

  local DAY = 86400

  it("is pruned by count, each job for itself", function()
    record({ "a", "b" })
    plant("a", 50, 2 * DAY)
    plant("b", 5, 2 * DAY)
    assert.equal(40, (core.store_prune(admin, false, 10)))
    assert.equal(10, left("a"))
    assert.equal(5, left("b"))
    assert.equal(0, (core.store_prune(admin, false, 10)))
  end)

  it("is pruned by age, but never a job's newest row", function()
    record({ "a", "b" })
    plant("a", 3, 40 * DAY)
    plant("b", 3, 2 * DAY)
    plant("unknown", 3, 40 * DAY)
    assert.equal(4, (core.store_prune(admin, 30 * DAY, 0)))
    assert.equal(1, left("a"))
    assert.equal(3, left("b"))
    assert.equal(1, left("unknown"))
  end)

  it("keeps what lies within catchup_window, and what has not ended", function()
    record({ { name = "a", catchup_window = 7 * DAY }, { name = "b", catchup_window = false }, "c" })
    for _, job in ipairs({ "a", "b", "c" }) do
      plant(job, 5, 2 * DAY)
    end
    admin:exec([[UPDATE lockkeeper.run SET state = 'due', ended_at = NULL
      WHERE job = 'c' AND id = (SELECT min(id) FROM lockkeeper.run WHERE job = 'c')]])
    core.store_prune(admin, 1, 1)
    assert.equal(5, left("a"))
    assert.equal(5, left("b"))
    assert.equal(2, left("c"))
  end)

  it("is pruned by one host at a time, in batches", function()
    local jobs = {}
    for i = 1, 250 do
      jobs[i] = ("job%03d"):format(i)
      plant(jobs[i], 3, 2 * DAY)
    end
    record(jobs)
    local other <close> = open()
    other:exec("BEGIN")
    other:query("SELECT pg_advisory_xact_lock(5506583419947057152)")
    local pruned, after = core.store_prune(admin, false, 1)
    assert.equal(0, pruned)
    assert.is_nil(after)
    other:exec("ROLLBACK")
    pruned, after = core.store_prune(admin, false, 1)
    assert.equal(200, pruned)
    assert.equal("job100", after)
    pruned, after = core.store_prune(admin, false, 1, after)
    assert.equal(200, pruned)
    assert.equal("job200", after)
    pruned, after = core.store_prune(admin, false, 1, after)
    assert.equal(100, pruned)
    assert.is_nil(after)
  end)

  it("of findings that were closed goes with it", function()
    admin:exec([[INSERT INTO lockkeeper.finding (audit, subject, severity, message, closed_at) VALUES
      ('a', 'x', 'warning', 'm', now() - interval '2 days'), ('a', 'y', 'warning', 'm', now()),
      ('a', 'x', 'warning', 'm', NULL)]])
    core.store_prune(admin, DAY, 0)
    assert.equal(2, admin:value("SELECT count(*) FROM lockkeeper.finding"))
    fails("23505", admin.exec, admin, [[INSERT INTO lockkeeper.finding (audit, subject, severity, message)
      VALUES ('a', 'x', 'warning', 'm')]])
  end)

  it("of 100,000 rows costs a tick nothing: every statement finds its rows by an index", function()
    admin:exec([[
      INSERT INTO lockkeeper.run (job, origin, slot, state, ended_at, over_at)
      SELECT 'job' || g % 1000, 'schedule', now() - g * interval '10 seconds',
             (ARRAY['succeeded', 'skipped', 'lost', 'failed'])[1 + g % 4],
             now() - g * interval '10 seconds', now() - g * interval '10 seconds'
        FROM generate_series(1, 100000) g;
      ANALYZE lockkeeper.run]])
    local jobs, slots = {}, {}
    for i = 1, 50 do
      jobs[i] = "job" .. i
      slots[i] = { job = jobs[i], slot = core.now() // 1 }
    end
    record(jobs)
    -- How often the whole of the table was read, and how many rows by an index; sessions tell at their end.
    local function reads()
      return admin:one([[SELECT seq_scan, idx_tup_fetch FROM pg_stat_all_tables
                          WHERE relid = 'lockkeeper.run'::regclass]])
    end
    local before = reads()
    local a = host("a")
    for _ = 1, 7 do -- statements are planned for all values from the sixth time on
      core.store_facts(a.db, jobs)
      claim(a, slots, 2)
      core.store_waiting(a.db)
      take(a, jobs, 2)
      core.store_requests(a.db, a.runner)
      core.store_look(a.db)
      core.store_beat(a.db, a.runner)
      local run = claim_one(a, "other", core.now() * 1000 % 1e6)
      step(a, run, { guards = { "g" }, conflicts = { "g" } })
      finish(a, run)
    end
    core.store_prune(a.db, 30 * DAY, 1000)
    core.store_history(a.db, { job = "job1", limit = 20 })
    core.store_history(a.db, { limit = 20 })
    a.db:close()
    t.sleep(0.3)
    admin:query("SELECT pg_stat_clear_snapshot()")
    local after = reads()
    assert.equal(before.seq_scan, after.seq_scan)
    local rows = after.idx_tup_fetch - before.idx_tup_fetch
    assert.is_true(rows < 50000, rows .. " rows were read")
    local started = core.monotonic()
    claim(host("b"), slots, 2)
    assert.is_true(core.monotonic() - started < 2)
  end)
end)

describe("names of locks", function()
  it("are learnt once, as pg_locks shows their keys, and lock.names finds them", function()
    local classid, objid, objsubid = core.key_parts(core.key("nightly-report"))
    local name = { classid = classid, objid = objid, objsubid = objsubid, name = "nightly-report" }
    local other = { classid = 1, objid = 4294967295, objsubid = 2, name = "ü" }
    core.store_name_locks(admin, { name, name, other })
    core.store_name_locks(admin, { name })
    core.store_name_locks(admin, {})
    assert.equal(2, admin:value("SELECT count(*) FROM lockkeeper.lock_name"))
    local db = open()
    local held <close> = db:advisory(core.key("nightly-report"))
    assert.is_truthy(held)
    local names = require("lockkeeper.names").of(admin, { [core.key("nightly-report")] = true })
    assert.equal("nightly-report", names[core.key("nightly-report")])
  end)
end)
