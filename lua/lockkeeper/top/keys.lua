--- What each key of `lockkeeper top` does.
local action = require "lockkeeper.top.action"
local help_page = require "lockkeeper.top.help_page"
local prompt = require "lockkeeper.top.prompt"

local keys = {}

local function turn_to(app, tab)
  app.tab, app.page = tab, nil
  app:look()
end

local function place_of(list, value)
  for i, element in ipairs(list) do
    if element == value then
      return i
    end
  end
  return 0
end

local function next_tab(app, by)
  turn_to(app, app.tabs[(place_of(app.tabs, app.tab) - 1 + by) % #app.tabs + 1])
end

local function show_page(app, page)
  app.page = page
  if page.read then
    app:look()
  end
end

local function leave_page(app)
  app.page = nil
  app:look()
end

local function inspect(app)
  local item = app:selected()
  if item then
    local page, why = app.tab.page(item.row)
    if page then
      show_page(app, page)
    else
      app:say(why)
    end
  end
end

-- What is to be ended: the page's session, or the selected line's.
local function act(app, what)
  local subject, why
  if app.page then
    subject = app.page.subject
  else
    local item = app:selected()
    if item then
      subject, why = app.tab.subject(item.row)
    end
  end
  why = subject and action.ask(app, what, subject) or why
  if why then
    app:say(why)
  end
end

local function ask_filter(app)
  local tab = app.tab
  app.message = nil
  app.prompt = prompt.new("filter, as " .. tab.example .. ": ", app:view().filter or "",
    function(text) return app:filter(tab, text) end)
end

-- Kinds of which one looks for the greatest first.
local GREATEST_FIRST = { duration = true, integer = true }

-- By the next column, or the one before; before the first and after the last is the usual order.
local function sort_by(app, step)
  local view, tab = app:view(), app.tab
  if tab.is_tree then
    app:say("the tree is in order: those with the most behind them first")
    return
  end
  local columns, place = tab.columns(view.data and view.data.now or 0), 0
  for i, column in ipairs(columns) do
    place = column.key == view.sort and i or place
  end
  place = (place + step) % (#columns + 1)
  local column = columns[place]
  view.sort = column and column.key
  view.reverse = column ~= nil and column.key ~= "pid" and GREATEST_FIRST[column.kind] or false
  app:arrange(tab)
end

local function reverse(app)
  local view = app:view()
  if not view.sort then
    app:say("> sorts by a column; r turns that round")
    return
  end
  view.reverse = not view.reverse
  app:arrange(app.tab)
end

local function unfold(app)
  local view = app:view()
  if app.tab.is_tree then
    view.unfolded = not view.unfolded
    app:arrange(app.tab)
  end
end

local function pause(app)
  app.paused = not app.paused
  if not app.paused then
    app:look()
  end
end

local COMMON = {
  ["?"] = function(app) show_page(app, help_page(app.tabs)) end,
  c = function(app) act(app, "cancel") end,
  t = function(app) act(app, "terminate") end,
  p = pause,
  [" "] = function(app) app:look() end,
  tab = function(app) next_tab(app, 1) end,
  ["shift-tab"] = function(app) next_tab(app, -1) end,
  ["ctrl-l"] = function(app) app.screen:redraw() end,
}
COMMON.h = COMMON["?"]
for i = 1, 9 do
  COMMON[tostring(i)] = function(app)
    if app.tabs[i] then
      turn_to(app, app.tabs[i])
    end
  end
end

local IN_LIST = {
  up = function(app) app:move(-1) end,
  down = function(app) app:move(1) end,
  ["page up"] = function(app) app:move(-app:view().room) end,
  ["page down"] = function(app) app:move(app:view().room) end,
  home = function(app) app:move(-math.maxinteger // 2) end,
  ["end"] = function(app) app:move(math.maxinteger // 2) end,
  enter = inspect,
  ["/"] = ask_filter,
  [">"] = function(app) sort_by(app, 1) end,
  ["<"] = function(app) sort_by(app, -1) end,
  r = reverse,
  u = unfold,
  right = function(app) next_tab(app, 1) end,
  left = function(app) next_tab(app, -1) end,
  escape = function(app) app.message = nil end,
}
IN_LIST.k, IN_LIST.j, IN_LIST.g, IN_LIST.G = IN_LIST.up, IN_LIST.down, IN_LIST.home, IN_LIST["end"]

local function scroll(by)
  return function(app) app.page.first = app.page.first + by end
end

local IN_PAGE = {
  up = scroll(-1),
  down = scroll(1),
  ["page up"] = function(app) app.page.first = app.page.first - app.page.room end,
  ["page down"] = function(app) app.page.first = app.page.first + app.page.room end,
  home = function(app) app.page.first = 1 end,
  ["end"] = function(app) app.page.first = math.maxinteger // 2 end,
  escape = leave_page,
  enter = leave_page,
  backspace = leave_page,
  left = leave_page,
}
IN_PAGE.k, IN_PAGE.j, IN_PAGE.g, IN_PAGE.G = IN_PAGE.up, IN_PAGE.down, IN_PAGE.home, IN_PAGE["end"]

local function answer(app, key)
  local question = app.question
  app.question = nil
  if key == "y" or key == "Y" then
    question.yes()
  else
    app:say(question.no)
  end
end

--- Do what a key says. Returns true where that is the end.
---@param app TopApp
---@param key string
---@return boolean
function keys.press(app, key)
  if key == "resize" then
    return false
  elseif app.question then
    answer(app, key)
  elseif app.prompt then
    app.message = nil
    if prompt.take(app.prompt, key) then
      app.prompt = nil
    end
  elseif key == "q" or key == "Q" then
    return true
  else
    local does = (app.page and IN_PAGE or IN_LIST)[key] or COMMON[key]
    if does then
      app.message = nil
      does(app)
    end
  end
  return false
end

return keys
