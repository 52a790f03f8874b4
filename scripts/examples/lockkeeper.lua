-- A configuration: what holds for all scripts, jobs and commands. Copy it to where lockkeeper is started, as
-- lockkeeper.lua, or to ~/.config/lockkeeper/config.lua; --config FILE names another one. It is Lua, and run
-- before each script and job file, and before ls, tree, top, who and audit.
local lock = require "lockkeeper"

-- Databases by name, for `using = "replica"`. Nothing is connected to before it is used; passwords belong in
-- ~/.pgpass.
lock.database("replica", "postgresql://replica.example.com/shop")
lock.database("warehouse", "postgresql://warehouse.example.com/dw?application_name=lockkeeper")

-- Policies for jobs: policy = "polite".
lock.policy("polite", { timeout = "5s", on_busy = "skip", max_run = "30m",
  retry = { attempts = 3, delay = "10s", factor = 2 } })
lock.policy("migration", { extend = "polite", lock_timeout = "2s", max_run = "10m" })

-- Names to try where pg_locks shows an advisory key only. Those of jobs that the runner has run are known.
lock.names { "nightly-report", "api-calls", "orders:import", pattern = { "%s", "maintenance:%s" } }

-- Sessions that nothing here ever cancels or terminates: not ls, not top, not prioritize, not an audit.
lock.protect {
  { application_name_like = "pg_dump%" },
  { user = { "replicator", "backup" } },
}

-- What ls shows by a name: lockkeeper ls --view waits. The call's own options are added to it.
lock.view("waits", { blocking = true, filter = { wait_duration_gte = "1s" }, limit = 50,
  description = "who has waited for a second or more, and who is in the way" })
lock.view("idle", { filter = { state_startswith = "idle in transaction", granted = true },
  where = 'relation ~= nil and schema ~= "pg_catalog"',
  attributes = { "pid", "state_duration", "user", "application_name", "mode", "relation" },
  description = "tables that idle transactions have locked" })
lock.view("strong", { filter = { mode_gte = "SHARE", type = "relation" }, watch = "2s",
  description = "strong locks on tables, again every two seconds" })
