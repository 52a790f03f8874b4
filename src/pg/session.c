#include "pg/session.h"

#include "base/log.h"
#include "pg/conninfo.h"
#include "pg/errand.h"
#include "pg/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One statement, through whatever stands between; a pooler shows in the pid. */
static const char WHO_SQL[] = "SELECT pg_catalog.pg_backend_pid(),"
                              " pg_catalog.current_setting('server_version_num'),"
                              " pg_catalog.pg_is_in_recovery()";

/*
 * What a session that holds locks needs (runner.md 14 and 19): nothing ends it for idling, and the
 * server waits longer for a silent client (over 60 s) than the client for a silent server.
 * A setting that this server does not have is left out.
 */
#define SET_IF_KNOWN(name, value)                                                                  \
    "CASE WHEN pg_catalog.current_setting('" name "', true) IS NOT NULL"                           \
    " THEN pg_catalog.set_config('" name "', '" value "', false) END"
/* clang-format off */
#define SETTINGS \
    "SELECT " SET_IF_KNOWN("idle_session_timeout", "0") ", " \
    SET_IF_KNOWN("idle_in_transaction_session_timeout", "0") ", " \
    SET_IF_KNOWN("transaction_timeout", "0") ", " \
    SET_IF_KNOWN("tcp_keepalives_idle", "40") ", " \
    SET_IF_KNOWN("tcp_keepalives_interval", "10") ", " \
    SET_IF_KNOWN("tcp_keepalives_count", "4") ", " \
    SET_IF_KNOWN("tcp_user_timeout", "80000") ", " \
    SET_IF_KNOWN("client_connection_check_interval", "5000")
/* clang-format on */
static const char SETTINGS_SQL[] = SETTINGS;

/*
 * DISCARD ALL, but for the statements that we have prepared and their plans; the last says whether
 * others are there.
 */
static const char *const RENEW_SQL[] = {
    "CLOSE ALL",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET ALL",
    "UNLISTEN *",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
    SETTINGS ", pg_catalog.pg_advisory_unlock_all()",
    "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_statement() p"
    "   WHERE NOT pg_catalog.starts_with(p.name, 'lockkeeper_'))",
};
enum { RENEW_COUNT = sizeof RENEW_SQL / sizeof RENEW_SQL[0] };

static char *copy_text(const char *text)
{
    return text == NULL ? NULL : strdup(text);
}

Session *session_new(const char *conninfo, const char *name, const char *application,
                     PoolerPromise promise)
{
    Session *session = calloc(1, sizeof *session);

    if (session == NULL)
        return NULL;
    session->conninfo = copy_text(conninfo);
    session->name = copy_text(name);
    session->application = copy_text(application);
    session->promise = promise;
    session->holds.next = session->holds.previous = &session->holds;
    if (session->conninfo == NULL || session->application == NULL ||
        (name != NULL && session->name == NULL)) {
        session_free(session);
        return NULL;
    }
    return session;
}

void session_free(Session *session)
{
    if (session == NULL)
        return;
    session_close(session);
    free(session->conninfo);
    free(session->name);
    free(session->application);
    free(session);
}

/* ---- what would be lost ---------------------------------------------------------------------- */

void session_hold(Session *session, SessionHold *hold)
{
    hold->session = session;
    hold->next = &session->holds;
    hold->previous = session->holds.previous;
    hold->previous->next = hold;
    session->holds.previous = hold;
}

void session_let_go(SessionHold *hold)
{
    if (hold->session == NULL)
        return;
    hold->previous->next = hold->next;
    hold->next->previous = hold->previous;
    hold->session = NULL;
    hold->gone(hold);
}

static void let_go_all(Session *session, bool warn)
{
    while (session->holds.next != &session->holds) {
        SessionHold *hold = session->holds.next;

        if (warn && !hold->in_transaction)
            log_printf(LOG_WARNING, "lock %s was never released: it was held until its session "
                                    "closed", hold->name);
        session_let_go(hold);
    }
}

/* ---- opening and closing --------------------------------------------------------------------- */

static LogLevel notice_level(const char *severity)
{
    if (strcmp(severity, "WARNING") == 0)
        return LOG_WARNING;
    return strncmp(severity, "DEBUG", 5) == 0 ? LOG_DEBUG : LOG_INFO;
}

/* Called by libpq in the middle of its work: log, and raise nothing. */
static void receive_notice(void *context, const PGresult *result)
{
    Session *session = context;
    const char *severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);
    const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

    if (severity == NULL || message == NULL)
        return;
    if (strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0) {
        /* The server's last words to an idle session; the hang-up follows. */
        error_set(&session->loss, ERROR_CONNECTION, "%s", message);
        if (sqlstate != NULL)
            text_copy(session->loss.sqlstate, sizeof session->loss.sqlstate, sqlstate);
        return;
    }
    log_write(notice_level(severity), message,
              (LogField[]){{"from", "server", false},
                           {"severity", severity, false},
                           {"detail", PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL), false},
                           {"hint", PQresultErrorField(result, PG_DIAG_MESSAGE_HINT), false},
                           {NULL, NULL, false}});
}

/* The connecting thread's share; owns copies, since the caller may stop waiting for it. */
typedef struct {
    char *conninfo;
    char *application;
    PGconn *conn;
} Connecting;

static void connect_work(void *argument)
{
    Connecting *connecting = argument;

    connecting->conn = conninfo_connect(connecting->conninfo, connecting->application);
}

static void connect_dispose(void *argument)
{
    Connecting *connecting = argument;

    PQfinish(connecting->conn);
    free(connecting->conninfo);
    free(connecting->application);
    free(connecting);
}

/*
 * To log in, a session reads catalogs: one that somebody holds ACCESS EXCLUSIVE keeps all new ones
 * waiting, however well the server is (locks.md 8). libpq gives up first, else the server does.
 */
static bool hint_at_timeout(Error *err)
{
    if (strstr(err->message, "timeout expired") == NULL &&
        strstr(err->message, "authentication due to timeout") == NULL)
        return false;
    return error_hint(err, "Nobody answers there, the server is overloaded, or a session holds "
                           "ACCESS EXCLUSIVE on a catalog that logging in reads (pg_authid, "
                           "pg_database, pg_class ...): then a session that is open already can "
                           "find it in pg_locks and end it.");
}

static bool connect_session(Session *session, Error *err)
{
    Connecting *connecting;
    char shown[1024];

    if (!conninfo_check(session->conninfo, err))
        return false;
    connecting = calloc(1, sizeof *connecting);
    if (connecting == NULL)
        return error_set(err, ERROR_CONNECTION, "out of memory");
    connecting->conninfo = copy_text(session->conninfo);
    connecting->application = copy_text(session->application);
    switch (errand_run(connect_work, connect_dispose, connecting, CLOCK_NEVER, WAIT_NORMAL, err)) {
    case WAIT_READY:
        break;
    case WAIT_INTERRUPTED:
        return wait_interrupted_error(err);
    case WAIT_DEADLINE:
        return false;
    }
    session->conn = connecting->conn;
    connecting->conn = NULL;
    connect_dispose(connecting);
    if (PQstatus(session->conn) == CONNECTION_OK)
        return true;
    conninfo_redact(PQerrorMessage(session->conn), session->conninfo, shown, sizeof shown);
    error_set(err, ERROR_CONNECTION, "%s", shown[0] == '\0' ? "out of memory" : shown);
    return hint_at_timeout(err);
}

static bool ask_who(Session *session, Error *err)
{
    PGresult *result = session_query(session, &(Statement){.sql = WHO_SQL, .unprepared = true},
                                     WAIT_NORMAL, err);

    if (result == NULL)
        return false;
    session->pid = (int)strtol(PQgetvalue(result, 0, 0), NULL, 10);
    session->server_version = (int)strtol(PQgetvalue(result, 0, 1), NULL, 10);
    session->in_recovery = PQgetvalue(result, 0, 2)[0] == 't';
    session->pooled = session->pid != PQbackendPID(session->conn);
    PQclear(result);
    return true;
}

static bool apply_settings(Session *session, Error *err)
{
    PGresult *result;

    if (!session_keeps_state(session))
        return true;
    result = session_query(session, &(Statement){.sql = SETTINGS_SQL, .unprepared = true},
                           WAIT_NORMAL, err);
    PQclear(result);
    return result != NULL;
}

bool session_keeps_state(const Session *session)
{
    return !session->pooled || session->promise == POOLER_SESSION;
}

bool session_renew(Session *session, bool *renewed, Error *err)
{
    Statement statements[RENEW_COUNT];
    PGresult *results[RENEW_COUNT];
    PGnotify *news;
    bool ok;

    for (int i = 0; i < RENEW_COUNT; i++)
        statements[i] = (Statement){.sql = RENEW_SQL[i], .constant = true};
    ok = session_pipeline(session, statements, RENEW_COUNT, results, WAIT_NORMAL, err);
    *renewed = ok && PQgetvalue(results[RENEW_COUNT - 1], 0, 0)[0] == 't';
    for (int i = 0; i < RENEW_COUNT; i++)
        PQclear(results[i]);
    while (ok && (news = PQnotifies(session->conn)) != NULL)
        PQfreemem(news);
    return ok;
}

static char forbidden[256];

void session_forbid(const char *reason)
{
    text_copy(forbidden, sizeof forbidden, reason == NULL ? "" : reason);
}

const char *session_forbidden(void)
{
    return forbidden[0] == '\0' ? NULL : forbidden;
}

bool session_open(Session *session, Error *err)
{
    bool connected;

    if (forbidden[0] != '\0')
        return error_usage(err, "%s", forbidden);
    if (session->lost) {
        *err = session->loss;
        return false;
    }
    if (session->conn != NULL)
        return true;
    if (session->activity != SESSION_FREE) /* another fiber is connecting it */
        return error_usage(err, "the session is in use by another task");
    error_clear(&session->loss);
    session->activity = SESSION_BUSY;
    connected = connect_session(session, err);
    session->activity = SESSION_FREE;
    if (!connected) {
        PQfinish(session->conn);
        session->conn = NULL;
        return false;
    }
    PQsetnonblocking(session->conn, 1);
    PQsetNoticeReceiver(session->conn, receive_notice, session);
    /* Until it is known, nothing may rest on the backend being the same one twice. */
    session->pooled = true;
    if (ask_who(session, err) && apply_settings(session, err))
        return true;
    if (session->lost)
        err->hint[0] = '\0'; /* there is no session yet that reconnect() could help */
    session_close(session);
    return false;
}

/* What was sent ahead is answered, and what is owed is told: by the log, where nobody is left. */
static void settle_accounts(Session *session)
{
    Error err;

    if (session->conn != NULL && !session->lost && session->activity == SESSION_FREE)
        session_settle(session, &err);
    if (session_owes(session, &err))
        log_write(LOG_ERROR, err.message, NULL);
}

void session_close(Session *session)
{
    settle_accounts(session);
    deferred_drop(session);
    let_go_all(session, session->conn != NULL && !session->lost);
    PQfinish(session->conn);
    session->conn = NULL;
    session->lost = false;
    session->activity = SESSION_FREE;
    session->depth = 0;
    session->in_block = false;
    session->era++;
    session->pid = 0;
    statement_cache_free(&session->cache);
}

bool session_reconnect(Session *session, Error *err)
{
    if (session->activity == SESSION_BUSY)
        return error_usage(err, "the session is in use by another task");
    session_close(session);
    return session_open(session, err);
}

PGTransactionStatusType session_transaction(const Session *session)
{
    if (session->conn == NULL || session->lost)
        return PQTRANS_IDLE;
    /* To libpq a session with replies to read is active; what they reply to was sent when idle. */
    if (session->ahead_count > 0 && session->activity == SESSION_FREE)
        return PQTRANS_IDLE;
    return PQtransactionStatus(session->conn);
}
