--- A promoted standby (tests/faults/scenes/failover.lua, which restarts the server as well when run by hand).

local failover = require "tests.faults.scenes.failover"

describe("the runner with a multi-host conninfo", function()
  it("runner.md 25: goes on by itself on a promoted standby, and waits while there is no primary", function()
    assert.same({}, failover.play(false))
  end)
end)
