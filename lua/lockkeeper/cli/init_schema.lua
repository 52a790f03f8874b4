--- lockkeeper init: makes the runner's tables, or brings them up to date.
local core = require "lockkeeper.core"
local lock = require "lockkeeper"

local init_schema = {}

init_schema.spec = {
  usage = "lockkeeper init [--print] [options]",
  summary = "Makes the schema lockkeeper, in which the runner keeps its jobs and runs, or brings it up to "
    .. "date.",
  text = {
    "It does no harm to run this again, or on several hosts at once. serve does it by itself where its role "
      .. "may.",
    "Making it takes the right to create schemas in the database. Where the runner's role has not got it, an "
      .. "administrator runs what --print prints, and grants the rights that its last lines name: "
      .. "lockkeeper init --print | psql -v ON_ERROR_STOP=1",
  },
  operands = { min = 0, max = 0, name = "nothing" },
  options = {
    { "--print", key = "print", help = "print the SQL and run nothing; no connection is needed" },
  },
}

local function where(db)
  local row = db:one("SELECT pg_catalog.current_database() AS name, current_user AS role")
  return ("database %s, as %s"):format(row.name, row.role)
end

function init_schema.main(values)
  if values.print then
    io.stdout:write(core.schema_sql())
    return 0
  end
  local db = lock.db
  local before, after = core.schema_migrate(db)
  if before == 0 then
    print(("made the schema lockkeeper, version %d, in %s"):format(after, where(db)))
  elseif before < after then
    print(("migrated the schema lockkeeper from version %d to %d in %s"):format(before, after, where(db)))
  else
    print(("the schema lockkeeper is up to date, version %d, in %s"):format(after, where(db)))
  end
  core.schema_check(db)
  return 0
end

return init_schema
