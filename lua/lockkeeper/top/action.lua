--- Ending a session's statement, a session or a job's runs, after a question. That is done by a task with a
--- session of its own, since the one that looks may be waiting. It is open from the start: whoever holds a
--- lock on a catalog that logging in reads can then still be ended.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local kill = require "lockkeeper.kill"
local lock = require "lockkeeper"
local outline = require "lockkeeper.picture.outline"
local row_format = require "lockkeeper.cli.rows"
local span = require "lockkeeper.report.span"
local untouchable = require "lockkeeper.untouchable"

local action = {}

---@class TopSubject         whom a line is about: a session, a prepared transaction, or a job
---@field pid? integer
---@field gid? string
---@field activity? Activity
---@field behind? integer
---@field job? string
---@field active? integer    the job's runs that have not ended

local WORDS = { cancel = "Cancel", terminate = "Terminate" }
local DONE = { cancel = "the statement of %d was cancelled", terminate = "%d was terminated" }

-- No session has this pid, nor ever began then.
local NOBODY = { pid = 0x7FFFFFFF, backend_start = 0 }

-- What is sent later was sent once: the server then reads no catalog for it any more.
local function prepare(app, db)
  app.own[db.pid] = true
  for what in pairs(WORDS) do
    kill.signal(db, what, { NOBODY })
  end
end

-- The task's session, which may have been lost since it was used last.
local function connected(app)
  local db = lock.db
  if not pcall(db.ping, db) then
    db:reconnect()
    app.own[db.pid] = true
  end
  return db
end

local function outcome_text(outcome)
  if outcome.result == "signalled" then
    return DONE[outcome.action]:format(outcome.pid)
      .. (outcome.ended == false and ", but " .. outcome.message or ""), outcome.ended == false
  elseif outcome.result == "no_effect" then
    return ("%d: %s; t terminates it"):format(outcome.pid, outcome.message), true
  end
  return ("%d: %s%s"):format(outcome.pid, outcome.message or outcome.result,
    outcome.hint and "; " .. outcome.hint or ""), outcome.result ~= "gone"
end

local function signal(app, what, subject)
  local target = { pid = subject.pid, backend_start = subject.activity.backend_start }
  local outcome = kill.signal(connected(app), what, { target })[1]
  app:say(outcome_text(outcome))
end

local function cancel_runs(app, job)
  local runs = core.store_cancel(connected(app), job)
  local at_once = 0
  for _, run in ipairs(runs) do
    at_once = at_once + (run.state == "cancelled" and 1 or 0)
  end
  if #runs == 0 then
    app:say(("no run of %s is under way"):format(job))
  elseif at_once == #runs then
    app:say(("%s: %s cancelled"):format(job, row_format.counted(#runs, "run was", "runs were")))
  else
    app:say(("%s: %s, its hosts have been told"):format(job,
      row_format.counted(#runs, "run is to end", "runs are to end")))
  end
end

-- Raise what is no matter of the server's.
local function tell(app, ok, err)
  if ok then
    return
  elseif not failure.is_ours(err) or err.kind == "cancelled" then
    error(err, 0)
  end
  app:say(err.message .. (err.hint and "; " .. err.hint or ""), true)
end

--- The task: do what was asked for and answered with yes. What goes wrong is told, and ends nothing.
---@param app TopApp
function action.run(app)
  tell(app, pcall(function() prepare(app, lock.db) end))
  while true do
    while not app.request do
      if not core.await(action) then
        core.raise_cancelled()
      end
    end
    tell(app, pcall(app.request))
    app.request = nil
    app:look()
    app:draw()
  end
end

local function begin(app, fn, ...)
  local arguments = table.pack(...)
  app.request = function() fn(app, table.unpack(arguments, 1, arguments.n)) end
  core.tell(action)
end

-- Who it is, so that one sees whether it is the right one.
local function who(subject)
  local activity, parts = subject.activity, {}
  parts[#parts + 1] = activity.user
  parts[#parts + 1] = activity.application_name ~= "" and activity.application_name or nil
  local state = outline.state({ pid = subject.pid, activity = activity, class = "" })
  parts[#parts + 1] = activity.state_duration and state .. " for " .. span(activity.state_duration) or state
  if subject.behind and subject.behind > 0 then
    parts[#parts + 1] = ("%d behind it"):format(subject.behind)
  end
  parts[#parts + 1] = untouchable.reason(activity)
  return table.concat(parts, ", ")
end

local function ask_job(app, what, subject)
  if what == "terminate" then
    return "the runs of a job can only be cancelled: c"
  elseif subject.active == 0 then
    return ("no run of %s is under way"):format(subject.job)
  end
  local runs = row_format.counted(subject.active, "run", "runs")
  app:ask(("Cancel %s of %s? [y/N]"):format(runs, subject.job),
    function() begin(app, cancel_runs, subject.job) end, ("no run of %s was cancelled"):format(subject.job))
end

--- Ask whether this is to be done, and do it where the answer is yes. Returns why nothing can be done.
---@param app TopApp
---@param what "cancel"|"terminate"
---@param subject TopSubject
---@return string?
function action.ask(app, what, subject)
  if app.request then
    return "the server has not answered the last one yet"
  elseif subject.job then
    return ask_job(app, what, subject)
  elseif not subject.pid then
    return ("a prepared transaction has no session to signal: ROLLBACK PREPARED '%s'"):format(
      (subject.gid or "?"):gsub("'", "''"))
  elseif app.own[subject.pid] then
    return ("%d is this very program's"):format(subject.pid)
  elseif untouchable.is_protected(subject.activity) then
    return ("%d: the configuration protects it"):format(subject.pid)
  end
  app:ask(("%s %d? [y/N]  %s"):format(WORDS[what], subject.pid, who(subject)),
    function() begin(app, signal, what, subject) end,
    ("%d was left alone"):format(subject.pid))
end

return action
