--- What is being defined: the Set of the file that is loaded, the place in it, the faults.
--
-- While a file is loaded, what it defines goes into the current Set; where none is (a script in stock
-- Lua), into a Set of the process. The configuration's stays below all others. The first fault is raised
-- as a usage error, or, where the Set collects, all are kept in its list and loading goes on.
local core = require "lockkeeper.core"
local validation = require "lockkeeper.validation"

local described = validation.described

-- Kept, since a file that is loaded may replace what it finds.
local type, error, getmetatable, setmetatable = type, error, getmetatable, setmetatable

local sets = {}

---@class Set
---@field file string
---@field configuration boolean
---@field jobs Job[]            in order of definition; jobs["NAME"] is the one of that name
---@field policies PolicyDefinition[]  likewise
---@field audits AuditDefinition[]     likewise
---@field faults { file: string, line?: integer, message: string }[]
---@field collect boolean

---@class Place
---@field file string
---@field line? integer

local NAME_MAX = 200

-- A list that finds its elements by their names, too.
local function new_list()
  return setmetatable({}, { __index = {} })
end

--- Append what has a name.
---@param list table
---@param element { name: string }
function sets.add(list, element)
  local by_name = getmetatable(list).__index
  list[#list + 1] = element
  by_name[element.name] = by_name[element.name] or element
end

local function new_set(file, options)
  return {
    file = file, configuration = options.configuration or false, collect = options.collect or false,
    jobs = new_list(), policies = new_list(), audits = new_list(), faults = {},
  }
end

-- Sets of the files that are being loaded, the innermost one last.
local open_sets = {}

-- The configuration's, once it was loaded; what a script without a file of its own defines.
local configuration
local process_set = new_set("the script", {})

local sealed

--- A file is about to be loaded: what is defined from now on goes into a new Set.
---@param file string
---@param options? { collect?: boolean, configuration?: boolean }
---@return Set
function sets.begin(file, options)
  local set = new_set(file, options or {})
  open_sets[#open_sets + 1] = set
  return set
end

--- The Set that definitions go into now.
---@return Set
function sets.current()
  return open_sets[#open_sets] or process_set
end

--- The configuration's Set, where there is one.
---@return Set?
function sets.configuration()
  return configuration
end

--- The file was loaded, or has failed to: what was defined is complete.
---@return Set
function sets.finish()
  local set = table.remove(open_sets)
  if set.configuration then
    configuration = set
  end
  return set
end

--- As finish, but what was defined is forgotten.
function sets.abandon()
  table.remove(open_sets)
end

--- No more definitions, but in files that are loaded: jobs run now. `nil` undoes it.
---@param reason string?
function sets.seal(reason)
  sealed = reason
end

-- Our own files' chunk names begin so.
local HOME = debug.getinfo(1, "S").source:gsub("definition_set%.lua$", "")
local getinfo = debug.getinfo

--- The line of the script that is being executed.
---@return Place
function sets.place()
  local level = 2
  while true do
    local frame = getinfo(level, "Sl")
    if not frame then
      return { file = sets.current().file }
    elseif frame.currentline > 0 and frame.source:sub(1, #HOME) ~= HOME then
      local file = frame.source:match("^[@=](.*)$") or sets.current().file
      return { file = file, line = frame.currentline }
    end
    level = level + 1
  end
end

--- "jobs.lua:12"
---@param where Place
---@return string
function sets.place_text(where)
  return where.line and ("%s:%d"):format(where.file, where.line) or where.file
end

--- Tell a fault: it is kept, or raised.
---@param set Set
---@param where Place
---@param message string
function sets.fault(set, where, message)
  if set.collect then
    set.faults[#set.faults + 1] = { file = where.file, line = where.line, message = message }
    return
  end
  local _, err = core.fail("usage", message)
  err.where = sets.place_text(where)
  err.definition = true -- for the exit code: the file does not load
  error(err, 0)
end

--- What tells of faults in one definition.
---@param set Set
---@param where Place
---@param what string   what is defined
---@return Fault
function sets.faults_of(set, where, what)
  return function(message)
    sets.fault(set, where, what .. ": " .. message)
  end
end

--- Begin a definition by name and table. Without a third result it is too wrong to look at.
---@param what string   "job", "policy", "audit"
---@param name any
---@param tbl any
---@return Set set
---@return Place where
---@return Fault? fault
function sets.begin_definition(what, name, tbl)
  local set, where = sets.current(), sets.place()
  if sealed and set == process_set then
    core.usage(("%s: %s"):format(what, sealed))
  end
  if validation.text(name, what .. ": the name", function(message) sets.fault(set, where, message) end)
    == nil then
    return set, where
  end
  local shown = ("%s %s"):format(what, described(name))
  local fault = sets.faults_of(set, where, shown)
  if name:find("%c") then
    fault("the name has a control character")
  elseif #name > NAME_MAX then
    fault(("the name is longer than %d bytes"):format(NAME_MAX))
  end
  if type(tbl) ~= "table" or getmetatable(tbl) ~= nil then
    fault(("a table was expected, not %s"):format(described(tbl)))
    return set, where
  end
  return set, where, fault
end

return sets
