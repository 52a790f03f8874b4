--- lockkeeper ls: locks, who waits for whom, and ending those who are in the way.
local core = require "lockkeeper.core"
local expression = require "lockkeeper.expression"
local failure = require "lockkeeper.cli.failure"
local filter = require "lockkeeper.filter"
local host = require "lockkeeper.host"
local listing = require "lockkeeper.cli.listing"
local lock = require "lockkeeper"
local options = require "lockkeeper.cli.options"
local query = require "lockkeeper.query"
local target = require "lockkeeper.cli.target"
local validation = require "lockkeeper.validation"
local view = require "lockkeeper.view"

local ls = {}

local LIMIT = 25

local WATCH = 2 -- seconds

ls.spec = {
  usage = "lockkeeper ls [PID...] [options]",
  summary = "Locks, or with --blocking the blocked ones and who blocks them; --cancel and --terminate end "
    .. "those who are in the way.",
  text = {
    "KEY=VALUE: a field, with or without a suffix: state=active, wait_duration_gt=5s, query_like=%orders%, "
      .. "application_name_ne=cron, blocking_user=app (of the blocker), state=active,idle (any of them; a "
      .. "comma is \\,). Suffixes: ne, gt, gte, lt, lte, like, ilike, contains, startswith, endswith, "
      .. "isnull. Several must all hold.",
    "An EXPRESSION is Lua's: 'wait_duration > 5 and mode == \"ACCESS EXCLUSIVE\"'. It has the row's fields, "
      .. "string, math, methods of texts (query:find(\"orders\")) and duration(\"5m\"), and nothing else. As "
      .. "in SQL a comparison with what is nil does not hold; wait_start == nil asks for it.",
    "--cancel and --terminate act on the sessions of the rows that match, with --blocking on their "
      .. "blockers, however many the table shows. They list them and ask first; without a terminal they "
      .. "need -y.",
    "Exit code: 0; 3 nothing matched what was to be ended, or the answer was no; 4 some of it could not be "
      .. "signalled; 69 no connection.",
  },
  operands = { min = 0, name = "PID" },
  options = {
    { "--blocking", key = "blocking", help = "blocked locks, one row a blocker" },
    { "-o", "--on", value = "TABLE", key = "on", list = true,
      help = "locks on this table; may be repeated" },
    { "-f", "--filter", value = "KEY=VALUE", key = "filters", list = true, help = "may be repeated" },
    { "-w", "--where", value = "EXPRESSION", key = "where", list = true, help = "rows of which it is true" },
    { "-a", "--attribute", value = "NAME", key = "attributes", list = true,
      help = "this field as a column, in place of the usual ones; may be repeated, or A,B" },
    { "-l", "--limit", value = "N", key = "limit",
      help = ("a table's rows at most (default %d), or all; JSON and CSV have all"):format(LIMIT) },
    { "-c", "--view", value = "NAME", key = "view",
      help = "a set of these options that the configuration names; more of them may be added to it" },
    { "-e", "--expanded", key = "expanded", help = "one field a line: --format expanded" },
    { "--format", value = "FORMAT", key = "format", kind = "choice",
      choices = { "table", "expanded", "csv", "json" }, help = "table (default), expanded, csv or json" },
    { "--all", key = "all", help = "every row and field" },
    { "--watch", value = "[D]", key = "watch", kind = "duration",
      optional = function(word) return word:find("^[%d.]+[a-z%d.]*$") ~= nil end,
      help = ("again and again, every D (default %ds), until Ctrl-C"):format(WATCH) },
    { "--cancel", key = "cancel", help = "cancel their statements" },
    { "--terminate", key = "terminate", help = "end their sessions" },
    { "--dry-run", key = "dry_run", help = "tell whom --cancel or --terminate would hit, and touch nobody" },
    { "-y", "--yes", key = "yes", help = "do not ask" },
  },
  uses_config = true,
}

local wrong = failure.words

-- Usage errors of what the command line says are the call's words.
local function reading(fn, ...)
  local ok, result = pcall(fn, ...)
  if not ok and failure.is_ours(result) and result.kind == "usage" then
    wrong(result.message)
  elseif not ok then
    error(result, 0)
  end
  return result
end

---------------------------------------------------------------------------------------------------
-- what is asked for

local function read_pids(operands)
  local pids = {}
  for i, word in ipairs(operands) do
    local pid = math.tointeger(tonumber(word))
    if not word:find("^%d+$") or not pid or pid < 1 or pid > 0x7FFFFFFF then
      wrong(("a PID is a whole number from 1, not %s"):format(options.quoted(word)))
    end
    pids[i] = pid
  end
  return #pids > 0 and pids or nil
end

local function read_limit(values)
  if values.all or values.limit == "all" then
    return math.huge
  elseif not values.limit then
    return LIMIT
  end
  local limit = values.limit:find("^%d+$") and math.tointeger(tonumber(values.limit))
  if not limit or limit < 1 then
    wrong(("--limit takes a whole number from 1, or all, not %s"):format(options.quoted(values.limit)))
  end
  return limit
end

local function read_attributes(values)
  local names = {}
  for _, word in ipairs(values.attributes or {}) do
    for name in (word .. ","):gmatch("([^,]*),") do
      names[#names + 1] = name
    end
  end
  return #names > 0 and names or nil
end

-- The filters and expressions of the command line: they must all hold.
local function read_conditions(values, set)
  local conditions = {}
  if values.view_filter then
    conditions[1] = reading(filter.compile, values.view_filter, { name = set, what = "--view" })
    if conditions[1].on or conditions[1].limit then
      wrong("--view: on and limit stand beside the view's filter, not in it")
    end
  end
  for _, word in ipairs(values.filters or {}) do
    conditions[#conditions + 1] = reading(filter.compile_word, word, { name = set, what = "--filter" })
  end
  for _, text in ipairs(values.where or {}) do
    conditions[#conditions + 1] = reading(expression.compile, text, { name = set, what = "--where" })
  end
  return conditions
end

local function check(values)
  local action = values.cancel and "cancel" or values.terminate and "terminate"
  if values.cancel and values.terminate then
    wrong("--cancel and --terminate exclude each other")
  elseif values.dry_run and not action then
    wrong("--dry-run needs --cancel or --terminate")
  elseif values.yes and not action then
    wrong("-y needs --cancel or --terminate")
  elseif values.expanded and values.format and values.format ~= "expanded" then
    wrong("--expanded and --format " .. values.format .. " exclude each other")
  elseif values.all and values.attributes then
    wrong("--all and --attribute exclude each other")
  elseif values.watch == false or values.watch == 0 then
    wrong("--watch takes a time that is longer than 0")
  elseif values.watch and action then
    wrong(("--watch and --%s exclude each other"):format(action))
  end
  return action
end

-- What the view says where the call's words do not; conditions of both must hold.
local function add_view(values)
  if not values.view then
    return
  end
  local chosen, known = view.find(values.view)
  if not chosen then
    wrong(("--view: the configuration has no view %s%s"):format(options.quoted(values.view),
      #known == 0 and "; it has none" or validation.nearest(values.view, known)))
  end
  for _, key in ipairs { "blocking", "attributes", "format", "all", "watch" } do
    if values[key] == nil then
      values[key] = chosen[key]
    end
  end
  if values.expanded and chosen.format == values.format then
    values.format = nil
  end
  values.limit = values.limit or chosen.limit and tostring(chosen.limit)
  for _, key in ipairs { "on", "where" } do
    local all = table.move(chosen[key] or {}, 1, #(chosen[key] or {}), 1, {})
    table.move(values[key] or {}, 1, #(values[key] or {}), #all + 1, all)
    values[key] = #all > 0 and all or nil
  end
  values.view_filter = chosen.filter
end

-- The rows that match, as a list of lock.locks or lock.blocked.
local function find(values, pids, conditions)
  local function matches(row)
    for i = 1, #conditions do
      if not conditions[i]:matches(row) then
        return false
      end
    end
    return true
  end
  local ask = values.blocking and lock.blocked or lock.locks
  local rows = ask { pid = pids, on = values.on, where = #conditions > 0 and matches or nil }
  for _, condition in ipairs(conditions) do
    condition:report()
  end
  return rows
end

---------------------------------------------------------------------------------------------------
-- ending sessions

local DONE = { cancel = "cancelled", terminate = "terminated" }

-- Asks on the terminal; false where the answer is not yes.
local function confirm(action, count)
  io.stderr:write(("%s %s? [y/N] "):format(action == "cancel" and "Cancel" or "Terminate",
    count == 1 and "it" or ("these %d"):format(count)))
  local answer = io.read("l")
  if not answer then
    io.stderr:write("\n")
  end
  return answer ~= nil and (answer:lower() == "y" or answer:lower() == "yes")
end

local function finish(rows, action, values, format)
  local outcomes = query.signal(rows, action, values.blocking == true)
  for _, outcome in ipairs(outcomes) do
    if outcome.result == "no_effect" and not outcome.hint then
      outcome.hint = "--terminate ends the session"
    end
  end
  listing.show_outcomes(outcomes, DONE[action], format)
  for _, outcome in ipairs(outcomes) do
    if outcome.result ~= "signalled" and outcome.result ~= "gone" then
      return 4
    end
  end
  return 0
end

-- Cancel or terminate the sessions of the rows, or their blockers.
local function act(rows, action, values, set, format)
  local targets, prepared = listing.targets(rows, values.blocking)
  for _, gid in ipairs(prepared) do
    failure.say("a prepared transaction has no session to signal: ROLLBACK PREPARED "
      .. lock.db:format("%L", gid))
  end
  if #targets == 0 then
    if format == "json" then
      print("[]")
    end
    if #prepared > 0 then
      return 4
    end
    failure.say("nothing matched what was to be " .. DONE[action])
    return 3
  elseif values.dry_run then
    listing.show_targets(io.stdout, rows, targets, { action = action, set = set, format = format })
    return 0
  elseif not values.yes then
    listing.show_targets(io.stderr, rows, targets, { action = action, set = set, format = "table" })
    if not confirm(action, #targets) then
      failure.say("nobody was " .. DONE[action])
      return 3
    end
  end
  return finish(rows, action, values, format)
end

---------------------------------------------------------------------------------------------------

-- Show them again and again. A look that fails once it has begun is told, and the next one tries anew.
local function watch(seconds, show)
  local is_first = true
  while true do
    local ok, err = pcall(show, host.terminal(1) and "\27[H\27[2J\27[3J" or not is_first and "\n" or "")
    if not ok and (is_first or host.interrupted() or not failure.is_ours(err) or err.kind == "usage") then
      error(err, 0)
    elseif not ok then
      failure.say(err.message)
      pcall(lock.db.reconnect, lock.db)
    end
    is_first = false
    io.stdout:flush()
    core.sleep(seconds)
  end
end

function ls.main(values, operands)
  add_view(values)
  local action = check(values)
  local set = values.blocking and "blocked" or "locks"
  local pids, limit = read_pids(operands), read_limit(values)
  local names = read_attributes(values)
  local conditions = read_conditions(values, set)
  local columns = reading(listing.columns, set, names, values.all)
  local format = values.format or values.expanded and "expanded" or "table"
  if action and not values.yes and not values.dry_run and not (host.terminal(0) and host.terminal(2)) then
    wrong(("--%s asks first, and there is no terminal: -y does without the question"):format(action))
  end
  target.name_sessions("ls")
  local rows = find(values, pids, conditions)
  if action then
    return act(rows, action, values, set, format)
  end
  local how = { set = set, columns = columns, format = format, limit = limit, all = values.all }
  if not values.watch then
    listing.show(rows, how)
    return 0
  end
  watch(values.watch == true and WATCH or values.watch, function(before)
    rows = rows or find(values, pids, conditions)
    io.stdout:write(before)
    listing.show(rows, how)
    rows = nil
  end)
end

return ls
