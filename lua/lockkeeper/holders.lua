--- Who holds what somebody waits for. Each function returns rows { pid, user, application_name,
--- client_addr } in the order of their pids, without the session that asks; what a role may not see of
--- the others' sessions is nil.
local core = require "lockkeeper.core"

local holders = {}

local SHOWN_MAX = 3

-- Who holds the locks that the condition says of `l`.
local HOLDERS_SQL = [[
SELECT DISTINCT l.pid, a.usename AS "user", a.application_name, pg_catalog.host(a.client_addr) AS client_addr
  FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
 WHERE l.granted AND l.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
   AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d
         WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
   AND %s
 ORDER BY l.pid]]

local ADVISORY_SQL = HOLDERS_SQL:format([[l.locktype OPERATOR(pg_catalog.=) 'advisory'
   AND l.objsubid OPERATOR(pg_catalog.=) $3::pg_catalog.int2
   AND EXISTS (SELECT FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.int8[]),
                                      pg_catalog.unnest($2::pg_catalog.int8[])) AS k(classid, objid)
                WHERE k.classid OPERATOR(pg_catalog.=) l.classid::pg_catalog.int8
                  AND k.objid OPERATOR(pg_catalog.=) l.objid::pg_catalog.int8)]])

local RELATIONS_SQL = HOLDERS_SQL:format([[l.locktype OPERATOR(pg_catalog.=) 'relation'
   AND EXISTS (SELECT FROM pg_catalog.unnest($1::pg_catalog.text[]) AS n(name)
                WHERE l.relation OPERATOR(pg_catalog.=) pg_catalog.to_regclass(n.name))]])

--- Of any of these advisory locks, all of one kind.
---@param session Session
---@param keys (integer|integer[])[]  bigints, or pairs of int4
---@return table[]
function holders.advisory(session, keys)
  local classids, objids, objsubid = {}, {}, nil
  for i, key in ipairs(keys) do
    classids[i], objids[i], objsubid = core.key_parts(key)
  end
  return session:query(ADVISORY_SQL, core.array(classids), core.array(objids), objsubid)
end

--- Of a lock, of any mode, on any of these tables.
---@param session Session
---@param names string[]
---@return table[]
function holders.relations(session, names)
  return session:query(RELATIONS_SQL, core.array(names))
end

--- "pid 12 (shop, cron, 10.0.0.7), pid 13 and 2 more"
---@param rows table[]
---@return string
function holders.described(rows)
  local parts = {}
  for i = 1, math.min(#rows, SHOWN_MAX) do
    local row, words = rows[i], {}
    for _, key in ipairs { "user", "application_name", "client_addr" } do
      if row[key] and row[key] ~= "" then
        words[#words + 1] = row[key]
      end
    end
    parts[i] = ("pid %d%s"):format(row.pid, #words > 0 and (" (%s)"):format(table.concat(words, ", ")) or "")
  end
  local more = #rows - #parts
  return table.concat(parts, ", ") .. (more > 0 and (" and %d more"):format(more) or "")
end

return holders
