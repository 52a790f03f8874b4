/*
 * Several advisory locks at once: all of them or none, in one order that all callers have in common.
 */
#ifndef LOCKKEEPER_LOCKS_ALL_H
#define LOCKKEEPER_LOCKS_ALL_H

#include "locks/key.h"

typedef struct {
    LockKey key;
    bool shared;
    const char *text; /* the name, where it has one, for messages */
} AllEntry;

typedef struct {
    AllEntry *locks; /* in any order; all_arrange's */
    int count;       /* at least 1 */
    bool xact;       /* transaction-level: a transaction must be open */
    bool has_timeout;   /* else the session's lock_timeout holds */
    int64_t timeout_us; /* for all together. 0: try once; DURATION_ENDLESS: for ever */
    int64_t poll_us;    /* wait with try calls at this interval; 0: wait in the server */
    bool release_ahead; /* nobody waits for the reply when they are released */
} AllRequest;

/* Locks that are, or were, held: a plain value, as AdvisoryLock is. */
typedef struct {
    struct AllHold *hold; /* on the session's list while its serial number is ours */
    uint64_t serial;
    bool xact;
    bool released;
    bool release_ahead;
    double waited_s;    /* 0 where they were had at once */
    double acquired_at; /* epoch seconds by this host's clock */
    char name[64];      /* "a", "b" and 3 others: for messages */
} AllLocks;

/*
 * Put the locks in the order in which they are taken, key_compare's, each key once: exclusive where
 * it is asked for in both modes.
 */
void all_arrange(AllRequest *request);

/*
 * Acquire, once arranged. One round trip where all are had (with xact, one more); one more for each
 * lock that is waited for, and one to undo a failure, which names the lock that was not to be had:
 * kinds "not_acquired" and "lock_timeout". An open transaction stays usable then. While one lock is
 * waited for, none that comes after it is held: so nobody who takes his locks in this order can be
 * part of a deadlock of them.
 *
 * What is refused, and an error that the session owes: as for advisory_acquire.
 */
bool all_acquire(Session *session, const AllRequest *request, AllLocks *locks, Error *err);

/* Give all back, in one round trip: as advisory_release does. */
bool all_release(AllLocks *locks, Error *err);

/* Ask the server whether this session holds every one of them. */
bool all_is_held(AllLocks *locks, bool *held, Error *err);

/* Are they on their session's list? */
bool all_on_list(const AllLocks *locks);

/* Does this hold include the key: in that mode, or, where `any_mode` is true, in any? */
bool all_hold_includes(const SessionHold *hold, const LockKey *key, bool shared, bool any_mode);

#endif
