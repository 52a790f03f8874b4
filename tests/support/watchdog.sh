#!/bin/sh
# Usage: watchdog.sh FOLDER [PID]
#
# Ends every process that a run of the suite has started and removes its FOLDER; with PID, once
# that process has ended: so a run that was interrupted, killed or crashed leaves nothing either.

folder=$1
pid=$2

case $folder in
/tmp/lk.??????) ;;
*) exit 2 ;;
esac

# start_of PID: when it was started (clock ticks since boot), nothing if it has ended. A zombie has
# ended: its parent may take its time to collect it. The start tells a recycled pid from ours.
start_of() {
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return
    # shellcheck disable=SC2086 # the fields after the name, which may hold blanks
    set -- ${line##*) }
    case $1 in
    Z | X) ;;
    *) echo "${20}" ;;
    esac
}

# What t.spawn started, and what that started in its turn: known by an environment variable.
marked() {
    grep -slzF "LOCKKEEPER_TEST_CHILD=$folder/" /proc/[0-9]*/environ | cut -d/ -f3
}

# The servers: the pid files below the folder name them; a stale file may name a stranger, whose
# command line does not have the folder in it.
servers() {
    for file in "$folder"/*/data/postmaster.pid "$folder"/*/pgbouncer.pid; do
        { read -r server <"$file"; } 2>/dev/null || continue
        [ -n "$(start_of "$server")" ] || continue
        if grep -qsF "$folder/" "/proc/$server/cmdline"; then
            echo "$server"
        fi
    done
}

# signal NAME PID...: to processes that may have ended meanwhile.
signal() {
    name=$1
    shift
    [ $# -eq 0 ] || kill -s "$name" "$@" 2>/dev/null
}

if [ -n "$pid" ]; then
    start=$(start_of "$pid")
    while [ -n "$start" ] && [ "$(start_of "$pid")" = "$start" ]; do
        sleep 0.2
    done
fi

# Again and again, since a child may be forking at this moment. SIGQUIT first: a PostgreSQL that a
# child has started would leave a shared memory segment after SIGKILL.
tries=0
while found=$(marked) && [ -n "$found" ] && [ $tries -lt 40 ]; do
    if [ $tries -lt 10 ]; then
        # shellcheck disable=SC2086
        signal QUIT $found
    else
        # shellcheck disable=SC2086
        signal KILL $found
    fi
    tries=$((tries + 1))
    sleep 0.05
done

# SIGQUIT: PostgreSQL's immediate shutdown, which takes its children along; PgBouncer's end.
# SIGCONT for the one that a test has stopped.
found=$(servers)
# shellcheck disable=SC2086
signal QUIT $found
# shellcheck disable=SC2086
signal CONT $found
tries=0
while found=$(servers) && [ -n "$found" ]; do
    tries=$((tries + 1))
    if [ $tries -gt 200 ]; then
        # shellcheck disable=SC2086
        signal KILL $found
        break
    fi
    sleep 0.05
done

# The shell behind a child may still be writing the exit code.
tries=0
while ! rm -rf "$folder" 2>/dev/null && [ $tries -lt 20 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
