#!/usr/bin/env bash
# The runner as a whole, on the database of $DATABASE_URL; figures on stdout:
#
#   serve.sh BUILD WORK idle JOBS SECONDS   jobs of which none is due: seconds until they are served, MB of
#                                           the supervisor, its share of a core in percent
#   serve.sh BUILD WORK lag WARM SECONDS    milliseconds from a slot to the job's first line, the median;
#                                           WARM: how many processes wait for a run; then MB of one
#                                           of these, 0 where there is none
#   serve.sh BUILD WORK runs COUNT          runs a second of an empty job, of a burst of COUNT, with 4 warm
#                                           workers
set -euo pipefail
build=$1 work=$2 what=$3 pid=
shift 3
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true; wait' EXIT

ask() { "$build/lockkeeper" run --log-level error tests/bench/ask.lua "$1"; }

# serve FILE OPTION...: a supervisor in the background that has begun to serve
serve() {
  local file=$1 i
  shift
  : >"$work/serve.log"
  "$build/lockkeeper" serve "$file" "$@" 2>"$work/serve.log" &
  pid=$!
  for ((i = 0; i < 3000; i++)); do
    ! grep -q 'msg=serving' "$work/serve.log" || return 0
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  cat "$work/serve.log" >&2
  exit 1
}

stop() {
  kill "$pid"
  wait "$pid"
  pid=
  ask "truncate lockkeeper.run, lockkeeper.job, lockkeeper.fence" >/dev/null
}

descendants() {
  local child
  for child in $(pgrep -P "$1"); do
    echo "$child"
    descendants "$child"
  done
}

ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
megabytes() { awk -v field="$2:" '$1 == field { printf "%.1f", $2 / 1024 }' "/proc/$1/status"; }
median() { sort -g | awk '{ v[NR] = $1 } END { print NR ? v[int((NR + 1) / 2)] : "none" }'; }

case $what in
  idle)
    # Files of a thousand jobs: one that takes seconds to load is a fault.
    rm -rf "$work/idle"
    mkdir "$work/idle"
    for ((first = 1; first <= $1; first += 1000)); do
      last=$((first + 999 < $1 ? first + 999 : $1))
      cat >"$work/idle/$first.lua" <<LUA
local lock = require "lockkeeper"
for i = $first, $last do
  lock.job(("idle:%06d"):format(i), { schedule = "~ ~ 29 2 *", run = function() end })
end
LUA
    done
    start=$EPOCHREALTIME
    serve "$work/idle"
    served=$EPOCHREALTIME
    sleep 2
    before=$(ticks "$pid")
    sleep "$2"
    after=$(ticks "$pid")
    awk -v a="$start" -v b="$served" -v t=$((after - before)) -v s="$2" -v hz="$(getconf CLK_TCK)" \
      -v memory="$(megabytes "$pid" VmHWM)" \
      'BEGIN { printf "%.2f %s %.2f\n", b - a, memory, 100 * t / hz / s }'
    ;;
  lag)
    cat >"$work/lag.lua" <<'LUA'
local lock = require "lockkeeper"
for i = 1, 3 do
  lock.job("lag:" .. i, { every = "1s", run = function(job)
    print(("%.3f"):format((require("lockkeeper.core").now() - job.slot) * 1000))
  end })
end
LUA
    serve "$work/lag.lua" --workers 4 --warm "$1"
    sleep "$2"
    worker=
    for child in $(descendants "$pid"); do
      ! tr '\0' ' ' <"/proc/$child/cmdline" | grep -q ' work ' || worker=$child
    done
    sed -n 's/^.*msg=\([0-9.]*\) .*$/\1/p' "$work/serve.log" | tail -n +7 | median
    if [ -n "$worker" ]; then megabytes "$worker" VmRSS; else echo 0; fi
    ;;
  runs)
    cat >"$work/burst.lua" <<LUA
local lock = require "lockkeeper"
for i = 1, $1 do
  lock.job(("burst:%04d"):format(i), { schedule = "@start", run = function() end })
end
LUA
    serve "$work/burst.lua" --workers 4 --warm 4
    for ((i = 0; i < 600; i++)); do # by its log: to ask the database would be work of its own
      [ "$(grep -c 'msg="job ' "$work/serve.log")" -lt $((2 * $1)) ] || break
      sleep 0.5
    done
    ask "select round((count(*) / extract(epoch from max(ended_at) - min(claimed_at)))::numeric, 1)
           from lockkeeper.run where state = 'succeeded'"
    ;;
esac
stop
