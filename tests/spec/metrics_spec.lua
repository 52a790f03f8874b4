-- `lockkeeper serve --listen`: /metrics, /healthz and /readyz (runner.md 29).

local process = require "tests.support.process"
local t = require "tests.support"

local DATABASE = "metrics_spec"
local SOON = 30

-- Over bash's own sockets: a request of any bytes, and all that comes back. Nil: no connection.
local CLIENT = [[exec 3<>"/dev/tcp/127.0.0.1/$1" && cat >&3 && cat <&3]]

local function exchange(port, bytes, seconds)
  local client = { "timeout", tostring(seconds or 20), "bash", "-c", CLIENT, "bash", port }
  local code, out = process.run(client, { stdin = bytes })
  return code == 0 and out or nil
end

---@return integer? status
---@return string body
---@return table<string, string> headers  by their names in lower case
local function ask(port, path, method, more)
  local head = "%s %s HTTP/1.1\r\nHost: here\r\n%s\r\n"
  local reply = exchange(port, head:format(method or "GET", path, more or ""))
  if reply == nil or reply == "" then
    return nil, "", {}
  end
  local body
  head, body = reply:match("^(.-\r\n)\r\n(.*)$")
  local headers = {}
  for name, text in head:gmatch("([%w-]+): ([^\r]*)\r\n") do
    headers[name:lower()] = text
  end
  return math.tointeger(head:match("^HTTP/1.1 (%d+) ")), body, headers
end

-- ---- a strict reader of the text format ----------------------------------------------------------

local UNESCAPED = { ["\\\\"] = "\\", ['\\"'] = '"', ["\\n"] = "\n" }

local function read_labels(text, line)
  local labels, at = {}, 1
  while at <= #text do
    local name = assert(text:match('^([%a_][%w_]*)="', at), line)
    local value, next_at = "", at + #name + 2
    while text:sub(next_at, next_at) ~= '"' do
      local piece = text:match('^\\[\\"n]', next_at) or text:match('^[^\\"\n]', next_at)
      value = value .. (UNESCAPED[assert(piece, line)] or piece)
      next_at = next_at + #piece
    end
    assert(labels[name] == nil, "label twice: " .. line)
    assert(utf8.len(value), "not UTF-8: " .. line)
    labels[name] = value
    at = next_at + 1
    if at <= #text then
      assert(text:sub(at, at) == ",", line)
      at = at + 1
    end
  end
  return labels
end

-- The family that a line belongs to: of a histogram's lines, the one without their endings.
local function family_of(families, name)
  return families[name] or families[(name:gsub("_bucket$", ""):gsub("_sum$", ""):gsub("_count$", ""))]
end

local function check_histogram(family)
  local groups = {}
  for _, sample in ipairs(family.samples) do
    local key = sample.labels.job or ""
    local group = groups[key] or { count = 0, le = -math.huge }
    groups[key] = group
    if sample.name:find("_bucket$") then
      local le = sample.labels.le == "+Inf" and math.huge or tonumber(sample.labels.le)
      assert(le > group.le and sample.value >= group.count, sample.line)
      group.le, group.count = le, sample.value
    elseif sample.name:find("_sum$") then
      group.sum = sample.value
    else
      assert(group.le == math.huge and sample.value == group.count, sample.line)
      group.counted = true
    end
  end
  for key, group in pairs(groups) do
    assert(group.sum and group.counted, key)
  end
end

-- Every family with its type and samples; raises at what is no valid text.
local function parse(text)
  local families, current, seen = {}, nil, {}
  assert(text:sub(-1) == "\n", "the last line has no end")
  for line in text:gmatch("([^\n]*)\n") do
    local helped = line:match("^# HELP ([%a_:][%w_:]*) .+$")
    local typed, kind = line:match("^# TYPE ([%a_:][%w_:]*) (%a+)$")
    if helped then
      assert(families[helped] == nil, "family twice: " .. line)
      current = { name = helped, samples = {} }
      families[helped] = current
    elseif typed then
      assert(current.name == typed and current.type == nil and #current.samples == 0, line)
      assert(kind == "counter" or kind == "gauge" or kind == "histogram", line)
      assert((kind == "counter") == (typed:find("_total$") ~= nil), "a counter's name ends in _total")
      current.type = kind
    else
      local name, labels, value = line:match("^([%a_:][%w_:]*){(.*)} (%S+)$")
      if name == nil then
        name, value = line:match("^([%a_:][%w_:]*) (%S+)$")
        labels = ""
      end
      assert(name and tonumber(value), "no sample: " .. line)
      assert(name:find("^lockkeeper_"), line)
      assert(family_of(families, name) == current, "not with its family: " .. line)
      assert(current.type == "histogram" or name == current.name, line)
      assert(not seen[name .. labels], "twice: " .. line)
      seen[name .. labels] = true
      table.insert(current.samples,
        { name = name, labels = read_labels(labels, line), value = tonumber(value), line = line })
    end
  end
  for _, family in pairs(families) do
    assert(family.type, family.name)
    if family.type == "histogram" then
      check_histogram(family)
    end
  end
  return families
end

local function scrape(port)
  local status, body, headers = ask(port, "/metrics")
  assert.equal(200, status)
  assert.equal("text/plain; version=0.0.4; charset=utf-8", headers["content-type"])
  return parse(body)
end

-- The value of a sample that has these labels, or nil.
local function value(families, name, labels)
  for _, sample in ipairs((family_of(families, "lockkeeper_" .. name) or { samples = {} }).samples) do
    local same = sample.name == "lockkeeper_" .. name
    for label, text in pairs(labels or {}) do
      same = same and sample.labels[label] == text
    end
    if same then
      return sample.value
    end
  end
end

local function await_value(port, expected, name, labels)
  return t.wait_until(function()
    local families = scrape(port)
    return value(families, name, labels) == expected and families
  end, SOON, name)
end

-- ---- supervisors ---------------------------------------------------------------------------------

local HEAD = 'local lock, SLEEP = require "lockkeeper", "select pg_sleep(60)"\n'

local children = {}

local function start(text, ...)
  local words = { ... }
  local options = type(words[#words]) == "table" and table.remove(words) or {}
  options.env = options.env or { DATABASE_URL = t.conninfo { dbname = DATABASE } }
  table.insert(words, t.tempfile(HEAD .. text, "jobs.lua"))
  table.insert(words, options)
  local child = t.lockkeeper("serve", table.unpack(words))
  children[#children + 1] = child
  return child
end

local function port_of(child)
  return t.wait_until(function()
    assert.is_nil(child:code(), child:stderr())
    return child:stderr():match("msg=listening address=%S-:(%d+)\n")
  end, SOON, "the port")
end

local function stop(child)
  if child:is_running() then
    child:signal("TERM")
  end
  return child:wait()
end

local function await_ready(port)
  t.wait_until(function() return ask(port, "/readyz") == 200 end, SOON, "ready")
end

local JOBS = [[
lock.job("works", { schedule = "@start", run = function() end })
lock.job("breaks", { schedule = "@start", run = function() error("broken") end })
lock.job("yearly", { schedule = "0 0 1 1 *", run = function() end })
lock.job("untimed", { run = function() end })
]]

describe("serve --listen", function()
  local child, port

  setup(function()
    t.psql("create database " .. DATABASE)
    child = start(JOBS, "--listen", "127.0.0.1:0")
    port = port_of(child)
    await_ready(port)
    scrape(port) -- its session stays
  end)

  after_each(function()
    for _, other in ipairs(children) do
      if other ~= child and other:is_running() then
        other:signal("KILL")
        other:wait()
      end
    end
  end)

  teardown(function()
    assert.equal(0, stop(child))
    t.psql("drop database " .. DATABASE .. " with (force)")
  end)

  local function sql(text)
    return t.psql(text, { dbname = DATABASE })
  end

  describe("/metrics", function()
    it("runner.md 29: counts runs by job and state", function()
      local families = await_value(port, 1, "runs_total", { job = "works", state = "succeeded" })
      assert.equal(0, value(families, "runs_total", { job = "works", state = "failed" }))
      families = await_value(port, 1, "runs_total", { job = "breaks", state = "failed" })
      assert.equal(0, value(families, "runs_total", { job = "breaks", state = "succeeded" }))
      assert.equal(0, value(families, "runs_total", { job = "yearly", state = "succeeded" }))
    end)

    it("runner.md 29: has how long runs took and waited, and how late they were claimed", function()
      await_value(port, 1, "runs_total", { job = "breaks", state = "failed" })
      local families = await_value(port, 1, "runs_total", { job = "works", state = "succeeded" })
      for _, name in ipairs { "run_seconds", "wait_seconds" } do
        assert.equal("histogram", families["lockkeeper_" .. name].type)
        assert.equal(1, value(families, name .. "_count", { job = "works" }))
        assert.equal(1, value(families, name .. "_bucket", { job = "works", le = "+Inf" }))
        assert.is_nil(value(families, name .. "_count", { job = "yearly" }))
      end
      assert.equal("histogram", families.lockkeeper_claim_latency_seconds.type)
      assert.equal(2, value(families, "claim_latency_seconds_count"))
    end)

    it("runner.md 29: says when a job is due next", function()
      local families = scrape(port)
      local due = sql("select extract(epoch from date_trunc('year', now() at time zone 'UTC')"
        .. " + interval '1 year')::bigint")
      assert.equal(tonumber(due), value(families, "next_due_timestamp_seconds", { job = "yearly" }))
      assert.is_nil(value(families, "next_due_timestamp_seconds", { job = "untimed" }))
      assert.equal(4, value(families, "jobs"))
    end)

    it("runner.md 29: has blocked sessions, the longest wait and locks by type", function()
      local families = await_value(port, 0, "blocked_sessions")
      assert.equal(0, value(families, "longest_wait_seconds"))
      sql("create table if not exists contested ()")
      local holder = t.connect { dbname = DATABASE }
      holder:query("begin")
      holder:query("lock table contested in access exclusive mode")
      local waiter = t.spawn { require("tests.support.target").bindir() .. "/psql", "-Xqd",
        t.conninfo { dbname = DATABASE }, "-c", "select from contested" }
      families = await_value(port, 1, "blocked_sessions")
      assert.is_true(value(families, "locks", { type = "relation", granted = "true" }) >= 1)
      assert.equal(1, value(families, "locks", { type = "relation", granted = "false" }))
      assert.is_true(value(families, "longest_wait_seconds") > 0)
      holder:query("rollback")
      holder:close()
      assert.equal(0, waiter:wait())
      await_value(port, 0, "blocked_sessions")
    end)

    it("runner.md 29: has open findings, with their words as they are", function()
      local name = 'a "b" \\c\\n\nd é'
      local db = t.connect { dbname = DATABASE }
      db:query([[
        insert into lockkeeper.finding (audit, subject, severity, message, closed_at)
        select $1, n, 'warning', 'm', case when n = 3 then now() end from generate_series(1, 3) n]], name)
      await_value(port, 2, "findings", { audit = name, severity = "warning" })
      db:query("delete from lockkeeper.finding")
      db:close()
    end)

    it("has the runs and supervisors of all hosts, and which jobs are paused", function()
      local other = start(JOBS .. [[
        lock.job("at:work", { schedule = "@start", run = function(job) job.db:query(SLEEP) end })]],
        "--listen", "127.0.0.1:0", "--drain", "0s")
      await_value(port_of(other), 1, "workers", { state = "busy" })
      t.wait_until(function()
        return sql("select count(*) from lockkeeper.run where state = 'running'") == "1"
      end, SOON, "a run")
      sql("update lockkeeper.job set paused = true where name = 'at:work'")
      local families = await_value(port, 1, "job_paused", { job = "at:work" })
      assert.equal(2, value(families, "supervisors"))
      assert.equal(1, value(families, "active_runs", { state = "running" }))
      assert.equal(0, stop(other))
      families = await_value(port, 1, "supervisors")
      assert.equal(0, value(families, "active_runs", { state = "running" }))
    end)

    it("counts slots that were skipped, and each run where it ended: elsewhere it is not counted", function()
      local other = start([[
        lock.job("long", { every = "1s", run = function(job) job.db:query(SLEEP) end })]],
        "--listen", "127.0.0.1:0", "--drain", "0s")
      local own = port_of(other)
      t.wait_until(function()
        return (value(scrape(own), "runs_total", { job = "long", state = "skipped" }) or 0) >= 1
      end, SOON, "a skipped slot")
      t.wait_until(function()
        return sql([[update lockkeeper.run set cancel_at = clock_timestamp()
          where state = 'running' and job = 'long' returning id]]) ~= ""
      end, SOON, "a run at work")
      t.wait_until(function()
        return (value(scrape(own), "runs_total", { job = "long", state = "cancelled" }) or 0) >= 1
      end, SOON, "a cancelled run")
      assert.is_nil(value(scrape(port), "runs_total", { job = "long" }))
      assert.equal(0, stop(other))
    end)

    it("answers in time while somebody keeps a state table locked, without what is in that", function()
      local holder = t.connect { dbname = DATABASE }
      holder:query("begin")
      holder:query("lock table lockkeeper.finding in access exclusive mode")
      local families = t.wait_until(function()
        local found = scrape(port)
        return found.lockkeeper_findings == nil and found
      end, SOON, "a text without findings")
      assert.equal(1, value(families, "up"))
      assert.equal(1, value(families, "runs_total", { job = "works", state = "succeeded" }))
      local begun = t.now()
      scrape(port)
      assert.is_true(t.now() - begun < 5)
      assert.equal(200, (ask(port, "/readyz")))
      holder:query("rollback")
      holder:close()
    end)
  end)

  describe("HTTP", function()
    it("answers 200 to /healthz and, when it serves, to /readyz", function()
      for path, text in pairs { ["/healthz"] = "ok\n", ["/readyz"] = "ready\n" } do
        local status, body = ask(port, path)
        assert.same({ 200, text }, { status, body })
      end
    end)

    it("answers 404 to other paths, and 405 to other methods", function()
      for _, path in ipairs { "/", "/metric", "/metrics/", "/%2e%2e/etc/passwd" } do
        assert.equal(404, (ask(port, path)), path)
      end
      for _, method in ipairs { "POST", "PUT", "DELETE", "OPTIONS", "FOO" } do
        local status, _, headers = ask(port, "/metrics", method, "Content-Length: 0\r\n")
        assert.equal(405, status, method)
        assert.equal("GET, HEAD", headers.allow)
      end
      assert.equal(200, (ask(port, "/metrics?name[]=x")))
    end)

    it("answers HEAD without a body", function()
      for _, path in ipairs { "/metrics", "/healthz", "/readyz" } do
        local status, body, headers = ask(port, path, "HEAD")
        assert.equal(200, status)
        assert.equal("", body)
        assert.is_true(tonumber(headers["content-length"]) > 0)
      end
    end)

    it("refuses what is too big", function()
      assert.equal(413, (ask(port, "/metrics", "POST", "Content-Length: 10000000\r\n")))
      assert.equal(431, (ask(port, "/metrics", "GET", "X: " .. ("x"):rep(30000) .. "\r\n")))
      local status = ask(port, "/" .. ("x"):rep(30000))
      assert.is_true(status == nil or status >= 400 and status < 500)
      assert.equal(200, (ask(port, "/healthz")))
    end)

    it("survives what is no HTTP", function()
      for _, bytes in ipairs {
        "\r\n\r\n\r\n", "\0\1\2\3\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        ("\xff"):rep(5000) .. "\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
      } do
        exchange(port, bytes, 0.5)
        assert.equal(200, (ask(port, "/healthz")))
      end
    end)

    it("is not kept from others by clients that say nothing, half of a request, or never read", function()
      local silent = {}
      local half = "GET /metrics HTTP/1.1\r\n"
      for _, bytes in ipairs { "", "GET /metr", half .. "X: ", half .. "\r\n" } do
        for _ = 1, 3 do
          silent[#silent + 1] = t.spawn { "bash", "-c",
            [[exec 3<>"/dev/tcp/127.0.0.1/$1"; printf '%b' "$2" >&3; exec sleep 60]], "bash", port,
            (bytes:gsub("\r\n", "\\r\\n")) }
        end
      end
      t.wait_until(function()
        local count = 0
        for _, one in ipairs(silent) do
          count = count + (process.command_line(one:pid()):find("^sleep") and 1 or 0)
        end
        return count == #silent
      end, SOON, "all of them")
      local begun = t.now()
      assert.equal(200, (ask(port, "/healthz")))
      scrape(port)
      assert.is_true(t.now() - begun < 5)
      for _, one in ipairs(silent) do
        one:signal("KILL")
        one:wait()
      end
    end)
  end)

  describe("where it listens", function()
    it("takes an empty host as all addresses, of both kinds", function()
      local other = start(JOBS, "--listen", ":0")
      assert.equal(200, (ask(port_of(other), "/healthz")))
      assert.matches("address=[%[%d][%]:.0]*:%d+\n", other:stderr())
      assert.equal(0, stop(other))
    end)

    it("is an error at once where the port is taken: exit code 1", function()
      local code, out, err = t.run("serve", "--listen", "127.0.0.1:" .. port, t.tempfile("", "jobs.lua"))
      assert.equal(1, code)
      assert.equal("", out)
      assert.matches("cannot listen on 127%.0%.0%.1:" .. port .. ": Address already in use", err)
    end)

    it("is a usage error where it is no address with a port: exit code 2", function()
      for _, word in ipairs { "", "9187", "127.0.0.1", "127.0.0.1:", ":", ":65536", ":-1", ":1x", "::1:9187",
        "[::1]", "[::1:9187", ("x"):rep(300) .. ":1", "127.0.0.1:99999999999999999999" } do
        local code, _, err = t.run("serve", "--listen", word, t.tempfile("", "jobs.lua"))
        assert.equal(2, code, word)
        assert.matches("%-%-listen", err)
      end
    end)
  end)

  it("runner.md 23: /readyz says 503 while it ends, and /metrics goes on", function()
    local other = start([[
      lock.job("last", { schedule = "@start", run = function(job) job.db:query(SLEEP) end })]],
      "--listen", "127.0.0.1:0")
    local own = port_of(other)
    await_value(own, 1, "workers", { state = "busy" })
    other:signal("TERM")
    t.wait_until(function() return ask(own, "/readyz") == 503 end, SOON, "not ready")
    local status, body = ask(own, "/readyz")
    assert.same({ 503, "ending\n" }, { status, body })
    assert.equal(200, (ask(own, "/healthz")))
    assert.equal(1, value(scrape(own), "workers", { state = "busy" }))
    other:signal("TERM")
    assert.equal(0, other:wait())
  end)
end)

describe("serve --listen without its database", function()
  it("runner.md 25, 29: lives, is not ready, and tells what it knows", function()
    local server = t.start_server()
    finally(function() server:stop() end)
    local env = { DATABASE_URL = server:conninfo() }
    local child = start(JOBS, "--listen", "127.0.0.1:0", { env = env })
    local port = port_of(child)
    local families = await_value(port, 1, "runs_total", { job = "works", state = "succeeded" })
    assert.equal(1, value(families, "up"))
    server:stop("immediate")
    t.wait_until(function() return ask(port, "/readyz") == 503 end, SOON, "not ready")
    local _, body = ask(port, "/readyz")
    assert.equal("the link to the database is lost\n", body)
    assert.equal(200, (ask(port, "/healthz")))
    families = scrape(port)
    assert.equal(0, value(families, "up"))
    assert.equal(1, value(families, "runs_total", { job = "works", state = "succeeded" }))
    assert.is_true(value(families, "next_due_timestamp_seconds", { job = "yearly" }) > os.time())
    server:start()
    t.wait_until(function() return ask(port, "/readyz") == 200 end, 30, "ready again")
    await_value(port, 0, "blocked_sessions")
    assert.equal(0, stop(child))
  end)

  it("runner.md 29: is not ready, and tells so, where it has never been linked", function()
    local child = start(JOBS, "--listen", "127.0.0.1:0",
      { env = { DATABASE_URL = "host=/nonexistent dbname=x user=x" } })
    local port = port_of(child)
    t.wait_until(function() return ask(port, "/readyz") == 503 end, SOON, "not ready")
    local _, body = ask(port, "/readyz")
    assert.equal("not linked to the database yet\n", body)
    assert.equal(0, value(scrape(port), "up"))
    assert.equal(0, stop(child))
  end)
end)
