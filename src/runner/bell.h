/*
 * Bells and turns, for the fibers of the supervisor.
 *
 * A bell wakes a fiber that waits for a time, or for descriptors: it stays rung until it is waited
 * for, so that none is missed. A turn lets one fiber at a time use what they share.
 */
#ifndef LOCKKEEPER_RUNNER_BELL_H
#define LOCKKEEPER_RUNNER_BELL_H

#include "pg/wait.h"

typedef struct {
    int fd; /* for a wait of one's own: readable while rung; then bell_quiet */
} Bell;

bool bell_open(Bell *bell, Error *err);
void bell_close(Bell *bell);
void bell_ring(const Bell *bell);
void bell_quiet(const Bell *bell);

/* Wait until it is rung (WAIT_READY; it is quiet then), the deadline, or the fiber is cancelled. */
WaitEnd bell_wait(const Bell *bell, int64_t deadline_us);

/* All zero is a free one. */
typedef struct {
    bool taken;
} Turn;

/* Waits, whatever happens: those who have the turn give it back in a bounded time. */
void turn_take(Turn *turn);
void turn_give(Turn *turn);

#endif
