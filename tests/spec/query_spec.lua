-- lua-api.md, "Querying", and locks.md 8 to 10 and 15: lock.locks, lock.blocked, and their lists.

local expect = require "tests.support.expect"
local t = require "tests.support"
local lock = require "lockkeeper"
local core = require "lockkeeper.core"

local bindir = require("tests.support.target").bindir()

-- A psql that runs these statements in turn, in a session that is known by its application_name.
local function session(name, ...)
  local argv = { bindir .. "/psql", "-Xqd", t.conninfo({ application_name = name }) }
  for _, sql in ipairs({ ... }) do
    argv[#argv + 1] = "-c"
    argv[#argv + 1] = sql
  end
  local child = t.spawn(argv)
  local pid = t.wait_until(function()
    return math.tointeger(t.observe(
      ("select pid from pg_stat_activity where application_name = '%s' and leader_pid is null"):format(name)))
  end, "the session " .. name)
  return { pid = pid, child = child, finish = function() child:wait() end }
end

-- The same, once it waits for a lock.
local function waiter(name, ...)
  local self = session(name, ...)
  t.wait_until(function() return t.is_waiting(self.pid) end, name .. " to wait")
  return self
end

local function find(rows, wanted)
  for _, row in ipairs(rows) do
    local is_it = true
    for field, value in pairs(wanted) do
      is_it = is_it and row[field] == value
    end
    if is_it then
      return row
    end
  end
end

-- The sessions that look.
local function sides()
  return t.observe("select count(*) from pg_stat_activity where application_name = 'lockkeeper: locks'")
end

local function end_sides()
  t.psql([[select pg_terminate_backend(pid, 5000) from pg_stat_activity
            where application_name = 'lockkeeper: locks']])
end

local function epoch()
  return tonumber(t.observe("select extract(epoch from clock_timestamp())"))
end

describe("lock.locks and lock.blocked", function()
  local db, holder

  setup(function()
    t.psql([[
      create schema query;
      create table query.orders (id int primary key, v text);
      insert into query.orders select i, repeat('x', 500) from generate_series(1, 200) i;
      create table query.other (id int);
      create table query."Odd "" Name.x" (id int);
      create view query.seen as select * from query.orders;
      create table query.parts (id int) partition by range (id);
      grant usage on schema query to lk_app;
      grant all on all tables in schema query to lk_app;
    ]])
  end)

  teardown(function()
    t.psql("drop schema query cascade")
  end)

  before_each(function()
    db = t.connect()
    holder = t.connect({ application_name = "holder" })
  end)

  after_each(function()
    db:close()
    holder:close()
  end)

  -- A waits for a table that `holder` has locked: returns it, and what lets it go on.
  local function scene(name)
    local tx = holder:begin()
    tx:exec("lock table query.orders in access exclusive mode")
    local waiting = waiter(name or "waiter", "select count(*) from query.orders")
    return waiting, function()
      tx:rollback()
      waiting.finish()
    end
  end

  -- Gives this session its pids and rights back: fn(role's session).
  local function as_app(fn)
    local app <close> = t.connect({ user = "lk_app" })
    fn(app)
  end

  -- What pg_locks says of this database, a row a line; the observer does not see itself.
  local PG_LOCKS = [[
    select string_agg(line, E'\n' order by line collate "C") from (
      select concat_ws('|', l.locktype, coalesce(d.datname, '-'), coalesce(c.relname, '-'),
               coalesce(page::text, '-'), coalesce(tuple::text, '-'), coalesce(virtualxid, '-'),
               coalesce(transactionid::text, '-'), coalesce(l.classid::text, '-'),
               coalesce(l.objid::text, '-'), coalesce(l.objsubid::text, '-'), coalesce(l.pid::text, '-'),
               l.mode, l.granted, l.fastpath) as line
        from pg_locks l left join pg_database d on d.oid = nullif(l.database, 0)
        left join pg_class c on c.oid = l.relation
       where l.pid is distinct from pg_backend_pid()
         and (l.database in (0, (select oid from pg_database where datname = current_database()))
              or l.database is null
                 and (l.pid is null or l.pid in (select pid from pg_stat_activity
                                                  where datname = current_database())))) lines]]

  local function pg_mode(mode)
    return mode == "SIReadLock" and mode
      or mode:lower():gsub("%f[%a]%a", string.upper):gsub(" ", "") .. "Lock"
  end

  local function lines_of(rows)
    local lines = {}
    for i, row in ipairs(rows) do
      local fields = { row.type }
      for _, name in ipairs { "database", "relation", "page", "tuple", "virtualxid", "transactionid",
        "classid", "objid", "objsubid", "pid" } do
        fields[#fields + 1] = row[name] == nil and "-" or tostring(row[name])
      end
      fields[#fields + 1] = pg_mode(row.mode)
      fields[#fields + 1] = row.granted and "t" or "f"
      fields[#fields + 1] = row.fastpath and "t" or "f"
      lines[i] = table.concat(fields, "|")
    end
    table.sort(lines)
    return table.concat(lines, "\n")
  end

  local function assert_same_as_pg_locks()
    local theirs, ours
    t.wait_until(function() -- autovacuum may have come in between
      theirs, ours = t.observe(PG_LOCKS), lines_of(db:locks())
      return theirs == ours
    end, 5, "the same rows as pg_locks has")
    return ours
  end

  ---------------------------------------------------------------------------------------------------

  describe("locks: the rows", function()
    it("are every row of pg_locks of the database, of every kind, and none of another database", function()
      local tx = holder:begin({ isolation = "serializable" })
      tx:exec("select * from query.orders where id = 7") -- SIRead locks
      tx:exec("lock table query.other in share mode")
      tx:exec("select pg_advisory_lock(i * 3000000000), pg_advisory_xact_lock_shared(i, -i)"
        .. " from generate_series(-3, 3) i")
      tx:exec("update query.orders set v = 'a' where id = 1")
      tx:exec("comment on schema query is 'locked as an object'")
      tx:exec("comment on role lk_pw is 'locked as an object that databases share'")
      local elsewhere <close> = t.connect({ dbname = "template1" })
      elsewhere:exec("select pg_advisory_lock(77)")
      local first = waiter("first", "update query.orders set v = 'b' where id = 1")   -- waits for tx
      local second = waiter("second", "update query.orders set v = 'c' where id = 1") -- and for `first`
      local third = waiter("third", "create index concurrently on query.other (id)")  -- then a virtualxid

      local rows = assert_same_as_pg_locks()
      for _, kind in ipairs { "relation", "advisory", "transactionid", "tuple", "virtualxid", "object" } do
        assert.matches("\n" .. kind .. "|", "\n" .. rows, 1, true)
      end
      assert.is_nil(find(db:locks(), { objid = 77 }))
      assert.is_true(#db:locks { mode = "SIReadLock", pid = holder.pid } >= 1)

      tx:rollback()
      first.finish()
      second.finish()
      third.finish()
      holder:exec("select pg_advisory_unlock_all()")
    end)

    it("have keys as lock.key gives them, of both forms, also negative ones", function()
      for _, key in ipairs { 0, 1, -1, math.maxinteger, math.mininteger, 1 << 31, -(1 << 31), 1 << 32,
        lock.key("hello"), { 0, 0 }, { 1, -1 }, { -2147483648, 2147483647 } } do
        local held <close> = holder:advisory(key)
        local row = assert(find(db:locks { pid = holder.pid }, { type = "advisory" }))
        assert.same(key, row.key)
        assert.same({ lock.key_parts(key) }, { row.classid, row.objid, row.objsubid })
        assert.equal("EXCLUSIVE", row.mode)
        assert.is_true(row.granted)
        assert.is_not_nil(held)
      end
      local shared <close> = holder:advisory(5, { shared = true })
      assert.equal("SHARE", find(db:locks(), { type = "advisory" }).mode)
      assert.is_not_nil(shared)
    end)

    it("say what the relation is, and which lock is a row's", function()
      local waiting, go_on = scene()
      local row = find(db:locks(), { pid = waiting.pid, granted = false })
      assert.same({ "relation", "ACCESS SHARE", "orders", "query", "table", "postgres" },
        { row.type, row.mode, row.relation, row.schema, row.relation_kind, row.database })
      assert.is_nil(row.key)
      assert.is_nil(row.transactionid)
      go_on()

      local tx = holder:begin()
      tx:exec("lock table query.parts; select * from query.seen limit 1; select count(*) from pg_database")
      tx:exec([[select * from query."Odd "" Name.x"]])
      local rows = db:locks { pid = holder.pid, type = "relation" }
      assert.equal("partitioned table", find(rows, { relation = "parts" }).relation_kind)
      assert.equal("view", find(rows, { relation = "seen" }).relation_kind)
      assert.equal("index", find(rows, { relation = "orders_pkey" }).relation_kind)
      assert.equal("query", find(rows, { relation = 'Odd " Name.x' }).schema)
      local shared = find(rows, { relation = "pg_database" })
      assert.equal("pg_catalog", shared.schema)
      assert.is_nil(shared.database) -- all share it
      tx:rollback()
    end)

    it("have times as epoch seconds and durations in seconds, both by the server's clock", function()
      local before = epoch()
      local waiting, go_on = scene()
      local began = epoch()
      t.sleep(0.05)
      local rows = db:locks()
      local row = find(rows, { pid = waiting.pid, granted = false })
      assert.is_true(row.wait_start > before and row.wait_start <= began)
      assert.is_true(rows.taken_at >= began + 0.05 and rows.taken_at <= epoch())
      assert.is_near(rows.taken_at - row.wait_start, row.wait_duration, 1e-5)

      local activity = row.activity
      local facts = t.observe(([[
        select extract(epoch from backend_start) || '|' || extract(epoch from query_start) || '|'
               || extract(epoch from xact_start) || '|' || extract(epoch from state_change)
          from pg_stat_activity where pid = %d]]):format(waiting.pid))
      assert.equal(facts, ("%.6f|%.6f|%.6f|%.6f"):format(activity.backend_start, activity.query_start,
        activity.xact_start, activity.state_change))
      assert.is_near(rows.taken_at - activity.query_start, activity.duration, 1e-5)
      assert.is_near(rows.taken_at - activity.xact_start, activity.xact_duration, 1e-5)
      assert.is_near(rows.taken_at - activity.state_change, activity.state_duration, 1e-5)
      local granted = find(rows, { pid = holder.pid, relation = "orders" })
      assert.is_nil(granted.wait_start)
      assert.is_nil(granted.wait_duration)
      go_on()
    end)

    it("have the activity of their session", function()
      local waiting, go_on = scene("waiter of query_spec")
      local rows = db:locks()
      local activity = find(rows, { pid = waiting.pid }).activity
      assert.same({ waiting.pid, "postgres", "postgres", "waiter of query_spec", "client backend", "active",
        "Lock", "relation", "select count(*) from query.orders" },
        { activity.pid, activity.user, activity.database, activity.application_name, activity.backend_type,
          activity.state, activity.wait_event_type, activity.wait_event, activity.query })
      assert.is_nil(activity.leader_pid)
      assert.is_nil(activity.client_addr) -- a Unix socket
      assert.is_nil(activity.hidden)
      assert.equal("idle in transaction", find(rows, { pid = holder.pid }).activity.state)
      go_on()
    end)

    it("come in order of waiting first, the longest wait first, then the longest running", function()
      local waiting, go_on = scene("one")
      local two = waiter("two", "select 2 from query.orders")
      local rows = db:locks()
      assert.same({ waiting.pid, two.pid }, { rows[1].pid, rows[2].pid })
      assert.is_true(rows[1].wait_duration >= rows[2].wait_duration)
      local last = math.huge
      for i, row in ipairs(rows) do
        assert.equal(i > 2, row.granted)
        if i > 2 then
          assert.is_true(row.activity.duration <= last)
          last = row.activity.duration
        end
      end
      go_on()
      two.finish()
    end)

    it("locks.md 10: of a prepared transaction have no pid, but its name, owner and time", function()
      local before = epoch()
      t.psql([[begin; lock table query.other; select pg_advisory_xact_lock(99); update query.orders
        set v = 'p' where id = 3; prepare transaction 'query''s one']])
      t.psql("begin; insert into query.orders values (-1, ''); prepare transaction 'two'")
      local row = find(db:locks(), { relation = "other" })
      assert.is_nil(row.pid)
      assert.same({ "ACCESS EXCLUSIVE", "table", "postgres" }, { row.mode, row.relation_kind, row.database })
      local activity = row.activity
      assert.same({ "prepared", "query's one", "postgres", "postgres" },
        { activity.state, activity.gid, activity.user, activity.database })
      assert.is_true(activity.state_change > before and activity.state_duration >= 0)
      assert.equal("query's one", find(db:locks(), { key = 99 }).activity.gid)
      local xids = {}
      for _, l in ipairs(db:locks { type = "transactionid" }) do
        xids[l.activity.gid or "?"] = l.transactionid
      end
      assert.equal(
        t.observe("select string_agg(gid || ' ' || transaction, ', ' order by gid) from pg_prepared_xacts"),
        ("query's one %d, two %d"):format(xids["query's one"], xids.two))
      assert_same_as_pg_locks()
      t.psql("rollback prepared 'query''s one'")
      t.psql("rollback prepared 'two'")
    end)

    it("are tables: pairs shows every field, next, # and ipairs work, and fields may be set", function()
      local waiting, go_on = scene()
      local rows = db:locks { pid = waiting.pid, granted = false }
      assert.equal(1, #rows)
      assert.is_not_nil(next(rows))
      local row = rows[1]
      local names = {}
      for name, value in pairs(row) do
        assert.equal("string", type(name))
        assert.is_not_nil(value)
        names[#names + 1] = name
      end
      table.sort(names)
      assert.equal("activity database fastpath granted mode pid relation relation_kind schema type "
        .. "wait_duration wait_start", table.concat(names, " "))
      row.note = "mine"
      assert.equal("mine", row.note)
      assert.is_nil(row.key)
      assert.is_nil(row.nonsense)
      assert.is_nil(row[1])
      local of_activity = 0
      for name in pairs(row.activity) do
        assert.equal("string", type(name))
        of_activity = of_activity + 1
      end
      assert.is_true(of_activity >= 15)
      go_on()
    end)

    it("are not taken for whole ones by JSON while they are not: to_table and to_json are", function()
      local held <close> = holder:advisory(-5)
      local rows = db:locks { pid = holder.pid, type = "advisory" }
      assert.is_not_nil(rows[1].pid)
      expect.usage("keys", lock.json.encode, rows)
      local copy = rows:to_table()
      assert.equal(-5, copy[1].key)
      assert.equal(holder.pid, copy[1].activity.pid)
      assert.is_nil(getmetatable(copy[1]))
      assert.same(copy[1], lock.json.decode(lock.json.encode(copy))[1])
      assert.is_not_nil(held)
    end)
  end)

  ---------------------------------------------------------------------------------------------------

  describe("the filter", function()
    it("is by a row's field, else by its activity's, a list, a comparison, or a function", function()
      local waiting, go_on = scene("filtered")
      local function pids(filter)
        return db:locks(filter):pids()
      end
      assert.same({ waiting.pid }, pids { granted = false })
      assert.same({ waiting.pid }, pids { on = "query.orders", application_name = "filtered" })
      assert.same({ waiting.pid }, pids { granted = false, wait_duration_lt = "1h", mode = "access share" })
      assert.same({}, pids { granted = false, wait_duration_gt = "1h" })
      assert.same({ waiting.pid, holder.pid },
        pids { on = "query.orders", pid = { holder.pid, waiting.pid } })
      assert.same({ waiting.pid }, pids(function(row) return not row.granted end))
      assert.same({ holder.pid }, pids { on = "query.orders", where = function(row) return row.granted end })
      assert.same({ holder.pid },
        pids { state = "idle in transaction", on = { "query.other", "query.orders" } })
      go_on()
    end)

    it("by `on` means relations as PostgreSQL resolves their names", function()
      local tx = holder:begin()
      tx:exec([[lock table query."Odd "" Name.x"; select 1 from query.other]])
      assert.equal(1, #db:locks { on = [[query."Odd "" Name.x"]] })
      assert.equal(2, #db:locks { on = { [[query."Odd "" Name.x"]], "QUERY.other" }, granted = true })
      local other <close> = t.connect({ options = "-csearch_path=query" })
      assert.equal(1, #other:locks { on = "other" })
      local err = expect.kind("sql", function()
        return db:locks { on = { "query.other", "nowhere.at_all" } }
      end)
      assert.equal("42P01", err.sqlstate)
      assert.matches('relation "nowhere.at_all" does not exist', err.message, 1, true)
      expect.usage('"a..b"', function() return db:locks { on = "a..b" } end)
      expect.kind("sql", function() return db:blocked { on = "16384" } end)
      tx:rollback()
    end)

    it("by `limit` keeps the first ones; 0 keeps none", function()
      local waiting, go_on = scene()
      local rows = db:locks { limit = 1 }
      assert.equal(1, #rows)
      assert.equal(waiting.pid, rows[1].pid)
      assert.equal(0, #db:locks { limit = 0 })
      assert.is_nil(next(db:blocked { limit = 0 }))
      assert.is_true(#db:locks { limit = 1000000 } > 1)
      go_on()
    end)

    it("with an unknown field is an error that names the nearest; so are wrong types", function()
      local err = expect.kind("usage", function() return db:locks { wait_duraton_gt = 5 } end)
      assert.matches("wait_duration_gt", err.message, 1, true)
      expect.kind("usage", function() return db:locks { blocking_pid = 5 } end)
      expect.kind("usage", function() return db:locks("granted") end)
      expect.kind("usage", function() return db:locks { limit = -1 } end)
      expect.kind("usage", function() return lock.blocked { using = 5 } end)
    end)

    it("that raises an error passes it on, and the next look is as good as ever", function()
      local held <close> = holder:advisory(8)
      local err = expect.raised(function() return db:locks(function() error({ mine = true }) end) end)
      assert.is_true(err.mine)
      assert.equal(1, #db:locks { key = 8 })
      assert.is_not_nil(held)
    end)

    it("takes `using`, and is the same as a method", function()
      local held <close> = holder:advisory(9)
      lock.database("query_spec", t.conninfo())
      assert.equal(holder.pid, lock.locks { using = "query_spec", key = 9 }[1].pid)
      assert.equal(holder.pid, lock.locks { using = db, key = 9 }[1].pid)
      local tx <close> = db:begin()
      assert.equal(holder.pid, tx:locks { key = 9 }[1].pid)
      assert.is_not_nil(held)
      core.session("query_spec"):close()
    end)
  end)

  ---------------------------------------------------------------------------------------------------

  describe("blocked: the rows", function()
    it("are one for each waiter and blocker, with what is wanted and what is held", function()
      local waiting, go_on = scene("blocked one")
      local second = waiter("blocked two", "alter table query.orders add column never int")
      local rows = db:blocked()
      assert.equal(3, #rows)
      local row = rows[1]
      assert.same({ waiting.pid, holder.pid, "relation", "ACCESS SHARE", "ACCESS EXCLUSIVE" },
        { row.pid, row.blocking_pid, row.type, row.mode, row.blocking_mode })
      assert.same({ "orders", "query", false }, { row.relation, row.schema, row.granted })
      assert.equal("blocked one", row.activity.application_name)
      assert.equal("holder", row.blocking_activity.application_name)
      assert.equal("idle in transaction", row.blocking_activity.state)
      assert.is_true(row.wait_duration > 0 and row.wait_start < rows.taken_at)
      assert.is_true(rows[2].wait_start > row.wait_start)
      -- the second one waits behind the first too, which holds nothing: it only stands before it
      local queued = find(rows, { pid = second.pid, blocking_pid = waiting.pid })
      assert.equal("ACCESS EXCLUSIVE", queued.mode)
      assert.is_nil(queued.blocking_mode)
      assert.equal("ACCESS EXCLUSIVE",
        find(rows, { pid = second.pid, blocking_pid = holder.pid }).blocking_mode)
      assert.same({ waiting.pid, second.pid }, rows:pids())
      t.psql(("select pg_cancel_backend(%d)"):format(second.pid))
      second.finish()
      go_on()
    end)

    it("are of every kind of wait: row, advisory, object and virtualxid too", function()
      local tx = holder:begin()
      tx:exec("update query.orders set v = 'a' where id = 1")
      tx:exec("comment on schema query is 'held'")
      tx:exec("select pg_advisory_xact_lock(4, -4)")
      local row_waiter = waiter("row", "update query.orders set v = 'b' where id = 1")
      local behind = waiter("behind", "update query.orders set v = 'c' where id = 1")
      local key_waiter = waiter("key", "select pg_advisory_xact_lock_shared(4, -4)")
      local object_waiter = waiter("object", "comment on schema query is 'wanted'")
      local rows = db:blocked()
      local function seen(wanted)
        local row = find(rows, { pid = wanted.pid })
        return { row.type, row.mode, row.blocking_pid, row.blocking_mode }
      end
      assert.same({ "transactionid", "SHARE", holder.pid, "EXCLUSIVE" }, seen(row_waiter))
      assert.same({ "tuple", "EXCLUSIVE", row_waiter.pid, "EXCLUSIVE" }, seen(behind))
      assert.same({ "advisory", "SHARE", holder.pid, "EXCLUSIVE" }, seen(key_waiter))
      assert.same({ "object", holder.pid }, { seen(object_waiter)[1], seen(object_waiter)[3] })
      local tuple = find(rows, { pid = behind.pid })
      assert.equal("orders", tuple.relation)
      assert.is_true(tuple.tuple >= 1 and tuple.page >= 0)
      assert.same({ 4, -4 }, find(rows, { pid = key_waiter.pid }).key)
      assert.is_true(math.type(find(rows, { pid = row_waiter.pid }).transactionid) == "integer")
      tx:rollback()
      for _, one in ipairs { row_waiter, behind, key_waiter, object_waiter } do
        one.finish()
      end
      local open = holder:begin({ isolation = "repeatable read" })
      open:exec("select 1 from query.other")
      local index = waiter("index", "create index concurrently query_spec_i on query.orders (v)")
      local row = find(db:blocked(), { pid = index.pid })
      assert.same({ "virtualxid", "SHARE", holder.pid, "EXCLUSIVE" },
        { row.type, row.mode, row.blocking_pid, row.blocking_mode })
      assert.matches("^%d+/%d+$", row.virtualxid)
      open:rollback()
      index.finish()
      t.psql("drop index query.query_spec_i")
    end)

    it("locks.md 10: by a prepared transaction have no blocking pid, but its activity", function()
      t.psql("begin; update query.orders set v = 'p' where id = 3; prepare transaction 'blocker'")
      t.psql("begin; lock table query.other in share mode; prepare transaction 'shares 1'")
      t.psql("begin; lock table query.other in share mode; prepare transaction 'shares 2'")
      local waiting = waiter("behind prepared", "update query.orders set v = 'q' where id = 3")
      local two = waiter("behind two", "begin; lock table query.other in access exclusive mode")
      local rows = db:blocked()
      assert.equal(3, #rows)
      local row = find(rows, { pid = waiting.pid })
      assert.is_nil(row.blocking_pid)
      assert.same({ "transactionid", "EXCLUSIVE", "blocker", "prepared" }, { row.type, row.blocking_mode,
        row.blocking_activity.gid, row.blocking_activity.state })
      local gids = {}
      for _, r in ipairs(db:blocked { pid = two.pid }) do
        gids[#gids + 1] = r.blocking_activity.gid
      end
      table.sort(gids)
      assert.same({ "shares 1", "shares 2" }, gids)
      assert.same({}, rows:blocking_pids())

      local pids, outcomes = rows:terminate_blocking()
      assert.same({}, pids)
      assert.equal(3, #outcomes)
      for _, outcome in ipairs(outcomes) do
        assert.equal("refused", outcome.result)
        assert.matches("^ROLLBACK PREPARED '", outcome.hint)
      end
      for _, gid in ipairs { "blocker", "shares 1", "shares 2" } do
        t.psql(("rollback prepared '%s'"):format(gid))
      end
      waiting.finish()
      two.finish()
    end)

    it("name the leader of parallel workers once, and what the group holds", function()
      local leader = session("leader", "set max_parallel_workers_per_gather = 2",
        "set parallel_setup_cost = 0", "set parallel_tuple_cost = 0",
        "set min_parallel_table_scan_size = 0", "begin",
        "select count(*) from query.orders where pg_sleep(10) is not null")
      t.wait_until(function()
        return t.observe("select count(*) from pg_locks where relation = 'query.orders'::regclass") == "3"
      end, "two workers")
      local waiting = waiter("behind a group", "alter table query.orders add column never int")
      local rows = db:blocked { pid = waiting.pid }
      assert.equal(1, #rows)
      assert.same({ leader.pid, "ACCESS SHARE" }, { rows[1].blocking_pid, rows[1].blocking_mode })
      local workers = db:locks { on = "query.orders", backend_type = "parallel worker" }
      assert.equal(2, #workers)
      assert.equal(leader.pid, workers[1].activity.leader_pid)
      t.psql(("select pg_cancel_backend(%d)"):format(waiting.pid))
      waiting.finish()
      assert.same({ leader.pid }, db:locks { pid = leader.pid }:terminate())
      leader.finish()
    end)

    it("can be filtered by the blocker's fields", function()
      local waiting, go_on = scene()
      assert.equal(1, #db:blocked { blocking_pid = holder.pid })
      assert.equal(1, #db:blocked { blocking_application_name = "holder", blocking_user = "postgres" })
      assert.equal(0, #db:blocked { blocking_user_ne = "postgres" })
      assert.equal(1, #db:blocked { blocking_state = "idle in transaction", wait_duration_lt = 60 })
      assert.equal(1,
        #db:blocked { pid = waiting.pid, on = "query.orders", blocking_mode = "ACCESS EXCLUSIVE" })
      assert.equal(0, #db:blocked { on = "query.other" })
      assert.equal(0, #db:blocked { pid = holder.pid })
      go_on()
    end)

    it("of a wait that was over before its lock was looked at tell nothing of another wait", function()
      local first <close> = holder:advisory(1)
      local second <close> = holder:advisory(2)
      local waiting = waiter("moves on", "select pg_advisory_lock(1)", "select pg_advisory_lock(2)")
      local rows = db:blocked()
      assert.equal(1, #rows)
      first:release()
      t.wait_until(function()
        return t.observe(("select objid from pg_locks where pid = %d and not granted"):format(
          waiting.pid)) == "2"
      end, "its next wait")
      assert.same({ waiting.pid, holder.pid, false }, { rows[1].pid, rows[1].blocking_pid, rows[1].granted })
      assert.is_nil(rows[1].key)
      assert.is_nil(rows[1].type)
      assert.is_nil(rows[1].mode)
      assert.is_nil(rows[1].wait_start)
      assert.is_nil(rows[1].blocking_mode)
      assert.equal(2, db:blocked()[1].key)
      second:release()
      waiting.finish()
    end)

    it("say that the session is closed where their locks were not looked at before", function()
      local waiting, go_on = scene()
      local other = t.connect()
      local kept, unread = other:blocked(), other:blocked()
      assert.equal("orders", kept[1].relation)
      other:close()
      assert.equal("orders", kept[1].relation)
      assert.equal(waiting.pid, unread[1].pid)
      expect.usage("closed", function() return unread[1].relation end)
      assert.same({ holder.pid }, unread:blocking_pids())
      go_on()
    end)

    it("are restricted by blocked_by to some pids, and asked for on the session that is given", function()
      local query = require "lockkeeper.query"
      local waiting, go_on = scene("by one")
      local second = waiter("by two", "select 1 from query.orders")
      local rows = query.blocked_by(db, { second.pid, 1, waiting.pid + 100000 },
        { blocking_user = "postgres" })
      assert.same({ second.pid }, rows:pids())
      assert.equal("ACCESS EXCLUSIVE", rows[1].blocking_mode)
      assert.equal(2, #query.blocked_by(db, { second.pid, waiting.pid }))
      assert.equal(0, #query.blocked_by(db, {}))
      assert.equal("0", sides())
      go_on()
      second.finish()
    end)
  end)

  ---------------------------------------------------------------------------------------------------

  describe("looking", function()
    it("is done on a session of its own, which closes with the last one that has looked", function()
      assert.equal("0", sides())
      local other = t.connect()
      assert.is_nil(find(db:locks(), { pid = tonumber(sides()) }))
      other:locks()
      assert.equal("1", sides()) -- one for all that connect to the same place
      db:close()
      assert.equal("1", sides())
      other:close()
      t.wait_until(function() return sides() == "0" end, "its end")
    end)

    it("closes with a session that leaves its scope, and with one that is collected", function()
      do
        local scoped <close> = t.connect()
        scoped:locks()
        assert.equal("1", sides())
      end
      t.wait_until(function() return sides() == "0" end, "its end")
      lock.database("query_spec dropped", t.conninfo({ application_name = "dropped" }))
      lock.locks { using = "query_spec dropped" }
      lock.database("query_spec dropped", t.conninfo())
      t.wait_until(function()
        collectgarbage()
        return sides() == "0"
      end, "the collector")
    end)

    it("leaves the script's own session alone, be it in a failed transaction, or streaming", function()
      local held <close> = holder:advisory(3)
      local tx = db:begin()
      pcall(tx.exec, tx, "select nonsense")
      assert.equal(holder.pid, db:locks { key = 3 }[1].pid)
      tx:rollback()
      local n = 0
      for _ in db:rows("select * from generate_series(1, 3)") do
        n = n + #db:locks { key = 3 }
      end
      assert.equal(3, n)
      assert.is_not_nil(held)
      -- the script's own locks are shown
      local mine <close> = db:advisory(4)
      assert.equal(db.pid, db:locks { key = 4 }[1].pid)
      assert.is_not_nil(mine)
    end)

    it("is for many tasks at once, through one connection", function()
      local held <close> = holder:advisory(6)
      local found = 0
      lock.tasks(function(spawn)
        for _ = 1, 20 do
          spawn(function()
            local rows = db:locks { key = 6 }
            assert.equal(0, #db:blocked())
            assert.equal("1", sides())
            found = found + #rows
          end)
        end
      end)
      assert.equal(20, found)
      assert.is_not_nil(held)
    end)

    it("is done anew when its connection has ended meanwhile", function()
      local held <close> = holder:advisory(7)
      db:locks()
      end_sides()
      assert.equal(1, #db:locks { key = 7 })
      db:reconnect()
      assert.equal(1, #db:locks { key = 7 })
      assert.equal("1", sides())
      assert.is_not_nil(held)
    end)

    it("says so where a second connection can't be made, and works once it can", function()
      t.psql("alter role lk_app connection limit 1")
      as_app(function(app)
        local err = expect.kind("connection", function() app:ping() return app:locks() end)
        assert.matches("besides the session's own: .*too many connections for role", err.message)
        t.psql("alter role lk_app connection limit -1")
        assert.is_true(#app:locks() >= 0)
      end)
    end)

    it("is refused on another server than the session's", function()
      local one <close> = setmetatable({ t.start_server() },
        { __close = function(self) self[1]:stop() end })
      one[1]:stop()
      local conninfo = ("host=%s,%s port=%d,%d user=postgres dbname=postgres target_session_attrs=any")
        :format(one[1].host, t.server.host, one[1].port, t.server.port)
      local second <close> = lock.connect { conninfo = conninfo }
      assert.is_true(#second:locks() >= 0)
      one[1]:start()
      end_sides()
      local err = expect.kind("connection", function() return second:locks() end)
      assert.matches("another server", err.message, 1, true)
    end)

    it("goes through a pooler that gives each transaction another session", function()
      local pooler <close> = setmetatable({ t.start_pgbouncer() },
        { __close = function(self) self[1]:stop() end })
      local waiting, go_on = scene()
      do
        local pooled <close> = lock.connect { conninfo = pooler[1]:conninfo() }
        for _ = 1, 3 do
          assert.equal("orders", pooled:locks { pid = waiting.pid, granted = false }[1].relation)
          local row = pooled:blocked()[1]
          assert.same({ waiting.pid, holder.pid, "ACCESS EXCLUSIVE" },
            { row.pid, row.blocking_pid, row.blocking_mode })
        end
        assert.equal("0", sides()) -- nothing was set that others would get
        assert.same({ holder.pid }, (pooled:blocked():terminate_blocking()))
      end
      waiting.finish()
      assert.is_function(go_on)
    end)

    it("after close is an error that says so", function()
      db:close()
      expect.usage("closed", function() return db:locks() end)
      expect.usage("closed", function() return db:blocked() end)
    end)
  end)

  ---------------------------------------------------------------------------------------------------

  describe("locks.md 8: a catalog that somebody has locked", function()
    for _, catalog in ipairs { "pg_class", "pg_authid", "pg_database" } do
      it("does not stop the looking: " .. catalog, function()
        local waiting, go_on = scene()
        local oid = t.observe("select 'query.orders'::regclass::oid")
        assert.equal("orders", db:locks { pid = waiting.pid, granted = false }[1].relation)
        assert.equal(1, #db:blocked())
        local locker = holder -- in its transaction
        locker:exec(("lock table pg_catalog.%s in access exclusive mode"):format(catalog))
        local start = t.now()
        local rows = db:locks { pid = waiting.pid, granted = false }
        local row = rows[1]
        local is_relation = catalog == "pg_class"
        assert.equal(is_relation and oid or "orders", row.relation)
        assert.equal(not is_relation and "query" or nil, row.schema)
        assert.equal(not is_relation and "table" or nil, row.relation_kind)
        local database = catalog == "pg_database" and "5" or "postgres"
        assert.equal(database, row.database)
        assert.equal(catalog == "pg_authid" and "10" or "postgres", row.activity.user)
        local blocked = db:blocked()[1]
        assert.same({ waiting.pid, holder.pid, is_relation and oid or "orders" },
          { blocked.pid, blocked.blocking_pid, blocked.relation })
        assert.is_true(t.now() - start < 8)
        go_on()
      end)
    end
  end)

  it("works whatever stands in the search_path", function()
    t.psql([[
      create schema evil;
      create function evil.yes(anyelement, anyelement) returns bool language sql immutable as 'select true';
      create function evil.no(anyelement, anyelement) returns bool language sql immutable as 'select false';
      create operator evil.= (leftarg = anyelement, rightarg = anyelement, function = evil.yes);
      create operator evil.* (leftarg = anyelement, rightarg = anyelement, function = evil.no);
      create operator evil.!~ (leftarg = anyelement, rightarg = anyelement, function = evil.no);
      create function evil.pg_lock_status() returns int language sql as 'select 1';
      create function evil.pg_blocking_pids(int) returns int[] language sql as 'select array[1]';
      create function evil.clock_timestamp() returns timestamptz language sql
        as $$ select timestamptz 'epoch' $$;
      create function evil.date_part(text, timestamptz) returns float8 language sql as 'select 1.0::float8';
      create table evil.pg_class (oid int, relname text);
      create domain evil.oid as int check (value is null);
      create domain evil.int8 as int check (value is null);
      create domain evil.text as int;
    ]])
    local waiting, go_on = scene()
    do
      local evil <close> = t.connect({ options = "-csearch_path=evil,pg_catalog -cextra_float_digits=-15"
        .. " -cdatestyle=german -ctimezone=Asia/Kathmandu -cbytea_output=escape" })
      assert.equal("orders", evil:locks { granted = false, on = "query.orders" }[1].relation)
      local row = evil:blocked()[1]
      assert.same({ waiting.pid, holder.pid, "orders" }, { row.pid, row.blocking_pid, row.relation })
      assert.is_true(math.abs(epoch() - row.wait_start) < 3600)
      lock.names { "evil" }
      local held <close> = holder:advisory("evil")
      assert.equal("evil", find(evil:locks(), { type = "advisory" }).lock_name)
      assert.is_not_nil(held)
    end
    go_on()
    t.psql("drop schema evil cascade")
  end)

  ---------------------------------------------------------------------------------------------------

  describe("locks.md 9: a role without pg_monitor", function()
    it("gets every row, with what it may see, and finds those who are blocked", function()
      local waiting, go_on = scene()
      as_app(function(app)
        local row = find(app:locks(), { pid = waiting.pid, granted = false })
        assert.same({ "orders", "ACCESS SHARE" }, { row.relation, row.mode })
        assert.is_true(row.wait_duration > 0)
        local activity = row.activity
        assert.is_true(activity.hidden)
        assert.same({ waiting.pid, "postgres", "postgres", "waiter" },
          { activity.pid, activity.user, activity.database, activity.application_name })
        for _, name in ipairs { "state", "query", "wait_event", "backend_start", "xact_start", "duration",
          "backend_type" } do
          assert.is_nil(activity[name])
        end
        local blocked = app:blocked()
        assert.same({ waiting.pid, holder.pid, "ACCESS SHARE", "ACCESS EXCLUSIVE" },
          { blocked[1].pid, blocked[1].blocking_pid, blocked[1].mode, blocked[1].blocking_mode })
        local _, outcomes = blocked:terminate_blocking()
        assert.same({ "refused", holder.pid }, { outcomes[1].result, outcomes[1].pid })
        assert.matches("GRANT", outcomes[1].hint, 1, true)
      end)
      go_on()
    end)

    it("is told once which grant is missing", function()
      local held <close> = holder:advisory(1)
      local script = t.tempfile([[
        local lock = require "lockkeeper"
        for _ = 1, 3 do
          print(#lock.locks { key = 1 })
        end]])
      local env = { DATABASE_URL = t.conninfo({ user = "lk_app" }) }
      local code, out, err = t.run("run", script, { env = env })
      assert.same({ 0, "1\n1\n1\n" }, { code, out })
      local _, count = err:gsub("GRANT pg_monitor", "")
      assert.equal(1, count, err)
      assert.is_not_nil(held)
    end)

    it("is told where a filter on what it may not see has left rows out", function()
      local held <close> = holder:advisory(1)
      local script = t.tempfile([[print(#require("lockkeeper").locks { key = 1, state = "idle" })]])
      local env = { DATABASE_URL = t.conninfo({ user = "lk_app" }) }
      local code, out, err = t.run("run", script, { env = env })
      assert.same({ 0, "0\n" }, { code, out })
      assert.matches("1 row was left out", err, 1, true)
      assert.matches("pg_monitor", err, 1, true)
      assert.is_not_nil(held)
    end)
  end)

  ---------------------------------------------------------------------------------------------------

  describe("lists: cancel and terminate", function()
    it("signal the sessions of the rows, each once, and return their pids", function()
      local waiting, go_on = scene("to cancel")
      assert.same({ waiting.pid }, db:locks { pid = waiting.pid }:cancel())
      waiting.finish()
      assert.matches("canceling statement due to user request", waiting.child:stderr(), 1, true)
      go_on()
    end)

    it("end those that block, and nobody else", function()
      local waiting = select(1, scene("to go on"))
      local bystander <close> = t.connect()
      local kept <close> = bystander:advisory(11)
      local pids, outcomes = db:blocked():terminate_blocking()
      assert.same({ holder.pid }, pids)
      assert.same({ "signalled", true }, { outcomes[1].result, outcomes[1].ended })
      waiting.finish()
      assert.equal("", waiting.child:stderr())
      assert.is_true(kept:is_held())
    end)

    it("never hit the session's own backend, nor the one that looks", function()
      local tx = db:begin()
      tx:exec("lock table query.orders")
      local waiting = waiter("behind own", "select 1 from query.orders")
      assert.same({}, (db:blocked():terminate_blocking()))
      assert.same({}, (db:locks { pid = db.pid }:terminate()))
      assert.is_true(db:ping())
      tx:rollback()
      waiting.finish()
    end)

    it("tell what could not be done, and go on with the rest", function()
      local waiting, go_on = scene()
      local second = t.connect()
      second:exec("select pg_advisory_lock(12)")
      local rows = db:locks { pid = { holder.pid, second.pid }, granted = true }
      local pids, outcomes = rows:cancel() -- neither runs a statement
      assert.same({}, pids)
      assert.equal(2, #outcomes)
      assert.equal("no_effect", outcomes[1].result)
      rows = db:locks { key = 12 }
      t.psql(("select pg_terminate_backend(%d, 5000)"):format(second.pid))
      pids, outcomes = rows:terminate()
      assert.same({ {}, "gone" }, { pids, outcomes[1].result })
      second:close()
      assert.is_not_nil(waiting)
      go_on()
    end)

    it("act on what is in the list now, also of a blocked one", function()
      local waiting, go_on = scene("removed")
      local second = waiter("kept", "select 1 from query.orders")
      local rows = db:blocked()
      local gone = table.remove(rows, 1)
      assert.equal(waiting.pid, gone.pid)
      assert.same({ second.pid }, rows:pids())
      assert.same({ second.pid }, rows:cancel())
      assert.is_true(t.is_waiting(waiting.pid))
      second.finish()
      go_on()
    end)

    it("do nothing with an empty list", function()
      for _, rows in ipairs { db:locks { pid = 1 }, db:blocked { pid = 1 } } do
        assert.same({}, rows:cancel())
        assert.same({}, rows:terminate())
        assert.same({}, rows:pids())
        assert.equal("[]", rows:to_json())
        assert.same({}, rows:to_table())
      end
      assert.same({}, db:blocked { pid = 1 }:terminate_blocking())
    end)
  end)

  describe("lists: to_json", function()
    it("has keys as decimal strings, which JSON can't hold otherwise", function()
      local first <close> = holder:advisory(math.mininteger)
      local second <close> = holder:advisory({ -1, 2 })
      local rows = lock.json.decode(db:locks { pid = holder.pid, type = "advisory" }:to_json())
      local keys = { rows[1].key, rows[2].key }
      table.sort(keys)
      assert.same({ "-1,2", "-9223372036854775808" }, keys)
      assert.equal(holder.pid, rows[1].activity.pid)
      assert.is_true(rows[1].granted)
      assert.is_not_nil(first)
      assert.is_not_nil(second)
    end)

    it("has blocked rows with both activities", function()
      local waiting, go_on = scene()
      local rows = lock.json.decode(db:blocked():to_json())
      assert.same({ waiting.pid, holder.pid, "ACCESS EXCLUSIVE" },
        { rows[1].activity.pid, rows[1].blocking_activity.pid, rows[1].blocking_mode })
      go_on()
    end)
  end)
end)

describe("lock.locks and lock.blocked of much", function()
  local server, db, holder

  setup(function()
    server = t.start_server({ settings = { max_locks_per_transaction = 600, max_connections = 200 } })
    db = lock.connect { conninfo = server:conninfo() }
    holder = lock.connect { conninfo = server:conninfo() }
  end)

  teardown(function()
    db:close()
    holder:close()
    server:stop()
  end)

  it("are right with 100,000 rows", function()
    holder:exec("select pg_advisory_lock(i) from generate_series(1, 100000) i")
    local rows = db:locks { type = "advisory" }
    assert.equal(100000, #rows)
    local sum = 0
    for _, row in ipairs(rows) do
      sum = sum + row.key
    end
    assert.equal(5000050000, sum)
    assert.same({ holder.pid }, rows:pids())
    assert.equal(1, #db:locks { key = 77777 })
    assert.equal(100000, #rows:to_table())
    holder:exec("select pg_advisory_unlock_all()")
  end)

  it("are right with more relations than are named at once, and with a chain of 40 waiters", function()
    holder:exec([[do $$ begin
      for i in 1..600 loop execute format('create table many_%s (id int primary key)', i); end loop; end $$]])
    local tx = holder:begin()
    tx:exec([[do $$ begin
      for i in 1..600 loop execute format('lock table many_%s', i); perform * from pg_class where false;
        execute format('select from many_%s where id = 1', i); end loop; end $$]])
    local rows = db:locks { type = "relation", pid = holder.pid }
    assert.is_true(#rows > 1200)
    local names = {}
    for _, row in ipairs(rows) do
      names[row.relation] = row.relation_kind
    end
    assert.same({ "table", "index" }, { names.many_600, names.many_600_pkey })

    local waiters = {}
    for i = 1, 40 do
      waiters[i] = lock.connect { conninfo = server:conninfo() }
    end
    lock.tasks(function(spawn)
      for i = 1, 40 do
        spawn(function() waiters[i]:exec("lock table many_1 in access exclusive mode; select 1") end)
      end
      t.wait_until(function()
        lock.sleep(0.01)
        return #db:blocked():pids() == 40
      end, 20, "40 waiters")
      local blocked = db:blocked()
      assert.equal(40 * 41 // 2, #blocked) -- by the holder, and by each that stands before
      local last, holding = 0, 0
      for _, row in ipairs(blocked) do
        assert.is_true(row.wait_start >= last)
        last = row.wait_start
        holding = holding + (row.blocking_mode and 1 or 0)
      end
      assert.equal(40, holding)
      assert.equal(holder.pid, blocked[1].blocking_pid)
      tx:rollback()
    end)
    for i = 1, 40 do
      waiters[i]:close()
    end
  end)
end)
