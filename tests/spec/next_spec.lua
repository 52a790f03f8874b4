-- `lockkeeper next` (cli.md): due times by runner.md 2 to 4, as a user asks for them. The schedules
-- themselves are tested in tests/unit/schedule_test.c.

local lock = require "lockkeeper"
local t = require "tests.support"

-- The due instants.
local function due(...)
  local words = { "next", ... }
  words[#words + 1] = "--format"
  words[#words + 1] = "json"
  words[#words + 1] = { env = { DATABASE_URL = "host=/nowhere" } }
  local code, out, err = t.run(table.unpack(words))
  assert.equal(0, code, err)
  return lock.json.decode(out), err
end

local function cron(expression, zone, from, count)
  return (due("--cron", expression, "--timezone", zone, "--from", from, "-n", tostring(count)))
end

local function jobs(text)
  return t.tempfile('local lock = require "lockkeeper"\n' .. text, "jobs.lua")
end

-- The words are wrong: exit code 2 and this reason.
local function assert_wrong(reason, ...)
  local code, out, err = t.run("next", ...)
  assert.equal(2, code, err)
  assert.equal("", out)
  assert.matches("lockkeeper: next: " .. reason, err, 1, true)
end

describe("next --cron", function()
  it("lists instants in UTC, from T on, T included", function()
    assert.same({ "2027-01-01T00:00:00Z", "2027-01-02T00:00:00Z" },
      cron("@daily", "UTC", "2027-01-01T00:00:00Z", 2))
    assert.same({ "2027-01-02T00:00:00Z" }, cron("@daily", "UTC", "2027-01-01T00:00:00.5Z", 1))
    assert.equal(10, #due("--cron", "* * * * *"))
  end)

  it("fixed times come once a day: in a gap at its end, in an overlap first (runner.md 4)", function()
    assert.same({ "2027-03-27T01:30:00Z", "2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z" },
      cron("30 2 * * *", "Europe/Paris", "2027-03-27", 3))
    assert.same({ "2027-10-30T00:30:00Z", "2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z" },
      cron("30 2 * * *", "Europe/Paris", "2027-10-30", 3))
    assert.same({ "2027-03-13T07:30:00Z", "2027-03-14T07:00:00Z", "2027-03-15T06:30:00Z" },
      cron("30 2 * * *", "America/New_York", "2027-03-13", 3))
    assert.same({ "2027-03-13T06:00:00Z", "2027-03-14T05:30:00Z", "2027-03-15T05:00:00Z" },
      cron("30 2 * * *", "America/St_Johns", "2027-03-13T05:00:00Z", 3))
  end)

  it("what begins with * follows real time: twice in a repeated hour, never in a missing one (runner.md 4)",
    function()
      assert.same({ "2027-04-03T14:00:00Z", "2027-04-03T14:30:00Z", "2027-04-03T15:00:00Z",
        "2027-04-03T15:30:00Z" }, cron("*/30 * * * *", "Australia/Lord_Howe", "2027-04-03T14:00:00Z", 4))
      assert.same({ "2027-03-28T00:30:00Z", "2027-03-28T01:30:00Z" },
        cron("30 * * * *", "Europe/Paris", "2027-03-28T00:30:00Z", 2))
    end)

  it("shows the clock on the wall beside it", function()
    local code, out, err = t.run("next", "--cron", "30 2 * * *", "--timezone", "Europe/Paris", "--from",
      "2027-03-28 00:00+01:00", "-n", "2")
    assert.equal(0, code, err)
    assert.equal([[
EUROPE/PARIS                    UTC
Sun 2027-03-28 03:00:00 +02:00  2027-03-28T01:00:00Z
Mon 2027-03-29 02:30:00 +02:00  2027-03-29T00:30:00Z
]], out)
  end)

  it("T is an instant, a time of some offset, or a day", function()
    for text, expected in pairs {
      ["2027-03-28T01:00:00Z"] = "2027-03-28T01:00:00Z", ["2027-03-28T01:00z"] = "2027-03-28T01:00:00Z",
      ["2027-03-28 03:00+02:00"] = "2027-03-28T01:00:00Z", ["2027-03-28"] = "2027-03-28T00:00:00Z",
      ["2000-02-29T23:59:59.5-0100"] = "2000-03-01T01:00:00Z", ["1970-01-01"] = "1970-01-01T00:00:00Z",
    } do
      assert.same({ expected }, cron("* * * * *", "UTC", text, 1), text)
    end
    for _, text in ipairs { "", "now", "2027-02-29", "2027-13-01", "2027-01-01T25:00", "2027-01-01T00:60",
      "2027-01-01T00:00:60Z", "2027-01-01T00:00+99:00", "2027-01-01T00:00:00Zulu", "2027-1-1" } do
      assert_wrong("--from takes an instant such as 2027-03-28T01:00:00Z", "--cron", "@daily", "--from", text)
    end
  end)

  it("tells what is wrong with the words", function()
    assert_wrong('schedule "61 * * * *": minute "61" at column 1', "--cron", "61 * * * *")
    assert_wrong('schedule "0 0 30 2 *": it can never fire', "--cron", "0 0 30 2 *")
    assert_wrong('unknown time zone "Europe/Pari"; did you mean "Europe/Paris"?', "--cron", "@daily",
      "--timezone", "Europe/Pari")
    assert_wrong("--cron takes no JOB and PATH", "--cron", "@daily", "job", "file")
    assert_wrong("JOB and PATH are missing, or --cron")
    assert_wrong("PATH is missing", "job")
    assert_wrong("-n takes a whole number from 1 to 100000", "--cron", "@daily", "-n", "0")
    assert_wrong("--timezone goes with --cron", "job", "file", "--timezone", "UTC")
  end)
end)

describe("next JOB", function()
  it("asks the job's file for its schedule and zone", function()
    local path = jobs [[
      lock.policy("p", { timezone = "Europe/Paris" })
      lock.job("j", { schedule = "30 2 * * *", policy = "p", run = print })]]
    assert.same({ "2027-03-28T01:00:00Z" }, (due("j", path, "--from", "2027-03-28", "-n", "1")))
  end)

  it("every: a grid anchored at the epoch and the job's name, the same wherever it is asked (runner.md 3)",
    function()
      local path = jobs [[
        lock.job("a", { every = "10m", run = print })
        lock.job("b", { every = 600, run = print })]]
      local first = due("a", path, "--from", "2027-01-01", "-n", "3")
      assert.same(first, (due("a", path, "--from", "2027-01-01", "-n", "3")))
      assert.not_same(first, (due("b", path, "--from", "2027-01-01", "-n", "3")))
      assert.equal(first[2], due("a", path, "--from", first[2], "-n", "1")[1])
    end)

  it("says why a job has no times of the clock", function()
    local path = jobs [[
      lock.job("hand", { run = print })
      lock.job("after", { after = "hand", run = print })
      lock.job("finish", { every = { "10m", from = "finish" }, run = print })
      lock.job("start", { schedule = "@start", run = print })]]
    for name, reason in pairs {
      hand = "has no schedule: it is run by hand", after = 'has no schedule: it comes after "hand"',
      finish = "counts from the end of the last run", start = "once each time a supervisor starts",
    } do
      local list, err = due(name, path)
      assert.same({}, list)
      assert.matches(reason, err, 1, true)
    end
  end)

  it("names the faults of the files, and the nearest job", function()
    local code, out, err = t.run("next", "j", jobs 'lock.job("j", { run = print, schedule = "@daly" })')
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches('jobs.lua:2: job "j": schedule "@daly"', err, 1, true)
    assert_wrong('there is no job "nightli"; did you mean "nightly"?', "nightli",
      jobs 'lock.job("nightly", { run = print })')
  end)
end)
