--- lock.retry: work that gives way. It is done in a transaction that waits for locks a short time only,
--- and where it has to wait longer it is rolled back, and tried again later: while a change of a table
--- waits for its lock, everybody who comes after it waits behind it.
local call = require "lockkeeper.call"
local core = require "lockkeeper.core"

---@class RetryOptions
---@field timeout? number|string|false    lock_timeout in each attempt; default "2s"; false: none
---@field attempts? integer               default 30
---@field delay? number|string            before the second attempt; default "1s"
---@field factor? number                  by which the delay grows with each attempt; default 1.5
---@field max_delay? number|string|false  default "30s", or delay where that is longer
---@field jitter? number                  the part of a delay, 0 to 1, that is left to chance; default 0.2
---@field last_without_timeout? boolean   the last attempt waits as long as it takes
---@field using? string|Session

local OPTIONS = { "timeout", "attempts", "delay", "factor", "max_delay", "jitter", "last_without_timeout",
  "using" }

local SETTING_MAX = (2^31 - 1) / 1000 -- seconds
local SLEEP_MIN = 0.001

local TIMEOUT, ATTEMPTS, DELAY, FACTOR, MAX_DELAY, JITTER = "2s", 30, "1s", 1.5, 30, 0.2

-- For this transaction alone, whose end undoes it.
local SET_SQL = "select pg_catalog.set_config('lock_timeout', $1, true)"

local function usage(message, ...)
  core.usage("retry: " .. message:format(...))
end

local function duration(options, name, default)
  local value = options[name]
  if value == nil then
    value = default
  end
  return core.duration(value, "retry: " .. name)
end

local function number(options, name, default, from, to)
  local value = options[name]
  if value == nil then
    return default
  elseif type(value) ~= "number" or not (value >= from and value <= to) then
    usage("%s must be a number from %s%s, not %s", name, from, to < math.huge and " to " .. to or " on",
      tostring(value))
  end
  return value
end

-- What the options come to.
local function plan_of(options)
  call.check_options("retry", options, OPTIONS)
  options = options or {}
  local plan = {
    timeout = duration(options, "timeout", TIMEOUT),
    attempts = call.integer("retry", options, "attempts", 1) or ATTEMPTS,
    delay = duration(options, "delay", DELAY),
    factor = number(options, "factor", FACTOR, 1, 1000),
    jitter = number(options, "jitter", JITTER, 0, 1),
    endless_last = options.last_without_timeout,
    using = options.using,
  }
  if plan.timeout == 0 then
    usage("a timeout of 0 would mean no limit to PostgreSQL; write false for that")
  elseif plan.timeout and plan.timeout > SETTING_MAX then
    usage("the timeout is longer than PostgreSQL can count (2147483647 ms)")
  elseif not plan.delay then
    usage("delay must be a time: without an end to it there is no other attempt")
  elseif plan.endless_last ~= nil and type(plan.endless_last) ~= "boolean" then
    usage("last_without_timeout must be true or false, not %s", tostring(plan.endless_last))
  end
  plan.max_delay = duration(options, "max_delay", math.max(MAX_DELAY, plan.delay))
  if plan.max_delay and plan.max_delay < plan.delay then
    usage("max_delay (%g s) is shorter than delay (%g s)", plan.max_delay, plan.delay)
  end
  return plan
end

-- Seconds to wait after an attempt: never more than max_delay, and by chance less, so that those who
-- met at a lock do not meet there again.
local function delay_after(plan, attempt)
  local seconds = plan.delay * plan.factor ^ (attempt - 1)
  seconds = math.min(seconds, plan.max_delay or 86400 * 365)
  seconds = seconds * (1 - plan.jitter * math.random())
  return seconds > 0 and math.max(seconds, SLEEP_MIN) or 0
end

-- Another attempt may help: the lock was not to be had, or PostgreSQL chose this transaction to undo a
-- deadlock.
local function is_retryable(err)
  return type(err) == "table" and (err.busy == true or err.kind == "deadlock")
end

local function attempt_once(session, timeout, fn)
  local tx <close> = session:begin()
  tx:value(SET_SQL, ("%dms"):format(timeout and math.ceil(timeout * 1000) or 0))
  local results = table.pack(fn(tx))
  tx:commit()
  return results
end

local function give_up(err, attempts)
  err.attempts = attempts
  err.message = ("%s (after %d attempt%s)"):format(err.message, attempts, attempts == 1 and "" or "s")
  error(err, 0)
end

local function tell(plan, attempt, begun, seconds, err)
  core.log("info", ("attempt %d of %d was rolled back, the next one comes in %.3g s"):format(attempt,
      plan.attempts, seconds),
    { "attempt", "waited", "error" },
    { ("%d"):format(attempt), ("%.3f"):format(core.monotonic() - begun), err.message })
end

local function run(plan, session, fn)
  local begun = core.monotonic()
  for attempt = 1, plan.attempts do
    local is_last = attempt == plan.attempts
    local timeout = not (is_last and plan.endless_last) and plan.timeout
    local ok, results = pcall(attempt_once, session, timeout, fn)
    if ok then
      return table.unpack(results, 1, results.n)
    elseif not is_retryable(results) then
      error(results, 0)
    elseif is_last then
      give_up(results, attempt)
    end
    local seconds = delay_after(plan, attempt)
    tell(plan, attempt, begun, seconds, results)
    core.sleep(seconds)
  end
end

--- Run fn(tx) in a transaction under a short lock timeout. On a lock that was not to be had, or a
--- deadlock, roll back, wait, and try again; every other error is raised at once. What fn does outside
--- of its transaction is done again with each attempt.
--- Source: PostgreSQL manual, "Statement Behavior" (lock_timeout) and "Deadlocks".
---@param session? Session
---@param options? RetryOptions
---@param fn fun(tx: Session): ...
---@return any ...  fn's results; after the last attempt its error is raised, which has `attempts`
local function retry(session, options, fn)
  options, fn = call.shift(options, fn)
  local plan = plan_of(options)
  call.check_function("retry", fn)
  session = session or core.session(plan.using)
  if session.in_transaction then
    usage("a transaction is open, and a failed attempt would roll it back; begin it inside")
  end
  return run(plan, session, fn)
end

return retry
