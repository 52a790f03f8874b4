--- lock.unset: in a policy, takes a key away that an earlier one has set.
return setmetatable({}, {
  __name = "lock.unset",
  __tostring = function() return "lock.unset" end,
})
