--- A short version of the runner's fault program tests/faults/chaos.lua; a witness says what the jobs did.

local storm = require "tests.faults.storm"

describe("the runner under faults", function()
  it("runner.md 5 to 22: no overlap, no double slot and no slot without a row, while supervisors, workers and"
    .. " the server are killed and stopped, and wires are cut", function()
    assert.same({}, storm.play { seconds = 5, hosts = 2, longest = 2, seed = 20 })
  end)
end)
