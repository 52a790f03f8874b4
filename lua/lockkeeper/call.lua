--- How the API's functions read their arguments: (…, options | nil, fn, ...), the options left out or not.
local core = require "lockkeeper.core"

local type = type

local call = {}

--- Shifts (options, fn, ...) where the options were left out: fn may stand in their place.
function call.shift(options, fn, ...)
  if type(options) == "function" then
    if fn == nil and select("#", ...) == 0 then
      return nil, options -- not a nil more than what the caller gave
    end
    return nil, options, fn, ...
  end
  return options, fn, ...
end

--- A usage error where the last argument of the function `name` is no function.
---@param name string
---@param fn any
function call.check_function(name, fn)
  if type(fn) ~= "function" then
    core.usage(("%s: the last argument must be a function, not a %s"):format(name, type(fn)))
  end
end

--- One of the options, whatever was given in their place: that they are a table is checked later.
---@param options any
---@param name string
function call.option(options, name)
  if type(options) == "table" then
    return options[name]
  end
end

--- A usage error where the options are no table, or have a name that is not among `known`.
---@param name string
---@param options any
---@param known string[]
function call.check_options(name, options, known)
  if options == nil then
    return
  elseif type(options) ~= "table" then
    core.usage(("%s: the options must be a table, not a %s"):format(name, type(options)))
  end
  for key in pairs(options) do
    local is_known = false
    for _, known_name in ipairs(known) do
      is_known = is_known or key == known_name
    end
    if not is_known then
      local nearest = type(key) == "string" and core.nearest(key, known)
      core.usage(("%s: unknown option %s%s"):format(name, type(key) == "string" and ("%q"):format(key)
        or tostring(key), nearest and ('; did you mean "%s"?'):format(nearest) or ""))
    end
  end
end

--- A usage error where an option is given and is not an integer from `from` on.
---@param name string
---@param options table
---@param option string
---@param from integer
---@return integer?
function call.integer(name, options, option, from)
  local value = options[option]
  if value ~= nil and (math.type(value) ~= "integer" or value < from) then
    core.usage(("%s: %s must be an integer from %d on, not %s"):format(name, option, from, tostring(value)))
  end
  return value
end

--- Call fn(held, ...) in a transaction block of its own inside the one that is open: an error in it is
--- rolled back before the caller gives back what is held.
---@param session Session
---@param held any
---@param fn fun(held: any, ...): ...
function call.in_block(session, held, fn, ...)
  local tx <close> = session:begin()
  local results = table.pack(fn(held, ...))
  tx:commit()
  return table.unpack(results, 1, results.n)
end

return call
