-- `lockkeeper serve`: the supervisor and its workers (runner.md 1, 3, 5 to 11, 18, 20, 22 to 26, 28).

local core = require "lockkeeper.core"
local t = require "tests.support"

local LIBRARY = 'local lock = require "lockkeeper"\n'
local DATABASE = "serve_spec"

-- The times that a run, or a look-out, may take on a busy machine.
local SOON = 15

-- Beside one's job, as a witness: what it writes is there whatever becomes of the job.
local WITNESS = LIBRARY .. [[
  local function witness(job, what)
    local session <close> = lock.connect { conninfo = os.getenv("DATABASE_URL") }
    session:query("insert into witness (job, slot, what) values ($1, to_timestamp($2), $3)", job.name,
      job.slot, what)
  end
]]

local db, children

-- The rows of a query, on a session of the test's own.
local function rows(sql, ...)
  return db:query(sql, ...)
end

local function value(sql, ...)
  return db:value(sql, ...)
end

local function environment(more)
  local env = { DATABASE_URL = t.conninfo { dbname = DATABASE } }
  for name, text in pairs(more or {}) do
    env[name] = text
  end
  return env
end

local function write(path, text)
  local file <close> = assert(io.open(path, "w"))
  assert(file:write(text))
end

-- The file of some jobs.
local function jobs(text)
  return t.tempfile(LIBRARY .. text, "jobs.lua")
end

local function await_text(child, text, count)
  t.wait_until(function()
    local _, found = child:stderr():gsub(text:gsub("%p", "%%%0"), "")
    if child:code() and found < (count or 1) then
      error(("%s: it has ended with code %d: %s"):format(text, child:code(), child:stderr()), 0)
    end
    return found >= (count or 1)
  end, SOON, "the log says: " .. text)
end

-- Start a supervisor, without waiting. The last word may be options of t.spawn.
local function start(...)
  local words = { ... }
  local options = type(words[#words]) == "table" and table.remove(words) or {}
  options.env = environment(options.env)
  words[#words + 1] = options
  local child = t.lockkeeper("serve", table.unpack(words))
  children[#children + 1] = child
  return child
end

local function serve(...)
  local child = start(...)
  await_text(child, "serving")
  return child
end

local function stop(child)
  child:signal("TERM")
  assert.equal(0, child:wait(60), child:stderr())
end

-- Wait for runs of a job: `count` of them, where `condition` (SQL over r) holds. Returns them in order.
local function await_runs(job, condition, count)
  local sql = ([[
    select r.id, r.origin, extract(epoch from r.slot)::float8 as slot, r.attempt, r.state, r.reason, r.error,
           r.error_kind, r.fence, r.output, r.parent
      from lockkeeper.run r where r.job = $1 and (%s) order by r.id]]):format(condition or "true")
  local found
  local ok, problem = pcall(t.wait_until, function()
    found = rows(sql, job)
    return #found >= (count or 1)
  end, SOON, ("%d runs of %s: %s"):format(count or 1, job, condition or "any"))
  if not ok then
    local logs = {}
    for i, child in ipairs(children) do
      logs[i] = child:stderr():sub(-3000)
    end
    error(tostring(problem) .. "\n" .. table.concat(logs, "\n--\n"), 2)
  end
  return found
end

-- The processes that descend from one.
local function descendants(pid)
  local list = {}
  local function add(parent)
    local text = t.read_file(("/proc/%d/task/%d/children"):format(parent, parent)) or ""
    for child in text:gmatch("%d+") do
      list[#list + 1] = math.tointeger(child)
      add(list[#list])
    end
  end
  add(pid)
  return list
end

local function are_gone(pids)
  for _, pid in ipairs(pids) do
    if t.is_alive(pid) then
      return false
    end
  end
  return true
end

-- The environment of a process whose clock is wrong by so many seconds (Debian's package faketime).
local function false_clock(offset)
  local pipe <close> = io.popen("faketime -f +0 printenv LD_PRELOAD")
  return {
    LD_PRELOAD = assert(pipe:read("l"), "the package faketime is needed"), FAKETIME = offset,
    FAKETIME_DONT_FAKE_MONOTONIC = "1",
    ASAN_OPTIONS = (os.getenv("ASAN_OPTIONS") or "") .. ":verify_asan_link_order=0",
  }
end

describe("lockkeeper serve", function()
  setup(function()
    t.psql("create database " .. DATABASE)
  end)

  teardown(function()
    t.psql(("drop database %s with (force)"):format(DATABASE))
  end)

  before_each(function()
    children = {}
    db = t.connect { dbname = DATABASE }
    db:exec("set client_min_messages = warning; create table witness (job text, slot timestamptz, what text,"
      .. " at timestamptz default clock_timestamp())")
  end)

  after_each(function()
    for _, child in ipairs(children) do
      child:signal("KILL")
    end
    t.wait_until(function()
      for _, child in ipairs(children) do
        if child:is_running() then
          return false
        end
      end
      return value("select count(*) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()"
        .. " and backend_type = 'client backend'", DATABASE) == 0
    end, SOON, "all supervisors have ended")
    db:exec("drop schema if exists lockkeeper cascade; drop table witness")
    db:close()
  end)

  ------------------------------------------------------------------------------------------------------
  -- what is served

  it("refuses, with exit code 2, files with a fault, and tells its place", function()
    local child = start(jobs('lock.job("a", { every = "nonsense", run = print })'))
    assert.equal(2, child:wait())
    assert.matches("jobs.lua line=2", child:stderr(), 1, true)
    local empty = start(t.tempdir())
    assert.equal(2, empty:wait())
    assert.matches('msg="this folder has no *.lua"', empty:stderr(), 1, true)
  end)

  it("runner.md 1: a worker refuses a file that has changed since it was described", function()
    local path = jobs('lock.job("a", { every = "1s", run = function() end })')
    serve(path)
    write(path, LIBRARY .. 'lock.job("a", { every = "1s", run = function() print("another") end })')
    local run = await_runs("a", "state = 'failed'")[1]
    assert.equal("load", run.reason)
    assert.matches("has changed since it was described", run.error, 1, true)
  end)

  it("runs a job in a process of its own: what it does to it harms no other", function()
    local child = serve(jobs([[
      lock.job("leaves", { schedule = "@start", run = function() os.exit(3) end })
      lock.job("dies", { schedule = "@start", command = { "sh", "-c", "kill -9 $PPID" } })
      lock.job("good", { schedule = "@start", run = function() end })
    ]]), "--warm", "1", "--workers", "1")
    assert.equal("process", await_runs("leaves", "state = 'failed'")[1].reason)
    await_runs("dies", "state = 'failed'")
    await_runs("good", "state = 'succeeded'")
    assert.is_nil(child:code())
  end)

  it("names the locks of its runs, and goes on where that is refused", function()
    local file = jobs([[
      lock.job("a", { schedule = "@start", guards = { lock.guard.advisory("named") }, run = function() end })
    ]])
    serve(file)
    t.wait_until(function()
      return value("select string_agg(name, ' ' order by name) from lockkeeper.lock_name") == "job:a named"
    end, "the names")
    await_runs("a", "state = 'succeeded'")
    db:exec("truncate lockkeeper.lock_name")
    db:exec("alter table lockkeeper.lock_name add constraint refused check (name <> 'named')")
    finally(function() db:exec("alter table lockkeeper.lock_name drop constraint refused") end)
    local child = serve(file, "--log-level", "debug")
    await_text(child, "names of locks: ")
    await_runs("a", "state = 'succeeded'", 2)
  end)

  it("runner.md 3: from = \"finish\" counts from the end of the last run", function()
    serve(jobs([[
      lock.job("a", { every = { "1s", from = "finish" }, run = function() lock.sleep(0.2) end })
    ]]))
    await_runs("a", "state = 'succeeded'", 2)
    local gap = value([[
      select extract(epoch from max(slot) filter (where id = 2) - max(ended_at) filter (where id = 1))::float8
        from (select row_number() over (order by id) as id, slot, ended_at from lockkeeper.run) r]])
    assert.is_true(gap >= 0.99 and gap < 2.5, gap)
  end)

  ------------------------------------------------------------------------------------------------------
  -- slots

  it("runner.md 5: a slot is an instant of the database's clock, also where a host's is wrong by an hour",
    function()
      local path = jobs('lock.job("a", { every = "1s", run = function() end })')
      for _, offset in ipairs { "+3600", "-3600" } do
        serve(path, { env = false_clock(offset) })
      end
      for _, run in ipairs(await_runs("a", "state = 'succeeded'", 3)) do
        assert.is_true(math.abs(run.slot - value("select extract(epoch from now())::float8")) < SOON)
      end
      assert.equal(0, value("select count(*) from lockkeeper.run"
        .. " where slot not between now() - interval '1 minute' and now()"))
    end)

  it("runner.md 6: the newest slot that lies ahead, since the clock was stepped back, stalls none", function()
    local path = jobs('lock.job("a", { every = "1s", run = function() end })')
    stop(serve(path))
    db:exec("insert into lockkeeper.run (job, origin, slot, state, ended_at)"
      .. " values ('a', 'schedule', date_trunc('second', now()) + interval '1 hour', 'succeeded', now())")
    serve(path)
    await_runs("a", "state = 'succeeded' and slot < now()", 2)
  end)

  it("runner.md 7: three supervisors run each slot once", function()
    local path = t.tempfile(WITNESS .. [[
      lock.job("a", { every = "1s", run = function(job) witness(job, "run") end })
      lock.job("b", { every = "1s", overlap = "allow", run = function(job) witness(job, "run") end })
    ]], "jobs.lua")
    for _ = 1, 3 do
      start(path, "--warm", "1")
    end
    await_text(children[1], "serving")
    await_runs("b", "state = 'succeeded'", 4)
    for _, child in ipairs(children) do
      stop(child)
    end
    assert.equal(0, value("select count(*) from lockkeeper.run where state <> 'succeeded'"))
    assert.equal(0, value([[select count(*) from (
      select 1 from witness group by job, slot having count(*) > 1) twice]]))
    assert.equal(value("select count(*) from lockkeeper.run"), value("select count(*) from witness"))
    -- None is left out: the slots lie a second apart.
    assert.equal(2, value([[select count(*) from (select 1 from lockkeeper.run group by job
      having extract(epoch from max(slot) - min(slot)) = count(*) - 1) j]]))
  end)

  it("runner.md 7: a tick is one statement, however many slots are due", function()
    local server = t.start_server { settings = { log_statement = "all" } }
    local list = {}
    for i = 1, 200 do
      list[i] = ('lock.job("j%d", { schedule = "@start", run = function() end })'):format(i)
    end
    local child = start(jobs(table.concat(list, "\n")), "--workers", "1",
      { env = { DATABASE_URL = server:conninfo() } })
    t.wait_until(function()
      return server:psql("select to_regclass('lockkeeper.run') is not null") == "t"
        and server:psql("select count(*) from lockkeeper.run") == "200"
    end, SOON, "200 runs")
    stop(child)
    local _, count = server:log():gsub("INSERT INTO lockkeeper%.run AS r %(job, origin, slot, state", "")
    server:stop()
    assert.equal(1, count)
  end)

  it("runner.md 8: a retry is a row, inserted by the end of the one before; so is a run after it", function()
    serve(jobs([[
      lock.job("a", { schedule = "@start", policy = { retry = { attempts = 3, delay = "100ms" } },
        run = function(job)
          if job.attempt < 2 then error("not yet") end
          return { n = 7 }
        end })
      lock.job("b", { after = "a", run = function(job) return job.parent.result.n end })
      lock.job("c", { after = { "a", on = "failed" }, run = function() end })
    ]]))
    local runs = await_runs("a", "state <> 'due'", 2)
    assert.same({ "failed", 1 }, { runs[1].state, runs[1].attempt })
    await_runs("a", "state = 'succeeded' and attempt = 2")
    local after = await_runs("b", "state = 'succeeded'")[1]
    assert.equal("after", after.origin)
    assert.equal(7, value("select result::text::int from lockkeeper.run where job = 'b'"))
    assert.equal(0, value("select count(*) from lockkeeper.run where job = 'c'"))
  end)

  it("runner.md 9: missed slots: the newest, each in order, or none, as catchup says", function()
    local path = jobs([[
      for _, catchup in ipairs { "last", "all", "none" } do
        lock.job(catchup, { schedule = "* * * * *", catchup = catchup, run = function() end })
      end
    ]])
    stop(serve(path))
    db:exec([[
      delete from lockkeeper.run;
      update lockkeeper.job set schedule_since = now() - interval '1 hour';
      insert into lockkeeper.run (job, origin, slot, state, ended_at)
      select name, 'schedule', date_trunc('minute', now()) - interval '5 minutes', 'succeeded', now()
        from lockkeeper.job]])
    serve(path)
    await_runs("all", "state = 'succeeded'", 6)
    await_runs("last", "state = 'succeeded'", 2)
    local ran = "select array_to_string(array_agg(extract(epoch from slot)::int / 60 order by %s), ' ')"
      .. " from lockkeeper.run where job = '%s' and state = 'succeeded'"
    assert.equal(value(ran:format("slot", "all")), value(ran:format("started_at nulls first", "all")))
    local missed = value("select count(*) from lockkeeper.run where job = 'last' and state = 'skipped'"
      .. " and reason = 'caught_up'")
    assert.is_true(missed >= 4, missed)
    assert.equal(0, value([[select count(*) from lockkeeper.run r where job = 'last' and state = 'succeeded'
      and slot < (select max(slot) from lockkeeper.run where job = 'last' and state = 'skipped')
      and slot > now() - interval '4 minutes']]))
    -- One that may have come up meanwhile was not missed.
    assert.equal(0, value([[select count(*) from lockkeeper.run where job = 'none' and state = 'succeeded'
      and ended_at > claimed_at and slot < now() - interval '1 minute']]))
  end)

  it("runner.md 10: overlap: a run at work makes a new one skip, queue up, replace it, or run beside it",
    function()
      serve(jobs([[
        for _, overlap in ipairs { "skip", "queue", "replace", "allow" } do
          lock.job(overlap, { every = "1s", overlap = overlap, run = function() lock.sleep(2.3) end })
        end
      ]]), "--workers", "12")
      assert.equal("replaced", await_runs("replace", "state = 'cancelled'")[1].reason)
      assert.equal("busy", await_runs("skip", "state = 'skipped'")[1].reason)
      await_runs("skip", "state = 'succeeded'")
      assert.equal("busy", await_runs("queue", "state = 'skipped'")[1].reason)
      await_runs("queue", "state = 'succeeded'", 2)
      await_runs("allow", "state = 'succeeded'", 2)
      local most = [[
        select max(n)::int from (
          select (select count(*) from lockkeeper.run b where b.job = a.job and b.started_at <= a.started_at
                     and (b.ended_at is null or b.ended_at > a.started_at)) as n
            from lockkeeper.run a where a.job = $1 and a.started_at is not null) counts]]
      for _, overlap in ipairs { "skip", "queue", "replace" } do
        assert.equal(1, value(most, overlap), overlap)
      end
      assert.is_true(value(most, "allow") > 1)
      assert.is_true(value("select count(*) from lockkeeper.run where job = 'queue' and state = 'due'") <= 1)
    end)

  it("runner.md 11: trigger, pause and cancel act from any host: as rows that are heard of, and polled for",
    function()
      serve(jobs([[
        lock.job("a", { run = function() lock.sleep(60) end })
        lock.job("b", { run = function() end })
      ]]))
      core.store_trigger(db, "a")
      await_runs("a", "state = 'running'")
      core.store_cancel(db, "a")
      assert.equal("cancelled", await_runs("a", "state = 'cancelled'")[1].reason)
      -- The same without a notification.
      db:exec("insert into lockkeeper.run (job, origin, slot, state)"
        .. " values ('a', 'trigger', clock_timestamp(), 'due')")
      await_runs("a", "state = 'running'")
      db:exec("update lockkeeper.run set cancel_at = now() where job = 'a' and state = 'running'")
      await_runs("a", "state = 'cancelled'", 2)
      -- What is due waits while its job is paused.
      core.store_pause(db, "b", true)
      db:exec("insert into lockkeeper.run (job, origin, slot, state)"
        .. " values ('b', 'trigger', clock_timestamp(), 'due'); select pg_notify('lockkeeper', 'due')")
      core.store_trigger(db, "a")
      await_runs("a", "state = 'running'")
      assert.equal("due", await_runs("b")[1].state)
      core.store_pause(db, "b", false)
      await_runs("b", "state = 'succeeded'")
    end)

  ------------------------------------------------------------------------------------------------------
  -- ends

  it("runner.md 20, 22: after a supervisor's kill -9 its workers and their commands are gone within a second,"
    .. " its runs are found lost by another host within 15 s, and tried again there", function()
    local path = jobs([[
      lock.job("a", { policy = { retry = { attempts = 2, on = "lost" }, grace = "200ms" },
        run = function(job)
          if job.attempt == 1 then job:sh { "sh", "-c", "trap '' TERM; sleep 60 & wait; wait" } end
        end })
    ]])
    local first = serve(path)
    core.store_trigger(db, "a")
    await_runs("a", "state = 'running'")
    local pids = {}
    t.wait_until(function()
      pids = descendants(first:pid())
      for _, pid in ipairs(pids) do
        if (t.read_file(("/proc/%d/cmdline"):format(pid)) or ""):match("^sleep%z60") then
          return true
        end
      end
    end, SOON, "the job's command")
    serve(path)
    local killed = t.now()
    first:signal("KILL")
    t.wait_until(function() return are_gone(pids) end, 1, "the end of all its processes")
    local run = await_runs("a", "state = 'lost'")[1]
    assert.is_true(t.now() - killed < 15)
    assert.equal(1, run.attempt)
    await_runs("a", "state = 'succeeded' and attempt = 2")
    assert.is_true(value("select max(fence) from lockkeeper.run") > run.fence)
  end)

  it("ends a run whose process was killed, and its session with it: the next attempt finds its locks free",
    function()
      local child = serve(jobs([[
        lock.job("a", { schedule = "@start", policy = { retry = { attempts = 2 } }, run = function(job)
          if job.attempt == 1 then job.db:query("select pg_sleep(60)") end
        end })
      ]]))
      await_runs("a", "state = 'running'")
      local pid = value("select backend_pid from lockkeeper.run")
      t.wait_until(function()
        return value("select query like '%pg_sleep%' from pg_stat_activity where pid = $1", pid)
      end, SOON, "the job's statement")
      for _, descendant in ipairs(descendants(child:pid())) do
        local words = t.read_file(("/proc/%d/cmdline"):format(descendant)) or ""
        if words:find("%zwork%z") and #descendants(descendant) == 0 then
          os.execute("kill -9 " .. descendant)
        end
      end
      -- A look-out that comes between the two may find it lost.
      local run = await_runs("a", "state in ('failed', 'lost')")[1]
      assert.matches(run.state == "lost" and "its worker are gone" or "signal 9", run.error, 1, true)
      await_runs("a", "state = 'succeeded' and attempt = 2")
    end)

  it("runner.md 22: the loss of a supervisor's own session leaves its runs alone; they are still cancelled",
    function()
      local child = serve(jobs('lock.job("a", { schedule = "@start", run = function() lock.sleep(60) end })'))
      await_runs("a", "state = 'running'")
      db:query("select pg_terminate_backend(pid) from pg_stat_activity"
        .. " where application_name = 'lockkeeper: serve' and datname = current_database()")
      await_text(child, "serving", 2)
      assert.equal(1, value("select count(distinct uuid) from lockkeeper.runner r join lockkeeper.run u"
        .. " on u.runner <> r.uuid"))
      assert.equal("running", await_runs("a")[1].state)
      core.store_cancel(db, "a")
      await_runs("a", "state = 'cancelled'")
    end)

  it("runner.md 23: SIGTERM claims no more and lets runs finish; the exit code is 0", function()
    local child = serve(jobs([[
      lock.job("a", { schedule = "@start", run = function() lock.sleep(1.5) end })
      lock.job("b", { every = "1s", run = function() end })
    ]]))
    await_runs("a", "state = 'running'")
    child:signal("TERM")
    await_text(child, "ending:")
    local begun = value("select count(*) from lockkeeper.run")
    assert.equal(0, child:wait())
    assert.equal("succeeded", await_runs("a")[1].state)
    assert.equal(begun, value("select count(*) from lockkeeper.run"))
    assert.equal(0, value("select count(*) from lockkeeper.runner"))
  end)

  it("runner.md 23: runs end that outlast --drain, or at a second signal; rows say so", function()
    local path = jobs('lock.job("a", { schedule = "@start", run = function() lock.sleep(60) end })')
    local child = serve(path, "--drain", "200ms")
    await_runs("a", "state = 'running'")
    stop(child)
    await_runs("a", "state = 'cancelled'")
    child = serve(path)
    await_runs("a", "state = 'running'")
    child:signal("INT")
    await_text(child, "ending:")
    assert.is_true(child:is_running())
    stop(child)
    await_runs("a", "state = 'cancelled'", 2)
  end)

  it("runner.md 24: SIGHUP: a broken file keeps its old jobs and is told of; a good one is taken", function()
    local path = jobs('lock.job("a", { every = "1s", run = function() return "old" end })')
    local child = start(path, "--warm", "1")
    await_text(child, "jobs are known")
    child:signal("HUP") -- before it serves, perhaps
    await_text(child, "serving")
    await_runs("a", "state = 'succeeded'")
    await_text(child, "the files were read anew", 1)
    write(path, LIBRARY .. 'lock.job("a", { every = "1s", run = ')
    child:signal("HUP")
    await_text(child, "the files were read anew", 2)
    assert.matches("jobs.lua line=2", child:stderr(), 1, true)
    local newest = value("select max(id) from lockkeeper.run")
    await_runs("a", ("state = 'succeeded' and result::text = '\"old\"' and id > %d"):format(newest))
    write(path, LIBRARY .. 'lock.job("a", { every = "1s", run = function() return "new" end })')
    child:signal("HUP")
    await_runs("a", "state = 'succeeded' and result::text = '\"new\"'")
    -- A run that is begun between a file's change and the signal is refused, by the file's SHA-256.
    assert.equal(0, value("select count(*) from lockkeeper.run where state = 'lost'"
      .. " or state = 'failed' and reason is distinct from 'load'"))
  end)

  it("runner.md 24: SIGHUP: a folder that is away, or empty, keeps its old jobs, too", function()
    local folder = t.tempdir() .. "/jobs"
    os.execute("mkdir " .. folder)
    write(folder .. "/a.lua", LIBRARY .. 'lock.job("a", { every = "1h", run = print })')
    local child = serve(folder .. "/")
    os.rename(folder, folder .. ".old")
    child:signal("HUP")
    await_text(child, "the files were read anew")
    os.execute("mkdir " .. folder)
    child:signal("HUP")
    await_text(child, 'msg="this folder has no *.lua"')
    await_text(child, 'msg="the files were read anew" jobs=1 faults=1', 2)
    assert.is_false(value("select gone from lockkeeper.job where name = 'a'"))
  end)

  it("runner.md 24: --watch reads a folder anew when one of its files changes, comes or goes", function()
    local folder = t.tempdir()
    write(folder .. "/one.lua", LIBRARY .. 'lock.job("one", { every = "1s", run = function() end })')
    local child = serve(folder, "--watch")
    write(folder .. "/two.lua", LIBRARY .. 'lock.job("two", { every = "1s", run = function() end })')
    await_runs("two", "state = 'succeeded'")
    os.remove(folder .. "/one.lua")
    await_text(child, "the files were read anew", 2)
    t.wait_until(function() return value("select gone from lockkeeper.job where name = 'one'") end, SOON,
      "the job is gone")
  end)

  it("runner.md 25: goes on by itself when the database was away, at start and in the middle", function()
    local server = t.start_server()
    server:stop()
    local path = jobs('lock.job("a", { every = "1s", run = function() end })')
    local child = start(path, { env = { DATABASE_URL = server:conninfo() } })
    await_text(child, "no link to the database")
    server:start()
    local function count()
      return server:psql("select count(*) from lockkeeper.run where state = 'succeeded'")
    end
    await_text(child, "serving")
    t.wait_until(function() return tonumber(count()) >= 1 end, SOON, "a run")
    server:restart("immediate")
    local before = tonumber(count())
    t.wait_until(function() return tonumber(count()) > before end, SOON, "a run after the restart")
    stop(child)
    server:stop()
  end)

  it("runner.md 25: goes on when it has its rights and its schema again; the log names what is missing",
    function()
      assert.equal(0, (t.run("init", { env = environment() })))
      local grant = "grant usage on schema lockkeeper to serve_app; grant select, insert, update, delete"
        .. " on all tables in schema lockkeeper to serve_app"
      db:exec("create role serve_app login; " .. grant)
      local child = serve(jobs('lock.job("a", { every = "1s", run = function() end })'),
        { env = { DATABASE_URL = t.conninfo { dbname = DATABASE, user = "serve_app" } } })
      db:exec("revoke insert on lockkeeper.run from serve_app")
      await_text(child, 'msg="slots could not be claimed" error="this role may not read and write')
      assert.matches('hint="GRANT USAGE ON SCHEMA lockkeeper TO serve_app; GRANT SELECT', child:stderr(), 1,
        true)
      db:exec(grant)
      await_text(child, 'msg="it is over" trouble="slots could not be claimed"')
      db:exec("alter schema lockkeeper rename to away")
      await_text(child, 'msg="slots could not be claimed" error="this database has no schema lockkeeper')
      assert.matches('hint="lockkeeper init makes it."', child:stderr(), 1, true)
      db:exec("alter schema away rename to lockkeeper")
      await_text(child, 'msg="it is over" trouble="slots could not be claimed"', 2)
      stop(child)
      db:exec("drop schema lockkeeper cascade; drop owned by serve_app; drop role serve_app")
    end)

  it("runner.md 25: a run whose worker finds no connection comes back until there is one", function()
    t.psql("create role serve_limited login connection limit 2;"
      .. (" grant create on database %s to serve_limited"):format(DATABASE))
    local child = serve(jobs('lock.job("a", { schedule = "@start", run = function() end })'),
      { env = { DATABASE_URL = t.conninfo { dbname = DATABASE, user = "serve_limited" } } })
    await_text(child, "its run is given back")
    t.psql("alter role serve_limited connection limit -1")
    assert.equal(1, await_runs("a", "state = 'succeeded'")[1].attempt)
    assert.equal(1, value("select count(*) from lockkeeper.run"))
    stop(child)
    db:exec("drop schema lockkeeper cascade; drop owned by serve_limited; drop role serve_limited")
  end)

  it("runner.md 26: what jobs print, their commands and the server's notices are in the log, line by line,"
    .. " with job, slot, run and fence, and in the run's row", function()
    local child = serve(jobs([[
      lock.job("a", { schedule = "@start", run = function(job)
        print("from print"); io.stderr:write("from stderr\n")
        os.execute("printf 'from a command'")
        job.db:exec("do $$ begin raise notice 'from the server'; end $$")
      end })
      lock.job("b", { after = "a", command = { "sh", "-c", "echo out; echo err >&2" } })
    ]]), "--log-format", "json")
    local a, b = await_runs("a", "state = 'succeeded'")[1], await_runs("b", "state = 'succeeded'")[1]
    local lines = {}
    local log = ("\n" .. child:stderr()):gsub("\n==%d+==[^\n]*", "") -- what a sanitizer warns of is no JSON
    for line in log:gmatch("[^\n]+") do
      local fields = core.json.decode(line)
      lines[fields.msg] = fields
    end
    for _, text in ipairs { "from print", "from stderr", "from a command", "from the server" } do
      local fields = assert(lines[text], text .. ": " .. child:stderr())
      assert.same({ "a", a.id, a.fence }, { fields.job, fields.run, fields.fence }, text)
      assert.is_string(fields.slot)
      t.wait_until(function()
        return value("select output from lockkeeper.run where id = $1", a.id):find(text)
      end, SOON, text)
    end
    assert.equal("b", lines.out.job)
    assert.equal("b", lines.err.job)
    assert.matches("out", b.output, 1, true)
  end)

  ------------------------------------------------------------------------------------------------------
  -- without state

  it("runner.md 28: --stateless makes no schema; guards keep runs of a job from each other", function()
    local path = t.tempfile(WITNESS .. [[
      lock.job("a", { every = "1s", run = function(job)
        witness(job, "begin"); lock.sleep(0.3); witness(job, "end")
      end })
    ]], "jobs.lua")
    start(path, "--stateless")
    start(path, "--stateless", "--warm", "1")
    t.wait_until(function() return value("select count(*) from witness where what = 'end'") >= 3 end, SOON,
      "three runs")
    for _, child in ipairs(children) do
      stop(child)
    end
    assert.is_true(value("select to_regnamespace('lockkeeper') is null"))
    assert.equal(0, value([[select count(*) from (
      select what, lag(what) over (order by at) as before from witness) w where what = before]]))
  end)

  it("runner.md 28: --stateless refuses what needs rows, with file and line", function()
    local child = start("--stateless", jobs([[
lock.job("a", { after = "b", run = print })
lock.job("b", { overlap = "queue", run = print })
lock.job("c", { overlap = "replace", run = print })
lock.job("d", { catchup = "all", run = print })
lock.job("e", { policy = { retry = { attempts = 2 } }, run = print })
local function careful(job) job:assert_held() end
lock.job("f", { run = function(job) job.db:transaction(function() careful(job) end) end })
lock.job("g", { overlap = "allow", catchup = "none", run = print })]]))
    assert.equal(2, child:wait())
    local log = child:stderr()
    for line, what in pairs { [2] = "after", [3] = 'overlap = \\"queue\\"', [4] = 'overlap = \\"replace\\"',
      [5] = "catchup", [6] = "retry", [8] = "assert_held" } do
      local found
      for text in log:gmatch("[^\n]+") do
        found = found or text:find(what .. " needs the state tables", 1, true)
          and text:find("jobs.lua line=" .. line, 1, true)
      end
      assert.is_truthy(found, what .. ": " .. log)
    end
    assert.is_nil(log:find("line=9", 1, true))
  end)
end)
