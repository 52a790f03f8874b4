-- `lockkeeper top` (cli.md), driven in a real terminal, tmux', whose screen is read.

local lock = require "lockkeeper"
local process = require "tests.support.process"
local t = require "tests.support"
local target = require "tests.support.target"

local DATABASE = "top_spec"

local function conninfo(opts)
  local all = { dbname = DATABASE }
  for name, value in pairs(opts or {}) do
    all[name] = value
  end
  return t.conninfo(all)
end

---------------------------------------------------------------------------------------------------
-- a terminal

local Terminal = {}
Terminal.__index = Terminal

-- Whoever waits for a screen waits this long at most, in seconds.
local PATIENCE = 20

function Terminal:tmux(...)
  local code, out, err = process.run({ "tmux", "-f", "/dev/null", "-S", self.socket, ... })
  assert(code == 0, err)
  return out
end

-- The screen's lines, without the spaces at their ends.
function Terminal:screen()
  return (self:tmux("capture-pane", "-p"):gsub(" +\n", "\n"))
end

function Terminal:lines()
  local lines = {}
  for line in self:screen():gmatch("([^\n]*)\n") do
    lines[#lines + 1] = line
  end
  return lines
end

-- Wait until the screen shows that pattern; returns the screen.
function Terminal:shows(pattern)
  local screen
  local ok = pcall(t.wait_until, function()
    screen = self:screen()
    return screen:find(pattern)
  end, PATIENCE)
  assert(ok, ("the screen never showed %s but\n%s"):format(pattern, screen))
  return screen
end

-- Wait until it no longer does.
function Terminal:hides(pattern)
  local screen
  local ok = pcall(t.wait_until, function()
    screen = self:screen()
    return not screen:find(pattern)
  end, PATIENCE)
  assert(ok, ("the screen goes on showing %s:\n%s"):format(pattern, screen))
end

function Terminal:press(...)
  self:tmux("send-keys", ...)
end

function Terminal:type(text)
  self:tmux("send-keys", "-l", text)
end

function Terminal:is_alternate()
  return self:tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}") == "1 0\n"
end

-- The pid of lockkeeper.
function Terminal:pid()
  return self.child_pid
end

-- Wait for its end: the exit code, and the screen that is left.
function Terminal:ended()
  local screen = self:shows("ended with %d+%.")
  assert.equal("0 1\n", self:tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}"))
  assert.matches("before the screen\n", screen)
  assert.equal(t.read_file(self.dir .. "/before"), t.read_file(self.dir .. "/after"))
  return math.tointeger(screen:match("ended with (%d+)%.")), screen
end

function Terminal:close()
  pcall(self.tmux, self, "kill-server")
  self.child:wait()
end

Terminal.__close = Terminal.close

-- `lockkeeper top …` in a terminal of its own, by a shell that tells how it ended and whether the terminal
-- is as it was.
local function open(opts, ...)
  local dir = t.tempdir()
  local self = setmetatable({ dir = dir, socket = dir .. "/tmux" }, Terminal)
  local words = { t.binary(), "top", "--every", opts.every or "250ms", ... }
  for i, word in ipairs(words) do
    words[i] = "'" .. word:gsub("'", "'\\''") .. "'"
  end
  process.write_file(dir .. "/go", ([[
set -m
stty -a >'%s/before'
echo before the screen
sh -c 'echo $$ >"%s/pid"; exec "$@"' sh %s %s
code=$?
while kill -0 "$(cat '%s/pid')" 2>/dev/null; do
  echo "it is stopped"
  read -r _
  fg >/dev/null
  code=$?
done
stty -a >'%s/after'
echo "ended with $code."
read -r _
]]):format(dir, dir, table.concat(words, " "), opts.errors or ("2>'%s/errors'"):format(dir), dir, dir))
  local env = { DATABASE_URL = conninfo(), XDG_CONFIG_HOME = dir, XDG_STATE_HOME = dir, TMUX = false,
    TERM = opts.term or "screen", COLUMNS = false, LINES = false, LC_ALL = "C.UTF-8" }
  for name, value in pairs(opts.env or {}) do
    env[name] = value
  end
  self.child = t.spawn { "tmux", "-D", "-f", "/dev/null", "-S", self.socket, env = env }
  t.wait_until(function() return process.run({ "test", "-S", self.socket }) == 0 end, PATIENCE, "tmux")
  self:tmux("set-option", "-g", "default-terminal", opts.term or "screen", ";", "new-session", "-d", "-x",
    tostring(opts.columns or 110), "-y", tostring(opts.lines or 24), "sh " .. dir .. "/go")
  self.child_pid = t.wait_until(function()
    return math.tointeger((t.read_file(dir .. "/pid") or ""):match("(%d+)\n"))
  end, PATIENCE, "lockkeeper")
  return self
end

-- The same, once it shows what it has seen first.
local function top(opts, ...)
  local terminal = open(opts or {}, ...)
  local ok, err = pcall(terminal.shows, terminal, " 1 Tree   2 Locks   3 Jobs")
  if not ok then
    terminal:close()
    error(err, 0)
  end
  return terminal
end

---------------------------------------------------------------------------------------------------
-- sessions

local function background(name, sql)
  local child = t.spawn { target.bindir() .. "/psql", "-Xqd", conninfo(), "-c", sql,
    env = { PGAPPNAME = name } }
  local pid = t.wait_until(function()
    return math.tointeger(t.observe(("select pid from pg_stat_activity where datname = '%s' and query = %s")
      :format(DATABASE, "'" .. sql:gsub("'", "''") .. "'")))
  end, name)
  return { pid = pid, child = child }
end

local function waiting(name, sql)
  local self = background(name, sql)
  t.wait_until(function() return t.is_waiting(self.pid) end, name .. " to wait")
  return self
end

-- Its user closes it.
local function holder_of(sql, name)
  local session = lock.connect { conninfo = conninfo { application_name = name or "web-3" } }
  session:exec("begin")
  session:exec(sql)
  return session
end

local function is_there(pid)
  return t.observe(("select 1 from pg_stat_activity where pid = %d"):format(pid)) == "1"
end

---------------------------------------------------------------------------------------------------

describe("lockkeeper top", function()
  setup(function()
    t.psql("create database " .. DATABASE)
    t.server:psql([[
      create table orders (id int primary key, state text);
      insert into orders select i, 'new' from generate_series(1, 10) i;
    ]], { dbname = DATABASE })
  end)

  teardown(function()
    t.psql(("drop database %s with (force)"):format(DATABASE))
  end)

  describe("of a pile-up", function()
    local holder, ddl, readers

    local function pile_up()
      holder = holder_of("update orders set state = 'paid' where id = 1")
      ddl = waiting("django-migrate", "alter table orders add column x int")
      readers = {}
      for i = 1, 4 do
        readers[i] = waiting("gunicorn web-" .. i, ("select count(*) as reader%d from orders"):format(i))
      end
    end

    local function clear()
      holder:close()
      ddl.child:wait()
      for _, reader in ipairs(readers) do
        reader.child:wait()
      end
      t.psql("alter table orders drop column if exists x", { dbname = DATABASE })
    end

    describe("that is looked at", function()
      setup(pile_up)
      teardown(clear)

      it("shows the tree that tree shows, the tabs, and the keys at the bottom", function()
        local terminal <close> = top()
        local lines = terminal:lines()
        assert.is_true(terminal:is_alternate())
        assert.matches("^database top_spec on .*: 5 sessions wait, 1 root blocker, longest %d", lines[1])
        assert.matches("^ 1 Tree   2 Locks   3 Jobs$", lines[2])
        assert.matches("^PID +FOR +BEHIND  WAITS FOR, OR STATE +USER +APPLICATION$", lines[3])
        assert.matches(("^%d +%%d[%%d.]*s +5  idle in transaction +postgres  web%%-3$"):format(holder.pid),
          lines[4])
        assert.equal("│  last: update orders set state = 'paid' where id = 1", lines[5])
        assert.matches("^└─ " .. ddl.pid
          .. " +%d[%d.]*s +4  ACCESS EXCLUSIVE public%.orders +postgres  django%-migrate$", lines[6])
        assert.matches("^   ├─ " .. readers[1].pid
          .. " +%d[%d.]*s +0  ACCESS SHARE public%.orders +postgres  gunicorn web%-1$", lines[7])
        assert.matches("^   └─ 3 more +%d[%d.]*s +0  ACCESS SHARE public%.orders +postgres  gunicorn web%-…$",
          lines[8])
        assert.equal("update orders set state = 'paid' where id = 1", lines[23])
        assert.matches("^q quit  %? help  Tab next  / filter  <> sort  Enter inspect  c cancel  t terminate",
          lines[24])
        terminal:press("u")
        terminal:shows("   ├─ " .. readers[3].pid)
        terminal:press("q")
        assert.equal(0, (terminal:ended()))
        -- The address sanitizer tells that fibers are there.
        assert.equal("", (t.read_file(terminal.dir .. "/errors"):gsub("^==%d+==WARNING: ASan [^\n]*\n", "")))
      end)

      it("shows all about a session, and goes back", function()
        local terminal <close> = top { lines = 40 }
        terminal:press("Down", "Enter")
        local screen = terminal:shows(("Session %d\n"):format(ddl.pid))
        local last = "wants +ACCESS EXCLUSIVE public%.orders, for %d" -- above it all is drawn
        screen = screen:find(last) and screen or terminal:shows(last)
        assert.matches("application +django%-migrate\n", screen)
        assert.matches("Waits for\n%d[%d.ms]*s +ACCESS EXCLUSIVE public%.orders\n", screen)
        assert.matches((" +%d holds ROW EXCLUSIVE\n"):format(holder.pid), screen)
        assert.matches("Right behind it: 4\n", screen)
        assert.matches(("%d +ACCESS SHARE public%%.orders, for %%d"):format(readers[4].pid), screen)
        assert.matches("Runs\n  alter table orders add column x int\n", screen)
        terminal:press("Escape")
        terminal:shows("BEHIND  WAITS FOR")
      end)

      it("shows only what a Lua expression is true of, and those above it", function()
        local terminal <close> = top()
        terminal:press("/")
        terminal:shows("filter, as ")
        terminal:type(('pid == %d or user == "nobody"'):format(readers[3].pid))
        terminal:press("Enter")
        local screen = terminal:shows("   filter: pid == ")
        assert.matches(("\n%d .*\n└─ %d .*\n   └─ %d "):format(holder.pid, ddl.pid, readers[3].pid), screen)
        assert.is_nil(screen:find("\n[ ├└─]*" .. readers[1].pid))
        terminal:press("/", "C-u")
        terminal:type("behind > 99")
        terminal:press("Enter")
        terminal:shows("Nobody who waits, or is waited for, matches%.")
        terminal:press("/", "C-u", "Enter")
        terminal:shows("3 more")
      end)

      it("names what is wrong with an expression, and asks again", function()
        local terminal <close> = top()
        terminal:press("/")
        terminal:type("pidd == 1")
        terminal:press("Enter")
        terminal:shows("filter: unknown name pidd at character 1; did you mean pid%?")
        terminal:press("Left")
        terminal:shows("filter, as .*: pidd == 1\n")
        terminal:press("C-u")
        terminal:type("query < 5")
        terminal:press("Enter")
        terminal:shows("filter: a text can't be compared with a number")
        terminal:press("Escape")
        terminal:press("2", "/")
        terminal:type('mode == "ACCESS EXCLUSIVE" and not granted')
        terminal:press("Enter")
        local screen = terminal:shows("filter: mode ==")
        assert.matches(("PID +WAITED +MODE [^\n]*\n *%d [^\n]*\n\n"):format(ddl.pid), screen)
      end)

      it("leaves alone whom the configuration protects", function()
        local config = t.tempfile('require("lockkeeper").protect { application_name = "web-3" }\n')
        local terminal <close> = top({}, "--config", config)
        terminal:press("t")
        terminal:shows(("%d: the configuration protects it"):format(holder.pid))
        terminal:press("y")
        assert.is_true(is_there(holder.pid))
      end)

      it("keeps its picture whole when the terminal is resized", function()
        local terminal <close> = top { columns = 110, lines = 24 }
        terminal:tmux("resize-window", "-x", "70", "-y", "10")
        local screen = terminal:shows("\nq quit [^\n]*inspect  c cancel\n$")
        local lines = terminal:lines()
        assert.equal(10, #lines)
        assert.matches("^database top_spec on [^\n]*: 5 sess", screen)
        assert.matches("└─ " .. ddl.pid, screen)
        for _, line in ipairs(lines) do
          assert.is_true(utf8.len(line) <= 70, line)
        end
        terminal:tmux("resize-window", "-x", "30", "-y", "3")
        terminal:shows("^PID +FOR")
        assert.equal(3, #terminal:lines())
        terminal:tmux("resize-window", "-x", "1", "-y", "1")
        terminal:press("Down", "2", "1", "?", "Escape", "/", "Escape")
        terminal:tmux("resize-window", "-x", "150", "-y", "30")
        terminal:shows("\nq quit [^\n]*p pause  r reverse\n$")
        assert.equal(30, #terminal:lines())
      end)
    end)

    describe("that is ended", function()
      before_each(pile_up)
      after_each(clear)

      it("terminates after a question, to which anything but y means no", function()
        local terminal <close> = top()
        terminal:press("t")
        local question = ("Terminate %d%%? %%[y/N%%] +postgres, web%%-3, idle in transaction for "
          .. ".*, 5 behind it"):format(holder.pid)
        terminal:shows(question)
        terminal:press("n")
        terminal:shows(("%d was left alone"):format(holder.pid))
        assert.is_true(is_there(holder.pid))
        terminal:press("t", "Escape")
        terminal:hides(question)
        assert.is_true(is_there(holder.pid))
        terminal:press("t")
        terminal:shows(question)
        terminal:press("y")
        terminal:shows(("%d was terminated"):format(holder.pid))
        assert.is_false(is_there(holder.pid))
        terminal:shows("Nobody waits%.")
      end)

      it("cancels a statement after a question, and says where that changes nothing", function()
        local terminal <close> = top()
        terminal:press("c")
        terminal:shows(("Cancel %d%%?"):format(holder.pid))
        terminal:press("y")
        terminal:shows(holder.pid .. ": it runs no statement that could be cancelled; t terminates it")
        assert.is_true(is_there(holder.pid))
        terminal:press("Down", "c")
        terminal:shows(("Cancel %d%%?.*django%%-migrate, active for .*, 4 behind it"):format(ddl.pid))
        terminal:press("y")
        terminal:shows(("the statement of %d was cancelled"):format(ddl.pid))
        ddl.child:wait()
        assert.matches("canceling statement due to user request", ddl.child:stderr())
      end)
    end)
  end)

  it("shows the locks that ls shows, sorted by the columns that are asked for", function()
    local first = holder_of("lock table orders in share mode", "zebra")
    local second = holder_of("select pg_advisory_xact_lock(42)", "ant")
    local terminal <close> = top({}, "--tab", "locks")
    terminal:shows("SHARE +public%.orders")
    terminal:shows("EXCLUSIVE +advisory 42")
    terminal:press(">")
    local screen = terminal:shows("PID▲")
    local low, high = math.min(first.pid, second.pid), math.max(first.pid, second.pid)
    assert.matches(("%d .*%d "):format(low, high), screen)
    terminal:press("r")
    screen = terminal:shows("PID▼")
    assert.matches(("%d .*%d "):format(high, low), screen)
    terminal:press("<")
    terminal:shows("\n *PID  MODE  ")
    first:close()
    second:close()
    terminal:hides("advisory 42")
  end)

  it("shows 10,000 locks, and finds its way among them", function()
    local holder = t.connect { dbname = DATABASE, application_name = "hoarder" }
    holder:query("select count(pg_advisory_lock(i)) from generate_series(1000001, 1008000) i")
    holder:query("select count(pg_advisory_lock(1, i)) from generate_series(1000001, 1002000) i")
    local terminal <close> = top({}, "--tab", "locks", "--where", "objid ~= 1000777")
    terminal:shows(": 10000 locks, 0 waiting")
    terminal:press("End")
    terminal:shows("EXCLUSIVE")
    terminal:press("/", "C-u")
    terminal:type("objid == 1000777 and objsubid == 1")
    terminal:press("Enter")
    local screen = terminal:shows("filter: objid == 1000777")
    assert.matches("EXCLUSIVE +advisory 1000777 ", screen)
    terminal:press("Enter")
    terminal:shows("Locks: 10000\n")
    terminal:press("q")
    assert.equal(0, (terminal:ended()))
    holder:close()
  end)

  it("shows jobs and what became of them", function()
    local terminal <close> = top({}, "--tab", "jobs")
    terminal:shows("This database knows of no jobs yet: lockkeeper init makes the tables for it%.")
    assert.equal(0, (t.run("init", "--dsn", conninfo())))
    terminal:shows("No job is known yet")
    local file = t.tempfile([[
      local lock = require "lockkeeper"
      lock.job("nightly", { schedule = "30 2 * * *", description = "what it is for",
        run = function() lock.sleep("60s") end })
    ]], "jobs.lua")
    local serve = t.lockkeeper("serve", "--dsn", conninfo(), file)
    terminal:shows("nightly +30 2 %* %* %*")
    assert.equal(0, (t.run("trigger", "--dsn", conninfo(), "nightly")))
    terminal:shows("nightly .*running")
    terminal:press("Enter")
    terminal:shows("description +what it is for\n.*Runs: 1\n.*nightly +trigger .*running")
    terminal:press("Escape", "t")
    terminal:shows("the runs of a job can only be cancelled: c")
    terminal:press("c")
    terminal:shows("Cancel 1 run of nightly%? %[y/N%]")
    terminal:press("y")
    terminal:shows("nightly: 1 run is to end, its hosts have been told")
    terminal:shows("nightly +30 2 %* %* %*[^\n]*cancelled")
    serve:signal("TERM")
    serve:wait()
    t.psql("drop schema lockkeeper cascade", { dbname = DATABASE })
  end)

  it("makes harmless what others have written", function()
    local holder = t.connect { dbname = DATABASE, application_name = "app" }
    holder:exec("begin; lock table orders")
    holder:exec("select '\27]0;owned\7\27[2J\27[31m', '\u{202E}gnirts \u{9B}1m'")
    local waiter = waiting("waiter", "select * from orders")
    local terminal <close> = top()
    local screen = terminal:shows("last: select '")
    assert.matches("last: select '�%]0;owned��%[2J�%[31m', '�gnirts �1m'", screen)
    assert.is_nil(terminal:tmux("capture-pane", "-p", "-e"):find("\27%]0;"))
    assert.is_nil(terminal:tmux("display-message", "-p", "#{pane_title}"):find("owned"))
    terminal:press("Enter")
    terminal:shows("Ran last\n  select '�%]0;owned")
    holder:close()
    waiter.child:wait()
  end)

  it("goes on when its connections are lost, by connecting again", function()
    local server <close> = setmetatable({ own = t.start_server() }, { __close = function(self)
      self.own:stop("immediate")
    end })
    local terminal <close> = top { env = { DATABASE_URL = server.own:conninfo() } }
    terminal:shows("Nobody waits")
    server.own:stop("immediate")
    terminal:shows("no connection for %d.*, trying again")
    terminal:press("2")
    terminal:shows("looking …")
    server.own:start()
    terminal:hides("no connection")
    server.own:psql("select pg_terminate_backend(pid) from pg_stat_activity "
      .. "where application_name like 'lockkeeper%'")
    terminal:press("1")
    terminal:shows("Nobody waits")
    terminal:hides("no connection")
    terminal:press("q")
    assert.equal(0, (terminal:ended()))
  end)

  it("heeds the keyboard, and ends, while the server does not answer", function()
    local terminal <close> = top()
    local looking = t.wait_until(function()
      return math.tointeger(t.observe("select pid from pg_stat_activity "
        .. "where application_name = 'lockkeeper: locks' and datname = '" .. DATABASE .. "'"))
    end, "its session")
    process.signal("STOP", looking)
    terminal:shows("the server has not answered for %d")
    terminal:press("?")
    terminal:shows("shows only what an expression is true of")
    terminal:press("Escape", "/")
    terminal:type("behind > 1")
    terminal:shows("behind > 1\n")
    terminal:press("Escape", "q")
    local code = terminal:ended()
    process.signal("CONT", looking)
    assert.equal(0, code)
  end)

  it("shows who locks the catalogs, so that nobody can log in any more, and ends it", function()
    local terminal <close> = top({}, "--tab", "locks")
    t.wait_until(function()
      return t.observe("select count(*) from pg_stat_activity where datname = '" .. DATABASE
        .. "' and application_name like 'lockkeeper%'") == "3"
    end, "its sessions")
    local holder = holder_of("lock table pg_authid, pg_database, pg_class in access exclusive mode", "locker")
    local _ <close> = setmetatable({}, { __close = function() holder:close() end })
    terminal:shows((" *%d +ACCESS EXCLUSIVE +1259 "):format(holder.pid)) -- its name is not to be had either
    terminal:press("/")
    terminal:type("pid == " .. holder.pid)
    terminal:press("Enter")
    terminal:shows("filter: pid")
    terminal:press("t")
    terminal:shows(("Terminate %d%%?.*locker, idle in transaction"):format(holder.pid))
    terminal:press("y")
    terminal:shows(("%d was terminated"):format(holder.pid))
    terminal:hides("ACCESS EXCLUSIVE")
  end)

  for signal, code in pairs { INT = 130, TERM = 143, HUP = 129 } do
    it(("gives the terminal back when SIG%s ends it"):format(signal), function()
      local terminal <close> = top()
      process.signal(signal, terminal:pid())
      assert.equal(code, (terminal:ended()))
    end)
  end

  it("gives the terminal back at Ctrl-C", function()
    local terminal <close> = top()
    terminal:press("C-c")
    assert.equal(130, (terminal:ended()))
  end)

  it("gives the terminal back at a second signal, where the first one was of no use", function()
    local config = t.tempfile([[
      local app = require "lockkeeper.top.app"
      local draw = app.draw
      function app:draw()
        draw(self)
        while self.page do
          pcall(function() while true do end end)
        end
      end
    ]])
    local terminal <close> = top({}, "--config", config)
    terminal:press("?")
    terminal:shows("shows only what an expression is true of")
    process.signal("TERM", terminal:pid())
    t.sleep(0.2)
    assert.is_true(terminal:is_alternate())
    process.signal("INT", terminal:pid())
    assert.equal(130, (terminal:ended()))
  end)

  it("gives the terminal back at an error, which is then shown", function()
    local config = t.tempfile([[
      local app = require "lockkeeper.top.app"
      local draw = app.draw
      function app:draw()
        draw(self)
        if self.page then
          io.stderr:write("said before\n")
          error("it failed")
        end
      end
    ]])
    local terminal <close> = top({ errors = "" }, "--config", config)
    terminal:press("?")
    local code, screen = terminal:ended()
    assert.equal(1, code)
    assert.matches("said before\n.*it failed", screen)
  end)

  it("stops at Ctrl-Z and goes on afterwards", function()
    local terminal <close> = top()
    terminal:press("C-z")
    terminal:shows("before the screen\n.*it is stopped")
    terminal:press("Enter")
    terminal:shows("Nobody waits")
    assert.is_true(terminal:is_alternate())
    terminal:press("q")
    assert.equal(0, (terminal:ended()))
  end)

  it("takes less than 2 % of a core at a look a second while nothing happens", function()
    local terminal <close> = top { every = "1s" }
    local function ticks()
      local user, system = t.read_file(("/proc/%d/stat"):format(terminal:pid())):match(
        "%) %a" .. (" %-?%d+"):rep(10) .. " (%d+) (%d+)")
      return user + system
    end
    terminal:shows("Nobody waits")
    local before, began = ticks(), t.now()
    t.sleep(4)
    local share = (ticks() - before) / 100 / (t.now() - began)
    assert.is_true(share < 0.02, ("%.1f %% of a core"):format(100 * share))
    terminal:press("q")
    assert.equal(0, (terminal:ended()))
  end)

  it("needs a terminal, a connection and sense in its words, and says which of them it lacks", function()
    local code, out, err = t.run("top", { env = { DATABASE_URL = conninfo() } })
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches("it takes a terminal; tree, ls and jobs write anywhere", err)
    code, out, err = t.run("top", "--every", "0")
    assert.same({ 2, "" }, { code, out })
    assert.matches("%-%-every: at least 0%.1s", err)
    code, out, err = t.run("top", "--where", "nosuch > 1")
    assert.same({ 2, "" }, { code, out })
    assert.matches("%-%-where: .*unknown name nosuch", err)
    local dumb <close> = open { errors = "", env = { TERM = "dumb" }, term = "dumb" }
    local screen
    code, screen = dumb:ended()
    assert.equal(2, code)
    assert.matches("a terminal that can place its cursor", screen)
    local nowhere <close> = open { errors = "", env = { DATABASE_URL = "host=/nonexistent" } }
    assert.equal(69, (nowhere:ended()))
  end)
end)
