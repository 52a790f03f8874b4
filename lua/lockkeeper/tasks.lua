--- lock.tasks: structured concurrency over the one wait.
--
-- A group has workers, each a task of the core that runs what was spawned, one after another; there
-- are as many as `max` allows and as are needed at once. The body runs on its caller's own fiber.
local call = require "lockkeeper.call"
local core = require "lockkeeper.core"

---@class TasksOptions
---@field max? integer                    how many run at once; default: no limit
---@field max_sessions? integer           how many sessions a name may be opened to; default: no limit
---@field on_error? "cancel"|"continue"   default "cancel"

---@class Group
---@field workers table[]       the core's tasks; never fewer; told where there is something to do
---@field resting integer       workers that wait for something to do
---@field queue table[]         what was spawned and has no worker yet, from `first` to `last`
---@field first integer
---@field last integer
---@field running integer
---@field pools table<string, { idle: Session[], open: integer }>
---@field waiting integer       tasks that wait for a session
---@field errors any[][]         what the tasks raised, in boxes, since it may be nil
---@field fatal? any[]           what is raised from lock.tasks, whatever on_error says
---@field broken? boolean       a worker failed in the middle of its own work
---@field over boolean          nothing more can be spawned
---@field cancelled boolean
---@field body? userdata        the fiber of the body, while it runs

local OPTIONS = { "max", "max_sessions", "on_error" }

---------------------------------------------------------------------------------------------------
-- sessions: a name is a recipe

-- One that another task of the group has given back, or a new one; waits where there may be no more.
local function borrow(group, name)
  local pool = group.pools[name]
  if not pool then
    pool = { idle = {}, open = 0 }
    group.pools[name] = pool
  end
  while #pool.idle == 0 and pool.open >= group.max_sessions do
    if group.waiting + 1 >= group.running then
      core.usage(("tasks: every task waits for another's session: max_sessions = %d is too small for tasks "
        .. "that use several"):format(group.max_sessions))
    end
    group.waiting = group.waiting + 1
    local told = core.await(pool)
    group.waiting = group.waiting - 1
    if not told then
      core.raise_cancelled()
    end
  end
  local idle = table.remove(pool.idle)
  if idle then
    return core.borrowed_session(name, idle)
  end
  local session = core.borrowed_session(name)
  pool.open = pool.open + 1
  return session
end

-- What a task left open or held on a session would surprise the next one: such a session is closed.
local function give_back(group, sessions)
  for name, session in pairs(sessions) do
    local pool = group.pools[name]
    if core.is_clean(session) then
      pool.idle[#pool.idle + 1] = session
    else
      session:close()
      pool.open = pool.open - 1
    end
    core.tell(pool)
  end
end

---------------------------------------------------------------------------------------------------
-- workers

local function take(group)
  if group.first > group.last then
    return nil
  end
  local entry = group.queue[group.first]
  group.queue[group.first] = nil
  group.first = group.first + 1
  return entry
end

local function cancel(group)
  if group.cancelled then
    return
  end
  group.cancelled = true
  while take(group) do end
  for _, worker in ipairs(group.workers) do
    worker:cancel()
  end
  if group.body then
    core.cancel(group.body)
  end
end

local function failed(group, err)
  if group.cancelled then
    if not (type(err) == "table" and err.kind == "cancelled") then
      core.log("warning", "a task that was cancelled failed: " .. tostring(err), {}, {})
    end
    return
  end
  group.errors[#group.errors + 1] = { err }
  if group.on_error == "cancel" then
    cancel(group)
  end
end

local function run(group, sessions, entry)
  local ok, err = pcall(table.unpack(entry, 1, entry.n))
  group.running = group.running - 1
  give_back(group, sessions)
  if not ok then
    failed(group, err)
  end
end

-- A worker's life: what is in the queue, then rest until there is more, or the group is over.
local function work(group)
  local sessions = {}
  core.find_sessions_by(function(name)
    local session = sessions[name]
    if not session then
      session = borrow(group, name)
      sessions[name] = session
    end
    return session
  end)
  repeat
    local entry = take(group)
    if entry then
      group.running = group.running + 1
      run(group, sessions, entry)
      sessions = {}
    else
      core.tell(group)
      group.resting = group.resting + 1
      core.await(group.workers)
      group.resting = group.resting - 1
    end
  until group.cancelled or group.over and group.first > group.last
end

-- Out of memory, say: the group must not wait for what this worker was at.
local function work_safely(group)
  local ok, err = pcall(work, group)
  if not ok then
    group.broken, group.fatal = true, group.fatal or { err }
    cancel(group)
  end
  core.tell(group)
end

local function spawn(group, fn, ...)
  if type(fn) ~= "function" then
    core.usage("spawn: a function was expected, not a " .. type(fn))
  elseif group.over and group.running == 0 then
    core.usage("spawn: lock.tasks has returned: nothing can be spawned any more")
  elseif group.cancelled then
    core.raise_cancelled()
  end
  group.last = group.last + 1
  group.queue[group.last] = table.pack(fn, ...)
  local queued = group.last - group.first + 1
  if group.resting > 0 then
    core.tell(group.workers)
  end
  if queued > group.resting and #group.workers < group.max then
    group.workers[#group.workers + 1] = core.task(work_safely, group)
  end
end

---------------------------------------------------------------------------------------------------
-- groups

-- However the group is left, no worker and no session stays behind.
local function close(group)
  group.over = true
  if group.running > 0 or group.first <= group.last then
    cancel(group)
  end
  core.tell(group.workers)
  while #group.workers > 0 do -- one that ends may still have begun another
    table.remove(group.workers):join()
  end
  for _, pool in pairs(group.pools) do
    for _, session in ipairs(pool.idle) do
      session:close()
    end
  end
end

local function wait_for_all(group)
  while not group.broken and (group.running > 0 or group.first <= group.last) do
    if not core.await(group) then
      cancel(group)
      return false
    end
  end
  return true
end

local function run_body(group, fn)
  group.body = core.fiber()
  local ok, err = pcall(fn, function(...) return spawn(group, ...) end)
  if group.cancelled then
    core.absolve(group.body)
  end
  group.body = nil
  group.over = true
  if not ok and not group.cancelled then
    group.fatal = { err }
    if group.on_error == "cancel" then
      cancel(group)
    end
  end
end

local function unboxed(errors)
  local list = {}
  for i, box in ipairs(errors) do
    list[i] = box[1] == nil and "nil" or box[1]
  end
  return list
end

local GROUP = { __close = close }

local function new_group(options)
  call.check_options("tasks", options, OPTIONS)
  options = options or {}
  local on_error = options.on_error or "cancel"
  if on_error ~= "cancel" and on_error ~= "continue" then
    core.usage(('tasks: on_error must be "cancel" or "continue", not %s'):format(tostring(on_error)))
  end
  return setmetatable({
    max = call.integer("tasks", options, "max", 1) or math.maxinteger,
    max_sessions = call.integer("tasks", options, "max_sessions", 1) or math.maxinteger,
    on_error = on_error,
    workers = {}, resting = 0,
    queue = {}, first = 1, last = 0, running = 0,
    pools = {}, waiting = 0,
    errors = {},
    over = false, cancelled = false,
  }, GROUP)
end

--- Run what `fn` spawns side by side, on one thread; returns when all of it has ended. What waits (a
--- query, a lock, lock.sleep, lock.sh) lets the others go on. A session's name is a recipe inside a
--- task: each task has sessions of its own by it, which the next task may use again, as they are.
---@param options? TasksOptions
---@param fn fun(spawn: fun(fn: function, ...))
---@return any[]? errors  with on_error = "continue": what the tasks raised, in that order; may be empty
local function tasks(options, fn)
  options, fn = call.shift(options, fn)
  call.check_function("tasks", fn)
  local group <close> = new_group(options)
  run_body(group, fn)
  local waited = wait_for_all(group)
  close(group)
  local fatal = group.on_error == "cancel" and group.errors[1] or group.fatal
  if fatal then
    error(fatal[1], 0)
  elseif not waited then
    core.raise_cancelled()
  end
  return group.on_error == "continue" and unboxed(group.errors) or nil
end

return tasks
