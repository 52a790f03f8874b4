--- What a lock is on, for people: "public.orders", "row (0,5) of public.orders", "advisory 42 nightly".
local field = require "lockkeeper.report.field"

-- "public.orders"
local function relation_text(row)
  if not row.relation then
    return "?"
  end
  return row.schema and row.schema .. "." .. row.relation or row.relation
end

local DESCRIBED = {
  relation = relation_text,
  extend = function(row) return "extension of " .. relation_text(row) end,
  page = function(row) return ("page %s of %s"):format(row.page, relation_text(row)) end,
  tuple = function(row) return ("row (%s,%s) of %s"):format(row.page, row.tuple, relation_text(row)) end,
  transactionid = function(row) return ("transaction %s"):format(row.transactionid) end,
  virtualxid = function(row) return ("virtual transaction %s"):format(row.virtualxid) end,
  advisory = function(row)
    return ("advisory %s%s"):format(row.key and field.key(row.key) or "?",
      row.lock_name and (" %s"):format(row.lock_name) or "")
  end,
}

--- Of a row of lock.locks or lock.blocked; nil where it is of a wait that was over when it was looked for.
---@param row LockRow
---@return string?
return function(row)
  if not row.type then
    return nil
  end
  local describe = DESCRIBED[row.type]
  if describe then
    return describe(row)
  end
  local text = row.type
  if row.classid then
    text = ("%s %s/%s/%s"):format(text, row.classid, row.objid, row.objsubid)
  end
  return row.relation and text .. " of " .. relation_text(row) or text
end
