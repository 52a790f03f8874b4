--- lockkeeper jobs: the jobs that the database knows, or that files define, with their next slot and last
--- result.
local core = require "lockkeeper.core"
local described = require "lockkeeper.cli.described"
local failure = require "lockkeeper.cli.failure"
local job_rows = require "lockkeeper.cli.job_rows"
local keys = require "lockkeeper.cli.keys"
local lock = require "lockkeeper"
local rows = require "lockkeeper.cli.rows"
local state = require "lockkeeper.cli.state"
local target = require "lockkeeper.cli.target"

local jobs = {}

jobs.spec = {
  usage = "lockkeeper jobs [PATH...] [options]",
  summary = "Jobs, with their schedule, the next slot and the last result.",
  text = {
    "Without PATH: those that supervisors have recorded in the database. With PATHs, files or folders of "
      .. "*.lua: those that the files define, also where no supervisor has served them yet, and those of "
      .. "these files that they define no more.",
    "NEXT and LAST are slots, the times at which a job is due, in this host's time. A paused job's slots are "
      .. "skipped. LAST is of the newest run that was not skipped.",
    "Exit code: 0; 2 a file has faults; 69 no connection.",
  },
  operands = { min = 0, name = "PATH" },
  options = { keys.FORMAT },
  own_config = true,
}

--- How many there are: "3 jobs, 1 paused; 2 supervisors".
---@param list JobRow[]
---@param runners integer
---@return string
function jobs.counts(list, runners)
  local paused = 0
  for _, row in ipairs(list) do
    paused = paused + (row.paused and 1 or 0)
  end
  return ("%s%s; %s"):format(rows.counted(#list, "job"), paused > 0 and (", %d paused"):format(paused) or "",
    runners == 0 and "no supervisor serves them" or rows.counted(runners, "supervisor"))
end

-- What the database knows, and how many supervisors there are. Files need no database that has been made.
local function read(with_files)
  target.name_sessions("jobs")
  local db = lock.db
  local now = state.now(db)
  if with_files and not state.exists(db) then
    failure.say("this database knows of no jobs yet: lockkeeper init makes the tables for it. "
      .. "This is what the files say")
    return {}, 0, now
  end
  state.open("jobs")
  return job_rows.read(db, now), #core.store_runners(db), now
end

function jobs.main(values, operands)
  local found = #operands > 0 and described.load(operands, values.config)
  local list, runners, now = read(found)
  if found then
    list = job_rows.combine(list, found, operands, now)
  end
  local columns = job_rows.columns(now)
  if values.format == "json" then
    rows.print_json(list, rows.object_by(columns))
  else
    print(state.first_line(now, jobs.counts(list, runners)))
    if #list > 0 then
      rows.print_table(columns, list)
    elseif not found then
      print("No job is known yet: lockkeeper serve PATH... records those that the files define.")
    end
  end
  if found and #found.faults > 0 then
    described.show_faults(found)
    return 2
  end
  return 0
end

return jobs
