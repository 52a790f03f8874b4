#include "locks/advisory.h"

#include "base/duration.h"
#include "base/log.h"
#include "locks/all.h"

#include <endian.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- SQL ------------------------------------------------------------------------------------- */

/*
 * Every statement for one kind of lock. Each answers with one row, without columns, for yes and
 * none for no: the server then has no column to describe, which it would do again each time.
 */
typedef struct {
    const char *try;     /* $1 [, $2]: was it had? */
    const char *wait;    /* the same: was there a wait? */
    const char *timed;   /* …, last parameter: lock_timeout in ms */
    const char *release; /* was it held? */
    const char *held;    /* does this session hold it? */
    const char *drop;    /* release it, if this session holds it */
} AdvisorySql;

/*
 * lock_timeout is touched only when there is a wait, and for the statement's own transaction, so
 * that it undoes itself on success and on error.
 */
#define TRY_CALL(f, args)  "pg_catalog.pg_try_advisory_" f "(" args ")"
#define WAIT_CALL(f, args)                                                                         \
    "pg_catalog.pg_advisory_" f "(" args ")::pg_catalog.text OPERATOR(pg_catalog.=) ''"
#define TRY_SQL(f, args) "SELECT WHERE " TRY_CALL(f, args)
#define WAIT_SQL(f, args)                                                                          \
    "SELECT WHERE CASE WHEN " TRY_CALL(f, args) " THEN false ELSE " WAIT_CALL(f, args) " END"
#define TIMED_SQL(f, args, ms)                                                                     \
    "SELECT WHERE CASE WHEN " TRY_CALL(f, args) " THEN false"                                      \
    " WHEN pg_catalog.set_config('lock_timeout', " ms ", true) IS NOT NULL"                        \
    " THEN " WAIT_CALL(f, args) " END"

/*
 * A transaction-level lock would go with the savepoint that undoes a setting, so the value before
 * is kept beside and set again. (The failed case is undone by the savepoint.)
 */
#define TIMED_XACT_SQL(f, args, ms)                                                                \
    "SELECT WHERE CASE WHEN " TRY_CALL(f, args) " THEN false"                                      \
    " WHEN pg_catalog.set_config('lockkeeper.lock_timeout',"                                       \
    " pg_catalog.current_setting('lock_timeout'), true) IS NULL"                                   \
    " OR pg_catalog.set_config('lock_timeout', " ms ", true) IS NULL THEN NULL"                    \
    " WHEN " WAIT_CALL(f, args) " THEN pg_catalog.set_config('lock_timeout',"                      \
    " pg_catalog.current_setting('lockkeeper.lock_timeout'), true) IS NOT NULL END"

/* A key in pg_locks: unsigned halves, and what tells a bigint from a pair. */
#define UNSIGNED(half) "((" half ")::pg_catalog.int8 OPERATOR(pg_catalog.&) 4294967295)"
#define KEY_IS(high, low, objsubid)                                                                \
    " AND l.classid::pg_catalog.int8 OPERATOR(pg_catalog.=) " UNSIGNED(high)                       \
    " AND l.objid::pg_catalog.int8 OPERATOR(pg_catalog.=) " UNSIGNED(low)                          \
    " AND l.objsubid OPERATOR(pg_catalog.=) " objsubid "::pg_catalog.int2"
#define BIGINT_IS KEY_IS("$1 OPERATOR(pg_catalog.>>) 32", "$1", "1")
#define PAIR_IS   KEY_IS("$1", "$2", "2")
#define HELD_SQL(what, mode, key_is)                                                               \
    "SELECT " what " FROM pg_catalog.pg_locks l"                                                   \
    " WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory'"                                          \
    " AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND l.granted"                  \
    " AND l.mode OPERATOR(pg_catalog.=) '" mode "Lock'" key_is " LIMIT 1"

#define UNLOCK(suffix, args) "pg_catalog.pg_advisory_unlock" suffix "(" args ")"
#define SESSION_ROW(suffix, args, ms, mode, key_is)                                                \
    {TRY_SQL("lock" suffix, args), WAIT_SQL("lock" suffix, args),                                  \
     TIMED_SQL("lock" suffix, args, ms), "SELECT WHERE " UNLOCK(suffix, args),                     \
     HELD_SQL("", mode, key_is), HELD_SQL(UNLOCK(suffix, args), mode, key_is)}
#define XACT_ROW(suffix, args, ms, mode, key_is)                                                   \
    {TRY_SQL("xact_lock" suffix, args), WAIT_SQL("xact_lock" suffix, args),                        \
     TIMED_XACT_SQL("xact_lock" suffix, args, ms), NULL, HELD_SQL("", mode, key_is), NULL}
#define ROWS(ROW)                                                                                  \
    {{ROW("", "$1", "$2", "Exclusive", BIGINT_IS), ROW("", "$1, $2", "$3", "Exclusive", PAIR_IS)}, \
     {ROW("_shared", "$1", "$2", "Share", BIGINT_IS),                                              \
      ROW("_shared", "$1, $2", "$3", "Share", PAIR_IS)}}

/* [xact][shared][pair] */
static const AdvisorySql SQL[2][2][2] = {ROWS(SESSION_ROW), ROWS(XACT_ROW)};

static const char LOCK_TIMEOUT_MS_SQL[] =
    "SELECT (1000 OPERATOR(pg_catalog.*) EXTRACT(epoch FROM"
    " pg_catalog.current_setting('lock_timeout')::pg_catalog.interval))::pg_catalog.int8";

static const char RECOVERY_SQL[] = "SELECT pg_catalog.pg_is_in_recovery()";

static const char ADVISORY[] = "advisory lock";

/*
 * A lock on its session's list. Never freed, only used again, under another serial number: so a
 * guard that outlives what it held can tell, and acquiring allocates nothing.
 */
typedef struct AdvisoryHold {
    SessionHold base; /* first: the list's elements */
    LockKey key;
    bool shared;
    bool leaving; /* its release was sent */
    uint64_t serial;
    struct AdvisoryHold *next_free;
} AdvisoryHold;

static AdvisoryHold *free_holds;

static void hold_gone(SessionHold *base)
{
    AdvisoryHold *hold = (AdvisoryHold *)base;

    hold->serial++;
    hold->next_free = free_holds;
    free_holds = hold;
}

/* NULL where memory ran out. */
static AdvisoryHold *new_hold(void)
{
    AdvisoryHold *hold = free_holds;

    if (hold == NULL)
        return calloc(1, sizeof *hold);
    free_holds = hold->next_free;
    return hold;
}

/* The session whose list it is on, or NULL. */
static Session *session_of(const AdvisoryLock *lock)
{
    return lock->hold->serial == lock->serial ? lock->hold->base.session : NULL;
}

bool advisory_on_list(const AdvisoryLock *lock)
{
    return !lock->released && session_of(lock) != NULL;
}

/* oids of pg_type, which never change */
enum { OID_INT8 = 20, OID_INT4 = 23, OID_TEXT = 25 };

static bool says_yes(const PGresult *result)
{
    return PQntuples(result) == 1;
}

static const AdvisorySql *sql_for(const LockKey *key, bool shared, bool xact)
{
    return &SQL[xact][shared][key->pair];
}

/*
 * A key and perhaps a timeout, as parameters; lives as long as the statement that uses it. The key
 * goes in binary format, which costs both ends less.
 */
typedef struct {
    union {
        uint64_t bigint;
        uint32_t pair[2];
    } key;
    const char *values[3];
    int lengths[3];
    int formats[3];
    Oid types[3];
    int count;
} KeyParameters;

static void add_parameter(KeyParameters *p, Oid type, const void *value, int length)
{
    p->types[p->count] = type;
    p->values[p->count] = value;
    p->lengths[p->count] = length;
    p->formats[p->count++] = length > 0; /* of a text the length does not count */
}

static void key_parameters(KeyParameters *p, const LockKey *key, const char *timeout)
{
    p->count = 0;
    if (key->pair) {
        p->key.pair[0] = htobe32((uint32_t)key->first);
        p->key.pair[1] = htobe32((uint32_t)key->second);
        add_parameter(p, OID_INT4, &p->key.pair[0], sizeof p->key.pair[0]);
        add_parameter(p, OID_INT4, &p->key.pair[1], sizeof p->key.pair[1]);
    } else {
        p->key.bigint = htobe64((uint64_t)key->key);
        add_parameter(p, OID_INT8, &p->key.bigint, sizeof p->key.bigint);
    }
    if (timeout != NULL)
        add_parameter(p, OID_TEXT, timeout, 0);
}

static Statement key_statement(const char *sql, const KeyParameters *p, bool unprepared)
{
    return (Statement){.sql = sql,
                       .count = p->count,
                       .types = p->types,
                       .values = p->values,
                       .lengths = p->lengths,
                       .formats = p->formats,
                       .unprepared = unprepared,
                       .constant = true};
}

/* A failed transaction, rows that are streamed and a COPY leave no room for a statement. */
static bool must_wait(const Session *session)
{
    PGTransactionStatusType status = session_transaction(session);

    return status == PQTRANS_INERROR || status == PQTRANS_ACTIVE;
}

/* session_defer, which copies texts. */
static bool defer_key_statement(Session *session, const char *sql, const LockKey *key,
                                void (*done)(void *context, const PGresult *result), void *context)
{
    char texts[2][TEXT_INTEGER_SIZE];
    const char *values[2] = {
        text_integer(texts[0], key->pair ? key->first : key->key),
        text_integer(texts[1], key->second),
    };
    Statement statement = {
        .sql = sql,
        .count = key->pair ? 2 : 1,
        .types = key->pair ? (const Oid[]){OID_INT4, OID_INT4} : (const Oid[]){OID_INT8},
        .values = values,
    };

    return session_defer(session, DEFER_USABLE, &statement, done, context);
}

/* ---- acquiring ------------------------------------------------------------------------------- */

static bool not_acquired(const AdvisoryRequest *request, Error *err)
{
    return error_set(err, ERROR_NOT_ACQUIRED, "lock %s is held by another session", request->name);
}

/* Has the standby become a primary since we asked? */
static bool check_recovery(Session *session, Error *err)
{
    PGresult *result;

    if (!session->in_recovery)
        return true;
    result = session_query(session, &(Statement){.sql = RECOVERY_SQL}, WAIT_NORMAL, err);
    if (result == NULL)
        return false;
    session->in_recovery = PQgetvalue(result, 0, 0)[0] == 't';
    PQclear(result);
    if (!session->in_recovery)
        return true;
    error_usage(err, "a session-level lock is refused here: the server is in recovery");
    return error_hint(err, "A standby would grant a key that another session holds on the primary. "
                           "Connect to the primary (target_session_attrs=read-write).");
}

bool advisory_check_session(Session *session, bool xact, Error *err)
{
    if (!session_open(session, err))
        return false;
    if (xact) {
        if (session_transaction(session) == PQTRANS_IDLE)
            return error_usage(err, "a transaction-level lock needs an open transaction");
        return true;
    }
    if (!session_keeps_state(session)) {
        error_usage(err, "a session-level lock is refused here: a pooler stands between, which may "
                         "give the session, and the lock with it, to another client");
        return error_hint(err, "Connect to PostgreSQL itself, take the lock with xact = true, or "
                               "say pooler = \"session\" if the pooler keeps a session for a "
                               "client (pool_mode = session).");
    }
    return check_recovery(session, err);
}

/* Outside a transaction, or a try inside one: nothing has to be undone. */
static bool acquire_plain(Session *session, const char *sql, const KeyParameters *p,
                          bool unprepared, bool *answer, Error *err)
{
    Statement statement = key_statement(sql, p, unprepared);
    PGresult *result = session_query(session, &statement, WAIT_NORMAL, err);

    if (result == NULL)
        return false;
    *answer = says_yes(result);
    PQclear(result);
    return true;
}

static const Statement SAVEPOINT = {.sql = "SAVEPOINT lockkeeper_lock", .unprepared = true};
static const Statement ROLLBACK_TO = {.sql = "ROLLBACK TO lockkeeper_lock", .unprepared = true};
static const Statement RELEASE = {.sql = "RELEASE lockkeeper_lock", .unprepared = true};

/* A session-level lock survives the rollback that undoes the setting and a failure alike. */
static bool acquire_in_savepoint(Session *session, const char *sql, const KeyParameters *p,
                                 bool *answer, Error *err)
{
    Statement statements[] = {SAVEPOINT, key_statement(sql, p, true), ROLLBACK_TO, RELEASE};
    PGresult *results[4];
    bool ok;

    statements[1].sync = true;
    ok = session_pipeline(session, statements, 4, results, WAIT_NORMAL, err);
    if (ok)
        *answer = says_yes(results[1]);
    for (int i = 0; i < 4; i++)
        PQclear(results[i]);
    return ok;
}

/* A transaction-level lock would not: roll back only where it was not had. */
static bool acquire_xact(Session *session, const char *sql, const KeyParameters *p, bool *answer,
                         Error *err)
{
    Statement statements[] = {SAVEPOINT, key_statement(sql, p, true), RELEASE};
    PGresult *results[3];
    bool ok = session_pipeline(session, statements, 3, results, WAIT_NORMAL, err);

    if (ok)
        *answer = says_yes(results[1]);
    for (int i = 0; i < 3; i++)
        PQclear(results[i]);
    if (!ok && !session->lost && session_transaction(session) == PQTRANS_INERROR) {
        Error ignored;

        session_commands(session, (Statement[]){ROLLBACK_TO, RELEASE}, 2, WAIT_CLEANUP, &ignored);
    }
    return ok;
}

/* Wait inside the server. *waited: did it have to? */
static bool acquire_waiting(Session *session, const AdvisoryRequest *request, bool *waited,
                            Error *err)
{
    const AdvisorySql *sql = sql_for(&request->key, request->shared, request->xact);
    const char *text = request->has_timeout ? sql->timed : sql->wait;
    char timeout[DURATION_SETTING_SIZE];
    KeyParameters p;

    if (request->has_timeout &&
        !duration_setting(request->timeout_us, "timeout", timeout, err))
        return false;
    key_parameters(&p, &request->key, request->has_timeout ? timeout : NULL);
    if (session_transaction(session) != PQTRANS_INTRANS)
        return acquire_plain(session, text, &p, false, waited, err);
    return request->xact ? acquire_xact(session, text, &p, waited, err)
                         : acquire_in_savepoint(session, text, &p, waited, err);
}

static bool try_once(Session *session, const AdvisoryRequest *request, bool *had, Error *err)
{
    bool in_transaction = session_transaction(session) != PQTRANS_IDLE;
    KeyParameters p;

    key_parameters(&p, &request->key, NULL);
    return acquire_plain(session, sql_for(&request->key, request->shared, request->xact)->try, &p,
                         in_transaction, had, err);
}

bool advisory_deadline(Session *session, bool has_timeout, int64_t timeout_us,
                       int64_t *deadline_us, Error *err)
{
    PGresult *result;
    int64_t ms;

    if (has_timeout) {
        *deadline_us = clock_deadline(timeout_us);
        return true;
    }
    result = session_query(session, &(Statement){.sql = LOCK_TIMEOUT_MS_SQL, .unprepared = true},
                           WAIT_NORMAL, err);
    if (result == NULL)
        return false;
    ms = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
    *deadline_us = ms == 0 ? CLOCK_NEVER : clock_deadline(ms * 1000);
    PQclear(result);
    return true;
}

/* A fifth more or less, so that pollers drift apart. */
bool advisory_sleep(Session *session, int64_t poll_us, int64_t deadline_us, Error *err)
{
    int64_t jitter = ((int64_t)arc4random_uniform(401) - 200) * (poll_us / 1000);
    int64_t wake_us = poll_us > INT64_MAX / 2 ? CLOCK_NEVER : clock_deadline(poll_us + jitter);
    struct pollfd hangup = {.fd = PQsocket(session->conn), .events = POLLRDHUP};

    if (wake_us > deadline_us)
        wake_us = deadline_us;
    /* A hang-up ends the sleep: the next try finds out what it was. */
    if (wait_for(&hangup, 1, wake_us, WAIT_NORMAL) == WAIT_INTERRUPTED)
        return wait_interrupted_error(err);
    return true;
}

static bool acquire_polling(Session *session, const AdvisoryRequest *request, bool *waited,
                            Error *err)
{
    int64_t deadline_us;
    bool had = false;

    *waited = false;
    if (!advisory_deadline(session, request->has_timeout, request->timeout_us, &deadline_us, err))
        return false;
    for (;;) {
        bool last = clock_monotonic_us() >= deadline_us;

        if (!try_once(session, request, &had, err))
            return false;
        if (had)
            return true;
        if (last)
            break;
        *waited = true;
        if (!advisory_sleep(session, request->poll_us, deadline_us, err))
            return false;
    }
    return error_set(err, ERROR_LOCK_TIMEOUT,
                     "lock %s was not to be had in time: another session holds it", request->name);
}

static bool acquire(Session *session, const AdvisoryRequest *request, bool *waited, Error *err)
{
    bool had;

    if (request->has_timeout && request->timeout_us == 0) {
        *waited = false;
        return try_once(session, request, &had, err) && (had || not_acquired(request, err));
    }
    if (request->poll_us > 0)
        return acquire_polling(session, request, waited, err);
    return acquire_waiting(session, request, waited, err);
}

/* PostgreSQL says only that a statement was cancelled. */
static void name_the_lock(const AdvisoryRequest *request, Error *err)
{
    char message[512];

    if (err->kind != ERROR_LOCK_TIMEOUT || err->sqlstate[0] == '\0')
        return;
    text_copy(message, sizeof message, err->message);
    snprintf(err->message, sizeof err->message, "lock %s was not to be had in time: %s",
             request->name, message);
}

bool advisory_has(Session *session, const LockKey *key, bool shared, bool any_mode)
{
    for (SessionHold *hold = session->holds.next; hold != &session->holds; hold = hold->next) {
        const AdvisoryHold *held = (const AdvisoryHold *)hold;

        if (hold->kind == ADVISORY && !held->leaving && key_equal(&held->key, key) &&
            (any_mode || held->shared == shared))
            return true;
        if (all_hold_includes(hold, key, shared, any_mode))
            return true;
    }
    return false;
}

static void dropped(void *context, const PGresult *result)
{
    (void)context;
    (void)result;
}

/*
 * A timeout or a cancel request may come at the very moment when the lock is granted. PostgreSQL
 * then reports the error, and keeps a session-level lock all the same: nobody would ever release
 * it. A lock that this session held before needs no such care: another hold of it never waits.
 */
static void drop_unreported(Session *session, const AdvisoryRequest *request, const Error *failure)
{
    const char *sql = sql_for(&request->key, request->shared, request->xact)->drop;
    KeyParameters p;
    Statement statement;
    Error ignored;

    if (request->xact || session->lost ||
        advisory_has(session, &request->key, request->shared, false) ||
        (strcmp(failure->sqlstate, "55P03") != 0 && strcmp(failure->sqlstate, "57014") != 0))
        return;
    key_parameters(&p, &request->key, NULL);
    statement = key_statement(sql, &p, session_transaction(session) != PQTRANS_IDLE);
    if (must_wait(session) ||
        !session_commands(session, &statement, 1, WAIT_CLEANUP, &ignored))
        defer_key_statement(session, sql, &request->key, dropped, NULL);
}

bool advisory_take(Session *session, const AdvisoryRequest *request, bool *waited, Error *err)
{
    if (acquire(session, request, waited, err))
        return true;
    drop_unreported(session, request, err);
    name_the_lock(request, err);
    return false;
}

static void put_on_list(Session *session, AdvisoryHold *hold, AdvisoryLock *lock)
{
    hold->base.kind = ADVISORY;
    hold->base.in_transaction = lock->xact;
    hold->base.gone = hold_gone;
    hold->key = lock->key;
    hold->shared = lock->shared;
    hold->leaving = false;
    memcpy(hold->base.name, lock->name, sizeof hold->base.name);
    session_hold(session, &hold->base);
    lock->hold = hold;
    lock->serial = hold->serial;
}

bool advisory_acquire(Session *session, const AdvisoryRequest *request, AdvisoryLock *lock,
                      Error *err)
{
    bool tries = request->has_timeout && request->timeout_us == 0;
    AdvisoryHold *hold;
    int64_t start_us;
    bool waited;
    Error ignored;

    if (!advisory_check_session(session, request->xact, err))
        return false;
    hold = new_hold();
    if (hold == NULL)
        return error_set(err, ERROR_SQL, "out of memory");
    if (log_enabled(LOG_DEBUG) && advisory_has(session, &request->key, false, true))
        log_printf(LOG_DEBUG, "lock %s is already held by this session: it nests", request->name);
    start_us = tries ? 0 : clock_monotonic_us();
    if (!advisory_take(session, request, &waited, err)) {
        hold_gone(&hold->base);
        if (error_is_busy(err)) /* that is an answer: what is owed counts for more */
            session_owes(session, err);
        return false;
    }
    *lock = (AdvisoryLock){
        .key = request->key,
        .shared = request->shared,
        .xact = request->xact,
        .release_ahead = request->release_ahead,
        .waited_s = waited ? (double)(clock_monotonic_us() - start_us) / 1e6 : 0,
        .acquired_at = clock_epoch_s(),
    };
    text_copy(lock->name, sizeof lock->name, request->name);
    put_on_list(session, hold, lock);
    if (!session_owes(session, err))
        return true;
    lock->release_ahead = false;
    if (!lock->xact)
        advisory_release(lock, &ignored);
    return false;
}

/* ---- releasing ------------------------------------------------------------------------------- */

bool advisory_was_lost(const char *name, Error *err)
{
    error_set(err, ERROR_LOCK_LOST, "lock %s was not held any more when it was released", name);
    return error_hint(err, "Something unlocked it in the middle: pg_advisory_unlock_all(), "
                           "DISCARD ALL, or an unlock of the same key.");
}

/* The release that had to wait. */
static void released_late(void *context, const PGresult *result)
{
    AdvisoryHold *hold = context;

    if (result != NULL && !says_yes(result)) {
        Error err;

        advisory_was_lost(hold->base.name, &err);
        log_write(LOG_ERROR, err.message, NULL);
    }
    session_let_go(&hold->base);
}

static void let_go(void *context, const PGresult *result)
{
    AdvisoryHold *hold = context;

    (void)result;
    session_let_go(&hold->base);
}

/*
 * Another session's pg_cancel_backend has hit the release, perhaps when it was done already: then
 * no lock is left to be released, and that is no error. (A lock that nests shows as held anyway.)
 */
static bool release_again(AdvisoryHold *hold)
{
    const AdvisorySql *sql = sql_for(&hold->key, hold->shared, false);
    bool nests;

    hold->leaving = true;
    nests = advisory_has(hold->base.session, &hold->key, hold->shared, false);
    return nests ? defer_key_statement(hold->base.session, sql->release, &hold->key, released_late,
                                       hold)
                 : defer_key_statement(hold->base.session, sql->drop, &hold->key, let_go, hold);
}

static bool release_later(AdvisoryLock *lock, const char *sql, Error *err)
{
    return defer_key_statement(session_of(lock), sql, &lock->key, released_late, lock->hold) ||
           error_set(err, ERROR_SQL, "out of memory");
}

/* The reply to a release that nobody waited for. */
static void released_ahead(void *context, const PGresult *result)
{
    AdvisoryHold *hold = context;
    Error err;

    if (result != NULL && PQresultStatus(result) != PGRES_TUPLES_OK && release_again(hold))
        return;
    if (result != NULL && !says_yes(result)) {
        advisory_was_lost(hold->base.name, &err);
        session_owe(hold->base.session, &err);
    }
    session_let_go(&hold->base);
}

static bool release_ahead(AdvisoryLock *lock, const Statement *statement, Error *err)
{
    Session *session = session_of(lock);
    bool sent;

    lock->hold->leaving = true;
    sent = session_send_ahead(session, statement, released_ahead, lock->hold, err);
    lock->released = sent || session->lost;
    if (!sent && session_of(lock) != NULL) {
        lock->hold->leaving = false;
        if (session->lost)
            session_let_go(&lock->hold->base);
    }
    return sent;
}

bool advisory_release(AdvisoryLock *lock, Error *err)
{
    Session *session = session_of(lock);
    const char *sql = sql_for(&lock->key, lock->shared, false)->release;
    KeyParameters p;
    Statement statement;
    PGresult *result;
    bool held;

    if (lock->released)
        return true;
    if (lock->xact)
        return error_usage(err, "lock %s is transaction-level: it is released when its transaction "
                                "ends", lock->name);
    if (session == NULL) {
        lock->released = true;
        return error_set(err, ERROR_LOCK_LOST, "lock %s is gone: its session was closed",
                         lock->name);
    }
    key_parameters(&p, &lock->key, NULL);
    if (must_wait(session)) {
        lock->released = true;
        return release_later(lock, sql, err);
    }
    if (session_transaction(session) == PQTRANS_INTRANS)
        log_printf(LOG_WARNING, "lock %s is released before the transaction that is open has "
                                "committed: others may enter before they see its work",
                   lock->name);
    statement = key_statement(sql, &p, session_transaction(session) != PQTRANS_IDLE);
    if (lock->release_ahead && session_transaction(session) == PQTRANS_IDLE)
        return release_ahead(lock, &statement, err);
    result = session_query(session, &statement, WAIT_CLEANUP, err);
    if (result == NULL && strcmp(err->sqlstate, "57014") == 0 && session_of(lock) != NULL) {
        lock->released = true;
        return release_again(lock->hold) || error_set(err, ERROR_SQL, "out of memory");
    }
    if (result == NULL && !session->lost)
        return false; /* still held: a session in use, say */
    lock->released = true;
    if (session_of(lock) != NULL) /* not closed meanwhile by someone else */
        session_let_go(&lock->hold->base);
    if (result == NULL)
        return false;
    held = says_yes(result);
    PQclear(result);
    return held || advisory_was_lost(lock->name, err);
}

bool advisory_is_held(AdvisoryLock *lock, bool *held, Error *err)
{
    KeyParameters p;
    Statement statement;
    PGresult *result;

    *held = false;
    if (!advisory_on_list(lock))
        return true;
    key_parameters(&p, &lock->key, NULL);
    statement = key_statement(sql_for(&lock->key, lock->shared, lock->xact)->held, &p, false);
    result = session_query(session_of(lock), &statement, WAIT_NORMAL, err);
    if (result == NULL)
        return false;
    *held = says_yes(result);
    PQclear(result);
    return true;
}
