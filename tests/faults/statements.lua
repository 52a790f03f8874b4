-- A supervisor is killed at each of its statements, before the server gets it and after it has been executed;
-- it is killed at each statement of its workers, and they are. Each time another supervisor finds what was
-- left: every slot has its row, what was at work is lost and tried again, nothing is done twice and nothing
-- hangs.
--
-- Usage, from the source's folder:
--   LOCKKEEPER_BIN=build/lockkeeper lua5.4 tests/faults/statements.lua [MOST [SERIES [FIRST]]]
-- MOST: statements of each series (default 40). SERIES: a pattern for which. FIRST: the first (default 1).
-- Prints a line a kill. Exit code 1 where anything is wrong.
package.path = "./?.lua;./?/init.lua;" .. package.path
local deaths = require "tests.faults.deaths"

local MOST = tonumber(arg[1]) or 40
local PATTERN = arg[2] or ""
local FIRST = tonumber(arg[3]) or 1

local scene = deaths.prepare()
local wrong, done = 0, 0
for _, series in ipairs(deaths.SERIES) do
  if series.name:find(PATTERN) then
    for number = FIRST, MOST do
      local killed, problems = deaths.one(scene, series, number)
      if not killed then
        break
      end
      done = done + 1
      print(("%-32s %3d  %s"):format(series.name, number, killed))
      for _, problem in ipairs(problems) do
        print("    WRONG: " .. problem)
        wrong = wrong + 1
      end
    end
  end
end
scene.server:stop()
print(("%d deaths, %d things are wrong"):format(done, wrong))
os.exit(wrong == 0 and done > 0)
