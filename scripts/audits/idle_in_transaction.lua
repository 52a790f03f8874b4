-- Sessions that are idle in a transaction: it has locks, and nobody works on. Mostly an application that has
-- lost its way between BEGIN and COMMIT, or a person who has left a psql open.
local lock = require "lockkeeper"

local BLOCKED = 1    -- seconds that somebody has waited for it
local CRITICAL = 60  -- seconds, likewise
local LONG = 300     -- seconds that it is idle, where nobody waits

local function finding_of(activity, message, severity)
  return {
    subject = ("pid %d, idle in transaction since %.6f"):format(activity.pid, activity.xact_start or 0),
    pid = activity.pid, severity = severity,
    message = ("pid %d (%s, %s) has been %s for %.0f s, %s"):format(activity.pid, activity.user or "?",
      activity.application_name or "?", activity.state, activity.state_duration or 0, message),
  }
end

lock.audit("idle-in-transaction", {
  every = "30s",
  description = "A session holds locks in a transaction in which nothing happens.",
  advice = function(finding)
    -- cancelling would change nothing: it runs no statement
    return ("lockkeeper ls %d --terminate; idle_in_transaction_session_timeout prevents it"):format(
      finding.pid)
  end,
  action = "terminate",
  find = function(a)
    local findings, seen = {}, {}
    local longest = {}
    for _, row in ipairs(a:blocked { blocking_state_startswith = "idle in transaction" }) do
      longest[row.blocking_pid] = math.max(longest[row.blocking_pid] or 0, row.wait_duration or 0)
    end
    for _, node in ipairs(a:graph():sessions()) do
      local waited = longest[node.pid]
      if waited and waited >= BLOCKED then
        seen[node.pid] = true
        local behind = node.behind == 1 and "1 session waits" or node.behind .. " sessions wait"
        findings[#findings + 1] = finding_of(node.activity,
          ("and %s for it, the longest for %.0f s"):format(behind, waited),
          waited >= CRITICAL and "critical" or "warning")
      end
    end
    local idle = a:locks { state_startswith = "idle in transaction", state_duration_gte = LONG,
      granted = true, type_ne = "virtualxid" }
    for _, row in ipairs(idle) do
      if not seen[row.pid] then
        seen[row.pid] = true
        findings[#findings + 1] = finding_of(row.activity, "and holds locks", "warning")
      end
    end
    return findings
  end,
})
