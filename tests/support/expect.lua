--- What a call must raise. Each returns the error.

local assert = require "luassert"

local expect = {}

--- Anything at all.
function expect.raised(fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok, "nothing was raised")
  return err
end

--- An error of the module's own, of this kind.
---@param kind string
function expect.kind(kind, fn, ...)
  local err = expect.raised(fn, ...)
  assert.equal("table", type(err), tostring(err))
  assert.equal(kind, err.kind, tostring(err))
  return err
end

--- A usage error whose message has this text in it.
---@param text string  as it is, no pattern
function expect.usage(text, fn, ...)
  local err = expect.kind("usage", fn, ...)
  assert.matches(text, err.message, 1, true)
  return err
end

return expect
