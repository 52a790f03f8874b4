--- Some of the deaths of the fault program tests/faults/statements.lua, which dies at each statement.

local deaths = require "tests.faults.deaths"

describe("where a supervisor is killed at one of its statements, or at one of a worker's", function()
  local scene

  setup(function()
    scene = deaths.prepare()
  end)

  teardown(function()
    scene.server:stop()
  end)

  -- Of a supervisor one that claims; of a worker the end of its run.
  for series, number in pairs { [4] = 27, [2] = 8 } do
    local name = deaths.SERIES[series].name
    it(("runner.md 8, 22: another goes on with what it has left (%s, %d)"):format(name, number), function()
      local killed, problems = deaths.one(scene, deaths.SERIES[series], number)
      assert.is_string(killed)
      assert.same({}, problems)
    end)
  end
end)
