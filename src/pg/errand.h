/*
 * A short-lived helper thread for what libpq can only do by blocking: connecting (name look-up,
 * several hosts with their time limits) and, before libpq 17, cancelling.
 *
 * The caller waits for it as for everything else, so that other tasks go on and Ctrl-C is heard at
 * once; an errand that was not waited for to its end is left to finish alone.
 */
#ifndef LOCKKEEPER_PG_ERRAND_H
#define LOCKKEEPER_PG_ERRAND_H

#include "pg/wait.h"

/*
 * Run `work(argument)` in a thread and wait for it as wait_for does.
 *
 * WAIT_READY: it has ended and the argument is the caller's again. Otherwise the thread owns the
 * argument and calls `dispose(argument)` when it has ended; the caller must not touch it any more.
 * Where no thread could be started, dispose is called and *err is set: WAIT_DEADLINE.
 */
WaitEnd errand_run(void (*work)(void *), void (*dispose)(void *), void *argument,
                   int64_t deadline_us, WaitMode mode, Error *err);

#endif
