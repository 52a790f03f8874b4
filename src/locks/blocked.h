/*
 * Who waits for whose lock, as the server itself says it. Sources: PostgreSQL manual,
 * "pg_blocking_pids" and "pg_locks".
 *
 * Reading pg_locks costs the server a microsecond a lock, however few are waited for. So this takes
 * two steps: who waits for whom is known from the activity and pg_blocking_pids, and costs little;
 * which locks these are is read from pg_locks later, when it is asked for. What is found then
 * belongs to the wait that was seen only if that began before it was seen and is not over yet: of
 * another one nothing is told.
 */
#ifndef LOCKKEEPER_LOCKS_BLOCKED_H
#define LOCKKEEPER_LOCKS_BLOCKED_H

#include "locks/snapshot.h"

/* One session waits for another, or for a prepared transaction. */
typedef struct {
    int waiter;  /* a row of `sessions` */
    int blocker; /* a row of `sessions`; ROW_NONE: a prepared transaction, or one that has ended */
    int pid;     /* the blocker's; 0: a prepared transaction */
    int nth;     /* of the waiter's prepared blockers, from 0 */
    /* Known after blocked_look; ROW_NONE before, and where the wait is over: */
    int lock;     /* what is waited for, a row of `locks` */
    int holding;  /* the strongest lock in the way that the blocker holds there, a row of `locks`;
                     ROW_NONE too where it only stands before the waiter in the queue */
    int prepared; /* the blocker, a row of `prepared` */
} BlockedEdge;

typedef struct {
    Snapshot snapshot; /* of those who wait and who block */
    BlockedEdge *edges;
    int count;
    bool looked; /* blocked_look was called */
    char *pids;  /* the waiters', as PostgreSQL's array */
} Blocked;

/*
 * Ask who waits for whom: sessions of this database, or (where `waiters` is not NULL: an array in
 * PostgreSQL's form) those with these pids. *blocked is zeroed before, and cleared at the end. One
 * round trip and one transaction, as snapshot_take; one more, and a look at pg_locks, where this
 * role may not see of others what they wait for.
 */
bool blocked_take(Blocked *blocked, Session *session, const char *waiters, Error *err);

/* Ask which locks they are. One round trip, as above. */
bool blocked_look(Blocked *blocked, Session *session, Error *err);

void blocked_clear(Blocked *blocked);

/* Sort these edges, after blocked_look: the longest wait first, then the longest running. */
void blocked_sort(const Blocked *blocked, int *edges, int count);

/* A field of what is waited for. */
void blocked_lock(const Blocked *blocked, const BlockedEdge *edge, LockField field, Value *value);

/* Is it known without blocked_look? */
bool blocked_knows(LockField field);

/* "ACCESS EXCLUSIVE" and so on: what the blocker holds; none where it holds nothing in the way. */
void blocked_mode(const Blocked *blocked, const BlockedEdge *edge, Value *value);

#endif
