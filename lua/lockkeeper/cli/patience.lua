--- Waiting for locks as exec does: by trying again and again, so that no session waits inside the
--- server (a waiting one keeps a snapshot: runner.md 13).
local failure = require "lockkeeper.cli.failure"
local host = require "lockkeeper.host"
local lock = require "lockkeeper"

local patience = {}

-- Seconds between two tries, give or take a fifth so that those who wait drift apart.
local INTERVAL, JITTER = 0.25, 0.2

-- One who waits inside the server is given the lock before one who only tries now and then: so many
-- changes of the holder are worth a word.
local UNLUCKY = 3

local SHOWN_MAX = 3

---@class Wanted
---@field name string                              for messages
---@field take fun(timeout: number|false): any, Error?  nil and the error where it was not to be had
---@field holders fun(): table[]                   rows with pid, user, application_name, client_addr

-- "pid 12 (shop, cron, 10.0.0.7), pid 13 and 2 more"
local function described(holders)
  local parts = {}
  for i = 1, math.min(#holders, SHOWN_MAX) do
    local row, words = holders[i], {}
    for _, key in ipairs { "user", "application_name", "client_addr" } do
      if row[key] and row[key] ~= "" then
        words[#words + 1] = row[key]
      end
    end
    parts[i] = ("pid %d%s"):format(row.pid, #words > 0 and (" (%s)"):format(table.concat(words, ", ")) or "")
  end
  local more = #holders - #parts
  return table.concat(parts, ", ") .. (more > 0 and (" and %d more"):format(more) or "")
end

-- Sees who holds it each time it was not to be had.
local function observer(wanted)
  local last, changes, warned = nil, 0, false
  return function()
    local holders = wanted.holders()
    local names = {}
    for i, row in ipairs(holders) do
      names[i] = row.pid
    end
    local now = table.concat(names, " ")
    if last == nil and #holders > 0 and host.terminal(2) then
      failure.say(("waiting for %s, held by %s"):format(wanted.name, described(holders)))
    end
    if now ~= "" and now ~= last then
      changes = changes + (last and 1 or 0)
      last = now
    end
    if changes >= UNLUCKY and not warned then
      warned = true
      failure.say(("warning: %s went to others %d times while this command tried; --no-poll waits in the "
        .. "server's queue. It is held by %s"):format(wanted.name, changes, described(holders)))
    end
  end
end

local function poll(wanted, left)
  local look
  while true do
    local remaining = left()
    local got, err = wanted.take(0)
    if got or remaining <= 0 then
      return got, err
    end
    look = look or observer(wanted)
    look()
    lock.sleep(math.max(math.min(INTERVAL * (1 + JITTER * (2 * math.random() - 1)), left()), 0.001))
  end
end

local function give_up(wanted, err)
  failure.say(err.message)
  local holders = wanted.holders()
  if #holders > 0 then
    failure.say("held by " .. described(holders))
  end
end

--- A function that waits for one thing wanted after another, `timeout` seconds for all together (nil:
--- for ever): by trying, or with `polls` false inside the server. Returns what `take` did, or nil when
--- all was said about it.
---@param timeout? number
---@param polls boolean
---@return fun(wanted: Wanted): any
function patience.new(timeout, polls)
  local deadline = timeout and host.monotonic() + timeout
  local function left()
    return deadline and math.max(deadline - host.monotonic(), 0) or math.huge
  end
  return function(wanted)
    local got, err
    if polls then
      got, err = poll(wanted, left)
    else
      local seconds = left()
      got, err = wanted.take(seconds < math.huge and math.max(seconds, timeout > 0 and 0.001 or 0))
    end
    if not got then
      give_up(wanted, err)
    end
    return got
  end
end

return patience
