#include "locks/all.h"

#include "base/duration.h"
#include "base/log.h"
#include "locks/advisory.h"
#include "pg/type.h"

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- SQL ------------------------------------------------------------------------------------- */

/* What a lock is: exclusive or shared, a bigint key or a pair. Of several that differ: MIXED. */
enum { BIGINT, BIGINT_SHARED, PAIR, PAIR_SHARED, MIXED, KINDS };

/*
 * $1 is an array, the locks' keys, a pair as one number; $2, where they differ, another, their
 * kinds. A function scan gives its rows one by one in the order of the array, and a filter looks at
 * no row behind the one that satisfies a LIMIT: so locks are taken in order, and none after the
 * first that is not to be had.
 */
#define ALIKE  " FROM pg_catalog.unnest($1) WITH ORDINALITY AS u(key, place)"
#define DIFFER                                                                                     \
    " FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) WITH ORDINALITY"               \
    " AS u(key, kind, place)"
#define HIGH    "(u.key OPERATOR(pg_catalog.>>) 32)"
#define LOW     "((u.key OPERATOR(pg_catalog.<<) 32) OPERATOR(pg_catalog.>>) 32)"
#define KIND(op, n) "u.kind OPERATOR(pg_catalog." op ") " n "::pg_catalog.int2"
#define OF_BIGINT(f) "pg_catalog." f "(u.key)"
#define OF_PAIR(f)   "pg_catalog." f "(" HIGH "::pg_catalog.int4, " LOW "::pg_catalog.int4)"
#define OF_ANY(f)                                                                                  \
    "CASE WHEN " KIND("=", "0") " THEN " OF_BIGINT(f) " WHEN " KIND("=", "1") " THEN "             \
    OF_BIGINT(f "_shared") " WHEN " KIND("=", "2") " THEN " OF_PAIR(f) " ELSE "                    \
    OF_PAIR(f "_shared") " END"
#define EACH_KIND(SQL, f)                                                                          \
    {SQL(ALIKE, OF_BIGINT(f)), SQL(ALIKE, OF_BIGINT(f "_shared")), SQL(ALIKE, OF_PAIR(f)),         \
     SQL(ALIKE, OF_PAIR(f "_shared")), SQL(DIFFER, OF_ANY(f))}

/* The place of the first that is not to be had; all before it are taken then, without it all. */
#define TAKE(locks, call) "SELECT u.place" locks " WHERE NOT " call " LIMIT 1"
static const char *const TAKE_SQL[2][KINDS] = {
    EACH_KIND(TAKE, "pg_try_advisory_lock"),
    EACH_KIND(TAKE, "pg_try_advisory_xact_lock"),
}; /* [xact][kind] */

/* Release all; the places of those that were not held. */
#define UNLOCK(locks, call) "SELECT u.place" locks " WHERE NOT " call
static const char *const UNLOCK_SQL[KINDS] = EACH_KIND(UNLOCK, "pg_advisory_unlock");

/*
 * This session's own advisory locks, as the arrays have them. They are of its own database: that is
 * not asked, since pg_database could not be looked at while the server's room for locks is used up.
 */
#define HELD_HERE                                                                                  \
    "(SELECT l.classid::pg_catalog.int8, l.objid::pg_catalog.int8, l.objsubid, l.mode"             \
    " FROM pg_catalog.pg_locks l"                                                                  \
    " WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory'"                                          \
    " AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND l.granted)"
#define UNSIGNED(half) "(" half " OPERATOR(pg_catalog.&) 4294967295)"
#define IS_HELD                                                                                    \
    "(" UNSIGNED(HIGH) ", " UNSIGNED("u.key") ","                                                  \
    " CASE WHEN " KIND("<", "2") " THEN 1::pg_catalog.int2 ELSE 2::pg_catalog.int2 END,"           \
    " CASE WHEN " KIND("=", "0") " OR " KIND("=", "2") " THEN 'ExclusiveLock'"                     \
    " ELSE 'ShareLock' END) OPERATOR(pg_catalog.=) ANY " HELD_HERE

static const char NOT_HELD_SQL[] = "SELECT u.place" DIFFER " WHERE NOT " IS_HELD " LIMIT 1";

/* Release those that are held. */
static const char DROP_SQL[] =
    "SELECT u.place" DIFFER " WHERE CASE WHEN " IS_HELD " THEN " OF_ANY("pg_advisory_unlock")
    " ELSE false END";

static const Oid TYPES[] = {TYPE_INT8_ARRAY, TYPE_INT2_ARRAY};

static const Statement SAVEPOINT = {.sql = "SAVEPOINT lockkeeper_all", .unprepared = true};
static const Statement ROLLBACK_TO = {.sql = "ROLLBACK TO lockkeeper_all", .unprepared = true};
static const Statement RELEASE = {.sql = "RELEASE lockkeeper_all", .unprepared = true};

static int kind_of(const AllEntry *lock)
{
    return (lock->key.pair ? PAIR : BIGINT) + (lock->shared ? BIGINT_SHARED : BIGINT);
}

/* Some locks as two arrays in binary format; lives as long as the statement that uses it. */
typedef struct {
    char *memory;
    const char *values[2];
    int lengths[2];
    int kind; /* of all, or MIXED */
} ArrayParameters;

static char *append_int2(char *out, int value)
{
    uint16_t network = htobe16((uint16_t)value);

    return (char *)memcpy(out, &network, sizeof network) + sizeof network;
}

static char *append_int4(char *out, uint32_t value)
{
    uint32_t network = htobe32(value);

    return (char *)memcpy(out, &network, sizeof network) + sizeof network;
}

static char *append_int8(char *out, uint64_t value)
{
    uint64_t network = htobe64(value);

    return (char *)memcpy(out, &network, sizeof network) + sizeof network;
}

/* As array_recv has it: dimensions, nulls, the elements' type, length and lower bound. */
enum { ARRAY_HEAD_SIZE = 5 * 4, KEY_SIZE = 4 + 8, KIND_SIZE = 4 + 2 };

static char *append_head(char *out, Oid type, int count)
{
    out = append_int4(out, 1);
    out = append_int4(out, 0);
    out = append_int4(out, type);
    out = append_int4(out, (uint32_t)count);
    return append_int4(out, 1);
}

static bool arrays_new(ArrayParameters *p, const AllEntry *locks, int count, Error *err)
{
    char *out;

    p->lengths[0] = ARRAY_HEAD_SIZE + count * KEY_SIZE;
    p->lengths[1] = ARRAY_HEAD_SIZE + count * KIND_SIZE;
    p->memory = malloc((size_t)p->lengths[0] + (size_t)p->lengths[1]);
    if (p->memory == NULL)
        return error_set(err, ERROR_SQL, "out of memory");
    p->values[0] = p->memory;
    p->values[1] = p->memory + p->lengths[0];
    p->kind = kind_of(&locks[0]);
    out = append_head(p->memory, TYPE_INT8, count);
    for (int i = 0; i < count; i++) {
        const LockKey *key = &locks[i].key;

        out = append_int4(out, 8);
        out = append_int8(out, key->pair ? (uint64_t)(uint32_t)key->first << 32 | (uint32_t)key->second
                                         : (uint64_t)key->key);
    }
    out = append_head(out, TYPE_INT2, count);
    for (int i = 0; i < count; i++) {
        int kind = kind_of(&locks[i]);

        out = append_int4(out, 2);
        out = append_int2(out, kind);
        if (kind != p->kind)
            p->kind = MIXED;
    }
    return true;
}

static Statement array_statement(const char *sql, const ArrayParameters *p, bool unprepared)
{
    static const int BINARY[] = {1, 1};

    return (Statement){.sql = sql,
                       .count = 2,
                       .types = TYPES,
                       .values = p->values,
                       .lengths = p->lengths,
                       .formats = BINARY,
                       .unprepared = unprepared,
                       .constant = true};
}

/* A statement of the array of keys and, for locks that differ, that of kinds. */
static Statement kind_statement(const char *const sql[KINDS], const ArrayParameters *p,
                                bool unprepared)
{
    Statement statement = array_statement(sql[p->kind], p, unprepared);

    statement.count = p->kind == MIXED ? 2 : 1;
    return statement;
}

/* The place, from 0 on, that the first row tells; -1 without rows. */
static int first_place(const PGresult *result)
{
    return PQntuples(result) == 0 ? -1 : (int)strtol(PQgetvalue(result, 0, 0), NULL, 10) - 1;
}

/* ---- what is held ---------------------------------------------------------------------------- */

static const char ADVISORY_ALL[] = "advisory locks";

/* As AdvisoryHold: never freed, only used again; but its locks are. */
typedef struct AllHold {
    SessionHold base; /* first: the list's elements */
    AllEntry *locks;  /* owned, with their texts behind them */
    int count;
    bool leaving; /* their release was sent */
    uint64_t serial;
    struct AllHold *next_free;
} AllHold;

static AllHold *free_holds;

static void hold_gone(SessionHold *base)
{
    AllHold *hold = (AllHold *)base;

    free(hold->locks);
    hold->locks = NULL;
    hold->serial++;
    hold->next_free = free_holds;
    free_holds = hold;
}

enum { NAME_SIZE = 80 }; /* of one lock; at least KEY_TEXT_SIZE */

static const char *entry_name(const AllEntry *lock, char name[NAME_SIZE])
{
    char text[64];

    if (lock->text == NULL) {
        key_text(&lock->key, name);
    } else {
        text_copy(text, sizeof text, lock->text);
        snprintf(name, NAME_SIZE, "\"%s\"", text);
    }
    return name;
}

/* "a", "b" and 3 others */
static void all_name(const AllRequest *request, char *name, size_t size)
{
    char first[NAME_SIZE];
    char second[NAME_SIZE];
    char text[2 * NAME_SIZE + 40];

    entry_name(&request->locks[0], first);
    if (request->count > 1)
        entry_name(&request->locks[1], second);
    if (request->count == 1)
        text_copy(text, sizeof text, first);
    else if (request->count == 2)
        snprintf(text, sizeof text, "%s and %s", first, second);
    else
        snprintf(text, sizeof text, "%s, %s and %d other%s", first, second, request->count - 2,
                 request->count == 3 ? "" : "s");
    text_copy(name, size, text);
}

static AllEntry *copy_locks(const AllEntry *locks, int count)
{
    size_t size = (size_t)count * sizeof *locks;
    AllEntry *copy;
    char *texts;

    for (int i = 0; i < count; i++)
        size += locks[i].text == NULL ? 0 : strlen(locks[i].text) + 1;
    copy = malloc(size);
    if (copy == NULL)
        return NULL;
    memcpy(copy, locks, (size_t)count * sizeof *locks);
    texts = (char *)(copy + count);
    for (int i = 0; i < count; i++) {
        if (copy[i].text == NULL)
            continue;
        strcpy(texts, copy[i].text);
        copy[i].text = texts;
        texts += strlen(texts) + 1;
    }
    return copy;
}

/* NULL where memory ran out. */
static AllHold *new_hold(const AllRequest *request)
{
    AllHold *hold = free_holds;

    if (hold == NULL)
        hold = calloc(1, sizeof *hold);
    else
        free_holds = hold->next_free;
    if (hold == NULL)
        return NULL;
    hold->locks = copy_locks(request->locks, request->count);
    if (hold->locks == NULL) {
        hold_gone(&hold->base);
        return NULL;
    }
    hold->count = request->count;
    hold->leaving = false;
    hold->base.kind = ADVISORY_ALL;
    hold->base.in_transaction = request->xact;
    hold->base.gone = hold_gone;
    all_name(request, hold->base.name, sizeof hold->base.name);
    return hold;
}

/* The session whose list they are on, or NULL. */
static Session *session_of(const AllLocks *locks)
{
    return locks->hold->serial == locks->serial ? locks->hold->base.session : NULL;
}

bool all_on_list(const AllLocks *locks)
{
    return !locks->released && session_of(locks) != NULL;
}

static int compare_keys(const void *a, const void *b)
{
    return key_compare(&((const AllEntry *)a)->key, &((const AllEntry *)b)->key);
}

bool all_hold_includes(const SessionHold *base, const LockKey *key, bool shared, bool any_mode)
{
    const AllHold *hold = (const AllHold *)base;
    const AllEntry *found;

    if (base->kind != ADVISORY_ALL || hold->leaving)
        return false;
    found = bsearch(&(AllEntry){.key = *key}, hold->locks, (size_t)hold->count,
                    sizeof *hold->locks, compare_keys);
    return found != NULL && (any_mode || found->shared == shared);
}

/* ---- giving back ----------------------------------------------------------------------------- */

/* A failed transaction, rows that are streamed and a COPY leave no room for a statement. */
static bool must_wait(const Session *session)
{
    PGTransactionStatusType status = session_transaction(session);

    return status == PQTRANS_INERROR || status == PQTRANS_ACTIVE;
}

static void dropped(void *context, const PGresult *result)
{
    (void)context;
    (void)result;
}

/* Those that are held are released once the session can take it. */
static void give_back_later(Session *session, const AllEntry *locks, int count)
{
    ArrayParameters p;
    Statement statement;
    Error ignored;

    if (!arrays_new(&p, locks, count, &ignored))
        return;
    statement = array_statement(DROP_SQL, &p, true);
    session_defer(session, DEFER_USABLE, &statement, dropped, NULL);
    free(p.memory);
}

/*
 * Undo: release these, whoever cancels it; those that are held, where it is not `sure` that all
 * are, as after an UNLOCK_SQL that was cancelled in the middle.
 */
static void give_back(Session *session, const AllEntry *locks, int count, bool sure)
{
    ArrayParameters p;
    Statement statement;
    Error ignored;
    bool done = false;

    if (count == 0 || session->lost || !arrays_new(&p, locks, count, &ignored))
        return;
    statement = sure ? kind_statement(UNLOCK_SQL, &p, true) : array_statement(DROP_SQL, &p, true);
    if (!must_wait(session))
        done = session_commands(session, &statement, 1, WAIT_CLEANUP, &ignored);
    free(p.memory);
    if (!done && !session->lost)
        give_back_later(session, locks, count);
}

/*
 * Taking was ended in the middle, by an error: some of these may be held. One that this session had
 * before stays: it is not known whether it has it twice now.
 */
static void give_back_unsure(Session *session, const AllEntry *locks, int count)
{
    AllEntry *unsure = malloc((size_t)count * sizeof *unsure);
    int found = 0;

    if (unsure == NULL)
        return;
    for (int i = 0; i < count; i++) {
        if (!advisory_has(session, &locks[i].key, locks[i].shared, false))
            unsure[found++] = locks[i];
    }
    give_back(session, unsure, found, false);
    free(unsure);
}

/* ---- taking ---------------------------------------------------------------------------------- */

typedef struct {
    Session *session;
    const AllRequest *request;
    int taken; /* of the locks, from the first on */
    bool waited;
    int64_t deadline_us; /* 0: not known yet */
} Taking;

static const AllEntry *next_lock(const Taking *taking)
{
    return &taking->request->locks[taking->taken];
}

/* Take those that are to be had at once, up to the first that is not. */
static bool take_free(Taking *taking, Error *err)
{
    Session *session = taking->session;
    bool xact = taking->request->xact;
    int left = taking->request->count - taking->taken;
    bool first = xact && taking->taken == 0; /* a savepoint comes before */
    PGresult *results[2] = {NULL, NULL};
    Statement statements[2];
    ArrayParameters p;
    int missed;
    bool ok;

    if (!arrays_new(&p, next_lock(taking), left, err))
        return false;
    statements[0] = SAVEPOINT;
    statements[first] = kind_statement(TAKE_SQL[xact], &p,
                                       session_transaction(session) != PQTRANS_IDLE);
    if (first) {
        ok = session_pipeline(session, statements, 2, results, WAIT_NORMAL, err);
    } else {
        results[0] = session_query(session, &statements[0], WAIT_NORMAL, err);
        ok = results[0] != NULL;
    }
    free(p.memory);
    if (ok) {
        missed = first_place(results[first]);
        taking->taken += missed < 0 ? left : missed;
    } else if (!xact && !session->lost) {
        give_back_unsure(session, next_lock(taking), left);
    }
    PQclear(results[0]);
    PQclear(results[1]);
    return ok;
}

static bool know_deadline(Taking *taking, Error *err)
{
    const AllRequest *request = taking->request;

    return taking->deadline_us != 0 ||
           advisory_deadline(taking->session, request->has_timeout, request->timeout_us,
                             &taking->deadline_us, err);
}

/* Wait for the next one, for as long as is left of the time for all. */
static bool wait_for_next(Taking *taking, Error *err)
{
    enum { LEAST_US = 1000 };
    const AllEntry *lock = next_lock(taking);
    char name[NAME_SIZE];
    AdvisoryRequest request = {
        .key = lock->key,
        .name = entry_name(lock, name),
        .shared = lock->shared,
        .xact = taking->request->xact,
        .has_timeout = true,
        .timeout_us = DURATION_ENDLESS,
    };
    bool waited = false;

    if (!know_deadline(taking, err))
        return false;
    if (taking->deadline_us != CLOCK_NEVER) {
        request.timeout_us = taking->deadline_us - clock_monotonic_us();
        if (request.timeout_us < LEAST_US)
            request.timeout_us = LEAST_US;
    }
    if (!advisory_take(taking->session, &request, &waited, err))
        return false;
    taking->waited = taking->waited || waited;
    taking->taken++;
    return true;
}

static bool has_all(const Taking *taking)
{
    return taking->taken == taking->request->count;
}

static bool missed(const Taking *taking, ErrorKind kind, Error *err)
{
    char name[NAME_SIZE];

    entry_name(next_lock(taking), name);
    if (kind == ERROR_NOT_ACQUIRED)
        return error_set(err, kind, "lock %s is held by another session", name);
    return error_set(err, kind, "lock %s was not to be had in time: another session holds it",
                     name);
}

/* All that was taken is given back; the error that led here stays the one reported. */
static void undo(Taking *taking)
{
    Session *session = taking->session;
    Error ignored;

    if (!taking->request->xact)
        give_back(session, taking->request->locks, taking->taken, true);
    else if (!session->lost && session_transaction(session) != PQTRANS_IDLE)
        session_commands(session, (Statement[]){ROLLBACK_TO, RELEASE}, 2, WAIT_CLEANUP, &ignored);
    taking->taken = 0;
}

static bool take_polling(Taking *taking, Error *err)
{
    if (!know_deadline(taking, err))
        return false;
    for (;;) {
        bool last = clock_monotonic_us() >= taking->deadline_us;

        if (!take_free(taking, err))
            return false;
        if (has_all(taking))
            return true;
        if (last)
            return missed(taking, ERROR_LOCK_TIMEOUT, err);
        undo(taking);
        taking->waited = true;
        if (!advisory_sleep(taking->session, taking->request->poll_us, taking->deadline_us, err))
            return false;
    }
}

static bool take_waiting(Taking *taking, Error *err)
{
    for (;;) {
        if (!take_free(taking, err))
            return false;
        if (has_all(taking))
            return true;
        if (!wait_for_next(taking, err))
            return false;
        if (has_all(taking))
            return true;
    }
}

static bool take(Taking *taking, Error *err)
{
    const AllRequest *request = taking->request;
    bool ok;

    if (request->has_timeout && request->timeout_us == 0)
        ok = take_free(taking, err) &&
             (has_all(taking) || missed(taking, ERROR_NOT_ACQUIRED, err));
    else if (request->poll_us > 0)
        ok = take_polling(taking, err);
    else
        ok = take_waiting(taking, err);
    if (ok && request->xact)
        ok = session_commands(taking->session, &RELEASE, 1, WAIT_NORMAL, err);
    if (!ok)
        undo(taking);
    return ok;
}

void all_arrange(AllRequest *request)
{
    AllEntry *locks = request->locks;
    int kept = 0;

    qsort(locks, (size_t)request->count, sizeof *locks, compare_keys);
    for (int i = 1; i < request->count; i++) {
        if (key_equal(&locks[kept].key, &locks[i].key))
            locks[kept].shared = locks[kept].shared && locks[i].shared;
        else
            locks[++kept] = locks[i];
    }
    request->count = kept + 1;
}

static bool check(Session *session, const AllRequest *request, Error *err)
{
    char text[DURATION_SETTING_SIZE];

    if (request->has_timeout && request->poll_us == 0 &&
        !duration_setting(request->timeout_us, "timeout", text, err))
        return false;
    if (!advisory_check_session(session, request->xact, err))
        return false;
    if (session_transaction(session) == PQTRANS_INERROR)
        return session_run(session, "SELECT 1", WAIT_NORMAL, err); /* PostgreSQL's own 25P02 */
    return true;
}

static void tell_what_nests(Session *session, const AllRequest *request)
{
    char name[NAME_SIZE];

    for (int i = 0; i < request->count; i++) {
        if (advisory_has(session, &request->locks[i].key, false, true))
            log_printf(LOG_DEBUG, "lock %s is already held by this session: it nests",
                       entry_name(&request->locks[i], name));
    }
}

bool all_acquire(Session *session, const AllRequest *request, AllLocks *locks, Error *err)
{
    Taking taking = {.session = session, .request = request};
    int64_t start_us = clock_monotonic_us();
    AllHold *hold;
    Error ignored;

    if (!check(session, request, err))
        return false;
    hold = new_hold(request);
    if (hold == NULL)
        return error_set(err, ERROR_SQL, "out of memory");
    if (log_enabled(LOG_DEBUG))
        tell_what_nests(session, request);
    if (request->has_timeout)
        taking.deadline_us = clock_deadline(request->timeout_us);
    if (!take(&taking, err)) {
        hold_gone(&hold->base);
        if (error_is_busy(err)) /* that is an answer: what is owed counts for more */
            session_owes(session, err);
        return false;
    }
    *locks = (AllLocks){
        .hold = hold,
        .serial = hold->serial,
        .xact = request->xact,
        .release_ahead = request->release_ahead,
        .waited_s = taking.waited ? (double)(clock_monotonic_us() - start_us) / 1e6 : 0,
        .acquired_at = clock_epoch_s(),
    };
    memcpy(locks->name, hold->base.name, sizeof locks->name);
    session_hold(session, &hold->base);
    if (!session_owes(session, err))
        return true;
    locks->release_ahead = false;
    if (!locks->xact)
        all_release(locks, &ignored);
    return false;
}

/* ---- releasing ------------------------------------------------------------------------------- */

/* Of those whose release was answered with `result`, was each held? */
static bool was_held(const AllHold *hold, const PGresult *result, Error *err)
{
    int lost = first_place(result);
    char name[NAME_SIZE];

    if (lost < 0)
        return true;
    return advisory_was_lost(entry_name(&hold->locks[lost], name), err);
}

/* The release that had to wait. */
static void released_late(void *context, const PGresult *result)
{
    AllHold *hold = context;
    Error err;

    if (result != NULL && !was_held(hold, result, &err))
        log_write(LOG_ERROR, err.message, NULL);
    session_let_go(&hold->base);
}

/* The reply to a release that nobody waited for. */
static void released_ahead(void *context, const PGresult *result)
{
    AllHold *hold = context;
    Error err;

    if (result != NULL && PQresultStatus(result) != PGRES_TUPLES_OK)
        give_back_later(hold->base.session, hold->locks, hold->count); /* cancelled by others */
    else if (result != NULL && !was_held(hold, result, &err))
        session_owe(hold->base.session, &err);
    session_let_go(&hold->base);
}

/* Send the release; the reply is read later. */
static bool send_release(AllLocks *locks, const Statement *statement, Error *err)
{
    Session *session = session_of(locks);
    bool sent;

    locks->hold->leaving = true;
    sent = session_send_ahead(session, statement, released_ahead, locks->hold, err);
    locks->released = sent || session->lost;
    if (!sent && session_of(locks) != NULL) {
        locks->hold->leaving = false;
        if (session->lost)
            session_let_go(&locks->hold->base);
    }
    return sent;
}

/* Release, and wait for the reply. */
static bool release_now(AllLocks *locks, const ArrayParameters *p, Error *err)
{
    Session *session = session_of(locks);
    bool in_transaction = session_transaction(session) != PQTRANS_IDLE;
    Statement statement = kind_statement(UNLOCK_SQL, p, in_transaction);
    PGresult *result = session_query(session, &statement, WAIT_CLEANUP, err);
    bool ok = result != NULL;

    if (!ok && strcmp(err->sqlstate, "57014") == 0) {
        locks->released = true;
        give_back(session, locks->hold->locks, locks->hold->count, false);
        ok = true;
    }
    if (!ok && !session->lost)
        return false; /* still held: a session in use, say */
    locks->released = true;
    if (result != NULL && session_of(locks) != NULL) /* not closed meanwhile by someone else */
        ok = was_held(locks->hold, result, err);
    PQclear(result);
    if (session_of(locks) != NULL)
        session_let_go(&locks->hold->base);
    return ok;
}

static bool release(AllLocks *locks, const ArrayParameters *p, Error *err)
{
    Session *session = session_of(locks);
    PGTransactionStatusType status = session_transaction(session);

    if (must_wait(session)) {
        Statement statement = kind_statement(UNLOCK_SQL, p, true);

        locks->released = true;
        return session_defer(session, DEFER_USABLE, &statement, released_late, locks->hold) ||
               error_set(err, ERROR_SQL, "out of memory");
    }
    if (status == PQTRANS_INTRANS)
        log_printf(LOG_WARNING, "locks %s are released before the transaction that is open has "
                                "committed: others may enter before they see its work",
                   locks->name);
    if (locks->release_ahead && status == PQTRANS_IDLE) {
        Statement statement = kind_statement(UNLOCK_SQL, p, false);

        return send_release(locks, &statement, err);
    }
    return release_now(locks, p, err);
}

bool all_release(AllLocks *locks, Error *err)
{
    ArrayParameters p;
    bool ok;

    if (locks->released)
        return true;
    if (locks->xact)
        return error_usage(err, "locks %s are transaction-level: they are released when their "
                                "transaction ends", locks->name);
    if (session_of(locks) == NULL) {
        locks->released = true;
        return error_set(err, ERROR_LOCK_LOST, "locks %s are gone: their session was closed",
                         locks->name);
    }
    if (!arrays_new(&p, locks->hold->locks, locks->hold->count, err))
        return false;
    ok = release(locks, &p, err);
    free(p.memory);
    return ok;
}

bool all_is_held(AllLocks *locks, bool *held, Error *err)
{
    ArrayParameters p;
    Statement statement;
    PGresult *result;

    *held = false;
    if (!all_on_list(locks))
        return true;
    if (!arrays_new(&p, locks->hold->locks, locks->hold->count, err))
        return false;
    statement = array_statement(NOT_HELD_SQL, &p, true);
    result = session_query(session_of(locks), &statement, WAIT_NORMAL, err);
    free(p.memory);
    if (result == NULL)
        return false;
    *held = PQntuples(result) == 0;
    PQclear(result);
    return true;
}
