/*
 * The supervisor: `lockkeeper serve`. It learns which jobs there are, lists and claims their slots,
 * hands claimed runs to workers, looks for runs that were lost, and ends in order (runner.md 5 to
 * 11 and 22 to 27). It runs no user code, and has no Lua state.
 *
 * Each concern is a fiber (pg/wait.h); none blocks the others.
 */
#ifndef LOCKKEEPER_RUNNER_SUPERVISOR_H
#define LOCKKEEPER_RUNNER_SUPERVISOR_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const char *conninfo;
    const char *config;       /* NULL: where it is looked for */
    const char *const *paths; /* of files and folders; ends with NULL */
    const char *log_level, *log_format; /* for the workers; NULL: the defaults */
    int workers;              /* 0: twice the cores */
    int warm;
    const char *listen;       /* for HTTP (http.h); NULL: nowhere */
    const char *act;          /* which audits may act, as JSON; NULL: none */
    bool watch;
    bool stateless;           /* no rows: each slot runs here, under its guards (runner.md 28) */
    int64_t drain_us;
    int64_t keep_us;          /* history; DURATION_ENDLESS: no limit */
    int keep_runs;            /* 0: no limit */
} SupervisorOptions;

/* Serve until told to end. Returns the exit code (cli.md). */
int supervisor_run(const SupervisorOptions *options);

#endif
