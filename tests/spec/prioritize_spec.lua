-- lua-api.md, "prioritize", and locks.md 14 to 17.

local core = require "lockkeeper.core"
local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local raised, usage = expect.kind, expect.usage

local SIDE = "lockkeeper: prioritize"

local function is_there(pid)
  return t.observe(("select 1 from pg_stat_activity where pid = %d"):format(pid)) == "1"
end

local function side_sessions()
  return tonumber(t.observe(
    ("select count(*) from pg_stat_activity where application_name = '%s'"):format(SIDE)))
end

describe("prioritize", function()
  local opened = {}
  local db

  local function connect(options)
    opened[#opened + 1] = t.connect(options)
    return opened[#opened]
  end

  -- A session that runs these statements in a transaction and is then idle in it.
  local function holder(...)
    local session = connect()
    session:exec("begin")
    for _, sql in ipairs({ ... }) do
      session:exec(sql)
    end
    return session
  end

  local LOCK, UPDATE = "lock table prioritized in access exclusive mode", "update prioritized set v = v + 1"
  local SHARE = "lock table prioritized in share mode"

  -- Lets other tasks go on between two looks.
  local function wait_in_task(fn, what)
    t.wait_until(function()
      lock.sleep("2ms")
      return fn()
    end, what)
  end

  -- `session` waits for what nobody gives it, until `is_enough` is true.
  local function wait_in_vain(session, is_enough)
    lock.tasks(function(spawn)
      spawn(function() assert.equal("57014", raised("sql", session.exec, session, UPDATE).sqlstate) end)
      spawn(function()
        wait_in_task(is_enough, "what was waited for")
        wait_in_task(function() return t.is_waiting(session.pid) end)
        t.observe(("select pg_cancel_backend(%d)"):format(session.pid))
      end)
    end)
  end

  -- The actions of a wait that ends when there are so many, and some more looks.
  local function actions_of(session, options, count)
    options.interval = "10ms"
    return session:prioritize(options, function(handle)
      wait_in_vain(session, function() return #handle.actions >= count end)
      lock.sleep("50ms")
      return handle.actions
    end)
  end

  setup(function()
    core.log_configure("error")
    t.psql([[
      create table prioritized (id int primary key, v int not null default 0);
      insert into prioritized select generate_series(1, 3);
      grant all on prioritized to public;]])
  end)
  teardown(function()
    core.log_configure("info")
    t.psql("drop table prioritized")
  end)
  before_each(function() db = connect() end)
  after_each(function()
    while #opened > 0 do
      table.remove(opened):close()
    end
  end)

  ---------------------------------------------------------------------------------------------
  -- whom it ends

  describe("while a statement waits", function()
    -- What the blocker holds, and the statement that waits for it.
    local WAITS = {
      { "for a relation", LOCK, UPDATE },
      { "for a row", "update prioritized set v = v + 1 where id = 1",
        "update prioritized set v = v + 1 where id = 1" },
      { "for a row's queue", "select from prioritized where id = 1 for update",
        "select from prioritized where id = 1 for no key update" },
      { "for an advisory lock", "select pg_advisory_lock(42)", "select pg_advisory_xact_lock(42)" },
      { "for an advisory lock of two keys", "select pg_advisory_xact_lock(-1, 7)",
        "select pg_advisory_xact_lock_shared(-1, 7)" },
      { "for an object", "create schema blocked_here; create table blocked_here.x ()",
        "create schema blocked_here; drop schema blocked_here" },
      { "for a transaction that inserts the same key", "insert into prioritized values (9)",
        "insert into prioritized values (9); delete from prioritized where id = 9" },
    }
    for _, case in ipairs(WAITS) do
      it("locks.md 14: " .. case[1] .. ", its blocker is terminated and it goes on", function()
        local blocker = holder(case[2])
        local pid, start = blocker.pid, t.now()
        db:prioritize({ interval = "30ms" }, function(handle)
          db:exec(case[3])
          assert.is_true(t.now() - start >= 0.03)
          assert.equal(1, #handle.actions)
          local action = handle.actions[1]
          assert.equal("terminate", action.action)
          assert.equal("signalled", action.result)
          assert.equal(pid, action.pid)
          assert.equal(db.pid, action.waiter_pid)
        end)
        assert.is_false(is_there(pid))
      end)
    end

    it("locks.md 14: only direct blockers are: the blocker's own blocker lives", function()
      local root = holder("select pg_advisory_xact_lock(1)")
      local middle = holder(LOCK)
      lock.tasks(function(spawn)
        spawn(function()
          raised("connection", middle.exec, middle, "select pg_advisory_xact_lock(1)")
        end)
        spawn(function()
          wait_in_task(function() return t.is_waiting(middle.pid) end)
          db:prioritize({ interval = "20ms" }, function(handle)
            db:exec(UPDATE)
            assert.equal(1, #handle.actions)
          end)
        end)
      end)
      assert.is_true(root:ping())
    end)

    it('locks.md 14: with reach = "roots" only those are that wait for nobody', function()
      local root, bystander = holder("select pg_advisory_xact_lock(1)"), holder("select 1")
      local middle, outer = holder(LOCK), holder("select pg_advisory_xact_lock(2)")
      local root_pid = root.pid
      lock.tasks(function(spawn)
        spawn(function()
          outer:exec("select pg_advisory_xact_lock(1)")
          outer:exec("commit")
        end)
        spawn(function()
          middle:exec("select pg_advisory_xact_lock(2)")
          middle:exec("commit")
        end)
        spawn(function()
          wait_in_task(function() return t.is_waiting(middle.pid) and t.is_waiting(outer.pid) end)
          db:prioritize({ interval = "20ms", reach = "roots" }, function(handle)
            db:exec(UPDATE)
            assert.equal(1, #handle.actions)
            assert.equal(root_pid, handle.actions[1].pid)
            assert.equal(outer.pid, handle.actions[1].waiter_pid)
            assert.equal(db.pid, handle.actions[1].protected_pid)
          end)
        end)
      end)
      assert.is_false(is_there(root_pid))
      assert.is_true(bystander:ping())
    end)

    it("all of them are, also those ahead in the queue", function()
      local reader, queued = holder("select from prioritized"), connect()
      local pid = queued.pid
      lock.tasks(function(spawn)
        spawn(function() raised("connection", queued.exec, queued, "begin; " .. LOCK) end)
        spawn(function()
          wait_in_task(function() return t.is_waiting(queued.pid) end)
          db:prioritize({ interval = "20ms" }, function(handle)
            db:exec(UPDATE) -- conflicts with the queued one only
            assert.equal(1, #handle.actions)
            assert.equal(pid, handle.actions[1].pid)
          end)
        end)
      end)
      assert.is_true(reader:ping())
    end)

    it("fifty at once are", function()
      for _ = 1, 50 do
        holder(SHARE)
      end
      db:prioritize({ interval = "20ms" }, function(handle)
        db:exec(UPDATE)
        assert.equal(50, #handle.actions)
      end)
    end)

    it("parallel workers are told by their leader", function()
      local child = t.spawn({ require("tests.support.target").bindir() .. "/psql", "-Xqd", t.conninfo({
        application_name = "parallel", options = "-c min_parallel_table_scan_size=0 -c parallel_setup_cost=0 "
          .. "-c parallel_tuple_cost=0 -c max_parallel_workers_per_gather=2" }),
        "-c", "create table big as select generate_series(1, 20000) i",
        "-c", "select count(*) from big a, big b where a.i + b.i < 0" })
      t.wait_until(function()
        return t.observe("select 1 from pg_stat_activity where backend_type = 'parallel worker'"):find("1")
      end, "parallel workers")
      db:prioritize({ interval = "20ms" }, function(handle)
        db:exec("drop table big")
        assert.equal(1, #handle.actions)
        assert.equal("parallel", handle.actions[1].application_name)
      end)
      child:wait()
    end)
  end)

  it("looks first after one interval, so that a short wait ends nobody", function()
    local blocker = holder(LOCK)
    lock.tasks(function(spawn)
      spawn(function()
        db:prioritize({ interval = "10s" }, function(handle)
          db:exec(UPDATE)
          assert.same({}, handle.actions)
        end)
      end)
      spawn(function()
        wait_in_task(function() return t.is_waiting(db.pid) end)
        blocker:exec("commit")
      end)
    end)
    assert.is_true(blocker:ping())
  end)

  it("looks every interval: for each wait of the block", function()
    db:prioritize({ interval = "20ms" }, function(handle)
      for i = 1, 3 do
        holder(LOCK)
        db:exec(UPDATE)
        assert.equal(i, #handle.actions)
      end
    end)
  end)

  it("looks at intervals as short as a millisecond", function()
    for _, interval in ipairs({ "1ms", "2ms", "3ms", "5ms", "7ms", "9ms", 0.0015 }) do
      holder(LOCK)
      db:prioritize({ interval = interval }, function() db:exec(UPDATE) end)
    end
  end)

  it("periodic = false: looks once", function()
    holder(LOCK)
    db:prioritize({ interval = "10ms", periodic = false }, function(handle)
      db:exec(UPDATE)
      assert.equal(1, #handle.actions)
      local left = holder(LOCK)
      raised("lock_timeout", db.timeout, db, "150ms", function() db:exec(UPDATE) end)
      assert.equal(1, #handle.actions)
      assert.is_true(left:ping())
    end)
  end)

  it("does nothing where nobody waits", function()
    local bystander = holder(LOCK)
    db:prioritize({ interval = "5ms" }, function(handle)
      lock.sleep("50ms")
      db:exec("select pg_sleep(0.05)")
      assert.same({}, handle.actions)
    end)
    assert.is_true(bystander:ping())
  end)

  ---------------------------------------------------------------------------------------------
  -- how

  it('action = "cancel" ends the statement, not the session', function()
    local blocker = connect()
    lock.tasks(function(spawn)
      spawn(function()
        assert.equal("57014", raised("sql", blocker.exec, blocker, LOCK .. "; select pg_sleep(60)").sqlstate)
      end)
      spawn(function()
        wait_in_task(function()
          return t.observe(("select 1 from pg_locks where pid = %d and mode = 'AccessExclusiveLock'"):format(
            blocker.pid)) == "1"
        end)
        db:prioritize({ interval = "20ms", action = "cancel" }, function(handle)
          db:exec(UPDATE)
          assert.equal("cancel", handle.actions[1].action)
          assert.equal("signalled", handle.actions[1].result)
        end)
      end)
    end)
    assert.is_true(blocker:ping())
  end)

  it("locks.md 15: a cancel of a session idle in transaction is told once, as no_effect", function()
    local blocker = holder(LOCK)
    local actions = actions_of(db, { action = "cancel" }, 1)
    assert.equal(1, #actions)
    assert.equal("no_effect", actions[1].result)
    assert.is_true(blocker:ping())
  end)

  it("locks.md 15: escalate terminates at once where a cancel has no effect", function()
    local blocker = holder(LOCK)
    db:prioritize({ interval = "20ms", escalate = "1h" }, function(handle)
      db:exec(UPDATE)
      local first, second = table.unpack(handle.actions)
      assert.same({ "cancel", "no_effect" }, { first.action, first.result })
      assert.same({ "terminate", "signalled" }, { second.action, second.result })
    end)
    assert.is_nil((blocker:ping()))
  end)

  it("escalate: cancels first, terminates what still blocks after that", function()
    local blocker = connect()
    blocker:exec([[create function pg_temp.stay() returns void language plpgsql as $$ begin
      loop
        begin
          perform pg_sleep(60);
        exception when query_canceled then -- and on
        end;
      end loop;
    end $$]])
    local actions
    lock.tasks(function(spawn)
      spawn(function() raised("connection", blocker.exec, blocker, LOCK .. "; select pg_temp.stay()") end)
      spawn(function()
        wait_in_task(function()
          return t.observe("select wait_event from pg_stat_activity where pid = " .. blocker.pid) == "PgSleep"
        end)
        db:prioritize({ interval = "20ms", escalate = "100ms" }, function(handle)
          db:exec(UPDATE)
          actions = handle.actions
        end)
      end)
    end)
    local last = #actions
    assert.is_true(last >= 2)
    for i = 1, last - 1 do
      assert.equal("cancel", actions[i].action)
      assert.equal("signalled", actions[i].result)
    end
    assert.equal("terminate", actions[last].action)
    assert.is_true(actions[last].at - actions[1].at >= 0.09)
  end)

  it("action: a function gets what `where` left and returns the pids to end", function()
    local first, second = holder(SHARE),
      holder(SHARE)
    local named = connect({ application_name = "not meant" })
    named:exec("begin; lock table prioritized in share mode")
    local rounds, seen = 0, nil
    db:prioritize({
      interval = "20ms",
      where = { blocking_application_name_ne = "not meant" },
      action = function(blocked)
        rounds = rounds + 1
        seen = seen or blocked:blocking_pids()
        table.sort(seen)
        if #seen == 2 and rounds == 1 then
          named:exec("commit")
          return { blocked[1].blocking_pid }
        end
        return blocked:blocking_pids()
      end,
    }, function(handle)
      db:exec(UPDATE)
      assert.equal(2, #handle.actions)
    end)
    assert.equal(2, #seen)
    assert.is_nil((first:ping()))
    assert.is_nil((second:ping()))
    assert.is_true(named:ping())
  end)

  it("action: what it returns that blocks nobody, or may not be touched, is not hit", function()
    local bystander, blocker = holder("select 1"), holder(LOCK)
    local own, calls = db.pid, 0
    db:prioritize({ interval = "10ms", protect = { pid = blocker.pid }, action = function()
      calls = calls + 1
      return { bystander.pid, blocker.pid, own, own, 0, -1, 2147483647 }
    end }, function(handle)
      wait_in_vain(db, function() return calls > 1 end)
      assert.same({}, handle.actions)
    end)
    assert.is_true(bystander:ping())
    assert.is_true(blocker:ping())
  end)

  it("action: nothing returned is nobody", function()
    local blocker, calls = holder(LOCK), 0
    db:prioritize({ interval = "10ms", action = function() calls = calls + 1 end }, function(handle)
      wait_in_vain(db, function() return calls > 1 end)
      assert.same({}, handle.actions)
    end)
    assert.is_true(blocker:ping())
  end)

  it("action: a function with reach = \"roots\" gets the roots' rows", function()
    local root, middle = holder("select pg_advisory_xact_lock(1)"), holder(LOCK)
    local root_pid, got = root.pid, nil
    lock.tasks(function(spawn)
      spawn(function()
        middle:exec("select pg_advisory_xact_lock(1)")
        middle:exec("commit")
      end)
      spawn(function()
        wait_in_task(function() return t.is_waiting(middle.pid) end)
        db:prioritize({ interval = "20ms", reach = "roots", action = function(blocked)
          got = blocked:blocking_pids()
          return got
        end }, function() db:exec(UPDATE) end)
      end)
    end)
    assert.same({ root_pid }, got)
    assert.is_false(is_there(root_pid))
  end)

  it("where: a filter of blocked rows, or a function of one", function()
    local blocker = holder(LOCK)
    for _, where in ipairs({ { blocking_duration_gte = "1h" }, { blocking_pid_ne = blocker.pid },
      { type = "advisory" }, function(row) return row.blocking_pid ~= blocker.pid end }) do
      raised("lock_timeout", db.prioritize, db, { interval = "10ms", timeout = "100ms", where = where },
        function() db:exec(UPDATE) end)
    end
    assert.is_true(blocker:ping())
    local where = { blocking_state = "idle in transaction", mode = "ROW EXCLUSIVE", wait_duration_gte = "1ms",
      on = "prioritized" }
    db:prioritize({ interval = "10ms", where = where }, function() db:exec(UPDATE) end)
    assert.is_nil((blocker:ping()))
  end)

  it("escalate waits for a session that it has not seen before anew", function()
    for _ = 1, 2 do
      holder(LOCK)
      db:prioritize({ interval = "10ms", escalate = "10ms" }, function(handle)
        db:exec(UPDATE)
        assert.equal("cancel", handle.actions[1].action)
      end)
    end
  end)

  it("max_kills bounds one block; a session counts once", function()
    holder(SHARE)
    holder(SHARE)
    raised("lock_timeout", db.prioritize, db, { interval = "10ms", max_kills = 0, timeout = "100ms" },
      function() db:exec(UPDATE) end)
    assert.equal(1, #actions_of(db, { max_kills = 1 }, 1))
    db:prioritize({ interval = "10ms", max_kills = 1, escalate = "1h" }, function(handle)
      db:exec(UPDATE)
      assert.equal(2, #handle.actions) -- the cancel and the terminate of the other
      assert.equal(handle.actions[1].pid, handle.actions[2].pid)
    end)
  end)

  it("timeout: a lock_timeout inside, put back afterwards, also without a function", function()
    db:exec("set lock_timeout = '5s'")
    db:prioritize({ timeout = "1500ms" }, function()
      assert.equal("1500ms", db:value("show lock_timeout"))
    end)
    assert.equal("5s", db:value("show lock_timeout"))
    do
      local _ <close> = db:prioritize({ timeout = false })
      assert.equal("0", db:value("show lock_timeout"))
    end
    assert.equal("5s", db:value("show lock_timeout"))
    db:transaction(function(tx)
      tx:prioritize({ timeout = "2s" }, function() assert.equal("2s", db:value("show lock_timeout")) end)
      assert.equal("5s", db:value("show lock_timeout"))
    end)
  end)

  ---------------------------------------------------------------------------------------------
  -- whom it never touches

  describe("never touches", function()
    -- The actions of some looks.
    local function actions_in_vain(options)
      local actions
      options.interval, options.timeout = "10ms", "150ms"
      raised("lock_timeout", db.prioritize, db, options, function(handle)
        actions = handle.actions
        db:exec(UPDATE)
      end)
      return actions
    end

    it("whom `protect` names: a filter, a list of them, or a function of the session", function()
      local blocker = connect({ application_name = "precious" })
      blocker:exec("begin")
      blocker:exec(LOCK)
      for _, protect in ipairs({
        { application_name = "precious" },
        { { user = "nobody" }, { application_name_like = "prec%" } },
        function(session) return session.pid == blocker.pid end,
        { { user = "nobody" }, function(session) return session.application_name == "precious" end },
        { state = { "idle in transaction" } },
      }) do
        assert.same({}, actions_in_vain({ protect = protect }))
      end
      assert.is_true(blocker:ping())
      db:prioritize({ interval = "10ms", protect = { application_name = "other" } }, function()
        db:exec(UPDATE)
      end)
      assert.is_nil((blocker:ping()))
    end)

    it("locks.md 16: other sessions under prioritize", function()
      local blocker = connect()
      local other <close> = blocker:prioritize({})
      blocker:exec("begin")
      blocker:exec(LOCK)
      assert.same({}, actions_in_vain({}))
      assert.is_true(blocker:ping())
      assert.is_true(is_there(other.side_pid))
    end)

    it("locks.md 16: walsenders", function()
      local walsender = t.spawn({ require("tests.support.target").bindir() .. "/psql", "-Xqd",
        t.conninfo({ replication = "database" }), "-c", "begin", "-c", LOCK, "-c", "select pg_sleep(60)" })
      t.wait_until(function()
        return t.observe([[select 1 from pg_locks join pg_stat_activity using (pid)
          where mode = 'AccessExclusiveLock' and backend_type = 'walsender']]) == "1"
      end, "the walsender's lock")
      local actions = actions_in_vain({})
      t.observe("select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'")
      walsender:wait()
      assert.same({}, actions)
    end)

    it("prepared transactions: tells once what to do instead", function()
      local blocker = holder(UPDATE, "prepare transaction 'it''s'")
      local actions = actions_of(db, {}, 1)
      blocker:exec("rollback prepared 'it''s'")
      assert.equal(1, #actions)
      assert.equal(0, actions[1].pid)
      assert.equal("refused", actions[1].result)
      assert.equal("ROLLBACK PREPARED 'it''s'", actions[1].hint)
    end)

    it("itself, whatever is asked for", function()
      local blocker = holder(LOCK)
      local pid = db.pid
      assert.same({}, actions_in_vain({ action = function(blocked) return blocked:pids() end }))
      assert.equal(pid, db.pid)
      assert.is_true(blocker:ping())
    end)
  end)

  it("locks.md 16: is known by an advisory lock, a constant and the protected session's pid", function()
    local function markers()
      return t.observe([[select pid, objid, objsubid from pg_locks where locktype = 'advisory' and granted
        and classid = 275418866]])
    end
    db:prioritize({}, function(handle)
      assert.equal(("%d|%d|2"):format(handle.side_pid, db.pid), markers())
      -- It follows the session to its next backend.
      db:reconnect()
    end)
    t.wait_until(function() return markers() == "" end)
  end)

  it("protects a session that was reconnected inside", function()
    db:prioritize({ interval = "20ms" }, function(handle)
      db:reconnect()
      holder(LOCK)
      db:exec(UPDATE)
      assert.equal(db.pid, handle.actions[1].waiter_pid)
      assert.equal(tostring(db.pid), t.observe(
        "select objid from pg_locks where locktype = 'advisory' and classid = 275418866"))
    end)
  end)

  describe("sessions", function()
    it("protects the waits of other sessions too", function()
      local migration, blocker = connect({ application_name = "migration" }), holder(LOCK)
      local stranger = connect()
      local pid = blocker.pid
      lock.tasks(function(spawn)
        spawn(function() migration:exec(UPDATE) end)
        spawn(function()
          db:prioritize({ interval = "20ms", sessions = { application_name = "migration" } }, function(handle)
            wait_in_task(function() return #handle.actions > 0 end, "the action")
            assert.equal(pid, handle.actions[1].pid)
            assert.equal(migration.pid, handle.actions[1].waiter_pid)
          end)
        end)
      end)
      assert.is_true(stranger:ping())
    end)

    it("leaves those alone that wait without being named", function()
      local stranger, blocker = connect(), holder(LOCK)
      lock.tasks(function(spawn)
        spawn(function()
          raised("lock_timeout", stranger.timeout, stranger, "200ms", stranger.exec, stranger, UPDATE)
        end)
        spawn(function()
          db:prioritize({ interval = "10ms", sessions = function(session)
            return session.application_name == "nobody"
          end }, function(handle)
            wait_in_task(function() return t.is_waiting(stranger.pid) end)
            wait_in_task(function() return not t.is_waiting(stranger.pid) end)
            assert.same({}, handle.actions)
          end)
        end)
      end)
      assert.is_true(blocker:ping())
    end)

    it("are never touched themselves, although they block each other", function()
      local one = connect({ application_name = "migration" })
      local two = connect({ application_name = "migration" })
      one:exec("begin")
      one:exec(LOCK)
      lock.tasks(function(spawn)
        spawn(function()
          raised("lock_timeout", two.timeout, two, "150ms", two.exec, two, UPDATE)
        end)
        spawn(function()
          db:prioritize({ interval = "10ms", sessions = { application_name = "migration" } }, function(handle)
            wait_in_task(function() return t.is_waiting(two.pid) end)
            wait_in_task(function() return not t.is_waiting(two.pid) end)
            assert.same({}, handle.actions)
          end)
        end)
      end)
      assert.is_true(one:ping())
    end)
  end)

  describe("dry_run makes the identical plan, and touches nobody", function()
    local CASES = {
      ["by default"] = { {}, { "terminate first", "terminate second" } },
      ["with escalate"] = { { escalate = "1h" },
        { "cancel first", "cancel second", "terminate first", "terminate second" } },
      ["with max_kills"] = { { max_kills = 1, where = { blocking_application_name = "second" } },
        { "terminate second" } },
      ["with cancel"] = { { action = "cancel" }, { "cancel first", "cancel second" } },
      ["with where"] = { { where = { blocking_application_name = "second" } }, { "terminate second" } },
      ["with protect"] = { { protect = { application_name = "second" } }, { "terminate first" } },
      ["with a function"] = { { action = function(blocked) return blocked:blocking_pids() end },
        { "terminate first", "terminate second" } },
    }
    for name, case in pairs(CASES) do
      for _, dry_run in ipairs({ true, false }) do
        it(("%s (%s)"):format(name, dry_run and "dry" or "in earnest"), function()
          local first, second = connect(), connect({ application_name = "second" })
          local names = { [first.pid] = "first", [second.pid] = "second" }
          for _, session in ipairs({ first, second }) do
            session:exec("begin")
            session:exec(SHARE)
          end
          local options, handle = { interval = "10ms", dry_run = dry_run }, nil
          for option, value in pairs(case[1]) do
            options[option] = value
          end
          lock.tasks(function(spawn)
            spawn(function()
              db:prioritize(options, function(h)
                handle = h
                db:exec(UPDATE)
              end)
            end)
            spawn(function()
              wait_in_task(function() return handle and #handle.actions >= #case[2] end, "the plan")
              if dry_run then
                assert.is_true(first:ping())
                assert.is_true(second:ping())
              end
              first:close()
              second:close()
            end)
          end)
          local lines = {}
          for i, action in ipairs(handle.actions) do
            lines[i] = ("%s %s"):format(action.action, names[action.pid])
            if dry_run then
              assert.is_true(action.result == "dry_run" or action.result == "no_effect", action.result)
            end
          end
          table.sort(lines)
          assert.same(case[2], lines)
        end)
      end
    end
  end)

  it("dry_run tells an action once, however often it looks", function()
    local blocker, told = holder(LOCK), 0
    local actions = actions_of(db, { dry_run = true, on_action = function(action)
      told = told + 1
      assert.equal("dry_run", action.result)
      assert.is_true(action.dry_run)
    end }, 1)
    assert.equal(1, told)
    assert.equal(1, #actions)
    assert.is_true(blocker:ping())
  end)

  ---------------------------------------------------------------------------------------------
  -- what it tells

  it("locks.md 17: each action has time, who, why, what and result", function()
    local blocker = connect({ application_name = "the blocker" })
    blocker:exec("begin")
    blocker:exec(LOCK)
    local pid, before = blocker.pid, core.now()
    local got
    db:prioritize({ interval = "20ms", on_action = function(action) got = action end }, function(handle)
      db:exec(UPDATE)
      assert.equal(handle.actions[1], handle.actions[#handle.actions])
    end)
    assert.equal(pid, got.pid)
    assert.equal("postgres", got.user)
    assert.equal("the blocker", got.application_name)
    assert.equal("idle in transaction", got.state)
    assert.equal(LOCK, got.query)
    assert.is_true(got.age > 0 and got.age < 3600)
    assert.is_true(got.at >= before and got.at <= core.now())
    assert.equal(db.pid, got.waiter_pid)
    assert.equal(db.pid, got.protected_pid)
    assert.equal("relation public.prioritized", got.lock)
    assert.equal("ROW EXCLUSIVE", got.requested_mode)
    assert.equal("ACCESS EXCLUSIVE", got.held_mode)
    assert.is_true(got.waited >= 0)
    assert.equal("terminate", got.action)
    assert.equal("signalled", got.result)
    assert.is_true(got.ended)
  end)

  it("locks.md 17: every action is one JSON line in the log", function()
    local blocker = connect({ application_name = "the blocker" })
    blocker:exec("begin")
    blocker:exec(LOCK)
    local script = t.tempfile([[
      local lock = require "lockkeeper"
      lock.prioritize({ interval = "20ms" }, function()
        lock.db:exec("update prioritized set v = v + 1")
      end)]])
    local code, _, err = t.run("run", "--log-format", "json", script)
    assert.equal(0, code, err)
    local lines = {}
    for line in err:gmatch("[^\n]+") do
      lines[#lines + 1] = lock.json.decode(line)
    end
    assert.equal(1, #lines)
    local line = lines[1]
    assert.equal("terminate", line.action)
    assert.equal("signalled", line.result)
    assert.equal("postgres", line.user)
    assert.equal("the blocker", line.application)
    assert.equal(LOCK, line.query)
    assert.equal("relation public.prioritized", line.lock)
    for _, name in ipairs({ "time", "pid", "age", "waiter", "requested", "held", "waited", "state" }) do
      assert.is_truthy(line[name], name)
    end
  end)

  describe("for a role that may not signal another role's session", function()
    local app

    before_each(function() app = connect({ user = "lk_app" }) end)
    after_each(function() t.psql("revoke pg_signal_backend, pg_read_all_stats from lk_app") end)

    local function refusal()
      local actions = actions_of(app, {}, 1)
      assert.equal(1, #actions) -- told once
      assert.equal("refused", actions[1].result)
      return actions[1]
    end

    it("locks.md 15: it says so and names the role to grant, one after the other", function()
      local theirs = connect({ user = "lk_pw", password = t.password })
      theirs:exec("begin")
      theirs:exec(LOCK)
      assert.equal("GRANT pg_read_all_stats TO lk_app", refusal().hint)
      t.psql("grant pg_read_all_stats to lk_app")
      local action = refusal()
      assert.equal("42501", action.sqlstate)
      assert.equal("GRANT pg_signal_backend TO lk_app", action.hint)
      assert.equal("lk_pw", action.user)
      t.psql("grant pg_signal_backend to lk_app")
      app:prioritize({ interval = "10ms" }, function() app:exec(UPDATE) end)
      assert.is_nil((theirs:ping()))
    end)

    it("a superuser's session is refused with its SQLSTATE; its own role's are ended", function()
      t.psql("grant pg_signal_backend, pg_read_all_stats to lk_app")
      local blocker = holder(SHARE)
      local own = connect({ user = "lk_app" })
      own:exec("begin; lock table prioritized in share mode")
      local actions = actions_of(app, {}, 2)
      assert.equal(2, #actions)
      local by_pid = { [actions[1].pid] = actions[1], [actions[2].pid] = actions[2] }
      assert.equal("42501", by_pid[blocker.pid].sqlstate)
      assert.matches("only a superuser", by_pid[blocker.pid].hint)
      assert.is_true(blocker:ping())
      assert.is_nil((own:ping()))
    end)
  end)

  ---------------------------------------------------------------------------------------------
  -- the block

  it("passes arguments and results through", function()
    local results = table.pack(db:prioritize({}, function(handle, ...)
      assert.same({}, handle.actions)
      return select("#", ...), ...
    end, nil, 2, nil))
    assert.same({ n = 4, 3, nil, 2, nil }, results)
    assert.same({ n = 0 }, table.pack(db:prioritize(function() end)))
    assert.same({ n = 1, 1 }, table.pack(db:prioritize(nil, function(...) return select("#", ...) end)))
  end)

  it("raises what the code raises", function()
    local mine = {}
    assert.equal(mine, expect.raised(db.prioritize, db, {}, function() error(mine) end))
    t.wait_until(function() return side_sessions() == 0 end)
  end)

  it("using: a session, its name or its transaction", function()
    local named = connect({ name = "prioritize_spec" })
    for _, using in ipairs({ named, "prioritize_spec" }) do
      holder(LOCK)
      lock.prioritize({ using = using, interval = "10ms" }, function(handle)
        named:exec(UPDATE)
        assert.equal(1, #handle.actions)
      end)
    end
    holder(LOCK)
    named:transaction(function(tx)
      tx:prioritize({ interval = "10ms" }, function() tx:exec(UPDATE) end)
    end)
  end)

  it("without a function gives a handle that ends it", function()
    local handle
    do
      local h <close> = db:prioritize({ interval = "20ms" })
      handle = h
      assert.matches("prioritize of pid %d+ %(at work, 0 actions%)", tostring(h))
      holder(LOCK)
      db:exec(UPDATE)
      assert.equal(1, #h.actions)
      assert.equal(1, side_sessions())
    end
    assert.matches("over, 1 actions", tostring(handle))
    t.wait_until(function() return side_sessions() == 0 end)
    handle:close()
    handle:close()
    assert.equal(1, #handle.actions)
  end)

  it("locks.md 14: has ended, and its session with it, before the block returns", function()
    local blocker = holder(LOCK)
    local side
    raised("lock_timeout", db.prioritize, db, { interval = "100ms", timeout = "20ms" }, function(handle)
      side = handle.side_pid
      db:exec(UPDATE)
    end)
    t.wait_until(function() return not is_there(side) end) -- so it can't do anything any more
    assert.is_true(blocker:ping())
  end)

  it("locks.md 14: what it does when the code ends is done, and told, before the block returns", function()
    local blocker = holder(LOCK)
    local pid, told = blocker.pid, nil
    db:prioritize({ interval = "10ms", on_action = function(action)
      lock.sleep("100ms")
      told = action.pid
    end }, function() db:exec(UPDATE) end)
    assert.equal(pid, told)
  end)

  it("nests: the innermost one acts", function()
    db:prioritize({ interval = "10ms" }, function(outer)
      local blocker = holder(LOCK)
      assert.equal(1, #actions_of(db, { dry_run = true }, 1))
      assert.same({}, outer.actions)
      assert.is_true(blocker:ping())
      db:exec(UPDATE)
      assert.equal(1, #outer.actions)
      assert.is_nil((blocker:ping()))
    end)
  end)

  it("works in tasks, each with a session of its own", function()
    lock.database("prioritized_tasks", t.conninfo())
    for key = 1, 3 do
      holder(("select pg_advisory_lock(%d)"):format(key))
    end
    local kills = 0
    lock.tasks(function(spawn)
      for key = 1, 3 do
        spawn(function()
          lock.prioritize({ interval = "20ms", using = "prioritized_tasks" }, function(handle)
            lock.advisory(key, { using = "prioritized_tasks" }, function()
              local count = #handle.actions -- which may wait
              kills = kills + count
            end)
          end)
        end)
      end
    end)
    assert.equal(3, kills)
    t.wait_until(function() return side_sessions() == 0 end)
  end)

  it("ends with a task that is cancelled", function()
    local blocker = holder(LOCK)
    local mine = {}
    assert.equal(mine, expect.raised(lock.tasks, function(spawn)
      spawn(function()
        db:prioritize({ interval = "1h" }, function() db:exec(UPDATE) end)
      end)
      spawn(function()
        wait_in_task(function() return t.is_waiting(db.pid) end)
        error(mine)
      end)
    end))
    t.wait_until(function() return side_sessions() == 0 end)
    assert.is_true(blocker:ping())
  end)

  ---------------------------------------------------------------------------------------------
  -- errors

  describe("an error", function()
    -- Protected code that fails to get its lock, and ends when `is_enough` is true.
    local function protected(is_enough)
      holder(LOCK)
      wait_in_vain(db, is_enough)
      return "result", nil, 3
    end

    local FUNCTIONS = {
      where = function(fn) return { where = fn } end,
      ["where as a filter's function"] = function(fn) return { where = { where = fn } } end,
      action = function(fn) return { action = fn } end,
      protect = function(fn) return { protect = fn } end,
      sessions = function(fn) return { sessions = fn } end,
      on_action = function(fn) return { on_action = fn, dry_run = true } end,
    }
    for name, options_for in pairs(FUNCTIONS) do
      it("in " .. name .. " is raised once the code has ended, with its result", function()
        local calls = 0
        local options = options_for(function()
          calls = calls + 1
          error("spoilt")
        end)
        options.interval, options.timeout = "10ms", "1h"
        local err = raised("usage", db.prioritize, db, options, function()
          return protected(function() return calls > 0 end)
        end)
        assert.matches("spoilt", tostring(err))
        assert.equal("result", err.result)
        assert.same({ n = 3, "result", nil, 3 }, err.results)
        assert.matches("prioritize_spec.lua:%d+: spoilt", err.cause)
        assert.equal(1, calls) -- it has ended the looking
        assert.equal("0", db:value("show lock_timeout"))
      end)
    end

    it("of the module's own kind is raised as it is", function()
      local other, called = connect(), false
      local err = raised("sql", db.prioritize, db, { interval = "10ms", action = function()
        called = true
        other:exec("select 1/0")
      end }, function()
        return protected(function() return called end)
      end)
      assert.equal("22012", err.sqlstate)
      assert.equal("result", err.result)
    end)

    it("is raised from the handle's close too, and leaves the actions before it", function()
      local handle = db:prioritize({ interval = "10ms", on_action = function() error("spoilt") end })
      holder(LOCK)
      db:exec(UPDATE)
      local err = raised("usage", handle.close, handle)
      assert.matches("spoilt", tostring(err))
      assert.equal(1, #handle.actions)
      handle:close()
    end)

    it("of the code itself counts more", function()
      local mine, called = {}, false
      assert.equal(mine, expect.raised(db.prioritize, db, { interval = "10ms", where = function()
        called = true
        error("spoilt")
      end }, function()
        protected(function() return called end)
        error(mine)
      end))
    end)

    it("comes from an action that uses the protected session", function()
      local called = false
      local err = raised("usage", db.prioritize, db, { interval = "10ms", action = function()
        called = true
        db:exec("select 1")
      end }, function()
        return protected(function() return called end)
      end)
      assert.matches("in use", err.message)
      assert.equal("result", err.result)
      assert.equal(1, db:value("select 1"))
    end)

    it("comes from an action that returns no list of pids", function()
      holder(LOCK)
      for _, wrong in ipairs({ 7, "7", true, { "7" }, { 7.5 }, { {} } }) do
        local called = false
        local err = usage("list of pids", db.prioritize, db, { interval = "5ms", action = function()
          called = true
          return wrong
        end }, function()
          wait_in_vain(db, function() return called end)
          return "result"
        end)
        assert.equal("result", err.result)
      end
    end)

    it("of a relation that `where` names and nobody knows comes before the code", function()
      local err = raised("sql", db.prioritize, db, { where = { on = "no_such_table" } }, function()
        error("not reached")
      end)
      assert.equal("42P01", err.sqlstate)
      assert.matches("no_such_table", err.message)
    end)
  end)

  describe("the side session", function()
    before_each(function() t.psql("create role prioritize_role login") end)
    after_each(function()
      while #opened > 0 do
        table.remove(opened):close()
      end
      t.psql("drop role prioritize_role")
    end)

    it("that can't connect is an error before any work", function()
      t.psql("alter role prioritize_role connection limit 1")
      local limited, called = connect({ user = "prioritize_role" }), false
      local err = raised("connection", limited.prioritize, limited, {}, function() called = true end)
      assert.is_false(called)
      assert.matches("too many connections", err.message)
      raised("connection", limited.prioritize, limited, { timeout = "1s" })
      assert.equal("0", limited:value("show lock_timeout"))
    end)

    it("that dies in the middle is opened again", function()
      db:prioritize({ interval = "20ms" }, function(handle)
        local side = handle.side_pid
        t.observe(("select pg_terminate_backend(%d)"):format(side))
        t.wait_until(function() return not is_there(side) end)
        holder(LOCK)
        db:exec(UPDATE)
        assert.equal(1, #handle.actions)
        assert.are_not.equal(side, handle.side_pid)
        assert.equal(1, side_sessions())
      end)
    end)

    it("that dies in the middle and can't be opened again is an error at the end, with the result", function()
      local app = connect({ user = "prioritize_role" })
      local err = raised("connection", app.prioritize, app, { interval = "10ms" }, function(handle)
        t.psql("alter role prioritize_role connection limit 0")
        t.observe(("select pg_terminate_backend(%d)"):format(handle.side_pid))
        t.wait_until(function() return not is_there(handle.side_pid) end)
        lock.sleep("1s")
        return "result"
      end)
      assert.matches("too many connections", err.message)
      assert.equal("result", err.result)
    end)

    it("that died when nothing was to do any more is not worth an error", function()
      assert.equal("result", db:prioritize({ interval = "1h" }, function(handle)
        t.observe(("select pg_terminate_backend(%d)"):format(handle.side_pid))
        return "result"
      end))
    end)
  end)

  it("locks.md 8: looks while somebody holds ACCESS EXCLUSIVE on catalogs", function()
    local locker = connect()
    local blocker = holder(LOCK)
    local pid = blocker.pid
    db:prioritize({ interval = "200ms" }, function(handle)
      db:exec("select from prioritized where false") -- which needs the catalogs for itself
      locker:exec("begin; lock table pg_authid, pg_database in access exclusive mode")
      db:exec(UPDATE)
      assert.equal(pid, handle.actions[1].pid)
    end)
    locker:exec("rollback")
  end)

  it("through a pooler that gives the session to others, is refused", function()
    local pooler = t.start_pgbouncer()
    local pooled = connect({ conninfo = pooler:conninfo() })
    local err = raised("usage", pooled.prioritize, pooled, {}, function() error("not reached") end)
    assert.matches("pooler", err.message)
    assert.is_truthy(err.hint)
    pooled:close()
    pooler:stop()
  end)

  it("options that are unknown or wrong are usage errors, before anything is done", function()
    usage('unknown option "intervall"; did you mean "interval"?', db.prioritize, db, { intervall = 1 })
    usage('did you mean "on_action"?', db.prioritize, db, { on_acton = print }, print)
    usage('did you mean "terminate"?', db.prioritize, db, { action = "terminat" })
    usage('did you mean "roots"?', db.prioritize, db, { reach = "root" })
    for _, wrong in ipairs({
      { interval = 0 }, { interval = false }, { interval = -1 }, { interval = "soon" }, { interval = 0 / 0 },
      { action = true }, { action = {} }, { where = "idle" }, { where = { nonsense = 1 } },
      { where = { wait_duration_gt = "soon" } }, { periodic = 1 }, { periodic = "no" }, { sessions = 7 },
      { sessions = { mode = "SHARE" } }, { escalate = "later" }, { protect = true },
      { protect = { usr = "x" } },
      { protect = { { usr = "x" } } }, { protect = { {}, user = "x" } }, { protect = { {}, "x" } },
      { reach = "all" }, { reach = true }, { max_kills = -1 }, { max_kills = 1.5 }, { max_kills = "1" },
      { verify = -1 }, { verify = "x" }, { dry_run = "yes" }, { timeout = 0 }, { timeout = "x" },
      { on_action = "print" }, { using = "nobody" }, { using = 7 }, { 5 },
    }) do
      raised("usage", lock.prioritize, wrong)
      raised("usage", lock.prioritize, wrong, function() error("not reached") end)
    end
    for _, wrong in ipairs({ 5, "1s", true }) do
      raised("usage", db.prioritize, db, wrong)
      raised("usage", db.prioritize, db, wrong, print)
    end
    raised("usage", db.prioritize, db, {}, "no function")
    raised("usage", db.prioritize, db, {}, nil, 1)
    t.wait_until(function() return side_sessions() == 0 end)
    assert.equal("0", db:value("show lock_timeout"))
  end)

  describe("autovacuum", function()
    local server

    setup(function()
      server = t.start_server({ settings = { autovacuum_naptime = "1s", deadlock_timeout = "1h" } })
    end)
    teardown(function() server:stop() end)

    -- Wait until autovacuum works on the table, and then for a lock on it, under prioritize.
    local function wait_behind(table_name, options)
      t.wait_until(function()
        return server:psql(("select 1 from pg_stat_activity where query like 'autovacuum: %%%s%%'"):format(
          table_name)) == "1"
      end, 20, "autovacuum")
      local session <close> = lock.connect({ conninfo = server:conninfo() })
      local actions
      local ok, err = pcall(session.prioritize, session, options, function(handle)
        actions = handle.actions
        session:exec(("alter table %s add x int"):format(table_name))
      end)
      return actions, not ok and err or nil
    end

    it("is ended as any session; locks.md 16: one that prevents wraparound is not", function()
      -- Slow enough to be met at work: a page every tenth of a second.
      server:psql([[
        create table vacuumed with (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,
          autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)
          as select i, repeat('x', 500) from generate_series(1, 5000) i;
        create table ageing with (autovacuum_freeze_max_age = 100000, autovacuum_vacuum_cost_delay = 100,
          autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_threshold = 1000000000,
          autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_threshold = 1000000000)
          as select i, repeat('x', 500) from generate_series(1, 5000) i;
        delete from vacuumed where i % 2 = 0;
      ]])
      local actions, err = wait_behind("vacuumed", { interval = "20ms" })
      assert.is_nil(err)
      assert.equal("signalled", actions[1].result)
      server:psql([[do $$ begin
        for i in 1..100100 loop
          perform pg_current_xact_id();
          commit;
        end loop;
      end $$]])
      actions, err = wait_behind("ageing", { interval = "10ms", timeout = "200ms" })
      assert.equal("lock_timeout", err.kind)
      assert.same({}, actions)
    end)
  end)
end)
