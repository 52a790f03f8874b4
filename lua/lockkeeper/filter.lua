--- The filter language: which rows are meant.
--
-- A filter is nil (every row), a function of the row, or a table of conditions that must all hold:
-- { state = "idle in transaction", wait_duration_gt = "5s", pid = { 12, 13 }, blocking_user = "app" }.
-- A key is a field of the row, else of its `activity`, or with the prefix `blocking_` the blocker's,
-- with or without a suffix as Django spells it:
--
--   none, exact, in           equals the value, or one of a list
--   ne                        equals neither the value nor any of a list
--   gt gte lt lte             greater or less; modes by their strength
--   like ilike                SQL's LIKE: % any text, _ one character, \ takes their meaning away
--   contains icontains startswith istartswith endswith iendswith iexact
--   isnull                    true: the field is nil; false: it is not
--
-- The forms with i take ASCII letters of either case for equal. Durations are seconds or "5s"; times are
-- epoch seconds or "2027-03-28T01:00:00Z"; modes are written "ACCESS EXCLUSIVE", ACCESS_EXCLUSIVE or
-- AccessExclusiveLock in any case; a key is an integer, its decimal text, or "(1, 2)" for two int4 keys;
-- a relation is "orders", or "public.orders" in that schema only.
--
-- As in SQL a nil field fulfils nothing but isnull. Besides there are `where` (a function of the row),
-- `on` (relations) and `limit`: what they mean is up to whoever reads the rows.
local core = require "lockkeeper.core"

local type, tonumber, math_type = type, tonumber, math.type
local find, lower, sub, gsub = string.find, string.lower, string.sub, string.gsub

local filter = {}

-- Names and kinds in turn, in the order in which they are shown.
local LOCK = {
  "pid", "integer", "type", "word", "mode", "mode", "granted", "boolean", "fastpath", "boolean",
  "schema", "text", "relation", "relation", "relation_kind", "word", "database", "text",
  "key", "key", "lock_name", "text", "classid", "integer", "objid", "integer", "objsubid", "integer",
  "transactionid", "integer", "virtualxid", "text", "page", "integer", "tuple", "integer",
  "wait_start", "time", "wait_duration", "duration",
}
local BLOCKING = { "blocking_pid", "integer", "blocking_mode", "mode" }
local ACTIVITY = {
  "pid", "integer", "leader_pid", "integer", "user", "text", "database", "text",
  "application_name", "text", "client_addr", "text", "backend_type", "text", "state", "text",
  "wait_event_type", "text", "wait_event", "text", "query", "text", "query_id", "integer",
  "backend_start", "time", "xact_start", "time", "query_start", "time", "state_change", "time",
  "duration", "duration", "xact_duration", "duration", "state_duration", "duration",
}

---@class FilterField
---@field key string      what filters call it: blocking_user
---@field name string     what its row or activity calls it: user
---@field kind string     what its values are
---@field holder? string  "activity" or "blocking_activity"; nil: it stands in the row itself

-- Add those fields to a set that it has not yet.
local function add_fields(set, names, holder, prefix)
  for i = 1, #names, 2 do
    local key = (prefix or "") .. names[i]
    if not set[key] then
      local field = { key = key, name = names[i], kind = names[i + 1], holder = holder }
      set[key], set[#set + 1] = field, field
    end
  end
end

local LOCKS, BLOCKED, SESSIONS = {}, {}, {}
add_fields(LOCKS, LOCK)
add_fields(LOCKS, ACTIVITY, "activity")
add_fields(BLOCKED, LOCK)
add_fields(BLOCKED, BLOCKING)
add_fields(BLOCKED, ACTIVITY, "activity")
add_fields(BLOCKED, ACTIVITY, "blocking_activity", "blocking_")
add_fields(SESSIONS, ACTIVITY)

--- The fields by kind of row: of lock.locks, of lock.blocked, and of sessions, which are activities.
--- Each is in its set by its key, and by its place in the order in which fields are shown.
---@type table<"locks"|"blocked"|"sessions", table<string|integer, FilterField>>
filter.FIELDS = { locks = LOCKS, blocked = BLOCKED, sessions = SESSIONS }

---------------------------------------------------------------------------------------------------
-- values

local function shown(value)
  local kind = type(value)
  if kind == "string" then
    return #value > 60 and ("a text of %d bytes"):format(#value) or ('"%s"'):format(value)
  elseif kind == "number" or kind == "boolean" then
    return tostring(value)
  end
  return "a " .. kind
end

local function wrong(what, expected, value)
  core.usage(("%s takes %s, not %s"):format(what, expected, shown(value)))
end

local BOOLEANS = {
  ["true"] = true, t = true, yes = true, y = true, on = true, ["1"] = true,
  ["false"] = false, f = false, no = false, n = false, off = false, ["0"] = false,
}

-- From a text of PostgreSQL's too.
local function boolean(value, what)
  local known = value
  if type(value) == "string" then
    known = BOOLEANS[lower(value)]
  end
  if type(known) ~= "boolean" then
    wrong(what, "true or false", value)
  end
  return known
end

local function integer(value, what)
  local number
  if type(value) == "number" or type(value) == "string" and find(value, "^%-?%d+$") then
    number = math.tointeger(tonumber(value))
  end
  return number or wrong(what, "a whole number", value)
end

local function text(value, what)
  return type(value) == "string" and value or wrong(what, "a text", value)
end

-- Names that PostgreSQL has in lower case.
local function word(value, what)
  return lower(text(value, what))
end

local function duration(value, what, is_word)
  if value == false then
    wrong(what, "a duration", value)
  end
  return core.duration(is_word and tonumber(value) or value, what)
end

-- Days from 1970-01-01. Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
local function days(year, month, day)
  if month <= 2 then
    year = year - 1
  end
  local era, shifted = year // 400, (month + 9) % 12
  local year_of_era = year - era * 400
  local day_of_year = (153 * shifted + 2) // 5 + day - 1
  return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468
end

local MONTH_DAYS = { 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }

-- Seconds of "Z", "+02:00", "+0200", "-03"; nil for anything else.
local function offset(zone)
  if zone == "Z" or zone == "z" then
    return 0
  end
  local sign, hours, minutes = zone:match("^([+-])(%d%d):?(%d?%d?)$")
  if not sign or #minutes == 1 then
    return nil
  end
  local seconds = tonumber(hours) * 3600 + (tonumber(minutes) or 0) * 60
  return sign == "-" and -seconds or seconds
end

local function parse_time(value)
  local year, month, day, hour, minute, rest =
    value:match("^(%d%d%d%d)%-(%d%d)%-(%d%d)[Tt ](%d%d):(%d%d)(.*)$")
  if not year then
    return nil
  end
  local second, zone = rest:match("^:(%d%d%.?%d*)%s*(.*)$")
  if not second then
    second, zone = "0", rest:match("^%s*(.*)$")
  end
  year, month, day = math.tointeger(year), math.tointeger(month), math.tointeger(day)
  hour, minute, second = tonumber(hour), tonumber(minute), tonumber(second)
  local east = offset(zone)
  if not east or month < 1 or month > 12 or day < 1 or day > MONTH_DAYS[month] or hour > 23 or minute > 59
    or second >= 61 then
    return nil
  end
  return days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - east
end

local function time(value, what, is_word)
  local number = is_word and tonumber(value) or value
  if math_type(number) and number == number then
    return number
  end
  return type(value) == "string" and parse_time(value)
    or wrong(what, 'epoch seconds or a text such as "2027-03-28T01:00:00Z"', value)
end

-- Weakest first.
local MODES = { "ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE",
  "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE" }
local STRENGTH, MODE_NAMES = {}, {}
for i, mode in ipairs(MODES) do
  STRENGTH[mode] = i
  MODE_NAMES[gsub(mode, " ", "")] = mode
end
-- What a serializable transaction has read, as pg_locks calls it: no lock that anybody waits for.
MODE_NAMES.SIREAD = "SIReadLock"
STRENGTH.SIReadLock = 0

local function mode(value, what)
  local written = text(value, what)
  local known = MODE_NAMES[gsub(gsub(written:upper(), "[ _]", ""), "LOCK$", "")]
  if not known then
    local near = core.nearest(gsub(written:upper(), "_", " "), MODES)
    core.usage(("%s: unknown lock mode %s%s"):format(what, shown(value),
      near and ("; did you mean %s?"):format(near) or ""))
  end
  return known
end

-- A bigint key, or two int4 keys as PostgreSQL users write them.
local function key(value, what)
  if type(value) == "string" then
    local a, b = value:match("^%(?%s*(%-?%d+)%s*,%s*(%-?%d+)%s*%)?$")
    if a then
      return { math.tointeger(a) or wrong(what, "int4 keys", value),
        math.tointeger(b) or wrong(what, "int4 keys", value) }
    end
  end
  return integer(value, what)
end

local function relation(value, what)
  local written = text(value, what)
  local schema, name = written:match("^([^.]+)%.([^.]+)$")
  return { whole = written, schema = schema, name = name }
end

-- How a value is read, by the kind of its field.
local READ = {
  boolean = boolean, integer = integer, text = text, word = word, duration = duration, time = time,
  mode = mode, key = key, relation = relation,
}

--- A value of a field of that kind, from its text too; a wrong one is a usage error.
---@param kind string  see FilterField
---@param value any
---@param what string  begins the message
---@return any
function filter.read(kind, value, what)
  return READ[kind](value, what)
end

---------------------------------------------------------------------------------------------------
-- tests: a function of (the field's value, which is not nil; the value's row or activity)

local function same(wanted)
  return function(v) return v == wanted end
end

-- Of the kinds whose values are not simply equal.
local SAME = {
  key = function(wanted)
    if type(wanted) ~= "table" then
      return same(wanted)
    end
    local first, second = wanted[1], wanted[2]
    return function(v) return type(v) == "table" and v[1] == first and v[2] == second end
  end,
  relation = function(wanted)
    local whole, schema, name = wanted.whole, wanted.schema, wanted.name
    return function(v, row)
      return v == whole or schema ~= nil and v == name and row.schema == schema
    end
  end,
}

-- Any of a list: by a set where values are simply equal.
local function any_of(kind, values)
  local make = SAME[kind]
  if #values == 1 then
    return (make or same)(values[1])
  elseif not make then
    local set = {}
    for _, value in ipairs(values) do
      set[value] = true
    end
    return function(v) return set[v] == true end
  end
  local tests = {}
  for i, value in ipairs(values) do
    tests[i] = make(value)
  end
  return function(v, row)
    for i = 1, #tests do
      if tests[i](v, row) then
        return true
      end
    end
    return false
  end
end

local function equal_any(kind, read, value, what)
  if type(value) ~= "table" then
    return any_of(kind, { read(value, what) })
  end
  local count = 0
  for _ in pairs(value) do
    count = count + 1
  end
  if count ~= #value then
    core.usage(what .. ": a list was expected, not a table with other keys than 1, 2, 3 …")
  end
  local values = {}
  for i, element in ipairs(value) do
    values[i] = read(element, what)
  end
  return any_of(kind, values)
end

local function unequal(kind, read, value, what)
  local equal = equal_any(kind, read, value, what)
  return function(v, row) return not equal(v, row) end
end

local ORDERED = { integer = true, duration = true, time = true, text = true, word = true, mode = true }

-- How modes are compared; an unknown one has no place in the order.
local function by_strength(compare)
  return function(wanted)
    local test = compare(STRENGTH[wanted])
    return function(v)
      local strength = STRENGTH[v]
      return strength ~= nil and test(strength)
    end
  end
end

local function ordering(compare)
  return function(kind, read, value, what)
    if not ORDERED[kind] then
      core.usage(("%s: a %s has no greater and no less"):format(what, kind))
    end
    return (kind == "mode" and by_strength(compare) or compare)(read(value, what))
  end
end

local TEXTS = { text = true, word = true, mode = true, relation = true }

-- A condition on texts; `folded`: letters of either case are equal.
local function textual(make, folded)
  return function(kind, _, value, what)
    if not TEXTS[kind] then
      core.usage(("%s: only texts can be compared so, and this is a %s"):format(what, kind))
    end
    local test = make(folded and lower(text(value, what)) or text(value, what), what)
    return folded and function(v) return test(lower(v)) end or test
  end
end

local function contains(wanted)
  return function(v) return find(v, wanted, 1, true) ~= nil end
end

local function starts_with(wanted)
  return function(v) return sub(v, 1, #wanted) == wanted end
end

local function ends_with(wanted)
  return function(v) return #v >= #wanted and sub(v, #v - #wanted + 1) == wanted end
end

-- LIKE without %: a Lua pattern without anchors; an underscore is one character of UTF-8.
local ANY_CHARACTER = "[\0-\x7F\xC2-\xFD][\x80-\xBF]*"

-- The pieces between the %, as Lua patterns.
local function like_pieces(wanted, what)
  local pieces, piece, i = {}, {}, 1
  while i <= #wanted do
    local character = sub(wanted, i, i)
    if character == "%" then
      pieces[#pieces + 1] = table.concat(piece)
      piece = {}
    elseif character == "_" then
      piece[#piece + 1] = ANY_CHARACTER
    else
      if character == "\\" then
        i = i + 1
        character = sub(wanted, i, i)
        if character == "" then
          core.usage(what .. ": the pattern ends in a \\ that takes no character's meaning away")
        end
      end
      piece[#piece + 1] = gsub(character, "%p", "%%%0")
    end
    i = i + 1
  end
  pieces[#pieces + 1] = table.concat(piece)
  return pieces
end

-- The first piece stands at the start, the last one at the end, and each between as early as it can:
-- in one pass, whatever the text.
local function like(wanted, what)
  local pieces = like_pieces(wanted, what)
  local last = #pieces
  if last == 1 then
    local whole = "^" .. pieces[1] .. "$"
    return function(v) return find(v, whole) ~= nil end
  end
  local first, final = "^" .. pieces[1], pieces[last] .. "$"
  return function(v)
    local _, stop = find(v, first)
    for i = 2, last - 1 do
      if not stop then
        return false
      elseif pieces[i] ~= "" then
        _, stop = find(v, pieces[i], stop + 1)
      end
    end
    return stop ~= nil and find(v, final, stop + 1) ~= nil
  end
end

local SUFFIXES = {
  exact = equal_any,
  ["in"] = equal_any,
  ne = unequal,
  gt = ordering(function(wanted) return function(v) return v > wanted end end),
  gte = ordering(function(wanted) return function(v) return v >= wanted end end),
  lt = ordering(function(wanted) return function(v) return v < wanted end end),
  lte = ordering(function(wanted) return function(v) return v <= wanted end end),
  like = textual(like),
  ilike = textual(like, true),
  iexact = textual(same, true),
  contains = textual(contains),
  icontains = textual(contains, true),
  startswith = textual(starts_with),
  istartswith = textual(starts_with, true),
  endswith = textual(ends_with),
  iendswith = textual(ends_with, true),
  isnull = true, -- no test of a value
}

---------------------------------------------------------------------------------------------------
-- keys

-- What else a filter may have, besides conditions.
local OTHERS = { "where", "on", "limit" }

-- The field and the suffix that a key means: a field whose name ends like a suffix comes first.
---@return FilterField? field
---@return string? suffix
local function split_key(name, fields)
  if fields[name] then
    return fields[name], "exact"
  end
  local base, suffix = name:match("^(.+)_(%l+)$")
  if suffix and SUFFIXES[suffix] and fields[base] then
    return fields[base], suffix
  end
end

local function unknown(name, fields, what)
  if fields == LOCKS and split_key(name, BLOCKED) then
    core.usage(("%s: only blocked rows have %s"):format(what, name))
  end
  local known = { table.unpack(OTHERS) }
  for _, field in ipairs(fields) do
    known[#known + 1] = field.key
    for suffix in pairs(SUFFIXES) do
      known[#known + 1] = field.key .. "_" .. suffix
    end
  end
  table.sort(known) -- of equally near ones always the same
  local near = core.nearest(name, known)
  core.usage(("%s: unknown filter %s%s"):format(what, shown(name),
    near and ("; did you mean %s?"):format(near) or ""))
end

local function check_key(name, fields, what)
  if type(name) ~= "string" then
    core.usage(("%s: the filter's keys must be names of fields, not %s"):format(what, shown(name)))
  end
  local field, suffix = split_key(name, fields)
  if not field then
    unknown(name, fields, what)
  end
  return field, suffix
end

-- A condition: { name, field, holder, test } or, for isnull, { …, is_null = boolean }.
local function condition(name, value, fields, what, is_word)
  local field, suffix = check_key(name, fields, what)
  what = what .. ": " .. name
  local result = { key = name, field = field.name, holder = field.holder }
  if suffix == "isnull" then
    result.is_null = boolean(value, what)
  else
    local read = READ[field.kind]
    result.test = SUFFIXES[suffix](field.kind,
      is_word and function(v, w) return read(v, w, true) end or read, value, what)
  end
  return result
end

---------------------------------------------------------------------------------------------------
-- filters

---@class Filter
---@field on? string[]     relations whose locks are meant
---@field limit? integer   how many rows at most
---@field where? fun(row: table): any
local Filter = {}
Filter.__index = Filter

-- Notes the field for which a row is left out that the role may not see.
local function hide(self, name)
  self.hidden_count = self.hidden_count + 1
  self.hidden_fields[name] = true
  return false
end

--- Does the row fulfil every condition, `where` included? `on` and `limit` are not looked at.
---@param row table
---@return boolean
function Filter:matches(row)
  local hidden
  for i = 1, self.count do
    local c = self[i]
    local name, holder = c.holder, row
    if name then
      holder = row[name]
    end
    local value
    if holder ~= nil then
      value = holder[c.field]
    end
    local is_null = c.is_null
    if value ~= nil then
      if is_null or is_null == nil and not c.test(value, holder) then
        return false
      end
    elseif not is_null then
      if not (name or self.of_sessions) or not holder or not holder.hidden then
        return false
      end
      hidden = c.field
    end
  end
  if hidden then
    return hide(self, hidden)
  end
  local where = self.where
  return not where or not not where(row)
end

--- Log, once, where a field that this role may not see is why rows were left out (locks.md 9).
function Filter:report()
  if self.hidden_count == 0 or self.reported then
    return
  end
  self.reported = true
  filter.report_hidden(self.what, self.hidden_count, self.hidden_fields)
end

--- The notice itself.
---@param what string                    whose filter
---@param count integer                  how many rows were left out
---@param fields table<string, boolean>  by name
function filter.report_hidden(what, count, fields)
  local names = {}
  for name in pairs(fields) do
    names[#names + 1] = name
  end
  table.sort(names)
  core.log("warning",
    ("%s: %s left out, since this role may not see %s of others' sessions: GRANT pg_monitor"):format(what,
      count == 1 and "1 row was" or count .. " rows were", table.concat(names, ", ")), {}, {})
end

-- A name, or a list of them, as a list.
local function relations(value, what)
  local list = type(value) == "table" and value or { value }
  if #list == 0 then
    core.usage(what .. ": on takes a relation's name or a list of them")
  end
  for _, name in ipairs(list) do
    if type(name) ~= "string" or name == "" then
      wrong(what .. ": on", "a relation's name or a list of them", name)
    end
  end
  return table.move(list, 1, #list, 1, {})
end

local function check_limit(value, what)
  local limit = math_type(value) == "float" and math.tointeger(value) or value
  if math_type(limit) ~= "integer" or limit < 0 then
    wrong(what .. ": limit", "a whole number that is not negative", value)
  end
  return limit
end

local function check_where(value, what)
  if type(value) ~= "function" then
    wrong(what .. ": where", "a function of the row", value)
  end
  return value
end

--- Read a filter once, for many rows. A mistake in it is a usage error that names the field.
---@param spec? table|fun(row: table): any
---@param options { name: "locks"|"blocked"|"sessions", what?: string, words?: boolean }  `what` begins
---  messages (default: the name); `words`: values are words of a command line, numbers as texts
---@return Filter
function filter.compile(spec, options)
  local fields, what = filter.FIELDS[options.name], options.what or options.name
  local self = setmetatable({ what = what, count = 0, hidden_count = 0, hidden_fields = {},
    of_sessions = options.name == "sessions" }, Filter)
  if spec == nil then
    return self
  elseif type(spec) == "function" then
    self.where = spec
    return self
  elseif type(spec) ~= "table" then
    core.usage(("%s: the filter must be a table or a function of the row, not %s"):format(what, shown(spec)))
  end
  local conditions = {}
  for name, value in pairs(spec) do
    if name == "where" then
      self.where = check_where(value, what)
    elseif name == "on" and not self.of_sessions then
      self.on = relations(value, what)
    elseif name == "limit" and not self.of_sessions then
      self.limit = check_limit(value, what)
    else
      conditions[#conditions + 1] = condition(name, value, fields, what, options.words)
    end
  end
  table.sort(conditions, function(a, b) return a.key < b.key end)
  self.count = #conditions
  return table.move(conditions, 1, #conditions, 1, self)
end

-- "a,b\,c" is { "a", "b,c" }; what stands in parentheses stays together.
local function split_words(value)
  local list, piece, depth, i = {}, {}, 0, 1
  while i <= #value do
    local character = sub(value, i, i)
    if character == "\\" and find(value, "^[\\,]", i + 1) then
      i = i + 1
      piece[#piece + 1] = sub(value, i, i)
    elseif character == "," and depth == 0 then
      list[#list + 1] = table.concat(piece)
      piece = {}
    else
      depth = math.max(0, depth + (character == "(" and 1 or character == ")" and -1 or 0))
      piece[#piece + 1] = character
    end
    i = i + 1
  end
  list[#list + 1] = table.concat(piece)
  return list
end

--- A condition as a word of a command line, "KEY=VALUE". Where a list is allowed, commas make one; \, is
--- a comma.
---@param written string
---@param options { name: string, what?: string }
---@return Filter
function filter.compile_word(written, options)
  local name, value = written:match("^([^=]*)=(.*)$")
  local what = options.what or options.name
  if not name then
    core.usage(("%s takes KEY=VALUE, not %s"):format(what, shown(written)))
  end
  local _, suffix = check_key(name, filter.FIELDS[options.name], what)
  local takes_list = suffix == "exact" or suffix == "in" or suffix == "ne"
  return filter.compile({ [name] = takes_list and split_words(value) or value },
    { name = options.name, what = what, words = true })
end

return filter
