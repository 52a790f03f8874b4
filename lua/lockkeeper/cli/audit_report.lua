--- What audits have found, as `lockkeeper audit` prints it.
local audits = require "lockkeeper.audit"
local field = require "lockkeeper.report.field"
local host = require "lockkeeper.host"
local listing = require "lockkeeper.cli.listing"
local markup = require "lockkeeper.picture.markup"
local row_format = require "lockkeeper.cli.rows"
local safe = require "lockkeeper.report.safe"
local sets = require "lockkeeper.definition_set"
local span = require "lockkeeper.report.span"
local text_table = require "lockkeeper.report.table"
local width = require "lockkeeper.report.width"

local report = {}

-- Parameters of SGR sequences.
local STYLES = { critical = "31;1", warning = "33" }
local BOLD = "1"

-- The least room that a finding's text makes sense in.
local TEXT_LEAST = 30

-- All findings, the most severe first.
local function all_findings(outcomes)
  local findings, order = {}, {}
  for _, outcome in ipairs(outcomes) do
    for _, finding in ipairs(outcome.findings) do
      findings[#findings + 1], order[finding] = finding, #findings + 1
    end
  end
  table.sort(findings, function(a, b)
    if a.severity ~= b.severity then
      return audits.rank(a.severity) > audits.rank(b.severity)
    end
    return order[a] < order[b]
  end)
  return findings
end

local function counts_of(findings)
  local counts = { info = 0, warning = 0, critical = 0 }
  for _, finding in ipairs(findings) do
    counts[finding.severity] = counts[finding.severity] + 1
  end
  return counts
end

-- "2 critical, 1 warning"
local function counts_text(findings)
  local counts, parts = counts_of(findings), {}
  for i = #audits.SEVERITIES, 1, -1 do
    local severity = audits.SEVERITIES[i]
    if counts[severity] > 0 then
      parts[#parts + 1] = ("%d %s"):format(counts[severity], severity)
    end
  end
  return #parts > 0 and table.concat(parts, ", ") or "nothing found"
end

local function title(outcomes, findings, how)
  local place = how.snapshot and "snapshot " .. how.snapshot or listing.place()
  return safe.line(("%s, %s: %s"):format(place, field.local_time(outcomes.taken_at, true),
    counts_text(findings)))
end

---------------------------------------------------------------------------------------------------
-- for people

local function seconds_of(finding, taken_at)
  return finding.opened_at and math.max(0, taken_at - finding.opened_at) or nil
end

local OUTCOMES = { signalled = "done: ", no_effect = "no effect: ", gone = "gone: ", refused = "refused: ",
  failed = "failed: " }

-- What was done about it, else what to do.
local function advice_of(finding)
  local outcome = finding.outcome
  if not outcome then
    return finding.advice
  end
  local action = outcome.action == "cancel" and "cancelled pid %d" or "terminated pid %d"
  if outcome.result == "signalled" then
    return OUTCOMES.signalled .. action:format(outcome.pid)
  elseif outcome.result == "dry_run" then
    return ("--act would %s pid %d"):format(outcome.action, outcome.pid)
  end
  return OUTCOMES[outcome.result] .. (outcome.message or "") .. (outcome.hint and "; " .. outcome.hint or "")
end

local function cells_of(findings, taken_at)
  local list = {}
  for i, finding in ipairs(findings) do
    local seconds = seconds_of(finding, taken_at)
    list[i] = { severity = finding.severity, audit = finding.audit, seconds = seconds and span(seconds),
      message = finding.message, advice = advice_of(finding) }
  end
  return list
end

local COLUMNS = {
  { title = "SEVERITY", key = "severity" },
  { title = "AUDIT", key = "audit" },
  { title = "FOR", key = "seconds", right = true },
  { title = "FINDING", key = "message" },
  { title = "ADVICE", key = "advice" },
}

-- Lines of at most that many columns, broken between words.
local function wrapped(text, columns)
  local lines, line = {}, ""
  for word in safe.line(text):gmatch("%S+") do
    if line ~= "" and width.of(line) + 1 + width.of(word) > columns then
      lines[#lines + 1], line = line, ""
    end
    line = line == "" and word or line .. " " .. word
  end
  lines[#lines + 1] = line
  return lines
end

local function pad(text, columns, right)
  local space = (" "):rep(columns - width.of(text))
  return right and space .. text or text .. space
end

local function painted(text, style)
  return style and ("\27[%sm%s\27[0m"):format(style, text) or text
end

-- For a terminal: a finding's text, and below it the advice, in as many lines as they take.
local function print_wrapped(list, columns)
  local colours = row_format.colours(1)
  local widths = { width.of("SEVERITY"), width.of("AUDIT"), width.of("FOR") }
  for _, cells in ipairs(list) do
    cells.audit, cells.seconds = safe.line(cells.audit), cells.seconds or ""
    widths[2] = math.max(widths[2], width.of(cells.audit))
    widths[3] = math.max(widths[3], width.of(cells.seconds))
  end
  local margin = widths[1] + widths[2] + widths[3] + 6
  local room = math.max(columns - margin, TEXT_LEAST)
  local function head(severity, name, seconds, style)
    return ("%s  %s  %s  "):format(painted(pad(severity, widths[1]), colours and style or nil),
      pad(name, widths[2]), pad(seconds, widths[3], true))
  end
  local titles = head("SEVERITY", "AUDIT", "FOR") .. "FINDING"
  io.stdout:write(painted(titles, colours and BOLD or nil), "\n")
  for _, cells in ipairs(list) do
    local lines = wrapped(cells.message, room)
    for _, line in ipairs(cells.advice and wrapped(cells.advice, room - 2) or {}) do
      lines[#lines + 1] = "> " .. line
    end
    for i, line in ipairs(lines) do
      local before = i == 1 and head(cells.severity, cells.audit, cells.seconds, STYLES[cells.severity])
        or (" "):rep(margin)
      io.stdout:write(before, line, "\n")
    end
  end
end

-- Nothing is printed where nothing was found, but on a terminal, where somebody waits for an answer.
local function print_table(outcomes, findings, how)
  local columns = host.terminal(1)
  if #findings == 0 and not columns then
    return
  end
  io.stdout:write(title(outcomes, findings, how), "\n")
  local list = cells_of(findings, outcomes.taken_at)
  if #list > 0 and columns then
    print_wrapped(list, columns)
  elseif #list > 0 then
    io.stdout:write(text_table.format(COLUMNS, list))
  end
end

---------------------------------------------------------------------------------------------------
-- for programs

local function object_of(definitions, taken_at)
  return function(finding)
    local activity = finding.activity or {}
    local outcome = finding.outcome
    local values = {
      audit = finding.audit, subject = finding.subject, severity = finding.severity,
      message = finding.message, advice = finding.advice,
      description = definitions[finding.audit].description, pid = finding.pid, gid = finding.gid,
      user = activity.user, application_name = activity.application_name,
      opened_at = finding.opened_at and field.instant(finding.opened_at),
      ["for"] = field.full("duration", seconds_of(finding, taken_at)),
      is_new = finding.is_new == true,
      taken_at = field.instant(taken_at), action = outcome and outcome.action,
      result = outcome and outcome.result,
    }
    local object = {}
    for _, name in ipairs { "audit", "subject", "severity", "message", "advice", "description", "pid", "gid",
      "user", "application_name", "opened_at", "for", "is_new", "taken_at", "action", "result" } do
      object[name] = row_format.json_value(values[name])
    end
    return object
  end
end

local function print_json(outcomes, findings)
  local definitions = {}
  for _, outcome in ipairs(outcomes) do
    definitions[outcome.audit.name] = outcome.audit
  end
  row_format.print_json(findings, object_of(definitions, outcomes.taken_at))
end

---------------------------------------------------------------------------------------------------
-- HTML

local PAGE_STYLE = [[
body { margin: 24px auto; max-width: 1100px; padding: 0 12px; color: #1e293b; background: #fff;
  font: 14px/1.45 system-ui, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif }
h1 { font-size: 20px; margin: 0 0 4px } .quiet { color: #64748b; margin: 4px 0 }
table { border-collapse: collapse; width: 100%; margin-top: 16px }
th { text-align: left; font-size: 11px; color: #64748b; letter-spacing: .04em }
th, td { padding: 6px 10px 6px 0; border-bottom: 1px solid #e2e8f0; vertical-align: top }
.badge { border-radius: 4px; padding: 1px 6px; font-size: 12px; color: #fff; background: #64748b }
.critical .badge { background: #b91c1c } .warning .badge { background: #b45309 }
.failed .badge { background: #7e22ce }
.number { white-space: nowrap } .advice { color: #475569 }
]]

local BODY = [[
<h1>Audit of locks</h1>
<p class="quiet">%s</p>
%s]]

local HTML_ROW = '<tr class="%s"><td><span class="badge">%s</span></td><td title="%s">%s</td>'
  .. '<td class="number">%s</td><td>%s<div class="advice">%s</div></td></tr>\n'

local function html_row(class, wanted, seconds, message, advice)
  return HTML_ROW:format(class, class, markup.line(wanted.description or ""), markup.line(wanted.name),
    seconds and span(seconds) or "", markup.line(message), markup.line(advice or ""))
end

local function print_html(outcomes, findings, how)
  local definitions, rows = {}, {}
  for _, outcome in ipairs(outcomes) do
    definitions[outcome.audit.name] = outcome.audit
    if outcome.failed then
      rows[#rows + 1] = html_row("failed", outcome.audit, nil, outcome.failed)
    end
  end
  for _, finding in ipairs(findings) do
    rows[#rows + 1] = html_row(finding.severity, definitions[finding.audit],
      seconds_of(finding, outcomes.taken_at), finding.message, advice_of(finding))
  end
  local body = ("<p>%d audits found nothing.</p>\n"):format(#outcomes)
  if #rows > 0 then
    body = "<table>\n<tr><th>SEVERITY</th><th>AUDIT</th><th>FOR</th><th>FINDING</th></tr>\n"
      .. table.concat(rows) .. "</table>\n"
  end
  local heading = title(outcomes, findings, how)
  io.stdout:write(markup.page(heading, PAGE_STYLE, BODY:format(markup.line(heading), body)))
end

---------------------------------------------------------------------------------------------------

--- Print what was found.
---@param outcomes AuditOutcome[]
---@param how { format: string, snapshot?: string }
function report.show(outcomes, how)
  local findings = all_findings(outcomes)
  if how.format == "json" then
    print_json(outcomes, findings)
  elseif how.format == "html" then
    print_html(outcomes, findings, how)
  else
    print_table(outcomes, findings, how)
  end
end

local function has_changed(outcomes)
  for _, outcome in ipairs(outcomes) do
    if #outcome.opened > 0 or #outcome.closed > 0 then
      return true
    end
  end
  return false
end

--- Print what was found in one of many rounds: on a terminal in place of what was there, elsewhere what has
--- changed; as JSON a list a round.
---@param outcomes AuditOutcome[]
---@param how { format: string, is_first: boolean }
function report.show_again(outcomes, how)
  if how.format == "json" then
    report.show(outcomes, how)
  elseif host.terminal(1) then
    io.stdout:write("\27[H\27[2J\27[3J")
    report.show(outcomes, how)
  elseif has_changed(outcomes) then
    local at = field.local_time(outcomes.taken_at, true)
    for _, outcome in ipairs(outcomes) do
      for _, finding in ipairs(outcome.opened) do
        io.stdout:write(safe.line(("%s  opened  %s  %s: %s"):format(at, finding.severity, finding.audit,
          finding.message)), "\n")
      end
      for _, finding in ipairs(outcome.closed) do
        io.stdout:write(safe.line(("%s  closed  %s  %s: %s"):format(at, finding.severity, finding.audit,
          finding.message)), "\n")
      end
    end
  end
end

local LIST_COLUMNS = {
  { title = "AUDIT", key = "name", kind = "text", get = function(wanted) return wanted.name end },
  { title = "EVERY", key = "every", kind = "duration", get = function(wanted) return wanted.every end },
  { title = "SEVERITY", key = "severity", kind = "text", get = function(wanted) return wanted.severity end },
  { title = "ACTION", key = "action", kind = "text",
    get = function(wanted) return type(wanted.action) == "function" and "function" or wanted.action end },
  { title = "DEFINED AT", key = "place", kind = "text", get = sets.place_text },
  { title = "WHAT IT FINDS", key = "description", kind = "text",
    get = function(wanted) return wanted.description end },
}

--- Print which audits there are.
---@param list AuditDefinition[]
---@param format string
function report.list(list, format)
  if format == "json" then
    row_format.print_json(list, row_format.object_by(LIST_COLUMNS))
  else
    row_format.print_table(LIST_COLUMNS, list)
  end
end

---------------------------------------------------------------------------------------------------
-- for monitoring. Source: Monitoring Plugins, "Development Guidelines".

local STATES = { [0] = "OK", "WARNING", "CRITICAL", "UNKNOWN" }

-- On one line, and without what separates performance data.
local function plain(text)
  return (safe.line(text):gsub("|", "/"))
end

--- Print the line, and return the exit code.
---@param outcomes AuditOutcome[]
---@param fail_on string
---@return integer
function report.nagios(outcomes, fail_on)
  local findings, code, failed = all_findings(outcomes), 0, {}
  local least = fail_on == "never" and math.huge or audits.rank(fail_on)
  for _, finding in ipairs(findings) do
    if audits.rank(finding.severity) >= least then
      code = math.max(code, finding.severity == "critical" and 2 or 1)
    end
  end
  for _, outcome in ipairs(outcomes) do
    failed[#failed + 1] = outcome.failed and outcome.audit.name or nil
  end
  if #failed > 0 and code < 2 then
    code = 3
  end
  local counts, text = counts_of(findings), counts_text(findings)
  if findings[1] then
    text = ("%s; %s: %s"):format(text, findings[1].audit, findings[1].message)
  end
  if #failed > 0 then
    text = ("%s; failed: %s"):format(text, table.concat(failed, ", "))
  end
  print(("LOCKKEEPER %s - %s | findings=%d critical=%d warning=%d info=%d failed=%d"):format(STATES[code],
    plain(text), #findings, counts.critical, counts.warning, counts.info, #failed))
  return code
end

--- Where nothing could be looked at.
---@param reason string
function report.nagios_unknown(reason)
  print("LOCKKEEPER UNKNOWN - " .. plain(reason))
end

return report
