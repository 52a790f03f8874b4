--- lock.sh: a command, without a shell.
local core = require "lockkeeper.core"

local command = {}

--- A command's words, and its options, which are a new table.
---@param given table  { "pg_dump", "-Fc", stdin = text, env = { NAME = value }, cwd =, grace = }
---@return any[] argv
---@return table options
function command.split(given)
  if type(given) ~= "table" then
    core.usage("sh: a list of the command and its arguments was expected, not a " .. type(given))
  end
  local argv, options = {}, {}
  for key, value in pairs(given) do
    if math.type(key) == "integer" then
      argv[key] = value
    else
      options[key] = value
    end
  end
  return argv, options
end

--- Run a command, without a shell. It is stopped when a session of this process that holds a lock
--- ends, and with this process; so is everything that it started.
---@param given table  { "pg_dump", "-Fc", env = { NAME = value }, cwd =, grace = }; stdin: a text or an
---                    open file; stdout, stderr: a function of a piece of text, or an open file
---@return integer code     its exit code; 128 + N where signal N ended it
---@return string? stdout   nil where a function or a file got it
---@return string? stderr
function command.run(given)
  return core.command(command.split(given))
end

return command
