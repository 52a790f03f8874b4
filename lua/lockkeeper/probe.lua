--- What a primitive says of its arguments, without a server: it is called while sessions are forbidden,
--- so that it ends where it would begin.
local core = require "lockkeeper.core"

local type, pcall, error = type, pcall, error

local FORBIDDEN = "the arguments are right; no session may be used now"

---@param fn function   a primitive that checks its arguments before it uses a session
---@return string? fault  what is wrong with them
return function(fn, ...)
  local earlier = core.forbid(FORBIDDEN)
  local ok, err = pcall(fn, ...)
  core.forbid(earlier)
  if ok or (type(err) == "table" and err.message == FORBIDDEN) then
    return nil
  elseif type(err) == "table" and err.kind == "usage" then
    return err.message
  end
  error(err, 0)
end
