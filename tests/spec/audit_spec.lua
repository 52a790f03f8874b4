-- Audits: lock.audit and lock.snapshot (lua-api.md), the built-in set (locks.md 19) and `lockkeeper audit`
-- (cli.md).

local audits = require "tests.support.audits"
local lock = require "lockkeeper"
local t = require "tests.support"

local DATABASE = "audit_spec"

local conninfo = audits.conninfo
local connect = audits.connect
local file = audits.file
local run = audits.run
local audit = audits.audit
local found = audits.found
local background = audits.background
local waiting = audits.waiting
local drop_database = audits.drop_database
local idle_holder = audits.idle_holder
local idle_holders = audits.idle_holders
local HEAD = audits.HEAD
local IDLE_HOLDERS = audits.IDLE_HOLDERS
local json = lock.json

local SOON = 30
local HELLO = 1054880662928880172

local function make_database()
  audits.make_database(DATABASE)
end

---------------------------------------------------------------------------------------------------

describe("lock.audit", function()
  local function load(text)
    return lock.load(file(text))
  end

  local function fails(text, pattern)
    local ok, err = pcall(load, text)
    assert.is_false(ok)
    assert.equal("usage", err.kind)
    assert.matches(pattern, err.message)
  end

  it("is among what a file defines, by its name and in order", function()
    local loaded = load [[
lock.audit("one", { every = "30s", severity = "critical", find = function() end, action = "terminate" })
lock.audit("two", { find = function() end })]]
    assert.equal(2, #loaded.audits)
    assert.equal(30, loaded.audits.one.every)
    assert.equal("critical", loaded.audits[1].severity)
    assert.equal("warning", loaded.audits.two.severity)
    assert.equal(0, #loaded.jobs)
  end)

  it("names what is wrong with a definition", function()
    fails('lock.audit("a", {})', "find is missing")
    fails('lock.audit("a", { find = 1 })', "find must be a function, not 1")
    fails('lock.audit("a", { find = print, evry = 1 })', 'unknown key "evry"; did you mean "every"%?')
    fails('lock.audit("a", { find = print, severity = "fatal" })', 'severity must be "info", "warning" or')
    fails('lock.audit("a", { find = print, every = "0s" })', "every must be longer than 0")
    fails('lock.audit("a", { find = print, action = "kill" })', 'action must be "terminate" or "cancel"')
    fails('lock.audit("a", { find = print, protect = { stat = 1 } })', "protect: unknown filter")
    fails('lock.audit("", { find = print })', "the name is empty")
    fails('lock.audit("a", "b")', "a table was expected")
    fails('lock.audit("a", { find = print }) lock.audit("a", { find = print })', "two audits have this name")
  end)
end)

---------------------------------------------------------------------------------------------------

describe("lock.snapshot", function()
  local holder, child, waiter

  setup(function()
    make_database()
    holder = idle_holder()
    child, waiter = waiting("reader", "select * from orders")
  end)

  teardown(function()
    holder:close()
    child:wait()
    drop_database()
  end)

  local function same(a, db)
    local locks, blocked = a:locks { pid = waiter, granted = false }, a:blocked()
    assert.equal(1, #locks)
    assert.equal("ACCESS SHARE", locks[1].mode)
    assert.equal("reader", locks[1].activity.application_name)
    assert.equal(1, #blocked)
    assert.equal(waiter, blocked[1].pid)
    assert.equal("orders", blocked[1].relation)
    assert.equal(holder.pid, blocked[1].blocking_pid)
    assert.equal("ACCESS EXCLUSIVE", blocked[1].blocking_mode)
    assert.equal("idle in transaction", blocked[1].blocking_activity.state)
    assert.equal(1, #a:blocked { blocking_application_name = "web", wait_duration_gte = 0 })
    assert.equal(0, #a:blocked { blocking_application_name = "x" })
    assert.equal(2, #a:locks { on = "public.orders", pid = { waiter, holder.pid } })
    assert.equal(2, #a:locks { on = '"orders"' })
    assert.equal(0, #a:locks { on = "audit.orders" })
    assert.equal(1, #a:locks { limit = 1 })
    assert.equal(holder.pid, a:graph():roots()[1].pid)
    local now = db:value("select extract(epoch from clock_timestamp())::float8")
    assert.is_true(math.abs(a.taken_at - now) < 60)
  end

  it("is what a:locks, a:blocked and a:graph of a live server come from", function()
    local db <close> = connect("looks")
    local a = db:snapshot()
    same(a, db)
    assert.is_true(a:server().settings.max_locks_per_transaction > 0)
    assert.is_true(a:server().lock_count > 0)
  end)

  it("locks.md 18: is the same when it was saved with ls --all --format json", function()
    local db <close> = connect("looks")
    local code, out, err = run("ls", "--all", "--format", "json")
    assert.equal(0, code, err)
    local a = lock.snapshot(t.tempfile(out))
    same(a, db)
    assert.is_nil(a:server())
    same(lock.snapshot(json.decode(out)), db)
    same(lock.snapshot(db:locks():to_table()), db)
    same(lock.snapshot(json.decode(db:snapshot():to_json())), db)
  end)

  it("changes no more, and signals nobody", function()
    local db <close> = connect("looks")
    local a = db:snapshot()
    local rows = a:locks { granted = false }
    assert.same({ waiter }, rows:pids())
    assert.has_error(function() rows:terminate() end)
    assert.has_error(function() a:blocked():terminate_blocking() end)
    assert.is_true(t.is_waiting(waiter))
  end)

  it("says what is wrong with a file", function()
    local function fails(text, pattern)
      local ok, err = pcall(lock.snapshot, t.tempfile(text))
      assert.is_false(ok)
      assert.equal("usage", err.kind)
      assert.matches(pattern, err.message)
    end
    local _, whole = run("ls", "--all", "--format", "json")
    fails(whole:sub(1, #whole // 2), "is no JSON, or was cut short")
    fails("", "is no JSON")
    fails("7", "it is no list of locks")
    fails('{"a": 1}', "it is no list of locks")
    fails("{}", "it is no list of locks")
    fails('{"locks": null}', "its locks are no list")
    fails('{"version": 99, "locks": []}', "another version may have saved it: version is not known here")
    fails("[7]", "row 1: it is a number")
    fails('[{"type": "relation"}]', "row 1: it has no activity")
    local _, usual = run("ls", "--format", "json")
    fails(usual, "it has no activity")
    local _, blocked = run("ls", "--blocking", "--all", "--format", "json")
    fails(blocked, "saved with %-%-blocking")
    fails((whole:gsub('"mode":"[^"]*"', '"mode":null')), "it has no mode")
    fails((whole:gsub('"backend_start":"[^"]*"', '"backend_start":"never"')), "takes epoch seconds or a text")
    fails((whole:gsub('"schema":"[^"]*"', '"schema":["a"]')), "its schema is a table")
    fails((whole:gsub('"wait_duration":[%d.e-]+', '"wait_duration":"long"')), "its wait_duration is a string")
    fails((whole:gsub('"pid":%d+', '"pid":null')), "it waits, but has no pid")
    assert.equal(0, #lock.snapshot(t.tempfile("[]")):locks())
    assert.has_error(function() lock.snapshot("/nonexistent/file") end)
    assert.has_error(function() lock.snapshot(7) end)
  end)
end)

---------------------------------------------------------------------------------------------------

-- Sessions of each kind of fault; after that many seconds, as a snapshot that was saved says it.
describe("the built-in audits (locks.md 19)", function()
  local children, sessions, pids = {}, {}, {}

  local function plant()
    local web, tool = connect("gunicorn"), connect("tool")
    sessions = { web, tool }
    web:exec("begin")
    web:exec("update orders set state = 'paid' where id = 1")
    tool:value("select pg_advisory_lock($1)", HELLO)
    pids.web, pids.tool = web.pid, tool.pid
    children[1], pids.migration = waiting("django-migrate", "alter table orders add column total int")
    children[2], pids.reader = waiting("reader", "select * from orders")
    children[3], pids.seeker = waiting("seeker", "select pg_advisory_lock(" .. HELLO .. ")")
    for i, keys in ipairs { { 101, 102 }, { 102, 101 } } do
      children[3 + i] = background("cycle-" .. i, ([[set deadlock_timeout = '10min';
        select pg_advisory_lock(%d);
        do $$ begin
          while (select count(*) from pg_locks where objid in (101, 102) and granted) < 2
          loop perform pg_sleep(0.005); end loop;
        end $$; select pg_advisory_lock(%d)]]):format(keys[1], keys[2]))
    end
    t.psql("begin; create table forgotten (); prepare transaction 'it''s forgotten'",
      { dbname = DATABASE })
    t.wait_until(function()
      return t.observe("select count(*) from pg_locks where not granted and objid in (101, 102)") == "2"
    end, "the cycle")
  end

  setup(function()
    make_database()
    plant()
  end)

  teardown(function()
    t.observe(("select pg_terminate_backend(pid) from pg_stat_activity where datname = '%s'")
      :format(DATABASE))
    for _, session in ipairs(sessions) do
      session:close()
    end
    for _, child in ipairs(children) do
      child:wait()
    end
    t.psql("rollback prepared 'it''s forgotten'", { dbname = DATABASE })
    drop_database()
  end)

  local TIMES = { "wait_duration", "duration", "xact_duration", "state_duration" }

  -- What the server says, that many seconds later; `most`: as if nothing had lasted longer before.
  local function aged(seconds, most)
    local code, out, err = run("ls", "--all", "--format", "json")
    assert.equal(0, code, err)
    local rows = json.decode(out)
    for _, row in ipairs(rows) do
      for _, holder in ipairs { row, row.activity } do
        for _, name in ipairs(TIMES) do
          if type(holder[name]) == "number" then
            holder[name] = math.min(holder[name], most or math.huge) + seconds
          end
        end
      end
    end
    return t.tempfile(json.encode(rows))
  end

  it("find each planted fault, each once", function()
    local by_audit, _, code, err = found("--snapshot", aged(400))
    assert.equal("", err)
    assert.equal(1, code)
    local counts = {}
    for name, list in pairs(by_audit) do
      counts[name] = #list
    end
    assert.same({
      deadlock = 1, ["root-blocker"] = 2, ["pile-up"] = 1, ["long-wait"] = 4, ["idle-in-transaction"] = 1,
      ["ddl-without-lock-timeout"] = 1, ["orphaned-prepared-transaction"] = 1, ["idle-advisory-lock"] = 1,
    }, counts)
    assert.matches("^2 sessions wait for each other: pids %d+, %d+$", by_audit.deadlock[1].message)
    assert.equal(pids.web, by_audit["idle-in-transaction"][1].pid)
    assert.equal("critical", by_audit["idle-in-transaction"][1].severity)
    assert.matches("for ACCESS EXCLUSIVE on public.orders; 1 session queues behind it",
      by_audit["pile-up"][1].message)
    assert.equal(pids.migration, by_audit["pile-up"][1].pid)
    assert.equal(pids.web, by_audit["root-blocker"][1].pid)
    assert.equal("warning", by_audit["idle-advisory-lock"][1].severity)
    assert.equal(pids.tool, by_audit["idle-advisory-lock"][1].pid)
    assert.matches("ROLLBACK PREPARED 'it''s forgotten'", by_audit["orphaned-prepared-transaction"][1].advice)
    assert.equal("it's forgotten", by_audit["orphaned-prepared-transaction"][1].gid)
  end)

  it("say nothing of what is short, but of a deadlock", function()
    local by_audit, _, code = found("--snapshot", aged(0, 1), "--audit", "long-wait", "--audit", "deadlock",
      "--audit", "ddl-without-lock-timeout")
    assert.equal(1, code)
    assert.is_nil(by_audit["long-wait"])
    assert.equal(1, #by_audit.deadlock)
  end)

  it("are each a file in scripts/audits that can be copied", function()
    local _, list = audit("--list", "--format", "json")
    local names = {}
    for _, one in ipairs(json.decode(list)) do
      assert.is_string(one.description)
      names[one.name] = true
    end
    local count = 0
    local pipe <close> = io.popen("ls scripts/audits/*.lua")
    for path in pipe:lines() do
      for _, one in ipairs(lock.load(path).audits) do
        assert.is_true(names[one.name], one.name)
        count = count + 1
      end
    end
    assert.equal(12, count)
    assert.equal(12, #json.decode(list))
    local path = aged(400)
    local _, built_in = found("--snapshot", path)
    local _, copied = found("scripts/audits", "--snapshot", path)
    assert.equal(built_in, copied)
  end)

  it("tell of a full lock table, of slots that nobody uses and of guards that strangers hold", function()
    local function finds(name, server, locks)
      local a = lock.snapshot { taken_at = 1e9, locks = locks or {}, server = server }
      return require("lockkeeper.audit").find(lock.load("scripts/audits/" .. name .. ".lua").audits[1], a)
    end
    local settings = { max_locks_per_transaction = 10, max_connections = 5, max_worker_processes = 2,
      max_wal_senders = 1, autovacuum_max_workers = 1, max_prepared_transactions = 0 }
    assert.equal(0, #finds("lock_table", { settings = settings, lock_count = 69 }))
    assert.equal("warning", finds("lock_table", { settings = settings, lock_count = 70 })[1].severity)
    assert.equal("critical", finds("lock_table", { settings = settings, lock_count = 90 })[1].severity)
    local slots = {
      { name = "used", active = true, retained = 1 << 40 }, { name = "new", active = false, retained = 0 },
      { name = "left", active = false, retained = 1 << 31 },
      { name = "old", active = false, retained = 0, xmin_age = 60000000 },
      { name = "gone", active = false, retained = 0, wal_status = "lost" },
    }
    local findings = finds("replication", { slots = slots })
    assert.same({ "slot left", "slot old", "slot gone" },
      { findings[1].subject, findings[2].subject, findings[3].subject })
    local classid, objid, objsubid = lock.key_parts((lock.key("job:etl")))
    local function guard_of(pid, application)
      return { pid = pid, type = "advisory", mode = "EXCLUSIVE", granted = true, classid = classid,
        objid = objid, objsubid = objsubid, activity = { pid = pid, application_name = application } }
    end
    local server = { runs = { { job = "etl", pid = 3 } },
      guards = { { job = "etl", classid = classid, objid = objid, objsubid = objsubid } } }
    findings = finds("job_guards", server, { guard_of(1, "psql"), guard_of(2, "lockkeeper: etl"),
      guard_of(3, "etl") })
    assert.equal(1, #findings)
    assert.equal(1, findings[1].pid)
  end)
end)

---------------------------------------------------------------------------------------------------

describe("lockkeeper audit", function()
  setup(make_database)
  teardown(drop_database)

  it("is silent on a quiet server", function()
    local code, out, err = audit()
    assert.same({ 0, "", "" }, { code, out, err })
    assert.equal("[]\n", select(2, audit("--format", "json")))
  end)

  it("exits with 1 when it has found something at or above --fail-on, which is warning", function()
    local holder <close> = idle_holder()
    local path = idle_holders()
    local code, out = audit(path)
    assert.equal(1, code)
    assert.matches("^database audit_spec on .*: 1 critical\nSEVERITY +AUDIT +FOR +FINDING\n"
      .. "critical +idle%-holders +[%d.]+s +web holds ACCESS EXCLUSIVE on orders\n$", out)
    assert.equal(1, (audit(path, "--fail-on", "critical")))
    assert.equal(0, (audit(path, "--fail-on", "never")))
    local mild = file((IDLE_HOLDERS:format(""):gsub("critical", "info")))
    assert.equal(0, (audit(mild)))
    assert.equal(1, (audit(mild, "--fail-on", "info")))
    assert.is_true(holder.in_transaction)
  end)

  it("--format nagios is one line, and exits as monitoring plugins do", function()
    local path = idle_holders()
    local code, out = audit(path, "--format", "nagios")
    assert.equal(0, code)
    assert.equal("LOCKKEEPER OK - nothing found | findings=0 critical=0 warning=0 info=0 failed=0\n", out)
    local holder <close> = idle_holder("a|b\nc") -- luacheck: ignore 211
    code, out = audit(path, "--format", "nagios")
    assert.equal(2, code)
    assert.matches("^LOCKKEEPER CRITICAL %- 1 critical; idle%-holders: a/b.c holds ACCESS EXCLUSIVE on orders"
      .. " | findings=1 critical=1 warning=0 info=0 failed=0\n$", out)
    code = audit(file((IDLE_HOLDERS:format(""):gsub("critical", "warning"))), "--format", "nagios")
    assert.equal(1, code)
    code, out = audit(path, "--format", "nagios", { env = { DATABASE_URL = "host=/nowhere" } })
    assert.equal(3, code)
    assert.matches("^LOCKKEEPER UNKNOWN %- [^\n]*nowhere[^\n]*\n$", out)
    code, out = audit(file("error('broken')"), "--format", "nagios")
    assert.equal(3, code)
    assert.matches("^LOCKKEEPER UNKNOWN %- ", out)
    code, out = audit(file('lock.audit("raises", { find = function() error("broken") end })'), "--format",
      "nagios")
    assert.equal(3, code)
    assert.matches("failed: raises", out)
  end)

  it("--format html is a page that needs nothing else, whatever a session calls itself", function()
    local holder <close> = idle_holder("<script>alert(1)</script>") -- luacheck: ignore 211
    local code, out = audit(idle_holders(), "--format", "html")
    assert.equal(1, code)
    assert.matches("^<!DOCTYPE html>", out)
    assert.matches("&lt;script&gt;alert", out)
    assert.not_matches("<script", out)
    assert.not_matches("https?://", out)
  end)

  it("shows a hostile name harmless", function()
    local holder <close> = idle_holder("\27[31mred\27]0;title\7") -- luacheck: ignore 211
    local _, out = audit(idle_holders())
    assert.not_matches("[\27\7]", out)
    assert.matches("red", out)
  end)

  it("tells of an audit that raises, loops, grows or returns nonsense, and runs the others", function()
    local holder <close> = idle_holder() -- luacheck: ignore 211
    local code, out, err = audit(file([[
lock.audit("raises", { find = function() error("broken") end })
lock.audit("odd", { find = function() error(setmetatable({}, {})) end })
lock.audit("loops", { max_run = "200ms", find = function()
  while true do pcall(function() while true do end end) end
end })
lock.audit("sleeps", { max_run = "200ms", find = function() lock.sleep(60) end })
lock.audit("waits", { max_run = "200ms", find = function() lock.db:query("select pg_sleep(60)") end })
lock.audit("exits", { find = function() os.exit(0) end })
lock.audit("prints", { find = function() print("a line of its own") end })
lock.audit("number", { find = function() return 7 end })
lock.audit("numbers", { find = function() return { 7 } end })
lock.audit("keys", { find = function() return { x = 7 } end })
lock.audit("empty", { find = function() return { {} } end })
lock.audit("unknown", { find = function() return { { message = "m", levl = 1 } } end })
lock.audit("severity", { find = function() return { message = "m", severity = "bad" } end })
lock.audit("says", { find = function(a) return a:locks() end, message = function() return 7 end })
lock.audit("nothing", { find = function() return false end })
]] .. IDLE_HOLDERS:format("")))
    assert.equal(1, code)
    assert.matches("idle%-holders", out)
    for name, text in pairs {
      raises = "broken", odd = "without __tostring", loops = "it took longer than 0.2 s",
      sleeps = "it took longer than 0.2 s", waits = "it took longer than 0.2 s",
      exits = "os.exit was called", number = "must return rows or findings, not 7",
      numbers = "must return rows or findings, not 7", keys = 'not a table with the key "x"',
      empty = "neither a message nor a row", unknown = 'an unknown key "levl"',
      severity = 'must be "info", "warning" or "critical", not "bad"', says = "must return a text, not 7",
    } do
      assert.matches("the audit " .. name .. " failed: [^\n]*" .. text:gsub("[%-.]", "%%%0"), err)
    end
    assert.not_matches("a line of its own", out)
    assert.matches("a line of its own", err)
    assert.not_matches("the audit nothing", err)
  end)

  it("gives what find returns a message and a subject, each subject once", function()
    local holder <close> = idle_holder()
    local child = waiting("reader", "select * from orders")
    local by_audit = found(file [[
lock.audit("rows", { find = function(a) return a:locks { on = "orders", granted = true } end })
lock.audit("row", { find = function(a) return a:locks { on = "orders", granted = true }[1] end })
lock.audit("blocked", { find = function(a) return a:blocked() end,
  advice = function(f) return "end " .. f.pid end })
lock.audit("roots", { find = function(a) return a:graph():roots() end })
lock.audit("edges", { find = function(a) return a:graph():edges() end })
lock.audit("twice", { find = function()
  return { { message = "m", severity = "info" }, { message = "m", severity = "critical" }, { message = "n" } }
end })
lock.audit("off", { enabled = false, find = function() return { message = "off" } end })
]])
    assert.equal(1, #by_audit.rows)
    assert.matches("^pid %d+ since %S+Z holds ACCESS EXCLUSIVE on public.orders$", by_audit.rows[1].subject)
    assert.matches("^pid %d+ %(postgres, web%) holds ACCESS EXCLUSIVE on public.orders$",
      by_audit.rows[1].message)
    assert.equal(by_audit.rows[1].subject, by_audit.row[1].subject)
    assert.matches("^pid %d+ %(postgres, reader%) has waited [%d.]+s for ACCESS SHARE on public.orders, "
      .. "behind pid %d+ %(postgres, web%)$", by_audit.blocked[1].message)
    assert.equal(holder.pid, by_audit.blocked[1].pid)
    assert.equal("end " .. holder.pid, by_audit.blocked[1].advice)
    assert.equal(holder.pid, by_audit.roots[1].pid)
    assert.equal(holder.pid, by_audit.edges[1].pid)
    assert.equal(2, #by_audit.twice)
    assert.equal("critical", by_audit.twice[1].severity)
    assert.is_nil(by_audit.off)
    holder:close()
    child:wait()
  end)

  it("refuses wrong words, and files that do not load, with 2", function()
    local function wrong(pattern, ...)
      local code, _, err = audit(...)
      assert.equal(2, code)
      assert.matches(pattern, err)
    end
    local path = idle_holders()
    wrong('did you mean "deadlock"%?', "--audit", "deadlok")
    wrong('there is no audit "x"', path, "--act", "x")
    wrong("exclude each other", "--snapshot", path, "--act")
    wrong("--dry%-run needs %-%-act", "--dry-run")
    wrong("exclude each other", "--snapshot", path, "--every", "1s")
    wrong("exclude each other", "--every", "1s", "--format", "html")
    wrong("longer than 0", "--every", "0")
    wrong("is no JSON", "--snapshot", path)
    wrong("cannot open", "/nonexistent.lua")
    wrong("no audit is defined", file("local x = lock"))
    wrong("may not use the database", file("lock.db:query('select 1')"))
    wrong("find is missing", file('lock.audit("a", {})'))
    wrong("two audits have this name", path, idle_holders())
    assert.equal(69, (audit({ env = { DATABASE_URL = "host=/nowhere" } })))
  end)

  it("does not load a file that raises, or goes on for ever, and says so", function()
    local code, _, err = audit(file("local t = nil\nerror('broken')"))
    assert.equal(2, code)
    assert.matches("audits.lua:3: broken\n", err, 1, true)
    code, _, err = audit(file("while true do end"))
    assert.equal(2, code)
    assert.matches("is not loaded within 5 s", err, 1, true)
    code, err = audit(file("error('broken')"), "--format", "nagios")
    assert.equal(3, code)
    assert.matches("^LOCKKEEPER UNKNOWN %- [^\n]*audits.lua:2: broken\n$", err)
  end)

  it("--every looks again, tells what has changed, and ends with Ctrl-C", function()
    local child = t.lockkeeper("audit", idle_holders(), "--every", "100ms",
      { env = { DATABASE_URL = conninfo() } })
    local holder = idle_holder()
    t.wait_until(function() return child:stdout():find("opened") end, SOON, "the finding")
    holder:close()
    t.wait_until(function() return child:stdout():find("closed") end, SOON, "its end")
    child:signal("INT")
    assert.equal(130, child:wait())
    local opened, closed = child:stdout():match("^([^\n]*)\n([^\n]*)\n$")
    assert.matches(" opened critical idle%-holders: web holds ACCESS EXCLUSIVE on orders$", opened)
    assert.matches(" closed critical idle%-holders: web holds", closed)
  end)

  it("acts on nobody unless --act says so, and then by the audit's action", function()
    local path = idle_holders('action = "terminate",')
    local holder = idle_holder()
    assert.equal(1, (audit(path)))
    assert.is_true(holder:ping())
    local _, planned = audit(path, "--act", "--dry-run")
    assert.matches("--act would terminate pid " .. holder.pid, planned, 1, true)
    assert.equal("dry_run", found(path, "--act", "--dry-run")["idle-holders"][1].result)
    assert.is_true(holder:ping())
    local by_audit, _, _, err = found(path, "--act")
    assert.equal("signalled", by_audit["idle-holders"][1].result)
    assert.matches('msg="terminated pid ' .. holder.pid .. '" audit=idle%-holders action=terminate '
      .. "result=signalled", err)
    assert.falsy(holder:ping())
    holder:close()
    assert.equal(0, (audit(path, "--act=idle-holders")))
  end)

  it("of a blocked row hits the blocker, and by a function of the audit's whom it names", function()
    local function ends(action, expected)
      local holder = idle_holder()
      local child, pid = waiting("reader", "select * from orders")
      local text = 'lock.audit("b", { action = %s, find = function(a) return a:blocked() end })'
      local _, _, err = audit(file(text:format(action)), "--act", "b")
      assert.equal(expected == "holder", not holder:ping(), err)
      holder:close()
      child:wait()
      return pid, err
    end
    ends('"terminate"', "holder")
    ends("function(f) return { f.pid } end", "holder")
    local pid, err = ends("function(f) return { f.blocks[1] } end", "reader")
    assert.matches("terminated pid " .. pid, err)
    assert.matches("action must return a list of pids", select(2, ends("function(f) return 7 end", "nobody")))
    assert.matches("result=no_effect", (select(2, ends('"cancel"', "nobody"))))
  end)

  it("locks.md 16: leaves alone whom the audit or the configuration protects, and who is under prioritize",
    function()
      local holder <close> = idle_holder()
      local function spared(text, pattern, ...)
        local _, _, err = audit(idle_holders('action = "terminate",' .. text), "--act=idle-holders", ...)
        assert.matches(pattern, err)
        assert.is_true(holder:ping())
      end
      spared('protect = { application_name = "web" },', "is left alone: the audit protects it")
      local config = t.tempfile(HEAD
        .. 'lock.protect { { user = "nobody" }, { application_name_like = "we%" } }')
      spared("", "is left alone: the configuration protects it", "--config", config)
      local code, _, err = run("ls", tostring(holder.pid), "--terminate", "-y", "--config", config)
      assert.equal(3, code)
      assert.matches("is left alone: the configuration protects it", err)
      local handle <close> = holder:prioritize() -- luacheck: ignore 211
      spared("", "is left alone: it is under prioritize")
    end)
end)
