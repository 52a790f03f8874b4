--- lockkeeper db: the embedded PostgreSQL.
local core = require "lockkeeper.core"
local host = require "lockkeeper.host"
local options = require "lockkeeper.cli.options"

local db = {}

db.spec = {
  usage = "lockkeeper db start|stop|status|url|psql [PSQL-ARG...]",
  summary = "The embedded server: a private PostgreSQL of your own, for trying out, tests and single machines.",
  text = "It listens on a Unix socket in a folder of mode 0700 only. Its data is in $LOCKKEEPER_EMBEDDED_DIR,\n"
    .. "else $XDG_STATE_HOME/lockkeeper/pg. psql opens a shell on it; what follows is psql's.",
  rest = true,
  operands = { min = 1, name = "start, stop, status, url or psql" },
  options = {},
}

local actions = {}

function actions.start()
  local server = host.embedded_start()
  print(("PostgreSQL %d runs (pid %d), data in %s"):format(server.version, server.pid, server.data))
end

function actions.stop()
  print(host.embedded_stop() and "stopped" or "it was not running")
end

function actions.status()
  local server = host.embedded_status()
  if server.pid > 0 then
    print(("PostgreSQL %d runs (pid %d), data in %s"):format(server.version, server.pid, server.data))
    print(server.url)
    return 0
  end
  if server.version > 0 then
    print(("not running; PostgreSQL %d's data is in %s"):format(server.version, server.data))
  else
    print(("not running, and not made yet; its data would be in %s"):format(server.data))
  end
  return 3
end

function actions.url()
  print(host.embedded_start().url)
end

function actions.psql(rest)
  local server = host.embedded_start()
  local argv = { "psql", server.url }
  table.move(rest, 1, #rest, 3, argv)
  local reason = host.replace(argv)
  io.stderr:write(("lockkeeper: psql can't be executed: %s (Debian's package is postgresql-client)\n"):format(reason))
  return 127
end

function db.main(_, operands)
  local name = table.remove(operands, 1)
  local action = actions[name]
  if not action then
    local near = core.nearest(name, { "start", "stop", "status", "url", "psql" })
    options.wrong(('unknown action "%s"%s'):format(name:sub(1, 60), near and "; did you mean " .. near .. "?" or ""))
  elseif name ~= "psql" and #operands > 0 then
    options.wrong(('"%s" is one word too many'):format(operands[1]))
  end
  return action(operands)
end

return db
