--- The command line: finds the command, reads its options, shows its errors, gives the exit code.
local config = require "lockkeeper.cli.config"
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local host = require "lockkeeper.host"
local options = require "lockkeeper.cli.options"
local target = require "lockkeeper.cli.target"
require "lockkeeper" -- which tells what is left out of tracebacks, where a script does not

local COMMANDS = { "run", "exec", "serve", "jobs", "trigger", "pause", "resume", "cancel", "history",
  "check", "next", "ls", "tree", "top", "audit", "analyze", "key", "who", "init",
  "db", "completion" }

-- Those that commands call, not people.
local INTERNAL = { describe = true, survey = true, work = true }

-- Commands whose module is not named like them.
local MODULES = { init = "init_schema" }

local USAGE = [[
Usage: lockkeeper COMMAND [options]

Runs Lua scripts and commands under PostgreSQL's locks.

  run FILE [ARG...]        runs a Lua script
  exec --lock ID -- CMD    holds a lock while a command runs
  serve PATH...            runs jobs by their schedules, each slot once over all hosts
  jobs [PATH...]           known jobs, when they are due next, how they ended last
  trigger JOB              runs a job now; --wait waits for its end
  pause, resume JOB        has a job's slots skipped, or not any more
  cancel JOB | '#RUN'      ends runs, on whichever host they are
  history [JOB] [RUN]      past runs, with their output
  check PATH...            what is wrong with files that define jobs; runs none
  next JOB PATH...         when a job is due
  ls [PID...]              locks, who waits for whom; cancels and terminates
  tree                     who waits for whom, root blockers first; also as a picture
  top                      the same on a whole screen, as it changes; locks; jobs
  audit [FILE...]          what is wrong with the locks of a database
  analyze FILE.sql         what the statements of a migration would lock and block
  key ID                   the key that a name becomes, as pg_locks shows it
  who ID                   who holds a lock, and who waits for it
  init                     makes the tables that serve needs, or brings them up to date
  db ACTION                the embedded PostgreSQL: start, stop, status, url, psql
  completion SHELL         completion for bash, zsh or fish

"lockkeeper COMMAND -h" tells more of each; "lockkeeper --version" the version.
]]

local COMMON = {
  { "--config", value = "FILE", key = "config",
    help = "configuration, in Lua; else ./lockkeeper.lua, else $XDG_CONFIG_HOME/lockkeeper/config.lua" },
  { "--log-level", value = "LEVEL", key = "log_level", kind = "choice",
    choices = { "debug", "info", "warning", "error" }, help = "debug, info (default), warning or error" },
  { "--log-format", value = "FORMAT", key = "log_format", kind = "choice",
    choices = { "logfmt", "json" }, help = "logfmt (default) or json" },
  { "-h", "--help", key = "help", help = "this text" },
}

local function module_of(name)
  return require("lockkeeper.cli." .. (MODULES[name] or name))
end

-- A command's specification, with the options that all have.
local function whole_spec(command)
  local spec = command.spec
  if not spec.is_whole then
    if not spec.is_local then
      table.move(target.OPTIONS, 1, #target.OPTIONS, #spec.options + 1, spec.options)
    end
    table.move(COMMON, 1, #COMMON, #spec.options + 1, spec.options)
    spec.is_whole = true
  end
  return spec
end

-- All of them: { name, spec }.
local function specs()
  local list = {}
  for i, name in ipairs(COMMANDS) do
    list[i] = { name = name, spec = whole_spec(module_of(name)) }
  end
  return list
end

-- The words of a command: its options' values and its operands; no operands where help is wanted.
local function parse(command, words)
  local spec = whole_spec(command)
  -- A plea for help needs no operands.
  local values, operands = options.parse(
    { options = spec.options, rest = spec.rest, operands = { min = 0 } }, words)
  if not values.help then
    options.check_operands(spec, operands)
  end
  return values, operands
end

local function run_command(name, words)
  local command = module_of(name)
  local values, operands = parse(command, words)
  if values.help then
    io.stdout:write(options.help(command.spec, host.terminal(1)))
    return 0
  end
  core.log_configure(values.log_level, values.log_format)
  target.settle(values) -- may start a server, which is not to be interrupted
  host.catch_signals()
  if not command.spec.own_config then
    config.run(values.config, command.spec.runs_script or command.spec.uses_config)
  end
  local ok, result = xpcall(command.main, failure.caught, values, operands, specs)
  if not ok then
    if failure.is_words(result) then
      error(result, 0)
    end
    target.hint_at_embedded(result, values)
    failure.show(result)
    result = failure.exit_code(result, command.spec.runs_script and 1 or 2)
  end
  -- A script that went on after an interrupt has not done its work either.
  local signal = host.interrupted()
  return signal and 128 + signal or result or 0
end

local function unknown(name)
  if name:sub(1, 1) == "-" then
    local near = core.nearest(name, { "--help", "--version" })
    failure.say(("unknown option %s%s"):format(options.shown(name),
      near and ("; did you mean %s?"):format(near) or "; a command's options come after it"))
  else
    local near = core.nearest(name, COMMANDS)
    failure.say(("unknown command %s%s"):format(options.quoted(name),
      near and ("; did you mean %s?"):format(near) or ""))
  end
  failure.say('"lockkeeper -h" lists the commands')
  return 2
end

local function is_command(name)
  if INTERNAL[name] then
    return true
  end
  for _, command in ipairs(COMMANDS) do
    if command == name then
      return true
    end
  end
  return false
end

--- The whole command line; returns the exit code.
return function(...)
  local words = { ... }
  local name = table.remove(words, 1)
  if name == "help" and is_command(words[1]) then
    name, words = words[1], { "-h" }
  end
  if name == "-h" or name == "--help" or name == "help" then
    io.stdout:write(USAGE)
    return 0
  elseif name == "--version" then
    print("lockkeeper " .. core.version)
    return 0
  elseif not name then
    io.stderr:write(USAGE)
    return 2
  elseif not is_command(name) then
    return unknown(name)
  end
  local ok, result = xpcall(run_command, failure.caught, name, words)
  if ok then
    return result
  end
  if failure.is_words(result) then
    failure.say(("%s: %s"):format(name, result.message))
    failure.say(('"lockkeeper %s -h" tells how it is called'):format(name))
    return 2
  end
  failure.show(result)
  local signal = host.interrupted()
  return signal and 128 + signal or failure.exit_code(result, 2)
end
