#!/usr/bin/env bash
# What the wait-for graph costs: alone, without a server; and from snapshot to tree, against what psql takes
# for `select * from pg_locks`, with 10,000 advisory locks, 2,000 relation locks and a chain of 50 blocked
# sessions. All on one CPU (client and server), in turns.
#
#   tests/bench/graph.sh [BUILD-FOLDER [ROUNDS]]
# shellcheck disable=SC2154 # coproc sets scene_PID
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build} rounds=${2:-15}
export LOCKKEEPER_EMBEDDED_DIR
LOCKKEEPER_EMBEDDED_DIR=$(mktemp -d /tmp/lockkeeper-bench-XXXXXX)
[ "$(id -u)" != 0 ] || chown postgres "$LOCKKEEPER_EMBEDDED_DIR"
taskset -cp 0 $$ >/dev/null # everything started from here on, the server too, stays on one CPU

times=$LOCKKEEPER_EMBEDDED_DIR.times
pid=
clean_up() {
  [ -z "$pid" ] || kill "$pid"
  "$build/lockkeeper" db stop >/dev/null
  rm -rf "$LOCKKEEPER_EMBEDDED_DIR" "$times"
}
trap clean_up EXIT

"$build/tests/bench_graph" 1000 100
"$build/tests/bench_graph" 1000 1

DATABASE_URL=$("$build/lockkeeper" db url 2>/dev/null)
export DATABASE_URL
echo 'require("lockkeeper").db:exec("alter system set max_locks_per_transaction = 400")' |
  "$build/lockkeeper" run -
"$build/lockkeeper" db stop >/dev/null
"$build/lockkeeper" db start >/dev/null 2>&1

coproc scene { exec "$build/lockkeeper" run tests/bench/graph.lua 2>/dev/null; }
pid=$scene_PID
read -r _ <&"${scene[0]}"

psql=$(command -v psql || echo "$(pg_config --bindir)/psql")
milliseconds() {
  local start=$EPOCHREALTIME
  "$@" >/dev/null
  awk -v start="$start" -v stop="$EPOCHREALTIME" 'BEGIN { printf "%.1f", (stop - start) * 1000 }'
}
for ((i = 0; i < rounds; i++)); do
  echo "$(milliseconds "$psql" -Xd "$DATABASE_URL" -c 'select * from pg_locks')" \
    "$(milliseconds "$build/lockkeeper" tree)" "$(milliseconds "$build/lockkeeper" tree --format html)"
done >"$times"
median() { awk "{ print $1 }" "$times" | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
# shellcheck disable=SC2016 # awk's fields
printf '12,000 locks, a chain of 50: psql %s ms, tree %s ms (%s times as long), html %s ms\n' \
  "$(median '$1')" "$(median '$2')" "$(median '$2 / $1')" "$(median '$3')"
