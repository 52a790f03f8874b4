-- `lockkeeper db` and --embedded (cli.md, "Embedded server").

local t = require "tests.support"

describe("the embedded server", function()
  local dir, options

  -- PostgreSQL is found by the suite's own way; everything else of the environment is not.
  setup(function()
    dir = t.tempdir()
    options = { env = {
      LOCKKEEPER_EMBEDDED_DIR = dir .. "/pg",
      PG_BINDIR = require("tests.support.target").bindir(),
      DATABASE_URL = false, LOCKKEEPER_TEST_CHILD = false,
    } }
    -- As root it runs as postgres, who has to get there.
    os.execute("chmod 755 " .. dir)
  end)

  teardown(function()
    t.run("db", "stop", options)
  end)

  local function with(more)
    local all = { env = {} }
    for name, value in pairs(options.env) do
      all.env[name] = value
    end
    for name, value in pairs(more) do
      all.env[name] = value
    end
    return all
  end

  local function db(...)
    local words = { "db", ... }
    words[#words + 1] = options
    return t.run(table.unpack(words))
  end

  local function postmasters()
    local pipe <close> = io.popen(("pgrep -f -- '[-]D %s/pg/data'"):format(dir))
    return select(2, pipe:read("a"):gsub("%d+", ""))
  end

  it("status of one that was never made: exit code 3, nothing is made", function()
    local code, out, err = db("status")
    assert.equal(3, code, err)
    assert.equal(("not running, and not made yet; its data would be in %s/pg/data\n"):format(dir), out)
    assert.is_nil(io.open(dir .. "/pg"))
    code, out = db("stop")
    assert.equal(0, code)
    assert.equal("it was not running\n", out)
  end)

  it("is made and started once, by several commands at the same time that share it", function()
    local children = {}
    for i = 1, 4 do
      children[i] = t.lockkeeper("who", "hello", "--embedded", options)
    end
    local made = 0
    for _, child in ipairs(children) do
      assert.equal(0, child:wait(60), child:stderr())
      assert.matches("Nobody holds it", child:stdout(), 1, true)
      made = made + select(2, child:stderr():gsub("making an embedded PostgreSQL", ""))
    end
    assert.equal(1, made)
    assert.equal(1, postmasters())
  end)

  it("start finds it running; status and url tell where it is", function()
    local code, out, err = db("start")
    assert.equal(0, code)
    assert.equal("", err)
    local pid = out:match("^PostgreSQL %d+ runs %(pid (%d+)%), data in " .. dir .. "/pg/data\n$")
    assert.is_truthy(pid)
    local url
    code, url = db("url")
    assert.equal(0, code)
    assert.matches("^postgresql://[^\n]*\n$", url)
    local status
    code, status = db("status")
    assert.equal(0, code)
    assert.equal(out .. url, status)
    code, out = t.run("who", "hello", "--dsn", (url:gsub("\n", "")))
    assert.equal(0, code)
    assert.matches("^database postgres on ", out)
  end)

  it("listens on a socket in a folder of mode 0700 only, not on TCP", function()
    local _, out = db("psql", "-XAtqc", "show listen_addresses", "-c", "show unix_socket_directories")
    local folder = out:match('^\n"?(/[^\n"]+)"?\n$')
    assert.is_truthy(folder, out)
    local pipe <close> = io.popen("stat -c %a " .. folder)
    assert.equal("700\n", pipe:read("a"))
  end)

  it("psql passes its arguments, input and exit code on", function()
    local code, out = db("psql", "-XAtq")
    assert.equal(0, code)
    assert.equal("", out)
    local opts = with {}
    opts.stdin = "select 6 * 7;"
    code, out = t.run("db", "psql", "-XAtq", opts)
    assert.equal(0, code)
    assert.equal("42\n", out)
    assert.equal(1, (db("psql", "-XAtqc", "select 1/0")))
    local bin = t.tempdir()
    os.execute("ln -s /bin/sh " .. bin)
    local err
    code, out, err = t.run("db", "psql", with { PATH = bin })
    assert.equal(127, code)
    assert.equal("", out)
    assert.matches("psql can't be executed", err, 1, true)
  end)

  it("nothing in libpq's environment leads past it", function()
    for name, value in pairs {
      PGHOST = "/nonexistent", PGHOSTADDR = "192.0.2.1", PGPORT = "1", PGUSER = "nobody",
      PGDATABASE = "none", PGPASSWORD = "wrong", PGSERVICE = "none", PGTARGETSESSIONATTRS = "standby",
      PGOPTIONS = "-c work_mem=1MB",
      PGREQUIREPEER = "nobody", PGGSSENCMODE = "require", PGCHANNELBINDING = "require",
      PGSSLMODE = "verify-full",
      DATABASE_URL = "host=/nonexistent", PGPASSFILE = "/nonexistent",
    } do
      local code, out, err = t.run("who", "hello", "--embedded", with { [name] = value })
      assert.equal(0, code, name .. ": " .. err)
      assert.matches("Nobody holds it", out, 1, true)
      code, out, err = t.run("db", "psql", "-XAtqc", "select 1", with { [name] = value })
      assert.equal(0, code, name .. ": " .. err)
      assert.equal("1\n", out)
    end
  end)

  it("exec --embedded leaves the command's environment alone", function()
    local code, out = t.run("exec", "--embedded", "--lock", "a", "--", "sh", "-c",
      "echo $PGSERVICE $PGHOSTADDR", with { PGSERVICE = "mine", PGHOSTADDR = "192.0.2.1" })
    assert.equal(0, code)
    assert.equal("mine 192.0.2.1\n", out)
  end)

  it("run --embedded stands before FILE; behind it, it is the script's", function()
    local path = t.tempfile([[print(..., require("lockkeeper").db:value("select 1"))]], "job.lua")
    local code, out, err = t.run("run", "--embedded", path, "--embedded", options)
    assert.equal(0, code, err)
    assert.equal("--embedded\t1\n", out)
  end)

  it("stop ends it under those who use it; the next start finds its data", function()
    assert.equal(0, (db("psql", "-XAtqc", "create table kept (a int)")))
    local child = t.lockkeeper("exec", "--embedded", "--lock", "a", "--", "sleep", "60", options)
    t.wait_until(function()
      local _, seen = t.run("who", "a", "--embedded", options)
      return seen:find("holds exclusive", 1, true)
    end, "the lock")
    local code, out = db("stop")
    assert.equal(0, code)
    assert.equal("stopped\n", out)
    assert.equal(125, child:wait(5))
    assert.equal(0, postmasters())
    code, out = db("status")
    assert.equal(3, code)
    assert.matches("^not running; PostgreSQL %d+'s data is in ", out)
    assert.equal(0, (db("psql", "-XAtqc", "select * from kept")))
  end)

  it("names what is missing or in the way, and exits with its code", function()
    local code, out, err = t.run("db", "start", with { LOCKKEEPER_EMBEDDED_DIR = "/proc/nope" })
    assert.equal(2, code, err)
    assert.equal("", out)
    assert.matches("/proc/nope", err, 1, true)
    local file = t.tempfile("x")
    code, out, err = t.run("run", "--embedded", "x.lua", with { LOCKKEEPER_EMBEDDED_DIR = file })
    assert.equal(2, code)
    assert.equal("", out)
    assert.matches("it is not a folder", err, 1, true)
  end)
end)
