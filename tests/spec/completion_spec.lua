-- `lockkeeper completion` (cli.md): made from the commands' own specifications, so that it knows them all.

local t = require "tests.support"

local function script(shell)
  local code, out, err = t.run("completion", shell)
  assert.equal(0, code, err)
  return out
end

local function has(command)
  return os.execute(("command -v %s >/dev/null"):format(command)) == true
end

-- The commands that `lockkeeper -h` lists.
local function commands()
  local _, help = t.run("-h")
  local list = {}
  for line in help:gmatch("\n  (%l[^\n]*)") do
    for name in line:match("^%l[%l, ]*"):gmatch("%l+") do
      list[#list + 1] = name
      if not line:find(name .. ",", 1, true) then
        break
      end
    end
  end
  return list
end

-- What bash offers for the last of these words.
local function offered(...)
  local words = {}
  for i, word in ipairs { ... } do
    words[i] = "'" .. word .. "'"
  end
  local path = t.tempfile(script("bash") .. ([[
    compopt() { echo FILES; }
    COMP_WORDS=(%s) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _lockkeeper
    printf '%%s\n' "${COMPREPLY[@]}"]]):format(table.concat(words, " ")), "try.bash")
  local child = t.spawn { "bash", "--norc", path }
  assert.equal(0, child:wait())
  assert.equal("", child:stderr())
  return (child:stdout():gsub("\n$", ""):gsub("\n", " "))
end

it("each shell's form knows every command that -h lists, and every shell reads its own", function()
  local list = commands()
  assert.is_true(#list >= 15)
  for _, shell in ipairs { "bash", "zsh", "fish" } do
    local text = script(shell)
    for _, name in ipairs(list) do
      assert.matches("%f[%w]" .. name .. "%f[%W]", text)
    end
    if has(shell) then
      local child = t.spawn { shell, "-n", t.tempfile(text) }
      assert.equal(0, child:wait(), child:stderr())
    end
  end
end)

it("bash: commands, options, their values, operands and files", function()
  assert.equal("history", offered("lockkeeper", "hist"))
  assert.equal("history", offered("lockkeeper", "help", "hist"))
  assert.equal("--format", offered("lockkeeper", "history", "--form"))
  assert.equal("table json", offered("lockkeeper", "history", "--format", ""))
  assert.equal("json", offered("lockkeeper", "history", "--format", "=", "j"))
  assert.equal("bash zsh fish", offered("lockkeeper", "completion", ""))
  assert.equal("start stop status", offered("lockkeeper", "db", "st"))
  assert.equal("FILES ", offered("lockkeeper", "serve", ""))
  assert.equal("FILES ", offered("lockkeeper", "jobs", "--config", ""))
  assert.equal("", offered("lockkeeper", "history", "--since", ""))
end)

it("bash: what follows a script or -- is not ours", function()
  assert.equal("--job", offered("lockkeeper", "run", "--jo"))
  assert.equal("FILES ", offered("lockkeeper", "run", "--job", "j", "script.lua", "--jo"))
  assert.equal("FILES ", offered("lockkeeper", "exec", "--lock", "x", "--", "ls", "--lo"))
end)
