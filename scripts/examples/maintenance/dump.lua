#!/usr/bin/env -S lockkeeper run
-- Dump the database, at most two dumps at a time over all hosts; then remove the oldest dumps.
--
--   lockkeeper run dump.lua [FOLDER]
--
-- A dump gets its name once it is complete and can be read: what is called .dump can be restored. Older
-- ones are removed only after that, so that a dump that fails never costs another.
--
-- Needs: pg_dump as new as the server or newer, and a role that may read everything (from PostgreSQL 14 on
-- a member of pg_read_all_data).
local lock = require "lockkeeper"

local settings = {
  folder = ... or "/var/backups/postgresql", -- of these dumps; made if there is none
  keep = 7,               -- dumps of this database
  at_once = 2,            -- dumps, over all hosts
  counted_in = nil,       -- where dumps of several databases are counted together: one database's conninfo
  pg_dump = "pg_dump",    -- a path where there are several: /usr/lib/postgresql/15/bin/pg_dump
  pg_restore = "pg_restore",
}

-- Run a command whose files only this user can read; raises with its complaint if it fails.
local function private(job, command)
  command = { "sh", "-c", 'umask 077; exec "$@"', "sh", table.unpack(command) }
  command.stdout = function() end -- not wanted; what goes to stderr is in the log
  local code, _, stderr = job:sh(command)
  if code ~= 0 then
    local reason = stderr:match("[^\n]*error:[^\n]*") or stderr
    error(("%s has ended with code %d: %s"):format(command[5], code, reason), 0)
  end
end

-- "shop-20270328T010000Z": of the same second is the same run.
local function name_of(job)
  local database = job.db.database:gsub("[^%w_-]", function(c) return ("%%%02X"):format(c:byte()) end)
  return database .. "-", os.date("!%Y%m%dT%H%M%SZ", math.floor(job.slot))
end

-- Files of this database that end so, the oldest first.
local function files(prefix, ending)
  local code, out, stderr = lock.sh { "ls", "-1", settings.folder, env = { LC_ALL = "C" } }
  assert(code == 0, stderr)
  local list = {}
  for name in out:gmatch("[^\n]+") do
    local time = name:sub(1, #prefix) == prefix and name:sub(#prefix + 1, -#ending - 1) or ""
    if time:find("^%d+T%d+Z$") and name:sub(-#ending) == ending then
      list[#list + 1] = settings.folder .. "/" .. name
    end
  end
  return list
end

-- All but the newest `keep`.
local function remove_old(job, list, keep)
  for i = 1, #list - keep do
    assert(os.remove(list[i]))
    job:log("info", "removed " .. list[i])
  end
  return math.max(#list - keep, 0)
end

local function size_of(path)
  local file <close> = assert(io.open(path))
  return file:seek("end")
end

local function run(job)
  private(job, { "mkdir", "-p", settings.folder })
  local prefix, time = name_of(job)
  remove_old(job, files(prefix, ".dump.partial"), 0) -- of a run that lost its lock, or its host
  local path = ("%s/%s%s.dump"):format(settings.folder, prefix, time)
  local partial = path .. ".partial"
  local _ <close> = setmetatable({}, { __close = function() os.remove(partial) end })

  -- Better no dump than one that waits behind an ALTER TABLE, and all the others behind it.
  private(job, { settings.pg_dump, "--format=custom", "--no-password", "--lock-wait-timeout=30s",
    "--file=" .. partial })
  private(job, { settings.pg_restore, "--list", partial })
  assert(os.rename(partial, path))

  local result = { file = path, bytes = size_of(path) }
  job:log("info", "dumped " .. job.db.database, result)
  result.removed = remove_old(job, files(prefix, ".dump"), settings.keep)
  return result
end

if settings.counted_in then
  lock.database("dumps", settings.counted_in)
end

lock.job("dump", {
  description = "pg_dump of the database",
  schedule = "0 23 * * *",
  -- An advisory lock belongs to one database: only dumps that are counted in the same one see each other.
  guards = {
    lock.guard.semaphore("dumps", settings.at_once, { using = settings.counted_in and "dumps" }),
  },
  policy = {
    timeout = "2h", max_run = "6h", grace = "10s",
    retry = { attempts = 3, delay = "10m", on = { "lost", "connection" } },
  },
  run = run,
})
