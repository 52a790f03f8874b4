-- locks.md 11 and 12 against the server's own word: rounds of random locks of a dozen sessions, each edge of
-- the wait-for graph compared with pg_blocking_pids. LOCKKEEPER_ORACLE_SEED plays the same rounds again,
-- LOCKKEEPER_ORACLE_ROUNDS that many times as many.

local graph = require "lockkeeper.graph"
local lock = require "lockkeeper"
local t = require "tests.support"

local SESSIONS, STEPS = 12, 28
local TABLES, ROWS, KEYS = 3, 3, 3

local MODES = { lock.ACCESS_SHARE, lock.ROW_SHARE, lock.ROW_EXCLUSIVE, lock.SHARE_UPDATE_EXCLUSIVE,
  lock.SHARE, lock.SHARE_ROW_EXCLUSIVE, lock.EXCLUSIVE, lock.ACCESS_EXCLUSIVE }
local STRENGTHS = { "update", "no key update", "share", "key share" }

local ORACLE_SQL = [[
select l.pid, b.pid as blocker from pg_locks l, unnest(pg_blocking_pids(l.pid)) as b(pid)
 where not l.granted]]
local IS_WAITING_SQL = "select exists (select from pg_locks where pid = $1 and waitstart is not null)"

-- What a session asks for next.
local STATEMENTS = {
  function()
    return ("lock table oracle.t%d in %s mode"):format(math.random(TABLES), MODES[math.random(8)])
  end,
  function()
    return ("select pg_advisory_xact_lock%s(%d)"):format(math.random(2) == 1 and "_shared" or "",
      math.random(KEYS))
  end,
  function()
    return ("select from oracle.t1 where id = %d for %s"):format(math.random(ROWS), STRENGTHS[math.random(4)])
  end,
  function() return ("update oracle.t2 set n = n + 1 where id = %d"):format(math.random(ROWS)) end,
}

-- As t.wait_until, but lets the other tasks go on between two looks.
local function wait_until(fn, what)
  local deadline = t.now() + 20
  while not fn() do
    lock.sleep("1ms")
    assert(t.now() < deadline, what)
  end
end

describe("the wait-for graph, compared with pg_blocking_pids", function()
  local looking, judge, sessions
  local seed = math.tointeger(os.getenv("LOCKKEEPER_ORACLE_SEED")) or os.time()
  local times = math.tointeger(os.getenv("LOCKKEEPER_ORACLE_ROUNDS")) or 1

  setup(function()
    t.psql([[
      create schema oracle;
      create table oracle.t1 (id int primary key, n int);
      create table oracle.t2 (id int primary key, n int);
      create table oracle.t3 (id int primary key, n int);
      insert into oracle.t1 select i, 0 from generate_series(1, 3) i;
      insert into oracle.t2 select i, 0 from generate_series(1, 3) i;
    ]])
  end)

  teardown(function()
    t.psql("drop schema oracle cascade")
  end)

  before_each(function()
    math.randomseed(seed)
    looking, judge, sessions = t.connect(), t.connect(), {}
    for i = 1, SESSIONS do
      sessions[i] = { db = t.connect(), busy = false }
    end
  end)

  after_each(function()
    for _, session in ipairs(sessions) do
      session.db:close()
    end
    looking:close()
    judge:close()
  end)

  local function is_waiting(session)
    return session.busy and judge:value(IS_WAITING_SQL, session.db.pid)
  end

  -- Run what must succeed, and may be hit by a cancel that came late.
  local function surely(session, sql)
    wait_until(function()
      local ok, err = pcall(session.db.exec, session.db, sql)
      assert(ok or err.sqlstate == "57014", tostring(err))
      return ok
    end, sql)
  end

  -- Let a task of its own run this, and come back when it is done or waits for a lock.
  local function start(spawn, session, sql)
    session.busy = true
    spawn(function()
      local ok, err = pcall(session.db.exec, session.db, "savepoint s; " .. sql)
      if not ok then -- cancelled, or a deadlock: what was locked before is kept
        assert(err.sqlstate == "57014" or err.sqlstate == "40P01", tostring(err))
        surely(session, "rollback to savepoint s")
      end
      session.busy = false
    end)
    wait_until(function()
      return not session.busy or is_waiting(session)
    end, "a statement to end or to wait")
  end

  local function cancel(session)
    wait_until(function()
      if session.busy then
        judge:query("select pg_cancel_backend($1)", session.db.pid)
      end
      return not session.busy
    end, "a cancelled statement to end")
  end

  -- Everybody rolls back, those who wait once they have got what they wait for; of a deadlock, one gives up.
  local function end_round()
    local left = table.move(sessions, 1, SESSIONS, 1, {})
    while #left > 0 do
      local busy = {}
      for _, session in ipairs(left) do
        if session.busy then
          busy[#busy + 1] = session
        else
          surely(session, "rollback; begin")
        end
      end
      if #busy == #left and is_waiting(busy[1]) then
        cancel(busy[1])
      elseif #busy > 0 then
        lock.sleep("1ms")
      end
      left = busy
    end
  end

  -- Random steps; `cancels`: one in so many is that somebody who waits gives up.
  local function play(spawn, cancels)
    for _ = 1, STEPS do
      local session = sessions[math.random(SESSIONS)]
      if not session.busy then
        start(spawn, session, STATEMENTS[math.random(#STATEMENTS)]())
      elseif cancels and math.random(cancels) == 1 then
        cancel(session)
      end
    end
  end

  local function in_order(set)
    local list = {}
    for edge in pairs(set) do
      list[#list + 1] = edge
    end
    table.sort(list)
    return list
  end

  local function answers()
    local set = {}
    for _, row in ipairs(judge:query(ORACLE_SQL)) do
      set[row.pid .. " waits for " .. row.blocker] = true
    end
    return in_order(set)
  end

  local function edges_of(found)
    local set = {}
    for _, edge in ipairs(found:edges()) do
      set[edge.waiter_pid .. " waits for " .. edge.blocker_pid] = true
    end
    return in_order(set)
  end

  -- Play rounds, and compare after each; returns how many edges there were.
  local function compare(rounds, cancels, look)
    local total = 0
    for _, session in ipairs(sessions) do
      session.db:exec("begin")
    end
    lock.tasks(function(spawn)
      for round = 1, rounds * times do
        play(spawn, cancels)
        local expected, got
        wait_until(function() -- where the server goes on by itself: what it says before and after
          local before = answers()
          got = edges_of(look())
          expected = answers()
          return table.concat(before, ",") == table.concat(expected, ",")
        end, "a quiet moment")
        assert.same(expected, got, ("round %d of seed %d"):format(round, seed))
        total = total + #expected
        end_round()
      end
    end)
    if os.getenv("LOCKKEEPER_ORACLE_ROUNDS") then
      print(("%d rounds, %d edges, none wrong"):format(rounds * times, total))
    end
    return total
  end

  local function with_deadlock_timeout(timeout)
    for _, session in ipairs(sessions) do
      session.db:exec(("set deadlock_timeout = '%s'"):format(timeout))
    end
  end

  local function saved()
    local rows = looking:locks()
    return graph.of_rows(rows:to_table(), rows.taken_at)
  end

  it("locks.md 12: replaying insertion alone gives every edge of 200 rounds, and no other", function()
    with_deadlock_timeout("1h")
    assert.is_true(compare(200, nil, saved) > 1000)
  end)

  it("locks.md 12: with waiters cancelled at random too, once those in doubt are confirmed", function()
    with_deadlock_timeout("1h")
    assert.is_true(compare(60, 4, function() return looking:graph() end) > 300)
  end)

  it("also where the server's deadlock check has rearranged queues", function()
    with_deadlock_timeout("3ms")
    assert.is_true(compare(40, nil, function() return looking:graph() end) > 100)
  end)

  it("lock.graph { exact = true } has pg_blocking_pids' edges, each of them confirmed", function()
    with_deadlock_timeout("1h")
    assert.is_true(compare(15, 4, function()
      local exact = looking:graph { exact = true }
      for _, edge in ipairs(exact:edges()) do
        assert.equal("confirmed", edge.certainty)
      end
      return exact
    end) > 50)
  end)
end)
