--- Completion for fish. Source: fish manual, "Writing your own completions", complete.

local HEAD = [=[
# fish completion for lockkeeper; made by: lockkeeper completion fish
function __lockkeeper_at -d 'is this the command, and the word its own, not that of a command that it runs?'
    set -l words (commandline -opc)
    test (count $words) -gt 1; and test "$words[2]" = "$argv[1]"
end
complete -c lockkeeper -f
complete -c lockkeeper -n '__fish_is_nth_token 1' -s h -l help -d help
complete -c lockkeeper -n '__fish_is_nth_token 1' -l version -d 'the version'
complete -c lockkeeper -n '__fish_is_nth_token 1' -a help -d 'how a command is called'
]=]

local function quoted(text)
  return "'" .. text:gsub("[\\']", "\\%0") .. "'"
end

local function value_text(value)
  if not value then
    return ""
  elseif value.choices then
    return " -x -a " .. quoted(table.concat(value.choices, " "))
  end
  return value.is_file and " -r -F" or " -x"
end

local function option_line(command, option)
  local names = {}
  for i, name in ipairs(option.names) do
    names[i] = name:sub(1, 2) == "--" and "-l " .. name:sub(3) or "-s " .. name:sub(2)
  end
  return ("complete -c lockkeeper -n '__lockkeeper_at %s' %s%s -d %s\n"):format(command.name,
    table.concat(names, " "), value_text(option.value), quoted(option.help))
end

---@param commands table[]  see lockkeeper.cli.completion
---@return string
return function(commands)
  local parts, names = { HEAD }, {}
  for i, command in ipairs(commands) do
    names[i] = command.name
    parts[#parts + 1] = ("complete -c lockkeeper -n '__fish_is_nth_token 1' -a %s -d %s\n"):format(
      command.name, quoted(command.summary))
  end
  parts[#parts + 1] = ("complete -c lockkeeper -n '__lockkeeper_at help' -a %s\n"):format(
    quoted(table.concat(names, " ")))
  for _, command in ipairs(commands) do
    for _, option in ipairs(command.options) do
      parts[#parts + 1] = option_line(command, option)
    end
    if command.operand.choices then
      parts[#parts + 1] = ("complete -c lockkeeper -n '__lockkeeper_at %s' -a %s\n"):format(command.name,
        quoted(table.concat(command.operand.choices, " ")))
    elseif command.has_operands and command.operand.is_file then
      parts[#parts + 1] = ("complete -c lockkeeper -n '__lockkeeper_at %s' -F\n"):format(command.name)
    end
  end
  return table.concat(parts)
end
