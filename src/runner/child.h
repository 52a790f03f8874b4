/*
 * Worker processes: `lockkeeper work`, this program executed anew, to which one run after another
 * is handed.
 *
 * Both sides speak in JSON objects, one a line, over a socket:
 *
 *   to it      { "settings": { … } }                       first
 *              { "run": { id, job, file, sha256, … } }
 *   from it    { "ready": true }                           it has loaded what every run needs
 *              { "running": { "fence": 7 } }               the run's row says so now
 *              { "ended": { "state": …, "written": …, "given_back": …, "reusable": … } }
 *
 * Its log lines go to our standard error as they are. What else it or its descendants write to
 * standard output or standard error is logged here, line by line. It and all its descendants end
 * when this process does, by whatever end.
 */
#ifndef LOCKKEEPER_RUNNER_CHILD_H
#define LOCKKEEPER_RUNNER_CHILD_H

#include "base/error.h"
#include "base/log.h"
#include "base/tail.h"
#include "runner/bell.h"

#include <jansson.h>

typedef struct Child Child;

/* Start one; it gets `settings` (borrowed). */
bool child_start(Child **child, const json_t *settings, Error *err);

/* Say something; `message` is borrowed. False: it does not listen any more. */
bool child_say(Child *child, const json_t *message, Error *err);

/*
 * Fields for what it and its descendants write to standard output and standard error from now on;
 * borrowed until the next call. NULL: none. Its end is also kept in `tail`, unless that is NULL;
 * likewise borrowed.
 */
void child_set_fields(Child *child, const LogField *fields, Tail *tail);

/* Log what it has written by now, also where no line has ended. */
void child_drain(Child *child);

typedef enum {
    CHILD_SAID,     /* *message: the caller's to json_decref */
    CHILD_ENDED,    /* it and all its descendants are gone, all that it said was heard */
    CHILD_RUNG,     /* the bell */
    CHILD_DEADLINE,
    CHILD_CANCELLED, /* the fiber that waits was cancelled */
} ChildNews;

/* Wait for news of it. What it writes is logged meanwhile. */
ChildNews child_wait(Child *child, const Bell *bell, int64_t deadline_us, json_t **message);

/* End its run: a job in it unwinds, its commands get SIGTERM, and SIGKILL after their grace. */
void child_cancel(Child *child);

/* No more runs for it: it ends by itself. */
void child_dismiss(Child *child);

/* End it and its descendants at once. child_wait tells when they are gone. */
void child_kill(Child *child);

/* After CHILD_ENDED: its exit code, 128 + N where signal N ended it. */
int child_exit_code(const Child *child);

/* Kill it if it still runs, wait for its end (2 s at most) and free. NULL is fine. */
void child_free(Child *child);

#endif
