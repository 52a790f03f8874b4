--- lock.policy: policies by name. One is looked up among those above in the file, then in the
--- configuration.
local policy = require "lockkeeper.policy"
local sets = require "lockkeeper.definition_set"
local validation = require "lockkeeper.validation"

local described = validation.described

-- Kept, since a file that is loaded may replace what it finds.
local type, ipairs, pairs, getmetatable = type, ipairs, pairs, getmetatable

local policies = {}

---@class PolicyDefinition
---@field name string
---@field file string
---@field line? integer
---@field values table<string, any>
---@field layers Layer[]   what it extends, then itself

local function names_of(list)
  local names = {}
  for _, element in ipairs(list) do
    names[#names + 1] = element.name
  end
  return names
end

local function find_policy(set, name)
  local configuration = sets.configuration()
  return set.policies[name] or not set.configuration and configuration and configuration.policies[name]
    or nil
end

local function layers_by_name(set, name, layers, fault)
  local found = find_policy(set, name)
  if not found then
    local known = names_of(set.policies)
    local others = names_of(sets.configuration() and sets.configuration().policies or {})
    table.move(others, 1, #others, #known + 1, known)
    fault(("unknown policy %s%s%s"):format(described(name), validation.nearest(name, known),
      #known == 0 and ": none is defined above, nor in the configuration" or ""))
    return
  end
  table.move(found.layers, 1, #found.layers, #layers + 1, layers)
end

-- `extend`: a name or a list of names.
local function extended(set, value, layers, fault)
  if type(value) == "string" then
    value = { value }
  end
  local names = validation.list(value, "extend", fault, validation.text)
  for _, name in ipairs(names or {}) do
    layers_by_name(set, name, layers, fault)
  end
end

local function layers_of_table(set, tbl, where, name, fault)
  local layers = {}
  if tbl.extend ~= nil then
    extended(set, tbl.extend, layers, fault)
  end
  local values = policy.values(tbl, fault)
  layers[#layers + 1] = {
    values = values, origin = { file = where.file, line = where.line, policy = name },
  }
  return layers, values
end

--- Define a policy, for the jobs and policies below it in the file, or, in the configuration, for all.
---@param name string
---@param tbl Policy
function policies.define(name, tbl)
  local set, where, fault = sets.begin_definition("policy", name, tbl)
  if not fault then
    return
  end
  local earlier = set.policies[name]
  if earlier then
    return fault(("it is defined twice: here and at %s"):format(sets.place_text(earlier)))
  end
  local layers, values = layers_of_table(set, tbl, where, name, fault)
  local settings = policy.merge(layers)
  policy.check(settings, fault)
  sets.add(set.policies,
    { name = name, file = where.file, line = where.line, values = values, layers = layers })
end

local function add_layers(set, value, where, layers, fault)
  if type(value) == "string" then
    layers_by_name(set, value, layers, fault)
  elseif type(value) == "table" and getmetatable(value) == nil then
    local own = layers_of_table(set, value, where, nil, fault)
    table.move(own, 1, #own, #layers + 1, layers)
  else
    fault(("policy must be a name, a table or a list of them, not %s"):format(described(value)))
  end
end

--- The layers of a job's `policy`: a name, a table, or a list of both.
---@param set Set
---@param value any
---@param where Place
---@param fault Fault
---@return Layer[]
function policies.layers(set, value, where, fault)
  local layers = {}
  if value == nil then
    return layers
  elseif type(value) == "table" and #value > 0 then
    for _, element in ipairs(value) do
      add_layers(set, element, where, layers, fault)
    end
    for key in pairs(value) do
      if math.type(key) ~= "integer" then
        fault(("policy is a list with the key %s besides: put it into a table of the list"):format(
          described(key)))
      end
    end
  else
    add_layers(set, value, where, layers, fault)
  end
  return layers
end

return policies
