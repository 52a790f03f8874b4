--- lockkeeper completion: what a shell completes, made from the specifications of all commands.
local bash = require "lockkeeper.cli.completion_bash"
local failure = require "lockkeeper.cli.failure"
local fish = require "lockkeeper.cli.completion_fish"
local options = require "lockkeeper.cli.options"
local validation = require "lockkeeper.validation"
local zsh = require "lockkeeper.cli.completion_zsh"

local completion = {}

local SHELLS = { "bash", "zsh", "fish" }
local FORMS = { bash = bash, zsh = zsh, fish = fish }

completion.spec = {
  usage = "lockkeeper completion bash|zsh|fish",
  summary = "Prints what completes lockkeeper's commands, options and their values in a shell.",
  text = {
    'bash: source <(lockkeeper completion bash), in ~/.bashrc; or a file "lockkeeper" in '
      .. "~/.local/share/bash-completion/completions.",
    'zsh: a file "_lockkeeper" in a folder of $fpath; or, after compinit, source <(lockkeeper completion '
      .. "zsh).",
    "fish: a file ~/.config/fish/completions/lockkeeper.fish.",
  },
  operands = { min = 1, max = 1, name = "bash, zsh or fish", choices = SHELLS },
  options = {},
  is_local = true,
  own_config = true,
}

-- The first sentence, without its end.
local function first_sentence(text)
  return (text:match("^(.-)[.;:] ") or text):gsub("%.$", "")
end

-- What an operand or an option's value is: one of a few words, a file, or anything.
local function value_of(name, choices)
  if choices then
    return { choices = choices }
  end
  local is_file = name and (name:find("FILE", 1, true) or name:find("PATH", 1, true))
  return { is_file = is_file ~= nil and is_file ~= false }
end

-- A command as the shells' forms take it: { name, summary, rest, operand = { choices, is_file },
-- has_operands, options = { { names, help, value = { choices, is_file } | nil, metavar, is_list } } }.
local function described(command)
  local spec, list = command.spec, {}
  for i, option in ipairs(spec.options) do
    list[i] = { names = table.move(option, 1, #option, 1, {}), help = first_sentence(option.help),
      value = option.value and value_of(option.value, option.choices),
      metavar = option.value, is_list = option.list }
  end
  local operand = value_of(spec.operands.name, spec.operands.choices)
  -- A command that runs another, or whose operand a usage line calls so, takes files.
  operand.is_file = operand.is_file or spec.usage:find("PATH", 1, true) ~= nil or spec.rest == true
  return { name = command.name, summary = first_sentence(spec.summary), rest = spec.rest, operand = operand,
    has_operands = spec.operands.max ~= 0, options = list }
end

--- Print it.
function completion.main(_, operands, specs)
  local form = FORMS[operands[1]]
  if not form then
    failure.words(("the shell must be bash, zsh or fish, not %s%s"):format(options.quoted(operands[1]),
      validation.nearest(operands[1], SHELLS)))
  end
  local commands = {}
  for i, command in ipairs(specs()) do
    commands[i] = described(command)
  end
  io.stdout:write(form(commands))
  return 0
end

return completion
