--- What jobs may not say where the runner keeps no state (`serve --stateless`, runner.md 28): it has guards
--- only, so nothing tells one host what another has done, or what was missed.
local sets = require "lockkeeper.definition_set"
local validation = require "lockkeeper.validation"

-- Kept, since a file that is loaded may replace what it finds.
local type, ipairs, pcall = type, ipairs, pcall
local dump, getupvalue = string.dump, debug.getupvalue

local stateless = {}

-- Upvalues of upvalues are looked at so far.
local DEPTH_MAX = 8

-- Does the function, or a Lua function that it or one within it refers to, have the name as a constant?
local function mentions(fn, name, depth, seen)
  if seen[fn] or depth > DEPTH_MAX then
    return false
  end
  seen[fn] = true
  local ok, code = pcall(dump, fn, true)
  if ok and code:find(name, 1, true) then
    return true
  end
  for i = 1, ok and 255 or 0 do
    local upvalue, value = getupvalue(fn, i)
    if not upvalue then
      return false
    elseif type(value) == "function" and mentions(value, name, depth + 1, seen) then
      return true
    end
  end
  return false
end

local function is_said(job, key)
  return job.origins[key] ~= nil
end

-- By what is refused: is it there?
local REFUSED = {
  { "after", function(job) return job.after ~= nil end },
  { 'overlap = "queue"', function(job) return job.settings.overlap == "queue" end },
  { 'overlap = "replace"', function(job) return job.settings.overlap == "replace" end },
  { "catchup", function(job) return is_said(job, "catchup") and job.settings.catchup ~= "none" end },
  { "retry", function(job)
    return job.settings.retry and (job.settings.retry.attempts or 1) > 1
  end },
  { "assert_held", function(job)
    return type(job.fn) == "function" and mentions(job.fn, "assert_held", 0, {})
  end },
}

--- Add the faults of a Set's jobs to it.
---@param set Set
function stateless.check(set)
  for _, audit in ipairs(set.audits) do
    for _, key in ipairs { "on_open", "on_close" } do
      if audit[key] then
        sets.fault(set, audit, ("audit %s: %s needs the state tables, which --stateless does without"):format(
          validation.described(audit.name), key))
      end
    end
  end
  for _, job in ipairs(set.jobs) do
    for _, refused in ipairs(REFUSED) do
      if refused[2](job) then
        sets.fault(set, job, ("job %s: %s needs the state tables, which --stateless does without"):format(
          validation.described(job.name), refused[1]))
      end
    end
  end
end

return stateless
