#!/usr/bin/env -S lockkeeper run
-- Change a table that others use, without making them wait behind us.
--
--   lockkeeper run table_lock.lua [SECONDS]
--
-- A lock that is asked for and not had blocks everybody who comes after it in the queue. So ask
-- with a short timeout: either we have the table within half a second, or we leave the queue and
-- say so (exit code 75). The transaction stays usable either way.
local lock = require "lockkeeper"

local seconds = tonumber(arg[1]) or 0

lock.db:exec [[
  create table if not exists lockkeeper_example (id bigint primary key, total numeric not null);
  insert into lockkeeper_example values (1, 100) on conflict do nothing
]]

lock.db:transaction(function(tx)
  local ok, err = lock.model("lockkeeper_example", { mode = "SHARE ROW EXCLUSIVE", timeout = "500ms" })
  if not ok then
    print("the table is in use, nothing was changed: " .. err.message)
    os.exit(75)
  end
  tx:exec("update lockkeeper_example set total = total * $1 where id = 1", 1.1)
  lock.sleep(seconds)
  local total = tx:value("select round(total, 2)::text from lockkeeper_example")
  print("the table was ours; its total is now " .. total)
end)
