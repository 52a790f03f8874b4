--- Where a job can be when it loses its lock. Each is the code of a job's `run(job)`; `mark()` writes the
--- time of the database's host to a file: the job's last mark is its last action.

local places = {}

---@class Place
---@field name string
---@field code string
---@field marks_first? boolean  it marks once, then sits in a call
---@field command? boolean      what it marks with is a command, which has `grace`

local function place(name, code, more)
  local made = { name = name, code = code }
  for key, value in pairs(more or {}) do
    made[key] = value
  end
  places[#places + 1] = made
end

local SITS = { marks_first = true }

place("Lua code", [[while true do mark() end]])
place("a coroutine", [[
  local step = coroutine.wrap(function() while true do mark() coroutine.yield() end end)
  while true do step() end]])
place("a coroutine that never yields", [[coroutine.wrap(function() while true do mark() end end)()]])
place("code that swallows errors with pcall", [[
  while true do pcall(function() while true do pcall(function() while true do mark() end end) end end) end]])
place("code that goes on in __close", [[
  local function go_on()
    local _ <close> = setmetatable({}, { __close = go_on })
    while true do mark() end
  end
  go_on()]])
place("code that swallows errors in a coroutine", [[
  while true do
    local co = coroutine.create(function() while true do mark() coroutine.yield() end end)
    repeat until not coroutine.resume(co)
  end]])
place("a metamethod that sort calls", [[
  while true do
    pcall(table.sort, { 3, 1, 2 }, function(a, b) mark() return a < b end)
  end]])
place("lock.sleep", [[while true do mark() pcall(lock.sleep, "1ms") end]])
place("lock.tasks", [[
  while true do
    pcall(lock.tasks, function(spawn)
      for _ = 1, 5 do
        spawn(function() while true do mark() pcall(lock.sleep, "2ms") end end)
      end
    end)
  end]])
place("a task that waits for a lock", [[
  mark()
  lock.tasks(function(spawn)
    spawn(function() lock.advisory("held elsewhere", function() mark() end) end)
  end)
  mark()]], SITS)
place("SQL on the job's session", [[mark() job.db:query("select pg_sleep(30)") mark()]], SITS)
place("SQL on another session", [[
  local other = lock.connect {}
  mark()
  other:query("select pg_sleep(30)")
  mark()]], SITS)
place("rows that are streamed", [[
  for _ in job.db:rows("select pg_sleep(0.001) from generate_series(1, 1000000)") do mark() end]])
place("string.rep of gigabytes", [[mark() while true do local _ = string.rep("x", 1 << 30) end]], SITS)
place("string.find that backtracks", [[
  mark()
  string.find(string.rep("a", 40000), string.rep("a*", 50) .. "b")
  mark()]], SITS)
place("io.read on a pipe", [[mark() io.popen("sleep 30.125"):read("a") mark()]], SITS)
place("os.execute", [[mark() os.execute("sleep 30.125") mark()]], SITS)
place("job:sh", [[
  job:sh { "sh", "-c", 'while :; do date +%s.%N >> "$0"; sleep 0.005; done', path }]], { command = true })
place("job:sh with a command that ignores SIGTERM", [[
  job:sh { "sh", "-c", 'trap "" TERM; while :; do date +%s.%N >> "$0"; sleep 0.005; done', path }]],
  { command = true })

--- A file that defines a job at this place, which marks to `path`.
---@param at Place
---@param path string
---@param policy? string  more keys of the job, as Lua text
---@param name? string    the job's; default "watched"
---@return string
function places.file(at, path, policy, name)
  return ([[
    local lock = require "lockkeeper"
    local core = require "lockkeeper.core"
    local path = %q
    local function mark()
      local file = io.open(path, "a")
      file:write(("%%.6f\n"):format(core.now()))
      file:close()
    end
    lock.job(%q, { policy = { grace = "300ms" }, %s run = function(job)
      %s
    end })
  ]]):format(path, name or "watched", policy or "", at.code)
end

--- The time of the last mark, in epoch seconds.
---@param path string
---@return number?
function places.last_mark(path)
  local file = io.open(path)
  local text = file and file:read("a") or ""
  if file then
    file:close()
  end
  local last
  for line in text:gmatch("(%d+%.%d+)\n") do
    last = tonumber(line)
  end
  return last
end

return places
