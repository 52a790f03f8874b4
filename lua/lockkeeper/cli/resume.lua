--- lockkeeper resume: a paused job goes on.
local core = require "lockkeeper.core"
local state = require "lockkeeper.cli.state"

local resume = {}

resume.spec = {
  usage = "lockkeeper resume JOB [options]",
  summary = "Resumes a job that was paused: it runs from its next slot on.",
  text = { "Exit code: 0, also where it was not paused; 2 there is no such job; 69 no connection." },
  operands = { min = 1, max = 1, name = "JOB" },
  options = {},
  own_config = true,
}

function resume.main(_, operands)
  local name = operands[1]
  local db = state.open("resume")
  local changed = state.on_job(core.store_pause, db, name, false)
  print(changed and ("%s is resumed"):format(name) or ("%s was not paused"):format(name))
  if changed then
    state.check_served(db)
  end
  return 0
end

return resume
