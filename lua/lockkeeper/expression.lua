--- Expressions over a row, as Lua writes them: wait_duration > 5 and mode == "ACCESS EXCLUSIVE".
--
-- They come from command lines and configuration files, so nothing but the row is in reach: they are
-- not run by Lua but read here, into closures. There are the row's fields, as filters name them
-- (lockkeeper.filter) or as activity.query, literals, Lua's operators, the functions of `string` and
-- `math`, methods of texts (query:lower()), and duration("5s"), which gives seconds. There are no other
-- names, no tables, no functions and so no loops; what an expression may take is bounded.
--
-- A nil field behaves as null does in SQL, and so does one that this role may not see: a comparison or
-- an operation with it is neither true nor false, and such a row is left out. `x == nil` asks for it.
local core = require "lockkeeper.core"
local filter = require "lockkeeper.filter"
local pattern = require "lockkeeper.pattern"

local type, tonumber = type, tonumber
local find, sub, match = string.find, string.sub, string.match

local expression = {}

-- Bytes of an expression, how deep it may nest, and bytes of a text that it makes.
local LENGTH_MAX, DEPTH_MAX, TEXT_MAX = 10000, 100, 4 * 1024 * 1024

-- Neither true nor false: SQL's null.
local UNKNOWN = {}

---------------------------------------------------------------------------------------------------
-- functions

local function bounded(size)
  if size > TEXT_MAX then
    core.usage(("a text of more than %d bytes"):format(TEXT_MAX))
  end
end

local STRING = {
  byte = string.byte, char = string.char, len = string.len, lower = string.lower, upper = string.upper,
  reverse = string.reverse, sub = string.sub, format = string.format,
  find = pattern.find, match = pattern.match,
}

function STRING.rep(text, count, separator)
  if type(text) == "string" and type(count) == "number" and count > 0 then
    bounded((#text + #(separator or "")) * count)
  end
  return text:rep(count, separator)
end

-- What is put in place of the matches is no longer than this, whatever they are: they do not overlap.
function STRING.gsub(text, wanted, replacement, limit)
  if type(replacement) ~= "string" then
    core.usage("gsub takes a text as its replacement")
  elseif type(text) == "string" then
    bounded((#text + 1) * (#replacement + 1))
  end
  return pattern.gsub(text, wanted, replacement, limit)
end

local MATH = {}
for name, value in pairs(math) do
  if name ~= "randomseed" then
    MATH[name] = value
  end
end

local LIBRARIES = { string = STRING, math = MATH }

local function seconds(value)
  return core.duration(value, "duration")
end

---------------------------------------------------------------------------------------------------
-- words

-- Those of two characters; -- is one of no meaning, not two minus signs.
local SYMBOLS = { ["=="] = true, ["~="] = true, ["<="] = true, [">="] = true, ["//"] = true, [".."] = true,
  ["<<"] = true, [">>"] = true, ["--"] = true }

local RESERVED = {}
for name in ("and break do else elseif end false for function goto if in local nil not or repeat return "
  .. "then true until while"):gmatch("%l+") do
  RESERVED[name] = true
end

---@class ExpressionReader
---@field text string
---@field what string     begins messages
---@field at integer      where the token begins
---@field kind string     "name", "number", "string", "symbol" (reserved words too) or "end"
---@field value any
---@field next_at integer where the token after it begins, or space before it

local function fail(reader, message, at, rest)
  at = at or reader.at
  local before = sub(reader.text, 1, at - 1)
  core.usage(("%s: %s at character %d%s"):format(reader.what, message, (utf8.len(before) or #before) + 1,
    rest or ""))
end

local function token_text(reader)
  if reader.kind == "end" then
    return "the end"
  end
  local text = sub(reader.text, reader.at, reader.next_at - 1)
  return #text > 30 and text:sub(1, utf8.offset(text, 0, 28) - 1) .. "…" or text
end

local function unexpected(reader)
  fail(reader, reader.kind == "end" and "it ends too early," or "unexpected " .. token_text(reader))
end

-- Where a text in quotes or long brackets ends.
local function string_end(reader, at)
  local text, quote = reader.text, sub(reader.text, at, at)
  if quote == "[" then
    local level = match(text, "^%[(=*)%[", at)
    local _, stop = find(text, "]" .. level .. "]", at, true)
    return stop
  end
  local i = at + 1
  while true do
    i = find(text, "[\\\n" .. quote .. "]", i)
    if not i or sub(text, i, i) == "\n" then
      return nil
    elseif sub(text, i, i) == quote then
      return i
    end
    i = i + 2
  end
end

-- Read a text: what it says is up to Lua, to which nothing but the literal is given.
local function read_string(reader, at)
  local stop = string_end(reader, at)
  if not stop then
    fail(reader, "a text without its end")
  end
  local literal = load("return " .. sub(reader.text, at, stop), "=", "t")
  if not literal then
    fail(reader, "a text with an escape that Lua does not know")
  end
  reader.kind, reader.value, reader.next_at = "string", literal(), stop + 1
end

local function read_number(reader, at)
  local text = reader.text
  local word = match(text, "^0[xX][%w.]*", at)
  if not word then
    word = match(text, "^[%d.]+[eE][+-]?%w*", at) or match(text, "^[%d.]+%w*", at)
  end
  reader.kind, reader.value, reader.next_at = "number", tonumber(word), at + #word
  if not reader.value then
    fail(reader, "malformed number " .. token_text(reader))
  end
end

-- Go to the next token.
local function advance(reader)
  local text = reader.text
  local at = find(text, "%S", reader.next_at) or #text + 1
  reader.at = at
  local name = match(text, "^[%a_][%w_]*", at)
  if at > #text then
    reader.kind, reader.value, reader.next_at = "end", nil, at
  elseif name then
    reader.kind, reader.value, reader.next_at = RESERVED[name] and "symbol" or "name", name, at + #name
  elseif find(text, "^%.?%d", at) then
    read_number(reader, at)
  elseif find(text, "^[\"']", at) or find(text, "^%[=*%[", at) then
    read_string(reader, at)
  else
    local symbol = sub(text, at, at + 1)
    if not SYMBOLS[symbol] then
      symbol = match(text, "^" .. utf8.charpattern, at) or sub(text, at, at)
    end
    reader.kind, reader.value, reader.next_at = "symbol", symbol, at + #symbol
  end
end

local function is_symbol(reader, symbol)
  return reader.kind == "symbol" and reader.value == symbol
end

local function accept(reader, symbol)
  if is_symbol(reader, symbol) then
    advance(reader)
    return true
  end
  return false
end

local function expect(reader, symbol)
  if not accept(reader, symbol) then
    fail(reader, ("%s expected instead of %s"):format(symbol, token_text(reader)))
  end
end

---------------------------------------------------------------------------------------------------
-- operators: closures from closures

local function is_null(value)
  return value == nil or value == UNKNOWN
end

-- An operation of which a null makes a null.
local function strict(operation)
  return function(left, right)
    return function(row)
      local a, b = left(row), right(row)
      if a == nil or b == nil or a == UNKNOWN or b == UNKNOWN then
        return UNKNOWN
      end
      return operation(a, b)
    end
  end
end

local function strict_unary(operation)
  return function(operand)
    return function(row)
      local value = operand(row)
      if is_null(value) then
        return UNKNOWN
      end
      return operation(value)
    end
  end
end

local KIND_NAMES = { string = "a text", number = "a number", boolean = "true or false", table = "a table" }

local function ordered(operation)
  return strict(function(a, b)
    local kind, other = type(a), type(b)
    if kind ~= other or kind ~= "number" and kind ~= "string" then
      local text = kind == "string" and a or other == "string" and b
      core.usage(("%s can't be compared with %s%s"):format(KIND_NAMES[kind], KIND_NAMES[other],
        text and pcall(core.duration, text) and ('; duration("%s") gives seconds'):format(text) or ""))
    end
    return operation(a, b)
  end)
end

-- The closure of the literal nil, by which == and ~= know it.
local function literal_nil() end

local function equality(wanted)
  local compare = strict(function(a, b) return (a == b) == wanted end)
  return function(left, right)
    local asked = right == literal_nil and left or left == literal_nil and right
    if not asked then
      return compare(left, right)
    end
    return function(row)
      local value = asked(row)
      if value == UNKNOWN then
        return UNKNOWN
      end
      return (value == nil) == wanted
    end
  end
end

-- False and anything is false, true or anything is true, also where the other side is null.
local function conjunction(left, right)
  return function(row)
    local a = left(row)
    if a ~= UNKNOWN then
      return a and right(row)
    end
    if right(row) == false then
      return false
    end
    return UNKNOWN
  end
end

local function disjunction(left, right)
  return function(row)
    local a = left(row)
    if a ~= UNKNOWN then
      return a or right(row)
    end
    return right(row) or UNKNOWN
  end
end

local function concatenation(a, b)
  if type(a) == "string" and type(b) == "string" then
    bounded(#a + #b)
  end
  return a .. b
end

-- By symbol: how strongly it binds what is left and right of it, and what it does. Source: Lua 5.4
-- manual, "Precedence".
local BINARY = {
  ["or"] = { 1, 1, disjunction },
  ["and"] = { 2, 2, conjunction },
  ["<"] = { 3, 3, ordered(function(a, b) return a < b end) },
  [">"] = { 3, 3, ordered(function(a, b) return a > b end) },
  ["<="] = { 3, 3, ordered(function(a, b) return a <= b end) },
  [">="] = { 3, 3, ordered(function(a, b) return a >= b end) },
  ["=="] = { 3, 3, equality(true) },
  ["~="] = { 3, 3, equality(false) },
  ["|"] = { 4, 4, strict(function(a, b) return a | b end) },
  ["~"] = { 5, 5, strict(function(a, b) return a ~ b end) },
  ["&"] = { 6, 6, strict(function(a, b) return a & b end) },
  ["<<"] = { 7, 7, strict(function(a, b) return a << b end) },
  [">>"] = { 7, 7, strict(function(a, b) return a >> b end) },
  [".."] = { 9, 8, strict(concatenation) },
  ["+"] = { 10, 10, strict(function(a, b) return a + b end) },
  ["-"] = { 10, 10, strict(function(a, b) return a - b end) },
  ["*"] = { 11, 11, strict(function(a, b) return a * b end) },
  ["/"] = { 11, 11, strict(function(a, b) return a / b end) },
  ["//"] = { 11, 11, strict(function(a, b) return a // b end) },
  ["%"] = { 11, 11, strict(function(a, b) return a % b end) },
  ["^"] = { 14, 13, strict(function(a, b) return a ^ b end) },
}

local UNARY_BINDING = 12
local UNARY = {
  ["-"] = strict_unary(function(a) return -a end),
  ["~"] = strict_unary(function(a) return ~a end),
  ["#"] = strict_unary(function(a) return #a end),
  ["not"] = function(operand)
    return function(row)
      local value = operand(row)
      if value == UNKNOWN then
        return UNKNOWN
      end
      return not value
    end
  end,
}

---------------------------------------------------------------------------------------------------
-- operands

local read_expression

-- A field of the row or of one of its activities.
---@param field FilterField
local function field_of(reader, field)
  local holder, name, hidden = field.holder, field.name, reader.hidden
  if not holder then
    return function(row) return row[name] end
  end
  return function(row)
    local activity = row[holder]
    if activity == nil then
      return nil
    end
    local value = activity[name]
    if value == nil and activity.hidden then
      hidden[name] = true
      return UNKNOWN
    end
    return value
  end
end

local function read_name(reader)
  if reader.kind ~= "name" then
    fail(reader, "a name expected instead of " .. token_text(reader))
  end
  local name, at = reader.value, reader.at
  advance(reader)
  return name, at
end

local function unknown(reader, name, known, at)
  local rest = known == reader.fields and "; there are the row's fields, string, math and duration()" or ""
  local words = {}
  for word in pairs(known) do
    words[#words + 1] = type(word) == "string" and word or nil
  end
  table.sort(words)
  local near = core.nearest(name, words)
  fail(reader, ("unknown name %s"):format(#name > 60 and name:sub(1, 60) .. "…" or name), at,
    near and ("; did you mean %s?"):format(near) or rest)
end

-- (a, b) or "text": a list of closures, after `first` if there is one.
local function read_arguments(reader, first)
  local list = { first }
  if reader.kind == "string" then
    local value = reader.value
    advance(reader)
    list[#list + 1] = function() return value end
    return list
  end
  expect(reader, "(")
  if not accept(reader, ")") then
    repeat
      list[#list + 1] = read_expression(reader, 0)
    until not accept(reader, ",")
    expect(reader, ")")
  end
  return list
end

-- A call with values of which none is null.
local function call(fn, arguments)
  local count = #arguments
  return function(row)
    local values = {}
    for i = 1, count do
      local value = arguments[i](row)
      if is_null(value) then
        return UNKNOWN
      end
      values[i] = value
    end
    return (fn(table.unpack(values, 1, count)))
  end
end

local function is_call(reader)
  return is_symbol(reader, "(") or reader.kind == "string"
end

-- string.name(…), math.name(…) or math.name.
local function read_library(reader, library)
  expect(reader, ".")
  local name, at = read_name(reader)
  local member = LIBRARIES[library][name]
  if member == nil then
    unknown(reader, name, LIBRARIES[library], at)
  elseif type(member) ~= "function" then
    return function() return member end
  elseif not is_call(reader) then
    fail(reader, ("%s.%s must be called"):format(library, name), at)
  end
  return call(member, read_arguments(reader))
end

-- activity.name
local function read_activity(reader, holder)
  expect(reader, ".")
  local name, at = read_name(reader)
  if not filter.FIELDS.sessions[name] then
    unknown(reader, name, filter.FIELDS.sessions, at)
  end
  return field_of(reader, { name = name, holder = holder })
end

local function read_named(reader)
  local name, at = read_name(reader)
  if name == "duration" and is_call(reader) then
    return call(seconds, read_arguments(reader))
  elseif LIBRARIES[name] then
    return read_library(reader, name)
  elseif name == "activity" or name == "blocking_activity" and reader.fields.blocking_user then
    return read_activity(reader, name)
  end
  local field = reader.fields[name]
  if not field then
    unknown(reader, name, reader.fields, at)
  end
  return field_of(reader, field)
end

local LITERALS = {
  ["true"] = function() return true end,
  ["false"] = function() return false end,
  ["nil"] = literal_nil,
}

local function read_primary(reader)
  if reader.kind == "name" then
    return read_named(reader)
  elseif reader.kind == "string" or reader.kind == "number" then
    local value = reader.value
    advance(reader)
    return function() return value end
  elseif accept(reader, "(") then
    local inner = read_expression(reader, 0)
    expect(reader, ")")
    return inner
  end
  local literal = reader.kind == "symbol" and LITERALS[reader.value]
  if not literal then
    unexpected(reader)
  end
  advance(reader)
  return literal
end

local function method_of(name)
  local fn = STRING[name]
  return function(value, ...)
    if type(value) ~= "string" then
      core.usage((":%s() is for texts, not for %s"):format(name, KIND_NAMES[type(value)]))
    end
    return fn(value, ...)
  end
end

-- What may follow: methods of texts, and elements of a key of two parts.
local function read_suffixed(reader)
  local value = read_primary(reader)
  while true do
    if accept(reader, ":") then
      local name, at = read_name(reader)
      if not STRING[name] then
        unknown(reader, name, STRING, at)
      end
      value = call(method_of(name), read_arguments(reader, value))
    elseif accept(reader, "[") then
      local index = read_expression(reader, 0)
      expect(reader, "]")
      value = strict(function(list, i) return type(list) == "table" and list[i] or nil end)(value, index)
    else
      return value
    end
  end
end

-- An expression of operators that bind more strongly than `limit`.
function read_expression(reader, limit)
  reader.depth = reader.depth + 1
  if reader.depth > DEPTH_MAX then
    fail(reader, "nested too deeply")
  end
  local value
  local unary = reader.kind == "symbol" and UNARY[reader.value]
  if unary then
    advance(reader)
    value = unary(read_expression(reader, UNARY_BINDING))
  else
    value = read_suffixed(reader)
  end
  while true do
    local binary = reader.kind == "symbol" and BINARY[reader.value]
    if not binary or binary[1] <= limit then
      break
    end
    advance(reader)
    value = binary[3](value, read_expression(reader, binary[2]))
  end
  reader.depth = reader.depth - 1
  return value
end

---------------------------------------------------------------------------------------------------
-- expressions

---@class Expression
local Expression = {}
Expression.__index = Expression

--- Is it true of the row? An operation that can't be done, as in "a" < 1, is a usage error.
---@param row table
---@return boolean
function Expression:matches(row)
  local ok, value = pcall(self.root, row)
  if not ok then
    local message = type(value) == "table" and value.kind == "usage" and value.message
      or type(value) == "string" and value:gsub("^[^\n]-:%d+: ", ""):gsub(" %(local '.-'%)", "")
    if not message then
      error(value, 0)
    end
    core.usage(("%s: %s"):format(self.what, message))
  elseif value ~= UNKNOWN then
    for name in pairs(self.hidden) do
      self.hidden[name] = nil
    end
    return value ~= nil and value ~= false
  end
  if next(self.hidden) then
    self.hidden_count = self.hidden_count + 1
    for name in pairs(self.hidden) do
      self.hidden_fields[name], self.hidden[name] = true, nil
    end
  end
  return false
end

--- Log, once, where a field that this role may not see is why rows were left out.
function Expression:report()
  if self.hidden_count > 0 and not self.reported then
    self.reported = true
    filter.report_hidden(self.what, self.hidden_count, self.hidden_fields)
  end
end

--- Read an expression. A mistake in it is a usage error that names its place.
---@param text string
---@param options { name?: "locks"|"blocked"|"sessions", fields?: table<string, FilterField>, what?: string }
---  whose fields, or these; `what` begins messages (default: "the expression")
---@return Expression
function expression.compile(text, options)
  local what = options.what or "the expression"
  if #text > LENGTH_MAX then
    core.usage(("%s has %d bytes, more than %d"):format(what, #text, LENGTH_MAX))
  end
  local hidden = {}
  local reader = { text = text, what = what, fields = options.fields or filter.FIELDS[options.name],
    next_at = 1, depth = 0, hidden = hidden }
  advance(reader)
  if reader.kind == "end" then
    core.usage(what .. " is empty")
  end
  local root = read_expression(reader, 0)
  if reader.kind ~= "end" then
    unexpected(reader)
  end
  return setmetatable({ root = root, what = what, hidden = hidden, hidden_fields = {}, hidden_count = 0 },
    Expression)
end

return expression
