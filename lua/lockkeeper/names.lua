--- Names for advisory keys: lock.names.
--
-- A key is a number that somebody made of a name, and no number says of which. So names are tried:
-- those that were given and those of the locks that this process holds, under every scheme, and those in
-- the table lockkeeper.lock_name, where it exists and this role may read it: (classid, objid, objsubid)
-- as in pg_locks, and name. Where several names make a key, all of them are shown, marked as a guess:
-- "a | b (?)".
local core = require "lockkeeper.core"

local names = {}

local SCHEMES = { "pglock", "pglocks", "postgresql-lock", "with_advisory_lock" }

local HASHTEXT_SQL = [[
SELECT n.name, pg_catalog.hashtext(n.name) AS key
  FROM pg_catalog.unnest($1::pg_catalog.text[]) AS n(name)]]

local TIMEOUT_SQL = "SELECT pg_catalog.set_config('lock_timeout', '500ms', true)"

local HAS_TABLE_SQL = [[
SELECT COALESCE(pg_catalog.has_table_privilege(pg_catalog.to_regclass('lockkeeper.lock_name'), 'SELECT'),
                false)]]

local TABLE_SQL = [[
SELECT n.classid::pg_catalog.int8, n.objid::pg_catalog.int8, n.objsubid::pg_catalog.int4,
       n.name::pg_catalog.text
  FROM lockkeeper.lock_name n]]

-- What was given, and the names to try that it comes to: as a set, and as a list.
local given, patterns = {}, {}
local known, list = {}, {}

-- What they make: by key, as look_keys has them, a set of names. Made anew when names were added.
local made
-- The same of hashtext, by session, since only a server knows it.
local hashed = setmetatable({}, { __mode = "k" })

---------------------------------------------------------------------------------------------------
-- which names

local function check_name(value, what)
  if type(value) ~= "string" then
    core.usage(("names: %s must be a text, not a %s"):format(what, type(value)))
  end
  return value
end

local function add(name)
  if not known[name] then
    known[name] = true
    list[#list + 1] = name
    made, hashed = nil, setmetatable({}, { __mode = "k" })
  end
end

-- The text with `name` in place of each %s; %% is a percent sign.
local function fill(pattern, name)
  local found = false
  local filled = pattern:gsub("%%(.?)", function(letter)
    found = found or letter == "s"
    return letter == "s" and name or letter == "%" and "%" or nil
  end)
  if not found then
    core.usage(('names: the pattern "%s" has no %%s, where each name is put'):format(pattern))
  end
  return filled
end

--- Names to try when an advisory key is to be shown as a name: each as it is, and put in place of %s in
--- each pattern. Later calls add to both.
---@param spec table  { "nightly-report", …, pattern = "job:%s" } or pattern = { "job:%s", "slot:%s" }
function names.add(spec)
  if type(spec) ~= "table" then
    core.usage("names: a list of names was expected, not a " .. type(spec))
  end
  local new_patterns, new_names = {}, {}
  for key, value in pairs(spec) do
    if key == "pattern" then
      new_patterns = type(value) == "table" and value or { value }
    elseif math.type(key) == "integer" then
      new_names[#new_names + 1] = check_name(value, "a name")
    else
      local near = type(key) == "string" and core.nearest(key, { "pattern" })
      core.usage(("names: unknown option %s%s"):format(tostring(key),
        near and ('; did you mean "%s"?'):format(near) or ""))
    end
  end
  for _, pattern in ipairs(new_patterns) do
    fill(check_name(pattern, "pattern"), "")
  end
  table.move(new_patterns, 1, #new_patterns, #patterns + 1, patterns)
  table.move(new_names, 1, #new_names, #given + 1, given)
  for _, name in ipairs(given) do
    add(name)
    for _, pattern in ipairs(patterns) do
      add(fill(pattern, name))
    end
  end
end

---------------------------------------------------------------------------------------------------
-- which keys they make

-- A key as a table's key: an integer, or "1,2" for two int4 keys.
local function key_name(first, second)
  return second and ("%d,%d"):format(first, second) or first
end

local function put(found, key, name)
  found[key] = found[key] or {}
  found[key][name] = true
end

local function by_scheme(candidates)
  local found = {}
  for _, name in ipairs(candidates) do
    for _, scheme in ipairs(SCHEMES) do
      put(found, key_name(core.key(name, { scheme = scheme })), name)
    end
  end
  return found
end

local function by_hashtext(session)
  if not hashed[session] then
    local found, texts = {}, {}
    for _, name in ipairs(list) do
      if utf8.len(name) and not name:find("\0", 1, true) then -- else it is no text of the server's
        texts[#texts + 1] = name
      end
    end
    for _, row in ipairs(session:query(HASHTEXT_SQL, core.array(texts))) do
      put(found, row.key, row.name)
    end
    hashed[session] = found
  end
  return hashed[session]
end

-- The keys in pg_locks' form are those of key_parts; bigint keys have objsubid 1.
local function key_of_parts(classid, objid, objsubid)
  local function signed(half)
    return half >= 1 << 31 and half - (1 << 32) or half
  end
  if objsubid == 1 then
    return classid << 32 | objid
  end
  return key_name(signed(classid), signed(objid))
end

local function by_table(session, keys)
  local found = {}
  local rows = session:transaction({ read_only = true }, function(tx)
    tx:query(TIMEOUT_SQL)
    return tx:value(HAS_TABLE_SQL) and tx:query(TABLE_SQL) or {}
  end)
  for _, row in ipairs(rows) do
    local key = key_of_parts(row.classid, row.objid, row.objsubid)
    if keys[key] then
      put(found, key, row.name)
    end
  end
  return found
end

-- What the server says is a help, and no more: without it there are fewer names.
local function best_effort(fn, ...)
  local ok, result = pcall(fn, ...)
  if ok then
    return result
  elseif type(result) ~= "table" or result.kind == "cancelled" then
    error(result, 0)
  end
  core.log("debug", "names of advisory keys: " .. result.message, {}, {})
  return {}
end

local function join(set)
  local sorted = {}
  for name in pairs(set) do
    sorted[#sorted + 1] = name
  end
  table.sort(sorted)
  return #sorted == 1 and sorted[1] or table.concat(sorted, " | ") .. " (?)"
end

--- What keys are called.
---@param session? Session                     a free one to ask on, in no transaction; nil: asks nobody
---@param keys table<integer|string, true>     integers, or "1,2" for two int4 keys
---@return table<integer|string, string> names
function names.of(session, keys)
  local result = {}
  if next(keys) == nil then
    return result
  end
  made = made or by_scheme(list)
  local sources = { made, by_scheme(core.held_names()) }
  if session then
    sources[3] = #list > 0 and best_effort(by_hashtext, session) or {}
    sources[4] = best_effort(by_table, session, keys)
  end
  for key in pairs(keys) do
    local all = {}
    for _, source in ipairs(sources) do
      for name in pairs(source[key] or {}) do
        all[name] = true
      end
    end
    if next(all) then
      result[key] = join(all)
    end
  end
  return result
end

return names
