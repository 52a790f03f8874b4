--- Pages of text that are shown in place of a tab: a session, a job, the help.
local safe = require "lockkeeper.report.safe"
local width = require "lockkeeper.report.width"

local page = {}

---@class TopPage
---@field title string
---@field read? fun(): any           on the reader's task; nil: there is nothing to be read
---@field lines fun(data: any, columns: integer): TopLine[]
---@field subject? TopSubject        to be ended from here
---@field first integer              the line that is shown at the top
---@field data? any                  what `read` has returned

---@class TopLine
---@field text string
---@field style? string

local BOLD = "1"

--- A heading, below an empty line.
---@param lines TopLine[]
---@param text string
function page.head(lines, text)
  lines[#lines + 1] = { text = "" }
  lines[#lines + 1] = { text = text, style = BOLD }
end

-- Where a line that is too long is broken: before byte `at`.
local function break_of(text, columns)
  local taken, space = 0, nil
  for at, code in utf8.codes(text) do
    local one = width.of(utf8.char(code))
    if taken + one > columns and at > 1 then
      return space or at
    end
    taken = taken + one
    if code == 32 and taken > columns // 2 then
      space = at + 1
    end
  end
end

--- Somebody's text, made harmless, with its lines, those broken that are too long.
---@param lines TopLine[]
---@param text string
---@param columns integer
---@param indent? string
function page.text(lines, text, columns, indent)
  indent = indent or ""
  local room = math.max(columns - #indent, 8)
  for line in (safe.block(text) .. "\n"):gmatch("([^\n]*)\n") do
    local at = break_of(line, room)
    while at do
      lines[#lines + 1] = { text = indent .. line:sub(1, at - 1) }
      line = line:sub(at)
      at = break_of(line, room)
    end
    lines[#lines + 1] = { text = indent .. line }
  end
end

-- How wide the names of facts are.
local NAMES = 14

--- "state         idle in transaction"; nothing where there is no value.
---@param lines TopLine[]
---@param name string
---@param value? string|false
---@param style? string
function page.fact(lines, name, value, style)
  if value and value ~= "" then
    lines[#lines + 1] = { text = ("%-" .. NAMES .. "s  %s"):format(name, safe.line(value)), style = style }
  end
end

return page
