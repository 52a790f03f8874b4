--- The built-in audits: the files of scripts/audits, which are in the binary.
local core = require "lockkeeper.core"
local definition = require "lockkeeper.definition"

local audit_builtin = {}

--- In the order in which they run and are listed.
audit_builtin.NAMES = { "deadlocks", "root_blockers", "pile_up", "long_waits", "idle_in_transaction",
  "ddl_without_timeout", "prepared_transactions", "autovacuum", "replication", "job_guards",
  "idle_advisory_locks", "lock_table" }

-- Where they are while this program is being developed.
local function in_directory(name)
  local directory = os.getenv("LOCKKEEPER_LUA_DIR") or ""
  return directory ~= "" and loadfile(("%s/../scripts/audits/%s.lua"):format(directory, name), "t") or nil
end

local function in_binary(name)
  for i = 2, #package.searchers do
    local loader = package.searchers[i]("lockkeeper.audits." .. name)
    if type(loader) == "function" then
      return loader
    end
  end
end

--- Load them.
---@return AuditDefinition[]
function audit_builtin.load()
  local list = {}
  for _, name in ipairs(audit_builtin.NAMES) do
    local chunk = in_directory(name) or in_binary(name)
    if not chunk then
      core.usage(("the built-in audit %s is missing from this program"):format(name))
    end
    definition.begin("built in")
    chunk()
    local set = definition.finish()
    for _, wanted in ipairs(set.audits) do
      wanted.file, wanted.line = "built in", nil
      list[#list + 1] = wanted
    end
  end
  return list
end

return audit_builtin
