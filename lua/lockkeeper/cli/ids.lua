--- Lock ids on the command line.
local failure = require "lockkeeper.cli.failure"

local ids = {}

ids.SCHEMES = { "pglock", "pglocks", "postgresql-lock", "with_advisory_lock", "hashtext" }

ids.OPTIONS = {
  { "--scheme", value = "SCHEME", key = "scheme", kind = "choice", choices = ids.SCHEMES,
    help = "how the name becomes a key: " .. table.concat(ids.SCHEMES, ", ") },
  { "--prefix", value = "N", key = "prefix", kind = "integer", from = -2147483648, to = 2147483647,
    help = "with_advisory_lock's number" },
}

ids.TEXT = "ID is a name; without --scheme a whole number is a bigint key, and N,M two int4 keys."

--- The id that a word means: a number or two only where no scheme says that it is a name.
function ids.parse(word, scheme)
  if word == "" then
    failure.words("the ID is empty")
  elseif scheme then
    return word
  end
  local a, b = word:match("^(%-?%d+),(%-?%d+)$")
  if a then
    return { math.tointeger(a), math.tointeger(b) }
  end
  if word:match("^%-?%d+$") then
    local key = math.tointeger(word)
    if not key then
      failure.words(("%s is larger than a bigint key can be; --scheme makes it a name"):format(word))
    end
    return key
  end
  return word
end

return ids
