/*
 * Advisory locks. Source: PostgreSQL manual, "Advisory Locks" and "Advisory Lock Functions".
 */
#ifndef LOCKKEEPER_LOCKS_ADVISORY_H
#define LOCKKEEPER_LOCKS_ADVISORY_H

#include "locks/key.h"

typedef struct {
    LockKey key;
    const char *name; /* for messages */
    bool shared;
    bool xact;          /* transaction-level: a transaction must be open */
    bool has_timeout;   /* else the session's lock_timeout holds */
    int64_t timeout_us; /* 0: try once; DURATION_ENDLESS: for ever */
    int64_t poll_us;    /* wait with try calls at this interval; 0: wait in the server */
} AdvisoryRequest;

/*
 * A lock that is, or was, held: a plain value. What is held stands on the session's list, which
 * outlives it: dropping the value releases nothing.
 */
typedef struct {
    struct AdvisoryHold *hold; /* on that list while its serial number is ours */
    uint64_t serial;
    LockKey key;
    bool shared;
    bool xact;
    bool released;
    double waited_s;    /* 0 where it was had at once */
    double acquired_at; /* epoch seconds by this host's clock */
    char name[64];      /* for messages */
} AdvisoryLock;

/*
 * Acquire. In one round trip (outside a transaction, and inside one where it is had), without
 * touching the session's lock_timeout; an open transaction stays usable when the lock is not had:
 * kinds "not_acquired" (a try) and "lock_timeout". A wait that fails costs one round trip more,
 * which makes sure that nothing is held. *lock
 * is set only where it was had.
 *
 * Session-level locks are refused (usage error) where a pooler could give the session to another
 * client, and in recovery.
 */
bool advisory_acquire(Session *session, const AdvisoryRequest *request, AdvisoryLock *lock,
                      Error *err);

/*
 * Give a session-level lock back, and check that it was still held ("lock_lost" if not). In a
 * failed transaction this is queued until its rollback, while rows are streamed or a COPY is under
 * way until their end. Idempotent. An interrupt does not end it.
 */
bool advisory_release(AdvisoryLock *lock, Error *err);

/* Ask the server whether this session holds it. */
bool advisory_is_held(AdvisoryLock *lock, bool *held, Error *err);

/* Is it on its session's list: neither released, nor gone with the session or transaction? */
bool advisory_on_list(const AdvisoryLock *lock);

#endif
