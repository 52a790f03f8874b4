--- lockkeeper analyze: what a migration's statements would lock, and for how long.
local advice = require "lockkeeper.analyze.advice"
local failure = require "lockkeeper.cli.failure"
local field = require "lockkeeper.report.field"
local traced = require "lockkeeper.cli.traced"
local host = require "lockkeeper.host"
local keys = require "lockkeeper.cli.keys"
local lock = require "lockkeeper"
local modes = require "lockkeeper.analyze.modes"
local script = require "lockkeeper.cli.script"
local splitter = require "lockkeeper.analyze.sql_splitter"
local target = require "lockkeeper.cli.target"
local trace = require "lockkeeper.analyze.trace"

local analyze = {}

analyze.spec = {
  usage = "lockkeeper analyze FILE.sql [options]",
  summary = "Runs the statements of an SQL file in a transaction that is rolled back, and says for each "
    .. "which locks it took on what, what they block, what it rewrote or scanned, and what would be "
    .. "gentler.",
  text = {
    "FILE may be -. Its locks are real while it runs: try it where that does no harm, or where a wait of "
      .. "--lock-timeout can be borne.",
    "Nothing is committed: BEGIN and COMMIT of the file are not sent, only taken as where its locks begin "
      .. "and end; a file without them is taken as one transaction. A rollback does not undo what "
      .. "sequences gave out, nor what a function does over a connection of its own or to files.",
    "Statements that can't run in a transaction are not run: what they would take is by PostgreSQL's "
      .. "manual. Commands of psql's (\\i, \\copy …) and data of COPY … FROM STDIN are refused.",
    "Exit code: 0 done; 1 a statement failed, or --fail-on; 2 the file is no SQL; 69 no connection; 75 a "
      .. "lock was not to be had within --lock-timeout.",
  },
  operands = { min = 1, max = 1, name = "FILE" },
  options = {
    { "--lock-timeout", value = "D", key = "lock_timeout", kind = "duration",
      help = "how long a statement may wait for a lock (2s); a shorter one that the file sets counts" },
    { "--fail-on", value = "MODE", key = "fail_on",
      help = "exit code 1 where a lock of this mode or a stronger one is held on a table that existed "
        .. "before: "
        .. '"ACCESS EXCLUSIVE", share, …' },
    keys.FORMAT,
  },
}

local DEFAULT_TIMEOUT = 2

local function read_mode(text)
  if not text then
    return nil
  end
  local mode, nearest = modes.parse(text)
  if not mode then
    failure.words(("--fail-on: unknown lock mode %s%s"):format(
      #text > 60 and ("of %d bytes"):format(#text) or ('"%s"'):format(text),
      nearest and ('; did you mean "%s"?'):format(nearest) or ""))
  end
  return mode
end

local function read_file(path)
  if path == "-" then
    return script.read(io.stdin, "standard input"), "standard input"
  end
  local file, reason = io.open(path)
  if not file then
    failure.unloaded(("cannot open %s"):format(reason))
  end
  return script.read(file, path), path
end

local function split(text, name, standard_strings)
  local statements, faults = splitter.split(text, standard_strings)
  if #faults > 0 then
    local lines = {}
    for i, fault in ipairs(faults) do
      lines[i] = ("%s:%d: %s"):format(name, fault.line, fault.message)
    end
    failure.unloaded(table.concat(lines, "\n"))
  end
  return statements
end

-- The first lock on something that existed before that is as strong as `mode`, where one is named.
local function too_strong(entries, mode)
  for _, entry in ipairs(mode and entries or {}) do
    for _, held in ipairs(entry.locks) do
      local counts = held.relation and held.relation.existed or held.type == "each table"
      if counts and modes.strength(held.mode) >= modes.strength(mode) then
        return held, entry
      end
    end
  end
end

local function show_failure(name, entry)
  local err = entry.error
  failure.say(("%s:%d: %s"):format(name, entry.line, err.message))
  for _, part in ipairs { "detail", "hint" } do
    if err[part] then
      failure.say(("  %s: %s"):format(part, err[part]))
    end
  end
  if err.busy then
    failure.say('"lockkeeper ls" shows who holds it')
  end
end

function analyze.main(values, operands)
  local fail_on = read_mode(values.fail_on)
  local timeout = values.lock_timeout
  if timeout == nil then
    timeout = DEFAULT_TIMEOUT
  elseif timeout == 0 then
    failure.words("--lock-timeout: 0 is no duration to wait; false is without limit")
  end
  local text, name = read_file(operands[1])
  target.name_sessions("analyze")
  local place = keys.place()
  local standard_strings = lock.db:value(
    "SELECT pg_catalog.current_setting('standard_conforming_strings')") == "on"
  local statements = split(text, name, standard_strings)
  failure.say(("runs %d statement%s of %s in a transaction that is rolled back; its locks are real until "
    .. "then (lock_timeout %s)"):format(#statements, #statements == 1 and "" or "s", name,
    timeout and ("%gs"):format(timeout) or "without limit"))
  local entries, result = trace.run(lock.db, statements, timeout)
  advice.add(entries)
  if values.format == "json" then
    traced.print_json(entries)
  else
    traced.print(entries, ("%s, %s: %s"):format(place, field.local_time(os.time(), true), name),
      host.terminal(1))
  end
  if not result.counts then
    failure.say("track_counts is off on this server: full scans were not seen")
  end
  if result.failed then
    show_failure(name, result.failed)
    return failure.exit_code(result.failed.error, 1)
  end
  local held, entry = too_strong(entries, fail_on)
  if held then
    failure.say(("%s:%d: %s on %s, which --fail-on %s does not allow"):format(name, entry.line, held.mode,
      held.on, fail_on))
    return 1
  end
  return 0
end

return analyze
