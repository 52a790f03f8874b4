#!/usr/bin/env -S lockkeeper run
-- Change a table that is in use all day, by ending whoever is in the way for too long.
--
--   lockkeeper run prioritized_migration.lua [TABLE [COLUMN]]
--
-- ALTER TABLE waits for those who have the table, and whoever comes later waits behind it. Here
-- nobody waits long: a session that has kept the ALTER waiting for half a second, such as one that
-- somebody left idle in a transaction, is terminated. A dump is left alone: then it is the ALTER
-- that gives up, after three seconds (exit code 75). Try `dry_run = true` first.
--
-- The role needs pg_signal_backend to end other roles' sessions, and pg_read_all_stats to see them.
local lock = require "lockkeeper"

local name = arg[1] or "lockkeeper_orders"
local column = arg[2] or "note"

lock.db:exec(lock.db:format("create table if not exists %I (id bigint primary key)", name))

lock.prioritize({
  interval = "250ms",
  where = { wait_duration_gte = "500ms" },
  protect = { application_name = "pg_dump" },
  timeout = "3s",
  on_action = function(action)
    print(("%s pid %d (%s, %s): %s"):format(action.action, action.pid, action.user, action.application_name,
      action.result))
  end,
}, function()
  lock.db:exec(lock.db:format("alter table %I add column if not exists %I text", name, column))
end)
print(("%s has the column %s"):format(name, column))
