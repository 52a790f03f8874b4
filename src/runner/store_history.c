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

static const char RUNNERS_SQL[] =
    "SELECT r.uuid::text AS uuid, r.host, r.version, r.workers, " EPOCH("r.started") " AS started,"
    "       " EPOCH("r.last_seen") " AS last_seen"
    "  FROM lockkeeper.runner r"
    " WHERE EXISTS (SELECT FROM pg_lock_status() l"
    "   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
    "     AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())"
    "     AND l.classid = " RUNNER_CLASSID " AND l.objid = " OBJID("r.lock") ")"
    " ORDER BY r.started";

PGresult *store_runners(Session *session, Error *err)
{
    Statement statement = {.sql = RUNNERS_SQL, .constant = true};

    return transact(session, &statement, TRANSACT_READ, WAIT_NORMAL, err);
}

/* ---- pruning --------------------------------------------------------------------------------- */

enum { PRUNE_JOBS = 100, PRUNE_ROWS = 10000 };

/*
 * $1 seconds, $2 rows kept a job, $3 rows pruned at once, $4 the job after which it begins, $5 how many
 * jobs are looked at; $1 and $2 null: no limit. A job without a limit to its catchup keeps all its
 * slots. The host that prunes holds a lock in its transaction. Each part is found by an index; jobs,
 * of which there is no list but this, by jumping from one to the next in that of their rows.
 */
static const char PRUNE_SQL[] =
    "WITH RECURSIVE alone AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(" PRUNE_LOCK ") AS got"
    "), names(job, place) AS ("
    "  (SELECT r.job, 1 FROM lockkeeper.run r"
    "    WHERE (SELECT a.got FROM alone a) AND r.job > $4 ORDER BY r.job LIMIT 1)"
    "  UNION ALL"
    "  SELECT (SELECT r.job FROM lockkeeper.run r WHERE r.job > n.job ORDER BY r.job LIMIT 1),"
    "         n.place + 1"
    "    FROM names n WHERE n.job IS NOT NULL AND n.place < $5"
    "), jobs AS MATERIALIZED ("
    "  SELECT n.job,"
    "         (SELECT r.id FROM lockkeeper.run r WHERE r.job = n.job"
    "           ORDER BY r.job DESC, r.id DESC LIMIT 1) AS newest,"
    "         (SELECT r.slot FROM lockkeeper.run r WHERE r.job = n.job AND r.origin = 'schedule'"
    "           ORDER BY r.origin DESC, r.slot DESC LIMIT 1) AS newest_slot,"
    "         CASE WHEN $2 IS NOT NULL THEN"
    "           (SELECT r.id FROM lockkeeper.run r WHERE r.job = n.job"
    "             ORDER BY r.job DESC, r.id DESC OFFSET $2 LIMIT 1) END AS surplus,"
    "         CASE WHEN j.name IS NULL OR j.catchup_window IS NOT NULL THEN"
    "           now() - make_interval(secs => coalesce(j.catchup_window, 86400)) END AS horizon"
    "    FROM names n LEFT JOIN lockkeeper.job j ON j.name = n.job WHERE n.job IS NOT NULL"
    "), doomed AS MATERIALIZED ("
    "  SELECT d.id FROM jobs j CROSS JOIN LATERAL ("
    "    SELECT r.id, r.origin, r.slot, r.state FROM lockkeeper.run r"
    "     WHERE r.job = j.job AND r.id <= j.surplus"
    "    UNION"
    "    SELECT r.id, r.origin, r.slot, r.state FROM lockkeeper.run r"
    "     WHERE r.job = j.job AND r.ended_at < now() - make_interval(secs => $1)) d"
    "   WHERE d.state NOT IN " ACTIVE " AND d.id <> j.newest"
    "     AND NOT (d.origin = 'schedule' AND d.slot = j.newest_slot)"
    "     AND CASE WHEN j.horizon IS NULL THEN d.origin <> 'schedule' ELSE d.slot < j.horizon END"
    "   LIMIT $3"
    "), pruned AS ("
    "  DELETE FROM lockkeeper.run r USING doomed d WHERE r.id = d.id RETURNING r.id"
    "), closed AS ("
    "  DELETE FROM lockkeeper.finding f"
    "   WHERE $4 = '' AND (SELECT a.got FROM alone a)"
    "     AND f.closed_at < now() - make_interval(secs => $1)"
    ")"
    " SELECT (SELECT count(*) FROM pruned),"
    "        CASE WHEN (SELECT count(*) FROM doomed) = $3 THEN $4"
    "             WHEN (SELECT count(*) FROM jobs) = $5 THEN (SELECT max(j.job) FROM jobs j)"
    "             ELSE '' END,"
    "        (SELECT count(*) FROM doomed) = $3";

bool store_prune(Session *session, int64_t keep_us, int keep_runs, PQExpBuffer after, bool *more,
                 int64_t *pruned, Error *err)
{
    char seconds[32];
    PGresult *result;
    Statement statement = {
        .sql = PRUNE_SQL,
        .count = 5,
        .types = (Oid[]){TYPE_FLOAT8, TYPE_INT8, TYPE_INT8, TYPE_TEXT, TYPE_INT4},
        .values = (const char *[]){keep_us == DURATION_ENDLESS ? NULL : seconds,
                                   keep_runs == 0 ? NULL : INTEGER(keep_runs), INTEGER(PRUNE_ROWS),
                                   after->data, INTEGER(PRUNE_JOBS)},
        .unprepared = true, /* its plan is to be made for the rows that there are */
    };

    snprintf(seconds, sizeof seconds, "%.17g", (double)keep_us / 1e6);
    result = transact(session, &statement, TRANSACT_WRITE, WAIT_NORMAL, err);
    if (result == NULL)
        return false;
    *pruned = field_integer(result, 0, 0);
    resetPQExpBuffer(after);
    appendPQExpBufferStr(after, PQgetvalue(result, 0, 1));
    *more = after->len > 0 || field_boolean(result, 0, 2);
    PQclear(result);
    return !PQExpBufferBroken(after) || error_set(err, ERROR_SQL, "out of memory");
}
