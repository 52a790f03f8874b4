#!/usr/bin/env -S lockkeeper run
-- Any number of hosts share a service that takes no more than two calls at a time.
--
--   lockkeeper run api_calls.lua [HOST [CALLS [SECONDS]]]
--
-- Run it on three hosts (or in three terminals) at once: PostgreSQL counts the slots, so the hosts
-- need not know of each other. A host that dies in the middle of a call frees its slot.
local lock = require "lockkeeper"

local host = arg[1] or ("process " .. lock.db.pid)
local calls = tonumber(arg[2]) or 5
local seconds = tonumber(arg[3]) or 1

for i = 1, calls do
  lock.semaphore("api-calls", 2, { timeout = "1m" }, function(held)
    print(("%s: call %d in slot %d, after waiting %.1f s"):format(host, i, held.slot, held.waited))
    lock.sleep(seconds) -- the call
  end)
end
print(host .. ": done")
