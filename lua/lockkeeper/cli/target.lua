--- Where sessions connect to: --dsn, --embedded, or what the environment says.
local core = require "lockkeeper.core"
local failure = require "lockkeeper.cli.failure"
local host = require "lockkeeper.host"

local target = {}

target.OPTIONS = {
  { "-d", "--dsn", value = "CONNINFO", key = "dsn",
    help = "where to connect to; else $DATABASE_URL, else libpq's PG* variables and service file" },
  { "--embedded", key = "embedded", help = "start, or join, a private PostgreSQL of your own" },
}

-- libpq's variables that would lead past the embedded server, whose URL names the rest, or ask of
-- it what a Unix socket does not give.
local MISLEADING = {
  "PGSERVICE", "PGHOSTADDR", "PGTARGETSESSIONATTRS", "PGREQUIREPEER", "PGGSSENCMODE",
  "PGCHANNELBINDING", "PGREQUIRESSL",
}

--- Take them out of our environment. Returns what they were, for a command that we run.
function target.forget_misleading()
  local before = {}
  for _, name in ipairs(MISLEADING) do
    before[name] = os.getenv(name)
    host.unsetenv(name)
  end
  return before
end

--- Do what the options say.
function target.settle(values)
  if values.embedded then
    if values.dsn then
      failure.words("--embedded and --dsn exclude each other")
    end
    core.set_default(host.embedded_start().url)
    values.forgotten = target.forget_misleading()
  elseif values.dsn then
    host.check_conninfo(values.dsn)
    core.set_default(values.dsn)
  end
end

-- PostgreSQL's NAMEDATALEN, less its NUL.
local NAME_MAX = 63

--- Give the sessions an application_name; $PGAPPNAME and a conninfo's own are stronger.
function target.name_sessions(what)
  core.set_application(("lockkeeper: " .. what):sub(1, NAME_MAX))
end

--- Did the environment name a server?
function target.is_named()
  for _, name in ipairs { "DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGSERVICE" } do
    if (os.getenv(name) or "") ~= "" then
      return true
    end
  end
  return false
end

--- A connection that nobody pointed anywhere: a newcomer may have no server yet.
function target.hint_at_embedded(err, values)
  if failure.is_ours(err) and err.kind == "connection" and not err.hint and not values.dsn
    and not values.embedded and not target.is_named() then
    err.hint = "No server was named. --dsn names one; --embedded starts a private one to try things out."
  end
end

return target
