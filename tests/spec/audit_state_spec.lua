-- Audits that remember what they have found, in the state tables, and that the runner runs (lua-api.md); and
-- what the configuration says of views, names and sessions never to be touched.

local audits = require "tests.support.audits"
local lock = require "lockkeeper"
local t = require "tests.support"

local DATABASE = "audit_state_spec"

local conninfo = audits.conninfo
local connect = audits.connect
local file = audits.file
local run = audits.run
local audit = audits.audit
local found = audits.found
local waiting = audits.waiting
local drop_database = audits.drop_database
local idle_holder = audits.idle_holder
local idle_holders = audits.idle_holders
local HEAD = audits.HEAD
local IDLE_HOLDERS = audits.IDLE_HOLDERS
local json = lock.json

local SOON = 30

local function make_database()
  audits.make_database(DATABASE)
end

---------------------------------------------------------------------------------------------------

describe("findings in the state tables", function()
  local db

  setup(function()
    make_database()
    assert.equal(0, (run("init")))
    db = connect("asserts")
  end)

  teardown(function()
    db:close()
    drop_database()
  end)

  after_each(function() db:exec("delete from lockkeeper.finding") end)

  local CALLS = [[on_open = function(f) print("opened " .. f.message .. " " .. f.severity) end,
    on_close = function(f) print("closed " .. f.message .. " " .. f.pid) end,]]

  local function rows()
    return db:query("select audit, subject, severity, message, closed_at is not null as closed "
      .. "from lockkeeper.finding order by id")
  end

  it("are opened and closed once, over many processes, as on_open and on_close are called", function()
    local path, holder = idle_holders(CALLS), idle_holder()
    local _, _, err = audit(path)
    assert.matches("opened web holds ACCESS EXCLUSIVE on orders critical", err)
    local by_audit
    by_audit, _, _, err = found(path)
    assert.equal("", err)
    assert.is_false(by_audit["idle-holders"][1].is_new)
    assert.is_true(by_audit["idle-holders"][1]["for"] > 0)
    assert.equal(1, #rows())
    assert.is_false(rows()[1].closed)
    local pid = holder.pid
    holder:close()
    t.wait_until(function() return not t.is_alive(pid) end, "the backend's end")
    _, _, err = audit(path)
    assert.matches("closed web holds ACCESS EXCLUSIVE on orders " .. pid, err)
    assert.is_true(rows()[1].closed)
    assert.same({ 0, "", "" }, { audit(path) })
    assert.equal(1, #rows())
  end)

  it("are opened anew when they come again", function()
    local path = file [[
lock.audit("a", { find = function() return X and { message = "m", subject = "s" } end })]]
    local on = t.tempfile("X = true")
    for _, config in ipairs { on, "/dev/null", on } do
      audit(path, "--config", config == on and on or t.tempfile("X = false"))
    end
    local list = rows()
    assert.same({ true, false }, { list[1].closed, list[2].closed })
    assert.equal(2, #list)
  end)

  it("belong to one process only where the role may not write to them", function()
    t.psql("grant connect on database " .. DATABASE .. " to lk_app")
    local holder <close> = idle_holder() -- luacheck: ignore 211
    local code = audit(idle_holders(), { env = { DATABASE_URL = conninfo { user = "lk_app" } } })
    assert.equal(0, code) -- it does not see what the session does
    code = audit(file('lock.audit("a", { find = function() return { message = "m" } end })'),
      { env = { DATABASE_URL = conninfo { user = "lk_app" } } })
    assert.equal(1, code)
    assert.equal(0, #rows())
  end)

  it("do not hang an audit while somebody has locked them", function()
    local locker <close> = connect("locker")
    locker:exec("begin")
    locker:exec("lock table lockkeeper.finding in access exclusive mode")
    local code, out, err = audit(file('lock.audit("a", { find = function() return { message = "m" } end })'))
    assert.equal(1, code)
    assert.matches("warning +a +0.0s +m", out)
    assert.matches("findings can't be kept in the database", err)
  end)

  it("keep any text", function()
    local path = file('lock.audit("a", { find = function() return { message = "\\0\\xff\\27\'" } end })')
    for _ = 1, 2 do
      assert.equal(1, (audit(path)))
    end
    assert.equal(1, #rows())
  end)

  describe("by serve", function()
    local function serve(path, ...)
      local words = { path, ... }
      words[#words + 1] = { env = { DATABASE_URL = conninfo() } }
      return t.lockkeeper("serve", table.unpack(words))
    end

    local function stop(child)
      child:signal("TERM")
      assert.equal(0, child:wait(), child:stderr())
    end

    it("are opened and closed by one supervisor of two", function()
      local path, holder = idle_holders('every = "1s",' .. CALLS), idle_holder()
      local children = { serve(path), serve(path) }
      local function said(text)
        local count = 0
        for _, child in ipairs(children) do
          for _ in child:stderr():gmatch('msg="' .. text) do
            count = count + 1
          end
        end
        return count
      end
      t.wait_until(function() return said("opened web") > 0 end, SOON, "on_open")
      assert.equal("critical", rows()[1].severity)
      assert.is_false(rows()[1].closed)
      holder:close()
      t.wait_until(function() return said("closed web") > 0 end, SOON, "on_close")
      assert.same({ 1, 1 }, { said("opened web"), said("closed web") })
      for _, child in ipairs(children) do
        stop(child)
      end
      assert.equal(1, #rows())
      assert.is_true(rows()[1].closed)
      assert.equal(0, db:value("select count(*) from lockkeeper.run "
        .. "where job <> 'audit:idle-holders' or state not in ('succeeded', 'skipped')"))
    end)

    it("--act acts; an audit that fails, or takes too long, is a failed run", function()
      local holder = idle_holder()
      local child = serve(file([[
lock.audit("raises", { every = "1s", find = function() error("broken") end })
lock.audit("loops", { every = "1s", max_run = "200ms", find = function() while true do end end })
]] .. IDLE_HOLDERS:format('every = "1s", action = "terminate",')), "--act", "idle-holders")
      t.wait_until(function() return not holder:ping() end, SOON, "the end of the holder")
      holder:close()
      local function state(job)
        return db:value("select state from lockkeeper.run where job = $1 and ended_at is not null", job)
      end
      t.wait_until(function() return state("audit:raises") and state("audit:loops") end, SOON, "both runs")
      assert.same({ "failed", "timed_out" }, { state("audit:raises"), state("audit:loops") })
      stop(child)
    end)

    it("--stateless refuses on_open and on_close, which need the tables", function()
      local code, _, err = run("serve", "--stateless", idle_holders('every = "1s",' .. CALLS))
      assert.equal(2, code)
      assert.matches("on_open needs the state tables", err)
    end)
  end)
end)

---------------------------------------------------------------------------------------------------

describe("the configuration", function()
  local holder, child, waiter, config

  setup(function()
    make_database()
    holder = idle_holder()
    holder:value("select pg_advisory_lock($1)", lock.key("job:nightly"))
    child, waiter = waiting("reader", "select * from orders")
    config = t.tempfile(HEAD .. [[
lock.names { "nightly", pattern = "job:%s" }
lock.view("waits", { blocking = true, filter = { wait_duration_gte = 0 },
  attributes = { "pid", "blocking_pid" } })
lock.view("strong", { on = "orders", where = 'mode == "ACCESS EXCLUSIVE"', format = "csv",
  attributes = { "pid", "mode" } })
lock.view("odd", { filter = { stat = 1 } })
]])
  end)

  teardown(function()
    holder:close()
    child:wait()
    drop_database()
  end)

  local function view(name, ...)
    return run("ls", "--config", config, "--view", name, ...)
  end

  it("names views for ls, to which the call's own options are added", function()
    local code, out = view("waits")
    assert.equal(0, code)
    assert.matches("\n *PID +BLOCKING_PID\n *" .. waiter .. " +" .. holder.pid .. "\n$", out)
    assert.equal("pid,mode\r\n" .. holder.pid .. ",ACCESS EXCLUSIVE\r\n", select(2, view("strong")))
    assert.equal("pid,mode\r\n", select(2, view("strong", "-f", "pid=1")))
    local rows = json.decode((select(2, view("strong", "--format", "json", "-a", "pid"))))
    assert.same({ { pid = holder.pid } }, rows)
  end)

  it("is named where a view is not in it, or is wrong", function()
    local code, _, err = view("wait")
    assert.equal(2, code)
    assert.matches('no view "wait"; did you mean "waits"%?', err)
    code, _, err = view("odd")
    assert.equal(2, code)
    assert.matches('unknown filter "stat"; did you mean state%?', err)
    for text, pattern in pairs {
      ['lock.view("v", { fitler = {} })'] = 'did you mean "filter"%?',
      ['lock.view("v", { limit = 0 })'] = "limit must be a whole number",
      ['lock.protect {}'] = "an empty one would be all of them",
      ['lock.protect { stat = 1 }'] = "unknown filter",
      ['lock.audit("a", { find = print })'] = "audits belong in files of their own",
    } do
      code, _, err = run("ls", "--config", t.tempfile(HEAD .. text))
      assert.equal(2, code)
      assert.matches(pattern, err)
    end
  end)

  it("gives names of keys to every command that shows them, from ./lockkeeper.lua too", function()
    local folder = t.tempdir()
    local copy = assert(io.open(folder .. "/lockkeeper.lua", "w"))
    copy:write(t.read_file(config))
    copy:close()
    local _, out = run("ls", "-f", "type=advisory", { cwd = folder })
    assert.matches("advisory %-?%d+ job:nightly", out)
    local seeker = waiting("seeker", ("select pg_advisory_lock(%d)"):format(lock.key("job:nightly")))
    _, out = run("tree", { cwd = folder })
    assert.matches("job:nightly", out)
    t.observe("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'seeker'")
    seeker:wait()
  end)

  it("of scripts/examples has views that work", function()
    for _, name in ipairs { "waits", "idle" } do
      local code, out, err = run("ls", "--config", "scripts/examples/lockkeeper.lua", "--view", name,
        "--format", "json")
      assert.equal(0, code, err)
      assert.is_true(name == "waits" or #json.decode(out) == 1)
    end
    local code = run("run", "--config", "scripts/examples/lockkeeper.lua", t.tempfile(HEAD .. [[
lock.job("a", { policy = "migration", run = function() print(lock.db:value("show lock_timeout")) end })]]))
    assert.equal(0, code)
  end)

  it("ls --watch shows it again and again until Ctrl-C", function()
    local watcher = t.lockkeeper("ls", "--config", config, "-c", "strong", "--watch", "50ms",
      { env = { DATABASE_URL = conninfo() } })
    t.wait_until(function()
      return select(2, watcher:stdout():gsub("pid,mode", "")) >= 3
    end, SOON, "three rounds")
    watcher:signal("INT")
    assert.equal(130, watcher:wait())
    for _, words in ipairs { { "--watch", "--terminate", "-y" }, { "--watch=0" } } do
      assert.equal(2, (run("ls", table.unpack(words))))
    end
  end)
end)
