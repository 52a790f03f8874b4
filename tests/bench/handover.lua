-- Milliseconds from the release of a lock to the last waiter's having had it, the median; each waiter is a
-- task with a session of its own: lockkeeper run handover.lua WAITERS ROUNDS
local core = require "lockkeeper.core"
local lock = require "lockkeeper"

local count, rounds = tonumber(arg[1]), tonumber(arg[2])
local holder, sessions, times = lock.db, {}, {}
for i = 1, count do
  sessions[i] = lock.connect()
end
for round = 1, rounds do
  local held, done, start, stop = holder:advisory(77, { timeout = 0 }), 0, nil, nil
  lock.tasks(function(spawn)
    for i = 1, count do
      spawn(function()
        sessions[i]:advisory(77, { timeout = "1m" }):release()
        done = done + 1
        if done == count then
          stop = core.monotonic()
        end
      end)
    end
    while holder:value("select count(*) from pg_locks where not granted") < count do
      lock.sleep("1ms")
    end
    start = core.monotonic()
    held:release()
  end)
  times[round] = (stop - start) * 1000
end
table.sort(times)
print(("%.4f"):format(times[#times // 2 + 1]))
