--- Errors shown to people, and the exit codes that they mean.
local host = require "lockkeeper.host"

local failure = {}

-- Kept, since a script may have replaced them by the time that its error is shown.
local type, tostring, getmetatable, setmetatable = type, tostring, debug.getmetatable, setmetatable
local rawget, pcall, error, ipairs = rawget, pcall, error, ipairs
local gsub, sub, find, format = string.gsub, string.sub, string.find, string.format
local stderr = io.stderr

-- What is shown of one text at most, in bytes.
local TEXT_LIMIT = 8192

-- Exit codes by the kind of error.
local EXIT = {
  not_acquired = 75, lock_timeout = 75, lock_lost = 125, connection = 69, timed_out = 124,
}

-- The metatables of what `words` and `unloaded` raise, and of what a script has raised.
local WORDS, UNLOADED, RAISED = {}, {}, {}

--- Raise: the call's words are wrong. Shown with the way to the help, exit code 2.
function failure.words(message)
  error(setmetatable({ message = message }, WORDS), 0)
end

function failure.is_words(err)
  return getmetatable(err) == WORDS
end

--- Raise: a script or the configuration does not load. Exit code 2.
function failure.unloaded(message, traceback)
  error(setmetatable({ text = message, traceback = traceback }, UNLOADED), 0)
end

--- One of the errors that lua-api.md describes?
function failure.is_ours(err)
  local meta = type(err) == "table" and getmetatable(err)
  return meta and rawget(meta, "__name") == "lockkeeper.Error" or false
end

-- Without what could do harm on a terminal, and not endless.
local function printable(text)
  local shown = gsub(sub(text, 1, TEXT_LIMIT), "[\0-\8\11-\31\127]", "?")
  return #text > TEXT_LIMIT and format("%s… (%d bytes)", shown, #text) or shown
end

local function indent(text, by)
  return (gsub(printable(text), "\n", "\n" .. by))
end

--- One line on stderr.
function failure.say(text)
  stderr:write("lockkeeper: ", printable(text), "\n")
end

local function text_of(value)
  local kind = type(value)
  if kind == "string" then
    return value
  end
  local meta = getmetatable(value)
  if meta and rawget(meta, "__tostring") then
    local ok, text = pcall(tostring, value)
    return ok and text or format("the script raised a %s whose __tostring fails: %s", kind, text_of(text))
  elseif kind == "table" and type(rawget(value, "message")) == "string" then
    return rawget(value, "message")
  elseif kind == "table" or kind == "userdata" then
    return format("the script raised a %s without __tostring", kind)
  end
  return "the script raised " .. (kind == "nil" and kind or format("a %s: %s", kind, tostring(value)))
end

--- For xpcall: keeps our own errors, and adds the script's lines to whatever else was raised.
function failure.caught(err)
  local meta = getmetatable(err)
  if meta == WORDS or meta == UNLOADED or meta == RAISED or failure.is_ours(err) then
    return err
  end
  return setmetatable({ text = text_of(err), traceback = host.traceback(2) }, RAISED)
end

local function show_field(name, text)
  stderr:write("  ", name, ": ", indent(text, "    "), "\n")
end

--- The text of what was caught; where no memory was left to catch it, of what was raised.
function failure.text(err)
  local meta = getmetatable(err)
  return (meta == RAISED or meta == UNLOADED) and err.text or text_of(err)
end

--- Show what was caught.
function failure.show(err)
  local text, traceback = failure.text(err), type(err) == "table" and err.traceback
  failure.say(text)
  for _, field in ipairs { "detail", "hint", "statement" } do
    local value = type(err) == "table" and rawget(err, field)
    if type(value) == "string" then
      show_field(field, value)
    end
  end
  -- One line that the text names already says nothing more.
  if type(traceback) == "string" and traceback ~= "" then
    local place = gsub(traceback, " in .*", "")
    if find(traceback, "\n", 1, true) or sub(text, 1, #place) ~= place then
      stderr:write("  at ", indent(traceback, "     "), "\n")
    end
  end
end

--- The exit code of what was caught. `usage`: that of a usage error.
function failure.exit_code(err, usage)
  if getmetatable(err) == UNLOADED then
    return 2
  elseif failure.is_ours(err) then
    return err.kind == "usage" and (err.definition and 2 or usage) or EXIT[err.kind] or 1
  end
  return 1
end

return failure
