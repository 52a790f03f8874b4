-- What is measured: a table of sections, in their order. Called with run.lua's functions.
local bench = ...
local figures = { "pairs", "all", "handover", "process", "prioritize", "look", "filter", "describe", "claims",
  "runner", "memory", "instructions" }

local quote, at_most = bench.quote, bench.at_most

local function ours(script, ...)
  local words = { bench.build .. "/lockkeeper run --log-level error tests/bench/" .. script }
  for _, word in ipairs { ... } do
    words[#words + 1] = quote(word)
  end
  return table.concat(words, " ")
end

local function limit(program, ...)
  local words = { bench.build .. "/tests/bench_" .. program, quote(bench.url) }
  for _, word in ipairs { ... } do
    words[#words + 1] = quote(word)
  end
  return table.concat(words, " ")
end

local function sql(text)
  bench.output(ours("ask.lua", text))
end

---------------------------------------------------------------------------------------------------
-- peers

local python
for _, name in ipairs { "python3", "/usr/bin/python3" } do
  if not python and bench.works(name .. " -c 'import psycopg2'") then
    python = name
  end
end

local peers = {
  { "LuaSQL", "lua5.4 -e 'require \"luasql.postgres\"'", "lua5.4 tests/bench/pairs_luasql.lua %s %s",
    package = "lua-sql-postgres" },
  { "psycopg2", python and python .. " -c 'import psycopg2'",
    (python or "") .. " tests/bench/pairs.py %s %s psycopg2",
    package = "python3-psycopg2", main = false },
  { "psycopg 3", python and python .. " -c 'import psycopg'",
    (python or "") .. " tests/bench/pairs.py %s %s psycopg",
    package = "python3-psycopg", main = false },
  { "Django, django-pglock's SQL", python and python .. " -c 'import psycopg2, django'",
    (python or "") .. " tests/bench/pairs.py %s %s django", package = "python3-django and python3-psycopg2" },
  { "django-pglock", python and python .. " -c 'import psycopg2, pglock'",
    (python or "") .. " tests/bench/pairs.py %s %s pglock", package = "django-pglock (of PyPI)" },
}

local installed
local function installed_peers()
  if not installed then
    installed = {}
    for _, peer in ipairs(peers) do
      if peer[2] and bench.works(peer[2]) then
        if not bench.quick or peer.main ~= false then
          installed[#installed + 1] = peer
        end
      else
        bench.leave_out(("%s: %s is not installed"):format(peer[1], peer.package))
      end
    end
  end
  return installed
end

---------------------------------------------------------------------------------------------------
-- acquire and release

local function places()
  return bench.cpus > 1 and { "one CPU", "one each" } or { "one CPU" }
end

function figures.pairs()
  bench.pin_server("0")
  sql("create table if not exists bench_model (id int)")
  local slice = bench.slice
  local function sides(mode, libpq_mode, want)
    return {
      { "ours", ours("pairs.lua", slice, mode) },
      { (libpq_mode or mode) == mode and "bare libpq" or "bare libpq, try",
        limit("pairs", slice, libpq_mode or mode), want = want },
    }
  end
  local WANTS = {
    try = { LuaSQL = "> 1.2", ["Django, django-pglock's SQL"] = "> 3", ["django-pglock"] = "> 3" },
    timed = { ["Django, django-pglock's SQL"] = "> 4", ["django-pglock"] = "> 4" },
  }
  for _, where in ipairs(places()) do
    for _, mode in ipairs { "try", "timed" } do
      local list = sides(mode, "try", "> 0.95")
      for _, peer in ipairs(installed_peers()) do
        list[#list + 1] = { peer[1], peer[3]:format(slice, mode), want = WANTS[mode][peer[1]],
          main = peer.main }
      end
      local name = mode == "try" and "try and release, pairs/s" or "timeout = 5s and release, pairs/s"
      bench.compare { what = name, where = where, sides = list, main = true,
        cpu = mode == "try" and "try and release, µs of our CPU a pair" or nil, cpu_want = "< 2",
        total = where == "one CPU" and mode .. " and release, µs of CPU a pair, client and server" or nil,
        rounds = at_most(9, 3) }
    end
    bench.compare { what = "release deferred, pairs/s", where = where, main = where == "one each",
      sides = sides("deferred", "try", where == "one each" and "> 1.8" or nil) }
    local others = (where == "one CPU" or not bench.quick) and { "shared", "xact", "nested", "model" } or {}
    for _, mode in ipairs(others) do
      local texts = { shared = "shared", xact = "transaction-level, a transaction each",
        nested = "one inside another", model = "model in a transaction" }
      bench.compare { what = texts[mode] .. ", /s", where = where, sides = sides(mode) }
    end
  end
  local on_tcp = "DATABASE_URL=" .. quote(bench.tcp) .. " "
  bench.compare { what = "try and release over TCP, pairs/s", where = "one CPU", sides = {
    { "ours", "env " .. on_tcp .. ours("pairs.lua", slice, "try") },
    { "bare libpq", limit("pairs", slice, "try"):gsub(quote(bench.url):gsub("%p", "%%%0"),
      (quote(bench.tcp):gsub("%%", "%%%%"))), want = "> 0.95" },
  } }
  bench.pin_server("all")
end

---------------------------------------------------------------------------------------------------
-- several locks, and the same lock by many

function figures.all()
  bench.pin_server("0")
  local costs, sizes = {}, { 1, 10, 100, 1000 }
  for i, count in ipairs(sizes) do
    local locks = bench.compare { what = ("all of %d, locks/s"):format(count), where = "one CPU",
      main = count == 100, sides = {
        { "ours", ours("all.lua", bench.slice, count, "all") },
        { "ours, one by one", ours("all.lua", bench.slice, count, "single"),
          want = count == 100 and "> 20" or nil },
      } }
    costs[i] = count / locks * 1000
  end
  bench.growth("all of N, ms", sizes, costs, "< 1.1")
  bench.pin_server("all")
end

function figures.handover()
  bench.pin_server("0")
  local costs, sizes = {}, at_most({ 10, 50, 250 }, { 10, 50, 100 })
  for i, count in ipairs(sizes) do
    local rounds = at_most(15, 7)
    costs[i] = bench.compare { what = ("%d waiters for one lock, to the last, ms"):format(count),
      where = bench.cpus > 1 and "one each" or "one CPU", main = count == 50, sides = {
        { "ours", ours("handover.lua", count, rounds) },
        { "bare libpq", limit("handover", count, rounds), want = count == 50 and "< 1.2" or nil },
      } }
  end
  bench.growth("hand-over to the last of N, ms", sizes, costs, "< 1.3")
  bench.pin_server("all")
end

---------------------------------------------------------------------------------------------------
-- processes

local psql = bench.works("psql --version") and "psql"
  or (bench.output("pg_config --bindir") or ""):gsub("%s", "") .. "/psql"

function figures.process()
  bench.pin_server("0")
  local function times(command, count)
    return ("tests/bench/times.sh %d "):format(count or at_most(31, 11)) .. command
  end
  local sides = {
    { "ours", times(ours("pairs.lua", 0, "once")) },
    { "C", times(limit("pairs", 0, "once")), want = "< 1.2" },
  }
  if bench.works(psql .. " --version") then
    local command = psql .. " -Xqc 'SELECT pg_try_advisory_lock(42)' -c 'SELECT pg_advisory_unlock(42)' "
    sides[#sides + 1] = { "psql", times(command .. quote(bench.url)) }
  else
    bench.leave_out("psql: postgresql-client is not installed")
  end
  for _, peer in ipairs(installed_peers()) do
    sides[#sides + 1] = { peer[1], times(peer[3]:format(0, "once"), at_most(11, 3)), main = peer.main }
  end
  bench.compare { what = "a process that locks, releases, exits, ms", where = "one CPU", sides = sides,
    main = true }

  sides = {
    { "ours", times(("%s/lockkeeper exec --lock bench -- true"):format(bench.build)) },
    { "C, with posix_spawn", times(limit("pairs", 0, "exec", "true")) },
  }
  if bench.works("flock --version") and bench.works(psql .. " --version") then
    sides[#sides + 1] = { "flock, and psql under it",
      times(("flock %s/flock %s -Xqc 'SELECT 1' %s"):format(bench.work, psql, quote(bench.url))) }
  else
    bench.leave_out("flock: util-linux's flock or psql is not installed")
  end
  bench.compare { what = "exec around true, ms", where = "one CPU", sides = sides }
  bench.pin_server("all")
end

function figures.prioritize()
  local median = " | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'"
  local count = at_most(20, 10)
  bench.compare { what = "prioritize, interval 10 ms, from block to go, ms", main = true, sides = {
    { "ours", ours("prioritize.lua", count) .. median },
    { "bare libpq, looking each 10 ms", limit("prioritize", count) .. median, want = "< 1.5" },
  } }
end

---------------------------------------------------------------------------------------------------
-- looking

-- Call `work` while a scene stands: advisory locks, and sessions that wait for a table.
local function with_scene(locks, waiters, work)
  local ready, stop = bench.work .. "/ready", bench.work .. "/stop"
  bench.output(("rm -f %s %s; mkfifo %s"):format(ready, stop, stop))
  local scene = io.popen(("%s <%s >%s"):format(limit("query", "scene", locks, waiters), stop, ready))
  local held_open = io.open(stop, "w")
  local deadline = os.time() + 120
  repeat
    bench.output("sleep 0.05")
    assert(os.time() < deadline, "the scene was not set in time")
  until bench.output("grep -q ready " .. ready .. " && echo yes")
  work()
  held_open:close()
  scene:close()
end

local function look_at_many()
  local texts = { blocked = "lock.blocked()", rows = "lock.blocked(), with their locks",
    graph = "lock.graph()" }
  for _, way in ipairs { "blocked", "rows", "graph" } do
    bench.compare { what = texts[way] .. ", 12000 locks, 1000 waiters, ms", where = "one CPU", rounds = 3,
      sides = {
        { "ours", ours("query.lua", way) },
        { "bare libpq, reading pg_locks", limit("query", "read") },
      } }
  end
end

function figures.look()
  bench.pin_server("0")
  local sizes, costs, few = { 1000, 12000 }, {}, at_most(nil, 2)
  for i, locks in ipairs(sizes) do
    with_scene(locks, 50, function()
      local function what(text)
        return ("%s, %d locks, 50 waiters, ms"):format(text, locks)
      end
      local main, want = locks == 12000, locks == 12000
      costs[i] = bench.compare { what = what("lock.locks()"), where = "one CPU", main = main, sides = {
        { "ours", ours("query.lua", "locks") },
        { "bare libpq, reading pg_locks", limit("query", "read"), want = want and "< 1.5" or nil },
      } }
      if not main and bench.quick then
        return
      end
      bench.compare { what = what("lock.locks(), a field of each"), where = "one CPU", rounds = few, sides = {
        { "ours", ours("query.lua", "read") },
        { "bare libpq, reading pg_locks", limit("query", "read") },
      } }
      bench.compare { what = what("lock.blocked()"), where = "one CPU", main = main, sides = {
        { "ours", ours("query.lua", "blocked") },
        { "a round trip", limit("query", "trip"), difference = true, want = want and "< 1" or nil },
      } }
      bench.compare { what = what("lock.blocked(), with their locks"), where = "one CPU", rounds = few,
        sides = {
          { "ours", ours("query.lua", "rows") },
          { "bare libpq, reading pg_locks", limit("query", "read") },
        } }
      bench.compare { what = what("lock.graph()"), where = "one CPU", rounds = few, sides = {
        { "ours", ours("query.lua", "graph") },
        { "bare libpq, reading pg_locks", limit("query", "read") },
      } }
      if bench.works(psql .. " --version") then
        local times = "tests/bench/times.sh 5 "
        bench.compare { what = what("lockkeeper tree"), where = "one CPU", rounds = few, sides = {
          { "ours", times .. bench.build .. "/lockkeeper tree" },
          { "psql, reading pg_locks", ("%s%s -Xqc 'SELECT * FROM pg_locks' %s")
            :format(times, psql, quote(bench.url)) },
        } }
      end
    end)
  end
  bench.growth("lock.locks() of N locks, ms", sizes, costs, "< 1.1")
  if not bench.quick then
    with_scene(12000, 1000, look_at_many)
  end
  bench.pin_server("all")
  sizes, costs = { 10, 100, 1000 }, {}
  for i, count in ipairs(sizes) do
    costs[i] = bench.numbers(("%s/tests/bench_graph %d %d")
      :format(bench.build, count, math.max(1, count // 10)))[1]
  end
  bench.growth("the graph alone, N waiters on N/10 objects, ms", sizes, costs, "< 1.3")
end

function figures.filter()
  bench.pin_server("0")
  local sizes = at_most({ 1000, 3000, 10000 }, { 1000, 10000 })
  for _, how in ipairs { "fields", "expression", "function" } do
    local costs = {}
    for i, count in ipairs(sizes) do
      costs[i] = bench.compare { what = ("filter by %s, %d rows, ms above reading"):format(how, count),
        where = "one CPU", rounds = 3, sides = { { "ours", ours("filter.lua", count, how) } } }
    end
    bench.growth(("filter by %s, N rows, ms"):format(how), sizes, costs)
  end
  bench.pin_server("all")
end

function figures.describe()
  local sizes, costs = { 100, 1000, 10000 }, {}
  for i, count in ipairs(sizes) do
    local file = ("%s/jobs-%d.lua"):format(bench.work, count)
    local out <close> = assert(io.open(file, "w"))
    out:write('local lock = require "lockkeeper"\n')
    for n = 1, count do
      out:write(('lock.job("job:%05d", { schedule = "%d %d * * *", run = function() end })\n')
        :format(n, n % 60, n % 24))
    end
    out:close()
    local times = ("tests/bench/times.sh %d "):format(at_most(3, 1))
    local what = ("check of a file with %d jobs, ms"):format(count)
    costs[i] = bench.compare { what = what, rounds = 3, sides = {
      { "ours", times .. ("%s/lockkeeper check %s"):format(bench.build, file) },
      { "lua5.4, only reading it", times .. ("lua5.4 -e 'assert(loadfile(%q))'"):format(file) },
    } }
  end
  bench.growth("check of N jobs, ms", sizes, costs, "< 1.1")
end

---------------------------------------------------------------------------------------------------
-- the runner

function figures.claims()
  for _, hosts in ipairs { 1, 4, 16 } do
    local claims, bare, ratios = {}, {}, {}
    for round = 1, at_most(5, 2) do
      local numbers = bench.numbers(ours("claims.lua", hosts, 1000, at_most(3, 1)))
      claims[round], bare[round] = numbers[1], numbers[2]
      ratios[round] = numbers[1] / numbers[2]
    end
    local what = ("slots decided by %d hosts for 1000 jobs, /s"):format(hosts)
    bench.row { what = what, where = "both", ours = bench.spread(claims),
      beside = "bare INSERT ON CONFLICT", its = bench.spread(bare), values = ratios }
    if hosts == 16 then
      bench.figure(what, claims, { want = "> 30000", main = true })
    end
  end
end

local function serve(...)
  local words = { "tests/bench/serve.sh", quote(bench.build), quote(bench.work), ... }
  return bench.numbers(table.concat(words, " "))
end

-- A second, on as many connections as there are workers; nil without pgbench.
local function bare_runs(count)
  local pgbench = os.getenv("BENCH_BINDIR") .. "/pgbench"
  if not bench.works(pgbench .. " --version") then
    return nil
  end
  sql("create sequence if not exists bench_runs")
  sql("truncate lockkeeper.run, lockkeeper.fence")
  sql("select setval('bench_runs', 1, false)")
  sql(([[insert into lockkeeper.run (id, job, origin, slot, state)
    select i, 'bare:' || i, 'start', now(), 'due' from generate_series(1, %d) i]]):format(count))
  local text = bench.output(("%s -n -M prepared -c 4 -t %d -f tests/bench/runs.sql %s 2>&1")
    :format(pgbench, count // 4, quote(bench.url)))
  sql("truncate lockkeeper.run, lockkeeper.fence")
  return tonumber(text:match("tps = ([%d.]+)"))
end

function figures.runner()
  local seconds = at_most(15, 5)
  local warm = serve("lag", 4, seconds)
  bench.figure("due to first line, warm, ms", { warm[1] }, { want = "< 20", main = true })
  bench.figure("memory of a warm worker, MB", { warm[2] })
  bench.figure("due to first line, a process each, ms", { serve("lag", 0, seconds)[1] }, { want = "< 60" })
  local runs, limits, ratios = {}, {}, {}
  for i = 1, at_most(5, 1) do
    local count = at_most(3000, 1000)
    runs[i] = serve("runs", count)[1]
    limits[i] = bare_runs(count)
    ratios[i] = limits[i] and runs[i] / limits[i]
  end
  bench.figure("runs of an empty job, warm, /s", runs, { want = "> 500", main = true })
  if limits[1] then
    bench.row { what = "runs of an empty job, warm, /s", where = "both", ours = bench.spread(runs),
      beside = "bare, the same writes and locks", its = bench.spread(limits), values = ratios, main = true }
  else
    bench.leave_out("the limit of runs: pgbench is not installed")
  end
end

function figures.memory()
  local sizes, costs, searches = at_most({ 1000, 10000, 100000 }, { 1000, 10000 }), {}, {}
  for i, count in ipairs(sizes) do
    local numbers = serve("idle", count, at_most(10, 2))
    local function what(text)
      return ("%s, %d jobs"):format(text, count)
    end
    bench.figure(what("serving, s from the start"), { numbers[1] })
    bench.figure(what("memory of the supervisor, MB"), { numbers[2] },
      { want = count == 100000 and "< 300" or nil, main = count == 100000 })
    bench.figure(what("idle, % of a core"), { numbers[3] }, { want = "< 1" })
    costs[i] = numbers[2]
  end
  bench.growth("memory of a supervisor with N jobs, MB", sizes, costs, "< 1.1")
  sizes = { 1000, 10000, 100000 }
  for i, count in ipairs(sizes) do
    searches[i] = bench.numbers(("%s/tests/bench_agenda %d"):format(bench.build, count))[1]
    bench.figure(("the next due of %d jobs, µs"):format(count), { searches[i] },
      { want = "< 10", main = count == 100000 })
  end
end

---------------------------------------------------------------------------------------------------
-- instructions

-- Instructions a pair, without those of starting: of many pairs less those of few.
local function instructions(few, many, command)
  local function count(pairs)
    local file = bench.work .. "/callgrind"
    local text = bench.output(("valgrind --tool=callgrind --callgrind-out-file=%s %s 2>&1")
      :format(file, command(pairs .. "x")))
    return tonumber((text:match("Collected : (%d+)")))
  end
  return (count(many) - count(few)) / (many - few)
end

function figures.instructions()
  if not bench.works("valgrind --version") then
    return bench.leave_out("instructions: valgrind is not installed")
  end
  for _, mode in ipairs(at_most({ "try", "timed", "deferred" }, { "try" })) do
    local libpq = mode == "deferred" and "try" or mode
    local function lua(amount) return ours("pairs.lua", amount, mode) end
    local function c(amount) return limit("pairs", amount, libpq) end
    local mine, its = instructions(1000, 3000, lua), instructions(1000, 3000, c)
    bench.row { what = ("instructions of a pair, %s"):format(mode), where = "", ours = mine,
      beside = "bare libpq", its = its, values = { mine - its }, difference = true, main = mode == "try" }
  end
end

return figures
