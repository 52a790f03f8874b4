-- Milliseconds of a look by the module: lockkeeper run query.lua locks|read|blocked|rows|graph
local lock = require "lockkeeper"
local core = require "lockkeeper.core"

local db = lock.db
local looks = {
  locks = function() return #db:locks() end,
  read = function() -- a field of each row
    local n = 0
    for _, row in ipairs(db:locks()) do
      n = n + (row.granted and 1 or 0)
    end
    return n
  end,
  blocked = function() return #db:blocked():blocking_pids() end,
  rows = function() -- with the locks that are waited for
    local n = 0
    for _, row in ipairs(db:blocked()) do
      n = n + (row.wait_duration and 1 or 0)
    end
    return n
  end,
  graph = function() return #db:graph():edges() end,
}
local look = looks[arg[1]]
for _ = 1, 3 do
  assert(look() > 0)
end
local times = {}
for i = 1, 21 do
  local start = core.monotonic()
  look()
  times[i] = core.monotonic() - start
end
table.sort(times)
print(("%.4f"):format(times[11] * 1e3))
