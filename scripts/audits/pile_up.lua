-- The pile-up: an ALTER TABLE wants ACCESS EXCLUSIVE and waits for one reader, and everybody who comes after
-- it, readers too, waits behind it. The table is as good as down until the first reader has ended.
local lock = require "lockkeeper"

local MANY = 10 -- sessions behind the request
local LONG = 30 -- seconds that it has waited

-- The oid alone where its name could not be read.
local function table_name(row)
  return (row.schema and row.schema .. "." or "") .. (row.relation or "?")
end

lock.audit("pile-up", {
  every = "10s",
  description = "A request for ACCESS EXCLUSIVE waits for those who use the table, and all who come after it "
    .. "wait behind it.",
  advice = function(finding)
    return ("End the request, lockkeeper ls %d --cancel, or those it waits for; run migrations under a short "
      .. "lock_timeout, with lock.retry"):format(finding.pid)
  end,
  find = function(a)
    local requests, queued = {}, {}
    for _, edge in ipairs(a:graph():edges()) do
      local relation = edge.lock.type == "relation"
      if relation and edge.requested_mode == "ACCESS EXCLUSIVE" and edge.held_mode then
        requests[edge.waiter_pid] = requests[edge.waiter_pid] or edge
      elseif relation and not edge.held_mode and edge.blocker_pid then
        queued[edge.blocker_pid] = (queued[edge.blocker_pid] or 0) + 1
      end
    end
    local findings = {}
    for pid, edge in pairs(requests) do
      local row, behind = edge.lock, queued[pid]
      if behind then
        local waited = edge.waited or 0
        findings[#findings + 1] = {
          row = row, severity = (behind >= MANY or waited >= LONG) and "critical" or "warning",
          pid = pid,
          message = ("pid %d (%s) has waited %.0f s for ACCESS EXCLUSIVE on %s; %d %s behind it"):format(
            pid, row.activity.application_name or "?", waited, table_name(row), behind,
            behind == 1 and "session queues" or "sessions queue"),
        }
      end
    end
    return findings
  end,
})
