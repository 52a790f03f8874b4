--- Durations for people: 0.3s, 45s, 9m40s, 3h12m, 2d4h.
---@param seconds number
---@return string
return function(seconds)
  if seconds < 0 then
    seconds = 0
  end
  if seconds < 10 then
    return ("%.1fs"):format(seconds)
  end
  local whole = math.floor(seconds)
  if whole < 60 then
    return ("%ds"):format(whole)
  elseif whole < 3600 then
    return ("%dm%02ds"):format(whole // 60, whole % 60)
  elseif whole < 86400 then
    return ("%dh%02dm"):format(whole // 3600, whole % 3600 // 60)
  end
  return ("%dd%dh"):format(whole // 86400, whole % 86400 // 3600)
end
