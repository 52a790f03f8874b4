/*
 * A transaction of one statement on the state tables, in one round trip.
 *
 * The session may be anybody's: a job's own, with settings of its owner's. So the transaction is
 * READ COMMITTED, finds nothing but pg_catalog's functions, types and operators by an unqualified
 * name (which is why the statements of this floor qualify only tables), has synchronous_commit at
 * least on (but for TRANSACT_HELP), is planned by the indexes, however small the tables were when
 * it was first planned, has the session's own role again where somebody has SET another, and its
 * waits for locks have an end, but no sooner than after 10 s.
 */
#ifndef LOCKKEEPER_RUNNER_TRANSACT_H
#define LOCKKEEPER_RUNNER_TRANSACT_H

#include "pg/session.h"

typedef enum {
    TRANSACT_READ,  /* READ ONLY: works on a standby too */
    TRANSACT_GLANCE, /* READ that gives up after half a second */
    TRANSACT_WRITE,
    TRANSACT_CLAIM, /* WRITE, planned without a look at the values: the same plan for one row and for
                       thousands, by the indexes */
    TRANSACT_HELP,  /* CLAIM of what may be lost with the server: nobody waits for its disk */
} TransactKind;

/*
 * The statement's result, after COMMIT; the caller clears it. NULL with *err: nothing was done, or,
 * where the connection broke, it is not known. Refuses a session with an open transaction. In
 * WAIT_CLEANUP mode an interrupt does not end it.
 */
PGresult *transact(Session *session, const Statement *statement, TransactKind kind, WaitMode mode,
                   Error *err);

#endif
