--- The keys that an id may stand for, one a scheme.
local ids = require "lockkeeper.cli.ids"
local lock = require "lockkeeper"
local safe = require "lockkeeper.report.safe"

local keys = {}

local function describe(id, scheme, prefix)
  local key, second = lock.key(id, { scheme = scheme, prefix = prefix })
  local classid, objid, objsubid = lock.key_parts(second and { key, second } or key)
  return {
    scheme = scheme or "",
    key = second and { key, second } or key,
    classid = classid, objid = objid, objsubid = objsubid,
  }
end

--- One row a scheme: all of them for a name without --scheme. A row's key is an integer, or a list of two
--- int4 keys. `connected`: may the server be asked?
function keys.of(word, values, connected)
  local id = ids.parse(word, values.scheme)
  if type(id) ~= "string" or values.scheme then
    return { describe(id, values.scheme, values.prefix) }
  end
  local rows = {}
  for _, scheme in ipairs(ids.SCHEMES) do
    if scheme ~= "hashtext" or connected then
      rows[#rows + 1] = describe(id, scheme, values.prefix)
    end
  end
  return rows
end

--- "database shop on localhost:5432 (PostgreSQL 15.18)": a key means something in one database only.
---@return string shown  harmless in a terminal, whatever the database is called
---@return string database
function keys.place()
  local row = lock.db:one([[
SELECT pg_catalog.current_database() AS database, pg_catalog.current_setting('server_version') AS version,
       pg_catalog.host(pg_catalog.inet_server_addr()) AS host, pg_catalog.inet_server_port() AS port,
       (SELECT s.setting FROM pg_catalog.pg_settings s
         WHERE s.name OPERATOR(pg_catalog.=) 'unix_socket_directories') AS socket]])
  local at = row.host and ("%s:%d"):format(row.host, row.port)
    or row.socket and row.socket:gsub('"', "") or "a Unix socket" -- hidden without pg_read_all_settings
  local version = row.version:match("^%S+")
  return safe.line(("database %s on %s (PostgreSQL %s)"):format(row.database, at, version)), row.database
end

keys.FORMAT = { "--format", value = "FORMAT", key = "format", kind = "choice", choices = { "table", "json" },
  help = "table (default) or json" }

return keys
