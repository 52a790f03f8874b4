--- A line that is typed at the bottom of the screen.
local width = require "lockkeeper.report.width"

local prompt = {}

---@class TopPrompt
---@field label string
---@field text string
---@field at integer                       the byte before which a character is put
---@field done fun(text: string): boolean  false: it is asked again

-- What a line has at most, in bytes.
local LENGTH_MAX = 4000

---@param label string
---@param text string
---@param done fun(text: string): boolean
---@return TopPrompt
function prompt.new(label, text, done)
  return { label = label, text = text, at = #text + 1, done = done }
end

local function left_of(self)
  return self.at > 1 and utf8.offset(self.text, -1, self.at) or nil
end

local function right_of(self)
  return self.at <= #self.text and utf8.offset(self.text, 2, self.at) or nil
end

local function take_out(self, from, to)
  self.text = self.text:sub(1, from - 1) .. self.text:sub(to)
  self.at = from
end

local EDIT = {
  left = function(self) self.at = left_of(self) or self.at end,
  right = function(self) self.at = right_of(self) or self.at end,
  home = function(self) self.at = 1 end,
  ["end"] = function(self) self.at = #self.text + 1 end,
  backspace = function(self)
    local from = left_of(self)
    if from then
      take_out(self, from, self.at)
    end
  end,
  delete = function(self)
    local to = right_of(self)
    if to then
      take_out(self, self.at, to)
    end
  end,
  ["ctrl-u"] = function(self) take_out(self, 1, self.at) end,
  ["ctrl-k"] = function(self) take_out(self, self.at, #self.text + 1) end,
}
EDIT["ctrl-a"], EDIT["ctrl-e"], EDIT["ctrl-d"] = EDIT.home, EDIT["end"], EDIT.delete

--- Take a key. Returns true once the line is over.
---@param self TopPrompt
---@param key string
---@return boolean over
function prompt.take(self, key)
  if key == "escape" then
    return true
  elseif key == "enter" then
    return self.done(self.text)
  elseif EDIT[key] then
    EDIT[key](self)
  elseif utf8.len(key) == 1 and #self.text + #key <= LENGTH_MAX then
    self.text = self.text:sub(1, self.at - 1) .. key .. self.text:sub(self.at)
    self.at = self.at + #key
  end
  return false
end

--- Draw it; where there is no room for all, what is around the cursor. Returns the cursor's column.
---@param self TopPrompt
---@param screen table
---@param line integer
---@param columns integer
---@return integer
function prompt.draw(self, screen, line, columns)
  local room = columns - width.of(self.label) - 1
  local from = 1
  while from < self.at and width.of(self.text:sub(from, self.at - 1)) > room do
    from = utf8.offset(self.text, 2, from)
  end
  screen:put(line, 1, self.label, columns, "1")
  screen:put(line, width.of(self.label) + 1, self.text:sub(from), columns)
  return math.min(columns, width.of(self.label) + 1 + width.of(self.text:sub(from, self.at - 1)))
end

return prompt
