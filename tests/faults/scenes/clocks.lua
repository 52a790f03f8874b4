--- runner.md 5 to 7: hosts whose clocks are wrong, or are set while they serve. Each slot has one run, in the
--- history, in the table and for the witness, at its time by the database's clock.

local hosts = require "tests.faults.hosts"
local process = require "tests.support.process"
local t = require "tests.support"
local witness = require "tests.faults.witness"

local M = {}

local LATE = 3 -- seconds, on a loaded machine

---@param long boolean  a minute, instead of a few seconds
---@return string[] problems
function M.play(long)
  local seconds, every = long and 60 or 6, long and 2 or 1
  local server = t.start_server()
  witness.prepare(server)
  local files = { t.tempfile(witness.file(
    witness.job("steady", { every = every .. "s", seconds = 0.1 }),
    witness.job("fixed", { schedule = "*/2 * * * * *", timezone = "Europe/Paris", seconds = 0.1 })),
    "jobs.lua") }
  local clock_file = t.tempfile("+0", "clock")
  local all = {}
  for i, clock in ipairs { { clock = "+1h" }, { clock = "-1h" }, {}, { clock_file = clock_file } } do
    all[i] = hosts.start { files = files, server = server, witness = server, clock = clock.clock,
      clock_file = clock.clock_file }
  end
  for _, host in ipairs(all) do
    hosts.await_serving(host)
  end
  for _, offset in ipairs { "+2h", "-2h", "+5d" } do
    t.sleep(seconds / 4)
    process.write_file(clock_file, offset)
  end
  t.sleep(seconds / 4)
  hosts.stop(table.unpack(all))
  witness.await_over(server, 20)
  local problems = witness.check(server, { ["^steady"] = every, ["^fixed"] = 2 })
  local function expect(what, sql)
    local got = server:psql(sql)
    if got ~= "" then
      problems[#problems + 1] = what .. ": " .. got
    end
  end
  expect("begun at another time than its slot", ([[
    select format('%%s: slot %%s, begun %%s', job, slot, started_at) from lockkeeper.run
     where state <> 'skipped'
       and (started_at < slot or started_at > slot + make_interval(secs => %d))]]):format(LATE))
  expect("slots that lie ahead", "select slot from lockkeeper.run where slot > clock_timestamp()")
  expect("too few slots", ([[select count(*) from lockkeeper.run where job = 'steady'
    having count(*) < %d]]):format(seconds // every - 2))
  expect("a host that did nothing", long and [[
    select n from (select count(distinct runner) as n from lockkeeper.run) r where n < 4]] or "")
  -- `history` tells what the table has.
  local code, out = t.run("history", "--format", "json", { env = { DATABASE_URL = server:conninfo() } })
  expect("lockkeeper history and the table differ", code ~= 0 and "select 'code ' || " .. code or ([[
    select string_agg(coalesce(r.job, h.e->>'job') || ' ' || coalesce(r.slot::text, h.e->>'slot'), ', ')
      from lockkeeper.run r full join json_array_elements($history$%s$history$) h(e)
        on (h.e->>'run')::int8 = r.id and h.e->>'job' = r.job and (h.e->>'slot')::timestamptz = r.slot
           and h.e->>'state' = r.state
     where r.id is null or h.e is null having count(*) > 0]]):format(out))
  server:stop()
  return problems
end

return M
