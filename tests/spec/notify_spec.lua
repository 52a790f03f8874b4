-- lua-api.md, "Sessions": listen, notify, wait_notify.

local expect = require "tests.support.expect"
local t = require "tests.support"

local raised, usage = expect.raised, expect.usage

describe("a notification", function()
  local db, other

  before_each(function()
    db = t.connect()
    other = t.connect()
  end)
  after_each(function()
    db:close()
    other:close()
  end)

  it("comes from another session, with its channel, text and pid", function()
    db:listen("jobs")
    other:notify("jobs", "wake up")
    assert.same({ channel = "jobs", payload = "wake up", pid = other.pid }, db:wait_notify("5s"))
    other:notify("jobs")
    assert.same({ channel = "jobs", payload = "", pid = other.pid }, db:wait_notify("5s"))
  end)

  it("wakes who waits for it", function()
    db:listen("jobs")
    local child = t.lockkeeper("run", "-", { stdin = ([[
      local db = require("lockkeeper").db
      while not db:value("select pid from pg_stat_activity where pid = %d and state = 'idle' "
        .. "and query ilike 'listen%%'") do end
      db:notify("jobs", "now")
    ]]):format(db.pid) })
    assert.equal("now", db:wait_notify().payload)
    assert.equal(0, child:wait())
  end)

  it("is waited for no longer than told", function()
    db:listen("jobs")
    local began = t.now()
    assert.is_nil(db:wait_notify("20ms"))
    assert.is_true(t.now() - began >= 0.019)
    assert.is_nil(db:wait_notify(0))
  end)

  it("that came while something else ran is kept, in order", function()
    db:listen("jobs")
    for i = 1, 3 do
      other:notify("jobs", tostring(i))
      db:value("select 1")
    end
    for i = 1, 3 do
      assert.equal(tostring(i), db:wait_notify(0).payload)
    end
    assert.is_nil(db:wait_notify(0))
  end)

  it("of a transaction comes when it has committed, and not when it has rolled back", function()
    db:listen("jobs")
    do
      local tx <close> = other:begin()
      tx:notify("jobs", "never")
    end
    local tx <close> = other:begin()
    tx:notify("jobs", "done")
    assert.is_nil(db:wait_notify(0))
    tx:commit()
    assert.equal("done", db:wait_notify("5s").payload)
  end)

  it("comes to its own sender too", function()
    db:listen("jobs")
    db:notify("jobs", "self")
    assert.equal(db.pid, db:wait_notify("5s").pid)
  end)

  it("takes a channel of any name", function()
    for _, name in ipairs({ "Odd Name", 'q"uote', "it's", "select", "ünï", "a.b", ("x"):rep(63) }) do
      db:listen(name)
      other:notify(name, name)
      assert.equal(name, db:wait_notify("5s").channel)
      db:unlisten(name)
      other:notify(name)
      db:value("select 1")
      assert.is_nil(db:wait_notify(0))
    end
  end)

  it("takes a text of up to 7,999 bytes", function()
    db:listen("jobs")
    other:notify("jobs", ("x"):rep(7999))
    assert.equal(7999, #db:wait_notify("5s").payload)
    assert.equal("22023", raised(other.notify, other, "jobs", ("x"):rep(8000)).sqlstate)
  end)

  it("is refused with wrong words", function()
    usage("the channel must be a text, not nil", db.listen, db)
    usage("an identifier is empty", db.listen, db, "")
    usage("the channel has a NUL byte", db.notify, db, "a\0b")
    usage("the notification's text must be a text, not 1", db.notify, db, "jobs", 1)
    usage("wait_notify is negative", db.wait_notify, db, -1)
    usage("wait_notify has no unit", db.wait_notify, db, "5")
    assert.equal("sql", raised(db.notify, db, "").kind)
    assert.equal("22021", raised(db.notify, db, "jobs", "\255").sqlstate)
  end)

  it("can't be listened for in a failed transaction", function()
    local tx <close> = db:begin()
    raised(tx.exec, tx, "select 1/0")
    assert.equal("25P02", raised(tx.listen, tx, "jobs").sqlstate)
  end)

  it("can't be listened for through a pooler that keeps no session", function()
    local bouncer = t.start_pgbouncer()
    finally(function() bouncer:stop() end)
    local pooled = t.connect({ conninfo = bouncer:conninfo() })
    usage("LISTEN is refused here: a pooler stands between", pooled.listen, pooled, "jobs")
    db:listen("jobs")
    pooled:notify("jobs", "through")
    assert.equal("through", db:wait_notify("5s").payload)
    pooled:close()
  end)
end)
