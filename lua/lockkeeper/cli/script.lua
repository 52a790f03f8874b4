--- Lua files of the user's: scripts, job files and the configuration.
local failure = require "lockkeeper.cli.failure"
local files = require "lockkeeper.load"
local host = require "lockkeeper.host"

local script = {}

--- The text of an open file, which is closed. `name` is how messages call it.
function script.read(file, name)
  local text, reason = file:read("a")
  if not text then
    failure.unloaded(("cannot read %s: %s"):format(name, reason))
  end
  if file ~= io.stdin then
    file:close()
  end
  return text
end

--- The function of a text.
function script.compile(text, name, chunk)
  local loaded, message = files.compile(text, name, chunk)
  if not loaded then
    failure.unloaded(message)
  end
  return loaded
end

--- The function of an open file, which is closed. `name` is how messages call it, `chunk` Lua.
function script.load(file, name, chunk)
  return script.compile(script.read(file, name), name, chunk)
end

--- Raise where others may have written what is in an open file, or (with a folder) may have put it there.
function script.check_trust(file, name, folder)
  local reason = host.untrusted(file, folder)
  if reason then
    failure.unloaded(("%s is not run: %s"):format(name, reason))
  end
end

--- Open a file that jobs or audits are defined in; raises where it can't be, or others may have written it.
---@param path string
---@return file*
function script.open(path)
  local file, reason = io.open(path, "rb")
  if not file then
    failure.unloaded("cannot open " .. reason)
  end
  script.check_trust(file, path)
  return file
end

return script
