#include "runner/agenda.h"

#include <stdlib.h>

bool agenda_begin(Agenda *agenda, size_t room)
{
    Job **jobs;

    agenda->count = 0;
    if (room <= agenda->room)
        return true;
    jobs = realloc(agenda->jobs, room * sizeof(Job *));
    if (jobs == NULL)
        return false;
    agenda->jobs = jobs;
    agenda->room = room;
    return true;
}

void agenda_put(Agenda *agenda, Job *job)
{
    size_t at;

    if (job->due_us == SCHEDULE_NEVER)
        return;
    for (at = agenda->count++; at > 0; at = (at - 1) / 2) {
        Job *parent = agenda->jobs[(at - 1) / 2];

        if (parent->due_us <= job->due_us)
            break;
        agenda->jobs[at] = parent;
    }
    agenda->jobs[at] = job;
}

Job *agenda_first(const Agenda *agenda)
{
    return agenda->count == 0 ? NULL : agenda->jobs[0];
}

Job *agenda_take(Agenda *agenda)
{
    Job *first = agenda->jobs[0];
    Job *last = agenda->jobs[--agenda->count];
    size_t at = 0;

    for (;;) {
        size_t child = 2 * at + 1;

        if (child >= agenda->count)
            break;
        if (child + 1 < agenda->count &&
            agenda->jobs[child + 1]->due_us < agenda->jobs[child]->due_us)
            child++;
        if (last->due_us <= agenda->jobs[child]->due_us)
            break;
        agenda->jobs[at] = agenda->jobs[child];
        at = child;
    }
    agenda->jobs[at] = last;
    return first;
}

void agenda_clear(Agenda *agenda)
{
    free(agenda->jobs);
    *agenda = (Agenda){0};
}
