-- Faults at random over three supervisors and 50 jobs: SIGKILL and SIGSTOP of supervisors, workers and
-- commands, wires that are cut and wires that fall silent, sessions ended by the server, crashes of the
-- server, reloads, orderly ends. No run may overlap another, no slot be done twice, and each slot must have
-- its row.
--
-- Usage, from the source's folder:
--   LOCKKEEPER_BIN=build/lockkeeper lua5.4 tests/faults/chaos.lua [SECONDS [SEED [FOLDER]]]
-- SECONDS: default 300. FOLDER: the logs and the tables are put there. Prints what was done to whom, how many
-- runs ended how, and what is wrong. Exit code 1 where anything is.
package.path = "./?.lua;./?/init.lua;" .. package.path
local storm = require "tests.faults.storm"

local spec = {
  hosts = 3, longest = 25, tell = print,
  seconds = tonumber(arg[1]) or 300, seed = math.tointeger(tonumber(arg[2])) or os.time(), folder = arg[3],
}

print(("%d hosts, %d seconds, seed %d"):format(spec.hosts, spec.seconds, spec.seed))
local problems = storm.play(spec)
for _, problem in ipairs(problems) do
  print(problem)
end
print(#problems == 0 and "nothing is wrong" or #problems .. " things are wrong")
os.exit(#problems == 0)
