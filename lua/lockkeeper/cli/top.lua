--- lockkeeper top: who waits for whom, locks and jobs on a whole screen, as they change.
--
-- Three tasks: one looks, however long the server takes; one cancels and terminates; one waits for keys, and
-- is never kept waiting.
local action = require "lockkeeper.top.action"
local app = require "lockkeeper.top.app"
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local host = require "lockkeeper.host"
local keys = require "lockkeeper.top.keys"
local lock = require "lockkeeper"
local reader = require "lockkeeper.top.reader"
local target = require "lockkeeper.cli.target"

local top = {}

local TABS = { "tree", "locks", "jobs" }

top.spec = {
  usage = "lockkeeper top [options]",
  summary = "A whole screen, as it changes: who waits for whom, locks, jobs. One looks at a session, cancels "
    .. "its statement or terminates it, after a question.",
  text = {
    "Keys: q ends it, ? tells them all. / takes a Lua expression, as ls --where does.",
    "A lost connection is shown, and made again. Exit code: 0; 2 there is no terminal; 69 no connection.",
  },
  operands = { min = 0, max = 0 },
  options = {
    { "--every", value = "D", key = "every", kind = "duration", help = "how long between two looks (1s)" },
    { "--tab", value = "NAME", key = "tab", kind = "choice", choices = TABS,
      help = "what is shown first: tree (default), locks or jobs" },
    { "-w", "--where", value = "EXPRESSION", key = "where",
      help = "show only what it is true of, in the tab that is shown first" },
  },
  uses_config = true,
}

local EVERY, EVERY_LEAST = 1, 0.1

-- How often the picture is made anew though nothing was read: times in it go on.
local DRAWN_EVERY = 1

-- Raised to leave it.
local QUIT = {}

local function read_every(values)
  local every = values.every == nil and EVERY or values.every
  if not every or every < EVERY_LEAST then
    failure.words(("--every: at least %gs"):format(EVERY_LEAST))
  end
  return every
end

local function new_app(values)
  local tabs, shown = {}, nil
  for i, name in ipairs(TABS) do
    tabs[i] = require(("lockkeeper.top.%s_tab"):format(name))
    shown = name == values.tab and tabs[i] or shown
  end
  local self = app.new { every = read_every(values), tabs = tabs }
  self.tab = shown or tabs[1]
  if values.where and not self:filter(self.tab, values.where) then
    failure.words("--where: " .. self.message.text)
  end
  return self
end

-- Whether it is time for another look.
local function is_due(self)
  return not self.paused and not self.begun_at and not self.asked and core.monotonic() >= self.due_at
end

-- How long to wait for a key, in seconds.
local function patience(self)
  if self.paused or self.begun_at then
    return DRAWN_EVERY
  end
  return math.max(0, math.min(DRAWN_EVERY, self.due_at - core.monotonic()))
end

-- The task of the keyboard.
local function attend(self)
  local screen <close> = host.screen_open()
  self.screen = screen
  self:draw()
  while true do
    local key = screen:key(patience(self))
    if key and keys.press(self, key) then
      error(QUIT, 0)
    end
    local said = screen:said()
    if said then
      self:say(said:match("([^\n]+)\n*$") or said)
    end
    if is_due(self) then
      self:look()
    end
    self:draw()
  end
end

function top.main(values)
  local self = new_app(values)
  if not host.terminal(0) or not host.terminal(1) then
    failure.words("it takes a terminal; tree, ls and jobs write anywhere")
  end
  target.name_sessions("top")
  local ok, err = pcall(lock.tasks, function(spawn)
    spawn(reader.run, self)
    if not core.await(self) then -- until it has looked once
      core.raise_cancelled()
    end
    spawn(action.run, self)
    attend(self)
  end)
  if not ok and err ~= QUIT and not host.interrupted() then
    error(err, 0)
  end
  return 0
end

return top
