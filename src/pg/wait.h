/*
 * The one way to wait: on descriptors, until a deadline, unless interrupted.
 *
 * Whoever waits lets the others go on. A fiber is a strand of C (and so of Lua) with a stack of
 * its own, in the same thread; `wait_for` in one of them runs the fibers that are ready, and polls
 * for all of them together when none is. Code on a fiber therefore waits in plain, blocking style:
 * nothing above this file has to be written in two halves. With one fiber, the main one, a wait is
 * one ppoll(2).
 *
 * An interrupt (a signal such as Ctrl-C) ends every wait, now and from then on, except those in
 * WAIT_CLEANUP mode, which are for giving locks back and must bring a deadline of their own. A stop
 * (a job has lost its lock, or its time is over) does the same until the job has ended.
 */
#ifndef LOCKKEEPER_PG_WAIT_H
#define LOCKKEEPER_PG_WAIT_H

#include "base/clock.h"
#include "base/error.h"

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum { WAIT_NORMAL, WAIT_CLEANUP } WaitMode;
typedef enum { WAIT_READY, WAIT_DEADLINE, WAIT_INTERRUPTED } WaitEnd;

/*
 * Wait until a descriptor is ready (its revents are set), or the monotonic clock is at
 * `deadline_us` (CLOCK_NEVER: no limit), or an interrupt came. `count` may be 0: a sleep.
 */
WaitEnd wait_for(struct pollfd *fds, nfds_t count, int64_t deadline_us, WaitMode mode);

/*
 * *err for a wait that was interrupted: kind "cancelled", naming the signal, or what the stop's
 * reason says. Returns false.
 */
bool wait_interrupted_error(Error *err);

/* Has such an error been made since the signal came? Then nobody else needs to raise one. */
bool wait_interrupt_told(void);

/* Make interrupts possible: call once, before a handler may call wait_interrupt. */
bool wait_enable_interrupt(Error *err);

/* Interrupt all waits because of a signal. Safe in a signal handler. */
void wait_interrupt(int signo);

/* The signal that interrupted, or 0. */
int wait_interrupted(void);

/* Would a WAIT_NORMAL wait of the caller end at once as interrupted? */
bool wait_is_interrupted(void);

typedef enum { STOP_NONE, STOP_LOCK_LOST, STOP_TIMED_OUT, STOP_CANCELLED } WaitStop;

/*
 * Stop all that waits in this thread, until wait_go_on. Needs wait_enable_interrupt. Safe in a
 * signal handler. The first reason stays.
 */
void wait_stop(WaitStop why);
WaitStop wait_stopped(void);
void wait_go_on(void);

/*
 * Where the thread that waits stands, for another one that supervises it: is it inside a wait at
 * this moment, and how many did it begin so far? Where neither changes, it is stuck elsewhere.
 */
bool wait_is_inside(void);
unsigned wait_begun(void);

/*
 * For a program whose signal handlers are not ours (stock lua5.4): `check` is asked whenever a
 * signal woke a wait; where it answers true, that one wait ends as interrupted.
 */
void wait_set_check(bool (*check)(void));

typedef struct Fiber Fiber;

/* Start a fiber that runs `run(argument)`; it first runs when the caller waits. */
bool fiber_start(Fiber **fiber, void (*run)(void *), void *argument, Error *err);

/*
 * End its wait, and every further one but WAIT_CLEANUP's, as interrupted, until fiber_absolve was
 * called as often. For the fiber that runs, what is said holds from its next wait on.
 */
void fiber_cancel(Fiber *fiber);
void fiber_absolve(Fiber *fiber);

/* From now on it is one of those that wait_serve lets go on. */
void fiber_serve(Fiber *fiber);

/*
 * Let serving fibers go on, and nobody else: for code that computes and never waits. It returns
 * when they wait, and looks once whether what they wait for has come.
 */
void wait_serve(void);

/* Wait, uninterruptibly, until it has ended; then free it. */
void fiber_join(Fiber *fiber);

/* The one that runs; the thread's own is one, too. */
Fiber *fiber_current(void);

/*
 * Wait until wait_tell(about) is called, by another fiber: for what one fiber does and another
 * waits for. `about` is any address that both know. Whoever waits looks again whether it has what
 * it waited for.
 */
WaitEnd wait_told(const void *about, WaitMode mode);
void wait_tell(const void *about);

/* Pointers that belong to a fiber, NULL at its start: what the floors above run on it. */
enum {
    FIBER_TASK,      /* src/bind/task.c */
    FIBER_COROUTINE, /* src/host/coroutine.c; read by signal handlers */
    FIBER_SLOTS,
};

/* The slot of the fiber that runs. */
void *volatile *fiber_slot(int slot);

/* Call `visit` with that slot of every fiber. Safe in a signal handler. */
void fiber_each_slot(int slot, void (*visit)(void *value));

#endif
