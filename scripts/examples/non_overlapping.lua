#!/usr/bin/env -S lockkeeper run
-- A job that never overlaps with itself, however often and on however many hosts it is started.
--
--   lockkeeper run non_overlapping.lua [SECONDS [NAME]]
--
-- The first to come works; whoever comes meanwhile does not wait: it ends with exit code 75
-- (EX_TEMPFAIL), which cron, systemd and CI take for "try again later". When the worker ends, in
-- whatever way, PostgreSQL frees the lock.
local lock = require "lockkeeper"

local seconds = tonumber(arg[1]) or 10
local name = arg[2] or ("process " .. lock.db.pid)

lock.advisory("nightly-report", { timeout = 0 }, function(held)
  print(("%s: I have the lock (key %d) and work for %g s"):format(name, held.key, seconds))
  lock.sleep(seconds) -- the work
  print(("%s: done, the lock is free again"):format(name))
end)
