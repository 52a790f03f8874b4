--- Cancelling and terminating sessions of others (locks.md 15).
--
-- One statement a pid, and a pid alone never names a session: the moment at which its backend began
-- is in the same condition, so that another session which got the number meanwhile is not hit.
-- Activity is read by pg_stat_get_activity, not through the view, which would wait behind ACCESS
-- EXCLUSIVE on pg_authid or pg_database.
local core = require "lockkeeper.core"

local kill = {}

-- The first %s: a condition under which the action would change nothing; the second: what does it.
local SIGNAL_SQL = [[
SELECT CASE WHEN a.backend_start IS NULL THEN 'hidden'
            WHEN $2::pg_catalog.float8 IS NULL THEN 'unknown'
            WHEN EXISTS (SELECT
              FROM pg_catalog.generate_series(2, pg_catalog.cardinality($3::pg_catalog.int4[])) i
             WHERE ($3::pg_catalog.int4[])[i OPERATOR(pg_catalog.-) 1] OPERATOR(pg_catalog.<>)
                   ALL (pg_catalog.pg_blocking_pids(($3::pg_catalog.int4[])[i]))) THEN 'released'
            WHEN pg_catalog.cardinality($4::pg_catalog.int4[]) OPERATOR(pg_catalog.>) 0 AND NOT EXISTS (SELECT
              FROM pg_catalog.unnest($4::pg_catalog.int4[]) waiter
             WHERE a.pid OPERATOR(pg_catalog.=) ANY (pg_catalog.pg_blocking_pids(waiter))) THEN 'released'
            WHEN %s THEN 'idle'
            WHEN %s THEN 'sent'
            ELSE 'gone' END
  FROM pg_catalog.pg_stat_get_activity($1::pg_catalog.int4) a
 WHERE a.pid OPERATOR(pg_catalog.=) $1::pg_catalog.int4 -- the function takes -1 for all
   AND (a.backend_start IS NULL OR $2::pg_catalog.float8 IS NULL
        OR a.backend_start OPERATOR(pg_catalog.=) pg_catalog.to_timestamp($2::pg_catalog.float8))]]

-- The server answers a cancel of a session that runs no statement with true, and nothing happens.
local IDLE = "a.state OPERATOR(pg_catalog.~~) 'idle%'"

local SQL = {
  cancel = SIGNAL_SQL:format(IDLE, "pg_catalog.pg_cancel_backend(a.pid)"),
  terminate = SIGNAL_SQL:format("false", "pg_catalog.pg_terminate_backend(a.pid)"),
}

-- The same questions, and nobody is touched.
local DRY_SQL = {
  cancel = SIGNAL_SQL:format(IDLE, "true"),
  terminate = SIGNAL_SQL:format("false", "true"),
}

local ME_SQL = "SELECT pg_catalog.quote_ident(CURRENT_USER)"

-- Whose session it is. pg_roles may be locked by somebody: the caller does without it then.
local OWNER_SQL = [[
SELECT a.usesysid IS NULL AS is_system,
       (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) a.usesysid)
         AS is_superuser
  FROM pg_catalog.pg_stat_get_activity($1::pg_catalog.int4) a]]

local LEFT_SQL = [[
SELECT a.pid, EXTRACT(epoch FROM a.backend_start)::pg_catalog.float8 AS backend_start
  FROM pg_catalog.pg_stat_get_activity(NULL) a
 WHERE a.pid OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.int4[])]]

local INSUFFICIENT_PRIVILEGE = "42501"

-- Seconds: how long to wait for terminated sessions to go, and between two looks at first and at most.
local VERIFY, PAUSE_MIN, PAUSE_MAX = 2, 0.001, 0.02

---@class KillTarget
---@field pid integer             0 or nil: a prepared transaction, which has no session
---@field backend_start? number   epoch seconds; nil where this role may not see it
---@field still_blocks? integer[] instead of options.still_blocks: it must block the first of these
---                               pids, which must block the second, and so on
---@field blocks_any? integer[]   it must block one of these pids, whichever
---@field gid? string             a prepared transaction's name

---@class KillOptions
---@field still_blocks? integer   a pid that the target must still block
---@field dry_run? boolean         ask all that is asked, but touch nobody
---@field verify? number|false    seconds to wait until terminated sessions are gone; default 2
---@field stop? fun(): boolean    true: signal nobody else, and wait no longer: what was not done is left
---                               out of the outcomes

---@class KillOutcome
---@field pid integer
---@field action "cancel"|"terminate"
---@field result "signalled"|"dry_run"|"gone"|"no_effect"|"refused"|"failed"
--- gone: no such session any more, or it does not block any more; no_effect: a cancel of a session that
--- runs no statement; refused: this role may not, or nobody can; failed: any other error
---@field ended? boolean          of a terminated one: was it gone within `verify`? nil: not known
---@field sqlstate? string
---@field message? string
---@field hint? string            what to grant, or to do instead

-- Epoch seconds as whole microseconds, which PostgreSQL counts in; a float holds them exactly.
local function microseconds(seconds)
  return math.floor(seconds * 1e6 + 0.5)
end

-- Errors after which the session can't be asked anything more.
local ENDS_ALL = { connection = true, lock_lost = true, cancelled = true }

-- The first column of a statement's first row, or nil and an error of the server's or the
-- connection's. Any other, such as a stock Lua's Ctrl-C, goes on.
local function ask(method, session, sql, ...)
  local ok, result = pcall(session[method], session, sql, ...)
  if ok then
    return result
  elseif type(result) ~= "table" or type(result.kind) ~= "string" or result.kind == "usage" then
    error(result, 0)
  end
  return nil, result
end

-- "GRANT pg_signal_backend TO app"
local function grant(session, role)
  return ("GRANT %s TO %s"):format(role, ask("value", session, ME_SQL) or "this role")
end

-- What would let this role signal that session.
local function signal_hint(session, pid)
  local owner = ask("one", session, OWNER_SQL, pid)
  if owner and owner.is_system then
    return session.server_version >= 180000 and grant(session, "pg_signal_autovacuum_worker")
      or "only a superuser may signal autovacuum and other processes of the server's own"
  elseif owner and owner.is_superuser then
    return "only a superuser may signal a superuser's session"
  end
  return grant(session, "pg_signal_backend")
end

local function set_error(outcome, session, err)
  outcome.result = err.sqlstate == INSUFFICIENT_PRIVILEGE and "refused" or "failed"
  outcome.sqlstate, outcome.message, outcome.hint = err.sqlstate, err.message, err.hint
  if outcome.result == "refused" then
    outcome.hint = signal_hint(session, outcome.pid)
  end
end

local function set_prepared(outcome, target)
  outcome.result = "refused"
  outcome.message = "a prepared transaction has no session to signal"
  outcome.hint = target.gid and ("ROLLBACK PREPARED '%s'"):format((target.gid:gsub("'", "''")))
    or "ROLLBACK PREPARED; pg_prepared_xacts names it"
end

local NOT_KNOWN = "when it began is not known, so that another session with its pid might be hit"

-- By the statement's answer, none where there is no such session.
local ANSWERS = {
  sent = function() return "signalled" end,
  idle = function() return "no_effect", "it runs no statement that could be cancelled" end,
  released = function(_, waiter) return "gone", ("it does not block pid %d any more"):format(waiter) end,
  hidden = function(session) return "refused", NOT_KNOWN, grant(session, "pg_read_all_stats") end,
  unknown = function() return "refused", NOT_KNOWN end,
  gone = function() return "gone", "the session has ended" end,
}

-- Returns the error after which nobody else can be signalled.
local function signal_one(session, outcome, target, options)
  local pid = outcome.pid
  if pid == 0 then
    set_prepared(outcome, target)
    return
  elseif pid == session.pid then
    outcome.result, outcome.message = "refused", "it is the session that asks"
    return
  end
  local chain = { pid, table.unpack(target.still_blocks or { options.still_blocks }) }
  local answer, err = ask("value", session, (options.dry_run and DRY_SQL or SQL)[outcome.action], pid,
    target.backend_start, core.array(chain), core.array(target.blocks_any or {}))
  if err then
    set_error(outcome, session, err)
    return err
  end
  outcome.result, outcome.message, outcome.hint = ANSWERS[answer or "gone"](session,
    chain[2] or target.blocks_any and target.blocks_any[1])
  if options.dry_run and outcome.result == "signalled" then
    outcome.result = "dry_run"
  end
end

-- Which of `awaited` (outcome -> target) have ended: their `ended` is set, and they are taken out.
local function take_out_ended(session, awaited)
  local pids, there = {}, {}
  for outcome in pairs(awaited) do
    pids[#pids + 1] = outcome.pid
  end
  local rows = ask("query", session, LEFT_SQL, core.array(pids))
  for _, row in ipairs(rows or {}) do
    there[row.pid] = row.backend_start
  end
  for outcome, target in pairs(awaited) do
    local start = there[outcome.pid]
    if rows and not (start and microseconds(start) == microseconds(target.backend_start)) then
      outcome.ended = true
      awaited[outcome] = nil
    end
  end
  return rows ~= nil
end

local function await_end(session, awaited, options)
  local limit = options.verify == nil and VERIFY or options.verify
  local waited, pause = 0, PAUSE_MIN
  while next(awaited) and take_out_ended(session, awaited) and next(awaited) do
    if limit and waited >= limit then
      for outcome in pairs(awaited) do
        outcome.ended = false
        outcome.message = ("it had not ended %.1f s after it was told to"):format(waited)
      end
      return
    elseif options.stop and options.stop() then
      return
    end
    local ok, err = pcall(core.sleep, pause)
    if not ok then
      if type(err) == "table" and err.kind == "cancelled" then
        return -- it is raised again at the next wait: what was done is told first
      end
      error(err, 0)
    end
    waited, pause = waited + pause, math.min(2 * pause, PAUSE_MAX)
  end
end

--- Cancel the statements of sessions, or terminate them. A failure with one does not stop the others;
--- where the asking session itself breaks, or its task is cancelled, the rest is "failed". Never signals
--- the asking session. Waits, after terminating, until they are gone.
--- Source: PostgreSQL manual, "Server Signaling Functions".
---@param session Session                in no transaction
---@param action "cancel"|"terminate"
---@param targets KillTarget[]
---@param options? KillOptions
---@return KillOutcome[] outcomes         one a pid, in the order of targets
function kill.signal(session, action, targets, options)
  options = options or {}
  local outcomes, seen, awaited = {}, {}, {}
  local broken
  for _, target in ipairs(targets) do
    local pid = target.pid or 0
    if options.stop and options.stop() then
      break
    elseif pid == 0 or not seen[pid] then
      seen[pid] = true
      local outcome = { pid = pid, action = action }
      outcomes[#outcomes + 1] = outcome
      if broken then
        outcome.result, outcome.message = "failed", broken.message
      else
        local err = signal_one(session, outcome, target, options)
        broken = err and ENDS_ALL[err.kind] and err or nil
        if action == "terminate" and outcome.result == "signalled" then
          awaited[outcome] = target
        end
      end
    end
  end
  if not broken and options.verify ~= 0 then
    await_end(session, awaited, options)
  end
  return outcomes
end

return kill
