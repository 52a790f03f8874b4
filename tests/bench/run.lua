-- Measures and prints; run.sh starts it, with a server of its own. The figures are in figures.lua.
--
-- The sides of a comparison are measured in turns, one slice each a round, so that a machine whose speed
-- drifts slows all of them; the ratio is the median of the rounds' ratios, not the ratio of medians.
local bench = {}

local options = { rounds = 7, slice = 0.5, quick = false, main = false, readme = false }
local wanted_sections, wants_any = {}, false
for _, word in ipairs(arg) do
  if word == "--quick" then
    options.quick, options.rounds, options.slice = true, 3, 0.2
  elseif word == "--main" then
    options.main = true
  elseif word == "--readme" then
    options.readme = true
  elseif word:find("^%-") then
    io.stderr:write("no such option: ", word, "\n")
    os.exit(2)
  else
    wanted_sections[word], wants_any = true, true
  end
end

bench.quick = options.quick
bench.slice = options.slice
bench.build = os.getenv("BENCH_BUILD")
bench.work = os.getenv("BENCH_WORK")
bench.url = os.getenv("DATABASE_URL")
bench.tcp = os.getenv("BENCH_TCP")

--- More in a long run than in a quick one.
function bench.at_most(long, quick)
  return options.quick and quick or long
end

---------------------------------------------------------------------------------------------------
-- programs

--- Text as one word of the shell.
function bench.quote(text)
  return "'" .. tostring(text):gsub("'", "'\\''") .. "'"
end

--- Run a command of the shell; its output, or nil where it failed.
function bench.output(command)
  local pipe = io.popen(command)
  local text = pipe:read("a")
  return pipe:close() and text or nil
end

--- The numbers that a command prints; ends the run where it failed.
function bench.numbers(command)
  local text = bench.output(command)
  local numbers = {}
  for word in (text or ""):gmatch("%S+") do
    numbers[#numbers + 1] = tonumber(word)
  end
  if #numbers == 0 then
    error(("no figure came from: %s"):format(command), 0)
  end
  return numbers
end

--- Does it run, and say nothing bad?
function bench.works(command)
  return bench.output(command .. " >/dev/null 2>&1 && echo yes") ~= nil
end

bench.cpus = tonumber(bench.output("nproc --all"))

local load_before = bench.output("cut -d ' ' -f 1 /proc/loadavg"):match("%S+")
local server_version = bench.output("\"$BENCH_BINDIR/postgres\" --version"):match("[%d.]+")

--- Every process of the server, and those to come, on these CPUs: "0", or "all".
function bench.pin_server(cpus)
  local list = cpus == "all" and ("0-%d"):format(bench.cpus - 1) or cpus
  bench.output(("taskset -pc %s %s"):format(list, os.getenv("BENCH_POSTMASTER")))
end

---------------------------------------------------------------------------------------------------
-- numbers

--- The median, the least and the most.
function bench.spread(values)
  local sorted = table.move(values, 1, #values, 1, {})
  table.sort(sorted)
  local middle = (#sorted + 1) // 2
  local median = #sorted % 2 == 1 and sorted[middle] or (sorted[middle] + sorted[middle + 1]) / 2
  return median, sorted[1], sorted[#sorted]
end

local function digits(value)
  local text
  if math.abs(value) >= 1000 then
    text = ("%.0f"):format(value):reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^(-?),", "%1")
  elseif math.abs(value) >= 100 then
    text = ("%.0f"):format(value)
  elseif math.abs(value) >= 10 then
    text = ("%.1f"):format(value)
  else
    text = ("%.2f"):format(value)
  end
  return text
end

---------------------------------------------------------------------------------------------------
-- the table

local WIDTHS = { 60, 8, 9, 30, 9, 7, 16, 6, 9, 7 }
local HEAD = { "what", "CPUs", "ours", "beside it", "its", "ratio", "least to most", "rounds", "wanted", "" }
local failed, left_out = 0, {}
local main_lines = {} -- what the README of the project has of them

local function print_line(cells)
  for i, width in ipairs(WIDTHS) do
    local text = cells[i] or ""
    local room = (" "):rep(math.max(0, width - utf8.len(text)))
    local right = i == 3 or i >= 5 and i <= 8
    cells[i] = right and room .. text or text .. room
  end
  print("| " .. table.concat(cells, " | ") .. " |")
  io.stdout:flush()
end

local function keep_main(cells)
  main_lines[#main_lines + 1] = "| " .. table.concat(cells, " | ", 1, 7) .. " |"
end

local function print_head()
  local rules = {}
  for i, width in ipairs(WIDTHS) do
    rules[i] = ("-"):rep(width)
  end
  print_line({ table.unpack(HEAD) })
  print_line(rules)
end

-- Is the figure as wanted? The cells for that: "≥ 0.95", "yes".
local function judge(value, want)
  if not want then
    return "", ""
  end
  local how, bound = want:match("^([<>]) (.+)$")
  local ok = how == ">" and value >= tonumber(bound) or how == "<" and value <= tonumber(bound)
  failed = failed + (ok and 0 or 1)
  return (how == ">" and "≥ " or "≤ ") .. bound, ok and "reached" or "missed"
end

---@class Row
---@field what string
---@field where string
---@field ours number
---@field beside? string
---@field its? number
---@field values number[]     what ratio and spread are of
---@field difference? boolean they are differences
---@field want? string        "> 0.95"
---@field main? boolean

function bench.row(row)
  local median, low, high = bench.spread(row.values)
  local wanted, reached = judge(median, row.want)
  if options.main and not row.main then
    return
  end
  local cells = { row.what, row.where, digits(row.ours), row.beside or "", row.its and digits(row.its) or "",
    row.beside and (row.difference and median >= 0 and "+" or "") .. digits(median) or "",
    ("%s to %s"):format(digits(low), digits(high)), tostring(#row.values), wanted, reached }
  if row.main then
    keep_main(cells)
  end
  print_line(cells)
end

--- Something that has no side: a figure of ours alone, against a bound.
function bench.figure(what, values, options_)
  options_ = options_ or {}
  bench.row { what = what, where = options_.where or "both", ours = bench.spread(values), values = values,
    want = options_.want, main = options_.main }
end

local PIN = { ["one CPU"] = "taskset -c 0 ", ["one each"] = "taskset -c 1 ", both = "" }

--- Compare what commands print. The first side is ours.
---@param spec { what: string, where?: string, sides: table[], rounds?: integer, main?: boolean,
---              cpu?: string, cpu_want?: string, total?: string }
---  a side is { name, command, want =, difference =, main = }; cpu and total name rows of CPU time
---@return number ours  the median
function bench.compare(spec)
  local where = spec.where or "both"
  local rounds = spec.rounds or options.rounds
  local results = {} -- by side and round
  for round = 1, rounds do
    for i = 1, #spec.sides do
      local at = round % 2 == 1 and i or #spec.sides + 1 - i
      results[at] = results[at] or {}
      results[at][round] = bench.numbers(PIN[where] .. spec.sides[at][2])
    end
  end
  local function column_of(side, number)
    local values = {}
    for round = 1, rounds do
      values[round] = results[side][round][number]
    end
    return values
  end
  local ours = column_of(1, 1)
  local median = bench.spread(ours)
  for i = 2, #spec.sides do
    local side = spec.sides[i]
    local its, ratios = column_of(i, 1), {}
    for round = 1, rounds do
      ratios[round] = side.difference and ours[round] - its[round] or ours[round] / its[round]
    end
    bench.row { what = spec.what, where = where, ours = median, beside = side[1], its = bench.spread(its),
      values = ratios, difference = side.difference, want = side.want,
      main = spec.main and side.main ~= false }
  end
  if #spec.sides == 1 then
    bench.figure(spec.what, ours, { where = where, want = spec.sides[1].want, main = spec.main })
  end
  -- The third figure of each: CPU time a unit of client and server, which other load spoils less.
  for i = 2, spec.total and #spec.sides or 0 do
    local side, total, its, ratios = spec.sides[i], column_of(1, 3), column_of(i, 3), {}
    for round = 1, rounds do
      ratios[round] = total[round] / its[round]
    end
    bench.row { what = spec.total, where = where, ours = bench.spread(total), beside = side[1],
      its = bench.spread(its), values = ratios, main = spec.main and i == 2 }
  end
  -- The second one: CPU time a unit of the client alone.
  if spec.cpu then
    local cpu, beside = column_of(1, 2), spec.sides[2]
    local its, above = column_of(2, 2), {}
    for round = 1, rounds do
      above[round] = cpu[round] - its[round]
    end
    bench.row { what = spec.cpu, where = where, ours = bench.spread(cpu), beside = beside[1],
      its = bench.spread(its), values = above, difference = true, want = spec.cpu_want, main = spec.main }
  end
  return median
end

--- How a cost grows with size: from its values at several sizes, the exponent of N between first and last.
function bench.growth(what, sizes, costs, want)
  local exponent = math.log(costs[#costs] / math.max(costs[1], 1e-3)) / math.log(sizes[#sizes] / sizes[1])
  local wanted, reached = judge(exponent, want)
  if not options.main then
    print_line { what, "", "", "at " .. table.concat(sizes, ", "), "", ("N^%.2f"):format(exponent), "", "",
      wanted, reached }
  end
end

--- Say that a peer is not here.
function bench.leave_out(text)
  left_out[#left_out + 1] = text
end

---------------------------------------------------------------------------------------------------

local figures = assert(loadfile("tests/bench/figures.lua"))(bench)
for name in pairs(wanted_sections) do
  if not figures[name] then
    io.stderr:write("no such section: ", name, "\n")
    os.exit(2)
  end
end
print_head()
for _, name in ipairs(figures) do
  if not wants_any or wanted_sections[name] then
    local start = os.time()
    local ok, err = pcall(figures[name])
    if not ok then
      failed = failed + 1
      bench.leave_out(("the rest of %s: %s"):format(name, err))
    end
    io.stderr:write(("-- %s: %d s\n"):format(name, os.time() - start))
  end
end

-- Put the main rows in the place of those in README.md.
local function write_readme()
  local begins, ends = "<!-- tests/bench/run.sh --readme -->\n", "<!-- end -->"
  local file = assert(io.open("README.md"))
  local text = file:read("a")
  file:close()
  local _, first = text:find(begins, 1, true)
  local last = first and text:find(ends, first, true)
  assert(last, "README.md has no place for the table")
  local rows = { "| " .. table.concat(HEAD, " | ", 1, 7) .. " |",
    "| --- | --- | --: | --- | --: | --: | --: |" }
  table.move(main_lines, 1, #main_lines, 3, rows)
  rows[#rows + 1] = ""
  rows[#rows + 1] = ("On %d CPUs, with PostgreSQL %s; when the run began, other work kept %s processes busy.")
    :format(bench.cpus, server_version, load_before)
  file = assert(io.open("README.md", "w"))
  file:write(text:sub(1, first), table.concat(rows, "\n"), "\n", text:sub(last))
  file:close()
end

if options.readme then
  write_readme()
end
for _, text in ipairs(left_out) do
  print("left out: " .. text)
end
if failed > 0 then
  print(("%d missed"):format(failed))
  os.exit(1)
end
