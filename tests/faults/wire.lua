--- A wire between hosts and a server that can be held up, cut, or used to kill at a statement: wire.c,
--- compiled when it is first needed.

local process = require "tests.support.process"
local sandbox = require "tests.support.sandbox"
local target = require "tests.support.target"

local M = {}

local program

local function compiled()
  if program == nil then
    program = sandbox.mkdir("wire") .. "/wire"
    sandbox.capture(("cc -std=c17 -D_GNU_SOURCE -O2 -o %s %s"):format(program,
      sandbox.quote(sandbox.start_dir .. "/tests/faults/wire.c")))
  end
  return program
end

---@class Wire : Target
local Wire = setmetatable({}, target.Target)
Wire.__index = Wire

--- A wire to a server, held up at first.
---@param server Server
---@return Wire
function M.open(server)
  local dir = sandbox.mkdir("wire")
  local self = setmetatable({ host = dir, port = 5432, dir = dir }, Wire)
  sandbox.capture(("mkfifo %s/control"):format(dir))
  self.child = process.spawn { compiled(), dir .. "/.s.PGSQL.5432",
    ("%s/.s.PGSQL.%d"):format(server.host, server.port), dir .. "/control", dir .. "/report" }
  local deadline = sandbox.now() + 10
  while not process.read_file(dir .. "/report") do
    assert(sandbox.now() < deadline and self.child:is_running(), self.child:stderr())
    sandbox.sleep(0.005)
  end
  return self
end

local function tell(self, command)
  local control <close> = assert(io.open(self.dir .. "/control", "w"))
  control:write(command, "\n")
end

--- Bytes go through from now on.
function Wire:pass()
  tell(self, "pass")
end

--- Silence: nothing goes through, and nothing is lost.
function Wire:hold()
  tell(self, "hold")
end

--- All connections end, new ones too, until the next pass.
function Wire:cut()
  tell(self, "cut")
end

--- SIGKILL at a statement.
---@param when "before"|"after"  the server gets it; it has answered, and the client does not know
---@param number integer         the first is 1
---@param whose integer          statements of this pid count; -PID: all others'
---@param victim? integer        a pid; default: whose statement it is
function Wire:kill_at(when, number, whose, victim)
  tell(self, ("kill %s %d %d %d"):format(when, number, whose, victim or 0))
end

--- What was killed, and at which statement; nil while nothing was.
---@return string?
function Wire:killed()
  local text = process.read_file(self.dir .. "/report")
  return text ~= "" and text:gsub("\n$", "") or nil
end

--- All connections end; nobody can connect any more.
function Wire:close()
  self.child:signal("KILL")
  self.child:wait()
end
Wire.__close = Wire.close

return M
