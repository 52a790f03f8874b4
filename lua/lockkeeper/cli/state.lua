--- The runner's tables, as commands reach them: from any host, with the rights that they have.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local field = require "lockkeeper.report.field"
local keys = require "lockkeeper.cli.keys"
local lock = require "lockkeeper"
local options = require "lockkeeper.cli.options"
local safe = require "lockkeeper.report.safe"
local target = require "lockkeeper.cli.target"
local validation = require "lockkeeper.validation"

local state = {}

--- Are the tables there? Raises where they are of another version than this program's.
---@param db Session
---@return boolean
function state.exists(db)
  local version = core.schema_version(db)
  if version ~= 0 and version ~= core.schema_newest() then
    core.schema_check(db)
  end
  return version ~= 0
end

--- The session to them; raises where they are not there.
---@param command string
---@return Session
function state.open(command)
  target.name_sessions(command)
  local db = lock.db
  if not state.exists(db) then
    core.schema_check(db)
  end
  return db
end

--- The time by the database's clock, in epoch seconds.
---@param db Session
---@return number
function state.now(db)
  return db:value("SELECT pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())")
end

--- Where we are, when, and how much there is.
---@param now number
---@param counts string
---@return string
function state.first_line(now, counts)
  return safe.line(("%s, %s: %s"):format(keys.place(), field.local_time(now, true), counts))
end

--- Say so where nobody would do what was asked for.
---@param db Session
---@return boolean served
function state.check_served(db)
  local served = #core.store_runners(db) > 0
  if not served then
    failure.say("no supervisor serves jobs from this database now: it waits until one does "
      .. "(lockkeeper serve PATH...)")
  end
  return served
end

local JOBS_HINT = "lockkeeper jobs lists those that are known; serve records what its files define."

--- Raise: there is no such job. Names the nearest.
---@param name string
---@param known string[]
function state.unknown_job(name, known)
  local _, err = pcall(core.usage, ("no supervisor has recorded a job %s%s"):format(options.quoted(name),
    validation.nearest(name, known)))
  err.hint = JOBS_HINT
  error(err, 0)
end

--- A call that takes a job's name; where there is no such job, the error says how to see which there are.
---@param fn function
---@param db Session
---@param ... any
---@return any
function state.on_job(fn, db, ...)
  local ok, result = pcall(fn, db, ...)
  if ok then
    return result
  elseif failure.is_ours(result) and result.kind == "usage" and not result.hint then
    result.hint = JOBS_HINT
  end
  error(result, 0)
end

return state
