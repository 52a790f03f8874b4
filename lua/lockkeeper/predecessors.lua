--- Runs that held a guard before this one: the server frees a lock some milliseconds before its holder
--- knows, so that who has got it waits until they have ended (runner.md 18).
local core = require "lockkeeper.core"

local predecessors = {}

-- Between two looks whether they have.
local EVERY = 0.1

local NO_TABLE, NO_RIGHT = "42P01", "42501"

--- Say once for whom it waits, and let some time pass.
---@param step table       guarded: when the guards were had, by the database's clock; set here
---@param other integer    one of those runs
---@param guarded number
function predecessors.wait(step, other, guarded)
  if not step.guarded then
    core.log("info", "waiting for a run that held one of the guards to have ended", { "other" },
      { tostring(other) })
  end
  step.guarded = guarded
  core.sleep(EVERY)
end

--- For a run by hand: it has no row, by which others could wait for it, but waits for those that have one.
--- Not where the table is closed to this role.
---@param session Session
---@param conflicts string[]  words of lockkeeper.guard_words
function predecessors.await(session, conflicts)
  local step = { conflicts = conflicts }
  while true do
    local ok, other, guarded = pcall(core.store_others, session, step)
    if not ok and other.sqlstate ~= NO_TABLE and other.sqlstate ~= NO_RIGHT then
      error(other, 0)
    elseif not ok or not other then
      return
    end
    predecessors.wait(step, other, guarded)
  end
end

return predecessors
