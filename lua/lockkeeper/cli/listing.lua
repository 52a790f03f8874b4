--- Rows of lock.locks and lock.blocked as ls prints them.
local core = require "lockkeeper.core"
local csv = require "lockkeeper.report.csv"
local described = require "lockkeeper.report.object"
local expanded = require "lockkeeper.report.expanded"
local failure = require "lockkeeper.cli.failure"
local field = require "lockkeeper.report.field"
local filter = require "lockkeeper.filter"
local host = require "lockkeeper.host"
local keys = require "lockkeeper.cli.keys"
local lock = require "lockkeeper"
local row_format = require "lockkeeper.cli.rows"
local safe = require "lockkeeper.report.safe"
local text_table = require "lockkeeper.report.table"
local untouchable = require "lockkeeper.untouchable"

local listing = {}

---@class ListingColumn: RowColumn

-- How long the query that names the server may wait for a lock; in its transaction only, so that no
-- pooler hands it on.
local PATIENCE_SQL = "SELECT pg_catalog.set_config('lock_timeout', '500ms', true)"

-- Parameters of SGR sequences.
local YELLOW, RED = "33", "31"

---------------------------------------------------------------------------------------------------
-- columns

local function waited(row)
  return not row.granted and row.wait_duration or nil
end

-- What a lock is on, which is in no field of its own.
local ON = { title = "ON", key = "on", kind = "text", get = described, least = 12 }

---@param known FilterField
local function column_of(known)
  local name, holder = known.name, known.holder
  return {
    title = known.key:upper(), key = known.key, kind = known.kind, keep = true,
    right = known.kind == "integer" or known.kind == "duration",
    get = function(row)
      if holder then
        row = row[holder]
      end
      return row and row[name]
    end,
  }
end

-- The column of a field, changed in some way.
local function field_column(set, key, change)
  local column = column_of(filter.FIELDS[set][key])
  column.keep = nil
  for name, value in pairs(change or {}) do
    column[name] = value
  end
  return column
end

local function state_style(cells)
  return (cells.state or ""):find("idle in transaction", 1, true) and RED or nil
end

local WAITED = { title = "WAITED", key = "waited", kind = "duration", right = true, get = waited,
  style = function() return YELLOW end }

-- What the usual columns are made of, and what else one wants to know: in CSV and JSON only.
local DATA = {
  locks = { "granted", "type", "schema", "relation", "relation_kind", "key", "lock_name", "transactionid",
    "virtualxid", "page", "tuple", "wait_start", "wait_duration", "state_duration", "application_name" },
  blocked = { "type", "mode", "schema", "relation", "relation_kind", "key", "lock_name", "transactionid",
    "virtualxid", "page", "tuple", "wait_start", "wait_duration", "user", "application_name", "query",
    "blocking_pid", "blocking_mode", "blocking_state", "blocking_state_duration", "blocking_user",
    "blocking_application_name", "blocking_query" },
}

local function with_data(set, columns)
  for _, key in ipairs(DATA[set]) do
    columns[#columns + 1] = field_column(set, key, { is_data = true })
  end
  return columns
end

local USUAL = {
  locks = with_data("locks", {
    field_column("locks", "pid"),
    WAITED,
    field_column("locks", "mode"),
    ON,
    field_column("locks", "state", { style = state_style, least = 6 }),
    field_column("locks", "state_duration", { title = "FOR", key = "for" }),
    field_column("locks", "user", { least = 6 }),
    field_column("locks", "query"),
  }),
  blocked = with_data("blocked", {
    field_column("blocked", "pid"),
    WAITED,
    { title = "WANTS", key = "wants", kind = "text", least = 12,
      get = function(row) return row.mode and row.mode .. " " .. described(row) end },
    field_column("blocked", "blocking_pid", { title = "BLOCKER", key = "blocker" }),
    field_column("blocked", "blocking_mode", { title = "HOLDS", key = "holds", missing = "(queued)" }),
    field_column("blocked", "blocking_state", { title = "STATE", key = "state", style = state_style,
      least = 7 }),
    field_column("blocked", "blocking_state_duration", { title = "FOR", key = "for" }),
  }),
}

local function unknown(set, name)
  local known = { ON.key }
  for _, known_field in ipairs(filter.FIELDS[set]) do
    known[#known + 1] = known_field.key
  end
  local near = core.nearest(name, known)
  core.usage(("--attribute: unknown field %s%s"):format(#name > 60 and "" or ('"%s"'):format(name),
    near and ("; did you mean %s?"):format(near) or ""))
end

--- The columns of rows of that kind: those that are named, all of them, or the usual ones. An unknown
--- name is a usage error.
---@param set "locks"|"blocked"
---@param names? string[]
---@param all? boolean
---@return ListingColumn[]
function listing.columns(set, names, all)
  if not names and not all then
    return USUAL[set]
  end
  local columns = {}
  for _, name in ipairs(names or {}) do
    local known = filter.FIELDS[set][name]
    columns[#columns + 1] = known and column_of(known) or name == ON.key and ON or unknown(set, name)
  end
  for _, known in ipairs(all and filter.FIELDS[set] or {}) do
    columns[#columns + 1] = column_of(known)
  end
  return columns
end

---------------------------------------------------------------------------------------------------
-- formats

-- A row as the API has it, with its activities inside.
local function whole_object(set)
  return function(row)
    local object = {}
    for _, known in ipairs(filter.FIELDS[set]) do
      local holder, within = row, object
      if known.holder then
        holder = row[known.holder]
        within = object[known.holder]
        if not within then
          within = holder and { hidden = holder.hidden, gid = holder.gid } or lock.null
          object[known.holder] = within
        end
      end
      if within ~= lock.null then
        within[known.name] = row_format.json_value(field.full(known.kind, holder[known.name]))
      end
    end
    -- The names that activities share with their rows are in them too.
    for _, holder in ipairs { "activity", "blocking_activity" } do
      if type(object[holder]) == "table" then
        object[holder].pid = row[holder].pid
        object[holder].database = row_format.json_value(row[holder].database)
      end
    end
    return object
  end
end

local function print_csv(columns, rows)
  local clean = host.terminal(1) and safe.block or function(text) return text end
  local values = {}
  for i, column in ipairs(columns) do
    values[i] = column.key
  end
  io.stdout:write(csv.record(values, #columns))
  for _, row in ipairs(rows) do
    for i, column in ipairs(columns) do
      local value = field.full(column.kind, column.get(row))
      values[i] = type(value) == "string" and clean(value) or value
    end
    io.stdout:write(csv.record(values, #columns))
  end
end

---------------------------------------------------------------------------------------------------
-- the first line

--- Where we are. A lock on a catalog must not keep us from showing who holds it.
---@return string  "database shop on localhost:5432 (PostgreSQL 15.18)"
function listing.place()
  local ok, text = pcall(lock.db.transaction, lock.db, { read_only = true }, function(tx)
    tx:query(PATIENCE_SQL)
    return (keys.place())
  end)
  if ok then
    return text
  elseif not failure.is_ours(text) or text.kind ~= "sql" and not text.busy then
    error(text, 0)
  end
  return ("database %s (PostgreSQL %d)"):format(lock.db.database, lock.db.server_version // 10000)
end

local COUNTS = {
  locks = function(rows)
    local waiting = 0
    for _, row in ipairs(rows) do
      if not row.granted then
        waiting = waiting + 1
      end
    end
    return ("%s, %d waiting"):format(row_format.counted(#rows, "lock", "locks"), waiting)
  end,
  blocked = function(rows)
    local seen, waiters, blockers = {}, 0, {}
    for _, row in ipairs(rows) do
      if row.pid and not seen[row.pid] then
        seen[row.pid], waiters = true, waiters + 1
      end
      blockers[row.blocking_pid or 0] = true
    end
    local count = 0
    for _ in pairs(blockers) do
      count = count + 1
    end
    return ("%s, blocked by %d"):format(row_format.counted(waiters, "session waits", "sessions wait"), count)
  end,
}

--- How many there are: "12 locks, 3 waiting".
---@param rows table[]
---@param set "locks"|"blocked"
---@return string
function listing.counts(rows, set)
  return COUNTS[set](rows)
end

local function first_line(rows, set)
  return safe.line(("%s, %s: %s"):format(listing.place(), field.local_time(rows.taken_at or os.time(), true),
    COUNTS[set](rows))) .. "\n"
end

--- Print them.
---@param rows table[]
---@param how { set: string, columns: ListingColumn[], format: string, limit: number, all?: boolean }
function listing.show(rows, how)
  if how.format == "json" then
    row_format.print_json(rows, how.all and whole_object(how.set) or row_format.object_by(how.columns))
    return
  elseif how.format == "csv" then
    print_csv(how.columns, rows)
    return
  end
  local columns, count = row_format.for_people(how.columns), math.min(#rows, how.limit)
  local form = how.format == "expanded" and expanded or text_table
  io.stdout:write(first_line(rows, how.set))
  if count == 0 then
    io.stdout:write(how.set == "blocked" and "Nobody who matches waits.\n" or "No lock matches.\n")
    return
  end
  local cells = row_format.cells(columns, rows, count)
  io.stdout:write(form.format(columns, cells, host.terminal(1), row_format.colours(1)))
  if count < #rows then
    io.stdout:write(("… %d more: --limit %d\n"):format(#rows - count, #rows))
  end
end

---------------------------------------------------------------------------------------------------
-- whom an action hits

---@class ListingTarget
---@field pid integer
---@field activity? table
---@field blocks integer[]  the pids that wait for it

--- The sessions of the rows, or their blockers: one a pid, in the order of the rows, and never our own, nor
--- those that the configuration protects.
---@param rows table[]
---@param blocking? boolean
---@return ListingTarget[] targets
---@return string[] prepared        the names of prepared transactions, which have no session to hit
function listing.targets(rows, blocking)
  local list, prepared, by_pid, seen = {}, {}, {}, {}
  local pid_name, activity_name = "pid", "activity"
  if blocking then
    pid_name, activity_name = "blocking_pid", "blocking_activity"
  end
  for _, row in ipairs(rows) do
    local pid, activity = row[pid_name], row[activity_name]
    local target = by_pid[pid or 0]
    local gid = not pid and activity and activity.gid
    if gid and not seen[gid] then
      seen[gid] = true
      prepared[#prepared + 1] = gid
    elseif pid and not target and not seen[pid] and untouchable.is_protected(activity) then
      seen[pid] = true
      failure.say(("pid %d is left alone: the configuration protects it"):format(pid))
    elseif pid and not target and not seen[pid] and pid ~= lock.db.pid then
      target = { pid = pid, activity = activity, blocks = {} }
      list[#list + 1], by_pid[pid] = target, target
    end
    if target and blocking and not target.blocks[row.pid] then
      target.blocks[row.pid] = true
      target.blocks[#target.blocks + 1] = row.pid
    end
  end
  return list, prepared
end

local function of_activity(key, change)
  return field_column("sessions", key, change)
end

local TARGET_COLUMNS = {
  { title = "PID", key = "pid", kind = "integer", right = true,
    get = function(target) return target.pid end },
  { title = "BLOCKS", key = "blocks", kind = "text", least = 8,
    get = function(target) return table.concat(target.blocks, " ") end },
  of_activity("user", { least = 6 }),
  of_activity("application_name", { title = "APPLICATION", least = 12 }),
  of_activity("client_addr", { title = "CLIENT" }),
  of_activity("state", { style = state_style }),
  of_activity("state_duration", { title = "FOR" }),
  of_activity("query"),
}
for _, column in ipairs(TARGET_COLUMNS) do
  if column.key ~= "pid" and column.key ~= "blocks" then
    local get = column.get
    column.get = function(target) return target.activity and get(target.activity) end
  end
end

--- Tell whom an action would hit.
---@param file file*
---@param rows table[]
---@param targets ListingTarget[]
---@param how { action: "cancel"|"terminate", set: string, format: string }
function listing.show_targets(file, rows, targets, how)
  if how.format == "json" then
    local object_of = row_format.object_by(TARGET_COLUMNS)
    row_format.print_json(targets, function(target)
      local object = object_of(target)
      object.action = how.action
      object.blocks = lock.array(table.move(target.blocks, 1, #target.blocks, 1, {}))
      return object
    end)
    return
  elseif how.format == "csv" then
    print_csv(TARGET_COLUMNS, targets)
    return
  end
  local fd = file == io.stdout and 1 or 2
  local form = how.format == "expanded" and expanded or text_table
  local cells = row_format.cells(TARGET_COLUMNS, targets, #targets)
  file:write(first_line(rows, how.set),
    ("to %s: %s\n"):format(how.action, row_format.counted(#targets, "session", "sessions")),
    form.format(TARGET_COLUMNS, cells, host.terminal(fd), row_format.colours(fd)))
end

local OUTCOME_COLUMNS = {
  { title = "PID", key = "pid", kind = "integer", right = true },
  { title = "RESULT", key = "result", kind = "text" },
  { title = "SQLSTATE", key = "sqlstate", kind = "text" },
  { title = "REASON", key = "message", kind = "text" },
  { title = "ADVICE", key = "hint", kind = "text" },
}
for _, column in ipairs(OUTCOME_COLUMNS) do
  column.get = function(outcome) return outcome[column.key] end
end

local RESULTS = { no_effect = "no effect" }

--- Tell what came of it.
---@param outcomes KillOutcome[]
---@param done string   what those who were signalled are
---@param format string
function listing.show_outcomes(outcomes, done, format)
  if format == "json" then
    row_format.print_json(outcomes, row_format.object_by(OUTCOME_COLUMNS))
    return
  elseif format == "csv" then
    print_csv(OUTCOME_COLUMNS, outcomes)
    return
  end
  local cells = row_format.cells(OUTCOME_COLUMNS, outcomes, #outcomes)
  for i, outcome in ipairs(outcomes) do
    cells[i].result = outcome.result == "signalled" and done or RESULTS[outcome.result] or outcome.result
  end
  local form = format == "expanded" and expanded or text_table
  io.stdout:write(form.format(OUTCOME_COLUMNS, cells, host.terminal(1), row_format.colours(1)))
end

return listing
