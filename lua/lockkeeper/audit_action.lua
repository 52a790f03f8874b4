--- What audits do about what they find, where they may (--act), under the rules of locks.md 15 to 17: one
--- statement a session, which must still be the one that was seen and, of a blocker, still block; some are
--- never touched; every action is one line in the log.
local audit = require "lockkeeper.audit"
local core = require "lockkeeper.core"
local kill = require "lockkeeper.kill"
local query = require "lockkeeper.query"
local untouchable = require "lockkeeper.untouchable"

local audit_action = {}

local function log(level, text, fields)
  local names, values = {}, {}
  for _, pair in ipairs(fields) do
    if pair[2] ~= nil then
      names[#names + 1], values[#values + 1] = pair[1], tostring(pair[2])
    end
  end
  core.log(level, text, names, values)
end

-- The pids that a function of the audit's wants, each with what is known of it.
local function chosen(definition, finding, a, problems)
  local ok, pids = pcall(definition.action, finding)
  if not ok then
    if type(pids) == "table" and (pids.kind == "cancelled" or pids.kind == "timed_out") then
      error(pids, 0)
    end
    problems[#problems + 1] = "action failed: " .. audit.text_of(pids)
    return {}
  elseif pids == nil then
    return {}
  elseif type(pids) ~= "table" then
    problems[#problems + 1] = "action must return a list of pids, not a " .. type(pids)
    return {}
  end
  local targets = {}
  for i, pid in ipairs(pids) do
    if math.type(pid) ~= "integer" then
      problems[#problems + 1] = ("action must return a list of pids; element %d is a %s"):format(i, type(pid))
    else
      local row = pid ~= finding.pid and a:locks({ pid = pid, limit = 1 })[1]
      local is_blocker = pid == finding.pid
      targets[#targets + 1] = { pid = pid, activity = is_blocker and finding.activity
        or row and row.activity or nil, blocks = is_blocker and finding.blocks or nil, finding = finding }
    end
  end
  return targets
end

-- Whom the findings mean, each session once.
local function targets_of(definition, findings, a, problems)
  local list, seen = {}, {}
  for _, finding in ipairs(findings) do
    local targets
    if type(definition.action) == "function" then
      targets = chosen(definition, finding, a, problems)
    elseif finding.pid or finding.gid then
      targets = { { pid = finding.pid, activity = finding.activity, blocks = finding.blocks,
        finding = finding } }
    end
    for _, target in ipairs(targets or {}) do
      local key = target.pid or "gid " .. tostring(target.finding.gid)
      local known = seen[key]
      if known and known.blocks and target.blocks then
        table.move(target.blocks, 1, #target.blocks, #known.blocks + 1, known.blocks)
      elseif not known then
        target.blocks = target.blocks and table.move(target.blocks, 1, #target.blocks, 1, {})
        seen[key], list[#list + 1] = target, target
      end
    end
  end
  return list
end

-- Our own sessions.
local function own_pids()
  local pids = {}
  for session in pairs(core.connected_sessions()) do
    pids[core.backend_pid(session) or 0] = true
  end
  return pids
end

local function why_untouched(definition, target, own, marked)
  local activity = target.activity
  if own[target.pid or -1] then
    return "it is a session of this process"
  elseif marked[target.pid or -1] then
    return marked[target.pid]
  elseif not activity then
    return "it holds no lock in the snapshot"
  end
  local reason = untouchable.reason(activity)
  if reason then
    return reason
  end
  for _, wanted in ipairs(definition.protect) do
    if wanted:matches(activity) then
      return "the audit protects it"
    end
  end
end

local DONE = {
  signalled = { cancel = "cancelled the statement of %s", terminate = "terminated %s" },
  dry_run = { cancel = "would cancel the statement of %s", terminate = "would terminate %s" },
}

local function tell(definition, target, outcome)
  local activity, finding = target.activity or {}, target.finding
  local done = DONE[outcome.result]
  local text = (done and done[outcome.action] or "could not " .. outcome.action .. " %s"):format(
    target.pid and ("pid %d"):format(target.pid) or "a prepared transaction")
  log(done and outcome.ended ~= false and "info" or "warning", text, {
    { "audit", definition.name }, { "action", outcome.action }, { "result", outcome.result },
    { "pid", target.pid }, { "gid", activity.gid }, { "user", activity.user },
    { "application", activity.application_name }, { "state", activity.state },
    { "age", activity.xact_duration and ("%.3f"):format(activity.xact_duration) },
    { "query", activity.query }, { "why", finding.message },
    { "waiter", target.blocks and target.blocks[1] }, { "sqlstate", outcome.sqlstate },
    { "reason", outcome.message }, { "hint", outcome.hint },
  })
end

--- Do what the audit says about what it has found. What fails is logged; the functions of the audit's that
--- fail are told in `problems`.
---@param session Session              to the database that was looked at
---@param definition AuditDefinition
---@param a AuditSnapshot
---@param findings Finding[]
---@param problems string[]
---@param dry_run? boolean             ask all that is asked, but touch nobody
---@return KillOutcome[]
function audit_action.run(session, definition, a, findings, problems, dry_run)
  local action = type(definition.action) == "function" and "terminate" or definition.action
  local wanted = targets_of(definition, findings, a, problems)
  if #wanted == 0 then
    return {}
  end
  local own = own_pids()
  return query.asker_of(core.session(session))(function(side)
    local marked, targets = untouchable.marked(side), {}
    own[side.pid] = true
    for _, target in ipairs(wanted) do
      local why = why_untouched(definition, target, own, marked)
      if why then
        log("info", ("%s is left alone: %s"):format(audit.who(target.pid, target.activity), why),
          { { "audit", definition.name }, { "pid", target.pid } })
      else
        target.backend_start, target.gid = target.activity.backend_start, target.activity.gid
        target.blocks_any = target.blocks
        targets[#targets + 1] = target
      end
    end
    local outcomes = kill.signal(side, action, targets, { dry_run = dry_run })
    for i, outcome in ipairs(outcomes) do
      targets[i].finding.outcome = outcome
      tell(definition, targets[i], outcome)
    end
    return outcomes
  end)
end

--- May an audit act? By what --act said.
---@param allowed boolean|string[]|nil  all, or those of these names
---@param name string
---@return boolean
function audit_action.is_allowed(allowed, name)
  if type(allowed) == "table" then
    for _, one in ipairs(allowed) do
      if one == name then
        return true
      end
    end
    return false
  end
  return allowed == true
end

return audit_action
