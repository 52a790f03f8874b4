#!/usr/bin/env bash
# What a lock costs, against the limit: pairs of acquire and release a second by a Lua loop and by
# bare libpq, and a process that connects, locks, releases and exits by lockkeeper and by C. All on
# one CPU (client and server), in turns, so that the ratio holds while the machine's speed drifts.
#
#   tests/bench/foundation.sh [BUILD-FOLDER [ROUNDS]]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build} rounds=${2:-7}
export LOCKKEEPER_EMBEDDED_DIR
LOCKKEEPER_EMBEDDED_DIR=$(mktemp -d /tmp/lockkeeper-bench-XXXXXX)
[ "$(id -u)" != 0 ] || chown postgres "$LOCKKEEPER_EMBEDDED_DIR"
taskset -cp 0 $$ >/dev/null # everything started from here on, the server too, stays on one CPU
DATABASE_URL=$("$build/lockkeeper" db url 2>/dev/null)
export DATABASE_URL

c() { "$build/tests/bench_pairs" "$DATABASE_URL" "$@"; }
lua() { "$build/lockkeeper" run tests/bench/pairs.lua "$@"; }

# The median, least and most of a column of numbers.
spread() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)], v[1], v[NR] }'; }

# times N COMMAND...: the seconds that N runs take
times() {
  local n=$1 start=$EPOCHREALTIME i
  shift
  for ((i = 0; i < n; i++)); do "$@"; done
  awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }'
}

rows=$LOCKKEEPER_EMBEDDED_DIR.rows
trap '"$build/lockkeeper" db stop >/dev/null; rm -rf "$LOCKKEEPER_EMBEDDED_DIR" "$rows"' EXIT
for mode in try timed; do
  for ((i = 0; i < rounds; i++)); do echo "$(c 1 $mode) $(lua 1 $mode)"; done >"$rows"
  read -r libpq _ < <(awk '{ print $1 }' "$rows" | spread)
  read -r pairs _ < <(awk '{ print $2 }' "$rows" | spread)
  read -r ratio low high < <(awk '{ print $2 / $1 }' "$rows" | spread)
  printf '%-5s pairs/s: libpq %d, lua %d; lua/libpq %.3f (%.3f to %.3f)\n' \
    $mode "$libpq" "$pairs" "$ratio" "$low" "$high"
done
if [ "$(nproc --all)" -ge 2 ]; then
  # With a CPU each, a pair is waiting for round trips: two of libpq's, one where the release is deferred.
  on_another() { taskset -c 1 "$@"; }
  for ((i = 0; i < rounds; i++)); do
    echo "$(on_another "$build/tests/bench_pairs" "$DATABASE_URL" 1 try)" \
      "$(on_another "$build/lockkeeper" run tests/bench/pairs.lua 1 deferred)"
  done >"$rows"
  read -r ratio low high < <(awk '{ print $2 / $1 }' "$rows" | spread)
  printf 'a CPU each, release deferred: lua/libpq %.2f (%.2f to %.2f)\n' "$ratio" "$low" "$high"
fi
for ((i = 0; i < rounds; i++)); do
  echo "$(times 30 c 0 once) $(times 30 lua 0 once)"
done >"$rows"
read -r ratio low high < <(awk '{ print $2 / $1 }' "$rows" | spread)
printf 'connect, lock, release, exit: lockkeeper/C %.2f (%.2f to %.2f)\n' "$ratio" "$low" "$high"
