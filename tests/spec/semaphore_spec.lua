-- lua-api.md, "lock.semaphore", with locks.md 5 and runner.md 13 on waiting by polling.

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local raised, usage = expect.kind, expect.usage

local holders = t.holders_of

-- Who holds each slot: { [2] = { pid } }.
local function taken(id, n, scheme)
  local by_slot = {}
  for slot = 1, n do
    local pids = holders(lock.key(id .. "#" .. slot, scheme))
    by_slot[slot] = #pids > 0 and pids or nil
  end
  return by_slot
end

local function count(by_slot)
  local sum = 0
  for _, pids in pairs(by_slot) do
    sum = sum + #pids
  end
  return sum
end

-- A process that waits for a slot of "x", which has tried in vain, and its backend. It prints "got",
-- and whether it waited.
local function waiter(options)
  local child = t.lockkeeper("run", "-", { stdin = ([[
    local lock = require "lockkeeper"
    print(lock.db.pid)
    io.stdout:flush()
    local held = lock.semaphore("x", 1, %s)
    print(held and "got", held and held.waited > 0)
  ]]):format(options) })
  local pid = t.wait_until(function() return child:stdout():match("^(%d+)\n") end, "its pid")
  local first
  t.wait_until(function()
    local kind, at = t.observe(([[
      select case when query ~ 'pg_try_advisory_lock' then 'try' else 'look' end, query_start
        from pg_stat_activity
       where pid = %s and state = 'idle' and query ~ 'pg_try_advisory_lock|pg_locks']]):format(pid))
      :match("^(%a+)|(.+)$")
    first = first or at
    return kind == "try" or at ~= first
  end, "its first try, or a second look")
  return child, math.tointeger(pid)
end

local function ends_with_the_slot(child)
  assert.equal(0, child:wait(), child:stderr())
  assert.matches("\ngot\ttrue\n", child:stdout(), 1, true)
end

describe("semaphore", function()
  local db, other, third

  before_each(function()
    db, other, third = t.connect(), t.connect(), t.connect()
  end)

  after_each(function()
    db:close()
    other:close()
    third:close()
  end)

  it("has at most n holders among all sessions", function()
    local first <close> = db:semaphore("api-calls", 2)
    local second <close> = other:semaphore("api-calls", 2)
    local got, err = third:semaphore("api-calls", 2, { timeout = 0 })
    assert.is_nil(got)
    assert.equal("not_acquired", err.kind)
    assert.is_true(err.busy)
    assert.equal('semaphore "api-calls": all slots (2) are taken', err.message)
    assert.matches("semaphore_spec.lua:%d+: ", tostring(err))
    first:release()
    local held <close> = third:semaphore("api-calls", 2, { timeout = 0 })
    assert.equal(first.slot, held.slot)
    assert.not_equal(second.slot, held.slot)
  end)

  it("gives a guard that says which slot it is: the advisory lock id#slot", function()
    for _ = 1, 5 do
      local held <close> = db:semaphore("api-calls", 3)
      assert.is_true(held.slot >= 1 and held.slot <= 3)
      assert.equal("api-calls#" .. held.slot, held.id)
      assert.equal(lock.key(held.id), held.key)
      assert.same({ [held.slot] = { db.pid } }, taken("api-calls", 3))
      assert.equal(0, held.waited)
      assert.is_false(held.shared)
      assert.is_false(held.xact)
      assert.is_true(math.abs(held.acquired_at - tonumber(t.observe(
        "select extract(epoch from clock_timestamp())"))) < 10)
      assert.equal(('slot %d, exclusive lock "%s" (held)'):format(held.slot, held.id), tostring(held))
      assert.is_nil(held.nothing)
    end
    assert.same({}, taken("api-calls", 3))
  end)

  it("takes exactly one slot, wherever the others are", function()
    for n = 1, 12 do
      local held <close> = db:semaphore("x", n)
      assert.equal(1, count(taken("x", n)))
      assert.equal("1", t.observe("select count(*) from pg_locks where locktype = 'advisory'"))
      assert.is_true(held:is_held())
    end
    assert.equal("0", t.observe("select count(*) from pg_locks where locktype = 'advisory'"))
  end)

  it("counts a plain advisory lock of a slot's name, and is counted by it", function()
    local plain <close> = other:advisory("x#1")
    local held <close> = db:semaphore("x", 2)
    assert.equal(2, held.slot)
    assert.is_nil((third:semaphore("x", 2, { timeout = 0 })))
    assert.is_nil((third:advisory("x#2", { timeout = 0 })))
    plain:release()
    local got <close> = third:semaphore("x", 2, { timeout = 0 })
    assert.equal(1, got.slot)
  end)

  it("counts a slot that somebody has shared, or that a prepared transaction has", function()
    local shared <close> = other:advisory("x#1", { shared = true })
    assert.is_nil((db:semaphore("x", 1, { timeout = 0 })))
    shared:release()
    t.psql(("begin; select pg_advisory_xact_lock(%d); prepare transaction 'semaphore'"):format(
      lock.key("x#1")))
    local got, err = db:semaphore("x", 1, { timeout = 0 })
    t.psql("rollback prepared 'semaphore'")
    assert.is_nil(got)
    assert.equal("not_acquired", err.kind)
  end)

  it("begins at a random slot, so that those who come at once do not all want the same", function()
    local seen, different = {}, 0
    for _ = 1, 60 do
      local held <close> = db:semaphore("x", 3)
      different = different + (seen[held.slot] and 0 or 1)
      seen[held.slot] = true
    end
    assert.equal(3, different)
  end)

  describe("on one session", function()
    it("two guards are two slots, though PostgreSQL would give a session its own lock again", function()
      local first <close> = db:semaphore("x", 2)
      local second <close> = db:semaphore("x", 2)
      assert.not_equal(first.slot, second.slot)
      assert.same({ { db.pid }, { db.pid } }, taken("x", 2))
      assert.is_nil((db:semaphore("x", 2, { timeout = 0 })))
      assert.is_nil((other:semaphore("x", 2, { timeout = 0 })))
      second:release()
      assert.is_true(first:is_held())
      assert.same({ [first.slot] = { db.pid } }, taken("x", 2))
    end)

    it("a slot counts however the session has it: by name, by hand, for its transaction", function()
      local _ <close> = db:advisory("x#1")
      db:query("select pg_advisory_lock($1)", lock.key("x#2"))
      db:transaction(function(tx)
        tx:advisory("x#3", { xact = true })
        local held <close> = tx:semaphore("x", 4)
        assert.equal(4, held.slot)
        assert.is_nil((tx:semaphore("x", 4, { timeout = 0 })))
      end)
      db:query("select pg_advisory_unlock($1)", lock.key("x#2"))
      assert.same({ { db.pid } }, taken("x", 4))
    end)

    it("that has all slots itself, a wait without end is refused; one with an end goes on", function()
      local _ <close> = db:semaphore("x", 1)
      usage('this session itself has all slots of "x" (1)', db.semaphore, db, "x", 1)
      usage("this session itself", db.semaphore, db, "x", 1, { timeout = false }, print)
      local _, err = db:semaphore("x", 1, { timeout = "20ms" })
      assert.equal("lock_timeout", err.kind)
      db:exec("set lock_timeout = '20ms'")
      raised("lock_timeout", db.semaphore, db, "x", 1)
    end)
  end)

  describe("waiting", function()
    it("ends when a slot is free, and says how long it was", function()
      local mine <close> = db:semaphore("x", 1)
      local child = waiter '{ timeout = "30s", poll = "5ms" }'
      mine:release()
      ends_with_the_slot(child)
    end)

    it("ends at the timeout, with kind lock_timeout", function()
      local _ <close> = other:semaphore("x", 1)
      local start = t.now()
      local got, err = db:semaphore("x", 1, { timeout = 0.15 })
      assert.is_nil(got)
      assert.equal("lock_timeout", err.kind)
      assert.is_true(err.busy)
      assert.equal('semaphore "x": none of the slots (1) was free in time', err.message)
      assert.is_true(t.now() - start >= 0.15 and t.now() - start < 10)
    end)

    it("ends at the session's lock_timeout where the call gives none; then it raises", function()
      local _ <close> = other:semaphore("x", 1)
      db:exec("set lock_timeout = '30ms'")
      raised("lock_timeout", db.semaphore, db, "x", 1)
      local got, err = db:semaphore("x", 1, { on_busy = "return" })
      assert.is_nil(got)
      assert.equal("lock_timeout", err.kind)
      assert.equal("30ms", db:value("show lock_timeout"))
    end)

    it("runner.md 13: tries once more at the deadline, before its interval is over", function()
      local held = other:semaphore("x", 1)
      local child = waiter '{ timeout = "1500ms", poll = "1h" }'
      held:release()
      ends_with_the_slot(child)
    end)

    it("locks.md 5: waits for no lock in the server, and holds no snapshot between two looks", function()
      local mine <close> = db:semaphore("x", 1)
      local child, pid = waiter '{ timeout = "30s", poll = "20ms" }'
      for _ = 1, 20 do
        assert.is_false(t.is_waiting(pid))
      end
      -- An index can be built meanwhile, which waits for every older snapshot.
      other:exec("create temporary table indexed (a int)")
      other:exec("create index concurrently on indexed (a)")
      mine:release()
      ends_with_the_slot(child)
    end)

    it("is ended by its session's end, and leaves nothing", function()
      local _ <close> = db:semaphore("x", 1)
      local child, pid = waiter "{}"
      t.observe(("select pg_terminate_backend(%d)"):format(pid))
      assert.equal(69, child:wait(), child:stderr())
      assert.equal(1, count(taken("x", 1)))
    end)

    it("lets other tasks go on, and ends with its task", function()
      local mine <close> = db:semaphore("x", 1)
      lock.database("semaphore", t.conninfo())
      local waited
      local err = expect.raised(lock.tasks, function(spawn)
        spawn(function()
          local held <close> = lock.semaphore("x", 1, { using = "semaphore", poll = "5ms" })
          waited = held.waited
        end)
        spawn(function()
          repeat -- until the one that waits has tried
            lock.sleep("5ms")
          until t.observe(([[select exists (select from pg_stat_activity
            where query like '%%try_advisory%%' and pid not in (%d, %d, pg_backend_pid()))]])
            :format(db.pid, other.pid)) == "t"
          mine:release()
        end)
        spawn(function()
          while not waited do
            lock.sleep("5ms")
          end
          local _ <close> = other:semaphore("x", 1)
          spawn(function() lock.semaphore("x", 1, { using = "semaphore" }) end)
          lock.sleep("30ms")
          error("enough", 0)
        end)
      end)
      assert.equal("enough", err)
      assert.is_true(waited > 0)
      assert.same({}, taken("x", 1))
    end)

    it("never has more than n at work, and starves nobody: eight workers, three slots", function()
      lock.database("semaphore", t.conninfo())
      local at_work, most, done = 0, 0, 0
      lock.tasks(function(spawn)
        for _ = 1, 8 do
          spawn(function()
            for _ = 1, 5 do
              lock.semaphore("x", 3, { using = "semaphore", poll = "2ms" }, function()
                at_work = at_work + 1
                most = math.max(most, at_work)
                lock.sleep("2ms")
                at_work = at_work - 1
                done = done + 1
              end)
            end
          end)
        end
      end)
      assert.equal(40, done)
      assert.equal(3, most)
    end)
  end)

  describe("with a function", function()
    it("calls it with the guard and the arguments, and returns its results", function()
      local results = table.pack(db:semaphore("x", 2, { timeout = 0 }, function(held, ...)
        assert.same({ [held.slot] = { db.pid } }, taken("x", 2))
        return select("#", ...), nil, ..., nil
      end, 1, nil, 3))
      assert.same({ n = 4, 3, nil, 1, nil }, results)
      assert.same({ n = 2, 0, "held" },
        table.pack(db:semaphore("x", 2, function(_, ...) return select("#", ...), "held" end)))
      assert.same({}, taken("x", 2))
    end)

    it("gives the slot back when it raises, and raises the same", function()
      local mine = setmetatable({}, { __tostring = function() return "mine" end })
      assert.equal(mine, expect.raised(db.semaphore, db, "x", 2, function() error(mine) end))
      assert.same({}, taken("x", 2))
    end)

    it("raises by default when no slot is to be had; skips with on_busy = \"skip\"", function()
      local _ <close> = other:semaphore("x", 1)
      local function never() error("called") end
      raised("not_acquired", db.semaphore, db, "x", 1, { timeout = 0 }, never)
      raised("lock_timeout", db.semaphore, db, "x", 1, { timeout = "10ms" }, never)
      local got, err = db:semaphore("x", 1, { timeout = 0, on_busy = "skip" }, never)
      assert.is_nil(got)
      assert.equal("not_acquired", err.kind)
    end)

    it("inside a transaction is a block: its error is rolled back before the slot is free", function()
      db:exec("create temporary table seen (a int)")
      db:transaction(function(tx)
        assert.equal("x", expect.raised(tx.semaphore, tx, "x", 2, function()
          tx:exec("insert into seen values (1)")
          error("x", 0)
        end))
        assert.equal(0, tx:value("select count(*) from seen"))
        tx:semaphore("x", 2, function() tx:exec("insert into seen values (2)") end)
      end)
      assert.equal(2, db:value("select a from seen"))
    end)
  end)

  describe("in a transaction", function()
    it("a slot that is not to be had leaves it usable", function()
      local _ <close> = other:semaphore("x", 1)
      db:transaction(function(tx)
        assert.is_nil((tx:semaphore("x", 1, { timeout = 0 })))
        assert.is_nil((tx:semaphore("x", 1, { timeout = "10ms" })))
        raised("not_acquired", tx.semaphore, tx, "x", 1, { timeout = 0, on_busy = "raise" })
        assert.equal(1, tx:value("select 1"))
      end)
    end)

    it("with xact = true the slot is the transaction's: it ends with it and can't be given back", function()
      db:transaction(function(tx)
        local held = tx:semaphore("x", 2, { xact = true })
        assert.is_true(held.xact)
        raised("usage", held.release, held)
        local another = tx:semaphore("x", 2, { xact = true })
        assert.not_equal(held.slot, another.slot)
        assert.is_nil((other:semaphore("x", 2, { timeout = 0 })))
      end)
      assert.same({}, taken("x", 2))
    end)

    it("xact = true without a function needs one; with a function it is opened and committed", function()
      usage("a transaction-level slot needs an open transaction", db.semaphore, db, "x", 2, { xact = true })
      db:exec("create temporary table seen (a int)")
      assert.equal("done", db:semaphore("x", 2, { xact = true, timeout = 0 }, function(held)
        assert.is_true(held.xact)
        db:exec("insert into seen values (1)")
        return "done"
      end))
      assert.is_false(db.in_transaction)
      assert.equal(1, db:value("select a from seen"))
      local _ <close> = other:semaphore("x", 1)
      assert.is_nil((db:semaphore("x", 1, { xact = true, timeout = 0, on_busy = "skip" }, error)))
      assert.is_false(db.in_transaction)
    end)

    it("that has failed, is 25P02", function()
      local tx <close> = db:begin()
      expect.raised(tx.exec, tx, "select 1/0")
      assert.equal("25P02", raised("sql", tx.semaphore, tx, "x", 2).sqlstate)
    end)
  end)

  describe("the guard", function()
    it("is released once, also by leaving its scope after an error", function()
      local held = db:semaphore("x", 2)
      held:release()
      held:release()
      assert.is_false(held:is_held())
      assert.matches("released", tostring(held))
      local mine = {}
      assert.equal(mine, expect.raised(function()
        local _ <close> = db:semaphore("x", 2)
        error(mine)
      end))
      assert.same({}, taken("x", 2))
    end)

    it("that was unlocked in the middle is lock_lost when it is released", function()
      local held = db:semaphore("x", 2)
      db:query("select pg_advisory_unlock_all()")
      raised("lock_lost", held.release, held)
      raised("lock_lost", db.semaphore, db, "x", 2, function()
        db:query("select pg_advisory_unlock_all()")
      end)
      -- an error under way counts more
      assert.equal("mine", expect.raised(db.semaphore, db, "x", 2, function()
        db:query("select pg_advisory_unlock_all()")
        error("mine", 0)
      end))
    end)
  end)

  describe("arguments", function()
    it("are the id, a text, and the number of slots, 1 to 1000", function()
      for _, id in ipairs { 42, {}, true, 1.5, { 1, 2 } } do
        usage("the id must be a text, not a " .. type(id), db.semaphore, db, id, 3)
      end
      usage("the id must be a text, not a nil", db.semaphore, db, nil, 3)
      for _, n in ipairs { 0, -1, 1001, 1.0, 0 / 0, math.huge, "3", {}, false, math.mininteger } do
        usage("the number of slots must be an integer from 1 to 1000, not " .. tostring(n), db.semaphore,
          db, "x", n)
      end
      usage("the number of slots must be", db.semaphore, db, "x")
      usage("the number of slots must be", db.semaphore, db, "x", print)
    end)

    it("may be any text, and a thousand slots", function()
      for _, id in ipairs { "", "#", "x#1", "'; drop table x; --", "%s%d", "ключ", "a\0b", "\xff",
        ("x"):rep(1000000) } do
        local held <close> = db:semaphore(id, 2)
        assert.equal(id .. "#" .. held.slot, held.id)
        assert.same({ db.pid }, holders(lock.key(id .. "#" .. held.slot)))
        local _ <close> = db:semaphore(id, 2)
        local _, err = other:semaphore(id, 2, { timeout = 0 })
        assert.equal("not_acquired", err.kind)
        assert.is_true(#err.message < 200)
        assert.is_not_nil(utf8.len(err.message) or id == "\xff")
      end
      local held <close> = db:semaphore("many", 1000)
      assert.is_true(held:is_held())
    end)

    it("refuses unknown options by name, and what has no meaning here", function()
      usage('semaphore: unknown option "timeot"; did you mean "timeout"?', db.semaphore, db, "x", 2,
        { timeot = 1 })
      usage("shared has no meaning here", db.semaphore, db, "x", 2, { shared = true })
      usage("the options must be a table, not a number", db.semaphore, db, "x", 2, 5)
      usage("xact must be true or false", db.semaphore, db, "x", 2, { xact = 1 })
      usage("poll must be a time longer than 0", db.semaphore, db, "x", 2, { poll = false })
      usage("poll must be a time longer than 0", db.semaphore, db, "x", 2, { poll = 0 })
      for _, wrong in ipairs { "soon", -1, 0 / 0, true, {}, 0.0001 } do
        usage("timeout", db.semaphore, db, "x", 2, { timeout = wrong })
        usage("poll", db.semaphore, db, "x", 2, { poll = wrong })
      end
      usage("on_busy", db.semaphore, db, "x", 2, { on_busy = "wait" })
      usage('"skip" needs a function', db.semaphore, db, "x", 2, { on_busy = "skip" })
      usage('"return" is for calls without a function', db.semaphore, db, "x", 2, { on_busy = "return" },
        print)
      usage("the last argument must be a function, not a table", db.semaphore, db, "x", 2, {}, {})
      expect.kind("usage", db.semaphore, db, "x", 2, { scheme = "none" })
      assert.same({}, taken("x", 2))
    end)

    it("takes the session by using, as an object, an open transaction or a name", function()
      lock.semaphore("x", 2, { using = db }, function(held)
        assert.same({ [held.slot] = { db.pid } }, taken("x", 2))
      end)
      db:transaction(function(tx)
        lock.semaphore("x", 2, { using = tx }, function(held)
          assert.same({ [held.slot] = { db.pid } }, taken("x", 2))
        end)
      end)
      local named <close> = t.connect({ name = "semaphore-using" })
      lock.semaphore("x", 2, { using = "semaphore-using" }, function(held)
        assert.same({ [held.slot] = { named.pid } }, taken("x", 2))
      end)
      usage("no session named", lock.semaphore, "x", 2, { using = "semaphore-nowhere" })
    end)

    it("makes the slots' keys by any scheme", function()
      for _, scheme in ipairs { "pglocks", "postgresql-lock", "hashtext" } do
        local first <close> = db:semaphore("x", 2, { scheme = scheme })
        assert.equal(db:key("x#" .. first.slot, scheme), first.key)
        local second <close> = db:semaphore("x", 2, { scheme = scheme })
        assert.not_equal(first.slot, second.slot)
        assert.is_nil((other:semaphore("x", 2, { scheme = scheme, timeout = 0 })))
      end
      local options = { scheme = "with_advisory_lock", prefix = -7, timeout = 0 }
      local first <close> = db:semaphore("x", 2, options)
      assert.equal(-7, first.key[2])
      local second <close> = db:semaphore("x", 2, options)
      assert.not_equal(first.slot, second.slot)
      assert.is_nil((other:semaphore("x", 2, options)))
    end)
  end)

  it("takes locks of this database only: another's are not counted", function()
    local elsewhere <close> = t.connect({ dbname = "template1" })
    local _ <close> = elsewhere:semaphore("x", 1)
    local held <close> = db:semaphore("x", 1, { timeout = 0 })
    assert.is_true(held:is_held())
  end)

  it("works for a role without any right, and under a search_path that shadows PostgreSQL's names", function()
    local app <close> = t.connect({ user = "lk_app" })
    local _ <close> = db:semaphore("x", 2)
    local held <close> = app:semaphore("x", 2, { timeout = 0 })
    assert.is_nil((app:semaphore("x", 2, { timeout = 0 })))
    held:release()
    t.psql([[
      create schema shadow;
      create function shadow.never(a text, b text) returns bool language sql as 'select false';
      create function shadow.never(a int8, b int8) returns bool language sql as 'select false';
      create function shadow.never(a int4, b int4) returns bool language sql as 'select false';
      create operator shadow.= (leftarg = text, rightarg = text, function = shadow.never);
      create operator shadow.= (leftarg = int8, rightarg = int8, function = shadow.never);
      create operator shadow.= (leftarg = int4, rightarg = int4, function = shadow.never);
      create operator shadow.<> (leftarg = int4, rightarg = int4, function = shadow.never);
      create function shadow.unnest(anyarray) returns setof int language sql as 'select 1';
      create table shadow.pg_locks (a int);
      create domain shadow.int8 as text;
    ]])
    local shadowed <close> = t.connect({ options = "-csearch_path=shadow,pg_catalog" })
    local first <close> = shadowed:semaphore("x", 2)
    local got = shadowed:semaphore("x", 2, { timeout = 0 })
    t.psql("drop schema shadow cascade")
    assert.is_nil(got)
    assert.is_true(first:is_held())
  end)

  it("through a pooler is refused as a session-level lock is, free or not; xact = true works", function()
    local bouncer = t.start_pgbouncer()
    do
      local pooled <close> = lock.connect({ conninfo = bouncer:conninfo() })
      assert.matches("pooler", raised("usage", pooled.semaphore, pooled, "x", 1, { timeout = 0 }).message)
      assert.equal(1, pooled:semaphore("x", 1, { xact = true }, function(held) return held.slot end))
      local _ <close> = db:semaphore("x", 1)
      assert.matches("pooler", raised("usage", pooled.semaphore, pooled, "x", 1, { timeout = 0 }).message)
      pooled:transaction(function(tx)
        assert.is_nil((tx:semaphore("x", 1, { xact = true, timeout = "10ms" })))
      end)
    end
    bouncer:stop()
  end)

  it("while rows are streamed is refused", function()
    for _ in db:rows("select generate_series(1, 3)") do
      expect.kind("usage", db.semaphore, db, "x", 2)
    end
    assert.same({}, taken("x", 2))
  end)
end)
