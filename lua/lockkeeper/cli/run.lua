--- lockkeeper run: a Lua script.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
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

local function load_script(path)
  if path == "-" then
    return script.load(io.stdin, "the script on standard input", "=stdin")
  elseif path == "" then
    failure.words("FILE is empty")
  end
  local file, reason = io.open(path, "rb")
  if not file then
    failure.unloaded("cannot open the script " .. reason)
  end
  return script.load(file, "the script " .. path, "@" .. path)
end

function run.main(_, operands)
  local path = operands[1]
  local chunk = load_script(path)
  arg = table.move(operands, 1, #operands, 0, {}) -- luacheck: ignore
  core.set_application(("lockkeeper: %s"):format(path:match("[^/]+$") or path))
  chunk(table.unpack(operands, 2))
  return 0
end

return run
