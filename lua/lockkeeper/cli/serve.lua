--- lockkeeper serve: the runner. The words are read here; then this state is closed, and the supervisor runs
--- (src/runner/supervisor.h).
local act_option = require "lockkeeper.cli.act"
local core = require "lockkeeper.core"
local host = require "lockkeeper.host"

local serve = {}

serve.spec = {
  usage = "lockkeeper serve [options] PATH...",
  summary = "Runs the jobs that files define, or all *.lua of folders, by their schedules: each slot once, "
    .. "on however many hosts this is started.",
  text = {
    "SIGTERM and Ctrl-C end it: it claims no more, and lets runs finish; a second one cancels them. SIGHUP "
      .. "reads the files anew; a broken one keeps the jobs that it had.",
    "Exit code: 0 ended in order; 1 it can't serve; 2 a file has faults.",
  },
  operands = { min = 1, name = "PATH" },
  options = {
    { "--workers", value = "N", key = "workers", kind = "integer", from = 1, to = 1000,
      help = "runs at once; default: twice the cores" },
    { "--warm", value = "N", key = "warm", kind = "integer", from = 0, to = 1000,
      help = "so many processes are kept for the next runs; default 0: each run has a new one" },
    { "--watch", key = "watch", help = "read files anew when they change" },
    { "--drain", value = "D", key = "drain", kind = "duration",
      help = "how long runs have to finish at the end; default 30s" },
    { "--stateless", key = "stateless",
      help = "no state tables: guards only, so that each host runs each slot for which it gets them" },
    { "--listen", value = "ADDR", key = "listen",
      help = "answer HTTP there: /metrics (for Prometheus), /healthz, /readyz; as in 127.0.0.1:9187, "
        .. "[::1]:9187, or :9187 for all addresses" },
    { "--keep", value = "D", key = "keep", kind = "duration", help = "history; default 30d" },
    { "--keep-runs", value = "N", key = "keep_runs", kind = "integer", from = 1, to = 1000000,
      help = "of each job; default 1000" },
    act_option,
  },
  own_config = true,
}

local DRAIN, KEEP, KEEP_RUNS = 30, 30 * 86400, 1000

local function otherwise(value, default)
  if value == nil then
    return default
  end
  return value
end

local function conninfo(values)
  if values.embedded then
    return host.embedded_status().url
  end
  return values.dsn or os.getenv("DATABASE_URL") or ""
end

function serve.main(values, operands)
  host.serve {
    conninfo = conninfo(values), config = values.config, paths = operands,
    log_level = values.log_level, log_format = values.log_format, listen = values.listen,
    workers = values.workers, warm = values.warm, watch = values.watch, stateless = values.stateless,
    drain = otherwise(values.drain, DRAIN), keep = otherwise(values.keep, KEEP),
    keep_runs = otherwise(values.keep_runs, KEEP_RUNS),
    act = values.act and core.json.encode(values.act),
  }
  return 0
end

return serve
