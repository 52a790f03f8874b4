-- `lockkeeper analyze` (cli.md): the locks of a migration's statements, measured in a transaction that is
-- rolled back, against what PostgreSQL's manual says they are.

local lock = require "lockkeeper"
local t = require "tests.support"

local json = lock.json

local DATABASE = "analyze_spec"

local SCENE = [[
create table customers (id bigint primary key, name text);
create table orders (id bigint primary key, customer_id bigint, state text, total numeric);
create index orders_state on orders (state);
create table items (id bigint primary key, order_id bigint, sku text);
create table log (at date, v int) partition by range (at);
create table log_24 partition of log for values from ('2024-01-01') to ('2025-01-01');
create table log_25 partition of log for values from ('2025-01-01') to ('2026-01-01');
create table log_26 (at date, v int);
create view open_orders as select id from orders where state = 'open';
create materialized view totals as select customer_id, sum(total) as total from orders group by 1;
create unique index totals_customer on totals (customer_id);
create sequence numbers;
create type mood as enum ('good', 'bad');
create function touch() returns trigger language plpgsql as 'begin return new; end';
create procedure commits() language plpgsql as 'begin insert into items values (-1); commit; end';
insert into customers select g, 'c' from generate_series(1, 50) g;
insert into orders select g, g % 50 + 1, 'paid', g from generate_series(1, 12000) g;
insert into items select g, g, 'sku' from generate_series(1, 200) g;
alter table items add constraint items_order foreign key (order_id) references orders not valid;
analyze;
]]

local function conninfo(opts)
  local all = { dbname = DATABASE }
  for name, value in pairs(opts or {}) do
    all[name] = value
  end
  return t.conninfo(all)
end

-- Analyze a text: the exit code, stdout, stderr.
local function analyze(sql, ...)
  local words = { ... }
  local opts = type(words[#words]) == "table" and table.remove(words) or {}
  opts.env = { DATABASE_URL = opts.conninfo or conninfo() }
  words[#words + 1] = opts
  return t.run("analyze", t.tempfile(sql, "migration.sql"), table.unpack(words))
end

-- The same as JSON: a list of statements, the exit code, stderr.
local function traced(sql, ...)
  local words = { "--format", "json", ... }
  local code, out, err = analyze(sql, table.unpack(words))
  return json.decode(out), code, err
end

-- "ACCESS EXCLUSIVE public.orders": the strongest lock on each relation that is no index.
local function locks_of(statement)
  local best, list, order = {}, {}, { ["ACCESS SHARE"] = 1, ["ROW SHARE"] = 2, ["ROW EXCLUSIVE"] = 3,
    ["SHARE UPDATE EXCLUSIVE"] = 4, SHARE = 5, ["SHARE ROW EXCLUSIVE"] = 6, EXCLUSIVE = 7,
    ["ACCESS EXCLUSIVE"] = 8 }
  for _, held in ipairs(statement.locks) do
    if held.existed_before and held.relation_kind ~= "index"
      and order[held.mode] > (order[best[held.on]] or 0) then
      best[held.on] = held.mode
    end
  end
  for on, mode in pairs(best) do
    list[#list + 1] = mode .. " " .. on
  end
  table.sort(list)
  return list
end

local function advice_of(statement)
  return table.concat(statement.advice, "\n")
end

setup(function()
  t.psql("create database " .. DATABASE)
  t.psql(SCENE, { dbname = DATABASE })
end)

teardown(function()
  t.psql("drop database " .. DATABASE)
end)

-- What the database is made of: a trace leaves nothing of it.
local function fingerprint()
  return t.psql([[
    select md5(string_agg(r, ' ' order by r)) from (
      select c.oid || c.relname || c.relfilenode::text || c.relnatts as r from pg_class c
       where c.relnamespace = 'public'::regnamespace
      union all select conname || convalidated from pg_constraint
      union all select 'rows ' || (select count(*) from orders) || (select count(*) from items)) x]],
    { dbname = DATABASE })
end

describe("the locks of a statement", function()
  -- Source: PostgreSQL 15 manual, "Explicit Locking", table-level lock modes, and the commands' pages.
  local DOCUMENTED = {
    { "select * from orders", "ACCESS SHARE public.orders" },
    { "select * from open_orders", "ACCESS SHARE public.open_orders", "ACCESS SHARE public.orders" },
    { "select * from orders where id = 1 for update", "ROW SHARE public.orders" },
    { "insert into customers values (1000)", "ROW EXCLUSIVE public.customers" },
    { "update customers set name = 'x' where id = 1", "ROW EXCLUSIVE public.customers" },
    { "delete from items where id = 1", "ROW EXCLUSIVE public.items" },
    { "analyze orders", "SHARE UPDATE EXCLUSIVE public.orders" },
    { "create statistics s on id, state from orders", "SHARE UPDATE EXCLUSIVE public.orders" },
    { "comment on table orders is 'x'", "SHARE UPDATE EXCLUSIVE public.orders" },
    { "create index on orders (total)", "SHARE public.orders" },
    { "create trigger tr before insert on orders for each row execute function touch()",
      "SHARE ROW EXCLUSIVE public.orders" },
    { "refresh materialized view concurrently totals", "ACCESS SHARE public.orders",
      "EXCLUSIVE public.totals" },
    { "refresh materialized view totals", "ACCESS EXCLUSIVE public.totals", "ACCESS SHARE public.orders" },
    { "truncate items", "ACCESS EXCLUSIVE public.items" },
    { "drop table items", "ACCESS EXCLUSIVE public.items", "ACCESS EXCLUSIVE public.orders" },
    { "drop index orders_state", "ACCESS EXCLUSIVE public.orders" },
    { "reindex table customers", "SHARE public.customers" },
    { "cluster customers using customers_pkey", "ACCESS EXCLUSIVE public.customers" },
    { "lock table orders", "ACCESS EXCLUSIVE public.orders" },
    { "lock table orders in share row exclusive mode", "SHARE ROW EXCLUSIVE public.orders" },
    { "alter sequence numbers restart", "SHARE ROW EXCLUSIVE public.numbers" },
    { "create table child (id bigint references customers)", "SHARE ROW EXCLUSIVE public.customers" },
    { "alter table orders add column note text", "ACCESS EXCLUSIVE public.orders" },
    { "alter table orders rename to old_orders", "ACCESS EXCLUSIVE public.orders" },
    { "alter table orders alter column state set not null", "ACCESS EXCLUSIVE public.orders" },
    { "alter table orders alter column state set statistics 500", "SHARE UPDATE EXCLUSIVE public.orders" },
    { "alter table orders set (fillfactor = 80)", "SHARE UPDATE EXCLUSIVE public.orders" },
    { "alter table orders add constraint c check (total > 0)", "ACCESS EXCLUSIVE public.orders" },
    { "alter table orders add unique (total)", "ACCESS EXCLUSIVE public.orders" },
    { "alter table orders add foreign key (customer_id) references customers",
      "SHARE ROW EXCLUSIVE public.customers", "SHARE ROW EXCLUSIVE public.orders" },
    { "alter table items validate constraint items_order", "ROW SHARE public.orders",
      "SHARE UPDATE EXCLUSIVE public.items" },
    { "alter table orders disable trigger all", "SHARE ROW EXCLUSIVE public.orders" },
    { "alter table log add column w int", "ACCESS EXCLUSIVE public.log", "ACCESS EXCLUSIVE public.log_24",
      "ACCESS EXCLUSIVE public.log_25" },
    { "alter table log attach partition log_26 for values from ('2026-01-01') to ('2027-01-01')",
      "ACCESS EXCLUSIVE public.log_26", "SHARE UPDATE EXCLUSIVE public.log" },
    { "alter table log detach partition log_25", "ACCESS EXCLUSIVE public.log",
      "ACCESS EXCLUSIVE public.log_25" },
    { "create table log_27 partition of log for values from ('2027-01-01') to ('2028-01-01')",
      "ACCESS EXCLUSIVE public.log" },
  }

  it("are what PostgreSQL's manual says", function()
    local before = fingerprint()
    local parts = {}
    for i, case in ipairs(DOCUMENTED) do
      parts[i] = ("begin; %s; rollback;\n"):format(case[1])
    end
    local list, code, err = traced(table.concat(parts))
    assert.equal(0, code, err)
    for i, case in ipairs(DOCUMENTED) do
      local statement = list[3 * i - 1]
      assert.equal(i, statement.line)
      assert.same(table.move(case, 2, #case, 1, {}), locks_of(statement), case[1])
    end
    assert.equal(before, fingerprint())
  end)

  it("show a partition as one, an index with its table, and which was there before", function()
    local list = traced("alter table log add column w int; reindex index orders_state; "
      .. "create table fresh (a int); create index on fresh (a); create temp table passing (a int)")
    local by_name = {}
    for _, statement in ipairs(list) do
      for _, held in ipairs(statement.locks) do
        by_name[held.relation] = held
      end
    end
    assert.equal("public.log", by_name.log_24.partition_of)
    assert.equal("partitioned table", by_name.log.relation_kind)
    assert.equal("public.orders", by_name.orders_state.index_of)
    assert.is_true(by_name.orders.existed_before)
    assert.equal(12000, by_name.orders.rows)
    assert.is_false(by_name.fresh.existed_before)
    assert.is_false(by_name.passing.existed_before)
  end)

  it("say what each blocks, in kinds of work and in plain words", function()
    local list = traced("select from orders; create index on orders (total); "
      .. "lock table orders in exclusive mode; truncate items")
    assert.same({ "DDL" }, list[1].locks[1].blocks)
    assert.same({ "writes", "maintenance", "DDL" }, list[2].locks[1].blocks)
    assert.same({ "row locks", "writes", "maintenance", "DDL" }, list[3].locks[1].blocks)
    assert.same({ "reads", "row locks", "writes", "maintenance", "DDL" }, list[4].locks[1].blocks)
    assert.equal("everything: reads, writes and DDL", list[4].locks[1].blocks_in_words)
  end)

  it("are held until the end: what was taken before is named with its line", function()
    local list = traced("alter table orders add a int;\nalter table orders add b int;\n"
      .. "select pg_sleep(0.1);\n")
    local first, second = list[1].locks[1], list[2].locks[1]
    assert.same(lock.null, first.since_line)
    assert.equal("ACCESS EXCLUSIVE", second.mode)
    assert.equal(1, second.since_line)
    assert.is_true(first.held >= 0.1 and first.held > list[1].took)
    assert.is_true(list[3].took >= 0.1)
  end)

  it("include advisory locks and objects", function()
    local list = traced("select pg_advisory_xact_lock(42); drop type mood")
    assert.equal("advisory 42", list[1].locks[1].on)
    assert.equal("type mood", list[2].locks[1].on)
  end)
end)

describe("the example of ten migrations", function()
  it("has for each the lock, the work and the advice that PostgreSQL's manual gives", function()
    local before = fingerprint()
    local code, out = t.run("analyze", "scripts/examples/migration.sql", "--format", "json",
      { env = { DATABASE_URL = conninfo() } })
    local list = json.decode(out)
    assert.equal(0, code)
    assert.equal(10, #list)
    local ORDERS, ITEMS = "ACCESS EXCLUSIVE public.orders", "ACCESS EXCLUSIVE public.items"
    for i, expected in ipairs {
      { ORDERS }, { "ACCESS EXCLUSIVE public.customers" }, { "SHARE public.orders" },
      { "SHARE UPDATE EXCLUSIVE public.orders" },
      { "SHARE ROW EXCLUSIVE public.customers", "SHARE ROW EXCLUSIVE public.orders" },
      { ITEMS }, { ITEMS }, { "SHARE UPDATE EXCLUSIVE public.items" }, { "ROW EXCLUSIVE public.orders" },
      { ORDERS },
    } do
      assert.same(expected, locks_of(list[i]), list[i].statement)
    end
    assert.matches("lock_timeout", advice_of(list[1]))
    assert.equal("public.customers", list[2].rewrites[1].on)
    assert.same({}, list[1].rewrites)
    assert.matches("fill it in portions", advice_of(list[2]))
    assert.matches("CREATE INDEX CONCURRENTLY", advice_of(list[3]))
    assert.equal("not_run", list[4].state)
    assert.is_false(list[4].locks[1].is_measured)
    assert.matches("NOT VALID", advice_of(list[5]))
    assert.equal("public.items", list[6].scans[1].on)
    assert.equal(200, list[6].scans[1].rows)
    assert.equal("ACCESS EXCLUSIVE", list[6].scans[1].under)
    assert.matches("CHECK %(column IS NOT NULL%) NOT VALID", advice_of(list[6]))
    assert.same({}, list[7].scans)
    assert.equal("ACCESS EXCLUSIVE", list[8].scans[1].under)
    assert.matches("transaction of its own", advice_of(list[8]))
    assert.matches("DROP INDEX CONCURRENTLY", advice_of(list[10]))
    assert.equal(before, fingerprint())
  end)

  it("reads well", function()
    local code, out, err = t.run("analyze", "scripts/examples/migration.sql",
      { env = { DATABASE_URL = conninfo() } })
    assert.equal(0, code)
    assert.matches("its locks are real until then", err)
    assert.matches("ACCESS EXCLUSIVE on public.orders (about 12,000 rows", out, 1, true)
    assert.matches("rewrites public.customers", out, 1, true)
    assert.matches("scans all of public.items (200 rows read) under ACCESS EXCLUSIVE", out, 1, true)
    assert.matches("not run: CREATE INDEX CONCURRENTLY can't run in a transaction", out, 1, true)
    assert.matches("Held until the end of the transaction, on what existed before:\n"
      .. "  ACCESS EXCLUSIVE on public.orders from line", out, 1, true)
  end)
end)

describe("work under a lock", function()
  it("is a rewrite where the table's file is another one afterwards", function()
    local list = traced("alter table customers alter column name type varchar(9); "
      .. "alter table items add c int default 1; truncate customers")
    assert.equal("public.customers", list[1].rewrites[1].on)
    assert.matches("add a new column", advice_of(list[1]))
    assert.same({}, list[2].rewrites)
    assert.same({}, list[3].rewrites)
  end)

  it("is a change of many rows, which stay locked until the end", function()
    local list = traced("update orders set total = total + 1; delete from items where id <= 10")
    assert.equal(12000, list[1].changes[1].rows)
    assert.matches("12000 rows of public.orders", advice_of(list[1]))
    assert.equal(10, list[2].changes[1].rows)
    assert.equal("", advice_of(list[2]))
  end)

  it("is no matter on what the file has made itself", function()
    local list, code = traced("create table fresh as select g as a from generate_series(1, 20000) g; "
      .. "alter table fresh alter a type text; create index on fresh (a); drop table fresh; "
      .. "create temp table passing (a int); lock table passing", "--fail-on", "share")
    assert.equal(0, code)
    for _, statement in ipairs(list) do
      assert.same({}, statement.rewrites)
      assert.same({}, statement.advice)
      assert.same({}, locks_of(statement))
    end
  end)

  it("is told of a SET NOT NULL that trusts a valid constraint: it scans nothing", function()
    local list = traced("alter table items add constraint c check (sku is not null) not valid; "
      .. "alter table items validate constraint c; alter table items alter sku set not null")
    assert.same({}, list[1].scans)
    assert.equal(1, #list[2].scans)
    assert.same({}, list[3].scans)
  end)
end)

describe("what can't run in a transaction", function()
  it("is reported with what it would take, and not run", function()
    local cases = {
      { "create unique index concurrently if not exists x on public.orders (id)",
        "SHARE UPDATE EXCLUSIVE public.orders" },
      { "drop index concurrently orders_state", "SHARE UPDATE EXCLUSIVE public.orders" },
      { "reindex table concurrently orders", "SHARE UPDATE EXCLUSIVE public.orders" },
      { "reindex (verbose, concurrently) index orders_state", "SHARE UPDATE EXCLUSIVE public.orders" },
      { "vacuum (analyze) orders, items", "SHARE UPDATE EXCLUSIVE public.items",
        "SHARE UPDATE EXCLUSIVE public.orders" },
      { "vacuum (full, verbose) orders", "ACCESS EXCLUSIVE public.orders" },
      { "vacuum full verbose orders", "ACCESS EXCLUSIVE public.orders" },
      { "alter table log detach partition log_24 concurrently", "ACCESS EXCLUSIVE public.log_24",
        "SHARE UPDATE EXCLUSIVE public.log" },
      { "create database other" }, { "drop database other" }, { "alter system set work_mem = '4MB'" },
      { "create tablespace x location '/x'" }, { "discard all" }, { "prepare transaction 'x'" },
      { "commit prepared 'x'" }, { "reindex database" }, { "vacuum" }, { "cluster" }, { "reindex table log" },
    }
    local parts = {}
    for i, case in ipairs(cases) do
      parts[i] = case[1]
    end
    local list, code, err = traced(table.concat(parts, ";\n") .. ";\nselect 1")
    assert.equal(0, code, err)
    for i, case in ipairs(cases) do
      assert.equal("not_run", list[i].state, case[1])
      assert.is_string(list[i].reason)
      assert.same(table.move(case, 2, #case, 1, {}), locks_of(list[i]), case[1])
    end
    assert.equal("ran", list[#list].state)
  end)

  it("is what writes outside of the database, or wants the client", function()
    local path = t.tempdir() .. "/out"
    local list, code = traced(("copy orders to '%s';\ncopy (select 1) to program 'touch %s';\n"
      .. "copy orders to stdout;\ncopy orders from program 'touch %s'"):format(path, path, path))
    assert.equal(0, code)
    for i = 1, 4 do
      assert.equal("not_run", list[i].state)
    end
    assert.is_nil(io.open(path))
  end)
end)

describe("nothing is committed", function()
  local ATTEMPTS = {
    "commit", "end", "commit and chain", "begin; insert into items values (-7); commit; begin; end",
    "do $$ begin insert into items values (-2); commit; end $$",
    "do $$ begin insert into items values (-2); commit; exception when others then commit; end $$",
    "do $$ begin execute 'insert into items values (-3)'; execute 'commit'; end $$", "call commits()",
    "prepare transaction 'x'", "savepoint a; insert into items values (-4); release a; commit",
    "start transaction; insert into items values (-5); commit work",
    "rollback; insert into items values (-6)",
    "begin; rollback and chain; insert into items values (-6); end", "/* ; */ commit",
    "set transaction isolation level serializable", "rollback to lockkeeper_analyze; commit",
    "prepare p as insert into items values (-8); execute p; deallocate all",
  }

  it("by BEGIN and COMMIT in the file, nor by blocks and procedures that commit", function()
    local before = fingerprint()
    local db <close> = t.connect { dbname = DATABASE }
    for _, attempt in ipairs(ATTEMPTS) do
      local code, _, err = analyze(("create table leaked (a int); %s; create table leaked2 (a int)"):format(
        attempt))
      assert.is_true(code == 0 or code == 1, attempt .. err)
      assert.equal(0, db:value("select count(*) from pg_class where relname like 'leaked%'"), attempt)
      assert.equal(0, db:value("select count(*) from items where id < 0"), attempt)
    end
    assert.equal(before, fingerprint())
    assert.equal("0", t.psql("select count(*) from pg_prepared_xacts"))
  end)

  it("also where the server reads a text in another way than the splitter", function()
    -- The server takes the backslash for an escape: for it, there are two statements.
    t.psql(("alter database %s set standard_conforming_strings = off"):format(DATABASE))
    local code = analyze("create table leaked (a int); set standard_conforming_strings = on; "
      .. "do $$ begin perform set_config('standard_conforming_strings', 'off', false); end $$; "
      .. "select 'x\\'; commit; select '")
    t.psql(("alter database %s reset standard_conforming_strings"):format(DATABASE))
    assert.is_true(code == 1 or code == 2)
    assert.equal("", t.psql("select 1 from pg_class where relname = 'leaked'", { dbname = DATABASE }))
  end)

  it("but COMMIT is where the file's locks end, and ROLLBACK where its work does", function()
    local list, code = traced([[
begin;
alter table orders add a int;
commit;
begin;
update orders set a = 1 where id = 1;
commit;
begin;
alter table orders add b int;
rollback;
alter table orders add b int;
]])
    assert.equal(0, code)
    assert.same({ "ROW EXCLUSIVE public.orders" }, locks_of(list[5]))
    assert.same(lock.null, list[8].locks[1].since_line)
    assert.equal("ran", list[10].state)
    assert.same({ "ACCESS EXCLUSIVE public.orders" }, locks_of(list[10]))
  end)

  it("are those of a table by the name that the file has given it", function()
    local list = traced("create table orders_new (like orders);\nlock table orders;\n"
      .. "alter table orders rename to orders_old;\nalter table orders_new rename to orders;\n"
      .. "alter table orders add b int;\nalter table orders_old add b int;\n")
    assert.same({ "ACCESS EXCLUSIVE public.orders" }, locks_of(list[3]))
    assert.same({}, locks_of(list[4]))
    assert.same({}, locks_of(list[5]))
    assert.same({ "ACCESS EXCLUSIVE public.orders" }, locks_of(list[6]))
    assert.equal(2, list[6].locks[1].since_line)
  end)

  it("and savepoints of the file work", function()
    local list, code = traced("savepoint a; lock table items in share mode; rollback to savepoint a; "
      .. "lock table items in share mode; release savepoint a; select 1")
    assert.equal(0, code)
    assert.same({ "SHARE public.items" }, locks_of(list[2]))
    assert.same({ "SHARE public.items" }, locks_of(list[4]))
    assert.same(lock.null, list[4].locks[1].since_line)
  end)
end)

describe("--lock-timeout", function()
  it("bounds each wait: exit code 75, the statement's line, the rest not run", function()
    local other <close> = t.connect { dbname = DATABASE }
    local tx <close> = other:begin()
    tx:exec("select from orders")
    local list, code, err = traced("select 1;\nalter table orders add a int;\nselect 2",
      "--lock-timeout", "100ms")
    assert.equal(75, code)
    assert.matches("migration.sql:2: ", err, 1, true)
    assert.same({ "ran", "failed", "not_run" }, { list[1].state, list[2].state, list[3].state })
    assert.equal("55P03", list[2].error.sqlstate)
    assert.is_true(list[2].took >= 0.1 and list[2].took < 1.9)
  end)

  it("is 2 s, and bounds what the file sets for itself", function()
    local function timeout_after(set, ...)
      local list, code = traced(set
        .. "; do $$ begin raise exception '%', current_setting('lock_timeout'); end $$", ...)
      assert.equal(1, code)
      return list[2].error.message
    end
    assert.equal("2s", timeout_after("select 1"))
    assert.equal("2s", timeout_after("set lock_timeout = 0"))
    assert.equal("2s", timeout_after("set lock_timeout = '1h'"))
    assert.equal("2s", timeout_after("reset all"))
    assert.equal("300ms", timeout_after("set local lock_timeout = '300ms'"))
    assert.equal("1s", timeout_after("select set_config('lock_timeout', '0', true)", "--lock-timeout", "1"))
    assert.equal("0", timeout_after("select 1", "--lock-timeout", "false"))
    assert.equal(2, (analyze("select 1", "--lock-timeout", "0")))
  end)

  it("is not advised where the file sets one", function()
    local list = traced("set lock_timeout = '500ms'; truncate items")
    assert.equal("", advice_of(list[2]))
    list = traced("truncate items; truncate orders cascade")
    assert.matches("lock_timeout", advice_of(list[1]))
    assert.equal("", advice_of(list[2]))
  end)
end)

describe("--fail-on", function()
  it("gives exit code 1 where a lock that strong is held on what existed before", function()
    local index = "create index on orders (total)"
    assert.equal(1, (analyze(index, "--fail-on", "SHARE")))
    assert.equal(1, (analyze(index, "--fail-on", "row_exclusive")))
    local code, _, err = analyze("select 1;\n" .. index, "--fail-on", "share-update-exclusive")
    assert.equal(1, code)
    assert.matches("migration.sql:2: SHARE on public.orders, which --fail-on SHARE UPDATE EXCLUSIVE", err, 1,
      true)
    assert.equal(0, (analyze(index, "--fail-on", "share row exclusive")))
    assert.equal(0, (analyze("create index concurrently on orders (total)", "--fail-on", "share")))
    assert.equal(1, (analyze("vacuum full orders", "--fail-on", "access exclusive")))
    assert.equal(0, (analyze("create table a (b int); truncate a", "--fail-on", "access share")))
  end)

  it("refuses an unknown mode, and names the nearest", function()
    local code, _, err = analyze("select 1", "--fail-on", "ACCESS EXCLUSIV")
    assert.equal(2, code)
    assert.matches('unknown lock mode "ACCESS EXCLUSIV"; did you mean "ACCESS EXCLUSIVE"?', err, 1, true)
  end)
end)

describe("a file", function()
  it("whose statement fails: its line, the rest not run, exit code 1", function()
    local list, code, err = traced("create table a (b int);\n\ninsert into nowhere values (1);\nselect 2;\n")
    assert.equal(1, code)
    assert.matches('migration.sql:3: relation "nowhere" does not exist', err, 1, true)
    assert.same({ "ran", "failed", "not_run" }, { list[1].state, list[2].state, list[3].state })
    assert.equal("42P01", list[2].error.sqlstate)
    assert.matches("line 3 failed", list[3].reason)
  end)

  it("that is no SQL is refused before anything is run: exit code 2 and each line", function()
    for text, message in pairs {
      ["select 1;\n\\connect other\n"] = "migration.sql:2: \\connect: a command of psql's, not SQL",
      ["select 1;\nselect 'abc;\n"] = "migration.sql:2: the text in quotes that begins here does not end",
      ["copy orders from stdin;\n1\n\\.\n"] = "migration.sql:1: COPY … FROM STDIN",
      ["select\0 1"] = "migration.sql:1: a NUL byte",
    } do
      local code, out, err = analyze("create table leaked (a int); " .. text)
      assert.equal(2, code)
      assert.equal("", out)
      assert.matches(message, err, 1, true)
    end
    assert.equal(2, (t.run("analyze", "/nonexistent.sql")))
    assert.equal(2, (t.run("analyze", "/tmp")))
    assert.equal(2, (t.run("analyze")))
  end)

  it("without a statement is nothing to complain of", function()
    local code, out = analyze("-- nothing\n")
    assert.equal(0, code)
    assert.matches("There is no statement in it", out)
    local list = traced("")
    assert.same({}, list)
  end)

  it("may come from standard input", function()
    local code, out = t.run("analyze", "-", "--format", "json",
      { env = { DATABASE_URL = conninfo() }, stdin = "truncate items" })
    assert.equal(0, code)
    assert.same({ "ACCESS EXCLUSIVE public.items" }, locks_of(json.decode(out)[1]))
  end)

  it("full of data is told in a few lines, with the locks of each in JSON", function()
    local sql = {}
    for i = 1, 3000 do
      sql[i] = ("insert into items values (%d, 1, 'some text; and more');"):format(i + 100000)
    end
    sql[#sql + 1] = "truncate items;"
    local text = table.concat(sql, "\n")
    local code, out = analyze(text)
    assert.equal(0, code)
    assert.is_true(#out < 2500, out)
    assert.matches("and 2,999 more like it", out, 1, true)
    local list = traced(text)
    assert.equal(3001, #list)
    assert.same(locks_of(list[1]), locks_of(list[1500]))
    assert.same({ "ACCESS EXCLUSIVE public.items" }, locks_of(list[3001]))
  end)

  it("of ten megabytes is traced", function()
    local code, out, err = analyze("select '" .. ("x"):rep(10 * 1024 * 1024) .. "' from orders limit 1; "
      .. "truncate items", "--format", "json", { timeout = 60 })
    assert.equal(0, code, err:sub(1, 500))
    assert.same({ "ACCESS EXCLUSIVE public.items" }, locks_of(json.decode(out)[2]))
  end)

  it("with hostile names and texts harms no terminal and no reader of JSON", function()
    local list, code = traced("create table \"a\27[31m\" (b int); lock table \"a\27[31m\"; select '\xff'")
    assert.equal(1, code)
    assert.equal("22021", list[3].error.sqlstate)
    local _, out, err = analyze("create table \"a\27[31m\u{202e}\" (b int); select 'x\27]0;t\7'")
    assert.is_nil((out .. err):find("[\27\7]"))
  end)

  it("is read with the search_path and the role that it sets", function()
    t.psql("create schema hidden; create table hidden.\"Odd\" (a int); "
      .. "create function public.current_setting(text) returns text language sql as $$ select 'trap' $$",
      { dbname = DATABASE })
    local list, code, err = traced("set search_path = hidden, public, pg_catalog; set role lk_app; "
      .. "reset role; alter table \"Odd\" add b int; vacuum full \"Odd\"")
    t.psql("drop schema hidden cascade; drop function public.current_setting(text)", { dbname = DATABASE })
    assert.equal(0, code, err)
    assert.same({ "ACCESS EXCLUSIVE hidden.Odd" }, locks_of(list[4]))
    assert.same({ "ACCESS EXCLUSIVE hidden.Odd" }, locks_of(list[5]))
  end)
end)

describe("a session that ends", function()
  it("is exit code 69 without a server, or where it is lost", function()
    assert.equal(69, (analyze("select 1", { conninfo = "host=/nonexistent" })))
    local code = analyze("select pg_terminate_backend(pg_backend_pid())")
    assert.equal(69, code)
  end)

  it("by an interrupt leaves nothing behind: exit code 130", function()
    local child = t.lockkeeper("analyze", t.tempfile("truncate items; select pg_sleep(60)", "m.sql"),
      { env = { DATABASE_URL = conninfo() } })
    t.wait_until(function()
      return t.observe("select 1 from pg_stat_activity where wait_event = 'PgSleep' "
        .. "and datname = 'analyze_spec'") == "1"
    end, "the statement")
    child:signal("INT")
    assert.equal(130, child:wait())
    assert.equal("200", t.psql("select count(*) from items", { dbname = DATABASE }))
  end)

  it("is told to a role that may not do what the file does", function()
    local list, code = traced("truncate items", { conninfo = conninfo { user = "lk_app" } })
    assert.equal(1, code)
    assert.equal("42501", list[1].error.sqlstate)
  end)
end)
