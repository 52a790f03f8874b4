--- lock.all: several advisory locks, all of them or none, in one round trip.
---
--- They are taken in the order of their keys (bigint keys by their signed value, then pairs of int4 keys),
--- whatever order they are written in, and while one is waited for none behind it is held: so callers of
--- lock.all can't deadlock on each other. A key that is in the list twice is taken once, exclusively if
--- either asks for that.
local call = require "lockkeeper.call"
local core = require "lockkeeper.core"

---@class AllElement
---@field id string|integer|integer[]
---@field shared? boolean  default: the option shared

---@class AllGuard  one for all the locks
---@field ids (string|integer|integer[])[]  in the order in which they were written
---@field keys (integer|integer[])[]        the same
---@field xact boolean
---@field waited number       seconds; 0 where all were had at once
---@field acquired_at number  epoch seconds by this host's clock
---@field release fun(self: AllGuard)           gives all back; idempotent
---@field is_held fun(self: AllGuard): boolean  asks the server whether every one is held

local function call_with_xact_locks(session, list, options, fn, ...)
  local tx <close> = session:begin()
  local held, err = core.all(session, list, options, true)
  if not held then
    return nil, err
  end
  local results = table.pack(fn(held, ...))
  tx:commit()
  return table.unpack(results, 1, results.n)
end

local function call_with_locks(session, list, options, fn, ...)
  call.check_function("all", fn)
  session = session or core.session(call.option(options, "using"))
  if call.option(options, "xact") then
    return call_with_xact_locks(session, list, options, fn, ...)
  end
  local held <close>, err = core.all(session, list, options, true)
  if not held then
    return nil, err
  end
  if session.in_transaction then
    return call.in_block(session, held, fn, ...)
  end
  return fn(held, ...)
end

--- Hold them all. With a function: calls fn(guard, ...) under the locks and returns its results.
---@param session? Session
---@param list (string|integer|integer[]|AllElement)[]
---@param options? AdvisoryOptions  timeout is for all together, shared for those that say nothing else
---@param fn? fun(held: AllGuard, ...): ...
---@return AllGuard? held
---@return Error? err  kind "not_acquired" or "lock_timeout"; it names the lock that was not to be had
return function(session, list, options, fn, ...)
  if fn == nil and type(options) ~= "function" then
    return core.all(session, list, options)
  end
  return call_with_locks(session, list, call.shift(options, fn, ...))
end
