-- scripts/examples/maintenance: each job does its work in a database with data in it, finds nothing more to
-- do when it runs again, gives way to others, and says what it may not do.

local core = require "lockkeeper.core"
local lock = require "lockkeeper"
local sandbox = require "tests.support.sandbox"
local t = require "tests.support"
local target = require "tests.support.target"

local FOLDER = "scripts/examples/maintenance/"
local DB = "lockkeeper_maintenance"

local function psql(sql)
  return t.psql(sql, { dbname = DB })
end

local function connect(opts)
  opts = opts or {}
  opts.dbname = DB
  return t.connect(opts)
end

-- A copy of a job's file with other settings, as a colleague would make it: { ["what is there"] = "what is to
-- be there" }.
local function edited(file, changes)
  local text = t.read_file(FOLDER .. file)
  for old, new in pairs(changes) do
    local from, to = text:find(old, 1, true)
    assert(from and not text:find(old, to + 1, true), file .. " has not exactly one: " .. old)
    text = text:sub(1, from - 1) .. new .. text:sub(to + 1)
  end
  return t.tempfile(text, file)
end

-- Options of t.run that lead to the database, as this user (default: a superuser).
local function into(user)
  return { env = {
    DATABASE_URL = t.conninfo({ dbname = DB, user = user }),
    PATH = target.bindir() .. ":" .. os.getenv("PATH"),
  } }
end

-- Run a job to its end; gives its exit code and its log.
local function run(path, ...)
  local code, out, err = t.run("run", path, ...)
  assert.equal("", out)
  return code, err
end

local function run_well(path, ...)
  local code, log = run(path, ...)
  assert.equal(0, code, log)
  return log
end

-- Call fn(...) without a log on our own standard error.
local function quietly(fn, ...)
  core.log_configure("error", "logfmt")
  local _ <close> = setmetatable({}, { __close = function() core.log_configure("info", "logfmt") end })
  return fn(...)
end

-- The log has these texts, in this order.
local function has_in_order(log, texts)
  local from = 1
  for _, text in ipairs(texts) do
    local _, to = log:find(text, from, true)
    assert.is_truthy(to, ("not there, or not in this place: %s\n%s"):format(text, log))
    from = to + 1
  end
end

local function has_not(log, text)
  assert.is_nil(log:find(text, 1, true), log)
end

setup(function() t.psql("create database " .. DB) end)
teardown(function() t.psql("drop database " .. DB) end)

before_each(function() psql("create schema shop") end)
after_each(function() psql("set client_min_messages = error; drop schema shop cascade") end)

---------------------------------------------------------------------------------------------------

describe("scripts/examples/maintenance/vacuum.lua", function()
  -- Tables with so many rows, of which so many are dead.
  local function fill(tables)
    for name, counts in pairs(tables) do
      psql(([[
        create table shop.%s with (autovacuum_enabled = off) as select generate_series(1, %d) as id;
        analyze shop.%s;
        delete from shop.%s where id <= %d;]]):format(name, counts[1], name, name, counts[2]))
    end
    local db <close> = connect()
    t.wait_until(function()
      for name, counts in pairs(tables) do
        if db:value("select pg_stat_get_dead_tuples($1::regclass)", "shop." .. name) < counts[2] then
          return false
        end
      end
      return true
    end, "the statistics")
  end

  local function dead(name)
    return psql(("select pg_stat_get_dead_tuples('shop.%s'::regclass)"):format(name))
  end

  it("vacuums the tables with the most dead rows, worst first, and then finds nothing to do", function()
    fill { small = { 5000, 4000 }, ['"Odd; Name"'] = { 20000, 15000 }, large = { 30000, 20000 },
      busy = { 30000, 900 }, healthy = { 50000, 1100 } }
    local log = run_well(FOLDER .. "vacuum.lua", "now", into())
    has_in_order(log, { "vacuumed shop.large\" dead_rows=20000 still_dead=0", "vacuumed shop.Odd; Name",
      "vacuumed shop.small", "not_reached=0 vacuumed=3" })
    assert.equal("0", dead("large"))
    assert.equal("900", dead("busy")) -- too few for a VACUUM of their own
    assert.equal("1100", dead("healthy")) -- too small a part

    log = run_well(FOLDER .. "vacuum.lua", "now", into())
    has_in_order(log, { 'msg="nothing to do"', "vacuumed=0" })
  end)

  it("leaves a table that is locked for the next time", function()
    fill { free = { 5000, 4000 }, taken = { 20000, 15000 } }
    local other <close> = connect()
    local tx <close> = other:begin()
    tx:exec("lock table shop.taken in access exclusive mode")
    local log = run_well(FOLDER .. "vacuum.lua", "now", into())
    has_in_order(log, { "shop.taken is locked", "vacuumed shop.free", "locked=1", "vacuumed=1" })
    tx:rollback()
    log = run_well(FOLDER .. "vacuum.lua", "now", into())
    has_in_order(log, { "vacuumed shop.taken", "locked=0", "vacuumed=1" })
  end)

  it("says where a transaction that began earlier keeps the dead rows", function()
    fill { orders = { 5000, 100 } }
    local other <close> = connect()
    local tx <close> = other:begin { isolation = "repeatable read" }
    tx:query("select from shop.orders limit 1")
    psql("delete from shop.orders where id <= 4000")
    t.wait_until(function() return tonumber(dead("orders")) >= 4000 end, "the statistics")
    local log = run_well(FOLDER .. "vacuum.lua", "now", into())
    has_in_order(log, { "level=warning", "shop.orders keeps its dead rows" })
  end)

  it("does nothing outside its window, and begins nothing when it is nearly over", function()
    fill { orders = { 5000, 4000 } }
    local function hour(offset)
      return os.date("!%H:00", os.time() + offset * 3600)
    end
    local log = run_well(edited("vacuum.lua", { ["01:00-05:00"] = hour(3) .. "-" .. hour(5) }), into())
    has_in_order(log, { "job skipped", "reason=window" })
    local open = hour(-1) .. "-" .. hour(3)
    log = run_well(edited("vacuum.lua", { ["01:00-05:00"] = open, ["least_time = 60"] = "least_time = 5e4" }),
      into())
    has_in_order(log, { "not_reached=1 vacuumed=0" })
    log = run_well(edited("vacuum.lua", { ["01:00-05:00"] = open }), into())
    has_in_order(log, { "not_reached=0 vacuumed=1" })
  end)

  it("ends a VACUUM that is not over with the window", function()
    fill { orders = { 50000, 40000 } }
    local db <close> = connect()
    db:exec("set vacuum_cost_delay = '100ms'; set vacuum_cost_limit = 1")
    local job = lock.load(edited("vacuum.lua", { ["least_time = 60"] = "least_time = 0" })).jobs[1]
    local result = job.fn({
      db = db, log = function() end, progress = function() end, time_left = function() return 0.3 end,
    })
    assert.same({ vacuumed = 0, locked = 0, not_reached = 1, not_allowed = 0, failed = 0 }, result)
  end)

  it("does what its role may do, and fails for the rest", function()
    fill { own = { 5000, 4000 }, theirs = { 20000, 15000 } }
    psql("grant usage on schema shop to lk_app; alter table shop.own owner to lk_app")
    for vacuumed = 1, 0, -1 do
      local code, log = run(FOLDER .. "vacuum.lua", "now", into("lk_app"))
      assert.equal(1, code)
      has_in_order(log, { "level=error", "shop.theirs needs a VACUUM, and this role may not do it",
        "not_allowed=1", ("vacuumed=%d"):format(vacuumed), "job failed" })
    end
    run_well(edited("vacuum.lua", { ["schemas = {}"] = 'schemas = { "public" }' }), "now", into("lk_app"))
  end)
end)

---------------------------------------------------------------------------------------------------

describe("scripts/examples/maintenance/reindex.lua", function()
  local SMALL = { ["waste = 10 * 1024 * 1024"] = "waste = 100 * 1024" }

  -- A bloated index of each kind, and one that is not; plus, with a duplicate in the way, an invalid unique
  -- index and what a REINDEX CONCURRENTLY of it has left.
  local function fill()
    psql([[
      create table shop.orders (id int, code text, kind int) with (autovacuum_enabled = off);
      insert into shop.orders select g, md5(g::text), g % 3 from generate_series(1, 20000) g;
      create index on shop.orders (id);
      create index "By; Code" on shop.orders (lower(code)) include (id);
      create index part on shop.orders (code) where kind > 0;
      create index sparse on shop.orders (id) with (fillfactor = 30);
      delete from shop.orders where id % 10 <> 0;
      vacuum analyze shop.orders;
      create index fresh on shop.orders (code, id) with (fillfactor = 20);]])
  end

  local function break_unique()
    psql("insert into shop.orders values (20001, 'twice', 1), (20001, 'twice', 2)")
    for _, sql in ipairs { "create unique index concurrently once on shop.orders (id)",
      "reindex index concurrently shop.once" } do
      assert.is_false(pcall(psql, sql))
    end
  end

  local function invalid()
    return psql([[select coalesce(string_agg(indexrelid::regclass::text, ' ' order by 1), '')
                    from pg_index where not indisvalid]])
  end

  local function size(index)
    return tonumber(psql(("select pg_relation_size('shop.%s'::regclass)"):format(index)))
  end

  it("rebuilds bloated indexes, drops leftovers, tells of an index that stays invalid", function()
    fill()
    break_unique()
    assert.equal("shop.once shop.once_ccnew", invalid())
    local before, fresh = { size('"By; Code"'), size("orders_id_idx") }, size("fresh")
    local file = edited("reindex.lua", SMALL)
    local code, log = run(file, "now", into())
    assert.equal(1, code)
    has_in_order(log, { "dropped shop.once_ccnew", "shop.once (invalid)", "is duplicated",
      "rebuilt shop.By; Code", "rebuilt shop.part", "dropped shop.once_ccnew", "failed=1",
      "rebuilt=4", "job failed" })
    assert.equal("shop.once", invalid())
    assert.is_true(size('"By; Code"') < before[1] // 4)
    assert.is_true(size("orders_id_idx") < before[2] // 4)
    assert.equal(fresh, size("fresh"))
    has_not(log, "except")

    psql("delete from shop.orders where code = 'twice' and kind = 2")
    log = run_well(file, "now", into())
    has_in_order(log, { 'rebuilt shop.once"', "was=invalid", "rebuilt=1" })
    assert.equal("", invalid())
    log = run_well(file, "now", into())
    has_in_order(log, { 'msg="nothing to do"', "rebuilt=0" })
  end)

  it("estimates the size of fresh indexes within a tenth, whatever they are of", function()
    psql([[
      create table shop.wide as
        select g as id, g::int8 as big, g % 2 = 0 as flag, nullif(g % 2, 0) * g as half, md5(g::text) as code,
               repeat(md5(g::text), 4) as long, g::numeric as number, now() + g * interval '1 s' as at
          from generate_series(1, 20000) g;
      create index on shop.wide (id); create index on shop.wide (big); create index on shop.wide (half, id);
      create index on shop.wide (code); create index on shop.wide (long); create index on shop.wide (at, id);
      create index on shop.wide (number); create index on shop.wide (id) include (code);
      create index on shop.wide (upper(code), id); create index on shop.wide (code) with (fillfactor = 50);
      create index on shop.wide (code) where flag;
      analyze shop.wide]])
    local log = run_well(edited("reindex.lua", { ["bloat = 0.4"] = "bloat = 0.1",
      ["waste = 10 * 1024 * 1024"] = "waste = 0" }), "now", into())
    has_in_order(log, { 'msg="nothing to do"' })
  end)

  it("leaves the indexes of a table where another session is at such work", function()
    fill()
    break_unique()
    local other <close> = connect()
    local tx <close> = other:begin()
    tx:exec("lock table shop.orders in share update exclusive mode")
    local log = run_well(edited("reindex.lua", SMALL), "now", into())
    has_in_order(log, { "another session is at work on its table", "busy=6", "rebuilt=0" })
    assert.equal("shop.once shop.once_ccnew", invalid())
  end)

  it("gives up where an old transaction is in the way, and leaves nothing invalid behind", function()
    fill()
    local other <close> = connect()
    local tx <close> = other:begin { isolation = "repeatable read" }
    tx:query("select from pg_class limit 1")
    local file = edited("reindex.lua", { [next(SMALL)] = SMALL[next(SMALL)],
      ['lock_timeout = "5m"'] = 'lock_timeout = "100ms"' })
    local log = run_well(file, "now", into())
    has_in_order(log, { "is left: another transaction was in the way", "dropped shop.", "busy=4" })
    assert.equal("", invalid())
    tx:rollback()
    has_in_order(run_well(file, "now", into()), { "busy=0", "rebuilt=4" })
  end)

  it("never overlaps, neither with itself nor with vacuum.lua", function()
    local other <close> = connect()
    for id, file in pairs { ["job:reindex"] = edited("reindex.lua", {}),
      maintenance = edited("reindex.lua", { ['timeout = "30m"'] = "timeout = 0" }) } do
      local held <close> = other:advisory(id)
      assert.is_true(held:is_held())
      local _, log = run(file, "now", into())
      has_in_order(log, { "job skipped", "reason=busy" })
    end
  end)

  it("fails where its role may not rebuild what is to be rebuilt", function()
    fill()
    break_unique()
    local code, log = run(FOLDER .. "reindex.lua", "now", into("lk_app"))
    assert.equal(1, code)
    has_in_order(log, { "shop.once_ccnew is to be seen to (left by a broken REINDEX), and this role may not",
      "shop.once is to be seen to (invalid), and this role may not do it", "not_allowed=2", "job failed" })
  end)
end)

---------------------------------------------------------------------------------------------------

describe("scripts/examples/maintenance/partitions.lua", function()
  local ZONE = "America/New_York"

  local function with_tables(text, changes)
    local all = {
      ['{ name = "public.events", by = "day", ahead = 7, keep = 90 },'] = text,
      ['{ name = "public.invoices", by = "month", ahead = 2, keep = false },'] = "",
      ['timezone = "UTC",'] = ('timezone = "%s",'):format(ZONE),
      ['patience = { timeout = "2s", attempts = 60, delay = "5s" }'] =
        'patience = { timeout = "100ms", attempts = 2, delay = "10ms" }',
    }
    for old, new in pairs(changes or {}) do
      all[old] = new
    end
    return edited("partitions.lua", all)
  end

  local EVENTS = '{ name = "shop.events", by = "day", ahead = 3, keep = 2 },'
  local BILLS = [=[{ name = [[shop."Bills; paid"]], by = "month", ahead = 2, keep = 12 },]=]

  -- A partition for each of the last five days, by the clock of the zone, and for today; a row in each.
  local function fill_events()
    psql(([[
      set timezone = '%s';
      create table shop.events (id int generated always as identity, at timestamptz not null,
        total numeric default 3 check (total > 0), double numeric generated always as (total * 2) stored,
        primary key (id, at)) partition by range (at);
      create index on shop.events (total);
      do $do$ declare day timestamptz := date_trunc('day', now()); begin
        for back in 0 .. 5 loop
          execute format('create table shop.events_%%s partition of shop.events '
            'for values from (%%L) to (%%L)', back, day - back * interval '1 day',
            day - (back - 1) * interval '1 day');
          insert into shop.events (at) values (day - back * interval '1 day' + interval '1 hour');
        end loop;
      end $do$]]):format(ZONE))
  end

  local function partitions(name)
    return psql(([[
      set timezone = '%s';
      select string_agg(case bound when 'DEFAULT' then bound else substring(bound from '[0-9-]+') end,
                        ' ' order by bound)
        from pg_inherits
        join pg_class p on p.oid = inhrelid
       cross join pg_get_expr(p.relpartbound, p.oid) as bound
       where inhparent = '%s'::regclass]]):format(ZONE, name))
  end

  -- What begins so many days or months from now, by the clock of the zone, as `partitions` has it.
  local function due(from, to, unit)
    return psql(([[
      set timezone = '%s';
      select string_agg((date_trunc('%s', now()) + n * interval '1 %s')::date::text, ' ' order by n)
        from generate_series(%d, %d) n]]):format(ZONE, unit, unit, from, to))
  end

  it("makes partitions ahead of time, drops old ones, and then finds nothing to do", function()
    fill_events()
    psql([[
      create table shop."Bills; paid" (day date not null, total numeric) partition by range (day);
      create table shop.others partition of shop."Bills; paid" default;
      create table shop.ancient partition of shop."Bills; paid"
        for values from (minvalue) to ('2001-01-01');
      create table shop.future partition of shop."Bills; paid"
        for values from ('2200-01-01') to (maxvalue);
      insert into shop."Bills; paid" values ('2000-01-01', 1), ('2010-01-01', 2), ('2200-01-01', 3)]])
    local file = with_tables(EVENTS .. BILLS)
    local log = run_well(file, into())
    has_in_order(log, { "created shop.events_p", "dropped shop.events_5", "dropped shop.events_4",
      "dropped shop.events_3", "created shop.Bills; paid_p", "dropped shop.ancient", "created=6 dropped=4" })
    assert.equal(due(-2, 3, "day"), partitions("shop.events"))
    assert.equal("DEFAULT " .. due(0, 2, "month") .. " 2200-01-01", partitions('shop."Bills; paid"'))
    assert.equal("3", psql("select count(*) from shop.events"))
    assert.equal("2", psql('select count(*) from shop."Bills; paid"'))
    assert.equal("0", psql("select count(*) from pg_class where relname ~ '^events_[345]$'"))

    local again = run_well(file, into())
    has_in_order(again, { "created=0 dropped=0" })
    has_not(again, "level=warning")
  end)

  it("makes partitions like the others, with defaults, checks, identity, indexes; their owner may", function()
    fill_events()
    psql("grant all on schema shop to lk_app; alter table shop.events owner to lk_app")
    for back = 0, 5 do
      psql(("alter table shop.events_%d owner to lk_app"):format(back))
    end
    has_in_order(run_well(with_tables(EVENTS), into("lk_app")), { "created=3 dropped=3" })
    psql("insert into shop.events (at) values (now() + interval '2 days')")
    assert.equal("7|3|6", psql("select id, total, double from shop.events order by at desc limit 1"))
    assert.is_false(pcall(psql, "insert into shop.events (at, total) values (now() + interval '2 days', 0)"))
    assert.equal("2|lk_app", psql([[
      select count(*), max(pg_get_userbyid(relowner))
        from pg_index join pg_class c on c.oid = indrelid where relname = (
          select max(relname) from pg_class where relname ~ '^events_p[0-9]+$')]]))
  end)

  it("waits beside those who use the table, and completes what it had to leave half done", function()
    fill_events()
    local other <close> = connect()
    local tx <close> = other:begin()
    tx:query("select from shop.events")
    local file = with_tables(EVENTS, { ['db:timeout("5m"'] = 'db:timeout("100ms"' })
    local code, log = run(file, into())
    assert.equal(75, code)
    has_in_order(log, { "created shop.events_p", "level=warning", "lock timeout", "created=3 dropped=0" })
    psql("insert into shop.events (at) values (now())") -- nobody is in the way of others
    assert.equal("t", psql("select bool_or(inhdetachpending) from pg_inherits"))

    tx:rollback()
    log = run_well(file, into())
    has_in_order(log, { "dropped shop.events_5", "created=0 dropped=3" })
    assert.equal(due(-2, 3, "day"), partitions("shop.events"))
    has_in_order(run_well(file, into()), { "created=0 dropped=0" })
  end)

  it("drops what was detached and not dropped, if it was detached by it", function()
    fill_events()
    psql([[
      comment on table shop.events_5 is 'was a partition of shop.events, is to be dropped by lockkeeper';
      alter table shop.events detach partition shop.events_5;
      alter table shop.events detach partition shop.events_4]])
    local log = run_well(with_tables(EVENTS), into())
    has_in_order(log, { "dropped shop.events_5", "dropped shop.events_3", "dropped=2" })
    assert.equal("1", psql("select count(*) from shop.events_4"))
  end)

  it("with a default partition asks for the table for a moment only, and lets others pass", function()
    fill_events()
    psql("create table shop.others partition of shop.events default")
    local other <close> = connect()
    local tx <close> = other:begin()
    tx:query("select from shop.events_0")
    tx:query("select from shop.events where at = now() - interval '1 year'") -- the default partition's
    local file = with_tables(EVENTS)
    local code, log = run(file, into())
    assert.equal(75, code)
    has_in_order(log, { "attempt 1 of 2 was rolled back", "level=warning", "lock timeout", "dropped=0" })
    tx:rollback()
    has_in_order(run_well(file, into()), { "dropped=3" })
  end)

  it("tells of a table that is not partitioned so, and of one that its role may not change", function()
    fill_events()
    psql("grant usage on schema shop to lk_app; grant select on shop.events to lk_app")
    local text = '{ name = "shop.nothing", by = "day", ahead = 3, keep = 2 },' .. EVENTS
    local code, log = run(with_tables(text), into("lk_app"))
    assert.equal(1, code)
    has_in_order(log, { "shop.nothing: there is no table of this name that is partitioned by range",
      "shop.events: ", "permission denied for schema shop", "created=0 dropped=0" })
    psql("grant create on schema shop to lk_app")
    code, log = run(with_tables(text), into("lk_app"))
    assert.equal(1, code)
    has_in_order(log, { "must be owner of table events", "created=0 dropped=0" })
    assert.equal(due(-5, 0, "day"), partitions("shop.events"))
  end)
end)

---------------------------------------------------------------------------------------------------

describe("scripts/examples/maintenance/refresh_views.lua", function()
  -- by_month reads by_day by way of a plain view, best reads by_month; by_day can be refreshed concurrently.
  local function fill()
    psql([[
      create table shop.sales (day date, amount int);
      insert into shop.sales values ('2027-01-01', 1), ('2027-01-02', 2), ('2027-02-01', 2);
      create materialized view shop.z_by_day as select day, sum(amount) as total from shop.sales group by day;
      create unique index on shop.z_by_day (day);
      create view shop.plain as select date_trunc('month', day)::date as month, total from shop.z_by_day;
      create materialized view shop."By; Month" as
        select month, sum(total) as total from shop.plain group by month;
      create unique index on shop."By; Month" (month) where total > 0;
      create materialized view shop.a_best as select max(total) as best from shop."By; Month" with no data;
      create materialized view shop.b_other as select count(*) from shop.sales;
      create unique index on shop.a_best (best);
      insert into shop.sales values ('2027-02-02', 5)]])
  end

  it("refreshes each view after those that it reads, concurrently where it can", function()
    fill()
    local log = run_well(FOLDER .. "refresh_views.lua", into())
    has_in_order(log, { 'shop.b_other" concurrently=false', 'shop.z_by_day" concurrently=true',
      'shop.By; Month" concurrently=false', 'shop.a_best" concurrently=false', "refreshed=4" })
    assert.equal("7", psql("select best from shop.a_best"))
    log = run_well(FOLDER .. "refresh_views.lua", into())
    has_in_order(log, { 'refreshed shop.a_best" concurrently=true', "failed=0 left=0 refreshed=4" })
    assert.equal("7", psql("select best from shop.a_best"))
  end)

  it("is in the way of no reader where it can be; elsewhere gives way, and leaves what reads that", function()
    fill()
    local other <close> = connect()
    local tx <close> = other:begin()
    tx:query('select from shop.z_by_day, shop."By; Month"')
    local file = edited("refresh_views.lua", {
      ['timeout = "2s", attempts = 10, delay = "5s"'] = 'timeout = "100ms", attempts = 2, delay = "10ms"' })
    local code, log = run(file, into())
    assert.equal(75, code)
    has_in_order(log, { "refreshed shop.z_by_day", "shop.By; Month: ", "lock timeout",
      "shop.a_best is left as it was: it reads shop.By; Month", "failed=1 left=1 refreshed=2" })
    tx:rollback()
    has_in_order(run_well(file, into()), { "refreshed=4" })
  end)

  it("refreshes what its role may refresh, and fails for the rest", function()
    fill()
    psql("grant usage on schema shop to lk_app; grant select on shop.sales to lk_app;"
      .. "alter materialized view shop.b_other owner to lk_app")
    local code, log = run(FOLDER .. "refresh_views.lua", into("lk_app"))
    assert.equal(1, code)
    has_in_order(log, { "refreshed shop.b_other", "must be owner of materialized view z_by_day",
      "shop.a_best is left as it was", "failed=1 left=2 refreshed=1" })
    has_in_order(run_well(edited("refresh_views.lua", { ["schemas = {}"] = 'schemas = { "public" }' }),
      into("lk_app")), { "refreshed=0" })
  end)
end)

---------------------------------------------------------------------------------------------------

describe("scripts/examples/maintenance/dump.lua", function()
  local folder

  before_each(function()
    folder = t.tempdir() .. "/it's; dumps"
    psql([[
      create table shop.orders as select g as id, md5(g::text) as code from generate_series(1, 1000) g;
      create index on shop.orders (id)]])
  end)

  local function listed()
    return sandbox.capture(("ls -1 %s | sort"):format(sandbox.quote(folder)))
  end

  local function put(name)
    sandbox.capture(("mkdir -p %s && echo x >%s"):format(sandbox.quote(folder),
      sandbox.quote(folder .. "/" .. name)))
  end

  it("makes a dump that can be restored, and that only its owner can read", function()
    run_well(FOLDER .. "dump.lua", folder, into())
    local name = listed()
    assert.matches("^lockkeeper_maintenance%-%d+T%d+Z%.dump$", name)
    assert.equal("600", sandbox.capture(("stat -c %%a %s/*"):format(sandbox.quote(folder))))

    t.psql("create database lockkeeper_restored")
    local child = t.spawn({ target.bindir() .. "/pg_restore", "--exit-on-error", "-d",
      t.conninfo({ dbname = "lockkeeper_restored" }), folder .. "/" .. name })
    assert.equal(0, child:wait(), child:stderr())
    local all = "select count(*), sum(hashtext(o::text)) from shop.orders o"
    assert.equal(psql(all), t.psql(all, { dbname = "lockkeeper_restored" }))
    t.psql("drop database lockkeeper_restored")
  end)

  it("keeps the newest dumps of this database, and touches nothing else", function()
    local old = { "lockkeeper_maintenance-20200101T000000Z.dump",
      "lockkeeper_maintenance-20210101T000000Z.dump" }
    local others = { "lockkeeper_maintenance-x-20200101T000000Z.dump", "lockkeeper_maintenance-note.dump",
      "shop-20200101T000000Z.dump", "shop-20200101T000000Z.dump.partial" }
    for _, name in ipairs(others) do
      put(name)
    end
    put(old[1])
    put(old[2])
    put("lockkeeper_maintenance-20220101T000000Z.dump.partial") -- of a host that went down
    local job = lock.load(edited("dump.lua", { ["keep = 7"] = "keep = 2",
      ["... or \"/var/backups/postgresql\""] = ("%q"):format(folder),
      ['"pg_dump",  '] = ("%q,"):format(target.bindir() .. "/pg_dump") })).jobs[1]
    local db <close> = connect()
    local outcome = quietly(job.run, job, { db = db, slot = 1800000000 })
    assert.equal("succeeded", outcome.state, outcome.error and outcome.error.message)
    local name = "lockkeeper_maintenance-20270115T080000Z.dump"
    assert.equal(folder .. "/" .. name, outcome.result.file)
    assert.equal(1, outcome.result.removed)
    assert.is_true(outcome.result.bytes > 1000)
    local expected = { others[2], others[1], name, old[2], others[3], others[4] }
    table.sort(expected)
    local found = {}
    for line in listed():gmatch("[^\n]+") do
      found[#found + 1] = line
    end
    table.sort(found)
    assert.same(expected, found)
    outcome = quietly(job.run, job, { db = db, slot = 1800000000 }) -- the same run again, as a retry
    assert.equal("succeeded", outcome.state)
    assert.equal(0, outcome.result.removed)
  end)

  it("makes at most two at a time over all hosts, also of several databases", function()
    local file = edited("dump.lua", { ['timeout = "2h"'] = 'timeout = "300ms"',
      ["counted_in = nil"] = ("counted_in = %q"):format(t.conninfo()) })
    local a <close> = t.connect()
    local b <close> = t.connect()
    local first <close> = a:semaphore("dumps", 2)
    local second = b:semaphore("dumps", 2)
    assert.is_true(first:is_held())
    local code, log = run(file, folder, into())
    assert.equal(75, code)
    has_in_order(log, { "job failed", "dumps" })
    assert.is_nil(io.open(folder))
    second:release()
    run_well(file, folder, into())
  end)

  it("leaves no part of a dump and removes none where it fails: without rights, behind a lock", function()
    local old = "lockkeeper_maintenance-20200101T000000Z.dump"
    put(old)
    local file = edited("dump.lua", { ["keep = 7"] = "keep = 1", ["timeout=30s"] = "timeout=100ms" })
    local code, log = run(file, folder, into("lk_app"))
    assert.equal(1, code)
    has_in_order(log, { "permission denied", "job failed", "pg_dump has ended with code 1" })
    assert.equal(old, listed())

    local other <close> = connect()
    local tx <close> = other:begin()
    tx:exec("lock table shop.orders")
    code, log = run(file, folder, into())
    assert.equal(1, code)
    has_in_order(log, { "LOCK TABLE shop.orders", "job failed", "canceling statement due to" })
    assert.equal(old, listed())
    tx:rollback()
    run_well(file, folder, into())
    assert.is_nil(listed():find(old, 1, true))
  end)
end)

it("all jobs of the folder can be served together", function()
  local code, out, err = t.run("check", FOLDER)
  assert.equal(0, code, out .. err)
  for _, name in ipairs { "dump", "partitions", "refresh-views", "reindex", "vacuum" } do
    assert.matches("\n" .. name:gsub("%-", "%%-") .. " ", out)
  end
end)
