-- `lockkeeper ls` (cli.md): what it shows of a scene of waiting sessions, in which forms, and whom it
-- ends.

local csv = require "lockkeeper.report.csv"
local field = require "lockkeeper.report.field"
local lock = require "lockkeeper"
local safe = require "lockkeeper.report.safe"
local t = require "tests.support"
local target = require "tests.support.target"
local text_table = require "lockkeeper.report.table"
local width = require "lockkeeper.report.width"

local json = lock.json

local DATABASE = "ls_spec"
local HELLO = 1054880662928880172

-- What could do harm on a terminal, as an application's statement.
local HOSTILE = "select '\27[31mred\27]0;title\7', '\u{9b}31m\u{202e}', '漢字', 1\n  as one"

local HARMLESS = "select '\u{FFFD}[31mred\u{FFFD}]0;title\u{FFFD}', '\u{FFFD}31m\u{FFFD}', '漢字', 1"

local function conninfo(opts)
  local all = { dbname = DATABASE }
  for name, value in pairs(opts or {}) do
    all[name] = value
  end
  return t.conninfo(all)
end

-- A session in the background that runs SQL, by an application's name of its own; returns it and its pid.
local function background(name, sql, opts)
  local child = t.spawn { target.bindir() .. "/psql", "-Xqd", conninfo(opts), "-c", sql,
    env = { PGAPPNAME = name } }
  local pid = t.wait_until(function()
    local text = t.observe(("select pid from pg_stat_activity where application_name = '%s'"):format(name))
    return text ~= "" and math.tointeger(text)
  end, name)
  return child, pid
end

local function waiting(name, sql, opts)
  local child, pid = background(name, sql, opts)
  t.wait_until(function() return t.is_waiting(pid) end, name .. " to wait")
  return child, pid
end

-- Run it on the scene's database.
local function ls(...)
  local words = { "ls", ... }
  local opts = type(words[#words]) == "table" and table.remove(words) or {}
  opts.env = opts.env or {}
  opts.env.DATABASE_URL = opts.env.DATABASE_URL or conninfo()
  words[#words + 1] = opts
  return t.run(table.unpack(words))
end

-- Its output, where it must succeed and say nothing else.
local function shown(...)
  local code, out, err = ls(...)
  assert.equal(0, code, err)
  assert.equal("", err)
  return out
end

local function decoded(...)
  local words = { ... }
  words[#words + 1] = "--format"
  words[#words + 1] = "json"
  return json.decode(shown(table.unpack(words)))
end

local function lines_of(text)
  local lines = {}
  for line in text:gmatch("([^\n]*)\n") do
    lines[#lines + 1] = line
  end
  return lines
end

local function pids_of(rows)
  local pids = {}
  for i, row in ipairs(rows) do
    pids[i] = row.pid
  end
  return pids
end

-- The records of a CSV text, as RFC 4180 has it.
local function records(text)
  local list, record, at = {}, {}, 1
  while at <= #text do
    local value, stop
    if text:sub(at, at) == '"' then
      local from = at + 1
      repeat
        at = assert(text:find('"', at + 1, true), "a quote is not closed")
        local doubled = text:sub(at + 1, at + 1) == '"'
        at = doubled and at + 1 or at
      until not doubled
      value, stop = text:sub(from, at - 1):gsub('""', '"'), at + 1
    else
      stop = text:find("[,\r\n]", at)
      value = text:sub(at, stop - 1)
      assert.not_matches('"', value)
    end
    record[#record + 1] = value
    if text:sub(stop, stop) == "," then
      at = stop + 1
    else
      assert.equal("\r\n", text:sub(stop, stop + 1))
      list[#list + 1], record, at = record, {}, stop + 2
    end
  end
  return list
end

-- A terminal of that many columns in which ls runs: the child, and what is typed into it.
local function terminal(columns, words, env)
  local fifo = t.tempdir() .. "/keyboard"
  assert(os.execute("mkfifo " .. fifo))
  local file = t.tempfile(("trap : INT; stty cols %d -echo; \"$LK\" ls %s; echo \"code $?\""):format(columns,
    words))
  local all = { DATABASE_URL = conninfo(), LK = t.binary(), NO_COLOR = false }
  for name, value in pairs(env or {}) do
    all[name] = value
  end
  local child = t.spawn { "sh", "-c", ('exec script -qefc "exec sh %s" /dev/null <"$0"'):format(file), fifo,
    env = all }
  return child, assert(io.open(fifo, "w"))
end

local function on_terminal(columns, words, env)
  local child, keyboard = terminal(columns, words, env)
  t.wait_until(function() return child:stdout():find("code %d+") end, "the end of ls")
  keyboard:close()
  child:wait()
  return (child:stdout():gsub("\r\n", "\n"))
end

local children, sessions = {}, {}
local holder, migration, reader, adviser, seeker

-- The web application holds ROW EXCLUSIVE and forgot its transaction; a migration waits for it, a reader
-- for the migration; somebody holds an advisory lock, and another one waits for it.
local function plant()
  t.psql("create role ls_app login")
  t.psql("create database " .. DATABASE)
  t.psql([[create table orders (id int primary key, state text); insert into orders values (1, 'new');
    grant all on orders to ls_app]], { dbname = DATABASE })
  local web = lock.connect { conninfo = conninfo { user = "ls_app", application_name = "gunicorn web-3" } }
  local other = lock.connect { conninfo = conninfo { application_name = "tool" } }
  sessions = { web, other }
  web:exec("begin")
  web:exec("update orders set state = 'paid' where id = 1")
  holder = web.pid
  children[1], migration = waiting("django-migrate", "alter table orders add column total int")
  children[2], reader = waiting("gunicorn web-1", "select * from orders", { user = "ls_app" })
  other:value("select pg_advisory_lock($1)", HELLO)
  other:query(HOSTILE)
  adviser = other.pid
  children[3], seeker = waiting("seeker", "select pg_advisory_lock(" .. HELLO .. ")")
end

local function clear()
  for _, session in ipairs(sessions) do
    session:close()
  end
  for _, child in ipairs(children) do
    child:wait()
  end
  children, sessions = {}, {}
  t.psql("drop database " .. DATABASE .. " with (force)")
  t.psql("drop role ls_app")
end

describe("ls", function()
  setup(plant)
  teardown(clear)

  it("shows first where and when, and how many locks there are", function()
    local first = lines_of(shown())[1]
    assert.matches("^database ls_spec on %S+ %(PostgreSQL %d+%S*%), %d%d%d%d%-%d%d%-%d%d %d%d:%d%d:%d%d "
      .. "[+-]%d%d%d%d: %d+ locks, 3 waiting$", first)
    first = lines_of(shown("--blocking"))[1]
    assert.matches(": 3 sessions wait, blocked by 3$", first)
  end)

  it("shows every lock, those that wait first", function()
    local lines = lines_of(shown("--limit", "all"))
    assert.matches("^ *PID +WAITED +MODE +ON +STATE +FOR +USER +QUERY$", lines[2])
    assert.matches("^ *" .. migration .. " +[%d.ms]+ +ACCESS EXCLUSIVE +public.orders +active +[%d.ms]+ +"
      .. "postgres +alter table orders add column total int$", lines[3])
    assert.matches("^ *" .. reader .. " +[%d.ms]+ +ACCESS SHARE +public.orders +active +[%d.ms]+ +ls_app"
      .. " +select %* from orders$", lines[4])
    assert.matches("^ *" .. seeker .. " +[%d.ms]+ +EXCLUSIVE +advisory " .. HELLO .. " ?%S* +active +",
      lines[5])
    assert.matches("\n *" .. holder .. " +ROW EXCLUSIVE +public.orders +idle in transaction +[%d.ms]+ +"
      .. "ls_app +update orders", table.concat(lines, "\n"))
  end)

  it("--blocking shows who waits for whom, as drawn", function()
    local lines = lines_of(shown("--blocking"))
    assert.matches("^ *PID +WAITED +WANTS +BLOCKER +HOLDS +STATE +FOR$", lines[2])
    assert.matches("^ *" .. migration .. " +[%d.ms]+ +ACCESS EXCLUSIVE public.orders +" .. holder
      .. " +ROW EXCLUSIVE +idle in transaction +[%d.ms]+$", lines[3])
    assert.matches("^ *" .. reader .. " +[%d.ms]+ +ACCESS SHARE public.orders +" .. migration
      .. " +%(queued%) +active +[%d.ms]+$", lines[4])
    assert.matches("^ *" .. seeker .. " +[%d.ms]+ +EXCLUSIVE advisory " .. HELLO .. " ?%S* +" .. adviser
      .. " +EXCLUSIVE +idle +[%d.ms]+$", lines[5])
    assert.equal(5, #lines)
  end)

  it("-w shows the rows of which an expression is true", function()
    local rows = decoded("-w", 'wait_duration > 0 and mode == "ACCESS EXCLUSIVE"')
    assert.same({ migration }, pids_of(rows))
    assert.equal("orders", rows[1].relation)
    assert.same({}, decoded("-w", "wait_duration > duration('1h')"))
    assert.same({ reader }, pids_of(decoded("-w", "not granted", "-w", "query:find('^select %*') ~= nil")))
    assert.same({ seeker }, pids_of(decoded("--blocking", "-w", 'blocking_application_name == "tool"')))
  end)

  it("-f shows the rows that fulfil every filter; KEY=A,B is a list", function()
    assert.same({ migration }, pids_of(decoded("-f", "granted=false", "-f", "mode=access_exclusive")))
    assert.same({ migration, reader },
      pids_of(decoded("-f", "granted=false", "-f", "mode=ACCESS EXCLUSIVE,ACCESS SHARE")))
    assert.same({}, decoded("-f", "pid=" .. reader, "-f", "pid=" .. seeker))
    assert.same({ migration }, pids_of(decoded("--blocking", "-f", "blocking_user=ls_app")))
    assert.same({ seeker }, pids_of(decoded("-f", "key=" .. HELLO, "-f", "granted=f")))
  end)

  it("-o shows locks on a table, and PIDs those of sessions", function()
    for _, row in ipairs(decoded("-o", "orders")) do
      assert.matches("^orders", row.relation)
    end
    assert.same({ migration, reader }, pids_of(decoded("--blocking", "--on", "public.orders")))
    for _, row in ipairs(decoded(tostring(holder), tostring(seeker))) do
      assert.is_true(row.pid == holder or row.pid == seeker)
    end
    assert.same({ reader }, pids_of(decoded("--blocking", tostring(reader))))
    local code, out, err = ls("-o", "no_such_table")
    assert.is_true(code == 1 or code == 2)
    assert.equal("", out)
    assert.matches("no_such_table", err, 1, true)
  end)

  it("-a names the columns: any fields of the row, its activity and the blocker's", function()
    local lines = lines_of(shown("--blocking", "-a", "pid", "-a", "blocking_user,on", "-a", "state",
      "-l", "1"))
    assert.matches("^ *PID +BLOCKING_USER +ON +STATE$", lines[2])
    assert.matches("^ *" .. migration .. " +ls_app +public.orders +active$", lines[3])
    assert.same({ { pid = seeker, key = tostring(HELLO), relation = lock.null } },
      decoded("-f", "key=" .. HELLO, "-f", "granted=false", "-a", "pid,key,relation"))
  end)

  it("shows 25 rows, or as many as --limit says, and how many more there are", function()
    local session <close> = lock.connect { conninfo = conninfo() }
    session:exec("select pg_advisory_lock(n) from generate_series(1, 1000) n")
    local mine = { tostring(session.pid), "-f", "type=advisory" }
    local lines = lines_of(shown(table.unpack(mine)))
    assert.equal(2 + 25 + 1, #lines)
    assert.equal("… 975 more: --limit 1000", lines[#lines])
    assert.equal(2 + 3 + 1, #lines_of(shown("--limit", "3", table.unpack(mine))))
    assert.equal(2 + 1000, #lines_of(shown("-l", "1000", table.unpack(mine))))
    assert.equal(2 + 1000, #lines_of(shown("-l", "all", table.unpack(mine))))
    assert.equal(2 + 1000, #lines_of(shown("--all", table.unpack(mine))))
    assert.equal(1000, #decoded("-l", "3", table.unpack(mine)))
    assert.equal(1001, #records(shown("-l", "3", "--format", "csv", table.unpack(mine))))
  end)

  it("as JSON: a list of objects with the columns' whole values and the fields they are made of", function()
    local row = decoded("--blocking", "-f", "pid=" .. migration)[1]
    assert.equal(migration, row.pid)
    assert.equal("ACCESS EXCLUSIVE public.orders", row.wants)
    assert.equal(holder, row.blocker)
    assert.equal("ROW EXCLUSIVE", row.holds)
    assert.equal("idle in transaction", row.state)
    assert.is_true(math.type(row.waited) ~= nil and row["for"] >= row.waited)
    assert.equal(row.waited, row.wait_duration)
    assert.equal("ACCESS EXCLUSIVE", row.mode)
    assert.equal("orders", row.relation)
    assert.equal(holder, row.blocking_pid)
    assert.equal("ls_app", row.blocking_user)
    assert.equal("gunicorn web-3", row.blocking_application_name)
    assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.?%d*Z$", row.wait_start)
    row = decoded("-f", "key=" .. HELLO, "-f", "granted=true")[1]
    assert.equal("1054880662928880172", row.key)
    assert.equal(lock.null, row.waited)
    assert.equal(HOSTILE, row.query)
    assert.equal("[]\n", shown("-f", "pid=1", "--format", "json"))
  end)

  it("--all has every field and, as JSON, the activities as the API has them", function()
    local rows = decoded("--all", "--blocking", "-f", "pid=" .. seeker)
    local row = rows[1]
    assert.equal("seeker", row.activity.application_name)
    assert.equal(seeker, row.activity.pid)
    assert.equal(DATABASE, row.activity.database)
    assert.equal("tool", row.blocking_activity.application_name)
    assert.equal(adviser, row.blocking_activity.pid)
    assert.equal(tostring(HELLO), row.key)
    assert.equal(1, row.objsubid)
    local out = shown("--all", "-e", "-f", "pid=" .. seeker)
    assert.matches("\nAPPLICATION_NAME +seeker\n", out)
    assert.matches("\nOBJSUBID +1\n", out)
  end)

  it("has every row of pg_locks of the database", function()
    -- The sessions of the command itself hold nothing when the locks are read.
    local expected = t.observe(([[
      select count(*) from pg_locks l join pg_stat_activity a using (pid)
       where a.datname = '%s' and a.application_name not like 'lockkeeper%%']]):format(DATABASE))
    local ours = 0
    for _, row in ipairs(decoded("--all")) do
      local activity = row.activity
      if activity.database == DATABASE and not (activity.application_name or ""):find("^lockkeeper") then
        ours = ours + 1
      end
    end
    assert.equal(math.tointeger(expected), ours)
  end)

  it("as CSV: RFC 4180, with the same values", function()
    local list = records(shown("--format", "csv", "-f", "key=" .. HELLO))
    local names = table.concat(list[1], " ")
    assert.matches("^pid waited mode on state for user query granted type ", names)
    for i = 2, #list do
      assert.equal(#list[1], #list[i])
    end
    assert.equal(3, #list)
    assert.equal(tostring(seeker), list[2][1])
    assert.equal(HOSTILE, list[3][8])
    assert.equal("true", list[3][9])
    assert.same({ "pid", "query" }, records(shown("--format", "csv", "-a", "pid,query", "-f", "pid=1"))[1])
  end)

  it("-e shows a field a line, texts with their lines, and nothing that could do harm", function()
    local out = shown("-e", "-f", "key=" .. HELLO, "-f", "granted=true")
    assert.matches("\n── 1 ──", out, 1, true)
    assert.matches("\nPID +" .. adviser .. "\n", out)
    assert.matches("\nQUERY +" .. HARMLESS:gsub("%p", "%%%0") .. "\n +as one\n", out)
  end)

  it("shows nothing in its table that could do harm on a terminal", function()
    local out = shown("-f", "key=" .. HELLO, "-f", "granted=true")
    assert.is_nil(out:find("[\1-\9\11-\31\127]"))
    assert.matches(HARMLESS .. " as one\n", out, 1, true)
  end)

  it("fits a terminal, in colour; neither without one nor with NO_COLOR", function()
    for _, columns in ipairs { 80, 100, 160 } do
      for _, words in ipairs { "", "--blocking", "--terminate --dry-run" } do
        local out = on_terminal(columns, words)
        assert.matches("\27%[1m *PID\27%[0m", out)
        local lines = lines_of(out:gsub("\27%[[%d;]*m", ""))
        assert.is_true(#lines >= 5, out)
        for i = 2, #lines do
          assert.is_true(width.of(lines[i]) <= columns, lines[i])
        end
      end
    end
    assert.is_nil(on_terminal(100, "", { NO_COLOR = "1" }):find("\27", 1, true))
    assert.is_nil(shown():find("\27", 1, true))
  end)

  it("says that nothing matched", function()
    assert.matches("0 locks, 0 waiting\nNo lock matches.\n$", shown("-f", "pid=1"))
    assert.matches("0 sessions wait, blocked by 0\nNobody who matches waits.\n$", shown("--blocking", "1"))
  end)

  it("names what is wrong with its words: exit code 2, and nothing is asked of a server", function()
    local function wrong(text, ...)
      local words = { ... }
      words[#words + 1] = { env = { DATABASE_URL = "host=/nonexistent" } }
      local code, out, err = ls(table.unpack(words))
      assert.equal(2, code, err)
      assert.equal("", out)
      assert.matches(text, err, 1, true)
    end
    wrong('a PID is a whole number from 1, not "abc"', "abc")
    wrong("a PID is", "0")
    wrong("a PID is", "99999999999")
    wrong("unknown option --blokcing; did you mean --blocking?", "--blokcing")
    wrong("--filter takes KEY=VALUE", "-f", "pid")
    wrong('unknown filter "modee"; did you mean mode?', "-f", "modee=x")
    wrong("only blocked rows have blocking_user", "-f", "blocking_user=x")
    wrong("wait_duration_gt", "-f", "wait_duration_gt=soon")
    wrong("--where: unknown name os at character 1", "-w", "os.exit()")
    wrong("--where: unexpected function", "-w", "(function() while true do end end)()")
    wrong("--where: it ends too early", "-w", "pid ==")
    wrong('--attribute: unknown field "pidd"; did you mean pid?', "-a", "pidd")
    wrong('--attribute: unknown field ""', "-a", "")
    wrong("--limit takes a whole number from 1, or all, not \"0\"", "--limit", "0")
    wrong("--limit takes", "--limit", "-5")
    wrong("--limit takes", "--limit", "1e3")
    wrong("--format must be one of table, expanded, csv, json", "--format", "xml")
    wrong("--expanded and --format csv exclude each other", "-e", "--format", "csv")
    wrong("--all and --attribute exclude each other", "--all", "-a", "pid")
    wrong("--cancel and --terminate exclude each other", "--cancel", "--terminate")
    wrong("--dry-run needs --cancel or --terminate", "--dry-run")
    wrong("-y needs --cancel or --terminate", "-y")
    wrong("there is no terminal: -y does without the question", "--terminate")
  end)

  it("names an operation of an expression that can't be done on a row: exit code 2", function()
    local code, out, err = ls("-w", 'pid > "5"')
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches("--where: a number can't be compared with a text", err, 1, true)
  end)

  it("ends with 69 without a connection", function()
    assert.equal(69, (ls { env = { DATABASE_URL = "host=/nonexistent" } }))
  end)

  it("says why no connection can be made while somebody has a catalog for itself (locks.md 8)", function()
    local locker = t.connect { conninfo = conninfo() }
    for _, catalog in ipairs { "pg_authid", "pg_class" } do
      locker:exec(("begin; lock table pg_catalog.%s in access exclusive mode"):format(catalog))
      local code, out, err = ls({ env = { PGCONNECT_TIMEOUT = "2" } })
      locker:exec("rollback")
      assert.same({ 69, "" }, { code, out })
      assert.matches("timeout expired", err, 1, true)
      assert.matches("\n  hint: .*ACCESS EXCLUSIVE on a catalog that logging in reads", err)
    end
    locker:close()
  end)

  it("tells a role without pg_monitor that it does not see everything, and what a filter hid", function()
    local app = { env = { DATABASE_URL = conninfo { user = "lk_app" } } }
    local code, out, err = ls("--limit", "all", app)
    assert.equal(0, code)
    assert.matches("GRANT pg_monitor", err, 1, true)
    assert.matches("\n *" .. holder .. " +ROW EXCLUSIVE +public.orders", out)
    for _, words in ipairs { { "-f", "state=active" }, { "-w", 'state == "active"' } } do
      code, out, err = ls(words[1], words[2], app)
      assert.equal(0, code)
      assert.matches("No lock matches", out)
      assert.matches("rows were left out, since this role may not see state of others' sessions: "
        .. "GRANT pg_monitor", err, 1, true)
    end
  end)

  it("says so, too, where it is the blocker that this role may not see (locks.md 9)", function()
    t.psql("create role ls_blocked login")
    local app = conninfo { user = "ls_blocked" }
    local blocker <close> = t.connect { dbname = DATABASE }
    blocker:query("select pg_advisory_lock(7)")
    local child = waiting("own wait", "select pg_advisory_lock(7)", { user = "ls_blocked" })
    local code, out, err = ls("--blocking", "-f", "application_name=own wait",
      { env = { DATABASE_URL = app } })
    blocker:close()
    child:wait()
    t.psql("drop role ls_blocked")
    assert.equal(0, code)
    assert.matches("EXCLUSIVE advisory 7", out)
    assert.matches("GRANT pg_monitor", err)
  end)

  it("shows the others where one statement is no UTF-8, which SQL_ASCII lets pass", function()
    t.psql("create database ls_ascii encoding 'SQL_ASCII' locale 'C' template template0")
    local odd <close> = t.connect { dbname = "ls_ascii" }
    odd:exec("set client_encoding = 'SQL_ASCII'")
    odd:exec("begin; select pg_advisory_lock(7), 'caf\xE9'")
    local env = { env = { DATABASE_URL = conninfo { dbname = "ls_ascii" } } }
    local code, out, err = ls(env)
    local _, saved = ls("--all", "--format", "json", env)
    local looker = t.connect { dbname = "ls_ascii" }
    local list = json.decode(lock.locks({ using = looker }):to_json())
    local encoding = looker:one("select current_setting('client_encoding') as is").is
    looker:close()
    odd:close()
    t.wait_until(function() return pcall(t.psql, "drop database ls_ascii") end, "the end of its sessions")
    assert.equal(0, code, err)
    assert.matches("advisory 7 .* 'caf\u{FFFD}'", out)
    assert.matches("'caf\u{FFFD}'", saved)
    assert.matches("'caf\u{FFFD}'", list[1].activity.query)
    assert.equal("UTF8", encoding)
  end)

  it("works through a pooler that mixes sessions", function()
    local pooler = t.start_pgbouncer()
    local out = shown { env = { DATABASE_URL = pooler:conninfo { dbname = DATABASE } } }
    assert.matches("^database ls_spec on ", out)
    assert.matches("\n *" .. migration .. " ", out)
    pooler:stop()
  end)

  it("is found by help, which names its options", function()
    assert.matches("\n  ls [PID...]", select(2, t.run("--help")), 1, true)
    local out = select(2, t.run("ls", "-h"))
    for _, word in ipairs { "--blocking", "--on", "--filter", "--where", "--attribute", "--limit", "--format",
      "--expanded", "--all", "--cancel", "--terminate", "--dry-run", "--yes" } do
      assert.matches(word, out, 1, true)
    end
  end)
end)

describe("ls --cancel and --terminate", function()
  before_each(plant)
  after_each(clear)

  local function is_alive(pid)
    return t.observe("select 1 from pg_stat_activity where pid = " .. pid) == "1"
  end

  it("end what --dry-run listed and nothing else; --limit does not bound them", function()
    local listed = decoded("--blocking", "-f", "blocking_user=postgres", "--terminate", "--dry-run")
    assert.same({ migration, adviser }, pids_of(listed))
    assert.same({ reader }, listed[1].blocks)
    assert.equal("terminate", listed[1].action)
    assert.is_true(is_alive(migration) and is_alive(adviser))
    local code, out = ls("--blocking", "-f", "blocking_user=postgres", "--terminate", "-y", "--limit", "1")
    assert.equal(0, code)
    assert.matches("\n *" .. migration .. " +terminated\n *" .. adviser .. " +terminated\n$", out)
    assert.is_false(is_alive(migration) or is_alive(adviser))
    assert.is_true(is_alive(holder))
    t.wait_until(function() return not t.is_waiting(seeker) end, "the lock")
  end)

  it("without --blocking hit the sessions that match", function()
    local code, out = ls("--cancel", "-y", "-w", "not granted", "-f", "user=postgres", "--format", "json")
    assert.equal(0, code)
    local outcomes = json.decode(out)
    assert.same({ migration, seeker }, pids_of(outcomes))
    assert.same({ "signalled", "signalled" }, { outcomes[1].result, outcomes[2].result })
    assert.equal(1, children[1]:wait())
    assert.matches("canceling statement due to user request", children[1]:stderr(), 1, true)
    assert.is_true(is_alive(holder) and is_alive(adviser))
  end)

  it("show whom they would hit as a table, too", function()
    local lines = lines_of(shown("--blocking", "--cancel", "--dry-run"))
    assert.equal("to cancel: 3 sessions", lines[2])
    assert.matches("^ *PID +BLOCKS +USER +APPLICATION +STATE +FOR +QUERY$", lines[3])
    assert.matches("^ *" .. holder .. " +" .. migration .. " +ls_app +gunicorn web%-3 +idle in transaction +"
      .. "[%d.ms]+ +update orders set state = 'paid' where id = 1$", lines[4])
    assert.equal(6, #lines)
    local list = records(shown("--blocking", "--cancel", "--dry-run", "--format", "csv"))
    assert.equal(4, #list)
    assert.same({ tostring(holder), tostring(migration) }, { list[2][1], list[2][2] })
  end)

  it("end with 3 where nothing matched, and hit nobody", function()
    for _, words in ipairs { { "-y" }, { "--dry-run" } } do
      local code, out, err = ls("--terminate", "-f", "user=nobody", words[1])
      assert.equal(3, code)
      assert.equal("", out)
      assert.matches("nothing matched", err, 1, true)
    end
    assert.equal("[]\n", select(2, ls("--terminate", "-f", "user=nobody", "-y", "--format", "json")))
  end)

  it("end with 4 where some could not be signalled, name the SQLSTATE and the grant, and go on", function()
    local app = { env = { DATABASE_URL = conninfo { user = "ls_app" } } }
    local code, out = ls("--terminate", "-y", "--format", "json", "-w", "not granted and type == 'relation'",
      app)
    assert.equal(4, code)
    local by_pid = {}
    for _, outcome in ipairs(json.decode(out)) do
      by_pid[outcome.pid] = outcome
    end
    assert.equal("refused", by_pid[migration].result)
    assert.matches("GRANT ", by_pid[migration].hint, 1, true)
    assert.equal("signalled", by_pid[reader].result)
    assert.is_true(is_alive(migration))
    code, out = ls("--cancel", "-y", "--blocking", "-f", "blocking_pid=" .. holder)
    assert.equal(4, code)
    assert.matches(holder .. " +no effect +%S.*%-%-terminate ends the session", out)
    assert.is_true(is_alive(holder))
  end)

  it("never hit themselves", function()
    local code, out = ls("--terminate", "-y", "--format", "json")
    assert.is_true(code == 0 or code == 4)
    for _, outcome in ipairs(json.decode(out)) do
      assert.is_true(outcome.pid ~= nil)
    end
    for _, pid in ipairs { holder, migration, reader, adviser, seeker } do
      t.wait_until(function() return not is_alive(pid) end, "the end of " .. pid)
    end
  end)

  it("ask on a terminal, after telling whom they would hit", function()
    local words = "--blocking --terminate -f blocking_user=ls_app"
    for _, case in ipairs { { "n\n", 3 }, { "\n", 3 }, { "yesterday\n", 3 }, { "\4", 3 }, { "\3", 130 } } do
      local child, keyboard = terminal(100, words)
      t.wait_until(function() return child:stdout():find("Terminate it? [y/N] ", 1, true) end, "the question")
      assert.matches(holder .. " [^\n]*gunicorn web%-3", child:stdout())
      keyboard:write(case[1]):flush()
      t.wait_until(function() return child:stdout():find("code %d+\r?\n") end, "the end")
      assert.matches("code " .. case[2], child:stdout(), 1, true)
      keyboard:close()
      child:wait()
      assert.is_true(is_alive(holder))
    end
    local child, keyboard = terminal(100, words)
    t.wait_until(function() return child:stdout():find("Terminate it? [y/N] ", 1, true) end, "the question")
    keyboard:write("y\n"):flush()
    t.wait_until(function() return child:stdout():find("code 0", 1, true) end, "the end")
    keyboard:close()
    child:wait()
    assert.is_false(is_alive(holder))
    assert.is_true(is_alive(adviser))
  end)
end)

describe("ls and prepared transactions", function()
  it("shows them, and says how they are ended", function()
    t.psql("create table ls_prepared (a int)")
    t.psql("begin; lock table ls_prepared; prepare transaction 'it''s'")
    local env = { env = { DATABASE_URL = t.conninfo() } }
    local child, pid = waiting("waiter", "select * from ls_prepared", { dbname = "postgres" })
    local code, out = ls("-o", "ls_prepared", env)
    assert.equal(0, code)
    assert.matches("ACCESS EXCLUSIVE +public.ls_prepared +prepared", out)
    code, out = ls("--blocking", env)
    assert.equal(0, code)
    assert.matches(pid .. " +[%d.ms]+ +ACCESS SHARE public.ls_prepared +ACCESS EXCLUSIVE +prepared", out)
    local err
    code, out, err = ls("--blocking", "--terminate", "-y", env)
    assert.equal(4, code)
    assert.equal("", out)
    assert.matches("ROLLBACK PREPARED 'it''s'", err, 1, true)
    t.psql("rollback prepared 'it''s'")
    assert.equal(0, child:wait())
    t.psql("drop table ls_prepared")
  end)
end)

describe("a report", function()
  local HARMFUL = "a\27[31m\u{9b}\u{202e}\u{2066}\u{200f}b\u{2028}\127\0\xff\xc3c\r\n\td"

  it("replaces what is no UTF-8, and only that", function()
    assert.equal("aé\u{FFFD}b\u{FFFD}", safe.utf8("aé\xffb\xc3"))
    assert.equal("\u{FFFD}\u{FFFD}\u{FFFD}", safe.utf8("\xed\xa0\x80"))
    assert.equal(HOSTILE, safe.utf8(HOSTILE))
    assert.equal("", safe.utf8(""))
  end)

  it("shows texts on one line, or with their lines, without what could do harm", function()
    local harmless = "a\u{FFFD}[31m" .. ("\u{FFFD}"):rep(4) .. "b" .. ("\u{FFFD}"):rep(5) .. "c"
    assert.equal(harmless .. " d", safe.line(HARMFUL))
    assert.equal(harmless .. "\n    d", safe.block(HARMFUL))
    assert.equal("select 1 from x", safe.line("  select 1\n\n\tfrom  x"))
    assert.equal("日本 ñ", safe.line("日本 ñ"))
  end)

  it("counts a terminal's columns, not bytes or characters", function()
    for text, columns in pairs { [""] = 0, abc = 3, ["é"] = 1, ["e\u{301}"] = 1, ["漢字"] = 4, ["🙂"] = 2,
      ["…"] = 1, ["\u{200b}"] = 0 } do
      assert.equal(columns, width.of(text), text)
    end
    assert.equal("abc", width.cut("abc", 3))
    assert.equal("ab…", width.cut("abcd", 3))
    assert.equal("漢…", width.cut("漢字か", 4))
    assert.equal("…", width.cut("漢字", 1))
    assert.equal("漢字", width.cut("漢字", 4))
  end)

  it("cuts the last column first, then those that may be cut, each to a least width", function()
    local columns = { { title = "A", key = "a" }, { title = "B", key = "b", least = 5 },
      { title = "C", key = "c" } }
    local rows = { { a = ("a"):rep(10), b = ("b"):rep(20), c = ("c"):rep(60) } }
    local function second(columns_wide)
      return lines_of(text_table.format(columns, rows, columns_wide))[2]
    end
    assert.equal(94, #second(nil))
    assert.equal(94, #second(94))
    for wide = 25, 93 do
      assert.equal(wide, width.of(second(wide)))
    end
    assert.equal(("a"):rep(10) .. "  " .. ("b"):rep(20) .. "  " .. ("c"):rep(29) .. "…", second(64))
    assert.equal(("a"):rep(10) .. "  bbbb…  " .. ("c"):rep(19) .. "…", second(39))
    assert.equal(("a"):rep(10) .. "  bbbb…  ccc…", second(5))
  end)

  it("leaves out columns without a value, unless they are to be kept", function()
    local columns = { { title = "A", key = "a" }, { title = "B", key = "b" },
      { title = "C", key = "c", keep = true } }
    assert.equal("A  C\n1\n", text_table.format(columns, { { a = 1, b = "" } }))
    assert.equal("", text_table.format({ { title = "A", key = "a" } }, {}))
  end)

  it("writes CSV that tells a missing value from an empty text", function()
    assert.equal('1,,"",a b,"a,b","a""b","a\nb"," a",true\r\n',
      csv.record({ 1, nil, "", "a b", "a,b", 'a"b', "a\nb", " a", true }, 9))
  end)

  it("writes instants as RFC 3339, durations in seconds, keys as texts", function()
    assert.equal("2027-03-28T01:00:00Z", field.instant(1806195600))
    assert.equal("2027-03-28T01:00:00.500000Z", field.instant(1806195600.5))
    assert.equal("1970-01-01T00:00:00Z", field.instant(0))
    assert.equal(6.1, field.full("duration", 6.1000000000000001))
    assert.equal("-3531142854575798568", field.full("key", -3531142854575798568))
    assert.equal("1,-2", field.full("key", { 1, -2 }))
    assert.is_nil(field.full("time", nil))
    assert.equal("1m30s", field.shown("duration", 90.4))
  end)
end)
