--- Private PostgreSQL clusters for specs.
---
--- Roles: `postgres` (superuser), `lk_app` (may log in, no privileges), `lk_pw` (the same, but has
--- to give `password`, over the socket too; every other role is trusted).

local process = require "tests.support.process"
local sandbox = require "tests.support.sandbox"
local target = require "tests.support.target"

local M = {}

M.password = "correct-horse-7f3a"

-- Whatever a spec puts into its hba, the suite's own psql gets in.
local HBA_HEAD = [[
local all postgres trust
local replication postgres trust
]]

local HBA_DEFAULT = [[
local all lk_pw scram-sha-256
local all all trust
host all lk_pw 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
]]

local SETTINGS = {
  fsync = false,
  full_page_writes = false,
  listen_addresses = "",
  log_line_prefix = "%m [%p] %q%u@%d %a ",
  max_connections = 200,
  max_prepared_transactions = 20,
  shared_buffers = "16MB",
  -- Files of the cluster in place of /dev/shm: a killed server leaves nothing there.
  dynamic_shared_memory_type = "mmap",
}

-- A statement a line is what PostgreSQL's single-user mode takes.
local ROLES = ([[
create role lk_app login;
create role lk_pw login password '%s';
]]):format(M.password)

---@class Server : Target
---@field dir string      its folder: data/, log and the socket
local Server = setmetatable({}, target.Target)
Server.__index = Server

--- Run one of PostgreSQL's programs as the servers' user; raises if it fails.
local function pg(program, args, stdin)
  local code, out, err = process.run({ target.bindir() .. "/" .. program, table.unpack(args) },
    { as_server = true, cwd = sandbox.dir(), stdin = stdin })
  if code ~= 0 then
    error(("%s failed with code %d: %s%s"):format(program, code, out, err), 0)
  end
end

local template

--- The cluster that others are copies of: initdb takes several times as long as a copy.
local function template_data()
  if template == nil then
    local data = sandbox.mkdir("initdb", true) .. "/data"
    pg("initdb", { "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
      "--no-sync", "--no-instructions" })
    pg("postgres", { "--single", "-D", data, "postgres" }, ROLES)
    -- Made here, by the servers' user, and only overwritten later, by whoever runs the suite.
    local code, _, err = process.run({ "sh", "-c",
      [[echo "include 'spec.conf'" >>"$0/postgresql.conf" && : >"$0/spec.conf"]], data },
      { as_server = true, cwd = "/" })
    assert(code == 0, err)
    template = data
  end
  return template
end

local function setting_value(value)
  if type(value) == "boolean" then
    return value and "on" or "off"
  end
  return (tostring(value):gsub("'", "''"))
end

local function write_settings(self)
  local lines = {}
  for name, value in pairs(self.settings) do
    lines[#lines + 1] = ("%s = '%s'\n"):format(name, setting_value(value))
  end
  process.write_file(self.dir .. "/data/spec.conf", table.concat(lines))
end

--- A TCP port of 127.0.0.1 that nobody listens on just now.
---@return integer
function M.free_port()
  local taken = {}
  for _, path in ipairs({ "/proc/net/tcp", "/proc/net/tcp6" }) do
    for port in (process.read_file(path) or ""):gmatch(":(%x%x%x%x) %x+:%x%x%x%x 0A ") do
      taken[tonumber(port, 16)] = true
    end
  end
  local port
  repeat
    port = math.random(20000, 29999)
  until not taken[port]
  return port
end

--- The first start chooses the port, and chooses again when another process was faster.
local function start_on_free_port(self)
  self.settings.listen_addresses = "127.0.0.1"
  for attempt = 1, 20 do
    self.port = M.free_port()
    self.settings.port = self.port
    write_settings(self)
    local ok, err = pcall(self.start, self)
    if ok then
      return
    end
    if attempt == 20 or not err:find("Address already in use", 1, true) then
      error(err, 0)
    end
    os.remove(self.dir .. "/log")
  end
end

--- Start a cluster.
---@param opts? { settings?: table<string, any>, hba?: string, tcp?: boolean, standby_of?: Server }
---  hba: pg_hba.conf after the lines that let `postgres` in over the socket; tcp: listen on
---  127.0.0.1 too, on a free port, which is then also the socket's
---@return Server
function M.start(opts)
  opts = opts or {}
  target.check_names(opts, { settings = true, hba = true, tcp = true, standby_of = true })
  local dir = sandbox.mkdir("pg", true)
  local self = setmetatable({ dir = dir, host = dir, port = 5432, settings = {} }, Server)
  if opts.standby_of then
    pg("pg_basebackup", { "-D", dir .. "/data", "-h", opts.standby_of.host, "-p",
      tostring(opts.standby_of.port), "-U", "postgres", "-R", "-X", "stream", "-c", "fast",
      "--no-sync" })
  else
    sandbox.capture(("cp -a %s %s/data"):format(template_data(), dir))
  end
  process.write_file(dir .. "/data/pg_hba.conf", HBA_HEAD .. (opts.hba or HBA_DEFAULT))
  for _, settings in ipairs({ SETTINGS, opts.settings or {}, { unix_socket_directories = dir } }) do
    for name, value in pairs(settings) do
      self.settings[name] = value
    end
  end
  if opts.tcp then
    start_on_free_port(self)
  else
    self.settings.port = self.port
    write_settings(self)
    self:start()
  end
  sandbox.track("a PostgreSQL in " .. dir, self)
  return self
end

--- Start it again, after stop or kill.
function Server:start()
  local ok, err = pcall(pg, "pg_ctl", { "start", "-D", self.dir .. "/data", "-l", self.dir .. "/log",
    "-w", "-t", "60", "-s" })
  if not ok then
    error(err .. "\n" .. self:log(), 0)
  end
end

--- Stop it; one that does not run is left alone.
---@param mode? "fast"|"smart"|"immediate"  default: fast
function Server:stop(mode)
  if self:is_running() then
    pg("pg_ctl", { "stop", "-D", self.dir .. "/data", "-m", mode or "fast", "-w", "-t", "60", "-s" })
  end
end

---@param mode? "fast"|"smart"|"immediate"
function Server:restart(mode)
  self:stop(mode)
  self:start()
end

--- SIGKILL to the postmaster and all that it has forked, as if the machine had lost its power.
function Server:kill()
  local pid = assert(self:pid(), "the server does not run")
  local pids = process.children(pid)
  table.insert(pids, 1, pid)
  -- postmaster.pid has the key and the id of its one System V segment, which only an orderly end
  -- removes.
  local segment = process.read_file(self.dir .. "/data/postmaster.pid"):match("\n *%d+ +(%d+)%s")
  process.signal("KILL", table.unpack(pids))
  process.wait_gone(pids)
  if segment then
    os.execute(("ipcrm -m %s 2>/dev/null"):format(segment))
  end
  -- A start that finds these asks whether their pid exists, and a zombie that init has not collected
  -- yet does.
  os.remove(self.dir .. "/data/postmaster.pid")
  os.remove(("%s/.s.PGSQL.%d.lock"):format(self.host, self.port))
end

--- The postmaster's pid, nil when it does not run.
---@return integer?
function Server:pid()
  return process.pid_in(self.dir .. "/data/postmaster.pid")
end

---@return boolean
function Server:is_running()
  return self:pid() ~= nil
end

--- What the server has logged.
---@return string
function Server:log()
  return process.read_file(self.dir .. "/log") or ""
end

return M
