--- Runs of jobs as rows: the history that the database keeps.
local field = require "lockkeeper.report.field"
local span = require "lockkeeper.report.span"
local worker = require "lockkeeper.worker"

local run_rows = {}

--- Their states: of those that wait and run, then how they end.
run_rows.STATES = { "due", "claimed", "running", "succeeded", "failed", "timed_out", "cancelled", "lost",
  "skipped" }

local ACTIVE = { due = true, claimed = true, running = true }

-- Parameters of SGR sequences.
local RED, YELLOW = "31", "33"

local STYLES = { failed = RED, timed_out = RED, lost = RED, running = YELLOW }

--- Has it not ended?
---@param row table  of core.store_history
---@return boolean
function run_rows.is_active(row)
  return ACTIVE[row.state] or false
end

--- Its error in short: "55P03 lock_timeout: canceling statement …"; nil where it has none.
---@param row table
---@return string?
function run_rows.error_text(row)
  if not row.error then
    return nil
  end
  local head = ("%s %s"):format(row.sqlstate or "", row.error_kind or ""):gsub("^ +", ""):gsub(" +$", "")
  return head == "" and row.error or head .. ": " .. row.error
end

--- Why it is as it is: its reason, its error, which attempt it was.
---@param row table
---@return string?
function run_rows.why(row)
  local parts = {}
  if row.attempt > 1 then
    parts[1] = "attempt " .. row.attempt
  end
  if row.cancel_at and run_rows.is_active(row) then
    parts[#parts + 1] = "to be cancelled"
  end
  parts[#parts + 1] = row.reason ~= row.state and row.reason or nil
  if row.error_kind ~= row.state then -- "cancelled" says it already
    parts[#parts + 1] = run_rows.error_text(row)
  end
  return #parts > 0 and table.concat(parts, ", ") or nil
end

--- How long it has run, in seconds; of one that runs, so far.
---@param row table
---@param now number  by the database's clock
---@return number?
function run_rows.ran(row, now)
  return row.ran or row.state == "running" and row.started_at and math.max(0, now - row.started_at) or nil
end

--- What `lockkeeper run` would have ended with. A run that nobody began was not to be had.
---@param row table
---@return integer
function run_rows.exit_code(row)
  if row.state == "skipped" and row.reason ~= "busy" and row.reason ~= "window" then
    return 1
  end
  return worker.exit_code { state = row.state, reason = row.reason, error = { kind = row.error_kind } }
end

--- "succeeded, ran 5.0s"; "failed, 55P03 lock_timeout: …"
---@param row table
---@param now number
---@return string
function run_rows.state_text(row, now)
  local text = row.state:gsub("_", " ")
  local why, ran = run_rows.why(row), run_rows.ran(row, now)
  if ran then
    text = ("%s, ran %s"):format(text, span(ran))
  end
  return why and ("%s, %s"):format(text, why) or text
end

local function data(key, kind)
  return { title = key:upper(), key = key, kind = kind, is_data = true,
    get = function(row) return row[key] end }
end

--- Their columns; those that are data are for programs.
---@param now number
---@param with_output? boolean
---@return RowColumn[]
function run_rows.columns(now, with_output)
  local columns = {
    { title = "RUN", key = "run", kind = "integer", keep = true, right = true,
      get = function(row) return row.id end },
    { title = "JOB", key = "job", kind = "text", keep = true, least = 12,
      get = function(row) return row.job end },
    { title = "ORIGIN", key = "origin", kind = "text", keep = true,
      get = function(row) return row.origin end },
    { title = "SLOT", key = "slot", kind = "time", keep = true, get = function(row) return row.slot end,
      show = function(at) return field.short_time(at, now) end },
    { title = "WAIT", key = "wait", kind = "duration", keep = true, right = true,
      get = function(row) return row.waited end },
    { title = "RAN", key = "ran", kind = "duration", keep = true, right = true,
      get = function(row) return run_rows.ran(row, now) end },
    { title = "STATE", key = "state", kind = "text", keep = true, get = function(row) return row.state end,
      style = function(cells) return STYLES[cells.state] end },
    { title = "WHY", key = "why", kind = "text", keep = true, get = run_rows.why },
    data("attempt", "integer"), data("parent", "integer"), data("reason", "text"), data("due_at", "time"),
    data("claimed_at", "time"), data("started_at", "time"), data("ended_at", "time"),
    data("cancel_at", "time"), data("fence", "integer"), data("host", "text"),
    data("runner", "text"), data("backend_pid", "integer"),
    data("error", "text"), data("error_kind", "text"), data("sqlstate", "text"), data("detail", "text"),
    data("result", "json"), data("guards", "json"),
  }
  columns[#columns + 1] = with_output and data("output", "text") or nil
  return columns
end

return run_rows
