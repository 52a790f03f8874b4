/*
 * Which slots of a job are due, and which of them it runs: due times are listed, never guessed
 * (runner.md 6 and 9). Pure: nothing here asks for the time or for the database.
 *
 * All instants are microseconds since the epoch by the database's clock.
 */
#ifndef LOCKKEEPER_RUNNER_DUE_H
#define LOCKKEEPER_RUNNER_DUE_H

#include "base/schedule.h"
#include "runner/store.h"

enum {
    DUE_SLOTS_MAX = 1000, /* listed at once for one job */
    DUE_LATE_US = 60000000, /* a slot this late was missed, also where a host runs */
};

typedef struct {
    const Schedule *schedule;
    Catchup catchup;
    int64_t catchup_window_us;  /* DURATION_ENDLESS: no limit */
    int64_t since_us;           /* when this schedule was first recorded: it has no past */
    int64_t newest_us;          /* the newest known slot of origin `schedule`; STORE_NO_TIME */
    int64_t evaluated_us;       /* `until_us` of the last time; STORE_NO_TIME: none yet */
    int64_t last_end_us;        /* when the job's last run ended (SCHEDULE_FINISH); STORE_NO_TIME */
    bool at_work;               /* a run of it has not ended (SCHEDULE_FINISH) */
    int64_t serving_since_us;   /* this host serves without a gap since then; slots up to then, if
                                   nobody has claimed them, were missed */
} DueJob;

typedef struct {
    int64_t slot_us;
    bool catches_up;  /* it was missed, and is one of all that are caught up with */
    const char *skip; /* why it does not run ("caught_up"); NULL: it runs */
} DueSlot;

/*
 * List what is due by `now_us`, oldest first, into `slots` (room for DUE_SLOTS_MAX).
 *   until_us  out: what to give as evaluated_us next time: `now_us`, or less where there are more
 *             slots than there is room for; then call again with it, after these were claimed
 * Returns how many. Once they were claimed, the last one's slot_us is the newest known. Of missed
 * slots that only are to be recorded as skipped, the oldest are left out where they are too many:
 * what runs is always listed.
 */
int due_slots(const DueJob *job, int64_t now_us, DueSlot *slots, int64_t *until_us);

/* The next due time after `now_us`, to sleep until; SCHEDULE_NEVER. */
int64_t due_next(const DueJob *job, int64_t now_us);

#endif
