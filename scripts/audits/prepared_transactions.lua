-- Prepared transactions (two-phase commit) that nobody finishes. They keep their locks over restarts of the
-- server, hold VACUUM back, and belong to no session that could be ended.
local lock = require "lockkeeper"

local YOUNG = 5       -- seconds: a transaction manager may still be at work
local LONG = 60       -- seconds
local CRITICAL = 3600 -- seconds

lock.audit("orphaned-prepared-transaction", {
  every = "1m",
  description = "A prepared transaction was neither committed nor rolled back, and keeps its locks.",
  advice = function(finding)
    return ("ask its transaction manager; else, in its database, ROLLBACK PREPARED '%s'"):format(
      (finding.gid:gsub("'", "''")))
  end,
  find = function(a)
    local blocks, findings, seen = {}, {}, {}
    for _, root in ipairs(a:graph():roots()) do
      blocks[root.gid or 0] = root.behind
    end
    for _, row in ipairs(a:locks { state = "prepared" }) do
      local gid, age = row.activity.gid, row.activity.state_duration or 0
      local behind = blocks[gid] or 0
      if gid and not seen[gid] and (age >= YOUNG or behind > 0) then
        seen[gid] = true
        findings[#findings + 1] = {
          row = row, subject = ("prepared transaction '%s'"):format(gid),
          severity = age >= CRITICAL and "critical" or (age >= LONG or behind > 0) and "warning" or "info",
          message = ("the prepared transaction '%s' of %s is %.0f s old%s"):format(gid,
            row.activity.user or "?", age, behind > 0 and (", and %d %s for it"):format(behind,
            behind == 1 and "session waits" or "sessions wait") or ""),
        }
      end
    end
    return findings
  end,
})
