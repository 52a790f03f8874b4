-- Jobs by the clock: a table that is kept small while it is written to.
--
--   lockkeeper serve housekeeping.lua      on any number of hosts: each slot is run once, by one of them
--   lockkeeper jobs                        when each is due next, how it ended last
--   lockkeeper history                     what has run
--   lockkeeper run housekeeping.lua        both jobs once, now
--
-- A large DELETE holds its locks, and its snapshot, for as long as it takes; many small ones do not. What
-- they delete stays in the table, dead, until a VACUUM, which here follows each run that has succeeded.
-- Every two seconds is often: to be watched. Every ten minutes is more like it.
--
-- Needs: the table's owner.
local lock = require "lockkeeper"

local settings = {
  table = "public.lockkeeper_visits", -- has a column `id` that grows
  keep = 10000,                       -- the newest rows
  batch = 1000,                       -- rows deleted at once
}

local function exists(db)
  return db:value("select to_regclass($1) is not null", settings.table)
end

lock.job("expire-visits", {
  description = "Deletes the oldest visits, some at a time",
  every = "2s",
  policy = { max_run = "1m", lock_timeout = "500ms", catchup = "none" },
  run = function(job)
    if not exists(job.db) then
      return { deleted = 0 }
    end
    local oldest = ("select id from %s where id <= (select max(id) from %s) - $1 order by id limit $2")
      :format(settings.table, settings.table)
    local deleted = job.db:exec(("delete from %s where id in (%s)"):format(settings.table, oldest),
      settings.keep, settings.batch)
    print(("deleted %d rows"):format(deleted))
    return { deleted = deleted }
  end,
})

lock.job("vacuum-visits", {
  description = "VACUUM, where rows were deleted",
  after = "expire-visits",
  policy = { max_run = "10m", lock_timeout = "500ms" },
  run = function(job)
    local wanted = exists(job.db) and (not job.parent or job.parent.result.deleted > 0)
    if wanted then
      job.db:exec("vacuum " .. settings.table)
    end
    return { vacuumed = wanted }
  end,
})
