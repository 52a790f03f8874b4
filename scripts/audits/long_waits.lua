-- Waits that last too long, one finding for each thing that is waited for.
local lock = require "lockkeeper"

local LONG = 30      -- seconds
local CRITICAL = 300 -- seconds

-- PostgreSQL 13 does not say since when a lock is waited for; the statement began no later than the wait.
local function waited(row)
  return row.wait_duration or row.activity.duration or 0
end

local function object_of(row)
  if row.relation then
    return (row.schema and row.schema .. "." or "") .. row.relation
  elseif row.type == "advisory" then
    local key = type(row.key) == "table" and ("(%d, %d)"):format(row.key[1], row.key[2]) or tostring(row.key)
    return "the advisory lock " .. (row.lock_name or key)
  elseif row.type == "transactionid" then
    return ("the end of transaction %d, which has changed a row"):format(row.transactionid)
  end
  return row.type .. " " .. (row.virtualxid or "")
end

lock.audit("long-wait", {
  every = "30s",
  description = "Sessions wait for a lock for longer than anybody should have to.",
  advice = "lockkeeper tree shows who is in the way.",
  find = function(a)
    local findings, by_object = {}, {}
    for _, row in ipairs(a:locks { granted = false }) do
      local object = object_of(row)
      local finding = by_object[object]
      if waited(row) >= LONG and not finding then
        finding = { row = row, subject = "waits for " .. object, count = 0, longest = 0, object = object }
        by_object[object], findings[#findings + 1] = finding, finding
      end
      if finding then
        finding.count, finding.longest = finding.count + 1, math.max(finding.longest, waited(row))
      end
    end
    for i, found in ipairs(findings) do
      local row = found.row
      findings[i] = {
        row = row, subject = found.subject, severity = found.longest >= CRITICAL and "critical" or "warning",
        message = ("%d %s for %s, the longest, pid %d, for %.0f s for %s"):format(found.count,
          found.count == 1 and "session waits" or "sessions wait", found.object, row.pid, found.longest,
          row.mode),
      }
    end
    return findings
  end,
})
