--- Child processes for specs, over sh and /proc: nothing of the module under test.

local sandbox = require "tests.support.sandbox"

local M = {}

local quote = sandbox.quote

-- The variable in the environment of what spawn starts, and so of what that starts in its turn.
local MARKER = "LOCKKEEPER_TEST_CHILD"

--- The whole of a file, or nil if it cannot be opened.
---@param path string
---@return string?
function M.read_file(path)
  local file <close> = io.open(path, "rb")
  return file and file:read("a")
end

---@param path string
---@param text string
function M.write_file(path, text)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(text))
end

--- Whether a process runs. A zombie does not: it waits only to be collected.
---@param pid integer
---@return boolean
function M.is_alive(pid)
  local stat = M.read_file(("/proc/%d/stat"):format(pid))
  local state = stat and stat:match("^.*%) (%a)")
  return state ~= nil and state ~= "Z" and state ~= "X"
end

--- The direct children of a process, as the kernel lists them.
---@param pid integer
---@return integer[]
function M.children(pid)
  local pids = {}
  local list = M.read_file(("/proc/%d/task/%d/children"):format(pid, pid)) or ""
  for child in list:gmatch("%d+") do
    pids[#pids + 1] = math.tointeger(child)
  end
  return pids
end

--- How a process was called, for messages.
---@param pid integer
---@return string
function M.command_line(pid)
  local text = M.read_file(("/proc/%d/cmdline"):format(pid))
  if text == nil or text == "" then
    text = M.read_file(("/proc/%d/comm"):format(pid)) or "(gone)"
  end
  return (text:gsub("%z", " "):gsub("%s+", " "):gsub(" $", ""))
end

--- The pid that a server has written into its pid file, nil when it does not run.
---@param path string
---@return integer?
function M.pid_in(path)
  local text = M.read_file(path)
  local pid = text and math.tointeger(text:match("^%d+"))
  return pid and M.is_alive(pid) and pid or nil
end

--- Wait until processes have ended; raises after 10 s.
---@param pids integer[]
function M.wait_gone(pids)
  local deadline = sandbox.now() + 10
  for _, pid in ipairs(pids) do
    while M.is_alive(pid) do
      if sandbox.now() > deadline then
        error(("process %d does not end: %s"):format(pid, M.command_line(pid)), 2)
      end
      sandbox.sleep(0.005)
    end
  end
end

--- Send a signal; one that finds no process is no error.
---@param signal string        "TERM", "KILL", …
---@param ... integer          pids; negative: a process group
function M.signal(signal, ...)
  os.execute(("kill -s %s -- %s 2>/dev/null"):format(signal, table.concat({ ... }, " ")))
end

---@class ProcessOptions
---@field env? table<string, string|false>  false: not set
---@field stdin? string                     what it reads; default: nothing
---@field cwd? string
---@field as_server? boolean                as the user that servers run as (only by `run`)

--- The command, as one line for sh. env(1) also undoes ignored signals: sh makes a process in the
--- background ignore SIGINT, which no terminal does.
local function command_line(argv, opts)
  local words, variables = {}, {}
  assert(type(argv[1]) == "string" and not argv[1]:find("=", 1, true), "what is to be run?")
  if opts.as_server and sandbox.is_root then
    local user = sandbox.server_user
    words = { "setpriv", "--reuid=" .. user, "--regid=" .. user, "--init-groups" }
  end
  words[#words + 1] = "env"
  words[#words + 1] = "--default-signal"
  if opts.as_server then
    -- A server is no child even where the suite itself is one: it is ended in its own way.
    words[#words + 1] = "--unset=" .. MARKER
  end
  if opts.cwd then
    words[#words + 1] = "--chdir=" .. opts.cwd
  end
  for name, value in pairs(opts.env or {}) do
    if value then
      variables[#variables + 1] = name .. "=" .. value
    else
      words[#words + 1] = "--unset=" .. name
    end
  end
  table.move(variables, 1, #variables, #words + 1, words)
  table.move(argv, 1, #argv, #words + 1, words)
  for i, word in ipairs(words) do
    words[i] = quote(word)
  end
  return table.concat(words, " ")
end

--- Run a command to its end.
---@param argv string[]
---@param opts? ProcessOptions
---@return integer code  128 + N when signal N ended it
---@return string stdout
---@return string stderr
function M.run(argv, opts)
  opts = opts or {}
  local path = sandbox.path("run")
  local input = "/dev/null"
  if opts.stdin then
    input = path .. ".in"
    M.write_file(input, opts.stdin)
  end
  local _, how, code = os.execute(("%s <%s >%s.out 2>%s.err"):format(
    command_line(argv, opts), input, path, path))
  local out, err = M.read_file(path .. ".out"), M.read_file(path .. ".err")
  os.remove(path .. ".in")
  os.remove(path .. ".out")
  os.remove(path .. ".err")
  return how == "signal" and 128 + code or code, out, err
end

---@class Child
---@field dir string
---@field name string
local Child = {}
Child.__index = Child

---@return integer
function Child:pid()
  return self._pid
end

--- The exit code once it has ended, 128 + N when signal N ended it; nil while it runs.
---@return integer?
function Child:code()
  return math.tointeger(M.read_file(self.dir .. "/code"))
end

---@return boolean
function Child:is_running()
  return self:code() == nil
end

--- Wait until it has ended; raises, with what it wrote, if it does not.
---@param seconds? number  default 30
---@return integer code
function Child:wait(seconds)
  local deadline = sandbox.now() + (seconds or 30)
  local code = self:code()
  while code == nil do
    if sandbox.now() > deadline then
      error(("still running after %g s: %s\nstdout: %s\nstderr: %s"):format(
        seconds or 30, self.name, self:stdout(), self:stderr()), 2)
    end
    sandbox.sleep(0.002)
    code = self:code()
  end
  return code
end

--- What it has written so far.
---@return string
function Child:stdout()
  return M.read_file(self.dir .. "/out") or ""
end

---@return string
function Child:stderr()
  return M.read_file(self.dir .. "/err") or ""
end

--- Signal it, and only it, if it runs still.
---@param name string  "TERM", "INT", …
function Child:signal(name)
  if self:is_running() then
    M.signal(name, self._pid)
  end
end

--- Signal it with its process group, as a terminal's Ctrl-C does ("INT").
---@param name string
function Child:signal_group(name)
  if self:is_running() then
    M.signal(name, -self._pid)
  end
end

local any_spawned = false

--- Start a command in the background, in a session of its own (so a Ctrl-C meant for the suite
--- does not reach it). A shell waits for it and records its exit code.
---@param argv string[]
---@param opts? ProcessOptions
---@return Child
function M.spawn(argv, opts)
  opts = opts or {}
  local dir = sandbox.mkdir("child")
  local env = { [MARKER] = dir }
  for name, value in pairs(opts.env or {}) do
    env[name] = value
  end
  M.write_file(dir .. "/in", opts.stdin or "")
  -- The command tells its pid itself, once no signal is ignored any more.
  local command = { "sh", "-c", [[echo $$ >"$0/pid"; exec "$@"]], dir }
  table.move(argv, 1, #argv, #command + 1, command)
  -- A file, since the argument of sh -c is bounded to 128 KiB as every other one.
  M.write_file(dir .. "/script", ([[
cd %s || exit
setsid %s <in >out 2>err &
wait $!
echo $? >code
]]):format(dir, command_line(command, { env = env, cwd = opts.cwd or sandbox.start_dir })))
  os.execute(("sh %s/script </dev/null >/dev/null 2>&1 &"):format(dir))
  local child = setmetatable({ dir = dir, name = table.concat(argv, " ") }, Child)
  child._pid = math.tointeger(M.read_file(dir .. "/pid"))
  while child._pid == nil do
    if child:code() then
      error("could not be started: " .. child.name .. ": " .. child:stderr(), 2)
    end
    sandbox.sleep(0.001)
    child._pid = math.tointeger(M.read_file(dir .. "/pid"))
  end
  any_spawned = true
  return child
end

--- The processes that spawn started, and those that they started, which run still.
---@return integer[]
function M.marked()
  local pids = {}
  if not any_spawned then
    return pids
  end
  local list = sandbox.capture(("grep -slzF %s=%s/ /proc/[0-9]*/environ; true"):format(
    MARKER, sandbox.dir()))
  for pid in list:gmatch("/proc/(%d+)/") do
    pids[#pids + 1] = math.tointeger(pid)
  end
  return pids
end

return M
