#include "pg/exchange.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCKS_MAX = sizeof((Session *)0)->transactions / sizeof((Session *)0)->transactions[0],
    DEFERRED_VALUES = 2,
    TRIES = 1000, /* of what another session's pg_cancel_backend may hit, and which must be done */
};

/* ---- blocks ---------------------------------------------------------------------------------- */

/* The savepoint of a block; also what the statements that end it begin with. */
static void block_sql(char *sql, size_t size, const char *verb, uint64_t serial)
{
    snprintf(sql, size, "%s lockkeeper_%" PRIu64, verb, serial);
}

static int block_depth(const Session *session, uint64_t serial)
{
    for (int i = 0; i < session->depth; i++) {
        if (session->transactions[i] == serial)
            return i;
    }
    return -1;
}

bool session_block_is_open(const Session *session, uint64_t serial)
{
    return block_depth(session, serial) >= 0;
}

bool session_begin(Session *session, const char *options, uint64_t *serial, Error *err)
{
    uint64_t number = ++session->serials;
    bool nested = session_transaction(session) != PQTRANS_IDLE;
    char sql[256];
    Error ignored;

    if (session->depth >= BLOCKS_MAX)
        return error_usage(err, "transactions are nested deeper than %d", BLOCKS_MAX);
    if (nested && options[0] != '\0')
        return error_usage(err, "a transaction is open: isolation, read_only and deferrable belong "
                                "to the outermost one");
    if (nested)
        block_sql(sql, sizeof sql, "SAVEPOINT", number);
    else
        snprintf(sql, sizeof sql, "BEGIN %s", options);
    if (!session_run(session, sql, WAIT_NORMAL, err))
        return false;
    session->transactions[session->depth] = number;
    session->savepoints[session->depth++] = nested;
    *serial = number;
    if (!session_owes(session, err))
        return true;
    session_rollback(session, number, &ignored);
    return false;
}

static bool already_over(Error *err)
{
    return error_usage(err, "the transaction is already over");
}

/* One try: ROLLBACK, or ROLLBACK TO and RELEASE. */
static bool roll_back(Session *session, uint64_t serial, bool savepoint, Error *err)
{
    char rollback[64];
    char release[64];

    if (!savepoint)
        return session_run(session, "ROLLBACK", WAIT_CLEANUP, err);
    block_sql(rollback, sizeof rollback, "ROLLBACK TO", serial);
    block_sql(release, sizeof release, "RELEASE", serial);
    return session_run(session, rollback, WAIT_CLEANUP, err) &&
           session_run(session, release, WAIT_CLEANUP, err);
}

bool session_rollback(Session *session, uint64_t serial, Error *err)
{
    int depth = block_depth(session, serial);

    if (depth < 0)
        return already_over(err);
    session_abandon(session);
    session->depth = depth; /* whatever comes: nobody can do more to this block */
    for (int tries = 1; tries <= TRIES; tries++) {
        if (roll_back(session, serial, session->savepoints[depth], err))
            return true;
        /* Another session's pg_cancel_backend may hit even this, and would leave it undone. */
        if (session->lost || strcmp(err->sqlstate, "57014") != 0)
            return false;
    }
    return false;
}

bool session_commit(Session *session, uint64_t serial, Error *err)
{
    int depth = block_depth(session, serial);
    char release[64];

    if (depth < 0)
        return already_over(err);
    if (session_transaction(session) == PQTRANS_INERROR) {
        if (!session_rollback(session, serial, err))
            return false;
        error_set(err, ERROR_SQL, "the transaction had failed: it was rolled back, not committed");
        text_copy(err->sqlstate, sizeof err->sqlstate, "25P02");
        return false;
    }
    if (!session->savepoints[depth]) {
        if (!session_run(session, "COMMIT", WAIT_NORMAL, err))
            return false;
        session->depth = 0;
        return true;
    }
    block_sql(release, sizeof release, "RELEASE", serial);
    if (!session_run(session, release, WAIT_NORMAL, err))
        return false;
    session->depth = depth;
    return true;
}

/* ---- what must wait for the transaction ------------------------------------------------------- */

struct Deferred {
    struct Deferred *next;
    DeferUntil until;
    int tries;
    const char *sql;
    int count;
    Oid types[DEFERRED_VALUES];
    char *values[DEFERRED_VALUES]; /* owned */
    int lengths[DEFERRED_VALUES], formats[DEFERRED_VALUES];
    StatementDone *done;
    void *context;
};

static bool can_run(const Session *session, const Deferred *deferred)
{
    switch (session_transaction(session)) {
    case PQTRANS_IDLE:
        return true;
    case PQTRANS_INTRANS:
        return deferred->until == DEFER_USABLE;
    default:
        return false;
    }
}

static void deferred_free(Deferred *deferred)
{
    for (int i = 0; i < deferred->count; i++)
        free(deferred->values[i]);
    free(deferred);
}

static void append(Session *session, Deferred *deferred)
{
    Deferred **end = &session->deferred;

    while (*end != NULL)
        end = &(*end)->next;
    deferred->next = NULL;
    *end = deferred;
}

static void run_one(Session *session, Deferred *deferred)
{
    Statement statement = {
        .sql = deferred->sql,
        .count = deferred->count,
        .types = deferred->types,
        .values = (const char *const *)deferred->values,
        .lengths = deferred->lengths,
        .formats = deferred->formats,
        .unprepared = true,
    };
    Error err;
    PGresult *result = session_query(session, &statement, WAIT_CLEANUP, &err);

    if (result == NULL && !session->lost && strcmp(err.sqlstate, "57014") == 0 &&
        ++deferred->tries < TRIES) {
        append(session, deferred);
        return;
    }
    if (result == NULL)
        log_printf(LOG_WARNING, "what had to wait for the end of the transaction failed: %s",
                   err.message);
    deferred->done(deferred->context, result);
    PQclear(result);
    deferred_free(deferred);
}

static bool copy_value(Deferred *deferred, int i, const Statement *statement)
{
    bool binary = statement->formats != NULL && statement->formats[i] != 0;
    size_t size = binary ? (size_t)statement->lengths[i] : strlen(statement->values[i]) + 1;

    deferred->types[i] = statement->types[i];
    deferred->formats[i] = binary;
    deferred->lengths[i] = (int)size;
    deferred->values[i] = malloc(size);
    if (deferred->values[i] != NULL)
        memcpy(deferred->values[i], statement->values[i], size);
    return deferred->values[i] != NULL;
}

bool session_defer(Session *session, DeferUntil until, const Statement *statement,
                   StatementDone *done, void *context)
{
    Deferred *deferred = calloc(1, sizeof *deferred);

    if (deferred == NULL)
        return false;
    deferred->until = until;
    deferred->sql = statement->sql;
    deferred->count = statement->count;
    deferred->done = done;
    deferred->context = context;
    for (int i = 0; i < deferred->count; i++) {
        if (!copy_value(deferred, i, statement)) {
            deferred_free(deferred);
            return false;
        }
    }
    append(session, deferred);
    if (session->activity == SESSION_FREE)
        deferred_run(session);
    return true;
}

void deferred_run(Session *session)
{
    Deferred **place = &session->deferred;

    if (session->deferring) /* run_one's own exchange ends here too */
        return;
    session->deferring = true;
    while (*place != NULL) {
        Deferred *deferred = *place;

        if (session->lost || !can_run(session, deferred)) {
            place = &deferred->next;
            continue;
        }
        *place = deferred->next;
        run_one(session, deferred);
        place = &session->deferred; /* it may have changed the list */
    }
    session->deferring = false;
    if (session->lost)
        deferred_drop(session);
}

void deferred_drop(Session *session)
{
    for (int i = 0; i < session->ahead_count; i++)
        session->ahead[i].done(session->ahead[i].context, NULL);
    session->ahead_count = 0;
    while (session->deferred != NULL && !session->deferring) {
        Deferred *deferred = session->deferred;

        session->deferred = deferred->next;
        deferred->done(deferred->context, NULL);
        deferred_free(deferred);
    }
}
