--- The session of a run that a process keeps for its next one: connecting, and planning what every run does,
--- takes longer than most runs. Nothing of the earlier run is left on it.
local core = require "lockkeeper.core"

local spare_session = {}

-- One is kept, and where it leads.
local kept, kept_name

local function close(session)
  local ok, err = pcall(session.close, session)
  if not ok then
    core.log("warning", "a session could not be closed: " .. tostring(err), {}, {})
  end
end

--- The one that was kept, where it leads to that database; it may have been lost since. One that leads
--- elsewhere is closed.
---@param name? string
---@return Session?
function spare_session.take(name)
  local session, leads_there = kept, kept_name == name
  kept = nil
  if session and leads_there and core.backend_pid(session) then
    return session
  elseif session then
    close(session)
  end
end

--- Keep a session, as if it were new, or close it where that can't be.
---@param session Session
---@param name? string
function spare_session.keep(session, name)
  local ok, renewed = false, false
  if not kept and session.keeps_state and core.is_clean(session) then
    ok, renewed = pcall(core.renew, session)
  end
  if ok and renewed then
    kept, kept_name = session, name
  else
    close(session)
  end
end

return spare_session
