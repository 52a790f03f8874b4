/* The agenda gives jobs in the order of their due times, whatever order they were put on in. */
#include "runner/agenda.h"

#include <stdio.h>
#include <stdlib.h>

static int failures;

static void expect(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "failed: %s\n", what);
        failures++;
    }
}

static int64_t random_due(unsigned *seed)
{
    *seed = *seed * 1103515245U + 12345U;
    return (int64_t)((*seed >> 8) % 1000); /* many are due at once */
}

static void test_order(size_t count)
{
    Job *jobs = calloc(count + 1, sizeof *jobs);
    Agenda agenda = {0};
    int64_t last = 0;
    unsigned seed = (unsigned)count;
    size_t taken = 0;
    bool ordered = true;

    if (jobs == NULL)
        exit(1);
    expect(agenda_begin(&agenda, count + 1), "it begins");
    for (size_t i = 0; i < count; i++) {
        jobs[i].due_us = random_due(&seed);
        agenda_put(&agenda, &jobs[i]);
    }
    jobs[count].due_us = SCHEDULE_NEVER;
    agenda_put(&agenda, &jobs[count]);
    expect(agenda.count == count, "what is never due is left out");
    /* As the supervisor does it: the first is taken off, and put on again, later. */
    for (size_t i = 0; i < 2 * count; i++) {
        Job *job = agenda_take(&agenda);

        ordered = ordered && job->due_us >= last;
        last = job->due_us;
        job->due_us += random_due(&seed);
        agenda_put(&agenda, job);
    }
    expect(ordered, "none is due before the one that was taken off");
    while (agenda_first(&agenda) != NULL) {
        Job *first = agenda_first(&agenda);

        ordered = ordered && agenda_take(&agenda) == first && first->due_us >= last;
        last = first->due_us;
        taken++;
    }
    expect(ordered, "the rest come in their order");
    expect(taken == count, "each comes once");
    agenda_clear(&agenda);
    free(jobs);
}

int main(void)
{
    for (size_t count = 0; count < 40; count++)
        test_order(count);
    test_order(10000);
    return failures > 0;
}
