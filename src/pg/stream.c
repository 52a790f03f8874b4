#include "pg/exchange.h"

#include <stdlib.h>
#include <string.h>

bool session_stream(Session *session, const Statement *statement, Error *err)
{
    if (!exchange_enter(session, SESSION_STREAMS, WAIT_NORMAL, err))
        return false;
    if (exchange_send(session, statement) && PQsetSingleRowMode(session->conn) == 1)
        return true;
    exchange_broke(session, err);
    exchange_leave(session);
    return false;
}

PGresult *session_stream_next(Session *session, bool *done, Error *err)
{
    PGresult *result;

    *done = false;
    if (session->activity != SESSION_STREAMS) {
        *done = true;
        return NULL;
    }
    if (exchange_receive(session, &result, err)) {
        if (result != NULL && PQresultStatus(result) == PGRES_SINGLE_TUPLE)
            return result;
        /* The last result tells the end, a command without rows, or an error. */
        *done = result == NULL || exchange_check(session, result, NULL, err);
        PQclear(result);
        exchange_drain(session);
    }
    exchange_leave(session);
    return NULL;
}

static bool start_copy(Session *session, const char *sql, SessionActivity direction, Error *err)
{
    PGresult *result = NULL;
    bool in = direction == SESSION_COPIES_IN;
    ExecStatusType status;

    if (!exchange_enter(session, direction, WAIT_NORMAL, err))
        return false;
    if (PQsendQuery(session->conn, sql) != 1) {
        exchange_broke(session, err);
        goto failed;
    }
    if (!exchange_receive(session, &result, err))
        goto failed;
    status = PQresultStatus(result);
    if (status == (in ? PGRES_COPY_IN : PGRES_COPY_OUT)) {
        PQclear(result);
        return true;
    }
    if (status == PGRES_FATAL_ERROR)
        exchange_check(session, result, sql, err);
    else
        error_usage(err, "the statement is not a COPY … %s", in ? "FROM STDIN" : "TO STDOUT");
    exchange_drain(session);
failed:
    PQclear(result);
    exchange_leave(session);
    return false;
}

bool session_copy_in(Session *session, const char *sql, Error *err)
{
    return start_copy(session, sql, SESSION_COPIES_IN, err);
}

bool session_copy_out(Session *session, const char *sql, Error *err)
{
    return start_copy(session, sql, SESSION_COPIES_OUT, err);
}

bool session_copy_put(Session *session, const char *data, size_t length, Error *err)
{
    enum { PIECE = 1 << 20 };

    while (length > 0) {
        int piece = length > PIECE ? PIECE : (int)length;
        int sent = PQputCopyData(session->conn, data, piece);

        if (sent < 0)
            return exchange_broke(session, err);
        if (sent > 0) {
            data += piece;
            length -= (size_t)piece;
        }
        if (!exchange_flush(session, err))
            return false;
    }
    return true;
}

char *session_copy_get(Session *session, size_t *length, Error *err)
{
    char *data = NULL;
    int got;

    error_clear(err);
    while ((got = PQgetCopyData(session->conn, &data, 1)) == 0) {
        if (!exchange_wait(session, err))
            return NULL;
    }
    if (got > 0) {
        *length = (size_t)got;
        return data;
    }
    return NULL; /* the end, or an error that session_copy_end reads */
}

/* Read the result of what was copied in. */
static bool end_copy_in(Session *session, const char *abort, int64_t *rows, Error *err)
{
    PGresult *result = NULL;
    bool ok;

    while (PQputCopyEnd(session->conn, abort) == 0) {
        if (!exchange_flush(session, err))
            return false;
    }
    if (!exchange_receive(session, &result, err))
        return false;
    ok = exchange_check(session, result, NULL, err);
    if (ok)
        *rows = strtoll(PQcmdTuples(result), NULL, 10);
    PQclear(result);
    return ok;
}

/* The same of what was copied out, of which more may be on its way. */
static bool end_copy_out(Session *session, int64_t *rows, Error *err)
{
    PGresult *result = NULL;
    bool ok;

    if (!exchange_receive(session, &result, err))
        return false;
    ok = PQresultStatus(result) == PGRES_COPY_OUT || exchange_check(session, result, NULL, err);
    if (ok && PQresultStatus(result) == PGRES_COMMAND_OK)
        *rows = strtoll(PQcmdTuples(result), NULL, 10);
    PQclear(result);
    return ok;
}

bool session_copy_end(Session *session, const char *abort, int64_t *rows, Error *err)
{
    bool ok = false;

    *rows = 0;
    error_clear(err);
    if (session->lost) {
        *err = session->loss;
    } else {
        ok = session->activity == SESSION_COPIES_IN ? end_copy_in(session, abort, rows, err)
                                                    : end_copy_out(session, rows, err);
        exchange_drain(session);
        if (ok && session->lost) {
            *err = session->loss;
            ok = false;
        }
    }
    exchange_leave(session);
    return ok;
}

bool session_is_in_use(const Session *session, uint64_t use)
{
    return session->activity != SESSION_FREE && session->uses == use;
}

void session_abandon(Session *session)
{
    int64_t rows;
    Error ignored;

    switch (session->activity) {
    case SESSION_STREAMS:
        exchange_drain(session);
        exchange_leave(session);
        break;
    case SESSION_COPIES_IN:
    case SESSION_COPIES_OUT:
        session_copy_end(session, "the copy was left before its end", &rows, &ignored);
        break;
    default:
        break;
    }
}

PGnotify *session_notification(Session *session, int64_t deadline_us, Error *err)
{
    PGnotify *notification = NULL;

    if (!exchange_enter(session, SESSION_BUSY, WAIT_NORMAL, err))
        return NULL;
    while ((notification = PQnotifies(session->conn)) == NULL) {
        struct pollfd socket = {.fd = PQsocket(session->conn), .events = POLLIN};
        WaitEnd end = wait_for(&socket, 1, deadline_us, WAIT_NORMAL);

        if (end == WAIT_DEADLINE)
            break;
        if (end == WAIT_INTERRUPTED) {
            wait_interrupted_error(err);
            break;
        }
        if (PQconsumeInput(session->conn) == 0) {
            exchange_broke(session, err);
            break;
        }
    }
    exchange_leave(session);
    return notification;
}
