--- Which findings are open: in the table lockkeeper.finding, where it is and this role may write to it, else
--- in this process.
--
-- A finding is opened when it is found and not open, and closed when its audit has looked later and not
-- found it. In the table that holds over all processes and hosts: whoever opens or closes it is told so, and
-- nobody else is.
local core = require "lockkeeper.core"

local audit_book = {}

---@class AuditBook
---@field session? Session  nil: it is kept in this process
---@field open table<string, table<string, Finding>>  by audit and subject
local Book = {}
Book.__index = Book

-- Whoever holds a lock on the table must not hold an audit up for long.
local PATIENCE_SQL = [[
SELECT pg_catalog.set_config('lock_timeout', '2s', true),
       pg_catalog.set_config('synchronous_commit', 'on', true)]]

local USABLE_SQL = [[
SELECT COALESCE(pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('lockkeeper'), 'USAGE')
   AND pg_catalog.has_table_privilege(pg_catalog.to_regclass('lockkeeper.finding'), 'SELECT')
   AND pg_catalog.has_table_privilege(pg_catalog.to_regclass('lockkeeper.finding'), 'INSERT')
   AND pg_catalog.has_table_privilege(pg_catalog.to_regclass('lockkeeper.finding'), 'UPDATE'), false)
   AND NOT pg_catalog.pg_is_in_recovery()]]

-- First, in one order for all, so that two rounds of an audit wait for each other and don't deadlock.
local HOLD_SQL = [[
SELECT f.id FROM lockkeeper.finding f
 WHERE f.audit OPERATOR(pg_catalog.=) $1 AND f.closed_at IS NULL
 ORDER BY f.id FOR UPDATE]]

-- $2 subjects, $3 severities, $4 messages, $5 details, $6 the snapshot's moment. Not what a later look has
-- closed.
local OPEN_SQL = [[
INSERT INTO lockkeeper.finding (audit, subject, severity, message, detail, opened_at, last_seen)
SELECT $1, n.subject, n.severity, n.message, n.detail::pg_catalog.jsonb, pg_catalog.to_timestamp($6),
       pg_catalog.to_timestamp($6)
  FROM ROWS FROM (pg_catalog.unnest($2::pg_catalog.text[]), pg_catalog.unnest($3::pg_catalog.text[]),
         pg_catalog.unnest($4::pg_catalog.text[]), pg_catalog.unnest($5::pg_catalog.text[]))
         AS n(subject, severity, message, detail)
 WHERE NOT EXISTS (SELECT FROM lockkeeper.finding f
        WHERE f.audit OPERATOR(pg_catalog.=) $1 AND f.subject OPERATOR(pg_catalog.=) n.subject
          AND f.closed_at OPERATOR(pg_catalog.>=) pg_catalog.to_timestamp($6))
 ORDER BY n.subject
    ON CONFLICT (audit, subject) WHERE closed_at IS NULL DO NOTHING
RETURNING subject]]

local SEEN_SQL = [[
UPDATE lockkeeper.finding f
   SET severity = n.severity, message = n.message, detail = n.detail::pg_catalog.jsonb,
       last_seen = GREATEST(f.last_seen, pg_catalog.to_timestamp($6))
  FROM ROWS FROM (pg_catalog.unnest($2::pg_catalog.text[]), pg_catalog.unnest($3::pg_catalog.text[]),
         pg_catalog.unnest($4::pg_catalog.text[]), pg_catalog.unnest($5::pg_catalog.text[]))
         AS n(subject, severity, message, detail)
 WHERE f.audit OPERATOR(pg_catalog.=) $1 AND f.subject OPERATOR(pg_catalog.=) n.subject
   AND f.closed_at IS NULL
RETURNING f.subject, EXTRACT(epoch FROM f.opened_at)::pg_catalog.float8 AS opened_at]]

-- Not what a later look has seen.
local CLOSE_SQL = [[
UPDATE lockkeeper.finding f
   SET closed_at = GREATEST(pg_catalog.to_timestamp($3), f.opened_at)
 WHERE f.audit OPERATOR(pg_catalog.=) $1 AND f.closed_at IS NULL
   AND f.last_seen OPERATOR(pg_catalog.<) pg_catalog.to_timestamp($3)
   AND f.subject OPERATOR(pg_catalog.<>) ALL ($2::pg_catalog.text[])
RETURNING f.subject, f.severity, f.message, f.detail,
          EXTRACT(epoch FROM f.opened_at)::pg_catalog.float8 AS opened_at,
          EXTRACT(epoch FROM f.closed_at)::pg_catalog.float8 AS closed_at]]

--- Of this process only.
---@return AuditBook
function audit_book.in_memory()
  return setmetatable({ open = {} }, Book)
end

-- Errors after which there is no use in going on without the table.
local FATAL = { connection = true, lock_lost = true, cancelled = true, timed_out = true, usage = true }

local function is_usable(session)
  local ok, usable = pcall(function()
    local version = core.schema_version(session)
    return version ~= 0 and version == core.schema_newest() and session:value(USABLE_SQL)
  end)
  if not ok and (type(usable) ~= "table" or FATAL[usable.kind]) then
    error(usable, 0)
  end
  return ok and usable
end

--- In the database's table, if that can be.
---@param session Session  in no transaction
---@return AuditBook
function audit_book.new(session)
  local self = audit_book.in_memory()
  self.session = is_usable(session) and session or nil
  return self
end

-- What the table keeps of a finding besides: no rows, which may be anything.
local function detail_of(finding)
  local activity = finding.activity or {}
  return core.json.encode {
    advice = finding.advice, pid = finding.pid, gid = finding.gid, user = activity.user,
    application_name = activity.application_name, database = activity.database,
  }
end

-- A text that PostgreSQL takes.
local function stored(text)
  return (text:gsub("\0", "\\0"))
end

local function settle_in_table(session, name, findings, taken_at)
  local subjects, severities, messages, details = core.array {}, core.array {}, core.array {}, core.array {}
  local by_subject = {}
  for i, finding in ipairs(findings) do
    subjects[i], severities[i] = stored(finding.subject), finding.severity
    messages[i], details[i] = stored(finding.message), detail_of(finding)
    by_subject[subjects[i]] = finding
  end
  local opened, closed = {}, {}
  session:transaction(function(tx)
    tx:query(PATIENCE_SQL)
    tx:query(HOLD_SQL, name)
    if #findings > 0 then
      for _, row in ipairs(tx:query(OPEN_SQL, name, subjects, severities, messages, details, taken_at)) do
        local finding = by_subject[row.subject]
        finding.is_new = true
      end
      for _, row in ipairs(tx:query(SEEN_SQL, name, subjects, severities, messages, details, taken_at)) do
        local finding = by_subject[row.subject]
        finding.opened_at = row.opened_at
      end
    end
    for _, row in ipairs(tx:query(CLOSE_SQL, name, subjects, taken_at)) do
      local detail = row.detail or {}
      closed[#closed + 1] = {
        audit = name, subject = row.subject, severity = row.severity, message = row.message,
        advice = detail.advice, pid = detail.pid, gid = detail.gid, opened_at = row.opened_at,
        closed_at = row.closed_at,
      }
    end
  end)
  for _, finding in ipairs(findings) do
    if finding.is_new then
      opened[#opened + 1] = finding
    end
  end
  return opened, closed
end

local function settle_in_memory(self, name, findings, taken_at)
  local before, now, opened, closed = self.open[name] or {}, {}, {}, {}
  for _, finding in ipairs(findings) do
    local known = before[finding.subject]
    finding.opened_at = known and known.opened_at or taken_at
    if not known then
      finding.is_new = true
      opened[#opened + 1] = finding
    end
    now[finding.subject] = finding
  end
  for subject, finding in pairs(before) do
    if not now[subject] then
      finding.closed_at, finding.is_new = taken_at, nil
      closed[#closed + 1] = finding
    end
  end
  table.sort(closed, function(a, b) return a.subject < b.subject end)
  self.open[name] = now
  return opened, closed
end

--- Remember what an audit has found at a moment. Each finding learns since when it is open; those that are
--- new, and those that are over, are returned. Where the table can't be had, that is said, and from then on
--- this process remembers.
---@param name string        the audit's
---@param findings Finding[]
---@param taken_at number
---@return Finding[] opened
---@return Finding[] closed
function Book:settle(name, findings, taken_at)
  if self.session then
    local ok, opened, closed = pcall(settle_in_table, self.session, name, findings, taken_at)
    if ok then
      return opened, closed
    elseif type(opened) ~= "table" or FATAL[opened.kind] then
      error(opened, 0)
    end
    core.log("warning", "findings can't be kept in the database: " .. tostring(opened.message), { "audit" },
      { name })
    for _, finding in ipairs(findings) do
      finding.is_new, finding.opened_at = nil, nil
    end
    self.session = nil
  end
  return settle_in_memory(self, name, findings, taken_at)
end

return audit_book
