-- lua-api.md, "advisory", and locks.md 1 to 6, outside transactions (advisory_transaction_spec.lua has
-- those).

local expect = require "tests.support.expect"
local t = require "tests.support"
local lock = require "lockkeeper"

local bindir = require("tests.support.target").bindir()

local raised = expect.kind

local holders = t.holders_of

-- What a child has written on its first line.
local function first_number(child)
  return math.tointeger(child:stdout():match("^(%d+)\n"))
end

-- A script in a process of its own.
local function script(text, opts)
  opts = opts or {}
  opts.stdin = 'local lock = require "lockkeeper"\n' .. text
  return t.lockkeeper("run", "-", opts)
end

describe("advisory", function()
  local db, other

  before_each(function()
    db, other = t.connect(), t.connect()
  end)

  after_each(function()
    db:close()
    other:close()
  end)

  describe("with a scope", function()
    it("holds the lock until the scope is left", function()
      do
        local held <close> = db:advisory("nightly-report")
        assert.same({ db.pid }, holders(held.key))
        assert.is_nil((other:advisory("nightly-report", { timeout = 0 })))
      end
      assert.same({}, holders(lock.key("nightly-report")))
    end)

    it("releases it when an error leaves the scope, and raises that error", function()
      local mine = {}
      local ok, err = pcall(function()
        local _ <close> = db:advisory("nightly-report")
        error(mine)
      end)
      assert.is_false(ok)
      assert.equal(mine, err)
      assert.same({}, holders(lock.key("nightly-report")))
    end)

    it("returns nil and the error where it gives a timeout and another session has the lock", function()
      local held <close> = other:advisory("nightly-report")
      local got, err = db:advisory("nightly-report", { timeout = 0 })
      assert.is_nil(got)
      assert.equal("not_acquired", err.kind)
      assert.is_true(err.busy)
      assert.matches('"nightly-report"', err.message, 1, true)
      assert.matches("advisory_spec.lua:%d+: ", tostring(err))
      assert.same({ other.pid }, holders(held.key))
    end)

    it("gives 55P03 when the wait exceeds the timeout", function()
      local held <close> = other:advisory(42)
      local start = t.now()
      local got, err = db:advisory(42, { timeout = 0.1 })
      local took = t.now() - start
      assert.is_nil(got)
      assert.equal("lock_timeout", err.kind)
      assert.equal("55P03", err.sqlstate)
      assert.is_true(err.busy)
      assert.matches("42", err.message)
      assert.is_true(took >= 0.1 and took < 2, took)
      assert.same({ other.pid }, holders(held.key))
    end)
  end)

  describe("with a function", function()
    it("calls it with the guard and the arguments, and returns its results", function()
      local results = table.pack(db:advisory("x", { timeout = 0 }, function(held, ...)
        assert.equal(lock.key("x"), held.key)
        assert.same({ db.pid }, holders(held.key))
        return select("#", ...), nil, ..., nil
      end, 1, nil, 3))
      assert.same({ n = 4, 3, nil, 1, nil }, results)
      assert.same({}, holders(lock.key("x")))
    end)

    it("takes it without options, too", function()
      assert.same({ n = 2, 1, "held" },
        table.pack(db:advisory("x", function(...) return select("#", ...), "held" end)))
      assert.same({ n = 2, 3, nil },
        table.pack(db:advisory("x", function(_, ...) return select("#", ...), (...) end, nil, nil, nil)))
    end)

    it("releases the lock when it raises, and raises the same", function()
      local mine = setmetatable({}, { __tostring = function() return "mine" end })
      local ok, err = pcall(db.advisory, db, "x", {}, function() error(mine) end)
      assert.is_false(ok)
      assert.equal(mine, err)
      assert.same({}, holders(lock.key("x")))
      ok, err = pcall(db.advisory, db, "x", {}, function() error() end)
      assert.is_false(ok)
      assert.is_nil(err)
    end)

    it('raises by default when the lock is not to be had, and skips with on_busy = "skip"', function()
      local held <close> = other:advisory("x")
      local called = false
      local function fn() called = true end
      raised("not_acquired", db.advisory, db, "x", { timeout = 0 }, fn)
      raised("lock_timeout", db.advisory, db, "x", { timeout = "20ms" }, fn)
      raised("not_acquired", db.advisory, db, "x", { timeout = 0, on_busy = "raise" }, fn)
      local result = table.pack(db:advisory("x", { timeout = 0, on_busy = "skip" }, fn))
      assert.equal(2, result.n)
      assert.is_nil(result[1])
      assert.equal("not_acquired", result[2].kind)
      result = table.pack(db:advisory("x", { timeout = "20ms", on_busy = "skip" }, fn))
      assert.is_nil(result[1])
      assert.equal("lock_timeout", result[2].kind)
      assert.is_false(called)
      assert.is_true(held:is_held())
    end)

    it("never takes a lock timeout raised inside the function for a skip", function()
      local held <close> = other:advisory("inner")
      for _, options in ipairs({ { timeout = 0, on_busy = "skip" }, { timeout = "5s", on_busy = "skip" },
        { timeout = 0, on_busy = "skip", xact = true } }) do
        local err = raised("lock_timeout", db.advisory, db, "outer", options, function()
          db:advisory("inner", { timeout = "20ms", on_busy = "raise" })
        end)
        assert.equal("55P03", err.sqlstate)
        raised("not_acquired", db.advisory, db, "outer", options, function()
          db:advisory("inner", { timeout = 0, on_busy = "raise" })
        end)
        raised("lock_timeout", db.advisory, db, "outer", options, function()
          db:exec("set lock_timeout = '20ms'; select pg_advisory_lock($$" .. held.key .. "$$::int8)")
        end)
        db:exec("reset lock_timeout")
        assert.same({}, holders(lock.key("outer")))
      end
    end)
  end)

  describe("on_busy", function()
    it('is a usage error as "skip" without a function, as "return" with one, as any other word', function()
      assert.matches("skip", raised("usage", db.advisory, db, "x", { on_busy = "skip" }).message)
      assert.matches("return", raised("usage", db.advisory, db, "x", { on_busy = "return" }, print).message)
      raised("usage", db.advisory, db, "x", { on_busy = "skip", timeout = 0, xact = true })
      raised("usage", db.advisory, db, "x", { on_busy = "return", xact = true }, print)
      local err = raised("usage", db.advisory, db, "x", { on_busy = "raises" })
      assert.matches('did you mean "raise"?', err.message, 1, true)
      for _, wrong in ipairs({ true, 1, {}, "", "RAISE", ("x"):rep(1000000) }) do
        raised("usage", db.advisory, db, "x", { on_busy = wrong })
      end
      assert.is_false(db.in_transaction)
      assert.same({}, holders(lock.key("x")))
    end)

    it("raises by default where the limit is the session's lock_timeout, not the call's", function()
      local held <close> = other:advisory("x")
      db:exec("set lock_timeout = '30ms'")
      local err = raised("lock_timeout", db.advisory, db, "x")
      assert.equal("55P03", err.sqlstate)
      raised("lock_timeout", db.advisory, db, "x", {})
      raised("lock_timeout", db.advisory, db, "x", { shared = true })
      raised("lock_timeout", db.advisory, db, "x", { poll = "5ms" })
      raised("lock_timeout", db.advisory, db, "x", print)
      local got
      got, err = db:advisory("x", { on_busy = "return" })
      assert.is_nil(got)
      assert.equal("lock_timeout", err.kind)
      assert.equal("30ms", db:value("show lock_timeout"))
      assert.is_true(held:is_held())
    end)

    it('raises where it says so, in spite of a timeout', function()
      local held <close> = other:advisory("x")
      raised("not_acquired", db.advisory, db, "x", { timeout = 0, on_busy = "raise" })
      raised("lock_timeout", db.advisory, db, "x", { timeout = "10ms", on_busy = "raise" })
      assert.is_true(held:is_held())
    end)
  end)

  describe("timeout", function()
    it("false waits for ever, whatever the session's lock_timeout", function()
      db:exec("set lock_timeout = '10ms'")
      local child = t.holder_until_awaited(7)
      local held <close> = db:advisory(7, { timeout = false })
      assert.is_true(held.waited > 0)
      assert.equal("10ms", db:value("show lock_timeout"))
      assert.equal(0, child:wait(), child:stderr())
    end)

    it("longer than the session's lock_timeout counts instead of it", function()
      db:exec("set lock_timeout = '10ms'")
      local child = t.holder_until_awaited(7)
      local held <close> = db:advisory(7, { timeout = "20s" })
      assert.is_true(held.waited > 0)
      assert.equal("10ms", db:value("show lock_timeout"))
      assert.equal(0, child:wait(), child:stderr())
    end)

    it("locks.md 2: leaves lock_timeout what it was, whether the lock was had or not", function()
      local held <close> = other:advisory("busy")
      local function check(expected)
        for _, options in ipairs({ { timeout = 0 }, { timeout = "10ms" }, { timeout = "10ms", shared = true },
          { timeout = "10ms", poll = "2ms" } }) do
          assert.is_nil((db:advisory("busy", options)))
          assert.equal(expected, db:value("show lock_timeout"))
          db:advisory("free", options):release()
          assert.equal(expected, db:value("show lock_timeout"))
        end
      end
      check("0")
      assert.equal("default", db:value("select source from pg_settings where name = 'lock_timeout'"))
      db:exec("set lock_timeout = '1min'")
      check("1min")
      db:exec("reset lock_timeout")
      check("0")
      local role = t.connect({ options = "-c lock_timeout=90s" })
      assert.is_nil((role:advisory("busy", { timeout = "10ms" })))
      assert.equal("90s|client", role:value(
        "select setting::int / 1000 || 's|' || source from pg_settings where name = 'lock_timeout'"))
      role:close()
      assert.is_true(held:is_held())
    end)

    it("is a usage error where it is no duration", function()
      for _, wrong in ipairs({ true, -1, -0.001, 0.0001, 0 / 0, 1 / 0, "5", "", "x", "-5s", "5 s", "1s5m",
        "0.5ms", {}, print }) do
        raised("usage", db.advisory, db, "x", { timeout = wrong })
        raised("usage", db.advisory, db, "x", { poll = wrong })
      end
    end)

    it("is a usage error over what PostgreSQL can count", function()
      db:advisory("x", { timeout = 2147483.647 }):release()
      db:advisory("x", { timeout = "24d" }):release()
      raised("usage", db.advisory, db, "x", { timeout = 2147483.648 })
      raised("usage", db.advisory, db, "x", { timeout = "25d" })
      raised("usage", db.advisory, db, "x", { timeout = 1e300 })
      assert.same({}, holders(lock.key("x")))
    end)

    it("is not reached when statement_timeout is shorter: that is 57014, of kind sql, and raised", function()
      local held <close> = other:advisory("x")
      db:exec("set statement_timeout = '30ms'")
      local err = raised("sql", db.advisory, db, "x", { timeout = "10s" })
      assert.equal("57014", err.sqlstate)
      assert.is_false(err.busy)
      err = raised("sql", db.advisory, db, "x", { timeout = "10s", on_busy = "skip" }, print)
      assert.equal("57014", err.sqlstate)
      assert.is_true(held:is_held())
    end)
  end)

  describe("shared", function()
    it("lets others share and keeps exclusive ones out", function()
      local one <close> = db:advisory("x", { shared = true })
      local two <close> = other:advisory("x", { shared = true, timeout = 0 })
      assert.is_true(one.shared)
      assert.equal(2, #holders(two.key))
      local third = t.connect()
      assert.is_nil((third:advisory("x", { timeout = 0 })))
      assert.is_nil((third:advisory("x", { timeout = "10ms" })))
      one:release()
      two:release()
      local alone <close> = third:advisory("x", { timeout = 0 })
      assert.is_nil((db:advisory("x", { timeout = 0, shared = true })))
      assert.is_false(alone.shared)
      alone:release()
      third:close()
    end)

    it("is released as it was taken, beside an exclusive one of the same session", function()
      local exclusive <close> = db:advisory("x")
      local shared <close> = db:advisory("x", { shared = true })
      assert.is_true(shared:is_held())
      exclusive:release()
      assert.is_false(exclusive:is_held())
      assert.is_true(shared:is_held())
      assert.is_nil((other:advisory("x", { timeout = 0 })))
      other:advisory("x", { timeout = 0, shared = true }):release()
    end)

    it("is true or false, like xact", function()
      for _, name in ipairs({ "shared", "xact" }) do
        for _, wrong in ipairs({ 1, 0, "true", {}, print }) do
          assert.matches(name, raised("usage", db.advisory, db, "x", { [name] = wrong }).message)
        end
      end
    end)
  end)

  describe("ids", function()
    it("locks.md 3: 0, \"\", negative integers and the ends of int64 are ids like others", function()
      for _, id in ipairs({ 0, "", -1, math.mininteger, math.maxinteger, { 0, 0 },
        { -2147483648, 2147483647 }, " ", "it's", 'a "b"', "a\\b", "%s%n", "$1", "'; select 1; --", "ключ",
        "\xff\xfe", "a\0b", "line\nbreak" }) do
        local held <close> = db:advisory(id, { timeout = 0 })
        assert.equal(id, held.id)
        assert.same(type(id) == "table" and id or lock.key(id), held.key)
        assert.is_true(held:is_held())
        assert.same({ db.pid }, type(id) == "table" and t.holders(lock.key_parts(id)) or holders(held.key))
        local got, err = other:advisory(id, { timeout = 0 })
        assert.is_nil(got)
        assert.equal("not_acquired", err.kind)
        assert.is_true(#tostring(held) > 0)
      end
    end)

    it("tells a bigint from a pair with the same halves", function()
      local one <close> = db:advisory({ 1, 2 })
      local two <close> = other:advisory(1 << 32 | 2, { timeout = 0 })
      assert.is_true(one:is_held() and two:is_held())
      assert.same({ db.pid }, t.holders(1, 2, 2))
      assert.same({ other.pid }, t.holders(1, 2, 1))
    end)

    it("tells names apart that differ only after a NUL", function()
      local one <close> = db:advisory("a\0b")
      local two <close> = other:advisory("a\0c", { timeout = 0 })
      assert.not_equal(one.key, two.key)
    end)

    it("may be 10 MB long, with a message of sane length", function()
      local huge = ("x"):rep(10 * 1024 * 1024)
      local held <close> = db:advisory(huge)
      local _, err = other:advisory(huge, { timeout = 0 })
      assert.is_true(#err.message < 1000)
      assert.is_true(#tostring(held) < 1000)
    end)

    it("locks.md 3: nil and wrong types are usage errors, which touch no server", function()
      for _, wrong in ipairs({ false, true, 1.5, 5.0, 0 / 0, 2 ^ 63, print, {}, { 1 }, { 1, 2, 3 },
        { 1, "2" }, { 2147483648, 0 }, { 0, -2147483649 }, { 1.0, 2 }, io.stdout,
        coroutine.create(print) }) do
        assert.matches("id", raised("usage", db.advisory, db, wrong).message)
        raised("usage", db.advisory, db, wrong, { timeout = 0 })
        raised("usage", db.advisory, db, wrong, { timeout = 0, on_busy = "skip" }, print)
        raised("usage", db.advisory, db, wrong, { xact = true }, print)
      end
      raised("usage", db.advisory, db)
      raised("usage", db.advisory, db, nil, {}, print)
      assert.equal("0", t.observe("select count(*) from pg_locks where locktype = 'advisory'"))
      assert.is_false(db.in_transaction)
    end)

    it("are keys under the scheme that is named, with its prefix", function()
      for scheme, key in pairs({ pglock = 1054880662928880172, pglocks = 907060870,
        ["postgresql-lock"] = -6128055361384093534, hashtext = db:key("hello", "hashtext") }) do
        local held <close> = db:advisory("hello", { scheme = scheme, timeout = 0 })
        assert.equal(key, held.key)
        assert.same({ db.pid }, holders(key))
      end
      local held <close> = db:advisory("hello", { scheme = "with_advisory_lock", prefix = 7 })
      assert.same({ 907060870, 7 }, held.key)
      assert.same({ db.pid }, t.holders(907060870, 7, 2))
      raised("usage", db.advisory, db, "hello", { scheme = "with_advisory_lock", prefix = 2 ^ 31 })
      raised("usage", db.advisory, db, "hello", { scheme = "md5" })
    end)
  end)

  describe("options", function()
    it("that are unknown are a usage error that names them and the nearest", function()
      assert.matches('unknown option "timout"; did you mean "timeout"?',
        raised("usage", db.advisory, db, "x", { timout = 0 }).message, 1, true)
      assert.matches('unknown option "fn"',
        raised("usage", db.advisory, db, "x", { fn = print }).message, 1, true)
      raised("usage", db.advisory, db, "x", { "timeout" })
      raised("usage", db.advisory, db, "x", { [{}] = 1 })
      raised("usage", db.advisory, db, "x", { timout = 0 }, print)
    end)

    it("must be a table, and what is called a function", function()
      for _, wrong in ipairs({ 1, "5s", true }) do
        raised("usage", db.advisory, db, "x", wrong)
        raised("usage", db.advisory, db, "x", wrong, print)
      end
      for _, wrong in ipairs({ 1, "f", true, {} }) do
        raised("usage", db.advisory, db, "x", {}, wrong)
      end
      assert.same({}, holders(lock.key("x")))
    end)

    it("using: a session or its name; a session's own method needs none", function()
      local named = t.connect({ name = "advisory_spec" })
      for _, using in ipairs({ named, "advisory_spec" }) do
        local held <close> = lock.advisory("x", { using = using })
        assert.same({ named.pid }, holders(held.key))
        held:release()
        assert.same({ named.pid },
          lock.advisory("x", { using = using }, function(guard) return holders(guard.key) end))
      end
      assert.matches("nobody", raised("usage", lock.advisory, "x", { using = "nobody" }).message)
      for _, wrong in ipairs({ 1, false, true, {}, print, "a\0b" }) do
        raised("usage", lock.advisory, "x", { using = wrong })
        raised("usage", lock.advisory, "x", { using = wrong }, print)
      end
      raised("usage", db.advisory, "x")
      named:close()
    end)
  end)

  describe("a guard", function()
    it("tells of its lock", function()
      local before = os.time()
      local held <close> = db:advisory("nightly-report", { timeout = "5s" })
      assert.equal("nightly-report", held.id)
      assert.equal(lock.key("nightly-report"), held.key)
      assert.is_false(held.shared)
      assert.is_false(held.xact)
      assert.equal(0, held.waited)
      assert.is_true(held.acquired_at >= before and held.acquired_at <= os.time() + 1)
      assert.is_nil(held.unknown)
      assert.matches("nightly%-report.*held", tostring(held))
      held:release()
      assert.matches("released", tostring(held))
      assert.equal("nightly-report", held.id)
    end)

    it("tells how long it waited, in seconds", function()
      local child = t.holder_until_awaited(9)
      local start = t.now()
      local held <close> = db:advisory(9, { timeout = "20s" })
      local took = t.now() - start
      assert.is_true(held.waited > 0 and held.waited <= took + 0.01, held.waited)
      assert.equal(0, child:wait(), child:stderr())
    end)

    it("is released once, however often it is told", function()
      local held <close> = db:advisory("x")
      local again <close> = db:advisory("x")
      held:release()
      held:release()
      held:release()
      assert.is_true(again:is_held())
      assert.same({ db.pid }, holders(held.key))
      again:release()
      again:release()
      assert.same({}, holders(held.key))
    end)

    it("asks the server whether it is held", function()
      local held = db:advisory("x")
      assert.is_true(held:is_held())
      db:exec("select pg_advisory_unlock_all()")
      assert.is_false(held:is_held())
      raised("lock_lost", held.release, held)
      assert.is_false(held:is_held())
    end)

    it("has methods that are called with a colon", function()
      local held <close> = db:advisory("x")
      for _, name in ipairs({ "release", "is_held" }) do
        raised("usage", held[name])
        raised("usage", held[name], 42)
        raised("usage", held[name], db)
      end
      assert.is_true(held:is_held())
    end)

    it("is not held any more once its session is closed, and its release says so", function()
      local held = db:advisory("x")
      db:close()
      assert.is_false(held:is_held())
      assert.matches("closed", raised("lock_lost", held.release, held).message)
      held:release()
    end)

    it("locks.md 4: nests on the same session; each guard releases its own hold", function()
      local outer <close> = db:advisory("x")
      db:advisory("x", { timeout = 0 }, function(inner)
        assert.is_true(inner:is_held())
        assert.is_nil((other:advisory("x", { timeout = 0 })))
      end)
      assert.is_true(outer:is_held())
      assert.is_nil((other:advisory("x", { timeout = 0 })))
      outer:release()
      other:advisory("x", { timeout = 0 }):release()
    end)

    it("locks.md 4: nesting is logged at debug level", function()
      local text = [[
        local one <close> = lock.advisory("x")
        local two <close> = lock.advisory("y")
        local three <close> = lock.advisory("x", { timeout = 0 })
      ]]
      local child = t.lockkeeper("run", "--log-level", "debug", "-",
        { stdin = 'local lock = require "lockkeeper"\n' .. text })
      assert.equal(0, child:wait(), child:stderr())
      assert.matches("level=debug", child:stderr(), 1, true)
      local _, count = child:stderr():gsub("already held by this session", "")
      assert.equal(1, count, child:stderr())
      child = script(text)
      assert.equal(0, child:wait(), child:stderr())
      assert.not_matches("nests", child:stderr())
    end)
  end)

  describe("releasing a lock that was gone", function()
    local function gone(sql)
      local held = db:advisory("x")
      db:exec(sql)
      local err = raised("lock_lost", held.release, held)
      assert.matches('"x"', err.message, 1, true)
      assert.is_string(err.hint)
      held:release()
    end

    it("is a lock_lost error after pg_advisory_unlock_all and DISCARD ALL", function()
      gone("select pg_advisory_unlock_all()")
      gone("discard all")
      gone(("select pg_advisory_unlock(%d)"):format(lock.key("x")))
    end)

    it("is one at the end of a scope, and of a function", function()
      raised("lock_lost", function()
        local _ <close> = db:advisory("x")
        db:exec("discard all")
      end)
      raised("lock_lost", db.advisory, db, "x", { timeout = "5s" }, function() db:exec("discard all") end)
      raised("lock_lost", db.advisory, db, "x", { shared = true },
        function() db:exec("select pg_advisory_unlock_all()") end)
    end)

    it("does not hide the error that left the scope", function()
      local mine = {}
      local ok, err = pcall(db.advisory, db, "x", function()
        db:exec("discard all")
        error(mine)
      end)
      assert.is_false(ok)
      assert.equal(mine, err)
    end)

    it("is a lock_lost error when the session's backend was terminated", function()
      local held = db:advisory("x")
      t.observe(("select pg_terminate_backend(%d, 5000)"):format(db.pid))
      raised("lock_lost", held.release, held)
      raised("lock_lost", db.query, db, "select 1")
      db:reconnect()
      assert.equal(1, db:value("select 1"))
      assert.is_false(held:is_held())
      held:release()
    end)
  end)

  describe("a guard that is dropped", function()
    it("keeps its lock through every garbage collection", function()
      do
        local held = db:advisory("x")
        assert.is_true(held:is_held())
      end
      db:advisory("y")
      local threads = coroutine.wrap(function()
        local _ <close> = db:advisory("z")
        coroutine.yield()
      end)
      threads()
      threads = nil -- luacheck: ignore
      for _ = 1, 5 do collectgarbage() end
      for _, id in ipairs({ "x", "y", "z" }) do
        assert.same({ db.pid }, holders(lock.key(id)), id)
        assert.is_nil((other:advisory(id, { timeout = 0 })))
      end
    end)

    it("keeps it where the session was dropped, too; closing warns and names the lock", function()
      local child = script([[
        do
          local db = lock.connect {}
          db:advisory("dropped-lock")
          db:advisory(-5)
          db:advisory("released"):release()
        end
        for _ = 1, 5 do collectgarbage() end
        local got, err = lock.advisory("dropped-lock", { timeout = 0 })
        print(got, err.kind)
        local other = lock.connect {}
        other:advisory({ 3, 4 })
        other:close()
        print(lock.advisory({ 3, 4 }, { timeout = "20s" }, function() return "free" end))
      ]])
      assert.equal(0, child:wait(), child:stderr())
      assert.equal("nil\tnot_acquired\nfree\n", child:stdout())
      for _, name in ipairs({ "dropped%-lock", "%-5", "3,4" }) do
        assert.matches("level=warning msg=[^\n]*lock [^\n]*" .. name .. "[^\n]* was never released",
          child:stderr())
      end
      assert.not_matches('released\\"', child:stderr())
    end)

    it("makes no trouble under aggressive garbage collection", function()
      local mode = collectgarbage("incremental", 1, 1000)
      finally(function() collectgarbage(mode) collectgarbage("incremental", 200, 100) end)
      collectgarbage("generational", 1, 1)
      for i = 1, 50 do
        if i % 25 == 0 then
          db:advisory("gc" .. i, { timeout = 0 })
        end
        local held <close> = db:advisory("gc", { timeout = "5s" })
        assert.is_nil((other:advisory("gc", { timeout = 0 })))
        db:advisory("gc", { timeout = 0, on_busy = "skip" }, function(inner)
          collectgarbage()
          assert.equal("gc", inner.id)
        end)
        held:release()
      end
      collectgarbage()
      assert.equal("2", t.observe(("select count(*) from pg_locks where locktype = 'advisory' and pid = %d")
        :format(db.pid)))
    end)
  end)

  describe("errors of other kinds", function()
    it("locks.md 1: a deadlock is 40P01, of kind deadlock, and always raised", function()
      for _, options in ipairs({ { timeout = "20s" }, { timeout = "20s", on_busy = "return" }, {} }) do
        db:exec("set deadlock_timeout = '5ms'")
        local held <close> = db:advisory(1)
        local child = t.spawn({ bindir .. "/psql", "-Xqd", t.conninfo(), "-c", "set deadlock_timeout = '1h'",
          "-c", "select pg_advisory_lock(2)", "-c", "select pg_advisory_lock(1)" })
        t.wait_until(function() return holders(2)[1] and t.is_waiting(holders(2)[1]) end, "the other side")
        local err = raised("deadlock", db.advisory, db, 2, options)
        assert.equal("40P01", err.sqlstate)
        assert.is_false(err.busy)
        assert.is_string(err.detail)
        assert.is_true(held:is_held())
        held:release()
        assert.equal(0, child:wait(), child:stderr())
      end
    end)

    it("locks.md 1: a deadlock is no skip", function()
      db:exec("set deadlock_timeout = '5ms'")
      local held <close> = db:advisory(1)
      local child = t.spawn({ bindir .. "/psql", "-Xqd", t.conninfo(), "-c", "set deadlock_timeout = '1h'",
        "-c", "select pg_advisory_lock(2)", "-c", "select pg_advisory_lock(1)" })
      t.wait_until(function() return holders(2)[1] and t.is_waiting(holders(2)[1]) end, "the other side")
      raised("deadlock", db.advisory, db, 2, { timeout = "20s", on_busy = "skip" }, print)
      held:release()
      assert.equal(0, child:wait(), child:stderr())
    end)

    -- Waits in a process of its own, and prints how that ended.
    local function waiter(options)
      local child = script(([[
        local db = lock.connect {}
        io.stdout:write(db.pid, "\n"):flush()
        local ok, result, err = pcall(db.advisory, db, "x", %s)
        err = ok and err or result
        print(ok, err and err.kind, err and err.sqlstate)
        os.exit(0)
      ]]):format(options))
      local pid = t.wait_until(function() return first_number(child) end, "its pid")
      t.wait_until(function() return t.is_waiting(pid) end, "its wait")
      return child, pid
    end

    it("locks.md 1: a cancelled wait is 57014, of kind sql, and raised", function()
      local held <close> = db:advisory("x")
      for _, options in ipairs({ "{}", "{ timeout = '20s' }", "{ on_busy = 'skip' }, print" }) do
        local child, pid = waiter(options)
        t.observe(("select pg_cancel_backend(%d)"):format(pid))
        assert.equal(0, child:wait(), child:stderr())
        assert.matches("\nfalse\tsql\t57014\n", child:stdout(), 1, true)
      end
      assert.is_true(held:is_held())
    end)

    it("locks.md 1: a terminated session is a connection error, and raised", function()
      local held <close> = db:advisory("x")
      local child, pid = waiter("{ timeout = '20s' }")
      t.observe(("select pg_terminate_backend(%d)"):format(pid))
      assert.equal(0, child:wait(), child:stderr())
      assert.matches("\nfalse\tconnection\t57P01\n", child:stdout(), 1, true)
      assert.is_true(held:is_held())
    end)
  end)

  describe("a wait inside the server", function()
    -- How many advisory locks the session holds.
    local function count()
      return db:value("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()")
    end

    -- A psql that does the same again and again, until the function that is returned is called.
    local function disturb(statements)
      local child = t.spawn({ bindir .. "/psql", "-Xqd", t.conninfo({ application_name = "disturbs" }), "-c",
        ("do $$ begin for i in 1 .. 1000000 loop %s end loop; end $$"):format(statements) })
      return function()
        t.wait_until(function()
          return t.observe([[select pg_terminate_backend(pid, 5000) from pg_stat_activity
            where application_name = 'disturbs']]) == "t"
        end, "the end of the disturbance")
        child:wait()
      end
    end

    it("that times out at the very moment when the lock is granted leaves it to nobody", function()
      -- PostgreSQL reports the timeout then, and keeps the session-level lock.
      local stop = disturb([[
        perform pg_advisory_lock(1);
        perform pg_sleep(0.001 + i % 30 / 10000.0);
        perform pg_advisory_unlock(1);
      ]])
      local timeouts, transactions = 0, 0
      for i = 1, 400 do
        local tx <close> = i % 2 == 0 and db:begin() or nil
        local held, err = db:advisory(1, { timeout = 0.001 })
        if held then
          held:release()
        else
          assert.equal("lock_timeout", err.kind)
          timeouts = timeouts + 1
          transactions = transactions + (tx and 1 or 0)
        end
        assert.equal(0, count())
      end
      stop()
      assert.is_true(transactions > 0 and timeouts > transactions)
    end)

    it("that is cancelled when the lock is had, or cancelled at its release, leaves it to nobody", function()
      local stop = disturb(("perform pg_cancel_backend(%d); perform pg_sleep(0.0001);"):format(db.pid))
      local cancelled = 0
      local deadline = t.now() + 1.5
      while t.now() < deadline do
        local ok = pcall(db.transaction, db, function(tx)
          tx:advisory(1, { timeout = "5s" }, function() end)
        end)
        cancelled = cancelled + (ok and 0 or 1)
        ok = pcall(function() local _ <close> = db:advisory(2, { timeout = 0 }) end)
        cancelled = cancelled + (ok and 0 or 1)
      end
      stop()
      t.wait_until(function() return pcall(db.exec, db, "select 1") end, "the last cancellation")
      assert.equal(0, count())
      assert.is_true(cancelled > 0)
    end)

    it("leaves no trace once the lock was had or not: no lock, setting or transaction", function()
      local before = db:query("select name, setting from pg_settings order by name")
      local child = t.holder_until_awaited(5)
      db:advisory(5, { timeout = "20s" }):release()
      assert.equal(0, child:wait(), child:stderr())
      local held <close> = other:advisory(5)
      assert.is_nil((db:advisory(5, { timeout = "10ms" })))
      assert.is_false(db.in_transaction)
      assert.same(before, db:query("select name, setting from pg_settings order by name"))
      assert.equal("", t.observe(("select 1 from pg_locks where pid = %d"):format(db.pid)))
      assert.is_true(held:is_held())
    end)
  end)

  describe("poll", function()
    -- A script that polls, and its backend.
    local function poller(options, before)
      local child = script(([[
        local db = lock.connect {}
        %s
        io.stdout:write(db.pid, "\n"):flush()
        local held, err = db:advisory("x", %s)
        print(held and "held" or err.kind, held and held.waited > 0)
      ]]):format(before or "", options))
      local pid = t.wait_until(function() return first_number(child) end, "its pid")
      t.wait_until(function()
        return t.observe(("select 1 from pg_stat_activity where pid = %d and query ~ 'pg_try_advisory_lock' "
          .. "and state = 'idle'"):format(pid)) == "1"
      end, "its first try")
      return child, pid
    end

    it("locks.md 5: waits with try calls: between them the session holds no snapshot and waits for no lock",
      function()
        local held <close> = db:advisory("x")
        local child, pid = poller("{ poll = '20ms', timeout = '20s' }")
        for _ = 1, 20 do
          assert.is_false(t.is_waiting(pid))
        end
        -- An index can be built meanwhile, which waits for every older snapshot.
        other:exec("create temporary table indexed (a int)")
        other:exec("create index concurrently on indexed (a)")
        held:release()
        assert.equal(0, child:wait(), child:stderr())
        assert.matches("\nheld\ttrue\n", child:stdout(), 1, true)
      end)

    it("ends at the timeout, or at the session's lock_timeout", function()
      local held <close> = other:advisory("x")
      local start = t.now()
      local got, err = db:advisory("x", { poll = "10ms", timeout = "60ms" })
      assert.is_nil(got)
      assert.equal("lock_timeout", err.kind)
      assert.is_true(err.busy)
      assert.is_true(t.now() - start >= 0.06)
      db:exec("set lock_timeout = '1s'")
      start = t.now()
      assert.equal("lock_timeout", raised("lock_timeout", db.advisory, db, "x", { poll = "10s" }).kind)
      assert.is_true(t.now() - start >= 1 and t.now() - start < 5)
      got, err = db:advisory("x", { poll = "10ms", timeout = 0 })
      assert.is_nil(got)
      assert.equal("not_acquired", err.kind)
      assert.is_true(held:is_held())
    end)

    it("has the lock at once where it is free", function()
      local start = t.now()
      local held <close> = db:advisory("x", { poll = "1h" })
      assert.equal(0, held.waited)
      assert.is_true(t.now() - start < 5)
    end)

    it("takes any interval, false for none, and refuses 0", function()
      local busy <close> = other:advisory("x")
      for _, poll in ipairs({ 9e12, 7e12, 1e9, 0.001 }) do
        local _, err = db:advisory("x", { poll = poll, timeout = "5ms" })
        assert.equal("lock_timeout", err.kind)
      end
      local _, err = db:advisory("x", { poll = false, timeout = "5ms" })
      assert.equal("55P03", err.sqlstate)
      assert.matches("poll", raised("usage", db.advisory, db, "x", { poll = 0 }).message)
      assert.is_true(busy:is_held())
    end)

    it("takes shared and transaction-level locks, too", function()
      local busy <close> = other:advisory("x", { shared = true })
      local held <close> = db:advisory("x", { shared = true, poll = "5ms" })
      assert.is_true(held.shared)
      db:transaction(function(tx)
        local _, err = tx:advisory("x", { xact = true, poll = "5ms", timeout = "20ms" })
        assert.equal("lock_timeout", err.kind)
        assert.equal(1, tx:value("select 1"))
      end)
      busy:release()
    end)

    it("notices that its session has ended", function()
      local held <close> = db:advisory("x")
      local child, pid = poller("{ poll = '10s', timeout = '60s' }")
      t.observe(("select pg_terminate_backend(%d)"):format(pid))
      assert.equal(69, child:wait(8), child:stderr())
      assert.is_true(held:is_held())
    end)
  end)

  describe("while rows are streamed", function()
    it("is refused", function()
      for _ in db:rows("select generate_series(1, 3)") do
        raised("usage", db.advisory, db, "x")
        raised("usage", db.advisory, db, "x", {}, print)
      end
      db:advisory("x"):release()
    end)

    it("releases what was held before, once they have ended", function()
      local held = db:advisory("x")
      local rows = db:rows("select generate_series(1, 3)")
      rows()
      held:release()
      assert.same({ db.pid }, holders(held.key))
      while rows() do end
      assert.same({}, holders(held.key))
      do
        local _ <close> = db:advisory("x")
        rows = db:rows("select generate_series(1, 3)")
        rows()
      end
      while rows() do end
      assert.same({}, holders(held.key))
    end)
  end)

  describe("guarded", function()
    it("makes a function that takes the lock at each call", function()
      local calls = 0
      local report = db:guarded("nightly-report", { timeout = 0, on_busy = "skip" }, function(...)
        calls = calls + 1
        assert.same({ db.pid }, holders(lock.key("nightly-report")))
        return select("#", ...), ...
      end)
      assert.same({}, holders(lock.key("nightly-report")))
      assert.same({ 3, "a", nil, "c" }, { report("a", nil, "c") })
      assert.same({ 0 }, { report() })
      assert.same({}, holders(lock.key("nightly-report")))
      local held <close> = other:advisory("nightly-report")
      local got, err = report()
      assert.is_nil(got)
      assert.equal("not_acquired", err.kind)
      assert.equal(2, calls)
      held:release()
      report()
      assert.equal(3, calls)
    end)

    it("takes the options of advisory, or none", function()
      local named = t.connect({ name = "guarded_spec" })
      local function holds() return holders(lock.key("x")) end
      assert.same({ named.pid }, lock.guarded("x", { using = "guarded_spec" }, holds)())
      assert.same({ named.pid }, named:guarded("x", holds)())
      assert.is_true(named:guarded("x", { xact = true }, function() return named.in_transaction end)())
      raised("usage", lock.guarded, "x", {})
      raised("usage", lock.guarded, "x")
      raised("usage", named.guarded, named, "x", {}, "no function")
      raised("usage", named:guarded("x", { on_busy = "return" }, print))
      raised("usage", named:guarded("x", { timout = 1 }, print))
      raised("usage", named:guarded(nil, {}, print))
      named:close()
    end)

    it("raises what its function raises, with the lock released", function()
      local mine = {}
      local ok, err = pcall(db:guarded("x", function() error(mine) end))
      assert.is_false(ok)
      assert.equal(mine, err)
      assert.same({}, holders(lock.key("x")))
    end)
  end)

  describe("in a coroutine", function()
    it("holds its locks while it yields, also inside the function", function()
      local step = coroutine.wrap(function()
        local outer <close> = db:advisory("outer")
        coroutine.yield(outer.key)
        local result = db:advisory("inner", { timeout = 0 }, function(held)
          return coroutine.yield(held.key)
        end)
        coroutine.yield(result)
        return db:guarded("third", { timeout = "1s" }, function(n) return coroutine.yield(n) + 1 end)(5)
      end)
      assert.same({ db.pid }, holders(step()))
      local inner = step()
      assert.same({ db.pid }, holders(inner))
      assert.equal("sent", step("sent"))
      assert.same({}, holders(inner))
      assert.same({ db.pid }, holders(lock.key("outer")))
      assert.equal(5, step())
      assert.equal(11, step(10))
      assert.same({}, holders(lock.key("outer")))
      assert.same({}, holders(lock.key("third")))
    end)

    it("may interleave with others on the same session", function()
      local function hold(id)
        return coroutine.wrap(function()
          local _ <close> = db:advisory(id)
          coroutine.yield()
        end)
      end
      local a, b = hold("a"), hold("b")
      a()
      b()
      a()
      assert.same({}, holders(lock.key("a")))
      assert.same({ db.pid }, holders(lock.key("b")))
      b()
      assert.same({}, holders(lock.key("b")))
    end)

    it("releases them when it is closed", function()
      local co = coroutine.create(function()
        local _ <close> = db:advisory("a")
        db:advisory("b", {}, function() db:transaction(coroutine.yield) end)
      end)
      assert.is_true(coroutine.resume(co))
      assert.is_true(db.in_transaction)
      assert.is_true(coroutine.close(co))
      assert.is_false(db.in_transaction)
      assert.same({}, holders(lock.key("a")))
      assert.same({}, holders(lock.key("b")))
    end)
  end)

  describe("round trips", function()
    -- The statements that fn sends on a session of its own, as the server logs them, without the
    -- first calls', which the session also prepares with.
    local function statements(fn)
      local name = "trips-" .. math.random(1 << 30)
      local session <close> = t.connect({ application_name = name,
        options = "-c log_statement=all -c log_duration=on" })
      fn(session)
      fn(session)
      session:exec("select 'from here'")
      fn(session)
      session:exec("select 'to here'")
      local list
      for line in t.server:log():gmatch("[^\n]+") do
        if line:find(name, 1, true) then
          local sql = line:match("statement: (.*)") or line:match("execute %S+: (.*)")
          if sql == "select 'from here'" then
            list = {}
          elseif sql == "select 'to here'" then
            return list
          elseif list and sql then
            list[#list + 1] = sql
          end
        end
      end
    end

    it("of an uncontended lock outside a transaction are two: one takes it, one gives it back", function()
      for _, options in ipairs({ {}, { timeout = 0 }, { timeout = "5s" }, { timeout = false },
        { timeout = "5s", shared = true }, { timeout = "5s", poll = "100ms" } }) do
        local sent = statements(function(session) session:advisory("x", options):release() end)
        assert.equal(2, #sent, table.concat(sent, "\n"))
        assert.matches("pg_try_advisory_lock", sent[1])
        assert.matches("pg_advisory_unlock", sent[2])
        sent = statements(function(session) session:advisory("x", options, function() end) end)
        assert.equal(2, #sent, table.concat(sent, "\n"))
      end
    end)

    it("have no SET among them: a statement that waits sets lock_timeout itself", function()
      local sent = statements(function(session) session:advisory("x", { timeout = "5s" }):release() end)
      for _, sql in ipairs(sent) do
        assert.not_matches("^%s*SET", sql:upper())
        assert.not_matches("^%s*RESET", sql:upper())
      end
      -- Nor does another statement come to it where it has to wait.
      sent = statements(function(session)
        local child = t.holder_until_awaited(11)
        session:advisory(11, { timeout = "20s" }):release()
        assert.equal(0, child:wait(), child:stderr())
      end)
      assert.equal(2, #sent, table.concat(sent, "\n"))
    end)

    it("of a wait that times out are two: the second makes sure that nothing is held", function()
      local held <close> = other:advisory("busy")
      local sent = statements(function(session) session:advisory("busy", { timeout = "5ms" }) end)
      assert.equal(2, #sent, table.concat(sent, "\n"))
      assert.matches("pg_advisory_unlock.*pg_locks", sent[2])
      assert.is_true(held:is_held())
    end)

    it("of a try that fails are one", function()
      local held <close> = other:advisory("busy")
      assert.equal(1, #statements(function(session) session:advisory("busy", { timeout = 0 }) end))
      assert.is_true(held:is_held())
    end)
  end)
end)

describe("the default session", function()
  it("is what lock.advisory uses without using", function()
    local child = script([[
      local held <close> = lock.advisory("hello")
      print(held.key, held:is_held(), held.key == lock.key("hello"))
      print(lock.advisory("hello", { timeout = 0 }, function(_, a) return a end, "result"))
      print(lock.guarded("hello", function(a) return a end)("guarded"))
    ]])
    assert.equal(0, child:wait(), child:stderr())
    assert.equal("1054880662928880172\ttrue\ttrue\nresult\nguarded\n", child:stdout())
  end)

  it("decides the exit code of a script that a lock ends: 75 busy, 125 lost", function()
    local holder = t.connect()
    local held <close> = holder:advisory("x")
    local child = script([[ lock.advisory("x", { timeout = 0, on_busy = "raise" }) ]])
    assert.equal(75, child:wait(), child:stderr())
    child = script([[ lock.advisory("y", function() lock.db:exec("discard all") end) ]])
    assert.equal(125, child:wait(), child:stderr())
    held:release()
    holder:close()
  end)
end)

describe("locks.md 6: a server in recovery", function()
  it("refuses session-level locks, which the primary would grant again, until it is promoted", function()
    local standby = t.start_server({ standby_of = t.server })
    finally(function() standby:stop() end)
    local db <close> = lock.connect({ conninfo = standby:conninfo() })
    local err = raised("usage", db.advisory, db, "x", { timeout = 0 })
    assert.matches("recovery", err.message)
    assert.is_string(err.hint)
    raised("usage", db.advisory, db, "x", { on_busy = "skip" }, print)
    db:transaction(function(tx)
      raised("usage", tx.advisory, tx, "x")
      assert.is_true(tx:advisory("x", { xact = true, timeout = "1s" }):is_held())
    end)
    standby:psql("select pg_promote()")
    db:advisory("x", { timeout = 0 }):release()
  end)

  it("locks.md 6: the same key is another lock in another database", function()
    t.psql("create database advisory_other")
    local here <close> = t.connect()
    local there = t.connect({ dbname = "advisory_other" })
    local one <close> = here:advisory("x")
    local two = there:advisory("x", { timeout = 0 })
    assert.is_true(one:is_held() and two:is_held())
    t.psql(("select pg_terminate_backend(%d, 5000)"):format(there.pid))
    assert.is_true(one:is_held())
    there:close()
    t.psql("drop database advisory_other")
  end)
end)
