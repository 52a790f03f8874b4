-- What is measured: a table of sections, in their order. Called with run.lua's functions.
local bench = ...
local figures = { "pairs" }

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
  { "psycopg2", python and python .. " -c 'import psycopg2'", (python or "") .. " tests/bench/pairs.py %s %s psycopg2",
    package = "python3-psycopg2" },
  { "psycopg 3", python and python .. " -c 'import psycopg'", (python or "") .. " tests/bench/pairs.py %s %s psycopg",
    package = "python3-psycopg" },
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
        installed[#installed + 1] = peer
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
      { "bare libpq", limit("pairs", slice, libpq_mode or mode), want = want },
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
        list[#list + 1] = { peer[1], peer[3]:format(slice, mode), want = WANTS[mode][peer[1]] }
      end
      local name = mode == "try" and "try and release, pairs/s" or "timeout = 5s and release, pairs/s"
      bench.compare { what = name, where = where, sides = list, main = true,
        cpu = mode == "try" and "try and release, µs of our CPU a pair" or nil, cpu_want = "< 2",
        rounds = at_most(9, 5) }
    end
    bench.compare { what = "release deferred, pairs/s", where = where, main = where == "one each",
      sides = sides("deferred", "try", where == "one each" and "> 1.8" or nil) }
    for _, mode in ipairs { "shared", "xact", "nested", "model" } do
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

return figures
