-- lua-api.md, "Sessions" and "Jobs": lock.sh and lock.log.

local expect = require "tests.support.expect"
local lock = require "lockkeeper"
local t = require "tests.support"

local raised, usage = expect.raised, expect.usage

describe("lock.sh", function()
  it("runs a command and returns its code, stdout and stderr", function()
    assert.same({ 0, "out\n", "" }, { lock.sh({ "echo", "out" }) })
    assert.same({ 3, "a", "b" }, { lock.sh({ "sh", "-c", "printf a; printf b >&2; exit 3" }) })
    assert.equal(128 + 15, (lock.sh({ "sh", "-c", "kill -TERM $$" })))
  end)

  it("involves no shell: every argument is passed as it is", function()
    local hostile = { "", " ", "$HOME", "`id`", "a\nb", "*", "'", '"', "\\", ";", "--", "\255" }
    local _, out = lock.sh({ "printf", "%s\\0", table.unpack(hostile) })
    assert.equal(table.concat(hostile, "\0") .. "\0", out)
    assert.equal("1 2.5\n", select(2, lock.sh({ "echo", 1, 2.5 })))
  end)

  it("leaves the caller's list as it was", function()
    local command = { "echo", 1 }
    lock.sh(command)
    assert.same({ "echo", 1 }, command)
  end)

  it("gives it stdin, environment and folder", function()
    assert.equal("text\0more", select(2, lock.sh({ "cat", stdin = "text\0more" })))
    assert.equal("", select(2, lock.sh({ "cat" })))
    assert.equal("", select(2, lock.sh({ "cat", stdin = "" })))
    local _, out = lock.sh({ "sh", "-c", 'echo "$A|$B|${HOME-none}"; pwd', cwd = "/usr",
      env = { A = "it's $A", B = 7, HOME = false } })
    assert.equal("it's $A|7|none\n/usr\n", out)
  end)

  it("takes what is large through both pipes at once", function()
    local text = ("0123456789abcdef"):rep(1024 * 1024)
    local code, out, err = lock.sh({ "sh", "-c", "tee /dev/stderr", stdin = text })
    assert.equal(0, code)
    assert.is_true(out == text)
    assert.is_true(err == text)
  end)

  it("minds no command that does not read its stdin", function()
    assert.equal(0, (lock.sh({ "true", stdin = ("x"):rep(1024 * 1024) })))
  end)

  it("ends what the command leaves behind", function()
    local began = t.now()
    local _, out = lock.sh({ "sh", "-c", "sleep 60 & echo $!" })
    assert.is_true(t.now() - began < 10)
    assert.is_false(t.is_alive(math.tointeger(out)))
  end)

  it("raises a usage error for what can't be run", function()
    usage("/no/such/command", lock.sh, { "/no/such/command" })
    usage("/etc/passwd", lock.sh, { "/etc/passwd" })
    usage("/no/such/folder", lock.sh, { "true", cwd = "/no/such/folder" })
    usage("sh: there is no command", lock.sh, {})
    usage("not a string", lock.sh, "echo")
    usage("not a nil", lock.sh)
    usage("sh: argument 1 must be a text, not a table", lock.sh, { "echo", {} })
    usage("sh: argument 0 must be a text, not true", lock.sh, { true })
    usage("sh: argument 1 has a NUL byte", lock.sh, { "echo", "a\0b" })
    usage('sh: unknown option "stdn"; did you mean "stdin"?', lock.sh, { "cat", stdn = "" })
    usage("sh: stdin must be a text", lock.sh, { "cat", stdin = 1 })
    usage("sh: cwd must be a text", lock.sh, { "cat", cwd = 1 })
    usage("sh: env is a table of name = value", lock.sh, { "cat", env = "A=1" })
    usage("sh: env is a table of name = value", lock.sh, { "cat", env = { "A=1" } })
    usage("sh: env: A must be a text, a number or false, not a table", lock.sh, { "cat", env = { A = {} } })
    usage("sh: env: A has a NUL byte", lock.sh, { "cat", env = { A = "a\0b" } })
    usage("a variable's name", lock.sh, { "cat", env = { ["A=B"] = "x" } })
    usage("a variable's name", lock.sh, { "cat", env = { [""] = "x" } })
    usage("sh: grace", lock.sh, { "cat", grace = "soon" })
  end)

  it("is stopped, with kind lock_lost, when a session that holds a lock ends", function()
    local db = t.connect()
    local held = assert(db:advisory(4714))
    local began = t.now()
    local err = raised(lock.sh, { "sh", "-c", ([[
      psql -Xq -h '%s' -U postgres -c 'select pg_terminate_backend(%d)' >/dev/null
      exec sleep 60]]):format(t.server.host, db.pid) })
    assert.equal("lock_lost", err.kind)
    assert.is_true(t.now() - began < 10)
    assert.equal("lock_lost", raised(db.query, db, "select 1").kind)
    pcall(held.release, held)
    db:close()
  end)

  it("is stopped by Ctrl-C", function()
    local dir = t.tempdir()
    local child = t.lockkeeper("run", "-", { stdin = ([[
      require("lockkeeper").sh { "sh", "-c", "echo $$ >pid.new; mv pid.new pid; exec sleep 60", cwd = %q }
    ]]):format(dir) })
    local pid = t.wait_until(function() return math.tointeger(t.read_file(dir .. "/pid")) end, "the command")
    child:signal("INT")
    assert.equal(130, child:wait())
    assert.is_false(t.is_alive(pid))
  end)
end)

describe("lock.log", function()
  local function logged(script, level)
    local code, out, err = t.run("run", "--log-level", level or "info", "-",
      { stdin = 'local lock = require "lockkeeper"\n' .. script })
    assert.equal(0, code, err)
    assert.equal("", out)
    return err
  end

  it("writes one line an event on stderr, with its fields in order", function()
    local line = logged([[lock.log("info", "two words", { b = 2, a = "x y", c = true, empty = "" })]])
    assert.matches("^time=%d+%-%d+%-%d+T%d+:%d+:%d+%.%d+Z level=info msg=\"two words\" "
      .. 'a="x y" b=2 c=true empty=""\n$', line)
  end)

  it("keeps a text with newlines and quotes on one line", function()
    local line = logged([[lock.log("error", 'a "b"\nc\t\\')]])
    assert.matches([[msg="a \"b\"\nc\t\\"]], line, 1, true)
    assert.equal(1, select(2, line:gsub("\n", "")))
  end)

  it("leaves debug out unless told", function()
    assert.equal("", logged([[lock.log("debug", "x")]]))
    assert.matches("level=debug msg=x", logged([[lock.log("debug", "x")]], "debug"), 1, true)
  end)

  it("refuses wrong words", function()
    usage('log: the level must be debug, info, warning or error, not "loud"', lock.log, "loud", "x")
    usage("log: the level must be a text, not nil", lock.log)
    usage("log: the fields must be a table, not a number", lock.log, "info", "x", 1)
  end)
end)
