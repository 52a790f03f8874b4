--- Completion for zsh. Source: zsh manual, "Completion System", _arguments and _describe.

local HEAD = [=[
#compdef lockkeeper
# zsh completion for lockkeeper; made by: lockkeeper completion zsh
_lockkeeper() {
    local curcontext="$curcontext" state line
    local -a commands
    commands=(
]=]

local MIDDLE = [=[
    )
    _arguments -C '(- *)'{-h,--help}'[help]' '(- *)--version[the version]' \
        '1: :->command' '*:: :->words' && return
    if [[ $state == command ]]; then
        commands+=('help:how a command is called')
        _describe -t commands command commands
        return
    fi
    case $words[1] in
    help) (( CURRENT == 2 )) && _describe -t commands command commands ;;
]=]

local END = [=[
    esac
}
if [[ $funcstack[1] == _lockkeeper ]]; then
    _lockkeeper "$@"
else
    compdef _lockkeeper lockkeeper
fi
]=]

-- In single quotes.
local function quoted(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

-- A text inside [ ] of _arguments, or before the : of _describe.
local function escaped(text)
  return (text:gsub("[\\%[%]:]", "\\%0"))
end

-- ":METAVAR:ACTION"
local function value_text(value, metavar)
  local action = " "
  if value.choices then
    action = "(" .. table.concat(value.choices, " ") .. ")"
  elseif value.is_file then
    action = "_files"
  end
  return (":%s:%s"):format(escaped(metavar), action)
end

-- One word of _arguments an option, or several that exclude each other.
local function option_words(option)
  local words = {}
  local excluded = option.is_list and "*" or ("(%s)"):format(table.concat(option.names, " "))
  for i, name in ipairs(option.names) do
    local takes = option.value and (name:sub(1, 2) == "--" and "=" or "+") or ""
    words[i] = quoted(("%s%s%s[%s]%s"):format(excluded, name, takes, escaped(option.help),
      option.value and value_text(option.value, option.metavar) or ""))
  end
  return table.concat(words, " \\\n            ")
end

local function operand_words(command)
  local operand = command.operand
  if operand.choices then
    return { quoted("1: :(" .. table.concat(operand.choices, " ") .. ")"),
      command.rest and quoted("*: :_files") or nil }
  elseif command.rest then
    return { quoted("*:: :_normal -p lockkeeper") }
  elseif not command.has_operands then
    return {}
  elseif operand.is_file then
    return { quoted("*: :_files") }
  end
  return {}
end

---@param commands table[]  see lockkeeper.cli.completion
---@return string
return function(commands)
  local parts = { HEAD }
  for _, command in ipairs(commands) do
    parts[#parts + 1] = ("        %s\n"):format(quoted(command.name .. ":" .. escaped(command.summary)))
  end
  parts[#parts + 1] = MIDDLE:gsub("^\n", "")
  for _, command in ipairs(commands) do
    local words = {}
    for _, option in ipairs(command.options) do
      words[#words + 1] = option_words(option)
    end
    local operands = command.name == "run" and { quoted("1: :_files"), quoted("*: :_files") }
      or operand_words(command)
    table.move(operands, 1, #operands, #words + 1, words)
    parts[#parts + 1] = ("    %s)\n        _arguments -S -s %s ;;\n"):format(command.name,
      table.concat(words, " \\\n            "))
  end
  parts[#parts + 1] = END:gsub("^\n", "")
  return table.concat(parts)
end
