--- Jobs as rows: what the database knows of them, and what files say.
local core = require "lockkeeper.core"
local definition = require "lockkeeper.definition"
local explain = require "lockkeeper.cli.explain"
local field = require "lockkeeper.report.field"

local job_rows = {}

---@class JobRow
---@field name string
---@field known boolean       a supervisor has recorded it
---@field gone boolean        no file defines it any more
---@field paused boolean
---@field enabled boolean
---@field definition table    its description (lockkeeper.describe)
---@field schedule? string    for people: "30 2 * * * Europe/Paris"
---@field next? number        the next slot, in epoch seconds
---@field active integer      how many of its runs have not ended
---@field last_run? integer   the newest run that was not skipped, with last_slot, last_state, last_reason,
---                           last_started, last_ended, last_ran
---@field ran? number         seconds; of a run that goes on, so far

-- Parameters of SGR sequences.
local RED, YELLOW = "31", "33"

local MARK_STYLES = { paused = YELLOW, ["in no file"] = RED }

local RESULT_STYLES = { failed = RED, timed_out = RED, lost = RED, running = YELLOW }

-- The next slot: of the clock, or after the last run. Nil where there is none, or where this host does not
-- know the time zone.
local function next_slot(row, now)
  if row.gone or not row.enabled or not row.definition.schedule then
    return nil
  end
  local ok, schedule = pcall(definition.schedule, row.definition)
  if not ok or schedule:kind() == "start" then
    return nil
  elseif schedule:kind() == "finish" then
    local from = row.last_ended or row.first_seen
    return row.active == 0 and from and schedule:next(from) or nil
  end
  return schedule:next(now)
end

local function complete(row, now)
  local text = explain.schedule(row.definition)
  row.schedule = text ~= "" and text or nil
  row.next = next_slot(row, now)
  row.ran = row.last_ran or row.last_state == "running" and now - row.last_started or nil
  return row
end

--- What the database knows, by name.
---@param db Session
---@param now number  by the database's clock
---@return JobRow[]
function job_rows.read(db, now)
  local list = core.store_jobs(db)
  for _, row in ipairs(list) do
    row.known = true
    complete(row, now)
  end
  return list
end

local function without_dot(path)
  return (path:gsub("^%./+", ""))
end

-- Is it one of the paths, or in one of these folders?
local function is_below(file, paths)
  for _, path in ipairs(paths) do
    path = without_dot(path):gsub("/*$", "", 1)
    if file == path or file:sub(1, #path + 1) == path .. "/" then
      return true
    end
  end
  return false
end

local function by_name(a, b)
  return a.name < b.name
end

--- What the files say, with what the database knows of it; and the jobs that it has from these paths, but
--- the files define no more.
---@param known JobRow[]
---@param found Found      see lockkeeper.cli.described
---@param paths string[]
---@param now number
---@return JobRow[]
function job_rows.combine(known, found, paths, now)
  local list, rows, broken, is_defined = {}, {}, {}, {}
  for _, row in ipairs(known) do
    rows[row.name] = row
  end
  for _, fault in ipairs(found.faults) do
    broken[without_dot(fault.file)] = true
  end
  for _, job in ipairs(found.jobs) do
    local row = rows[job.name] or { name = job.name, known = false, paused = false, active = 0 }
    row.definition, row.enabled, row.gone, row.file = job, job.enabled, false, row.file or job.file
    if not is_defined[job.name] then
      is_defined[job.name] = true
      list[#list + 1] = complete(row, now)
    end
  end
  for _, row in ipairs(known) do
    local file = without_dot(row.file)
    if not is_defined[row.name] and is_below(file, paths) then
      row.gone = row.gone or not broken[file]
      list[#list + 1] = complete(row, now)
    end
  end
  table.sort(list, by_name)
  return list
end

--- What the table shows in place of the next slot where that would mislead.
---@param row JobRow
---@return string?
function job_rows.mark(row)
  return row.gone and "in no file" or row.paused and "paused" or nil
end

local function data(key, kind, get)
  return { title = key:upper(), key = key, kind = kind, is_data = true,
    get = get or function(row) return row[key] end }
end

local function detail(key)
  return data(key, "text", function(row) return row.definition[key] end)
end

--- Their columns; those that are data are for programs.
---@param now number
---@return RowColumn[]
function job_rows.columns(now)
  return {
    { title = "JOB", key = "job", kind = "text", keep = true, least = 12,
      get = function(row) return row.name end },
    { title = "SCHEDULE", key = "schedule", kind = "text", keep = true, least = 12,
      get = function(row) return row.schedule end },
    { title = "NEXT", key = "next", kind = "time", keep = true,
      get = function(row) return row.next end,
      show = function(at, row) return job_rows.mark(row) or at and field.short_time(at, now) end,
      style = function(cells) return MARK_STYLES[cells.next] end },
    { title = "LAST", key = "last", kind = "time", keep = true,
      get = function(row) return row.last_slot end,
      show = function(at) return at and field.short_time(at, now) end },
    { title = "RESULT", key = "result", kind = "text", keep = true,
      get = function(row) return row.last_state end,
      show = function(state, row) return row.known and state or not row.known and "never served" or nil end,
      style = function(cells) return RESULT_STYLES[cells.result] end },
    { title = "RAN", key = "ran", kind = "duration", keep = true, right = true,
      get = function(row) return row.ran end },
    data("paused", "boolean"), data("enabled", "boolean"), data("gone", "boolean"), data("known", "boolean"),
    data("active", "integer"), data("file", "text"), detail("description"), detail("tags"),
    detail("timezone"), data("last_run", "integer"),
    data("reason", "text", function(row) return row.last_reason end), data("last_started", "time"),
    data("last_ended", "time"), data("first_seen", "time"),
    data("last_seen", "time"),
  }
end

return job_rows
