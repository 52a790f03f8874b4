--- lockkeeper cancel: ends a job's runs, or one run, on whichever host they are.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local host = require "lockkeeper.host"
local run_number = require "lockkeeper.cli.run_number"
local run_rows = require "lockkeeper.cli.run_rows"
local state = require "lockkeeper.cli.state"

local cancel = {}

cancel.spec = {
  usage = "lockkeeper cancel JOB|'#RUN' [-y] [options]",
  summary = "Cancels the runs of a job that have not ended, or one run, on whichever host they are.",
  text = {
    "One that waits is cancelled at once; one that runs when its host has heard of it: its statement is "
      .. "cancelled, its commands get SIGTERM and, after the job's grace, SIGKILL. It is not tried again.",
    "On a terminal it lists them and asks first. Exit code: 0; 2 there is no such job; 3 nothing was there "
      .. "to be cancelled, or the answer was no; 69 no connection.",
  },
  operands = { min = 1, max = 1, name = "JOB" },
  options = { { "-y", "--yes", key = "yes", help = "do not ask" } },
  own_config = true,
}

local ACTIVE = { "due", "claimed", "running" }

-- What would be cancelled.
local function find(db, job, number)
  if number then
    local row = core.store_run(db, number)
    return run_rows.is_active(row) and { row } or {}
  end
  return core.store_history(db, { job = job, states = ACTIVE, limit = 1000 })
end

-- Lists them and asks on the terminal; false where the answer is not yes.
local function confirm(list)
  for _, row in ipairs(list) do
    local place = row.host and " on " .. row.host or ""
    failure.say(("run %d of %s: %s%s"):format(row.id, row.job, row.state, place))
  end
  io.stderr:write(("Cancel %s? [y/N] "):format(#list == 1 and "it" or ("these %d"):format(#list)))
  local answer = io.read("l")
  if not answer then
    io.stderr:write("\n")
  end
  return answer ~= nil and (answer:lower() == "y" or answer:lower() == "yes")
end

function cancel.main(values, operands)
  local job = operands[1]
  local number = run_number.of(job, true)
  local db = state.open("cancel")
  if not values.yes and host.terminal(0) and host.terminal(2) then
    local list = find(db, job, number)
    if #list > 0 and not confirm(list) then
      failure.say("nothing was cancelled")
      return 3
    end
  end
  local runs = state.on_job(core.store_cancel, db, number or job)
  for _, run in ipairs(runs) do
    print(("run %d of %s %s"):format(run.id, run.job,
      run.state == "cancelled" and "is cancelled" or "is to end: its host has been told"))
  end
  if #runs == 0 then
    failure.say(number and ("run %d has ended, or never was"):format(number)
      or ("no run of %s is under way"):format(job))
    return 3
  end
  return 0
end

return cancel
