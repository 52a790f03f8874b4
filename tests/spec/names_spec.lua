-- lua-api.md, "Querying": lock.names, by which advisory keys are shown as names.

local expect = require "tests.support.expect"
local t = require "tests.support"
local lock = require "lockkeeper"

describe("lock.names", function()
  local db, holder

  before_each(function()
    db = t.connect()
    holder = t.connect()
  end)

  after_each(function()
    db:close()
    holder:close()
  end)

  -- What the lock that `holder` takes is called.
  local function shown(id, options)
    local held <close> = holder:advisory(id, options)
    local rows = db:locks { pid = holder.pid, type = "advisory" }
    assert.equal(1, #rows)
    assert.equal(id, held.id)
    return rows[1].lock_name
  end

  -- Without a lock of this process, whose names are known.
  local function shown_by_key(id, options)
    local first, second = db:key(id, options)
    return shown(second and { first, second } or first)
  end

  it("are those of the locks that this process holds, too", function()
    assert.equal("held here", shown("held here"))
    assert.equal("held here", shown("held here", { scheme = "with_advisory_lock" }))
    assert.is_nil(shown_by_key("held here"))
  end)

  it("are tried under every scheme", function()
    assert.is_nil(shown_by_key("nightly-report"))
    lock.names { "nightly-report", "naïve – ключ", "" }
    for _, scheme in ipairs { "pglock", "pglocks", "postgresql-lock", "with_advisory_lock", "hashtext" } do
      for _, name in ipairs { "nightly-report", "naïve – ключ", "" } do
        assert.equal(name, shown_by_key(name, { scheme = scheme }), scheme)
      end
    end
    assert.is_nil(shown_by_key("another"))
    assert.is_nil(shown_by_key(42))
    assert.is_nil(shown_by_key({ 1, 2 }))
  end)

  it("are also put into patterns; both of several calls add up", function()
    lock.names { "names-a", "names-b", pattern = "job:%s" }
    lock.names { "names-c", pattern = { "100%% %s", "%s#1", "<%s|%s>" } }
    assert.equal("names-a", shown_by_key("names-a"))
    assert.equal("job:names-b", shown_by_key("job:names-b"))
    assert.equal("job:names-c", shown_by_key("job:names-c"))
    assert.equal("names-a#1", shown_by_key("names-a#1"))
    assert.equal("100% names-c", shown_by_key("100% names-c"))
    assert.equal("names-c#1", shown_by_key("names-c#1", { scheme = "hashtext" }))
    assert.equal("<names-c|names-c>", shown_by_key("<names-c|names-c>"))
    lock.names { "100%s", pattern = "%s!" } -- what is put in is no pattern
    assert.equal("100%s!", shown_by_key("100%s!"))
  end)

  it("that make the same key are all shown, and marked", function()
    assert.equal(lock.key("plumless", "pglocks"), lock.key("buckeroo", "pglocks"))
    lock.names { "plumless", "buckeroo", "plumless" }
    assert.equal("buckeroo | plumless (?)", shown_by_key("plumless", { scheme = "pglocks" }))
    assert.equal("plumless", shown_by_key("plumless"))
  end)

  it("come from the table lockkeeper.lock_name too, where it is there and may be read", function()
    local classid, objid, objsubid = lock.key_parts(lock.key("in the table"))
    assert.is_nil(shown_by_key("in the table"))
    t.psql(([[
      create schema lockkeeper;
      create table lockkeeper.lock_name (classid int8, objid int8, objsubid int2, name text);
      insert into lockkeeper.lock_name values (%d, %d, %d, 'in the table'), (4294967295, 2, 2, 'a pair'),
        (0, 7, 1, 'seven'), (0, 7, 1, 'sieben')]]):format(classid, objid, objsubid))
    finally(function() t.psql("drop schema lockkeeper cascade") end)
    assert.equal("in the table", shown_by_key("in the table"))
    assert.equal("a pair", shown_by_key({ -1, 2 }))
    assert.equal("seven | sieben (?)", shown_by_key(7))
    lock.names { "in the table" }
    assert.equal("in the table", shown_by_key("in the table")) -- one name, from two places

    local held <close> = holder:advisory(7)
    do
      local app <close> = t.connect({ user = "lk_app" })
      assert.is_nil(app:locks { key = 7 }[1].lock_name)
    end
    local locker <close> = t.connect()
    local tx <close> = locker:begin()
    tx:exec("lock table lockkeeper.lock_name in access exclusive mode")
    assert.is_nil(db:locks { key = 7 }[1].lock_name) -- nobody waits for long for a name
    assert.is_not_nil(held)
  end)

  it("are what a filter on lock_name sees, and blocked rows have", function()
    lock.names { "names-filter" }
    local held <close> = holder:advisory("names-filter")
    assert.equal(1, #db:locks { lock_name = "names-filter" })
    local waiting <close> = t.connect()
    lock.tasks(function(spawn)
      spawn(function() waiting:advisory("names-filter"):release() end)
      t.wait_until(function()
        lock.sleep(0.005)
        return t.is_waiting(waiting.pid)
      end)
      local row = db:blocked { lock_name_like = "names-%" }[1]
      assert.same({ waiting.pid, "names-filter" }, { row.pid, row.lock_name })
      assert.equal("names-filter", lock.json.decode(db:blocked():to_json())[1].lock_name)
      held:release()
    end)
  end)

  it("may be anything that is a text, and nothing else", function()
    lock.names { "nul\0inside", "\xff\xfe", ("x"):rep(100000) }
    assert.equal("nul\0inside", shown_by_key("nul\0inside"))
    assert.equal("\xff\xfe", shown_by_key("\xff\xfe"))
    lock.names { "names-after" }
    assert.equal("names-after", shown_by_key("names-after", { scheme = "hashtext" }))
    assert.equal(("x"):rep(100000), shown_by_key(("x"):rep(100000)))
    expect.usage("a list of names", lock.names, "nightly")
    expect.usage("a list of names", lock.names)
    expect.usage("a name must be a text", lock.names, { 5 })
    expect.usage('did you mean "pattern"', lock.names, { patern = "%s" })
    expect.usage("pattern must be a text", lock.names, { pattern = 5 })
    expect.usage("has no %s", lock.names, { "a", pattern = "job:" })
    expect.usage("has no %s", lock.names, { "a", pattern = "%%s" })
    assert.is_nil(shown_by_key("a"))
  end)
end)
