-- Replication in the way: walsenders that hold a lock which others wait for, and slots that nobody reads
-- from, for which the server keeps WAL and dead rows until its disk is full.
local lock = require "lockkeeper"

local BLOCKING = 1              -- seconds that somebody has waited for a walsender
local RETAINED = 1 << 30        -- bytes of WAL kept for a slot that is not in use
local XMIN_AGE = 50 * 1000 * 1000 -- transactions

local function blocking_walsenders(a, findings)
  local seen = {}
  for _, edge in ipairs(a:graph():edges()) do
    local is_long = edge.blocker_class == "walsender" and (edge.waited or 0) >= BLOCKING
    if is_long and not seen[edge.blocker_pid] then
      seen[edge.blocker_pid] = true
      findings[#findings + 1] = {
        subject = ("walsender %d blocks"):format(edge.blocker_pid), row = edge.lock, pid = edge.blocker_pid,
        message = ("the walsender %d has kept pid %d waiting for %.0f s"):format(edge.blocker_pid,
          edge.waiter_pid, edge.waited),
        advice = "A logical subscriber's initial copy, or a base backup: let it finish, or stop it where it "
          .. "was started.",
      }
    end
  end
end

lock.audit("replication", {
  every = "1m",
  description = "A walsender blocks others, or a replication slot that nobody uses makes the server keep WAL "
    .. "and dead rows.",
  find = function(a)
    local findings = {}
    blocking_walsenders(a, findings)
    local server = a:server()
    for _, slot in ipairs(server and server.slots or {}) do
      local is_lost = slot.wal_status == "lost"
      if is_lost or not slot.active and (slot.retained >= RETAINED or (slot.xmin_age or 0) >= XMIN_AGE) then
        findings[#findings + 1] = {
          subject = "slot " .. slot.name, severity = slot.wal_status == "unreserved" and "critical" or nil,
          message = is_lost and ("the slot %s has lost WAL that it needs"):format(slot.name)
            or ("nobody uses the slot %s, for which the server keeps %.1f GB of WAL%s"):format(slot.name,
            slot.retained / RETAINED, slot.xmin_age and (" and rows that died in the last %d transactions")
            :format(slot.xmin_age) or ""),
          advice = ("start what reads from it, or pg_drop_replication_slot('%s')"):format(slot.name),
        }
      end
    end
    return findings
  end,
})
