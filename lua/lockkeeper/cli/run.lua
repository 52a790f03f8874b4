--- lockkeeper run: a Lua script.
local failure = require "lockkeeper.cli.failure"
local options = require "lockkeeper.cli.options"
local target = require "lockkeeper.cli.target"
local script = require "lockkeeper.cli.script"

local run = {}

run.spec = {
  usage = "lockkeeper run [options] FILE [ARG...]",
  summary = "Runs a Lua script; FILE may be - for standard input. What follows FILE is the script's.",
  text = { "Exit code: 0 done; 1 the script failed; 2 it does not load; 69 no connection; 75 a lock was "
    .. "not to be had; 125 a lock was lost; 128 + N ended by signal N (Ctrl-C: 130)." },
  rest = true,
  operands = { min = 1, name = "FILE" },
  options = {},
  runs_script = true,
}

-- How a path is shown: io.open allows any length.
local PATH_SHOWN = 500

local function load_script(path)
  if path == "-" then
    return script.load(io.stdin, "the script on standard input", "=stdin")
  elseif path == "" then
    failure.words("FILE is empty")
  end
  local file, reason = io.open(path, "rb")
  if not file then
    failure.unloaded(("cannot open the script %s%s"):format(options.shown(path, PATH_SHOWN),
      reason:sub(#path + 1)))
  end
  return script.load(file, "the script " .. path, "@" .. path)
end

function run.main(_, operands)
  local path = operands[1]
  local chunk = load_script(path)
  arg = table.move(operands, 1, #operands, 0, {}) -- luacheck: ignore
  target.name_sessions(path:match("[^/]+$") or path)
  chunk(table.unpack(operands, 2))
  return 0
end

return run
