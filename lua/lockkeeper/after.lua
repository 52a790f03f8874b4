--- `after`, over all jobs: does each follow one that exists, and none itself?
local sets = require "lockkeeper.definition_set"
local validation = require "lockkeeper.validation"

local described = validation.described

-- Kept, since a file that is loaded may replace what it finds.
local ipairs = ipairs

-- The cycle that the job leads into, as a list of jobs, if it has not been `seen` before.
local function cycle_from(job, by_name, seen)
  local path, place_of = {}, {}
  local at = job
  while at and not seen[at] do
    path[#path + 1], place_of[at], seen[at] = at, #path + 1, true
    at = at.after and by_name[at.after.job]
  end
  return at and place_of[at] and table.move(path, place_of[at], #path, 1, {})
end

-- It begins at the same job, wherever it was entered.
local function rotated(cycle)
  local first = 1
  for i, job in ipairs(cycle) do
    local least = cycle[first]
    if job.file < least.file or (job.file == least.file and (job.line or 0) < (least.line or 0)) then
      first = i
    end
  end
  local list = table.move(cycle, first, #cycle, 1, {})
  return table.move(cycle, 1, first - 1, #list + 1, list)
end

local function cycle_text(cycle)
  local words = {}
  for i, job in ipairs(cycle) do
    words[i] = ("%s (%s)"):format(described(job.name), sets.place_text(job))
  end
  return table.concat(words, " after ") .. " after " .. described(cycle[1].name)
end

local function names_of(jobs)
  local names = {}
  for i, job in ipairs(jobs) do
    names[i] = job.name
  end
  return names
end

--- Tell of jobs that would wait for themselves, each cycle once; and with `whole`, where `jobs` are all
--- that there are, of those that follow a job that does not exist.
---@param jobs { name: string, file: string, line?: integer, after?: table }[]
---@param fault fun(where: Place, message: string)
---@param whole? boolean
return function(jobs, fault, whole)
  local by_name, seen = {}, {}
  for _, job in ipairs(jobs) do
    by_name[job.name] = by_name[job.name] or job
  end
  for _, job in ipairs(jobs) do
    local cycle = cycle_from(job, by_name, seen)
    if cycle then
      cycle = rotated(cycle)
      fault(cycle[1], ("job %s: it would wait for itself: %s"):format(described(cycle[1].name),
        cycle_text(cycle)))
    elseif whole and job.after and not by_name[job.after.job] then
      fault(job, ("job %s: after: there is no job %s%s"):format(described(job.name),
        described(job.after.job), validation.nearest(job.after.job, names_of(jobs))))
    end
  end
end
