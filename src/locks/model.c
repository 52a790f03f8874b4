#include "locks/model.h"

#include "base/duration.h"
#include "base/pqbuffer.h"

#include <stdlib.h>
#include <string.h>

/*
 * $1: the names, one array element each. Unknown ones come first, with a null oid. A number is no
 * name, though to_regclass takes it for an oid from PostgreSQL 16 on.
 */
static const char RESOLVE_SQL[] =
    "SELECT n.name, c.oid,"
    " CASE WHEN c.oid IS NOT NULL THEN pg_catalog.format('%I.%I', s.nspname, c.relname) END"
    " FROM pg_catalog.unnest($1::pg_catalog.text[]) WITH ORDINALITY AS n(name, position)"
    " LEFT JOIN pg_catalog.pg_class c"
    "   ON c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass("
    "     CASE WHEN n.name OPERATOR(pg_catalog.!~) '^([0-9]+|-)$' THEN n.name END)::pg_catalog.oid"
    " LEFT JOIN pg_catalog.pg_namespace s ON s.oid OPERATOR(pg_catalog.=) c.relnamespace"
    " ORDER BY c.oid NULLS FIRST, n.position";

static const char SET_LOCAL_SQL[] =
    "SELECT pg_catalog.set_config('lockkeeper.lock_timeout',"
    " pg_catalog.current_setting('lock_timeout'), true),"
    " pg_catalog.set_config('lock_timeout', $1, true)";
static const char SET_BACK_SQL[] =
    "SELECT pg_catalog.set_config('lock_timeout',"
    " pg_catalog.current_setting('lockkeeper.lock_timeout'), true)";

static const Statement SAVEPOINT = {.sql = "SAVEPOINT lockkeeper_model", .unprepared = true};
static const Statement ROLLBACK_TO = {.sql = "ROLLBACK TO lockkeeper_model", .unprepared = true};
static const Statement RELEASE = {.sql = "RELEASE lockkeeper_model", .unprepared = true};

static const char TABLE[] = "table lock";
static const Oid TEXT[] = {25};

/* The names as PostgreSQL's array literal. */
static void append_array(PQExpBuffer out, const char *const *names, int count)
{
    appendPQExpBufferChar(out, '{');
    for (int i = 0; i < count; i++) {
        appendPQExpBufferStr(out, i == 0 ? "\"" : ",\"");
        for (const char *p = names[i]; *p != '\0'; p++) {
            if (*p == '"' || *p == '\\')
                appendPQExpBufferChar(out, '\\');
            appendPQExpBufferChar(out, *p);
        }
        appendPQExpBufferChar(out, '"');
    }
    appendPQExpBufferChar(out, '}');
}

/* Undo what was begun; the error that led here stays the one reported. */
static void roll_back(Session *session)
{
    Error ignored;

    if (!session->lost && session_transaction(session) == PQTRANS_INERROR)
        session_commands(session, (Statement[]){ROLLBACK_TO, RELEASE}, 2, WAIT_CLEANUP, &ignored);
}

/* A name that is no name at all: PostgreSQL does not always say which. */
static void name_the_malformed(const ModelRequest *request, Error *err)
{
    char message[512];

    if (strcmp(err->sqlstate, "42602") != 0 && strcmp(err->sqlstate, "42601") != 0)
        return;
    text_copy(message, sizeof message, err->message);
    if (request->count == 1 && strstr(message, request->names[0]) == NULL)
        error_usage(err, "\"%.200s\" is not a table's name: %s", request->names[0], message);
    else
        error_usage(err, "one of the tables' names is malformed: %s", message);
}

/* Set a savepoint and look the names up. The rows are in the order to lock in. */
static PGresult *resolve(Session *session, const ModelRequest *request, Error *err)
{
    PQExpBufferData names;
    const char *values[1];
    PGresult *results[2] = {NULL, NULL};
    bool ok = false;

    initPQExpBuffer(&names);
    append_array(&names, request->names, request->count);
    if (PQExpBufferDataBroken(names)) {
        error_set(err, ERROR_SQL, "out of memory");
        goto out;
    }
    values[0] = names.data;
    ok = session_pipeline(session,
                          (Statement[]){SAVEPOINT,
                                        {.sql = RESOLVE_SQL,
                                         .count = 1,
                                         .types = TEXT,
                                         .values = values,
                                         .unprepared = true}},
                          2, results, WAIT_NORMAL, err);
    if (!ok) {
        name_the_malformed(request, err);
        goto out;
    }
    if (PQgetisnull(results[1], 0, 1)) {
        Error ignored;

        error_set(err, ERROR_SQL, "relation \"%.200s\" does not exist",
                  PQgetvalue(results[1], 0, 0));
        text_copy(err->sqlstate, sizeof err->sqlstate, "42P01");
        session_commands(session, (Statement[]){ROLLBACK_TO, RELEASE}, 2, WAIT_CLEANUP, &ignored);
        ok = false;
    }
out:
    roll_back(session);
    termPQExpBuffer(&names);
    PQclear(results[0]);
    if (ok)
        return results[1];
    PQclear(results[1]);
    return NULL;
}

static void append_lock(PQExpBuffer out, const ModelRequest *request, const PGresult *relations)
{
    appendPQExpBuffer(out, "LOCK TABLE %s", request->only ? "ONLY " : "");
    for (int i = 0; i < PQntuples(relations); i++)
        appendPQExpBuffer(out, "%s%s", i == 0 ? "" : request->only ? ", ONLY " : ", ",
                          PQgetvalue(relations, i, 2));
    appendPQExpBuffer(out, " IN %s MODE%s", mode_name(request->mode),
                      request->has_timeout && request->timeout_us == 0 ? " NOWAIT" : "");
}

/* `timeout` is lock_timeout's text. */
static bool lock_relations(Session *session, const ModelRequest *request, const char *timeout,
                           const PGresult *relations, Error *err)
{
    bool timed = request->has_timeout && request->timeout_us != 0;
    Statement statements[4];
    int count = 0;
    PQExpBufferData sql;
    bool ok = false;

    initPQExpBuffer(&sql);
    append_lock(&sql, request, relations);
    if (PQExpBufferDataBroken(sql)) {
        error_set(err, ERROR_SQL, "out of memory");
        goto out;
    }
    if (timed)
        statements[count++] = (Statement){
            .sql = SET_LOCAL_SQL, .count = 1, .types = TEXT, .values = &timeout, .unprepared = true};
    statements[count++] = (Statement){.sql = sql.data, .unprepared = true};
    if (timed)
        statements[count++] = (Statement){.sql = SET_BACK_SQL, .unprepared = true};
    statements[count++] = RELEASE;
    ok = session_commands(session, statements, count, WAIT_NORMAL, err);
out:
    termPQExpBuffer(&sql);
    roll_back(session);
    return ok;
}

static void hold_gone(SessionHold *hold)
{
    free(hold);
}

/* So that losing the session now is known to lose a lock. */
static void hold_table(Session *session, const char *name)
{
    SessionHold *hold = calloc(1, sizeof *hold);

    if (hold == NULL)
        return;
    hold->kind = TABLE;
    hold->in_transaction = true;
    hold->gone = hold_gone;
    text_copy(hold->name, sizeof hold->name, name);
    session_hold(session, hold);
}

bool model_lock(Session *session, const ModelRequest *request, Error *err)
{
    char timeout[DURATION_SETTING_SIZE] = "";
    PGresult *relations;
    bool ok;

    if (request->count == 0)
        return error_usage(err, "no table is named");
    if (request->has_timeout && !duration_setting(request->timeout_us, "timeout", timeout, err))
        return false;
    if (!session_open(session, err))
        return false;
    if (session_transaction(session) == PQTRANS_IDLE)
        return error_usage(err, "locking \"%.200s\" needs an open transaction",
                           request->names[0]);
    if (session_transaction(session) == PQTRANS_INERROR)
        return session_run(session, "SELECT 1", WAIT_NORMAL, err); /* 25P02, in PostgreSQL's words */
    relations = resolve(session, request, err);
    if (relations == NULL)
        return false;
    ok = lock_relations(session, request, timeout, relations, err);
    PQclear(relations);
    if (ok)
        hold_table(session, request->names[0]);
    return ok;
}
