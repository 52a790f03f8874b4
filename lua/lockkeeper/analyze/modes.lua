--- PostgreSQL's eight table lock modes: their order, and what each keeps others from, in plain words.
--
-- Source: PostgreSQL manual, "Explicit Locking", table 13.2.
local core = require "lockkeeper.core"

local modes = {}

-- Weakest first. `blocks`: kinds of work that wait while it is held; "reads" is what a plain SELECT does,
-- "row locks" SELECT FOR UPDATE and its like, "maintenance" VACUUM, ANALYZE and index builds.
local LIST = {
  { name = "ACCESS SHARE", stored = "AccessShareLock", blocks = { "DDL" },
    words = "DROP, TRUNCATE and most ALTER TABLE" },
  { name = "ROW SHARE", stored = "RowShareLock", blocks = { "DDL" },
    words = "DROP, TRUNCATE and most ALTER TABLE" },
  { name = "ROW EXCLUSIVE", stored = "RowExclusiveLock", blocks = { "DDL" },
    words = "CREATE INDEX and most other DDL" },
  { name = "SHARE UPDATE EXCLUSIVE", stored = "ShareUpdateExclusiveLock", blocks = { "maintenance", "DDL" },
    words = "VACUUM, ANALYZE and DDL; reads and writes go on" },
  { name = "SHARE", stored = "ShareLock", blocks = { "writes", "maintenance", "DDL" },
    words = "writes and DDL; reads go on" },
  { name = "SHARE ROW EXCLUSIVE", stored = "ShareRowExclusiveLock",
    blocks = { "writes", "maintenance", "DDL" }, words = "writes and DDL; reads go on" },
  { name = "EXCLUSIVE", stored = "ExclusiveLock", blocks = { "row locks", "writes", "maintenance", "DDL" },
    words = "writes, SELECT FOR UPDATE and DDL; plain reads go on" },
  { name = "ACCESS EXCLUSIVE", stored = "AccessExclusiveLock",
    blocks = { "reads", "row locks", "writes", "maintenance", "DDL" },
    words = "everything: reads, writes and DDL" },
}

local NAMES, STRENGTH, OF_STORED = {}, {}, {}
for i, mode in ipairs(LIST) do
  NAMES[i], STRENGTH[mode.name], OF_STORED[mode.stored] = mode.name, i, mode.name
end

--- The mode that pg_locks calls "AccessExclusiveLock"; others keep their name.
---@param stored string
---@return string
function modes.of_lock(stored)
  return OF_STORED[stored] or stored
end

--- 1 for ACCESS SHARE to 8 for ACCESS EXCLUSIVE; 0 where it is none of the eight.
---@param mode? string
---@return integer
function modes.strength(mode)
  return STRENGTH[mode] or 0
end

--- Kinds of work that wait while it is held: "reads", "row locks", "writes", "maintenance", "DDL".
---@param mode string
---@return string[]
function modes.blocks(mode)
  local known = LIST[STRENGTH[mode]]
  return known and known.blocks or {}
end

--- The same for people: "writes and DDL; reads go on".
---@param mode string
---@return string
function modes.in_words(mode)
  local known = LIST[STRENGTH[mode]]
  return known and known.words or "sessions that want the same"
end

--- A mode as people write it: in any case, its words joined by spaces, - or _. Nil and the nearest one
--- (or nil) where there is no such mode.
---@param text string
---@return string? mode
---@return string? nearest
function modes.parse(text)
  local name = text:upper():gsub("[%s_-]+", " ")
  if STRENGTH[name] then
    return name
  end
  return nil, core.nearest(name, NAMES)
end

return modes
