--- lockkeeper check: what is wrong with files that define jobs, without running any.
local definition = require "lockkeeper.definition"
local described = require "lockkeeper.cli.described"
local explain = require "lockkeeper.cli.explain"
local failure = require "lockkeeper.cli.failure"
local host = require "lockkeeper.host"
local text_table = require "lockkeeper.report.table"

local check = {}

check.spec = {
  usage = "lockkeeper check PATH... [--explain JOB]",
  summary = "Loads files that define jobs, or all *.lua of folders, and names every fault with file, line "
    .. "and reason. Runs no job and asks no database.",
  text = { "Each file is loaded by a process of its own, which may take 5 s and 64 MiB.",
    "Exit code: 0 nothing is wrong; 2 something is." },
  operands = { min = 1, name = "PATH" },
  options = {
    { "--explain", value = "JOB", key = "explain",
      help = "what this job ends up with, and where each value comes from" },
  },
  own_config = true,
}

local COLUMNS = {
  { title = "JOB", key = "name", keep = true },
  { title = "SCHEDULE", key = "schedule" },
  { title = "POLICY", key = "policy" },
  { title = "DEFINED AT", key = "place" },
  { title = "GUARDS", key = "guards" },
}

local function show_jobs(jobs)
  local rows = {}
  for i, job in ipairs(jobs) do
    local guards = {}
    for g, guard in ipairs(job.guards) do
      guards[g] = explain.guard(guard)
    end
    rows[i] = {
      name = job.name, schedule = explain.schedule(job), policy = table.concat(job.policy, ", "),
      guards = table.concat(guards, ", "), place = definition.place_text(job),
    }
  end
  io.stdout:write(text_table.format(COLUMNS, rows, host.terminal(1)))
end

-- Audits with a schedule are jobs, too.
local function say_no_job(found)
  local audits, files = 0, described.counted(#found.files, "file")
  for _, description in ipairs(found.descriptions) do
    audits = audits + (description.audits or 0)
  end
  if audits == 0 then
    failure.say(("no job is defined in %s"):format(files))
  else
    failure.say(("%s in %s, without a schedule, and no job: lockkeeper audit runs them"):format(
      described.counted(audits, "audit"), files))
  end
end

function check.main(values, operands)
  local found = described.load(operands, values.config)
  if #found.faults > 0 then
    described.show_faults(found)
  end
  if values.explain then
    explain.show(described.find(found, values.explain))
  elseif #found.faults == 0 and #found.jobs > 0 then
    show_jobs(found.jobs)
  elseif #found.faults == 0 then
    say_no_job(found)
  end
  return #found.faults > 0 and 2 or 0
end

return check
