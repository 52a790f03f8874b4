--- Waiting for locks as exec does, with words about it on stderr.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local holders = require "lockkeeper.holders"
local host = require "lockkeeper.host"
local wait_patiently = require "lockkeeper.patience"

local patience = {}

---@class WantedByCommand
---@field name string                                   for messages
---@field take fun(timeout: number|false): any, Error?  nil and the error where it was not to be had
---@field holders fun(): table[]                        rows with pid, user, application_name, client_addr

local function give_up(wanted, err)
  failure.say(err.message)
  local rows = wanted.holders()
  if #rows > 0 then
    failure.say("held by " .. holders.described(rows))
  end
end

--- A function that waits for one thing wanted after another, `timeout` seconds for all together (nil:
--- for ever): by trying, or with `polls` false inside the server. Returns what `take` did, or nil when
--- all was said about it.
---@param timeout? number
---@param polls boolean
---@return fun(wanted: WantedByCommand): any
function patience.new(timeout, polls)
  local deadline = timeout and core.monotonic() + timeout or math.huge
  local poll
  if not polls then
    poll = false
  end
  return function(wanted)
    local got, err = wait_patiently {
      take = function(seconds) return wanted.take(seconds < math.huge and seconds) end,
      deadline = function() return deadline end,
      poll = poll,
      holders = wanted.holders,
      waiting = host.terminal(2) and function(rows)
        failure.say(("waiting for %s, held by %s"):format(wanted.name, holders.described(rows)))
      end or nil,
      unlucky = function(changes, rows)
        failure.say(("warning: %s went to others %d times while this command tried; --no-poll waits in the "
          .. "server's queue. It is held by %s"):format(wanted.name, changes, holders.described(rows)))
      end,
    }
    if not got then
      give_up(wanted, err)
    end
    return got
  end
end

return patience
