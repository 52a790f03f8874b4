--- A PgBouncer in front of a server, for the rules about poolers.

local process = require "tests.support.process"
local sandbox = require "tests.support.sandbox"
local server = require "tests.support.server"
local target = require "tests.support.target"

local M = {}

---@class PgBouncer : Target
---@field dir string
local PgBouncer = setmetatable({}, target.Target)
PgBouncer.__index = PgBouncer

local function write_files(self, backend, settings)
  local lines = {
    "[databases]",
    ("* = host=%s port=%d"):format(backend.host, backend.port),
    "[pgbouncer]",
  }
  for name, value in pairs(settings) do
    lines[#lines + 1] = ("%s = %s"):format(name, value)
  end
  process.write_file(self.dir .. "/pgbouncer.ini", table.concat(lines, "\n") .. "\n")
  process.write_file(self.dir .. "/users",
    ('"postgres" ""\n"lk_app" ""\n"lk_pw" "%s"\n'):format(server.password))
  sandbox.capture(("chmod a+r %s/pgbouncer.ini %s/users"):format(self.dir, self.dir))
end

local function wait_ready(self)
  local deadline = sandbox.now() + 10
  while not pcall(self.show, self, "version") do
    if sandbox.now() > deadline then
      error("pgbouncer does not answer:\n" .. self:log(), 0)
    end
    sandbox.sleep(0.01)
  end
end

--- Start one. It trusts every client. The pool is small, so that what one client leaves on a server
--- connection is what the next one meets.
---@param opts { server: Server, pool_mode?: string, pool_size?: integer, tcp?: boolean, settings?: table }
---  pool_mode: "transaction" (default), "session" or "statement"; pool_size: default 1; tcp: listen
---  on 127.0.0.1 too, on a free port; settings: others of its section [pgbouncer]
---@return PgBouncer
function M.start(opts)
  target.check_names(opts,
    { server = true, pool_mode = true, pool_size = true, tcp = true, settings = true })
  local dir = sandbox.mkdir("bouncer", true)
  local self = setmetatable({ dir = dir, host = dir, port = opts.tcp and server.free_port() or 6432 },
    PgBouncer)
  local settings = {
    listen_addr = opts.tcp and "127.0.0.1" or "",
    listen_port = self.port,
    unix_socket_dir = dir,
    auth_type = "trust",
    auth_file = dir .. "/users",
    admin_users = "postgres",
    pool_mode = opts.pool_mode or "transaction",
    default_pool_size = opts.pool_size or 1,
    pidfile = dir .. "/pgbouncer.pid",
    logfile = dir .. "/log",
  }
  for name, value in pairs(opts.settings or {}) do
    settings[name] = value
  end
  write_files(self, opts.server, settings)
  local code, out, err = process.run(
    { "env", "PATH=/usr/sbin:" .. os.getenv("PATH"), "pgbouncer", "-q", "-d", dir .. "/pgbouncer.ini" },
    { as_server = true, cwd = dir })
  if code ~= 0 then
    error(("pgbouncer failed with code %d: %s%s%s"):format(code, out, err, self:log()), 2)
  end
  wait_ready(self)
  sandbox.track("a PgBouncer in " .. dir, self)
  return self
end

--- The pid, nil when it does not run.
---@return integer?
function PgBouncer:pid()
  return process.pid_in(self.dir .. "/pgbouncer.pid")
end

---@return boolean
function PgBouncer:is_running()
  return self:pid() ~= nil
end

--- End it at once, with its connections; one that does not run is left alone.
function PgBouncer:stop()
  local pid = self:pid()
  if pid then
    process.signal("TERM", pid)
    process.wait_gone({ pid })
  end
end

---@return string
function PgBouncer:log()
  return process.read_file(self.dir .. "/log") or ""
end

--- What its console answers to SHOW: rows as tables by column name.
---@param what string  "servers", "pools", …
---@return table<string, string>[]
function PgBouncer:show(what)
  local rows, names = {}, nil
  local out = self:psql("\\t off\n\\pset footer off\nshow " .. what .. ";", { dbname = "pgbouncer" })
  for line in out:gmatch("[^\n]+") do
    local fields = {}
    for field in (line .. "|"):gmatch("([^|]*)|") do
      fields[#fields + 1] = field
    end
    if names == nil then
      names = fields
    else
      local row = {}
      for i, name in ipairs(names) do
        row[name] = fields[i]
      end
      rows[#rows + 1] = row
    end
  end
  return rows
end

--- The backends that it keeps open at its server.
---@return integer[]
function PgBouncer:backend_pids()
  local pids = {}
  for i, row in ipairs(self:show("servers")) do
    pids[i] = math.tointeger(row.remote_pid)
  end
  return pids
end

return M
