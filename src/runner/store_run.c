/* One run: its step to `running`, its end and what follows it, and what others do to it. */
#include "base/clock.h"
#include "pg/type.h"
#include "runner/store_sql.h"

#include <stdio.h>
#include <string.h>

/* ---- the step to running --------------------------------------------------------------------- */

/*
 * $1 run, $2 runner, $3 its guards, $4 what conflicts with them, $5 when it had them, $6 seconds
 * waited, $7 grace in seconds, $8 does it get a fence?, $9 since when the backend is there, where that
 * is known (to ask costs a copy of what all backends do)
 *
 * A run whose session has ended goes on for 100 ms, and its commands for its grace and a second;
 * neither began to end before this run had the guard, nor, where it was declared lost, after that.
 * Whoever held a guard had written its own step to `running` by then, so it is seen here.
 *
 * The fence comes before the run's own row is locked: a transaction of an earlier run may hold it.
 */
#define UNTIL(o, since) since " + make_interval(secs => 1.1 + coalesce(" o ".grace, 5))"
#define BLOCKING(conflicts)                                                                        \
    "others AS MATERIALIZED ("                                                                     \
    "  SELECT o.id, " UNTIL("o", "m.guarded_at") " AS until"                                       \
    "    FROM mine m CROSS JOIN lockkeeper.run o"                                                  \
    "   WHERE " IS_RUNNING("o") " AND o.id <> m.id AND o.guards && " conflicts                     \
    "  UNION ALL"                                                                                  \
    "  SELECT o.id, least(" UNTIL("o", "m.guarded_at") ", o.over_at)"                              \
    "    FROM mine m CROSS JOIN lockkeeper.run o"                                                  \
    "   WHERE o.state = 'lost' AND o.over_at > now() AND o.id <> m.id AND o.guards && " conflicts  \
    "), blocking AS ("                                                                             \
    "  SELECT o.id, o.until FROM others o WHERE o.until > clock_timestamp()"                       \
    ")"
#define BLOCKED_BY                                                                                 \
    US("m.guarded_at") ", (SELECT o.id FROM blocking o ORDER BY o.until DESC LIMIT 1),"            \
    " (SELECT " US("max(o.until)") " - " US("clock_timestamp()") " FROM blocking o)"
static const char STEP_SQL[] =
    "WITH mine AS MATERIALIZED ("
    "  SELECT r.id, r.job, r.cancel_at, coalesce(" AT("$5") ", clock_timestamp()) AS guarded_at"
    "    FROM lockkeeper.run r WHERE r.id = $1 AND r.runner = $2 AND r.state = 'claimed'"
    "), " BLOCKING("$4") ", go AS MATERIALIZED ("
    "  SELECT m.id, m.job FROM mine m"
    "   WHERE m.cancel_at IS NULL AND NOT EXISTS (SELECT FROM blocking)"
    "), fence AS ("
    "  INSERT INTO lockkeeper.fence AS f (job, value) SELECT g.job, 1 FROM go g WHERE $8"
    "  ON CONFLICT (job) DO UPDATE SET value = f.value + 1"
    "  RETURNING f.value"
    "), begun AS ("
    "  UPDATE lockkeeper.run r"
    "     SET state = 'running', started_at = clock_timestamp(), guards = $3, grace = $7,"
    "         waited = $6, fence = (SELECT value FROM fence), backend_pid = pg_backend_pid(),"
    "         backend_start = coalesce(" AT("$9") ","
    "           (SELECT a.backend_start FROM pg_stat_get_activity(pg_backend_pid()) a))"
    "    FROM go g"
    "   WHERE r.id = g.id AND r.runner = $2 AND " IS_CLAIMED("r")
    "  RETURNING r.id, r.fence, r.backend_start"
    ")"
    " SELECT m.cancel_at IS NOT NULL, " BLOCKED_BY ","
    "        b.id IS NOT NULL, b.fence, " US("b.backend_start")
    "   FROM mine m LEFT JOIN begun b ON true";
enum { STEP_SEES_CANCEL, STEP_GUARDED, STEP_OTHER, STEP_WAIT_US, STEP_BEGUN, STEP_FENCE,
       STEP_BACKEND_START };
static const Oid STEP_TYPES[] = {TYPE_INT8,   TYPE_UUID,   TYPE_TEXT_ARRAY, TYPE_TEXT_ARRAY, TYPE_INT8,
                                 TYPE_FLOAT8, TYPE_FLOAT8, TYPE_BOOL,       TYPE_INT8};

enum { NUMBER_SIZE = 32 };

/* A number of seconds as a parameter's text. */
static const char *seconds_text(char text[NUMBER_SIZE], double seconds)
{
    snprintf(text, NUMBER_SIZE, "%.17g", seconds);
    return text;
}

static StepEnd step_end(const PGresult *result)
{
    if (PQntuples(result) == 0)
        return STEP_GONE;
    if (field_boolean(result, 0, STEP_BEGUN))
        return STEP_RUNNING;
    if (field_boolean(result, 0, STEP_SEES_CANCEL))
        return STEP_CANCELLED;
    return PQgetisnull(result, 0, STEP_OTHER) ? STEP_GONE : STEP_WAIT;
}

bool store_step(Session *session, const StoreStep *step, StoreStepped *stepped, Error *err)
{
    PQExpBufferData arrays[2];
    char waited[NUMBER_SIZE];
    char grace[NUMBER_SIZE];
    PGresult *result = NULL;
    Statement statement = {
        .sql = STEP_SQL,
        .count = sizeof STEP_TYPES / sizeof STEP_TYPES[0],
        .types = STEP_TYPES,
        .constant = true,
    };

    array_texts(&arrays[0], step->guards, step->guard_count);
    array_texts(&arrays[1], step->conflicts, step->conflict_count);
    statement.values = (const char *[]){
        INTEGER(step->run),
        step->runner,
        arrays[0].data,
        arrays[1].data,
        step->guarded_us == STORE_NO_TIME ? NULL : INTEGER(step->guarded_us),
        seconds_text(waited, step->waited_s),
        seconds_text(grace, (double)step->grace_us / 1e6),
        step->fenced ? "t" : "f",
        step->backend_start_us == STORE_NO_TIME ? NULL : INTEGER(step->backend_start_us),
    };
    if (arrays_are_whole(arrays, 2, err))
        result = transact(session, &statement, TRANSACT_CLAIM, WAIT_NORMAL, err);
    arrays_free(arrays, 2);
    if (result == NULL)
        return false;
    *stepped = (StoreStepped){.end = step_end(result)};
    if (PQntuples(result) > 0) {
        stepped->guarded_us = field_integer(result, 0, STEP_GUARDED);
        stepped->other = field_integer(result, 0, STEP_OTHER);
        stepped->wait_us = field_integer(result, 0, STEP_WAIT_US);
        stepped->fence = field_integer(result, 0, STEP_FENCE);
        stepped->backend_start_us = field_instant(result, 0, STEP_BACKEND_START);
    }
    PQclear(result);
    return true;
}

/* $1 what conflicts with its guards, $2 when it had them */
static const char OTHERS_SQL[] =
    "WITH mine AS MATERIALIZED ("
    "  SELECT 0::int8 AS id, coalesce(" AT("$2") ", clock_timestamp()) AS guarded_at"
    "), " BLOCKING("$1")
    " SELECT " BLOCKED_BY " FROM mine m";
enum { OTHERS_GUARDED, OTHERS_OTHER, OTHERS_WAIT_US };

bool store_others(Session *session, const StoreStep *step, StoreStepped *stepped, Error *err)
{
    PQExpBufferData array;
    PGresult *result = NULL;
    Statement statement = {
        .sql = OTHERS_SQL,
        .count = 2,
        .types = (Oid[]){TYPE_TEXT_ARRAY, TYPE_INT8},
        .constant = true,
    };

    array_texts(&array, step->conflicts, step->conflict_count);
    statement.values = (const char *[]){
        array.data, step->guarded_us == STORE_NO_TIME ? NULL : INTEGER(step->guarded_us)};
    if (arrays_are_whole(&array, 1, err))
        result = transact(session, &statement, TRANSACT_READ, WAIT_NORMAL, err);
    termPQExpBuffer(&array);
    if (result == NULL)
        return false;
    *stepped = (StoreStepped){
        .end = PQgetisnull(result, 0, OTHERS_OTHER) ? STEP_RUNNING : STEP_WAIT,
        .guarded_us = field_integer(result, 0, OTHERS_GUARDED),
        .other = field_integer(result, 0, OTHERS_OTHER),
        .wait_us = field_integer(result, 0, OTHERS_WAIT_US),
    };
    PQclear(result);
    return true;
}

/* ---- the end --------------------------------------------------------------------------------- */

/*
 * $1 run, $2 runner, $3 state, $4 reason, $5 error, $6 its kind, $7 SQLSTATE, $8 detail, $9 result,
 * $10 output, $11 seconds waited, $12 seconds run, $13 seconds until it is tried again (-1: it is
 * not; -2: as its policy says). Those who wait hear of it, where there may be any.
 */
#define END_RUN                                                                                    \
    "  UPDATE lockkeeper.run r"                                                                    \
    "     SET state = $3, reason = $4, error = $5, error_kind = $6, sqlstate = $7, detail = $8,"   \
    "         result = $9::json, output = coalesce($10, r.output),"                                \
    "         waited = coalesce($11, r.waited), ran = coalesce($12, r.ran),"                       \
    "         ended_at = clock_timestamp()"                                                        \
    "   WHERE r.id = $1 AND r.runner = $2 AND r.state IN ('claimed', 'running')"
#define TELL_DUE                                                                                   \
    TELL("due", " FROM ended e JOIN lockkeeper.run w ON w.job = e.job"                             \
                "  WHERE w.state IN " ACTIVE " AND " IS_DUE("w"))
#define TELL_END TELL("end", " FROM ended WHERE origin = 'trigger'")
static const char END_SQL[] =
    "WITH ended AS (" END_RUN
    "  RETURNING r.id, r.job, r.origin, r.slot, r.attempt, r.parent, r.overlap, r.catches_up,"
    "            r.state, r.error_kind, r.cancel_at, $13 AS retry_after"
    "), " FOLLOW
    " SELECT (SELECT count(*) FROM ended), (SELECT a.id FROM again a),"
    "        " TELL("due", " FROM again") ","
    "        " TELL("due", " FROM followed WHERE state = 'due'") ","
    "        " TELL_DUE ","
    "        " TELL_END ","
    "        " REFUSED;
enum { END_COUNT, END_AGAIN, END_REFUSED = 6 };

/*
 * The same, without $13, of a run that is not tried again, where no job comes after it: most are so,
 * and to set up the statement above costs more than this one. Else nothing is ended.
 */
static const char END_LAST_SQL[] =
    "WITH ended AS (" END_RUN
    "     AND NOT EXISTS (SELECT FROM lockkeeper.job j"
    "           WHERE j.follows = r.job AND j.enabled AND NOT j.gone)"
    "  RETURNING r.job, r.origin"
    ")"
    " SELECT (SELECT count(*) FROM ended), NULL,"
    "        " TELL_DUE ","
    "        " TELL_END ", NULL, NULL, false";
static const Oid END_TYPES[] = {TYPE_INT8, TYPE_UUID, TYPE_TEXT,   TYPE_TEXT,   TYPE_TEXT,
                                TYPE_TEXT, TYPE_TEXT, TYPE_TEXT,   TYPE_TEXT,   TYPE_TEXT,
                                TYPE_FLOAT8, TYPE_FLOAT8, TYPE_FLOAT8};
enum {
    END_PARAMETERS = sizeof END_TYPES / sizeof END_TYPES[0],
    END_LAST_PARAMETERS = END_PARAMETERS - 1,
};

/* Which of the parameters are texts of any bytes. */
enum { END_TEXTS = 3, END_TEXTS_END = 10 };

/*
 * Append the text so that a text of the server's can hold it: what is not UTF-8 and NUL become "�";
 * where even that was refused, since the server's encoding has not all of it, what is not ASCII
 * becomes "?".
 */
static void append_clean(PQExpBuffer out, const char *text, size_t length, bool ascii)
{
    while (length > 0) {
        size_t step = 1;

        while (step < length && step < 4 && !text_is_utf8(text, step))
            step++;
        if (!text_is_utf8(text, step)) {
            appendPQExpBufferStr(out, ascii ? "?" : "\xef\xbf\xbd");
            step = 1;
        } else if (ascii && step > 1) {
            appendPQExpBufferChar(out, '?');
        } else {
            appendBinaryPQExpBuffer(out, text, step);
        }
        text += step;
        length -= step;
    }
}

/* What a text is not, or can't be here: in another encoding, or not JSON. */
static bool is_about_text(const Error *err)
{
    return strncmp(err->sqlstate, "22", 2) == 0;
}

/* With END_LAST_SQL or END_SQL. */
static PGresult *end_with(Session *session, const StoreEnd *end, bool last, bool ascii, Error *err)
{
    const char *texts[] = {end->reason, end->error,  end->error_kind, end->sqlstate,
                           end->detail, end->result, end->output};
    PQExpBufferData clean[END_TEXTS_END - END_TEXTS];
    char numbers[3][NUMBER_SIZE];
    const char *values[END_PARAMETERS] = {INTEGER(end->run), end->runner,
                                          RUN_STATE_NAMES[end->state]};
    PGresult *result = NULL;
    Statement statement = {
        .sql = last ? END_LAST_SQL : END_SQL,
        .count = last ? END_LAST_PARAMETERS : END_PARAMETERS,
        .types = END_TYPES,
        .values = values,
        .constant = true,
    };

    for (int i = 0; i < END_TEXTS_END - END_TEXTS; i++) {
        bool is_output = i == END_TEXTS_END - END_TEXTS - 1;

        initPQExpBuffer(&clean[i]);
        if (texts[i] == NULL)
            continue;
        append_clean(&clean[i], texts[i], is_output ? end->output_length : strlen(texts[i]), ascii);
        values[END_TEXTS + i] = clean[i].data;
    }
    values[10] = end->waited_s < 0 ? NULL : seconds_text(numbers[0], end->waited_s);
    values[11] = end->ran_s < 0 ? NULL : seconds_text(numbers[1], end->ran_s);
    values[12] = seconds_text(numbers[2], end->retry_after_us < 0
                                              ? (double)end->retry_after_us
                                              : (double)end->retry_after_us / 1e6);
    if (arrays_are_whole(clean, END_TEXTS_END - END_TEXTS, err))
        result = transact(session, &statement, TRANSACT_CLAIM, WAIT_CLEANUP, err);
    arrays_free(clean, END_TEXTS_END - END_TEXTS);
    return result;
}

/* $1 run: runs after it that the queue had no room for are skipped. */
static const char SKIP_FOLLOWERS_SQL[] =
    "INSERT INTO lockkeeper.run (job, origin, slot, parent, state, reason, overlap, ended_at)"
    " SELECT j.name, 'after', e.slot, e.id, 'skipped', 'busy', j.overlap, clock_timestamp()"
    "   FROM lockkeeper.run e JOIN lockkeeper.job j"
    "        ON j.follows = e.job AND j.enabled AND NOT j.gone"
    "  WHERE e.id = $1 AND " FOLLOWS("e", "j")
    "    AND NOT EXISTS (SELECT FROM lockkeeper.run t WHERE t.job = e.job AND t.origin = e.origin"
    "          AND t.slot = e.slot AND t.attempt = e.attempt + 1 AND t.parent = e.parent)"
    "  ORDER BY j.name"
    " ON CONFLICT DO NOTHING";

/* The run has ended, whatever comes now. */
static void skip_refused_followers(Session *session, int64_t run)
{
    Statement statement = {
        .sql = SKIP_FOLLOWERS_SQL,
        .count = 1,
        .types = (Oid[]){TYPE_INT8},
        .values = (const char *[]){INTEGER(run)},
        .constant = true,
    };
    Error ignored;

    PQclear(transact(session, &statement, TRANSACT_WRITE, WAIT_CLEANUP, &ignored));
}

/* Texts that the server can't hold are written otherwise. */
static PGresult *end_somehow(Session *session, const StoreEnd *end, bool last, Error *err)
{
    PGresult *result = end_with(session, end, last, false, err);

    if (result == NULL && is_about_text(err))
        result = end_with(session, end, last, true, err);
    return result;
}

static bool may_come_again(const StoreEnd *end)
{
    bool failed = end->state == RUN_FAILED || end->state == RUN_TIMED_OUT || end->state == RUN_LOST;

    return end->retry_after_us >= 0 || (end->retry_after_us == STORE_RETRY_POLICY && failed);
}

bool store_end(Session *session, const StoreEnd *end, bool *ended, int64_t *retry, Error *err)
{
    bool last = !may_come_again(end);
    PGresult *result = end_somehow(session, end, last, err);

    if (result != NULL && last && field_integer(result, 0, END_COUNT) == 0) {
        PQclear(result);
        result = end_somehow(session, end, false, err);
    }
    if (result == NULL)
        return false;
    *ended = field_integer(result, 0, END_COUNT) > 0;
    if (retry != NULL)
        *retry = field_integer(result, 0, END_AGAIN);
    if (field_boolean(result, 0, END_REFUSED))
        skip_refused_followers(session, end->run);
    PQclear(result);
    return true;
}

static const char OUTPUT_SQL[] =
    "UPDATE lockkeeper.run r SET output = $3"
    " WHERE r.id = $1 AND r.runner = $2 AND r.state IN ('claimed', 'running')";
static const char ADD_OUTPUT_SQL[] =
    "UPDATE lockkeeper.run r SET output = right(coalesce(r.output, '') || $3, 65536)"
    " WHERE r.id = $1 AND r.runner = $2";

static bool write_output(Session *session, const char *sql, int64_t run, const char *runner,
                         const char *output, size_t length, Error *err)
{
    for (int ascii = 0; ascii <= 1; ascii++) {
        PQExpBufferData clean;
        PGresult *result = NULL;
        Statement statement = {
            .sql = sql,
            .count = 3,
            .types = (Oid[]){TYPE_INT8, TYPE_UUID, TYPE_TEXT},
            .constant = true,
        };

        initPQExpBuffer(&clean);
        append_clean(&clean, output, length, ascii == 1);
        statement.values = (const char *[]){INTEGER(run), runner, clean.data};
        if (arrays_are_whole(&clean, 1, err))
            result = transact(session, &statement, TRANSACT_WRITE, WAIT_NORMAL, err);
        termPQExpBuffer(&clean);
        PQclear(result);
        if (result != NULL)
            return true;
        if (!is_about_text(err))
            return false;
    }
    return false;
}

bool store_output(Session *session, int64_t run, const char *runner, const char *output,
                  size_t length, Error *err)
{
    return write_output(session, OUTPUT_SQL, run, runner, output, length, err);
}

bool store_add_output(Session *session, int64_t run, const char *runner, const char *output,
                      size_t length, Error *err)
{
    return write_output(session, ADD_OUTPUT_SQL, run, runner, output, length, err);
}

static const char TERMINATE_SQL[] =
    "SELECT count(*), count(pg_terminate_backend(l.pid)) FROM pg_lock_status() l"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
    "   AND l.classid = " RUN_CLASSID " AND l.objid = " OBJID("$1")
    "   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())";

bool store_terminate(Session *session, int64_t run, bool *gone, Error *err)
{
    Statement statement = {
        .sql = TERMINATE_SQL,
        .count = 1,
        .types = (Oid[]){TYPE_INT8},
        .values = (const char *[]){INTEGER(run)},
        .constant = true,
    };
    PGresult *result = transact(session, &statement, TRANSACT_READ, WAIT_CLEANUP, err);

    if (result == NULL)
        return false;
    *gone = field_integer(result, 0, 0) == 0;
    PQclear(result);
    return true;
}

/* ---- runs without a runner ------------------------------------------------------------------- */

/*
 * The locks are read after the rows (a statement sees the rows as they were when it began), so a
 * lock that is free was free, or its row had changed by then; and a row that has changed since it
 * was seen is left alone: `seen` keeps what was seen. Rows that somebody is just changing are
 * skipped. What was decided to be skipped for an instant that lies ahead was decided when the clock
 * was wrong: it is forgotten, and will be due.
 *
 * $1 runs to be left alone
 */
#define HOLDS(classid, objid)                                                                      \
    "EXISTS (SELECT FROM held h WHERE h.classid = " classid " AND h.objid = " objid ")"
static const char LOOK_SQL[] =
    "WITH held AS MATERIALIZED ("
    "  SELECT l.classid, l.objid FROM pg_lock_status() l"
    "   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
    "     AND l.classid IN (" RUN_CLASSID ", " RUNNER_CLASSID ")"
    "     AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())"
    "), seen AS MATERIALIZED ("
    "  SELECT r.id, r.runner, r.state FROM lockkeeper.run r"
    "   WHERE r.state IN ('claimed', 'running') AND r.id <> ALL ($1)"
    "     AND NOT " HOLDS(RUN_CLASSID, OBJID("r.id"))
    "     AND (r.state = 'running' OR NOT EXISTS (SELECT FROM lockkeeper.runner n"
    "            WHERE n.uuid = r.runner AND " HOLDS(RUNNER_CLASSID, OBJID("n.lock")) "))"
    "), locked AS MATERIALIZED ("
    "  SELECT r.id, r.runner, r.state FROM lockkeeper.run r JOIN seen s"
    "      ON s.id = r.id AND s.runner = r.runner AND s.state = r.state"
    "     FOR UPDATE OF r SKIP LOCKED"
    "), ended AS ("
    "  UPDATE lockkeeper.run r"
    "     SET state = 'lost', ended_at = clock_timestamp(),"
    "         over_at = " UNTIL("r", "clock_timestamp()") ","
    "         error = 'its session and its worker are gone'"
    "    FROM locked l"
    "   WHERE l.state = 'running' AND r.id = l.id AND r.runner = l.runner AND r.state = l.state"
    "  RETURNING r.*, -2::float8 AS retry_after"
    "), back AS ("
    "  UPDATE lockkeeper.run r SET " COMES_BACK
    "    FROM locked l"
    "   WHERE l.state = 'claimed' AND r.id = l.id AND r.runner = l.runner AND r.state = l.state"
    "  RETURNING r.*"
    "), left_over AS ("
    "  DELETE FROM lockkeeper.runner n"
    "   WHERE NOT " HOLDS(RUNNER_CLASSID, OBJID("n.lock"))
    "     AND n.last_seen < now() - '1 minute'::interval"
    "     AND NOT EXISTS (SELECT FROM lockkeeper.run r"
    "           WHERE r.runner = n.uuid AND r.state IN " ACTIVE ")"
    "), unsaid AS ("
    "  DELETE FROM lockkeeper.run r"
    "   WHERE r.state = 'skipped' AND r.origin = 'schedule'"
    "     AND r.slot > now() + '5 seconds'::interval"
    "), " FOLLOW
    " SELECT " RUN_COLUMNS("e") ", " REFUSED ", " TELL("due", " FROM ended")
    "   FROM ended e"
    " UNION ALL"
    " SELECT " RUN_COLUMNS("b") ", false, " TELL("due", " FROM back")
    "   FROM back b";
enum { LOOK_REFUSED = 9 };

bool store_look(Session *session, const int64_t *own, int own_count, StoreRuns *runs, Error *err)
{
    PQExpBufferData array;
    PGresult *result = NULL;
    Statement statement = {
        .sql = LOOK_SQL,
        .count = 1,
        .types = (Oid[]){TYPE_INT8_ARRAY},
        .constant = true,
    };

    array_begin(&array);
    for (int i = 0; i < own_count; i++)
        array_integer(&array, own[i]);
    array_end(&array);
    statement.values = (const char *[]){array.data};
    if (arrays_are_whole(&array, 1, err))
        result = transact(session, &statement, TRANSACT_WRITE, WAIT_NORMAL, err);
    termPQExpBuffer(&array);
    *runs = (StoreRuns){0};
    if (result == NULL || !runs_read(runs, result, NULL, err))
        return false;
    for (int i = 0; i < runs->count; i++) {
        if (field_boolean(runs->result, i, LOOK_REFUSED))
            skip_refused_followers(session, runs->runs[i].id);
    }
    return true;
}

/* A run that a newer one replaces has to end as well as one that is cancelled. */
static const char REQUESTS_SQL[] =
    "SELECT r.id, r.job, r.origin, " US("r.slot") ", r.attempt, r.parent, " US("r.due_at") ","
    "       r.state, CASE WHEN r.cancel_at IS NULL THEN 'replaced' ELSE 'cancelled' END"
    "  FROM lockkeeper.run r"
    " WHERE r.runner = $1 AND r.state IN ('claimed', 'running')"
    "   AND (r.cancel_at IS NOT NULL OR EXISTS (SELECT FROM lockkeeper.run n"
    "         WHERE n.job = r.job AND n.slot > r.slot AND " REPLACES("n") "))";

bool store_requests(Session *session, const StoreRunner *runner, StoreRuns *runs, Error *err)
{
    Statement statement = {
        .sql = REQUESTS_SQL,
        .count = 1,
        .types = (Oid[]){TYPE_UUID},
        .values = (const char *[]){runner->uuid},
        .constant = true,
    };
    PGresult *result = transact(session, &statement, TRANSACT_READ, WAIT_NORMAL, err);

    *runs = (StoreRuns){0};
    return result != NULL && runs_read(runs, result, NULL, err);
}
