--- Supervisors, as on hosts of their own.

local process = require "tests.support.process"
local sandbox = require "tests.support.sandbox"
local t = require "tests.support"

local M = {}

local FAKETIME = "/usr/lib/*/faketime/libfaketime.so.1"

local library
local started = {}

--- libfaketime's path; it is installed where it is missing and we are root. nil: there is none.
---@return string?
function M.faketime()
  local function find()
    local path = sandbox.capture("ls " .. FAKETIME .. " 2>/dev/null | head -n 1")
    return path ~= "" and path or nil
  end
  if library == nil then
    library = find()
    if library == nil and sandbox.is_root then
      os.execute("apt-get install -y --no-install-recommends faketime >/dev/null 2>&1")
      library = find()
    end
    library = library or false
  end
  return library or nil
end

---@class HostOptions
---@field files string[]   PATHs
---@field server Target    what it connects to
---@field witness Target   where the witness is written, without a detour
---@field args? string[]   further options of serve
---@field clock? string    how its wall clock is wrong, as libfaketime has it: "+1h"
---@field clock_file? string  a file with that, which may change

--- Start a supervisor.
---@param options HostOptions
---@return Child
function M.start(options)
  local words = { "serve", table.unpack(options.args or {}) }
  table.move(options.files, 1, #options.files, #words + 1, words)
  local env = { DATABASE_URL = options.server:conninfo(), WITNESS_URL = options.witness:conninfo() }
  if options.clock or options.clock_file then
    env.LD_PRELOAD = assert(M.faketime(), "the package faketime is not installed")
    env.FAKETIME_DONT_FAKE_MONOTONIC = "1"
    env.FAKETIME = options.clock or false
    env.FAKETIME_TIMESTAMP_FILE = options.clock_file or false
    env.FAKETIME_NO_CACHE = options.clock_file and "1" or false
  end
  words[#words + 1] = { env = env }
  local host = t.lockkeeper(table.unpack(words))
  started[#started + 1] = host
  return host
end

--- What the supervisors have logged as warnings and errors, each kind of line once with how often it came.
---@return string[]
function M.unusual()
  local counts, lines = {}, {}
  for _, host in ipairs(started) do
    for line in host:stderr():gmatch("[^\n]+") do
      local kind = not line:find("level=info", 1, true)
        and line:gsub("^time=%S+ ", ""):gsub("slot=%S+", "slot=…"):gsub("%d%d+", "N")
      if kind then
        if not counts[kind] then
          lines[#lines + 1] = kind
        end
        counts[kind] = (counts[kind] or 0) + 1
      end
    end
  end
  for i, kind in ipairs(lines) do
    lines[i] = ("%4d × %s"):format(counts[kind], kind)
  end
  return lines
end

--- The supervisors so far are of no more interest.
function M.forget()
  started = {}
end

--- Wait until it serves.
---@param host Child
---@param seconds? number
function M.await_serving(host, seconds)
  t.wait_until(function()
    return host:stderr():find("msg=serving", 1, true) or not host:is_running()
  end, seconds or 20, "a supervisor that serves")
  assert(host:is_running(), host:stderr())
end

--- All processes below one, itself included.
---@param pid integer
---@return integer[]
function M.family(pid)
  local pids = { pid }
  local i = 1
  while pids[i] do
    local children = process.children(pids[i])
    table.move(children, 1, #children, #pids + 1, pids)
    i = i + 1
  end
  return pids
end

--- End them in order; the drain is theirs. Raises where one does not end with 0.
---@param ... Child
function M.stop(...)
  local all = { ... }
  for _, host in ipairs(all) do
    host:signal("TERM")
  end
  for _, host in ipairs(all) do
    local code = host:wait(60)
    if code ~= 0 then
      error(("a supervisor has ended with %d:\n%s"):format(code, host:stderr()), 2)
    end
  end
end

return M
