-- Pairs of acquire and release a second by the module: lockkeeper run pairs.lua SECONDS try|timed|once
local lock = require "lockkeeper"

local seconds, mode = tonumber(arg[1]), arg[2]
local options = { timeout = mode == "timed" and "5s" or 0 }
local db = lock.db

if mode == "once" then
  db:advisory(42, options):release()
  return
end
db:ping()
local clock = require("lockkeeper.core").now
local pairs_done, start = 0, clock()
repeat
  for _ = 1, 100 do
    local held = db:advisory(42, { timeout = options.timeout })
    held:release()
  end
  pairs_done = pairs_done + 100
until clock() - start >= seconds
print(("%.0f"):format(pairs_done / (clock() - start)))
