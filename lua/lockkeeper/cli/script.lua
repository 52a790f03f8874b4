--- Lua files of the user's: scripts and the configuration.
local failure = require "lockkeeper.cli.failure"

local script = {}

local function read(file, name)
  local text, reason = file:read("a")
  if not text then
    failure.unloaded(("cannot read %s: %s"):format(name, reason))
  end
  return text
end

--- The function of an open file, which is closed. `name` is how messages call it, `chunk` Lua.
function script.load(file, name, chunk)
  local text = read(file, name)
  if file ~= io.stdin then
    file:close()
  end
  -- The line of a "#!" stays, empty, so that line numbers agree.
  text = text:gsub("^\xEF\xBB\xBF", ""):gsub("^#[^\n]*", "")
  if not text:find("%S") then
    failure.unloaded(name .. " is empty")
  elseif text:sub(1, 1) == "\27" then
    failure.unloaded(name .. " is a compiled chunk: only the text of a script is run")
  elseif text:sub(1, 4096):find("\0", 1, true) then
    failure.unloaded(name .. " is not a Lua script: it is a binary file")
  end
  local loaded, message = load(text, chunk, "t")
  if not loaded then
    failure.unloaded(message)
  end
  return loaded
end

return script
