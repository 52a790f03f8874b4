--- lockkeeper audit: what is wrong with the locks of a database, by audits that look at one snapshot.
local act_option = require "lockkeeper.cli.act"
local audit_action = require "lockkeeper.audit_action"
local audit_book = require "lockkeeper.audit_book"
local audit_builtin = require "lockkeeper.audit_builtin"
local audit_snapshot = require "lockkeeper.audit_snapshot"
local audits = require "lockkeeper.audit"
local config = require "lockkeeper.cli.config"
local core = require "lockkeeper.core"
local definition = require "lockkeeper.definition"
local failure = require "lockkeeper.cli.failure"
local files = require "lockkeeper.load"
local host = require "lockkeeper.host"
local lock = require "lockkeeper"
local options = require "lockkeeper.cli.options"
local output = require "lockkeeper.output"
local report = require "lockkeeper.cli.audit_report"
local script = require "lockkeeper.cli.script"
local sets = require "lockkeeper.definition_set"
local target = require "lockkeeper.cli.target"
local validation = require "lockkeeper.validation"

local audit = {}

audit.spec = {
  usage = "lockkeeper audit [FILE...] [options]",
  summary = "Looks for what is wrong with the locks of a database: runs the audits that files define, or all "
    .. "*.lua of folders; without any, the built-in ones.",
  text = {
    "Without findings it prints nothing. Where the tables of lockkeeper init are, findings are kept in them, "
      .. "from when they were found first until they are found no more.",
    "nagios: one line with performance data, for monitoring; its exit codes are 0 OK, 1 WARNING, 2 CRITICAL, "
      .. "3 UNKNOWN, also without a connection.",
    "Exit code: 0; 1 it found something at or above --fail-on, or an audit failed; 2 a file does not load; "
      .. "69 no connection.",
  },
  operands = { min = 0, name = "FILE" },
  options = {
    { "--list", key = "list", help = "name the audits, run none" },
    { "--audit", value = "NAME", key = "audit", list = true, help = "run only this one; may be repeated" },
    act_option,
    { "--dry-run", key = "dry_run", help = "with --act: tell whom it would hit, and touch nobody" },
    { "--snapshot", value = "FILE", key = "snapshot",
      help = "look at what lockkeeper ls --all --format json has saved; no connection is needed" },
    { "--every", value = "D", key = "every", kind = "duration",
      help = "again and again, until Ctrl-C; tells what has changed" },
    { "--format", value = "FORMAT", key = "format", kind = "choice",
      choices = { "table", "json", "html", "nagios" }, help = "table (default), json, html or nagios" },
    { "--fail-on", value = "SEVERITY", key = "fail_on", kind = "choice",
      choices = { "info", "warning", "critical", "never" },
      help = "info, warning (default), critical or never" },
  },
  own_config = true,
}

-- Of Lua, while audits run, or are loaded.
local MEMORY_MAX = 1024 * 1024 * 1024

-- In seconds: what a file that defines audits may take to load.
local LOAD_MAX = 5

-- Exit codes of monitoring plugins.
local NAGIOS_UNKNOWN = 3

---------------------------------------------------------------------------------------------------
-- which audits

-- Within max_run seconds and MEMORY_MAX.
local function bounded(max_run, fn)
  host.memory_limit(MEMORY_MAX)
  local results = table.pack(host.watched({}, { max_run = max_run }, fn))
  host.memory_limit(nil)
  return table.unpack(results, 1, results.n)
end

local function is_timed_out(err)
  return type(err) == "table" and err.kind == "timed_out"
end

-- What a file raises while it is loaded means that it does not load.
local function raise_unloaded(path, err)
  if is_timed_out(err) then
    failure.unloaded(("%s is not loaded within %d s"):format(path, LOAD_MAX))
  elseif failure.is_ours(err) or failure.is_words(err) or host.interrupted() then
    error(err, 0)
  end
  failure.unloaded(failure.text(err), type(err) == "table" and err.traceback or nil)
end

local function load_file(path)
  local chunk = script.load(script.open(path), path, "@" .. path)
  local earlier = core.forbid(files.FORBIDDEN)
  definition.begin(path)
  local ok, err = bounded(LOAD_MAX, chunk)
  core.forbid(earlier)
  if not ok then
    definition.abandon()
    raise_unloaded(path, err)
  end
  return definition.finish().audits
end

-- The files of the paths.
local function files_of(paths)
  local list = {}
  for _, path in ipairs(paths) do
    local names = path ~= "" and host.lua_files(path)
    if names then
      table.sort(names)
      if #names == 0 then
        failure.words(("%s has no *.lua"):format(options.quoted(path)))
      end
      for _, name in ipairs(names) do
        list[#list + 1] = (path:gsub("/*$", "", 1)) .. "/" .. name
      end
    else
      list[#list + 1] = path
    end
  end
  return list
end

local function load_all(paths)
  if #paths == 0 then
    return audit_builtin.load()
  end
  local list, by_name = {}, {}
  for _, path in ipairs(files_of(paths)) do
    for _, wanted in ipairs(load_file(path)) do
      local earlier = by_name[wanted.name]
      if earlier then
        failure.unloaded(("%s: audit %s: two audits have this name: here and at %s"):format(
          sets.place_text(wanted), validation.described(wanted.name), sets.place_text(earlier)))
      end
      by_name[wanted.name], list[#list + 1] = wanted, wanted
    end
  end
  if #list == 0 then
    failure.unloaded(("no audit is defined in %s"):format(table.concat(paths, ", ")))
  end
  return list
end

local function check_names(list, names, option)
  local known, is_known = {}, {}
  for i, wanted in ipairs(list) do
    known[i], is_known[wanted.name] = wanted.name, true
  end
  for _, name in ipairs(names) do
    if not is_known[name] then
      failure.words(("%s: there is no audit %s%s"):format(option, options.quoted(name),
        validation.nearest(name, known)))
    end
  end
end

-- Those that are to run.
local function chosen(list, values)
  if type(values.act) == "table" then
    check_names(list, values.act, "--act")
  end
  if not values.audit then
    local enabled = {}
    for _, wanted in ipairs(list) do
      enabled[#enabled + 1] = wanted.enabled and wanted or nil
    end
    return enabled
  end
  check_names(list, values.audit, "--audit")
  local only, named = {}, {}
  for _, name in ipairs(values.audit) do
    named[name] = true
  end
  for _, wanted in ipairs(list) do
    only[#only + 1] = named[wanted.name] and wanted or nil
  end
  return only
end

---------------------------------------------------------------------------------------------------
-- one round

---@class AuditOutcome : AuditRound
---@field audit AuditDefinition
---@field failed? string

-- What the audit prints goes to the log.
local function watched(wanted, fn)
  local captured = output.begin("log")
  local ok, round = bounded(wanted.max_run, fn)
  captured:finish()
  return ok, round
end

-- What ends the whole, and not one audit only.
local function is_fatal(err)
  return host.interrupted() or type(err) == "table" and (err.kind == "connection" or err.kind == "lock_lost")
end

local function failed_text(wanted, err)
  if is_timed_out(err) then
    return ("it took longer than %g s"):format(wanted.max_run)
  end
  return failure.text(err)
end

-- One snapshot a database, for all audits that look at it.
local function snapshots(saved)
  local taken = {}
  return function(using)
    if saved then
      return saved
    end
    local key = using or "default"
    taken[key] = taken[key] or audit_snapshot.new(core.session(using))
    return taken[key]
  end
end

---@return AuditOutcome
local function run_one(wanted, snapshot_of, book, values)
  local ok, a = pcall(snapshot_of, wanted.using)
  if not ok and wanted.using and type(a) == "table" and a.kind ~= "usage" then
    return { audit = wanted, failed = failed_text(wanted, a), findings = {}, opened = {}, closed = {},
      problems = {} }
  elseif not ok then
    error(a, 0)
  end
  local act = audit_action.is_allowed(values.act, wanted.name) and function(findings, problems)
    audit_action.run(core.session(wanted.using), wanted, a, findings, problems, values.dry_run)
  end or nil
  local found, round = watched(wanted, function() return audits.round(wanted, a, book, act) end)
  if found then
    round.audit = wanted
    round.failed = #round.problems > 0 and table.concat(round.problems, "; ") or nil
    return round
  elseif is_fatal(round) then
    error(round, 0)
  end
  return { audit = wanted, failed = failed_text(wanted, round), findings = {}, opened = {}, closed = {},
    problems = {} }
end

---@return AuditOutcome[]
local function run_all(list, saved, book, values)
  local outcomes, snapshot_of = {}, snapshots(saved)
  for i, wanted in ipairs(list) do
    outcomes[i] = run_one(wanted, snapshot_of, book, values)
  end
  outcomes.taken_at = snapshot_of(nil).taken_at
  return outcomes
end

local function say_failed(outcomes)
  for _, outcome in ipairs(outcomes) do
    if outcome.failed then
      failure.say(("the audit %s failed: %s"):format(outcome.audit.name, outcome.failed))
    end
  end
end

-- The exit code of what was found.
local function exit_code(outcomes, fail_on)
  local least = fail_on == "never" and math.huge or audits.rank(fail_on)
  for _, outcome in ipairs(outcomes) do
    if outcome.failed then
      return 1
    end
    for _, finding in ipairs(outcome.findings) do
      if audits.rank(finding.severity) >= least then
        return 1
      end
    end
  end
  return 0
end

local function show(outcomes, values, saved)
  say_failed(outcomes)
  if values.format == "nagios" then
    return report.nagios(outcomes, values.fail_on)
  end
  report.show(outcomes, { format = values.format, snapshot = saved and values.snapshot })
  return exit_code(outcomes, values.fail_on)
end

-- Again and again. A round that fails once it has begun is told, and the next one tries anew.
local function repeated(list, book, values)
  local is_first = true
  while true do
    local ok, outcomes = pcall(run_all, list, nil, book, values)
    if not ok and (is_first or host.interrupted() or not failure.is_ours(outcomes)
      or outcomes.kind == "usage") then
      error(outcomes, 0)
    elseif not ok then
      failure.say(outcomes.message)
      pcall(lock.db.reconnect, lock.db)
    else
      say_failed(outcomes)
      report.show_again(outcomes, { format = values.format, is_first = is_first })
      is_first = false
    end
    io.stdout:flush()
    core.sleep(values.every)
  end
end

---------------------------------------------------------------------------------------------------

local function check(values)
  if values.every == false or values.every == 0 then
    failure.words("--every takes a time that is longer than 0")
  elseif values.every and (values.format == "html" or values.format == "nagios") then
    failure.words(("--every and --format %s exclude each other"):format(values.format))
  elseif values.snapshot and values.every then
    failure.words("--snapshot and --every exclude each other: what was saved does not change")
  elseif values.dry_run and not values.act then
    failure.words("--dry-run needs --act")
  elseif values.snapshot and values.act then
    failure.words("--snapshot and --act exclude each other: nobody is touched because of what was saved")
  end
end

-- What may not be had of a file that is only to define audits.
local function tame()
  os.exit = files.tame_os().exit -- luacheck: ignore
end

local function run(values, operands)
  check(values)
  config.run(values.config, true)
  tame()
  output.install()
  local list = load_all(operands)
  if values.list then
    report.list(list, values.format)
    return 0
  end
  list = chosen(list, values)
  if values.snapshot then
    local saved = audit_snapshot.new(nil, values.snapshot)
    return show(run_all(list, saved, nil, values), values, saved)
  end
  target.name_sessions("audit")
  local book = audit_book.new(lock.db)
  if values.every then
    return repeated(list, book, values)
  end
  return show(run_all(list, nil, book, values), values)
end

function audit.main(values, operands)
  values.format, values.fail_on = values.format or "table", values.fail_on or "warning"
  if values.format ~= "nagios" then
    return run(values, operands)
  end
  local ok, result = xpcall(run, failure.caught, values, operands)
  if ok then
    return result
  elseif host.interrupted() then
    error(result, 0)
  end
  report.nagios_unknown(failure.is_words(result) and result.message or failure.text(result))
  return NAGIOS_UNKNOWN
end

return audit
