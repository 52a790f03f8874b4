-- What a job holds while it runs: runner.md 12, 13, 15 and 16.

local core = require "lockkeeper.core"
local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local count = 0

local function define(more)
  count = count + 1
  return lock.job("guards-spec-" .. count, more)
end

-- Run a job of these guards on a session of the test's own.
local function run(guards, fn, more)
  local definition = { guards = guards, run = fn }
  for key, value in pairs(more or {}) do
    definition[key] = value
  end
  local db <close> = t.connect()
  return define(definition):run { db = db, output = "quiet" }
end

local function succeeds(guards, fn, more)
  local outcome = run(guards, fn, more)
  assert.equal("succeeded", outcome.state, tostring(outcome.error))
  return outcome
end

local function nothing() end

-- The advisory locks of a session, as "classid objid mode".
local function held_by(pid)
  return t.observe(([[select classid, objid, mode from pg_locks
    where locktype = 'advisory' and granted and pid = %d order by 1, 2]]):format(pid))
end

-- What undoes what a test has made.
local made = {}

-- Make a table of two rows, for this test.
local function with_table(name)
  t.psql(("create table %s (id int primary key, x int)"):format(name))
  t.psql(("insert into %s values (1, 1), (2, 2)"):format(name))
  made[#made + 1] = "drop table " .. name
end

setup(function()
  core.log_configure("error")
  t.observe("select 1") -- begun inside a job, the observer would end with it
end)
teardown(function() core.log_configure("info") end)

after_each(function()
  while #made > 0 do
    t.psql(table.remove(made))
  end
end)

describe("runner.md 12: a job's guards", function()
  it("are taken on job.db and held while it runs", function()
    local key = lock.key("guards-spec")
    succeeds({ lock.guard.advisory("guards-spec") }, function(job)
      assert.same({ job.db.pid }, t.holders_of(key))
      local other <close> = t.connect()
      assert.is_nil((other:advisory("guards-spec", { timeout = 0 })))
    end)
    assert.same({}, t.holders_of(key))
  end)

  it("come with the lock job:NAME, but where overlap is \"allow\"", function()
    succeeds(nil, function(job)
      assert.same({ job.db.pid }, t.holders_of(lock.key("job:" .. job.name)))
    end)
    succeeds(nil, function(job)
      assert.equal("", held_by(job.db.pid))
    end, { overlap = "allow" })
  end)

  it("may be shared, semaphores, and of any scheme", function()
    succeeds({
      lock.guard.advisory("guards-spec", { shared = true }),
      lock.guard.semaphore("guards-spec-s", 2),
      lock.guard.advisory("guards-spec-h", { scheme = "hashtext" }),
      lock.guard.advisory({ 1, 2 }), lock.guard.advisory(-7),
    }, function(job)
      local db <close> = t.connect()
      local shared <close> = db:advisory("guards-spec", { timeout = 0, shared = true })
      assert(shared)
      assert.is_nil((db:advisory("guards-spec-h", { timeout = 0, scheme = "hashtext" })))
      assert.is_nil((db:advisory({ 1, 2 }, { timeout = 0 })))
      local slot <close> = db:semaphore("guards-spec-s", 2, { timeout = 0 })
      assert(slot)
      local third <close> = t.connect()
      assert.is_nil((third:semaphore("guards-spec-s", 2, { timeout = 0 })))
      assert.same({ job.db.pid }, t.holders_of(-7))
    end)
  end)

  it("are taken in one order, whatever order they are written in", function()
    local ids = { "guards-spec-1", "guards-spec-2", "guards-spec-3" }
    table.sort(ids, function(a, b) return lock.key(a) < lock.key(b) end)
    local holder <close> = t.connect()
    holder:advisory(ids[2])
    holder:advisory(ids[3])
    for _, order in ipairs { { 1, 2, 3 }, { 3, 2, 1 }, { 2, 3, 1 } } do
      local guards = {}
      for i, n in ipairs(order) do
        guards[i] = lock.guard.advisory(ids[n])
      end
      local outcome = run(guards, nothing, { policy = { timeout = 0 } })
      assert.is_true(outcome.error.busy)
      assert.matches(ids[2], outcome.error.message, 1, true)
    end
  end)

  it("of one that waits are the ones before it in that order, and none behind it", function()
    local ids = { "guards-spec-1", "guards-spec-2", "guards-spec-3" }
    table.sort(ids, function(a, b) return lock.key(a) < lock.key(b) end)
    local file = t.tempfile(([[
      local lock = require "lockkeeper"
      lock.job("guards-spec-order", { overlap = "allow", run = function() end,
        guards = { lock.guard.advisory("%s"), lock.guard.advisory("%s"), lock.guard.advisory("%s") } })
    ]]):format(ids[3], ids[2], ids[1]))
    local holder <close> = t.connect()
    local held = holder:advisory(ids[2])
    local child = t.lockkeeper("run", file)
    t.wait_until(function() return #t.holders_of(lock.key(ids[1])) == 1 end, "the first guard")
    t.wait_until(function() return child:stderr():find("waiting for", 1, true) end, "the wait")
    assert.same({}, t.holders_of(lock.key(ids[3])))
    held:release()
    assert.equal(0, child:wait(), child:stderr())
  end)

  it("by model open a transaction around the job, which is committed with it", function()
    with_table("guards_spec_m")
    succeeds({ lock.guard.model("guards_spec_m", { mode = "SHARE ROW EXCLUSIVE" }) }, function(job)
      assert(job.db.in_transaction)
      job.db:exec("insert into guards_spec_m values (3, 3)")
      assert.equal("1", t.observe(([[select count(*) from pg_locks where pid = %d
        and relation = 'guards_spec_m'::regclass and mode = 'ShareRowExclusiveLock']]):format(job.db.pid)))
    end)
    assert.equal("3", t.psql("select count(*) from guards_spec_m"))
    local outcome = run({ lock.guard.model("guards_spec_m") }, function(job)
      job.db:exec("delete from guards_spec_m")
      error("no")
    end)
    assert.equal("failed", outcome.state)
    assert.equal("3", t.psql("select count(*) from guards_spec_m"))
  end)

  it("by row_locks open one too", function()
    with_table("guards_spec_r")
    succeeds({ lock.guard.row_locks("select * from guards_spec_r where id = $1", { 1 }) }, function(job)
      assert(job.db.in_transaction)
      local db <close> = t.connect()
      local tx <close> = db:begin() -- luacheck: ignore tx
      assert.is_nil((db:row_locks("select * from guards_spec_r where id = 1", nil, { timeout = 0 })))
      assert.equal(1, #db:row_locks("select * from guards_spec_r where id = 2", nil, { timeout = 0 }))
    end)
  end)

  it("of a transaction are had together or not at all: who waits for them holds none", function()
    with_table("guards_spec_a")
    with_table("guards_spec_b")
    local holder <close> = t.connect()
    local tx = holder:begin()
    holder:model("guards_spec_b")
    local file = t.tempfile([[
      local lock = require "lockkeeper"
      lock.job("guards-spec-together", { run = function() print "ran" end,
        guards = { lock.guard.model("guards_spec_b"), lock.guard.model("guards_spec_a") } })
    ]])
    local child = t.lockkeeper("run", file)
    t.wait_until(function()
      return child:stderr():find("waiting for table guards_spec_b", 1, true)
    end, "the wait")
    local other <close> = t.connect()
    local mine <close> = other:begin()
    t.wait_until(function()
      return other:model("guards_spec_a", { timeout = 0 }) -- while it sleeps between two tries
    end, "the table that it does not hold")
    mine:rollback()
    tx:rollback()
    assert.equal(0, child:wait(), child:stderr())
    assert.equal("ran\n", child:stdout())
  end)

  it("with using are on a session beside it, under the job's name", function()
    lock.database("guards_spec", t.conninfo { application_name = "other" })
    succeeds({ lock.guard.advisory("guards-spec", { using = "guards_spec" }) }, function(job)
      local pids = t.holders_of(lock.key("guards-spec"))
      assert.equal(1, #pids)
      assert.not_equal(job.db.pid, pids[1])
      assert.equal("lockkeeper: " .. job.name, t.observe(
        "select application_name from pg_stat_activity where pid = " .. pids[1]))
    end)
    t.wait_until(function() return #t.holders_of(lock.key("guards-spec")) == 0 end, "its end")
  end)
end)

describe("runner.md 14: a guard's session", function()
  it("is never ended for idling, and named after the job", function()
    succeeds(nil, function(job)
      assert.equal("lockkeeper: " .. job.name, job.db:value("show application_name"))
      for _, name in ipairs { "idle_session_timeout", "idle_in_transaction_session_timeout" } do
        assert.equal("0", job.db:value("select current_setting($1)", name))
      end
    end)
  end)
end)

describe("a guard that is busy", function()
  local holder

  before_each(function()
    holder = t.connect()
    holder:advisory("guards-spec")
  end)
  after_each(function() holder:close() end)

  it("fails the run when the policy's timeout is over", function()
    local outcome = run({ lock.guard.advisory("guards-spec") }, nothing, { policy = { timeout = "300ms" } })
    assert.equal("failed", outcome.state)
    assert.equal("lock_timeout", outcome.error.kind)
    assert.equal(75, outcome.exit_code)
    assert.is_true(outcome.waited >= 0.3)
    outcome = run({ lock.guard.advisory("guards-spec") }, nothing, { policy = { timeout = 0 } })
    assert.equal("not_acquired", outcome.error.kind)
  end)

  it("skips it, reason busy, where on_busy is \"skip\"", function()
    local outcome = run({ lock.guard.advisory("guards-spec") }, nothing,
      { policy = { timeout = 0, on_busy = "skip" } })
    assert.equal("skipped", outcome.state)
    assert.equal("busy", outcome.reason)
    assert.equal(75, outcome.exit_code)
  end)

  it("has its own timeout and on_busy, stronger than the policy's", function()
    local outcome = run({ lock.guard.advisory("guards-spec", { timeout = 0, on_busy = "skip" }) }, nothing,
      { policy = { timeout = "1h", on_busy = "raise" } })
    assert.equal("skipped", outcome.state)
    outcome = run({ lock.guard.advisory("guards-spec", { timeout = "0s", on_busy = "raise" }) }, nothing,
      { policy = { timeout = "1h", on_busy = "skip" } })
    assert.equal("failed", outcome.state)
  end)

  it("is waited for as long as the session's lock_timeout says where nobody says more", function()
    local outcome = run({ lock.guard.advisory("guards-spec") }, nothing,
      { policy = { lock_timeout = "200ms" } })
    assert.equal("failed", outcome.state)
    assert.is_true(outcome.error.busy)
  end)

  it("gives back what was taken before it", function()
    local guards = { lock.guard.semaphore("guards-spec-s", 1), lock.guard.advisory("guards-spec") }
    run(guards, nothing, { policy = { timeout = 0 } })
    local other <close> = t.connect()
    local slot <close> = other:semaphore("guards-spec-s", 1, { timeout = 0 })
    assert.is_not_nil(slot)
  end)

  it("is busy as a table, a slot or a row, too", function()
    with_table("guards_spec_t")
    local tx <close> = holder:begin() -- luacheck: ignore tx
    holder:model("guards_spec_t", { mode = "ROW EXCLUSIVE" })
    holder:row_locks("select * from guards_spec_t where id = 1")
    holder:semaphore("guards-spec-t", 1, { timeout = 0 })
    for _, guard in ipairs { lock.guard.model("guards_spec_t"), lock.guard.semaphore("guards-spec-t", 1),
      lock.guard.row_locks("select * from guards_spec_t where id = 1"),
      lock.guard.advisory("guards-spec", { xact = true }) } do
      local outcome = run({ guard }, nothing, { policy = { timeout = "50ms", on_busy = "skip" } })
      assert.equal("skipped", outcome.state, guard.kind)
    end
  end)

  it("that does not exist is an error", function()
    local outcome = run({ lock.guard.model("guards_spec_none") }, nothing)
    assert.equal("failed", outcome.state)
    assert.equal("42P01", outcome.error.sqlstate)
    outcome = run({ lock.guard.model('no"good') }, nothing)
    assert.equal("failed", outcome.state)
  end)
end)

describe("runner.md 10: a second run of the same job", function()
  local function second(overlap, key)
    local job = define { overlap = overlap, run = nothing }
    local holder <close> = t.connect()
    holder:advisory("job:" .. job.name)
    local db <close> = t.connect()
    if key then
      key(job, holder)
    end
    return job:run { db = db, output = "quiet" }
  end

  it("is skipped, reason busy, whatever the policy's timeout is", function()
    local outcome = second("skip")
    assert.equal("skipped", outcome.state)
    assert.equal("busy", outcome.reason)
  end)

  it("runs beside it where overlap is \"allow\"", function()
    assert.equal("succeeded", second("allow").state)
  end)

  it("waits for it where overlap is \"queue\"", function()
    local file = t.tempfile([[
      require("lockkeeper").job("guards-spec-queue", { overlap = "queue", policy = { timeout = "10ms" },
        run = function() print "ran" end })
    ]])
    local holder <close> = t.connect()
    local held = holder:advisory("job:guards-spec-queue")
    local child = t.lockkeeper("run", file)
    t.wait_until(function() return child:stderr():find("waiting for", 1, true) end, "the wait")
    held:release()
    assert.equal(0, child:wait(), child:stderr())
    assert.equal("ran\n", child:stdout())
  end)
end)

describe("runner.md 13: guards wait by polling", function()
  local WAITERS = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
  local LOOKS = [[select count(*) from pg_stat_activity
    where application_name = 'lockkeeper: guards-spec-poll' and query like '%%pg_locks%%' and state = 'idle'
      and %s]]

  local function waiting_job(options)
    return t.tempfile(([[
      local lock = require "lockkeeper"
      lock.job("guards-spec-poll", { run = function() print "ran" end,
        guards = { lock.guard.advisory(4207, %s) } })
    ]]):format(options or "{}"))
  end

  it("never inside the server: nobody is seen waiting, and no snapshot is kept", function()
    local holder <close> = t.connect()
    local held = holder:advisory(4207)
    local child = t.lockkeeper("run", waiting_job())
    t.wait_until(function() return child:stderr():find("waiting for lock 4207", 1, true) end, "the wait")
    assert.matches("holder=\"pid " .. holder.pid, child:stderr(), 1, true)
    for _ = 1, 20 do
      assert.equal("0", t.observe(WAITERS))
    end
    held:release()
    assert.equal(0, child:wait())
  end)

  it("but where poll = false, in the server's queue", function()
    local holder <close> = t.connect()
    local held = holder:advisory(4207)
    local child = t.lockkeeper("run", waiting_job("{ poll = false }"))
    t.wait_until(function()
      return t.observe(WAITERS) == "1"
    end, "the waiter")
    held:release()
    assert.equal(0, child:wait(), child:stderr())
  end)

  it("and warn, naming the holder, when it has changed three times", function()
    local a <close> = t.connect()
    local b <close> = t.connect()
    local held = a:advisory(4207, { shared = true })
    local child = t.lockkeeper("run", waiting_job())
    local pids = { a.pid, b.pid }
    for i = 1, 3 do
      t.wait_until(function()
        return child:stderr():find("waiting for lock 4207", 1, true)
          and t.observe(LOOKS:format("true")) == "1"
      end, "a look")
      local next_one = ({ b, a })[(i - 1) % 2 + 1]:advisory(4207, { shared = true })
      held:release()
      held = next_one
      local at = t.observe("select now()::text")
      t.wait_until(function()
        return t.observe(LOOKS:format("query_start > '" .. at .. "'")) == "1"
      end, "another look")
    end
    t.wait_until(function() return child:stderr():find("went to others 3 times", 1, true) end, "the warning")
    assert.is_true(child:stderr():find("pid " .. pids[2], 1, true) ~= nil)
    held:release()
    assert.equal(0, child:wait(), child:stderr())
  end)

  it("so a REINDEX CONCURRENTLY under a guard for which three others wait succeeds, every time", function()
    t.psql("create table guards_spec_x as select g as id from generate_series(1, 2000) g; "
      .. "create index guards_spec_i on guards_spec_x (id)")
    made[1] = "drop table guards_spec_x"
    local file = t.tempfile([[
      local lock = require "lockkeeper"
      lock.job("guards-spec-other-" .. arg[1], { guards = { lock.guard.advisory("guards-spec-x") },
        run = function() end })
    ]])
    local holder <close> = t.connect()
    local held = holder:advisory("guards-spec-x")
    local waiters = {}
    for i = 1, 3 do
      waiters[i] = t.lockkeeper("run", file, tostring(i))
    end
    for _, child in ipairs(waiters) do
      t.wait_until(function() return child:stderr():find("waiting for", 1, true) end, "the waiters")
    end
    local reindex = define { guards = { lock.guard.advisory("guards-spec-x") }, run = function(job)
      for _ = 1, 5 do
        job.db:exec("reindex index concurrently guards_spec_i")
      end
    end }
    -- On the holder's own session, where the lock nests: the others wait all the while.
    local outcome = reindex:run { db = holder, output = "quiet" }
    assert.equal("succeeded", outcome.state, tostring(outcome.error))
    held:release()
    for _, child in ipairs(waiters) do
      assert.equal(0, child:wait(), child:stderr())
    end
    assert.equal("t", t.psql("select indisvalid from pg_index where indexrelid = 'guards_spec_i'::regclass"))
  end)
end)

describe("runner.md 16: a guard that was lost in the middle", function()
  local function lost(fn, guards)
    local outcome = run(guards or { lock.guard.advisory("guards-spec") }, fn)
    assert.equal("failed", outcome.state)
    assert.equal("lock_lost", outcome.error.kind)
    assert.equal(125, outcome.exit_code)
    return outcome
  end

  it("makes the run failed with lock_lost, whatever the job returned", function()
    local outcome = lost(function(job)
      job.db:exec("select pg_advisory_unlock_all()")
      return "fine"
    end)
    assert.equal("fine", outcome.result) -- which is kept with the run
    lost(function(job) job.db:exec("discard all") end)
    lost(function(job) job.db:query("select pg_advisory_unlock($1)", (lock.key("guards-spec"))) end)
    lost(function(job) job.db:query("select pg_advisory_unlock($1)", (lock.key("job:" .. job.name))) end)
    lost(function(job) job.db:exec("discard all") end, { lock.guard.semaphore("guards-spec-s", 3) })
  end)

  it("and whatever it raised, which is told besides", function()
    local outcome = lost(function(job)
      job.db:exec("discard all")
      error("boom")
    end)
    assert.matches("boom", outcome.error.detail, 1, true)
  end)

  it("also where it was held by a transaction that the job has ended", function()
    with_table("guards_spec_e")
    for _, statement in ipairs { "commit", "rollback", "commit; begin", "commit and chain" } do
      lost(function(job) job.db:exec(statement) end, { lock.guard.model("guards_spec_e") })
    end
  end)

  it("also where the job's session was ended: then the run is lost", function()
    local outcome = run({ lock.guard.advisory("guards-spec") }, function(job)
      pcall(job.db.exec, job.db, "select pg_terminate_backend(pg_backend_pid())")
      return "fine"
    end)
    assert.equal("lock_lost", outcome.error.kind)
    assert.equal(125, outcome.exit_code)
  end)
end)

local function make_schema()
  local code, _, err = t.run("init")
  assert(code == 0, err)
  made[#made + 1] = "drop schema lockkeeper cascade"
end

describe("runner.md 18: a run by hand that has its guards", function()
  -- A row of a run on another host that had the lock "guards-spec", and may go on for `grace` and 1.1 s.
  local function plant(state, grace)
    local classid, objid, objsubid = lock.key_parts(lock.key("guards-spec"))
    return math.tointeger(t.psql(([[
      insert into lockkeeper.run (job, origin, slot, state, guards, grace, ended_at, over_at)
      values ('other', 'schedule', now(), '%s', '{%d:%d:%d:X}', %g, case '%s' when 'lost' then now() end,
              case '%s' when 'lost' then now() + interval '1.1 s' + make_interval(secs => %g) end)
      returning id]]):format(state, classid, objid, objsubid, grace, state, state, grace)):match("%d+"))
  end

  it("waits for one that is running, as long as what that one started may go on", function()
    make_schema()
    plant("running", 0.4)
    local begun = t.now()
    succeeds({ lock.guard.advisory("guards-spec") }, nothing)
    assert.is_true(t.now() - begun >= 1.5)
    begun = t.now()
    succeeds({ lock.guard.advisory("guards-spec-2") }, nothing)
    assert.is_true(t.now() - begun < 1.5)
  end)

  it("waits for one that was lost", function()
    make_schema()
    plant("lost", 0.2)
    local begun = t.now()
    succeeds({ lock.guard.advisory("guards-spec") }, nothing)
    assert.is_true(t.now() - begun >= 1.2)
  end)

  it("waits no longer when that one's row says how it ended", function()
    make_schema()
    local id = plant("running", 3600)
    local begun = t.now()
    lock.tasks(function(spawn)
      spawn(function() succeeds({ lock.guard.advisory("guards-spec") }, nothing) end)
      spawn(function()
        lock.sleep("300ms")
        t.psql("update lockkeeper.run set state = 'succeeded', ended_at = now() where id = " .. id)
      end)
    end)
    assert.is_true(t.now() - begun < 60)
  end)

  it("does not wait where a guard of both is shared", function()
    make_schema()
    local id = plant("running", 3600)
    t.psql("update lockkeeper.run set guards = array[left(guards[1], -1) || 'S'] where id = " .. id)
    succeeds({ lock.guard.advisory("guards-spec", { shared = true }) }, nothing)
  end)
end)

describe("runner.md 15: job.fence", function()

  -- Run the same job several times.
  local function runs(job, times)
    local db <close> = t.connect()
    local outcome
    for _ = 1, times do
      outcome = job:run { db = db, output = "quiet" }
      assert.equal("succeeded", outcome.state, tostring(outcome.error))
    end
    return outcome
  end

  it("is nil without the schema, and assert_held a usage error that says so", function()
    succeeds(nil, function(job)
      assert.is_nil(job.fence)
      expect.usage("there is no schema lockkeeper", job.assert_held, job)
    end)
  end)

  it("grows by one with each run, of each job by itself", function()
    make_schema()
    local seen = {}
    local job = define { run = function(job) seen[#seen + 1] = job.fence end }
    runs(job, 3)
    assert.same({ 1, 2, 3 }, seen)
    runs(define { run = function(other) assert.equal(1, other.fence) end }, 1)
  end)

  it("is committed before the job's own transaction opens, and a command's LOCKKEEPER_FENCE", function()
    make_schema()
    with_table("guards_spec_f")
    succeeds({ lock.guard.model("guards_spec_f") }, function(job)
      assert.equal("1", t.psql("select value from lockkeeper.fence"))
      local _, out = job:sh { "sh", "-c", "echo $LOCKKEEPER_FENCE" }
      assert.equal("1\n", out)
    end)
  end)

  it("is nil for a role that may not use the table", function()
    make_schema()
    t.psql("create role guards_spec_weak login")
    made[#made + 1] = "drop role guards_spec_weak"
    local db <close> = t.connect { user = "guards_spec_weak" }
    local outcome = define({ run = function(job)
      assert.is_nil(job.fence)
      expect.usage("this role may not use", job.assert_held, job)
    end }):run { db = db, output = "quiet" }
    assert.equal("succeeded", outcome.state, tostring(outcome.error))
  end)

  it("is checked by assert_held: lock_lost when a later run has begun", function()
    make_schema()
    runs(define { run = function(job)
      expect.usage("no transaction is open", job.assert_held, job)
      job.db:transaction(function() job:assert_held() end)
      t.psql("update lockkeeper.fence set value = value + 1")
      job.db:transaction(function()
        expect.kind("lock_lost", job.assert_held, job)
      end)
    end }, 1)
  end)

  it("also in a transaction whose snapshot is older than the later run", function()
    make_schema()
    runs(define { run = function(job)
      local tx <close> = job.db:begin { isolation = "repeatable read" } -- luacheck: ignore tx
      job.db:value("select 1")
      t.psql("update lockkeeper.fence set value = value + 1")
      expect.kind("lock_lost", job.assert_held, job)
    end }, 1)
  end)

  it("is locked by it: no later run begins before the transaction has ended", function()
    make_schema()
    runs(define { run = function(job)
      job.db:transaction(function()
        job:assert_held()
        local other <close> = t.connect()
        local err = expect.raised(function()
          other:timeout("50ms", function() other:exec("update lockkeeper.fence set value = value + 1") end)
        end)
        assert.equal("55P03", err.sqlstate)
      end)
    end }, 1)
  end)

  it("can't be asserted where overlap is \"allow\"", function()
    make_schema()
    runs(define { overlap = "allow", run = function(job)
      job.db:transaction(function() expect.usage('overlap is "allow"', job.assert_held, job) end)
    end }, 1)
  end)
end)
