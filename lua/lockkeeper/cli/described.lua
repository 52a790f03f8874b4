--- The files that commands are given, described by child processes (lockkeeper.describe) and checked
--- together.
local config = require "lockkeeper.cli.config"
local definition = require "lockkeeper.definition"
local describe = require "lockkeeper.describe"
local failure = require "lockkeeper.cli.failure"
local host = require "lockkeeper.host"
local options = require "lockkeeper.cli.options"
local safe = require "lockkeeper.report.safe"
local tasks = require "lockkeeper.tasks"
local validation = require "lockkeeper.validation"

local described = {}

---@class Found
---@field files string[]
---@field jobs table[]     of descriptions, in order
---@field faults { file: string, line?: integer, message: string }[]
---@field descriptions table[]  one a file (lockkeeper.describe)

-- How many are described at once: most of the time goes by in starting processes.
local AT_ONCE = 4

-- How much is shown of what a file prints, in bytes.
local OUTPUT_SHOWN = 4096

---------------------------------------------------------------------------------------------------
-- files

local function without_dot(path)
  return (path:gsub("^%./+", ""))
end

-- The files of the paths, each once; the configuration is none of a folder's. A folder without any is one of
-- the call's words, or where it is `kept` a file by itself: they are given too, by path.
local function files_of(paths, configuration, kept)
  local list, known, empty = {}, {}, {}
  local function add(path)
    if not known[without_dot(path)] then
      known[without_dot(path)] = true
      list[#list + 1] = path
    end
  end
  for _, path in ipairs(paths) do
    local names = path ~= "" and host.lua_files(path)
    if not names then
      add(path)
    elseif #names == 0 then
      if not kept then
        failure.words(("%s has no *.lua"):format(options.quoted(path)))
      end
      empty[path] = true
      add(path)
    else
      table.sort(names)
      for _, name in ipairs(names) do
        local file = (path:gsub("/*$", "", 1)) .. "/" .. name
        if not configuration or without_dot(file) ~= without_dot(configuration) then
          add(file)
        end
      end
    end
  end
  return list, empty
end

local function configuration_path(named)
  local ok, file, path = pcall(config.open, named, true)
  if ok and file then
    file:close()
    return path
  end
end

local function show_output(path, output)
  io.stderr:write(output:sub(1, OUTPUT_SHOWN))
  if #output > OUTPUT_SHOWN then
    io.stderr:write("\n")
    failure.say(("%s printed %d bytes; the first %d are shown"):format(path, #output, OUTPUT_SHOWN))
  end
end

-- Their descriptions, in order. What the files print is shown, since it may tell what is wrong.
local function descriptions_of(files, empty, named, how)
  local descriptions, outputs = {}, {}
  tasks({ max = AT_ONCE }, function(spawn)
    for i, path in ipairs(files) do
      spawn(function()
        if empty[path] then
          descriptions[i] = { file = path, jobs = {}, faults = { { file = path,
            message = "this folder has no *.lua" } } }
          outputs[i] = ""
        else
          descriptions[i], outputs[i] = describe.file(path, named, how)
        end
      end)
    end
  end)
  for i, output in ipairs(outputs) do
    show_output(files[i], output)
  end
  return descriptions
end

---------------------------------------------------------------------------------------------------
-- faults

local function fault_text(fault)
  return ("%s: %s"):format(definition.place_text(fault), fault.message)
end

-- Each once, though it may be told by several: the configuration's by every file.
local function new_faults()
  local list, known = {}, {}
  return list, function(fault)
    local text = fault_text(fault)
    if not known[text] then
      known[text] = true
      list[#list + 1] = fault
    end
  end
end

-- What only shows over all files.
local function check_together(descriptions, jobs, add)
  local by_name = {}
  for _, description in ipairs(descriptions) do
    for _, job in ipairs(description.jobs) do
      local first = by_name[job.name]
      if not first then
        by_name[job.name] = { job = job, description = description }
      elseif first.description ~= description then
        add { file = job.file, line = job.line, message = ("job %s: two jobs have this name: here and at %s")
          :format(validation.described(job.name), definition.place_text(first.job)) }
      end
      jobs[#jobs + 1] = job
    end
  end
  definition.check_after(jobs, function(where, message)
    add { file = where.file, line = where.line, message = message }
  end, true)
end

--- "1 file", "2 files"
---@param count integer
---@param what string
---@return string
function described.counted(count, what)
  return ("%d %s%s"):format(count, what, count == 1 and "" or "s")
end

--- Show them, and how many there are, on stderr.
---@param found Found
function described.show_faults(found)
  local broken, count = {}, 0
  for _, fault in ipairs(found.faults) do
    io.stderr:write(safe.line(fault_text(fault)), "\n")
    count = count + (broken[fault.file] and 0 or 1)
    broken[fault.file] = true
  end
  failure.say(("%s in %s; %s checked"):format(described.counted(#found.faults, "fault"),
    described.counted(count, "file"), described.counted(#found.files, "file")))
end

--- Describe the files, or all *.lua of folders; `named`: the configuration, where it is named.
---@param paths string[]
---@param named? string
---@param how? { stateless?: boolean, empty_folders?: boolean }  empty_folders: one is a fault like others
---@return Found
function described.load(paths, named, how)
  local files, empty = files_of(paths, configuration_path(named), how and how.empty_folders)
  local descriptions = descriptions_of(files, empty, named, how)
  local jobs, faults, add = {}, new_faults()
  for _, description in ipairs(descriptions) do
    for _, fault in ipairs(description.faults) do
      add(fault)
    end
  end
  check_together(descriptions, jobs, add)
  return { files = files, jobs = jobs, faults = faults, descriptions = descriptions }
end

--- The job of that name; where there is none, the words are wrong.
---@param found Found
---@param name string
---@return table
function described.find(found, name)
  local names = {}
  for i, job in ipairs(found.jobs) do
    if job.name == name then
      return job
    end
    names[i] = job.name
  end
  failure.words(("there is no job %s%s"):format(options.quoted(name), validation.nearest(name, names)))
end

return described
