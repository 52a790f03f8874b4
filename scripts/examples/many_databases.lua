#!/usr/bin/env -S lockkeeper run
-- The same work in many databases at once, without a thread: while one waits, the others go on.
--
--   lockkeeper run many_databases.lua CONNINFO...
--   lockkeeper run many_databases.lua "host=eu dbname=shop" "host=us dbname=shop"
--
-- In each database it is done by one of all who try at once: whoever finds it under way leaves it.
-- An error in one database cancels the work in the others, and gives back what they hold.
local lock = require "lockkeeper"

lock.tasks({ max = 8 }, function(spawn)
  for i = 1, math.max(#arg, 1) do -- without a CONNINFO: the database of the environment
    spawn(function()
      local db <close> = lock.connect { conninfo = arg[i] }
      local size, busy = db:advisory("maintenance", { timeout = 0, on_busy = "skip" }, function()
        db:exec("analyze")
        return db:value("select pg_database_size(current_database())")
      end)
      print(busy and ("%s: somebody is at it already"):format(db.database)
        or ("%s: analyzed, %d kB"):format(db.database, size // 1024))
    end)
  end
end)
