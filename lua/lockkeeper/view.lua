--- Views: named sets of what `lockkeeper ls` shows, from the configuration (ls --view NAME).
local core = require "lockkeeper.core"
local validation = require "lockkeeper.validation"

local view = {}

---@class View
---@field blocking? boolean            blocked locks and who blocks them
---@field on? string|string[]          tables
---@field filter? table|fun(row: table): any   see lockkeeper.filter
---@field where? string|string[]       expressions, as --where takes them
---@field attributes? string[]         fields as columns, in place of the usual ones
---@field limit? integer|"all"         a table's rows at most
---@field format? "table"|"expanded"|"csv"|"json"
---@field all? boolean                 every row and field
---@field watch? number|string         again at this interval
---@field description? string

local KEYS = { "blocking", "on", "filter", "where", "attributes", "limit", "format", "all", "watch",
  "description" }

local FORMATS = { "table", "expanded", "csv", "json" }

-- By name.
local views = {}

local function texts(value, what, fault)
  return validation.list(type(value) == "string" and { value } or value, what, fault, validation.text)
end

local function filter_of(value, what, fault)
  if type(value) ~= "table" and type(value) ~= "function" then
    return fault(("%s must be a filter, a table or a function, not %s"):format(what,
      validation.described(value)))
  end
  return value
end

local function limit_of(value, what, fault)
  return value == "all" and value or validation.integer(value, what, fault, 1, math.maxinteger)
end

local CHECKS = {
  blocking = validation.boolean, on = texts, filter = filter_of, where = texts, attributes = texts,
  limit = limit_of, all = validation.boolean, description = validation.text,
  format = function(value, what, fault) return validation.choice(value, what, fault, FORMATS) end,
  watch = function(value, what, fault) return validation.duration(value, what, fault, {}) end,
}

--- Define a view, in place of an earlier one of the name. A mistake in it is a usage error; its filter and
--- expressions are read when it is used.
---@param name string
---@param spec View
function view.define(name, spec)
  local function fault(message)
    core.usage(("view %s: %s"):format(validation.described(name), message))
  end
  validation.text(name, "the name", fault)
  if type(spec) ~= "table" then
    fault("a table was expected, not " .. validation.described(spec))
  end
  validation.keys(spec, KEYS, fault)
  local made = {}
  for _, key in ipairs(KEYS) do
    if spec[key] ~= nil then
      made[key] = CHECKS[key](spec[key], key, fault)
    end
  end
  views[name] = made
end

--- The view of that name, and where there is none, nil and the names that there are, in order.
---@param name string
---@return View?
---@return string[]? names
function view.find(name)
  if views[name] then
    return views[name]
  end
  local names = {}
  for known in pairs(views) do
    names[#names + 1] = known
  end
  table.sort(names)
  return nil, names
end

return view
