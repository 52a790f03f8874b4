--- The keys of `lockkeeper top`, and what its expressions may be made of.
local page = require "lockkeeper.top.page"

local KEYS = {
  { "q", "ends it" },
  { "Tab, 1, 2, 3", "the tabs: who waits for whom; locks; jobs" },
  { "↑ ↓ PgUp PgDn", "choose a line; also j, k, Home, End, g, G" },
  { "Enter", "all about the session, or the job, of this line; Escape goes back" },
  { "c", "cancels the session's statement, or the job's runs, after a question" },
  { "t", "terminates the session, after a question" },
  { "/", "shows only what an expression is true of; an empty one shows all" },
  { "> <", "sorts by the next column, the one before; after the last: the usual order" },
  { "r", "sorts the other way round" },
  { "u", "Tree: a line for each session, or alike ones in one" },
  { "p", "stops looking, or goes on" },
  { "Space", "looks now" },
  { "Ctrl-L", "draws the screen anew" },
}

local NOTES = {
  "FOR is how long a session has waited or, where it does not wait, has been in its state. BEHIND is how ",
  "many wait for it, also through others. A session at the top waits for nobody: ending it lets those below ",
  "go on. Cancelling one that is idle in a transaction changes nothing: only terminating ends it.\n\n",
  "An expression is Lua's, as for \"lockkeeper ls --where\". It has the line's fields, string, math, ",
  "methods of texts, as in query:find(\"orders\"), and duration(\"5m\"), and nothing else. As in SQL a ",
  "comparison with what is nil does not hold.",
}

return function(tabs)
  return {
    title = "Help",
    first = 1,
    lines = function(_, columns)
      local lines = {}
      for _, key in ipairs(KEYS) do
        local room = (" "):rep(math.max(0, 15 - utf8.len(key[1])))
        lines[#lines + 1] = { text = ("%s%s %s"):format(key[1], room, key[2]) }
      end
      page.head(lines, "What it means")
      page.text(lines, table.concat(NOTES), columns)
      for _, tab in ipairs(tabs) do
        local names = {}
        for name in pairs(tab.fields) do
          names[#names + 1] = type(name) == "string" and name or nil
        end
        table.sort(names)
        page.head(lines, ("Fields of %s, as in: %s"):format(tab.title, tab.example))
        page.text(lines, table.concat(names, " "), columns)
      end
      return lines
    end,
  }
end
