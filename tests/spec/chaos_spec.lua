--- Short versions of the runner's fault programs (tests/faults/); a witness says what the jobs did.

local deaths = require "tests.faults.deaths"
local storm = require "tests.faults.storm"

describe("the runner under faults", function()
  it("runner.md 5 to 22: no overlap, no double slot and no slot without a row, while supervisors, workers and"
    .. " the server are killed and stopped, and wires are cut", function()
    assert.same({}, storm.play { seconds = 6, hosts = 2, longest = 2, seed = 20 })
  end)

  describe("where a supervisor is killed at one of its statements, or at one of a worker's", function()
    local scene

    setup(function()
      scene = deaths.prepare()
    end)

    teardown(function()
      scene.server:stop()
    end)

    -- Of a supervisor about the first claim; of a worker, the lock of its job.
    for series, number in pairs { [4] = 13, [5] = 6 } do
      local name = deaths.SERIES[series].name
      it(("runner.md 8, 22: another goes on with what it has left (%s, %d)"):format(name, number), function()
        local killed, problems = deaths.one(scene, deaths.SERIES[series], number)
        assert.is_string(killed)
        assert.same({}, problems)
      end)
    end
  end)
end)
