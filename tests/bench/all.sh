#!/usr/bin/env bash
# What lock.all saves: locks acquired and released a second, by lock.all of 100 keys and one by one, in
# turns; client and server on one CPU and then, where there are two, on one each.
#
#   tests/bench/all.sh [BUILD-FOLDER [ROUNDS]]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build} rounds=${2:-7} keys=100
export LOCKKEEPER_EMBEDDED_DIR
LOCKKEEPER_EMBEDDED_DIR=$(mktemp -d /tmp/lockkeeper-bench-XXXXXX)
[ "$(id -u)" != 0 ] || chown postgres "$LOCKKEEPER_EMBEDDED_DIR"
taskset -cp 0 $$ >/dev/null # the server, too, is started on it
DATABASE_URL=$("$build/lockkeeper" db url 2>/dev/null)
export DATABASE_URL
rows=$LOCKKEEPER_EMBEDDED_DIR.rows
trap '"$build/lockkeeper" db stop >/dev/null; rm -rf "$LOCKKEEPER_EMBEDDED_DIR" "$rows"' EXIT

# run CPU MODE: locks a second
run() { taskset -c "$1" "$build/lockkeeper" run tests/bench/all.lua 1 "$keys" "$2"; }

# The median, least and most of a column of numbers.
spread() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)], v[1], v[NR] }'; }

cpus=(0)
[ "$(nproc --all)" -lt 2 ] || cpus+=(1)
for cpu in "${cpus[@]}"; do
  for ((i = 0; i < rounds; i++)); do echo "$(run "$cpu" single) $(run "$cpu" all)"; done >"$rows"
  read -r single _ < <(awk '{ print $1 }' "$rows" | spread)
  read -r all _ < <(awk '{ print $2 }' "$rows" | spread)
  read -r ratio low high < <(awk '{ print $2 / $1 }' "$rows" | spread)
  printf '%-10s locks/s: one by one %d, all of %d %d; all/one by one %.1f (%.1f to %.1f)\n' \
    "$([ "$cpu" = 0 ] && echo "one CPU" || echo "a CPU each")" "$single" "$keys" "$all" "$ratio" "$low" "$high"
done
