#!/usr/bin/env bash
# The runner's size and speed, each beside its limit; exit code 1 where one is not kept:
#
#   idle    10,000 jobs of which none is due: memory of the supervisor, and its share of a core
#   warm    milliseconds from a slot to the job's first line, median, with a process that waits for it
#   cold    the same with a new process for each run
#   runs    runs a second of an empty job, of a burst of 3,000, with --warm 4
#
#   tests/bench/runner.sh [BUILD-FOLDER [SECONDS]]
#
# SECONDS: how long idle, warm and cold are watched; default 20.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build} seconds=${2:-20}
export LOCKKEEPER_EMBEDDED_DIR
LOCKKEEPER_EMBEDDED_DIR=$(mktemp -d /tmp/lockkeeper-bench-XXXXXX)
[ "$(id -u)" != 0 ] || chown postgres "$LOCKKEEPER_EMBEDDED_DIR"
work=$LOCKKEEPER_EMBEDDED_DIR.work
mkdir "$work"
pid=
ended() {
  [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
  wait
  "$build/lockkeeper" db stop >/dev/null
  rm -rf "$LOCKKEEPER_EMBEDDED_DIR" "$work"
}
trap ended EXIT
DATABASE_URL=$("$build/lockkeeper" db url 2>/dev/null)
export DATABASE_URL

ask() { "$build/lockkeeper" run --log-level error tests/bench/ask.lua "$1"; }

# serve FILE OPTION...: a supervisor in the background that has begun to serve
serve() {
  local file=$1
  shift
  "$build/lockkeeper" serve "$file" "$@" 2>"$work/log" &
  pid=$!
  for ((i = 0; i < 600; i++)); do
    ! grep -q 'msg=serving' "$work/log" || return 0
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  cat "$work/log" >&2
  exit 1
}

stop() {
  kill "$pid"
  wait "$pid"
  pid=
  ask "truncate lockkeeper.run, lockkeeper.job, lockkeeper.fence" >/dev/null
}

ticks() { awk '{ print $14 + $15 }' "/proc/$pid/stat"; }

# verdict NAME VALUE UNIT below|above LIMIT
late=0
verdict() {
  local ok=ok
  awk -v v="$2" -v l="$5" -v how="$4" 'BEGIN { exit !(how == "below" ? v < l : v >= l) }' || { ok=MISSED; late=1; }
  printf '%-28s %9s %-4s %s %-6s %s\n' "$1" "$2" "$3" "$4" "$5" "$ok"
}

median() { sort -g | awk '{ v[NR] = $1 } END { print NR ? v[int((NR + 1) / 2)] : "nan" }'; }

cat >"$work/idle.lua" <<'LUA'
local lock = require "lockkeeper"
for i = 1, 10000 do
  lock.job(("idle:%05d"):format(i), { schedule = "~ ~ 29 2 *", run = function() end })
end
LUA
serve "$work/idle.lua"
sleep 2
before=$(ticks)
sleep "$seconds"
after=$(ticks)
verdict "idle: memory" "$(awk '/^VmHWM/ { printf "%.1f", $2 / 1024 }' "/proc/$pid/status")" MB below 100
verdict "idle: share of a core" \
  "$(awk -v t=$((after - before)) -v s="$seconds" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f", 100 * t / hz / s }')" \
  % below 1
stop

cat >"$work/lag.lua" <<'LUA'
local lock = require "lockkeeper"
for i = 1, 3 do
  lock.job("lag:" .. i, { every = "1s", run = function(job)
    print(("%.3f"):format((require("lockkeeper.core").now() - job.slot) * 1000))
  end })
end
LUA
lags() { sed -n 's/^.*msg=\([0-9.]*\) .*$/\1/p' "$work/log" | tail -n +7 | median; }
serve "$work/lag.lua" --workers 4 --warm 4
sleep "$seconds"
verdict "warm: due to first line" "$(lags)" ms below 20
stop
serve "$work/lag.lua" --workers 4
sleep "$seconds"
verdict "cold: due to first line" "$(lags)" ms below 60
stop

cat >"$work/burst.lua" <<'LUA'
local lock = require "lockkeeper"
for i = 1, 3000 do
  lock.job(("burst:%04d"):format(i), { schedule = "@start", run = function() end })
end
LUA
serve "$work/burst.lua" --workers 4 --warm 4 
for ((i = 0; i < 600; i++)); do
  [ "$(ask "select count(*) from lockkeeper.run where ended_at is not null")" -lt 3000 ] || break
  sleep 0.5
done
verdict "runs a second" "$(ask "select round((count(*) / extract(epoch from max(ended_at) - min(claimed_at)))::numeric, 1)
  from lockkeeper.run where state = 'succeeded'")" /s above 200
stop
exit "$late"
