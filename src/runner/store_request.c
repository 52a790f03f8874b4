/* What people ask for, from any host: trigger, pause, resume, cancel (runner.md 11). */
#include "pg/type.h"
#include "runner/store_sql.h"

#include <string.h>

enum { TRIGGER_TRIES = 100 };

/* *err: there is no such job. Names the nearest. Returns false. */
static bool unknown_job(Session *session, const char *job, Error *err)
{
    static const char NAMES_SQL[] = "SELECT j.name FROM lockkeeper.job j WHERE NOT j.gone";
    Statement statement = {.sql = NAMES_SQL, .constant = true};
    PGresult *result = transact(session, &statement, TRANSACT_READ, WAIT_NORMAL, err);
    const char **names = NULL;
    const char *nearest = NULL;

    if (result == NULL)
        return false;
    names = calloc((size_t)PQntuples(result) + 1, sizeof *names);
    if (names != NULL) {
        for (int i = 0; i < PQntuples(result); i++)
            names[i] = PQgetvalue(result, i, 0);
        nearest = text_nearest(job, names);
    }
    error_usage(err, "no file that is served defines a job \"%.200s\"%s%s%s", job,
                nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "");
    free(names);
    PQclear(result);
    return false;
}

static const char TRIGGER_SQL[] =
    "WITH fresh AS MATERIALIZED ("
    "  SELECT j.name AS job, 'trigger'::text AS origin, clock_timestamp() AS slot,"
    "         0::int8 AS parent, j.overlap, false AS catches_up, NULL::text AS skip, j.paused"
    "    FROM lockkeeper.job j WHERE j.name = $1"
    "), " DECIDE ", inserted AS ("
    "  INSERT INTO lockkeeper.run AS r (job, origin, slot, state, reason, overlap, due_at, ended_at)"
    "  SELECT d.job, d.origin, d.slot, CASE WHEN d.reason IS NULL THEN 'due' ELSE 'skipped' END,"
    "         d.reason, d.overlap, d.slot,"
    "         CASE WHEN d.reason IS NOT NULL THEN clock_timestamp() END"
    "    FROM decided d"
    "  ON CONFLICT DO NOTHING"
    "  RETURNING r.*"
    ")"
    " SELECT " RUN_COLUMNS("i") ", " TELL("due", " FROM inserted WHERE state = 'due'")
    "   FROM inserted i";

static const char IS_KNOWN_SQL[] = "SELECT FROM lockkeeper.job j WHERE j.name = $1";
static const char IS_DEFINED_SQL[] =
    "SELECT FROM lockkeeper.job j WHERE j.name = $1 AND NOT j.gone";

static PGresult *of_job(Session *session, const char *sql, const char *job, const char *flag,
                        TransactKind kind, Error *err)
{
    Statement statement = {
        .sql = sql,
        .count = flag == NULL ? 1 : 2,
        .types = (Oid[]){TYPE_TEXT, TYPE_BOOL},
        .values = (const char *[]){job, flag},
        .constant = true,
    };

    return transact(session, &statement, kind, WAIT_NORMAL, err);
}

/* Is the job there? False with *err where it is not, or where that can't be said. */
static bool check_job(Session *session, const char *sql, const char *job, Error *err)
{
    PGresult *result = of_job(session, sql, job, NULL, TRANSACT_READ, err);
    bool known = result != NULL && PQntuples(result) > 0;
    bool failed = result == NULL;

    PQclear(result);
    return known || (!failed && unknown_job(session, job, err));
}

bool store_trigger(Session *session, const char *job, StoreRuns *run, Error *err)
{
    *run = (StoreRuns){0};
    if (!check_job(session, IS_DEFINED_SQL, job, err))
        return false;
    /* Nothing was inserted: another trigger has had the same microsecond, or queues a run now. */
    for (int tries = 1; tries <= TRIGGER_TRIES; tries++) {
        PGresult *result = of_job(session, TRIGGER_SQL, job, NULL, TRANSACT_WRITE, err);

        if (result == NULL)
            return false;
        if (PQntuples(result) > 0)
            return runs_read(run, result, NULL, err);
        PQclear(result);
    }
    return error_set(err, ERROR_SQL, "the job \"%.200s\" could not be triggered: others do it at "
                                     "the same time", job);
}

static const char PAUSE_SQL[] =
    "WITH changed AS ("
    "  UPDATE lockkeeper.job j SET paused = $2 WHERE j.name = $1 AND j.paused <> $2"
    "  RETURNING j.name"
    ")"
    " SELECT c.name, " TELL("job", "") ", " TELL("due", " WHERE NOT $2") " FROM changed c";

bool store_pause(Session *session, const char *job, bool pause, bool *changed, Error *err)
{
    PGresult *result = of_job(session, PAUSE_SQL, job, pause ? "t" : "f", TRANSACT_WRITE, err);

    if (result == NULL)
        return false;
    *changed = PQntuples(result) > 0;
    PQclear(result);
    return *changed || check_job(session, IS_KNOWN_SQL, job, err);
}

/* $1 job or null, $2 run or null. */
static const char CANCEL_SQL[] =
    "WITH cancelled AS ("
    "  UPDATE lockkeeper.run r"
    "     SET cancel_at = coalesce(r.cancel_at, clock_timestamp()),"
    "         state = CASE r.state WHEN 'due' THEN 'cancelled' ELSE r.state END,"
    "         ended_at = CASE r.state WHEN 'due' THEN clock_timestamp() END"
    "   WHERE r.state IN " ACTIVE " AND (r.job = $1 OR r.id = $2)"
    "  RETURNING r.*"
    ")"
    " SELECT " RUN_COLUMNS("c") ", " TELL("cancel", "") "   FROM cancelled c";

bool store_cancel(Session *session, const char *job, int64_t run, StoreRuns *runs, Error *err)
{
    Statement statement = {
        .sql = CANCEL_SQL,
        .count = 2,
        .types = (Oid[]){TYPE_TEXT, TYPE_INT8},
        .values = (const char *[]){job, job == NULL ? INTEGER(run) : NULL},
        .constant = true,
    };
    PGresult *result = transact(session, &statement, TRANSACT_WRITE, WAIT_NORMAL, err);

    *runs = (StoreRuns){0};
    if (result == NULL || !runs_read(runs, result, NULL, err))
        return false;
    return runs->count > 0 || job == NULL || check_job(session, IS_KNOWN_SQL, job, err);
}
