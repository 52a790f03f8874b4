--- A job's fence: a number that grows with each of its runs, in a table of its own, so that work which
--- outlived its lock can be told from that of a later run (runner.md 15).
local core = require "lockkeeper.core"

local fence = {}

-- May this role use the table? Where the schema is missing, or closed to it, there is no fence.
local LOOK_SQL = [[
SELECT c.oid IS NOT NULL AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
         AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
         AND pg_catalog.has_table_privilege(c.oid, 'INSERT')
         AND pg_catalog.has_table_privilege(c.oid, 'UPDATE') AS usable
  FROM pg_catalog.pg_namespace n
  LEFT JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid
                                 AND c.relname OPERATOR(pg_catalog.=) 'fence'
 WHERE n.nspname OPERATOR(pg_catalog.=) 'lockkeeper']]

local NEXT_SQL = [[
INSERT INTO lockkeeper.fence AS f (job, value) VALUES ($1, 1)
ON CONFLICT (job) DO UPDATE SET value = f.value OPERATOR(pg_catalog.+) 1::pg_catalog.int8
RETURNING value]]

-- The row stays locked until the transaction ends: a later run can't begin before.
local HOLD_SQL = [[SELECT value FROM lockkeeper.fence WHERE job OPERATOR(pg_catalog.=) $1 FOR SHARE]]

local SERIALIZATION_FAILURE = "40001"

--- May this session use the table?
---@param session Session
---@return boolean usable
---@return string? reason  why not
function fence.look(session)
  local usable = session:value(LOOK_SQL)
  if usable == nil then
    return false, "there is no schema lockkeeper in this database (lockkeeper init makes it)"
  elseif not usable then
    return false, "this role may not use the table lockkeeper.fence"
  end
  return true
end

--- The job's next number; committed at once, unless a transaction is open.
---@param session Session
---@param job string
---@return integer
function fence.next(session, job)
  return session:value(NEXT_SQL, job)
end

--- Raise lock_lost where a later run of the job has begun; else none can until the session's transaction,
--- which must be open, has ended.
---@param session Session
---@param job string
---@param number integer  this run's
function fence.hold(session, job, number)
  local ok, current = pcall(session.value, session, HOLD_SQL, job)
  if not ok and not (type(current) == "table" and current.sqlstate == SERIALIZATION_FAILURE) then
    error(current, 0)
  elseif not ok or current ~= number then
    core.fail("lock_lost", ("a later run of %s has begun: its fence is %s, this run's is %d"):format(job,
      ok and tostring(current) or "greater", number), true)
  end
end

return fence
