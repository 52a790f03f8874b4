-- What pairs.lua does, by LuaSQL: lua5.4 pairs_luasql.lua SECONDS try|timed|once
local luasql = require "luasql.postgres"
local windows = dofile "tests/bench/windows.lua"

local seconds, mode = tonumber(arg[1]), arg[2]
local connection = assert(luasql.postgres():connect(os.getenv("DATABASE_URL")))

local function run(sql)
  local cursor = assert(connection:execute(sql))
  if type(cursor) == "userdata" then
    local value = cursor:fetch()
    cursor:close()
    return value
  end
end

local rounds = {
  try = function()
    run("SELECT pg_try_advisory_lock(42)")
    run("SELECT pg_advisory_unlock(42)")
  end,
  timed = function()
    run("SET lock_timeout = '5s'")
    run("SELECT pg_advisory_lock(42)")
    run("RESET lock_timeout")
    run("SELECT pg_advisory_unlock(42)")
  end,
}

if mode == "once" then
  rounds.try()
  connection:close()
  return
end
local round = rounds[mode]
-- LuaSQL has no clock; the seconds of a time query cost nothing beside a round.
local function now()
  local value = run("SELECT extract(epoch FROM clock_timestamp())::text")
  return tonumber(value)
end
local pid = run("SELECT pg_backend_pid()")
local function backend_time()
  local file <close> = io.open(("/proc/%s/schedstat"):format(pid))
  return (file and file:read("n") or 0) / 1e9
end
local BATCH = 100
local function batch()
  for _ = 1, BATCH do
    round()
  end
end
local cpu, backend = os.clock(), backend_time()
local batches, each = windows(now, batch, seconds)
local done = batches * BATCH
cpu = os.clock() - cpu
backend = backend_time() - backend
print(("%.1f %.3f %.3f"):format(BATCH / each, cpu * 1e6 / done, (cpu + backend) * 1e6 / done))
