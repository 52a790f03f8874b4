#!/usr/bin/env bash
# Milliseconds that a command takes, the median of COUNT one after the other: times.sh COUNT COMMAND...
count=$1
shift
for ((i = 0; i < count; i++)); do
  start=${EPOCHREALTIME/./}
  "$@" >/dev/null </dev/null || exit
  echo $((${EPOCHREALTIME/./} - start))
done | sort -n | awk '{ v[NR] = $1 } END { printf "%.4f\n", v[int((NR + 1) / 2)] / 1000 }'
