-- lua-api.md, "Policy keys": what a policy may say, how policies are merged, and where each value is known
-- to come from.

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local HEAD = 'local lock = require "lockkeeper"\n'

local function load(text)
  return lock.load(t.tempfile(HEAD .. text, "jobs.lua"))
end

-- The job "j" that has this as its policy, after these definitions.
local function job(policy, before)
  return load(('%s\nlock.job("j", { run = print, policy = %s })'):format(before or "", policy)).jobs.j
end

local function refused(message, keys)
  return expect.usage('policy "p": ' .. message, load, ('lock.policy("p", { %s })'):format(keys))
end

describe("a policy's keys", function()
  it("are kept as the runner needs them: durations in seconds, memory in bytes", function()
    local settings = job([[{
      timeout = "5s", on_busy = "skip", max_run = "1h30m", grace = "250ms",
      retry = { attempts = 3, delay = "10s", factor = 2, on = "timed_out" },
      lock_timeout = "2s", statement_timeout = 0.5, memory_limit = "256MB",
      session = { work_mem = "64MB", jit = false, random_page_cost = 1.5, geqo_threshold = 3 },
      timezone = "Europe/Paris", overlap = "queue", catchup = "all", catchup_window = false,
      prioritize = { interval = "2s", where = { blocking_duration_gte = "5s" } },
      on_failure = print }]]).settings
    assert.equal(5, settings.timeout)
    assert.equal("skip", settings.on_busy)
    assert.equal(5400, settings.max_run)
    assert.equal(0.25, settings.grace)
    assert.same({ attempts = 3, delay = 10, factor = 2, on = { "timed_out" } }, settings.retry)
    assert.equal(2, settings.lock_timeout)
    assert.equal(0.5, settings.statement_timeout)
    assert.equal(256 * 1024 * 1024, settings.memory_limit)
    assert.same({ work_mem = "64MB", jit = "off", random_page_cost = "1.5", geqo_threshold = "3" },
      settings.session)
    assert.equal("Europe/Paris", settings.timezone)
    assert.equal("queue", settings.overlap)
    assert.equal("all", settings.catchup)
    assert.is_false(settings.catchup_window)
    assert.same({ interval = "2s", where = { blocking_duration_gte = "5s" } }, settings.prioritize)
    assert.equal(print, settings.on_failure)
  end)

  it("have defaults: what nobody has said anything about", function()
    local j = load('lock.job("j", { run = print })').jobs.j
    assert.same({ on_busy = "raise", grace = 5, overlap = "skip", catchup = "last", catchup_window = 86400,
      timezone = "UTC" }, j.settings)
    assert.same({}, j.origins)
  end)

  it("take false for no limit, where that makes sense", function()
    local settings = job("{ timeout = false, max_run = false, lock_timeout = false, "
      .. "statement_timeout = false, memory_limit = false, prioritize = false }").settings
    for _, key in ipairs { "timeout", "max_run", "lock_timeout", "statement_timeout", "memory_limit" } do
      assert.is_false(settings[key])
    end
    refused("grace must be a time: false, no limit, has no meaning here", "grace = false")
    refused("retry.delay must be a time", "retry = { attempts = 2, delay = false }")
  end)

  it("an unknown one is named, with the nearest known one", function()
    refused('unknown key "max_rum"; did you mean "max_run"?', "max_rum = 5")
    refused('unknown key "schedule"', 'schedule = "@daily"')
    refused('retry: unknown key "attempt"; did you mean "attempts"?', "retry = { attempt = 3 }")
    refused("unknown key 1", "5")
  end)

  it("a bad value is told", function()
    refused("timeout", 'timeout = "5 parsecs"')
    refused("timeout is negative", "timeout = -1")
    refused("max_run must be longer than 0; false is without limit", "max_run = 0")
    refused('on_busy must be "raise" or "skip", not "return"', 'on_busy = "return"')
    refused("lock_timeout is longer than PostgreSQL can count", 'lock_timeout = "100d"')
    refused("statement_timeout must be longer than 0", "statement_timeout = 0")
    refused('memory_limit must be bytes, a text such as "256MB"', 'memory_limit = "256 parsecs"')
    refused("memory_limit must be at least 1MB, not 5", "memory_limit = 5")
    refused("memory_limit must be bytes", "memory_limit = 1e300")
    refused("memory_limit must be bytes", 'memory_limit = "99999999999999999999GB"')
    refused("session must be a table, not 5", "session = 5")
    refused('session: "work mem" is no name of a setting', 'session = { ["work mem"] = 1 }')
    refused("session.jit must be a text, a number or a boolean, not a table", "session = { jit = {} }")
    refused("session: 1 is no name of a setting", 'session = { "jit" }')
    refused("retry must be a table, not 3", "retry = 3")
    refused("retry says no attempts", 'retry = { delay = "1s" }')
    refused("retry.attempts must be a whole number from 1 to 1000000, not 0", "retry = { attempts = 0 }")
    refused("retry.factor must be a number from 1 to 1000, not 0.5", "retry = { attempts = 2, factor = 0.5 }")
    refused('retry.on: element 2 must be "failed"', 'retry = { attempts = 2, on = { "failed", "usage" } }')
    refused("prioritize must be true, false or a table of its options, not 5", "prioritize = 5")
    refused('prioritize: unknown option "intervall"; did you mean "interval"?',
      'prioritize = { intervall = "1s" }')
    refused("prioritize: using has no meaning here", 'prioritize = { using = "x" }')
    refused("timezone is empty", 'timezone = ""')
    refused("on_failure must be a function", 'on_failure = "x"')
  end)
end)

describe("merging", function()
  local POLICIES = [[
    lock.policy("base", { timeout = "1s", grace = "1s", retry = { attempts = 3, delay = "10s" },
      session = { jit = false, work_mem = "4MB" } })
    lock.policy("polite", { on_busy = "skip", timeout = "2s" })
    lock.policy("child", { extend = "base", timeout = "3s", retry = { attempts = 5 } })
    lock.policy("both", { extend = { "base", "polite" } })]]

  it("a list is merged left to right, names and tables", function()
    local settings = job('{ "base", { grace = "9s" }, "polite" }', POLICIES).settings
    assert.equal(2, settings.timeout)
    assert.equal("skip", settings.on_busy)
    assert.equal(9, settings.grace)
    assert.equal(1, job('{ "polite", "base" }', POLICIES).settings.timeout)
  end)

  it("a policy may extend another, or several", function()
    local settings = job('"child"', POLICIES).settings
    assert.equal(3, settings.timeout)
    assert.equal(1, settings.grace)
    settings = job('"both"', POLICIES).settings
    assert.equal(2, settings.timeout)
    assert.equal(1, settings.grace)
    assert.equal(3, job('{ extend = "child", grace = "2s" }', POLICIES).settings.timeout)
  end)

  it("tables within merge by key, too", function()
    assert.same({ attempts = 5, delay = 10 }, job('"child"', POLICIES).settings.retry)
    assert.same({ jit = "off", work_mem = "8MB" },
      job('{ "base", { session = { work_mem = "8MB" } } }', POLICIES).settings.session)
    assert.same({ interval = "1s", dry_run = true },
      job('{ { prioritize = { interval = "1s" } }, { prioritize = { dry_run = true } } }')
        .settings.prioritize)
    assert.same({ dry_run = true },
      job('{ { prioritize = true }, { prioritize = { dry_run = true } } }').settings.prioritize)
  end)

  it("lock.unset takes a key away, also one within a table; what remains is the default", function()
    local j = job('{ "base", { timeout = lock.unset, grace = lock.unset, session = { jit = lock.unset }, '
      .. 'retry = lock.unset, max_run = lock.unset } }', POLICIES)
    assert.is_nil(j.settings.timeout)
    assert.equal(5, j.settings.grace)
    assert.is_nil(j.settings.retry)
    assert.same({ work_mem = "4MB" }, j.settings.session)
    assert.is_true(j.origins.timeout.unset)
    assert.is_true(j.origins["session.jit"].unset)
    assert.is_nil(job('{ "base", { retry = { attempts = lock.unset, delay = lock.unset } } }', POLICIES)
      .settings.retry)
    assert.equal("lock.unset", tostring(lock.unset))
  end)

  it("a job is not changed by what another one makes of the same policy", function()
    local jobs = load(POLICIES .. [[
      lock.job("a", { run = print,
        policy = { "base", { retry = { attempts = 9 }, session = { jit = true } } } })
      lock.job("b", { run = print, policy = "base" })]]).jobs
    assert.equal(9, jobs.a.settings.retry.attempts)
    assert.equal(3, jobs.b.settings.retry.attempts)
    assert.equal("off", jobs.b.settings.session.jit)
  end)

  it("the job's own keys are stronger than its policy's", function()
    local j = load([[
      lock.policy("p", { timezone = "Asia/Tokyo", overlap = "queue", catchup = "all", catchup_window = "2h",
        on_failure = print })
      lock.job("j", { run = print, policy = "p", timezone = "Europe/Paris", overlap = "allow",
        catchup = "none", catchup_window = "3h", on_failure = lock.unset })]]).jobs.j
    assert.equal("Europe/Paris", j.timezone)
    assert.equal("allow", j.settings.overlap)
    assert.equal("none", j.settings.catchup)
    assert.equal(10800, j.settings.catchup_window)
    assert.is_nil(j.on_failure)
  end)

  it("tells where each value comes from", function()
    local j = load([[
      lock.policy("base", { timeout = "1s", retry = { attempts = 3, delay = "10s" } })
      lock.policy("child", { extend = "base", retry = { attempts = 5 } })
      lock.job("j", { run = print, overlap = "allow",
        policy = { "child", { max_run = "5s" } } })]]).jobs.j
    local function origin(key)
      local from = j.origins[key]
      return from and { from.policy or "the job", from.line }
    end
    assert.same({ "base", 2 }, origin("timeout"))
    assert.same({ "child", 3 }, origin("retry.attempts"))
    assert.same({ "base", 2 }, origin("retry.delay"))
    assert.same({ "the job", 4 }, origin("max_run"))
    assert.same({ "the job", 4 }, origin("overlap"))
    assert.is_nil(origin("grace"))
    assert.same({ "child" }, j.policy)
  end)
end)

describe("a policy's name", function()
  it("that nobody has defined is told, with the nearest one", function()
    expect.usage('job "j": unknown policy "polit"; did you mean "polite"?', job, '"polit"',
      'lock.policy("polite", {})')
    expect.usage('job "j": unknown policy "polite": none is defined above, nor in the configuration', job,
      '"polite"')
    expect.usage('policy "a": unknown policy "a"', load, 'lock.policy("a", { extend = "a" })')
    expect.usage("extend: element 1 must be a text, not 5", load, 'lock.policy("a", { extend = { 5 } })')
  end)

  it("is defined once in a file: both places are named", function()
    local err = expect.usage('policy "p": it is defined twice: here and at ', load,
      'lock.policy("p", {})\nlock.policy("p", {})')
    assert.matches("jobs.lua:2$", err.message)
    assert.matches("jobs.lua:3$", err.where)
  end)

  it("is a text, and its definition a table", function()
    expect.usage("policy: the name must be a text, not nil", load, "lock.policy()")
    expect.usage('policy "p": a table was expected, not nil', load, 'lock.policy("p")')
    expect.usage('job "j": policy must be a name, a table or a list of them, not 5', job, "5")
    expect.usage('job "j": policy must be a name, a table or a list of them, not true', job, '{ "p", true }',
      'lock.policy("p", {})')
    expect.usage('job "j": policy must be a name, a table or a list of them, not lock.unset', job,
      "lock.unset")
    expect.usage('job "j": policy is a list with the key "timeout" besides', job, '{ "p", timeout = 5 }',
      'lock.policy("p", {})')
  end)

  it("is looked up in the same file first, then in the configuration (runner.md 1)", function()
    local config = t.tempfile(HEAD .. [[
      lock.policy("ours", { timeout = "1s" })
      lock.policy("theirs", { extend = "ours", grace = "7s" })]], "config.lua")
    local jobs = t.tempfile(HEAD .. [[
      lock.policy("ours", { timeout = "2s" })
      lock.job("here", { run = print, policy = "ours" })
      lock.job("there", { run = print, policy = "theirs" })]], "jobs.lua")
    local function explain(name)
      local code, out, err = t.run("check", jobs, "--config", config, "--explain", name)
      assert.equal(0, code, err)
      return out
    end
    assert.matches("\ntimeout +policy ours, [^\n]*jobs.lua:2 +2s\n", explain("here"))
    assert.matches("\ntimeout +policy ours, [^\n]*config.lua:2 +1s\n", explain("there"))
    assert.matches("\ngrace +policy theirs, [^\n]*config.lua:3 +7s\n", explain("there"))
  end)

  it("that the configuration defines is known to a script, too", function()
    local config = t.tempfile(HEAD .. 'lock.policy("p", { timeout = "7s" })', "config.lua")
    local script = t.tempfile(HEAD .. [[
      local job = lock.job("j", { run = function() end, policy = "p" })
      print(job.settings.timeout)]], "script.lua")
    local code, out, err = t.run("run", "--config", config, script)
    assert.equal(0, code, err)
    assert.matches("^7.0\n", out)
  end)
end)
