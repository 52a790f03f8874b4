--- lockkeeper history: past runs, and those that go on; one of them with its output.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local field = require "lockkeeper.report.field"
local host = require "lockkeeper.host"
local instant = require "lockkeeper.cli.instant"
local keys = require "lockkeeper.cli.keys"
local lock = require "lockkeeper"
local options = require "lockkeeper.cli.options"
local rows = require "lockkeeper.cli.rows"
local run_number = require "lockkeeper.cli.run_number"
local run_rows = require "lockkeeper.cli.run_rows"
local safe = require "lockkeeper.report.safe"
local span = require "lockkeeper.report.span"
local state = require "lockkeeper.cli.state"
local validation = require "lockkeeper.validation"

local history = {}

local LIMIT = 25

history.spec = {
  usage = "lockkeeper history [JOB] [options] | lockkeeper history RUN",
  summary = "Runs of jobs, the newest first: past ones, those that go on, those that wait. Of a RUN, which "
    .. "is a number, everything that is known, with the end of its output.",
  text = {
    "SLOT is when it was due, in this host's time; WAIT how long it waited for its locks. States: "
      .. table.concat(run_rows.STATES, ", ") .. ".",
    "How long the history is kept: lockkeeper serve --keep and --keep-runs.",
  },
  operands = { min = 0, max = 1, name = "JOB" },
  options = {
    { "--state", value = "STATE", key = "states", list = true,
      help = "of this state; several as A,B, or the option repeated" },
    { "--since", value = "D", key = "since",
      help = "due since then: a duration such as 2h or 1d, or an instant such as 2027-03-28T01:00:00Z" },
    { "-l", "--limit", value = "N", key = "limit",
      help = ("a table's rows at most (default %d), or all; JSON has all without it"):format(LIMIT) },
    keys.FORMAT,
  },
  own_config = true,
}

---------------------------------------------------------------------------------------------------
-- what is asked for

local function read_states(values)
  local states = {}
  for _, word in ipairs(values.states or {}) do
    for name in (word .. ","):gmatch("([^,]*),") do
      local is_known = false
      for _, known in ipairs(run_rows.STATES) do
        is_known = is_known or known == name
      end
      if not is_known then
        failure.words(("--state must be of %s, not %s%s"):format(table.concat(run_rows.STATES, ", "),
          options.quoted(name), validation.nearest(name, run_rows.STATES)))
      end
      states[#states + 1] = name
    end
  end
  return #states > 0 and states or nil
end

-- The instant itself, or how long before now.
local function read_since(text)
  if not text then
    return nil
  elseif text:find("^%d%d%d%d%-") then
    return instant.parse(text, "--since")
  end
  local ok, seconds = pcall(core.duration, tonumber(text) or text, "--since")
  if not ok then
    failure.words(seconds.message)
  end
  return nil, seconds
end

local ENDLESS = 0x7FFFFFFF

local function read_limit(values)
  if values.limit == "all" or not values.limit and values.format == "json" then
    return ENDLESS
  elseif not values.limit then
    return LIMIT
  end
  local limit = values.limit:find("^%d+$") and math.tointeger(tonumber(values.limit))
  if not limit or limit < 1 or limit >= ENDLESS then
    failure.words(("--limit takes a whole number from 1, or all, not %s"):format(
      options.quoted(values.limit)))
  end
  return limit
end

---------------------------------------------------------------------------------------------------
-- one run

local function parent_text(row)
  return row.parent and ("after run %d%s"):format(row.parent,
    row.parent_job and (" of %s, which %s"):format(row.parent_job,
      row.parent_state == "succeeded" and "succeeded" or "was " .. row.parent_state:gsub("_", " ")) or "")
end

local function taken_text(row)
  return row.waited and ("waited %s for its locks"):format(span(row.waited))
end

local function at(epoch, more)
  return epoch and field.local_time(epoch, true) .. (more and ", " .. more or "")
end

-- What is told of a run, line by line: { name, text }.
local function facts(row, now)
  local ran = run_rows.ran(row, now)
  return {
    { "origin", parent_text(row) or row.origin },
    { "slot", at(row.slot) },
    { "attempt", row.attempt > 1 and tostring(row.attempt) or nil },
    { "due", row.due_at ~= row.slot and at(row.due_at) or nil },
    { "claimed", at(row.claimed_at, row.host and "by " .. row.host) },
    { "started", at(row.started_at, taken_text(row)) },
    { "to be cancelled", row.cancel_at and at(row.cancel_at) },
    { "ended", at(row.ended_at, ran and "ran " .. span(ran)) },
    { "has run", run_rows.is_active(row) and ran and span(ran) or nil },
    { "fence", row.fence and tostring(row.fence) },
    { "backend", row.backend_pid and ("pid %d"):format(row.backend_pid) },
    { "reason", row.reason ~= row.state and row.reason or nil },
    { "error", run_rows.error_text(row) },
    { "detail", row.detail },
    { "result", row.result ~= nil and row.result ~= lock.null and lock.json.encode(row.result) or nil },
  }
end

local function show_one(row, now)
  local indent = "\n" .. (" "):rep(18)
  print(safe.line(("run %d of %s: %s"):format(row.id, row.job, row.state:gsub("_", " "))))
  for _, fact in ipairs(facts(row, now)) do
    if fact[2] then
      print(("  %-15s %s"):format(fact[1], (safe.block(fact[2]):gsub("\n", indent))))
    end
  end
  local output = row.output
  if not output or output == "" then
    print(run_rows.is_active(row) and "no output yet" or "no output")
    return
  end
  print("output:")
  io.stdout:write(host.terminal(1) and safe.block(output) or output, output:sub(-1) == "\n" and "" or "\n")
end

local function show_run(number, values)
  local db = state.open("history")
  local row, now = core.store_run(db, number), state.now(db)
  if values.format == "json" then
    rows.print_json({ row }, rows.object_by(run_rows.columns(now, true)))
  else
    show_one(row, now)
  end
  return 0
end

---------------------------------------------------------------------------------------------------
-- many

local function counts(list, is_cut)
  local active, bad = 0, 0
  for _, row in ipairs(list) do
    active = active + (run_rows.is_active(row) and 1 or 0)
    bad = bad + ((row.state == "failed" or row.state == "timed_out" or row.state == "lost") and 1 or 0)
  end
  return ("%s%s%s%s"):format(is_cut and "the newest " or "", rows.counted(#list, "run"),
    active > 0 and (", %d not ended"):format(active) or "", bad > 0 and (", %d failed"):format(bad) or "")
end

-- Is the name one that the database knows? Where a job has no runs, it may be a slip of the pen.
local function check_job(db, name)
  local names = {}
  for i, row in ipairs(core.store_jobs(db)) do
    if row.name == name then
      return
    end
    names[i] = row.name
  end
  state.unknown_job(name, names)
end

local function show_table(list, limit, now)
  local is_cut = #list > limit
  if is_cut then
    list[#list] = nil
  end
  print(state.first_line(now, counts(list, is_cut)))
  if #list == 0 then
    print("No run matches.")
    return
  end
  rows.print_table(run_rows.columns(now), list)
  if is_cut then
    print(("… there are more: --limit %d, or --limit all"):format(limit * 4))
  end
end

function history.main(values, operands)
  local job = operands[1]
  local number = job and run_number.of(job)
  local filter = { job = job, states = read_states(values) }
  local since, ago = read_since(values.since)
  local limit = read_limit(values)
  if number then
    if values.states or values.since or values.limit then
      failure.words("--state, --since and --limit are for many runs, and RUN is one")
    end
    return show_run(number, values)
  end
  local db = state.open("history")
  local now = state.now(db)
  filter.since = since or ago and now - ago or nil
  -- One more, to see whether there are more.
  filter.limit = limit == ENDLESS and limit or values.format == "json" and limit or limit + 1
  local list = core.store_history(db, filter)
  if #list == 0 and job then
    check_job(db, job)
  end
  if values.format == "json" then
    rows.print_json(list, rows.object_by(run_rows.columns(now)))
  else
    show_table(list, limit, now)
  end
  return 0
end

return history
