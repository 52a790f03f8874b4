--- lockkeeper run: a Lua script, then the jobs that it has defined, each once.
local core = require "lockkeeper.core"
local definition = require "lockkeeper.definition"
local failure = require "lockkeeper.cli.failure"
local host = require "lockkeeper.host"
local options = require "lockkeeper.cli.options"
local output = require "lockkeeper.output"
local script = require "lockkeeper.cli.script"
local target = require "lockkeeper.cli.target"

local require = require -- whatever the script makes of it

local run = {}

run.spec = {
  usage = "lockkeeper run [options] FILE [ARG...]",
  summary = "Runs a Lua script; FILE may be - for standard input. What follows FILE is the script's.",
  text = {
    "Then each job that it has defined runs once, in their order, under its guards and policy, one that is "
      .. "to run after another only if that one has ended so. What a job prints goes to standard output, "
      .. "and, unless standard error is a terminal, line by line into the log there; to the log alone where "
      .. "both are the same file.",
    "Exit code: 0 done; 1 the script or a job failed; 2 it does not load; 69 no connection; 75 a lock was "
      .. "not to be had; 124 max_run passed; 125 a lock was lost; 128 + N ended by signal N (Ctrl-C: 130). "
      .. "Of several jobs the first that did not succeed counts.",
  },
  rest = true,
  operands = { min = 1, name = "FILE" },
  options = {
    { "--job", value = "NAME", key = "job", help = "run only this one of the jobs" },
    { "--list", key = "list", help = "name the jobs, run none" },
  },
  runs_script = true,
}

-- Loaded for the first job: a script that defines none needs nothing of it.
local function worker()
  return require "lockkeeper.worker"
end

-- How a path is shown: io.open allows any length.
local PATH_SHOWN = 500

-- The ends that `after` means: a job that was skipped has not ended, since it did not begin.
local ENDS = {
  succeeded = { succeeded = true },
  failed = { failed = true, timed_out = true, lost = true },
  finished = { succeeded = true, failed = true, timed_out = true, lost = true, cancelled = true },
}

local function load_script(path)
  if path == "-" then
    return script.load(io.stdin, "the script on standard input", "=stdin")
  elseif path == "" then
    failure.words("FILE is empty")
  end
  local file, reason = io.open(path, "rb")
  if not file then
    failure.unloaded(("cannot open the script %s%s"):format(options.shown(path, PATH_SHOWN),
      reason:sub(#path + 1)))
  end
  script.check_trust(file, "the script " .. options.shown(path, PATH_SHOWN))
  return script.load(file, "the script " .. path, "@" .. path)
end

---------------------------------------------------------------------------------------------------
-- jobs

local function span(seconds)
  return seconds < 1 and ("%.0f ms"):format(seconds * 1000) or ("%.1f s"):format(seconds)
end

-- On a terminal a word about each; elsewhere the log has it.
local function tell_terminal(event, job, outcome)
  if event == "waiting" then
    failure.say(("%s: %s"):format(job.name, outcome))
  elseif event == "again" then
    failure.say(("%s: attempt %d failed, the next one comes in %s"):format(job.name, outcome.attempt,
      span(outcome.again_in)))
  elseif event == "ended" then
    local took = span(outcome.ran)
    if outcome.waited >= 0.1 then
      took = took .. ", waited " .. span(outcome.waited)
    end
    local result = worker().short_result(outcome)
    failure.say(("%s: %s (%s)%s"):format(job.name, outcome.state:gsub("_", " "), outcome.reason or took,
      result and ", it returned " .. result or ""))
    if outcome.error then
      failure.show(outcome.error)
    end
  end
end

local function worker_options()
  if host.terminal(2) then
    return { output = "plain", tell = tell_terminal }
  end
  return { output = host.same_stream() and "log" or "both" }
end

-- The next job in order that waits for none of the others that are still to come.
local function take_next(jobs, ended)
  for i, job in ipairs(jobs) do
    local waits = false
    for _, other in ipairs(jobs) do
      waits = waits or job.after ~= nil and other.name == job.after.job
    end
    if not waits then
      return table.remove(jobs, i), job.after and ended[job.after.job]
    end
  end
end

local function is_due(job, parent, chosen)
  if chosen then
    return true
  elseif not job.enabled then
    core.log("info", "not run: it is disabled", { "job" }, { job.name })
    return false
  elseif job.after and not (parent and ENDS[job.after.on][parent.state]) then
    core.log("info", "not run: " .. job.after.job .. (parent and " was " .. parent.state or " did not run"),
      { "job" }, { job.name })
    return false
  end
  return true
end

local function parent_table(parent)
  return parent and { name = parent.name, state = parent.state, result = parent.result, error = parent.error }
end

-- Run them; returns the exit code of the first that did not succeed.
local function run_jobs(jobs, chosen)
  local ended, code = {}, 0
  while #jobs > 0 and not host.interrupted() do
    local job, parent = take_next(jobs, ended)
    if is_due(job, parent, chosen) then
      local how = worker_options()
      how.slot, how.parent = parent and parent.slot or core.now(), parent_table(parent)
      local outcome = worker().run(job, how)
      ended[job.name] = { name = job.name, slot = how.slot, state = outcome.state, result = outcome.result,
        error = outcome.error }
      code = code == 0 and outcome.exit_code or code
    end
  end
  return code
end

local function find_job(set, name)
  local job = set.jobs[name]
  if job then
    return { job }
  end
  local known = {}
  for i, other in ipairs(set.jobs) do
    known[i] = other.name
  end
  local near = core.nearest(name, known)
  failure.words(#known == 0 and "the script defines no jobs"
    or ("--job: there is no job %s%s"):format(options.quoted(name),
      near and ("; did you mean %s?"):format(options.quoted(near)) or ""))
end

local function list(set)
  for _, job in ipairs(set.jobs) do
    print(job.name)
  end
  return 0
end

function run.main(values, operands)
  local path = operands[1]
  local chunk = load_script(path)
  arg = table.move(operands, 1, #operands, 0, {}) -- luacheck: ignore
  target.name_sessions(path:match("[^/]+$") or path)
  output.install()
  definition.begin(path)
  chunk(table.unpack(operands, 2))
  local set = definition.finish()
  if values.list then
    return list(set)
  elseif values.job then
    return run_jobs(find_job(set, values.job), true)
  end
  return run_jobs(table.move(set.jobs, 1, #set.jobs, 1, {}), false)
end

return run
