-- Milliseconds from block to go under prioritize, one a line: lockkeeper run prioritize.lua ROUNDS
local core = require "lockkeeper.core"
local lock = require "lockkeeper"

local db = lock.db
db:exec("set client_min_messages = warning")
db:exec([[create table if not exists bench_prioritize (v int);
  delete from bench_prioritize; insert into bench_prioritize values (0)]])
for _ = 1, tonumber(arg[1]) do
  local blocker <close> = lock.connect {}
  blocker:exec("begin; lock table bench_prioritize in access exclusive mode")
  db:prioritize({ interval = "10ms" }, function()
    local start = core.monotonic()
    db:exec("update bench_prioritize set v = v + 1")
    print(("%.3f"):format((core.monotonic() - start) * 1000))
  end)
end
