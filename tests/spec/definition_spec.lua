-- lua-api.md, "Jobs, policies and audits": what may be said of a job and of its guards, as lock.load and a
-- script see it. Policies have a spec of their own; `check` tells of all faults at once (check_spec.lua).

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local HEAD = 'local lock = require "lockkeeper"\n'

local function file(text)
  return t.tempfile(HEAD .. text, "jobs.lua")
end

-- What the text defines.
local function load(text)
  return lock.load(file(text))
end

-- The one job of these keys, written as Lua.
local function job(keys)
  return load(('lock.job("j", { %s })'):format(keys)).jobs.j
end

-- The job is refused with this in the message.
local function refused(message, keys)
  return expect.usage('job "j": ' .. message, job, keys)
end

-- The guard is refused with this message.
local function guard_refused(message, guard)
  return expect.usage(message, job, ('run = print, guards = { lock.guard.%s }'):format(guard))
end

describe("lock.load", function()
  it("gives a file's jobs, in order and by name, its policies and audits", function()
    local path = file [[
      lock.policy("polite", { timeout = "5s" })
      lock.job("second", { run = print })
      lock.job("first", { sql = "select 1" })]]
    local loaded = lock.load(path)
    assert.equal(path, loaded.file)
    assert.equal(2, #loaded.jobs)
    assert.equal("second", loaded.jobs[1].name)
    assert.equal(loaded.jobs[2], loaded.jobs.first)
    assert.is_nil(loaded.jobs.third)
    assert.equal("polite", loaded.policies[1].name)
    assert.same({}, loaded.audits)
  end)

  it("tells where a job was defined: the line of its lock.job", function()
    local path = file [[


      local function define(name)
        lock.job(name, {
          run = print,
        })
      end
      define("j")]]
    local loaded = lock.load(path)
    assert.equal(path, loaded.jobs.j.file)
    assert.equal(5, loaded.jobs.j.line)
    assert.equal(('job "j" (%s:5)'):format(path), tostring(loaded.jobs.j))
  end)

  it("needs no server, and refuses to use one while the file is loaded", function()
    for _, use in ipairs { 'lock.db:query("select 1")', "print(lock.db.pid)", 'lock.advisory("x")',
      "lock.connect {}", "lock.semaphore('x', 1)", "lock.model('t')", "lock.db:begin()" } do
      local err = expect.usage("may not use the database while it is loaded", load, use)
      assert.matches("jobs.lua:2", err.where)
    end
    local db <close> = t.connect()
    assert.equal(1, db:value("select 1"))
    assert.equal("j", load('local db = lock.db lock.job("j", { run = print })').jobs.j.name)
  end)

  it("refuses it on a session that is open already, and gives it back afterwards", function()
    local db <close> = t.connect()
    _G.open_session = db
    expect.usage("while it is loaded", load, 'open_session:value("select 1")')
    _G.open_session = nil
    assert.equal(1, db:value("select 1"))
  end)

  it("refuses os.exit, and leaves os as it is for others", function()
    local exit = os.exit
    expect.usage("os.exit was called while the file is loaded", load, "os.exit(3)")
    expect.usage("os.exit was called", load, "_G.os.exit(3)")
    assert.equal(exit, os.exit)
    assert.equal(1, #load('assert(os.time() > 0) lock.job("j", { run = print })').jobs)
  end)

  it("gives the file globals of its own", function()
    load("a_global_of_a_file = 1\nassert(_G.a_global_of_a_file == 1)")
    assert.is_nil(rawget(_G, "a_global_of_a_file"))
  end)

  it("forgets what a file that failed has defined", function()
    expect.raised(load, 'lock.job("j", { run = print }) error("boom")')
    assert.equal(1, #load('lock.job("j", { run = print })').jobs)
  end)

  it("raises what the file raises", function()
    assert.matches("jobs.lua:2: boom", expect.raised(load, 'error("boom")'))
    local value = {}
    _G.raised_by_file = value
    assert.equal(value, expect.raised(load, "error(raised_by_file)"))
    _G.raised_by_file = nil
  end)

  it("names the fault of a file that is none", function()
    expect.usage("cannot open /no/such/file", lock.load, "/no/such/file")
    expect.usage("the name of a file was expected, not a nil", lock.load)
    expect.usage("not an empty text", lock.load, "")
    expect.usage("is empty", lock.load, t.tempfile("\n \n"))
    expect.usage("not a Lua script", lock.load, t.tempfile("x\0y"))
    expect.usage("compiled chunk", lock.load, t.tempfile(string.dump(function() end)))
    expect.usage("jobs.lua:3: ", load, "\n)")
    expect.usage("load: ", lock.load, t.tempdir())
  end)

  it("can be called by a file that is being loaded", function()
    local inner = file 'lock.job("inner", { run = print })'
    local outer = load(([[
      lock.job("a", { run = print })
      assert(#lock.load(%q).jobs == 1)
      lock.job("b", { run = print })]]):format(inner))
    assert.equal(2, #outer.jobs)
    assert.is_nil(outer.jobs.inner)
  end)
end)

describe("a job", function()
  it("has what was said of it", function()
    local loaded = load [[
      lock.job("other", { run = print })
      lock.job("j", {
        schedule = "*/15 2-5 * * *", timezone = "Europe/Paris", window = "01:00-03:45", after = "other",
        description = "what it does", tags = { "nightly", "db" }, enabled = false, using = "replica",
        overlap = "queue", catchup = "all", catchup_window = "2h",
        sql = "select 1",
      })]]
    local j = loaded.jobs.j
    assert.same({ cron = "*/15 2-5 * * *" }, j.schedule)
    assert.equal("Europe/Paris", j.timezone)
    assert.equal("01:00-03:45", j.window)
    assert.same({ job = "other", on = "succeeded" }, j.after)
    assert.equal("what it does", j.description)
    assert.same({ "nightly", "db" }, j.tags)
    assert.is_false(j.enabled)
    assert.equal("replica", j.using)
    assert.equal("select 1", j.sql)
    assert.equal("queue", j.settings.overlap)
    assert.equal("all", j.settings.catchup)
    assert.equal(7200, j.settings.catchup_window)
  end)

  it("needs no more than a name and something to do", function()
    local j = job "run = print"
    assert.is_nil(j.schedule)
    assert.same({}, j.tags)
    assert.same({}, j.guards)
    assert.is_true(j.enabled)
    assert.equal("UTC", j.timezone)
    assert.equal("function", type(j.fn))
  end)

  it("may come every so often, on a grid or counted from its last end", function()
    assert.same({ every = 600, from = "epoch" }, job('run = print, every = "10m"').schedule)
    assert.same({ every = 90, from = "finish" }, job('run = print, every = { 90, from = "finish" }').schedule)
    refused("every must be longer than 0", "run = print, every = 0")
    refused("every must be a time: false", "run = print, every = false")
    refused("every is negative", "run = print, every = -1")
    refused('every: unknown key "form"; did you mean "from"?', 'run = print, every = { 1, form = "finish" }')
    refused('every: from must be "finish" or "epoch", not "end"', 'run = print, every = { 1, from = "end" }')
    refused("it has both a schedule and every", 'run = print, every = "1h", schedule = "@hourly"')
  end)

  it("a schedule that is none, or never fires, and a window that is none are told (runner.md 2)", function()
    refused('schedule "0 0 30 2 *": it can never fire', 'run = print, schedule = "0 0 30 2 *"')
    refused('schedule "61 * * * *": minute "61" at column 1: expected 0 to 59',
      'run = print, schedule = "61 * * * *"')
    refused('window "1-2": expected hours and minutes', 'run = print, window = "1-2"')
    refused("every must be whole seconds, at least 1", 'run = print, every = "1500ms"')
    for _, schedule in ipairs { "@start", "*/5 * * * * *", "~ 2-5 * * *", "0 12 L * 5#3" } do
      assert.equal(schedule, job(('run = print, schedule = "%s"'):format(schedule)).schedule.cron)
    end
  end)

  it("an unknown time zone is told, with the nearest known one", function()
    refused('unknown time zone "Europe/Pari"; did you mean "Europe/Paris"?',
      'run = print, timezone = "Europe/Pari"')
    refused("unknown time zone", 'run = print, timezone = "../../etc/passwd"')
    expect.usage('policy "p": unknown time zone "Mars"', load, 'lock.policy("p", { timezone = "Mars" })')
  end)

  it("does exactly one of run, sql and command", function()
    refused("it has nothing to do: run, sql or command is missing", "")
    refused("it has run and sql", 'run = print, sql = "select 1"')
    refused("it has run and sql and command", 'run = print, sql = "select 1", command = { "true" }')
    refused('run must be a function, not "print"', 'run = "print"')
    refused("sql is empty", 'sql = ""')
    refused("sql has a NUL byte", 'sql = "select\\0"')
    refused("sql is not UTF-8", 'sql = "select \'\\xff\'"')
  end)

  it("runs a command as lock.sh takes it", function()
    assert.same({ "pg_dump", "-Z", "9", env = { A = "b", C = false }, cwd = "/tmp", grace = 2, stdin = "x" },
      job('command = { "pg_dump", "-Z", 9, env = { A = "b", C = false }, cwd = "/tmp", grace = "2s", '
        .. 'stdin = "x" }').command)
    refused("command is empty", "command = {}")
    refused("command must be a list", 'command = "pg_dump x"')
    refused("command: element 2 must be a text, not a table", 'command = { "a", {} }')
    refused("command: element 1 is empty", 'command = { "" }')
    refused('command: unknown key "enf"; did you mean "env"?', 'command = { "a", enf = {} }')
    refused("command: env: A must be a text, not true", 'command = { "a", env = { A = true } }')
    refused('command: env: "A=" is no name', 'command = { "a", env = { ["A="] = "b" } }')
  end)

  it("follows another one's end", function()
    assert.same({ job = "a", on = "finished" }, job('run = print, after = { "a", on = "finished" }').after)
    refused('after: on must be "succeeded", "failed" or "finished", not "success"',
      'run = print, after = { "a", on = "success" }')
    refused('after: unknown key "when"', 'run = print, after = { "a", when = "failed" }')
    refused("after must be a text, not nil", "run = print, after = {}")
    refused("after must be a text, not 5", "run = print, after = 5")
  end)

  it("can't wait for itself, also not through others", function()
    refused('it would wait for itself: "j"', 'run = print, after = "j"')
    local err = expect.usage('job "a": it would wait for itself: "a" (', load, [[
      lock.job("before", { run = print, after = "c" })
      lock.job("a", { run = print, after = "b" })
      lock.job("b", { run = print, after = { "c", on = "failed" } })
      lock.job("c", { run = print, after = "a" })]])
    assert.matches('jobs.lua:3%) after "b" %(.*jobs.lua:4%) after "c" %(.*jobs.lua:5%) after "a"$',
      err.message)
    assert.matches("jobs.lua:3$", err.where)
  end)

  it("an unknown key is named, with the nearest known one, and what belongs into a policy", function()
    refused('unknown key "scheduel"; did you mean "schedule"?', 'run = print, scheduel = "@daily"')
    refused('unknown key "max_run": it is a policy\'s; write policy = { max_run = … }',
      'run = print, max_run = "5s"')
    refused("unknown key 1", "run = print, 5")
    refused("unknown key a table", "run = print, [{}] = 5")
  end)

  it("a value of the wrong kind is told", function()
    refused('enabled must be true or false, not "yes"', 'run = print, enabled = "yes"')
    refused("description must be a text, not 5", "run = print, description = 5")
    refused('tags must be a list, not "a"', 'run = print, tags = "a"')
    refused("tags: element 2 must be a text, not 5", 'run = print, tags = { "a", 5 }')
    refused("tags must be a list, not a table with other keys", 'run = print, tags = { a = "b" }')
    refused("using must be a text, not a table", "run = print, using = {}")
    refused("schedule must be a text, not 5", "run = print, schedule = 5")
    refused("on_failure must be a function, not true", "run = print, on_failure = true")
    refused('overlap must be "skip", "queue", "replace" or "allow", not "skp"; did you mean "skip"?',
      'run = print, overlap = "skp"')
    refused('catchup must be "last", "all" or "none", not true', "run = print, catchup = true")
    refused("tags must be a list, not lock.unset", "run = print, tags = lock.unset")
  end)

  it("has a name that can be shown and asked for", function()
    expect.usage("job: the name must be a text, not nil", load, "lock.job(nil, {})")
    expect.usage("job: the name is empty", load, 'lock.job("", {})')
    expect.usage("job: the name is not UTF-8", load, 'lock.job("\\xff", {})')
    expect.usage("the name has a control character", load, 'lock.job("a\\nb", {})')
    expect.usage("the name is longer than 200 bytes", load, 'lock.job(("x"):rep(201), {})')
    expect.usage("the name begins with #", load, 'lock.job("#1", { run = print })')
    expect.usage('job "a": a table was expected, not nil', load, 'lock.job("a")')
    assert.equal("job", load('lock.job("ü:/ %s", { run = print, })').jobs["ü:/ %s"] and "job")
  end)

  it("two of one name: both places are named", function()
    local err = expect.usage('job "j": two jobs have this name: here and at ', load, [[
      lock.job("j", { run = print })

      lock.job("j", { run = print })]])
    assert.matches("jobs.lua:2$", err.message)
    assert.matches("jobs.lua:4$", err.where)
  end)

  it("is no business of the configuration", function()
    local config = t.tempfile(HEAD .. 'lock.job("j", { run = print })', "config.lua")
    local code, _, err = t.run("run", "--config", config, t.tempfile("print 'ran'", "script.lua"))
    assert.equal(2, code)
    assert.matches('config.lua:2: job "j": jobs belong in files of their own, not in the configuration',
      err, 1, true)
  end)
end)

describe("a guard", function()
  local function guards(text)
    return job("run = print, guards = { " .. text .. " }").guards
  end

  it("is of one of four kinds, with its primitive's arguments and options", function()
    local list = guards [[
      lock.guard.advisory("maintenance", { shared = true, timeout = "2s", poll = false, using = "replica" }),
      lock.guard.advisory({ 1, 2 }), lock.guard.semaphore("dumps", 2, { on_busy = "skip" }),
      lock.guard.model({ "a", "b" }, { mode = "share", on_busy = "skip", poll = false }),
      lock.guard.row_locks("select 1 from t where id = $1", { 7 }, { skip_locked = true }) ]]
    assert.equal("advisory", list[1].kind)
    assert.same({ "maintenance", n = 1 }, list[1].args)
    assert.same({ shared = true, timeout = "2s", poll = false, using = "replica" }, list[1].options)
    assert.same({ { 1, 2 }, n = 1 }, list[2].args)
    assert.same({ "dumps", 2, n = 2 }, list[3].args)
    assert.same({ on_busy = "skip" }, list[3].options)
    assert.same({ mode = "share", on_busy = "skip", poll = false }, list[4].options)
    assert.same({ 7 }, list[5].args[2])
    assert.matches("jobs.lua$", list[1].file)
    assert.equal("guard.advisory(\"maintenance\")", tostring(list[1]))
  end)

  it("an option that its primitive does not know is refused, and the nearest one named", function()
    guard_refused('guard.advisory: unknown option "tiemout"; did you mean "timeout"?',
      'advisory("a", { tiemout = 5 })')
    guard_refused("guard.semaphore: shared has no meaning here", 'semaphore("a", 2, { shared = true })')
    guard_refused('guard.model: unknown option "shared"', 'model("t", { shared = true })')
    guard_refused('guard.row_locks: unknown option "mode"', 'row_locks("select 1", {}, { mode = "share" })')
  end)

  it("arguments are checked as the primitive checks them", function()
    guard_refused("an id must be a text, an integer or {int4, int4}, not true", "advisory(true)")
    guard_refused("an id must be a text", "advisory()")
    guard_refused("this one has 3 elements", "advisory({ 1, 2, 3 })")
    guard_refused("timeout is negative", 'advisory("a", { timeout = -1 })')
    guard_refused('unknown scheme "pglok"; did you mean "pglock"?', 'advisory("a", { scheme = "pglok" })')
    guard_refused("the number of slots must be an integer", 'semaphore("a")')
    guard_refused("guard.semaphore: the id must be a text", "semaphore(5, 1)")
    guard_refused('unknown lock mode "ACCESS EXCLUSIV"; did you mean "ACCESS EXCLUSIVE"?',
      'model("t", { mode = "ACCESS EXCLUSIV" })')
    guard_refused("a table's name must be a text, not nil", "model()")
    guard_refused("a query was expected (SELECT …)", 'row_locks("delete from t")')
    guard_refused("the query must be a text, not nil", "row_locks()")
    assert.equal(1, #guards 'lock.guard.advisory("a", { scheme = "hashtext" })')
  end)

  it("on_busy is what becomes of the job", function()
    guard_refused('on_busy must be "raise" or "skip", not "return"',
      'advisory("a", { on_busy = "return" })')
    guard_refused('on_busy must be "raise" or "skip", not "skp"; did you mean "skip"?',
      'model("a", { on_busy = "skp" })')
  end)

  it("using is a session's name: there is no session yet", function()
    guard_refused("using (a session's name) must be a text, not a userdata",
      'advisory("a", { using = lock.db })')
  end)

  it("takes no function: the job's run is what is done", function()
    guard_refused("arguments after the options", 'advisory("a", {}, print)')
    guard_refused("arguments after the options", 'advisory("a", print)')
    guard_refused("the options must be a table, not 5", 'advisory("a", 5)')
  end)

  it("a list of anything else is refused", function()
    refused("guards must be a list of lock.guard.…(…), not \"a\"", 'run = print, guards = "a"')
    refused("guards: element 1 must be made by lock.guard.advisory, semaphore, model or row_locks, not \"a\"",
      'run = print, guards = { "a" }')
    expect.usage('there is no lock.guard.advisry; did you mean "advisory"?', load, 'lock.guard.advisry("a")')
    assert.equal(1, #job('run = print, guards = lock.guard.advisory("a")').guards)
  end)
end)

describe("a script", function()
  -- In the host this file is part of a script, whose jobs would run.
  local in_stock_lua = package.preload["lockkeeper.host"] and pending or it

  in_stock_lua("may define jobs in stock Lua too, where no file is loaded", function()
    local j = lock.job("defined by a script", { run = print })
    assert.equal("defined by a script", j.name)
    assert.matches("definition_spec.lua$", j.file)
    expect.usage("two jobs have this name", lock.job, "defined by a script", { run = print })
  end)

  it("that defines a faulty job does not load: the place, the reason, exit code 2", function()
    local code, out, err = t.run("run", file 'print "here"\nlock.job("j", { rnu = print })\nprint "there"')
    assert.equal(2, code, err)
    assert.equal("here\n", out)
    assert.matches('jobs.lua:3: job "j": unknown key "rnu"; did you mean "run"?', err, 1, true)
  end)
end)
