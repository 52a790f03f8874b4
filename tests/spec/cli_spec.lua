-- The command line's words: cli.md, its first paragraphs and the table of exit codes.

local t = require "tests.support"

local COMMANDS = { "run", "exec", "key", "who", "db" }

-- Words that are wrong: exit code 2, nothing on stdout, the fault and the way to the help on stderr.
local function assert_wrong(fault, ...)
  local code, out, err = t.run(...)
  assert.equal(2, code, err)
  assert.equal("", out)
  assert.matches("^lockkeeper: ", err)
  assert.matches(fault, err, 1, true)
  assert.not_matches("traceback", err)
  assert.not_matches("%.lua:%d", err)
  assert.not_matches("\n.*\n.*\n", err)
  return err
end

-- Nobody answers there.
local NOWHERE = "host=/nonexistent dbname=postgres"

describe("help", function()
  it("is given by -h, --help and help, on stdout, with exit code 0", function()
    for _, word in ipairs { "-h", "--help", "help" } do
      local code, out, err = t.run(word)
      assert.equal(0, code)
      assert.equal("", err)
      assert.matches("^Usage: lockkeeper COMMAND", out)
      for _, command in ipairs(COMMANDS) do
        assert.matches("\n  " .. command .. " ", out, 1, true)
      end
    end
  end)

  it("is given by every command, whatever else is missing, without a server", function()
    for _, command in ipairs(COMMANDS) do
      for _, words in ipairs { { command, "-h" }, { command, "--help" }, { "help", command } } do
        local code, out, err = t.run(words[1], words[2], { env = { DATABASE_URL = NOWHERE } })
        assert.equal(0, code, err)
        assert.equal("", err)
        assert.matches("^Usage: lockkeeper " .. command .. " ", out)
        assert.matches("  -h, --help", out, 1, true)
      end
    end
  end)

  it("names the common options and the command's own", function()
    local _, out = t.run("run", "-h")
    for _, option in ipairs { "-d, --dsn CONNINFO", "--config FILE", "--embedded", "--log-level",
      "--log-format" } do
      assert.matches(option, out, 1, true)
    end
    _, out = t.run("exec", "-h")
    for _, option in ipairs { "--lock ID", "--scheme SCHEME", "--shared", "-w, --timeout D", "-n ",
      "--busy-exit N", "--no-poll", "--model TABLE", "--mode MODE", "--lock-timeout D", "--max-run D" } do
      assert.matches(option, out, 1, true)
    end
  end)

  it("fits 80 columns where it goes to no terminal", function()
    for _, command in ipairs(COMMANDS) do
      local _, out = t.run(command, "-h")
      for line in out:gmatch("[^\n]+") do
        assert.is_true(utf8.len(line) <= 80, line)
      end
    end
  end)

  it("goes to the command that is run when it stands behind FILE or CMD", function()
    local path = t.tempfile("print(...)", "script.lua")
    assert.equal("-h\n", select(2, t.run("run", path, "-h")))
    assert.equal("-h\n", select(2, t.run("exec", "--lock", "cli help", "echo", "-h")))
  end)
end)

describe("--version", function()
  it("tells the version", function()
    local code, out, err = t.run("--version")
    assert.equal(0, code)
    assert.matches("^lockkeeper %d+%.%d+%.%d+\n$", out)
    assert.equal("", err)
  end)
end)

describe("wrong words", function()
  it("without any: the usage, on stderr, exit code 2", function()
    local code, out, err = t.run()
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches("^Usage: lockkeeper COMMAND", err)
  end)

  it("an unknown command names the nearest known one", function()
    assert_wrong('unknown command "rnu"; did you mean run?', "rnu")
    assert_wrong('unknown command "exce"; did you mean exec?', "exce")
    local err = assert_wrong('unknown command "frobnicate"', "frobnicate")
    assert.not_matches("did you mean", err)
    assert_wrong('unknown command ""', "")
    assert_wrong("unknown command a text of 100000 bytes", ("x"):rep(100000))
  end)

  it("an unknown option names the nearest known one", function()
    assert_wrong("unknown option --versoin; did you mean --version?", "--versoin")
    assert_wrong("unknown option --embedded; a command's options come after it", "--embedded", "run", "x")
    assert_wrong("unknown option --tiemout; did you mean --timeout?", "exec", "--lock", "a", "--tiemout",
      "1", "--", "true")
    assert_wrong("unknown option --tiemout; did you mean --timeout?", "exec", "--tiemout=1")
    assert_wrong("unknown option --sheme; did you mean --scheme?", "key", "hello", "--sheme", "pglock")
    assert_wrong("unknown option --dns; did you mean --dsn?", "who", "--dns", "x", "hello")
    assert_wrong("unknown option -x", "run", "-x", "file.lua")
    assert_wrong("unknown option --" .. ("x"):rep(58) .. "…", "key", "--" .. ("x"):rep(100000))
  end)

  it("an option lacks its value, or has one that it does not take", function()
    assert_wrong("--dsn needs a value: --dsn CONNINFO", "run", "--dsn")
    assert_wrong("-w needs a value: -w D", "exec", "--lock", "a", "-w")
    assert_wrong("--shared takes no value", "exec", "--shared=yes")
    assert_wrong("-n takes no value", "exec", "-n5")
  end)

  it("an option's value is wrong", function()
    for _, value in ipairs { "soon", "-1", "5 parsecs", "", "nan", "inf", "0.0001", "1e300", "5s5", "0x" } do
      assert_wrong("--timeout", "exec", "--lock", "a", "--timeout", value, "--", "true")
    end
    assert_wrong("--max-run", "exec", "--lock", "a", "--max-run", "-5s", "--", "true")
    assert_wrong("--lock-timeout", "exec", "--lock", "a", "--lock-timeout", "25d", "--", "true")
    for _, value in ipairs { "256", "-1", "1.5", "busy", "" } do
      assert_wrong("--busy-exit takes a whole number from 0 to 255", "exec", "--lock", "a",
        "--busy-exit=" .. value)
    end
    assert_wrong("--scheme must be one of pglock, pglocks, postgresql-lock, with_advisory_lock, hashtext, "
      .. 'not "pglok"; did you mean pglock?', "key", "hello", "--scheme", "pglok")
    assert_wrong("--prefix takes a whole number", "key", "hello", "--prefix", "4294967296")
    assert_wrong("--format must be one of table, json", "key", "hello", "--format", "yaml")
    assert_wrong("--log-level must be one of debug, info, warning, error", "run", "--log-level", "loud", "x")
    assert_wrong("--log-format must be one of logfmt, json", "run", "--log-format", "xml", "x")
  end)

  it("operands are missing or too many", function()
    assert_wrong("run: FILE is missing", "run")
    assert_wrong("run: FILE is missing", "run", "--embedded")
    assert_wrong("run: FILE is empty", "run", "")
    assert_wrong("key: ID is missing", "key")
    assert_wrong("key: the ID is empty", "key", "")
    assert_wrong('"b" is one word too many', "key", "a", "b")
    assert_wrong("a text of 100000 bytes is one word too many", "who", "a", ("b"):rep(100000))
    assert_wrong("exec: CMD is missing", "exec", "--lock", "a")
    assert_wrong("exec: CMD is missing", "exec", "--lock", "a", "--")
    assert_wrong("db: start, stop, status, url or psql is missing", "db")
    assert_wrong('unknown action "strat"; did you mean start?', "db", "strat")
    assert_wrong('"now" is one word too many', "db", "stop", "now")
  end)

  it("options that make no sense together", function()
    assert_wrong("--lock ID or --model TABLE is missing", "exec", "--", "true")
    assert_wrong("--mode needs --model TABLE", "exec", "--lock", "a", "--mode", "SHARE", "--", "true")
    assert_wrong("--scheme, --prefix and --shared need --lock ID", "exec", "--model", "a", "--shared", "--",
      "true")
    assert_wrong("--embedded and --dsn exclude each other", "key", "hello", "--embedded", "--dsn", "")
  end)

  it("a conninfo is malformed: nothing of a password is shown", function()
    for _, command in ipairs { "run", "who", "key", "exec" } do
      local words = { command, "--dsn", "postgres://joe:secr%zzet@host/db", "hello" }
      if command == "exec" then
        words = { command, "--dsn", words[3], "--lock", "hello", "true" }
      end
      local code, out, err = t.run(table.unpack(words))
      assert.equal(2, code, err)
      assert.equal("", out)
      assert.matches("the conninfo is malformed", err)
      assert.not_matches("zzet", err)
    end
    assert.equal(2, (t.run("key", "a", "--dsn", "nosuchparameter=1")))
  end)

  it("an ID is larger than a key can be", function()
    assert_wrong("9223372036854775808 is larger than a bigint key can be", "key", "9223372036854775808")
    local code, out, err = t.run("key", "2147483648,0")
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches("2147483648", err)
  end)
end)

describe("options", function()
  it("may be written with = or a space, short ones with their value in the same word", function()
    for _, words in ipairs { { "--timeout=0" }, { "--timeout", "0" }, { "-w0" }, { "-w", "0" }, { "-n" } } do
      table.move({ "--", "echo", "ran" }, 1, 3, #words + 1, words)
      local code, out = t.run("exec", "--lock", "cli forms", table.unpack(words))
      assert.equal(0, code)
      assert.equal("ran\n", out)
    end
  end)

  it("end at --", function()
    local code, out = t.run("key", "--scheme", "pglock", "--", "--scheme")
    assert.equal(0, code)
    assert.matches("pglock +%-?%d+", out)
  end)

  it("do not take a negative number for one of them", function()
    local code, out = t.run("key", "-5")
    assert.equal(0, code)
    assert.matches("%-5 +4294967295 +4294967291 +1", out)
    code, out = t.run("key", "-1,-2")
    assert.equal(0, code)
    assert.matches("%(%-1, %-2%) +4294967295 +4294967294 +2", out)
  end)

  it("of a kind given twice: the last one counts", function()
    local code, out = t.run("key", "hello", "--scheme", "pglocks", "--scheme", "pglock")
    assert.equal(0, code)
    assert.matches("1054880662928880172", out, 1, true)
  end)
end)

describe("where it connects to", function()
  local path = t.tempfile([[
    print(require("lockkeeper").db:value("select current_setting('application_name')"))
  ]], "where.lua")

  it("--dsn wins over $DATABASE_URL, that over libpq's own variables", function()
    local here = t.conninfo({ application_name = "by dsn" })
    local code, out, err = t.run("run", "--dsn", here, path, { env = { DATABASE_URL = NOWHERE } })
    assert.equal("by dsn\n", out, err)
    assert.equal(0, code)
    code, out = t.run("run", "-d", here, path)
    assert.equal("by dsn\n", out)
    assert.equal(0, code)

    local function with(env)
      return select(2, t.run("run", path, { env = env }))
    end
    assert.equal("by url\n", with { DATABASE_URL = t.conninfo({ application_name = "by url" }),
      PGHOST = "/nonexistent" })
    assert.equal("by pg\n", with { DATABASE_URL = false, PGHOST = t.server.host,
      PGPORT = tostring(t.server.port), PGUSER = "postgres", PGDATABASE = "postgres", PGAPPNAME = "by pg" })
  end)

  it("takes a libpq service", function()
    local services = t.tempfile("[here]\nhost=" .. t.server.host .. "\nport=" .. t.server.port
      .. "\nuser=postgres\ndbname=postgres\napplication_name=by service\n", "services")
    local code, out, err = t.run("run", "--dsn", "service=here", path, { env = { PGSERVICEFILE = services } })
    assert.equal("by service\n", out, err)
    assert.equal(0, code)
    local env = { PGSERVICEFILE = services, PGSERVICE = "here", DATABASE_URL = false }
    assert.equal("by service\n", (select(2, t.run("run", path, { env = env }))))
  end)

  it("no connection: exit code 69, and --embedded is mentioned when nothing was named", function()
    local nothing = { DATABASE_URL = false, PGHOST = false, PGPORT = "1" }
    for _, words in ipairs { { "who", "hello" }, { "run", path }, { "exec", "--lock", "a", "--", "true" },
      { "key", "hello", "--scheme", "hashtext" } } do
      words[#words + 1] = { env = nothing }
      local code, out, err = t.run(table.unpack(words))
      assert.equal(69, code, err)
      assert.equal("", out)
      assert.matches("--embedded starts a private one", err, 1, true)
    end
    for _, env in ipairs { { DATABASE_URL = NOWHERE }, { DATABASE_URL = false, PGHOST = "/nonexistent" } } do
      local code, _, err = t.run("who", "hello", { env = env })
      assert.equal(69, code)
      assert.not_matches("--embedded", err, 1, true)
    end
    local code, _, err = t.run("who", "hello", "--dsn", NOWHERE, { env = nothing })
    assert.equal(69, code)
    assert.not_matches("--embedded", err, 1, true)
  end)

  it("a wrong password, an unknown user, database or host: exit code 69, no password shown", function()
    local server = t.start_server({ tcp = true })
    finally(function() server:stop() end)
    local function who(opts)
      opts.host = opts.host or "127.0.0.1"
      local code, out, err = t.run("who", "hello", "--dsn", server:conninfo(opts))
      assert.equal(69, code, err)
      assert.equal("", out)
      assert.not_matches("s3cr3t", err)
      return err
    end
    assert.matches("password authentication failed", who { user = "lk_pw", password = "s3cr3t" })
    assert.matches("no_such_database", who { dbname = "no_such_database", user = "lk_app" })
    assert.matches("no.such.host", who { host = "no.such.host.invalid", user = "lk_pw", password = "s3cr3t" })
  end)
end)

describe("output", function()
  it("results go to stdout, all else to stderr", function()
    local held <close> = t.connect()
    held:query("select pg_advisory_lock(42)")
    local code, out, err = t.run("who", "42")
    assert.equal(0, code)
    assert.matches(tostring(held.pid), out, 1, true)
    assert.equal("", err)
    code, out, err = t.run("exec", "--lock", "42", "-n", "--", "echo", "ran")
    assert.equal(75, code)
    assert.equal("", out)
    assert.matches("^lockkeeper: ", err)
  end)

  it("has no colour: neither where there is no terminal nor with NO_COLOR on one", function()
    local _, out = t.run("key", "hello")
    assert.not_matches("\27", out)
    local child = t.spawn({ "script", "-qec", "'" .. t.binary() .. "' key hello", "/dev/null",
      env = { NO_COLOR = "1", DATABASE_URL = false } })
    assert.equal(0, child:wait())
    assert.matches("1054880662928880172", child:stdout(), 1, true)
    assert.not_matches("\27", child:stdout())
  end)

  it("is not cut where it goes to no terminal", function()
    local held <close> = t.connect({ application_name = ("a"):rep(60) })
    held:query("select pg_advisory_lock(42)")
    local _, out = t.run("who", "42", { env = { COLUMNS = "20" } })
    assert.matches(("a"):rep(60), out, 1, true)
  end)

  it("that nobody reads ends it without a word; one that can't be written is an error", function()
    local child = t.spawn({ "sh", "-c", '"$0" key hello | true; "$0" run - <<E | head -n 1\n'
      .. "for i = 1, 1e6 do print(i) end\nE", t.binary(),
      env = { DATABASE_URL = t.conninfo() } })
    assert.equal(0, child:wait())
    assert.equal("1\n", child:stdout())
    assert.equal("", child:stderr())
    child = t.spawn({ "sh", "-c", 'exec "$0" key hello >/dev/full', t.binary() })
    assert.equal(1, child:wait())
    assert.equal("lockkeeper: cannot write to standard output: No space left on device\n", child:stderr())
    child = t.spawn({ "sh", "-c", 'exec "$0" key hello >&-', t.binary() })
    assert.equal("", child:stderr())
    child:wait()
  end)
end)
