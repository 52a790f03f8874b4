-- Locks acquired and released a second, of N keys: lockkeeper run all.lua SECONDS N all|single
local lock = require "lockkeeper"
local clock = require("lockkeeper.core").monotonic
local windows = dofile "tests/bench/windows.lua"

local seconds, count, mode = tonumber(arg[1]), tonumber(arg[2]), arg[3]
local db = lock.db
local ids = {}
for i = 1, count do
  ids[i] = "bench-" .. i
end

local function all()
  db:all(ids, { timeout = 0 }):release()
end

local function single()
  for _, id in ipairs(ids) do
    db:advisory(id, { timeout = 0 }):release()
  end
end

local round = mode == "all" and all or single
for _ = 1, 3 do
  round() -- so that the statements are prepared
end
local rounds = math.max(1, 100 // count)
local function batch()
  for _ = 1, rounds do
    round()
  end
end
local _, each = windows(clock, batch, seconds)
print(("%.0f"):format(rounds * count / each))
