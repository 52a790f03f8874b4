#!/bin/bash
# Usage: scripts/test.sh [--fast] [SPEC|BUSTED_OPTION]...
#
# Installs what is missing (Debian 12, as root or by sudo), builds, and runs luacheck, the C unit
# tests and the specs: under stock lua5.4, then in the lockkeeper that was built with the address
# and undefined-behaviour sanitizers.
#   --fast    without the sanitizers
#   others    spec files or options for busted, such as --filter=PATTERN: only these specs are run
# The last line is "N passed, N failed", over all of it; the exit code is 0 only if all passed.

set -u
cd "$(dirname "$0")/.." || exit
. scripts/lib.sh

fast=
specs=()
for word in "$@"; do
    case $word in
    --fast) fast=1 ;;
    -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit
        ;;
    *) specs+=("$word") ;;
    esac
done

# What the user has set for Lua, libpq or lockkeeper would change what is tested.
for name in $(compgen -e); do
    case $name in
    PG_BINDIR) ;;
    PG* | LUA_* | LOCKKEEPER_* | DATABASE_URL) unset "$name" ;;
    esac
done
export LC_ALL=C.UTF-8

# Seconds. None comes near; but what hangs must not hang for ever.
LANE_TIMEOUT=480

passed=0
failed=0
summaries=()
logs=$(mktemp -d) || exit
trap 'rm -rf "$logs"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The last lines: the summaries of ctest and busted, and what they come to.
finish() {
    echo
    [ ${#summaries[@]} -eq 0 ] || printf '%s\n' "${summaries[@]}"
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
    exit
}

# phase TITLE COMMAND...: runs it and tells how long it took.
phase() {
    local title=$1 begun=$EPOCHREALTIME code
    shift
    printf '\n== %s\n' "$title"
    "$@"
    code=$?
    awk -v title="$title" -v s=$((${EPOCHREALTIME/./} - ${begun/./})) \
        'BEGIN { printf "-- %s: %.1f s\n", title, s / 1000000 }'
    return "$code"
}

# needed COMMAND...: a phase without which the rest makes no sense.
needed() {
    phase "$@" || {
        failed=$((failed + 1))
        finish
    }
}

install() {
    # shellcheck disable=SC2086 # one word a package
    install_missing $BUILD_PACKAGES lua-busted lua-check postgresql-15 pgbouncer procps tmux faketime \
        util-linux
}

builds() {
    build build -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLOCKKEEPER_WERROR=ON || return
    [ -n "$fast" ] ||
        build build-asan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLOCKKEEPER_WERROR=ON -DLOCKKEEPER_SANITIZE=ON
}

lint() {
    luacheck --no-color -q lua scripts tests || failed=$((failed + 1))
}

# logged COMMAND...: shows its output and keeps it in $logs/out.
logged() {
    "$@" 2>&1 | tee "$logs/out"
    return "${PIPESTATUS[0]}"
}

# sanitized COMMAND...: a report of a sanitizer, by the command or any process that it started,
# counts as a failure, whatever the exit codes. An error aborts; a leak, which is found when all is
# over, lets the process end as it would have, so that busted's last words are not lost.
sanitized() {
    local code report options=abort_on_error=1:exitcode=0:log_path=$logs/sanitizer
    ASAN_OPTIONS=$options:detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1 \
        UBSAN_OPTIONS=$options:print_stacktrace=1:halt_on_error=1 "$@"
    code=$?
    for report in "$logs"/sanitizer.*; do
        [ -e "$report" ] || continue
        # Fibers tell the sanitizer of their stacks, but it says this at the first switch all the same.
        sed -i "/WARNING: ASan doesn't fully support makecontext\/swapcontext/d" "$report"
        [ -s "$report" ] || {
            rm -f "$report"
            continue
        }
        cat "$report"
        rm -f "$report"
        failed=$((failed + 1))
    done
    return "$code"
}

# unit DIR: the C unit tests that were built there. None is no failure.
unit() {
    local code line ok bad
    logged ctest --test-dir "$1" --output-on-failure --no-tests=ignore
    code=$?
    line=$(grep -E '^[0-9]+% tests passed, [0-9]+ tests failed out of [0-9]+' "$logs/out" | tail -n 1)
    if [ -n "$line" ]; then
        bad=$(sed -E 's/.*, ([0-9]+) tests failed out of ([0-9]+).*/\1/' <<<"$line")
        ok=$(($(sed -E 's/.* out of ([0-9]+).*/\1/' <<<"$line") - bad))
        passed=$((passed + ok))
        failed=$((failed + bad))
        summaries+=("$line")
    fi
    # It may also fail without having failed a test.
    [ "$code" -eq 0 ] || [ "${bad:-0}" -gt 0 ] || failed=$((failed + 1))
}

# lanes FILE...: the spec files in $lanes groups of about the same length, each on a line.
lanes=4
lanes() {
    wc -l "$@" | sed '$d' | sort -rn | awk -v lanes="$lanes" '{
        least = 1
        for (i = 2; i <= lanes; i++) if (length_of[i] + 0 < length_of[least] + 0) least = i
        length_of[least] += $1
        files[least] = files[least] " " $2
    } END { for (i = 1; i <= lanes; i++) if (files[i]) print files[i] }'
}

# count LOG CODE: what one busted came to, by its summary and exit code.
count() {
    local line ok=0 bad=0 summary
    summary='^([0-9]+) success(es)? / ([0-9]+) failures? / ([0-9]+) errors? / [0-9]+ pending : '
    line=$(grep -aE "$summary" "$1" | tail -n 1)
    if [[ $line =~ $summary ]]; then
        ok=${BASH_REMATCH[1]}
        bad=$((BASH_REMATCH[3] + BASH_REMATCH[4]))
        summaries+=("$line")
    else
        echo "busted has ended with code $2, without a summary"
        bad=1
    fi
    # A crash or a leak that is found at the end is not in the summary.
    if [ "$2" -ne 0 ] && [ "$bad" -eq 0 ]; then
        echo "busted has ended with code $2"
        bad=1
    fi
    passed=$((passed + ok))
    failed=$((failed + bad))
}

# run_specs COMMAND...: busted by this command. All spec files are run in lanes side by side, since
# they wait more than they compute; what was asked for by name is run by one busted.
run_specs() {
    local -a files pids=()
    local i=0 code
    if [ ${#specs[@]} -gt 0 ]; then
        logged "$@" --output=plainTerminal "${specs[@]}"
        count "$logs/out" $?
        return
    fi
    while read -ra files; do
        i=$((i + 1))
        timeout -k 30 "$LANE_TIMEOUT" "$@" --output=plainTerminal "${files[@]}" >"$logs/lane.$i" 2>&1 </dev/null &
        pids+=($!)
    done < <(lanes tests/spec/*_spec.lua)
    for ((i = 1; i <= ${#pids[@]}; i++)); do
        wait "${pids[i - 1]}"
        code=$?
        cat "$logs/lane.$i"
        echo
        count "$logs/lane.$i" "$code"
    done
}

specs_in_lua() {
    LUA_PATH="lua/?.lua;lua/?/init.lua;;" LUA_CPATH="build/module/?.so;;" \
        LOCKKEEPER_BIN=$PWD/build/lockkeeper run_specs lua5.4 /usr/bin/busted
}

specs_in_host() {
    LOCKKEEPER_BIN=$PWD/build-asan/lockkeeper \
        sanitized run_specs build-asan/lockkeeper run /usr/bin/busted
}

needed "packages" install
needed "build" builds
if [ ${#specs[@]} -eq 0 ]; then
    phase "luacheck" lint
    phase "C unit tests" unit build
    [ -n "$fast" ] || phase "C unit tests with sanitizers" sanitized unit build-asan
fi
phase "specs in stock lua5.4" specs_in_lua
[ -n "$fast" ] || phase "specs in the lockkeeper with sanitizers" specs_in_host
finish
