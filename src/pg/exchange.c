#include "pg/exchange.h"

#include "base/log.h"
#include "pg/errand.h"
#include "pg/secret.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CANCEL_BOUND_US = 1000000, /* for a cancel request to be delivered */
    ENDING_BOUND_US = 2000000, /* for an interrupted statement to end */
    PIPELINE_LOCAL = 8,
};

/* ---- errors ---------------------------------------------------------------------------------- */

static const char *field(const PGresult *result, int code)
{
    const char *text = PQresultErrorField(result, code);

    return text == NULL ? "" : text;
}

static ErrorKind kind_of(const char *sqlstate, const PGresult *result)
{
    if (strcmp(sqlstate, "55P03") == 0) {
        /* A timeout is raised where interrupts are processed; NOWAIT where the lock is asked for. */
        return strcmp(field(result, PG_DIAG_SOURCE_FUNCTION), "ProcessInterrupts") == 0
                   ? ERROR_LOCK_TIMEOUT
                   : ERROR_NOT_ACQUIRED;
    }
    if (strcmp(sqlstate, "40P01") == 0)
        return ERROR_DEADLOCK;
    return ERROR_SQL; /* also in class 08: only a FATAL error is about this connection */
}

static bool holds_locks(const Session *session)
{
    return session->holds.next != &session->holds;
}

/* *err says why the session has ended; from now on every use says the same. */
static bool make_lost(Session *session, Error *err)
{
    err->kind = holds_locks(session) ? ERROR_LOCK_LOST : ERROR_CONNECTION;
    error_hint(err, "The session is not connected again by itself; reconnect() does it.");
    session->loss = *err;
    session->loss.statement[0] = '\0';
    session->lost = true;
    return false;
}

bool exchange_broke(Session *session, Error *err)
{
    char message[1024];
    size_t length;

    if (session->loss.kind != ERROR_NONE) { /* the server had said why */
        *err = session->loss;
        return make_lost(session, err);
    }
    text_copy(message, sizeof message, PQerrorMessage(session->conn));
    length = strlen(message);
    while (length > 0 && isspace((unsigned char)message[length - 1]))
        message[--length] = '\0';
    for (char *p = message; *p != '\0'; p++) {
        if (*p == '\n' || *p == '\t')
            *p = ' ';
    }
    error_set(err, ERROR_CONNECTION, "%s",
              length == 0 ? "the connection to the server was lost" : message);
    return make_lost(session, err);
}

bool session_result_error(Session *session, const PGresult *result, const char *sql, Error *err)
{
    const char *sqlstate = field(result, PG_DIAG_SQLSTATE);
    const char *severity = field(result, PG_DIAG_SEVERITY_NONLOCALIZED);

    if (sqlstate[0] == '\0') /* libpq's own words: the connection broke */
        return PQstatus(session->conn) == CONNECTION_BAD
                   ? exchange_broke(session, err)
                   : error_set(err, ERROR_SQL, "%s", PQresultErrorMessage(result));
    error_set(err, kind_of(sqlstate, result), "%s", field(result, PG_DIAG_MESSAGE_PRIMARY));
    text_copy(err->sqlstate, sizeof err->sqlstate, sqlstate);
    text_copy(err->detail, sizeof err->detail, field(result, PG_DIAG_MESSAGE_DETAIL));
    text_copy(err->hint, sizeof err->hint, field(result, PG_DIAG_MESSAGE_HINT));
    if (sql != NULL) {
        text_copy(err->statement, sizeof err->statement, sql);
        secret_hide(err, sql);
    }
    if (strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0)
        return make_lost(session, err);
    if (session->cancelled && strcmp(sqlstate, "57014") == 0) {
        wait_interrupted_error(err);
        text_copy(err->sqlstate, sizeof err->sqlstate, "57014");
    }
    return false;
}

/* ---- using a session ------------------------------------------------------------------------- */

static bool refuse_second_user(const Session *session, Error *err)
{
    switch (session->activity) {
    case SESSION_STREAMS:
        error_usage(err, "the session is streaming rows: another statement must wait until the "
                         "loop over rows() has ended");
        return error_hint(err, "Use query(), or another session inside the loop.");
    case SESSION_COPIES_IN:
    case SESSION_COPIES_OUT:
        return error_usage(err, "the session is copying: another statement must wait");
    default:
        return error_usage(err, "the session is in use by another task");
    }
}

/* exchange_enter, for what can be sent behind what was sent ahead. */
static bool enter(Session *session, SessionActivity activity, WaitMode mode, Error *err)
{
    err->kind = ERROR_NONE;
    if (session->activity != SESSION_FREE)
        return refuse_second_user(session, err);
    if (mode == WAIT_NORMAL && wait_is_interrupted())
        return wait_interrupted_error(err);
    if (!session_open(session, err))
        return false;
    session->activity = activity;
    session->uses++;
    session->mode = mode;
    session->deadline_us = CLOCK_NEVER;
    session->cancelled = false;
    return true;
}

static void transaction_ended(Session *session)
{
    SessionHold *hold = session->holds.next;

    session->depth = 0;
    session->in_block = false;
    session->era++;
    while (hold != &session->holds) {
        SessionHold *next = hold->next;

        if (hold->in_transaction)
            session_let_go(hold);
        hold = next;
    }
}

/* Is no transaction open, as far as the replies that are read tell? */
static bool is_idle(const Session *session)
{
    return session->ahead_count > 0 || PQtransactionStatus(session->conn) == PQTRANS_IDLE;
}

void exchange_leave(Session *session)
{
    session->activity = SESSION_FREE;
    if (session->lost) {
        deferred_drop(session);
        return;
    }
    if (!is_idle(session)) {
        session->in_block = true;
    } else {
        session->cache.changing = false;
        if (session->in_block)
            transaction_ended(session);
    }
    if (session->deferred != NULL)
        deferred_run(session);
}

typedef struct {
    PGcancel *cancel;
    char message[256];
} Cancelling;

static void cancel_work(void *argument)
{
    Cancelling *cancelling = argument;

    PQcancel(cancelling->cancel, cancelling->message, sizeof cancelling->message);
}

static void cancel_dispose(void *argument)
{
    Cancelling *cancelling = argument;

    PQfreeCancel(cancelling->cancel);
    free(cancelling);
}

/* Cancel what runs. The request is delivered before this returns, so it can't hit what is next. */
static bool cancel_statement(Session *session)
{
    Cancelling *cancelling = calloc(1, sizeof *cancelling);
    Error ignored;

    if (cancelling == NULL)
        return false;
    cancelling->cancel = PQgetCancel(session->conn);
    if (errand_run(cancel_work, cancel_dispose, cancelling, clock_deadline(CANCEL_BOUND_US),
                   WAIT_CLEANUP, &ignored) != WAIT_READY)
        return false;
    cancel_dispose(cancelling);
    return true;
}

static bool cancel_or_give_up(Session *session, Error *err)
{
    if (cancel_statement(session))
        return true;
    error_set(err, ERROR_CONNECTION, "the cancel request was not answered");
    return make_lost(session, err);
}

/* An interrupt came while waiting: what is under way has to end soon. */
static bool begin_ending(Session *session, Error *err)
{
    session->deadline_us = clock_deadline(ENDING_BOUND_US);
    if (session->mode == WAIT_CLEANUP)
        return true;
    session->cancelled = true;
    return cancel_or_give_up(session, err);
}

/* Wait for the socket; `unsent` is what PQflush has said. */
static bool wait_for_socket(Session *session, int unsent, Error *err)
{
    struct pollfd socket = {
        .fd = PQsocket(session->conn),
        .events = (short)(unsent > 0 ? POLLIN | POLLOUT : POLLIN),
    };
    WaitMode mode = session->deadline_us == CLOCK_NEVER ? WAIT_NORMAL : WAIT_CLEANUP;

    if (unsent < 0 || socket.fd < 0)
        return exchange_broke(session, err);
    switch (wait_for(&socket, 1, session->deadline_us, mode)) {
    case WAIT_READY:
        break;
    case WAIT_INTERRUPTED:
        return begin_ending(session, err);
    case WAIT_DEADLINE:
        error_set(err, ERROR_CONNECTION, "the server did not answer in time");
        return make_lost(session, err);
    }
    if (PQconsumeInput(session->conn) == 0)
        return exchange_broke(session, err);
    return true;
}

bool exchange_wait(Session *session, Error *err)
{
    return wait_for_socket(session, PQflush(session->conn), err);
}

bool exchange_flush(Session *session, Error *err)
{
    int unsent;

    while ((unsent = PQflush(session->conn)) != 0) {
        if (!wait_for_socket(session, unsent, err))
            return false;
    }
    return true;
}

bool exchange_receive(Session *session, PGresult **result, Error *err)
{
    *result = NULL;
    while (PQisBusy(session->conn)) {
        if (!exchange_wait(session, err))
            return false;
    }
    *result = PQgetResult(session->conn);
    return true;
}

static bool is_copy(const PGresult *result)
{
    ExecStatusType status = PQresultStatus(result);

    return status == PGRES_COPY_IN || status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH;
}

/* A COPY has begun that nothing but the end of the connection can end. */
static bool refuse_copy(Session *session, Error *err)
{
    error_set(err, ERROR_CONNECTION, "the statement began a COPY that can't be ended: the "
                                     "connection was given up");
    return make_lost(session, err);
}

void exchange_drain(Session *session)
{
    Error ignored;
    PGresult *result;

    while (!session->lost && exchange_receive(session, &result, &ignored) && result != NULL) {
        ExecStatusType status = PQresultStatus(result);

        PQclear(result);
        if (status == PGRES_COPY_IN)
            PQputCopyEnd(session->conn, "COPY needs copy_in");
        else if (status == PGRES_COPY_OUT) {
            char *data = NULL;

            while (!session->lost && PQgetCopyData(session->conn, &data, 1) >= 0) {
                if (data == NULL && !exchange_wait(session, &ignored))
                    break;
                PQfreemem(data);
                data = NULL;
            }
        } else if (status == PGRES_COPY_BOTH) /* a replication connection's */
            refuse_copy(session, &ignored);
    }
}

/* ---- results --------------------------------------------------------------------------------- */

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* What a command does to the statements that were prepared. */
static void note_command(Session *session, PGresult *result)
{
    /* SELECT: without rows it is SELECT INTO or CREATE TABLE AS. */
    static const char *const CHANGES[] = {"CREATE", "ALTER", "DROP", "DO", "CALL", "SELECT"};
    const char *tag = PQcmdStatus(result);

    /* COMMIT AND CHAIN, or with a BEGIN behind it: no look at the transaction's state tells. */
    if (strcmp(tag, "COMMIT") == 0 && session->in_block)
        transaction_ended(session);

    if (starts_with(tag, "DISCARD ALL") || starts_with(tag, "DEALLOCATE ALL")) {
        statement_cache_forget(&session->cache);
        return;
    }
    for (size_t i = 0; i < sizeof CHANGES / sizeof CHANGES[0]; i++) {
        if (starts_with(tag, CHANGES[i]))
            statement_cache_suspect_all(&session->cache);
    }
}

bool exchange_check(Session *session, PGresult *result, const char *sql, Error *err)
{
    switch (PQresultStatus(result)) {
    case PGRES_COMMAND_OK:
        note_command(session, result);
        return true;
    case PGRES_TUPLES_OK:
    case PGRES_SINGLE_TUPLE:
        return true;
    case PGRES_EMPTY_QUERY:
        return error_usage(err, "the statement is empty");
    case PGRES_COPY_IN:
    case PGRES_COPY_OUT:
    case PGRES_COPY_BOTH:
        return error_usage(err, "COPY … FROM STDIN and TO STDOUT go through copy_in and copy_out");
    default:
        return session_result_error(session, result, sql, err);
    }
}

/* ---- one by one and in pipelines ------------------------------------------------------------- */

/* Prepared statements are kept only where the backend stays the same. */
static bool may_prepare(const Session *session)
{
    return !session->pooled || session->promise == POOLER_SESSION;
}

bool exchange_send(Session *session, const Statement *statement)
{
    return PQsendQueryParams(session->conn, statement->sql, statement->count, statement->types,
                             statement->values, statement->lengths, statement->formats, 0) == 1;
}

static bool send_prepared(Session *session, const Statement *statement, const char *name)
{
    return PQsendQueryPrepared(session->conn, name, statement->count, statement->values,
                               statement->lengths, statement->formats, 0) == 1;
}

static bool send_prepare(Session *session, const Statement *statement, const char *name)
{
    return PQsendPrepare(session->conn, name, statement->sql, statement->count,
                         statement->types) == 1;
}

static CachedStatement *cached_number(Session *session, uint64_t number)
{
    for (int i = 0; i < STATEMENT_CACHE_SIZE; i++) {
        if (session->cache.places[i].number == number)
            return &session->cache.places[i];
    }
    return NULL;
}

/* In pipeline mode: send one; *preparing is the number it is prepared under by the way, or 0. */
static bool pipeline_send(Session *session, const Statement *statement, uint64_t *preparing)
{
    bool seen = false;
    CachedStatement *cached =
        may_prepare(session) ? statement_cache_find(&session->cache, statement, &seen) : NULL;

    *preparing = 0;
    if (cached == NULL || !seen || !statement_cache_can_prepare(&session->cache, cached))
        return exchange_send(session, statement);
    if (!cached->prepared) {
        statement_cache_rename(&session->cache, cached);
        if (!send_prepare(session, statement, cached->name))
            return false;
        *preparing = cached->number;
        cached->prepared = true;
    }
    return send_prepared(session, statement, cached->name);
}

/* Read one command's results up to its NULL; the last one is the caller's. */
static bool pipeline_receive(Session *session, PGresult **result, Error *err)
{
    PGresult *next;

    *result = NULL;
    for (;;) {
        if (!exchange_receive(session, &next, err)) {
            PQclear(*result);
            *result = NULL;
            return false;
        }
        if (next == NULL)
            return true;
        PQclear(*result);
        *result = next;
        if (PQresultStatus(next) == PGRES_PIPELINE_SYNC)
            return true;
        if (is_copy(next)) { /* libpq can't leave a COPY inside a pipeline */
            PQclear(next);
            *result = NULL;
            return refuse_copy(session, err);
        }
    }
}

static void note_not_prepared(Session *session, uint64_t number)
{
    CachedStatement *cached = cached_number(session, number);

    if (cached != NULL)
        cached->prepared = false;
}

/* DEALLOCATE what is no longer of use, apart from the rest; only where an error harms nothing. */
static bool send_garbage(Session *session, int *sent)
{
    StatementCache *cache = &session->cache;

    *sent = 0;
    if (cache->garbage_count == 0 || !is_idle(session))
        return true;
    while (cache->garbage_count > 0) {
        char name[STATEMENT_NAME_SIZE];
        char sql[STATEMENT_NAME_SIZE + 16];

        statement_name(cache->garbage[--cache->garbage_count], name);
        snprintf(sql, sizeof sql, "DEALLOCATE %s", name);
        if (PQsendQueryParams(session->conn, sql, 0, NULL, NULL, NULL, NULL, 0) != 1 ||
            PQpipelineSync(session->conn) != 1)
            return false;
        ++*sent;
    }
    for (int i = 0; i < STATEMENT_CACHE_SIZE; i++)
        cache->places[i].suspect = false;
    return true;
}

static bool receive_garbage(Session *session, int sent, Error *err)
{
    for (int i = 0; i < 2 * sent; i++) {
        PGresult *result;

        if (!pipeline_receive(session, &result, err))
            return false;
        PQclear(result);
    }
    return true;
}

/* One statement's result, and that of preparing it (`preparing` is not 0) by the way. */
static bool receive_statement(Session *session, uint64_t preparing, PGresult **result, Error *err)
{
    PGresult *prepare = NULL;
    bool ok;

    *result = NULL;
    if (preparing != 0 && !pipeline_receive(session, &prepare, err))
        return false;
    ok = pipeline_receive(session, result, err);
    if (ok && prepare != NULL && PQresultStatus(prepare) != PGRES_COMMAND_OK) {
        note_not_prepared(session, preparing);
        /* The statement's own fault (its syntax, say) shows when it is parsed. */
        if (PQresultStatus(prepare) == PGRES_FATAL_ERROR) {
            PQclear(*result);
            *result = prepare;
            prepare = NULL;
        }
    }
    PQclear(prepare);
    return ok;
}

static bool receive_sync(Session *session, Error *err)
{
    PGresult *sync;
    bool ok = pipeline_receive(session, &sync, err);

    PQclear(sync);
    return ok;
}

static bool pipeline_read(Session *session, const Statement *statements, int count,
                          const uint64_t *preparing, PGresult **results, Error *err)
{
    bool ok = true;
    Error first;

    for (int i = 0; i < count; i++) {
        if (!receive_statement(session, preparing[i], &results[i], err))
            return false;
        if (PQresultStatus(results[i]) != PGRES_PIPELINE_ABORTED && ok &&
            !exchange_check(session, results[i], statements[i].sql, &first)) {
            ok = false;
            *err = first;
        }
        if (session->lost)
            return false;
        if ((statements[i].sync || i == count - 1) && !receive_sync(session, err))
            return false;
    }
    return ok;
}

static bool receive_ahead_one(Session *session, const SentAhead *sent, Error *err)
{
    PGresult *result;
    Error own;
    bool ok = receive_statement(session, sent->preparing, &result, err) &&
              receive_sync(session, err);

    if (ok && !exchange_check(session, result, NULL, &own)) {
        if (session->lost) {
            *err = own;
            ok = false;
        } else if (session->cancelled && strcmp(own.sqlstate, "57014") == 0) {
            ok = cancel_or_give_up(session, err); /* it was meant for what comes behind */
        }
    }
    if (ok)
        sent->done(sent->context, result);
    PQclear(result);
    return ok;
}

/* Read the replies to what was sent ahead. Where the session is lost, some are left. */
static bool receive_ahead(Session *session, Error *err)
{
    int count = session->ahead_count;
    int i = 0;

    while (i < count && receive_ahead_one(session, &session->ahead[i], err))
        i++;
    memmove(session->ahead, session->ahead + i, (size_t)(count - i) * sizeof *session->ahead);
    session->ahead_count = count - i;
    return i == count;
}

/* The session is entered. */
static bool run_pipeline(Session *session, const Statement *statements, int count,
                         PGresult **results, Error *err)
{
    uint64_t local[PIPELINE_LOCAL];
    uint64_t *preparing = count <= PIPELINE_LOCAL ? local : calloc((size_t)count, sizeof *preparing);
    int garbage;
    bool ok = false;

    for (int i = 0; i < count; i++)
        results[i] = NULL;
    if (preparing == NULL)
        return error_set(err, ERROR_SQL, "out of memory");
    if (PQenterPipelineMode(session->conn) != 1 || !send_garbage(session, &garbage))
        goto broke;
    for (int i = 0; i < count; i++) {
        if (!pipeline_send(session, &statements[i], &preparing[i]) ||
            ((statements[i].sync || i == count - 1) && PQpipelineSync(session->conn) != 1))
            goto broke;
    }
    ok = receive_ahead(session, err) && receive_garbage(session, garbage, err) &&
         pipeline_read(session, statements, count, preparing, results, err);
    if (!session->lost && PQexitPipelineMode(session->conn) != 1)
        ok = exchange_broke(session, err);
    goto out;
broke:
    exchange_broke(session, err);
out:
    if (preparing != local)
        free(preparing);
    return ok;
}

/* The session is entered: out of pipeline mode with it. */
static bool settle(Session *session, Error *err)
{
    if (session->ahead_count == 0)
        return true;
    if (!receive_ahead(session, err))
        return false;
    return PQexitPipelineMode(session->conn) == 1 || exchange_broke(session, err);
}

bool exchange_enter(Session *session, SessionActivity activity, WaitMode mode, Error *err)
{
    bool ok;

    if (!enter(session, activity, mode, err))
        return false;
    if (session->ahead_count == 0)
        return true;
    session->mode = WAIT_CLEANUP;
    ok = settle(session, err);
    session->mode = mode;
    session->deadline_us = CLOCK_NEVER;
    if (ok && mode == WAIT_NORMAL && wait_is_interrupted())
        ok = wait_interrupted_error(err);
    if (!ok)
        exchange_leave(session);
    return ok;
}

bool session_settle(Session *session, Error *err)
{
    bool ok;

    if (session->ahead_count == 0)
        return true;
    if (!enter(session, SESSION_BUSY, WAIT_CLEANUP, err))
        return false;
    session->deadline_us = clock_deadline(ENDING_BOUND_US);
    ok = settle(session, err);
    exchange_leave(session);
    return ok;
}

bool session_send_ahead(Session *session, const Statement *statement, StatementDone *done,
                        void *context, Error *err)
{
    SentAhead *sent;
    bool ok;

    if (session->ahead_count == SESSION_AHEAD_MAX && !session_settle(session, err))
        return false;
    if (!enter(session, SESSION_BUSY, WAIT_CLEANUP, err))
        return false;
    sent = &session->ahead[session->ahead_count];
    *sent = (SentAhead){.done = done, .context = context};
    ok = PQenterPipelineMode(session->conn) == 1 &&
         pipeline_send(session, statement, &sent->preparing) &&
         PQpipelineSync(session->conn) == 1;
    ok = ok ? exchange_flush(session, err) : exchange_broke(session, err);
    if (ok)
        session->ahead_count++;
    exchange_leave(session);
    return ok;
}

void session_owe(Session *session, const Error *err)
{
    if (session->owed.kind == ERROR_NONE)
        session->owed = *err;
    else
        log_write(LOG_ERROR, err->message, NULL);
}

bool session_owes(Session *session, Error *err)
{
    if (session->owed.kind == ERROR_NONE)
        return false;
    *err = session->owed;
    session->owed.kind = ERROR_NONE;
    return true;
}

bool session_pipeline(Session *session, const Statement *statements, int count,
                      PGresult **results, WaitMode mode, Error *err)
{
    bool ok;

    for (int i = 0; i < count; i++)
        results[i] = NULL;
    if (!enter(session, SESSION_BUSY, mode, err))
        return false;
    ok = run_pipeline(session, statements, count, results, err);
    exchange_leave(session);
    return ok;
}

bool session_commands(Session *session, const Statement *statements, int count, WaitMode mode,
                      Error *err)
{
    PGresult *results[SESSION_COMMANDS_MAX];
    bool ok = session_pipeline(session, statements, count, results, mode, err);

    for (int i = 0; i < count; i++)
        PQclear(results[i]);
    return ok;
}

/* One statement's single result, outside pipeline mode, after it was sent. */
static PGresult *receive_single(Session *session, const char *sql, bool sent, Error *err)
{
    PGresult *result;

    if (!sent) {
        exchange_broke(session, err);
        return NULL;
    }
    if (!exchange_wait(session, err) || !exchange_receive(session, &result, err))
        return NULL;
    if (result == NULL || !exchange_check(session, result, sql, err)) {
        PQclear(result);
        result = NULL;
    }
    exchange_drain(session);
    if (session->lost) {
        PQclear(result);
        if (err->kind == ERROR_NONE)
            *err = session->loss;
        return NULL;
    }
    return result;
}

/* Did a prepared statement fail only because it was prepared? Then the text itself may do. */
static bool is_stale(Session *session, CachedStatement *cached, const Error *err, bool was_idle)
{
    bool gone = strcmp(err->sqlstate, "26000") == 0;
    bool outdated = strcmp(err->sqlstate, "0A000") == 0 &&
                    strcmp(err->message, "cached plan must not change result type") == 0;

    if (gone)
        cached->prepared = false;
    else if (outdated)
        statement_cache_suspect(&session->cache, cached);
    return (gone || outdated) && was_idle && !session->lost;
}

/* The session is entered. */
static PGresult *run_single(Session *session, const Statement *statement, Error *err)
{
    bool seen = false;
    bool was_idle = is_idle(session);
    CachedStatement *cached =
        may_prepare(session) ? statement_cache_find(&session->cache, statement, &seen) : NULL;
    bool prepared = cached != NULL && cached->prepared;
    bool piped = session->ahead_count > 0 ||
                 (cached != NULL && !prepared &&
                  ((seen && statement_cache_can_prepare(&session->cache, cached)) ||
                   (was_idle && session->cache.garbage_count > 0)));
    PGresult *result;

    if (piped) {
        if (run_pipeline(session, statement, 1, &result, err))
            return result;
        PQclear(result);
    } else if (prepared) {
        result = receive_single(session, statement->sql,
                                send_prepared(session, statement, cached->name), err);
        if (result != NULL)
            return result;
    }
    if ((piped || prepared) && !(prepared && is_stale(session, cached, err, was_idle)))
        return NULL;
    return receive_single(session, statement->sql, exchange_send(session, statement), err);
}

PGresult *session_query(Session *session, const Statement *statement, WaitMode mode, Error *err)
{
    PGresult *result;

    /* A user's own statement may be one that can't be in a pipeline, such as COPY. */
    if (!(statement->constant ? enter : exchange_enter)(session, SESSION_BUSY, mode, err))
        return NULL;
    result = run_single(session, statement, err);
    exchange_leave(session);
    return result;
}

static PGresult *script_in_mode(Session *session, const char *sql, WaitMode mode, Error *err)
{
    PGresult *last = NULL;
    PGresult *result = NULL;
    Error first;
    bool ok = true;

    if (!exchange_enter(session, SESSION_BUSY, mode, err))
        return NULL;
    if (PQsendQuery(session->conn, sql) != 1)
        ok = exchange_broke(session, err);
    while (ok && exchange_receive(session, &result, err) && result != NULL) {
        if (!exchange_check(session, result, sql, &first)) {
            ok = false;
            *err = first;
            PQclear(result);
            exchange_drain(session);
            break;
        }
        PQclear(last);
        last = result;
    }
    if (ok && last == NULL && !session->lost)
        ok = error_usage(err, "the statement is empty");
    if (!ok || session->lost) {
        PQclear(last);
        last = NULL;
    }
    exchange_leave(session);
    return last;
}

PGresult *session_script(Session *session, const char *sql, Error *err)
{
    return script_in_mode(session, sql, WAIT_NORMAL, err);
}

bool session_run(Session *session, const char *sql, WaitMode mode, Error *err)
{
    PGresult *result = script_in_mode(session, sql, mode, err);

    PQclear(result);
    return result != NULL;
}

PGresult *session_describe(Session *session, const Statement *statement, Error *err)
{
    PGresult *results[3] = {NULL, NULL, NULL}; /* prepare, describe, sync */
    bool ok = false;

    if (!exchange_enter(session, SESSION_BUSY, WAIT_NORMAL, err))
        return NULL;
    if (PQenterPipelineMode(session->conn) != 1 ||
        PQsendPrepare(session->conn, "", statement->sql, statement->count, statement->types) != 1 ||
        PQsendDescribePrepared(session->conn, "") != 1 || PQpipelineSync(session->conn) != 1) {
        exchange_broke(session, err);
        goto out;
    }
    for (int i = 0; i < 3; i++) {
        if (!pipeline_receive(session, &results[i], err))
            goto out;
    }
    PQexitPipelineMode(session->conn);
    ok = exchange_check(session, results[0], statement->sql, err);
    if (ok && PQnparams(results[1]) != statement->count)
        ok = error_usage(err, "the statement has %d parameters, but %d values were given",
                         PQnparams(results[1]), statement->count);
out:
    exchange_leave(session);
    PQclear(results[0]);
    PQclear(results[2]);
    if (ok)
        return results[1];
    PQclear(results[1]);
    return NULL;
}

bool session_heartbeat(Session *session, int64_t within_us, Error *err)
{
    static const Statement BEAT = {.sql = "SELECT pg_catalog.pg_backend_pid()", .unprepared = true};
    PGresult *result;
    bool same = false;

    if (!enter(session, SESSION_BUSY, WAIT_CLEANUP, err))
        return false;
    session->deadline_us = clock_deadline(within_us);
    result = settle(session, err)
                 ? receive_single(session, BEAT.sql, exchange_send(session, &BEAT), err)
                 : NULL;
    if (result != NULL) {
        same = strtol(PQgetvalue(result, 0, 0), NULL, 10) == session->pid;
        if (!same) {
            error_set(err, ERROR_CONNECTION, "a pooler gave the session to another client");
            make_lost(session, err);
        }
        PQclear(result);
    }
    exchange_leave(session);
    return same;
}
