--- lock.semaphore: one of n slots, each an advisory lock. Slot 2 of "api-calls" is the lock
--- "api-calls#2", so that others who know its key may hold one too.
---
--- No one can wait in the server for any of several locks. So whoever waits asks now and then, and tries
--- only what it has seen free: looking at all slots is one round trip, having one is another.
---
--- A session never gets a slot that it has already, though PostgreSQL would give it that lock again: two
--- guards are two of the n holders, whoever has them.
local call = require "lockkeeper.call"
local core = require "lockkeeper.core"

---@class SemaphoreOptions
---@field timeout? number|string|false  how long to wait; 0 looks once, false waits for ever
---@field xact? boolean                 transaction-level
---@field on_busy? "return"|"raise"|"skip"
---@field poll? number|string           the interval at which to look; default "100ms"
---@field using? string|Session
---@field scheme? string                as advisory's
---@field prefix? integer
---@field release? "deferred"

local OPTIONS = { "timeout", "xact", "on_busy", "poll", "using", "scheme", "prefix", "release" }

local SLOTS_MAX = 1000
local POLL = 0.1    -- seconds
local SLEEP_MIN = 0.001
local JITTER = 0.2  -- the part of the interval by which it is longer or shorter, by chance

-- $1 and $2: the slots' classid and objid, $3: their objsubid, as pg_locks shows them. The free slots,
-- one that others have, and this session's lock_timeout in seconds. A prepared transaction has no pid.
local LOOK_SQL = [[
WITH slot AS (
  SELECT k.slot, k.classid, k.objid
    FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.int8[]), pg_catalog.unnest($2::pg_catalog.int8[]))
      WITH ORDINALITY AS k(classid, objid, slot)
), taken AS (
  SELECT s.slot, COALESCE(l.pid, 0) AS pid
    FROM pg_catalog.pg_locks l
    JOIN slot s ON s.classid OPERATOR(pg_catalog.=) l.classid::pg_catalog.int8
               AND s.objid OPERATOR(pg_catalog.=) l.objid::pg_catalog.int8
   WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' AND l.granted
     AND l.objsubid OPERATOR(pg_catalog.=) $3::pg_catalog.int2
     AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d
           WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
)
SELECT ARRAY(SELECT s.slot FROM slot s
              WHERE NOT EXISTS (SELECT FROM taken t WHERE t.slot OPERATOR(pg_catalog.=) s.slot)) AS free,
       (SELECT t.slot FROM taken t
         WHERE t.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() LIMIT 1) AS another,
       EXTRACT(epoch FROM pg_catalog.current_setting('lock_timeout')::pg_catalog.interval
       )::pg_catalog.float8 AS lock_timeout]]

local function usage(message, ...)
  core.usage("semaphore: " .. message:format(...))
end

---------------------------------------------------------------------------------------------------
-- guards

---@class SlotGuard: Guard  an advisory lock's guard, whose `id` and `key` are the slot's
---@field slot integer      from 1 to n

local Slot = {}

function Slot:release()
  return self.guard:release()
end

function Slot:is_held()
  return self.guard:is_held()
end

local SLOT = {
  __index = function(self, name)
    local method = Slot[name]
    if method ~= nil then
      return method
    end
    return rawget(self, "guard")[name]
  end,
  __close = function(self, err)
    getmetatable(self.guard).__close(self.guard, err)
  end,
  __tostring = function(self)
    return ("slot %d, %s"):format(self.slot, tostring(self.guard))
  end,
}

---------------------------------------------------------------------------------------------------
-- acquiring

-- How messages call a semaphore.
local function described(id)
  if #id > 60 then
    id = id:sub(1, 60):gsub("[\xc0-\xff]?[\x80-\xbf]*$", "") .. "…"
  end
  return '"' .. id:gsub("%c", "?") .. '"'
end

-- The slots' keys, as the statement's parameters.
local function keys_of(session, request)
  local classids, objids, objsubid = {}, {}, nil
  local scheme = { scheme = request.scheme, prefix = request.prefix }
  for slot = 1, request.n do
    classids[slot], objids[slot], objsubid =
      core.key_parts(core.key(("%s#%d"):format(request.id, slot), scheme, session))
  end
  return "{" .. table.concat(classids, ",") .. "}", "{" .. table.concat(objids, ",") .. "}", objsubid
end

local function try(session, request, slot)
  local guard = core.advisory(session, ("%s#%d"):format(request.id, slot), {
    timeout = 0, on_busy = "return", xact = request.xact, scheme = request.scheme, prefix = request.prefix,
    release = request.release,
  })
  return guard and setmetatable({ slot = slot, guard = guard }, SLOT)
end

-- One of those that were seen free, from a random one on, so that those who come at once do not all
-- want the same.
local function try_free(session, request, free)
  local start = math.random(0, math.max(#free - 1, 0))
  for i = 0, #free - 1 do
    local held = try(session, request, free[(start + i) % #free + 1])
    if held then
      return held
    end
  end
end

-- Where none was free, one try all the same, the first time: it says what a look does not, that this
-- session may have no lock at all (behind a pooler, on a standby).
local function try_slots(session, request, seen, is_first)
  if #seen.free > 0 then
    return try_free(session, request, seen.free)
  elseif is_first and seen.another then
    return try(session, request, seen.another)
  end
end

local function interval(request, deadline)
  local seconds = request.poll * (1 + JITTER * (2 * math.random() - 1))
  return math.max(deadline and math.min(seconds, deadline - core.monotonic()) or seconds, SLEEP_MIN)
end

local function wait(session, request, begun, classids, objids, objsubid)
  local timeout = request.timeout
  local deadline = timeout and begun + timeout
  local is_first = true
  while true do
    local is_last = deadline and core.monotonic() >= deadline
    local seen = session:one(LOOK_SQL, classids, objids, objsubid)
    if is_first and timeout == nil and seen.lock_timeout > 0 then
      deadline = begun + seen.lock_timeout
    end
    local held = try_slots(session, request, seen, is_first)
    if held then
      held.waited = is_first and 0 or core.monotonic() - begun
      return held
    elseif is_last then
      return nil
    elseif not deadline and #seen.free == 0 and not seen.another then
      usage("this session itself has all slots of %s (%d) and would wait for itself for ever",
        described(request.id), request.n)
    end
    is_first = false
    core.sleep(interval(request, deadline))
  end
end

-- A guard, or nil and the error, which on_busy = "raise" raises.
local function acquire(session, request)
  if request.xact and not session.in_transaction then
    usage("a transaction-level slot needs an open transaction")
  end
  local held = wait(session, request, core.monotonic(), keys_of(session, request))
  if held then
    return held
  end
  local is_try = request.timeout == 0
  return core.fail(is_try and "not_acquired" or "lock_timeout",
    (is_try and "semaphore %s: all slots (%d) are taken" or "semaphore %s: none of the slots (%d) was "
      .. "free in time"):format(described(request.id), request.n), request.raises)
end

---------------------------------------------------------------------------------------------------
-- arguments

local function raises(options, with_function)
  local on_busy = options.on_busy
  if on_busy == nil then
    return with_function or options.timeout == nil
  elseif on_busy ~= "return" and on_busy ~= "raise" and on_busy ~= "skip" then
    usage('on_busy must be "return", "raise" or "skip", not %s', tostring(on_busy))
  elseif on_busy == "skip" and not with_function then
    usage('on_busy = "skip" needs a function to skip')
  elseif on_busy == "return" and with_function then
    usage('on_busy = "return" is for calls without a function; use "skip" or "raise"')
  end
  return on_busy == "raise"
end

local function check_id(id, n)
  if type(id) ~= "string" then
    usage("the id must be a text, not a %s: slot 1 is the lock \"id#1\"", type(id))
  elseif math.type(n) ~= "integer" or n < 1 or n > SLOTS_MAX then
    usage("the number of slots must be an integer from 1 to %d, not %s", SLOTS_MAX, tostring(n))
  end
end

local function request_of(id, n, options, with_function)
  check_id(id, n)
  if type(options) == "table" and options.shared ~= nil then
    usage("shared has no meaning here: a slot is one holder's")
  end
  call.check_options("semaphore", options, OPTIONS)
  options = options or {}
  local request = { id = id, n = n, scheme = options.scheme, prefix = options.prefix, xact = options.xact,
    release = options.release, raises = raises(options, with_function), poll = POLL }
  if options.xact ~= nil and type(options.xact) ~= "boolean" then
    usage("xact must be true or false, not %s", tostring(options.xact))
  end
  if options.timeout ~= nil then
    request.timeout = core.duration(options.timeout, "timeout")
  end
  if options.poll ~= nil then
    request.poll = core.duration(options.poll, "poll")
    if not request.poll or request.poll == 0 then
      usage("poll must be a time longer than 0: there is no queue in the server to wait in")
    end
  end
  return request
end

local function call_with_xact_slot(session, request, fn, ...)
  local tx <close> = session:begin()
  local held, err = acquire(session, request)
  if not held then
    return nil, err
  end
  local results = table.pack(fn(held, ...))
  tx:commit()
  return table.unpack(results, 1, results.n)
end

local function call_with_slot(session, request, fn, ...)
  if request.xact then
    return call_with_xact_slot(session, request, fn, ...)
  end
  local held <close>, err = acquire(session, request)
  if not held then
    return nil, err
  elseif session.in_transaction then
    return call.in_block(session, held, fn, ...)
  end
  return fn(held, ...)
end

local function semaphore(session, id, n, options, fn, ...)
  local request = request_of(id, n, options, fn ~= nil)
  if fn ~= nil then
    call.check_function("semaphore", fn)
  end
  session = session or core.session(call.option(options, "using"))
  if fn ~= nil then
    return call_with_slot(session, request, fn, ...)
  end
  return acquire(session, request)
end

--- Have one of n slots, so that there are at most n holders among all sessions of the database. With a
--- function: calls fn(guard, ...) and returns its results.
--- Source: PostgreSQL manual, "Advisory Lock Functions".
---@param session? Session
---@param id string                     slot i is the advisory lock id .. "#" .. i
---@param n integer                     1 to 1000; the same for all who use this id
---@param options? SemaphoreOptions     timeout in seconds or as "250ms"; default: the session's lock_timeout
---@param fn? fun(held: SlotGuard, ...): ...
---@return SlotGuard? held              released by :release() or at the end of its to-be-closed scope
---@return Error? err                   kind "not_acquired" or "lock_timeout"
return function(session, id, n, ...)
  return semaphore(session, id, n, call.shift(...))
end
