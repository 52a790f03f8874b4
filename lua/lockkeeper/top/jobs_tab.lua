--- The tab of `lockkeeper top` with what `lockkeeper jobs` shows.
local arrange = require "lockkeeper.top.arrange"
local core = require "lockkeeper.core"
local job_page = require "lockkeeper.top.job_page"
local job_rows = require "lockkeeper.cli.job_rows"
local jobs = require "lockkeeper.cli.jobs"
local lock = require "lockkeeper"
local row_format = require "lockkeeper.cli.rows"
local state = require "lockkeeper.cli.state"

local jobs_tab = { name = "jobs", title = "Jobs", is_jobs = true,
  empty = "No job is known yet: lockkeeper serve PATH... records those that the files define.",
  none = "No job matches.", example = 'result == "failed" or paused' }

-- An expression has the columns' names, as `lockkeeper jobs --format json` has them.
jobs_tab.fields = {}
for _, column in ipairs(job_rows.columns(0)) do
  jobs_tab.fields[column.key] = { key = column.key, name = column.key, kind = column.kind }
end

local BY_KEY = {}
for _, column in ipairs(job_rows.columns(0)) do
  BY_KEY[column.key] = column
end

-- A job as an expression sees it.
local function object_of(row)
  return setmetatable({}, { __index = function(_, key) return BY_KEY[key].get(row) end })
end

---@param now number
function jobs_tab.columns(now)
  return row_format.for_people(job_rows.columns(now))
end

--- Look. On the reader's task.
---@return TopData
function jobs_tab.read()
  local db = lock.db
  local now = state.now(db)
  if not state.exists(db) then
    return { rows = {}, now = now, counts = "no jobs",
      empty = "This database knows of no jobs yet: lockkeeper init makes the tables for it." }
  end
  local rows = job_rows.read(db, now)
  return { rows = rows, now = now, counts = jobs.counts(rows, #core.store_runners(db)) }
end

---@param data TopData
---@param order TopOrder
---@return TopItem[]
function jobs_tab.arrange(data, order)
  return arrange.list(data.rows, jobs_tab.columns(data.now), order, object_of)
end

---@param a JobRow
---@param b JobRow
---@return boolean
function jobs_tab.is_same(a, b)
  return a.name == b.name
end

---@param row JobRow
---@return TopSubject
function jobs_tab.subject(row)
  return { job = row.name, active = row.active }
end

function jobs_tab.page(row)
  return job_page.new(row)
end

return jobs_tab
