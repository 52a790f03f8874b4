/* What people read of jobs and runs, and what of it is kept (runner.md 27). */
#include "base/duration.h"
#include "pg/type.h"
#include "runner/store_sql.h"

#include <stdio.h>
#include <string.h>

#define EPOCH(instant) "date_part('epoch', " instant ")"

/* $1 job, $2 states, $3 since, $4 run, $5 limit; null: whatever. */
static const char HISTORY_SQL[] =
    "SELECT r.id, r.job, r.origin, " EPOCH("r.slot") " AS slot, r.attempt,"
    "       nullif(r.parent, 0) AS parent, r.state, r.reason,"
    "       " EPOCH("r.due_at") " AS due_at, " EPOCH("r.claimed_at") " AS claimed_at,"
    "       " EPOCH("r.started_at") " AS started_at, " EPOCH("r.ended_at") " AS ended_at,"
    "       " EPOCH("r.cancel_at") " AS cancel_at,"
    "       r.waited, r.ran, r.fence, r.runner::text AS runner, r.host, r.backend_pid,"
    "       r.error, r.error_kind, r.sqlstate, r.detail, r.result, r.guards,"
    "       p.job AS parent_job, p.state AS parent_state, p.result AS parent_result,"
    "       p.error AS parent_error, p.error_kind AS parent_error_kind,"
    "       CASE WHEN $4 IS NOT NULL THEN r.output END AS output"
    "  FROM lockkeeper.run r"
    "  LEFT JOIN lockkeeper.run p ON p.id = r.parent AND r.parent <> 0"
    " WHERE ($4 IS NULL OR r.id = $4) AND ($1 IS NULL OR r.job = $1)"
    "   AND ($2 IS NULL OR r.state = ANY ($2)) AND ($3 IS NULL OR r.due_at >= " AT("$3") ")"
    " ORDER BY r.id DESC LIMIT $5";

static int count_words(const char *const *words)
{
    int count = 0;

    while (words[count] != NULL)
        count++;
    return count;
}

PGresult *store_history(Session *session, const StoreHistory *filter, Error *err)
{
    PQExpBufferData states;
    PGresult *result = NULL;
    Statement statement = {
        .sql = HISTORY_SQL,
        .count = 5,
        .types = (Oid[]){TYPE_TEXT, TYPE_TEXT_ARRAY, TYPE_INT8, TYPE_INT8, TYPE_INT8},
        .unprepared = true, /* planned for the filters that there are */
    };

    initPQExpBuffer(&states);
    if (filter->states != NULL) {
        termPQExpBuffer(&states);
        array_texts(&states, filter->states, count_words(filter->states));
    }
    statement.values = (const char *[]){
        filter->job,
        filter->states == NULL ? NULL : states.data,
        filter->since_us == STORE_NO_TIME ? NULL : INTEGER(filter->since_us),
        filter->run == 0 ? NULL : INTEGER(filter->run),
        INTEGER(filter->limit),
    };
    if (arrays_are_whole(&states, 1, err))
        result = transact(session, &statement, TRANSACT_READ, WAIT_NORMAL, err);
    termPQExpBuffer(&states);
    return result;
}

PGresult *store_run(Session *session, int64_t run, Error *err)
{
    StoreHistory filter = {.since_us = STORE_NO_TIME, .run = run, .limit = 1};
    PGresult *result = store_history(session, &filter, err);

    if (result != NULL && PQntuples(result) == 0) {
        error_usage(err, "there is no run %s", INTEGER(run));
        PQclear(result);
        return NULL;
    }
    return result;
}

static const char JOBS_SQL[] =
    "SELECT j.name, j.file, j.definition, j.paused, j.enabled, j.gone,"
    "       " EPOCH("j.first_seen") " AS first_seen, " EPOCH("j.last_seen") " AS last_seen,"
    "       " EPOCH("newest.slot") " AS newest_slot,"
    "       last.id AS last_run, " EPOCH("last.slot") " AS last_slot, last.state AS last_state,"
    "       last.reason AS last_reason, " EPOCH("last.started_at") " AS last_started,"
    "       " EPOCH("last.ended_at") " AS last_ended, last.ran AS last_ran,"
    "       (SELECT count(*) FROM lockkeeper.run r"
    "         WHERE r.job = j.name AND r.state IN " ACTIVE ") AS active"
    "  FROM lockkeeper.job j"
    "  LEFT JOIN LATERAL (SELECT r.slot FROM lockkeeper.run r"
    "    WHERE r.job = j.name AND r.origin = 'schedule'"
    "    ORDER BY r.origin DESC, r.slot DESC LIMIT 1) newest ON true"
    "  LEFT JOIN LATERAL (SELECT r.* FROM lockkeeper.run r"
    "    WHERE r.job = j.name AND r.state <> 'skipped'"
    "    ORDER BY r.job DESC, r.id DESC LIMIT 1) last ON true"
    " ORDER BY j.name";

PGresult *store_jobs(Session *session, Error *err)
{
    Statement statement = {.sql = JOBS_SQL, .constant = true};

    return transact(session, &statement, TRANSACT_READ, WAIT_NORMAL, err);
}

/* ---- pruning --------------------------------------------------------------------------------- */

enum { PRUNE_BATCH = 10000 };

/*
 * $1 seconds, $2 rows kept a job, $3 rows pruned at once; null: no limit. A job without a limit to
 * its catchup keeps all its slots. The host that prunes holds a lock in its transaction.
 */
static const char PRUNE_SQL[] =
    "WITH alone AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(" PRUNE_LOCK ") AS got"
    "), ranked AS ("
    "  SELECT r.id, r.job, r.origin, r.slot, r.state, r.ended_at,"
    "         row_number() OVER (PARTITION BY r.job ORDER BY r.id DESC) AS place,"
    "         max(r.slot) FILTER (WHERE r.origin = 'schedule')"
    "           OVER (PARTITION BY r.job) AS newest_slot"
    "    FROM lockkeeper.run r WHERE (SELECT a.got FROM alone a)"
    "), doomed AS MATERIALIZED ("
    "  SELECT k.id FROM ranked k LEFT JOIN lockkeeper.job j ON j.name = k.job"
    "   WHERE k.state NOT IN " ACTIVE " AND k.place > 1"
    "     AND (k.ended_at < clock_timestamp() - make_interval(secs => $1) OR k.place > $2)"
    "     AND NOT (k.origin = 'schedule' AND k.slot = k.newest_slot)"
    "     AND CASE WHEN j.name IS NOT NULL AND j.catchup_window IS NULL THEN k.origin <> 'schedule'"
    "           ELSE k.slot < clock_timestamp()"
    "             - make_interval(secs => coalesce(j.catchup_window, 86400)) END"
    "   LIMIT $3"
    "), pruned AS ("
    "  DELETE FROM lockkeeper.run r USING doomed d WHERE r.id = d.id RETURNING r.id"
    ")"
    " SELECT count(*) FROM pruned";

bool store_prune(Session *session, int64_t keep_us, int keep_runs, int64_t *pruned, bool *more,
                 Error *err)
{
    char seconds[32];
    PGresult *result;
    Statement statement = {
        .sql = PRUNE_SQL,
        .count = 3,
        .types = (Oid[]){TYPE_FLOAT8, TYPE_INT8, TYPE_INT8},
        .values = (const char *[]){keep_us == DURATION_ENDLESS ? NULL : seconds,
                                   keep_runs == 0 ? NULL : INTEGER(keep_runs),
                                   INTEGER(PRUNE_BATCH)},
        .unprepared = true, /* its plan is to be made for the rows that there are */
    };

    snprintf(seconds, sizeof seconds, "%.17g", (double)keep_us / 1e6);
    result = transact(session, &statement, TRANSACT_WRITE, WAIT_NORMAL, err);
    if (result == NULL)
        return false;
    *pruned = field_integer(result, 0, 0);
    *more = *pruned == PRUNE_BATCH;
    PQclear(result);
    return true;
}
