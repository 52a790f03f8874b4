--- What the specs of audits use: a database of their own with a table `orders`, sessions that hold and wait
--- for locks in it, and `lockkeeper audit` run on it.
local lock = require "lockkeeper"
local t = require "tests.support"
local target = require "tests.support.target"

local json = lock.json

---@class AuditSupport
---@field database string  the one that exists now
local audits = {}

audits.HEAD = 'local lock = require "lockkeeper"\n'

function audits.conninfo(opts)
  local all = { dbname = audits.database }
  for name, value in pairs(opts or {}) do
    all[name] = value
  end
  return t.conninfo(all)
end

function audits.connect(application)
  return lock.connect { conninfo = audits.conninfo { application_name = application } }
end

function audits.file(text, name)
  return t.tempfile(audits.HEAD .. text, name or "audits.lua")
end

-- Run a command on the database: code, stdout, stderr.
function audits.run(...)
  local words = { ... }
  local opts = type(words[#words]) == "table" and table.remove(words) or {}
  opts.env = opts.env or {}
  opts.env.DATABASE_URL = opts.env.DATABASE_URL or audits.conninfo()
  words[#words + 1] = opts
  return t.run(table.unpack(words))
end

function audits.audit(...)
  return audits.run("audit", ...)
end

-- What it found, as JSON, by the audit's name: lists.
function audits.found(...)
  local words = { ... }
  words[#words + 1] = "--format"
  words[#words + 1] = "json"
  local code, out, err = audits.audit(table.unpack(words))
  local by_audit, count = {}, 0
  for _, finding in ipairs(json.decode(out)) do
    by_audit[finding.audit] = by_audit[finding.audit] or {}
    table.insert(by_audit[finding.audit], finding)
    count = count + 1
  end
  return by_audit, count, code, err
end

-- A psql that runs SQL; returns it and its backend.
function audits.background(name, sql)
  local child = t.spawn { target.bindir() .. "/psql", "-Xqd", audits.conninfo(), "-c", sql,
    env = { PGAPPNAME = name } }
  local pid = t.wait_until(function()
    local text = t.observe(("select pid from pg_stat_activity where application_name = '%s'"):format(name))
    return text ~= "" and math.tointeger(text)
  end, name)
  return child, pid
end

function audits.waiting(name, sql)
  local child, pid = audits.background(name, sql)
  t.wait_until(function() return t.is_waiting(pid) end, name .. " to wait")
  return child, pid
end

function audits.make_database(name)
  audits.database = name
  t.psql("create database " .. audits.database)
  t.psql("create table orders (id int primary key, state text); insert into orders values (1, 'new')",
    { dbname = audits.database })
end

function audits.drop_database()
  t.psql(("drop database %s with (force)"):format(audits.database))
end

-- A session that locks a table and does no more.
function audits.idle_holder(application)
  local session = audits.connect(application or "web")
  session:exec("begin")
  session:exec("lock table orders in access exclusive mode")
  return session
end

-- The example of lua-api.md, for any time that it is idle.
audits.IDLE_HOLDERS = [[
lock.audit("idle-holders", { severity = "critical", %s
  find = function(a)
    return a:locks { state = "idle in transaction", granted = true, mode = "ACCESS EXCLUSIVE", on = "orders" }
  end,
  message = function(l)
    return ("%%s holds %%s on %%s"):format(l.activity.application_name, l.mode, l.relation)
  end,
})
]]

function audits.idle_holders(more)
  return audits.file(audits.IDLE_HOLDERS:format(more or ""))
end

return audits
