--- Words for what a run's guards lock and how, one a lock and mode, by which runs know which others have
--- guards that conflict with theirs (runner.md 18). Same lock, same mode, same word, on every host.
--
-- For advisory locks as pg_locks shows their keys; for tables by oid; for rows by the query that finds
-- them. Locks of another database than the tables' are told apart by the name that leads there.
local core = require "lockkeeper.core"

local guard_words = {}

-- Table modes, and those that each conflicts with. Source: PostgreSQL manual, "Table-Level Locks".
local MODES = {
  "ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE",
  "EXCLUSIVE", "ACCESS EXCLUSIVE",
}
local CONFLICTS = {
  ["ACCESS SHARE"] = { 8 }, ["ROW SHARE"] = { 7, 8 }, ["ROW EXCLUSIVE"] = { 5, 6, 7, 8 },
  ["SHARE UPDATE EXCLUSIVE"] = { 4, 5, 6, 7, 8 }, ["SHARE"] = { 3, 4, 6, 7, 8 },
  ["SHARE ROW EXCLUSIVE"] = { 3, 4, 5, 6, 7, 8 }, ["EXCLUSIVE"] = { 2, 3, 4, 5, 6, 7, 8 },
  ["ACCESS EXCLUSIVE"] = { 1, 2, 3, 4, 5, 6, 7, 8 },
}

-- Of a query that finds rows: long ones are told apart by their beginning and length.
local ROWS_MAX = 200

local function parts(key)
  if type(key) == "table" then
    return core.key_parts(key[1], key[2])
  end
  return core.key_parts(key)
end

local function add_advisory(words, conflicts, place, key, shared)
  local lock = ("%s%d:%d:%d:"):format(place, parts(key))
  words[#words + 1] = lock .. (shared and "S" or "X")
  conflicts[#conflicts + 1] = lock .. "X"
  if not shared then
    conflicts[#conflicts + 1] = lock .. "S"
  end
end

local function add_tables(words, conflicts, place, planned)
  local mode = (planned.mode or "ACCESS EXCLUSIVE"):upper()
  for _, oid in ipairs(planned.oids) do
    local lock = ("%stable:%d:"):format(place, oid)
    words[#words + 1] = lock .. mode
    for _, other in ipairs(CONFLICTS[mode] or CONFLICTS["ACCESS EXCLUSIVE"]) do
      conflicts[#conflicts + 1] = lock .. MODES[other]
    end
  end
end

local function add_rows(words, conflicts, place, planned)
  local text = table.concat(planned.place, "\n")
  local lock = ("%srows:%d:%s"):format(place, #text, text:sub(1, ROWS_MAX))
  words[#words + 1] = lock
  conflicts[#conflicts + 1] = lock
end

--- For what a run holds, and for what it will hold in its transaction.
---@param plan PlannedGuard[]
---@param held { planned: PlannedGuard, guard: Guard }[]
---@param place_of fun(session: Session): string  "" for that of the tables
---@return string[] words
---@return string[] conflicts
function guard_words.of(plan, held, place_of)
  local words, conflicts, key_of = {}, {}, {}
  for _, entry in ipairs(held) do
    key_of[entry.planned] = entry.guard.key
  end
  for _, planned in ipairs(plan) do
    local place = place_of(planned.session)
    local key = key_of[planned] or planned.key
    if planned.kind == "model" then
      add_tables(words, conflicts, place, planned)
    elseif planned.kind == "row_locks" then
      add_rows(words, conflicts, place, planned)
    elseif key then
      add_advisory(words, conflicts, place, key, planned.shared)
    end
  end
  return words, conflicts
end

return guard_words
