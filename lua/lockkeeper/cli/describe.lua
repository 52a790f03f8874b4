--- lockkeeper describe: of the supervisor and of check; the child process in which a file is loaded to see
--- what it defines. Its report is JSON (lockkeeper.describe) on a descriptor of its own.
local config = require "lockkeeper.cli.config"
local core = require "lockkeeper.core"
local definition = require "lockkeeper.definition"
local descriptions = require "lockkeeper.describe"
local failure = require "lockkeeper.cli.failure"
local files = require "lockkeeper.load"
local host = require "lockkeeper.host"
local script = require "lockkeeper.cli.script"
local stateless = require "lockkeeper.stateless"

local describe = {}

describe.spec = {
  usage = "lockkeeper describe FILE [--fd N] [--stateless]",
  summary = "Tells what a file defines, as JSON on the descriptor N. Other commands call this one.",
  operands = { min = 1, max = 1, name = "FILE" },
  options = {
    { "--fd", value = "N", key = "fd", kind = "integer", from = 0, to = 1000000, help = "default 3" },
    { "--stateless", key = "stateless", help = "what needs the state tables is a fault" },
  },
  own_config = true,
}

local DESCRIPTOR = 3

local MEMORY_MAX = 64 * 1024 * 1024

-- Kept, since the file may replace what it finds.
local xpcall, pcall, type, tostring, load = xpcall, pcall, type, tostring, load
local getmetatable, setmetatable, getinfo = getmetatable, setmetatable, debug.getinfo
local encode = core.json.encode

-- What an error raised by a file comes to.
local Failure = {}

local function fault_at(where, message)
  return setmetatable({ fault = { file = where.file, line = where.line, message = message } }, Failure)
end

-- The short form of a chunk's name, as Lua's own messages begin with it.
local function short_name(chunk)
  return getinfo(load("", chunk), "S").short_src
end

-- "job.lua:12: text" apart.
local function split(message, chunk)
  local prefix = short_name(chunk) .. ":"
  if message:sub(1, #prefix) == prefix then
    local line, text = message:match("^(%d+): (.*)$", #prefix + 1)
    return math.tointeger(line), text
  end
end

-- For xpcall, where the error was raised.
local function caught(err)
  local where = definition.place()
  if failure.is_ours(err) then
    return fault_at(where, err.message)
  end
  local message = failure.text(err)
  local line, text = split(message, "@" .. where.file)
  return fault_at({ file = where.file, line = line or where.line }, text or message)
end

-- Where there was no way to catch it: no memory, an error while an error was handled.
local function uncaught(path, err)
  local message = tostring(err)
  if message ~= "not enough memory" then
    return { file = path, message = message }
  end
  local file, line = (host.memory_limit(nil) or ""):match("^(.*):(%d+)$")
  if file == short_name("@" .. path) then
    file = path
  end
  return { file = file or path, line = math.tointeger(line), message = "it needs more than 64 MiB of memory" }
end

local function run(path, chunk)
  local ok, err = xpcall(chunk, caught)
  if not ok then
    return getmetatable(err) == Failure and err.fault or uncaught(path, err)
  end
end

-- What could not be opened, or is no Lua.
local function unloaded(path, err, first_line)
  if type(err) ~= "table" or not err.text then
    return uncaught(path, err)
  end
  local line, text = split(err.text, "@" .. path)
  return { file = path, line = line or first_line, message = text or err.text }
end

-- Load an open()ed file: its text and what is wrong with it.
local function load_file(path, open, name)
  local text
  local ok, chunk = pcall(function()
    local file = open()
    if not file then
      return nil
    end
    text = script.read(file, name)
    return script.compile(text, name, "@" .. path)
  end)
  if not ok then
    return text, unloaded(path, chunk, text and 1)
  end
  return text, chunk and run(path, chunk)
end

local function open_job_file(path)
  local file, reason = io.open(path, "rb")
  if not file then
    failure.unloaded("cannot open it" .. reason:sub(#path + 1))
  end
  script.check_trust(file, "it")
  return file
end

local function add(set, fault)
  set.faults[#set.faults + 1] = fault
end

local function load_configuration(named, into)
  local ok, file, path = pcall(config.open, named, true)
  if not ok then
    return add(into, unloaded(named or "lockkeeper.lua", file))
  elseif not file then
    return
  end
  local set = definition.begin(path, { collect = true, configuration = true })
  local _, fault = load_file(path, function() return file end, "it")
  add(set, fault)
  definition.finish()
  table.move(set.faults, 1, #set.faults, #into.faults + 1, into.faults)
end

function describe.main(values, operands)
  local path = operands[1]
  local before = { faults = {} }
  host.describing(values.fd or DESCRIPTOR)
  host.memory_limit(MEMORY_MAX)
  os.exit = files.tame_os().exit -- luacheck: ignore
  core.forbid(files.FORBIDDEN)
  load_configuration(values.config, before)
  local set = definition.begin(path, { collect = true })
  local text, fault = load_file(path, function() return open_job_file(path) end, "it")
  add(set, fault)
  if #set.audits > 0 then
    require("lockkeeper.audit_job").add(set)
  end
  definition.check_sessions(set)
  if values.stateless then
    stateless.check(set)
  end
  definition.finish()
  host.memory_limit(nil)
  table.move(set.faults, 1, #set.faults, #before.faults + 1, before.faults)
  set.faults = before.faults
  host.report(encode(descriptions.set(set, text and host.sha256(text))))
  return 0
end

return describe
