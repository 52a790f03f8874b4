-- `lockkeeper check` (cli.md) and the child process that describes a file (runner.md 1).

local lock = require "lockkeeper"
local process = require "tests.support.process"
local sandbox = require "tests.support.sandbox"
local t = require "tests.support"

local HEAD = 'local lock = require "lockkeeper"\n'

-- A folder with these files; each begins with HEAD, but those whose names begin with "raw".
local function folder(files)
  local dir = t.tempdir()
  for name, text in pairs(files) do
    process.write_file(dir .. "/" .. name, name:find("^raw") and text or HEAD .. text)
  end
  return dir
end

-- check in that folder; what it says goes without the folder's name.
local function check(dir, ...)
  local words = { "check", ... }
  words[#words + 1] = { cwd = dir }
  return t.run(table.unpack(words))
end

-- The lines of the faults, in order, without what sums them up.
local function faults(dir, ...)
  local code, out, err = check(dir, ...)
  assert.equal(2, code, err)
  assert.equal("", out)
  local lines = {}
  for line in err:gmatch("[^\n]+") do
    lines[#lines + 1] = line
  end
  assert.matches("^lockkeeper: %d+ faults? in %d+ files?; %d+ files? checked$", table.remove(lines))
  return lines
end

-- The file has this one fault.
local function assert_fault(fault, text)
  local lines = faults(folder { ["rawfile.lua"] = text }, "rawfile.lua")
  assert.same({ fault }, lines)
end

describe("check", function()
  it("names every fault of a file at once, with file, line and reason", function()
    local dir = folder { ["jobs.lua"] = [[
lock.policy("polite", { timeout = "5 s", on_bussy = "skip" })
lock.job("a", {
  scheduel = "@daily",
  guards = {
    lock.guard.advisory("x", { tiemout = 1 }),
  },
  policy = "polit",
})
lock.job("a", { run = print, enabled = 1 })]] }
    assert.same({
      'jobs.lua:2: policy "polite": unknown key "on_bussy"; did you mean "on_busy"?',
      'jobs.lua:2: policy "polite": timeout has no unit: "5 s"; write "5s" for seconds',
      'jobs.lua:6: guard.advisory: unknown option "tiemout"; did you mean "timeout"?',
      'jobs.lua:3: job "a": unknown key "scheduel"; did you mean "schedule"?',
      'jobs.lua:3: job "a": it has nothing to do: run, sql or command is missing',
      'jobs.lua:3: job "a": unknown policy "polit"; did you mean "polite"?',
      'jobs.lua:10: job "a": two jobs have this name: here and at jobs.lua:3',
      'jobs.lua:10: job "a": enabled must be true or false, not 1',
    }, faults(dir, "jobs.lua"))
  end)

  it("reports all of ten broken files, each with line and reason", function()
    local dir = folder {
      ["01.lua"] = 'lock.job("key", { run = print, scheduel = "@daily" })',
      ["02.lua"] = 'lock.job("syntax", {\n  run = \n})',
      ["03.lua"] = "\nwhile true do\n  pcall(error)\nend",
      ["04.lua"] = 'local line = ("x"):rep(1000)\nfor i = 1, math.huge do\n  print(line)\nend',
      ["05.lua"] = 'local db = lock.db\ndb:exec("create table made_at_load ()")',
      ["06.lua"] = "\n\nos.exit(0)",
      ["raw07.lua"] = "\127ELF\2\1\1\0\0\0\0",
      ["raw08.lua"] = "",
      ["raw09.lua"] = 'require("lockkeeper").job("cycle", { run = print, after = "cycle" })',
      ["raw10.lua"] = 'local t = {}\nfor i = 1, math.huge do\n  t[i] = ("x"):rep(20000000)\nend',
    }
    local lines = faults(dir, ".")
    assert.same({
      './01.lua:2: job "key": unknown key "scheduel"; did you mean "schedule"?',
      "./02.lua:4: unexpected symbol near '}'",
      "./03.lua:4: it is not loaded within 5 s",
      "./04.lua:4: it prints more than 1 MiB while it is loaded",
      "./05.lua:3: a file that defines jobs may not use the database while it is loaded: do it in a job's "
        .. "run",
      "./06.lua:4: os.exit was called while the file is loaded",
      "./raw07.lua:1: it is not a Lua script: it is a binary file",
      "./raw08.lua:1: it is empty",
      './raw09.lua:1: job "cycle": it would wait for itself: "cycle" (./raw09.lua:1) after "cycle"',
      "./raw10.lua:3: it needs more than 64 MiB of memory",
    }, { table.unpack(lines, #lines - 9) })
  end)

  it("gives a table of what was found, and exit code 0, where nothing is wrong", function()
    local dir = folder {
      ["a.lua"] = [[
        lock.policy("polite", { on_busy = "skip" })
        lock.job("vacuum", { schedule = "30 2 * * *", timezone = "Europe/Paris", run = print,
          policy = "polite", guards = { lock.guard.semaphore("maintenance", 2) } })]],
      ["b.lua"] = [[
        lock.job("report", { after = { "vacuum", on = "finished" }, sql = "select 1" })
        lock.job("poll", { every = { "90s", from = "finish" }, command = { "true" }, enabled = false })]],
      ["notes.txt"] = "no Lua",
      [".#a.lua"] = "an editor's",
    }
    local code, out, err = check(dir, dir)
    assert.equal(0, code, err)
    assert.equal("", err)
    local rows = {}
    for line in out:gmatch("[^\n]+") do
      rows[#rows + 1] = line:gsub("%s%s+", "|"):gsub(dir, "")
    end
    assert.same({
      "JOB|SCHEDULE|POLICY|DEFINED AT|GUARDS",
      'vacuum|30 2 * * * Europe/Paris|polite|/a.lua:3|semaphore "maintenance", 2',
      "report|after vacuum finished|/b.lua:2",
      "poll|every 1m30s from the last run's end, (not enabled)|/b.lua:3",
    }, rows)
  end)

  it("runs nothing, and needs no server", function()
    local dir = folder { ["jobs.lua"] = [[
      lock.database("replica", "host=/nowhere")
      lock.job("j", { using = "replica", run = function() io.open("ran", "w"):close() end,
        command = nil, guards = { lock.guard.advisory("x", { scheme = "hashtext", using = "replica" }) },
      })]] }
    local code, out, err = t.run("check", "jobs.lua",
      { cwd = dir, env = { DATABASE_URL = "host=/nowhere" } })
    assert.equal(0, code, err)
    assert.matches("\nj ", out)
    assert.is_nil(t.read_file(dir .. "/ran"))
  end)

  it("shows what files print, on stderr, so that it spoils nothing", function()
    local dir = folder { ["jobs.lua"] = [[
      print '{"jobs": [], "faults": []}'
      io.stderr:write("to stderr\n")
      lock.job("j", { run = print })]] }
    local code, out, err = check(dir, "jobs.lua")
    assert.equal(0, code, err)
    assert.matches('{"jobs": [], "faults": []}\n', err, 1, true)
    assert.matches("to stderr\n", err, 1, true)
    assert.matches("^JOB +DEFINED AT\nj +jobs.lua:4\n$", out)
  end)

  it("shows no more than the first of it", function()
    local dir = folder { ["jobs.lua"] = 'print(("x"):rep(100000))' }
    local code, _, err = check(dir, "jobs.lua")
    assert.equal(0, code)
    assert.is_true(#err < 5000)
    assert.matches("jobs.lua printed 100001 bytes; the first 4096 are shown", err, 1, true)
  end)

  it("resolves `after` over all files (runner.md 1)", function()
    local dir = folder {
      ["a.lua"] = 'lock.job("a", { run = print, after = "b" })\n'
        .. 'lock.job("x", { run = print, after = "nightli" })',
      ["b.lua"] = 'lock.job("b", { run = print, after = "c" })',
      ["c.lua"] = 'lock.job("c", { run = print, after = "a" })\nlock.job("nightly", { run = print })',
    }
    assert.same({
      'a.lua:2: job "a": it would wait for itself: "a" (a.lua:2) after "b" (b.lua:2) after "c" (c.lua:2) '
        .. 'after "a"',
      'a.lua:3: job "x": after: there is no job "nightli"; did you mean "nightly"?',
    }, faults(dir, "a.lua", "b.lua", "c.lua"))
  end)

  it("two jobs of one name in two files: both places are named", function()
    local dir = folder {
      ["a.lua"] = '\nlock.job("j", { run = print })', ["b.lua"] = 'lock.job("j", { run = print })' }
    assert.same({ 'b.lua:2: job "j": two jobs have this name: here and at a.lua:3' },
      faults(dir, "a.lua", "b.lua"))
    assert.equal(0, check(dir, "a.lua", "a.lua", "./a.lua"))
  end)

  it("names a session that nobody has declared", function()
    local dir = folder { ["jobs.lua"] = [[
lock.job("j", { run = print, using = "replica",
  guards = { lock.guard.advisory("x", { using = "other" }) } })]] }
    local lines = faults(dir, "jobs.lua")
    assert.equal(2, #lines)
    assert.matches('jobs.lua:2: job "j": using: there is no session named "replica"', lines[1], 1, true)
    assert.matches('jobs.lua:3: guard.advisory: using: there is no session named "other"', lines[2], 1, true)
  end)

  it("names the faults of the configuration once, whatever the number of files", function()
    local dir = folder {
      ["config.lua"] = 'lock.policy("p", { timeout = -1, bad = 5 })\nerror("boom")',
      ["a.lua"] = 'lock.job("a", { run = print })', ["b.lua"] = 'lock.job("b", { run = print })',
    }
    assert.same({
      'config.lua:2: policy "p": unknown key "bad"',
      'config.lua:2: policy "p": timeout is negative: -1',
      "config.lua:3: boom",
    }, faults(dir, "--config", "config.lua", "a.lua", "b.lua"))
    assert.matches("nowhere.lua: cannot open the configuration nowhere.lua: No such file",
      faults(dir, "--config", "nowhere.lua", "a.lua")[1], 1, true)
  end)

  it("finds the configuration as other commands do, and does not take it for a file of jobs", function()
    local dir = folder {
      ["lockkeeper.lua"] = 'lock.database("replica", "")\nlock.policy("p", {})',
      ["jobs.lua"] = 'lock.job("j", { run = print, policy = "p", using = "replica" })',
    }
    local code, out, err = check(dir, ".")
    assert.equal(0, code, err)
    assert.not_matches("lockkeeper.lua", out, 1, true)
  end)

  it("refuses a file that anybody may write to, where root runs it", function()
    local dir = folder { ["jobs.lua"] = 'lock.job("j", { run = print })' }
    os.execute(("chmod o+w %s/jobs.lua"):format(dir))
    local code, _, err = check(dir, "jobs.lua")
    if sandbox.is_root then
      assert.equal(2, code)
      assert.matches("jobs.lua: it is not run: anybody may write to it, and root runs this", err, 1, true)
      code, _, err = t.run("run", dir .. "/jobs.lua")
      assert.equal(2, code)
      assert.matches("anybody may write to it", err, 1, true)
    else
      assert.equal(0, code, err)
    end
  end)

  it("tells what can't be read", function()
    local dir = folder { ["a.lua"] = "" }
    assert.same({ "none.lua: cannot open it: No such file or directory" }, faults(dir, "none.lua"))
    local code, _, err = check(t.tempdir(), ".")
    assert.equal(2, code)
    assert.matches('check: "." has no *.lua', err, 1, true)
    code, _, err = check(dir)
    assert.equal(2, code)
    assert.matches("PATH is missing", err, 1, true)
    assert.equal(2, check(dir, ""))
  end)

  it("says so where there is no job", function()
    local code, out, err = check(folder { ["a.lua"] = "print = print" }, "a.lua")
    assert.equal(0, code)
    assert.equal("", out)
    assert.equal("lockkeeper: no job is defined in 1 file\n", err)
  end)

  it("counts the audits where they are all that a file defines", function()
    local dir = folder { ["a.lua"] =
      'lock.audit("one", { find = print }) lock.audit("two", { find = print })' }
    local code, out, err = check(dir, "a.lua")
    assert.equal(0, code)
    assert.equal("", out)
    assert.equal("lockkeeper: 2 audits in 1 file, without a schedule, and no job: "
      .. "lockkeeper audit runs them\n", err)
  end)
end)

describe("check --explain", function()
  local FILES = {
    ["lockkeeper.lua"] = 'lock.policy("base", { timeout = "5s", retry = { attempts = 3, delay = "10s" } })',
    ["jobs.lua"] = [[
lock.policy("polite", { extend = "base", on_busy = "skip", memory_limit = "256MB", retry = { attempts = 5 } })
lock.job("vacuum", {
  schedule = "30 2 * * *", timezone = "Europe/Paris",
  guards = { lock.guard.advisory("maintenance", { timeout = "2s" }) },
  policy = { "polite", { max_run = "90m", timeout = lock.unset } },
  run = print,
})]],
  }

  it("shows what a job ends up with, and from where", function()
    local code, out, err = check(folder(FILES), "jobs.lua", "--explain", "vacuum")
    assert.equal(0, code, err)
    local rows = {}
    for line in out:gmatch("[^\n]+") do
      local key, from, value = line:match("^(%S+)%s%s+(.-)%s%s+(.*)$")
      rows[#rows + 1] = key .. " | " .. value .. " | " .. from
    end
    assert.same({
      "KEY | VALUE | FROM",
      "job | vacuum | the job, jobs.lua:3",
      "schedule | 30 2 * * * Europe/Paris | the job, jobs.lua:3",
      "run | a function | the job, jobs.lua:3",
      'guard | advisory "job:vacuum" | every job',
      'guard | advisory "maintenance" { timeout = "2s" } | jobs.lua:5',
      "timeout | lock_timeout's | unset, jobs.lua:3",
      "on_busy | skip | policy polite, jobs.lua:2",
      "max_run | 1h30m | the job, jobs.lua:3",
      "grace | 5s | default",
      "retry.attempts | 5 | policy polite, jobs.lua:2",
      "retry.delay | 10s | policy base, lockkeeper.lua:2",
      "prioritize | no | default",
      "lock_timeout | the server's | default",
      "statement_timeout | the server's | default",
      "memory_limit | 256MB | policy polite, jobs.lua:2",
      "session | none | default",
      "timezone | Europe/Paris | the job, jobs.lua:3",
      "overlap | skip | default",
      "catchup | last | default",
      "catchup_window | 1d | default",
      "on_failure | none | default",
    }, rows)
  end)

  it("names the nearest job where there is none of that name", function()
    local code, out, err = check(folder(FILES), "jobs.lua", "--explain", "vacum")
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches('check: there is no job "vacum"; did you mean "vacuum"?', err, 1, true)
  end)
end)

describe("a description (runner.md 1)", function()
  -- What the child tells of a file, on descriptor 3.
  local function description(text)
    local path = t.tempfile(text, "jobs.lua")
    local child = t.spawn({ "sh", "-c", 'exec "$0" describe "$1" 3>&1 >/dev/null', t.binary(), path })
    assert.equal(0, child:wait(), child:stderr())
    return lock.json.decode(child:stdout()), path
  end

  it("is JSON on a descriptor of its own: print can't spoil it", function()
    local text = HEAD .. [[
      print "{"
      io.stdout:write("}"):flush()
      lock.policy("p", { timeout = "5s" })
      lock.job("j", { every = "10m", policy = "p", run = print, tags = { "a" },
        guards = { lock.guard.row_locks("select $1, $2 from t", { "\xff", { 1, 2 } }) } })]]
    local got, path = description(text)
    assert.equal(path, got.file)
    assert.same({}, got.faults)
    assert.equal("p", got.policies[1].name)
    local job = got.jobs[1]
    assert.equal("j", job.name)
    assert.equal(5, job.line)
    assert.is_true(job.run)
    assert.same({ every = 600, from = "epoch" }, job.schedule)
    assert.equal(5, job.settings.timeout)
    assert.same({ "\u{FFFD}", { 1, 2 } }, job.guards[1].args[2])
    local sum = t.spawn({ "sha256sum", path })
    sum:wait()
    assert.equal(sum:stdout():match("^%x+"), got.sha256)
  end)

  it("has lists that are lists, also the empty ones", function()
    local path = t.tempfile("x = 1")
    local child = t.spawn({ "sh", "-c", 'exec "$0" describe "$1" 3>&1', t.binary(), path })
    child:wait()
    for _, name in ipairs { "jobs", "policies", "faults" } do
      assert.matches(('"%s":[]'):format(name), child:stdout():gsub("%s", ""), 1, true)
    end
  end)

  it("needs the descriptor to be there", function()
    local code, _, err = t.run("describe", t.tempfile("x = 1"), "--fd", "77")
    assert.equal(2, code)
    assert.matches("--fd: 77 is no open descriptor", err, 1, true)
  end)

  -- That nothing stays behind is seen to after every test.
  it("is bounded in time, also in a C function and in a command", function()
    local dir = folder {
      ["a.lua"] = '\nstring.find(("a"):rep(100000), (".-"):rep(100) .. "b")',
      ["b.lua"] = 'os.execute("setsid sleep 600 & sleep 60")',
      ["c.lua"] = "\n\ncoroutine.wrap(function()\n  pcall(function() while true do end end)\nend)()",
      ["d.lua"] = "\nlocal function f() return pcall(f) end while true do f() end",
    }
    local begun = t.now()
    local lines = faults(dir, dir)
    assert.is_true(t.now() - begun < 20)
    for i, line in ipairs { "a.lua:3", "b.lua:2", "c.lua:5", "d.lua:3" } do
      assert.equal(("%s/%s: it is not loaded within 5 s"):format(dir, line), lines[i])
    end
  end)

  it("survives a file that ends its process", function()
    local lines = faults(folder {
      ["a.lua"] = 'os.execute("kill -9 $PPID")',
      ["b.lua"] = 'os.execute("kill -TERM $PPID") while true do end',
      ["c.lua"] = 'lock.job("j", { rnu = 1, run = print })',
    }, ".")
    assert.equal("./a.lua: it could not be described: its process was ended by signal 9", lines[1])
    assert.matches("^./b.lua", lines[2])
    assert.matches('./c.lua:2: job "j": unknown key "rnu"', lines[#lines], 1, true)
  end)

  it("is not fooled by what the file does to Lua's libraries", function()
    assert_fault('rawfile.lua:5: job "j": unknown key "rnu"; did you mean "run"?', [[
local lock = require "lockkeeper"
os.exit, pcall, error, print, type = nil, nil, nil, nil, nil
table.concat, io.open, debug.getinfo, setmetatable, ipairs = nil, nil, nil, nil, nil
tostring = function() return "fooled" end
lock.job("j", { rnu = 1, sql = "select 1" })]])
  end)

  it("tells an error that the file raises, whatever it is", function()
    assert_fault("rawfile.lua:2: boom", '\nerror("boom")')
    assert_fault("rawfile.lua:3: boom", "local function fail()\n  error('boom', 2)\nend fail()")
    assert_fault("rawfile.lua:1: the script raised a table without __tostring", "error {}")
    assert_fault("rawfile.lua:1: the script raised nil", "error()")
    assert_fault("rawfile.lua:2: attempt to index a nil value (global 'nothing')", "\nprint(nothing.at_all)")
  end)
end)
