-- The filter language (lua-api.md, "Querying"; locks.md 9), and the expressions of `ls --where`
-- (cli.md). Both are read and evaluated without a server.

local expect = require "tests.support.expect"
local expression = require "lockkeeper.expression"
local filter = require "lockkeeper.filter"
local t = require "tests.support"

local usage = expect.usage

-- 2027-03-28T01:00:00Z
local SPRING = 1806195600

local LOCK = {
  pid = 4711, type = "relation", mode = "ACCESS EXCLUSIVE", granted = false, fastpath = false,
  schema = "public", relation = "orders", relation_kind = "table", database = "shop",
  wait_start = SPRING + 0.5, wait_duration = 6.5,
  activity = {
    pid = 4711, user = "deploy", database = "shop", application_name = "django, migrate", state = "active",
    wait_event_type = "Lock", wait_event = "relation", query = "ALTER TABLE orders ADD é int", query_id = -7,
    duration = 7, xact_duration = 8, state_duration = 7,
  },
  blocking_pid = 12, blocking_mode = "ROW EXCLUSIVE",
  blocking_activity = {
    pid = 12, user = "app", database = "shop", application_name = "web", state = "idle in transaction",
    query = "update orders set paid = true", duration = 90, state_duration = 80,
  },
}

-- Of a session that this role may not see.
local HIDDEN = { pid = 13, type = "advisory", mode = "EXCLUSIVE", granted = true, key = { 1, -2 },
  activity = { pid = 13, user = "other", hidden = true } }

local function blocked(spec, row)
  return filter.compile(spec, { name = "blocked" }):matches(row or LOCK)
end

local function holds(spec, row)
  assert.is_true(blocked(spec, row))
end

local function fails(spec, row)
  assert.is_false(blocked(spec, row))
end

local function wrong(text, spec, name)
  return usage(text, filter.compile, spec, { name = name or "locks" })
end

-- What a script prints and logs.
local function run(text)
  local code, out, err = t.run("run", t.tempfile(text))
  assert.equal(0, code, err)
  return out, err
end

describe("a filter", function()
  it("is nil, a function of the row, or a table of conditions that must all hold", function()
    holds(nil)
    holds({})
    holds(function(row) return row.pid == 4711 end)
    fails(function(row) return row.pid == 1 end)
    holds({ pid = 4711, granted = false })
    fails({ pid = 4711, granted = true })
  end)

  it("names fields of the row, else of its activity", function()
    holds({ relation = "orders", user = "deploy", state = "active", query_id = -7 })
    fails({ user = "app" })
    fails({ state = "idle in transaction" })
  end)

  it("names the blocker's fields by the prefix blocking_", function()
    holds({ blocking_pid = 12, blocking_mode = "row exclusive", blocking_user = "app",
      blocking_application_name = "web", blocking_duration_gte = 90, blocking_state_duration_lt = "2m" })
    fails({ blocking_user = "deploy" })
  end)

  it("reads a field whose name ends like a suffix, or has underscores, as that field", function()
    holds({ wait_event_type = "Lock", wait_event = "relation", query_id_lt = 0, xact_duration_gte = 8,
      wait_event_type_in = { "Lock" }, state_duration_gt = 6 })
  end)

  it("takes a list as any of its values, with _ne as none of them", function()
    holds({ pid = { 1, 4711 } })
    holds({ state = { "idle", "active" }, user_ne = { "app", "root" } })
    holds({ pid_in = { 4711 } })
    fails({ pid = {} })
    fails({ pid_ne = { 1, 4711 } })
  end)

  it("compares as Django's suffixes say", function()
    holds({ wait_duration_gt = 6, wait_duration_gte = 6.5, wait_duration_lt = 7, wait_duration_lte = 6.5 })
    fails({ wait_duration_gt = 6.5 })
    fails({ wait_duration_lt = 6.5 })
    holds({ pid_exact = 4711, pid_ne = 1 })
    holds({ query_contains = "TABLE", query_icontains = "table", query_startswith = "ALTER",
      query_istartswith = "alter", query_endswith = "int", query_iendswith = "INT", user_iexact = "DEPLOY" })
    fails({ query_contains = "table" })
    fails({ query_startswith = "LTER" })
    fails({ user_endswith = "xdeploy" })
    holds({ key_isnull = true, wait_start_isnull = false })
    fails({ key_isnull = false })
  end)

  it("takes durations as seconds or texts", function()
    holds({ wait_duration_gt = "6s", duration_gte = "7000ms", blocking_duration = "1m30s" })
    wrong("wait_duration", { wait_duration = "5" })
    wrong("wait_duration", { wait_duration = false })
    wrong("wait_duration", { wait_duration = true })
    wrong("wait_duration", { wait_duration_gt = -1 })
  end)

  it("takes times as epoch seconds or as ISO 8601 with an offset", function()
    holds({ wait_start_gt = SPRING, wait_start = "2027-03-28T01:00:00.5Z" })
    holds({ wait_start = { "2027-03-28 03:00:00.5+02:00", "2027-03-27T21:00:00.5-04" } })
    holds({ wait_start_gte = "2027-03-28T01:00Z", wait_start_lt = "2027-03-28t01:01z" })
    for _, text in ipairs { "2027-02-30T00:00:00Z", "2027-03-28T01:00:00", "2027-03-28", "yesterday", "" } do
      wrong("wait_start takes epoch seconds", { wait_start = text })
    end
    wrong("wait_start", { wait_start = 0 / 0 })
  end)

  it("takes modes in any case and spelling, and orders them by strength", function()
    for _, mode in ipairs { "ACCESS EXCLUSIVE", "access_exclusive", "AccessExclusiveLock" } do
      holds({ mode = mode })
    end
    holds({ mode_gt = "share", mode_lte = "ACCESS EXCLUSIVE", blocking_mode_lt = "SHARE" })
    fails({ mode_lt = "share" })
    fails({ mode_gt = "share" }, { mode = "SIReadLock" })
    holds({ mode = "sireadlock" }, { mode = "SIReadLock" })
    holds({ mode_like = "% EXCLUSIVE" })
    wrong("unknown lock mode \"exlusive\"; did you mean EXCLUSIVE?", { mode = "exlusive" })
  end)

  it("takes a key as an integer, its decimal text, or two int4 keys in parentheses", function()
    local function row(key) return { key = key } end
    holds({ key = 42 }, row(42))
    holds({ key = "-3531142854575798568" }, row(-3531142854575798568))
    holds({ key = "(1, -2)" }, row { 1, -2 })
    holds({ key = { 5, "1,-2" } }, HIDDEN)
    fails({ key = "(1, 2)" }, HIDDEN)
    fails({ key = 1 }, HIDDEN)
    fails({ key = "(1, 2)" }, row(1))
    holds({ key_ne = 1 }, HIDDEN)
    wrong("key takes a whole number", { key = "9223372036854775808" })
    wrong("key takes a whole number", { key = "nightly" })
  end)

  it("takes a relation with or without its schema", function()
    holds({ relation = "orders" })
    holds({ relation = "public.orders" })
    holds({ relation = { "users", "public.orders" } })
    fails({ relation = "audit.orders" })
    fails({ relation_ne = "public.orders" })
    holds({ relation_startswith = "ord", schema = "public" })
    holds({ relation = "a.b" }, { relation = "a.b", schema = "public" })
  end)

  it("takes booleans as such or as PostgreSQL writes them", function()
    holds({ granted = false, fastpath = "f" })
    holds({ granted = "FALSE" })
    fails({ granted = "on" })
    wrong("granted takes true or false, not \"maybe\"", { granted = "maybe" })
    wrong("granted takes true or false, not 0", { granted = 0 })
  end)

  it("matches LIKE as SQL does", function()
    local function like(pattern, text)
      local f = filter.compile({ query_like = pattern }, { name = "locks" })
      return f:matches { activity = { query = text } }
    end
    local cases = {
      { "%orders%", "update orders set", true }, { "orders", "orders", true }, { "orders", "orders ", false },
      { "_", "é", true }, { "__", "é", false }, { "%_", "", false }, { "%", "", true }, { "", "", true },
      { "a%b%c", "axxbxxc", true }, { "a%b%c", "axxbxxcd", false }, { "a%bc", "abcbc", true },
      { "ab%ba", "aba", false }, { "a\\%b", "a%b", true }, { "a\\%b", "axb", false },
      { "a\\_b", "axb", false },
      { "a.b", "axb", false }, { "(%)", "(x)", true }, { "%[a]%", "x[a]x", true },
      { "a\\\\b", "a\\b", true },
      { "%%", "x", true }, { "a\n%", "a\nb", true }, { "_%_", "xy", true }, { "_%_", "x", false },
    }
    for _, case in ipairs(cases) do
      assert.equal(case[3], like(case[1], case[2]), case[1] .. " / " .. case[2])
    end
    holds({ query_ilike = "alter%ORDERS%" })
    wrong("query_like: the pattern ends in a \\", { query_like = "a\\" })
  end)

  it("agrees with PostgreSQL about LIKE, whatever the pattern", function()
    local db <close> = t.connect()
    math.randomseed(1)
    local function some(alphabet, most)
      local text = {}
      for i = 1, math.random(0, most) do
        text[i] = alphabet[math.random(#alphabet)]
      end
      return table.concat(text)
    end
    local patterns, texts, ours = {}, {}, {}
    for i = 1, 2000 do
      patterns[i] = some({ "a", "b", "é", "_", "%", "\\%", "\\_", "." }, 6)
      texts[i] = some({ "a", "b", "é", "_", "%", ".", "\\" }, 8)
      ours[i] = filter.compile({ query_like = patterns[i] }, { name = "locks" })
        :matches({ activity = { query = texts[i] } })
    end
    local lock = require "lockkeeper"
    for i, row in ipairs(db:query("select p, s, s like p as yes from unnest($1::text[], $2::text[]) u(p, s)",
      lock.array(patterns), lock.array(texts))) do
      assert.equal(row.yes, ours[i], row.p .. " / " .. row.s)
    end
  end)

  it("takes no longer for a LIKE that would make a pattern matcher go back for ever", function()
    local f = filter.compile({ query_like = ("%a"):rep(50) .. "%b" }, { name = "locks" })
    local row = { activity = { query = ("a"):rep(20000) } }
    local begun = os.clock()
    assert.is_false(f:matches(row))
    assert.is_true(os.clock() - begun < 2)
  end)

  it("lets a nil field fulfil nothing but isnull, as in SQL", function()
    local row = { pid = 1, granted = true }
    for _, spec in ipairs { { key = 1 }, { key_ne = 1 }, { wait_duration_lt = 1 }, { state = "active" },
      { state_ne = "active" }, { user_like = "%" }, { state_isnull = false } } do
      fails(spec, row)
    end
    holds({ key_isnull = true, state_isnull = true }, row)
  end)

  it("has where, on and limit besides", function()
    local where = function(row) return row.pid == 4711 end
    local f = filter.compile({ on = "public.orders", limit = 3, where = where }, { name = "locks" })
    assert.same({ "public.orders" }, f.on)
    assert.equal(3, f.limit)
    assert.is_true(f:matches(LOCK))
    assert.is_false(f:matches(HIDDEN))
    assert.same({ "a", "b" }, filter.compile({ on = { "a", "b" } }, { name = "blocked" }).on)
    wrong("on takes a relation's name or a list of them", { on = {} })
    wrong("on takes a relation's name or a list of them, not 5", { on = 5 })
    wrong("on takes a relation's name or a list of them, not \"\"", { on = "" })
    wrong("limit takes a whole number", { limit = -1 })
    wrong("limit takes a whole number", { limit = 1.5 })
    wrong("limit takes a whole number", { limit = "5" })
    wrong("where takes a function of the row", { where = "pid > 1" })
  end)

  it("calls where only for rows that fulfil the rest, and passes its errors on", function()
    local f = filter.compile({ state = "active", where = function(row) return #row.activity.query > 0 end },
      { name = "locks" })
    assert.is_false(f:matches(HIDDEN))
    assert.is_true(f:matches(LOCK))
    local err = expect.raised(function()
      filter.compile(function() error({ "mine" }) end, { name = "locks" }):matches(LOCK)
    end)
    assert.same({ "mine" }, err)
  end)

  it("names an unknown field and the nearest known one", function()
    wrong('locks: unknown filter "wait_durration_gt"; did you mean wait_duration_gt?',
      { wait_durration_gt = 1 })
    wrong("did you mean wait_duration_gt?", { wait_duration__gt = 1 })
    wrong("did you mean wait_event_type?", { wait_event_typ = "Lock" })
    wrong("did you mean limit?", { limt = 1 })
    wrong("only blocked rows have blocking_user", { blocking_user = "app" })
    wrong('unknown filter "query_regex"', { query_regex = "a" })
    wrong("unknown filter \"_gt\"", { _gt = 1 })
    wrong("a text of 1000 bytes", { [("x"):rep(1000)] = 1 })
    wrong("the filter's keys must be names of fields, not 1", { "pid" })
  end)

  it("names the field whose value is of the wrong type", function()
    wrong("pid takes a whole number, not 1.5", { pid = 1.5 })
    wrong("pid takes a whole number, not \"x\"", { pid = { 1, "x" } })
    wrong("state takes a text, not 5", { state = 5 })
    wrong("query_like takes a text, not a table", { query_like = { "a" } })
    wrong("state_isnull takes true or false, not 3", { state_isnull = 3 })
    wrong("pid: a list was expected", { pid = { 1, x = 2 } })
    wrong("granted_gt: a boolean has no greater and no less", { granted_gt = true })
    wrong("pid_like: only texts can be compared so", { pid_like = "4%" })
    wrong("the filter must be a table or a function of the row, not \"pid\"", "pid")
    wrong("the filter must be a table or a function of the row, not 5", 5)
  end)

  it("may be of sessions, which are activities", function()
    local f = filter.compile({ user = "deploy", duration_gt = "5s" }, { name = "sessions", what = "protect" })
    assert.is_true(f:matches(LOCK.activity))
    assert.is_false(f:matches(LOCK.blocking_activity))
    usage("protect: unknown filter \"mode\"", filter.compile, { mode = "SHARE" },
      { name = "sessions", what = "protect" })
  end)

  it("says once which rows it left out because this role may not see a field (locks.md 9)", function()
    local out, err = run([[
      local filter = require "lockkeeper.filter"
      local hidden = { granted = true, activity = { hidden = true } }
      local f = filter.compile({ state = "active", granted = true }, { name = "locks" })
      print(f:matches(hidden), f:matches(hidden), f:matches { granted = false, activity = { hidden = true } })
      f:report()
      f:report()
      local g = filter.compile({ state_isnull = true, key_isnull = true }, { name = "locks" })
      print(g:matches(hidden))
      g:report()
    ]])
    assert.equal("false\tfalse\tfalse\ntrue\n", out)
    assert.matches("locks: 2 rows were left out, since this role may not see state of others' sessions: "
      .. "GRANT pg_monitor", err, 1, true)
    assert.equal(1, select(2, err:gsub("\n", "")))
  end)

  it("says nothing of rows that another condition leaves out, or of fields that are simply nil", function()
    local _, err = run([[
      local filter = require "lockkeeper.filter"
      local f = filter.compile({ state = "active", key = 1 }, { name = "locks" })
      f:matches { activity = { hidden = true } }
      f:matches { key = 1, activity = {} }
      f:matches { key = 1 }
      f:report()
    ]])
    assert.equal("", err)
  end)

  it("is quick: 10,000 rows with four conditions", function()
    local f = filter.compile({ state = "active", query_like = "%orders%", mode = "ACCESS EXCLUSIVE",
      wait_duration_gt = 1 }, { name = "locks" })
    local begun = os.clock()
    for _ = 1, 10000 do
      f:matches(LOCK)
    end
    assert.is_true(os.clock() - begun < 1)
  end)
end)

describe("a filter on a command line", function()
  local function word(text, row)
    return filter.compile_word(text, { name = "blocked", what = "--filter" }):matches(row or LOCK)
  end

  it("is KEY=VALUE, the value read as its field's kind", function()
    assert.is_true(word("pid=4711"))
    assert.is_true(word("granted=false"))
    assert.is_true(word("wait_duration_gt=5"))
    assert.is_true(word("wait_duration_gt=5s"))
    assert.is_true(word("wait_start_gt=" .. SPRING))
    assert.is_true(word("mode=access_exclusive"))
    assert.is_true(word("key_isnull=true"))
    assert.is_true(word("query_like=%TABLE%"))
    assert.is_true(word("blocking_user=app"))
    assert.is_false(word("user="))
    assert.is_true(word("user_ne=a=b"))
  end)

  it("takes KEY=A,B as a list, with \\, for a comma", function()
    assert.is_true(word("pid=1,4711"))
    assert.is_true(word("state_ne=idle,disabled"))
    assert.is_false(word("application_name=django, migrate"))
    assert.is_true(word("application_name=django\\, migrate"))
    assert.is_true(word("query_like=%a%,%", { activity = { query = "a, b" } }))
    assert.is_true(word("key=5,(1, -2)", HIDDEN))
  end)

  it("names what is wrong with it", function()
    usage('--filter takes KEY=VALUE, not "pid"', word, "pid")
    usage("--filter: unknown filter \"pidd\"; did you mean pid?", word, "pidd=1")
    usage("--filter: pid takes a whole number, not \"x\"", word, "pid=1,x")
    usage("--filter: wait_duration_gt", word, "wait_duration_gt=soon")
    usage("--filter: unknown filter \"where\"", word, "where=true")
    usage("--filter: unknown filter \"\"", word, "=1")
  end)
end)

describe("an expression", function()
  local function value(text, row)
    return expression.compile(text, { name = "blocked" }):matches(row or LOCK)
  end

  local function is_true(text, row)
    assert.is_true(value(text, row), text)
  end

  local function is_false(text, row)
    assert.is_false(value(text, row), text)
  end

  local function is_wrong(part, text)
    usage(part, value, text)
  end

  it("has the row's fields, its activity's, and the blocker's", function()
    is_true('wait_duration > 5 and mode == "ACCESS EXCLUSIVE"')
    is_true('user == "deploy" and blocking_user == "app" and blocking_pid == 12')
    is_true('activity.user == "deploy" and blocking_activity.state == "idle in transaction"')
    is_true("not granted")
    is_false("granted")
  end)

  it("has Lua's operators, as strong as Lua's, and its literals", function()
    is_true("1 + 2 * 3 == 7 and (1 + 2) * 3 == 9 and 2 ^ 3 ^ 2 == 512 and -2 ^ 2 == -4 and 7 // 2 == 3")
    is_true("7 % 4 == 3 and 1 / 2 == .5 and 1 .. 2 == '12' and #'abc' == 3 and not nil and 0x10 == 1e1 + 6")
    is_true("7 & 3 == 3 and 4 | 3 == 7 and 5 ~ 1 == 4 and 1 << 3 == 8 and 8 >> 1 == 4 and ~0 == -1")
    is_true("1 < 2 and 2 <= 2 and 3 > 2 and 3 >= 3 and 1 ~= 2 and 'a' < 'b' and 1 == 1.0")
    is_true([=['a\n"\65' == "a\n\"A" and [[x]] == [==[x]==]]=])
    is_true("false or 'x'")
    is_false("nil")
  end)

  it("has string, math, methods of texts, and duration()", function()
    is_true('query:lower():find("orders") and string.upper(user) == "DEPLOY" and query:sub(1, 5) == "ALTER"')
    is_true('math.floor(wait_duration) == 6 and math.pi > 3 and math.max(1, 2) == 2')
    is_true('blocking_duration > duration("1m") and duration"1m" == 60')
    is_true('user:gsub("d", "%0%0") == "ddeploy" and ("x"):rep(3, "-") == "x-x-x"')
    is_true('query:find("(", 1, true) == nil and ("%s!"):format(user) == "deploy!"')
  end)

  it("has keys of two parts as lists", function()
    is_true("key[1] == 1 and key[2] == -2", HIDDEN)
  end)

  it("leaves out what is nil, as SQL does, and asks for it with == nil", function()
    for _, text in ipairs { "key > 5", "not (key > 5)", "key ~= 5", "key == 5", "key + 1 > 0", "-key < 5",
      "virtualxid:find('x')", "not virtualxid:find('x')", "string.len(virtualxid) > 0", "#virtualxid > 0",
      "virtualxid .. 'x' == 'x'", "key > 5 and granted == false", "key == blocking_activity.xact_start" } do
      is_false(text)
    end
    is_true("key == nil and nil == virtualxid and wait_start ~= nil")
    is_true("key > 5 or pid == 4711")
    is_true("not (key > 5 and granted)")
  end)

  it("says which rows were left out because this role may not see a field", function()
    local out, err = run([[
      local expression = require "lockkeeper.expression"
      local e = expression.compile("state == nil or duration > 5", { name = "locks" })
      print(e:matches { activity = { hidden = true } }, e:matches { activity = { state = "idle" } })
      e:report()
      e:report()
    ]])
    assert.equal("false\tfalse\n", out)
    assert.matches("the expression: 1 row was left out, since this role may not see duration, state of "
      .. "others' sessions: GRANT pg_monitor", err, 1, true)
    assert.equal(1, select(2, err:gsub("\n", "")))
  end)

  it("reaches nothing else", function()
    for _, name in ipairs { "os", "io", "load", "require", "getmetatable", "setmetatable", "rawget", "_G",
      "_ENV", "debug", "package", "print", "error", "pcall", "row", "self", "arg", "coroutine", "table" } do
      is_wrong("unknown name " .. name, name .. '("x")')
      is_wrong("unknown name " .. name, name .. ".x")
    end
    is_wrong("unknown name dump", 'string.dump(1)')
    is_wrong("unknown name dump", '("x"):dump()')
    is_wrong("unknown name gmatch", '("x"):gmatch("x")')
    is_wrong("unknown name randomseed", "math.randomseed(1)")
    is_wrong("unexpected .", '("").__index')
    is_wrong("string.find must be called", "string.find")
    is_wrong("unknown name print", 'query:gsub("x", print)')
    is_wrong("gsub takes a text", 'query:gsub("x", 1)')
    is_false('("x")["__index"]')
  end)

  it("has no functions, and so no loops, no tables, no statements", function()
    is_wrong("unexpected function at character 2", "(function() while true do end end)()")
    is_wrong("unexpected { at character 1", "{ 1 }")
    is_wrong("unexpected = at character 5", "pid = 1")
    is_wrong("unexpected pid at character 5", "pid pid")
    is_wrong("unexpected ;", "pid == 1; os.exit()")
    is_wrong("unexpected while", "while true do end")
    is_wrong("unexpected return", "return true")
    is_wrong("unexpected goto", "goto x")
    is_wrong("unexpected --", "-- pid")
    is_wrong("unexpected ..", "...")
    is_wrong("unexpected", "\27Lua")
  end)

  it("makes no text too long, and starts no match that could take for ever", function()
    is_wrong("a text of more than", '("x"):rep(1e9) == "x"')
    is_wrong("a text of more than", '("x"):rep(1e15) == "x"')
    is_wrong("a text of more than", '("x"):rep(1e6):rep(1e6) == "x"')
    is_wrong("a text of more than", '("x"):rep(2, ("y"):rep(4000000)):rep(2) == "x"')
    is_wrong("a text of more than", '("x"):rep(4000000) .. ("x"):rep(4000000) == "x"')
    is_wrong("a text of more than", '("x"):rep(4000):gsub("x", ("y"):rep(4000)) == "x"')
    is_wrong("invalid conversion", '("%999999999d"):format(1) == "x"')
    local endless = "a pattern that takes more"
    is_wrong(endless, '("a"):rep(30):find(("a?"):rep(30) .. ("a"):rep(30))')
    is_wrong(endless, '("a"):rep(100000):match("a*a*a*b")')
    is_wrong(endless, '("("):rep(100000):gsub("%b()", "")')
    is_true('query:find(".*TABLE.*ADD") == 1')
  end)

  it("matches patterns as Lua does, whoever matches them", function()
    local query = ("select f(a, (b)) -- é\n"):rep(60)
    local row = { activity = { query = query } }
    for _, call in ipairs { 'find("f%b().*%((%a).-%-%-")', 'match(".-(%u?).-([%w_]+)()%s*%((.-)%)")',
      'gsub("(%l+)%s?(.-)%f[%w]", "<%2%1%%>"):len()', 'match("^(s.+)(e.*)\\n%1%2")', 'find("x.*y.*z")',
      'gsub("%s*", "-", 7)', 'gsub("^s.-.-e", "%0%0")', 'find("[^]-z]*[%-].-()$", -30)' } do
      local theirs = load("local query = ... return (query:" .. call .. ")")(query)
      if theirs == nil then
        is_true("query:" .. call .. " == nil", row)
      else
        is_true(("query:%s == %s"):format(call, type(theirs) == "string" and ("%q"):format(theirs) or theirs),
          row)
      end
    end
    for _, call in ipairs { 'find(".*.*%")', 'find(".*.*[a")', 'find(".*.*(")', 'find(".*.*)")',
      'find(".*.*%1")', 'find(".*.*%b(")', 'find(".*.*%f(")', 'gsub(".*.*", "%x")', 'gsub(".*.*", "%2")' } do
      assert.is_false(pcall(load("return ('x'):" .. call)))
      expect.kind("usage", value, "query:" .. call, row)
    end
  end)

  it("is itself bounded", function()
    is_wrong("nested too deeply", ("("):rep(1000) .. "1" .. (")"):rep(1000))
    is_wrong("nested too deeply", ("not "):rep(1000) .. "1")
    is_wrong("nested too deeply", ("1 ^ "):rep(1000) .. "1")
    is_wrong("has 20000 bytes", ("x"):rep(20000))
    is_true(("1 + "):rep(2000) .. "1 > 0")
  end)

  it("names the place of a mistake, and the nearest field", function()
    is_wrong("unknown name wait_duraton at character 1; did you mean wait_duration?", "wait_duraton > 5")
    is_wrong("unknown name usr at character 10; did you mean user?", "activity.usr == 'x'")
    is_wrong("it ends too early, at character 7", "pid ==")
    is_wrong(") expected instead of the end at character 10", "(pid == 1")
    is_wrong("a text without its end at character 9", 'user == "app')
    is_wrong("a text without its end at character 9", "user == [[app")
    is_wrong("a text with an escape that Lua does not know at character 9", [[user == "\q"]])
    is_wrong("malformed number 1x at character 8", "pid == 1x")
    is_wrong("unexpected ü at character 15", "'é' == user + ü")
    is_wrong("is empty", "")
    is_wrong("is empty", " \n ")
    usage("unknown name blocking_user", expression.compile, "blocking_user == 'x'", { name = "locks" })
    usage("unknown name blocking_activity", expression.compile, "blocking_activity.user", { name = "locks" })
  end)

  it("names an operation that can't be done", function()
    is_wrong('a number can\'t be compared with a text; duration("5s") gives seconds', 'wait_duration > "5s"')
    is_wrong("a text can't be compared with a number", "mode > 5")
    is_wrong("true or false can't be compared with a number", "granted < 1")
    is_wrong("attempt to", "query + 1 > 2")
    is_wrong("attempt to", "1 // 0 == 1")
    is_wrong("number has no integer representation", "1.5 | 1 == 1")
    is_wrong(":len() is for texts, not for a number", "pid:len() > 1")
    is_wrong("bad argument", "query:rep('x') == 1")
    is_wrong("malformed pattern", "query:find('[a')")
    is_wrong("duration", 'duration("soon") > 1')
  end)
end)
