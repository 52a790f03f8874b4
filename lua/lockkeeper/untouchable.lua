--- Sessions that are never cancelled or terminated by a program (locks.md 16): those under prioritize and
--- those that look for them, walsenders, autovacuum that prevents wraparound, and whomever the configuration
--- protects.
local core = require "lockkeeper.core"
local filter = require "lockkeeper.filter"

local untouchable = {}

-- First half of the advisory lock by which others know who is under prioritize; the second half is the
-- protected session's pid. Shared, since blocks nest. It is the CRC-32 of "lockkeeper: prioritize".
untouchable.MARKER = 275418866

-- Protected sessions and those that look for them. The marker may be of another database.
local MARKED_SQL = [[
SELECT l.objid::pg_catalog.int8 AS protected, l.pid AS side
  FROM pg_catalog.pg_locks l
 WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' AND l.granted AND l.objsubid OPERATOR(pg_catalog.=) 2
   AND l.classid::pg_catalog.int8 OPERATOR(pg_catalog.=) $1::pg_catalog.int8]]

-- Whom the configuration protects.
local protected = {}

--- A filter of sessions, or a list of filters of which any will do. A mistake in it is a usage error.
---@param spec table|table[]|fun(session: Activity): any
---@param what string  begins messages
---@return Filter[]
function untouchable.filters(spec, what)
  local list = {}
  if type(spec) ~= "table" or #spec == 0 then
    list[1] = filter.compile(spec, { name = "sessions", what = what })
    return list
  end
  for i, element in ipairs(spec) do
    list[i] = filter.compile(element, { name = "sessions", what = ("%s: element %d"):format(what, i) })
  end
  for key in pairs(spec) do
    if list[key] == nil then
      core.usage(("%s must be a filter or a list of filters, not a list with the key %s"):format(what,
        tostring(key)))
    end
  end
  return list
end

--- Sessions that nothing here ever touches, from now on.
---@param spec table|table[]|fun(session: Activity): any
function untouchable.protect(spec)
  if spec == nil or type(spec) == "table" and next(spec) == nil then
    core.usage("protect: a filter of sessions was expected; an empty one would be all of them")
  end
  local new = untouchable.filters(spec, "protect")
  table.move(new, 1, #new, #protected + 1, protected)
end

--- Is a session protected by the configuration?
---@param activity Activity
---@return boolean
function untouchable.is_protected(activity)
  for _, wanted in ipairs(protected) do
    if wanted:matches(activity) then
      return true
    end
  end
  return false
end

--- The sessions under prioritize, and those that look for them: what to say of them, by pid.
---@param session Session
---@return table<integer, string>
function untouchable.marked(session)
  local marked = {}
  for _, row in ipairs(session:query(MARKED_SQL, untouchable.MARKER)) do
    marked[row.protected] = "it is under prioritize"
    marked[row.side] = "it looks for blockers of a session under prioritize"
  end
  return marked
end

--- Why a session is never touched, whoever asks, or nil.
---@param activity Activity
---@return string?
function untouchable.reason(activity)
  if activity.backend_type == "walsender" then
    return "it is a walsender"
  elseif activity.backend_type == "autovacuum worker"
    and (activity.query or ""):find("(to prevent wraparound)", 1, true) then
    return "it is an autovacuum that prevents transaction id wraparound"
  elseif untouchable.is_protected(activity) then
    return "the configuration protects it"
  end
end

return untouchable
