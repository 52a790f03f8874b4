--- Numbers of runs on the command line: "4818", or "#4818", which no job's name is taken for.
local failure = require "lockkeeper.cli.failure"
local options = require "lockkeeper.cli.options"

local run_number = {}

local function number_of(digits, word)
  local number = math.tointeger(tonumber(digits))
  if not number or number < 1 then
    failure.words(("%s is no number of a run"):format(options.quoted(word)))
  end
  return number
end

--- The run that a word means; nil where it is a job's name. `marked`: only "#4818" means one.
---@param word string
---@param marked? boolean
---@return integer?
function run_number.of(word, marked)
  local digits = word:match("^#(.*)$")
  if digits then
    return number_of(digits:match("^%d+$") or "", word)
  elseif not marked and word:find("^%d+$") then
    return number_of(word, word)
  elseif word == "" then
    failure.words("JOB is empty")
  end
  return nil
end

return run_number
