/*
 * Jobs, as files describe them: what the supervisor needs to know of each, and no more. What a job
 * does and under which guards is the worker's business.
 */
#ifndef LOCKKEEPER_RUNNER_JOB_H
#define LOCKKEEPER_RUNNER_JOB_H

#include "base/error.h"
#include "base/schedule.h"
#include "base/zones.h"
#include "runner/due.h"
#include "runner/store.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* A file that was described; jobs of the same version of it share this. */
typedef struct {
    int uses;
    char *path;
    char sha256[65];
    char *text;    /* NULL: it is not known */
    bool replaced; /* what stands there now is broken: it runs from its text */
} JobFile;

typedef struct {
    StoreJob record;    /* what the database is told of it; its texts are the job's */
    Schedule schedule;  /* where `scheduled` */
    JobFile *file;
    bool enabled;
    bool scheduled;
    bool zoned;         /* its schedule or window depends on time-zone data */
    Catchup catchup;
    int64_t grace_us;
    char **retry_words; /* record.retry_on; NULL: none */
    /* what follows is the supervisor's to write */
    bool known;         /* the database knows it, and what it said is in `due` */
    bool paused;
    bool started;       /* its slot of origin `start` was claimed */
    int64_t waits_us;   /* without state tables: its slot that waits for a worker; STORE_NO_TIME */
    DueJob due;
    int64_t due_us;     /* when to look at it next; SCHEDULE_NEVER: nothing comes by the clock */
} Job;

/* `text` may be NULL. */
JobFile *job_file_new(const char *path, const char *sha256, const char *text);
void job_file_release(JobFile *file); /* freed with its last use; NULL is fine */

/* From a description. NULL with *err: out of memory, or a zone that this host does not know. */
Job *job_new(const json_t *description, JobFile *file, Zones *zones, Error *err);
void job_free(Job *job);

#endif
