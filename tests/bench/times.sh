#!/usr/bin/env bash
# Milliseconds that a command takes, of COUNT one after the other: times.sh COUNT COMMAND...
count=$1 start=$EPOCHREALTIME
shift
for ((i = 0; i < count; i++)); do "$@" >/dev/null </dev/null || exit; done
awk -v a="$start" -v b="$EPOCHREALTIME" -v n="$count" 'BEGIN { printf "%.4f\n", (b - a) * 1000 / n }'
