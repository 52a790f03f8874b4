--- Lua's patterns, with an end: string.find, match and gsub for patterns and texts that others chose.
--
-- Matching goes back and tries again where a pattern repeats something, and can take longer than anybody
-- waits for; inside string.find it can't even be interrupted. What surely ends soon is left to string.find.
-- The rest is matched here, in Lua, by the same rules and counting its steps; too many are an error.
-- Source: Lua 5.4 manual, "Patterns".
local core = require "lockkeeper.core"

local byte, char, find, sub = string.byte, string.char, string.find, string.sub

local pattern = {}

-- How many steps string.find may take by the count below, and how many are taken here (a fraction of a
-- second).
local QUICK, STEPS_MAX = 1e6, 1e6

-- Of a capture that is open, and of one that is a position.
local OPEN, POSITION = -1, -2

---@class PatternMatch
---@field text string
---@field pattern string
---@field level integer     how many captures there are
---@field from integer[]    where each begins
---@field length integer[]  how long each is, or OPEN, or POSITION
---@field steps integer     that are left
---@field sets table<integer, table<integer, boolean>>  by the place of a single character's pattern

-- A byte that stands for a repetition, after what is repeated.
local STAR, PLUS, MINUS, QUESTION = byte("*+-?", 1, 4)
local ESCAPE, OPENING, CLOSING, DOLLAR, DOT, BRACKET, SET_END, CARET = byte("%()$.[]^", 1, 8)

local function item_end(m, p)
  local text = m.pattern
  local first = byte(text, p)
  if first == ESCAPE then
    if p == #text then
      error("malformed pattern (ends with '%')", 0)
    end
    return p + 2
  elseif first ~= BRACKET then
    return p + 1
  end
  p = byte(text, p + 1) == CARET and p + 2 or p + 1
  repeat
    local c = byte(text, p)
    if not c then
      error("malformed pattern (missing ']')", 0)
    end
    p = c == ESCAPE and p + 2 or p + 1
  until byte(text, p) == SET_END
  return p + 1
end

local function spend(m, steps)
  m.steps = m.steps - steps
  if m.steps < 0 then
    core.usage(("a pattern that takes more than %d steps on a text of %d bytes"):format(STEPS_MAX, #m.text))
  end
end

-- Does the byte at s match the single character's pattern from p to before stop?
local function matches_one(m, s, p, stop)
  spend(m, 1)
  local c = byte(m.text, s)
  if not c then
    return false
  end
  local first = byte(m.pattern, p)
  if stop == p + 1 then
    return first == DOT or first == c
  end
  -- A class or a set: as Lua has it, asked once for each byte.
  local set = m.sets[p]
  if not set then
    set = {}
    m.sets[p] = set
  end
  local result = set[c]
  if result == nil then
    result = find(char(c), sub(m.pattern, p, stop - 1)) ~= nil
    set[c] = result
  end
  return result
end

local match

local function longest(m, s, p, stop)
  local count = 0
  while matches_one(m, s + count, p, stop) do
    count = count + 1
  end
  for i = count, 0, -1 do
    local e = match(m, s + i, stop + 1)
    if e then
      return e
    end
  end
end

local function shortest(m, s, p, stop)
  while true do
    local e = match(m, s, stop + 1)
    if e then
      return e
    elseif not matches_one(m, s, p, stop) then
      return nil
    end
    s = s + 1
  end
end

local function start_capture(m, s, p, kind)
  local level = m.level + 1
  if level > 32 then
    error("too many captures", 0)
  end
  m.from[level], m.length[level], m.level = s, kind, level
  local e = match(m, s, p)
  if not e then
    m.level = level - 1
  end
  return e
end

local function end_capture(m, s, p)
  local level = m.level
  while level > 0 and m.length[level] ~= OPEN do
    level = level - 1
  end
  if level == 0 then
    error("invalid pattern capture", 0)
  end
  m.length[level] = s - m.from[level]
  local e = match(m, s, p)
  if not e then
    m.length[level] = OPEN
  end
  return e
end

-- %b(): where the balanced text that begins at s ends.
local function balanced(m, s, p)
  local first, last = byte(m.pattern, p, p + 1)
  if not last then
    error("malformed pattern (missing arguments to '%b')", 0)
  elseif byte(m.text, s) ~= first then
    return nil
  end
  local depth = 1
  spend(m, #m.text - s)
  for i = s + 1, #m.text do
    local c = byte(m.text, i)
    if c == last then
      depth = depth - 1
      if depth == 0 then
        return i + 1
      end
    elseif c == first then
      depth = depth + 1
    end
  end
end

-- %f[set]: does s stand between a byte that is not in the set and one that is?
local function is_frontier(m, s, p, stop)
  local set = sub(m.pattern, p, stop - 1)
  local before, after = s == 1 and "\0" or sub(m.text, s - 1, s - 1), sub(m.text, s, s)
  return not find(before, set) and find(after == "" and "\0" or after, set) ~= nil
end

local function captured_again(m, s, digit)
  local index = digit - 48
  if index < 1 or index > m.level or m.length[index] == OPEN then
    error(("invalid capture index %%%d"):format(index), 0)
  end
  local length = m.length[index]
  if length == POSITION then
    return nil
  end
  spend(m, length)
  if sub(m.text, s, s + length - 1) == sub(m.text, m.from[index], m.from[index] + length - 1) then
    return s + length
  end
end

-- What begins with a % and is no single character: the end of its match and what follows it, or nil;
-- false where it is one after all.
local function special(m, s, p)
  local kind = byte(m.pattern, p + 1)
  if kind == 98 then -- b
    return balanced(m, s, p + 2), p + 4
  elseif kind == 102 then -- f
    if byte(m.pattern, p + 2) ~= BRACKET then
      error("missing '[' after '%f' in pattern", 0)
    end
    local stop = item_end(m, p + 2)
    return is_frontier(m, s, p + 2, stop) and s or nil, stop
  elseif kind and kind >= 48 and kind <= 57 then
    return captured_again(m, s, kind), p + 2
  end
  return false
end

-- Where the match of the pattern from p on, at s, ends; nil: there is none.
function match(m, s, p)
  local text = m.pattern
  while p <= #text do
    local c = byte(text, p)
    local after
    if c == OPENING then
      if byte(text, p + 1) == CLOSING then
        return start_capture(m, s, p + 2, POSITION)
      end
      return start_capture(m, s, p + 1, OPEN)
    elseif c == CLOSING then
      return end_capture(m, s, p + 1)
    elseif c == DOLLAR and p == #text then
      return s == #m.text + 1 and s or nil
    end
    local e = false
    if c == ESCAPE then
      e, after = special(m, s, p)
    end
    if e == nil then
      return nil
    elseif e then
      s, p = e, after
    else
      local stop = item_end(m, p)
      local repeats = byte(text, stop)
      if repeats == STAR then
        return longest(m, s, p, stop)
      elseif repeats == MINUS then
        return shortest(m, s, p, stop)
      elseif repeats == PLUS then
        return matches_one(m, s, p, stop) and longest(m, s + 1, p, stop) or nil
      elseif repeats == QUESTION then
        if matches_one(m, s, p, stop) then
          e = match(m, s + 1, stop + 1)
          if e then
            return e
          end
        end
        p = stop + 1
      elseif matches_one(m, s, p, stop) then
        s, p = s + 1, stop
      else
        return nil
      end
    end
  end
  return s
end

local function capture(m, index)
  local length = m.length[index]
  if length == OPEN then
    error("unfinished capture", 0)
  elseif length == POSITION then
    return m.from[index]
  end
  return sub(m.text, m.from[index], m.from[index] + length - 1)
end

-- The first match that begins at `init` or later: where it begins and ends, and the match.
local function search(m, init)
  local anchored = byte(m.pattern) == CARET
  local s = init
  repeat
    m.level = 0
    local e = match(m, s, anchored and 2 or 1)
    if e then
      return s, e - 1
    end
    s = s + 1
  until anchored or s > #m.text + 1
end

local function new_match(text, wanted)
  return { text = text, pattern = wanted, level = 0, from = {}, length = {}, steps = STEPS_MAX, sets = {} }
end

-- By a rough count: each repetition may try every length at every place. So do %b and %1.
local function is_quick(text, wanted)
  if not find(wanted, "[%^$*+?.(%[%%%-]") then
    return true
  end
  local _, repetitions = wanted:gsub("[*+?%-]", "")
  repetitions = repetitions + select(2, wanted:gsub("%%[b%d]", ""))
  local places = #text + 1
  local steps = places
  for i = 1, repetitions do
    steps = steps * places / i
  end
  return steps <= QUICK
end

local function start_of(text, init)
  if init < 0 then
    return math.max(#text + init + 1, 1)
  end
  return math.max(init, 1)
end

local function check(text, wanted, init)
  if type(text) ~= "string" or type(wanted) ~= "string" or init and not math.tointeger(init) then
    error("a text and a pattern were expected, and where to begin", 0)
  end
end

--- As string.find.
---@param text string
---@param wanted string
---@param init? integer
---@param plain? boolean
function pattern.find(text, wanted, init, plain)
  check(text, wanted, init)
  init = start_of(text, init or 1)
  if plain or is_quick(text, wanted) then
    return find(text, wanted, init, plain)
  elseif init > #text + 1 then
    return nil
  end
  local m = new_match(text, wanted)
  local from, to = search(m, init)
  if not from then
    return nil
  end
  local captures = {}
  for i = 1, m.level do
    captures[i] = capture(m, i)
  end
  return from, to, table.unpack(captures, 1, m.level)
end

--- As string.match.
---@param text string
---@param wanted string
---@param init? integer
function pattern.match(text, wanted, init)
  check(text, wanted, init)
  if is_quick(text, wanted) then
    return text:match(wanted, init)
  end
  local found = table.pack(pattern.find(text, wanted, init))
  if found.n > 2 then
    return table.unpack(found, 3, found.n)
  end
  return found[1] and sub(text, found[1], found[2])
end

-- What a replacement makes of a match.
local function replaced(m, from, to, replacement)
  return (replacement:gsub("%%(.?)", function(c)
    if c == "%" then
      return "%"
    elseif c == "0" then
      return sub(m.text, from, to)
    elseif not find(c, "%d") then
      error("invalid use of '%' in replacement string", 0)
    elseif c == "1" and m.level == 0 then
      return sub(m.text, from, to)
    elseif tonumber(c) > m.level then
      error(("invalid capture index %%%s in replacement string"):format(c), 0)
    end
    return tostring(capture(m, tonumber(c)))
  end))
end

--- As string.gsub with a text as the replacement.
---@param text string
---@param wanted string
---@param replacement string
---@param limit? integer
---@return string, integer
function pattern.gsub(text, wanted, replacement, limit)
  check(text, wanted, limit)
  if is_quick(text, wanted) then
    return text:gsub(wanted, replacement, limit)
  end
  local m = new_match(text, wanted)
  local anchored = byte(wanted) == CARET
  local parts, count, s, last = {}, 0, 1, nil
  limit = limit or #text + 1
  while count < limit do
    m.level = 0
    local e = match(m, s, anchored and 2 or 1)
    if e and e ~= last then -- not an empty match where the one before has ended
      count = count + 1
      parts[#parts + 1] = replaced(m, s, e - 1, replacement)
      s, last = e, e
    elseif s <= #text then
      parts[#parts + 1] = sub(text, s, s)
      s = s + 1
    else
      break
    end
    if anchored then
      break
    end
  end
  parts[#parts + 1] = sub(text, s)
  return table.concat(parts), count
end

return pattern
