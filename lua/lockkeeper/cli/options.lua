--- Command lines: options and operands by a specification, and the help made from it.
--
-- A specification: { usage =, summary =, text = { paragraph, … }, operands = { min =, max =, name = },
-- rest = true, options = { { "-w", "--timeout", value = "D", key = "timeout", kind = "duration",
-- help = "…" }, … } }. kind: "text" (the default), "duration", "integer" (`from`, `to`), "choice" (of
-- `choices`); an option without `value` is a flag; `list = true`: it may be given several times, and
-- its values are a list; `optional`: a function that tells whether the next word is its value, without
-- which it is `true` (--name=value always gives one). With `rest` everything from the first operand on is
-- left as it is.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"

local options = {}

-- Where the text of an option begins at most, and how wide the help is where it goes to no terminal.
local HELP_COLUMN, HELP_WIDTH = 24, 80

local wrong = failure.words

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

--- A word for a message: in quotes, and not endless.
local function quoted(text)
  return #text > 60 and ("a text of %d bytes"):format(#text) or ('"%s"'):format(text)
end
options.quoted = quoted

--- An option for a message, or (up to `limit` bytes) something longer.
local function shown(name, limit)
  limit = limit or 60
  return #name > limit and name:sub(1, limit) .. "…" or name
end
options.shown = shown

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
  elseif kind == "choice" then
    for _, choice in ipairs(option.choices) do
      if choice == text then
        return text
      end
    end
    local near = core.nearest(text, option.choices)
    wrong(("%s must be one of %s, not %s%s"):format(name, table.concat(option.choices, ", "), quoted(text),
      near and ("; did you mean %s?"):format(near) or ""))
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

--- Parse `words` by `spec`. Returns the values by key, and the operands. A negative number is an
--- operand.
function options.parse(spec, words)
  local values, operands = {}, {}
  local i = 1
  while i <= #words do
    local word = words[i]
    if word == "--" then
      table.move(words, i + 1, #words, #operands + 1, operands)
      break
    elseif word:sub(1, 1) ~= "-" or word == "-" or word:find("^%-%d+$") or word:find("^%-%d+,") then
      if spec.rest then
        table.move(words, i, #words, #operands + 1, operands)
        break
      end
      operands[#operands + 1] = word
    else
      local name, value = split(word)
      local option = find(spec, name)
      if not option then
        wrong(("unknown option %s%s"):format(shown(name), nearest(spec, name)))
      elseif option.optional and not value and not option.optional(words[i + 1] or "-") then
        values[option.key] = values[option.key] or true
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
        value = convert(option, name, value)
        if option.list then
          local list = type(values[option.key]) == "table" and values[option.key] or {}
          list[#list + 1], values[option.key] = value, list
        else
          values[option.key] = value
        end
      end
    end
    i = i + 1
  end
  return values, operands
end

--- Are there as many operands as the command takes?
function options.check_operands(spec, operands)
  local allowed = spec.operands
  if #operands < allowed.min then
    wrong(allowed.name .. " is missing")
  elseif allowed.max and #operands > allowed.max then
    wrong(("%s is one word too many"):format(quoted(operands[allowed.max + 1])))
  end
end

-- Append a text to `lines`, broken between words; `head` goes before the first line, and the others
-- begin at `column`.
local function fill(lines, head, column, text, width)
  local line = head .. (" "):rep(column - #head)
  local empty = true
  for word in text:gmatch("%S+") do
    if not empty and utf8.len(line) + 1 + utf8.len(word) > width then
      lines[#lines + 1] = line
      line, empty = (" "):rep(column), true
    end
    line = line .. (empty and "" or " ") .. word
    empty = false
  end
  lines[#lines + 1] = line
end

--- The help of a command, for a terminal of that width.
function options.help(spec, width)
  width = math.max(40, math.min(width or HELP_WIDTH, 100))
  local lines = { "Usage: " .. spec.usage, "" }
  for _, text in ipairs { spec.summary, table.unpack(spec.text or {}) } do
    fill(lines, "", 0, text, width)
    lines[#lines + 1] = ""
  end
  for _, option in ipairs(spec.options) do
    local head = "  " .. table.concat(option, ", ") .. (option.value and " " .. option.value or "")
    if #head > HELP_COLUMN - 2 then
      lines[#lines + 1] = head
      head = ""
    end
    fill(lines, head, HELP_COLUMN, option.help, width)
  end
  return table.concat(lines, "\n") .. "\n"
end

return options
