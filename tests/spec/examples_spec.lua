-- Every example in scripts/examples and every code block of the README runs as it stands.

local t = require "tests.support"

local function read(path)
  local file = assert(io.open(path))
  local text = file:read("a")
  file:close()
  return text
end

-- The README's fenced blocks in one language.
local function blocks(language)
  local found = {}
  for text in read("README.md"):gmatch("\n```" .. language .. "\n(.-)\n```") do
    found[#found + 1] = text
  end
  return found
end

describe("scripts/examples/non_overlapping.lua", function()
  it("works when it is alone, and skips with exit code 75 while another works", function()
    local first = t.lockkeeper("run", "scripts/examples/non_overlapping.lua", "20", "first")
    t.wait_until(function() return first:stdout():find("first: I have the lock", 1, true) end, "the lock")

    local code, out, err = t.run("run", "scripts/examples/non_overlapping.lua", "0", "second")
    assert.equal(75, code)
    assert.equal("", out)
    assert.matches('lock "nightly%-report" is held by another session', err)

    first:signal("TERM")
    assert.equal(143, first:wait())
    code, out = t.run("run", "scripts/examples/non_overlapping.lua", "0", "second")
    assert.equal(0, code)
    assert.matches("second: done", out)
  end)
end)

describe("scripts/examples/table_lock.lua", function()
  it("changes a table that is free, and leaves one that is in use alone", function()
    local code, out = t.run("run", "scripts/examples/table_lock.lua")
    assert.equal(0, code)
    assert.matches("total is now 110.00", out)

    local other <close> = t.connect()
    local tx <close> = other:begin()
    tx:exec("lock table lockkeeper_example in row exclusive mode")
    code, out = t.run("run", "scripts/examples/table_lock.lua")
    assert.equal(75, code)
    assert.matches("nothing was changed", out)
    tx:rollback()
    assert.equal("110", t.psql("select total from lockkeeper_example"))
    t.psql("drop table lockkeeper_example")
  end)
end)

describe("the README", function()
  it("has Lua scripts that run", function()
    local scripts = blocks("lua")
    assert.is_true(#scripts >= 4)
    for _, text in ipairs(scripts) do
      local code, _, err = t.run("run", t.tempfile(text, "readme.lua"))
      assert.equal(0, code, text .. "\n" .. err)
    end
    t.psql("drop table if exists orders, reports")
  end)

  it("has commands that run", function()
    local commands = blocks("sh")
    assert.is_true(#commands >= 3)
    local root = require("tests.support.sandbox").start_dir
    local binary = os.getenv("LOCKKEEPER_BIN") or "build/lockkeeper"
    local folder = t.tempdir()
    for _, text in ipairs(commands) do
      -- in a folder of its own, where the checkout's files are found under their names
      local child = t.spawn({ "sh", "-ec", ([[
        ln -sfn "%s/lua" "%s/build" .
        mkdir -p bin
        ln -sfn "$(cd "%s" && realpath "%s")" bin/lockkeeper
        PATH=$PWD/bin:$PATH
        %s]]):format(root, root, root, binary, text),
        env = { DATABASE_URL = t.conninfo() }, cwd = folder })
      assert.equal(0, child:wait(), text .. "\n" .. child:stderr())
    end
  end)
end)
