-- Slots decided a second by hosts that contend for the same ones, against a bare INSERT … ON CONFLICT DO
-- NOTHING of the same rows, in turns: lockkeeper run claims.lua HOSTS JOBS SECONDS
--
-- A slot is decided once a host that asked for it. Both sides keep their sessions busy from one process, in
-- which every host is a task; each round has slots of its own, and all hosts begin it together.
local lock = require "lockkeeper"
local core = require "lockkeeper.core"

local hosts, jobs, seconds = tonumber(arg[1]), tonumber(arg[2]), tonumber(arg[3])
local db = lock.db

core.schema_migrate(db)
core.log_configure("error")
db:exec([[
  TRUNCATE lockkeeper.run, lockkeeper.runner;
  CREATE TABLE IF NOT EXISTS public.bare_claim (
    job text COLLATE "C", origin text COLLATE "C", slot timestamptz, attempt int4, runner uuid,
    UNIQUE (job, origin, slot, attempt));
  TRUNCATE public.bare_claim]])

local BARE_SQL = [[
  WITH won AS (
    INSERT INTO public.bare_claim AS c (job, origin, slot, attempt, runner)
    SELECT job, 'schedule', to_timestamp($2::float8), 1, $3::text::uuid FROM unnest($1::text[]) AS job
     ORDER BY job
    ON CONFLICT DO NOTHING RETURNING c.job)
  SELECT count(*) FROM won]]

local sessions, runners, names, slots = {}, {}, {}, {}
for i = 1, hosts do
  sessions[i] = lock.connect()
  runners[i] = core.store_register(sessions[i],
    { host = "h" .. i, version = "1", zones = "", workers = jobs })
end
for i = 1, jobs do
  names[i] = ("job %05d"):format(i)
  slots[i] = { job = names[i], overlap = "allow" }
end
local list = core.array(names)

-- One round: how many were won, and in what time.
local function round(work)
  local won, start = 0, core.monotonic()
  lock.tasks(function(spawn)
    for i = 1, hosts do
      spawn(function()
        local mine = work(i) -- others go on meanwhile
        won = won + mine
      end)
    end
  end)
  return won, core.monotonic() - start
end

local slot = core.now() // 1
local function bare(i)
  return sessions[i]:value(BARE_SQL, list, slot, runners[i].uuid)
end
local function claim(i)
  local _, tally = core.store_claim(sessions[i], runners[i], slots, jobs)
  assert(tally.claimed + tally.lost == jobs, "a slot was neither won nor lost")
  return tally.claimed
end

local spent = { [bare] = 0, [claim] = 0 }
local rounds, start = 0, core.monotonic()
repeat
  slot = slot + 1
  for i = 1, jobs do
    slots[i].slot = slot
  end
  for _, work in ipairs(rounds % 2 == 0 and { bare, claim } or { claim, bare }) do
    local won, time = round(work)
    assert(won == jobs, ("%d slots were won by somebody, of %d"):format(won, jobs))
    spent[work] = spent[work] + time
  end
  rounds = rounds + 1
until core.monotonic() - start >= seconds

assert(db:value("SELECT count(*) = count(DISTINCT (job, slot)) FROM lockkeeper.run"),
  "a slot was claimed twice")
local decided = rounds * hosts * jobs
print(("%.0f %.0f"):format(decided / spent[claim], decided / spent[bare]))
