--- Loaded by busted before the specs (.busted). A test that leaves something behind fails, by its
--- own name; so does a spec file for what its `setup` opened; at the end nothing is left running.

local busted = require "busted"
local leaks = require "tests.support.leaks"
local sandbox = require "tests.support.sandbox"
local t = require "tests.support"

-- busted puts package.loaded back after each spec file; what is loaded here stays, so that a C
-- module is opened once. Without it, specs that need it fail by themselves.
pcall(require, "lockkeeper")

local at_file_start, at_test_start
local ended -- the test that has just ended: its element, parent and status

busted.subscribe({ "file", "start" }, function()
  at_file_start = t.snapshot()
  return nil, true
end)

-- The first of all before_each, after setup: what setup opened is not the test's.
busted.before_each(function()
  ended = nil
  at_test_start = t.snapshot()
end)

-- A test is over for us when its after_each are, which busted runs after it has told everybody how
-- the test went: so hold the news back until the last after_each, the one below.
busted.subscribe({ "test", "end" }, function(element, parent, status)
  if ended ~= nil or element.descriptor ~= "it" then
    return nil, true
  end
  ended = { element = element, parent = parent, status = status }
  return nil, false
end, { priority = 1 })

--- What is left since a snapshot, removed; what cannot be is not told again by the spec file.
local function clear(before)
  local left = leaks.since(before, t.snapshot)
  t.close_sessions()
  if #left > 0 then
    leaks.undo(left)
    for _, item in ipairs(leaks.since(before, t.snapshot)) do
      at_file_start[item.key] = item
    end
  end
  return left
end

busted.after_each(function()
  local left = clear(at_test_start)
  if ended == nil then -- its before_each failed, which was reported
    return
  end
  if #left > 0 and ended.status == "success" then
    ended.status = "failure"
    busted.publish({ "failure", "it" }, ended.element, ended.parent, leaks.describe(left),
      ended.element.trace)
  end
  busted.publish({ "test", "end" }, ended.element, ended.parent, ended.status)
  ended = nil
end)

busted.subscribe({ "file", "end" }, function()
  local left = clear(at_file_start)
  if #left > 0 then
    error(leaks.describe(left), 0)
  end
  return nil, true
end)

-- In the host busted is a script, and a script's jobs run when it has ended: those that specs define are
-- not its own.
local definition = package.loaded["lockkeeper.definition"]
if definition then
  definition.begin("the specs")
end

busted.subscribe({ "exit" }, function()
  sandbox.remove()
  if definition then
    definition.abandon()
  end
  return nil, true
end)

-- Stock Lua makes an error of the first Ctrl-C, which busted takes for that of one test.
busted.subscribe({ "error" }, function(_, _, message)
  if tostring(message):find("interrupted!", 1, true) then
    io.stderr:write("interrupted\n")
    sandbox.remove()
    os.exit(130)
  end
  return nil, true
end)
