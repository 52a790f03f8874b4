/*
 * What it takes a supervisor to find the job that is due next, take it off and put it on again for its next
 * time: bench_agenda JOBS; microseconds, and megabytes of the agenda.
 */
#include "runner/agenda.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

int main(int argc, char **argv)
{
    enum { ROUNDS = 100000, HOUR_US = 1000000000 };
    size_t count = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    Job **jobs = calloc(count + 1, sizeof(Job *));
    Agenda agenda = {0};
    double start;

    if (count == 0 || jobs == NULL || !agenda_begin(&agenda, count))
        return 2;
    srandom(1);
    for (size_t i = 0; i < count; i++) {
        jobs[i] = calloc(1, sizeof **jobs); /* one by one, as a supervisor has them */
        if (jobs[i] == NULL)
            return 1;
        jobs[i]->due_us = random() % HOUR_US;
        agenda_put(&agenda, jobs[i]);
    }
    start = now_us();
    for (int i = 0; i < ROUNDS; i++) {
        Job *job = agenda_take(&agenda);

        job->due_us += random() % HOUR_US;
        agenda_put(&agenda, job);
    }
    printf("%.4f %.2f\n", (now_us() - start) / ROUNDS, (double)(agenda.room * sizeof(Job *)) / 1e6);
    agenda_clear(&agenda);
    for (size_t i = 0; i < count; i++)
        free(jobs[i]);
    free(jobs);
    return 0;
}
