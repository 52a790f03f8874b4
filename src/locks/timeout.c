#include "locks/timeout.h"

#include "base/duration.h"

#include <inttypes.h>
#include <stdio.h>

#define CURRENT "pg_catalog.current_setting('lock_timeout')"

static const char SET_SQL[] =
    "SELECT " CURRENT ", pg_catalog.set_config('lock_timeout', $1, false)";
static const char SET_LOCAL_SQL[] =
    "SELECT " CURRENT ", pg_catalog.set_config('lock_timeout', $1, true)";

/* A null value resets. Only where that is not what was before, the session had its own value. */
#define RESTORE                                                                                    \
    "CASE WHEN pg_catalog.set_config('lock_timeout', NULL, false)"                                 \
    " OPERATOR(pg_catalog.<>) $1 THEN pg_catalog.set_config('lock_timeout', $1, false) END"
static const char RESTORE_SQL[] = "SELECT " RESTORE;
static const char RESTORE_LOCAL_SQL[] = "SELECT pg_catalog.set_config('lock_timeout', $1, true)";

/* In a transaction: $2 names it, in a setting that tells afterwards whether it was rolled back. */
static const char RESTORE_INSIDE_SQL[] =
    "SELECT " RESTORE ", pg_catalog.set_config('lockkeeper.restored', $2, false)";
static const char RESTORE_AGAIN_SQL[] =
    "SELECT CASE WHEN pg_catalog.current_setting('lockkeeper.restored', true)"
    " OPERATOR(pg_catalog.=) $2 THEN NULL ELSE " RESTORE " END";

static const Oid TEXTS[] = {25, 25};

static Statement setting_statement(const char *sql, const char *const *value)
{
    return (Statement){.sql = sql, .count = 1, .types = TEXTS, .values = value, .unprepared = true};
}

bool timeout_set(Session *session, int64_t us, LockTimeout *timeout, Error *err)
{
    char text[DURATION_SETTING_SIZE];
    const char *value = text;
    Statement statement;
    PGresult *result;

    if (!duration_setting(us, "timeout", text, err) || !session_open(session, err))
        return false;
    timeout->local = session_transaction(session) != PQTRANS_IDLE;
    timeout->era = session->era;
    timeout->pid = session->pid;
    if (!timeout->local && !session_keeps_state(session)) {
        error_usage(err, "lock_timeout can't be set for the session: a pooler stands between, "
                         "which would hand the setting on to another client");
        return error_hint(err, "Use timeout() inside a transaction, or say pooler = \"session\" if "
                               "the pooler keeps a session for a client.");
    }
    statement = setting_statement(timeout->local ? SET_LOCAL_SQL : SET_SQL, &value);
    result = session_query(session, &statement, WAIT_NORMAL, err);
    if (result == NULL)
        return false;
    text_copy(timeout->previous, sizeof timeout->previous, PQgetvalue(result, 0, 0));
    PQclear(result);
    return true;
}

static void restored_late(void *context, const PGresult *result)
{
    (void)context;
    (void)result;
}

static bool restore_later(Session *session, DeferUntil until, const char *sql,
                          const char *const *values, int count, Error *err)
{
    Statement statement = {.sql = sql, .count = count, .types = TEXTS, .values = values};

    return session_defer(session, until, &statement, restored_late, NULL) ||
           error_set(err, ERROR_SQL, "out of memory");
}

/* Now, and once more when the transaction is over, if it was rolled back. */
static bool restore_inside(Session *session, const LockTimeout *timeout, Error *err)
{
    char transaction[24];
    const char *values[] = {timeout->previous, transaction};
    Statement statement = {.sql = RESTORE_INSIDE_SQL,
                           .count = 2,
                           .types = TEXTS,
                           .values = values,
                           .unprepared = true};

    snprintf(transaction, sizeof transaction, "%" PRIu64, session->era);
    return session_commands(session, &statement, 1, WAIT_CLEANUP, err) &&
           restore_later(session, DEFER_IDLE, RESTORE_AGAIN_SQL, values, 2, err);
}

bool timeout_restore(Session *session, const LockTimeout *timeout, Error *err)
{
    PGTransactionStatusType status = session_transaction(session);
    const char *sql = timeout->local ? RESTORE_LOCAL_SQL : RESTORE_SQL;
    const char *previous = timeout->previous;
    Statement statement = setting_statement(sql, &previous);

    if (session->conn == NULL || session->lost || timeout->pid != session->pid)
        return true; /* the setting went with the session */
    if (timeout->local && (status == PQTRANS_IDLE || timeout->era != session->era))
        return true; /* it went with its transaction */
    if (status == PQTRANS_INERROR || status == PQTRANS_ACTIVE)
        return restore_later(session, timeout->local ? DEFER_USABLE : DEFER_IDLE, sql, &previous, 1,
                             err);
    if (!timeout->local && status == PQTRANS_INTRANS)
        return restore_inside(session, timeout, err);
    return session_commands(session, &statement, 1, WAIT_CLEANUP, err);
}
