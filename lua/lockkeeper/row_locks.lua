--- lock.row_locks: the rows of a query, locked until the transaction ends.
---
--- The query is the caller's text; the locking clause is written behind it. PostgreSQL parses the
--- whole, as one statement: what is looked at here is where the query ends, and what would make the
--- clause mean something else than it says.
local call = require "lockkeeper.call"
local core = require "lockkeeper.core"

---@class RowLocksOptions
---@field timeout? number|string|false  0: NOWAIT; default: the session's lock_timeout
---@field on_busy? "return"|"raise"     default "return" where there is a timeout, else "raise"
---@field skip_locked? boolean          leave out rows that others have locked
---@field strength? string              "update" (default), "no key update", "share", "key share"
---@field of? string|string[]           the aliases of the tables to lock; default: all of the query's
---@field using? string|Session

local OPTIONS = { "timeout", "on_busy", "skip_locked", "strength", "of", "using" }

local STRENGTHS = { "UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE" }

-- What a query begins with.
local BEGINNINGS = { select = true, with = true, table = true, values = true, ["("] = true }

-- What may follow FOR in a locking clause.
local LOCKING = { update = true, no = true, share = true, key = true, read = true }

local PARAMETERS_MAX = 65535 -- the protocol's

local function usage(message, ...)
  core.usage("row_locks: " .. message:format(...))
end

local function described(value)
  return type(value) == "string" and #value <= 40 and ("%q"):format(value) or
    (type(value) == "number" or type(value) == "boolean" or value == nil) and tostring(value) or
    "a " .. type(value)
end

---------------------------------------------------------------------------------------------------
-- the query's text
-- Source: PostgreSQL manual, "Lexical Structure".

-- Behind a /* comment */, in which others may be nested.
local function after_comment(sql, at)
  local depth = 1
  at = at + 2
  while depth > 0 do
    local found = sql:find("[/*][/*]", at)
    if not found then
      usage("the query has a comment that does not end")
    end
    local mark = sql:sub(found, found + 1)
    depth = depth + (mark == "/*" and 1 or mark == "*/" and -1 or 0)
    at = found + ((mark == "/*" or mark == "*/") and 2 or 1)
  end
  return at
end

-- Behind what begins with a quote: the quote doubled stands for itself, in E'…' a backslash for what
-- follows it.
local function after_quoted(sql, at, quote, escapes)
  local stop = escapes and "[\\" .. quote .. "]" or quote
  at = at + 1
  while true do
    local found = sql:find(stop, at)
    if not found then
      return #sql + 1
    end
    local is_quote = sql:sub(found, found) == quote
    if is_quote and sql:sub(found + 1, found + 1) ~= quote then
      return found + 1
    end
    at = found + 2
  end
end

-- The next token from `at` on: its text (of a word in lower case, of anything quoted "quoted") and
-- where it begins and ends; nil at the end of the text.
local function token(sql, at)
  while true do
    at = sql:find("[^ \t\r\n\f\v]", at)
    if not at then
      return nil
    elseif sql:find("^%-%-", at) then
      at = sql:find("[\r\n]", at) or #sql + 1
    elseif sql:find("^/%*", at) then
      at = after_comment(sql, at)
    else
      break
    end
  end
  local _, last = sql:find("^[%a_\x80-\xff][%w_$\x80-\xff]*", at)
  if last then
    local word = sql:sub(at, last):lower()
    local prefixed = (word == "e" or word == "b" or word == "x" or word == "n") and "^'"
      or word == "u" and "^&['\"]"
    if not (prefixed and sql:find(prefixed, last + 1)) then
      return word, at, last
    end
    local quote_at = sql:find("['\"]", last + 1)
    return "quoted", at, after_quoted(sql, quote_at, sql:sub(quote_at, quote_at), word == "e") - 1
  end
  local first = sql:sub(at, at)
  if first == "'" or first == '"' then
    return "quoted", at, after_quoted(sql, at, first, false) - 1
  end
  local _, tag_end, tag = sql:find("^(%$[%a_\x80-\xff]?[%w_\x80-\xff]*%$)", at)
  if tag_end and not tag:find("^%$%d") then
    local _, close = sql:find(tag, tag_end + 1, true)
    return "quoted", at, close or #sql
  end
  _, last = sql:find("^[%d.][%w_.]*", at)
  return first, at, last or at
end

--- The query without what stands behind it: semicolons, space and comments.
---@param sql string
---@return string
local function query_of(sql)
  local depth, ended, last_end = 0, nil, 0
  local before, previous, first = nil, nil, nil
  local text, from, to = token(sql, 1)
  while text do
    first = first or text
    if text == ";" and depth == 0 then
      ended = ended or from
    elseif ended then
      usage("one query was expected, but the text goes on after it: %q", sql:sub(from, from + 39))
    else
      last_end = to
    end
    if text == "(" or text == "[" then
      depth = depth + 1
    elseif text == ")" or text == "]" then
      depth = depth - 1
    elseif depth == 0 and previous == "for" and before ~= "as" and before ~= "." and LOCKING[text] then
      usage("the query has a locking clause of its own (%q); leave it out, and say it with the options "
        .. "strength, of, timeout and skip_locked", "FOR " .. text:upper())
    end
    before, previous = previous, text
    text, from, to = token(sql, to + 1)
  end
  if not first then
    usage("the query is empty")
  elseif not BEGINNINGS[first] then
    usage("a query was expected (SELECT …), not a statement that begins with %q", first)
  end
  return sql:sub(1, last_end)
end

---------------------------------------------------------------------------------------------------
-- options

local function strength_of(value)
  if value == nil then
    return "UPDATE"
  end
  if type(value) == "string" then
    local name = value:upper():gsub("^FOR ", "")
    for _, strength in ipairs(STRENGTHS) do
      if name == strength then
        return strength
      end
    end
    local nearest = #value <= 40 and core.nearest(name, STRENGTHS)
    if nearest then
      usage('unknown strength %s; did you mean "%s"?', described(value), nearest:lower())
    end
  end
  usage('strength must be "update", "no key update", "share" or "key share", not %s', described(value))
end

local function tables_of(value)
  if value == nil then
    return ""
  end
  local names = {}
  for i, name in ipairs(type(value) == "table" and value or { value }) do
    if type(name) ~= "string" then
      usage("of must be a table's alias or a list of them, not %s", described(name))
    end
    names[i] = core.ident(name)
  end
  if #names == 0 then
    usage("of names no table")
  end
  return " OF " .. table.concat(names, ", ")
end

local function clause(options, timeout)
  local skip_locked = options.skip_locked
  if skip_locked ~= nil and type(skip_locked) ~= "boolean" then
    usage("skip_locked must be true or false, not %s", described(skip_locked))
  end
  return ("\nFOR %s%s%s"):format(strength_of(options.strength), tables_of(options.of),
    skip_locked and " SKIP LOCKED" or timeout == 0 and " NOWAIT" or "")
end

local function raises(options)
  local on_busy = options.on_busy
  if on_busy == nil then
    return options.timeout == nil
  elseif on_busy ~= "return" and on_busy ~= "raise" then
    usage('on_busy must be "return" or "raise", not %s', described(on_busy))
  end
  return on_busy == "raise"
end

-- nil is no place of a list: how many there are is then said by n, as table.pack does.
local function count_of(parameters)
  local count = parameters.n or #parameters
  if math.type(count) ~= "integer" or count < 0 then
    usage("the parameters' number n must be an integer, not %s", described(count))
  elseif count > PARAMETERS_MAX then
    usage("%d parameters are more than the %d that a statement may have", count, PARAMETERS_MAX)
  end
  for key in pairs(parameters) do
    if key ~= "n" and not (math.type(key) == "integer" and key >= 1 and key <= count) then
      usage("the parameters must be a list, without %s; options come after them", described(key))
    end
  end
  return count
end

--- Lock the rows of a query until the transaction, which must be open, ends.
--- Source: PostgreSQL manual, "The Locking Clause".
---@param session? Session
---@param sql string                 a query without a locking clause of its own
---@param parameters? any[]          what $1, $2, … stand for
---@param options? RowLocksOptions   timeout in seconds or as "250ms"
---@return table[]? rows             each a table by column name
---@return Error? err                kind "not_acquired" or "lock_timeout"; the transaction is still usable
local function row_locks(session, sql, parameters, options)
  call.check_options("row_locks", options, OPTIONS)
  options = options or {}
  if type(sql) ~= "string" then
    usage("the query must be a text, not %s", described(sql))
  elseif parameters ~= nil and type(parameters) ~= "table" then
    usage("the parameters must be a list, not %s", described(parameters))
  end
  parameters = parameters or {}
  local count = count_of(parameters)
  local timeout = options.timeout
  if timeout ~= nil then
    timeout = core.duration(timeout, "timeout")
  end
  local text = query_of(sql) .. clause(options, timeout)
  return core.row_locks(session or core.session(options.using), text, timeout, raises(options),
    table.unpack(parameters, 1, count))
end

return row_locks
