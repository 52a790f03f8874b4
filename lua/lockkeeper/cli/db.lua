--- lockkeeper db: the embedded PostgreSQL.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local host = require "lockkeeper.host"
local options = require "lockkeeper.cli.options"
local target = require "lockkeeper.cli.target"

local db = {}

local ACTIONS = { "start", "stop", "status", "url", "psql" }

db.spec = {
  usage = "lockkeeper db start|stop|status|url|psql [PSQL-ARG...]",
  summary = "The embedded server: a private PostgreSQL of your own, for trying out, tests and "
    .. "single machines.",
  text = {
    "start starts it, or finds it running; url and psql do so too, and print its URL, or open psql on it "
      .. "(what follows is psql's). stop ends it, and with it every session that others have there. "
      .. "status starts nothing.",
    "Its data is in $LOCKKEEPER_EMBEDDED_DIR, else $XDG_STATE_HOME/lockkeeper/pg, else "
      .. "~/.local/state/lockkeeper/pg (root's: /var/lib/lockkeeper/pg, since it runs as the user postgres "
      .. "then). It listens on a Unix socket in a folder that only its user can enter.",
    "Exit code: 0; status: 0 it runs, 3 it does not; 69 it could not be started or stopped.",
  },
  rest = true,
  operands = { min = 1, name = "start, stop, status, url or psql", choices = ACTIONS },
  options = {},
  is_local = true,
}

local actions = {}

local function tell(server)
  print(("PostgreSQL %d runs (pid %d), data in %s"):format(server.version, server.pid, server.data))
end

function actions.start()
  tell(host.embedded_start())
end

function actions.stop()
  print(host.embedded_stop() and "stopped" or "it was not running")
end

function actions.status()
  local server = host.embedded_status()
  if server.pid > 0 then
    tell(server)
    print(server.url)
    return 0
  elseif server.version > 0 then
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
  target.forget_misleading()
  local argv = { "psql", server.url }
  table.move(rest, 1, #rest, 3, argv)
  local reason, is_missing = host.replace(argv)
  failure.say(("psql can't be executed: %s (Debian's package is postgresql-client)"):format(reason))
  return is_missing and 127 or 126
end

function db.main(_, operands)
  local name = table.remove(operands, 1)
  local action = actions[name]
  if not action then
    local near = core.nearest(name, ACTIONS)
    failure.words(("unknown action %s%s"):format(options.quoted(name),
      near and ("; did you mean %s?"):format(near) or ""))
  elseif name ~= "psql" and #operands > 0 then
    failure.words(options.quoted(operands[1]) .. " is one word too many")
  end
  return action(operands)
end

return db
