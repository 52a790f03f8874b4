--- Waiting for a lock by trying again and again, so that no session waits inside the server: a waiting
--- one keeps a snapshot, for which others' index builds wait (runner.md 13). Jobs and `exec` wait so.
local core = require "lockkeeper.core"

-- Seconds between two tries, give or take a fifth so that those who wait drift apart.
local INTERVAL, JITTER = 0.25, 0.2

-- One who waits inside the server is given the lock before one who only tries now and then: so many
-- changes of the holder are worth a word.
local UNLUCKY = 3

---@class Wanted
---@field take fun(seconds: number): any, Error?  nil and the error where it was not to be had; 0 seconds: a
---                                              try, math.huge: without an end
---@field deadline fun(): number   on the monotonic clock; math.huge: none. Asked after a try.
---@field poll number|false|nil    seconds between two tries; false: wait in the server
---@field holders fun(): table[]   rows with pid, user, application_name, client_addr
---@field waiting? fun(rows: table[])                   called when it was first seen to be held
---@field unlucky fun(changes: integer, rows: table[])  called once, where it went to others that often

-- Sees who holds it each time it was not to be had.
local function observer(wanted)
  local last, changes, warned = nil, 0, false
  return function()
    local rows = wanted.holders()
    local pids = {}
    for i, row in ipairs(rows) do
      pids[i] = row.pid
    end
    local now = table.concat(pids, " ")
    if now == "" or now == last then
      return
    elseif last == nil then
      if wanted.waiting then
        wanted.waiting(rows)
      end
    else
      changes = changes + 1
    end
    last = now
    if changes >= UNLUCKY and not warned then
      warned = true
      wanted.unlucky(changes, rows)
    end
  end
end

local function left(wanted)
  return wanted.deadline() - core.monotonic()
end

local function wait_in_server(wanted)
  local seconds = left(wanted)
  return wanted.take(seconds > 0 and math.max(seconds, 0.001) or 0)
end

--- Wait for it; tries once more when its time is over. Returns what `take` did, or nil and the error.
---@param wanted Wanted
---@return any got
---@return Error? err        kind "not_acquired" or "lock_timeout"
---@return boolean? at_once  it was had, or refused, by the first try
return function(wanted)
  if wanted.poll == false then
    local got, err = wait_in_server(wanted)
    return got, err, false
  end
  local interval = wanted.poll or INTERVAL
  local look
  while true do
    local begun = core.monotonic()
    local got, err = wanted.take(0)
    if got or wanted.deadline() <= begun then
      return got, err, look == nil
    end
    look = look or observer(wanted)
    look()
    local seconds = math.min(interval * (1 + JITTER * (2 * math.random() - 1)), left(wanted))
    core.sleep(math.max(seconds, 0.001))
  end
end
