#include "runner/transact.h"

#include <string.h>

/* clang-format off */
#define SET(name, value) "pg_catalog.set_config('" name "', '" value "', true)"
#define SETTINGS                                                                                   \
    "pg_catalog.set_config('role', NULL, true), "                                                  \
    SET("search_path", "pg_catalog, pg_temp") ", "                                                 \
    SET("lock_timeout", "10s") ", "                                                                \
    SET("statement_timeout", "60s") ", "                                                           \
    SET("array_nulls", "on") ", "                                                                  \
    SET("enable_seqscan", "off") ", "                                                              \
    SET("jit", "off") ", "                                                                         \
    SET("extra_float_digits", "1")
#define DURABLE                                                                                    \
    "CASE WHEN pg_catalog.current_setting('synchronous_commit')"                                   \
    " OPERATOR(pg_catalog.=) ANY ('{off,local,remote_write}'::pg_catalog.text[])"                  \
    " THEN " SET("synchronous_commit", "on") " END"
/* clang-format on */

static const char *const BEGIN_SQL[] = {
    [TRANSACT_READ] = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY",
    [TRANSACT_GLANCE] = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY",
    [TRANSACT_WRITE] = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
    [TRANSACT_CLAIM] = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
    [TRANSACT_HELP] = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
};

static const char *const SETTINGS_SQL[] = {
    [TRANSACT_READ] = "SELECT " SETTINGS,
    [TRANSACT_GLANCE] = "SELECT " SETTINGS ", " SET("statement_timeout", "500ms") ", " SET("jit", "off"),
    [TRANSACT_WRITE] = "SELECT " SETTINGS ", " DURABLE,
    [TRANSACT_CLAIM] = "SELECT " SETTINGS ", " DURABLE ", "
                       SET("plan_cache_mode", "force_generic_plan"),
    [TRANSACT_HELP] = "SELECT " SETTINGS ", " SET("synchronous_commit", "off") ", "
                      SET("plan_cache_mode", "force_generic_plan"),
};

static const char COMMIT_SQL[] = "COMMIT";

enum { BEGIN, SETTING, WORK, COMMIT, COUNT };

PGresult *transact(Session *session, const Statement *statement, TransactKind kind, WaitMode mode,
                   Error *err)
{
    Statement statements[COUNT] = {
        [BEGIN] = {.sql = BEGIN_SQL[kind], .constant = true},
        [SETTING] = {.sql = SETTINGS_SQL[kind], .constant = true},
        [WORK] = *statement,
        [COMMIT] = {.sql = COMMIT_SQL, .constant = true},
    };
    PGresult *results[COUNT];
    PGresult *work = NULL;
    Error ignored;

    if (session_transaction(session) != PQTRANS_IDLE) {
        error_usage(err, "the state tables need a session without an open transaction");
        return NULL;
    }
    if (session_pipeline(session, statements, COUNT, results, mode, err)) {
        work = results[WORK];
        results[WORK] = NULL;
    } else if (session_transaction(session) != PQTRANS_IDLE) {
        session_run(session, "ROLLBACK", WAIT_CLEANUP, &ignored);
    }
    for (int i = 0; i < COUNT; i++)
        PQclear(results[i]);
    return work;
}
