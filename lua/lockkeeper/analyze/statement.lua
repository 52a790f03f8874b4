--- What a statement is, by its words: whether it can be traced in a transaction, and the lock mode that
--- PostgreSQL's manual gives for it where it can't be measured.
--
-- A statement is measured wherever it can be. The manual's word is taken for those that can't run in a
-- transaction, and for a lock that the transaction has held since an earlier statement, whose taking again
-- pg_locks does not show.
-- Source: PostgreSQL manual, "Explicit Locking", ALTER TABLE and the other commands' pages.
local modes = require "lockkeeper.analyze.modes"

local statement = {}

---@class StatementLock
---@field mode string
---@field name string            as in the statement, folded, for to_regclass
---@field with_table? boolean    it is an index's name, and its table is locked in `table_mode`
---@field table_mode? string

---@class StatementReading
---@field control? "begin"|"commit"|"rollback"|"prepare"  it would begin or end the file's transaction
---@field not_run? string        why it is not run
---@field takes? StatementLock[] what it would take, by the manual; only of those that are not run
---@field may_end? boolean       it may turn out to need to be outside a transaction
---@field is_plain? boolean      a query or a change of rows: the same locks where its words are the same
---@field everywhere? string     the mode that it would take on one table after the other

local SUE, SRE, AEL = "SHARE UPDATE EXCLUSIVE", "SHARE ROW EXCLUSIVE", "ACCESS EXCLUSIVE"

local PLAIN = { SELECT = true, INSERT = true, UPDATE = true, DELETE = true, VALUES = true, TABLE = true,
  MERGE = true, WITH = true }

-- The position of a word from `from` on.
local function find(words, word, from)
  for i = from or 1, #words do
    if words[i] == word then
      return i
    end
  end
end

-- Do these words stand there?
local function stands(words, at, ...)
  for i = 1, select("#", ...) do
    if words[at + i - 1] ~= (select(i, ...)) then
      return false
    end
  end
  return true
end

-- The name at a position, of one or two parts, and the position after it; nil where there is none.
local function name_at(words, at)
  while words[at] == "IF" or words[at] == "NOT" or words[at] == "EXISTS" or words[at] == "ONLY" do
    at = at + 1
  end
  local parts = {}
  while words[at] and words[at]:find("^[%a_\x80-\xFF\"]") do
    parts[#parts + 1] = words[at]:sub(1, 1) == '"' and words[at] or words[at]:lower()
    at = at + 1
    if words[at] ~= "." then
      break
    end
    at = at + 1
  end
  if #parts == 1 or #parts == 2 then
    return table.concat(parts, "."), at
  end
end

-- The position after (…), if one begins there, and whether a word is inside and not turned off.
local function options_at(words, at, word)
  local has = false
  if words[at] == "(" then
    local close = find(words, ")", at) or #words
    local found = find(words, word, at)
    if found and found < close then
      local value = words[found + 1]
      has = value ~= "FALSE" and value ~= "OFF" and value ~= "0"
    end
    at = close + 1
  end
  return at, has
end

---------------------------------------------------------------------------------------------------
-- what can't run in a transaction

local function needs_none(what)
  return ("%s can't run in a transaction"):format(what)
end

local function create(words)
  local at = words[2] == "UNIQUE" and 3 or 2
  if stands(words, at, "INDEX", "CONCURRENTLY") then
    local on = find(words, "ON", at)
    local name = on and name_at(words, on + 1)
    return { not_run = needs_none("CREATE INDEX CONCURRENTLY"),
      takes = name and { { mode = SUE, name = name } } }
  elseif words[2] == "DATABASE" or words[2] == "TABLESPACE" then
    return { not_run = needs_none("CREATE " .. words[2]) }
  elseif words[2] == "SUBSCRIPTION" then
    return { may_end = true }
  end
end

local function drop(words)
  if stands(words, 2, "INDEX", "CONCURRENTLY") then
    local name = name_at(words, 4)
    return { not_run = needs_none("DROP INDEX CONCURRENTLY"),
      takes = name and { { mode = SUE, name = name, with_table = true, table_mode = SUE } } }
  elseif words[2] == "DATABASE" or words[2] == "TABLESPACE" then
    return { not_run = needs_none("DROP " .. words[2]) }
  elseif words[2] == "SUBSCRIPTION" then
    return { may_end = true }
  end
end

local function alter(words)
  if words[2] == "SYSTEM" then
    return { not_run = needs_none("ALTER SYSTEM") }
  elseif words[2] == "DATABASE" and find(words, "TABLESPACE", 3) then
    return { not_run = needs_none("ALTER DATABASE … SET TABLESPACE") }
  elseif words[2] == "SUBSCRIPTION" then
    return { may_end = true }
  end
  local detach = words[2] == "TABLE" and find(words, "DETACH", 3)
  if detach and words[#words] == "CONCURRENTLY" then
    local parent = name_at(words, 3)
    local partition = name_at(words, words[detach + 1] == "PARTITION" and detach + 2 or detach + 1)
    return { not_run = needs_none("DETACH PARTITION … CONCURRENTLY"), takes = parent and partition and {
      { mode = SUE, name = parent }, { mode = AEL, name = partition } } }
  end
end

local function vacuum(words)
  local at, full = 2, false
  if words[2] == "(" then
    at, full = options_at(words, 2, "FULL")
  end
  while words[at] == "FULL" or words[at] == "FREEZE" or words[at] == "VERBOSE" or words[at] == "ANALYZE" do
    full = full or words[at] == "FULL"
    at = at + 1
  end
  local name = name_at(words, at)
  local takes = {}
  while name do
    takes[#takes + 1] = { mode = full and AEL or SUE, name = name }
    at = find(words, ",", at)
    name = at and name_at(words, at + 1)
    at = at and at + 1
  end
  return { not_run = needs_none(full and "VACUUM FULL" or "VACUUM"), takes = takes,
    everywhere = #takes == 0 and (full and AEL or SUE) or nil }
end

local function reindex(words)
  local at, concurrently = options_at(words, 2, "CONCURRENTLY")
  local kind = words[at]
  at = at + 1
  if words[at] == "CONCURRENTLY" then
    concurrently, at = true, at + 1
  end
  local name = name_at(words, at)
  if kind == "SCHEMA" or kind == "DATABASE" or kind == "SYSTEM" then
    return { not_run = needs_none("REINDEX " .. kind), everywhere = concurrently and SUE or "SHARE" }
  elseif concurrently then
    return { not_run = needs_none("REINDEX CONCURRENTLY"), takes = name and { { mode = SUE, name = name,
      with_table = kind == "INDEX", table_mode = SUE } } }
  end
  return { may_end = true } -- of a partitioned table
end

local function cluster(words)
  local at = options_at(words, 2, "VERBOSE")
  if not name_at(words, words[at] == "VERBOSE" and at + 1 or at) then
    return { not_run = needs_none("CLUSTER of all tables"), everywhere = AEL }
  end
  return { may_end = true } -- of a partitioned table
end

-- What reaches out of the database is not undone by a rollback, and data for the client is not wanted.
local function copy(words)
  local at = 2
  if words[2] == "(" then -- a query
    local depth = 0
    repeat
      depth = depth + (words[at] == "(" and 1 or words[at] == ")" and -1 or 0)
      at = at + 1
    until depth == 0 or at > #words
  end
  for i = at, #words do
    if words[i] == "TO" then
      return { not_run = words[i + 1] == "STDOUT" and "COPY … TO STDOUT sends its rows to the client"
        or "COPY … TO writes outside the database, which no rollback undoes",
        takes = words[2] ~= "(" and name_at(words, 2)
          and { { mode = "ACCESS SHARE", name = name_at(words, 2) } } or nil }
    elseif words[i] == "FROM" then
      return words[i + 1] == "PROGRAM" and {
        not_run = "COPY … FROM PROGRAM runs a program, which no rollback undoes",
        takes = name_at(words, 2) and { { mode = "ROW EXCLUSIVE", name = name_at(words, 2) } } } or nil
    end
  end
end

local STANDS_FOR_IT = "the transaction of the trace stands for the file's own"

local function begin()
  return { control = "begin", not_run = STANDS_FOR_IT }
end

local function commit(words)
  if words[2] == "PREPARED" then
    return { not_run = needs_none(words[1] .. " PREPARED") }
  end
  return { control = "commit", not_run = "nothing is committed; here the file lets go of its locks" }
end

local function rollback(words)
  if words[2] == "PREPARED" then
    return { not_run = needs_none("ROLLBACK PREPARED") }
  elseif find(words, "TO", 2) then
    return nil
  end
  return { control = "rollback",
    not_run = "what the file did since its BEGIN is undone, and its locks are given back" }
end

local READERS = {
  CREATE = create, DROP = drop, ALTER = alter, VACUUM = vacuum, REINDEX = reindex, CLUSTER = cluster,
  COPY = copy, COMMIT = commit, END = commit, ROLLBACK = rollback, ABORT = rollback, BEGIN = begin,
  START = begin,
  DO = function() return { may_end = true } end,
  CALL = function() return { may_end = true } end,
  DISCARD = function(words)
    return words[2] == "ALL" and { not_run = needs_none("DISCARD ALL") } or nil
  end,
  PREPARE = function(words)
    return words[2] == "TRANSACTION"
      and { control = "prepare", not_run = "nothing is prepared; its locks would outlive the session" } or nil
  end,
  SET = function(words)
    return words[2] == "TRANSACTION" and { not_run = STANDS_FOR_IT } or nil
  end,
}

local NOTHING = {}

--- What it is.
---@param words string[]
---@return StatementReading
function statement.read(words)
  if PLAIN[words[1]] then
    return { is_plain = true }
  end
  local reader = READERS[words[1]]
  return reader and reader(words) or NOTHING
end

---------------------------------------------------------------------------------------------------
-- the manual's mode

-- The actions of ALTER TABLE, each a list of words, cut at commas outside parentheses.
local function actions(words, from)
  local list, action, depth = {}, {}, 0
  for i = from, #words do
    local word = words[i]
    depth = depth + (word == "(" and 1 or word == ")" and -1 or 0)
    if word == "," and depth == 0 then
      list[#list + 1], action = action, {}
    else
      action[#action + 1] = word
    end
  end
  list[#list + 1] = action
  return list
end

--- ALTER TABLE's actions and the name of its table; nil for other statements.
---@param words string[]
---@return string[][]? actions
---@return string? name
function statement.alter_actions(words)
  if words[1] ~= "ALTER" or words[2] ~= "TABLE" then
    return nil
  end
  local name, at = name_at(words, 3)
  if not name then
    return nil
  end
  return actions(words, words[at] == "*" and at + 1 or at), name
end

local function action_mode(action)
  local first, second = action[1], action[2]
  if first == "VALIDATE" or first == "ATTACH" or first == "CLUSTER"
    or (first == "SET" or first == "RESET") and second == "("
    or stands(action, 1, "SET", "WITHOUT", "CLUSTER") then
    return SUE
  elseif (first == "ENABLE" or first == "DISABLE") and find(action, "TRIGGER")
    or first == "ADD" and (find(action, "FOREIGN") and (second == "FOREIGN" or second == "CONSTRAINT")) then
    return SRE
  elseif first == "ALTER" and (find(action, "STATISTICS") or find(action, "SET") and (
    find(action, "(") == find(action, "SET") + 1)) then
    return SUE
  end
  return AEL
end

local function alter_table_mode(words)
  local strongest = SUE
  for _, action in ipairs(statement.alter_actions(words) or {}) do
    local mode = action_mode(action)
    if modes.strength(mode) > modes.strength(strongest) then
      strongest = mode
    end
  end
  return strongest
end

local function query_mode(words)
  for i = 1, #words - 1 do
    if words[i] == "FOR" and (words[i + 1] == "UPDATE" or words[i + 1] == "SHARE" or words[i + 1] == "NO"
      or words[i + 1] == "KEY") then
      return "ROW SHARE"
    elseif words[1] == "WITH" and (words[i] == "INSERT" or words[i] == "DELETE" or words[i] == "UPDATE") then
      return "ROW EXCLUSIVE"
    end
  end
  return "ACCESS SHARE"
end

local function fixed(mode)
  return function() return mode end
end

local MODES = {
  SELECT = query_mode, WITH = query_mode, TABLE = query_mode, EXPLAIN = query_mode,
  INSERT = fixed "ROW EXCLUSIVE", UPDATE = fixed "ROW EXCLUSIVE", DELETE = fixed "ROW EXCLUSIVE",
  MERGE = fixed "ROW EXCLUSIVE", COPY = fixed "ROW EXCLUSIVE",
  TRUNCATE = fixed(AEL), DROP = fixed(AEL), CLUSTER = fixed(AEL),
  ANALYZE = fixed(SUE), COMMENT = fixed(SUE), REINDEX = fixed "SHARE",
  REFRESH = function(words) return find(words, "CONCURRENTLY") and "EXCLUSIVE" or AEL end,
  LOCK = function(words)
    local at = find(words, "IN")
    local mode = at and table.concat(words, " ", at + 1):match("^(.-) MODE")
    return mode and modes.parse(mode) or AEL
  end,
  CREATE = function(words)
    if words[2] == "INDEX" or words[3] == "INDEX" then
      return "SHARE"
    elseif (find(words, "TRIGGER") or math.huge) <= 5 or find(words, "REFERENCES") then
      return SRE
    elseif words[2] == "STATISTICS" or find(words, "INHERITS") then
      return SUE
    elseif words[2] == "TABLE" and find(words, "PARTITION") or words[2] == "POLICY" or words[2] == "RULE"
      or words[2] == "OR" then
      return AEL
    end
    return "ACCESS SHARE"
  end,
  ALTER = function(words)
    if words[2] == "TABLE" then
      return alter_table_mode(words)
    end
    return words[2] == "INDEX" and SUE or AEL
  end,
}

--- The mode in which it locks a table that it names, by the manual; nil where that is not known.
---@param words string[]
---@return string?
function statement.mode(words)
  local mode = MODES[words[1]]
  return mode and mode(words)
end

statement.find, statement.stands, statement.name_at = find, stands, name_at

return statement
