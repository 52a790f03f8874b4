#include "runner/pool.h"

#include "base/clock.h"
#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    RETIRE_US = 2000000,  /* how long a process has to end by itself */
    MARGIN_US = 2000000,  /* and, beyond its grace, one that was told to cancel its run */
    AGAIN_US = 1000000,   /* between two tries to start a process */
    SESSION_US = 5000000, /* how long the session of a process that is gone is waited for */
    SESSION_AGAIN_US = 50000,
    SLOT_TEXT_SIZE = 40,
    EXIT_TIMED_OUT = 124, /* of a worker process: see src/host/watcher.h */
    EXIT_LOST = 125,
};

/* A run in work. */
typedef struct {
    int64_t id;
    char *job;
    JobFile *file;
    char runner[STORE_UUID_SIZE];
    RunOrigin origin;
    int64_t slot_us;
    int attempt;
    int64_t parent;
    int64_t grace_us;
    bool from_finish;   /* the job's next slot is counted from its end */
    const char *cancel; /* NULL: not to be cancelled; else why */
    bool told;          /* the process was told so */
    bool left;          /* to whoever looks for runs that were lost */
    int64_t kill_us;
    char slot_text[SLOT_TEXT_SIZE], id_text[TEXT_INTEGER_SIZE], fence_text[TEXT_INTEGER_SIZE];
    LogField fields[5];
    Tail output; /* of its process and descendants, past what the process keeps itself */
} Run;

typedef struct {
    Pool *pool;
    int index;
    Fiber *fiber;
    Bell bell;
    Child *child;
    int child_age; /* the pool's, when it was started */
    Run *run;
} Worker;

struct Pool {
    PoolSpec spec;
    bool closing, killing;
    int age; /* how often it was renewed */
    int count;
    Worker workers[];
};

/* ---- runs ------------------------------------------------------------------------------------ */

static void run_free(Run *run)
{
    if (run == NULL)
        return;
    free(run->job);
    job_file_release(run->file);
    free(run);
}

static void slot_text(char text[SLOT_TEXT_SIZE], int64_t slot_us)
{
    time_t seconds = (time_t)(slot_us / 1000000);
    struct tm utc;

    gmtime_r(&seconds, &utc);
    strftime(text, SLOT_TEXT_SIZE, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

static Run *run_new(const StoreRun *from, const Job *job, const char *runner)
{
    Run *run = calloc(1, sizeof *run);

    if (run == NULL)
        return NULL;
    run->id = from->id;
    run->origin = from->origin;
    run->slot_us = from->slot_us;
    run->attempt = from->attempt;
    run->parent = from->parent;
    run->grace_us = job->grace_us;
    run->from_finish = job->scheduled && job->schedule.kind == SCHEDULE_FINISH;
    run->kill_us = CLOCK_NEVER;
    run->job = strdup(job->record.name);
    run->file = job->file;
    run->file->uses++;
    text_copy(run->runner, sizeof run->runner, runner);
    if (run->job == NULL) {
        run_free(run);
        return NULL;
    }
    slot_text(run->slot_text, run->slot_us);
    run->fields[0] = (LogField){.name = "job", .value = run->job};
    run->fields[1] = (LogField){.name = "slot", .value = run->slot_text};
    run->fields[2] = (LogField){
        .name = "run",
        .value = run->id == 0 ? NULL : text_integer(run->id_text, run->id),
        .bare = true,
    };
    run->fields[3] = (LogField){.name = "fence", .bare = true};
    return run;
}

/* `stays`: its process may have another run. */
static json_t *run_message(const Run *run, bool stays)
{
    const JobFile *file = run->file;
    json_t *id = run->id == 0 ? NULL : json_integer(run->id);

    return json_pack("{s:{s:o*, s:s, s:s, s:s, s:s*, s:s, s:s, s:I, s:i, s:I, s:b}}", "run", "id", id,
                     "job", run->job, "file", file->path, "sha256",
                     file->sha256, "text", file->replaced ? file->text : NULL,
                     "runner", run->runner, "origin", RUN_ORIGIN_NAMES[run->origin], "slot_us",
                     (json_int_t)run->slot_us, "attempt", run->attempt, "parent",
                     (json_int_t)run->parent, "stays", stays);
}

/* Is its process kept for another run? */
static bool is_warm(const Worker *worker)
{
    return worker->index < worker->pool->spec.warm && !worker->pool->closing;
}

/* ---- ending a run whose process did not ------------------------------------------------------- */

/* The link, as soon as there is one. NULL: this process is about to end. */
static Session *await_link(const Pool *pool)
{
    Session *session;

    while ((session = link_begin(pool->spec.link)) == NULL && !pool->closing)
        wait_told(pool->spec.link, WAIT_CLEANUP);
    return session;
}

/*
 * The server may still execute a statement of the process that is gone, under the run's locks: an
 * attempt that follows would find them taken.
 */
static void end_session(Worker *worker)
{
    Pool *pool = worker->pool;
    int64_t deadline_us = clock_deadline(SESSION_US);
    bool gone = worker->run->id == 0;
    Error err;

    while (!gone && clock_monotonic_us() < deadline_us) {
        Session *session = await_link(pool);
        bool ok;

        if (session == NULL)
            return;
        ok = store_terminate(session, worker->run->id, &gone, &err);
        link_end(pool->spec.link, ok ? NULL : &err);
        if (!ok && err.kind != ERROR_CONNECTION)
            return; /* without the right to end it: it ends when it has nobody to answer to */
        if (!gone)
            wait_for(NULL, 0, clock_deadline(SESSION_AGAIN_US), WAIT_CLEANUP);
    }
}

/* Ask until it is done, or this process is about to end. */
static void write_end(Worker *worker, const StoreEnd *end)
{
    Pool *pool = worker->pool;
    Session *session;
    int64_t retry;
    bool ended = true, ok = end->run == 0;
    Error err;

    while (!ok && (session = await_link(pool)) != NULL) {
        ok = store_end(session, end, &ended, &retry, &err);
        link_end(pool->spec.link, ok ? NULL : &err);
        if (!ok && err.kind != ERROR_CONNECTION) {
            log_printf(LOG_ERROR, "run %" PRId64 " could not be ended in the database: %s", end->run,
                       err.message);
            return;
        }
    }
    if (ok && ended)
        metrics_ended(pool->spec.metrics, worker->run->job, end->state, end->waited_s, end->ran_s);
}

/* Nothing of it was begun: it is due again, for whoever can. Returns how often it was claimed, or 0. */
static int give_back(Worker *worker, bool later)
{
    const Run *run = worker->run;
    StoreRunner runner = worker->pool->spec.link->runner;
    Session *session;
    int claims = 0;
    bool ok = run->id == 0;
    Error err;

    text_copy(runner.uuid, sizeof runner.uuid, run->runner);
    while (!ok && (session = await_link(worker->pool)) != NULL) {
        ok = store_give_back(session, &runner, run->id, later, &claims, &err);
        link_end(worker->pool->spec.link, ok ? NULL : &err);
        if (!ok && err.kind != ERROR_CONNECTION) {
            log_printf(LOG_ERROR, "run %" PRId64 " could not be given back: %s", run->id, err.message);
            break;
        }
    }
    return ok ? claims : 0;
}

/* It may go on so for hours: the 1st, 2nd, 4th, 8th … time is a warning. */
static void log_unbegun(const Run *run, int claims, const char *error)
{
    bool is_told = (claims & (claims - 1)) == 0;
    char times[TEXT_INTEGER_SIZE];
    LogField fields[7];

    memcpy(fields, run->fields, sizeof run->fields);
    fields[4] = (LogField){.name = "error", .value = error};
    fields[5] = (LogField){
        .name = "claims",
        .value = claims > 1 ? text_integer(times, claims) : NULL,
        .bare = true,
    };
    fields[6] = (LogField){0};
    log_write(is_told ? LOG_WARNING : LOG_INFO, "the job could not begin: its run is given back", fields);
}

/*
 * Its session is gone. Where it was at work, it is lost once its liveness lock is free (runner.md
 * 22), which whoever looks finds; before, it was only claimed.
 */
static void end_lost(Worker *worker)
{
    worker->run->left = true;
    give_back(worker, false);
    bell_ring(worker->pool->spec.lost);
}

/* As it is where nothing more is known. */
static StoreEnd end_of(const Run *run, RunState state, const char *reason, const char *error)
{
    return (StoreEnd){
        .run = run->id,
        .runner = run->runner,
        .state = state,
        .reason = reason,
        .error = error,
        .waited_s = -1,
        .ran_s = -1,
        .retry_after_us = STORE_RETRY_POLICY,
    };
}

/* Once its row was ended. */
static void add_output(Worker *worker)
{
    const Run *run = worker->run;
    char *text = run->id == 0 || run->output.written == 0 ? NULL : malloc(TAIL_SIZE);
    size_t length = text == NULL ? 0 : tail_copy(&run->output, text);
    bool ok = length == 0;
    Session *session;
    Error err;

    while (!ok && (session = await_link(worker->pool)) != NULL) {
        ok = store_add_output(session, run->id, run->runner, text, length, &err);
        link_end(worker->pool->spec.link, ok ? NULL : &err);
        if (!ok && err.kind != ERROR_CONNECTION) {
            log_printf(LOG_ERROR, "what run %" PRId64 " has printed could not be kept: %s", run->id,
                       err.message);
            break;
        }
    }
    free(text);
}

static void end_run(Worker *worker, RunState state, const char *reason, const char *error)
{
    StoreEnd end = end_of(worker->run, state, reason, error);

    write_end(worker, &end);
}

static void log_orphan(const Run *run, const char *error)
{
    LogField fields[7];

    memcpy(fields, run->fields, sizeof run->fields);
    fields[4] = (LogField){.name = "reason", .value = run->cancel};
    fields[5] = (LogField){.name = "error", .value = error};
    fields[6] = (LogField){0};
    if (run->cancel != NULL)
        log_write(LOG_WARNING, "job cancelled", fields);
    else
        log_write(LOG_ERROR, "job ended with its process", fields);
}

/* The process is gone and has not ended its run. */
static void end_orphan(Worker *worker, int exit_code)
{
    Run *run = worker->run;
    char text[128];

    if (exit_code > 128)
        snprintf(text, sizeof text, "the job's process was ended by signal %d", exit_code - 128);
    else
        snprintf(text, sizeof text, "the job's process ended with exit code %d", exit_code);
    log_orphan(run, text);
    end_session(worker);
    if (exit_code == EXIT_LOST)
        end_lost(worker);
    else if (run->cancel != NULL)
        end_run(worker, RUN_CANCELLED, run->cancel, text);
    else if (exit_code == EXIT_TIMED_OUT)
        end_run(worker, RUN_TIMED_OUT, NULL, "max_run has passed");
    else
        end_run(worker, RUN_FAILED, "process", text);
}

static const char *text_field(const json_t *object, const char *name)
{
    return json_string_value(json_object_get(object, name));
}

/* Negative: not known. */
static double seconds_field(const json_t *object, const char *name)
{
    const json_t *seconds = json_object_get(object, name);

    return json_is_number(seconds) ? json_number_value(seconds) : -1;
}

static RunState state_of(const json_t *ended)
{
    const char *word = text_field(ended, "state");
    int state = word == NULL ? -1 : store_word(RUN_STATE_NAMES, word);

    return state < RUN_SUCCEEDED ? RUN_FAILED : (RunState)state;
}

/* The process tells of its run's end; mostly it has ended the row, too. */
static void end_told(Worker *worker, const json_t *ended)
{
    StoreEnd end = end_of(worker->run, state_of(ended), text_field(ended, "reason"),
                          text_field(ended, "error"));

    end.waited_s = seconds_field(ended, "waited");
    end.ran_s = seconds_field(ended, "ran");
    if (json_is_true(json_object_get(ended, "written"))) {
        if (end.reason == NULL || strcmp(end.reason, "gone") != 0) /* else it is not ours */
            metrics_ended(worker->pool->spec.metrics, worker->run->job, end.state, end.waited_s,
                          end.ran_s);
        return;
    }
    end.error_kind = text_field(ended, "kind");
    end.sqlstate = text_field(ended, "sqlstate");
    end.detail = text_field(ended, "detail");
    if (json_is_true(json_object_get(ended, "given_back"))) {
        log_unbegun(worker->run, give_back(worker, true), end.error);
    } else if (end.state == RUN_LOST) {
        end_lost(worker);
    } else {
        write_end(worker, &end);
    }
}

/* ---- processes ------------------------------------------------------------------------------- */

/* Has it a process that was started before the pool was renewed? */
static bool is_outdated(const Worker *worker)
{
    return worker->child != NULL && worker->child_age != worker->pool->age;
}

static void drop_child(Worker *worker)
{
    child_free(worker->child);
    worker->child = NULL;
}

/* Let it end, and what it has left behind. */
static void retire(Worker *worker)
{
    int64_t deadline_us = clock_deadline(RETIRE_US);
    bool killed = false;
    json_t *message;
    ChildNews news;

    if (worker->child == NULL)
        return;
    child_dismiss(worker->child);
    do {
        news = child_wait(worker->child, &worker->bell, killed ? CLOCK_NEVER : deadline_us, &message);
        json_decref(message);
        if (!killed && (news == CHILD_DEADLINE || worker->pool->killing)) {
            child_kill(worker->child);
            killed = true;
        }
    } while (news != CHILD_ENDED);
    drop_child(worker);
}

static bool start_child(Worker *worker)
{
    Error err;

    if (worker->child != NULL)
        return true;
    worker->child_age = worker->pool->age;
    if (child_start(&worker->child, worker->pool->spec.settings, &err))
        return true;
    log_printf(LOG_ERROR, "no worker process could be started: %s", err.message);
    return false;
}

/* ---- a worker -------------------------------------------------------------------------------- */

/* Wait for a run, with a process ready where one is to be. */
static void idle(Worker *worker)
{
    json_t *message;
    ChildNews news;

    if (is_outdated(worker)) {
        retire(worker);
        return; /* there may be a run by now */
    }
    if (is_warm(worker) && !start_child(worker)) {
        bell_wait(&worker->bell, clock_deadline(AGAIN_US));
        return;
    }
    if (worker->child == NULL) {
        bell_wait(&worker->bell, CLOCK_NEVER);
        return;
    }
    news = child_wait(worker->child, &worker->bell, CLOCK_NEVER, &message);
    json_decref(message);
    if (news == CHILD_ENDED) {
        log_printf(LOG_WARNING, "a worker process that had nothing to do has ended with code %d",
                   child_exit_code(worker->child));
        drop_child(worker);
        if (worker->run == NULL)
            bell_wait(&worker->bell, clock_deadline(AGAIN_US));
    }
}

/* The signal ends the run; this tells for which reason. */
static void say_why(Child *child, const Run *run)
{
    json_t *message = json_pack("{s:{s:I, s:s}}", "cancel", "id", (json_int_t)run->id, "reason",
                                run->cancel);
    Error ignored;

    child_say(child, message, &ignored);
    json_decref(message);
}

/* Tell the process what has become necessary since. */
static void attend(Worker *worker)
{
    Run *run = worker->run;

    if (worker->pool->killing) {
        run->cancel = run->cancel == NULL ? "cancelled" : run->cancel;
        child_kill(worker->child);
    } else if (run->cancel != NULL && !run->told) {
        run->told = true;
        run->kill_us = clock_deadline(run->grace_us);
        run->kill_us = run->kill_us == CLOCK_NEVER ? CLOCK_NEVER : run->kill_us + MARGIN_US;
        say_why(worker->child, run);
        child_cancel(worker->child);
    }
}

static void note_running(Run *run, const json_t *running)
{
    const json_t *fence = json_object_get(running, "fence");

    if (json_is_integer(fence))
        run->fields[3].value = text_integer(run->fence_text, json_integer_value(fence));
}

/* Until the run is over. *reusable: its process may have another. */
static void accompany(Worker *worker, bool *reusable)
{
    Run *run = worker->run;

    for (;;) {
        json_t *message, *part;
        ChildNews news = child_wait(worker->child, &worker->bell, run->kill_us, &message);

        if (news == CHILD_ENDED) {
            int exit_code = child_exit_code(worker->child);

            drop_child(worker); /* nothing of it is left when the row says so */
            end_orphan(worker, exit_code);
            add_output(worker);
            return;
        }
        if (news == CHILD_RUNG || news == CHILD_CANCELLED)
            attend(worker);
        if (news == CHILD_DEADLINE) {
            run->kill_us = CLOCK_NEVER;
            child_kill(worker->child);
        }
        if ((part = json_object_get(message, "running")) != NULL)
            note_running(run, part);
        namer_add(worker->pool->spec.namer, json_object_get(message, "names"));
        if ((part = json_object_get(message, "ended")) != NULL) {
            /* the signal may still be on its way */
            *reusable = json_is_true(json_object_get(part, "reusable")) && !run->told;
            child_drain(worker->child);
            end_told(worker, part);
            add_output(worker);
            json_decref(message);
            return;
        }
        json_decref(message);
    }
}

static void work(Worker *worker)
{
    Run *run = worker->run;
    json_t *message = run_message(run, is_warm(worker));
    bool reusable = false;
    Error err;

    if (is_outdated(worker))
        retire(worker);
    if (!start_child(worker) || !child_say(worker->child, message, &err)) {
        drop_child(worker); /* it may have ended while it was idle: once more, with a new one */
        if (!start_child(worker) || !child_say(worker->child, message, &err)) {
            end_run(worker, RUN_FAILED, "process", "no worker process could be started");
            drop_child(worker);
        }
    }
    json_decref(message);
    if (worker->child != NULL) {
        child_set_fields(worker->child, run->fields, &run->output);
        attend(worker);
        accompany(worker, &reusable);
    }
    if (worker->child != NULL && !(reusable && is_warm(worker) && !is_outdated(worker)))
        retire(worker);
    if (worker->child != NULL)
        child_set_fields(worker->child, NULL, NULL);
    worker->run = NULL;
    if (run->from_finish)
        bell_ring(worker->pool->spec.counted);
    run_free(run);
    bell_ring(worker->pool->spec.freed);
}

static void worker_main(void *argument)
{
    Worker *worker = argument;

    while (!worker->pool->closing || worker->run != NULL) {
        if (worker->run != NULL)
            work(worker);
        else
            idle(worker);
    }
    retire(worker);
}

/* ---- the pool -------------------------------------------------------------------------------- */

Pool *pool_new(const PoolSpec *spec, Error *err)
{
    Pool *pool = calloc(1, sizeof *pool + (size_t)spec->workers * sizeof pool->workers[0]);

    if (pool == NULL) {
        error_set(err, ERROR_USAGE, "out of memory");
        return NULL;
    }
    pool->spec = *spec;
    for (int i = 0; i < spec->workers; i++) {
        Worker *worker = &pool->workers[i];

        *worker = (Worker){.pool = pool, .index = i, .bell.fd = -1};
        if (!bell_open(&worker->bell, err) ||
            !fiber_start(&worker->fiber, worker_main, worker, err)) {
            bell_close(&worker->bell);
            pool_free(pool);
            return NULL;
        }
        pool->count++;
    }
    return pool;
}

int pool_free_workers(const Pool *pool)
{
    int count = 0;

    for (int i = 0; i < pool->count; i++)
        count += pool->workers[i].run == NULL;
    return count;
}

int pool_busy_workers(const Pool *pool)
{
    return pool->count - pool_free_workers(pool);
}

bool pool_assign(Pool *pool, const StoreRun *run, const Job *job, const char *runner)
{
    for (int i = 0; i < pool->count; i++) {
        Worker *worker = &pool->workers[i];

        if (worker->run == NULL) {
            worker->run = run_new(run, job, runner);
            bell_ring(&worker->bell);
            return worker->run != NULL;
        }
    }
    return false;
}

bool pool_has(const Pool *pool, const char *job)
{
    for (int i = 0; i < pool->count; i++) {
        if (pool->workers[i].run != NULL && strcmp(pool->workers[i].run->job, job) == 0)
            return true;
    }
    return false;
}

int pool_own_runs(const Pool *pool, int64_t *runs)
{
    int count = 0;

    for (int i = 0; i < pool->count; i++) {
        const Run *run = pool->workers[i].run;

        if (run != NULL && !run->left)
            runs[count++] = run->id;
    }
    return count;
}

void pool_cancel(Pool *pool, int64_t run, const char *reason)
{
    for (int i = 0; i < pool->count; i++) {
        Worker *worker = &pool->workers[i];

        if (worker->run != NULL && worker->run->cancel == NULL &&
            (run == 0 || worker->run->id == run)) {
            worker->run->cancel = reason;
            bell_ring(&worker->bell);
        }
    }
}

const char *pool_runner(const Pool *pool, int index)
{
    for (int i = 0; i < pool->count; i++) {
        const Run *run = pool->workers[i].run;
        int before = 0;

        while (run != NULL && before < i &&
               (pool->workers[before].run == NULL ||
                strcmp(pool->workers[before].run->runner, run->runner) != 0))
            before++;
        if (run != NULL && before == i && index-- == 0)
            return run->runner;
    }
    return NULL;
}

void pool_renew(Pool *pool)
{
    pool->age++;
    for (int i = 0; i < pool->count; i++)
        bell_ring(&pool->workers[i].bell);
}

void pool_kill(Pool *pool)
{
    pool->killing = true;
    for (int i = 0; i < pool->count; i++)
        bell_ring(&pool->workers[i].bell);
}

void pool_free(Pool *pool)
{
    if (pool == NULL)
        return;
    pool->closing = true;
    wait_tell(pool->spec.link);
    for (int i = 0; i < pool->count; i++) {
        bell_ring(&pool->workers[i].bell);
        fiber_join(pool->workers[i].fiber);
        bell_close(&pool->workers[i].bell);
    }
    free(pool);
}
