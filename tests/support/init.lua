--- What specs use: `local t = require "tests.support"`.
---
--- Everything that a test opens it closes: after each test, and after each spec file for what its
--- `setup` opened, helper.lua fails it by name for what it has left.

local process = require "tests.support.process"
local sandbox = require "tests.support.sandbox"
local server = require "tests.support.server"
local pgbouncer = require "tests.support.pgbouncer"
local observer = require "tests.support.observer"
local leaks = require "tests.support.leaks"

---@class Support
---@field server Server  the server that all specs share, started when first used
local t = {}

local shared, watching
local sessions = {}

local function shared_server()
  if shared == nil then
    shared = server.start()
    sandbox.untrack(shared)
  end
  return shared
end

setmetatable(t, {
  __index = function(_, name)
    return name == "server" and shared_server() or nil
  end,
})

--- The password of the role lk_pw.
t.password = server.password

--- A server of the test's own; the test stops it.
t.start_server = server.start

--- A PgBouncer of the test's own, in front of the shared server if no other is named.
---@param opts? table  see pgbouncer.start
---@return PgBouncer
function t.start_pgbouncer(opts)
  local all = { server = (opts or {}).server or shared_server() }
  for name, value in pairs(opts or {}) do
    all[name] = value
  end
  return pgbouncer.start(all)
end

--- A connection string to the shared server.
---@param opts? table<string, any>  libpq parameters; default: user and dbname "postgres"
---@return string
function t.conninfo(opts)
  return shared_server():conninfo(opts)
end

-- These options of t.connect are libpq's; others are lock.connect's.
local LIBPQ = { user = true, dbname = true, host = true, port = true, password = true,
  application_name = true, options = true }

--- A session of the module under test to the shared server.
---@param opts? table<string, any>  libpq parameters, or options of lock.connect
---@return table session
function t.connect(opts)
  local parameters, rest = {}, {}
  for name, value in pairs(opts or {}) do
    if LIBPQ[name] then
      parameters[name] = value
    else
      rest[name] = value
    end
  end
  rest.conninfo = rest.conninfo or t.conninfo(parameters)
  local session, err = require("lockkeeper").connect(rest)
  -- Kept, so that garbage collection does not close what the test forgot.
  sessions[#sessions + 1] = session
  return session, err
end

--- Run SQL in a psql of its own on the shared server.
---@param sql string
---@param opts? table<string, any>  libpq parameters
---@return string  one row a line, fields separated by |
function t.psql(sql, opts)
  return shared_server():psql(sql, opts)
end

--- Run SQL in the observer's session, a superuser's that stays open: cheap enough to poll with.
---@param sql string
---@return string  one row a line, fields separated by |
function t.observe(sql)
  if watching == nil then
    watching = observer.open(shared_server())
  end
  return watching:query(sql)
end

--- Poll every 5 ms until fn returns something true, and return that; raises if it never comes.
---@param fn function
---@param seconds? number|string  default 10; may be left out
---@param what? string            for the message
function t.wait_until(fn, seconds, what)
  if type(seconds) == "string" then
    seconds, what = nil, seconds
  end
  local deadline = sandbox.now() + (seconds or 10)
  while true do
    local value = fn()
    if value then
      return value
    end
    if sandbox.now() > deadline then
      error(("waited %g s for what never came: %s"):format(seconds or 10, what or "(unnamed)"), 2)
    end
    sandbox.sleep(0.005)
  end
end

--- A psql that takes an advisory lock, does no more until another session waits for one, and ends.
---@param key integer  a bigint
---@return Process
function t.holder_until_awaited(key)
  local child = t.spawn({ require("tests.support.target").bindir() .. "/psql", "-Xqd", t.conninfo(),
    "-c", "select pg_advisory_lock(" .. key .. ")",
    "-c", [[do $$ begin
      while not exists (select from pg_locks where locktype = 'advisory' and not granted) loop
        perform pg_sleep(0.005);
      end loop;
    end $$]] })
  t.wait_until(function() return #t.holders_of(key) == 1 end, "the holder")
  return child
end

--- Whether a backend waits for a lock of any kind.
---@param pid integer
---@return boolean
function t.is_waiting(pid)
  return t.observe(("select 1 from pg_locks where pid = %d and not granted limit 1"):format(pid)) == "1"
end

--- The backends that hold an advisory lock, shared or not, by what pg_locks shows of its key.
---@param classid integer
---@param objid integer
---@param objsubid integer  1: one bigint, 2: two int4
---@return integer[] pids in order
function t.holders(classid, objid, objsubid)
  local pids = {}
  local rows = t.observe(([[
    select pid from pg_locks
     where locktype = 'advisory' and granted and classid = %d and objid = %d and objsubid = %d
     order by pid]]):format(classid, objid, objsubid))
  for pid in rows:gmatch("%d+") do
    pids[#pids + 1] = math.tointeger(pid)
  end
  return pids
end

--- The backends that hold a key, shared or not.
---@param key integer|integer[]  a bigint, or two int4 keys
---@return integer[]
function t.holders_of(key)
  return t.holders(require("lockkeeper").key_parts(key))
end

-- The arguments of a call, its options split off: words and, as the last one, a table.
local function split(...)
  local argv = { ... }
  local opts = {}
  if type(argv[#argv]) == "table" then
    opts = table.remove(argv)
  end
  return argv, opts
end

--- Start a command in the background: t.spawn { "sleep", "5", env = {}, stdin = "…", cwd = "…" }.
--- A value `false` in env takes a variable away.
---@param command table
---@return Child
function t.spawn(command)
  return process.spawn(table.move(command, 1, #command, 1, {}),
    { env = command.env, stdin = command.stdin, cwd = command.cwd })
end

--- The lockkeeper under test, by $LOCKKEEPER_BIN.
---@return string
function t.binary()
  local path = os.getenv("LOCKKEEPER_BIN") or "build/lockkeeper"
  return path:sub(1, 1) == "/" and path or sandbox.start_dir .. "/" .. path
end

--- Start `lockkeeper ARG…` in the background, with the shared server as its database and without
--- the configuration and state of the user who runs the suite.
---@param ... string|table  arguments, then options of t.spawn
---@return Child
function t.lockkeeper(...)
  local argv, opts = split(...)
  local env = {
    DATABASE_URL = t.conninfo(),
    XDG_CONFIG_HOME = sandbox.dir() .. "/config",
    XDG_STATE_HOME = sandbox.dir() .. "/state",
    PGPASSFILE = "/nonexistent/pgpass",
  }
  for name, value in pairs(opts.env or {}) do
    env[name] = value
  end
  return process.spawn({ t.binary(), table.unpack(argv) },
    { env = env, stdin = opts.stdin, cwd = opts.cwd })
end

--- Run `lockkeeper ARG…` to its end.
---@param ... string|table  arguments, then options of t.spawn and `timeout` in seconds (default 30)
---@return integer code  128 + N when signal N ended it
---@return string stdout
---@return string stderr
function t.run(...)
  local _, opts = split(...)
  local child = t.lockkeeper(...)
  local code = child:wait(opts.timeout)
  return code, child:stdout(), child:stderr()
end

--- A new folder, removed at the end of the run.
---@return string
function t.tempdir()
  return sandbox.mkdir("temp")
end

--- A new file in a folder of its own, removed at the end of the run.
---@param text string
---@param name? string  default: file
---@return string path
function t.tempfile(text, name)
  local path = t.tempdir() .. "/" .. (name or "file")
  process.write_file(path, text)
  return path
end

t.read_file = process.read_file
t.is_alive = process.is_alive
t.sleep = sandbox.sleep
t.now = sandbox.now

--- For helper.lua: what exists now.
function t.snapshot()
  if shared and watching == nil then
    t.observe("select 1")
  end
  return leaks.snapshot(shared, watching)
end

--- For helper.lua: the test is over, so what it has left open is nobody's. Raises nothing.
function t.close_sessions()
  for _, session in ipairs(sessions) do
    pcall(session.close, session)
  end
  sessions = {}
end

return t
