-- The scene of graph.sh: 10,000 advisory locks, 2,000 relation locks, and a chain of 50 sessions of which
-- each waits for the one before. Says "ready", and stays until the process ends.
local lock = require "lockkeeper"

local CHAIN, ADVISORY, RELATIONS = 50, 10000, 2000

local url = os.getenv("DATABASE_URL")
lock.db:query("select count(pg_advisory_lock(1000000 + i)) from generate_series(1, $1) i", ADVISORY)
for i = 1, RELATIONS do
  lock.db:exec(("create table if not exists bench_graph_%d (id int)"):format(i))
end
lock.db:exec("begin")
for i = 1, RELATIONS do
  lock.db:exec(("lock table bench_graph_%d in share mode"):format(i))
end

lock.tasks(function(spawn)
  local links = {}
  for i = 0, CHAIN do
    links[i] = lock.connect { conninfo = url, name = "link " .. i }
    links[i]:exec("set deadlock_timeout = '1h'")
    links[i]:query("select pg_advisory_lock($1)", i)
  end
  for i = 1, CHAIN do
    spawn(function() links[i]:query("select pg_advisory_lock($1)", i - 1) end)
  end
  while lock.db:value("select count(*) from pg_locks where not granted") < CHAIN do
    lock.sleep("5ms")
  end
  print("ready")
  io.stdout:flush()
  lock.sleep("10m")
end)
