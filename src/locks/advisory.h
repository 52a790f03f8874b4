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
    bool release_ahead; /* nobody waits for the reply when it is released */
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
    bool release_ahead; /* as it was requested */
    double waited_s;    /* 0 where it was had at once */
    double acquired_at; /* epoch seconds by this host's clock */
    char name[64];      /* for messages */
} AdvisoryLock;

/*
 * Acquire. In one round trip (outside a transaction, and inside one where it is had), without
 * touching the session's lock_timeout; an open transaction stays usable when the lock is not had:
 * kinds "not_acquired" (a try) and "lock_timeout". A wait that fails costs one round trip more,
 * which makes sure that nothing is held. *lock is set only where it was had. An error that the
 * session owes (session_owe) is reported here; what was had is then released.
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
 *
 * With release_ahead, and without an open transaction, it is only sent here; whoever uses the
 * session next is told of its failure (session_owes).
 */
bool advisory_release(AdvisoryLock *lock, Error *err);

/* Ask the server whether this session holds it. */
bool advisory_is_held(AdvisoryLock *lock, bool *held, Error *err);

/*
 * For those who keep what they take on a list of their own: may this session take such a lock, and
 * take one, as advisory_acquire would. *waited: was there a wait?
 */
bool advisory_check_session(Session *session, bool xact, Error *err);
bool advisory_take(Session *session, const AdvisoryRequest *request, bool *waited, Error *err);

/* Has this session got the key, as far as its list tells: in that mode, or in any? */
bool advisory_has(Session *session, const LockKey *key, bool shared, bool any_mode);

/* When a wait that begins now has to end: after the request's timeout, else the session's. */
bool advisory_deadline(Session *session, bool has_timeout, int64_t timeout_us,
                       int64_t *deadline_us, Error *err);

/* Sleep between two tries, give or take a fifth, until the deadline at most. */
bool advisory_sleep(Session *session, int64_t poll_us, int64_t deadline_us, Error *err);

/* *err for a lock of this name that was not held any more when it was released. Returns false. */
bool advisory_was_lost(const char *name, Error *err);

/* Is it on its session's list: neither released, nor gone with the session or transaction? */
bool advisory_on_list(const AdvisoryLock *lock);

#endif
