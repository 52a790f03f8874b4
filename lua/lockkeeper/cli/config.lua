--- The configuration file, in Lua, run before a script or a command that looks at locks: it may declare
--- databases for `using`, policies, names of advisory keys, views for ls, and sessions never to be touched.
local failure = require "lockkeeper.cli.failure"
local host = require "lockkeeper.host"
local script = require "lockkeeper.cli.script"

local config = {}

local ENOENT, ENOTDIR = 2, 20

-- Where it is when it is not named: here, else in the user's configuration.
local function places()
  local list = { "lockkeeper.lua" }
  local folder, home = os.getenv("XDG_CONFIG_HOME"), os.getenv("HOME")
  if folder and folder:sub(1, 1) == "/" then -- a relative one is ignored, by XDG's specification
    list[2] = folder .. "/lockkeeper/config.lua"
  elseif home and home ~= "" then
    list[2] = home .. "/.config/lockkeeper/config.lua"
  end
  return list
end

local function cannot_open(reason)
  failure.unloaded("cannot open the configuration " .. reason)
end

local function find()
  for _, path in ipairs(places()) do
    local file, reason, code = io.open(path, "rb")
    if file then
      return file, path
    elseif code ~= ENOENT and code ~= ENOTDIR then
      cannot_open(reason)
    end
  end
end

local function open(path)
  local file, reason = io.open(path, "rb")
  if not file then
    cannot_open(reason)
  end
  return file, path
end

--- Open it: the named one, else, where `search` is true, the one that is found, if any.
---@return file*? file
---@return string? path
function config.open(named, search)
  local file, path
  if named then
    file, path = open(named)
  elseif search then
    file, path = find()
  end
  if file then
    script.check_trust(file, "the configuration " .. path, path:match("^(.*)/") or ".")
  end
  return file, path
end

--- Run it, where there is one (see config.open). Its policies are then known to all that is loaded.
function config.run(named, search)
  local file, path = config.open(named, search)
  if not file then
    return
  end
  local loaded = script.load(file, "the configuration " .. path, "@" .. path)
  local definition = require "lockkeeper.definition"
  definition.begin(path, { configuration = true })
  local ok, err = xpcall(loaded, failure.caught)
  definition.finish()
  if not ok and not host.interrupted() then
    failure.unloaded(("the configuration %s failed: %s"):format(path, failure.text(err)), err.traceback)
  elseif not ok then
    error(err, 0)
  end
end

return config
