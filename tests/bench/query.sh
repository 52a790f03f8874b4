#!/usr/bin/env bash
# What looking at locks costs, against bare libpq: lock.locks() of 12,000 rows by the time that libpq
# takes to read them, and lock.blocked() with 50 waiters among them by the time that it takes above a
# round trip. All on one CPU (client and server), in turns, so that the ratio holds while the machine's
# speed drifts.
#
#   tests/bench/query.sh [BUILD-FOLDER [ROUNDS]]
# shellcheck disable=SC2016,SC2154 # awk's fields; coproc sets scene_PID
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build} rounds=${2:-5}
export LOCKKEEPER_EMBEDDED_DIR
LOCKKEEPER_EMBEDDED_DIR=$(mktemp -d /tmp/lockkeeper-bench-XXXXXX)
[ "$(id -u)" != 0 ] || chown postgres "$LOCKKEEPER_EMBEDDED_DIR"
taskset -cp 0 $$ >/dev/null # everything started from here on, the server too, stays on one CPU

rows=$LOCKKEEPER_EMBEDDED_DIR.rows
pid=
clean_up() {
  [ -z "$pid" ] || kill "$pid"
  "$build/lockkeeper" db stop >/dev/null
  rm -rf "$LOCKKEEPER_EMBEDDED_DIR" "$rows"
}
trap clean_up EXIT

DATABASE_URL=$("$build/lockkeeper" db url 2>/dev/null)
export DATABASE_URL
echo 'require("lockkeeper").db:exec("alter system set max_locks_per_transaction = 400")' |
  "$build/lockkeeper" run -
"$build/lockkeeper" db stop >/dev/null
"$build/lockkeeper" db start >/dev/null 2>&1

c() { "$build/tests/bench_query" "$DATABASE_URL" "$@"; }
lua() { "$build/lockkeeper" run tests/bench/query.lua "$@"; }

# The median, least and most of a column of numbers.
spread() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)], v[1], v[NR] }'; }

coproc scene { c scene 12000 50; }
pid=$scene_PID
read -r _ <&"${scene[0]}"
for ((i = 0; i < rounds; i++)); do
  echo "$(c read) $(lua locks) $(lua read) $(c trip) $(lua blocked) $(lua rows)"
done >"$rows"
column() { awk "{ print $1 }" "$rows" | spread; }
read -r libpq _ < <(column '$1')
read -r locks _ < <(column '$2')
read -r ratio low high < <(column '$2 / $1')
read -r ratio_read _ < <(column '$3 / $1')
printf 'locks, 12,000 rows: libpq %.1f ms, lua %.1f ms; lua/libpq %.2f (%.2f to %.2f), with a field of each %.2f\n' \
  "$libpq" "$locks" "$ratio" "$low" "$high" "$ratio_read"
read -r trip _ < <(column '$4')
read -r above low high < <(column '$5 - $4')
read -r all _ < <(column '$6')
printf 'blocked, 50 waiters: round trip %.3f ms; above it %.2f ms (%.2f to %.2f); with their locks %.1f ms\n' \
  "$trip" "$above" "$low" "$high" "$all"
