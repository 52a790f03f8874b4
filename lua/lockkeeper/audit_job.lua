--- Audits that the runner runs: each with `every` is a job, audit:NAME, whose slots are claimed like those of
--- any other, so that on many hosts one of them looks.
local audit = require "lockkeeper.audit"
local audit_action = require "lockkeeper.audit_action"
local audit_book = require "lockkeeper.audit_book"
local audit_snapshot = require "lockkeeper.audit_snapshot"
local core = require "lockkeeper.core"
local definition = require "lockkeeper.definition"
local sets = require "lockkeeper.definition_set"

local audit_job = {}

local PREFIX = "audit:"

-- Without the state tables this process remembers what is open.
local memory

-- The words of `serve --act`.
local allowed

--- Which audits may act.
---@param act boolean|string[]|nil  all, or those of these names
function audit_job.allow(act)
  allowed = act
end

local LEVELS = { info = "info", warning = "warning", critical = "error" }

local function log(level, text, finding)
  local names = { "audit", "severity", "subject" }
  local values = { finding.audit, finding.severity, finding.subject }
  if finding.advice then
    names[#names + 1], values[#values + 1] = "advice", finding.advice
  end
  core.log(level, text, names, values)
end

local function book_of(db)
  local book = audit_book.new(db)
  if not book.session then
    memory = memory or book
    return memory
  end
  return book
end

local function run(job, wanted)
  local session = core.session(wanted.using)
  local a = audit_snapshot.new(session)
  local act = audit_action.is_allowed(allowed, wanted.name) and function(findings, problems)
    audit_action.run(session, wanted, a, findings, problems)
  end or nil
  local round = audit.round(wanted, a, book_of(job.db), act)
  for _, finding in ipairs(round.opened) do
    log(LEVELS[finding.severity], finding.message, finding)
  end
  for _, finding in ipairs(round.closed) do
    log("info", "it is over: " .. finding.message, finding)
  end
  if #round.problems > 0 then
    error(table.concat(round.problems, "; "), 0)
  end
  return { found = #round.findings, opened = #round.opened, closed = #round.closed }
end

-- Its job, which belongs to the file that defines the audit.
local function job_of(wanted, set)
  definition.begin(set.file, { collect = set.collect })
  local job = definition.job(PREFIX .. wanted.name, {
    every = wanted.every, description = wanted.description, tags = { "audit" }, enabled = wanted.enabled,
    catchup = "none", overlap = "skip", policy = { timeout = 0, on_busy = "skip", max_run = wanted.max_run },
    run = function(job) return run(job, wanted) end,
  })
  local made = sets.current()
  definition.abandon()
  table.move(made.faults, 1, #made.faults, #set.faults + 1, set.faults)
  if job then
    job.file, job.line, job.audit = wanted.file, wanted.line, wanted.name
  end
  return job
end

--- Add to a Set that was loaded the jobs of its audits that have `every`.
---@param set Set
function audit_job.add(set)
  for _, wanted in ipairs(set.audits) do
    local job = wanted.every and wanted.find and job_of(wanted, set)
    local earlier = job and set.jobs[job.name]
    if earlier then
      sets.fault(set, wanted, ("audit %s: its job has the name of the one at %s"):format(wanted.name,
        sets.place_text(earlier)))
    elseif job then
      sets.add(set.jobs, job)
    end
  end
end

return audit_job
