--- lockkeeper pause: a job's slots are skipped until it is resumed.
local core = require "lockkeeper.core"
local state = require "lockkeeper.cli.state"

local pause = {}

pause.spec = {
  usage = "lockkeeper pause JOB [options]",
  summary = "Pauses a job on all hosts: its slots are recorded as skipped until lockkeeper resume.",
  text = { "A run that is under way goes on; lockkeeper cancel ends it. Exit code: 0, also where it was "
    .. "paused already; 2 there is no such job; 69 no connection." },
  operands = { min = 1, max = 1, name = "JOB" },
  options = {},
  own_config = true,
}

function pause.main(_, operands)
  local name = operands[1]
  local changed = state.on_job(core.store_pause, state.open("pause"), name, true)
  print(changed and ("%s is paused"):format(name) or ("%s was paused already"):format(name))
  return 0
end

return pause
