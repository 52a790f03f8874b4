--- Completion for bash. Source: Bash manual, "Programmable Completion".

local HEAD = [=[
# bash completion for lockkeeper; made by: lockkeeper completion bash
_lockkeeper() {
    local word=${COMP_WORDS[COMP_CWORD]} last= command= choices= flags= valued= operands= files= rest=
    local i at=0
    COMPREPLY=()
    # --name=value stands in three words.
    if [[ $word == = ]]; then
        word= last=${COMP_WORDS[COMP_CWORD-1]}
    elif ((COMP_CWORD > 1)) && [[ ${COMP_WORDS[COMP_CWORD-1]} == = ]]; then
        last=${COMP_WORDS[COMP_CWORD-2]}
    elif ((COMP_CWORD > 0)); then
        last=${COMP_WORDS[COMP_CWORD-1]}
    fi
    command=${COMP_WORDS[1]}
    if ((COMP_CWORD < 2)); then
        COMPREPLY=($(compgen -W "]=]

local MIDDLE = [=[ help -h --help --version" -- "$word"))
        return
    fi
    if [[ $command == help ]]; then
        ((COMP_CWORD == 2)) && COMPREPLY=($(compgen -W "]=]

local CASES = [=[" -- "$word"))
        return
    fi
    case $command in
]=]

-- After the cases: what the word may be. The words of a command that another one is given to, behind its
-- first operand, are that one's.
local TAIL = [=[
    *) return ;;
    esac
    if [[ $rest ]]; then
        for ((i = 2; i < COMP_CWORD; i++)); do
            if [[ ${COMP_WORDS[i]} == -- ]]; then
                at=$((i + 1)) && break
            elif [[ ${COMP_WORDS[i]} != [-=]* && ${COMP_WORDS[i-1]} != = &&
                " $valued " != *" ${COMP_WORDS[i-1]} "* ]]; then
                at=$i && break
            fi
        done
        if ((at > 0)); then
            compopt -o default 2>/dev/null
            return
        fi
    fi
    if [[ $last == -* && " $valued " == *" $last "* ]]; then
        case "$command $last" in
]=]

local END = [=[
        *) return ;;
        esac
        COMPREPLY=($(compgen -W "$choices" -- "$word"))
    elif [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$word"))
    elif [[ $operands ]]; then
        COMPREPLY=($(compgen -W "$operands" -- "$word"))
    elif [[ $files ]]; then
        compopt -o default 2>/dev/null
    fi
}
complete -F _lockkeeper lockkeeper
]=]

local function names_of(commands)
  local names = {}
  for i, command in ipairs(commands) do
    names[i] = command.name
  end
  return table.concat(names, " ")
end

---@param commands table[]  see lockkeeper.cli.completion
---@return string
return function(commands)
  local cases, values = {}, {}
  for _, command in ipairs(commands) do
    local flags, valued = {}, {}
    for _, option in ipairs(command.options) do
      table.move(option.names, 1, #option.names, #flags + 1, flags)
      if option.value then
        table.move(option.names, 1, #option.names, #valued + 1, valued)
        local patterns = {}
        for i, name in ipairs(option.names) do
          patterns[i] = ('"%s %s"'):format(command.name, name)
        end
        if option.value.choices then
          values[#values + 1] = ('        %s) choices="%s" ;;\n'):format(table.concat(patterns, " | "),
            table.concat(option.value.choices, " "))
        elseif option.value.is_file then
          values[#values + 1] = ("        %s) compopt -o default 2>/dev/null; return ;;\n"):format(
            table.concat(patterns, " | "))
        end
      end
    end
    cases[#cases + 1] = ('    %s) flags="%s" valued="%s"%s%s%s ;;\n'):format(command.name,
      table.concat(flags, " "), table.concat(valued, " "),
      command.operand.choices and (' operands="%s"'):format(table.concat(command.operand.choices, " ")) or "",
      command.has_operands and command.operand.is_file and " files=1" or "", command.rest and " rest=1" or "")
  end
  local names = names_of(commands)
  return HEAD .. names .. MIDDLE .. names .. CASES .. table.concat(cases) .. TAIL:gsub("^\n", "")
    .. table.concat(values) .. END:gsub("^\n", "")
end
