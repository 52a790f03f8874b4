--- Runs a job once: its session, its guards, its limits, what it prints and returns (runner.md 12 to 21).
--
-- In the lockkeeper program a run is watched: it ends when a session that holds its guards does, and with
-- max_run, and memory_limit bounds it (src/host/watcher.h, memory.h). In stock Lua nothing of that is; all
-- else is the same.
local call = require "lockkeeper.call"
local core = require "lockkeeper.core"
local definition = require "lockkeeper.definition"
local fence = require "lockkeeper.fence"
local guard_words = require "lockkeeper.guard_words"
local guards = require "lockkeeper.guards"
local has_host, host = pcall(require, "lockkeeper.host")
local holders = require "lockkeeper.holders"
local job_context = require "lockkeeper.job_context"
local output = require "lockkeeper.output"
local predecessors = require "lockkeeper.predecessors"
local progress = require "lockkeeper.progress"
local spare_session = require "lockkeeper.spare_session"

local worker = {}

---@class RunOptions
---@field slot? number      epoch seconds; default: now
---@field db? Session       run on this one; default: a new one to where the job's `using` leads
---@field attempt? integer  the first one's number; default 1
---@field parent? table     job.parent
---@field run_id? integer
---@field ledger? Ledger    of a claimed run: it happens once, another attempt is another run
---@field output? "plain"|"log"|"both"|"quiet"  see lockkeeper.output; default "plain"
---@field tell? fun(event: "started"|"waiting"|"again"|"ended", job: Job, news: Outcome|string|nil)  in place
---                         of the log; of "waiting" a text, of "again" and "ended" the outcome

---@class Outcome
---@field state "succeeded"|"failed"|"timed_out"|"cancelled"|"lost"|"skipped"
---@field reason? string     of skipped: "busy" or "window"; of failed: "memory_limit"
---@field result any         what the job returned, as JSON keeps it
---@field result_json? string
---@field error? Error       a table with a message
---@field waited number      seconds until it had its guards
---@field ran number         seconds
---@field attempt integer
---@field attempts integer   how many there were
---@field exit_code integer  what `lockkeeper run` ends with because of it
---@field output string      the last 64 KiB of what it printed

local OPTIONS = { "slot", "db", "attempt", "parent", "run_id", "ledger", "output", "tell" }

local MODES = { plain = true, log = true, both = true, quiet = true }

local RESULT_MAX = 65536
local RESULT_SHOWN = 200 -- bytes
local SLOT_MAX = 253402300799 -- the last second of the year 9999

-- Exit codes by the kind of error.
local EXIT = { not_acquired = 75, lock_timeout = 75, lock_lost = 125, connection = 69, timed_out = 124 }

-- After which ends a run is tried again where its policy does not say.
local RETRY_ON = { "failed", "timed_out", "lost" }

local RETRY_DELAY_MAX = 86400 -- seconds

-- States that on_failure is called for.
local FAILED = { failed = true, timed_out = true, lost = true }

local NAME_MAX = 63 -- PostgreSQL's NAMEDATALEN, less its NUL

---------------------------------------------------------------------------------------------------
-- errors

-- What was raised and is none of our errors, as a table like them.
local RAISED = {
  __name = "lockkeeper.Raised",
  __tostring = function(self) return self.message end,
  __concat = function(a, b) return tostring(a) .. tostring(b) end,
}

local function is_error(err)
  return type(err) == "table" and type(err.message) == "string"
end

local function text_of(err)
  local ok, text = pcall(tostring, err)
  return ok and text or "an error whose __tostring fails"
end

-- For xpcall.
local function caught(err)
  if is_error(err) then
    return err
  end
  return setmetatable({ message = text_of(err), traceback = core.traceback(2) }, RAISED)
end

local function as_error(err)
  return is_error(err) and err or setmetatable({ message = text_of(err) }, RAISED)
end

local function failure(message, ...)
  return setmetatable({ message = message:format(...) }, RAISED)
end

---------------------------------------------------------------------------------------------------
-- sessions

local SET_SQL = "pg_catalog.set_config($%d, $%d, false)"
local SHOW_SQL = "pg_catalog.current_setting($%d, true)"

-- Set session settings { name, value }, in one statement.
local function set(session, settings)
  local calls, values = {}, {}
  for i, setting in ipairs(settings) do
    calls[i] = SET_SQL:format(2 * i - 1, 2 * i)
    values[2 * i - 1], values[2 * i] = setting[1], setting[2]
  end
  session:query("SELECT " .. table.concat(calls, ", "), table.unpack(values, 1, 2 * #settings))
end

-- What the settings are now, in the same form; those that the server does not know are left out.
local function current(session, settings)
  local calls, names = {}, {}
  for i, setting in ipairs(settings) do
    calls[i] = SHOW_SQL:format(i) .. " AS v" .. i
    names[i] = setting[1]
  end
  local row = session:one("SELECT " .. table.concat(calls, ", "), table.unpack(names))
  local list = {}
  for i, name in ipairs(names) do
    if row["v" .. i] then
      list[#list + 1] = { name, row["v" .. i] }
    end
  end
  return list
end

local function ms(seconds)
  return seconds and ("%d"):format(math.ceil(seconds * 1000)) or "0"
end

-- What the policy wants of the job's session; what it says by name is weaker than its own keys.
local function settings_of(job)
  local settings, list, names = job.settings, {}, {}
  for name in pairs(settings.session or {}) do
    names[#names + 1] = name
  end
  table.sort(names)
  for _, name in ipairs(names) do
    list[#list + 1] = { name, settings.session[name] }
  end
  if settings.lock_timeout ~= nil then
    list[#list + 1] = { "lock_timeout", ms(settings.lock_timeout) }
  end
  if settings.statement_timeout ~= nil then
    list[#list + 1] = { "statement_timeout", ms(settings.statement_timeout) }
  end
  return list
end

local function application_name(job)
  return ("lockkeeper: " .. job.name):sub(1, NAME_MAX)
end

-- Names that lead to the job's own session while it runs: what they led to before, by name.
local function take_names(run)
  run.names = { default = false }
  if run.job.using then
    run.names[run.job.using] = false
  end
  for name in pairs(run.names) do
    run.names[name] = core.name_session(name, run.db) or false
  end
end

local function give_names_back(run)
  for name, session in pairs(run.names or {}) do
    core.name_session(name, session or nil)
  end
  run.names = nil
end

-- The session of a guard's `using`: the job's own, or one beside it.
local function session_of(run, name)
  if name == nil or name == "default" or name == run.job.using then
    return run.db
  end
  local session = run.beside[name]
  if not session then
    session = core.beside(core.session(name))
    run.beside[name] = session
    run.sessions[#run.sessions + 1] = session
    set(session, { { "application_name", application_name(run.job) } })
    core.keep_session(session, true)
  end
  return session
end

-- A ledger's session, where it is none of the job's, is one more that the job depends on.
local function open_ledger(run)
  local beside = run.options.ledger and run.options.ledger:choose_session(run.job, run.db)
  if beside then
    run.sessions[#run.sessions + 1] = beside
    set(beside, { { "application_name", application_name(run.job) } })
    core.keep_session(beside, true)
  end
end

-- The session of the process's last run, with the settings of this one; nil where it is not there any more.
local function reopened(run, settings)
  local session = run.options.ledger and spare_session.take(run.job.using)
  if session and pcall(set, session, settings) then
    return session
  elseif session then
    session:close()
  end
end

local function open(run)
  local job, given = run.job, run.options.db
  run.connected_before = core.connected_sessions()
  local settings = settings_of(job)
  local name = { "application_name", application_name(job) }
  local spare = reopened(run, { name, table.unpack(settings) })
  run.db = given or spare or core.beside(core.session(job.using))
  run.sessions[1] = run.db
  if spare then
    run.had_transaction = false
  elseif not run.db.keeps_state then
    if #settings > 0 then
      core.usage("the job's policy has settings for its session, and a pooler stands between that may give "
        .. "the session to another client")
    end
  else
    table.insert(settings, 1, name)
    if given then
      run.settings_before = current(given, settings)
    end
    set(run.db, settings)
  end
  run.had_transaction = run.db.in_transaction
  core.keep_session(run.db, true)
  open_ledger(run)
  take_names(run)
end

-- No transaction of the job's stays behind. Returns what to say of one.
local function end_stray_transaction(session, had_transaction)
  if had_transaction or not session.in_transaction then
    return nil
  end
  local ok, err = pcall(session.exec, session, "ROLLBACK")
  if not ok then
    return as_error(err)
  end
  return failure("the job has ended with a transaction open: it was rolled back")
end

-- The sessions that the job has opened and left with something open or held are closed.
local function close_others(run)
  for session in pairs(core.connected_sessions()) do
    if not run.connected_before[session] and not core.is_clean(session) then
      local ok, err = pcall(session.close, session)
      if not ok then
        core.log("warning", "a session of the job's could not be closed: " .. text_of(err), {}, {})
      end
    end
  end
end

local function close(run, outcome)
  local ledger = run.options.ledger
  give_names_back(run)
  for i, session in ipairs(run.sessions) do
    core.keep_session(session, false)
    if i == 1 and ledger and ledger.request.stays and outcome.state == "succeeded" then
      spare_session.keep(session, run.job.using)
    elseif i > 1 or not run.options.db then
      session:close()
    elseif run.settings_before and core.backend_pid(session) then
      local ok, err = pcall(set, session, run.settings_before)
      if not ok then
        core.log("warning", "the session's settings could not be put back: " .. text_of(err), {}, {})
      end
    end
  end
  close_others(run)
end

---------------------------------------------------------------------------------------------------
-- the work

local function work(run)
  local job = run.job
  if job.fn then
    return (job.fn(run.context))
  elseif job.sql then
    return run.db:exec(job.sql)
  end
  local code = job_context.run_command(run, job.command)
  if code ~= 0 then
    error(failure('"%s" has ended with code %d', job.command[1], code), 0)
  end
end

local function prioritized_work(run)
  local prioritize = run.settings.prioritize
  if prioritize then
    local options = type(prioritize) == "table" and prioritize or {}
    return run.db:prioritize(options, function() return work(run) end)
  end
  return work(run)
end

-- Call fn(...) with the errors of Lua told by a traceback, within memory_limit. Returns as xpcall, and
-- where memory was refused, if it was.
local function bounded(run, fn, ...)
  local limit = has_host and run.settings.memory_limit
  if not limit then
    return xpcall(fn, caught, ...)
  end
  host.memory_limit(limit)
  local ok, result = xpcall(fn, caught, ...)
  return ok, result, host.memory_limit(nil)
end

-- Under watch of the sessions, where there is a watcher: ok, result, refused place; and as the fourth, how
-- the run was ended from outside ("lost", "timed_out"), if it was.
local function watched(run, sessions, fn, ...)
  if not (has_host and host.watched) then
    return bounded(run, fn, ...)
  end
  local limits = { max_run = run.settings.max_run, grace = run.settings.grace }
  local watch_ok, ok, result, refused = host.watched(sessions, limits, bounded, run, fn, ...)
  if watch_ok then
    return ok, result, refused
  end
  host.memory_limit(nil)
  local err = as_error(ok)
  return false, err, nil, err.kind == "timed_out" and "timed_out" or err.kind == "lock_lost" and "lost" or nil
end

local function deadline(run)
  local seconds = run.settings.max_run or math.huge
  return core.monotonic() + math.min(seconds, run.window_left or math.huge)
end

local function is_session_gone(run)
  for _, session in ipairs(run.sessions) do
    if core.backend_pid(session) == nil then
      return true
    end
  end
  return false
end

local function holds_locks(run)
  local ledger, taken = run.options.ledger, run.taken
  return ledger and ledger.alive or taken and #taken.held > 0
end

local function size_text(bytes)
  return bytes % 1048576 == 0 and ("%d MB"):format(bytes // 1048576) or ("%d bytes"):format(bytes)
end

-- The end of what was raised in the job.
local function failed_work(run, err, refused, ended)
  err = as_error(err)
  if ended then
    return { state = ended, error = err }
  elseif refused and err.message:find("not enough memory", 1, true) then
    return { state = "failed", reason = "memory_limit", error = failure("the job has reached its "
      .. "memory_limit (%s)%s", size_text(run.settings.memory_limit), refused ~= "?" and " at " .. refused
      or "") }
  elseif err.kind == "lock_lost" and is_session_gone(run) then
    err.hint = nil -- it names reconnect(), which the job's session does not allow
    return { state = "lost", error = err }
  elseif err.kind == "connection" and holds_locks(run) and is_session_gone(run) then
    local lost = failure("the session that holds the job's locks was lost: %s", err.message)
    lost.kind = "lock_lost"
    return { state = "lost", error = lost }
  elseif err.kind == "cancelled" or has_host and host.interrupted() then
    return { state = "cancelled", error = err }
  end
  return { state = "failed", error = err }
end

-- The beginning of it, where it is longer than a line should be.
local function cut(text)
  if #text <= RESULT_SHOWN then
    return text
  end
  return text:sub(1, utf8.offset(text, 0, RESULT_SHOWN + 1) - 1) .. "…"
end

-- What the job returned, as it is kept.
local function kept_result(value)
  if value == nil then
    return nil
  end
  local ok, text = pcall(core.json.encode, value)
  if not ok then
    return nil, failure("what the job returned can't be kept: %s", as_error(text).message)
  elseif #text > RESULT_MAX then
    local problem = failure("what the job returned is too long to be kept: %d bytes of JSON, at most %d are",
      #text, RESULT_MAX)
    problem.detail = cut(text)
    return nil, problem
  end
  return text
end

local function do_work(run)
  run.context = job_context.new(run)
  run.deadline = deadline(run)
  if has_host then
    host.spare_strays()
  end
  local begun = core.monotonic()
  local ok, result, refused, ended = watched(run, run.sessions, prioritized_work, run)
  run.ran = core.monotonic() - begun
  if has_host then
    host.end_strays() -- before anything is given back
  end
  if not ok then
    return failed_work(run, result, refused, ended)
  end
  local text, problem = kept_result(result)
  if problem then
    return { state = "failed", error = problem }
  end
  return { state = "succeeded", result_json = text, result = text and core.json.decode(text) }
end

---------------------------------------------------------------------------------------------------
-- one attempt

-- What was not to be had: the run is skipped, or has failed.
local function busy(err, planned)
  if planned.on_busy == "skip" then
    return { state = "skipped", reason = "busy", error = err }
  end
  return { state = "failed", error = err }
end

-- A word about a wait for guards.
local function say_of(run)
  return function(level, text, rows)
    if run.options.tell then
      run.options.tell("waiting", run.job, ("%s, held by %s"):format(text, holders.described(rows)))
    else
      core.log(level, text, { "holder" }, { holders.described(rows) })
    end
  end
end

-- The fields of the run's log lines.
local function log_fields(run)
  local names, values = { "job", "slot", "attempt" }, {
    run.job.name, os.date("!%Y-%m-%dT%H:%M:%SZ", run.slot // 1 | 0), run.attempt,
  }
  for _, name in ipairs { "run_id", "fence" } do
    if run[name] then
      names[#names + 1], values[#values + 1] = name == "run_id" and "run" or name, run[name]
    end
  end
  core.log_common(names, values)
end

-- What the locks of a session are told apart by: "" in the database of the state tables.
local function place_of(run, tables, session)
  if session == tables then
    return ""
  end
  for name, beside in pairs(run.beside) do
    if beside == session then
      return name .. ":"
    end
  end
  return (run.job.using or "default") .. ":"
end

-- The run has its guards: its fence, and where it has a row, the step to running. Returns an outcome where
-- it may not run.
local function begin_running(run, plan)
  local ledger = run.options.ledger
  local tables = ledger and ledger.session or run.db
  local words, conflicts = guard_words.of(plan, run.taken.held, function(session)
    return place_of(run, tables, session)
  end)
  local ended, usable
  if ledger then
    ledger:name_locks(plan, run.taken.held)
    ended, run.fence = ledger:step(words, conflicts, run.settings, run.taken.waited)
    return ended
  end
  usable, run.no_fence = fence.look(run.db)
  if usable then
    if not run.had_transaction then
      predecessors.await(run.db, conflicts)
    end
    run.fence = fence.next(run.db, run.job.name)
  end
end

local function hold_and_work(run)
  local plan = guards.plan(run.job, function(name) return session_of(run, name) end)
  run.taken = guards.take(run.db, run.settings, say_of(run))
  local ok, err, planned = run.taken:session_level(plan)
  if not ok then
    return busy(err, planned)
  end
  local ended = begin_running(run, plan)
  if ended then
    return ended
  end
  log_fields(run)
  ok, err, planned = run.taken:transaction_level(plan)
  if not ok then
    return busy(err, planned)
  end
  return do_work(run)
end

-- Of two ends the worse: that a guard was lost is said in any case. What the job returned is kept.
local function worsened(run, outcome, problem)
  if not problem or FAILED[outcome.state] and problem.kind ~= "lock_lost" or outcome.state == "lost" then
    return outcome
  elseif outcome.error and problem.kind == "lock_lost" then
    problem.detail = problem.detail or outcome.error.message
  end
  local lost = problem.kind == "lock_lost" and is_session_gone(run)
  return { state = lost and "lost" or "failed", error = problem, result = outcome.result,
    result_json = outcome.result_json }
end

-- Transactions end, guards are given back.
local function settle(run, outcome)
  local taken = run.taken
  if taken then
    outcome = worsened(run, outcome, taken:finish(outcome.state == "succeeded"))
  end
  for i, session in ipairs(run.sessions) do
    if core.backend_pid(session) then
      local stray = end_stray_transaction(session, i == 1 and run.had_transaction)
      if stray and outcome.state == "succeeded" then
        outcome = worsened(run, outcome, stray)
      end
    end
  end
  if taken then
    outcome = worsened(run, outcome, taken:release())
  end
  return outcome
end

local function attempt_safely(run)
  local ledger = run.options.ledger
  local ok, outcome = xpcall(function()
    open(run)
    local ended = ledger and ledger:begin()
    run.parent = ledger and ledger:parent() or run.parent
    return ended or hold_and_work(run)
  end, caught)
  if not ok then
    outcome = failed_work(run, outcome)
  end
  if ledger then
    ledger:settle()
  end
  local settled
  ok, settled = xpcall(settle, caught, run, outcome)
  return ok and settled or worsened(run, outcome, settled)
end

local function seconds_in_window(job, at)
  if not job.window or not core.window then
    return math.huge
  end
  return core.window(job.window, job.timezone, at)
end

local function is_retried(job, outcome)
  local on = (job.settings.retry or {}).on or RETRY_ON
  for _, word in ipairs(on) do
    if FAILED[outcome.state] and (word == outcome.state or outcome.error and word == outcome.error.kind) then
      return true
    end
  end
  return false
end

--- Is there another attempt after this one?
---@param job Job
---@param outcome Outcome
---@return boolean
local function comes_again(job, outcome)
  local retry = job.settings.retry
  return retry ~= nil and outcome.attempt < (retry.attempts or 1) and is_retried(job, outcome)
end

local function call_on_failure(run, outcome)
  local on_failure = run.job.on_failure
  if not on_failure or not FAILED[outcome.state] or comes_again(run.job, outcome) then
    return
  end
  run.context = run.context or job_context.new(run)
  run.deadline = deadline(run)
  local ok, err = watched(run, {}, on_failure, run.context, outcome.error)
  if not ok then
    core.log("error", "on_failure failed: " .. as_error(err).message, {}, {})
  end
  for _, session in ipairs(run.sessions) do
    if core.backend_pid(session) then
      end_stray_transaction(session, session == run.options.db and run.had_transaction)
    end
  end
end

--- What `lockkeeper run` ends with because of an outcome: its state, its reason and its error's kind.
---@param outcome { state: string, reason?: string, error?: { kind?: string } }
---@return integer
function worker.exit_code(outcome)
  if outcome.state == "succeeded" then
    return 0
  elseif outcome.state == "skipped" then
    return outcome.reason == "busy" and 75 or 0
  elseif outcome.state == "timed_out" then
    return 124
  elseif outcome.state == "lost" then
    return 125
  end
  return outcome.error and EXIT[outcome.error.kind] or 1
end

local function complete(run, outcome)
  outcome.attempt = run.attempt
  outcome.waited = run.taken and run.taken.waited or 0
  outcome.ran = run.ran or 0
  outcome.exit_code = worker.exit_code(outcome)
  return outcome
end

--- What the job returned, as JSON that fits on a line.
---@param outcome Outcome
---@return string?
function worker.short_result(outcome)
  return outcome.result_json and cut(outcome.result_json)
end

-- The fields of an outcome's log line.
local function outcome_fields(outcome)
  local names, values = {}, {}
  local function add(name, value)
    if type(value) == "string" and value ~= "" then
      names[#names + 1], values[#values + 1] = name, value
    end
  end
  add("waited", ("%.3f"):format(outcome.waited))
  add("ran", ("%.3f"):format(outcome.ran))
  add("reason", outcome.reason)
  if outcome.error then
    add("error", outcome.error.message)
    for _, name in ipairs { "kind", "sqlstate", "detail", "hint" } do
      add(name, outcome.error[name])
    end
  end
  add("result", worker.short_result(outcome))
  return names, values
end

local LEVELS = { started = "info", again = "warning", succeeded = "info", skipped = "info",
  cancelled = "warning" }

-- One event about the run.
local function tell(run, event, outcome)
  local function level_of(name)
    return run.options.output == "quiet" and "debug" or LEVELS[name] or "error"
  end
  if run.options.tell then
    return run.options.tell(event, run.job, outcome)
  elseif event == "started" then
    return core.log(level_of(event), "job started", {}, {})
  elseif event == "again" then
    return core.log(level_of(event), ("the job is tried again in %.3g s"):format(outcome.again_in), {}, {})
  end
  local ledger = run.options.ledger
  if ledger and ledger.to_give_back then
    return core.log("debug", "the job could not begin", outcome_fields(outcome)) -- the supervisor tells it
  end
  core.log(level_of(outcome.state), "job " .. outcome.state:gsub("_", " "), outcome_fields(outcome))
end

-- A job is at work.
local running

local function new_run(job, options, attempt)
  return {
    job = job, settings = job.settings, options = options, attempt = attempt,
    slot = options.slot or core.now(), parent = options.parent, run_id = options.run_id,
    sessions = {}, beside = {}, no_fence = "it has not got its guards",
  }
end

local function delay_before(retry, attempt)
  return math.min((retry.delay or 0) * (retry.factor or 1) ^ (attempt - 1), RETRY_DELAY_MAX)
end

--- Run a job once, whatever its policy says of another attempt.
---@param job Job
---@param options RunOptions
---@return Outcome
local function attempt_once(job, options, attempt)
  local run = new_run(job, options, attempt)
  run.window_left = seconds_in_window(job, core.now())
  log_fields(run)
  if not run.window_left then
    local outcome = complete(run, { state = "skipped", reason = "window", output = "" })
    tell(run, "ended", outcome)
    return outcome
  end
  run.progress = progress.new(job.name)
  run.output = output.begin(options.output or "plain")
  run.output.before = function() run.progress:clear() end
  local application = core.set_application(application_name(job))
  tell(run, "started")
  local outcome = complete(run, attempt_safely(run))
  call_on_failure(run, outcome)
  if options.ledger then
    outcome.again_in = comes_again(job, outcome) and delay_before(job.settings.retry, attempt) or nil
    outcome.output = run.output:finish()
    options.ledger:finish(job, outcome)
  end
  close(run, outcome)
  run.progress:finish()
  outcome.output = outcome.output or run.output:finish()
  core.set_application(application)
  tell(run, "ended", outcome)
  return outcome
end

local function run_attempts(job, options)
  local attempt = options.attempt or 1
  local first = attempt
  while true do
    local outcome = attempt_once(job, options, attempt)
    outcome.attempts = attempt - first + 1
    if options.ledger or not comes_again(job, outcome) or has_host and host.interrupted() then
      return outcome
    end
    outcome.again_in = delay_before(job.settings.retry, attempt)
    tell({ job = job, options = options }, "again", outcome)
    core.sleep(outcome.again_in)
    attempt = attempt + 1
  end
end

local function check(job, options)
  if type(job) ~= "table" or type(job.name) ~= "string" or type(job.settings) ~= "table" then
    core.usage("run: a job was expected (call it with a colon: job:run { … })")
  end
  call.check_options("run", options, OPTIONS)
  if options.slot ~= nil and (type(options.slot) ~= "number" or options.slot ~= options.slot
    or math.abs(options.slot) > SLOT_MAX) then
    core.usage("run: slot must be a number of seconds since the epoch, not " .. tostring(options.slot))
  elseif options.db ~= nil and type(options.db) ~= "userdata" then
    core.usage("run: db must be a session, not a " .. type(options.db))
  elseif running then
    core.usage(("run: the job %s is at work: jobs run one after another"):format(running.name))
  end
  call.integer("run", options, "attempt", 1)
  if options.output ~= nil and not MODES[options.output] then
    core.usage(('run: output must be "plain", "log", "both" or "quiet", not %s'):format(
      tostring(options.output)))
  end
end

local RUNNING = {
  __close = function()
    running = nil
    output.abandon()
    definition.seal(nil)
    core.log_common()
  end,
}

--- Run a job, and again as its policy says where it fails. Errors of the job are in the outcome; what is
--- raised is a usage error of the caller's.
---@param job Job
---@param options? RunOptions
---@return Outcome
function worker.run(job, options)
  options = options or {}
  check(job, options)
  running = job
  definition.seal("a job is at work: define jobs and policies before")
  local _ <close> = setmetatable({}, RUNNING)
  return run_attempts(job, options)
end

return worker
