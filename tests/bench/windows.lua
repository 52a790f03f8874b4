-- Runs batch() again and again for `seconds`, or `most` times. Returns how often, and the seconds that one
-- takes: the median, since what else the machine does for a moment only makes a few of them slow.
return function(now, batch, seconds, most)
  local times, start = {}, now()
  local last = start
  repeat
    batch()
    local at = now()
    times[#times + 1] = at - last
    last = at
  until most and #times >= most or not most and last - start >= seconds
  table.sort(times)
  return #times, times[#times // 2 + 1]
end
