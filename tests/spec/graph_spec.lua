-- lua-api.md, lock.graph, and locks.md 11 to 13.

local expect = require "tests.support.expect"
local graph = require "lockkeeper.graph"
local lock = require "lockkeeper"
local t = require "tests.support"

local json = lock.json
local bindir = require("tests.support.target").bindir()

-- A psql that runs these statements, and its pid.
local function session(name, ...)
  local argv = { bindir .. "/psql", "-Xqd", t.conninfo({ application_name = name }) }
  for _, sql in ipairs { "set deadlock_timeout = '1h'", ... } do
    argv[#argv + 1] = "-c"
    argv[#argv + 1] = sql
  end
  local child = t.spawn(argv)
  local pid = t.wait_until(function()
    return math.tointeger(t.observe(
      ("select pid from pg_stat_activity where application_name = '%s' and leader_pid is null"):format(name)))
  end, "the session " .. name)
  return { pid = pid, wait = function() child:wait() end }
end

local function waiter(name, ...)
  local self = session(name, ...)
  t.wait_until(function()
    return t.observe("select 1 from pg_locks where waitstart is not null and pid = " .. self.pid) == "1"
  end, name .. " to wait")
  t.sleep(0.006) -- so that nobody is taken to have begun at the same time
  return self
end

local function edges_of(found)
  local list = {}
  for i, edge in ipairs(found:edges()) do
    list[i] = { edge.waiter_pid, edge.blocker_pid, edge.certainty }
  end
  table.sort(list, function(a, b)
    return a[1] < b[1] or a[1] == b[1] and (a[2] or 0) < (b[2] or 0)
  end)
  return list
end

local function in_order(list)
  table.sort(list, function(a, b)
    return a[1] < b[1] or a[1] == b[1] and a[2] < b[2]
  end)
  return list
end

local function node_of(found, pid)
  for _, node in ipairs(found:sessions()) do
    if node.pid == pid then
      return node
    end
  end
end

local function pids_of(nodes)
  local pids = {}
  for i, node in ipairs(nodes) do
    pids[i] = node.pid
  end
  return pids
end

describe("lock.graph", function()
  local db, holder

  setup(function()
    t.psql([[
      create schema graph;
      create table graph.orders (id int primary key, n int);
      insert into graph.orders select i, 0 from generate_series(1, 10) i;
      grant usage on schema graph to lk_app;
    ]])
  end)

  teardown(function()
    t.psql("drop schema graph cascade")
  end)

  before_each(function()
    db = t.connect()
    holder = t.connect({ application_name = "holder" })
  end)

  after_each(function()
    db:close()
    holder:close()
  end)

  it("is empty where nobody waits", function()
    holder:exec("begin; lock table graph.orders")
    local found = db:graph()
    assert.same({}, found:edges())
    assert.same({}, found:roots())
    assert.same({}, found:sessions())
    assert.same({}, found:cycles())
    assert.same({}, found:tree())
    assert.is_true(math.abs(found.taken_at - os.time()) < 60)
    assert.same({ edges = {}, sessions = {}, roots = {}, cycles = {} },
      (function()
        local object = json.decode(found:to_json())
        object.taken_at = nil
        return object
      end)())
  end)

  it("locks.md 11: a pile-up has hard edges to who holds, soft ones to who is queued before", function()
    holder:exec("begin; update graph.orders set n = 1 where id = 1")
    local ddl = waiter("ddl", "alter table graph.orders add x int")
    local first = waiter("reader 1", "select from graph.orders")
    local second = waiter("reader 2", "select from graph.orders")
    local found = db:graph()
    assert.same(in_order { { ddl.pid, holder.pid, "hard" }, { first.pid, ddl.pid, "soft" },
      { second.pid, ddl.pid, "soft" } }, edges_of(found))
    for _, edge in ipairs(found:edges()) do
      assert.equal("orders", edge.lock.relation)
      assert.equal("graph", edge.lock.schema)
      assert.equal(edge.waiter_pid == ddl.pid and "ROW EXCLUSIVE" or nil, edge.held_mode)
      assert.equal(edge.waiter_pid == ddl.pid and "ACCESS EXCLUSIVE" or "ACCESS SHARE", edge.requested_mode)
      assert.equal(edge.waiter_pid == ddl.pid and "idle_in_transaction" or "client", edge.blocker_class)
      assert.is_true(edge.waited > 0 and edge.waited < 60)
    end
    assert.same({ holder.pid }, pids_of(found:roots()))
    holder:exec("rollback")
    ddl.wait() first.wait() second.wait()
    t.psql("alter table graph.orders drop x")
  end)

  it("locks.md 13: a root's weight is the seconds waited by all who wait behind it", function()
    holder:exec("begin; update graph.orders set n = 1 where id = 1")
    local ddl = waiter("ddl", "begin; lock table graph.orders")
    local reader = waiter("reader", "select from graph.orders")
    local found = db:graph()
    local root, waited = found:roots()[1], 0
    for _, edge in ipairs(found:edges()) do
      waited = waited + edge.waited
    end
    assert.equal(2, root.behind)
    assert.is_true(math.abs(root.weight - waited) < 1e-4)
    assert.equal(1, node_of(found, ddl.pid).behind)
    assert.equal("ACCESS SHARE graph.orders", node_of(found, reader.pid).waits_for)
    assert.equal("idle in transaction", root.activity.state)
    assert.equal("holder", root.activity.application_name)
    holder:exec("rollback")
    ddl.wait() reader.wait()
  end)

  it("names the row that a transaction is waited for, and a chain of such waits", function()
    holder:exec("begin; update graph.orders set n = 1 where id = 1")
    local second = waiter("second",
      "begin; update graph.orders set n = 1 where id = 2; update graph.orders set n = 2 where id = 1")
    local third = waiter("third", "update graph.orders set n = 3 where id = 2")
    local found = db:graph()
    assert.same(in_order { { second.pid, holder.pid, "hard" }, { third.pid, second.pid, "hard" } },
      edges_of(found))
    assert.matches("^SHARE transaction %d+: row %(%d+,%d+%) of graph%.orders$",
      node_of(found, third.pid).waits_for)
    assert.equal(2, node_of(found, holder.pid).behind)
    holder:exec("rollback")
    second.wait() third.wait()
  end)

  it("locks.md 12: confirms those in doubt, and marks what the server names as confirmed", function()
    holder:exec("begin; lock table graph.orders in access share mode")
    local waiting = waiter("waiting", "begin; lock table graph.orders in access exclusive mode")
    local queued = waiter("queued", "begin; lock table graph.orders in access exclusive mode")
    assert.same(in_order { { waiting.pid, holder.pid, "hard" }, { queued.pid, holder.pid, "hard" },
      { queued.pid, waiting.pid, "soft" } }, edges_of(db:graph())) -- in no doubt
    local other = t.connect({ application_name = "other" })
    other:exec("begin; select pg_advisory_xact_lock_shared(7702)")
    local shared = waiter("shared", "begin; select pg_advisory_xact_lock_shared(7702); "
      .. "select pg_advisory_xact_lock(7702)")
    local behind = waiter("behind", "select pg_advisory_xact_lock(7702)")
    local found = db:graph()
    local certainties = {}
    for _, edge in ipairs(found:edges()) do
      if edge.lock.type == "advisory" then
        certainties[edge.waiter_pid .. ">" .. edge.blocker_pid] = edge.certainty .. " "
          .. tostring(edge.held_mode)
      end
    end
    assert.same({
      [shared.pid .. ">" .. other.pid] = "confirmed SHARE",
      [behind.pid .. ">" .. other.pid] = "confirmed SHARE",
      [behind.pid .. ">" .. shared.pid] = "confirmed SHARE",
    }, certainties)
    other:close()
    holder:exec("rollback")
    waiting.wait() queued.wait() shared.wait() behind.wait()
  end)

  it("locks.md 13: a deadlock is a cycle, with who waits behind it", function()
    holder:exec("set deadlock_timeout = '1h'; begin; select pg_advisory_xact_lock(7712)")
    local one = waiter("one", "begin; select pg_advisory_xact_lock(7711); "
      .. "select pg_advisory_xact_lock(7710); select pg_advisory_xact_lock(7712)")
    lock.tasks(function(spawn)
      spawn(function() pcall(holder.exec, holder, "select pg_advisory_xact_lock(7711)") end)
      while not t.is_waiting(holder.pid) do
        lock.sleep("1ms")
      end
      local behind = waiter("behind", "select pg_advisory_xact_lock(7710)")
      local found = db:graph()
      assert.same({ { math.min(one.pid, holder.pid), math.max(one.pid, holder.pid) } }, found:cycles())
      assert.same({}, found:roots())
      assert.is_true(node_of(found, one.pid).in_cycle)
      assert.is_false(node_of(found, behind.pid).in_cycle)
      assert.equal(2, node_of(found, one.pid).behind)
      local trees = found:tree()
      assert.equal(1, #trees)
      assert.equal(2, #trees[1].cycle)
      t.psql(("select pg_terminate_backend(%d)"):format(one.pid))
      behind.wait()
      one.wait()
    end)
    holder:exec("rollback")
  end)

  it("locks.md 10: a prepared transaction has no pid, but its name", function()
    t.psql("begin; update graph.orders set n = 5 where id = 5; prepare transaction 'graph''s'")
    local waiting = waiter("waiting", "update graph.orders set n = 6 where id = 5")
    local found = db:graph()
    local edge, root = found:edges()[1], found:roots()[1]
    assert.is_nil(edge.blocker_pid)
    assert.equal("graph's", edge.blocker_gid)
    assert.equal("prepared", edge.blocker_class)
    assert.equal("graph's", root.gid)
    assert.equal("prepared", root.class)
    local object = json.decode(found:to_json())
    assert.equal(lock.null, object.edges[1].blocker_pid)
    assert.equal("graph's", object.edges[1].blocker_gid)
    t.psql("rollback prepared 'graph''s'")
    waiting.wait()
  end)

  it("keeps keys as texts in JSON, and instants as RFC 3339", function()
    holder:query("select pg_advisory_lock(1054880662928880172)")
    local waiting = waiter("waiting", "select pg_advisory_lock(1054880662928880172)")
    local found = db:graph()
    local object = json.decode(found:to_json())
    assert.equal("1054880662928880172", object.edges[1].lock.key)
    assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.?%d*Z$", object.taken_at)
    assert.same({ holder.pid }, { object.roots[1].pid })
    assert.equal(1054880662928880172, found:edges()[1].lock.key)
    holder:query("select pg_advisory_unlock_all()")
    waiting.wait()
  end)

  it("locks.md 9: a role that may not see others' sessions gets their edges, of class unknown", function()
    holder:exec("begin; lock table graph.orders")
    local waiting = waiter("waiting", "select from graph.orders")
    local poor = t.connect({ user = "lk_app" })
    local found = poor:graph()
    assert.same({ { waiting.pid, holder.pid, "hard" } }, edges_of(found))
    assert.equal("unknown", found:edges()[1].blocker_class)
    assert.equal("unknown", found:roots()[1].class)
    poor:close()
    holder:exec("rollback")
    waiting.wait()
  end)

  it("refuses unknown options by name", function()
    expect.usage('did you mean "exact"?', function() db:graph { exakt = true } end)
    expect.usage("exact must be true or false", function() db:graph { exact = 1 } end)
    expect.usage("options must be a table", function() db:graph(true) end)
  end)

  -- A graph of rows that say so: { pid, object, mode, waited | nil: granted }.
  local function made_of(rows)
    local list = {}
    for i, row in ipairs(rows) do
      list[i] = { pid = row[1], type = "relation", relation = row[2], schema = "s", mode = row[3],
        granted = row[4] == nil, wait_duration = row[4], activity = { pid = row[1],
          backend_type = "client backend", state = "active", user = "u", application_name = "a" } }
    end
    return graph.of_rows(list, 1e9)
  end

  it("is made of saved rows too, without a server", function()
    local found = made_of { { 1, "t", "SHARE" }, { 2, "t", "ROW EXCLUSIVE", 9 },
      { 3, "t", "ACCESS EXCLUSIVE", 8 }, { 3, "other", "ACCESS SHARE" }, { 4, "t", "SIReadLock" } }
    assert.same({ { 2, 1, "hard" }, { 3, 1, "hard" }, { 3, 2, "soft" } }, edges_of(found))
    assert.equal(17, found:roots()[1].weight)
  end)

  it("shows who waits for several below one of them, and again below the others", function()
    local found = made_of { { 1, "t", "ACCESS SHARE" }, { 2, "t", "ACCESS SHARE" },
      { 3, "t", "ACCESS EXCLUSIVE", 9 }, { 4, "t", "ACCESS SHARE", 8 }, { 5, "x", "EXCLUSIVE" },
      { 6, "x", "EXCLUSIVE", 5 } }
    local trees = found:tree()
    assert.same({ 1, 2, 5 }, pids_of(trees))
    assert.same({ 3 }, pids_of(trees[1].children))
    assert.same({ 4 }, pids_of(trees[1].children[1].children))
    assert.same({ 2 }, pids_of(trees[1].children[1].also))
    assert.is_true(trees[2].children[1].again)
    assert.same({}, trees[2].children[1].children)
    assert.same({ 1, 2 }, pids_of(found:culprits()))
  end)

  it("has pictures also of a thousand waiters in one queue, and of a chain of a thousand", function()
    local queue, chain = { { 1, "t", "EXCLUSIVE" } }, {}
    for i = 2, 1000 do
      queue[i] = { i, "t", "EXCLUSIVE", 1000 - i }
    end
    for i = 1, 1000 do
      chain[#chain + 1] = { i, "t" .. i, "EXCLUSIVE" }
      chain[#chain + 1] = i > 1 and { i, "t" .. i - 1, "EXCLUSIVE", 1 } or nil
    end
    for _, rows in ipairs { queue, chain } do
      local found = made_of(rows)
      assert.equal(999, found:roots()[1].behind)
      assert.matches("^digraph", found:to_dot())
      assert.matches("</svg>\n$", found:to_svg())
      assert.matches("</html>\n$", found:to_html())
    end
  end)
end)
