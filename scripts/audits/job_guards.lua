-- The guard of a job that is held by somebody who does not run the job: then its runs are skipped, one after
-- another, and nobody sees why. Sessions of the runner, and of lockkeeper run and exec, are known by their
-- name.
local lock = require "lockkeeper"

local function name_of(guard)
  return ("%d:%d:%d"):format(guard.classid, guard.objid, guard.objsubid)
end

lock.audit("job-guard", {
  every = "1m",
  description = "A session that runs no job of the runner's holds the guard of one, so that it can't run.",
  advice = function(finding) return ("find out who it is: lockkeeper ls %d"):format(finding.pid) end,
  find = function(a)
    local server, job_of, runs, findings = a:server(), {}, {}, {}
    for _, guard in ipairs(server and server.guards or {}) do
      job_of[name_of(guard)] = guard.job
    end
    for _, run in ipairs(server and server.runs or {}) do
      runs[run.pid] = run
    end
    for _, row in ipairs(a:locks { type = "advisory", granted = true }) do
      local job, application = job_of[name_of(row)], row.activity.application_name or ""
      if job and not runs[row.pid] and not application:find("^lockkeeper") then
        findings[#findings + 1] = {
          row = row, pid = row.pid,
          message = ("pid %s (%s, %s) holds a guard of the job %s, and is no session of the runner's"):format(
            row.pid or "?", row.activity.user or "?", application ~= "" and application or "?", job),
        }
      end
    end
    return findings
  end,
})
