-- locks.md 15: how sessions of others are cancelled and terminated.

local kill = require "lockkeeper.kill"
local lock = require "lockkeeper"
local process = require "tests.support.process"
local t = require "tests.support"

local function start_of(pid)
  return tonumber(t.observe(("select extract(epoch from backend_start) from pg_stat_activity where pid = %d")
    :format(pid)))
end

local opened = {}

local function connect(options)
  opened[#opened + 1] = t.connect(options)
  return opened[#opened]
end

-- What names a session to kill.signal.
local function target(session)
  return { pid = session.pid, backend_start = start_of(session.pid) }
end

local function is_there(pid)
  return t.observe(("select 1 from pg_stat_activity where pid = %d"):format(pid)) == "1"
end

-- Runs fn while `session` waits for what `sql` locks; returns what the statement raised, nil if nothing.
local function while_waiting(session, sql, fn)
  local failure
  lock.tasks(function(spawn)
    spawn(function()
      local ok, err = pcall(session.exec, session, sql)
      failure = not ok and err or nil
    end)
    spawn(function()
      t.wait_until(function()
        lock.sleep("2ms")
        return t.is_waiting(session.pid)
      end, "the waiter")
      fn()
    end)
  end)
  return failure
end

describe("kill.signal", function()
  local asking, victim

  before_each(function()
    asking, victim = connect(), connect()
  end)
  after_each(function()
    while #opened > 0 do
      table.remove(opened):close()
    end
  end)

  local function signal_one(action, what, options)
    local outcomes = kill.signal(asking, action, { what }, options)
    assert.equal(1, #outcomes)
    return outcomes[1]
  end

  it("terminates a session and waits until it is gone", function()
    local pid = victim.pid
    assert.same({ pid = pid, action = "terminate", result = "signalled", ended = true },
      signal_one("terminate", target(victim)))
    assert.is_false(is_there(pid))
    assert.equal("57P01", select(2, victim:ping()).sqlstate)
  end)

  it("cancels the statement of a session, which lives on", function()
    local held <close> = asking:advisory("x")
    local outcome
    local err = while_waiting(victim, ("select pg_advisory_lock(%d)"):format(held.key), function()
      local third <close> = connect()
      outcome = kill.signal(third, "cancel", { target(victim) })[1]
    end)
    assert.same({ pid = victim.pid, action = "cancel", result = "signalled" }, outcome)
    assert.equal("57014", err.sqlstate)
    assert.is_true(victim:ping())
  end)

  it("locks.md 15: a cancel of a session idle in transaction is reported as no_effect", function()
    victim:exec("begin")
    victim:exec("select 1")
    local outcome = signal_one("cancel", target(victim))
    assert.equal("no_effect", outcome.result)
    assert.matches("no statement", outcome.message)
    assert.is_true(victim.in_transaction)
    assert.equal(1, victim:value("select 1"))
    victim:exec("rollback")
    assert.equal("no_effect", signal_one("cancel", target(victim)).result)
  end)

  it("locks.md 15: never hits another session that has got the pid meanwhile", function()
    for _, offset in ipairs({ -1e-6, 1e-6, -3600, 1e9 }) do
      local other = target(victim)
      other.backend_start = other.backend_start + offset
      assert.equal("gone", signal_one("terminate", other).result)
      assert.equal("gone", signal_one("cancel", other).result)
    end
    assert.is_true(victim:ping())
  end)

  it("tells a session that has ended, or never was, as gone", function()
    local ended = target(victim)
    victim:close()
    t.wait_until(function() return not is_there(ended.pid) end)
    for _, gone in ipairs({ ended, { pid = 2147483647, backend_start = 1 }, { pid = -1 },
      { pid = ended.pid }, { pid = -5, backend_start = 0.5 } }) do
      assert.equal("gone", signal_one("terminate", gone).result)
    end
  end)

  it("does not signal a session of which only the pid is given", function()
    local outcome = signal_one("terminate", { pid = victim.pid })
    assert.equal("refused", outcome.result)
    assert.is_nil(outcome.hint)
    assert.is_true(victim:ping())
  end)

  it("never signals the session that asks", function()
    local outcome = signal_one("terminate", target(asking))
    assert.equal("refused", outcome.result)
    assert.is_true(asking:ping())
  end)

  it("locks.md 10 and 15: drops pid 0 and advises ROLLBACK PREPARED", function()
    local outcomes = kill.signal(asking, "terminate", { { pid = 0 }, { gid = "it's" }, target(victim) })
    assert.equal("refused", outcomes[1].result)
    assert.equal("ROLLBACK PREPARED 'it''s'", outcomes[2].hint)
    assert.matches("ROLLBACK PREPARED", outcomes[1].hint)
    assert.equal("signalled", outcomes[3].result)
  end)

  it("locks.md 15: sends one statement a pid, however often it is named", function()
    local twice = target(victim)
    assert.equal(1, #kill.signal(asking, "terminate", { twice, twice }))
    assert.same({}, kill.signal(asking, "terminate", {}))
  end)

  it("in a dry run asks all and touches nobody", function()
    local options = { dry_run = true }
    assert.same({ pid = victim.pid, action = "terminate", result = "dry_run" },
      signal_one("terminate", target(victim), options))
    assert.equal("no_effect", signal_one("cancel", target(victim), options).result)
    assert.equal("gone", signal_one("terminate", { pid = victim.pid, backend_start = 1 }, options).result)
    assert.is_true(victim:ping())
  end)

  it("stops where it is told to, before and while it waits for the end", function()
    local others = { target(victim), target(connect()) }
    assert.same({}, kill.signal(asking, "terminate", others, { stop = function() return true end }))
    local asked = 0
    local outcomes = kill.signal(asking, "terminate", others, { stop = function()
      asked = asked + 1
      return asked > 1
    end })
    assert.equal(1, #outcomes)
    assert.equal("signalled", outcomes[1].result)
    assert.is_true(is_there(others[2].pid))
  end)

  it("says where a terminated session has not ended within `verify`", function()
    process.signal("STOP", victim.pid)
    local stopped = target(victim)
    local outcome = signal_one("terminate", stopped, { verify = 0.05 })
    local unverified = signal_one("terminate", stopped, { verify = 0 })
    process.signal("CONT", victim.pid)
    assert.equal("signalled", outcome.result)
    assert.is_false(outcome.ended)
    assert.matches("not ended", outcome.message)
    assert.same({ pid = stopped.pid, action = "terminate", result = "signalled" }, unverified)
    t.wait_until(function() return not is_there(stopped.pid) end)
  end)

  describe("under the condition that it still blocks", function()
    it("locks.md 15: hits a session that blocks that one, and nobody else", function()
      local holder, bystander = connect(), connect()
      local held = holder:advisory("x")
      local free, hit
      while_waiting(victim, ("select pg_advisory_lock(%d)"):format(held.key), function()
        free = signal_one("terminate", target(bystander), { still_blocks = victim.pid })
        hit = signal_one("terminate", target(holder), { still_blocks = victim.pid })
      end)
      assert.equal("gone", free.result)
      assert.matches(("does not block pid %d any more"):format(victim.pid), free.message, 1, true)
      assert.equal("signalled", hit.result)
      assert.is_true(bystander:ping())
    end)

    it("takes the pids of a chain, each of which blocks the next", function()
      local root, middle = connect(), connect()
      root:advisory("a")
      middle:advisory("b")
      local a, b = lock.key("a"), lock.key("b")
      local whole, broken
      lock.tasks(function(spawn)
        spawn(function()
          middle:exec("select pg_advisory_lock($1)", a)
          middle:close() -- with b
        end)
        spawn(function() victim:exec("select pg_advisory_lock($1)", b) end)
        spawn(function()
          t.wait_until(function()
            lock.sleep("2ms")
            return t.is_waiting(middle.pid) and t.is_waiting(victim.pid)
          end)
          local named = target(root)
          named.still_blocks = { victim.pid, middle.pid }
          broken = signal_one("terminate", named)
          named.still_blocks = { middle.pid, victim.pid }
          whole = signal_one("terminate", named)
        end)
      end)
      assert.equal("gone", broken.result)
      assert.equal("signalled", whole.result)
    end)
  end)

  describe("by a role that may not", function()
    local app

    before_each(function() app = connect({ user = "lk_app" }) end)
    after_each(function() t.psql("revoke pg_signal_backend, pg_read_all_stats from lk_app") end)

    it("locks.md 15: is refused with the SQLSTATE and the role to grant; the others are hit", function()
      local mine = connect({ user = "lk_app" })
      local theirs = connect({ user = "lk_pw", password = t.password })
      local outcomes = kill.signal(app, "terminate", { target(theirs), target(victim), target(mine) })
      assert.equal("refused", outcomes[1].result)
      assert.equal("GRANT pg_read_all_stats TO lk_app", outcomes[1].hint)
      assert.equal("refused", outcomes[2].result)
      assert.equal("signalled", outcomes[3].result)
      t.psql("grant pg_read_all_stats to lk_app")
      outcomes = kill.signal(app, "terminate", { target(theirs), target(victim), target(connect({
        user = "lk_app" })) })
      assert.equal("refused", outcomes[1].result)
      assert.equal("42501", outcomes[1].sqlstate)
      assert.equal("GRANT pg_signal_backend TO lk_app", outcomes[1].hint)
      assert.is_truthy(outcomes[1].message)
      assert.equal("refused", outcomes[2].result)
      assert.equal("42501", outcomes[2].sqlstate)
      assert.matches("only a superuser", outcomes[2].hint)
      assert.equal("signalled", outcomes[3].result)
      assert.is_true(theirs:ping())
      assert.is_true(victim:ping())
    end)

    it("with pg_signal_backend hits other roles' sessions, but no superuser's", function()
      t.psql("grant pg_signal_backend, pg_read_all_stats to lk_app")
      local theirs = connect({ user = "lk_pw", password = t.password })
      local outcomes = kill.signal(app, "terminate", { target(victim), target(theirs) })
      assert.equal("refused", outcomes[1].result)
      assert.equal("signalled", outcomes[2].result)
      assert.is_true(outcomes[2].ended)
    end)

    it("without pg_read_all_stats does not signal whom it can't tell from another, and says so", function()
      t.psql("grant pg_signal_backend to lk_app")
      local theirs = connect({ user = "lk_pw", password = t.password })
      local outcome = kill.signal(app, "terminate", { { pid = theirs.pid } })[1]
      assert.equal("refused", outcome.result)
      assert.equal("GRANT pg_read_all_stats TO lk_app", outcome.hint)
      assert.is_true(theirs:ping())
    end)

    it("quotes a role's odd name in the hint", function()
      t.psql([[create role "Odd ""Name" login]])
      local odd = connect({ user = 'Odd "Name' })
      local outcome = kill.signal(odd, "cancel", { { pid = victim.pid } })[1]
      assert.equal([[GRANT pg_read_all_stats TO "Odd ""Name"]], outcome.hint)
      odd:close()
      t.psql([[drop role "Odd ""Name"]])
    end)
  end)

  it("works while somebody holds ACCESS EXCLUSIVE on pg_authid and pg_database", function()
    local locker = connect()
    signal_one("terminate", target(connect())) -- the first look in a session fills its caches
    local pid = target(victim)
    locker:exec("begin; lock table pg_authid, pg_database in access exclusive mode")
    assert.equal("signalled", signal_one("terminate", pid).result)
    locker:exec("rollback")
  end)

  it("is not led astray by objects of the user's that have the same names", function()
    asking:exec([[
      create schema decoy;
      create function decoy.pg_terminate_backend(int) returns boolean language sql as 'select true';
      create function decoy.pg_stat_get_activity(int) returns table (pid int, backend_start timestamptz,
        state text) language sql as 'select $1, now(), null::text';
      create function decoy.differ(timestamptz, timestamptz) returns boolean language sql as 'select true';
      create operator decoy.= (leftarg = timestamptz, rightarg = timestamptz, function = decoy.differ);
      set search_path = decoy, pg_catalog]])
    local other = target(victim)
    other.backend_start = other.backend_start + 1
    assert.equal("gone", signal_one("terminate", other).result)
    assert.is_true(victim:ping())
    assert.equal("signalled", signal_one("terminate", target(victim)).result)
    asking:exec("drop schema decoy cascade")
  end)

  it("ends as far as it came where the asking session breaks: the others are told as failed", function()
    local first, second = target(victim), target(connect())
    local asked, pid = 0, asking.pid
    local outcomes = kill.signal(asking, "terminate", { first, second }, { stop = function()
      asked = asked + 1
      if asked == 2 then -- the first was signalled, the second was not
        t.observe(("select pg_terminate_backend(%d)"):format(pid))
        t.wait_until(function() return not is_there(pid) end, "the asking session's end")
      end
      return false
    end })
    assert.equal("signalled", outcomes[1].result)
    assert.equal("failed", outcomes[2].result)
    assert.is_true(is_there(second.pid))
    assert.equal("connection", select(2, asking:ping()).kind)
  end)

  it("leaves usage errors to the caller", function()
    asking:close()
    local ok, err = pcall(kill.signal, asking, "terminate", { { pid = 1, backend_start = 1 } })
    assert.is_false(ok)
    assert.equal("usage", err.kind)
  end)
end)
