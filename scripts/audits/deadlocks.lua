-- Sessions that wait for each other.
--
-- PostgreSQL ends a deadlock itself: after deadlock_timeout (1 s) it cancels one of the statements. One that
-- is seen here has not been noticed yet, or can't be broken so: where a member is a prepared transaction, or
-- deadlock_timeout is long. That it happens at all is a fault of the applications: they take the same locks
-- in different orders.
local lock = require "lockkeeper"

lock.audit("deadlock", {
  every = "10s", severity = "critical",
  description = "Sessions wait for each other, and none of them can go on.",
  advice = "Let all transactions take their locks in one order; lockkeeper tree shows the cycle.",
  find = function(a)
    local findings = {}
    for i, cycle in ipairs(a:graph():cycles()) do
      local pids = table.concat(cycle, ", ")
      findings[i] = {
        subject = "cycle of pids " .. pids,
        message = ("%d sessions wait for each other: pids %s"):format(#cycle, pids),
      }
    end
    return findings
  end,
})
