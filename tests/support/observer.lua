--- One long-lived psql that looks at a server while a spec works there: a look costs less than a
--- millisecond, and no line of the code under test takes part in it.

local process = require "tests.support.process"
local sandbox = require "tests.support.sandbox"
local target = require "tests.support.target"

local M = {}

---@class Observer
---@field pid integer  its psql's pid
local Observer = {}
Observer.__index = Observer

-- Ends each answer, followed by psql's ERROR ("true" or "false").
local MARK = "-- end of answer:"

--- Open a superuser's session.
---@param server Server
---@return Observer
function M.open(server)
  local path = sandbox.path("observer")
  sandbox.capture("mkfifo " .. path)
  local before = {}
  for _, pid in ipairs(process.children(sandbox.own_pid())) do
    before[pid] = true
  end
  local self = setmetatable({ sql = path .. ".sql" }, Observer)
  self.input = assert(io.popen(("exec %s/psql -XAtqw -d %s >%s 2>&1"):format(target.bindir(),
    sandbox.quote(server:conninfo({ application_name = "observer" })), path), "w"))
  self.input:setvbuf("no")
  self.output = assert(io.open(path, "r"))
  for _, pid in ipairs(process.children(sandbox.own_pid())) do
    if not before[pid] then
      self.pid = pid
    end
  end
  self:query("select 1")
  return self
end

--- The text that psql prints: one row a line, fields separated by |. Raises its error message.
---@param sql string
---@return string
function Observer:query(sql)
  -- By way of a file: the end of a file also ends a quotation that the text left open.
  process.write_file(self.sql, sql)
  self.input:write("\\i ", self.sql, "\n\\warn '", MARK, "' :ERROR\n")
  local lines = {}
  for line in self.output:lines() do
    if line:sub(1, #MARK) == MARK then
      local text = table.concat(lines, "\n")
      if line == MARK .. " true" then
        error("observer: " .. text, 2)
      end
      return text
    end
    lines[#lines + 1] = line
  end
  error("the observer's session has ended: " .. table.concat(lines, "\n"), 2)
end

function Observer:close()
  -- Said, since children may hold the other end of the pipe.
  self.input:write("\\q\n")
  self.input:close()
  self.output:close()
end

return M
