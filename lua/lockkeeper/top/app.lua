--- What `lockkeeper top` shows, and the picture of it.
local core = require "lockkeeper.core"
local expression = require "lockkeeper.expression"
local failure = require "lockkeeper.cli.failure"
local field = require "lockkeeper.report.field"
local grid = require "lockkeeper.top.grid"
local prompt = require "lockkeeper.top.prompt"
local safe = require "lockkeeper.report.safe"
local span = require "lockkeeper.report.span"
local width = require "lockkeeper.report.width"

---@class TopApp
---@field screen? table              nil until the first look was successful
---@field every number               seconds between looks
---@field tabs table[]
---@field tab table                  the one that is shown
---@field views table<table, TopView>   by tab
---@field page? TopPage              what is shown in place of the tab
---@field prompt? TopPrompt
---@field question? { text: string, yes: function, no: string }
---@field message? { text: string, style: string, till: number }
---@field paused boolean
---@field own table<integer, boolean>   pids of our own sessions
---@field bell table                 told to the reader
---@field asked boolean              the reader is to look
---@field begun_at? number           when the look began that goes on
---@field looked_at? number          when the last one that was successful ended
---@field due_at number              when the next one is to begin
---@field lost? { since: number, message: string }   no connection
---@field trouble? string            why the last look failed otherwise
---@field place? string              which database it is
---@field request? function          what is being done, see lockkeeper.top.action
local app = {}
app.__index = app

---@class TopView : TopOrder
---@field data? TopData
---@field items TopItem[]
---@field selected integer       0: nothing can be
---@field first integer          the item at the top of the screen
---@field filter? string         the condition's text
---@field fault? string          why the condition can't be asked
---@field unfolded boolean
---@field grid TopGrid
---@field room integer           how many items the screen had room for

-- How long a message stays, in seconds.
local MESSAGE_TIME = 6

-- After how many seconds a look is said to take long.
local LONG = 2

-- Parameters of SGR sequences.
local BOLD, DIM, REVERSE, RED, YELLOW = "1", "2", "7", "1;31", "33"

---@param options { every: number, tabs: table[] }
---@return TopApp
function app.new(options)
  local self = setmetatable({ every = options.every, tabs = options.tabs, tab = options.tabs[1], views = {},
    paused = false, own = {}, bell = {}, asked = false, due_at = 0 }, app)
  for _, tab in ipairs(options.tabs) do
    self.views[tab] = { items = {}, selected = 0, first = 1, reverse = false, unfolded = false,
      grid = grid.new(), room = 1 }
  end
  return self
end

--- The tab's view that is shown.
---@return TopView
function app:view()
  return self.views[self.tab]
end

--- Have the reader look, now or as soon as it can.
function app:look()
  self.asked = true
  core.tell(self.bell)
end

--- Show a message for a while.
---@param text string
---@param is_bad? boolean
function app:say(text, is_bad)
  self.message = { text = safe.line(text), style = is_bad and RED or BOLD,
    till = core.monotonic() + MESSAGE_TIME }
end

--- Ask a question that is answered with y or not.
---@param text string
---@param yes function
---@param no string    what is said where the answer is another
function app:ask(text, yes, no)
  self.question = { text = safe.line(text), yes = yes, no = no }
end

---------------------------------------------------------------------------------------------------
-- the items of a view

-- The nearest one that can be selected, in that direction, else in the other; 0: none.
local function selectable(view, at, step)
  local items = view.items
  at = math.max(1, math.min(at, #items))
  for _, way in ipairs { step, -step } do
    local i = at
    while items[i] do
      if items[i].row then
        return i
      end
      i = i + way
    end
  end
  return 0
end

-- What was selected stays so, wherever it is now.
local function select_again(view, tab, row)
  if row then
    for i, item in ipairs(view.items) do
      if item.row and tab.is_same(item.row, row) then
        view.selected = i
        return
      end
    end
  end
  view.selected = selectable(view, view.selected, 1)
end

--- Choose and order a tab's items anew: its data, filter or order has changed.
---@param tab table
function app:arrange(tab)
  local view = self.views[tab]
  local selected = view.items[view.selected]
  if not view.data then
    return
  end
  local ok, items = pcall(tab.arrange, view.data, view, { unfolded = view.unfolded })
  view.fault = nil
  if not ok then
    if not failure.is_ours(items) or items.kind ~= "usage" then
      error(items, 0)
    end
    view.fault, items = items.message, {}
  end
  view.items = items
  select_again(view, tab, selected and selected.row)
end

--- What a tab has read.
---@param tab table
---@param data TopData
function app:take(tab, data)
  self.views[tab].data = data
  self:arrange(tab)
end

--- Show only what an expression is true of; "" shows all. Returns false where it is none, and says why.
---@param tab table
---@param text string
---@return boolean
function app:filter(tab, text)
  local view = self.views[tab]
  if not text:find("%S") then
    view.filter, view.condition = nil, nil
  else
    local ok, condition = pcall(expression.compile, text, { fields = tab.fields, what = "filter" })
    if not ok then
      if not failure.is_ours(condition) then
        error(condition, 0)
      end
      self:say(condition.message, true)
      return false
    end
    view.filter, view.condition = text, condition
  end
  self:arrange(tab)
  return true
end

--- Move the selection by that many items.
---@param by integer
function app:move(by)
  local view = self:view()
  view.selected = selectable(view, view.selected + by, by < 0 and -1 or 1)
  if by < 0 and view.selected == selectable(view, 1, 1) then
    view.first = 1 -- with what stands above it
  end
end

---@return TopItem?
function app:selected()
  local view = self:view()
  return view.items[view.selected]
end

---------------------------------------------------------------------------------------------------
-- the picture

-- Where there is no room for all of it, the counts are worth more than the day and the server's version.
local function title_of(self, columns)
  local data = self:view().data
  local place = self.place or "(no connection)"
  local at = data and field.local_time(data.now, true) or ""
  local counts = self.page and self.page.title or data and data.counts or "looking …"
  local short_place, short_at = place:gsub(" %(.-%)$", ""), at:sub(12)
  local text
  for _, form in ipairs { { place, at }, { place, short_at }, { short_place, short_at } } do
    text = safe.line(("%s%s: %s"):format(form[1], form[2] ~= "" and ", " .. form[2] or "", counts))
    if width.of(text) <= columns then
      return text
    end
  end
  return text
end

-- What is to be known of the picture itself, at the right of the tabs.
local function notes_of(self)
  local now, notes = core.monotonic(), {}
  local function add(text, style)
    notes[#notes + 1] = { text = text, style = style }
  end
  local view = self:view()
  if self.lost then
    add(("no connection for %s, trying again"):format(span(now - self.lost.since)), RED)
  elseif self.begun_at and now - self.begun_at >= LONG then
    add(("the server has not answered for %s"):format(span(now - self.begun_at)), YELLOW)
  elseif self.paused then
    add(("paused, %s ago"):format(span(now - (self.looked_at or now))), YELLOW)
  end
  if view.filter and not self.page then
    add("filter: " .. safe.line(view.filter), YELLOW)
  end
  return notes
end

local function draw_head(self, screen, columns)
  screen:put(1, 1, title_of(self, columns), columns, self.lost and RED or BOLD)
  local at = 1
  for i, tab in ipairs(self.tabs) do
    local text = (" %d %s "):format(i, tab.title)
    screen:put(2, at, text, #text, tab == self.tab and REVERSE or DIM)
    at = at + #text + 1
  end
  for _, note in ipairs(notes_of(self)) do
    screen:put(2, at + 1, note.text, math.min(width.of(note.text), columns - at), note.style)
    at = at + 2 + width.of(note.text)
  end
end

local function draw_page(self, screen, line, count, columns)
  local page = self.page
  local lines = (not page.read or page.data) and page.lines(page.data, columns) or { { text = "looking …" } }
  page.first = math.max(1, math.min(page.first, #lines - count + 1))
  page.room = count
  for i = 1, count do
    local shown = lines[page.first + i - 1]
    if shown then
      screen:put(line + i - 1, 1, shown.text, columns, shown.style)
    end
  end
end

-- What is said where there is nothing to be shown.
local function empty_text(tab, view)
  if not view.data then
    return "looking …"
  end
  return view.fault or view.condition and tab.none or view.data.empty or tab.empty
end

-- The part of the items that is shown has the selected one in it.
local function scroll(view, count)
  view.room = math.max(1, count)
  local most = math.max(1, #view.items - view.room + 1)
  if view.selected > 0 then
    view.first = math.max(view.selected - view.room + 1, math.min(view.first, view.selected))
  end
  view.first = math.max(1, math.min(view.first, most))
end

local function draw_items(self, screen, line, count, columns)
  local view, tab = self:view(), self.tab
  scroll(view, count - 1)
  if #view.items == 0 then
    screen:put(line, 1, safe.line(empty_text(tab, view)), columns, view.fault and RED or "")
    return
  end
  grid.draw(view.grid, screen, line, count - 1, columns, {
    columns = tab.columns(view.data.now), items = view.items, first = view.first, selected = view.selected,
    sort = view.sort, reverse = view.reverse,
  })
end

local KEYS = {
  { "q", "quit" }, { "?", "help" }, { "Tab", "next" }, { "/", "filter" }, { "<>", "sort" },
  { "Enter", "inspect" }, { "c", "cancel" }, { "t", "terminate" }, { "p", "pause" }, { "r", "reverse" },
}
local PAGE_KEYS = { { "Esc", "back" }, { "↑↓", "scroll" }, { "c", "cancel" }, { "t", "terminate" },
  { "q", "quit" } }
local QUESTION_KEYS = { { "y", "yes" }, { "any other", "no" } }
local PROMPT_KEYS = { { "Enter", "apply" }, { "Esc", "leave it" }, { "Ctrl-U", "empty it" } }

-- With fewer lines the picture is the list, and what is asked or said.
local LINES_LEAST = 6

local function draw_keys(self, screen, line, columns)
  local keys = self.question and QUESTION_KEYS or self.prompt and PROMPT_KEYS or self.page and PAGE_KEYS
    or KEYS
  local at = 1
  for _, key in ipairs(keys) do
    local taken = width.of(key[1]) + 1 + width.of(key[2])
    if at + taken - 1 > columns then
      return
    end
    screen:put(line, at, key[1], width.of(key[1]), BOLD)
    screen:put(line, at + width.of(key[1]) + 1, key[2], width.of(key[2]), DIM)
    at = at + taken + 2
  end
end

-- The line above the keys: what is asked, what was said, or the statement of the selected line.
local function draw_talk(self, screen, line, columns)
  local message = self.message
  if self.question then
    screen:put(line, 1, self.question.text, columns, RED)
  elseif message and core.monotonic() < message.till then
    screen:put(line, 1, message.text, columns, message.style)
  elseif self.lost or self.trouble then
    screen:put(line, 1, safe.line(self.lost and self.lost.message or self.trouble), columns, RED)
  elseif not self.page then
    local item = self:selected()
    local statement = item and self.tab.statement and self.tab.statement(item.row)
    screen:put(line, 1, statement and safe.line(statement) or "", columns, DIM)
  end
end

--- Draw it all, if there is a screen yet.
function app:draw()
  local screen = self.screen
  if not screen then
    return
  end
  local lines, columns = screen:size()
  local is_whole = lines >= LINES_LEAST
  local first, talk = is_whole and 3 or 1, is_whole and lines - 1 or lines
  screen:clear()
  if self.page then
    draw_page(self, screen, first, math.max(1, talk - first), columns)
  else
    draw_items(self, screen, first, math.max(1, talk - first), columns)
  end
  if is_whole then
    draw_head(self, screen, columns)
    draw_keys(self, screen, lines, columns)
  end
  if self.prompt and not (self.message and core.monotonic() < self.message.till) then
    screen:show(talk, prompt.draw(self.prompt, screen, talk, columns))
    return
  end
  draw_talk(self, screen, talk, columns)
  screen:show()
end

return app
