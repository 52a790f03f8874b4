--- Traced statements as analyze prints them.
local lockkeeper = require "lockkeeper"
local modes = require "lockkeeper.analyze.modes"
local safe = require "lockkeeper.report.safe"
local text_width = require "lockkeeper.report.width"

local traced = {}

local json, array, null = lockkeeper.json, lockkeeper.array, lockkeeper.null

-- How far what belongs to a statement is moved in, and how many partitions of one table are named.
local INDENT, PARTITIONS_NAMED = 8, 3

local strength = modes.strength

---------------------------------------------------------------------------------------------------
-- for people

local function count_text(number)
  local text = tostring(number)
  repeat
    local changes
    text, changes = text:gsub("^(%d+)(%d%d%d)", "%1,%2")
  until changes == 0
  return text
end

local UNITS = { "kB", "MB", "GB", "TB" }

local function size_text(bytes)
  local size, unit = bytes / 1024, 1
  while size >= 1024 and unit < #UNITS do
    size, unit = size / 1024, unit + 1
  end
  return ("%.0f %s"):format(size, UNITS[unit])
end

local function time_text(seconds)
  return seconds < 1 and ("%.0f ms"):format(seconds * 1000) or ("%.1f s"):format(seconds)
end

local function rows_text(number)
  return ("%s row%s"):format(count_text(number), number == 1 and "" or "s")
end

local function relation_text(relation)
  local notes = {}
  if relation.kind ~= "table" then
    notes[#notes + 1] = relation.kind .. (relation.table_name and " of " .. relation.table_name or "")
  end
  if relation.partition_of then
    notes[#notes + 1] = "partition of " .. relation.partition_of
  end
  if relation.rows and relation.bytes and not relation.table_name then
    notes[#notes + 1] = ("about %s, %s"):format(rows_text(relation.rows), size_text(relation.bytes))
  end
  return relation.on .. (#notes > 0 and (" (%s)"):format(table.concat(notes, "; ")) or "")
end

local function blocks_text(lock)
  local relation = lock.relation
  if lock.type == "object" then
    return "DDL on it"
  elseif lock.type == "advisory" then
    return "sessions that ask for the same key"
  elseif relation and relation.table_name and lock.mode == "ACCESS EXCLUSIVE" then
    return ("reads and writes of %s that would use it"):format(relation.table_name)
  elseif relation and relation.kind == "sequence" and strength(lock.mode) >= strength "SHARE" then
    return "whoever asks it for a number"
  end
  return modes.in_words(lock.mode)
end

-- Whether it is on an index and says nothing of its own: in a mode that only DDL waits for, as every query
-- takes it, or where its table is locked as strongly. `of_tables`: the strongest mode by table.
local function is_dull(lock, of_tables)
  local relation = lock.relation
  return relation and relation.table_name and (strength(lock.mode) < strength "SHARE UPDATE EXCLUSIVE"
    or strength(of_tables[relation.table_name]) >= strength(lock.mode))
end

-- The strongest mode of these locks on each thing.
local function strongest_by_name(locks)
  local best = {}
  for _, lock in ipairs(locks) do
    if strength(lock.mode) > strength(best[lock.on]) then
      best[lock.on] = lock.mode
    end
  end
  return best
end

-- What was there before comes first, the strongest first.
local function comes_before(a, b)
  local a_is_new = a.relation ~= nil and not a.relation.existed
  local b_is_new = b.relation ~= nil and not b.relation.existed
  if a_is_new ~= b_is_new then
    return not a_is_new
  end
  if strength(a.mode) ~= strength(b.mode) then
    return strength(a.mode) > strength(b.mode)
  end
  return a.on < b.on
end

-- The locks to show: the strongest on each thing, one a line, of a partitioned table's partitions the first
-- few; and what is new, which is told once.
local function shown_locks(entry, told)
  local list, made, partitions = {}, {}, {}
  local best = strongest_by_name(entry.locks)
  local sorted = table.move(entry.locks, 1, #entry.locks, 1, {})
  table.sort(sorted, comes_before)
  for _, lock in ipairs(sorted) do
    local relation = lock.relation
    if relation and not relation.existed then
      if not told[relation] then
        told[relation], made[#made + 1] = true, relation.on
      end
    elseif (best[lock.on] == lock.mode or lock.type ~= "relation") and not is_dull(lock, best) then
      local key = relation and relation.partition_of and ("%s %s"):format(lock.mode, relation.partition_of)
      local more = key and partitions[key]
      if more and more.count >= PARTITIONS_NAMED then
        more.hidden = more.hidden + 1
        more.line.more = ("and %s more partition%s of %s"):format(count_text(more.hidden),
          more.hidden == 1 and "" or "s", relation.partition_of)
      else
        local line = { lock = lock }
        list[#list + 1] = line
        if key then
          partitions[key] = { count = (more and more.count or 0) + 1, hidden = 0, line = line }
        end
      end
    end
  end
  return list, made
end

-- A text in lines of the terminal's width; one line where it goes to no terminal.
local function fill(lines, text, indent, hang, width)
  local head = (" "):rep(indent)
  if not width or width < indent + 30 then
    lines[#lines + 1] = head .. text
    return
  end
  local line, is_empty = head, true
  for word in text:gmatch("%S+") do
    if not is_empty and text_width.of(line) + 1 + text_width.of(word) > width then
      lines[#lines + 1] = line
      line, is_empty = (" "):rep(indent + hang), true
    end
    line = line .. (is_empty and "" or " ") .. word
    is_empty = false
  end
  lines[#lines + 1] = line
end

local function lock_text(lock)
  return ("%s on %s%s: %s %s"):format(lock.mode,
    lock.relation and relation_text(lock.relation) or lock.on,
    lock.since_line and (", held since line %d"):format(lock.since_line) or "",
    lock.is_measured and "blocks" or "would block", blocks_text(lock))
end

-- Scans that somebody waits for: plain queries scan too.
local function heavy_scans(entry)
  local list = {}
  for _, scan in ipairs(entry.scans) do
    if strength(scan.under) >= strength "SHARE UPDATE EXCLUSIVE" then
      list[#list + 1] = scan
    end
  end
  return list
end

-- What there is to say of a statement, below it.
local function details(entry, width, told)
  local lines = {}
  local function say(text, hang)
    fill(lines, safe.line(text), INDENT, hang or 2, width)
  end
  local locks, made = shown_locks(entry, told)
  for _, line in ipairs(locks) do
    say(lock_text(line.lock))
    if line.more then
      say(line.more)
    end
  end
  if #made > 0 then
    say("on what the file itself makes: " .. table.concat(made, ", "))
  end
  local rewritten = {}
  for _, rewrite in ipairs(entry.rewrites) do
    rewritten[rewrite.relation] = true
    say(("%s %s"):format(rewrite.relation.table_name and "rebuilds" or "rewrites",
      relation_text(rewrite.relation)))
  end
  for _, scan in ipairs(heavy_scans(entry)) do
    if not rewritten[scan.relation] then
      say(("scans all of %s (%s read) under %s"):format(scan.relation.on, rows_text(scan.rows), scan.under))
    end
  end
  for _, change in ipairs(entry.changes) do
    say(("changes %s of %s"):format(rows_text(change.rows), change.relation.on))
  end
  if entry.state == "failed" then
    say("failed: " .. entry.error.message)
  elseif entry.reason then
    say("not run: " .. entry.reason)
  end
  for _, text in ipairs(entry.advice or {}) do
    say("advice: " .. text)
  end
  return lines
end

local function head(entry, more, width)
  local number = ("%6d  "):format(entry.line)
  local tail = more > 0 and ("  and %s more like it"):format(count_text(more))
    or entry.took and ("  (%s)"):format(time_text(entry.took)) or ""
  local text = safe.line(entry.text)
  if width then
    text = text_width.cut(text, math.max(20, width - #number - #tail))
  end
  return number .. text .. tail
end

-- Of each of the file's transactions the strongest lock on each relation that existed before.
local function held_until_end(entries)
  local list, by_relation = {}, {}
  for _, entry in ipairs(entries) do
    local best = strongest_by_name(entry.locks)
    for _, lock in ipairs(entry.locks) do
      local relation = lock.relation
      if relation and relation.existed and lock.is_measured and not lock.since_line
        and not is_dull(lock, best) and strength(lock.mode) >= strength "SHARE UPDATE EXCLUSIVE" then
        local known = by_relation[relation]
        if not known then
          known = { relation = relation }
          by_relation[relation], list[#list + 1] = known, known
        end
        if not known.lock or strength(lock.mode) > strength(known.lock.mode) then
          known.lock, known.line = lock, entry.line
        end
      end
    end
    if entry.control then
      by_relation = {}
    end
  end
  return list
end

-- Does it do nothing that the one before it of the same words has not done?
local function is_more_of(entry, before)
  if entry.words ~= before.words or entry.state ~= "ran" or before.state ~= "ran"
    or #entry.rewrites + #entry.changes + #entry.advice + #heavy_scans(entry) > 0 then
    return false
  end
  for _, lock in ipairs(entry.locks) do
    if not lock.since_line then
      return false
    end
  end
  return true
end

local function print_summary(entries, width)
  local list = held_until_end(entries)
  local lines = {}
  if #list == 0 then
    fill(lines, "No lock stronger than ROW EXCLUSIVE was held on what existed before.", 0, 2, width)
  else
    lines[1] = "Held until the end of the transaction, on what existed before:"
    for _, item in ipairs(list) do
      fill(lines, safe.line(("%s on %s from line %d on, here for %s: blocks %s"):format(item.lock.mode,
        item.relation.on, item.line, time_text(item.lock.held or 0), blocks_text(item.lock))), 2, 2, width)
    end
  end
  io.stdout:write("\n", table.concat(lines, "\n"), "\n")
end

--- Print them for people.
---@param entries TraceEntry[]
---@param first_line string
---@param width? integer    of the terminal
function traced.print(entries, first_line, width)
  io.stdout:write(safe.line(first_line), "\n")
  if #entries == 0 then
    io.stdout:write("There is no statement in it.\n")
    return
  end
  local i, told = 1, {}
  while i <= #entries do
    local entry = entries[i]
    local lines, more = details(entry, width, told), 0
    -- What differs in its values only, and does nothing new, needs no line of its own.
    while entries[i + 1] and is_more_of(entries[i + 1], entry) do
      i, more = i + 1, more + 1
    end
    io.stdout:write(head(entry, more, width), "\n")
    if #lines > 0 then
      io.stdout:write(table.concat(lines, "\n"), "\n")
    end
    i = i + 1
  end
  print_summary(entries, width)
end

---------------------------------------------------------------------------------------------------
-- for programs

local function text_or_null(text)
  return text and safe.utf8(text) or null
end

local function list_of(items, object_of)
  local list = {}
  for i, item in ipairs(items or {}) do
    list[i] = object_of(item)
  end
  return array(list)
end

-- The fields of a relation, added to an object.
local function with_relation(object, relation)
  object.on = text_or_null(object.on or relation and relation.on)
  object.schema = text_or_null(relation and relation.schema)
  object.relation = text_or_null(relation and relation.name)
  object.relation_kind = relation and relation.kind or null
  object.partition_of = text_or_null(relation and relation.partition_of)
  object.index_of = text_or_null(relation and relation.table_name)
  object.existed_before = relation and relation.existed or false
  return object
end

local function lock_object(lock)
  return with_relation({
    type = lock.type, mode = lock.mode, on = lock.on, is_measured = lock.is_measured,
    blocks = array(table.move(modes.blocks(lock.mode), 1, 5, 1, {})),
    blocks_in_words = safe.utf8(blocks_text(lock)),
    since_line = lock.since_line or null, held = lock.held or null,
    rows = lock.relation and lock.relation.rows or null,
    bytes = lock.relation and lock.relation.bytes or null,
  }, lock.relation)
end

local function error_object(err)
  return { kind = err.kind, message = safe.utf8(err.message), sqlstate = err.sqlstate or null,
    detail = text_or_null(err.detail), hint = text_or_null(err.hint) }
end

local function entry_object(entry)
  local sorted = table.move(entry.locks, 1, #entry.locks, 1, {})
  table.sort(sorted, comes_before)
  return {
    line = entry.line, statement = safe.utf8(entry.text), state = entry.state,
    reason = text_or_null(entry.reason), took = entry.took or null,
    locks = list_of(sorted, lock_object),
    rewrites = list_of(entry.rewrites, function(rewrite) return with_relation({}, rewrite.relation) end),
    scans = list_of(entry.scans, function(scan)
      return with_relation({ rows = scan.rows, under = scan.under or null }, scan.relation)
    end),
    changes = list_of(entry.changes, function(change)
      return with_relation({ rows = change.rows }, change.relation)
    end),
    advice = list_of(entry.advice, safe.utf8),
    error = entry.error and error_object(entry.error) or null,
  }
end

--- Print them as a JSON list of objects, one a statement.
---@param entries TraceEntry[]
function traced.print_json(entries)
  if #entries == 0 then
    print("[]")
    return
  end
  for i, entry in ipairs(entries) do
    io.stdout:write(i == 1 and "[\n" or ",\n", json.encode(entry_object(entry)))
  end
  io.stdout:write("\n]\n")
end

return traced
