--- lockkeeper work: of the supervisor; a worker process, to which one run after another is handed
--- (src/runner/child.h).
local config = require "lockkeeper.cli.config"
local core = require "lockkeeper.core"
local definition = require "lockkeeper.definition"
local failure = require "lockkeeper.cli.failure"
local files = require "lockkeeper.load"
local host = require "lockkeeper.host"
local ledger = require "lockkeeper.ledger"
local output = require "lockkeeper.output"
local script = require "lockkeeper.cli.script"
local worker = require "lockkeeper.worker"

local work = {}

work.spec = {
  usage = "lockkeeper work --fd N --log-fd N",
  summary = "Executes runs that the supervisor hands over the socket N. The supervisor calls this one.",
  operands = { min = 0, max = 0, name = "" },
  options = {
    { "--fd", value = "N", key = "fd", kind = "integer", from = 3, to = 1000000, help = "the socket" },
    { "--log-fd", value = "N", key = "log_fd", kind = "integer", from = 3, to = 1000000, help = "the log" },
  },
  own_config = true,
}

-- After these ends the process is as good as new.
local REUSABLE = { succeeded = true, skipped = true }

-- Files that were loaded: { sha256, set } by path.
local loaded = {}

local function say(object)
  host.work_say(core.json.encode(object))
end

local function settle(settings)
  core.set_default(settings.conninfo)
  core.log_configure(settings.log_level, settings.log_format)
  config.run(settings.config, true)
  if settings.act then
    require("lockkeeper.audit_job").allow(core.json.decode(settings.act))
  end
end

-- The Set of a file, which must be the one that was described. `text`: what it was before it was broken.
local function load_file(path, sha256, text)
  text = text or script.read(script.open(path), path)
  if host.sha256(text) ~= sha256 then
    failure.unloaded(path .. " has changed since it was described: it is not run before it is read anew")
  end
  local known = loaded[path]
  if known and known.sha256 == sha256 then
    return known.set
  end
  local chunk = script.compile(text, path, "@" .. path)
  local earlier = core.forbid(files.FORBIDDEN)
  definition.begin(path)
  local ok, err = xpcall(chunk, failure.caught)
  core.forbid(earlier)
  if not ok then
    definition.abandon()
    failure.unloaded(("%s does not load: %s"):format(path, failure.text(err)))
  end
  local set = definition.finish()
  if #set.audits > 0 then
    require("lockkeeper.audit_job").add(set)
  end
  loaded[path] = { sha256 = sha256, set = set }
  return set
end

local function find_job(request)
  local set = load_file(request.file, request.sha256, request.text)
  local job = set.jobs[request.job]
  if not job then
    failure.unloaded(("%s does not define %s any more"):format(request.file, request.job))
  end
  return job
end

local function log_failure(request, message)
  core.log("error", "job failed", { "job", "error" }, { request.job, message })
end

-- Do one run, and say how it ended.
local function execute(request)
  host.work_accept(true)
  local ok, job = xpcall(find_job, failure.caught, request)
  if not ok then
    local message = failure.text(job)
    host.work_accept(false)
    log_failure(request, message)
    return say { ended = { state = "failed", reason = "load", error = message, written = false,
      reusable = false } }
  end
  local book, told
  -- The process is ready for its next run only when worker.run has returned, but the supervisor can look for
  -- that one meanwhile.
  local function ended(outcome)
    if told then
      return
    end
    told = true
    local err, written = outcome.error or {}, not book or book.written
    say { ended = { state = outcome.state, reason = outcome.reason, written = written,
      error = outcome.error and tostring(err.message), kind = err.kind, sqlstate = err.sqlstate,
      detail = err.detail, waited = outcome.waited, ran = outcome.ran,
      given_back = book and book.to_give_back or nil,
      reusable = REUSABLE[outcome.state] and written } }
  end
  book = request.id and ledger.new(request, say, function(outcome)
    if REUSABLE[outcome.state] then
      ended(outcome)
    end
  end)
  local outcome = worker.run(job, {
    slot = request.slot_us % 1000000 == 0 and request.slot_us // 1000000 or request.slot_us / 1e6,
    attempt = request.attempt, run_id = request.id, output = "log", ledger = book,
  })
  host.work_accept(false)
  ended(outcome)
end

function work.main(values)
  host.work_open(values.fd, values.log_fd)
  output.install()
  for line in host.work_hear do
    local message = core.json.decode(line)
    if message.settings then
      settle(message.settings)
      say { ready = true }
    elseif message.run then
      execute(message.run)
    end
  end
  return 0
end

return work
