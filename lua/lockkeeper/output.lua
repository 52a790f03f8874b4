--- What a job prints, captured: print, io.write and writing to io.stdout and io.stderr, and what its
--- commands write. Each line goes into the log, with the job's name; the last 64 KiB are kept (in the
--- core, which adds the server's notices).
--
-- Somebody may also want to see it as it is:
--   "log"    lines in the log only
--   "both"   standard output as it is, and everything in the log
--   "plain"  standard output and standard error as they are, and nothing in the log
--   "quiet"  nobody does
local core = require "lockkeeper.core"

local output = {}

-- How long a line in the log may be, in bytes; longer ones are cut into several.
local LINE_MAX = 8192

local type, select, tostring, math_type = type, select, tostring, math.type
local concat, io_type = table.concat, io.type
local stdout, stderr = io.stdout, io.stderr

---@class Output
---@field mode "log"|"both"|"plain"|"quiet"
---@field partial { stdout: string, stderr: string }  what has no end of line yet
---@field before? fun()  called before something is written to standard error or output as it is
local Output = {}
Output.__index = Output

-- The one that captures now.
local capturing

-- As it was before `install`.
local original

local function log_line(stream, line)
  while #line > LINE_MAX do
    local cut = LINE_MAX
    while cut > LINE_MAX - 4 and line:byte(cut + 1) & 0xc0 == 0x80 do
      cut = cut - 1
    end
    core.log("info", line:sub(1, cut), { "from" }, { stream })
    line = line:sub(cut + 1)
  end
  core.log("info", (line:gsub("\r$", ""):gsub("\0", "\\0")), { "from" }, { stream })
end

local function log_text(self, stream, text)
  local from = 1
  local partial = self.partial[stream]
  local at = text:find("\n", 1, true)
  while at do
    log_line(stream, partial .. text:sub(from, at - 1))
    partial, from = "", at + 1
    at = text:find("\n", from, true)
  end
  partial = partial .. text:sub(from)
  if #partial > LINE_MAX then -- a line without an end
    log_line(stream, partial)
    partial = ""
  end
  self.partial[stream] = partial
end

--- Take what was written to one of the streams.
---@param stream "stdout"|"stderr"
---@param text string
function Output:write(stream, text)
  core.append_output(text)
  local echo = self.mode == "plain" and (stream == "stdout" and stdout or stderr)
    or self.mode == "both" and stream == "stdout" and stdout
  if echo then
    if self.before then
      self.before()
    end
    original.write(echo, text)
  end
  if self.mode == "log" or self.mode == "both" then
    log_text(self, stream, text)
  end
end

--- What was written last is a line, though it has no end: what another writes is none of it.
function Output:end_line()
  for _, stream in ipairs { "stdout", "stderr" } do
    local partial = self.partial[stream]
    if partial ~= "" then
      self.partial[stream] = ""
      log_line(stream, partial)
    end
  end
end

---------------------------------------------------------------------------------------------------
-- in place of Lua's own

local function stream_of(file)
  return file == stdout and "stdout" or file == stderr and "stderr" or nil
end

-- What is written, or nil where an argument is not what write takes.
local function written(...)
  local parts = { ... }
  for i = 1, select("#", ...) do
    local part = parts[i]
    if type(part) == "number" then
      parts[i] = math_type(part) == "integer" and ("%d"):format(part) or ("%.14g"):format(part)
    elseif type(part) ~= "string" then
      return nil
    end
  end
  return concat(parts)
end

local function write(file, ...)
  local stream = capturing and stream_of(file)
  local text = stream and written(...)
  if not text then
    return original.write(file, ...)
  end
  capturing:write(stream, text)
  return file
end

local function io_write(...)
  local file = io.output()
  if capturing and io_type(file) == "file" and stream_of(file) then
    local text = written(...)
    if text then
      capturing:write(stream_of(file), text)
      return file
    end
  end
  return original.io_write(...)
end

local function captured_print(...)
  if not capturing then
    return original.print(...)
  end
  local parts = { ... }
  for i = 1, select("#", ...) do
    parts[i] = tostring(parts[i])
  end
  capturing:write("stdout", concat(parts, "\t") .. "\n")
end

--- To standard error as it is, captured or not: for what is drawn on a terminal.
---@param text string
function output.draw(text)
  local raw = original and original.write or stderr.write
  raw(stderr, text)
  stderr:flush()
end

--- Put functions that capture in the place of Lua's own; they do as those do while no job runs. Called
--- before a script is loaded, so that what it keeps of them captures too. Undone by `uninstall`.
---@return boolean done  false: they are there already
function output.install()
  if original then
    return false
  end
  local methods = debug.getmetatable(stdout).__index
  original = { print = print, io_write = io.write, write = methods.write }
  methods.write = write
  io.write = io_write -- luacheck: ignore 122
  print = captured_print -- luacheck: globals print
  return true
end

--- Put Lua's own back, but where a script has set something else.
function output.uninstall()
  local methods = debug.getmetatable(stdout).__index
  methods.write = original.write
  if io.write == io_write then
    io.write = original.io_write -- luacheck: ignore 122
  end
  if print == captured_print then
    print = original.print -- luacheck: globals print
  end
  original = nil
end

--- Capture from now on.
---@param mode "log"|"both"|"plain"|"quiet"
---@return Output
function output.begin(mode)
  local self = setmetatable({ mode = mode, partial = { stdout = "", stderr = "" } }, Output)
  self.installed = output.install()
  core.keep_output()
  capturing = self
  return self
end

--- However a run was left, nothing is captured any more.
function output.abandon()
  if capturing then
    capturing:finish()
  end
end

--- No more; returns the last 64 KiB of it.
---@return string
function Output:finish()
  self:end_line()
  capturing = nil
  if self.installed then
    output.uninstall()
  end
  return core.take_output()
end

return output
