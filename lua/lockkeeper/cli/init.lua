--- The command line: finds the command, reads its options, shows its errors, gives the exit code.
local core = require "lockkeeper.core"
local host = require "lockkeeper.host"
local options = require "lockkeeper.cli.options"

local COMMANDS = { "run", "exec", "key", "who", "db" }

local USAGE = [[
Usage: lockkeeper COMMAND [options]

Runs Lua scripts and commands under PostgreSQL's locks.

  run FILE [ARG...]     run a Lua script
  exec --lock ID -- CMD hold a lock while a command runs
  key ID                the key that a name becomes, as pg_locks shows it
  who ID                who holds a lock, and who waits for it
  db ...                the embedded PostgreSQL: start, stop, status, url, psql

"lockkeeper COMMAND -h" tells more of each.
]]

local COMMON = {
  { "-d", "--dsn", value = "CONNINFO", key = "dsn",
    help = "where to connect to; else $DATABASE_URL, else libpq's PG* variables" },
  { "--embedded", key = "embedded", help = "start, or join, a private PostgreSQL of your own" },
  { "--log-level", value = "LEVEL", key = "log_level", help = "debug, info, warning or error" },
  { "--log-format", value = "FORMAT", key = "log_format", help = "logfmt or json" },
  { "-h", "--help", key = "help", help = "this text" },
}

-- Exit codes by the kind of error.
local EXIT = {
  not_acquired = 75, lock_timeout = 75, lock_lost = 125, connection = 69, timed_out = 124,
}

local function say(...)
  io.stderr:write("lockkeeper: ", ...)
  io.stderr:write("\n")
end

local function indent(text)
  return (text:gsub("\n", "\n    "))
end

-- One of our errors, or whatever a script raised.
local function show(err)
  if type(err) == "table" and err.message and err.kind then
    say(tostring(err))
    for _, field in ipairs { "detail", "hint", "statement" } do
      if err[field] then
        say("  ", field, ": ", indent(err[field]))
      end
    end
  elseif type(err) == "table" and err.raised ~= nil then
    say(err.text)
  else
    say(tostring(err))
  end
  local traceback = type(err) == "table" and err.traceback
  if traceback and traceback:find("\n", 1, true) then
    say("  at ", indent(traceback))
  end
end

-- The error of a script keeps its value; what is no table of ours gets the script's lines beside.
local function handle(err)
  if type(err) == "table" and (err.kind or err.words) then
    return err
  end
  local text
  if type(err) == "string" then
    text = err
  elseif type(err) == "table" and getmetatable(err) and getmetatable(err).__tostring then
    text = tostring(err)
  else
    text = ("the script raised a %s: %s"):format(type(err), tostring(err))
  end
  return { raised = err, text = text, traceback = host.traceback(2) }
end

local function exit_code(err)
  local signal = host.interrupted()
  if signal then
    return 128 + signal
  end
  return type(err) == "table" and (err.exit or EXIT[err.kind]) or 1
end

local function parse(command, words)
  local spec = command.spec
  for _, option in ipairs(COMMON) do
    spec.options[#spec.options + 1] = option
  end
  local values, operands = options.parse(
    -- a plea for help needs no operands
    { options = spec.options, rest = spec.rest, operands = { min = 0 } }, words)
  if values.help then
    return values
  end
  return options.parse(spec, words), operands
end

-- Where sessions connect to. The embedded server is started before anything can be interrupted.
local function settle_connection(values)
  core.log_configure(values.log_level, values.log_format)
  if values.embedded then
    if values.dsn then
      options.wrong("--embedded and --dsn exclude each other")
    end
    core.set_default(host.embedded_start().url)
    host.setenv("PGHOSTADDR", "")
  elseif values.dsn then
    core.set_default(values.dsn)
  end
end

-- A connection that nobody pointed anywhere: a newcomer may have no server yet.
local function hint_at_embedded(err, values)
  if type(err) == "table" and err.kind == "connection" and not err.hint and not values.dsn
    and not values.embedded and not os.getenv("DATABASE_URL") and not os.getenv("PGHOST")
    and not os.getenv("PGSERVICE") then
    err.hint = "No server was named. --dsn names one; --embedded starts a private one to try things out."
  end
end

local function run_command(name, words)
  local command = require("lockkeeper.cli." .. name)
  local values, operands = parse(command, words)
  if values.help then
    io.stdout:write(options.help(command.spec))
    return 0
  end
  settle_connection(values)
  host.catch_signals()
  local ok, result = xpcall(command.main, handle, values, operands)
  if ok then
    return result or 0
  end
  if type(result) == "table" and result.words then
    error(result, 0)
  end
  hint_at_embedded(result, values)
  show(result)
  return exit_code(result)
end

local function unknown(name)
  local near = core.nearest(name, COMMANDS)
  local hint = near and ("; did you mean %s?"):format(near) or ""
  say(('unknown command "%s"%s'):format(name:sub(1, 60), hint))
  say('"lockkeeper -h" lists the commands')
  return 2
end

--- The whole command line; returns the exit code.
return function(...)
  local words = { ... }
  local name = table.remove(words, 1)
  if name == "-h" or name == "--help" or name == "help" then
    io.stdout:write(USAGE)
    return 0
  elseif name == "--version" then
    print("lockkeeper " .. core.version)
    return 0
  elseif not name then
    io.stderr:write(USAGE)
    return 2
  end
  local known = false
  for _, command in ipairs(COMMANDS) do
    known = known or command == name
  end
  if not known then
    return unknown(name)
  end
  local ok, result = xpcall(run_command, handle, name, words)
  if ok then
    return result
  end
  if type(result) == "table" and result.words then
    say(name, ": ", result.words)
    say(('"lockkeeper %s -h" tells how it is called'):format(name))
    return 2
  end
  show(result)
  return type(result) == "table" and result.kind == "usage" and 2 or exit_code(result)
end
