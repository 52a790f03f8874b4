--- What to do in place of a statement that locks others out, or scans or rewrites a table meanwhile.
--
-- Source: PostgreSQL manual, ALTER TABLE ("Notes"), CREATE INDEX ("Building Indexes Concurrently"),
-- REINDEX, REFRESH MATERIALIZED VIEW.
local modes = require "lockkeeper.analyze.modes"
local statement = require "lockkeeper.analyze.statement"

local advice = {}

local find, stands = statement.find, statement.stands
local strength = modes.strength

-- From which number of changed rows on it is better done in portions.
local MANY_ROWS = 10000

local function is_strong(mode)
  return strength(mode) >= strength "SHARE"
end

-- The strongest lock on something that existed before.
local function strongest(entry)
  local best
  for _, lock in ipairs(entry.locks) do
    if lock.relation and lock.relation.existed and strength(lock.mode) > strength(best and best.mode) then
      best = lock
    end
  end
  return best
end

local function scanned(entry)
  return #entry.scans > 0
end

local function add_constraint(action, entry, say)
  local not_valid = stands(action, #action - 1, "NOT", "VALID")
  if find(action, "FOREIGN") then
    if not not_valid then
      say("add the foreign key with NOT VALID, which checks no row that is there, then VALIDATE CONSTRAINT "
        .. "in a transaction of its own: that blocks neither reads nor writes")
    end
  elseif find(action, "USING") and find(action, "INDEX") then
    return
  elseif find(action, "UNIQUE") or find(action, "PRIMARY") then
    say("CREATE UNIQUE INDEX CONCURRENTLY first, then ADD CONSTRAINT … USING INDEX, which takes a moment; "
      .. "for a primary key the columns have to be NOT NULL already")
  elseif find(action, "CHECK") and not not_valid and scanned(entry) then
    say("add the constraint with NOT VALID, which scans nothing, then VALIDATE CONSTRAINT in a transaction "
      .. "of its own, which blocks neither reads nor writes")
  elseif find(action, "EXCLUDE") then
    say("an exclusion constraint can't be built concurrently: its table is locked while its index is built")
  end
end

local function add_column(entry, say)
  if #entry.rewrites > 0 then
    say("a column whose default is volatile, generated or an identity makes the table be rewritten: add it "
      .. "without a default, set the default, then fill it in portions, each a transaction of its own")
  end
end

local function alter_column(action, entry, say)
  if find(action, "TYPE") then
    if #entry.rewrites > 0 then
      say("changing a type rewrites the table or its indexes: add a new column, fill it in portions while "
        .. "a trigger keeps it up to date, then swap the names")
    end
  elseif stands(action, #action - 2, "SET", "NOT", "NULL") and scanned(entry) then
    say("ADD CONSTRAINT … CHECK (column IS NOT NULL) NOT VALID, VALIDATE it in a transaction of its own, "
      .. "then SET NOT NULL, which trusts it and scans nothing; then drop it")
  end
end

local function alter_table(entry, say)
  for _, action in ipairs(statement.alter_actions(entry.words) or {}) do
    local first, second = action[1], action[2]
    if first == "ADD" and (second == "CONSTRAINT" or second == "CHECK" or second == "UNIQUE"
      or second == "PRIMARY" or second == "FOREIGN" or second == "EXCLUDE") then
      add_constraint(action, entry, say)
    elseif first == "ADD" then
      add_column(entry, say)
      if find(action, "REFERENCES") and scanned(entry) then
        say("add the column first, then the foreign key with NOT VALID, then VALIDATE CONSTRAINT in a "
          .. "transaction of its own")
      end
    elseif first == "ALTER" then
      alter_column(action, entry, say)
    elseif first == "VALIDATE" then
      for _, scan in ipairs(entry.scans) do
        if is_strong(scan.under) then
          say(("VALIDATE CONSTRAINT in a transaction of its own: here it scans %s while %s is held on it")
            :format(scan.relation.on, scan.under))
          break
        end
      end
    elseif first == "ATTACH" and scanned(entry) then
      say("before it, give the partition a CHECK constraint that says what its bounds do (NOT VALID, then "
        .. "VALIDATE): ATTACH PARTITION then scans nothing")
    elseif first == "DETACH" then
      say("DETACH PARTITION … CONCURRENTLY (PostgreSQL 14) lets reads and writes go on; it can't run in a "
        .. "transaction")
    elseif first == "SET" and (second == "TABLESPACE" or second == "LOGGED" or second == "UNLOGGED"
      or second == "ACCESS") and #entry.rewrites > 0 then
      say("this copies the whole table under the lock: do it while nobody needs the table")
    end
  end
end

local function create(entry, say)
  local words = entry.words
  local at = words[2] == "UNIQUE" and 3 or 2
  local lock = strongest(entry)
  if words[at] == "INDEX" and lock then
    if lock.relation.kind == "partitioned table" then
      say("CREATE INDEX ON ONLY the partitioned table, CREATE INDEX CONCURRENTLY on each partition, then "
        .. "ALTER INDEX … ATTACH PARTITION")
    else
      say("CREATE INDEX CONCURRENTLY lets writes go on; it can't run in a transaction")
    end
  elseif words[2] == "TABLE" and find(words, "PARTITION") and lock and lock.mode == "ACCESS EXCLUSIVE" then
    say("make the table without PARTITION OF, then ALTER TABLE … ATTACH PARTITION, which lets reads and "
      .. "writes go on")
  end
end

local ADVISERS = {
  ALTER = function(entry, say)
    if entry.words[2] == "TABLE" then
      alter_table(entry, say)
    end
  end,
  CREATE = create,
  DROP = function(entry, say)
    if entry.words[2] == "INDEX" then
      say("DROP INDEX CONCURRENTLY lets reads and writes go on; it can't run in a transaction")
    end
  end,
  REINDEX = function(_, say)
    say("REINDEX … CONCURRENTLY lets reads and writes go on; it can't run in a transaction")
  end,
  REFRESH = function(entry, say)
    if not find(entry.words, "CONCURRENTLY") then
      say("REFRESH MATERIALIZED VIEW CONCURRENTLY lets reads go on; it needs a unique index on the view")
    end
  end,
  CLUSTER = function(_, say)
    say("CLUSTER rewrites the table while nobody can read it: do it while nobody needs the table")
  end,
}

local function of_not_run(entry, say)
  if entry.words[1] == "VACUUM" and strength(entry.locks[1] and entry.locks[1].mode) == 8 then
    say("VACUUM FULL rewrites the table while nobody can read it: a plain VACUUM gives its room back to "
      .. "the table")
  elseif find(entry.words, "CONCURRENTLY") and not entry.control then
    say("run it by itself, outside a transaction; it waits for older transactions, and where it fails it "
      .. "leaves an invalid index behind, to be dropped")
  end
end

local function of_changes(entry, say)
  for _, change in ipairs(entry.changes) do
    if change.rows >= MANY_ROWS then
      say(("%d rows of %s are changed, and locked until the end: change them in portions, each a "
        .. "transaction of its own"):format(change.rows, change.relation.on))
    end
  end
end

-- One that waits for it keeps all that come after it waiting; once is enough to say so.
local function of_timeout(entry, say, said)
  local lock = strongest(entry)
  if said.timeout or entry.has_timeout or not lock or not is_strong(lock.mode) or lock.since_line then
    return
  end
  said.timeout = true
  say("SET lock_timeout = '2s' before it, and try again where it passes: while it waits for its lock, "
    .. "whoever comes later waits behind it")
end

--- Give each entry its `advice`, a list of texts.
---@param entries TraceEntry[]
function advice.add(entries)
  local said = {}
  for _, entry in ipairs(entries) do
    local list, seen = {}, {}
    local function say(text)
      if not seen[text] then
        seen[text], list[#list + 1] = true, text
      end
    end
    entry.advice = list
    if entry.state == "not_run" then
      of_not_run(entry, say)
    elseif entry.state == "ran" then
      local lock = strongest(entry)
      local adviser = ADVISERS[entry.words[1]]
      if adviser and lock and (is_strong(lock.mode) or scanned(entry)) then
        adviser(entry, say)
      end
      of_changes(entry, say)
      of_timeout(entry, say, said)
    end
  end
end

return advice
