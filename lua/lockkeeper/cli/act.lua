--- --act [NAME]: which audits may act on what they find.
return {
  "--act", value = "[NAME]", key = "act", list = true,
  -- A file may follow, too.
  optional = function(word)
    return not (word:find("^%-") or word:find("/", 1, true) or word:find("%.lua$"))
  end,
  help = "let audits cancel or terminate sessions as their `action` says: all of them, or this one; may be "
    .. "repeated",
}
