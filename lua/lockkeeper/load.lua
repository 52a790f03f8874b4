--- Lua files of the user's: read, compiled, loaded for what they define.
local core = require "lockkeeper.core"

local files = {}

-- Loaded when something is defined: most calls of the command line need none of it.
local function definition()
  return require "lockkeeper.definition"
end

--- Said to whoever uses a session while definitions are loaded.
files.FORBIDDEN = "a file that defines jobs may not use the database while it is loaded: do it in a job's run"

--- The function of a script's text, or nil and what is wrong with it.
---@param text string
---@param name string   how messages call it
---@param chunk string  the chunk's name: "@jobs.lua"
---@param env? table    its globals
---@return function?
---@return string?
function files.compile(text, name, chunk, env)
  -- The line of a "#!" stays, empty, so that line numbers agree.
  text = text:gsub("^\xEF\xBB\xBF", ""):gsub("^#[^\n]*", "")
  if not text:find("%S") then
    return nil, name .. " is empty"
  elseif text:sub(1, 1) == "\27" then
    return nil, name .. " is a compiled chunk: only the text of a script is run"
  elseif text:sub(1, 4096):find("\0", 1, true) then
    return nil, name .. " is not a Lua script: it is a binary file"
  end
  return load(text, chunk, "t", env or _G)
end

-- os, for a file that is only to be loaded.
local function tame_os()
  return setmetatable({
    exit = function() core.usage("os.exit was called while the file is loaded") end,
  }, { __index = os })
end

files.tame_os = tame_os

-- Puts back what holds only while a file is loaded.
local function loading(file)
  local earlier = core.forbid(files.FORBIDDEN)
  local set = definition().begin(file)
  return setmetatable({ set = set }, {
    __close = function(self)
      core.forbid(earlier)
      if not self.finished then
        definition().abandon()
      end
    end,
  })
end

local function read(path)
  local file <close>, reason = io.open(path, "rb")
  if not file then
    core.usage(("load: cannot open %s"):format(reason))
  end
  local text, why = file:read("a")
  if not text then
    core.usage(("load: cannot read %s: %s"):format(path, why))
  end
  return text
end

---@class LoadedFile
---@field file string
---@field jobs Job[]        in order of definition; jobs["NAME"] is the one of that name
---@field policies PolicyDefinition[]
---@field audits AuditDefinition[]

--- What a file defines, for tests of it; nothing is run but the file itself, with globals of its own, and
--- the first fault in it is raised as a usage error. It may not use the database.
---@param path string
---@return LoadedFile
function files.load(path)
  if type(path) ~= "string" or path == "" then
    core.usage("load: the name of a file was expected, not " .. (path == "" and "an empty text"
      or "a " .. type(path)))
  end
  local env = setmetatable({ os = tame_os() }, { __index = _G })
  env._G = env
  local chunk, reason = files.compile(read(path), path, "@" .. path, env)
  if not chunk then
    core.usage("load: " .. reason)
  end
  local scope <close> = loading(path)
  chunk()
  scope.finished = true
  definition().finish()
  return { file = path, jobs = scope.set.jobs, policies = scope.set.policies,
    audits = scope.set.audits }
end

return files
