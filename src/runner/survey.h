/*
 * Surveys: which jobs there are, as `lockkeeper survey PATH...` tells, a child that has every file
 * described in a bounded process of its own. Nothing of a file is run in this process.
 */
#ifndef LOCKKEEPER_RUNNER_SURVEY_H
#define LOCKKEEPER_RUNNER_SURVEY_H

#include "runner/job.h"

/* Jobs in the order of their names, each name once. All zero is an empty set. */
typedef struct {
    Job **jobs;
    size_t count;
    char **files; /* all that were ever surveyed, each once */
    size_t file_count;
} JobSet;

/* The job of that name, or NULL. */
Job *job_set_find(const JobSet *set, const char *name);

/* Free the set and its jobs. */
void job_set_clear(JobSet *set);

typedef struct {
    bool stateless;           /* what needs rows is a fault */
    const char *config;       /* NULL: where it is looked for */
    const char *const *paths; /* ends with NULL */
} SurveySpec;

typedef struct Survey Survey;

/* Survey the files. Faults are logged. Waits; a fiber that is cancelled gives up. NULL with *err. */
Survey *survey_run(const SurveySpec *spec, Zones *zones, Error *err);

/* How many faults there are. */
int survey_faults(const Survey *survey);

/*
 * Put what there is now in the place of what is in *set: as a whole, or not at all (false with
 * *err). A job takes over what the supervisor knows of the one of its name, unless its schedule is
 * another. A broken file keeps the jobs that it has in *set. Does not wait.
 */
bool survey_swap(Survey *survey, JobSet *set, Error *err);

void survey_free(Survey *survey); /* NULL is fine */

#endif
