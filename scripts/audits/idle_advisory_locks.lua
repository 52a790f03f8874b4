-- Advisory locks of sessions that are idle and in no transaction: nobody works under them any more, or a
-- connection went back into a pool with its lock. Some are meant so (a leader that holds its lock for good),
-- so where nobody waits for the lock this only tells.
local lock = require "lockkeeper"

local LONG = 60   -- seconds that the session is idle
local BLOCKED = 5 -- seconds that somebody has waited for the lock

local function name_of(row)
  return row.lock_name or (type(row.key) == "table" and ("(%d, %d)"):format(row.key[1], row.key[2])
    or tostring(row.key))
end

lock.audit("idle-advisory-lock", {
  every = "1m", severity = "info",
  description = "An idle session holds a session-level advisory lock.",
  advice = function(finding)
    return ("if it was forgotten: lockkeeper ls %d --terminate; transaction-level locks (xact) can't be")
      :format(finding.pid)
  end,
  find = function(a)
    local waited = {}
    for _, row in ipairs(a:blocked { type = "advisory", blocking_state = "idle" }) do
      local key = row.blocking_pid .. " " .. name_of(row)
      waited[key] = math.max(waited[key] or 0, row.wait_duration or 0)
    end
    local findings = {}
    -- lockkeeper's own sessions are idle under their locks while commands run
    for _, row in ipairs(a:locks { type = "advisory", granted = true, state = "idle" }) do
      local seconds = waited[row.pid .. " " .. name_of(row)] or 0
      local is_ours = (row.activity.application_name or ""):find("^lockkeeper: ")
      if not is_ours and (seconds >= BLOCKED or (row.activity.state_duration or 0) >= LONG) then
        findings[#findings + 1] = {
          row = row, pid = row.pid, severity = seconds >= BLOCKED and "warning" or "info",
          message = ("pid %d (%s, %s) has been idle for %.0f s and holds the advisory lock %s%s"):format(
            row.pid, row.activity.user or "?", row.activity.application_name or "?",
            row.activity.state_duration or 0, name_of(row),
            seconds > 0 and (", for which another session has waited %.0f s"):format(seconds) or ""),
        }
      end
    end
    return findings
  end,
})
