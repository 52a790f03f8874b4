--- The folder that one run of the suite works in, and what makes sure that nothing outlives it.
--- Everything a run starts has its files below this folder; watchdog.sh ends it all and removes
--- the folder once the run is over, however the run ended.

local lfs = require "lfs"
local system = require "system"

local M = {}

--- Where the run was started: the top of the source tree.
M.start_dir = lfs.currentdir()

local support = debug.getinfo(1, "S").source:match("^@(.*)/")
if support:sub(1, 1) ~= "/" then
  support = M.start_dir .. "/" .. support
end
local root      -- nil until something needs it
local watchdog  -- the pid that watches this process
local counter = 0
local tracked = {}

--- One word for sh, whatever is in it.
---@param word string
---@return string
function M.quote(word)
  assert(not word:find("\0", 1, true), "an argument cannot hold a NUL byte")
  return "'" .. word:gsub("'", [['\'']]) .. "'"
end

--- The output of a shell command that must succeed, without its last newline.
---@param command string
---@return string
function M.capture(command)
  local pipe = assert(io.popen(command, "r"))
  local text = pipe:read("a")
  local ok, how, code = pipe:close()
  if not ok then
    error(("%s %d: %s"):format(how, code, command), 2)
  end
  return (text:gsub("\n$", ""))
end

--- Sleep without the module under test.
M.sleep = system.sleep

--- Seconds on a clock that never goes back.
M.now = system.monotime

---@return integer pid of this process
function M.own_pid()
  local stat <close> = assert(io.open("/proc/self/stat"))
  return stat:read("n")
end

--- PostgreSQL and PgBouncer refuse root: invoked by root they run as this user.
M.is_root = M.capture("id -u") == "0"
M.server_user = "postgres"

--- The folder: /tmp and a short name, since a socket's path has at most 107 bytes.
--- As root others may pass through it (the server's user must) but not list it.
---@return string
function M.dir()
  if root == nil then
    root = M.capture("mktemp -d /tmp/lk.XXXXXX")
    M.capture(("chmod %s %s"):format(M.is_root and "711" or "700", root))
    watchdog = M.capture(([=[
      unset LOCKKEEPER_TEST_CHILD # of a run that another one started: not its child to kill
      setsid sh %s %s %d </dev/null >/dev/null 2>&1 &
      echo $!]=]):format(M.quote(support .. "/watchdog.sh"), root, M.own_pid()))
  end
  return root
end

--- A path in the folder that is not used yet.
---@param name string
---@return string
function M.path(name)
  counter = counter + 1
  return ("%s/%s%d"):format(M.dir(), name, counter)
end

--- A new folder in it.
---@param name string
---@param for_server? boolean  belongs to the user that the servers run as
---@return string
function M.mkdir(name, for_server)
  local path = M.path(name)
  assert(lfs.mkdir(path))
  if for_server and M.is_root then
    M.capture(("chown %s: %s"):format(M.server_user, path))
  end
  M.capture(("chmod 755 %s"):format(path))
  return path
end

--- Remember what must be stopped before the test or file that started it ends.
---@param what string                      for the message
---@param object { is_running: function, stop: function }
function M.track(what, object)
  tracked[object] = what
end

function M.untrack(object)
  tracked[object] = nil
end

--- What was tracked and still runs.
---@return table<table, string> object to its name
function M.running()
  local found = {}
  for object, what in pairs(tracked) do
    if object:is_running() then
      found[object] = what
    else
      tracked[object] = nil
    end
  end
  return found
end

--- End everything that the run started and remove the folder.
function M.remove()
  if root == nil then
    return
  end
  os.execute(("sh %s %s"):format(M.quote(support .. "/watchdog.sh"), root))
  if lfs.attributes(root) == nil then
    os.execute(("kill -s KILL -- -%s 2>/dev/null"):format(watchdog))
    root = nil
  end
end

return M
