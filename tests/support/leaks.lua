--- What a test or a spec file leaves behind: sessions, advisory locks and prepared transactions on
--- the shared server, child processes, servers of its own.

local process = require "tests.support.process"
local sandbox = require "tests.support.sandbox"

local M = {}

-- How long sessions and processes may take to go, in seconds.
local GRACE = tonumber(os.getenv("LOCKKEEPER_TEST_GRACE")) or 2

-- Fields: kind, what identifies it, what undoes it, words for people. The observer does not see
-- itself. All text is cut to one line without the separator.
local LEFT_ON_SERVER = [[
select 'session', pid || ' ' || backend_start, pid::text,
       translate(format('pid %s of %s (%s), %s: %s', pid, usename, application_name, state,
                        left(query, 100)), E'|\n\r', '   ')
  from pg_stat_activity
 where backend_type = 'client backend' and pid <> pg_backend_pid()
union all
select 'advisory lock', concat_ws(' ', l.pid, database, classid, objid, objsubid, mode), '',
       format('%s, %s, %s, %s of pid %s%s', classid, objid, objsubid, mode, l.pid,
              case when granted then '' else ' (waiting)' end)
  from pg_locks l
 where locktype = 'advisory'
union all
select 'prepared transaction', translate(gid, E'|\n\r', '   '), quote_ident(database),
       translate(format('%s in database %s', gid, database), E'|\n\r', '   ')
  from pg_prepared_xacts
]]

---@class Left
---@field key string            what identifies it
---@field what string           for people
---@field undo? function        removes it; an advisory lock goes with its session

local function add(found, kind, id, text, undo)
  local key = kind .. " " .. id
  found[key] = { key = key, what = kind .. ": " .. text, undo = undo }
end

local function add_from_server(found, server, observer)
  local pooled = {}
  for object in pairs(sandbox.running()) do
    if object.backend_pids then
      for _, pid in ipairs(object:backend_pids()) do
        pooled[tostring(pid)] = true
      end
    end
  end
  for line in observer:query(LEFT_ON_SERVER):gmatch("[^\n]+") do
    local kind, id, key, text = line:match("^([^|]*)|([^|]*)|([^|]*)|(.*)$")
    if kind == "session" and not pooled[key] then
      add(found, kind, id, text, function()
        observer:query(("select pg_terminate_backend(%s)"):format(key))
      end)
    elseif kind == "advisory lock" then
      add(found, kind, id, text)
    elseif kind == "prepared transaction" then
      add(found, kind, id, text, function()
        server:psql(("\\c %s\nrollback prepared '%s'"):format(key, (id:gsub("'", "''"))))
      end)
    end
  end
end

local function add_processes(found, observer)
  local pids = process.children(sandbox.own_pid())
  for _, pid in ipairs(process.marked()) do
    pids[#pids + 1] = pid
  end
  for _, pid in ipairs(pids) do
    if not (observer and pid == observer.pid) then
      add(found, "process", tostring(pid), ("%d %s"):format(pid, process.command_line(pid)),
        function() process.signal("KILL", pid) end)
    end
  end
end

--- What exists at this moment.
---@param server? Server      the shared server, once it was started
---@param observer? Observer  its observer
---@return table<string, Left>
function M.snapshot(server, observer)
  local found = {}
  if server then
    add_from_server(found, server, observer)
  end
  add_processes(found, observer)
  for object, what in pairs(sandbox.running()) do
    add(found, "server", object.dir, what, function() object:stop() end)
  end
  return found
end

local function difference(before, after)
  local left = {}
  for key, item in pairs(after) do
    if before[key] == nil then
      left[#left + 1] = item
    end
  end
  table.sort(left, function(a, b) return a.what < b.what end)
  return left
end

--- What there is now that a snapshot did not have. Sessions and processes take a moment to go.
---@param before table<string, Left>
---@param take fun(): table<string, Left>  takes a snapshot
---@return Left[]
function M.since(before, take)
  local deadline = sandbox.now() + GRACE
  local left = difference(before, take())
  while #left > 0 and sandbox.now() < deadline do
    sandbox.sleep(0.01)
    left = difference(before, take())
  end
  return left
end

--- The message of the failure.
---@param left Left[]
---@return string
function M.describe(left)
  local lines = { "left behind:" }
  for _, item in ipairs(left) do
    lines[#lines + 1] = "  " .. item.what
  end
  return table.concat(lines, "\n")
end

--- Remove what was left, so that the next test begins clean.
---@param left Left[]
function M.undo(left)
  for _, item in ipairs(left) do
    if item.undo then
      pcall(item.undo)
    end
  end
end

return M
