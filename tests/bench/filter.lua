-- Milliseconds to pick rows among LOCKS advisory locks, without those of reading them:
--   lockkeeper run filter.lua LOCKS fields|expression|function
-- fields: a table of fields; expression: what `lockkeeper ls -w` takes; function: a Lua function.
local core = require "lockkeeper.core"
local expression = require "lockkeeper.expression"
local lock = require "lockkeeper"

local count, how = tonumber(arg[1]), arg[2]
lock.db:query("select count(pg_advisory_lock(i)) from generate_series(1, $1) i", count)
local condition = expression.compile('type == "advisory" and granted and mode == "EXCLUSIVE" and pid > 0',
  { name = "locks" })
local filters = {
  fields = { type = "advisory", granted = true, mode_in = { "EXCLUSIVE", "SHARE" }, pid_gt = 0 },
  expression = function(row) return condition:matches(row) end,
  ["function"] = function(row)
    return row.type == "advisory" and row.granted and row.mode == "EXCLUSIVE" and row.pid > 0
  end,
}
local filter = filters[how]

local function time_of(given)
  local times = {}
  for i = 1, 9 do
    local start = core.monotonic()
    assert(#lock.locks(given) >= count)
    times[i] = core.monotonic() - start
  end
  table.sort(times)
  return times[5] * 1e3
end

local plain = time_of(nil)
print(("%.4f"):format(time_of(filter) - plain))
