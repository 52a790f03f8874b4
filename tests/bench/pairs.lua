-- Pairs of acquire and release a second by the module; microseconds of our CPU time a pair; the same with
-- the backend's (a server of this machine):
--   lockkeeper run pairs.lua SECONDS|COUNTx try|timed|deferred|shared|xact|nested|model
--   lockkeeper run pairs.lua 0 once          lock, release: for timing a process
local core = require "lockkeeper.core"
local lock = require "lockkeeper"
local windows = dofile "tests/bench/windows.lua"

local amount, mode = arg[1], arg[2]
local most, seconds = tonumber(amount:match("^(%d+)x$")), tonumber(amount)
local db = lock.db

local rounds = {
  try = function() db:advisory(42, { timeout = 0 }):release() end,
  timed = function() db:advisory(42, { timeout = "5s" }):release() end,
  deferred = function() db:advisory(42, { timeout = 0, release = "deferred" }):release() end,
  shared = function() db:advisory(42, { timeout = 0, shared = true }):release() end,
  xact = function()
    db:transaction(function() db:advisory(42, { timeout = 0, xact = true }) end)
  end,
  nested = function()
    local outer = db:advisory(42, { timeout = 0 })
    db:advisory(43, { timeout = 0 }):release()
    outer:release()
  end,
  model = function()
    db:transaction(function() db:model("bench_model", { mode = "SHARE" }) end)
  end,
}

if mode == "once" then
  db:advisory(42, { timeout = 0 }):release()
  return
end
local round = rounds[mode]
for _ = 1, 10 do
  round() -- so that the statements are prepared
end
-- Seconds of CPU time of the backend; 0 where that can't be read.
local function backend_time()
  local file <close> = io.open(("/proc/%d/schedstat"):format(db.pid))
  return (file and file:read("n") or 0) / 1e9
end

local BATCH, pairs_each = 100, mode == "nested" and 2 or 1
local in_batch = BATCH * pairs_each
local function batch()
  for _ = 1, BATCH do
    round()
  end
end
local cpu, backend = os.clock(), backend_time()
local batches, each = windows(core.monotonic, batch, seconds, most and math.ceil(most / in_batch))
local done = batches * in_batch
cpu = os.clock() - cpu
backend = backend_time() - backend
print(("%.1f %.3f %.3f"):format(in_batch / each, cpu * 1e6 / done, (cpu + backend) * 1e6 / done))
