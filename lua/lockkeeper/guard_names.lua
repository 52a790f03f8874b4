--- The names of a run's advisory locks, as the table lockkeeper.lock_name has them, so that ls and audits
--- show what a number stands for.
local core = require "lockkeeper.core"

local guard_names = {}

-- Can the table hold it?
local function is_text(id)
  return type(id) == "string" and utf8.len(id) ~= nil and not id:find("\0", 1, true)
end

local function part_of(key, name)
  local classid, objid, objsubid
  if type(key) == "table" then
    classid, objid, objsubid = core.key_parts(key[1], key[2])
  else
    classid, objid, objsubid = core.key_parts(key)
  end
  return { classid, objid, objsubid, name }
end

--- Of the guards that were given a name, on one session; of a semaphore its slot's.
---@param plan PlannedGuard[]
---@param held { planned: PlannedGuard, guard: Guard }[]
---@param session Session
---@return table[]  { classid, objid, objsubid, name } each
function guard_names.of(plan, held, session)
  local names = {}
  for _, planned in ipairs(plan) do
    if planned.session == session and planned.key and is_text(planned.id) then
      names[#names + 1] = part_of(planned.key, planned.id)
    end
  end
  for _, entry in ipairs(held) do
    local planned, guard = entry.planned, entry.guard
    if planned.session == session and not planned.key and is_text(guard.id) then
      names[#names + 1] = part_of(guard.key, guard.id)
    end
  end
  return names
end

return guard_names
