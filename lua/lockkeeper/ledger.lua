--- What a run that the supervisor has claimed writes into the state tables, on the session that holds its
--- guards (runner.md 8, 15, 18 and 22): first its liveness lock; then, with its guards, the step to running;
--- at last how it ended.
--
-- Where the job's session leads to another database than the tables are in, all that is on a session
-- beside it, which is watched like the job's.
local core = require "lockkeeper.core"
local guard_names = require "lockkeeper.guard_names"
local has_host, host = pcall(require, "lockkeeper.host")
local predecessors = require "lockkeeper.predecessors"

local ledger = {}

---@class Ledger
---@field request table      the supervisor's: { id, job, runner, origin, attempt, parent, … }
---@field say fun(table)     tell the supervisor
---@field ended fun(outcome: Outcome)  called as soon as its row tells how it ended
---@field cancelled? string   why the supervisor has ended it, where it did so before it began
---@field session? Session
---@field alive? Guard       the liveness lock
---@field gone? boolean      the run is not ours any more
---@field to_give_back? boolean  nothing of it was begun, which is no fault of the job's
---@field written boolean    its row tells how it ended, or is no concern of ours
local Ledger = {}
Ledger.__index = Ledger

-- How long an earlier worker of the same run, which has found that it is not its own any more, may take to
-- leave.
local LEAVE_WITHIN, LEAVE_EVERY = 5, 0.05

-- Since when the server's end of a session has been there, by session, as a step on it has told.
local backend_starts = setmetatable({}, { __mode = "k" })

--- For the run of a request.
---@param request table
---@param say fun(message: table)
---@param ended fun(outcome: Outcome)
---@return Ledger
function ledger.new(request, say, ended)
  return setmetatable({ request = request, say = say, ended = ended, written = false }, Ledger)
end

--- The session of the tables, as long as "default" leads there: the job's own, where it is to the same
--- database. Returns the one beside it, if there is one.
---@param job Job
---@param db Session
---@return Session?
function Ledger:choose_session(job, db)
  if job.using == nil or job.using == "default" then
    self.session = db
    return nil
  end
  self.session = core.beside(core.session(nil))
  return self.session
end

-- Why it was cancelled, as the supervisor says before it sends the signal; nil: it has not said so. And
-- whether it is there still.
local function heard_cancel(self)
  local reason
  while true do
    local line, open = host.work_heard()
    if not line then
      return reason, open
    end
    local cancel = core.json.decode(line).cancel
    if cancel and cancel.id == self.request.id then
      reason = cancel.reason
    end
  end
end

--- The first lock of the run. Its name is not in the job's way.
function Ledger:begin()
  self.cancelled = heard_cancel(self) -- its signal came too early to be heeded
  if self.cancelled then
    return { state = "cancelled" }
  end
  local deadline = core.monotonic() + LEAVE_WITHIN
  while true do
    local err
    self.alive, err = core.advisory(self.session, core.store_run_key(self.request.id),
      { timeout = 0, on_busy = "return" }, false)
    if self.alive then
      break
    elseif core.monotonic() > deadline then
      return { state = "skipped", reason = "gone", error = err }
    end
    core.sleep(LEAVE_EVERY)
  end
  if self.request.origin == "after" then
    self.row = core.store_run(self.session, self.request.id)
  end
end

--- The parent's end, for job.parent.
---@return table?
function Ledger:parent()
  local row = self.row
  return row and {
    name = row.parent_job, state = row.parent_state, result = row.parent_result,
    error = row.parent_error and { message = row.parent_error, kind = row.parent_error_kind } or nil,
  }
end

-- What this process has named already.
local named = {}

--- Names for the keys of its guards, for ls and audits: the supervisor writes them.
---@param plan PlannedGuard[]
---@param held { planned: PlannedGuard, guard: Guard }[]
function Ledger:name_locks(plan, held)
  local new = {}
  for _, name in ipairs(guard_names.of(plan, held, self.session)) do
    local word = ("%d:%d:%d:%s"):format(table.unpack(name))
    if not named[word] then
      named[word] = true
      new[#new + 1] = name
    end
  end
  if #new > 0 then
    self.say { names = new }
  end
end

--- The step to running. Returns an outcome where it is not taken.
---@param words string[]      of the guards that it holds
---@param conflicts string[]
---@param settings table
---@param waited number
---@return table? outcome
---@return integer? fence
function Ledger:step(words, conflicts, settings, waited)
  local request = self.request
  local step = { run = request.id, runner = request.runner, guards = words, conflicts = conflicts,
    grace = settings.grace, waited = waited, fenced = settings.overlap ~= "allow",
    backend_start = backend_starts[self.session] }
  while true do
    local result, fence, guarded, other = core.store_step(self.session, step)
    if result == "running" then
      backend_starts[self.session] = other
      self.say { running = { fence = fence } }
      return nil, fence
    elseif result == "gone" then
      self.gone = true
      return { state = "skipped", reason = "gone" }
    elseif result == "cancelled" then
      return { state = "cancelled" }
    end
    predecessors.wait(step, other, guarded)
  end
end

--- From here on nothing cancels the run any more: things are put in order.
function Ledger:settle() -- luacheck: ignore 212
  if has_host then
    host.work_accept(false)
  end
end

-- Why it was cancelled. False: the supervisor is not there any more; then others find the run lost.
function Ledger:reason()
  local reason, open = heard_cancel(self)
  return open and (reason or self.cancelled or "cancelled")
end

local function text_of(err)
  return err and tostring(err.message) or nil
end

-- Is it to be tried again as it is? Not where only the job's own database is away.
local function is_unbegun(job, outcome)
  return outcome.reason == "gone" or (job.using == nil or job.using == "default")
    and outcome.error ~= nil and (outcome.error.kind == "connection" or outcome.error.kind == "lock_lost")
end

--- Write how it ended, where the session is there still, and give the liveness lock back.
---@param job Job
---@param outcome Outcome
function Ledger:finish(job, outcome)
  if self.gone then
    self.written = true
  elseif not self.alive then
    self.to_give_back = is_unbegun(job, outcome)
  elseif core.backend_pid(self.session) then
    local reason = outcome.state == "cancelled" and self:reason() or outcome.reason
    local ok, err = true, nil
    if reason or outcome.state ~= "cancelled" then
      ok, err = pcall(self.write, self, outcome, reason)
    end
    if not ok then
      core.log("error", "how the run ended could not be written: " .. tostring(err.message or err), {}, {})
    elseif self.written then
      self.ended(outcome)
    end
  end
  if self.alive and core.backend_pid(self.session) then
    pcall(self.alive.release, self.alive)
  end
end

---@param outcome Outcome
---@param reason? string
function Ledger:write(outcome, reason)
  local err = outcome.error
  core.store_end(self.session, {
    run = self.request.id, runner = self.request.runner, state = outcome.state, reason = reason,
    error = text_of(err), error_kind = err and err.kind, sqlstate = err and err.sqlstate,
    detail = err and err.detail, result = outcome.result_json, output = outcome.output,
    waited = outcome.waited, ran = outcome.ran, retry_after = outcome.again_in,
  })
  self.written = true
end

return ledger
