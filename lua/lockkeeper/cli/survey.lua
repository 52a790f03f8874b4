--- lockkeeper survey: of the supervisor; which jobs the files define, as JSON, one object a line, on standard
--- output:
---
---   { "file": PATH, "sha256": …, "text": …, "broken": true|false }   a file; what follows is of it
---   { "job": DESCRIPTION }                                 (lockkeeper.describe), where it is not broken
---   { "fault": { file, line, message } }
---   { "end": true }
---
--- No file is run in this process. A file is broken where something is wrong with it, or with one of its
--- jobs beside all others.
local core = require "lockkeeper.core"
local described = require "lockkeeper.cli.described"
local host = require "lockkeeper.host"

local survey = {}

survey.spec = {
  usage = "lockkeeper survey [--stateless] PATH...",
  summary = "Tells which jobs files define, as lines of JSON. The supervisor calls this one.",
  operands = { min = 1, name = "PATH" },
  options = {
    { "--stateless", key = "stateless", help = "what needs the state tables is a fault" },
  },
  own_config = true,
}

local function tell(object)
  io.stdout:write(core.json.encode(object), "\n")
end

local function places_of(faults)
  local places = {}
  for _, fault in ipairs(faults) do
    places[fault.file] = true
  end
  return places
end

local function is_broken(description, places)
  if #description.faults > 0 or places[description.file] then
    return true
  end
  for _, job in ipairs(description.jobs) do
    if places[job.file] then
      return true
    end
  end
  return false
end

-- The text that was described; nil where it has changed since, or is none that JSON can hold.
local function text_of(path, sha256)
  local file <close> = io.open(path, "rb")
  local text = file and file:read("a")
  return text and utf8.len(text) and host.sha256(text) == sha256 and text or nil
end

function survey.main(values, operands)
  local found = described.load(operands, values.config, { stateless = values.stateless,
    empty_folders = true })
  local places = places_of(found.faults)
  for i, description in ipairs(found.descriptions) do
    local broken = is_broken(description, places)
    tell { file = found.files[i], sha256 = description.sha256, broken = broken,
      text = not broken and text_of(found.files[i], description.sha256) or nil }
    for _, job in ipairs(broken and {} or description.jobs) do
      tell { job = job }
    end
  end
  for _, fault in ipairs(found.faults) do
    tell { fault = fault }
  end
  tell { ["end"] = true }
  return 0
end

return survey
