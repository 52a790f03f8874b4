--- The task that looks: it may wait for the server for as long as that takes, while the keyboard's task goes
--- on. It has a session of its own, and makes it anew when it was lost.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local listing = require "lockkeeper.cli.listing"
local lock = require "lockkeeper"

local reader = {}

---@class TopData               what a tab has read
---@field now number            epoch seconds by the server's clock
---@field counts string         for the first line
---@field rows? table[]         of a list
---@field graph? Graph          of the tree
---@field empty? string         what is said where there is nothing

-- How long it waits before it connects again, in seconds.
local RETRY = 1

local LOST = { connection = true, lock_lost = true }

local function read(app)
  local db = lock.db
  app.own[db.pid] = true
  app.place = app.place or listing.place()
  local page, tab = app.page, app.tab
  if page and page.read then
    page.data = page.read()
    return
  end
  app:take(tab, tab.read())
end

-- Connect again, if that can be had now.
local function mend()
  local ok, err = pcall(function() lock.db:reconnect() end)
  if not ok and (not failure.is_ours(err) or err.kind == "cancelled") then
    error(err, 0)
  end
end

-- What went wrong is shown; a look that is over after it was asked to be, and mistakes of ours, are raised.
local function failed(app, err)
  if not failure.is_ours(err) or err.kind == "cancelled" then
    error(err, 0)
  elseif not app.screen then
    error(err, 0) -- it has never worked
  elseif LOST[err.kind] then
    app.lost = app.lost or { since = core.monotonic() }
    app.lost.message = err.message
    app.place = nil
    mend()
  else
    app.trouble = err.message
  end
end

local function look(app)
  app.begun_at = core.monotonic()
  local ok, err = pcall(read, app)
  local now = core.monotonic()
  local took = now - app.begun_at
  app.begun_at = nil
  if ok then
    app.lost, app.trouble, app.looked_at = nil, nil, now
  else
    failed(app, err)
  end
  -- A look that takes long is not to keep the server busy: at most half of the time.
  app.due_at = app.lost and core.monotonic() + RETRY or now + math.max(app.every - took, took)
end

--- Look whenever app:look() asks for it, and show what was seen.
---@param app TopApp
function reader.run(app)
  while true do
    app.asked = false
    look(app)
    core.tell(app)
    app:draw()
    while not app.asked do
      if not core.await(app.bell) then
        core.raise_cancelled()
      end
    end
  end
end

return reader
