/*
 * Metrics: what this supervisor has counted since it started, and what the database said last, as
 * text for Prometheus (runner.md 29). Source: Prometheus documentation, "Exposition formats",
 * text-based format 0.0.4.
 *
 * Counters and histograms are this supervisor's own: sums over all of them count each run once.
 * What the database says of all hosts is a gauge, and the same on each.
 *
 * All is used by fibers of one thread. A NULL of metrics is fine: then nothing is counted.
 */
#ifndef LOCKKEEPER_RUNNER_METRICS_H
#define LOCKKEEPER_RUNNER_METRICS_H

#include "base/pqbuffer.h"
#include "runner/sample.h"
#include "runner/store.h"

typedef struct Metrics Metrics;

/* NULL where memory ran out. */
Metrics *metrics_new(void);
void metrics_free(Metrics *metrics);

/* A run has ended here; `waited_s`, `ran_s`: negative where they are not known. */
void metrics_ended(Metrics *metrics, const char *job, RunState state, double waited_s,
                   double ran_s);

/* A run was claimed here, so long after it was due. */
void metrics_claimed(Metrics *metrics, int64_t late_us);

/*
 * Before each text: all jobs that there are now.
 *   due_us  when it is due next; SCHEDULE_NEVER: nothing comes by the clock; 0: not known at this
 *           moment, as it was told before
 */
void metrics_begin_jobs(Metrics *metrics);
void metrics_job(Metrics *metrics, const char *job, int64_t due_us);

typedef struct {
    bool linked; /* to the database */
    int workers, busy_workers;
} MetricsNow;

/*
 * Append the text. Lets other fibers go on meanwhile, as there may be much of it.
 *   sample  what the database said; NULL: nothing is known
 * Where memory runs out the buffer is broken (PQExpBufferBroken).
 */
void metrics_write(const Metrics *metrics, const MetricsNow *now, const Sample *sample,
                   PQExpBuffer text);

#endif
