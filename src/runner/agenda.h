/*
 * The agenda: which of many jobs is due next, by their due_us. The first is found at once, and one is
 * taken off or put on in the logarithm of their number (a binary heap).
 *
 * Whoever changes the due_us of a job on it, or frees one, fills it anew before the next call.
 */
#ifndef LOCKKEEPER_RUNNER_AGENDA_H
#define LOCKKEEPER_RUNNER_AGENDA_H

#include "runner/job.h"

/* All zero is an empty one. */
typedef struct {
    Job **jobs; /* none is due before its parent, the one at (index - 1) / 2 */
    size_t count, room;
} Agenda;

/* Empty it, with room for that many: so many may be put on. False: out of memory, and it is empty. */
bool agenda_begin(Agenda *agenda, size_t room);

/* There is room. A job that never is due (SCHEDULE_NEVER) is left out. */
void agenda_put(Agenda *agenda, Job *job);

/* The job that is due first; NULL where there is none. */
Job *agenda_first(const Agenda *agenda);

/* Take the first one off; there is one. */
Job *agenda_take(Agenda *agenda);

void agenda_clear(Agenda *agenda); /* frees its memory, not the jobs */

#endif
