#!/usr/bin/env bash
# The first minute with Lockkeeper: installs what is missing (Debian 12, as root or with sudo),
# builds, starts a private PostgreSQL, lets two processes compete for one lock, and has two supervisors
# serve the same jobs. About a minute, once everything is built.
#
#   scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

# shellcheck disable=SC2086 # one word a package
install_missing $BUILD_PACKAGES postgresql-15 postgresql-client-15 util-linux
build build

lockkeeper() { build/lockkeeper "$@"; }
title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] || title() { printf '\n%s\n' "$*"; }

# What the two processes print, with the exit code where it is not 0.
report() { # NAME EXIT-CODE
  case $2 in
  0) ;;
  75) echo "$1: skipped (exit code 75: a lock was not to be had)" ;;
  *) echo "$1: failed with exit code $2" >&2 && exit 1 ;;
  esac
}

job=scripts/examples/non_overlapping.lua

title "1. A private PostgreSQL of your own: lockkeeper db start"
lockkeeper db start

compete() { # FIRST SECOND
  local code=0
  lockkeeper run --embedded "$job" 2 "$1" &
  local first=$!
  # The second starts once the first has the lock.
  for _ in {1..200}; do
    lockkeeper who nightly-report --embedded --format json | grep -q '"granted":true' && break
    sleep 0.02
  done
  lockkeeper run --embedded "$job" 2 "$2" || code=$?
  report "$2" "$code"
  code=0
  wait $first || code=$?
  report "$1" "$code"
}

title "2. Two processes start the same job: Anna comes first"
compete Anna Bert
title "3. Again, and now Bert comes first"
compete Bert Anna

title "4. The same for any command, as flock does for a file: lockkeeper exec"
lockkeeper exec --embedded --lock nightly-report -- sh -c \
  'echo "sh: I run under the lock with key $LOCKKEEPER_KEY"'

title "5. A table lock under a short timeout"
lockkeeper run --embedded scripts/examples/table_lock.lua

job=scripts/examples/maintenance/vacuum.lua

title "6. A maintenance job: lockkeeper run $job now"
cat <<'END'
A deleted row stays in its table, dead, until a VACUUM. This job looks for the tables with the most
dead rows and vacuums them, worst first. Started on two hosts at once, it works on one of them.
END
lockkeeper db psql -Xqc "
  set client_min_messages = warning;
  drop table if exists lockkeeper_visits;
  create table lockkeeper_visits with (autovacuum_enabled = off) as
    select generate_series(1, 100000) as id;
  delete from lockkeeper_visits where id > 20000"
# PostgreSQL counts dead rows a moment after the session has ended.
for _ in {1..200}; do
  lockkeeper db psql -XAtqc "select n_dead_tup from pg_stat_user_tables
    where relname = 'lockkeeper_visits'" | grep -qx 80000 && break
  sleep 0.02
done
lockkeeper run --embedded "$job" now
echo "Once more: nothing is left to do."
lockkeeper run --embedded "$job" now

title "7. Jobs by the clock, on two hosts at once: lockkeeper serve"
cat <<'END'
scripts/examples/housekeeping.lua keeps that table small: every two seconds it deletes some old rows,
and vacuums after it. Two supervisors serve it for 20 seconds, as on two hosts: whoever is first takes
a due time (a slot), and the other leaves it alone. The jobs of scripts/examples/maintenance are
served too, but are due at night.
END
logs=$(mktemp -d)
supervisors=()
stop() {
  [ ${#supervisors[@]} -eq 0 ] || kill "${supervisors[@]}" 2>/dev/null || true
  wait
  rm -rf "$logs"
}
trap stop EXIT
for host in one two; do
  # SIGTERM goes to the supervisor itself, so no function of the shell here.
  build/lockkeeper serve --embedded --workers 2 scripts/examples/housekeeping.lua \
    scripts/examples/maintenance 2>"$logs/$host" &
  supervisors+=($!)
done
for host in one two; do
  for _ in {1..500}; do
    grep -q 'msg=serving' "$logs/$host" && break
    sleep 0.02
  done
  grep -q 'msg=serving' "$logs/$host" || { cat "$logs/$host" >&2 && exit 1; }
done
begun=$(date -u -d '+1 second' +%Y-%m-%dT%H:%M:%SZ)
sleep 20
echo
lockkeeper jobs --embedded
kill "${supervisors[@]}"
wait "${supervisors[@]}"
supervisors=()
echo
lockkeeper history --embedded expire-visits --since "$begun" --limit all
lockkeeper db psql -XAtqc "
  with mine as (
    select * from lockkeeper.run
     where job = 'expire-visits' and origin = 'schedule' and due_at >= '$begun' and state <> 'skipped'),
  shares as (select count(*) as runs from mine group by runner)
  select format(E'\n%s slots were due, and %s runs were made: each slot %s, though two supervisors\n'
    'were there for it. They had %s of them.', count(distinct slot), count(*),
    case when count(distinct slot) = count(*) then 'once' else 'NOT ONCE' end,
    (select string_agg(runs::text, ' and ') from shares))
    from mine"

cat <<'END'

That was it. Now on your own:

  build/lockkeeper run --embedded scripts/examples/non_overlapping.lua    in two terminals at once
  build/lockkeeper who nightly-report --embedded                          who has it?
  build/lockkeeper db psql                                                look at pg_locks
  build/lockkeeper check scripts/examples/maintenance                     jobs to copy: what they are
  build/lockkeeper serve --embedded scripts/examples/housekeeping.lua     in two terminals at once
  build/lockkeeper trigger vacuum-visits --wait --embedded                a run now; then history
  build/lockkeeper db stop                                                stop the private PostgreSQL

With a server of your own: build/lockkeeper run --dsn postgres://user@host/database script.lua
END
