/* The two clocks. Deadlines and durations use the monotonic one, in microseconds. */
#ifndef LOCKKEEPER_BASE_CLOCK_H
#define LOCKKEEPER_BASE_CLOCK_H

#include <stdint.h>

/* A deadline that never comes. */
#define CLOCK_NEVER INT64_MAX

/* Microseconds since an arbitrary start; never steps back. */
int64_t clock_monotonic_us(void);

/* Seconds since the Unix epoch by this host's clock, with its fraction. */
double clock_epoch_s(void);

/* now + us, without overflow: an endless duration gives CLOCK_NEVER. */
int64_t clock_deadline(int64_t us);

#endif
