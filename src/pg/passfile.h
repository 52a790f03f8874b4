/*
 * A password file for the commands of a session: PGPASSFILE that opens the same server to the same
 * role, whatever the database, and nothing else. Source: PostgreSQL manual, "The Password File".
 */
#ifndef LOCKKEEPER_PG_PASSFILE_H
#define LOCKKEEPER_PG_PASSFILE_H

#include "base/error.h"

#include <libpq-fe.h>

enum { PASSFILE_PATH_SIZE = 256 };

typedef struct {
    char path[PASSFILE_PATH_SIZE]; /* "": none */
    int slot;
} Passfile;

/*
 * Write the password that the connection was made with to a new file, which only its owner may
 * read, in $XDG_RUNTIME_DIR, $TMPDIR or /tmp. Without a password the path is "" and nothing is
 * written. False with *err.
 */
bool passfile_open(Passfile *file, const PGconn *conn, Error *err);

/* Remove it. Idempotent. */
void passfile_close(Passfile *file);

/*
 * Remove all that are open, for a process that is about to _exit. May be called by any thread and
 * in a signal handler.
 */
void passfile_remove_all(void);

#endif
