--- lockkeeper exec: hold a lock while a command runs.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local field = require "lockkeeper.report.field"
local holders = require "lockkeeper.holders"
local host = require "lockkeeper.host"
local ids = require "lockkeeper.cli.ids"
local lock = require "lockkeeper"
local patience = require "lockkeeper.cli.patience"
local target = require "lockkeeper.cli.target"

local exec = {}

local say = failure.say

exec.spec = {
  usage = "lockkeeper exec --lock ID [options] -- CMD [ARG...]",
  summary = "Holds a lock while CMD runs, as flock(1) does for a file.",
  text = {
    ids.TEXT,
    "Signals are passed on to CMD, and its exit code is ours. When the lock is lost CMD is stopped, and "
      .. "so is whatever it leaves behind when it ends. LOCKKEEPER_KEY tells it the key. Redirections "
      .. "belong inside the lock: -- sh -c 'pg_dump … > file'.",
    "Exit code: CMD's own; 69 no connection; 75 the lock was not to be had; 124 --max-run passed; 125 the "
      .. "lock was lost; 126 CMD can't be executed; 127 it is not found; 128 + N ended by signal N.",
  },
  rest = true,
  operands = { min = 1, name = "CMD" },
  options = {
    { "--lock", value = "ID", key = "lock", help = "the lock to hold" },
    ids.OPTIONS[1], ids.OPTIONS[2],
    { "--shared", key = "shared", help = "a shared lock: others may share it" },
    { "-w", "--timeout", value = "D", key = "timeout", kind = "duration",
      help = "how long to wait, in seconds or as 250ms, 5s, 1h30m (default: for ever)" },
    { "-n", key = "timeout", set = 0, help = "do not wait: --timeout 0" },
    { "--busy-exit", value = "N", key = "busy_exit", kind = "integer", from = 0, to = 255,
      help = "the exit code where it was not to be had (default 75)" },
    { "--no-poll", key = "no_poll", help = "wait inside the server, in its queue, not by trying again" },
    { "--model", value = "TABLE", key = "model", help = "lock a table too, or alone" },
    { "--mode", value = "MODE", key = "mode", help = "its mode (default ACCESS EXCLUSIVE)" },
    { "--lock-timeout", value = "D", key = "lock_timeout", kind = "duration",
      help = "lock_timeout of CMD's own sessions, through PGOPTIONS" },
    { "--prioritize", key = "prioritize",
      help = "terminate, every second, the sessions that block CMD's own, which are known by the PGAPPNAME "
        .. "that it gets: those that it opens to this server under that name" },
    { "--max-run", value = "D", key = "max_run", kind = "duration", help = "stop CMD after that long" },
  },
}

-- PostgreSQL's NAMEDATALEN, less its NUL.
local NAME_MAX = 63

-- Of the milliseconds of a setting of PostgreSQL's.
local SETTING_MAX = 2147483647

---@return WantedByCommand
local function advisory(id, values)
  local key, second = lock.key(id, { scheme = values.scheme, prefix = values.prefix })
  return {
    name = "lock " .. values.lock,
    take = function(timeout)
      return lock.advisory(id, { timeout = timeout, shared = values.shared, scheme = values.scheme,
        prefix = values.prefix })
    end,
    holders = function()
      return holders.advisory(lock.db, { second and { key, second } or key })
    end,
  }
end

-- The transaction is the hold, and each try has one of its own: a failed try leaves no snapshot
-- and no transaction id that others would have to wait for.
---@return WantedByCommand
local function model(values)
  return {
    name = "table " .. values.model,
    take = function(timeout)
      local tx = lock.db:begin()
      local ok, err = lock.model(values.model, { mode = values.mode, timeout = timeout, on_busy = "return" })
      if ok then
        return tx
      end
      tx:rollback()
      return nil, err
    end,
    holders = function() return holders.relations(lock.db, { values.model }) end,
  }
end

-- An application_name that no other session of the server has, by the pid of the session that holds the
-- lock. It begins with the one that CMD would have had, in letters that the server leaves as they are.
local function session_name(argv)
  local own = os.getenv("PGAPPNAME") or argv[1]:match("[^/]*$")
  local mark = (" (lockkeeper %d)"):format(lock.db.pid)
  return own:gsub("[^ -~]", "?"):sub(1, NAME_MAX - #mark) .. mark
end

-- What CMD finds in its environment beside ours.
local function environment(held, values, own_name)
  local env = { LOCKKEEPER_KEY = held and field.key_word(held.key) or false, PGAPPNAME = own_name }
  for name, value in pairs(values.forgotten or {}) do
    env[name] = value
  end
  if values.lock_timeout ~= nil then
    local ms = values.lock_timeout and math.ceil(values.lock_timeout * 1000) or 0
    local before = os.getenv("PGOPTIONS")
    env.PGOPTIONS = (before and before .. " " or "") .. ("-c lock_timeout=%d"):format(ms)
  end
  return env
end

-- Run CMD; while it runs, what blocks its sessions is ended, where that is wanted. Its exit code counts,
-- whatever became of that.
local function run_foreground(argv, held, values)
  local name = values.prioritize and session_name(argv) or nil
  local guarding <close> = name and lock.prioritize { sessions = { application_name = name } } or nil
  local results = table.pack(core.foreground(argv, {
    env = environment(held, values, name),
    max_run = values.max_run or nil,
    signals = host.forward_signals(),
  }))
  if guarding then
    local ok, problem = pcall(guarding.close, guarding)
    if not ok then
      say("--" .. failure.text(problem))
    end
  end
  return table.unpack(results, 1, results.n)
end

local function run(argv, held, values)
  local code, how, err = run_foreground(argv, held, values)
  if not code then
    say(err.message)
    return how == "not_found" and 127 or 126
  elseif how == "lost" then
    say("the lock was lost: the session that held it ended. The command was stopped.")
    lock.db:ping() -- so that the session knows, too, that it has nothing left to give back
    return 125, true
  elseif how == "timed_out" then
    say("--max-run passed: the command was stopped.")
    return 124
  end
  return code
end

local function check(values)
  if not values.lock and not values.model then
    failure.words("--lock ID or --model TABLE is missing")
  elseif values.mode and not values.model then
    failure.words("--mode needs --model TABLE")
  elseif (values.scheme or values.prefix or values.shared) and not values.lock then
    failure.words("--scheme, --prefix and --shared need --lock ID")
  elseif values.lock_timeout and values.lock_timeout * 1000 > SETTING_MAX then
    failure.words("--lock-timeout is more than a setting of PostgreSQL's can be (24.8 days)")
  end
end

function exec.main(values, argv)
  check(values)
  local id = values.lock and ids.parse(values.lock, values.scheme)
  target.name_sessions(values.lock or values.model)
  local wait = patience.new(values.timeout or nil, not values.no_poll)
  local held = id and wait(advisory(id, values))
  if id and not held then
    return values.busy_exit or 75
  end
  local tx <close> = values.model and wait(model(values)) or nil
  if values.model and not tx then
    return values.busy_exit or 75
  end
  local code, lost = run(argv, held, values)
  if held and not lost then
    held:release() -- raises lock_lost, exit code 125, where something unlocked it in the middle
  end
  return code
end

return exec
