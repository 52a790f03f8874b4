--- SQL files as their statements, cut where psql cuts them.
--
-- A statement ends at a semicolon outside quotes, dollar quotes, comments (which nest), parentheses and
-- the body of a function in standard SQL (BEGIN ATOMIC … END). What is no SQL is a fault: psql's own
-- \ commands, data for COPY … FROM STDIN, a quote or comment that does not end, NUL bytes.
-- Source: PostgreSQL's src/fe_utils/psqlscan.l; manual, "Lexical Structure".
local splitter = {}

local byte, find, match, sub = string.byte, string.find, string.match, string.sub
local lower, upper, concat = string.lower, string.upper, table.concat

---@class SqlStatement
---@field line integer      of its first word, from 1
---@field text string       without leading comments and without its semicolon
---@field words string[]    its tokens, at most WORDS_MAX: names and key words in upper case, quoted names as
---                         they stand, texts as '', numbers as 0; no comments. Statements that differ in
---                         values only share one list
---@field names table<string, true>  the names among them, folded as PostgreSQL folds them
---@field is_cut boolean    there are more tokens than `words` has

---@class SqlFault
---@field line integer
---@field message string

-- How many tokens of a statement are kept: enough to tell what it does and to which tables.
local WORDS_MAX = 400

-- How many faults are told; a binary file has them without end.
local FAULTS_MAX = 20

-- What has no meaning to where a statement ends.
local DULL = "^[%d%s,.:=+*<>]+"

local NAME = "^[%a_\x80-\xFF][%w_$\x80-\xFF]*"
local SPACE = "^[ \t\n\r\f\v]+"

local QUOTE, DOUBLE, DOLLAR, SLASH, STAR, DASH = byte("'\"$/*-", 1, -1)
local SEMICOLON, OPEN, CLOSE, BACKSLASH, NUL = byte(";()\\\0", 1, -1)

-- The position after a quoted text that begins at `at`; nil where it does not end. `escapes`: a backslash
-- takes the next character's meaning.
local function after_quoted(text, at, mark, escapes)
  local pattern = escapes and "['\\]" or mark
  at = at + 1
  while true do
    local stop = find(text, pattern, at, not escapes)
    if not stop then
      return nil
    elseif byte(text, stop) == BACKSLASH then
      at = stop + 2
    elseif sub(text, stop + 1, stop + 1) == mark then
      at = stop + 2
    else
      return stop + 1
    end
  end
end

-- Where a text goes on: '…' on a later line, with nothing but space and line comments between.
local function continuation(text, at)
  local has_newline = false
  while true do
    local _, stop = find(text, SPACE, at)
    if stop then
      has_newline = has_newline or find(sub(text, at, stop), "[\n\r]") ~= nil
      at = stop + 1
    elseif find(text, "^%-%-", at) then
      at = find(text, "[\n\r]", at) or #text + 1
    else
      return has_newline and byte(text, at) == QUOTE and at or nil
    end
  end
end

-- The position after a text with its continuations.
local function after_text(text, at, escapes)
  local stop
  repeat
    stop = after_quoted(text, at, "'", escapes)
    at = stop and continuation(text, stop)
  until not at
  return stop
end

local function after_comment(text, at)
  local depth = 0
  repeat
    at = find(text, "[*/]", at)
    if not at then
      return nil
    end
    local this, next_one = byte(text, at, at + 1)
    if this == SLASH and next_one == STAR then
      depth, at = depth + 1, at + 2
    elseif this == STAR and next_one == SLASH then
      depth, at = depth - 1, at + 2
    else
      at = at + 1
    end
  until depth == 0
  return at
end

-- Is a function or procedure being made, whose body may hold semicolons between BEGIN and END?
local function makes_routine(words)
  if words[1] ~= "CREATE" then
    return false
  end
  local kind = words[2] == "OR" and words[3] == "REPLACE" and words[4] or words[2]
  return kind == "FUNCTION" or kind == "PROCEDURE"
end

-- SET [SESSION | LOCAL] standard_conforming_strings {= | TO} value: the value's text says which.
local function set_strings(statement, before)
  local words = statement.words
  local at = (words[2] == "SESSION" or words[2] == "LOCAL") and 3 or 2
  if words[1] ~= "SET" or words[at] ~= "STANDARD_CONFORMING_STRINGS" then
    return before
  end
  local value = lower(match(statement.text, "([%w]+)'?%s*$") or "")
  return not (value == "off" or value == "false" or value == "no" or value == "0" or value == "f")
end

local function is_copy_from_stdin(words)
  if words[1] ~= "COPY" then
    return false
  end
  for i = 2, #words - 1 do
    if words[i] == "FROM" and words[i + 1] == "STDIN" then
      return true
    end
  end
  return false
end

--- Cut a file's text into statements.
---@param text string
---@param standard_strings? boolean  standard_conforming_strings at its beginning; default true
---@return SqlStatement[] statements
---@return SqlFault[] faults         in the order of their lines; where there are any, run nothing
function splitter.split(text, standard_strings)
  local statements, faults = {}, {}
  standard_strings = standard_strings ~= false
  local at = find(text, "^\u{FEFF}") and 4 or 1
  local length = #text
  local counted_at, counted = 1, 1 -- the line of a position

  -- Positions are asked for in ascending order.
  local function line_of(position)
    while true do
      local newline = find(text, "\n", counted_at, true)
      if not newline or newline >= position then
        return counted
      end
      counted_at, counted = newline + 1, counted + 1
    end
  end

  -- Statements that differ in values only are many in a file with data: they have the same words.
  local shapes = {}
  local function share(statement)
    if not statement.is_cut then
      local shape = concat(statement.words, "\0")
      local known = shapes[shape]
      if known then
        statement.words, statement.names = known.words, known.names
      else
        shapes[shape] = statement
      end
    end
  end

  local statement, first, depth, body
  local in_routine, routine_known

  local function begin()
    statement = { words = {}, names = {}, is_cut = false }
    first, depth, body, in_routine, routine_known = nil, 0, 0, false, false
  end

  local function fault(position, message)
    faults[#faults + 1] = { line = line_of(position), message = message }
  end

  local function finish(stop)
    if first then
      while find(text, "^%s", stop) do
        stop = stop - 1
      end
      statement.text = sub(text, first, stop)
      standard_strings = set_strings(statement, standard_strings)
      if is_copy_from_stdin(statement.words) then
        faults[#faults + 1] = { line = statement.line,
          message = "COPY … FROM STDIN: the data that follows is no SQL; use INSERT" }
        return true
      end
      share(statement)
      statements[#statements + 1] = statement
    end
    begin()
  end

  local function note(position, word, name)
    if not first then
      first = position
      statement.line = line_of(position)
    end
    local words = statement.words
    if #words < WORDS_MAX then
      words[#words + 1] = word
      if name then
        statement.names[name] = true
      end
    else
      statement.is_cut = true
    end
  end

  -- BEGIN and CASE go with END inside the body of a routine in standard SQL.
  local function note_word(position, stop)
    if statement.is_cut and not in_routine then
      return
    end
    local name = sub(text, position, stop)
    local word = upper(name)
    note(position, word, lower(name))
    if not routine_known and #statement.words >= 4 then
      in_routine, routine_known = makes_routine(statement.words), true
    end
    if in_routine and depth == 0 then
      if word == "BEGIN" or word == "CASE" and body > 0 then
        body = body + 1
      elseif word == "END" and body > 0 then
        body = body - 1
      end
    end
  end

  -- What is not closed: the file is over.
  local function unclosed(position, what)
    fault(position, ("the %s that begins here does not end"):format(what))
    at = length + 1
    first = nil
  end

  begin()
  while at <= length and #faults < FAULTS_MAX do
    local code = byte(text, at)
    local _, stop = find(text, statement.is_cut and DULL or SPACE, at)
    if stop then
      at = stop + 1
    elseif code == DASH and byte(text, at + 1) == DASH then
      at = find(text, "[\n\r]", at) or length + 1
    elseif code == SLASH and byte(text, at + 1) == STAR then
      local after = after_comment(text, at)
      if after then
        at = after
      else
        unclosed(at, "comment")
      end
    elseif code == SEMICOLON and depth == 0 and body == 0 then
      if finish(at - 1) then
        break
      end
      at = at + 1
    elseif code == QUOTE then
      note(at, "''")
      local after = after_text(text, at, not standard_strings)
      if after then
        at = after
      else
        unclosed(at, "text in quotes")
      end
    elseif code == DOUBLE then
      local after = after_quoted(text, at, '"', false)
      if after then
        local quoted = sub(text, at, after - 1)
        note(at, quoted, (sub(quoted, 2, -2):gsub('""', '"')))
        at = after
      else
        note(at, '""')
        unclosed(at, "name in double quotes")
      end
    elseif code == DOLLAR then
      local tag = match(text, "^%$[%a_\x80-\xFF][%w_\x80-\xFF]*%$", at) or match(text, "^%$%$", at)
      note(at, tag and "''" or "$")
      if tag then
        local _, after = find(text, tag, at + #tag, true)
        if after then
          at = after + 1
        else
          unclosed(at, ("text in %s"):format(tag))
        end
      else
        at = at + 1
      end
    elseif code == BACKSLASH then
      local name = match(text, "^\\[%w?!_]*[^%s%w]?", at)
      fault(at, ("%s: a command of psql's, not SQL"):format(#name > 1 and sub(name, 1, 40) or "\\"))
      at = find(text, "[\n\r]", at) or length + 1
    elseif code == NUL then
      fault(at, "a NUL byte: this is no SQL text in UTF-8")
      break
    elseif find(text, "^%d", at) then
      _, stop = find(text, "^[%w_.]+", at)
      note(at, "0")
      at = stop + 1
    else
      _, stop = find(text, NAME, at)
      if not stop then
        depth = code == OPEN and depth + 1 or code == CLOSE and math.max(0, depth - 1) or depth
        note(at, sub(text, at, at))
        at = at + 1
      elseif stop == at and byte(text, at + 1) == QUOTE and find(text, "^[eEbBxXnN]", at) then
        -- Bits have no escapes; what N'…' has, standard_conforming_strings says.
        local escapes = find(text, "^[eE]", at) or find(text, "^[nN]", at) and not standard_strings
        note(at, "''")
        local after = after_text(text, at + 1, escapes)
        if after then
          at = after
        else
          unclosed(at, "text in quotes")
        end
      elseif stop == at and find(text, "^[uU]&['\"]", at) then
        local mark = sub(text, at + 2, at + 2)
        note(at, mark == "'" and "''" or '""')
        local after = after_quoted(text, at + 2, mark, false)
        if after then
          at = after
        else
          unclosed(at, mark == "'" and "text in quotes" or "name in double quotes")
        end
      else
        note_word(at, stop)
        at = stop + 1
      end
    end
  end
  if #faults == 0 then
    finish(length)
  end
  return statements, faults
end

return splitter
