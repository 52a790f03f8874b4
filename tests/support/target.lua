--- What a spec connects to, a server or a PgBouncer: its connection strings, and psql.

local process = require "tests.support.process"
local sandbox = require "tests.support.sandbox"

local M = {}

---@class Target
---@field host string   the folder of its socket
---@field port integer
local Target = {}
Target.__index = Target
M.Target = Target

local bindir

--- The newest server programs of the machine, or those in $PG_BINDIR.
---@return string
function M.bindir()
  if bindir == nil then
    bindir = os.getenv("PG_BINDIR") or sandbox.capture(
      "ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null | sort -V | tail -n 1"):match("^(.*)/")
      or sandbox.capture("pg_config --bindir")
  end
  return bindir
end

local function check_names(values, allowed)
  for name in pairs(values) do
    if not allowed[name] then
      error("unknown option: " .. tostring(name), 3)
    end
  end
end
M.check_names = check_names

--- name-value pairs in the order of their names: libpq's parameters, with defaults.
local function parameters(self, opts)
  local values = { host = self.host, port = self.port, user = "postgres", dbname = "postgres" }
  for name, value in pairs(opts or {}) do
    values[name] = value
  end
  local list = {}
  for name, value in pairs(values) do
    list[#list + 1] = { name, tostring(value) }
  end
  table.sort(list, function(a, b) return a[1] < b[1] end)
  return list
end

--- A connection string of keywords, over the socket unless `host` says otherwise.
---@param opts? table<string, any>  libpq parameters; default: user and dbname "postgres"
---@return string
function Target:conninfo(opts)
  local parts = {}
  for i, pair in ipairs(parameters(self, opts)) do
    parts[i] = ("%s='%s'"):format(pair[1], (pair[2]:gsub("[\\']", "\\%0")))
  end
  return table.concat(parts, " ")
end

--- The same as a URI, with everything as a parameter, so that a socket's folder fits.
---@param opts? table<string, any>
---@return string
function Target:uri(opts)
  local parts = {}
  for i, pair in ipairs(parameters(self, opts)) do
    parts[i] = pair[1] .. "=" .. pair[2]:gsub("[^%w%-._~]", function(c)
      return ("%%%02X"):format(c:byte())
    end)
  end
  return "postgresql:///?" .. table.concat(parts, "&")
end

--- Run SQL in a psql of its own; raises what psql wrote when it fails.
---@param sql string
---@param opts? table<string, any>  libpq parameters
---@return string output  one row a line, fields separated by |, no last newline
function Target:psql(sql, opts)
  local code, out, err = process.run({ "timeout", "60", M.bindir() .. "/psql", "-XAtqw", "-v",
    "ON_ERROR_STOP=1", "-d", self:conninfo(opts), "-f", "-" }, { stdin = sql })
  if code ~= 0 then
    error(("psql: code %d: %s"):format(code, err), 2)
  end
  return (out:gsub("\n$", ""))
end

return M
