-- Who is at the root of the trouble: sessions that wait for nobody and have many others behind them, or
-- others that have waited for long. To end such a one sets all of them free.
local lock = require "lockkeeper"

local MANY = 5       -- sessions behind it
local LONG = 30      -- seconds that these have waited, together
local CRITICAL = 600 -- seconds, likewise

local function name_of(root)
  if root.gid then
    return ("the prepared transaction '%s'"):format(root.gid)
  end
  local activity = root.activity
  return ("pid %d (%s, %s)"):format(root.pid, activity.user or "?", activity.application_name or "?")
end

lock.audit("root-blocker", {
  every = "30s",
  description = "One session keeps many others waiting, directly or through those that wait for it.",
  advice = function(finding)
    return finding.pid and ("lockkeeper ls %d --terminate"):format(finding.pid)
      or ("ROLLBACK PREPARED '%s'"):format((finding.gid:gsub("'", "''")))
  end,
  find = function(a)
    local findings = {}
    for _, root in ipairs(a:graph():roots()) do
      if root.behind >= MANY or root.weight >= LONG then
        findings[#findings + 1] = {
          row = root, severity = root.weight >= CRITICAL and "critical" or "warning",
          message = ("%s blocks %d %s, which %s waited %.0f s together"):format(name_of(root), root.behind,
            root.behind == 1 and "session" or "sessions", root.behind == 1 and "has" or "have", root.weight),
        }
      end
    end
    return findings
  end,
})
