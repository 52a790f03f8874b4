/*
 * Schedules: when a job is due.
 *
 * A schedule is a value without memory of its own: it may be copied and needs no freeing, but must
 * not outlive its zone. Nothing here asks for the time. Instants are microseconds since the Unix
 * epoch; due ones are whole seconds, the same on every host that has the same time-zone data.
 *
 * Cron expressions have five fields, or six with seconds (0 to 59) first:
 *
 *   minute 0 to 59, hour 0 to 23, day of month 1 to 31, month 1 to 12 or jan to dec,
 *   day of week 0 to 7 or sun to sat (0 and 7 are Sunday)
 *
 *   *          every value                  a-b        all from a to b; b may be sun after fri
 *   a~b        one of a to b, picked by the job's name; without a or b the field's first or last
 *              value (for days of the month the 28th, so that every month has it)
 *   x/n        every nth of *, a-b or a~b (then the name picks where it starts); a/n is a-last/n
 *   x,y        x and y                      L          the last day of the month
 *   L-3        three days before it         5L         the month's last Friday
 *   5#3        its third Friday
 *
 * or are one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually, @start.
 *
 * Days: where both fields are restricted, a day that either matches; where one begins with "*", one
 * that both match. Days and months may be names in any case. A range must rise ("22-3" is written
 * "22-23,0-3"), and a step be no greater than the field has values: so that none of them means less
 * than it says.
 *
 * Changes of the clock: where the minute or hour field begins with "*", real time is followed, and
 * what is due is due whenever the clock shows a time that matches: never in the hour that a change
 * leaves out, twice in one that it repeats. Otherwise each wall-clock time is due once on each
 * matching day: at the first instant at which the clock shows it, or shows a later time because a
 * change left it out. This holds for changes of any size: of a day that a zone leaves out as a
 * whole (Pacific/Apia, 2011-12-30), all is due in the first instant of the next.
 */
#ifndef LOCKKEEPER_BASE_SCHEDULE_H
#define LOCKKEEPER_BASE_SCHEDULE_H

#include "base/error.h"
#include "base/zone.h"

#include <stdbool.h>

#define SCHEDULE_NEVER INT64_MAX

typedef enum {
    SCHEDULE_CRON,
    SCHEDULE_EVERY,  /* a grid of real time */
    SCHEDULE_FINISH, /* counts from the end of the job's last run */
    SCHEDULE_START,  /* once each time a supervisor starts; never due by the clock */
} ScheduleKind;

/* Which times match: bit n stands for the value n. */
typedef struct {
    const Zone *zone;
    uint64_t seconds;
    uint64_t minutes;
    uint64_t nth_weekdays; /* bit 6 * weekday + n - 1: the month's nth such day; n = 6: its last */
    uint32_t hours;
    uint32_t days;
    uint32_t last_days; /* bit n: n days before the month's last */
    uint16_t months;
    uint8_t weekdays;
    bool both_days; /* day of month and day of week must match, not just one */
    bool real_time; /* minute or hour begin with "*" */
} ScheduleCron;

typedef struct {
    ScheduleKind kind; /* the one field for callers to read */
    union {
        ScheduleCron cron;
        struct {
            int64_t period_s;
            int64_t offset_s; /* SCHEDULE_EVERY: of the grid, from the epoch */
        } every;
    };
} Schedule;

/*
 * From a cron expression.
 *   zone  where its wall clock is; kept
 *   job   the name that picks what "~" leaves open; NULL: "~" is refused
 * Returns false with *err, which names field, text and column and what is allowed there; also for
 * an expression of days that no year has ("0 0 30 2 *").
 */
bool schedule_from_cron(Schedule *schedule, const char *text, const Zone *zone, const char *job,
                        Error *err);

/*
 * Every period: the instants of a grid that begins at the epoch plus an offset picked by the job's
 * name. The period is whole seconds, from 1 s to 3650 days.
 */
bool schedule_from_every(Schedule *schedule, int64_t period_us, const char *job, Error *err);

/* A delay after the end of the job's last run; limits as for a period. */
bool schedule_from_finish(Schedule *schedule, int64_t delay_us, Error *err);

/*
 * The first due instant after `after_us`, never `after_us` itself. For SCHEDULE_FINISH `after_us`
 * is the end of the last run (or, without one, when the job was first known), and what is due is
 * the first whole second at which the delay has passed. SCHEDULE_NEVER: none before the year 2300.
 * Usually takes about a tenth of a microsecond; asking again with each answer lists all that are
 * due in order.
 */
int64_t schedule_next(const Schedule *schedule, int64_t after_us);

#endif
