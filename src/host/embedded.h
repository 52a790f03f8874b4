/*
 * A private PostgreSQL of the user's own, for trying out, tests and single machines.
 *
 * Data in $LOCKKEEPER_EMBEDDED_DIR, else $XDG_STATE_HOME/lockkeeper/pg, else
 * ~/.local/state/lockkeeper/pg. It listens on a Unix socket in a folder of mode 0700 only, never
 * on TCP. It runs as the invoking user; invoked by root, as the user `postgres` (PostgreSQL
 * refuses root), then by default below /var/lib/lockkeeper, since that user can't enter root's
 * home. Several commands share it; it lives until embedded_stop.
 */
#ifndef LOCKKEEPER_HOST_EMBEDDED_H
#define LOCKKEEPER_HOST_EMBEDDED_H

#include "base/error.h"

enum { EMBEDDED_PATH_SIZE = 1024 };

typedef struct {
    char data[EMBEDDED_PATH_SIZE];    /* the data directory */
    char socket[EMBEDDED_PATH_SIZE];  /* the socket's folder; short enough for sun_path */
    char bindir[EMBEDDED_PATH_SIZE];  /* "" where no server binaries were found */
    char url[2 * EMBEDDED_PATH_SIZE]; /* a conninfo URI, percent-encoded */
    int version;                      /* major version of the data directory, 0 where none */
    int pid;                          /* the postmaster's, 0 where it does not run */
} Embedded;

/* Where it is and whether it runs. Starts nothing, makes nothing. */
bool embedded_status(Embedded *embedded, Error *err);

/*
 * Start it, or join the one that runs; makes the data directory first where there is none. Safe
 * against others who do the same at the same time. Says on stderr what takes long.
 */
bool embedded_start(Embedded *embedded, Error *err);

/* Stop it (fast shutdown) and wait until it is down. *was_running: false if there was none. */
bool embedded_stop(bool *was_running, Error *err);

#endif
