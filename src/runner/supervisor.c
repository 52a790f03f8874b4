#include "runner/supervisor.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/zones.h"
#include "pg/wait.h"
#include "runner/agenda.h"
#include "runner/bell.h"
#include "runner/due.h"
#include "runner/http.h"
#include "runner/link.h"
#include "runner/pool.h"
#include "runner/schema.h"
#include "runner/survey.h"
#include "runner/watch.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum {
    BACKOFF_FIRST_US = 250000,
    BACKOFF_MOST_US = 15000000,
    LOOK_US = 10000000,     /* runner.md 22 */
    LOOK_AGAIN_US = 300000, /* after a worker has lost its session */
    POLL_US = 3000000,      /* for rows of which a notification was missed */
    MEASURE_US = 60000000,  /* runner.md 5 */
    RECORD_US = 3600 * 1000000L,
    PRUNE_US = 600 * 1000000L,
    PRUNE_PAUSE_US = 2000, /* between batches */
    TAKE_JOBS = 64,
    TROUBLES = 16,
    TELL_US = 30000000, /* of a trouble that goes on */
    END_US = 5000000, /* beyond drain and grace: then processes are killed */
    EXIT_LOADING = 2,
};

/* What does not succeed at present. */
typedef struct {
    const char *what; /* NULL: the place is free */
    char message[256];
    int times;           /* since it was told */
    int64_t tell_us;     /* when to tell it again, by the monotonic clock */
} Trouble;

typedef struct {
    SupervisorOptions options;
    SurveySpec files;
    Zones *zones;
    JobSet jobs;
    Turn jobs_turn; /* for whoever uses them across a wait, or swaps them */
    Link link;
    Pool *pool;
    json_t *settings;
    Watch *watch; /* NULL: files are not watched */
    Metrics *metrics; /* these three: NULL: nobody listens */
    Sampler *sampler;
    Http *http;
    char host[256];
    bool older_zones;  /* another supervisor has newer time-zone data */
    Agenda agenda;     /* of the jobs that this host claims for */
    bool agenda_stale; /* to be filled anew: due times, or which jobs it is of, have changed */
    bool waiting;      /* there may be rows to be taken */
    const char **waiting_jobs; /* by name, those that had some when it was asked last; the jobs' */
    int waiting_count;
    int waiting_at; /* those before have none any more */
    int64_t take_next_us; /* when the next row becomes due, by the monotonic clock */
    bool has_finish;   /* jobs whose schedule counts from their last end */
    bool has_replace;  /* jobs of which a newer run replaces one at work */
    bool linked_once;
    bool draining, ending;
    int told;          /* how often it was told to end */
    int exit_code;
    Trouble troubles[TROUBLES];
    PQExpBufferData pruned_to; /* up to which job history was pruned */
    bool prune_more;
    /* each rung for the fiber that waits on it */
    Bell tick, take, look, count, chores, reload, requests, stop;
} Supervisor;

/* ---- what the database knows of the jobs ------------------------------------------------------ */

static bool is_ours(const Supervisor *s, const Job *job)
{
    return !(job->zoned && s->older_zones);
}

static void learn(Job *job, const StoreFacts *facts, int64_t serving_since_us)
{
    job->paused = facts->paused;
    job->due.since_us = facts->since_us;
    job->due.newest_us = facts->newest_us;
    job->due.last_end_us = facts->last_end_us;
    job->due.at_work = facts->at_work;
    job->due.serving_since_us = serving_since_us;
    job->due_us = 0; /* at the next tick */
    job->known = facts->known;
}

typedef bool Wanted(const Job *job);

static bool is_unknown(const Job *job)
{
    return !job->known;
}

static bool counts_from_finish(const Job *job)
{
    return job->scheduled && job->schedule.kind == SCHEDULE_FINISH;
}

/* Ask for the facts of those jobs. With both turns. */
static bool ask_facts(Supervisor *s, Session *session, Wanted *wanted, Error *err)
{
    size_t room = s->jobs.count + 1;
    const char **names = calloc(room, sizeof *names);
    Job **jobs = calloc(room, sizeof *jobs);
    StoreFacts *facts = calloc(room, sizeof *facts);
    int count = 0;
    bool ok = false;

    if (names == NULL || jobs == NULL || facts == NULL) {
        error_set(err, ERROR_USAGE, "out of memory");
        goto out;
    }
    for (size_t i = 0; i < s->jobs.count; i++) {
        if (wanted(s->jobs.jobs[i])) {
            jobs[count] = s->jobs.jobs[i];
            names[count] = jobs[count]->record.name;
            count++;
        }
    }
    ok = count == 0 || store_facts(session, names, count, facts, err);
    for (int i = 0; ok && i < count; i++)
        learn(jobs[i], &facts[i], s->link.serving_since_us);
    s->agenda_stale = true;
out:
    free(names);
    free(jobs);
    free(facts);
    return ok;
}

static bool record_jobs(Supervisor *s, Session *session, Error *err)
{
    StoreJob *records = calloc(s->jobs.count + 1, sizeof *records);
    bool ok;

    if (records == NULL)
        return error_set(err, ERROR_USAGE, "out of memory");
    for (size_t i = 0; i < s->jobs.count; i++)
        records[i] = s->jobs.jobs[i]->record;
    ok = store_record_jobs(session, records, (int)s->jobs.count,
                           (const char *const *)s->jobs.files, (int)s->jobs.file_count, err);
    free(records);
    return ok;
}

/* Nobody remembers them: they have no past. */
static void learn_of_none(Supervisor *s)
{
    const StoreFacts facts = {
        .known = true,
        .since_us = s->link.serving_since_us,
        .newest_us = STORE_NO_TIME,
        .last_end_us = STORE_NO_TIME,
    };

    for (size_t i = 0; i < s->jobs.count; i++) {
        Job *job = s->jobs.jobs[i];

        job->due.catchup = CATCHUP_NONE;
        if (is_unknown(job))
            learn(job, &facts, s->link.serving_since_us);
        job->due.at_work = pool_has(s->pool, job->record.name);
    }
    s->agenda_stale = true;
}

/* Record the jobs and learn what is known of those that are new to us. With the jobs' turn. */
static bool introduce_jobs(Supervisor *s, Session *session, Error *err)
{
    s->has_finish = s->has_replace = false;
    for (size_t i = 0; i < s->jobs.count; i++) {
        const Job *job = s->jobs.jobs[i];

        s->has_finish = s->has_finish || counts_from_finish(job);
        s->has_replace = s->has_replace || job->record.overlap == OVERLAP_REPLACE;
    }
    if (!s->options.stateless)
        return record_jobs(s, session, err) && ask_facts(s, session, is_unknown, err);
    learn_of_none(s);
    return true;
}

/* ---- claimed runs ----------------------------------------------------------------------------- */

/* Give a run that can't be begun here back to all. With the link's turn. */
static void give_back(Supervisor *s, Session *session, const StoreRun *run)
{
    int claims;
    Error err;

    if (!store_give_back(session, &s->link.runner, run->id, false, &claims, &err))
        log_printf(LOG_WARNING, "run %" PRId64 " could not be given back: %s", run->id, err.message);
}

/* Hand out what was claimed. With both turns. */
static void hand_out(Supervisor *s, Session *session, const StoreRuns *runs)
{
    for (int i = 0; i < runs->count; i++) {
        const StoreRun *run = &runs->runs[i];
        Job *job = job_set_find(&s->jobs, run->job);

        if (job == NULL || !pool_assign(s->pool, run, job, s->link.runner.uuid)) {
            give_back(s, session, run);
            continue;
        }
        metrics_claimed(s->metrics, link_now(&s->link) - run->due_us);
        if (counts_from_finish(job))
            job->due.at_work = true;
    }
}

/* ---- the tick: slots (5 to 10) ----------------------------------------------------------------- */

typedef struct {
    StoreSlot *slots;
    size_t count, room;
    size_t job_count; /* whose slots were listed: they are off the agenda */
    Job **jobs;
    int64_t *until_us; /* up to when */
} Due;

static bool add_slot(Due *due, const Job *job, RunOrigin origin, const DueSlot *slot)
{
    if (due->count == due->room) {
        size_t more = due->room == 0 ? 256 : due->room * 2;
        StoreSlot *grown = realloc(due->slots, more * sizeof *grown);

        if (grown == NULL)
            return false;
        due->slots = grown;
        due->room = more;
    }
    due->slots[due->count++] = (StoreSlot){
        .job = job->record.name,
        .origin = origin,
        .slot_us = slot->slot_us,
        .overlap = job->record.overlap,
        .catches_up = slot->catches_up,
        .skip = slot->skip,
    };
    return true;
}

static bool list_job(Supervisor *s, Due *due, Job *job, int64_t now_us)
{
    static DueSlot slots[DUE_SLOTS_MAX];
    int count;

    if (job->schedule.kind == SCHEDULE_START)
        return job->started || add_slot(due, job, ORIGIN_START,
                                        &(DueSlot){.slot_us = s->link.runner.started_us});
    count = due_slots(&job->due, now_us, slots, &due->until_us[due->job_count]);
    for (int i = 0; i < count; i++) {
        if (!add_slot(due, job, ORIGIN_SCHEDULE, &slots[i]))
            return false;
    }
    return true;
}

/* The agenda as it has to be. False: out of memory. */
static bool have_agenda(Supervisor *s)
{
    if (!s->agenda_stale)
        return true;
    if (!agenda_begin(&s->agenda, s->jobs.count))
        return false;
    for (size_t i = 0; i < s->jobs.count; i++) {
        Job *job = s->jobs.jobs[i];

        if (job->enabled && job->scheduled && job->known && is_ours(s, job))
            agenda_put(&s->agenda, job);
    }
    s->agenda_stale = false;
    return true;
}

/* Room for one job more. */
static bool grow_listed(Due *due)
{
    size_t room = due->job_count + 1;
    Job **jobs;
    int64_t *until_us;

    if ((due->job_count & (due->job_count + 1)) != 0) /* it grows to powers of two */
        return true;
    jobs = realloc(due->jobs, 2 * room * sizeof(Job *));
    if (jobs != NULL)
        due->jobs = jobs;
    until_us = realloc(due->until_us, 2 * room * sizeof *until_us);
    if (until_us != NULL)
        due->until_us = until_us;
    return jobs != NULL && until_us != NULL;
}

/* Take what is due off the agenda. */
static bool list_due(Supervisor *s, Due *due, int64_t now_us, Error *err)
{
    const Job *first;

    if (!have_agenda(s))
        return error_set(err, ERROR_USAGE, "out of memory");
    while ((first = agenda_first(&s->agenda)) != NULL && first->due_us <= now_us) {
        Job *job = agenda_take(&s->agenda);

        s->agenda_stale = true; /* until it is on it again: note_listed */
        if (!grow_listed(due) || !list_job(s, due, job, now_us))
            return error_set(err, ERROR_USAGE, "out of memory");
        due->jobs[due->job_count++] = job;
    }
    return true;
}

/* What was listed is claimed, by us or by others, and is on the agenda for its next time. */
static void note_listed(Supervisor *s, const Due *due, int64_t now_us)
{
    for (size_t i = 0; i < due->job_count; i++) {
        Job *job = due->jobs[i];

        if (job->schedule.kind == SCHEDULE_START) {
            job->started = true;
            job->due_us = SCHEDULE_NEVER;
            continue;
        }
        job->due.evaluated_us = due->until_us[i];
        job->due_us = due->until_us[i] < now_us ? now_us : due_next(&job->due, now_us);
        agenda_put(&s->agenda, job);
    }
    s->agenda_stale = false;
}

/* The newest slots are known now: a finish counts on, from what the database says later. */
static void note_slots(const Supervisor *s, const Due *due)
{
    for (size_t i = 0; i < due->count; i++) {
        Job *job = job_set_find(&s->jobs, due->slots[i].job);

        if (due->slots[i].origin == ORIGIN_SCHEDULE && job->due.newest_us < due->slots[i].slot_us)
            job->due.newest_us = due->slots[i].slot_us;
    }
}

/* Without rows: begin slots that wait here, as far as there are workers. */
static void begin_waiting(Supervisor *s)
{
    s->waiting = false;
    for (size_t i = 0; i < s->jobs.count; i++) {
        Job *job = s->jobs.jobs[i];
        StoreRun run = {
            .job = job->record.name,
            .origin = job->schedule.kind == SCHEDULE_START ? ORIGIN_START : ORIGIN_SCHEDULE,
            .slot_us = job->waits_us,
            .attempt = 1,
        };

        if (job->waits_us == STORE_NO_TIME)
            continue;
        if (pool_assign(s->pool, &run, job, s->link.runner.uuid)) {
            metrics_claimed(s->metrics, link_now(&s->link) - run.slot_us);
            job->waits_us = STORE_NO_TIME;
            job->due.at_work = true;
        } else {
            s->waiting = true;
        }
    }
}

/* Without rows: what is due waits here until there is a worker. */
static void begin_slots(Supervisor *s, const Due *due)
{
    for (size_t i = 0; i < due->count; i++) {
        const StoreSlot *slot = &due->slots[i];
        Job *job = job_set_find(&s->jobs, slot->job);
        bool is_busy = job->waits_us != STORE_NO_TIME ||
                       (slot->overlap != OVERLAP_ALLOW && pool_has(s->pool, slot->job));

        if (slot->skip == NULL && !is_busy) {
            job->waits_us = slot->slot_us;
            continue;
        }
        metrics_ended(s->metrics, slot->job, RUN_SKIPPED, -1, -1);
        log_write(LOG_INFO, "a slot was skipped",
                  (LogField[]){{.name = "job", .value = slot->job},
                               {.name = "reason", .value = slot->skip != NULL ? slot->skip : "busy"},
                               {0}});
    }
    begin_waiting(s);
}

static bool claim_slots(Supervisor *s, Session *session, const Due *due, Error *err)
{
    StoreRuns claimed = {0};
    StoreTally tally = {0};

    if (!store_claim(session, &s->link.runner, due->slots, (int)due->count, pool_free_workers(s->pool),
                     &claimed, &tally, err))
        return false;
    hand_out(s, session, &claimed);
    for (int i = claimed.count; i < claimed.count + claimed.skipped; i++)
        metrics_ended(s->metrics, claimed.runs[i].job, RUN_SKIPPED, -1, -1);
    if (tally.due > 0) {
        s->waiting = true;
        bell_ring(&s->take);
    }
    store_runs_clear(&claimed);
    return true;
}

static bool claim(Supervisor *s, Session *session, Error *err)
{
    int64_t now_us = link_now(&s->link);
    Due due = {0};
    bool ok = list_due(s, &due, now_us, err);

    if (ok && due.count > 0) {
        if (s->options.stateless)
            begin_slots(s, &due);
        else
            ok = claim_slots(s, session, &due, err);
        if (ok)
            note_slots(s, &due);
    }
    if (ok)
        note_listed(s, &due, now_us);
    free(due.slots);
    free(due.jobs);
    free(due.until_us);
    return ok;
}

static int64_t next_due(Supervisor *s)
{
    const Job *first;

    if (!have_agenda(s))
        return clock_deadline(BACKOFF_FIRST_US);
    first = agenda_first(&s->agenda);
    return first == NULL ? CLOCK_NEVER : link_when(&s->link, first->due_us);
}

static void log_trouble_times(const char *what, const Error *err, int times)
{
    char count[TEXT_INTEGER_SIZE];

    log_write(err->kind == ERROR_CONNECTION ? LOG_WARNING : LOG_ERROR, what,
              (LogField[]){{.name = "error", .value = err->message},
                           {.name = "sqlstate", .value = err->sqlstate[0] == '\0' ? NULL : err->sqlstate},
                           {.name = "hint", .value = err->hint[0] == '\0' ? NULL : err->hint},
                           {.name = "times",
                            .value = times > 1 ? text_integer(count, times) : NULL,
                            .bare = true},
                           {0}});
}

static void log_trouble(const char *what, const Error *err)
{
    log_trouble_times(what, err, 1);
}

/* The hint of a session that was lost is for scripts: it names reconnect(). */
static void forget_reconnect(Error *err)
{
    if (err->kind == ERROR_CONNECTION || err->kind == ERROR_LOCK_LOST)
        err->hint[0] = '\0';
}

static Trouble *find_trouble(Supervisor *s, const char *what)
{
    for (int i = 0; i < TROUBLES; i++) {
        if (s->troubles[i].what != NULL && strcmp(s->troubles[i].what, what) == 0)
            return &s->troubles[i];
    }
    return NULL;
}

/* What is tried each second and goes on failing is told twice a minute. `what` is a constant. */
static void note_trouble(Supervisor *s, const char *what, const Error *err)
{
    Trouble *trouble = find_trouble(s, what);
    char message[sizeof trouble->message];

    text_copy(message, sizeof message, err->message);
    for (int i = 0; i < TROUBLES && trouble == NULL; i++) {
        if (s->troubles[i].what == NULL) {
            trouble = &s->troubles[i];
            *trouble = (Trouble){.what = what};
        }
    }
    if (trouble == NULL) {
        log_trouble(what, err);
        return;
    }
    trouble->times++;
    if (strcmp(message, trouble->message) == 0 && clock_monotonic_us() < trouble->tell_us)
        return;
    log_trouble_times(what, err, trouble->times);
    memcpy(trouble->message, message, sizeof message);
    trouble->times = 0;
    trouble->tell_us = clock_deadline(TELL_US);
}

static void note_success(Supervisor *s, const char *what)
{
    Trouble *trouble = find_trouble(s, what);

    if (trouble == NULL)
        return;
    log_write(LOG_INFO, "it is over", (LogField[]){{.name = "trouble", .value = what}, {0}});
    trouble->what = NULL;
}

/* Where tables or rights were taken away: what is missing, and how it is given. */
static void explain(const Supervisor *s, Session *session, Error *err)
{
    static const char *const MISSING[] = {"42501", "42P01", "42703", "3F000"};
    Error found;

    for (size_t i = 0; i < sizeof MISSING / sizeof MISSING[0] && !s->options.stateless; i++) {
        if (strcmp(err->sqlstate, MISSING[i]) == 0 && !schema_check(session, &found) &&
            found.kind != ERROR_CONNECTION) {
            *err = found;
            return;
        }
    }
}

/* With the turns: do what `work` does. False: not linked, or it failed. */
static bool with_link(Supervisor *s, const char *what, bool (*work)(Supervisor *, Session *, Error *))
{
    Session *session;
    bool ok = false;
    Error err;

    error_clear(&err);
    turn_take(&s->jobs_turn);
    session = link_begin(&s->link);
    if (session != NULL) {
        ok = work(s, session, &err);
        if (ok) {
            note_success(s, what);
        } else {
            explain(s, session, &err);
            forget_reconnect(&err);
            note_trouble(s, what, &err);
        }
        link_end(&s->link, ok ? NULL : &err);
    }
    turn_give(&s->jobs_turn);
    return ok;
}

static void tick_main(void *argument)
{
    Supervisor *s = argument;
    int64_t deadline_us = CLOCK_NEVER;

    for (;;) {
        bell_wait(&s->tick, deadline_us);
        if (s->ending)
            return;
        deadline_us = CLOCK_NEVER;
        if (s->draining || !s->link.serving)
            continue;
        if (with_link(s, "slots could not be claimed", claim))
            deadline_us = next_due(s);
        else
            deadline_us = clock_deadline(BACKOFF_FIRST_US * 4);
    }
}

/* ---- rows to be taken --------------------------------------------------------------------------- */

/* Forget which jobs have rows to be taken. */
static void forget_waiting(Supervisor *s)
{
    free(s->waiting_jobs);
    s->waiting_jobs = NULL;
    s->waiting_count = s->waiting_at = 0;
}

/* Ask which jobs have rows to be taken, and when the next row becomes due. */
static bool ask_waiting(Supervisor *s, Session *session, Error *err)
{
    StoreWaiting waiting;

    forget_waiting(s);
    if (!store_waiting(session, &waiting, err))
        return false;
    s->take_next_us = waiting.next_us == STORE_NO_TIME ? CLOCK_NEVER : link_when(&s->link, waiting.next_us);
    s->waiting_jobs = calloc((size_t)waiting.count + 1, sizeof *s->waiting_jobs);
    for (int i = 0; s->waiting_jobs != NULL && i < waiting.count; i++) {
        const Job *job = job_set_find(&s->jobs, store_waiting_job(&waiting, i));

        if (job != NULL && is_ours(s, job))
            s->waiting_jobs[s->waiting_count++] = job->record.name;
    }
    s->waiting = waiting.count > 0;
    store_waiting_clear(&waiting);
    return true;
}

/* Take rows of those jobs, of some at a time: a statement with thousands of names takes its time. */
static bool take_waiting(Supervisor *s, Session *session, bool *filled, Error *err)
{
    *filled = false;
    while (!*filled && s->waiting_at < s->waiting_count) {
        int workers = pool_free_workers(s->pool);
        int left = s->waiting_count - s->waiting_at;
        int count = left < TAKE_JOBS ? left : TAKE_JOBS;
        StoreRuns taken;

        if (!store_take(session, &s->link.runner, s->waiting_jobs + s->waiting_at, count, workers, &taken,
                        err))
            return false;
        *filled = taken.count == workers;
        hand_out(s, session, &taken);
        store_runs_clear(&taken);
        if (!*filled)
            s->waiting_at += count;
    }
    return true;
}

/* As long as those jobs that had rows keep all workers busy, nobody asks for others. */
static bool take_rows(Supervisor *s, Session *session, Error *err)
{
    bool filled;

    if (s->options.stateless) {
        begin_waiting(s);
        return true;
    }
    return take_waiting(s, session, &filled, err) &&
           (filled || (ask_waiting(s, session, err) && take_waiting(s, session, &filled, err)));
}

static void take_main(void *argument)
{
    Supervisor *s = argument;
    int64_t poll_us = 0;

    s->take_next_us = CLOCK_NEVER;
    for (;;) {
        int64_t deadline_us = s->take_next_us < poll_us ? s->take_next_us : poll_us;
        WaitEnd end = bell_wait(&s->take, deadline_us);

        if (s->ending)
            return;
        /* While nothing waits, a worker that has become free is no reason to ask. */
        if (end != WAIT_DEADLINE && !s->waiting)
            continue;
        poll_us = clock_deadline(POLL_US);
        s->take_next_us = CLOCK_NEVER;
        s->waiting = true; /* where it can't be asked now */
        if (!s->draining && s->link.serving && pool_free_workers(s->pool) > 0)
            with_link(s, "rows could not be taken", take_rows);
    }
}

/* ---- what others ask for, and what was lost (10, 11, 22) -------------------------------------- */

static bool take_requests(Supervisor *s, Session *session, Error *err)
{
    StoreRunner runner = s->link.runner;
    const char *uuid;

    for (int index = 0; (uuid = pool_runner(s->pool, index)) != NULL; index++) {
        StoreRuns runs = {0};

        text_copy(runner.uuid, sizeof runner.uuid, uuid);
        if (!store_requests(session, &runner, &runs, err))
            return false;
        for (int i = 0; i < runs.count; i++)
            pool_cancel(s->pool, runs.runs[i].id,
                        strcmp(runs.runs[i].reason, "replaced") == 0 ? "replaced" : "cancelled");
        store_runs_clear(&runs);
    }
    return true;
}

static void requests_main(void *argument)
{
    Supervisor *s = argument;

    for (;;) {
        bell_wait(&s->requests, clock_deadline(POLL_US));
        if (s->ending)
            return;
        if (s->link.serving && pool_busy_workers(s->pool) > 0)
            with_link(s, "requests could not be read", take_requests);
    }
}

static void note_found(const Supervisor *s, const StoreRun *run)
{
    char id[TEXT_INTEGER_SIZE];

    log_write(LOG_WARNING, run->state == RUN_LOST ? "a run was lost" : "a claimed run is due again",
              (LogField[]){{.name = "job", .value = run->job},
                           {.name = "run", .value = text_integer(id, run->id), .bare = true},
                           {.name = "state", .value = RUN_STATE_NAMES[run->state]},
                           {0}});
    if (run->state != RUN_DUE)
        metrics_ended(s->metrics, run->job, run->state, -1, -1);
}

/* A process that has ended frees its run's liveness lock before its end is written here. */
static bool look(Supervisor *s, Session *session, Error *err)
{
    StoreRuns runs = {0};
    int64_t *own = calloc((size_t)s->options.workers, sizeof *own);
    bool ok = own != NULL ? store_look(session, own, pool_own_runs(s->pool, own), &runs, err)
                          : error_set(err, ERROR_SQL, "out of memory");

    free(own);
    if (!ok)
        return false;
    for (int i = 0; i < runs.count; i++)
        note_found(s, &runs.runs[i]);
    if (runs.count > 0) {
        s->waiting = true;
        bell_ring(&s->take);
    }
    store_runs_clear(&runs);
    return true;
}

static bool check_zones(Supervisor *s, Session *session, Error *err)
{
    const char *own = zones_version(s->zones);
    char newest[64];
    bool older;

    if (s->options.stateless)
        return true;
    if (!store_newest_zones(session, newest, sizeof newest, err))
        return false;
    older = strcmp(newest, own) > 0;
    if (older && !s->older_zones)
        log_write(LOG_WARNING, "another supervisor has newer time-zone data: jobs with a zone are left to it",
                  (LogField[]){{.name = "ours", .value = own}, {.name = "newest", .value = newest}, {0}});
    if (older != s->older_zones)
        bell_ring(&s->tick);
    s->agenda_stale = s->agenda_stale || older != s->older_zones;
    s->older_zones = older;
    return true;
}

static bool keep_alive(Supervisor *s, Session *session, Error *err)
{
    if (s->has_finish)
        bell_ring(&s->count);
    return store_beat(session, &s->link.runner, err) && check_zones(s, session, err) &&
           look(s, session, err);
}

static void look_main(void *argument)
{
    Supervisor *s = argument;
    int64_t deadline_us = clock_deadline(LOOK_US);

    for (;;) {
        WaitEnd end = bell_wait(&s->look, deadline_us);

        if (s->ending)
            return;
        if (end == WAIT_READY) /* the server needs a moment to see that a session has gone */
            wait_for(NULL, 0, clock_deadline(LOOK_AGAIN_US), WAIT_NORMAL);
        if (s->link.serving)
            with_link(s, "runs could not be looked at", keep_alive);
        deadline_us = clock_deadline(LOOK_US);
    }
}

/* ---- slots that are counted from the end of the last run (3) --------------------------------------- */

/* Without rows: only what runs here counts. */
static void count_own(Supervisor *s)
{
    for (size_t i = 0; i < s->jobs.count; i++) {
        Job *job = s->jobs.jobs[i];

        if (job->due.at_work && job->waits_us == STORE_NO_TIME && !pool_has(s->pool, job->record.name)) {
            job->due.at_work = false;
            job->due.last_end_us = link_now(&s->link);
            if (counts_from_finish(job))
                job->due_us = 0;
        }
    }
    s->agenda_stale = true;
}

static bool count_on(Supervisor *s, Session *session, Error *err)
{
    bell_ring(&s->tick);
    if (s->options.stateless) {
        count_own(s);
        return true;
    }
    return ask_facts(s, session, counts_from_finish, err);
}

static void count_main(void *argument)
{
    Supervisor *s = argument;

    for (;;) {
        bell_wait(&s->count, CLOCK_NEVER);
        if (s->ending)
            return;
        if (s->link.serving)
            with_link(s, "the ends of jobs could not be read", count_on);
    }
}

/* ---- what is done now and then ------------------------------------------------------------------ */

/* The clock was set back: what is listed from the newest known slot on is not lost (6). */
static void list_again(Supervisor *s)
{
    int64_t now_us = link_now(&s->link);

    for (size_t i = 0; i < s->jobs.count; i++) {
        Job *job = s->jobs.jobs[i];

        if (job->due.evaluated_us > now_us)
            job->due.evaluated_us = now_us;
        if (job->due_us != SCHEDULE_NEVER)
            job->due_us = 0;
    }
    s->agenda_stale = true;
}

static bool measure(Supervisor *s, Session *session, Error *err)
{
    bool back;

    if (!link_measure(&s->link, session, &back, err))
        return false;
    if (back)
        list_again(s);
    bell_ring(&s->tick);
    return true;
}

/* One batch. */
static bool prune(Supervisor *s, Session *session, Error *err)
{
    int64_t pruned;

    return store_prune(session, s->options.keep_us, s->options.keep_runs, &s->pruned_to,
                       &s->prune_more, &pruned, err);
}

/* All of it; others take their turns between batches. */
static bool prune_history(Supervisor *s)
{
    resetPQExpBuffer(&s->pruned_to);
    do {
        if (!with_link(s, "history could not be pruned", prune))
            return false;
        wait_for(NULL, 0, clock_deadline(PRUNE_PAUSE_US), WAIT_NORMAL);
    } while (s->prune_more && !s->draining);
    return true;
}

static bool all_are_known(const Supervisor *s)
{
    for (size_t i = 0; i < s->jobs.count; i++) {
        if (is_unknown(s->jobs.jobs[i]))
            return false;
    }
    return true;
}

static void chores_main(void *argument)
{
    Supervisor *s = argument;
    int64_t prune_us = clock_deadline(MEASURE_US / 2), record_us = clock_deadline(RECORD_US);

    for (;;) {
        bell_wait(&s->chores, clock_deadline(MEASURE_US));
        if (s->ending)
            return;
        if (!s->link.serving)
            continue;
        with_link(s, "the clock could not be measured", measure);
        if (s->options.stateless)
            continue;
        if (clock_monotonic_us() >= prune_us && prune_history(s))
            prune_us = clock_deadline(PRUNE_US);
        if ((clock_monotonic_us() >= record_us || !all_are_known(s)) &&
            with_link(s, "jobs could not be recorded", introduce_jobs))
            record_us = clock_deadline(RECORD_US);
    }
}

/* ---- the files (24) ------------------------------------------------------------------------------ */

static void log_jobs(const char *message, const Supervisor *s, int faults)
{
    char jobs[TEXT_INTEGER_SIZE], count[TEXT_INTEGER_SIZE];

    log_write(faults > 0 ? LOG_WARNING : LOG_INFO, message,
              (LogField[]){{.name = "jobs", .value = text_integer(jobs, (int64_t)s->jobs.count), .bare = true},
                           {.name = "faults",
                            .value = faults > 0 ? text_integer(count, faults) : NULL,
                            .bare = true},
                           {0}});
}

static bool swap_jobs(Supervisor *s, Survey *found, Error *err)
{
    bool ok;

    turn_take(&s->jobs_turn);
    forget_waiting(s);
    ok = survey_swap(found, &s->jobs, err);
    s->agenda_stale = true; /* before anybody looks: its jobs may be freed */
    turn_give(&s->jobs_turn);
    return ok;
}

static void reload(Supervisor *s)
{
    Error err;
    Survey *found = survey_run(&s->files, s->zones, &err);

    if (found == NULL || !swap_jobs(s, found, &err)) {
        log_trouble("the files could not be read anew: all jobs stay as they were", &err);
    } else {
        log_jobs("the files were read anew", s, survey_faults(found));
        pool_renew(s->pool);
        if (s->link.serving)
            with_link(s, "jobs could not be recorded", introduce_jobs);
        bell_ring(&s->tick);
        s->waiting = true;
        bell_ring(&s->take);
    }
    survey_free(found);
}

static void reload_main(void *argument)
{
    Supervisor *s = argument;

    for (;;) {
        bell_wait(&s->reload, CLOCK_NEVER);
        if (s->ending)
            return;
        if (!s->draining)
            reload(s);
    }
}

static void watch_main(void *argument)
{
    Supervisor *s = argument;

    while (!s->ending && watch_wait(s->watch))
        bell_ring(&s->reload);
}

/* At start a broken file is a reason not to serve at all. */
static bool load(Supervisor *s)
{
    Error err;
    Survey *found = survey_run(&s->files, s->zones, &err);
    bool ok = found != NULL && survey_faults(found) == 0 && swap_jobs(s, found, &err);

    if (found == NULL)
        log_trouble("the files could not be read", &err);
    else if (!ok)
        log_printf(LOG_ERROR, "not served: %d fault%s in the files", survey_faults(found),
                   survey_faults(found) == 1 ? "" : "s");
    survey_free(found);
    return ok;
}

/* ---- the link (22, 25) --------------------------------------------------------------------------- */

static void hear(Supervisor *s, const char *news)
{
    if (strcmp(news, "due") == 0) {
        s->waiting = true;
        bell_ring(&s->take);
        if (s->has_replace)
            bell_ring(&s->requests);
    } else if (strcmp(news, "cancel") == 0) {
        bell_ring(&s->requests);
    } else if (strcmp(news, "job") == 0) {
        s->waiting = true;
        bell_ring(&s->take);
    } else if (strcmp(news, "end") == 0 && s->has_finish) {
        bell_ring(&s->count);
    }
}

/* Hear news until the link is lost, or all is to end. */
static void hear_news(Supervisor *s)
{
    Error err;

    for (;;) {
        PGnotify *news;

        error_clear(&err);
        news = session_notification(s->link.ears, clock_deadline(POLL_US), &err);
        if (news != NULL) {
            hear(s, news->extra);
            PQfreemem(news);
        } else if (err.kind != ERROR_NONE) {
            forget_reconnect(&err);
            if (!s->ending)
                log_trouble("the link to the database is lost", &err);
            return;
        }
        if (!s->link.serving || s->ending)
            return;
    }
}

static int64_t jittered(int64_t us)
{
    uint32_t random = 0;

    (void)!getrandom(&random, sizeof random, GRND_NONBLOCK);
    return us / 2 + (int64_t)((double)us / 2 * random / UINT32_MAX);
}

/* What follows a new link: the jobs are recorded, and what was missed is listed. */
static bool begin_serving(Supervisor *s, Error *err)
{
    bool ok;

    turn_take(&s->jobs_turn);
    for (size_t i = 0; i < s->jobs.count; i++)
        s->jobs.jobs[i]->known = false;
    s->agenda_stale = true;
    ok = introduce_jobs(s, s->link.asks, err) && check_zones(s, s->link.asks, err);
    turn_give(&s->jobs_turn);
    if (!ok)
        return false;
    link_serve(&s->link);
    s->linked_once = true;
    s->waiting = true;
    log_write(LOG_INFO, "serving",
              (LogField[]){{.name = "runner", .value = s->options.stateless ? NULL : s->link.runner.uuid}, {0}});
    bell_ring(&s->tick);
    bell_ring(&s->take);
    bell_ring(&s->look);
    bell_ring(&s->requests);
    return true;
}

/* Would another try, later, help? At start only where the server is away. */
static bool may_help(const Supervisor *s, const Error *err)
{
    return s->linked_once || err->kind == ERROR_CONNECTION;
}

static void give_up(Supervisor *s, const Error *err)
{
    log_trouble("not served", err);
    s->exit_code = EXIT_FAILURE;
    s->told = 1;
    bell_ring(&s->stop);
}

/* As of other commands: lua/lockkeeper/cli/target.lua. */
static bool is_server_named(const Supervisor *s)
{
    static const char *const NAMES[] = {"PGHOST", "PGHOSTADDR", "PGSERVICE"};

    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        const char *value = getenv(NAMES[i]);

        if (value != NULL && value[0] != '\0')
            return true;
    }
    return s->options.conninfo[0] != '\0';
}

static void hint_at_servers(const Supervisor *s, Error *err)
{
    if (!s->linked_once && err->kind == ERROR_CONNECTION && err->hint[0] == '\0' && !is_server_named(s))
        error_hint(err, "No server was named. --dsn names one; --embedded starts a private one to try "
                        "things out.");
}

static void link_main(void *argument)
{
    Supervisor *s = argument;
    int64_t backoff_us = BACKOFF_FIRST_US;
    Error err;

    while (!s->ending) {
        error_clear(&err);
        if (link_connect(&s->link, &err) && begin_serving(s, &err)) {
            backoff_us = BACKOFF_FIRST_US;
            hear_news(s);
            if (s->ending)
                break;
            link_close(&s->link, false);
            continue;
        }
        link_close(&s->link, false);
        if (s->ending)
            break;
        if (!may_help(s, &err)) {
            give_up(s, &err);
            return;
        }
        hint_at_servers(s, &err);
        log_trouble("no link to the database", &err);
        bell_wait(&s->link.lost, clock_deadline(jittered(backoff_us)));
        backoff_us = backoff_us * 2 > BACKOFF_MOST_US ? BACKOFF_MOST_US : backoff_us * 2;
    }
}

/* ---- HTTP (29) -------------------------------------------------------------------------------------- */

static void look_for_metrics(void *argument, Metrics *metrics, MetricsNow *now)
{
    const Supervisor *s = argument;

    metrics_begin_jobs(metrics);
    for (size_t i = 0; i < s->jobs.count; i++) {
        const Job *job = s->jobs.jobs[i];

        metrics_job(metrics, job->record.name,
                    job->enabled && job->scheduled ? job->due_us : SCHEDULE_NEVER);
    }
    *now = (MetricsNow){
        .linked = s->link.serving,
        .workers = s->options.workers,
        .busy_workers = pool_busy_workers(s->pool),
    };
}

static const char *why_unready(void *argument)
{
    const Supervisor *s = argument;

    if (s->draining)
        return "ending";
    if (!s->link.serving)
        return s->linked_once ? "the link to the database is lost" : "not linked to the database yet";
    return NULL;
}

static bool open_http(Supervisor *s, Error *err)
{
    HttpSpec spec = {
        .listen = s->options.listen,
        .supervisor = s,
        .look = look_for_metrics,
        .unready = why_unready,
    };

    if (spec.listen == NULL)
        return true;
    s->metrics = spec.metrics = metrics_new();
    if (s->metrics == NULL)
        return error_set(err, ERROR_USAGE, "out of memory");
    s->sampler = spec.sampler = sampler_new(s->options.conninfo, !s->options.stateless, err);
    if (s->sampler == NULL)
        return false;
    s->http = http_open(&spec, err);
    return s->http != NULL;
}

static void close_http(Supervisor *s)
{
    http_close(s->http);
    sampler_free(s->sampler);
    metrics_free(s->metrics);
}

static void http_main(void *argument)
{
    http_serve(((Supervisor *)argument)->http);
}

static void scrape_main(void *argument)
{
    http_scrape(((Supervisor *)argument)->http);
}

static void sample_main(void *argument)
{
    sampler_run(((Supervisor *)argument)->sampler);
}

/* ---- signals ------------------------------------------------------------------------------------- */

static int signals_fd = -1;

static bool open_signals(Error *err)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGHUP, SIG_DFL); /* nohup(1) has it ignored */
    signal(SIGPIPE, SIG_IGN);
    signals_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return signals_fd >= 0 || error_set(err, ERROR_USAGE, "signalfd: %s", strerror(errno));
}

static void signals_main(void *argument)
{
    Supervisor *s = argument;

    for (;;) {
        struct pollfd fd = {.fd = signals_fd, .events = POLLIN};
        struct signalfd_siginfo info;

        if (wait_for(&fd, 1, CLOCK_NEVER, WAIT_NORMAL) == WAIT_INTERRUPTED && s->ending)
            return;
        if (read(signals_fd, &info, sizeof info) != sizeof info)
            continue;
        if (info.ssi_signo == SIGHUP) {
            bell_ring(&s->reload);
        } else {
            s->told++;
            bell_ring(&s->stop);
        }
    }
}

/* ---- from start to end ---------------------------------------------------------------------------- */

typedef struct {
    void (*run)(void *);
    Fiber *fiber;
    bool cancelled; /* to end, its waits must be cut short */
    bool of_rows;   /* there is nothing to do where there are none */
} Concern;

static Concern concerns[] = {
    {.run = link_main, .cancelled = true},
    {.run = tick_main},
    {.run = take_main},
    {.run = requests_main, .of_rows = true},
    {.run = look_main, .of_rows = true},
    {.run = count_main},
    {.run = chores_main},
    {.run = reload_main, .cancelled = true},
    {.run = signals_main, .cancelled = true},
    {.run = watch_main, .cancelled = true},
    {.run = http_main, .cancelled = true},
    {.run = scrape_main, .cancelled = true},
    {.run = sample_main, .cancelled = true},
};

enum { CONCERNS = sizeof concerns / sizeof concerns[0] };

static Bell *const *all_bells(Supervisor *s, size_t *count)
{
    static Bell *bells[8];

    bells[0] = &s->tick;
    bells[1] = &s->take;
    bells[2] = &s->look;
    bells[3] = &s->reload;
    bells[4] = &s->requests;
    bells[5] = &s->stop;
    bells[6] = &s->count;
    bells[7] = &s->chores;
    *count = sizeof bells / sizeof bells[0];
    return bells;
}

/* Wait until no run is at work, told to end once more than `told` times, or the deadline. */
static void await_runs(Supervisor *s, int told, int64_t deadline_us)
{
    while (pool_busy_workers(s->pool) > 0 && s->told <= told) {
        WaitEnd end = bell_wait(&s->stop, deadline_us < clock_deadline(50000) ? deadline_us
                                                                             : clock_deadline(50000));

        if (end == WAIT_DEADLINE && clock_monotonic_us() >= deadline_us)
            return;
    }
}

static int64_t longest_grace(const Supervisor *s)
{
    int64_t most_us = 0;

    for (size_t i = 0; i < s->jobs.count; i++) {
        if (s->jobs.jobs[i]->grace_us > most_us)
            most_us = s->jobs.jobs[i]->grace_us;
    }
    return most_us;
}

/* Claim no more; let runs finish; then end them; then kill (23). */
static void drain(Supervisor *s)
{
    int64_t grace_us;

    s->draining = true;
    if (pool_busy_workers(s->pool) > 0)
        log_printf(LOG_INFO, "ending: %d runs are at work", pool_busy_workers(s->pool));
    await_runs(s, 1, clock_deadline(s->options.drain_us));
    pool_cancel(s->pool, 0, "cancelled");
    grace_us = clock_deadline(longest_grace(s));
    await_runs(s, 2, grace_us == CLOCK_NEVER ? CLOCK_NEVER : grace_us + END_US);
    if (pool_busy_workers(s->pool) > 0)
        pool_kill(s->pool);
    await_runs(s, 3, clock_deadline(END_US));
}

static void end_concerns(Supervisor *s)
{
    size_t count;
    Bell *const *bells = all_bells(s, &count);

    s->ending = true;
    for (size_t i = 0; i < count; i++)
        bell_ring(bells[i]);
    for (size_t i = 0; i < CONCERNS; i++) {
        if (concerns[i].fiber == NULL)
            continue;
        if (concerns[i].cancelled)
            fiber_cancel(concerns[i].fiber);
        for (size_t b = 0; b < count; b++)
            bell_ring(bells[b]);
        fiber_join(concerns[i].fiber);
    }
}

static bool is_wanted(const Supervisor *s, void (*run)(void *))
{
    if (run == watch_main)
        return s->watch != NULL;
    return s->http != NULL || (run != http_main && run != scrape_main && run != sample_main);
}

static bool start_concerns(Supervisor *s, Error *err)
{
    for (size_t i = 0; i < CONCERNS; i++) {
        if (!is_wanted(s, concerns[i].run))
            continue;
        if (concerns[i].of_rows && s->options.stateless)
            continue;
        if (!fiber_start(&concerns[i].fiber, concerns[i].run, s, err))
            return false;
    }
    return true;
}

static json_t *worker_settings(const SupervisorOptions *options)
{
    json_t *settings = json_pack("{s:s}", "conninfo", options->conninfo);

    if (options->config != NULL)
        json_object_set_new(settings, "config", json_string(options->config));
    if (options->log_level != NULL)
        json_object_set_new(settings, "log_level", json_string(options->log_level));
    if (options->log_format != NULL)
        json_object_set_new(settings, "log_format", json_string(options->log_format));
    if (options->act != NULL)
        json_object_set_new(settings, "act", json_string(options->act));
    return settings;
}

static bool prepare(Supervisor *s, Error *err)
{
    StoreRunner runner = {.host = s->host, .version = LOCKKEEPER_VERSION};
    size_t count;
    Bell *const *bells = all_bells(s, &count);

    for (size_t i = 0; i < count; i++) {
        if (!bell_open(bells[i], err))
            return false;
    }
    if (gethostname(s->host, sizeof s->host - 1) != 0)
        text_copy(s->host, sizeof s->host, "?");
    if (s->options.workers == 0) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);

        s->options.workers = cores < 1 ? 2 : 2 * (int)cores;
    }
    s->zones = zones_new(NULL);
    s->settings = worker_settings(&s->options);
    if (s->zones == NULL || s->settings == NULL)
        return error_set(err, ERROR_USAGE, "out of memory");
    if (s->options.watch && (s->watch = watch_open(s->options.paths, err)) == NULL)
        return false;
    runner.zones = zones_version(s->zones);
    runner.workers = s->options.workers;
    return link_init(&s->link, s->options.conninfo, s->options.stateless, &runner, err) &&
           open_signals(err) && open_http(s, err);
}

static void release(Supervisor *s)
{
    size_t count;
    Bell *const *bells = all_bells(s, &count);

    close_http(s);
    link_free(&s->link);
    watch_close(s->watch);
    forget_waiting(s);
    agenda_clear(&s->agenda);
    job_set_clear(&s->jobs);
    zones_free(s->zones);
    json_decref(s->settings);
    termPQExpBuffer(&s->pruned_to);
    for (size_t i = 0; i < count; i++)
        bell_close(bells[i]);
    if (signals_fd >= 0)
        close(signals_fd);
}

static void serve(Supervisor *s)
{
    Error err;
    Namer *namer = namer_new(&s->link, &err);
    PoolSpec spec = {
        .workers = s->options.workers,
        .warm = s->options.warm,
        .settings = s->settings,
        .link = &s->link,
        .metrics = s->metrics,
        .namer = namer,
        .freed = &s->take,
        .lost = &s->look,
        .counted = &s->count,
    };

    s->pool = namer == NULL ? NULL : pool_new(&spec, &err);
    if (s->pool == NULL || !start_concerns(s, &err)) {
        log_trouble("not served", &err);
        s->exit_code = EXIT_FAILURE;
        s->told = 1;
    }
    while (s->told == 0)
        bell_wait(&s->stop, CLOCK_NEVER);
    if (s->pool != NULL)
        drain(s);
    end_concerns(s);
    pool_free(s->pool);
    namer_free(namer);
    link_close(&s->link, true);
    if (s->exit_code == 0)
        log_printf(LOG_INFO, "ended");
}

int supervisor_run(const SupervisorOptions *options)
{
    Supervisor s = {
        .options = *options,
        .files = {
            .stateless = options->stateless,
            .config = options->config,
            .paths = options->paths,
        },
    };
    size_t count;
    Bell *const *bells = all_bells(&s, &count);
    Error err;

    for (size_t i = 0; i < count; i++)
        bells[i]->fd = -1;
    initPQExpBuffer(&s.pruned_to);
    s.link.lost.fd = -1;
    if (wait_interrupted() != 0)
        return 128 + wait_interrupted();
    if (!prepare(&s, &err)) {
        log_trouble("not served", &err);
        s.exit_code = EXIT_FAILURE;
    } else if (!load(&s)) {
        s.exit_code = EXIT_LOADING;
    } else {
        log_jobs("jobs are known", &s, 0);
        serve(&s);
    }
    release(&s);
    return s.exit_code;
}
