--- Audits: lock.audit, what is wrong with the locks of a database at one moment.
--
-- An audit is a function of a snapshot (lockkeeper.audit_snapshot): find(a) returns what it has found, as
-- rows of a:locks and a:blocked, nodes or edges of a:graph, or findings of its own making, or a list of
-- these. A finding: { message =, subject =, severity =, advice =, row =, pid = }; what is left out comes
-- from the audit, or from the row. What a finding is about, its subject, tells it from others of its audit:
-- while it is found again it is the same finding.
local core = require "lockkeeper.core"
local described = require "lockkeeper.report.object"
local field = require "lockkeeper.report.field"
local safe = require "lockkeeper.report.safe"
local sets = require "lockkeeper.definition_set"
local span = require "lockkeeper.report.span"
local untouchable = require "lockkeeper.untouchable"
local validation = require "lockkeeper.validation"

-- Kept, since a file that is loaded may replace what it finds.
local type, tostring, ipairs, next = type, tostring, ipairs, next
local pcall, setmetatable = pcall, setmetatable

local audit = {}

---@alias Severity "info"|"warning"|"critical"

---@class AuditSpec
---@field find fun(a: AuditSnapshot): any      rows or findings
---@field every? number|string                 how often serve runs it; without it serve does not
---@field severity? Severity                   of findings that do not say; default "warning"
---@field message? string|fun(item: table): string  what to say of a row
---@field advice? string|fun(finding: Finding): string?   what to do about it
---@field description? string                  what it means that it finds something
---@field action? "cancel"|"terminate"|fun(finding: Finding): integer[]?
---  what to do where acting is allowed (--act): to the row's session, of a blocked row to the blocker; a
---  function returns the pids to terminate
---@field protect? table|table[]|fun(session: Activity): any  sessions that the action never touches
---@field on_open? fun(finding: Finding)       once, when it is found first
---@field on_close? fun(finding: Finding)      once, when it is not found any more
---@field using? string                        the database that it looks at
---@field enabled? boolean
---@field max_run? number|string               how long find and the functions may take together; default 10 s

---@class AuditDefinition : AuditSpec
---@field name string
---@field file string
---@field line? integer
---@field every? number    seconds
---@field max_run number   seconds
---@field protect Filter[]

---@class Finding
---@field audit string
---@field subject string
---@field severity Severity
---@field message string
---@field advice? string
---@field row? table           what find returned
---@field pid? integer         the session that an action would hit
---@field gid? string          of a prepared transaction, which no action can hit
---@field activity? Activity   of that session
---@field blocks? integer[]    pids that wait for it
---@field opened_at? number    epoch seconds: since when it is found
---@field closed_at? number
---@field is_new? boolean      it was not found the last time

local KEYS = { "find", "every", "severity", "message", "advice", "description", "action", "protect",
  "on_open", "on_close", "using", "enabled", "max_run" }

local FINDING_KEYS = { "message", "subject", "severity", "advice", "row", "pid" }

--- The severities, from the least on.
audit.SEVERITIES = { "info", "warning", "critical" }

local RANKS = {}
for i, severity in ipairs(audit.SEVERITIES) do
  RANKS[severity] = i
end

local MAX_RUN = 10 -- seconds

-- Findings of one audit at most; more say nothing more.
local MOST = 1000

-- Bytes of a text that an audit makes.
local TEXT_MAX = 4096

--- Which of two severities is the greater: 1, 2 or 3.
---@param severity Severity
---@return integer
function audit.rank(severity)
  return RANKS[severity]
end

---------------------------------------------------------------------------------------------------
-- definitions

local function text_or_function(value, what, fault)
  if type(value) == "function" then
    return value
  elseif type(value) ~= "string" then
    return fault(("%s must be a text or a function, not %s"):format(what, validation.described(value)))
  end
  return validation.text(value, what, fault)
end

local function action_of(value, what, fault)
  if type(value) == "function" then
    return value
  end
  return validation.choice(value, what, fault, { "terminate", "cancel" })
end

local function positive(value, what, fault)
  return validation.duration(value, what, fault, {})
end

local function severity_of(value, what, fault)
  return validation.choice(value, what, fault, audit.SEVERITIES)
end

local function filters_of(value, what, fault)
  return validation.try(fault, untouchable.filters, value, what)
end

local CHECKS = {
  find = validation.callable, every = positive, severity = severity_of, message = text_or_function,
  advice = text_or_function, description = validation.text, action = action_of, protect = filters_of,
  on_open = validation.callable, on_close = validation.callable, using = validation.text,
  enabled = validation.boolean, max_run = positive,
}

local AUDIT = {
  __name = "lockkeeper.Audit",
  __tostring = function(self)
    return ("audit %s (%s)"):format(validation.described(self.name), sets.place_text(self))
  end,
}

--- Define an audit.
---@param name string
---@param spec AuditSpec
function audit.define(name, spec)
  local set, where, fault = sets.begin_definition("audit", name, spec)
  if not fault then
    return
  elseif set.configuration then
    return fault("audits belong in files of their own, not in the configuration")
  elseif set.audits[name] then
    return fault(("two audits have this name: here and at %s"):format(sets.place_text(set.audits[name])))
  end
  validation.keys(spec, KEYS, fault)
  local definition = setmetatable({ name = name, file = where.file, line = where.line }, AUDIT)
  for _, key in ipairs(KEYS) do
    if spec[key] ~= nil then
      definition[key] = CHECKS[key](spec[key], key, fault)
    end
  end
  if spec.find == nil then
    fault("find is missing: a function of a snapshot")
  end
  definition.severity = definition.severity or "warning"
  definition.max_run = definition.max_run or MAX_RUN
  definition.protect = definition.protect or {}
  definition.enabled = definition.enabled ~= false
  sets.add(set.audits, definition)
end

---------------------------------------------------------------------------------------------------
-- what find returned: what each thing in it is about

-- "pid 4711 (shop, gunicorn web-3)"
local function who(pid, activity)
  activity = activity or {}
  if not pid then
    return activity.gid and ("prepared transaction '%s'"):format(activity.gid) or "nobody"
  end
  local words = {}
  for _, name in ipairs { "user", "application_name" } do
    if (activity[name] or "") ~= "" then
      words[#words + 1] = activity[name]
    end
  end
  return #words > 0 and ("pid %d (%s)"):format(pid, table.concat(words, ", ")) or ("pid %d"):format(pid)
end
audit.who = who

-- A pid alone names no session for long.
local function session_word(pid, activity)
  if not pid then
    return activity and activity.gid and ("prepared '%s'"):format(activity.gid) or "nobody"
  end
  local start = activity and activity.backend_start
  return start and ("pid %d since %s"):format(pid, field.instant(start)) or ("pid %d"):format(pid)
end

local function object_of(row)
  return described(row) or "something"
end

---@class FoundKind
---@field matches fun(item: table): boolean
---@field about fun(item: table): string, string, integer?, Activity?, integer[]?
---  its subject, what to say of it, and whom an action hits

---@type FoundKind[]
local KINDS = {
  { -- a row of a:blocked
    matches = function(item) return item.blocking_activity ~= nil end,
    about = function(item)
      local blocker, activity = item.blocking_pid, item.blocking_activity
      return ("%s waits for %s on %s, behind %s"):format(session_word(item.pid, item.activity), item.mode,
          object_of(item), session_word(blocker, activity)),
        ("%s has waited %s for %s on %s, behind %s"):format(who(item.pid, item.activity),
          span(item.wait_duration or 0), item.mode, object_of(item), who(blocker, activity)),
        blocker, activity, { item.pid }
    end,
  },
  { -- a row of a:locks
    matches = function(item) return item.mode ~= nil and item.granted ~= nil end,
    about = function(item)
      local holds = item.granted and "holds" or "waits for"
      return ("%s %s %s on %s"):format(session_word(item.pid, item.activity), holds, item.mode,
          object_of(item)),
        ("%s %s %s on %s"):format(who(item.pid, item.activity), holds, item.mode, object_of(item)),
        item.pid, item.activity
    end,
  },
  { -- an edge of a:graph
    matches = function(item) return item.waiter_pid ~= nil and item.lock ~= nil end,
    about = function(item)
      local activity = { pid = item.blocker_pid, gid = item.blocker_gid }
      return ("pid %d waits for %s on %s, behind %s"):format(item.waiter_pid, item.requested_mode,
          object_of(item.lock), session_word(item.blocker_pid, activity)),
        ("pid %d has waited %s for %s on %s, behind %s"):format(item.waiter_pid, span(item.waited or 0),
          item.requested_mode, object_of(item.lock), who(item.blocker_pid, activity)),
        item.blocker_pid, activity, { item.waiter_pid }
    end,
  },
  { -- a node of a:graph
    matches = function(item) return item.class ~= nil and item.behind ~= nil end,
    about = function(item)
      return session_word(item.pid, item.activity),
        ("%s blocks %d"):format(who(item.pid, item.activity), item.behind), item.pid, item.activity
    end,
  },
}

local function kind_of(item)
  for _, kind in ipairs(KINDS) do
    if kind.matches(item) then
      return kind
    end
  end
end

local function cut(text)
  text = safe.utf8(text)
  if #text <= TEXT_MAX then
    return text
  end
  return text:sub(1, utf8.offset(text, 0, TEXT_MAX + 1) - 1) .. "…"
end

local function failure(definition, message, ...)
  core.usage(("audit %s: %s"):format(validation.described(definition.name), message:format(...)))
end

-- A text of the audit's, or what its function says of the item.
local function said(definition, key, item)
  local value = definition[key]
  if type(value) == "function" then
    value = value(item)
    if type(value) ~= "string" and (value ~= nil or key == "message") then
      failure(definition, "%s must return a text, not %s", key, validation.described(value))
    end
  end
  return value
end

-- The activity of a session of the snapshot.
local function activity_of(a, pid)
  local row = pid and a:locks({ pid = pid, limit = 1 })[1]
  return row and row.activity
end

local function of_own_making(definition, item, a)
  local problem
  validation.keys(item, FINDING_KEYS, function(message) problem = problem or message end)
  if problem then
    failure(definition, "a finding has an %s", problem)
  elseif item.message ~= nil and type(item.message) ~= "string" then
    failure(definition, "a finding's message must be a text, not %s", validation.described(item.message))
  elseif item.subject ~= nil and type(item.subject) ~= "string" then
    failure(definition, "a finding's subject must be a text, not %s", validation.described(item.subject))
  elseif item.severity ~= nil and not RANKS[item.severity] then
    failure(definition, "a finding's severity must be %s, not %s", validation.listed(audit.SEVERITIES),
      validation.described(item.severity))
  elseif item.advice ~= nil and type(item.advice) ~= "string" then
    failure(definition, "a finding's advice must be a text, not %s", validation.described(item.advice))
  elseif item.pid ~= nil and math.type(item.pid) ~= "integer" then
    failure(definition, "a finding's pid must be a whole number, not %s", validation.described(item.pid))
  end
  local row = item.row
  local kind = type(row) == "table" and kind_of(row)
  local subject, message, pid, activity, blocks
  if kind then
    subject, message, pid, activity, blocks = kind.about(row)
  end
  if item.pid and item.pid ~= pid then
    pid, activity, blocks = item.pid, activity_of(a, item.pid), nil
  end
  message = item.message or definition.message and said(definition, "message", row or item) or message
  if not message then
    failure(definition, "a finding has neither a message nor a row")
  end
  return {
    subject = item.subject or subject or message, message = message,
    severity = item.severity or definition.severity,
    advice = item.advice,
    row = row, pid = pid, activity = activity, blocks = blocks,
  }
end

local function of_row(definition, item, kind)
  local subject, message, pid, activity, blocks = kind.about(item)
  return {
    subject = subject, message = definition.message and said(definition, "message", item) or message,
    severity = definition.severity,
    row = item, pid = pid, activity = activity, blocks = blocks,
  }
end

---@return Finding
local function finding_of(definition, item, a)
  if type(item) ~= "table" then
    failure(definition, "find must return rows or findings, not %s", validation.described(item))
  end
  local kind = kind_of(item)
  local finding = kind and of_row(definition, item, kind) or of_own_making(definition, item, a)
  finding.audit = definition.name
  finding.subject, finding.message = cut(finding.subject), cut(finding.message)
  finding.gid = finding.activity and finding.activity.gid
  local advice = finding.advice or said(definition, "advice", finding)
  finding.advice = advice and cut(advice)
  return finding
end

-- Of the returned: is it one thing, and not a list of them?
local function is_single(found)
  return kind_of(found) ~= nil or type(found.message) == "string" or found.subject ~= nil
    or type(found.row) == "table"
end

--- What the audit finds in a snapshot, each subject once, the most severe first. Raises what `find` raises,
--- and a usage error where it returns something else than rows and findings.
---@param definition AuditDefinition
---@param a AuditSnapshot
---@return Finding[]
function audit.find(definition, a)
  local found = definition.find(a)
  if found == nil or found == false then
    return {}
  elseif type(found) ~= "table" then
    failure(definition, "find must return rows or findings, not %s", validation.described(found))
  elseif is_single(found) then
    found = { found }
  elseif #found == 0 and next(found) ~= nil then
    failure(definition, "find must return rows or findings, not a table with the key %s",
      validation.described((next(found))))
  end
  local findings, seen, order = {}, {}, {}
  for _, item in ipairs(found) do
    if #findings == MOST then
      core.log("warning", ("the audit %s has found more than %d things: the others are left out"):format(
        definition.name, MOST), { "audit" }, { definition.name })
      break
    end
    local finding = finding_of(definition, item, a)
    local known = seen[finding.subject]
    if not known then
      seen[finding.subject] = finding
      findings[#findings + 1], order[finding] = finding, #findings + 1
    elseif RANKS[finding.severity] > RANKS[known.severity] then
      known.severity, known.message, known.advice = finding.severity, finding.message, finding.advice
    end
  end
  table.sort(findings, function(x, y)
    if x.severity ~= y.severity then
      return RANKS[x.severity] > RANKS[y.severity]
    end
    return order[x] < order[y]
  end)
  return findings
end

---------------------------------------------------------------------------------------------------
-- one round of an audit

-- What was raised as one line.
local function text_of(err)
  local ok, text = pcall(tostring, type(err) == "table" and err.message or err)
  return ok and text or "an error whose __tostring fails"
end
audit.text_of = text_of

local function call_back(definition, key, finding, problems)
  local fn = definition[key]
  if not fn then
    return
  end
  local ok, err = pcall(fn, finding)
  if not ok then
    if type(err) == "table" and (err.kind == "cancelled" or err.kind == "timed_out") then
      error(err, 0)
    end
    problems[#problems + 1] = ("%s failed: %s"):format(key, text_of(err))
  end
end

---@class AuditRound
---@field findings Finding[]
---@field opened Finding[]
---@field closed Finding[]
---@field problems string[]   what else went wrong: functions of the audit's that failed

--- Look, remember what is new and what is over, call on_open and on_close, and act.
---@param definition AuditDefinition
---@param a AuditSnapshot
---@param book? AuditBook                     nil: nothing is remembered, and nobody called
---@param act? fun(findings: Finding[], problems: string[])
---@return AuditRound
function audit.round(definition, a, book, act)
  local findings, problems = audit.find(definition, a), {}
  local opened, closed = {}, {}
  if book then
    opened, closed = book:settle(definition.name, findings, a.taken_at)
    for _, finding in ipairs(opened) do
      call_back(definition, "on_open", finding, problems)
    end
    for _, finding in ipairs(closed) do
      call_back(definition, "on_close", finding, problems)
    end
  end
  if act and definition.action and #findings > 0 then
    act(findings, problems)
  end
  return { findings = findings, opened = opened, closed = closed, problems = problems }
end

return audit
