/*
 * Samples: what the database says of locks, waiting sessions, findings and the runs of all hosts.
 *
 * They are asked for on a session of their own, which is opened by the first that is wanted and
 * closed when none was for a while: the supervisor's ticks never wait for one.
 */
#ifndef LOCKKEEPER_RUNNER_SAMPLE_H
#define LOCKKEEPER_RUNNER_SAMPLE_H

#include "pg/session.h"

#include <stdbool.h>
#include <stdint.h>

/* Rows: of which kind ("locks", "blocked", …: see sample.c), up to two words, and a number. */
typedef struct {
    int64_t taken_us; /* by the monotonic clock */
    PGresult *locks;  /* of this database's locks; NULL: not known */
    PGresult *state;  /* of the state tables; NULL: not known */
} Sample;

enum { SAMPLE_KIND, SAMPLE_FIRST, SAMPLE_SECOND, SAMPLE_VALUE };

typedef struct Sampler Sampler;

/* `tables`: there are state tables. `conninfo` is borrowed. NULL with *err. */
Sampler *sampler_new(const char *conninfo, bool tables, Error *err);
void sampler_free(Sampler *sampler);

/* A fiber's main: asks when a sample is wanted, until it is cancelled. */
void sampler_run(Sampler *sampler);

/*
 * The newest sample, asked for anew if it is older than 2 s. Waits 1.5 s at most; then it is the
 * former one, or NULL where that is too old to tell anything (15 s). Valid until the next call;
 * there is one caller.
 *   linked  false: the database is away, and is not asked
 */
const Sample *sampler_get(Sampler *sampler, bool linked);

#endif
