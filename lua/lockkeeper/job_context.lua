--- What a job's function gets: `run = function(job) … end`.
local command = require "lockkeeper.command"
local core = require "lockkeeper.core"
local fence = require "lockkeeper.fence"

-- PostgreSQL's NAMEDATALEN, less its NUL.
local NAME_MAX = 63

---@class JobContext
---@field name string
---@field slot number       epoch seconds: what the run is for, or when it was started by hand
---@field attempt integer   1 for the first
---@field fence? integer    grows with each run of the job; nil where the database has no schema lockkeeper
---@field run_id? integer
---@field parent? { name: string, state: string, result: any, error: Error? }
---@field db Session        also lock.db and "default"; its guards are on it
local Context = {}

-- What the methods need of the run, which is not the script's to see.
local runs = setmetatable({}, { __mode = "k" })

local function run_of(context, method)
  local run = runs[context]
  if not run then
    core.usage(("%s: a job was expected (call methods with a colon: job:%s(…))"):format(method, method))
  end
  return run
end

--- One event in the log, with the job's name.
---@param level "debug"|"info"|"warning"|"error"
---@param text string
---@param fields? table<string, any>
function Context:log(level, text, fields)
  local run = run_of(self, "log")
  run.progress:clear()
  require("lockkeeper").log(level, text, fields)
end

--- How far the job has come: a bar on a terminal, elsewhere a line in the log, at most one a second.
---@param done number
---@param total? number
---@param label? string
function Context:progress(done, total, label)
  run_of(self, "progress").progress:report(done, total, label)
end

--- Seconds until the job's window closes or its max_run has passed; math.huge where it has neither.
---@return number
function Context:time_left()
  local run = run_of(self, "time_left")
  return math.max(run.deadline - core.monotonic(), 0)
end

--- Raise lock_lost where a later run of the job has begun; else none begins before the open transaction
--- has ended.
---@param session? Session  whose transaction; default: the job's
function Context:assert_held(session)
  local run = run_of(self, "assert_held")
  session = session or run.db
  if run.settings.overlap == "allow" then
    core.usage('assert_held: the job\'s overlap is "allow": a later run may begin at any time')
  elseif not run.fence then
    core.usage("assert_held: the job has no fence: " .. run.no_fence)
  elseif not session.in_transaction then
    core.usage("assert_held: no transaction is open: what is checked here would hold no longer at the commit")
  end
  fence.hold(session, run.job.name, run.fence)
end

-- What a command finds in its environment, and what removes the password file that is part of it.
local function environment(run)
  local env, passfile = core.environment(run.db)
  local own = run.taken and run.taken.own
  env.PGAPPNAME = ("lockkeeper: " .. run.job.name):sub(1, NAME_MAX)
  env.LOCKKEEPER_JOB = run.job.name
  env.LOCKKEEPER_SLOT = (run.slot % 1 == 0 and "%d" or "%.6f"):format(run.slot)
  env.LOCKKEEPER_ATTEMPT = tostring(run.attempt)
  env.LOCKKEEPER_RUN = run.run_id and tostring(run.run_id) or false
  env.LOCKKEEPER_FENCE = run.fence and tostring(run.fence) or false
  env.LOCKKEEPER_KEY = own and tostring(own.key) or false
  return env, passfile
end

-- Into the log, and into `pieces` where the job wants to have it, too.
local function sink(run, stream, pieces)
  return function(text)
    run.output:write(stream, text)
    if pieces then
      pieces[#pieces + 1] = text
    end
  end
end

-- Run a command as the job's; `returns`: collect what it writes. What the job's own functions or files get
-- is not in the log.
local function run_command(run, given, returns)
  local argv, options = command.split(given)
  local env, passfile <close> = environment(run) -- luacheck: ignore passfile
  if options.env ~= nil and type(options.env) ~= "table" then
    core.usage("sh: env is a table of name = value")
  end
  for name, value in pairs(options.env or {}) do
    env[name] = value
  end
  local out, err = returns and {} or nil, returns and {} or nil
  local has_out, has_err = options.stdout ~= nil, options.stderr ~= nil
  options.env = env
  options.grace = options.grace or run.settings.grace
  options.stdout = options.stdout or sink(run, "stdout", out)
  options.stderr = options.stderr or sink(run, "stderr", err)
  run.output:end_line()
  local code = core.command(argv, options)
  run.output:end_line()
  return code, out and not has_out and table.concat(out) or nil,
    err and not has_err and table.concat(err) or nil
end

--- Run a command, without a shell: it ends with the job, and so does all that it has started. libpq's
--- variables and a password file lead it to the job's database. What it writes goes into the log.
---@param given table       { "pg_dump", "-Fc", stdin =, stdout =, stderr =, env =, cwd =, grace = }
---@return integer code     its exit code; 128 + N where signal N ended it
---@return string? stdout   nil where a function or a file got it
---@return string? stderr
function Context:sh(given)
  return run_command(run_of(self, "sh"), given, true)
end

local CONTEXT = {
  __name = "lockkeeper.JobContext",
  __index = Context,
  __tostring = function(self) return "job " .. tostring(self.name) end,
}

local job_context = {}

--- What the function of a run gets.
---@return JobContext
function job_context.new(run)
  local context = setmetatable({
    name = run.job.name, slot = run.slot, attempt = run.attempt, run_id = run.run_id, parent = run.parent,
    fence = run.fence, db = run.db,
  }, CONTEXT)
  runs[context] = run
  return context
end

--- For `command =` jobs: run it, what it writes goes into the log. Returns its exit code.
function job_context.run_command(run, given)
  return (run_command(run, given, false))
end

return job_context
