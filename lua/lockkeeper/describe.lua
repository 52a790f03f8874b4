--- Descriptions: what a file defines, as values that JSON can hold.
--
-- A description: { file, sha256, jobs, policies, audits, faults }; of audits their number. A fault: { file,
-- line, message }. A job is a Job (lockkeeper.definition) without what only it itself can use: of a function
-- it is told that there is one (`true`), of bytes that are not UTF-8 a likeness.
local core = require "lockkeeper.core"
local safe = require "lockkeeper.report.safe"

local type, tostring, next, ipairs, pairs = type, tostring, next, ipairs, pairs

local describe = {}

local JSON_ARRAY = core.json.decode("[]")

-- A list that stays one where it is empty.
local function list(elements)
  return #elements > 0 and elements or JSON_ARRAY
end

-- Parameters of a query and filters may be anything, also nested in themselves.
local DEPTH_MAX = 20

local function plain(value, depth)
  local kind = type(value)
  if kind == "string" then
    return safe.utf8(value)
  elseif kind == "table" then
    if depth > DEPTH_MAX then
      return "…"
    end
    local result = {}
    for key, element in pairs(value) do
      result[type(key) == "string" and safe.utf8(key) or key] = plain(element, depth + 1)
    end
    -- JSON has lists or objects, not both in one.
    if #value > 0 and next(value, #value) ~= nil or (#value == 0 and next(value) ~= nil) then
      local object = {}
      for key, element in pairs(result) do
        object[tostring(key)] = element
      end
      return object
    end
    return result
  elseif kind == "number" and (value ~= value or math.abs(value) == math.huge) then
    return tostring(value)
  elseif kind == "number" or kind == "boolean" or value == core.null then
    return value
  end
  return true
end

local function described_guard(guard)
  local args = {}
  for i = 1, guard.args.n do
    local value = guard.args[i]
    args[i] = value == nil and core.null or plain(value, 0)
  end
  return {
    kind = guard.kind, args = list(args), options = plain(guard.options, 0), file = guard.file,
    line = guard.line,
  }
end

local function described_job(job)
  local guards = {}
  for i, guard in ipairs(job.guards) do
    guards[i] = described_guard(guard)
  end
  return {
    name = safe.utf8(job.name), file = job.file, line = job.line, description = job.description,
    tags = list(job.tags), enabled = job.enabled, using = job.using, schedule = job.schedule,
    timezone = job.timezone, window = job.window, after = job.after, guards = list(guards),
    policy = list(job.policy), run = job.fn and true, sql = job.sql,
    command = job.command and plain(job.command, 0),
    on_failure = job.on_failure and true, settings = plain(job.settings, 0), origins = job.origins,
  }
end

--- The description of a Set that was loaded.
---@param set Set
---@param sha256? string  of the file's content
---@return table
function describe.set(set, sha256)
  local jobs, policies = {}, {}
  for i, job in ipairs(set.jobs) do
    jobs[i] = described_job(job)
  end
  for i, policy in ipairs(set.policies) do
    policies[i] = {
      name = policy.name, file = policy.file, line = policy.line, values = plain(policy.values, 0),
    }
  end
  return {
    file = set.file, sha256 = sha256, jobs = list(jobs), policies = list(policies), audits = #set.audits,
    faults = list(set.faults),
  }
end

local REASONS = {
  time = "it is not loaded within 5 s",
  output = "it prints more than 1 MiB while it is loaded",
}

--- Have a file described by a child process, which is bounded (see src/host/describe.h).
---@param path string
---@param config? string  the configuration, where it is named
---@param options? { stateless?: boolean }  what needs the state tables is a fault
---@return table description  faults tell of every way in which it can go wrong
---@return string output      what the file has printed
function describe.file(path, config, options)
  local host = require "lockkeeper.host"
  local words = config and { "--config", config } or {}
  if options and options.stateless then
    words[#words + 1] = "--stateless"
  end
  words[#words + 1], words[#words + 2] = "--", path
  local child = host.described(words)
  if child.ending == "reported" then
    local ok, description = pcall(core.json.decode, child.report)
    if ok then
      return description, child.output
    end
    child.reason = "its report is no JSON: " .. description.message
  end
  local file = child.source and child.source:match("^[@=](.*)$") or path
  return {
    file = path, jobs = {}, policies = {},
    faults = { {
      file = file, line = child.line,
      message = REASONS[child.reason] or "it could not be described: " .. child.reason,
    } },
  }, child.output
end

return describe
