/*
 * The state tables: one function a promise of runner.md. Nothing else knows the tables.
 *
 * A function works on any session to the database that has the schema (schema.h), in no transaction
 * of the caller's, and is a transaction of its own: READ COMMITTED, synchronous_commit at least on,
 * search_path without a user's schemas, lock_timeout 10 s, whatever the session's settings. It
 * takes one round trip unless it says otherwise. It may be called from any fiber; a session has one
 * user at a time. It returns false with *err set; kind "connection": the session is to be made
 * anew, and whether the last write was done is not known: each may be repeated as it is.
 *
 * Instants are microseconds since the epoch by the database's clock. Every change of a run's state
 * is made in the state, and for the runner, that was seen (runner.md 8).
 */
#ifndef LOCKKEEPER_RUNNER_STORE_H
#define LOCKKEEPER_RUNNER_STORE_H

#include "base/pqbuffer.h"
#include "pg/session.h"

#include <stdbool.h>
#include <stdint.h>

#define STORE_NO_TIME INT64_MIN

/* Where news is told with NOTIFY: see store_listen. */
#define STORE_CHANNEL "lockkeeper"

enum { STORE_UUID_SIZE = 37 };

typedef enum {
    RUN_DUE,
    RUN_CLAIMED,
    RUN_RUNNING,
    RUN_SUCCEEDED,
    RUN_FAILED,
    RUN_TIMED_OUT,
    RUN_CANCELLED,
    RUN_LOST,
    RUN_SKIPPED, /* with a reason: "busy", "paused", "caught_up", "replaced", "window", "gone", … */
} RunState;

typedef enum { ORIGIN_SCHEDULE, ORIGIN_TRIGGER, ORIGIN_AFTER, ORIGIN_START } RunOrigin;
typedef enum { OVERLAP_SKIP, OVERLAP_QUEUE, OVERLAP_REPLACE, OVERLAP_ALLOW } Overlap;
typedef enum { CATCHUP_LAST, CATCHUP_ALL, CATCHUP_NONE } Catchup;
typedef enum { AFTER_SUCCEEDED, AFTER_FAILED, AFTER_FINISHED } AfterOn;

/* Their words, as they stand in the tables and in definitions. */
extern const char *const RUN_STATE_NAMES[];  /* by RunState; NULL at the end, as in all of them */
extern const char *const RUN_ORIGIN_NAMES[];
extern const char *const OVERLAP_NAMES[];
extern const char *const CATCHUP_NAMES[];
extern const char *const AFTER_ON_NAMES[];

/* The place of a word in one of these lists; -1: it is none of them. */
int store_word(const char *const *names, const char *word);

/* ---- the clock (5) --------------------------------------------------------------------------- */

/*
 * Measure: the database's time is clock_monotonic_us() + *offset_us, give or take *error_us, half
 * the quickest of three round trips.
 */
bool store_clock(Session *session, int64_t *offset_us, int64_t *error_us, Error *err);

/* ---- runners (22) ---------------------------------------------------------------------------- */

typedef struct {
    char uuid[STORE_UUID_SIZE];
    const char *host;    /* for people only */
    const char *version; /* of the program */
    const char *zones;   /* version of its time-zone data */
    int workers;
    int64_t started_us;  /* out: the slot of its runs of origin `start`; no other runner's */
} StoreRunner;

/*
 * Become a runner: takes the advisory lock on this session, for as long as it lasts, and makes the
 * row. Two round trips or more. With a new session it must be called again, and gives a new uuid.
 */
bool store_register(Session *session, StoreRunner *runner, Error *err);

/* Say that it is still there, every 10 s or so. On any session. Makes the row anew if it is gone. */
bool store_beat(Session *session, const StoreRunner *runner, Error *err);

/* Leave: the row goes; the lock with store_register's session, which the caller closes after. */
bool store_leave(Session *session, const StoreRunner *runner, Error *err);

/*
 * The newest version of time-zone data that a live runner has (rule 4), "" if none tells; `size`
 * bytes. Where it is greater than one's own by strcmp, jobs with a zone are left to others.
 */
bool store_newest_zones(Session *session, char *version, size_t size, Error *err);

/*
 * Hear of news: from now on session_notification gives them. Texts: "due" (a row to be taken),
 * "cancel" (see store_requests), "job" (paused, resumed), "end" (a triggered run has ended). All of it is
 * also to be polled for, as notifications can be missed.
 */
bool store_listen(Session *session, Error *err);

/* ---- jobs ------------------------------------------------------------------------------------ */

typedef struct {
    const char *name;
    const char *file;
    const char *schedule;   /* any text that tells this schedule from another; NULL: none */
    const char *definition; /* JSON, as describe gives it */
    Overlap overlap;
    int64_t catchup_window_us; /* DURATION_ENDLESS: no limit */
    bool enabled; /* false: it runs only when it is triggered */
    const char *after; /* the job that it follows; NULL: none */
    AfterOn after_on;
    int retry_attempts; /* 1: no retry */
    int64_t retry_delay_us;
    double retry_factor;
    const char *const *retry_on; /* states and kinds of errors, NULL at the end; NULL: the default */
} StoreJob;

/* What the database knows of a job. */
typedef struct {
    bool known;        /* it is recorded; else the rest says nothing */
    bool paused;
    int64_t since_us;  /* when its schedule, as it is, was first recorded */
    int64_t newest_us; /* the newest slot of origin `schedule`; STORE_NO_TIME */
    int64_t last_end_us; /* the end of its last run; STORE_NO_TIME */
    bool at_work;      /* it has a run that has not ended */
} StoreFacts;

/*
 * Record definitions: new and changed ones are written. Jobs that stand in the tables with one of
 * `files`, and are not among these any more, are marked as gone: none of them runs after another
 * any more, and their rows that are due become `skipped`. At start, after a reload, and once an hour
 * (for last_seen).
 *   files  those that were read, or that are there no more
 */
bool store_record_jobs(Session *session, const StoreJob *jobs, int count, const char *const *files,
                       int file_count, Error *err);

/* What is known of these jobs; `facts` has room for `count`. */
bool store_facts(Session *session, const char *const *names, int count, StoreFacts *facts,
                 Error *err);

/* ---- claims (7 to 10) ------------------------------------------------------------------------ */

typedef struct {
    int64_t id;
    const char *job;
    RunOrigin origin;
    int64_t slot_us;
    int attempt;
    int64_t parent; /* origin `after`: the run that it follows; else 0 */
    int64_t due_us;
    RunState state;
    const char *reason; /* of skipped; else "" */
} StoreRun;

/* A list of runs; its texts live as long. */
typedef struct {
    StoreRun *runs;
    int count;
    int skipped; /* so many more stand behind these: what store_claim has skipped */
    PGresult *result;
} StoreRuns;

/* Idempotent; a list of zeros is empty. */
void store_runs_clear(StoreRuns *runs);

typedef struct {
    const char *job;
    RunOrigin origin; /* `schedule` or `start` */
    int64_t slot_us;
    Overlap overlap;
    bool catches_up;  /* due.h: it was missed, and catchup is "all" */
    const char *skip; /* why it does not run (due.h); NULL: it does */
} StoreSlot;

typedef struct {
    int claimed, due, skipped, lost; /* `lost`: it was there already */
} StoreTally;

/*
 * Claim slots, in any order: the tick. One statement, one round trip, however many there are. As
 * many as `workers` of those that can begin become `claimed`, those due first; others wait as
 * `due`, or are `skipped`, as overlap has it. (Where two hosts queue a run of the same job in the
 * same instant, the second host's round trip more records its own as skipped.)
 *   claimed  out: what this runner is to run now
 *   tally    out: what became of all of them; may be NULL
 */
bool store_claim(Session *session, const StoreRunner *runner, const StoreSlot *slots, int count,
                 int workers, StoreRuns *claimed, StoreTally *tally, Error *err);

/* Jobs that have rows to be taken now, those due first, and when the next row becomes due. */
typedef struct {
    PGresult *result;
    int count;       /* jobs: store_waiting_job */
    int64_t next_us; /* STORE_NO_TIME: none waits for its time */
} StoreWaiting;

/*
 * Look for `due` rows: after a "due", when one's time has come, when a worker is free again, and
 * every few seconds. Cheap where there are none.
 */
bool store_waiting(Session *session, StoreWaiting *waiting, Error *err);
const char *store_waiting_job(const StoreWaiting *waiting, int index);
void store_waiting_clear(StoreWaiting *waiting);

/*
 * Take at most `workers` of the `due` rows of these jobs, those due first: their time has come, the
 * job is not paused, and (unless overlap is "allow") all earlier rows of the job are over. Rows
 * that another host is about to take are left to it. Rows that a later one replaces become
 * `skipped`.
 */
bool store_take(Session *session, const StoreRunner *runner, const char *const *jobs, int count,
                int workers, StoreRuns *taken, Error *err);

/*
 * Give a claimed run that was not begun back: it is `due` again; `later`: not at once, but after a second,
 * and after twice as long each time that it was claimed, 30 s at most. *claims: how often it has been; 0: it
 * was not ours any more.
 */
bool store_give_back(Session *session, const StoreRunner *runner, int64_t run, bool later, int *claims,
                     Error *err);

/* ---- one run (8, 15, 18, 22) ----------------------------------------------------------------- */

/*
 * The advisory key (a bigint) of a run's liveness lock: the first lock that its session takes, the
 * last that it gives back. In pg_locks: classid 1282101877, objid the run's number.
 */
int64_t store_run_key(int64_t run);

/* What a worker has to know of its run: one row, columns as store_history's. NULL: there is none
 * (kind "usage"), or an error. The caller clears it. */
PGresult *store_run(Session *session, int64_t run, Error *err);

typedef struct {
    int64_t run;
    const char *runner;            /* uuid */
    const char *const *guards;     /* what it holds, a word for each lock and mode, as the caller
                                      has them */
    int guard_count;
    const char *const *conflicts;  /* all words of locks and modes that conflict with one of these */
    int conflict_count;
    int64_t grace_us;              /* its policy's: how long its commands may outlive its locks */
    int64_t guarded_us;            /* when it had its guards; STORE_NO_TIME: now, by the clock */
    int64_t backend_start_us;      /* of the session, as an earlier step of its told, or STORE_NO_TIME */
    double waited_s;
    bool fenced;                   /* false: it gets no fence (overlap = "allow") */
} StoreStep;

typedef enum {
    STEP_RUNNING, /* it runs */
    STEP_WAIT,    /* another run may still be at work under one of the guards: try again later */
    STEP_GONE,    /* it is not this runner's claimed run any more: give up */
    STEP_CANCELLED, /* it is to be cancelled: end it so */
} StepEnd;

typedef struct {
    StepEnd end;
    int64_t fence;      /* STEP_RUNNING */
    int64_t guarded_us; /* for the next try */
    int64_t wait_us;    /* STEP_WAIT: how long at most; ask again every 100 ms or so */
    int64_t other;      /* STEP_WAIT: one of those runs */
    int64_t backend_start_us; /* STEP_RUNNING */
} StoreStepped;

/*
 * The step to `running`, on the guard session, after all guards are held: waits for conflicting
 * runs (18), the fence (15), backend pid and start. One round trip.
 */
bool store_step(Session *session, const StoreStep *step, StoreStepped *stepped, Error *err);

/*
 * For a run without a row, which is by hand: the same waits, and nothing written. STEP_WAIT, or
 * STEP_RUNNING where there is nobody to wait for. Of the step, conflicts and guarded_us count.
 */
bool store_others(Session *session, const StoreStep *step, StoreStepped *stepped, Error *err);

enum {
    STORE_RETRY_NONE = -1,
    STORE_RETRY_POLICY = -2, /* as the job's recorded policy says */
};

typedef struct {
    int64_t run;
    const char *runner; /* uuid */
    RunState state;     /* RUN_SUCCEEDED or a later one */
    const char *reason; /* NULL: none */
    const char *error, *error_kind, *sqlstate, *detail; /* NULL: none */
    const char *result; /* JSON; NULL: none */
    const char *output; /* its last 64 KiB, any bytes; NULL: what is there stays */
    size_t output_length;
    double waited_s, ran_s; /* negative: not known */
    int64_t retry_after_us; /* or STORE_RETRY_… */
} StoreEnd;

/*
 * End a claimed or running run; retries and runs `after` it become `due` rows, where it did end it.
 *   ended   out: it was this runner's, and had not ended
 *   retry   out: the run that tries it again, 0 if none
 * Texts are any bytes: what the database can't hold is replaced.
 */
bool store_end(Session *session, const StoreEnd *end, bool *ended, int64_t *retry, Error *err);

/*
 * Add to what a run has printed, also where it has ended: what its processes wrote past it. What is
 * too much is left out at the beginning.
 */
bool store_add_output(Session *session, int64_t run, const char *runner, const char *output,
                      size_t length, Error *err);

/*
 * End the session that holds a run's liveness lock, which nobody uses any more: its process is gone.
 *   *gone  out: there was none
 */
bool store_terminate(Session *session, int64_t run, bool *gone, Error *err);

/* What a run has printed so far; for runs that last. */
bool store_output(Session *session, int64_t run, const char *runner, const char *output,
                  size_t length, Error *err);

/* ---- what others do to runs (10, 11, 22) ----------------------------------------------------- */

/* Runs of this runner that are to be cancelled; `reason` says why: "cancelled", "replaced". */
bool store_requests(Session *session, const StoreRunner *runner, StoreRuns *runs, Error *err);

/*
 * Look for runs whose runner is gone: running ones become `lost` (and are tried again, where their
 * policy says so), claimed ones `due` again (`cancelled`, if they were to be). Rows of runners that
 * are gone are removed. Every 10 s.
 *   own   runs that are left alone: their own runner is about to end them
 *   runs  out: what was changed, with the new states
 */
bool store_look(Session *session, const int64_t *own, int own_count, StoreRuns *runs, Error *err);

/*
 * Run a job now. *run: the new row, `due`, or `skipped` with a reason. An unknown job, and one that
 * is gone, is a usage error that names the nearest.
 */
bool store_trigger(Session *session, const char *job, StoreRuns *run, Error *err);

/* Pause or resume a job. *changed: it was not so before. An unknown job is a usage error. */
bool store_pause(Session *session, const char *job, bool pause, bool *changed, Error *err);

/*
 * Cancel runs: those of a job (`run` 0), or one (`job` NULL). Waiting ones are `cancelled` now,
 * others when their runner has seen it.
 *   runs  out: those, with the states that they have now; none: nothing was there to be cancelled
 */
bool store_cancel(Session *session, const char *job, int64_t run, StoreRuns *runs, Error *err);

/* ---- reading, pruning (27) ------------------------------------------------------------------- */

typedef struct {
    const char *job;      /* NULL: all */
    const char *const *states; /* words, NULL at the end; NULL: all */
    int64_t since_us;     /* due since then; STORE_NO_TIME: all */
    int64_t run;          /* this one, with its output; 0: all, without */
    int limit;            /* newest first */
} StoreHistory;

/*
 * Past and present runs, newest first. Columns: id, job, origin, slot, attempt, parent, state,
 * reason, due_at, claimed_at, started_at, ended_at, cancel_at (epoch seconds, float8), waited, ran,
 * fence, runner, host, backend_pid, error, error_kind, sqlstate, detail, result (json), guards
 * (text[]), parent_job, parent_state, parent_result, parent_error, parent_error_kind, output (only
 * of one run).
 */
PGresult *store_history(Session *session, const StoreHistory *filter, Error *err);

/*
 * Known jobs by name: name, file, definition (json), paused, first_seen, last_seen, gone, newest_slot
 * and of the newest run that was not skipped: last_run, last_slot, last_state, last_reason,
 * last_started, last_ended, last_ran; active: how many of its runs have not ended.
 */
PGresult *store_jobs(Session *session, Error *err);

/*
 * Supervisors that are alive: uuid, host, version, workers, started, last_seen (epoch seconds).
 */
PGresult *store_runners(Session *session, Error *err);

/*
 * Prune history: rows that ended longer than `keep_us` ago (DURATION_ENDLESS: no limit), and all
 * but the newest `keep_runs` of a job (0: no limit); never a job's newest, nor its newest of origin
 * `schedule`, nor what lies within its catchup_window, nor what has not ended. Findings that were
 * closed that long ago go, too. One host at a time: another one has nothing to do.
 *
 * A call looks at a hundred jobs and prunes ten thousand rows at most. Call again while *more.
 *   after  in and out: up to which job that was done; empty at first
 */
bool store_prune(Session *session, int64_t keep_us, int keep_runs, PQExpBuffer after, bool *more,
                 int64_t *pruned, Error *err);

/* Names of advisory keys, for lock.names and ls. Best effort: learns, never forgets. */
typedef struct {
    uint32_t classid, objid;
    int objsubid;
    const char *name;
} StoreLockName;

bool store_name_locks(Session *session, const StoreLockName *names, int count, Error *err);

#endif
