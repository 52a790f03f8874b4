/*
 * The workers of a supervisor: each is a fiber that has one run at a time, and a process for it.
 *
 * A run's row is ended by its worker process, on the session that holds its guards. Where the
 * process has gone without doing so, it is ended here, once nothing of it is left.
 */
#ifndef LOCKKEEPER_RUNNER_POOL_H
#define LOCKKEEPER_RUNNER_POOL_H

#include "runner/child.h"
#include "runner/job.h"
#include "runner/link.h"
#include "runner/metrics.h"
#include "runner/namer.h"

typedef struct {
    int workers;
    int warm;             /* so many keep a process ready */
    const json_t *settings; /* for worker processes; borrowed */
    Link *link;
    Metrics *metrics;     /* may be NULL */
    Namer *namer;
    Bell *freed;          /* rung when a worker is free again */
    Bell *lost;           /* rung when a run was lost: rows are to be looked at */
    Bell *counted;        /* rung when a run has ended from whose end the next slot is counted */
} PoolSpec;

typedef struct Pool Pool;

Pool *pool_new(const PoolSpec *spec, Error *err);

int pool_free_workers(const Pool *pool);
int pool_busy_workers(const Pool *pool);

/*
 * Hand a claimed run to a free worker. False: there is none, or no memory. Copies all it needs. A
 * run with the number 0 has no row.
 */
bool pool_assign(Pool *pool, const StoreRun *run, const Job *job, const char *runner);

/* Is a run of the job at work? */
bool pool_has(const Pool *pool, const char *job);

/*
 * The runs whose end is written here, or by their processes: what is at work, but for those whose
 * session was lost. `runs` has room for one a worker. Returns how many they are.
 */
int pool_own_runs(const Pool *pool, int64_t *runs);

/* End a run as cancelled, for a reason ("cancelled", "replaced"); 0: all of them. */
void pool_cancel(Pool *pool, int64_t run, const char *reason);

/*
 * The uuids under which runs at work were claimed, each once: a link that was made anew has another
 * one than they. NULL: there are no more than `index`.
 */
const char *pool_runner(const Pool *pool, int index);

/* Files or the configuration were read anew: processes that are kept for further runs are replaced. */
void pool_renew(Pool *pool);

/* Kill all processes now; their runs are ended as cancelled. */
void pool_kill(Pool *pool);

/* End all workers, whose runs must be over or killed, and free. NULL is fine. */
void pool_free(Pool *pool);

#endif
