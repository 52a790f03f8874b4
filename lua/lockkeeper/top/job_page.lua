--- A job, and its last runs: what `lockkeeper history JOB` shows.
local core = require "lockkeeper.core"
local explain = require "lockkeeper.cli.explain"
local lock = require "lockkeeper"
local page = require "lockkeeper.top.page"
local row_format = require "lockkeeper.cli.rows"
local run_rows = require "lockkeeper.cli.run_rows"
local state = require "lockkeeper.cli.state"
local text_table = require "lockkeeper.report.table"

local job_page = {}

-- Runs shown at most.
local RUNS_MOST = 100

local function guards_text(job)
  local texts = {}
  for i, guard in ipairs(job.guards or {}) do
    texts[i] = explain.guard(guard)
  end
  return table.concat(texts, ", ")
end

local function read(row)
  local db = lock.db
  return { now = state.now(db), runs = core.store_history(db, { job = row.name, limit = RUNS_MOST }) }
end

local function lines_of(row, data, columns)
  local lines, job = {}, row.definition
  page.fact(lines, "description", job.description)
  page.fact(lines, "schedule", row.schedule)
  page.fact(lines, "guards", guards_text(job))
  page.fact(lines, "file", row.file)
  page.fact(lines, "paused", row.paused and "yes: its slots are skipped")
  page.fact(lines, "in no file", row.gone and "no file defines it any more")
  page.head(lines, ("Runs: %d%s"):format(#data.runs, #data.runs == RUNS_MOST and ", the newest" or ""))
  local shown = row_format.for_people(run_rows.columns(data.now))
  local text = #data.runs > 0 and text_table.format(shown, row_format.cells(shown, data.runs), columns) or ""
  for line in text:gmatch("([^\n]*)\n") do
    lines[#lines + 1] = { text = line }
  end
  return lines
end

---@param row JobRow
---@return TopPage
function job_page.new(row)
  return {
    title = ("Job %s"):format(row.name),
    read = function() return read(row) end,
    lines = function(data, columns) return lines_of(row, data, columns) end,
    subject = { job = row.name, active = row.active }, first = 1,
  }
end

return job_page
