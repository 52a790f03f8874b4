#include "runner/due.h"

#include "base/duration.h"

#include <string.h>

static const char CAUGHT_UP[] = "caught_up";

/*
 * Slots after this instant are listed. What lies ahead of now says nothing: the clock was stepped
 * back since.
 */
static int64_t begin_of(const DueJob *job, int64_t now_us)
{
    int64_t from = job->since_us;
    int64_t known = job->newest_us;

    if (known != STORE_NO_TIME) {
        if (job->evaluated_us != STORE_NO_TIME && job->evaluated_us < known)
            known = job->evaluated_us;
        if (known > from && known <= now_us)
            from = known;
    }
    if (job->catchup_window_us != DURATION_ENDLESS && from < now_us - job->catchup_window_us)
        from = now_us - job->catchup_window_us;
    return from;
}

static bool is_missed(const DueJob *job, int64_t slot_us, int64_t now_us)
{
    return slot_us <= job->serving_since_us || slot_us < now_us - DUE_LATE_US;
}

/*
 * The one slot of a job that counts from the end of its last run. Where that lies ahead, the clock
 * was stepped back since, and there is nothing to count from: it is due now.
 */
static int64_t slot_after_end(const DueJob *job, int64_t now_us)
{
    if (job->at_work)
        return SCHEDULE_NEVER;
    if (job->last_end_us == STORE_NO_TIME)
        return schedule_next(job->schedule, job->since_us);
    if (job->last_end_us > now_us)
        return now_us - now_us % 1000000;
    return schedule_next(job->schedule, job->last_end_us);
}

static int due_after_end(const DueJob *job, int64_t now_us, DueSlot *slots)
{
    int64_t slot_us = slot_after_end(job, now_us);

    if (slot_us > now_us)
        return 0;
    slots[0] = (DueSlot){.slot_us = slot_us};
    return 1;
}

/* How many slots are listed, how many of them were missed, and the newest of those. */
typedef struct {
    int64_t count, missed;
    int64_t newest_missed_us;
} Survey;

static Survey survey(const DueJob *job, int64_t from_us, int64_t now_us)
{
    Survey found = {.newest_missed_us = STORE_NO_TIME};

    for (int64_t slot_us = schedule_next(job->schedule, from_us); slot_us <= now_us;
         slot_us = schedule_next(job->schedule, slot_us)) {
        found.count++;
        if (is_missed(job, slot_us, now_us)) {
            found.missed++;
            found.newest_missed_us = slot_us;
        }
    }
    return found;
}

static bool runs(const DueJob *job, const Survey *found, int64_t slot_us, bool missed)
{
    return !missed || job->catchup == CATCHUP_ALL ||
           (job->catchup == CATCHUP_LAST && slot_us == found->newest_missed_us);
}

int due_slots(const DueJob *job, int64_t now_us, DueSlot *slots, int64_t *until_us)
{
    int64_t from_us = begin_of(job, now_us);
    int64_t left_out = 0;
    int count = 0;
    Survey found = {0};

    *until_us = now_us;
    if (job->schedule->kind == SCHEDULE_START)
        return 0;
    if (job->schedule->kind == SCHEDULE_FINISH)
        return due_after_end(job, now_us, slots);
    if (job->catchup != CATCHUP_ALL)
        found = survey(job, from_us, now_us);
    if (found.count > DUE_SLOTS_MAX) {
        /* The oldest of those that do not run. */
        int64_t idle = found.missed - (job->catchup == CATCHUP_LAST && found.missed > 0 ? 1 : 0);

        left_out = found.count - DUE_SLOTS_MAX;
        if (left_out > idle)
            left_out = idle;
    }
    for (int64_t slot_us = schedule_next(job->schedule, from_us);
         slot_us <= now_us; slot_us = schedule_next(job->schedule, slot_us)) {
        bool missed = is_missed(job, slot_us, now_us);
        bool does_run = runs(job, &found, slot_us, missed);

        if (!does_run && left_out > 0) {
            left_out--;
            continue;
        }
        if (count == DUE_SLOTS_MAX) {
            *until_us = slots[count - 1].slot_us;
            break;
        }
        slots[count++] = (DueSlot){
            .slot_us = slot_us,
            .catches_up = missed && job->catchup == CATCHUP_ALL,
            .skip = does_run ? NULL : CAUGHT_UP,
        };
    }
    return count;
}

int64_t due_next(const DueJob *job, int64_t now_us)
{
    int64_t next_us;

    if (job->schedule->kind != SCHEDULE_FINISH)
        return schedule_next(job->schedule, now_us);
    next_us = slot_after_end(job, now_us);
    return next_us > now_us ? next_us : SCHEDULE_NEVER;
}
