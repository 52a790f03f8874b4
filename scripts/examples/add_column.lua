#!/usr/bin/env -S lockkeeper run
-- Change a table that is in use all day, by giving way and trying again.
--
--   lockkeeper run add_column.lua [TABLE [COLUMN]]
--
-- ALTER TABLE needs the table for itself for a moment. While it waits for those who have it,
-- everybody who comes later waits behind it: behind one forgotten transaction, the whole site. So
-- it waits for half a second only. If it had no luck it leaves the queue, lets the others pass, and
-- comes again a little later, thirty times at most. Each failed attempt is logged.
local lock = require "lockkeeper"

local name = arg[1] or "lockkeeper_orders"
local column = arg[2] or "note"

lock.db:exec(lock.db:format("create table if not exists %I (id bigint primary key)", name))

local attempts = 0
lock.retry({ timeout = "500ms", attempts = 30, delay = "200ms", max_delay = "5s" }, function(tx)
  attempts = attempts + 1
  tx:exec(tx:format("alter table %I add column if not exists %I text", name, column))
end)
print(("%s has the column %s, at attempt %d"):format(name, column, attempts))
