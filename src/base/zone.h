/*
 * Time zones: what the wall clocks of a place show at an instant.
 *
 * Instants are seconds since the Unix epoch. "Wall" times are what a clock on the wall shows,
 * counted as if it were UTC: instant + offset.
 */
#ifndef LOCKKEEPER_BASE_ZONE_H
#define LOCKKEEPER_BASE_ZONE_H

#include <stddef.h>
#include <stdint.h>

/* Zones know the instants from 1900-01-01 to before 2300-01-01 (UTC). */
#define ZONE_BEGIN INT64_C(-2208988800)
#define ZONE_END   INT64_C(10413792000)

/* A stretch of time with one offset. It ends where the next one begins. */
typedef struct {
    int64_t from;
    int64_t wall_before; /* all wall times below were shown, or jumped over, before `from` */
    int32_t offset;      /* seconds east of UTC */
} ZonePeriod;

typedef struct {
    const char *name;
    size_t count;         /* at least 1 */
    ZonePeriod periods[]; /* count of them, in order, and one that begins at ZONE_END */
} Zone;

/*
 * Building one: first zone_new with room for that many changes, its only period without an offset;
 * then the changes in order (one not after ZONE_BEGIN, or a second one at the same instant,
 * replaces the offset before); then zone_finish. NULL: out of memory. Freed with free().
 */
Zone *zone_new(const char *name, size_t changes);
void zone_add(Zone *zone, int64_t from, int offset);
void zone_finish(Zone *zone);

/* The period that an instant lies in; what is out of range counts to the first or last one. */
size_t zone_period_at(const Zone *zone, int64_t instant);

/* What the wall clock shows at an instant. */
int64_t zone_wall_at(const Zone *zone, int64_t instant);

/*
 * The first instant at which the wall clock shows `wall` or later: the first of the two in an
 * overlap, the first instant after a gap for what the gap leaves out. ZONE_END: never.
 */
int64_t zone_first_instant(const Zone *zone, int64_t wall);

/*
 * The latest wall time that was shown, or jumped over, up to an instant. While a clock that was set
 * back shows times again, it stands still. zone_first_instant(w) <= t exactly where w is at most
 * zone_latest_wall(t).
 */
int64_t zone_latest_wall(const Zone *zone, int64_t instant);

#endif
