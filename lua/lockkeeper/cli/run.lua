--- lockkeeper run: a Lua script.
local core = require "lockkeeper.core"
local options = require "lockkeeper.cli.options"

local run = {}

run.spec = {
  usage = "lockkeeper run [options] FILE [ARG...]",
  summary = "Runs a Lua script; FILE may be - for standard input. What follows FILE is the script's.",
  text = "Exit code: 0 done; 1 the script failed; 2 it does not load; 69 no connection; 75 a lock\n"
    .. "was not to be had; 125 a lock was lost; 128 + N ended by signal N.",
  rest = true,
  operands = { min = 1, name = "FILE" },
  options = {},
}

local function does_not_load(message)
  error(setmetatable({ kind = "usage", message = message, exit = 2 },
    { __tostring = function(err) return err.message end }), 0)
end

local function read(path)
  local file, reason = io.stdin, nil
  if path ~= "-" then
    file, reason = io.open(path, "rb")
    if not file then
      does_not_load("cannot open the script " .. reason)
    end
  end
  local text
  text, reason = file:read("a")
  if path ~= "-" then
    file:close()
  end
  if not text then
    does_not_load(("cannot read the script %s: %s"):format(path, reason))
  end
  return text
end

-- A chunk, with the line of a "#!" left in place so that line numbers agree.
local function load_script(path)
  local text = read(path)
  local name = path == "-" and "stdin" or path
  text = text:gsub("^\xEF\xBB\xBF", ""):gsub("^#[^\n]*", "")
  if not text:find("%S") then
    does_not_load(("the script %s is empty"):format(name))
  elseif text:sub(1, 1) == "\27" then
    does_not_load(("%s is a compiled chunk: only the text of a script is run"):format(name))
  elseif text:sub(1, 4096):find("\0", 1, true) then
    does_not_load(("%s is not a Lua script: it is a binary file"):format(name))
  end
  local chunk, message = load(text, path == "-" and "=stdin" or "@" .. path, "t")
  if not chunk then
    does_not_load(message)
  end
  return chunk
end

-- A script that calls os.exit leaves no session behind: the state is closed first.
local exit = os.exit
os.exit = function(code) -- luacheck: ignore
  exit(code == nil and true or code, true)
end

function run.main(_, operands)
  local path = operands[1]
  local chunk = load_script(path)
  arg = table.move(operands, 1, #operands, 0, {}) -- luacheck: ignore
  core.set_application(("lockkeeper: %s"):format(path:match("[^/]+$") or path))
  if #path > 0 and path == "" then
    options.wrong("FILE is empty")
  end
  chunk(table.unpack(operands, 2))
  return 0
end

return run
