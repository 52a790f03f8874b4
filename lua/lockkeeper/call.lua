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

return call
