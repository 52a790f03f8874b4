#!/usr/bin/env bash
# How long an UPDATE waits behind ACCESS EXCLUSIVE under prioritize { interval = "10ms" }, against bare
# libpq that looks at that interval: milliseconds from block to go, in turns, so that the ratio holds
# while the machine's speed drifts.
#
#   tests/bench/prioritize.sh [BUILD-FOLDER [ROUNDS]]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build} rounds=${2:-7}
export LOCKKEEPER_EMBEDDED_DIR
LOCKKEEPER_EMBEDDED_DIR=$(mktemp -d /tmp/lockkeeper-bench-XXXXXX)
[ "$(id -u)" != 0 ] || chown postgres "$LOCKKEEPER_EMBEDDED_DIR"
rows=$LOCKKEEPER_EMBEDDED_DIR.rows
trap '"$build/lockkeeper" db stop >/dev/null; rm -rf "$LOCKKEEPER_EMBEDDED_DIR" "$rows"' EXIT
DATABASE_URL=$("$build/lockkeeper" db url 2>/dev/null)
export DATABASE_URL

# The median, least and most of a column of numbers.
spread() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)], v[1], v[NR] }'; }

c() { "$build/tests/bench_prioritize" "$DATABASE_URL" 20 | spread | cut -d ' ' -f 1; }
lua() { "$build/lockkeeper" run --log-level error tests/bench/prioritize.lua 20 | spread | cut -d ' ' -f 1; }

for ((i = 0; i < rounds; i++)); do echo "$(c) $(lua)"; done >"$rows"
read -r libpq _ < <(awk '{ print $1 }' "$rows" | spread)
read -r lua _ < <(awk '{ print $2 }' "$rows" | spread)
read -r ratio low high < <(awk '{ print $2 / $1 }' "$rows" | spread)
printf 'from block to go: libpq %.1f ms, lua %.1f ms; lua/libpq %.2f (%.2f to %.2f)\n' \
  "$libpq" "$lua" "$ratio" "$low" "$high"
