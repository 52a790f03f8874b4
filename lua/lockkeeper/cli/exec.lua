--- lockkeeper exec: hold a lock while a command runs.
local core = require "lockkeeper.core"
local host = require "lockkeeper.host"
local ids = require "lockkeeper.cli.ids"
local lock = require "lockkeeper"
local options = require "lockkeeper.cli.options"

local exec = {}

exec.spec = {
  usage = "lockkeeper exec --lock ID [options] -- CMD [ARG...]",
  summary = "Holds a lock while CMD runs, as flock(1) does for a file.",
  text = ids.TEXT .. "\n"
    .. "Signals are passed on to CMD, and its exit code is ours. When the lock is lost CMD is\n"
    .. "stopped (exit code 125). Redirections belong inside: -- sh -c 'pg_dump … > file'.\n"
    .. "Exit code: CMD's own; 69 no connection; 75 the lock was not to be had; 124 --max-run\n"
    .. "passed; 125 the lock was lost; 126, 127 CMD can't be executed, is not found.",
  rest = true,
  operands = { min = 1, name = "CMD" },
  options = {
    { "--lock", value = "ID", key = "lock", help = "the lock to hold" },
    ids.OPTIONS[1], ids.OPTIONS[2],
    { "--shared", key = "shared", help = "a shared lock" },
    { "-w", "--timeout", value = "D", key = "timeout", kind = "duration",
      help = "how long to wait for it (default: for ever)" },
    { "-n", key = "timeout", set = 0, help = "do not wait: --timeout 0" },
    { "--busy-exit", value = "N", key = "busy_exit", kind = "integer", from = 0, to = 255,
      help = "the exit code where it was not to be had (default 75)" },
    { "--no-poll", key = "no_poll", help = "wait inside the server, in its queue" },
    { "--model", value = "TABLE", key = "model", help = "lock a table too, or alone" },
    { "--mode", value = "MODE", key = "mode", help = "its mode (default ACCESS EXCLUSIVE)" },
    { "--lock-timeout", value = "D", key = "lock_timeout", kind = "duration",
      help = "lock_timeout of CMD's own sessions, through PGOPTIONS" },
    { "--max-run", value = "D", key = "max_run", kind = "duration",
      help = "stop CMD after that long (exit code 124)" },
  },
}

local POLL = 0.25

local function say(...)
  io.stderr:write("lockkeeper: ", ...)
  io.stderr:write("\n")
end

-- Who has it, for the one who could not get it.
local HOLDERS_SQL = [[
SELECT l.pid, a.usename, a.application_name, a.client_addr
  FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
 WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' AND l.granted
   AND l.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d
         WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
   AND l.classid OPERATOR(pg_catalog.=) $1::pg_catalog.text::pg_catalog.oid
   AND l.objid OPERATOR(pg_catalog.=) $2::pg_catalog.text::pg_catalog.oid
   AND l.objsubid OPERATOR(pg_catalog.=) $3
 LIMIT 3]]

local function say_who_holds(id, values)
  local key, second = lock.key(id, { scheme = values.scheme, prefix = values.prefix })
  local parts = table.pack(lock.key_parts(second and { key, second } or key))
  for _, row in ipairs(lock.db:query(HOLDERS_SQL, tostring(parts[1]), tostring(parts[2]), parts[3])) do
    say(("  held by pid %d%s%s%s"):format(row.pid,
      row.usename and ", user " .. row.usename or "",
      row.application_name and row.application_name ~= "" and ", " .. row.application_name or "",
      row.client_addr and ", from " .. row.client_addr or ""))
  end
end

local function acquire(id, values)
  local held, err = lock.advisory(id, {
    timeout = values.timeout == nil and false or values.timeout,
    shared = values.shared,
    scheme = values.scheme,
    prefix = values.prefix,
    poll = not values.no_poll and POLL,
  })
  if not held then
    say(err.message)
    say_who_holds(id, values)
  end
  return held
end

local function lock_table(values)
  local options_given = { mode = values.mode }
  if values.timeout ~= nil then
    options_given.timeout = values.timeout
    options_given.on_busy = "return"
  end
  local ok, err = lock.model(values.model, options_given)
  if not ok then
    say(("table %s: %s"):format(values.model, err.message))
  end
  return ok
end

local function key_text(held)
  if not held then
    return false
  elseif type(held.key) == "table" then
    return table.concat(held.key, ",")
  end
  return tostring(held.key)
end

local function environment(held, values)
  local env = { LOCKKEEPER_KEY = key_text(held) }
  if values.lock_timeout ~= nil then
    local ms = values.lock_timeout and math.ceil(values.lock_timeout * 1000) or 0
    local before = os.getenv("PGOPTIONS")
    env.PGOPTIONS = (before and before .. " " or "") .. ("-c lock_timeout=%d"):format(ms)
  end
  return env
end

local function run(argv, held, values)
  local code, how, err = core.foreground(argv, {
    env = environment(held, values),
    max_run = values.max_run or nil,
    signals = host.forward_signals(),
  })
  if not code then
    say(err.message)
    return how == "not_found" and 127 or 126
  elseif how == "lost" then
    say("the lock was lost: the session that held it ended. The command was stopped.")
    return 125
  elseif how == "timed_out" then
    say("--max-run passed: the command was stopped.")
    return 124
  end
  return code
end

local function check(values)
  if not values.lock and not values.model then
    options.wrong("--lock ID or --model TABLE is missing")
  elseif values.mode and not values.model then
    options.wrong("--mode needs --model TABLE")
  elseif (values.scheme or values.prefix or values.shared) and not values.lock then
    options.wrong("--scheme, --prefix and --shared need --lock ID")
  end
end

function exec.main(values, argv)
  check(values)
  local id = values.lock and ids.parse(values.lock, values.scheme)
  core.set_application("lockkeeper: " .. (values.lock or values.model))
  local held = id and acquire(id, values)
  if id and not held then
    return values.busy_exit or 75
  end
  local tx <close> = values.model and lock.db:begin() or nil
  if tx and not lock_table(values) then
    return values.busy_exit or 75
  end
  local code = run(argv, held, values)
  if code == 125 then
    lock.db:ping() -- so that the session knows, too, that it has nothing left to give back
  elseif held then
    held:release() -- raises lock_lost, exit code 125, where something unlocked it in the middle
  end
  return code
end

return exec
