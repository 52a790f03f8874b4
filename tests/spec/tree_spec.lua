-- `lockkeeper tree` (cli.md): what it shows of a scene of waiting sessions, in which forms.

local lock = require "lockkeeper"
local t = require "tests.support"
local target = require "tests.support.target"
local width = require "lockkeeper.report.width"

local json = lock.json

local DATABASE = "tree_spec"

-- What could do harm on a terminal or in a page, as an application's name and in its statement.
local HOSTILE = "<script>\27[31mred\27]0;t\7"

local function conninfo()
  return t.conninfo({ dbname = DATABASE })
end

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

local function tree(...)
  local words = { "tree", ... }
  local opts = type(words[#words]) == "table" and table.remove(words) or {}
  opts.env = opts.env or {}
  opts.env.DATABASE_URL = opts.env.DATABASE_URL or conninfo()
  words[#words + 1] = opts
  return t.run(table.unpack(words))
end

local function shown(...)
  local code, out, err = tree(...)
  assert.equal(0, code, err)
  assert.equal("", err)
  return out
end

local function lines_of(text)
  local lines = {}
  for line in text:gmatch("([^\n]*)\n") do
    lines[#lines + 1] = line
  end
  return lines
end

-- In a terminal of that many columns, where util-linux' script makes one.
local function in_terminal(columns, env)
  local words = {}
  for i, word in ipairs { t.binary(), "tree" } do
    words[i] = "'" .. word .. "'"
  end
  local all = { DATABASE_URL = conninfo(), TERM = "xterm" }
  for name, value in pairs(env or {}) do
    all[name] = value
  end
  local child = t.spawn { "script", "-qec",
    ("stty cols %d; %s"):format(columns, table.concat(words, " ")), "/dev/null", env = all, stdin = "" }
  assert.equal(0, child:wait())
  return (child:stdout():gsub("\r", ""))
end

describe("lockkeeper tree", function()
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

  it("says so where nobody waits, in every form", function()
    assert.matches("nobody waits\nNobody waits%.\n$", shown())
    assert.matches("Nobody waits%.", shown("--format", "svg"))
    assert.matches("Nobody waits%.", shown("--format", "html"))
    assert.matches("^digraph locks {", shown("--format", "dot"))
    local object = json.decode(shown("--format", "json"))
    assert.same({}, object.edges)
    assert.same({}, object.roots)
  end)

  describe("of a pile-up", function()
    local holder, ddl, readers, hostile

    setup(function()
      holder = lock.connect { conninfo = t.conninfo({ dbname = DATABASE, application_name = "web-3" }) }
      holder:exec("begin")
      holder:exec("update orders set state = 'paid' where id = 1")
      ddl = waiting("django-migrate", "alter table orders add column x int")
      readers = {}
      for i = 1, 6 do
        readers[i] = waiting("gunicorn web-" .. i, ("select count(*) as reader%d from orders"):format(i))
      end
      hostile = waiting(HOSTILE, "update orders set state = '</title><script>' where id = 2")
    end)

    teardown(function()
      holder:close()
      for _, reader in ipairs(readers) do
        reader.child:wait()
      end
      ddl.child:wait()
      hostile.child:wait()
    end)

    it("has the layout of cli.md: the root first, who waits below, alike ones folded", function()
      local lines = lines_of(shown())
      assert.matches("^database " .. DATABASE .. " on .* %(PostgreSQL %d.*%), %d+%-%d+%-%d+ %d+:%d+:%d+ "
        .. "[+-]%d%d%d%d: 8 sessions wait, 1 root blocker, longest %d", lines[1])
      assert.matches("^PID             FOR    BEHIND  WAITS FOR, OR STATE +USER +APPLICATION$", lines[2])
      assert.matches("^" .. holder.pid .. " +%d[%d.]*s +8  idle in transaction +postgres  web%-3$", lines[3])
      assert.matches("^│               last: update orders set state = 'paid' where id = 1$", lines[4])
      assert.matches(("^└─ %d +%%d[%%d.]*s +7  ACCESS EXCLUSIVE public%%.orders +postgres  django%%-migrate$")
        :format(ddl.pid), lines[5])
      assert.matches(("^   ├─ %d +%%d[%%d.]*s +0  ACCESS SHARE public%%.orders +postgres  gunicorn web%%-1$")
        :format(readers[1].pid), lines[6])
      assert.matches("^   ├─ 5 more +%d[%d.]*s +0  ACCESS SHARE public%.orders +postgres  gunicorn web%-…$",
        lines[7])
      assert.matches("^   └─ " .. hostile.pid .. " +%d[%d.]*s +0  ROW EXCLUSIVE public%.orders +postgres ",
        lines[8])
      assert.equal(("End it:  lockkeeper ls %d --terminate"):format(holder.pid), lines[9])
      assert.equal(9, #lines)
    end)

    it("with --all has a line for each session", function()
      local out = shown("--all")
      for _, reader in ipairs(readers) do
        assert.matches("─ " .. reader.pid .. " ", out, 1, true)
      end
      assert.not_matches(" more ", out)
      for _, format in ipairs { "svg", "html" } do
        local picture = shown("--all", "--format", format)
        for _, reader in ipairs(readers) do
          assert.matches(">" .. reader.pid .. "<", picture, 1, true)
        end
        assert.not_matches("5 more", picture, 1, true)
      end
    end)

    it("fits the terminal, and has no control characters of others", function()
      for _, columns in ipairs { 60, 80, 100, 200 } do
        local out = in_terminal(columns, { NO_COLOR = "1" })
        assert.not_matches("[\27\7]", out)
        for i, line in ipairs(lines_of(out)) do
          assert.is_true(i == 1 or width.of(line) <= columns, line)
        end
      end
      assert.matches("\27%[31;1m" .. holder.pid, in_terminal(100))
      for _, format in ipairs { "tree", "dot", "svg", "html", "json" } do
        assert.not_matches("[\27\7]", shown("--format", format))
      end
    end)

    it("as JSON is what locks.md 13 says", function()
      local object = json.decode(shown("--format", "json"))
      assert.matches("^%d%d%d%d%-%d%d%-%d%dT[%d:.]+Z$", object.taken_at)
      local by_waiter = {}
      for _, edge in ipairs(object.edges) do
        by_waiter[edge.waiter_pid] = edge
      end
      local first = by_waiter[ddl.pid]
      assert.equal(holder.pid, first.blocker_pid)
      assert.equal("ACCESS EXCLUSIVE", first.requested_mode)
      assert.equal("ROW EXCLUSIVE", first.held_mode)
      assert.equal("hard", first.certainty)
      assert.equal("orders", first.lock.relation)
      assert.equal("public", first.lock.schema)
      assert.is_true(first.waited > 0)
      assert.equal(ddl.pid, by_waiter[readers[3].pid].blocker_pid)
      assert.equal("soft", by_waiter[readers[3].pid].certainty)
      assert.equal(lock.null, by_waiter[readers[3].pid].held_mode)
      assert.equal(9, #object.sessions)
      assert.equal(holder.pid, object.roots[1].pid)
      assert.equal(8, object.roots[1].behind)
      assert.same({}, object.cycles)
    end)

    it("as SVG and HTML is one file that loads and runs nothing, with others' texts as texts", function()
      for _, format in ipairs { "svg", "html" } do
        local out = shown("--format", format)
        assert.not_matches("<script", out, 1, true)
        assert.not_matches("</title><script", out, 1, true)
        assert.matches("&lt;script&gt;", out, 1, true)
        for url in out:gmatch("%a+://[^\"'%s]+") do
          assert.equal("http://www.w3.org/2000/svg", url)
        end
        assert.not_matches("%f[%w]href%s*=", out)
        assert.not_matches("%f[%w]src%s*=", out)
        assert.matches(">" .. holder.pid .. "<", out, 1, true)
        assert.matches("5 more", out, 1, true)
        assert.matches(("lockkeeper ls %d --terminate"):format(holder.pid), out, 1, true)
      end
      local page = shown("--format", "html")
      for _, reader in ipairs(readers) do
        assert.matches("<td>" .. reader.pid .. "</td>", page, 1, true)
      end
    end)

    it("as DOT has an arrow from each who waits to who is in the way", function()
      local out = shown("--format", "dot")
      assert.matches(('"%d" -> "%d"'):format(ddl.pid, holder.pid), out, 1, true)
      for _, reader in ipairs(readers) do
        assert.matches(('"%d" -> "%d"'):format(reader.pid, ddl.pid), out, 1, true)
      end
    end)

    it("with --exact asks the server about everybody", function()
      for _, edge in ipairs(json.decode(shown("--exact", "--format", "json")).edges) do
        assert.equal("confirmed", edge.certainty)
      end
    end)
  end)

  it("exits with 2 for wrong words, with 69 where there is no server", function()
    local code, _, err = tree("--format", "png")
    assert.equal(2, code)
    assert.matches("--format must be one of", err, 1, true)
    assert.equal(2, (tree("12")))
    assert.equal(69, (tree { env = { DATABASE_URL = "host=/nonexistent" } }))
  end)
end)
