--- lockkeeper key: the key that a name becomes.
local host = require "lockkeeper.host"
local ids = require "lockkeeper.cli.ids"
local keys = require "lockkeeper.cli.keys"
local lock = require "lockkeeper"
local options = require "lockkeeper.cli.options"
local text_table = require "lockkeeper.report.table"

local key = {}

key.spec = {
  usage = "lockkeeper key ID [--scheme SCHEME] [options]",
  summary = "The key that an ID becomes, as pg_locks shows it; under every scheme where none is given.",
  text = ids.TEXT .. "\n"
    .. "hashtext is the server's own function: shown where a server is named, or with --scheme hashtext.",
  operands = { min = 1, max = 1, name = "ID" },
  options = { ids.OPTIONS[1], ids.OPTIONS[2], keys.FORMAT },
}

local COLUMNS = {
  { title = "SCHEME", key = "scheme" },
  { title = "KEY", key = "key", right = true },
  { title = "CLASSID", key = "classid", right = true },
  { title = "OBJID", key = "objid", right = true },
  { title = "OBJSUBID", key = "objsubid", right = true },
}

local function server_is_named(values)
  return values.dsn or values.embedded or values.scheme == "hashtext" or os.getenv("DATABASE_URL")
    or os.getenv("PGHOST") or os.getenv("PGSERVICE") or os.getenv("PGDATABASE")
end

function key.main(values, operands)
  local format = values.format or "table"
  if format ~= "table" and format ~= "json" then
    options.wrong(("--format must be table or json, not %s"):format(format))
  end
  local place, database
  if server_is_named(values) then
    place, database = keys.place()
  end
  local rows = keys.of(operands[1], values, place ~= nil)
  if format == "json" then
    for _, row in ipairs(rows) do
      row.database = database
      row.scheme = row.scheme ~= "" and row.scheme or nil
    end
    print(lock.json.encode(rows))
    return 0
  end
  if place then
    print(place)
  end
  io.stdout:write(text_table.format(COLUMNS, rows, host.terminal(1)))
  return 0
end

return key
