-- Scenes of what goes wrong around a runner, each with servers and supervisors of its own: see scenes/.
--
-- Usage, from the source's folder:
--   LOCKKEEPER_BIN=build/lockkeeper lua5.4 tests/faults/scenes.lua [-v] [NAME...]
-- NAME: a file of scenes/; default: all. -v: also what the supervisors warned of. Prints what is wrong. Exit
-- code 1 where anything is.
package.path = "./?.lua;./?/init.lua;" .. package.path
local hosts = require "tests.faults.hosts"
local sandbox = require "tests.support.sandbox"

local names = table.move(arg, 1, #arg, 1, {})
local verbose = names[1] == "-v" and table.remove(names, 1) ~= nil
if #names == 0 then
  for name in sandbox.capture("ls tests/faults/scenes"):gmatch("([%w_]+)%.lua") do
    names[#names + 1] = name
  end
end

local wrong = 0
for _, name in ipairs(names) do
  local begun = sandbox.now()
  local scene = require("tests.faults.scenes." .. name)
  local problems = scene.play(true)
  print(("%-12s %5.1f s  %s"):format(name, sandbox.now() - begun,
    #problems == 0 and "nothing is wrong" or #problems .. " things are wrong"))
  for _, problem in ipairs(problems) do
    print("    " .. problem)
  end
  wrong = wrong + #problems
  for _, line in ipairs(verbose and hosts.unusual() or {}) do
    print("    | " .. line)
  end
  hosts.forget()
end
os.exit(wrong == 0)
