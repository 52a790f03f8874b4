-- Autovacuum that is in the way, or that can't go on. One that blocks a session gives up by itself after
-- deadlock_timeout (1 s), unless it prevents transaction id wraparound: then it goes on, and has to.
local lock = require "lockkeeper"

local BLOCKING = 5 -- seconds that somebody has waited for it
local BLOCKED = 60 -- seconds that it has waited

lock.audit("autovacuum", {
  every = "1m",
  description = "Autovacuum and other sessions are in each other's way.",
  find = function(a)
    local findings, seen = {}, {}
    for _, edge in ipairs(a:graph():edges()) do
      local waiter, waited = edge.lock.activity, edge.waited or 0
      local table_name = (edge.lock.schema and edge.lock.schema .. "." or "") .. (edge.lock.relation or "?")
      if waiter.backend_type == "autovacuum worker" and waited >= BLOCKED and not seen[edge.waiter_pid] then
        seen[edge.waiter_pid] = true
        findings[#findings + 1] = {
          subject = "autovacuum waits for " .. table_name, row = edge.lock,
          message = ("autovacuum of %s has waited %.0f s, for pid %s"):format(table_name, waited,
            edge.blocker_pid or "?"),
          advice = "The table grows until it is vacuumed: end what holds the lock, as soon as that can be.",
        }
      end
      local is_wraparound = edge.blocker_class == "autovacuum_wraparound"
      if (is_wraparound or edge.blocker_class == "autovacuum") and waited >= BLOCKING
        and not seen[edge.blocker_pid] then
        seen[edge.blocker_pid] = true
        findings[#findings + 1] = {
          subject = "autovacuum blocks " .. table_name, row = edge.lock, pid = edge.blocker_pid,
          message = ("%s has kept pid %d waiting for %s on %s for %.0f s"):format(is_wraparound
            and "autovacuum that prevents wraparound" or "autovacuum", edge.waiter_pid, edge.requested_mode,
            table_name, waited),
          advice = is_wraparound and "Let it finish: cancel what waits for it instead, and come again later."
            or ("lockkeeper ls %d --cancel"):format(edge.blocker_pid),
        }
      end
    end
    return findings
  end,
})
