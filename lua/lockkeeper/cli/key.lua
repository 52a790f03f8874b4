--- lockkeeper key: the key that a name becomes.
local failure = require "lockkeeper.cli.failure"
local field = require "lockkeeper.report.field"
local host = require "lockkeeper.host"
local ids = require "lockkeeper.cli.ids"
local keys = require "lockkeeper.cli.keys"
local lock = require "lockkeeper"
local target = require "lockkeeper.cli.target"
local text_table = require "lockkeeper.report.table"

local key = {}

key.spec = {
  usage = "lockkeeper key ID [--scheme SCHEME] [options]",
  summary = "The key that an ID becomes, as pg_locks shows it; under every scheme where none is given.",
  text = {
    ids.TEXT,
    "hashtext is the server's own function: it is shown where a server is named, or with --scheme hashtext.",
  },
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

-- The database that the key is for, where one is named. Most keys need no server: one that only the
-- environment names may be down.
local function connect(values)
  if values.dsn or values.embedded or values.scheme == "hashtext" then
    return keys.place()
  elseif target.is_named() then
    local ok, text, database = pcall(keys.place)
    if ok then
      return text, database
    elseif not failure.is_ours(text) or text.kind ~= "connection" then
      error(text, 0)
    end
    failure.say(("not connected, so hashtext is left out: %s"):format(text.message))
  end
end

function key.main(values, operands)
  local where, database = connect(values)
  local rows = keys.of(operands[1], values, where ~= nil)
  if values.format == "json" then
    for _, row in ipairs(rows) do
      row.database = database
      row.key = field.key_word(row.key)
      row.scheme = row.scheme ~= "" and row.scheme or nil
    end
    print(lock.json.encode(rows))
    return 0
  end
  if where then
    print(where)
  end
  for _, row in ipairs(rows) do
    row.key = field.key(row.key)
  end
  io.stdout:write(text_table.format(COLUMNS, rows, host.terminal(1)))
  return 0
end

return key
