-- Pairs of acquire and release a second by the module:
--   lockkeeper run pairs.lua SECONDS try|timed|deferred|once
local lock = require "lockkeeper"

local seconds, mode = tonumber(arg[1]), arg[2]
local timeout = mode == "timed" and "5s" or 0
local deferred = mode == "deferred"
local db = lock.db

if mode == "once" then
  db:advisory(42, { timeout = timeout }):release()
  return
end
db:ping()
local clock = require("lockkeeper.core").now
local pairs_done, start = 0, clock()
repeat
  for _ = 1, 100 do
    local held
    if deferred then
      held = db:advisory(42, { timeout = timeout, release = "deferred" })
    else
      held = db:advisory(42, { timeout = timeout })
    end
    held:release()
  end
  pairs_done = pairs_done + 100
until clock() - start >= seconds
print(("%.0f"):format(pairs_done / (clock() - start)))
