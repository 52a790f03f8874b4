--- lockkeeper trigger: a run of a job now, on whichever host is free.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local field = require "lockkeeper.report.field"
local host = require "lockkeeper.host"
local run_rows = require "lockkeeper.cli.run_rows"
local span = require "lockkeeper.report.span"
local state = require "lockkeeper.cli.state"

local trigger = {}

trigger.spec = {
  usage = "lockkeeper trigger JOB [--wait] [options]",
  summary = "Has a job run now, on whichever host that serves it has a free worker; its schedule stays as it "
    .. "is.",
  text = {
    "With --wait it ends when the run has ended, with its retries, and as lockkeeper run would: 0 it "
      .. "succeeded; 1 it failed, was cancelled, or was skipped since the job is paused; 75 a lock was not "
      .. "to be had, or the job is at work already; 124 max_run passed; 125 a lock was lost. Ctrl-C ends the "
      .. "waiting and leaves the run alone.",
    "Without: 0 it is under way; 1 or 75 it was skipped. 2 there is no such job; 69 no connection.",
  },
  operands = { min = 1, max = 1, name = "JOB" },
  options = { { "--wait", key = "wait", help = "wait until it has ended" } },
  own_config = true,
}

-- Seconds between two looks where no notification comes; between two at the least where many do; and
-- after which a run that nobody begins is worth a word.
local LOOK_EVERY, LOOK_LEAST, PATIENCE = 1, 0.1, 3

local function say_state(row, now)
  if not host.terminal(2) then
    return
  end
  local what = {
    due = row.attempt > 1 and ("is attempt %d, due in %s"):format(row.attempt, span(row.due_at - now))
      or "is due: it waits for a free worker",
    claimed = "is taken by " .. (row.host or "a host") .. ", and waits for its locks",
    running = "runs on " .. (row.host or "a host") .. (row.fence and ", fence " .. row.fence or ""),
  }
  if what[row.state] then
    failure.say(("run %d of %s %s"):format(row.id, row.job, what[row.state]))
  end
end

-- The run that tries it again, if there is to be one.
local function next_attempt(db, row)
  if row.state == "succeeded" or row.state == "skipped" or row.state == "cancelled" then
    return nil
  end
  for _, other in ipairs(core.store_history(db, { job = row.job, since = row.due_at, limit = 1000 })) do
    if other.origin == row.origin and other.slot == row.slot and other.attempt == row.attempt + 1 then
      return other
    end
  end
end

-- Hear of news, where the session can: through a pooler it can't, and looking has to do.
local function listen(db)
  local ok, err = pcall(core.store_listen, db)
  if not ok and not (failure.is_ours(err) and err.kind == "usage") then
    error(err, 0)
  end
  return ok
end

local function wait_for_news(db, is_listening)
  if not is_listening then
    core.sleep(LOOK_EVERY)
    return
  end
  if db:wait_notify(LOOK_EVERY) then
    core.sleep(LOOK_LEAST)
    while db:poll() do end -- those that have come meanwhile are seen by the same look
  end
end

-- Wait until the run, or the last one that tries it again, has ended.
local function follow(db, row, is_listening)
  local shown, since, told = nil, core.monotonic(), false
  while true do
    row = core.store_run(db, row.id)
    if not run_rows.is_active(row) then
      local again = next_attempt(db, row)
      if not again then
        return row
      end
      if host.terminal(2) then
        failure.say(("run %d of %s: %s"):format(row.id, row.job, run_rows.state_text(row, row.ended_at)))
      end
      row, told = again, true
    end
    if shown ~= row.id .. row.state then
      shown = row.id .. row.state
      say_state(row, state.now(db))
    end
    if row.state == "due" and not told and core.monotonic() - since > PATIENCE then
      told = true
      state.check_served(db)
    end
    wait_for_news(db, is_listening)
  end
end

local function explain_failure(row)
  local text = run_rows.error_text(row)
  if text then
    failure.say(text)
  end
  if row.detail then
    failure.say("detail: " .. row.detail)
  end
  if row.output and row.output ~= "" then
    failure.say(("lockkeeper history %d shows what it printed"):format(row.id))
  end
end

local function tell_end(row)
  print(("run %d of %s: %s"):format(row.id, row.job, run_rows.state_text(row, row.ended_at)))
  if row.state ~= "succeeded" then
    explain_failure(row)
  end
  return run_rows.exit_code(row)
end

local function tell_skipped(row)
  print(("run %d of %s is skipped: %s"):format(row.id, row.job, row.reason == "busy" and "the job is at work"
    or row.reason == "paused" and "the job is paused" or row.reason))
  if row.reason == "paused" then
    failure.say(("lockkeeper resume %s lets it go on"):format(row.job))
  end
  return run_rows.exit_code(row)
end

function trigger.main(values, operands)
  local db = state.open("trigger")
  -- First of all: news of the run may come at once.
  local is_listening = values.wait and listen(db)
  local run = state.on_job(core.store_trigger, db, operands[1])
  if run.state == "skipped" then
    return tell_skipped(run)
  elseif not values.wait then
    print(("run %d of %s is due since %s"):format(run.id, run.job, field.local_time(run.due_at)))
    state.check_served(db)
    return 0
  end
  local ok, row = pcall(follow, db, run, is_listening)
  if not ok then
    failure.say(("run %d of %s is not waited for any more, and goes on; lockkeeper history %d shows it, "
      .. "lockkeeper cancel '#%d' ends it"):format(run.id, run.job, run.id, run.id))
    error(row, 0)
  end
  return tell_end(row)
end

return trigger
