--- lockkeeper next: when a job is due, without a database.
local core = require "lockkeeper.core"
local definition = require "lockkeeper.definition"
local described = require "lockkeeper.cli.described"
local failure = require "lockkeeper.cli.failure"
local field = require "lockkeeper.report.field"
local host = require "lockkeeper.host"
local instant = require "lockkeeper.cli.instant"
local lock = require "lockkeeper"
local options = require "lockkeeper.cli.options"
local text_table = require "lockkeeper.report.table"

local next_times = {}

next_times.spec = {
  usage = "lockkeeper next JOB PATH... | lockkeeper next --cron EXPR [--timezone ZONE]",
  summary = "When a job, or a cron expression, is due. Asks no database.",
  text = { "PATH is a file that defines jobs, or a folder of them.",
    "In JSON: a list of instants in UTC." },
  operands = { min = 0, name = "JOB" },
  options = {
    { "-n", "--count", value = "N", key = "count", kind = "integer", from = 1, to = 100000,
      help = "how many times; default 10" },
    { "--from", value = "T", key = "from",
      help = "from this instant on, itself included: 2027-03-28T01:00:00Z; default now" },
    { "--cron", value = "EXPR", key = "cron", help = "of this expression: \"*/15 2-5 * * *\"" },
    { "--timezone", value = "ZONE", key = "timezone", help = "for --cron: an IANA name; default UTC" },
    { "--format", value = "FORMAT", key = "format", kind = "choice", choices = { "table", "json" },
      help = "table (default) or json" },
  },
  own_config = true,
}

local COUNT = 10

-- A usage error of what the words are made of is one of the words.
local function worded(fn, ...)
  local ok, result = pcall(fn, ...)
  if ok then
    return result
  end
  failure.words(failure.is_ours(result) and result.message or failure.text(result))
end

-- Why the clock alone does not make the job due.
local REASONS = {
  finish = "it counts from the end of the last run, which only the database knows",
  start = "it is due once each time a supervisor starts",
}

local function times(schedule, from, count)
  local list, at = {}, math.ceil(from) - 1
  while #list < count do
    at = schedule:next(at)
    if not at then
      break
    end
    list[#list + 1] = at
  end
  return list
end

local function show_json(list)
  local texts = core.json.decode("[]")
  for i, at in ipairs(list) do
    texts[i] = field.instant(at)
  end
  print(lock.json.encode(texts))
end

local function offset_text(seconds)
  local sign = seconds < 0 and "-" or "+"
  seconds = math.abs(seconds)
  local rest = seconds % 60
  return ("%s%02d:%02d%s"):format(sign, seconds // 3600, seconds // 60 % 60,
    rest > 0 and (":%02d"):format(rest) or "")
end

local function show_table(list, timezone)
  local rows = {}
  for i, at in ipairs(list) do
    local offset = core.utc_offset(timezone, at)
    rows[i] = { utc = field.instant(at),
      wall = os.date("!%a %Y-%m-%d %H:%M:%S ", at + offset) .. offset_text(offset) }
  end
  local columns = { { title = timezone:upper(), key = "wall" }, { title = "UTC", key = "utc" } }
  if timezone == "UTC" then
    columns = { { title = "UTC", key = "wall" } }
  end
  io.stdout:write(text_table.format(columns, rows, host.terminal(1)))
end

-- The schedule of the job, its zone, and what to call it.
local function of_job(values, operands)
  if #operands < 2 then
    failure.words(#operands == 0 and "JOB and PATH are missing, or --cron" or "PATH is missing")
  elseif values.timezone then
    failure.words("--timezone goes with --cron; a job has its own")
  end
  local found = described.load(table.move(operands, 2, #operands, 1, {}), values.config)
  if #found.faults > 0 then
    described.show_faults(found)
    return nil
  end
  local job = described.find(found, operands[1])
  local name = "job " .. options.quoted(job.name)
  if job.schedule then
    return definition.schedule(job), job.timezone, name
  end
  failure.say(("%s has no schedule: %s"):format(name,
    job.after and "it comes after " .. options.quoted(job.after.job) or "it is run by hand"))
  return false
end

local function of_cron(values, operands)
  if #operands > 0 then
    failure.words("--cron takes no JOB and PATH")
  end
  return worded(core.schedule, { cron = values.cron, timezone = values.timezone }),
    values.timezone or "UTC", "it"
end

function next_times.main(values, operands)
  local from = values.from and instant.parse(values.from, "--from") or core.now()
  local schedule, timezone, name = (values.cron and of_cron or of_job)(values, operands)
  if schedule == nil then
    return 2
  end
  local list = {}
  if schedule then
    local reason = REASONS[schedule:kind()]
    if reason then
      failure.say(("%s has no times of the clock: %s"):format(name, reason))
    else
      list = times(schedule, from, values.count or COUNT)
    end
  end
  if values.format == "json" then
    show_json(list)
  elseif #list > 0 then
    show_table(list, timezone)
  end
  return 0
end

return next_times
