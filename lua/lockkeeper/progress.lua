--- How far a job has come: a bar on a terminal, lines in the log elsewhere, at most one a second.
local core = require "lockkeeper.core"
local has_host, host = pcall(require, "lockkeeper.host")
local output = require "lockkeeper.output"

local progress = {}

local LINE_EVERY, BAR_EVERY = 1, 0.1 -- seconds
local BAR_MAX = 40                   -- columns
local LABEL_MAX = 200                -- bytes

---@class Progress
---@field begun number
---@field shown_at number      on the monotonic clock
---@field last? { done: number, total?: number, label?: string }
---@field pending boolean      the last one is not shown yet
---@field on_screen boolean
local Progress = {}
Progress.__index = Progress

---@param name string  the job's
---@return Progress
function progress.new(name)
  local no_color = os.getenv("NO_COLOR")
  return setmetatable({
    name = name, begun = core.monotonic(), shown_at = -math.huge, pending = false, on_screen = false,
    is_bar = has_host and host.terminal(2) ~= nil and (no_color == nil or no_color == ""),
  }, Progress)
end

local function number_text(number)
  return math.type(number) == "integer" and ("%d"):format(number) or ("%.14g"):format(number)
end

local function fraction_of(last)
  return last.total and last.total > 0 and math.max(math.min(last.done / last.total, 1), 0)
end

local function seconds_left(self, fraction)
  local elapsed = core.monotonic() - self.begun
  if fraction and fraction > 0 and fraction < 1 and elapsed > 1 then
    return elapsed * (1 - fraction) / fraction
  end
end

local function span(seconds)
  if seconds >= 3600 then
    return ("%dh%02dm"):format(seconds // 3600, seconds % 3600 // 60)
  elseif seconds >= 60 then
    return ("%dm%02ds"):format(seconds // 60, seconds % 60 // 1)
  end
  return ("%ds"):format(seconds // 1)
end

local function cut(text, columns)
  local length = utf8.len(text)
  if not length or length <= columns then
    return #text > columns * 4 and text:sub(1, columns) or text
  end
  return text:sub(1, utf8.offset(text, math.max(columns, 1)) - 1) .. "…"
end

local function bar_text(self)
  local last = self.last
  local width = (host.terminal(2) or 80) - 1
  local fraction = fraction_of(last)
  local counts = number_text(last.done) .. (last.total and "/" .. number_text(last.total) or "")
  local label = last.label and " " .. last.label:gsub("%c", "?") or ""
  if not fraction then
    return cut(("%s: %s%s"):format(self.name, counts, label), width)
  end
  local left = seconds_left(self, fraction)
  local text = (" %3d%% %s%s%s"):format(fraction * 100 // 1, counts,
    left and ", " .. span(left) .. " left" or "", label)
  local columns = math.min(BAR_MAX, width - (utf8.len(self.name .. text) or #text) - 3)
  if columns < 5 then
    return cut(self.name .. ":" .. text, width)
  end
  local full = fraction * columns // 1
  return ("%s [%s%s]%s"):format(self.name, ("#"):rep(full), (" "):rep(columns - full), text)
end

local function log_it(self)
  local last = self.last
  local fraction = fraction_of(last)
  local names, values = { "done" }, { number_text(last.done) }
  local function add(name, value)
    if value then
      names[#names + 1], values[#values + 1] = name, value
    end
  end
  add("total", last.total and number_text(last.total))
  add("percent", fraction and ("%d"):format(fraction * 100 // 1))
  add("label", last.label)
  core.log("info", "progress", names, values)
end

local function show(self)
  self.pending, self.shown_at = false, core.monotonic()
  if self.is_bar then
    output.draw("\r" .. bar_text(self) .. "\27[K")
    self.on_screen = true
  else
    log_it(self)
  end
end

local function check(done, total, label)
  local function number(value, what)
    if type(value) ~= "number" or value ~= value or math.abs(value) == math.huge then
      core.usage(("progress: %s must be a number, not %s"):format(what, tostring(value)))
    end
  end
  number(done, "what is done")
  if total ~= nil then
    number(total, "the total")
  end
  if label ~= nil and type(label) ~= "string" then
    core.usage("progress: the label must be a text, not a " .. type(label))
  end
end

--- So much is done.
---@param done number
---@param total? number
---@param label? string
function Progress:report(done, total, label)
  check(done, total, label)
  if label and #label > LABEL_MAX then
    label = label:sub(1, LABEL_MAX):gsub("[\xc0-\xff]?[\x80-\xbf]*$", "") .. "…"
  end
  self.last, self.pending = { done = done, total = total, label = label }, true
  -- A bar that is full may stand for long: nothing else is reported behind it.
  local is_last = self.is_bar and fraction_of(self.last) == 1
  if is_last or core.monotonic() - self.shown_at >= (self.is_bar and BAR_EVERY or LINE_EVERY) then
    show(self)
  end
end

--- Take the bar off the screen, since something else is written there.
function Progress:clear()
  if self.on_screen then
    output.draw("\r\27[K")
    self.on_screen, self.shown_at = false, -math.huge
  end
end

--- The job is over: what was not shown for want of time is said in the log.
function Progress:finish()
  self:clear()
  if self.pending and not self.is_bar then
    show(self)
  end
end

return progress
