#!/usr/bin/env bash
# Speed, measured beside the limit (a C program with bare libpq that does the same work) and beside what
# users have today: one PostgreSQL of its own, one run, one table. See README.md here.
#
#   tests/bench/run.sh [--quick] [--main] [--readme] [--build FOLDER] [SECTION]...
#
#   --quick    fewer and shorter rounds: under two minutes
#   --main     print only the rows that the README of the project has
#   --readme   put these rows into README.md, in the place of those that are there
#   --build    where lockkeeper was built, with BUILD_TESTING; default: build (built when it is not there)
#   SECTION    only these: pairs all handover process prioritize look filter describe claims runner memory
#              instructions
set -euo pipefail
cd "$(dirname "$0")/../.."
build=build
words=()
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=${2:?--build needs a folder} && shift ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;;
    *) words+=("$1") ;;
  esac
  shift
done
if [ ! -x "$build/lockkeeper" ]; then
  . scripts/lib.sh
  build "$build"
fi

bindir=${PG_BINDIR:-$(pg_config --bindir 2>/dev/null || true)}
[ -x "$bindir/initdb" ] || bindir=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
[ -x "$bindir/initdb" ] || { echo "no PostgreSQL server is installed: no initdb in $bindir" >&2; exit 1; }

work=$(mktemp -d /tmp/lockkeeper-bench-XXXXXX)
if [ "$(id -u)" = 0 ]; then
  as_server=(setpriv --reuid=postgres --regid=postgres --init-groups)
  chmod 755 "$work"
  install -d -o postgres "$work/pg"
else
  as_server=()
  mkdir "$work/pg"
fi
end() {
  (cd / && "${as_server[@]}" "$bindir/pg_ctl" -D "$work/pg/data" -m immediate -s stop) 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT TERM

start() {
  (cd / && "${as_server[@]}" "$bindir/pg_ctl" -D "$work/pg/data" -l "$work/pg/log" -s -w -t 60 -o "-p $1" start) \
    >/dev/null 2>&1
}
(cd / && "${as_server[@]}" "$bindir/initdb" -D "$work/pg/data" -U postgres -A trust -E UTF8 --locale=C) >/dev/null
# Like a server in production, but for connections enough and, so that no round meets one, no autovacuum.
"${as_server[@]}" tee -a "$work/pg/data/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = '$work/pg'
max_connections = 1200
max_locks_per_transaction = 128
autovacuum = off
deadlock_timeout = '60s'
CONF
port=
for ((i = 0; i < 10; i++)); do
  port=$((20000 + RANDOM % 20000))
  start "$port" && break
  port=
done
[ -n "$port" ] || { cat "$work/pg/log" >&2; exit 1; }

# Nothing of the user's settings for libpq, Lua or lockkeeper takes part.
for name in $(compgen -e); do
  case $name in PG* | LUA_* | LOCKKEEPER_*) unset "$name" ;; esac
done
export BENCH_BUILD=$build BENCH_WORK=$work BENCH_BINDIR=$bindir
export BENCH_POSTMASTER BENCH_TCP
BENCH_POSTMASTER=$(head -n 1 "$work/pg/data/postmaster.pid")
BENCH_TCP="postgresql://postgres@127.0.0.1:$port/postgres"
export DATABASE_URL="postgresql://postgres@/postgres?host=$work/pg&port=$port"
export LUA_PATH="tests/bench/?.lua;;"
export XDG_CONFIG_HOME=$work/none
lua5.4 tests/bench/run.lua "${words[@]}"
