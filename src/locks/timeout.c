#include "locks/timeout.h"

#include "base/duration.h"

#define CURRENT "pg_catalog.current_setting('lock_timeout')"

static const char SET_SQL[] =
    "SELECT " CURRENT ", pg_catalog.set_config('lock_timeout', $1, false)";
static const char SET_LOCAL_SQL[] =
    "SELECT " CURRENT ", pg_catalog.set_config('lock_timeout', $1, true)";

/* A null value resets. Only where that is not what was before, the session had its own value. */
static const char RESTORE_SQL[] =
    "SELECT CASE WHEN pg_catalog.set_config('lock_timeout', NULL, false)"
    " OPERATOR(pg_catalog.<>) $1 THEN pg_catalog.set_config('lock_timeout', $1, false) END";
static const char RESTORE_LOCAL_SQL[] = "SELECT pg_catalog.set_config('lock_timeout', $1, true)";

static const Oid TEXT[] = {25};

static Statement setting_statement(const char *sql, const char *const *value)
{
    return (Statement){.sql = sql, .count = 1, .types = TEXT, .values = value, .unprepared = true};
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

static bool restore_later(Session *session, DeferUntil until, const char *sql, const char *value,
                          Error *err)
{
    return session_defer(session, until, sql, TEXT, &value, 1, restored_late, NULL) ||
           error_set(err, ERROR_SQL, "out of memory");
}

static bool restore_now(Session *session, const char *sql, const char *value, Error *err)
{
    Statement statement = setting_statement(sql, &value);

    return session_commands(session, &statement, 1, WAIT_CLEANUP, err);
}

bool timeout_restore(Session *session, const LockTimeout *timeout, Error *err)
{
    PGTransactionStatusType status = session_transaction(session);
    const char *sql = timeout->local ? RESTORE_LOCAL_SQL : RESTORE_SQL;

    if (session->conn == NULL || session->lost)
        return true; /* the setting went with the session */
    if (timeout->local && (status == PQTRANS_IDLE || timeout->era != session->era))
        return true; /* it went with its transaction */
    if (status == PQTRANS_INERROR)
        return restore_later(session, timeout->local ? DEFER_USABLE : DEFER_IDLE, sql,
                             timeout->previous, err);
    if (!restore_now(session, sql, timeout->previous, err))
        return false;
    if (!timeout->local && status == PQTRANS_INTRANS)
        return restore_later(session, DEFER_IDLE, sql, timeout->previous, err);
    return true;
}
