#!/usr/bin/env bash
# Slots decided a second by 16 hosts that contend for the same 1,000 jobs, against a bare
# INSERT … ON CONFLICT DO NOTHING in the same run; none twice, no deadlock. On the CPUs that there are.
#
#   tests/bench/claims.sh [BUILD-FOLDER [ROUNDS [HOSTS [JOBS]]]]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build} rounds=${2:-5} hosts=${3:-16} jobs=${4:-1000}
export LOCKKEEPER_EMBEDDED_DIR
LOCKKEEPER_EMBEDDED_DIR=$(mktemp -d /tmp/lockkeeper-bench-XXXXXX)
[ "$(id -u)" != 0 ] || chown postgres "$LOCKKEEPER_EMBEDDED_DIR"
DATABASE_URL=$("$build/lockkeeper" db url 2>/dev/null)
export DATABASE_URL
rows=$LOCKKEEPER_EMBEDDED_DIR.rows
trap '"$build/lockkeeper" db stop >/dev/null; rm -rf "$LOCKKEEPER_EMBEDDED_DIR" "$rows"' EXIT

# The median, least and most of a column of numbers.
spread() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)], v[1], v[NR] }'; }

for ((i = 0; i < rounds; i++)); do
  "$build/lockkeeper" run tests/bench/claims.lua "$hosts" "$jobs" 3
done >"$rows"
read -r claims low high < <(awk '{ print $1 }' "$rows" | spread)
read -r bare _ < <(awk '{ print $2 }' "$rows" | spread)
read -r ratio least most < <(awk '{ print $1 / $2 }' "$rows" | spread)
printf '%d hosts, %d jobs: %d slots decided a second (%d to %d); bare INSERT %d; ratio %.2f (%.2f to %.2f)\n' \
  "$hosts" "$jobs" "$claims" "$low" "$high" "$bare" "$ratio" "$least" "$most"
[ "$claims" -ge 20000 ] || { echo "fewer than 20000" >&2; exit 1; }
