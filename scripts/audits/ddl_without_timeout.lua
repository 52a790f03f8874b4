-- Statements that change a table's definition and wait for its lock without a limit. As long as they wait,
-- whoever comes after them waits too (see pile_up.lua); under a lock_timeout of a few seconds they would have
-- given up, to be tried again.
--
-- What another session's lock_timeout is can't be seen. One that has waited for longer than this has none, or
-- one that does not help.
local lock = require "lockkeeper"

local LONG = 10 -- seconds

-- The oid alone where its name could not be read.
local function table_name(row)
  return (row.schema and row.schema .. "." or "") .. (row.relation or "?")
end

lock.audit("ddl-without-lock-timeout", {
  every = "30s",
  description = "A statement that needs a strong lock on a table waits for it without a short lock_timeout.",
  advice = "SET lock_timeout = '2s' before it and try it again when that passes: lock.retry does both.",
  find = function(a)
    local waits = a:locks { granted = false, type = "relation", mode_gte = "SHARE UPDATE EXCLUSIVE",
      backend_type = "client backend" }
    local findings = {}
    for _, row in ipairs(waits) do
      local waited = row.wait_duration or row.activity.duration or 0
      if waited >= LONG then
        findings[#findings + 1] = {
          row = row,
          message = ("pid %d (%s, %s) has waited %.0f s for %s on %s: it has no lock_timeout that helps")
            :format(row.pid, row.activity.user or "?", row.activity.application_name or "?", waited, row.mode,
            table_name(row)),
        }
      end
    end
    return findings
  end,
})
