#include "locks/rows.h"

#include "base/duration.h"

#include <stdio.h>
#include <stdlib.h>

static const char SET_LOCAL_SQL[] =
    "SELECT pg_catalog.set_config('lockkeeper.lock_timeout',"
    " pg_catalog.current_setting('lock_timeout'), true),"
    " pg_catalog.set_config('lock_timeout', $1, true)";
static const char SET_BACK_SQL[] =
    "SELECT pg_catalog.set_config('lock_timeout',"
    " pg_catalog.current_setting('lockkeeper.lock_timeout'), true)";

static const Statement SAVEPOINT = {.sql = "SAVEPOINT lockkeeper_rows", .unprepared = true};
static const Statement ROLLBACK_TO = {.sql = "ROLLBACK TO lockkeeper_rows", .unprepared = true};
static const Statement RELEASE = {.sql = "RELEASE lockkeeper_rows", .unprepared = true};
static const Statement SET_BACK = {.sql = SET_BACK_SQL, .unprepared = true};

static const char ROWS[] = "row locks";
static const Oid TEXT[] = {25};

/* NOWAIT is about rows. A table's lock is waited for all the same, so no longer than this. */
enum { TRY_US = 1000 };

/* `timeout` points to lock_timeout's text, which stays until the statement was sent. */
static Statement set_local(const char *const *timeout)
{
    return (Statement){
        .sql = SET_LOCAL_SQL, .count = 1, .types = TEXT, .values = timeout, .unprepared = true};
}

static bool check(Session *session, const RowsRequest *request, char *timeout, Error *err)
{
    int64_t us = request->timeout_us == 0 ? TRY_US : request->timeout_us;

    if (request->has_timeout && !duration_setting(us, "timeout", timeout, err))
        return false;
    if (!session_open(session, err))
        return false;
    if (session_transaction(session) == PQTRANS_IDLE)
        return error_usage(err, "locking rows needs an open transaction");
    if (session_transaction(session) == PQTRANS_INERROR)
        return session_run(session, "SELECT 1", WAIT_NORMAL, err); /* 25P02, in PostgreSQL's words */
    return true;
}

static void roll_back(Session *session)
{
    Error ignored;

    if (!session->lost)
        session_commands(session, (Statement[]){ROLLBACK_TO, RELEASE}, 2, WAIT_CLEANUP, &ignored);
}

/* PostgreSQL says only that a statement was cancelled. */
static void name_the_failure(const RowsRequest *request, Error *err)
{
    char message[512];

    if (err->kind != ERROR_LOCK_TIMEOUT)
        return;
    if (request->has_timeout && request->timeout_us == 0)
        err->kind = ERROR_NOT_ACQUIRED;
    text_copy(message, sizeof message, err->message);
    snprintf(err->message, sizeof err->message, "the rows were not to be had in time: %s", message);
}

static void hold_gone(SessionHold *hold)
{
    free(hold);
}

/* So that losing the session now is known to lose a lock. */
static void hold_rows(Session *session, const char *sql)
{
    SessionHold *hold = calloc(1, sizeof *hold);

    if (hold == NULL)
        return;
    hold->kind = ROWS;
    hold->in_transaction = true;
    hold->gone = hold_gone;
    text_copy(hold->name, sizeof hold->name, sql);
    session_hold(session, hold);
}

PGresult *rows_lock(Session *session, const RowsRequest *request, Error *err)
{
    char text[DURATION_SETTING_SIZE] = "";
    const char *timeout = text;
    Statement statements[5];
    PGresult *results[5];
    PGresult *rows = NULL;
    int count = 0;
    int query;

    if (!check(session, request, text, err))
        return NULL;
    statements[count++] = SAVEPOINT;
    if (request->has_timeout)
        statements[count++] = set_local(&timeout);
    query = count;
    statements[count++] = request->query;
    if (request->has_timeout)
        statements[count++] = SET_BACK;
    statements[count++] = RELEASE;

    if (session_pipeline(session, statements, count, results, WAIT_NORMAL, err)) {
        rows = results[query];
        results[query] = NULL;
    }
    for (int i = 0; i < count; i++)
        PQclear(results[i]);
    if (rows == NULL) {
        if (session_transaction(session) == PQTRANS_INERROR)
            roll_back(session);
        name_the_failure(request, err);
    } else if (PQntuples(rows) > 0) {
        hold_rows(session, request->query.sql);
    }
    return rows;
}

PGresult *rows_describe(Session *session, const RowsRequest *request, Error *err)
{
    char text[DURATION_SETTING_SIZE] = "";
    const char *timeout = text;
    PGresult *description;

    if (!check(session, request, text, err) ||
        !session_commands(session, (Statement[]){SAVEPOINT, set_local(&timeout)},
                          request->has_timeout ? 2 : 1, WAIT_NORMAL, err))
        return NULL;
    description = session_describe(session, &request->query, err);
    roll_back(session);
    if (description == NULL)
        name_the_failure(request, err);
    return description;
}
