-- lua-api.md, "Sessions", and runner.md 14, 19, 25: where a session connects to, what it asks and
-- sets there, how it ends, and that no password is shown.

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local process = require "tests.support.process"
local t = require "tests.support"

local raised = expect.raised
local function connecting(conninfo, opts)
  opts = opts or {}
  opts.conninfo = conninfo
  return raised(function() lock.connect(opts) end)
end

-- Run a script with `lock` and `db`, the default session.
local function run(text, opts)
  opts = opts or {}
  opts.stdin = 'local lock = require "lockkeeper"\nlocal db = lock.db\n' .. text
  return t.lockkeeper("run", "-", opts)
end

local function output(child)
  assert.equal(0, child:wait(), child:stderr())
  return (child:stdout():gsub("\n$", ""))
end

describe("a conninfo", function()
  it("is a URI, or keywords, with any value in it", function()
    local name = [[it's a \ "name" & more?]]
    for _, form in ipairs({ "conninfo", "uri" }) do
      local db <close> = lock.connect({ conninfo = t.server[form](t.server, { application_name = name }) })
      assert.equal(name, db:value("show application_name"))
    end
  end)

  it("may name a service, and leave things to libpq's variables", function()
    local file = t.tempfile(("[here]\nhost=%s\nport=%d\nuser=lk_app\ndbname=postgres\n"):format(
      t.server.host, t.server.port))
    local show = "print(db:value('select current_user'))"
    assert.equal("lk_app", output(run(show,
      { env = { DATABASE_URL = "service=here", PGSERVICEFILE = file } })))
    assert.equal("lk_app", output(run(show,
      { env = { DATABASE_URL = false, PGSERVICE = "here", PGSERVICEFILE = file } })))
    assert.equal("postgres", output(run(show,
      { env = { DATABASE_URL = "service=here user=postgres", PGSERVICEFILE = file } })))
    local env = { PGHOST = t.server.host, PGPORT = t.server.port, PGUSER = "lk_pw", PGDATABASE = "postgres",
      PGPASSWORD = t.password }
    for _, url in ipairs({ "", " ", "postgres://", false }) do
      env.DATABASE_URL = url
      assert.equal("lk_pw", output(run(show, { env = env })))
    end
  end)

  it("may leave the password to a password file", function()
    local file = t.tempfile("*:*:*:lk_pw:" .. t.password .. "\n")
    os.execute("chmod 600 " .. file)
    assert.equal("lk_pw", output(run("print(db:value('select current_user'))",
      { env = { DATABASE_URL = t.conninfo({ user = "lk_pw" }), PGPASSFILE = file } })))
  end)

  it("tells the server who we are, unless it says so itself", function()
    local show = "print(db:value('show application_name'))"
    local db <close> = lock.connect({ conninfo = t.conninfo() })
    assert.matches("^lockkeeper", db:value("show application_name"))
    assert.equal("mine", output(run(show, { env = { PGAPPNAME = "mine" } })))
    assert.equal("its", output(run(show, { env = { DATABASE_URL = t.conninfo({ application_name = "its" }),
      PGAPPNAME = "mine" } })))
  end)

  it("is UTF-8 to the server whatever the environment says", function()
    assert.equal("UTF8", output(run("print(db:value('show client_encoding'))",
      { env = { PGCLIENTENCODING = "LATIN1" } })))
  end)
end)

describe("a session that can't be opened", function()
  it("is a connection error that says why", function()
    local err = connecting("host=/no/such/folder")
    assert.equal("connection", err.kind)
    assert.is_false(err.busy)
    assert.matches("/no/such/folder", err.message, 1, true)
    assert.is_nil(err.hint)
    assert.matches("connection_spec.lua:%d+", tostring(err))
    assert.matches("Connection refused", connecting("host=127.0.0.1 port=1").message)
    assert.matches("no%-such%-host", connecting("postgres://no-such-host.invalid/x").message)
    assert.matches('database "nosuch" does not exist', connecting(t.conninfo({ dbname = "nosuch" })).message)
    assert.matches('role "nobody_" does not exist', connecting(t.conninfo({ user = "nobody_" })).message)
  end)

  it("is a connection error for a wrong password, and for none", function()
    for _, password in ipairs({ "wrong-horse", "" }) do
      local err = connecting(t.conninfo({ user = "lk_pw", password = password, passfile = "/dev/null" }))
      assert.equal("connection", err.kind)
      assert.matches("password", err.message)
      assert.not_matches("wrong-horse", tostring(err), 1, true)
    end
  end)

  it("is a usage error for a malformed conninfo", function()
    for _, conninfo in ipairs({ "x", "nosuch=1", "host='x", "postgres://[::1", "postgres://h/?nosuch=1",
      "postgres://h:port/", "postgres://%zz/", "host" }) do
      local err = connecting(conninfo)
      assert.equal("usage", err.kind, tostring(err))
      assert.matches("the conninfo is malformed: ", err.message)
    end
    assert.matches('"nosuch"', connecting("nosuch=1").message)
    assert.equal("connection", connecting("host=127.0.0.1 port=99999").kind)
    assert.equal("connection", connecting("host=127.0.0.1 sslmode=wrong").kind)
    assert.equal("connection", connecting("service=nosuch").kind)
    assert.equal("usage", connecting(("x"):rep(10 * 1024 * 1024)).kind)
  end)

  it("is a connection error where the server takes no sessions yet, or no more", function()
    local standby = t.start_server({ standby_of = t.server, settings = { hot_standby = false } })
    finally(function() standby:stop() end)
    local err = connecting(standby:conninfo())
    assert.equal("connection", err.kind)
    assert.matches("not accepting connections", err.message)

    t.psql("create role lk_few login connection limit 1")
    local db = t.connect({ user = "lk_few" })
    err = connecting(t.conninfo({ user = "lk_few" }))
    assert.equal("connection", err.kind)
    assert.matches("too many connections", err.message)
    db:close()
    t.wait_until(function() return pcall(t.psql, "drop role lk_few") end, "the end of the session")
  end)

  it("may be tried again", function()
    lock.database("later", t.conninfo({ dbname = "later" }))
    assert.equal("connection", raised(lock.advisory, 1, { using = "later" }).kind)
    t.psql("create database later")
    local held = assert(lock.advisory(1, { using = "later" }))
    held:release()
    require("lockkeeper.core").session("later"):close()
    t.wait_until(function() return pcall(t.psql, "drop database later") end, "the end of the session")
  end)
end)

describe("several hosts", function()
  local standby

  setup(function() standby = t.start_server({ standby_of = t.server }) end)
  teardown(function() standby:stop() end)

  local function hosts(rest)
    return ("user=postgres dbname=postgres host=/no/such/folder,%s,%s port=1,%d,%d %s"):format(standby.host,
      t.server.host, standby.port, t.server.port, rest or "")
  end

  it("mean the primary, unless something else is asked for (runner.md 25)", function()
    local db <close> = lock.connect({ conninfo = hosts() })
    assert.is_false(db.in_recovery)
    assert.is_false(db:value("select pg_is_in_recovery()"))
    local any <close> = lock.connect({ conninfo = hosts("target_session_attrs=any") })
    assert.is_true(any.in_recovery)
    local other <close> = lock.connect({ conninfo = hosts("target_session_attrs=standby") })
    assert.is_true(other.in_recovery)
    local show = "print(db.in_recovery)"
    assert.equal("false", output(run(show, { env = { DATABASE_URL = hosts() } })))
    assert.equal("true", output(run(show,
      { env = { DATABASE_URL = hosts(), PGTARGETSESSIONATTRS = "any" } })))
    local env = { DATABASE_URL = "user=postgres dbname=postgres",
      PGHOST = standby.host .. "," .. t.server.host, PGPORT = standby.port .. "," .. t.server.port }
    assert.equal("false", output(run(show, { env = env })))
  end)

  it("are a connection error where none will do", function()
    local conninfo = ("user=postgres host=/no/such/folder,%s port=1,%d"):format(standby.host, standby.port)
    local err = connecting(conninfo)
    assert.equal("connection", err.kind)
    assert.matches("/no/such/folder", err.message, 1, true)
    assert.matches("read-only", err.message, 1, true)
  end)

  it("do not change that a single one may be a standby, where session-level locks are refused", function()
    local db <close> = lock.connect({ conninfo = standby:conninfo() })
    assert.is_true(db.in_recovery)
    assert.equal(1, db:value("select 1"))
    local err = raised(db.advisory, db, 1)
    assert.equal("usage", err.kind)
    assert.matches("recovery", err.message .. (err.hint or ""))
  end)
end)

describe("connecting", function()
  local server

  setup(function() server = t.start_server({ tcp = true }) end)
  teardown(function() server:stop() end)

  -- Our end of the connection, as /proc/net/tcp shows it.
  local function client_port(db)
    return ("0100007F:%04X"):format(db:value("select client_port from pg_stat_activity where pid = $1",
      db.pid))
  end

  it("sets what a session that holds locks needs (runner.md 14 and 19)", function()
    server:psql([[alter role lk_app set idle_session_timeout = '9s';
      alter role lk_app set idle_in_transaction_session_timeout = '9s';
      alter role lk_app set tcp_keepalives_idle = 3]])
    local db <close> = lock.connect({ conninfo = server:conninfo({ user = "lk_app", host = "127.0.0.1" }) })
    local function show(name)
      return db:value("show " .. name)
    end
    assert.equal("0", show("idle_session_timeout"))
    assert.equal("0", show("idle_in_transaction_session_timeout"))
    assert.equal("5s", show("client_connection_check_interval"))
    -- at least 60 s on the server's side …
    assert.equal("40", show("tcp_keepalives_idle"))
    assert.equal("10", show("tcp_keepalives_interval"))
    assert.equal("4", show("tcp_keepalives_count"))
    assert.equal("80000", show("tcp_user_timeout"))
    assert.is_nil(db:value("select current_setting('transaction_timeout', true)"))
    -- … at most 20 s on ours: the keepalive timer of our socket runs, for at most 4 s
    local port = client_port(db)
    local timer, ticks = t.read_file("/proc/net/tcp"):match(port .. " %S+ 01 %S+ (%x%x):(%x+)")
    assert.equal("02", timer)
    assert.is_true(tonumber(ticks, 16) <= 400, ticks)
  end)

  it("leaves the user's own keepalives alone", function()
    local db <close> = lock.connect({ conninfo = server:conninfo({ host = "127.0.0.1", keepalives = 0 }) })
    assert.equal("00", t.read_file("/proc/net/tcp"):match(client_port(db) .. " %S+ 01 %S+ (%x%x):%x+"))
  end)

  it("sends two statements and no more", function()
    server:psql("alter role lk_app set log_statement = 'all'")
    local before = #server:log()
    local db <close> = lock.connect({ conninfo = server:conninfo({ user = "lk_app",
      application_name = "count_me" }) })
    assert.equal(1, db:value("select 1"))
    local log = server:log():sub(before + 1)
    assert.equal(3, select(2, log:gsub("count_me LOG:  [es]", "")), log) -- "execute …", "statement: …"
  end)
end)

describe("a pooler between", function()
  local bouncer

  after_each(function() bouncer:stop() end)

  local function open(opts)
    opts = opts or {}
    opts.conninfo = bouncer:conninfo({ user = "lk_app" })
    return lock.connect(opts)
  end

  it("is noticed: nothing is set, no statement prepared, session-level locks refused", function()
    bouncer = t.start_pgbouncer()
    local db <close> = open()
    for i = 1, 4 do
      assert.equal(i, db:value("select $1::int", i))
      assert.equal("\0" .. i, db:value("select $1::bytea", "\0" .. i))
    end
    for row in db:rows("select $1::int as v", 7) do
      assert.equal(7, row.v)
    end
    assert.equal("0|0", bouncer:psql("select count(*), current_setting('client_connection_check_interval') "
      .. "from pg_prepared_statements", { user = "lk_app" }))
    local err = raised(db.advisory, db, 1)
    assert.equal("usage", err.kind)
    assert.matches("a pooler stands between", err.message)
    assert.matches('pooler = "session"', err.hint, 1, true)
    assert.same({}, t.holders(0, 1, 1))
  end)

  it("leaves transactions, and what is locked for one", function()
    bouncer = t.start_pgbouncer()
    local db <close> = open()
    db:transaction(function(tx)
      assert.is_true(assert(tx:advisory(4715, { xact = true })):is_held())
      assert.equal(1, #t.holders(0, 4715, 1))
      tx:timeout("2s", function() assert.equal("2s", tx:value("show lock_timeout")) end)
    end)
    assert.same({}, t.holders(0, 4715, 1))
    assert.equal("0", bouncer:psql("show lock_timeout", { user = "lk_app" }))
    db:copy_out("copy (select 1) to stdout")
    assert.is_true(db:ping())
  end)

  it("that keeps a session for a client is as good as none, where it is said to", function()
    bouncer = t.start_pgbouncer({ pool_mode = "session", pool_size = 2 })
    local db <close> = open({ pooler = "session" })
    for i = 1, 3 do
      assert.equal(i, db:value("select $1::int", i))
    end
    assert.equal(1, db:value("select count(*) from pg_prepared_statements"))
    assert.equal("5s", db:value("show client_connection_check_interval"))
    local held = assert(db:advisory(4716))
    assert.is_true(held:is_held())
    held:release()
    local unsaid <close> = open()
    assert.equal("usage", raised(unsaid.advisory, unsaid, 4716).kind)
  end)

  it("that goes away is a loss", function()
    bouncer = t.start_pgbouncer()
    local db <close> = open()
    bouncer:stop()
    assert.equal("connection", raised(db.query, db, "select 1").kind)
  end)
end)

describe("a session that is lost", function()
  local function terminate(pid)
    t.observe(("select pg_terminate_backend(%d, 10000)"):format(pid))
  end

  it("raises connection until reconnect(), and is never silently reconnected", function()
    local db = t.connect()
    db:exec("create temporary table work (a int); set lock_timeout = '7s'")
    local pid = db.pid
    terminate(pid)
    for _ = 1, 3 do
      local err = raised(db.query, db, "select 1")
      assert.equal("connection", err.kind)
      assert.equal("57P01", err.sqlstate)
      assert.matches("terminating connection due to administrator command", err.message)
      assert.matches("reconnect()", err.hint, 1, true)
    end
    for _, use in ipairs({
      function() db:exec("select $1::int", 1) end,
      function() db:rows("select 1") end,
      function() db:begin() end,
      function() db:transaction(print) end,
      function() db:listen("x") end,
      function() db:notify("x") end,
      function() db:wait_notify(0) end,
      function() db:copy_out("copy pg_class to stdout") end,
      function() db:copy_in("copy work from stdin", "") end,
      function() db:advisory(1) end,
      function() db:timeout("1s", print) end,
      function() db:format("%s", 1) end,
      function() return db.pid end,
    }) do
      assert.equal("connection", raised(use).kind)
    end
    local ok, err = db:ping()
    assert.is_nil(ok)
    assert.equal("connection", err.kind)
    assert.is_false(db.in_transaction)
    assert.equal("session (lost)", tostring(db))

    assert.equal(db, db:reconnect())
    assert.not_equal(pid, db.pid)
    assert.equal("0", db:value("show lock_timeout"))
    assert.equal("42P01", raised(db.query, db, "select * from work").sqlstate)
    db:close()
  end)

  it("raises lock_lost where it held a lock, at every further use", function()
    local db = t.connect()
    local held = assert(db:advisory(4717))
    terminate(db.pid)
    for _ = 1, 2 do
      local err = raised(db.query, db, "select 1")
      assert.equal("lock_lost", err.kind)
      assert.equal("57P01", err.sqlstate)
    end
    assert.equal("lock_lost", raised(db.begin, db).kind)
    db:reconnect()
    assert.equal(1, db:value("select 1"))
    assert.same({}, t.holders(0, 4717, 1))
    pcall(held.release, held)
    terminate(db.pid)
    assert.equal("connection", raised(db.query, db, "select 1").kind)
    db:close()
  end)

  it("raises lock_lost for a lock of its transaction too", function()
    local db = t.connect()
    local tx = db:begin()
    assert(tx:advisory(4718, { xact = true }))
    terminate(db.pid)
    assert.equal("lock_lost", raised(tx.query, tx, "select 1").kind)
    assert.equal("lock_lost", raised(tx.commit, tx).kind)
    db:close()
  end)

  it("in a transaction raises from its end, and keeps the error that came first", function()
    local db = t.connect()
    local tx = db:begin()
    terminate(db.pid)
    assert.equal("connection", raised(tx.commit, tx).kind)
    db:reconnect()
    assert.equal("mine", raised(db.transaction, db, function()
      terminate(db.pid)
      error("mine", 0)
    end))
    db:reconnect()
    assert.equal("connection", raised(function()
      local _ <close> = db:begin()
      terminate(db.pid)
    end).kind)
    db:close()
  end)

  it("can be reconnected as often as is wanted, also where nothing is wrong", function()
    local db = t.connect()
    for _ = 1, 3 do
      db:reconnect()
      assert.equal(db.pid, db:value("select pg_backend_pid()"))
    end
    db:close()
  end)

  -- What runs when its server dies: the name, and the words. All begin with an open session.
  local OPERATIONS = {
    query = "db:query('select pg_sleep(60)')",
    parameters = "db:query('select pg_sleep($1)', 60)",
    script = "db:exec('select 1; select pg_sleep(60)')",
    rows = "for _ in db:rows('select pg_sleep(0.01) from generate_series(1, 10000)') do end",
    copy_in = [[db:exec('create temporary table x (a text)')
      db:copy_in('copy x from stdin', function() lock.sleep('2ms') return ('x'):rep(8000) .. '\n' end)]],
    copy_out = "db:copy_out('copy (select pg_sleep(0.01) from generate_series(1, 10000)) to stdout')",
    transaction = "db:transaction(function(tx) tx:exec('select pg_sleep(60)') end)",
    notify = "db:listen('x') db:wait_notify()",
    lock = "db:advisory(4719, function() db:exec('select pg_sleep(60)') end)",
    waiting = "db:exec('select pg_advisory_lock(1)') ",
  }

  it("in the middle of any operation is told by its kind", function()
    local server = t.start_server()
    finally(function() server:stop() end)
    local blocker = server:psql("select pg_backend_pid()") and lock.connect({ conninfo = server:conninfo() })
    blocker:exec("select pg_advisory_lock(1)")
    local children, count = {}, 1
    for name, words in pairs(OPERATIONS) do
      count = count + 1
      children[name] = run(([[
        local ok, err = pcall(function() %s end)
        print(ok, err.kind, err.message ~= "")
        print(select(2, pcall(db.query, db, "select 1")).kind)
        print(select(2, pcall(db.reconnect, db)).kind)
      ]]):format(words), { env = { DATABASE_URL = server:conninfo({ application_name = name }) } })
    end
    t.wait_until(function()
      return server:psql([[select count(*) from pg_stat_activity where backend_type = 'client backend'
        and (query ~ 'pg_sleep|pg_advisory_lock|^copy x' or query ilike 'listen%')
        and pid <> pg_backend_pid()]]) == tostring(count)
    end, "all operations")
    server:kill()
    for name, child in pairs(children) do
      local kind = name == "lock" and "lock_lost" or "connection"
      assert.equal(("false\t%s\ttrue\n%s\nconnection"):format(kind, kind), output(child), name)
    end
    assert.equal("connection", raised(blocker.query, blocker, "select 1").kind)
    blocker:close()
  end)

  it("is told while it connects", function()
    local server = t.start_server()
    process.signal("STOP", server:pid())
    local child = run("print(select(2, pcall(db.query, db, 'select 1')).kind)",
      { env = { DATABASE_URL = server:conninfo() } })
    t.sleep(0.1)
    server:kill()
    assert.equal("connection", output(child))
  end)

  it("gives up a server that does not answer after connect_timeout", function()
    local server = t.start_server()
    process.signal("STOP", server:pid())
    finally(function()
      process.signal("CONT", server:pid())
      server:stop()
    end)
    local err = connecting(server:conninfo({ connect_timeout = 2 }))
    assert.equal("connection", err.kind)
    assert.matches("timeout expired", err.message)
    assert.matches("Nobody answers there", err.hint)
  end)
end)

describe("Ctrl-C", function()
  local OPERATIONS = {
    query = "db:query('select pg_sleep(60)')",
    parameters = "for _ = 1, 3 do db:query('select pg_sleep($1)', _ == 3 and 60 or 0) end",
    rows = "for _ in db:rows('select pg_sleep(0.01) from generate_series(1, 10000)') do end",
    copy_in = [[db:exec('create temporary table x (a text)')
      db:copy_in('copy x from stdin', function() lock.sleep('2ms') return ('x'):rep(8000) .. '\n' end)]],
    copy_out = "db:copy_out('copy (select pg_sleep(0.01) from generate_series(1, 10000)) to stdout')",
    transaction = "db:transaction(function(tx) tx:exec('select pg_sleep(60)') end)",
    notify = "db:listen('x') db:wait_notify()",
    lock = "db:advisory(4719, function() db:exec('select pg_sleep(60)') end)",
    sleep = "db:value('select pg_sleep(0)') lock.sleep('60s')",
    drain = "for _ in db:rows('select pg_sleep(0.01) from generate_series(1, 10000)') do break end",
  }

  it("in any wait ends at once: the statement is cancelled, exit 130", function()
    local children, count = {}, 0
    for name, words in pairs(OPERATIONS) do
      count = count + 1
      children[name] = run(words, { env = { DATABASE_URL =
        t.conninfo({ application_name = "interrupt_" .. name }) } })
    end
    t.wait_until(function()
      return t.observe([[select count(*) from pg_stat_activity where application_name like 'interrupt_%'
        and (query ~ 'pg_sleep|^copy x' or query ilike 'listen%')]]) == tostring(count)
    end, "all operations")
    local began = t.now()
    for _, child in pairs(children) do
      child:signal("INT")
    end
    for name, child in pairs(children) do
      assert.equal(130, child:wait(), name .. ": " .. child:stderr())
      assert.matches("interrupted by signal 2", child:stderr(), name)
    end
    assert.is_true(t.now() - began < 5, t.now() - began)
    t.wait_until(function()
      return t.observe([[select count(*) from pg_stat_activity
        where application_name like 'interrupt_%']]) == "0"
    end, 2, "the end of all statements")
    assert.same({}, t.holders(0, 4719, 1))
  end)

  it("ends a connect that waits", function()
    local server = t.start_server()
    process.signal("STOP", server:pid())
    finally(function()
      process.signal("CONT", server:pid())
      server:stop()
    end)
    local child = run("io.stderr:write('begun\\n') db:query('select 1')",
      { env = { DATABASE_URL = server:conninfo() } })
    t.wait_until(function() return child:stderr():find("begun") end, "the start")
    child:signal("INT")
    assert.equal(130, child:wait(5))
  end)
end)

describe("a password", function()
  local SECRET = "s3cret"

  -- No text of the error has it.
  local function hidden(err, what)
    assert.is_table(err, what)
    for name, value in pairs(err) do
      assert.not_matches(SECRET, tostring(value), 1, true, ("%s of %s"):format(name, what))
    end
    assert.not_matches(SECRET, tostring(err), 1, true, what)
  end

  it("in a conninfo is never shown, whatever is wrong with it", function()
    for _, conninfo in ipairs({
      "postgres://u:s3cret@127.0.0.1:1/db",
      "postgres://u:x/s3cret@127.0.0.1:1/db",
      "postgres://u:1/s3cret@127.0.0.1:1/db",
      "postgres://u:x@s3cret@127.0.0.1:1/db",
      "postgres://u:x?s3cret@127.0.0.1:1/db",
      "postgres://u:x#s3cret@127.0.0.1:1/db",
      "postgres://u:x s3cret@127.0.0.1:1/db",
      "postgres://u:s3cret%zz@127.0.0.1:1/db",
      "postgres://u:%00s3cret@127.0.0.1:1/db",
      'postgres://u:"s3cret%zz@127.0.0.1:1/db',
      'postgres://u:a"s3cret"%zz@127.0.0.1:1/db',
      'postgres://u:"="s3cret%zz@127.0.0.1:1/db',
      "postgres://u:s3cret",
      "postgres://u:s3cret@[::1]x/db",
      "postgres://u:s3cret@[::1/db",
      "postgres://u:s3cret@[]/db",
      "postgres://u:s3cret@127.0.0.1:x/db",
      "postgres://u:s3cret@127.0.0.1:1/db?nosuch=1",
      "postgres://u:s3cret@127.0.0.1:1/db?sslmode=wrong",
      "postgres://u:s3cret@127.0.0.1:1/db?sslmode",
      "postgres://127.0.0.1:1/db?password=s3cret&nosuch",
      "postgres://127.0.0.1:1/db?password=s3cret%zz",
      "postgres://127.0.0.1:1/db?password=x&s3cret",
      "postgres://127.0.0.1:1/db?password=x=s3cret",
      "postgres://127.0.0.1:1/db?passwrd=s3cret",
      "jdbc:postgresql://u:s3cret@127.0.0.1:1/db",
      "postgre://u:s3cret@127.0.0.1:1/db",
      "Postgres://u:s3cret@127.0.0.1:1/db",
      " postgres://u:s3cret@127.0.0.1:1/db",
      "u:s3cret@127.0.0.1:1/db",
      "host=127.0.0.1 port=1 password=s3cret",
      "host=127.0.0.1 port=1 password=s3cret extra",
      "host=127.0.0.1 port=1 password=x s3cret",
      "host=127.0.0.1 port=1 password=x s3cret=1",
      "host=127.0.0.1 port=1 password='s3cret",
      "host=127.0.0.1 port=1 password='x's3cret",
      "host=127.0.0.1 port=1 password = x 's3cret'",
      "host=127.0.0.1 password=s3cret port=abc",
      "host=127.0.0.1 password=s3cret port=1 sslmode=wrong",
      "host=127.0.0.1 port=1 user=u;password=s3cret",
      "host=127.0.0.1 port=1,password=s3cret",
      "PASSWORD=s3cret",
      "host=127.0.0.1 port=1 sslpassword=s3cret x",
      ("x"):rep(100000) .. ":s3cret@",
    }) do
      local err = connecting(conninfo)
      hidden(err, conninfo:sub(1, 80))
      assert.is_true(err.kind == "usage" or err.kind == "connection")
      lock.database("hidden", conninfo)
      hidden(raised(lock.advisory, 1, { using = "hidden" }), conninfo:sub(1, 80))
    end
  end)

  it("in a conninfo that came where something else belongs is not shown either", function()
    local uri = "postgres://u:s3cret@h/db"
    hidden(raised(lock.connect, uri), "connect")
    hidden(raised(lock.connect, "password=s3cret"), "connect")
    hidden(raised(lock.connect, { uri }), "connect")
    hidden(raised(lock.connect, { name = true, conninfo = uri }), "connect")
    hidden(raised(lock.connect, { pooler = uri }), "connect")
    hidden(raised(lock.connect, { [uri] = true }), "connect")
    hidden(raised(lock.database, uri), "database")
    hidden(raised(lock.advisory, 1, { using = uri }), "using")
    hidden(raised(lock.advisory, 1, uri), "options")
    local db = t.connect()
    hidden(raised(db.begin, db, uri), "begin")
    hidden(raised(db.begin, db, { isolation = uri }), "begin")
    hidden(raised(db.exec, db, uri), "exec")
    db:close()
  end)

  it("of a session is in nothing that the session shows", function()
    t.psql("create role lk_secret login password 's3cret'")
    local db = t.connect({ user = "lk_pw", password = t.password })
    assert.not_matches(t.password, tostring(db), 1, true)
    assert.not_matches(t.password, tostring(raised(db.exec, db, "select 1/0")), 1, true)
    t.observe(("select pg_terminate_backend(%d, 10000)"):format(db.pid))
    assert.not_matches(t.password, tostring(raised(db.exec, db, "select 1")), 1, true)
    db:close()
    t.psql("drop role lk_secret")
  end)

  it("in a statement that fails is not shown with it", function()
    local db = t.connect()
    for _, sql in ipairs({
      "alter role nosuch_ password 's3cret'",
      "alter role nosuch_ password 's3cret' valid until 'infinity'",
      "ALTER ROLE nosuch_ ENCRYPTED PASSWORD  's3''s3cret'",
      "alter role nosuch_ password E's3\\'s3cret'",
      "alter role nosuch_ password $$s3cret$$",
      "alter role nosuch_ password $x$a$$s3cret$x$",
      "alter role nosuch_ password s3cret",
      "alter role nosuch_ password 'x's3cret'",
      "alter role nosuch_ password 'x's3cret",
      "alter role nosuch_ password 'x' \"s3cret",
      "alter role nosuch_ password = 's3cret'",
      "do $$begin execute 'alter role nosuch_ password ''x''''s3cret'''; end$$",
      "select 1; alter role nosuch_ password 's3cret'",
      "select no_such_function('host=h password=s3cret')",
      "select no_such_function('postgres://u:s3cret@h/db')",
      "create subscription s connection 'password=s3cret' publication",
      "alter role nosuch_ password 's3cret" .. ("x"):rep(5000) .. "'",
    }) do
      hidden(raised(db.exec, db, sql), sql:sub(1, 80))
    end
    db:close()
  end)
end)
