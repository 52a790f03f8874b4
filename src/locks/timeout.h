/*
 * lock_timeout for a while. Source: PostgreSQL manual, "Statement Behavior", lock_timeout.
 */
#ifndef LOCKKEEPER_LOCKS_TIMEOUT_H
#define LOCKKEEPER_LOCKS_TIMEOUT_H

#include "pg/session.h"

/* What was before, to be put back. */
typedef struct {
    char previous[64]; /* as current_setting says it, e.g. "2s" */
    bool local;        /* set for the transaction only */
    uint64_t era;      /* of that transaction */
    int pid;           /* of the session's backend: another one never had it */
} LockTimeout;

/*
 * Set it to `us` (DURATION_ENDLESS: no limit): inside a transaction for the rest of it (SET LOCAL),
 * else for the session, which is refused where a pooler could hand the session on.
 * One round trip.
 */
bool timeout_set(Session *session, int64_t us, LockTimeout *timeout, Error *err);

/*
 * Put back what was before: RESET where the session had no value of its own. In a failed
 * transaction this waits for its rollback, while rows are streamed for their end; what a rollback
 * of the transaction undoes is done again after it. An interrupt does not end it.
 */
bool timeout_restore(Session *session, const LockTimeout *timeout, Error *err);

#endif
