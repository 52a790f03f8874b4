--- Command lines: options and operands by a specification, and the help made from it.
--
-- A specification: { usage =, summary =, text =, options = { { "-d", "--dsn", value = "CONNINFO",
-- key = "dsn", kind = "text", help = "…" }, … }, operands = { min =, max = }, rest = true }.
-- kind: "flag" (default without value), "text", "duration", "integer". With `rest` everything from
-- the first operand on is left as it is.
local core = require "lockkeeper.core"

local options = {}

--- Raised for wrong words: shown with the way to the help, exit code 2.
local function wrong(message)
  error({ words = message }, 0)
end
options.wrong = wrong

local function find(spec, name)
  for _, option in ipairs(spec.options) do
    for _, spelling in ipairs(option) do
      if spelling == name then
        return option
      end
    end
  end
end

local function nearest(spec, name)
  local known = {}
  for _, option in ipairs(spec.options) do
    for _, spelling in ipairs(option) do
      known[#known + 1] = spelling
    end
  end
  local near = core.nearest(name, known)
  return near and ("; did you mean %s?"):format(near) or ""
end

local function quoted(text)
  return #text > 60 and ("a text of %d bytes"):format(#text) or ('"%s"'):format(text)
end

-- A duration on the command line may be a plain number of seconds too; "false" is without limit.
local function duration(text, name)
  if text == "false" then
    return false
  end
  local ok, result = pcall(core.duration, tonumber(text) or text, name)
  if not ok then
    wrong(result.message)
  end
  return result
end

local function convert(option, name, text)
  local kind = option.kind or "text"
  if kind == "duration" then
    return duration(text, name)
  elseif kind == "integer" then
    local number = math.tointeger(tonumber(text))
    local low, high = option.from or math.mininteger, option.to or math.maxinteger
    if not number or number < low or number > high then
      wrong(("%s takes a whole number%s, not %s"):format(name,
        option.from and (" from %d to %d"):format(low, high) or "", quoted(text)))
    end
    return number
  end
  return text
end

-- "--name=value", "-nvalue" (one option a word), or the value in the next word.
local function split(word)
  local name, value = word:match("^(%-%-[^=]+)=(.*)$")
  if name then
    return name, value
  end
  if word:match("^%-[^%-].") then
    return word:sub(1, 2), word:sub(3)
  end
  return word
end

--- Parse `words` by `spec`. Returns the values by key, and the operands.
function options.parse(spec, words)
  local values, operands = {}, {}
  local i = 1
  while i <= #words do
    local word = words[i]
    if word == "--" then
      table.move(words, i + 1, #words, #operands + 1, operands)
      break
    elseif word:sub(1, 1) ~= "-" or word == "-" then
      if spec.rest then
        table.move(words, i, #words, #operands + 1, operands)
        break
      end
      operands[#operands + 1] = word
    else
      local name, value = split(word)
      local option = find(spec, name)
      if not option then
        wrong(("unknown option %s%s"):format(name, nearest(spec, name)))
      elseif not option.value then
        if value then
          wrong(("%s takes no value"):format(name))
        end
        values[option.key] = option.set == nil and true or option.set
      else
        if not value then
          i = i + 1
          value = words[i]
          if not value then
            wrong(("%s needs a value: %s %s"):format(name, name, option.value))
          end
        end
        values[option.key] = convert(option, name, value)
      end
    end
    i = i + 1
  end
  local allowed = spec.operands or { min = 0, max = 0 }
  if #operands < allowed.min then
    wrong(("%s is missing"):format(allowed.name or "an operand"))
  elseif allowed.max and #operands > allowed.max then
    wrong(("%s is one word too many"):format(quoted(operands[allowed.max + 1])))
  end
  return values, operands
end

--- The help of a command.
function options.help(spec)
  local lines = { "Usage: " .. spec.usage, "", spec.summary }
  if spec.text then
    lines[#lines + 1] = ""
    lines[#lines + 1] = spec.text
  end
  lines[#lines + 1] = ""
  local heads, width = {}, 0
  for i, option in ipairs(spec.options) do
    heads[i] = "  " .. table.concat(option, ", ") .. (option.value and " " .. option.value or "")
    width = math.max(width, #heads[i])
  end
  for i, option in ipairs(spec.options) do
    lines[#lines + 1] = heads[i] .. (" "):rep(width - #heads[i] + 2) .. option.help
  end
  return table.concat(lines, "\n") .. "\n"
end

return options
