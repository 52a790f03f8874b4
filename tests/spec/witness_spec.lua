--- The witness of the fault tests (tests/faults/witness.lua) is shown to see what it is there for: faults
--- that are planted, one at a time, into what an orderly run has left.

local t = require "tests.support"
local witness = require "tests.faults.witness"

describe("the witness", function()
  local server

  -- A run as the witness and the history have it. Times in seconds.
  local function run(id, job, slot, from, to, more)
    more = more or {}
    local seen, state = more.seen ~= false, more.state or "succeeded"
    server:psql(([[
      insert into lockkeeper.run (id, job, origin, slot, attempt, state, reason, ended_at)
      select %d, '%s', 'schedule', to_timestamp(%d), %d, '%s', %s, now() where %s;
      insert into public.witness (run, job, slot, attempt, fence, alone, what, at)
      select %d, '%s', %s, %d, %d, '%s', what, to_timestamp(at)
        from (values ('start', %f), ('mark', %f), ('end', %f)) as v(what, at)
       where %s and what <> '%s']]):format(
      id, job, slot, more.attempt or 1, state, more.reason and "'" .. more.reason .. "'" or "null",
      tostring(more.row ~= false), id, job, more.says or slot, more.attempt or 1, more.fence or id,
      more.alone or job, from, (from + to) / 2, to, tostring(seen), more.without or ""))
  end

  setup(function()
    server = t.start_server()
    witness.prepare(server)
  end)

  teardown(function()
    server:stop()
  end)

  before_each(function()
    witness.clear(server)
    assert.equal(0, (t.run("init", { env = { DATABASE_URL = server:conninfo() } })))
    run(1, "orders", 100, 100.1, 100.6)
    run(2, "orders", 102, 102.1, 102.6)
    run(3, "invoices", 100, 100.1, 104)
  end)

  local function check()
    return witness.check(server, { ["^orders"] = 2 })
  end

  it("finds nothing where each slot was done once and no two runs of a job met", function()
    assert.same({}, check())
  end)

  it("catches a planted overlap of two runs of a job", function()
    run(4, "orders", 104, 102.5, 104.5)
    local found = check()
    assert.equal(1, #found)
    assert.matches("^overlap: runs 2 and 4 of orders were at work at once for 100%.0 ms", found[1])
  end)

  it("catches an overlap of two jobs under one guard, and one run inside another", function()
    run(4, "dump", 100, 200, 210, { alone = "disk" })
    run(5, "restore", 100, 203, 204, { alone = "disk" })
    local found = check()
    assert.equal(1, #found)
    assert.matches("^overlap: runs 4 and 5 of disk were at work at once for 1000%.0 ms", found[1])
  end)

  it("catches a planted double slot", function()
    run(4, "orders", 102, 103, 103.5, { row = false })
    local found = witness.seen(server)
    assert.equal(1, #found)
    assert.matches("^double slot: orders has begun 2 times for .* %(attempt 1%), in runs 2, 4$", found[1])
  end)

  it("catches a run that was begun twice", function()
    server:psql([[insert into public.witness (run, job, slot, attempt, fence, alone, what, at)
      values (2, 'orders', 102, 1, 2, 'orders', 'start', to_timestamp(102.3))]])
    local found = check()
    assert.equal(1, #found)
    assert.matches("^double slot: orders has begun 2 times", found[1])
  end)

  it("takes another attempt for no double slot", function()
    run(4, "orders", 102, 103, 103.5, { attempt = 2 })
    assert.same({}, check())
  end)

  it("catches a fence that does not grow", function()
    run(4, "orders", 104, 104, 104.5, { fence = 2 })
    local found = check()
    assert.equal(1, #found)
    assert.equal("fence: run 2 of orders has fence 2, run 4 after it has 2", found[1])
  end)

  it("catches a run without a row, and one that says another slot than its row", function()
    run(4, "orders", 104, 104, 104.5, { row = false })
    run(5, "invoices", 104, 105, 105.5, { says = 105 })
    assert.same({
      "unknown: the witness saw run 4 of orders, which has no row",
      "another slot: the witness saw run 5 of invoices for another slot than its row has",
    }, check())
  end)

  it("catches a success that nobody saw, whole or in part", function()
    run(4, "orders", 104, 104, 104.5, { seen = false })
    run(5, "orders", 106, 106, 106.5, { without = "end" })
    assert.same({
      "not seen: run 4 of orders has succeeded, and the witness saw nothing of it",
      "not seen: run 5 of orders has succeeded, and the witness saw it not to its end",
    }, check())
  end)

  it("catches a skipped run that did work, and lets one that was lost have done some", function()
    run(4, "orders", 104, 104, 104.5, { state = "skipped", reason = "busy" })
    run(5, "orders", 106, 106, 106.5, { state = "lost", without = "end" })
    assert.same({ "seen: run 4 of orders is skipped (busy), and the witness saw it at work" }, check())
  end)

  it("catches a run that is never over", function()
    run(4, "orders", 104, 104, 104.5, { state = "running" })
    assert.same({ "not over: run 4 of orders is running" }, check())
  end)

  it("catches a slot that has no row", function()
    run(4, "orders", 106, 106, 106.5)
    local found = check()
    assert.equal(1, #found)
    assert.matches("^no row: orders has no run for any slot between .*:42.* and .*:46", found[1])
  end)
end)
