--- lock.prioritize: whoever blocks this session is cancelled or terminated (locks.md 14 to 17).
--
-- A task beside the protected code wakes every `interval` and looks, on a session of its own, who
-- blocks the protected session. There is no thread: it runs while the protected code waits. Leaving
-- the block waits until it has ended, and only its sleep is ever cut short: so whatever it did is on
-- record, and nothing is done after that.
local call = require "lockkeeper.call"
local core = require "lockkeeper.core"
local filter = require "lockkeeper.filter"
local kill = require "lockkeeper.kill"
local query = require "lockkeeper.query"
local untouchable = require "lockkeeper.untouchable"

---@class PrioritizeOptions
---@field interval? number|string   how long between two looks, and before the first; default 1 s
---@field action? "terminate"|"cancel"|fun(blocked: BlockedList): integer[]?
---  default "terminate"; a function gets what `where` left and returns the pids to terminate
---@field where? table|fun(row: table): any   which blocked rows are meant
---@field periodic? boolean         false: look once, after one interval
---@field sessions? table|fun(session: Activity): any
---  protect the waits of these sessions too, and never touch them
---@field escalate? number|string   cancel first, terminate what still blocks after that long
---@field protect? table|table[]|fun(session: Activity): any
---  sessions never to touch: a filter, or a list of filters of which any will do
---@field reach? "direct"|"roots"   who is meant: the blockers (default), or those who block them and
---  wait for nobody
---@field max_kills? integer        how many sessions at most in this block
---@field verify? number|string|false  how long to wait until a terminated one is gone; default 2 s
---@field dry_run? boolean          tell, touch nobody
---@field timeout? number|string|false  lock_timeout inside, as lock.timeout sets it
---@field on_action? fun(action: PrioritizeAction)
---@field using? string|Session

---@class PrioritizeAction
---@field at number                 epoch seconds by this host's clock
---@field action "cancel"|"terminate"
---@field result "signalled"|"gone"|"no_effect"|"refused"|"failed"|"dry_run"  see KillOutcome
---@field ended? boolean            of a terminated session: was it gone within `verify`?
---@field pid integer               whose session; 0: a prepared transaction
---@field user? string
---@field application_name? string
---@field query? string             what it runs, or ran last
---@field state? string
---@field age? number               seconds: of its transaction, else of its session
---@field backend_start? number
---@field waiter_pid integer        whom it blocks
---@field protected_pid integer     whose wait this is about: the waiter, or with reach = "roots" one
---  that waits behind it
---@field lock? string              what the waiter waits for
---@field requested_mode? string
---@field held_mode? string         nil: it is ahead in the queue
---@field waited? number            seconds
---@field sqlstate? string
---@field message? string
---@field hint? string              what to grant, or to do instead

---@class PrioritizeHandle
---@field actions PrioritizeAction[]  what was done so far; with dry_run: what would have been
---@field side_pid integer            the backend that looks
---@field close fun(self: PrioritizeHandle)  ends it; idempotent

local OPTIONS = { "interval", "action", "where", "periodic", "sessions", "escalate", "protect", "reach",
  "max_kills", "verify", "dry_run", "timeout", "on_action", "using" }

-- The mark of a session under prioritize.
local MARKER = untouchable.MARKER

-- Nothing that this session asks may hold the protected one's end up.
local PREPARE_SQL = [[
SELECT pg_catalog.set_config('application_name', 'lockkeeper: prioritize', false),
       pg_catalog.set_config('lock_timeout', '500ms', false),
       pg_catalog.set_config('statement_timeout', '10s', false)]]
local MARK_SQL = "SELECT pg_catalog.pg_try_advisory_lock_shared($1::pg_catalog.int4, $2::pg_catalog.int4)"
local UNMARK_SQL = "SELECT pg_catalog.pg_advisory_unlock_shared($1::pg_catalog.int4, $2::pg_catalog.int4)"

-- Who waits. Where this role may not see for what a session waits, pg_locks tells.
local WAITERS_SQL = [[
SELECT a.pid FROM pg_catalog.pg_stat_get_activity(NULL) a
 WHERE a.wait_event_type OPERATOR(pg_catalog.=) 'Lock'
UNION
SELECT l.pid FROM pg_catalog.pg_locks l
 WHERE NOT l.granted AND EXISTS (SELECT FROM pg_catalog.pg_stat_get_activity(NULL) a
                                  WHERE a.backend_start IS NULL)]]

-- Errors of a look after which the next one may do better.
local PASSING = { connection = true, lock_lost = true, lock_timeout = true, deadlock = true, sql = true }

-- The blocks around one session, outermost first: the innermost one alone acts for it.
local nested = setmetatable({}, { __mode = "k" })

---------------------------------------------------------------------------------------------------
-- options

local function duration(options, name, default)
  if options[name] == nil then
    return default
  end
  return core.duration(options[name], "prioritize: " .. name)
end

local function boolean(options, name, default)
  local value = options[name]
  if value ~= nil and type(value) ~= "boolean" then
    core.usage(("prioritize: %s must be true or false, not a %s"):format(name, type(value)))
  end
  return value == nil and default or value
end

local function one_of(options, name, words)
  local value = options[name]
  if value == nil then
    return words[1]
  end
  for _, word in ipairs(words) do
    if word == value then
      return word
    end
  end
  local near = type(value) == "string" and core.nearest(value, words)
  core.usage(("prioritize: %s must be %s, not %s%s"):format(name,
    '"' .. table.concat(words, '" or "') .. '"', type(value) == "string" and ("%q"):format(value)
    or "a " .. type(value), near and ('; did you mean "%s"?'):format(near) or ""))
end

local function sessions_filter(spec, name)
  return filter.compile(spec, { name = "sessions", what = "prioritize: " .. name })
end

local function read_options(options)
  call.check_options("prioritize", options, OPTIONS)
  options = options or {}
  local action, on_action = options.action, options.on_action
  if on_action ~= nil and type(on_action) ~= "function" then
    core.usage("prioritize: on_action must be a function, not a " .. type(on_action))
  end
  local state = {
    interval = duration(options, "interval", 1),
    choose = type(action) == "function" and action or nil,
    where = filter.compile(options.where, { name = "blocked", what = "prioritize: where" }),
    periodic = boolean(options, "periodic", true),
    sessions = options.sessions ~= nil and sessions_filter(options.sessions, "sessions") or nil,
    escalate = duration(options, "escalate", false),
    protect = options.protect ~= nil and untouchable.filters(options.protect, "prioritize: protect") or {},
    to_roots = one_of(options, "reach", { "direct", "roots" }) == "roots",
    max_kills = call.integer("prioritize", options, "max_kills", 0) or math.maxinteger,
    verify = duration(options, "verify", 2),
    dry_run = boolean(options, "dry_run", false),
    timeout = options.timeout,
    on_action = on_action,
  }
  state.action = state.choose and "terminate" or one_of({ action = action }, "action",
    { "terminate", "cancel" })
  if options.timeout ~= nil and duration(options, "timeout") == 0 then
    core.usage("prioritize: a timeout of 0 would mean no limit to PostgreSQL; write false for that")
  end
  if not state.interval or state.interval == 0 then
    core.usage("prioritize: interval must be longer than 0, and end")
  end
  return state
end

---------------------------------------------------------------------------------------------------
-- the user's functions

-- An error of theirs ends the looking: it is told apart from those of the looking itself.
local function call_user(state, what, fn, ...)
  local results = table.pack(pcall(fn, ...))
  if not results[1] then
    state.user_error = { what = what, value = results[2] }
    error(results[2], 0)
  end
  return table.unpack(results, 2, results.n)
end

local function matches(state, what, wanted, row)
  return call_user(state, what, wanted.matches, wanted, row)
end

---------------------------------------------------------------------------------------------------
-- the session that looks

local function mark(state, pid)
  if not state.side:value(MARK_SQL, MARKER, pid) then
    core.usage(("prioritize: the advisory lock (%d, %d), which says that a session is under prioritize, is "
      .. "held exclusively by another program"):format(MARKER, pid))
  end
  state.marked = pid
end

local function open_side(state)
  state.side:reconnect()
  state.side:query(PREPARE_SQL)
  state.side_pid = state.side.pid
  mark(state, state.pid)
end

-- The protected session may have been reconnected. Returns its pid, nil where there is nothing to
-- protect.
local function follow(state)
  local pid = core.backend_pid(state.session)
  if pid and pid ~= state.marked then
    state.side:query(UNMARK_SQL, MARKER, state.marked)
    mark(state, pid)
  end
  state.pid = pid or state.pid
  return pid
end

---------------------------------------------------------------------------------------------------
-- looking

local function governs(state)
  local blocks = nested[state.session]
  return blocks[#blocks] == state
end

-- Has a block within this one begun since the look did? The protected session's waits are that one's now.
local function is_overtaken(state)
  return state.looks_for_own and not governs(state)
end

-- The blocked rows of the waits that this block protects and `where` leaves.
local function blocked_rows(state, own)
  local where, waiters, protected = state.where, {}, {}
  if state.sessions then
    for _, row in ipairs(state.side:query(WAITERS_SQL)) do
      waiters[#waiters + 1] = row.pid
    end
  elseif own then
    waiters[1] = own
  end
  local function is_protected(row)
    local pid = row.pid
    if protected[pid] == nil then
      if pid == state.pid then
        protected[pid] = own ~= nil
      else
        protected[pid] = matches(state, "sessions", state.sessions, row.activity)
      end
    end
    return protected[pid]
  end
  if #waiters == 0 then
    return waiters
  end
  local rows = query.blocked_by(state.side, waiters, {
    on = where.on,
    limit = where.limit,
    where = function(row) return is_protected(row) and matches(state, "where", where, row) end,
  })
  where:report()
  if state.sessions then
    state.sessions:report()
  end
  return rows
end

-- By pid of a blocker, whom it blocks: the waiter, and behind that one those who wait for it, as far as
-- the protected session.
local function direct_chains(rows)
  local chains = {}
  for _, row in ipairs(rows) do
    local pid = row.blocking_pid
    if pid and not chains[pid] then
      chains[pid] = { row.pid }
    end
  end
  return chains
end

-- From the blockers to those who block them, until somebody waits for nobody. Returns the rows by which
-- those block, and the chains. A cycle has no such one: the server breaks it.
local function root_rows(state, rows)
  local chains, is_waiting, all = direct_chains(rows), {}, {}
  local frontier = {}
  for pid in pairs(chains) do
    frontier[#frontier + 1] = pid
  end
  while true do
    for _, row in ipairs(rows) do
      is_waiting[row.pid] = true
      all[#all + 1] = row
    end
    if #frontier == 0 then
      break
    end
    rows, frontier = query.blocked_by(state.side, frontier), {}
    for _, row in ipairs(rows) do
      local pid = row.blocking_pid
      if pid and not chains[pid] then
        chains[pid] = { row.pid, table.unpack(chains[row.pid]) }
        frontier[#frontier + 1] = pid
      end
    end
  end
  local roots = {}
  for _, row in ipairs(all) do
    if not is_waiting[row.blocking_pid or 0] then
      roots[#roots + 1] = row
    end
  end
  return roots, chains
end

-- The same rows as a list of lock.blocked's kind.
local function as_list(state, rows)
  local waiters, wanted = {}, {}
  for i, row in ipairs(rows) do
    waiters[i] = row.pid
    wanted[row.pid] = wanted[row.pid] or {}
    wanted[row.pid][row.blocking_pid or 0] = true
  end
  return query.blocked_by(state.side, waiters, function(row)
    return wanted[row.pid] ~= nil and wanted[row.pid][row.blocking_pid or 0]
  end)
end

---------------------------------------------------------------------------------------------------
-- choosing

-- What names a session: a pid alone does not.
local function key_of(pid, backend_start)
  return ("%d@%s"):format(pid, backend_start and ("%.6f"):format(backend_start) or "")
end

-- One target a blocker, by the first row in which it blocks.
local function targets_of(rows, chains)
  local targets, by_pid = {}, {}
  for _, row in ipairs(rows) do
    local pid, activity = row.blocking_pid or 0, row.blocking_activity
    if not by_pid[pid] then
      local start = activity and activity.backend_start
      by_pid[pid] = { pid = pid, backend_start = start, key = key_of(pid, start), row = row,
        still_blocks = chains[pid], gid = activity and activity.gid }
      targets[#targets + 1] = by_pid[pid]
    end
  end
  return targets, by_pid
end

local function chosen_pids(state, rows)
  local pids = call_user(state, "action", state.choose, rows)
  if pids == nil then
    return {}
  elseif type(pids) ~= "table" then
    call_user(state, "action", core.usage,
      "prioritize: action must return a list of pids, not a " .. type(pids))
  end
  for i, pid in ipairs(pids) do
    if math.type(pid) ~= "integer" then
      call_user(state, "action", core.usage,
        ("prioritize: action must return a list of pids; element %d is %s"):format(i,
          type(pid) == "number" and tostring(pid) or "a " .. type(pid)))
    end
  end
  return pids
end

-- Those of the targets that the user's function wants; one that blocks nobody has no row.
local function choose(state, rows, targets, by_pid)
  if not state.choose then
    return targets
  end
  local chosen, seen = {}, {}
  for _, pid in ipairs(chosen_pids(state, state.to_roots and as_list(state, rows) or rows)) do
    if not seen[pid] then
      seen[pid] = true
      chosen[#chosen + 1] = by_pid[pid] or { pid = pid, key = key_of(pid) }
    end
  end
  return chosen
end

-- Why a session is never touched, or nil.
local function why_untouched(state, target, marked)
  local activity = target.row and target.row.blocking_activity
  if target.pid == state.pid then
    return "it is the protected session itself"
  elseif marked[target.pid] then
    return marked[target.pid]
  elseif not activity then
    return "it blocks none of the protected sessions"
  end
  local reason = call_user(state, "protect", untouchable.reason, activity)
  if reason then
    return reason
  elseif state.sessions and matches(state, "sessions", state.sessions, activity) then
    return "its own waits are protected"
  end
  for _, wanted in ipairs(state.protect) do
    if matches(state, "protect", wanted, activity) then
      return "protect names it"
    end
  end
end

---------------------------------------------------------------------------------------------------
-- telling

local function log(level, text, fields)
  local names, values = {}, {}
  for _, field in ipairs(fields) do
    if field[2] ~= nil then
      names[#names + 1], values[#values + 1] = field[1], tostring(field[2])
    end
  end
  core.log(level, text, names, values)
end

-- "relation public.orders", "advisory lock 42", "transactionid 731"
local function lock_name(row)
  local kind = row.type
  if kind == nil then
    return nil
  elseif row.relation then
    local name = row.schema and row.schema .. "." .. row.relation or tostring(row.relation)
    return kind .. " " .. name
  elseif kind == "advisory" then
    local key = row.lock_name or row.key
    return "advisory lock " .. (type(key) == "table" and ("(%d, %d)"):format(key[1], key[2]) or tostring(key))
  end
  return kind .. " " .. tostring(row.transactionid or row.virtualxid or row.objid or "")
end

-- Made before the signal, since what is waited for is told by the wait, which ends with it.
local function new_record(state, action, target)
  local row = target.row or {}
  local activity = row.blocking_activity or {}
  local chain = target.still_blocks or {}
  return {
    at = core.now(), action = action, pid = target.pid, query = activity.query, state = activity.state,
    application_name = activity.application_name, age = activity.xact_duration or activity.duration,
    backend_start = target.backend_start,
    waiter_pid = chain[1] or row.pid, protected_pid = chain[#chain] or row.pid,
    requested_mode = row.mode, held_mode = row.blocking_mode,
    waited = row.wait_duration, dry_run = state.dry_run or nil,
  }
end

-- After the signal, since names are looked up for that.
local function add_names(record, target)
  local row = target.row or {}
  record.lock = lock_name(row)
  record.user = row.blocking_activity and row.blocking_activity.user
end

local TEXTS = {
  signalled = { cancel = "cancelled the statement of %s", terminate = "terminated %s" },
  dry_run = { cancel = "would cancel the statement of %s", terminate = "would terminate %s" },
}

local function tell(record)
  local who = record.pid == 0 and "a prepared transaction" or ("pid %d"):format(record.pid)
  local done = TEXTS[record.result]
  local text = (done and done[record.action] or "could not " .. record.action .. " %s"):format(who)
  if record.waiter_pid then
    text = ("%s, which blocks pid %d"):format(text, record.waiter_pid)
  end
  log(done and record.ended ~= false and "info" or "warning", text, {
    { "action", record.action }, { "result", record.result }, { "pid", record.pid }, { "user", record.user },
    { "application", record.application_name }, { "state", record.state },
    { "age", record.age and ("%.3f"):format(record.age) }, { "query", record.query },
    { "waiter", record.waiter_pid },
    { "protected", record.protected_pid ~= record.waiter_pid and record.protected_pid or nil },
    { "lock", record.lock }, { "requested", record.requested_mode }, { "held", record.held_mode },
    { "waited", record.waited and ("%.3f"):format(record.waited) },
    { "sqlstate", record.sqlstate }, { "reason", record.message }, { "hint", record.hint },
  })
end

-- Once a session.
local function leave_alone(state, target, level, why)
  if not state.left_alone[target.key] then
    state.left_alone[target.key] = true
    log(level, ("pid %d is left alone: %s"):format(target.pid, why),
      { { "pid", target.pid }, { "waiter", target.still_blocks and target.still_blocks[1] } })
  end
end

---------------------------------------------------------------------------------------------------
-- acting

-- Has this been told already, with nothing new in it? Of a signal that was sent, never.
local function is_repeated(state, target, record)
  local key = record.action .. " " .. target.key
  local before = state.told[key]
  state.told[key] = record.result
  return before == record.result and record.result ~= "signalled"
end

-- Whoever asks for the actions meanwhile waits for this.
local function acted(state)
  state.is_acting = false
  core.tell(state)
end

local function note(state, target, outcome)
  local result = outcome.result
  if result == "refused" then
    state.settled[target.key] = true
  elseif result ~= "signalled" and result ~= "dry_run" then
    return
  elseif not state.killed[target.key] then
    state.killed[target.key] = true
    state.kills = state.kills + 1
  end
  if outcome.action == "cancel" then
    state.cancelled_at[target.key] = state.cancelled_at[target.key] or core.monotonic()
  end
end

-- Signal them all. Returns the targets on which a cancel had no effect.
local function act(state, action, targets)
  local records, published, idle = {}, {}, {}
  for i, target in ipairs(targets) do
    records[i] = new_record(state, action, target)
  end
  state.is_acting = true
  local outcomes = kill.signal(state.side, action, targets, {
    verify = state.verify, dry_run = state.dry_run,
    stop = function() return state.stopping or is_overtaken(state) end,
  })
  for i, outcome in ipairs(outcomes) do
    local target, record = targets[i], records[i]
    add_names(record, target)
    for name, value in pairs(outcome) do
      record[name] = value
    end
    note(state, target, outcome)
    if outcome.result == "no_effect" then
      idle[#idle + 1] = target
    end
    if outcome.result ~= "gone" and not is_repeated(state, target, record) then
      published[#published + 1] = record
    end
  end
  for _, record in ipairs(published) do
    state.actions[#state.actions + 1] = record
    tell(record)
  end
  acted(state)
  for _, record in ipairs(state.on_action and published or {}) do
    call_user(state, "on_action", state.on_action, record)
  end
  return idle
end

-- Which action is due for a session.
local function action_for(state, target)
  if not state.escalate then
    return state.action
  end
  local since = state.cancelled_at[target.key]
  return since and core.monotonic() - since >= state.escalate and "terminate" or "cancel"
end

-- Would it count for max_kills? A session counts once.
local function is_new_kill(state, target)
  return target.pid ~= 0 and not state.killed[target.key]
end

local function plan(state, targets)
  local due, planned, marked = { cancel = {}, terminate = {} }, 0, nil
  for _, target in ipairs(targets) do
    if not state.settled[target.key] then
      marked = marked or untouchable.marked(state.side)
      local why = why_untouched(state, target, marked)
      if why then
        leave_alone(state, target, "info", why)
      elseif is_new_kill(state, target) and state.kills + planned >= state.max_kills then
        leave_alone(state, target, "warning", ("max_kills = %d is reached"):format(state.max_kills))
      else
        planned = planned + (is_new_kill(state, target) and 1 or 0)
        table.insert(due[action_for(state, target)], target)
      end
    end
  end
  return due
end

local function look(state)
  local pid = follow(state)
  state.looks_for_own = governs(state)
  local rows = blocked_rows(state, state.looks_for_own and pid or nil)
  if #rows == 0 or is_overtaken(state) then
    return
  end
  local chains
  if state.to_roots then
    rows, chains = root_rows(state, rows)
  else
    chains = direct_chains(rows)
  end
  local due = plan(state, choose(state, rows, targets_of(rows, chains)))
  local idle = #due.cancel > 0 and act(state, "cancel", due.cancel) or {}
  if state.escalate then
    table.move(idle, 1, #idle, #due.terminate + 1, due.terminate)
  end
  if #due.terminate > 0 then
    act(state, "terminate", due.terminate)
  end
end

---------------------------------------------------------------------------------------------------
-- the task

-- Wait where leaving the block may cut it short. False: it did.
local function wait(state, fn, ...)
  if state.stopping then -- before it had begun
    return false
  end
  state.may_cancel = true
  local results = table.pack(pcall(fn, ...))
  state.may_cancel = false
  if state.stopping then
    return false
  elseif not results[1] then
    error(results[2], 0)
  end
  return true
end

-- False: it was cut short.
local function look_again(state)
  if state.is_broken then
    if not wait(state, open_side, state) then
      return false
    end
    state.is_broken = false
    log("info", "prioritize has its session again", { { "pid", state.side_pid } })
  end
  look(state)
  return true
end

-- What may pass is told, and the next look tries again; all else ends the looking.
local function failed(state, err)
  local kind = type(err) == "table" and err.kind
  if state.user_error or not PASSING[kind] then
    state.failure = { err }
    if kind ~= "cancelled" then -- an interrupt, of which the protected code is told
      log("error", "prioritize has stopped looking for blockers: " .. tostring(err), {})
    end
    return
  end
  state.failures = state.failures + 1
  state.is_broken = state.is_broken or kind == "connection" or kind == "lock_lost"
  if not state.trouble or state.trouble.message ~= err.message then
    log("warning", "prioritize could not look for blockers and tries again: " .. err.message,
      { { "sqlstate", err.sqlstate } })
  end
  state.trouble = err
end

-- The shortest sleep, in seconds.
local PAUSE_MIN = 0.001

-- A pid that nobody has.
local NOBODY = { pid = -1, backend_start = 0 }

-- All that a look may ask, before it is urgent: in a new backend the first run of a statement takes
-- several times as long as the next one.
local function rehearse(state)
  local look_at_nobody = core.look_blocked(state.side, function() end, { NOBODY.pid })
  core.look_further(look_at_nobody, state.side)
  core.look_names(look_at_nobody, state.side)
  untouchable.marked(state.side)
  kill.signal(state.side, state.action, { NOBODY }, { dry_run = state.dry_run })
end

-- Returns the seconds that are left until the first look.
local function prepare(state)
  local began = core.monotonic()
  wait(state, rehearse, state)
  return math.max(state.interval - (core.monotonic() - began), PAUSE_MIN)
end

local function run(state)
  state.fiber = core.fiber()
  local ok, pause = pcall(prepare, state)
  if not ok then
    failed(state, pause)
    pause = state.interval
  end
  while not state.failure and wait(state, core.sleep, pause) do
    pause = state.interval
    local looked
    ok, looked = pcall(look_again, state)
    if not ok then
      acted(state)
      failed(state, looked)
    elseif looked then
      state.failures, state.trouble = 0, nil
    end
    if ok and not state.periodic then
      return
    end
  end
end

---------------------------------------------------------------------------------------------------
-- the block

local function restore_timeout(state, err)
  local timeout = state.restores
  state.restores = nil
  if timeout then
    getmetatable(timeout).__close(timeout, err)
  end
end

-- Ends the looking; when it returns nothing is done any more. What went wrong is kept in the state.
local function stop(state)
  if state.stopping then
    return
  end
  state.stopping = true
  local blocks = nested[state.session]
  for i = #blocks, 1, -1 do
    if blocks[i] == state then
      table.remove(blocks, i)
    end
  end
  if state.task then
    if state.may_cancel then
      state.task:cancel()
    end
    local ok, err = state.task:join()
    if not ok and not state.failure then
      state.failure = { err }
    end
  end
  state.side:close()
end

-- The error that was kept, as an error of ours; nil where all went well. A look that failed and was not
-- tried again is no reason to fail.
local function kept_error(state)
  local err, text
  if state.failure then
    err = state.failure[1]
    text = state.user_error and ("an error in %s: %s"):format(state.user_error.what, tostring(err))
      or tostring(err)
  elseif state.failures > 1 then
    err = state.trouble
    text = "could not look for blockers: " .. err.message
  else
    return nil
  end
  local is_ours = type(err) == "table" and type(err.kind) == "string"
  if is_ours and state.failure then
    return err
  end
  local _, made = core.fail(is_ours and err.kind or "usage", "prioritize: " .. text)
  made.sqlstate, made.detail = is_ours and err.sqlstate or nil, is_ours and err.detail or nil
  made.cause = err
  return made
end

-- Leave the block. `results`: of the protected code; `failing`: it raised, and its own error counts.
local function leave(state, results, failing)
  if state.left then
    return
  end
  state.left = true
  stop(state)
  local err = kept_error(state)
  if err and not failing then
    if results then
      err.result, err.results = results[1], results
    end
    pcall(restore_timeout, state, err)
    error(err, 0)
  elseif err and not state.failure then -- else it was told when it came
    log("error", tostring(err), {})
  end
  restore_timeout(state, failing)
end

---@class PrioritizeHandle
local Handle = {}
local methods = {}

-- What a handle is about, out of its users' reach.
local states = setmetatable({}, { __mode = "k" })

function methods:close()
  leave(states[self])
end

-- A session that was terminated gives its locks back before the answer to that is read: what is going
-- on at this moment belongs to the actions.
local function read_actions(state)
  while state.is_acting and core.fiber() ~= state.fiber and core.await(state) do end
  return state.actions
end

function Handle.__index(self, name)
  if name == "actions" then
    return read_actions(states[self])
  elseif name == "side_pid" then
    return states[self].side_pid
  end
  return methods[name]
end

function Handle.__close(self, err)
  leave(states[self], nil, err)
end

function Handle.__tostring(self)
  local state = states[self]
  return ("prioritize of pid %d (%s, %d actions)"):format(state.pid, state.left and "over" or "at work",
    #state.actions)
end

local function begin(state)
  open_side(state)
  if state.where.on then
    query.blocked_by(state.side, {}, { on = state.where.on }) -- a relation that nobody knows is told at once
  end
  if state.timeout ~= nil then
    state.restores = core.timeout(state.session, state.timeout)
  end
  state.task = core.task(run, state)
  local blocks = nested[state.session] or {}
  nested[state.session] = blocks
  blocks[#blocks + 1] = state
end

local function open(session, options)
  local state = read_options(options)
  state.session = core.session(session or call.option(options, "using"))
  state.pid = state.session.pid
  if not state.session.keeps_state then
    local _, err = core.fail("usage", "prioritize can't know the protected session: a pooler stands between")
    err.hint = 'Connect to PostgreSQL itself, or say pooler = "session" if the pooler keeps a session for a '
      .. "client."
    error(err, 0)
  end
  state.side = core.beside(state.session)
  core.prepare_at_once(state.side)
  state.actions, state.told, state.settled, state.left_alone = {}, {}, {}, {}
  state.killed, state.kills, state.cancelled_at = {}, 0, {}
  state.failures = 0
  local ok, err = pcall(begin, state)
  if not ok then
    state.side:close()
    pcall(restore_timeout, state, err)
    error(err, 0)
  end
  local handle = setmetatable({}, Handle)
  states[handle] = state
  return handle
end

local function call_prioritized(session, options, fn, ...)
  call.check_function("prioritize", fn)
  local handle <close> = open(session, options)
  local results = table.pack(fn(handle, ...))
  leave(states[handle], results)
  return table.unpack(results, 1, results.n)
end

--- While a statement of this session waits for a lock, end the sessions that block it: every `interval`,
--- first after one interval, by a session of its own that is opened before. It looks only while the
--- protected code waits for something, and has ended when the block is left.
--- With a function: calls fn(handle, ...) and returns its results. Without: until the handle is closed.
--- An error in a filter, in `action` or `on_action` ends the looking, and is raised when the block is
--- left, with the code's own (first) result in `result`; where the code raised, that error counts, and
--- the other is logged. A look that fails because of the server is tried again at the next interval, on
--- a new connection if need be; if it failed more than once at the end, that is raised, too.
--- Blocks nest: the innermost one acts for its session.
---@param session? Session             of a method; else options.using counts
---@param options? PrioritizeOptions
---@param fn? fun(handle: PrioritizeHandle, ...): ...
---@return PrioritizeHandle|any
local function prioritize(session, options, fn, ...)
  if fn == nil and select("#", ...) == 0 then
    return open(session, options)
  end
  return call_prioritized(session, options, fn, ...)
end

return function(session, ...)
  return prioritize(session, call.shift(...))
end
