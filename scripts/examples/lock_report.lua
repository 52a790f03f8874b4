#!/usr/bin/env -S lockkeeper run
-- Who waits for whom, and since when; then the tables, the most locked first.
--
--   lockkeeper run lock_report.lua [SECONDS]
--
-- Only waits of at least SECONDS (default 0) are shown. Any role may run it, but without
-- pg_monitor it does not see what other roles' sessions do.
local lock = require "lockkeeper"

local seconds = tonumber(arg[1]) or 0

local function who(pid, activity)
  return ("pid %s (%s, %s)"):format(pid or "none", activity.user or "?", activity.state or "?")
end

local blocked = lock.blocked { wait_duration_gte = seconds }
print(#blocked == 0 and "nobody waits" or "waits:")
for _, row in ipairs(blocked) do
  print(("  %s has waited %.1f s for %s on %s"):format(who(row.pid, row.activity), row.wait_duration,
    row.mode, row.relation or row.lock_name or row.type))
  print(("    behind %s, which has %s"):format(who(row.blocking_pid, row.blocking_activity),
    row.blocking_mode or "come earlier"))
  print("    " .. (row.blocking_activity.query or ""):gsub("%s+", " "):sub(1, 80))
end

local tables, locks = {}, {}
for _, row in ipairs(lock.locks { relation_kind = "table", schema_ne = "pg_catalog", granted = true }) do
  local name = row.schema .. "." .. row.relation
  if not locks[name] then
    locks[name] = 0
    tables[#tables + 1] = name
  end
  locks[name] = locks[name] + 1
end
table.sort(tables, function(a, b) return locks[a] > locks[b] or locks[a] == locks[b] and a < b end)
print(#tables == 0 and "no table is locked" or "locks on tables:")
for _, name in ipairs(tables) do
  print(("  %s: %d"):format(name, locks[name]))
end
