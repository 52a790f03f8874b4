#include "locks/blocked.h"

#include "base/pqbuffer.h"
#include "locks/mode.h"
#include "locks/snapshot_sql.h"
#include "pg/type.h"

#include <stdlib.h>
#include <string.h>

/*
 * $1: the pids that are meant, or null for all of this database. $2: do their activities say who
 * waits? The clock is read before the blockers are: whoever has waited since before that moment,
 * and still waits later, has been in one wait, the one seen here.
 */
/* clang-format off */
#define MEANT(session)                                                                             \
    "CASE WHEN $1::pg_catalog.int4[] IS NOT NULL"                                                  \
    " THEN " session ".pid OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.int4[])"                     \
    " ELSE " session ".datid OPERATOR(pg_catalog.=) (SELECT o.datid FROM a o WHERE o.asks) END"
#define BLOCKED_SQL(query_id)                                                                      \
    "WITH a AS MATERIALIZED ("                                                                     \
    "  SELECT " SESSIONS_COLUMNS(query_id) " FROM pg_catalog.pg_stat_get_activity(NULL) a"         \
    "), w AS MATERIALIZED ("                                                                       \
    "  SELECT a.pid, " EPOCH_US("pg_catalog.clock_timestamp()") " AS seen_at,"                     \
    "         pg_catalog.pg_blocking_pids(a.pid) AS blockers"                                      \
    "    FROM a WHERE " MEANT("a")                                                                 \
    "     AND CASE WHEN $2::pg_catalog.bool"                                                       \
    "         THEN a.wait_event_type OPERATOR(pg_catalog.=) 'Lock'"                                \
    "         ELSE a.pid OPERATOR(pg_catalog.=) ANY ("                                             \
    "           SELECT l.pid FROM pg_catalog.pg_lock_status() l WHERE NOT l.granted) END"          \
    "), b AS MATERIALIZED (SELECT pg_catalog.unnest(w.blockers) AS pid FROM w)"                    \
    " SELECT a.*,"                                                                                 \
    "        CASE WHEN a.asks THEN " EPOCH_US("pg_catalog.clock_timestamp()")                      \
    "          ELSE w.seen_at END,"                                                                \
    "        w.blockers,"                                                                          \
    "        CASE WHEN a.asks THEN"                                                                \
    "          EXISTS (SELECT FROM a h WHERE h.hidden AND " MEANT("h") ") END"                     \
    "   FROM a LEFT JOIN w ON w.pid OPERATOR(pg_catalog.=) a.pid"                                  \
    "  WHERE a.asks OR w.pid IS NOT NULL"                                                          \
    "     OR a.pid OPERATOR(pg_catalog.=) ANY (SELECT b.pid FROM b)"                               \
    "     OR a.leader_pid OPERATOR(pg_catalog.=) ANY (SELECT b.pid FROM b)"
/* clang-format on */

/*
 * $1: the waiters. Also what is held of what they wait for: more than that is sent where other
 * locks have the same number, which is compared here; and which transaction is which prepared
 * holder.
 */
/* clang-format off */
#define NUMBER(lock) "COALESCE(" lock ".relation, " lock ".objid, '0'::pg_catalog.oid)"
#define LOOK_SQL(wait_start, blockers)                                                             \
    "WITH l AS MATERIALIZED ("                                                                     \
    "  SELECT " LOCKS_COLUMNS(wait_start) " FROM pg_catalog.pg_lock_status() l"                    \
    ") SELECT l.*" blockers " FROM l"                                                              \
    "  WHERE " NUMBER("l") " OPERATOR(pg_catalog.=) ANY ("                                         \
    "      SELECT " NUMBER("w") " FROM l w WHERE NOT w.granted"                                    \
    "        AND w.pid OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.int4[]))"                        \
    "     OR (l.holder IS NOT NULL AND l.transactionid IS NOT NULL)"
/* clang-format on */

static const char BLOCKED[] = BLOCKED_SQL("a.query_id");
static const char BLOCKED_13[] = BLOCKED_SQL(NO_INTEGER);
static const char LOOK[] = LOOK_SQL(EPOCH_US("l.waitstart"), "");
/* Without the start of a wait: it is the same if the same ones block it. */
static const char LOOK_13[] =
    LOOK_SQL(NO_INTEGER, ", CASE WHEN NOT l.granted THEN pg_catalog.pg_blocking_pids(l.pid) END");

static const Oid TYPES[] = {TYPE_TEXT, TYPE_TEXT};

static bool out_of_memory(Error *err)
{
    return error_set(err, ERROR_SQL, "out of memory");
}

void blocked_clear(Blocked *blocked)
{
    snapshot_clear(&blocked->snapshot);
    free(blocked->edges);
    free(blocked->pids);
    *blocked = (Blocked){0};
}

/* ---- who waits for whom ---------------------------------------------------------------------- */

/* The next number of an array of integers, "{1,2}"; false at its end. */
static bool next_number(const char **text, int *number)
{
    char *end;

    if (**text == '{' || **text == ',')
        ++*text;
    if (**text == '}' || **text == '\0')
        return false;
    *number = (int)strtol(*text, &end, 10);
    if (end == *text)
        return false;
    *text = end;
    return true;
}

static const char *blockers_at(const Blocked *blocked, int row)
{
    return PQgetvalue(blocked->snapshot.sessions, row, SESSIONS_BLOCKERS);
}

static int count_numbers(const char *text)
{
    int count = 0;
    int number;

    while (next_number(&text, &number))
        count++;
    return count;
}

/*
 * The edges of one waiter. The server names a session twice when several of its parallel workers
 * are in the way, but a prepared transaction once each. `seen_by[row]`: the last waiter (and 1)
 * that had this session as its blocker.
 */
static void add_edges(Blocked *blocked, int waiter, int *seen_by)
{
    const char *text = blockers_at(blocked, waiter);
    int nth = 0;
    int pid;

    while (next_number(&text, &pid)) {
        int row = pid == 0 ? ROW_NONE : snapshot_find_session(&blocked->snapshot, pid);

        if (row != ROW_NONE) {
            if (seen_by[row] == waiter + 1)
                continue;
            seen_by[row] = waiter + 1;
        }
        blocked->edges[blocked->count++] = (BlockedEdge){
            .waiter = waiter,
            .blocker = row,
            .pid = pid,
            .nth = pid == 0 ? nth++ : 0,
            .lock = ROW_NONE,
            .holding = ROW_NONE,
            .prepared = ROW_NONE,
        };
    }
}

static bool read_edges(Blocked *blocked, Error *err)
{
    const PGresult *sessions = blocked->snapshot.sessions;
    int rows = PQntuples(sessions);
    int *seen_by = calloc((size_t)rows + 1, sizeof *seen_by);
    size_t room = 1;
    PQExpBufferData pids;
    bool ok = false;

    initPQExpBuffer(&pids);
    for (int i = 0; i < rows; i++)
        room += (size_t)count_numbers(blockers_at(blocked, i));
    blocked->edges = calloc(room, sizeof *blocked->edges);
    if (seen_by == NULL || blocked->edges == NULL)
        goto out;
    appendPQExpBufferChar(&pids, '{');
    for (int i = 0; i < rows; i++) {
        if (PQgetisnull(sessions, i, SESSIONS_BLOCKERS))
            continue;
        add_edges(blocked, i, seen_by);
        appendPQExpBuffer(&pids, "%s%s", pids.len > 1 ? "," : "",
                          PQgetvalue(sessions, i, SESSIONS_PID));
    }
    appendPQExpBufferChar(&pids, '}');
    blocked->pids = PQExpBufferDataBroken(pids) ? NULL : strdup(pids.data);
    ok = blocked->pids != NULL;
out:
    termPQExpBuffer(&pids);
    free(seen_by);
    return ok || out_of_memory(err);
}

/* `seen`: whether activities are what says who waits. */
static PGresult *ask(Session *session, const char *waiters, bool seen, Error *err)
{
    const char *values[] = {waiters, seen ? "t" : "f"};
    const char *sql = session->server_version < 140000 ? BLOCKED_13 : BLOCKED;
    PGresult *results[2] = {NULL, NULL};
    bool ok =
        session_pipeline(session,
                         (Statement[]){{.sql = LOOK_TIMEOUT_SQL},
                                       {.sql = sql, .count = 2, .types = TYPES, .values = values}},
                         2, results, WAIT_NORMAL, err);

    PQclear(results[0]);
    if (ok)
        return results[1];
    PQclear(results[1]);
    return NULL;
}

static bool some_unseen(const PGresult *sessions)
{
    for (int i = 0; i < PQntuples(sessions); i++) {
        if (PQgetvalue(sessions, i, SESSIONS_UNSEEN)[0] == 't')
            return true;
    }
    return false;
}

bool blocked_take(Blocked *blocked, Session *session, const char *waiters, Error *err)
{
    Snapshot *snapshot = &blocked->snapshot;

    if (!session_open(session, err))
        return false;
    snapshot->sessions = ask(session, waiters, true, err);
    if (some_unseen(snapshot->sessions)) {
        PQclear(snapshot->sessions);
        snapshot->sessions = ask(session, waiters, false, err);
    }
    return snapshot->sessions != NULL && snapshot_read_sessions(snapshot, err) &&
           read_edges(blocked, err);
}

/* ---- which locks ----------------------------------------------------------------------------- */

/* What is held or waited for, by what it is and then whose it is. */
typedef struct {
    const PGresult *locks;
    int row;
    int pid; /* of a parallel worker: its leader's; 0: a prepared transaction's */
} Held;

static int compare_fields(const PGresult *locks, int left, int right, int column)
{
    int order = PQgetisnull(locks, left, column) - PQgetisnull(locks, right, column);

    return order != 0 ? order
                      : strcmp(PQgetvalue(locks, left, column), PQgetvalue(locks, right, column));
}

/* Are they one lock, held and waited for? */
static int compare_tags(const PGresult *locks, int left, int right)
{
    int order = 0;

    for (int column = LOCKS_TYPE; column <= LOCKS_OBJSUBID && order == 0; column++)
        order = compare_fields(locks, left, right, column);
    return order;
}

/* The prepared ones of a lock are in one order for every waiter. */
static int compare_held(const void *left, const void *right)
{
    const Held *a = left;
    const Held *b = right;
    int order = compare_tags(a->locks, a->row, b->row);

    if (order == 0)
        order = (a->pid > b->pid) - (a->pid < b->pid);
    return order != 0 ? order : compare_fields(a->locks, a->row, b->row, LOCKS_HOLDER);
}

static int number_at(const PGresult *result, int row, int column)
{
    return (int)strtol(PQgetvalue(result, row, column), NULL, 10);
}

static bool is_granted(const PGresult *locks, int row)
{
    return PQgetvalue(locks, row, LOCKS_GRANTED)[0] == 't';
}

/* In pg_blocking_pids a leader stands for its workers. */
static int group_of(const Snapshot *snapshot, int row)
{
    int session = snapshot_lock_session(snapshot, row);

    if (session != ROW_NONE && !PQgetisnull(snapshot->sessions, session, SESSIONS_LEADER_PID))
        return number_at(snapshot->sessions, session, SESSIONS_LEADER_PID);
    return number_at(snapshot->locks, row, LOCKS_PID);
}

static Held *sort_held(const Snapshot *snapshot, int *count)
{
    int rows = PQntuples(snapshot->locks);
    Held *held = calloc((size_t)rows + 1, sizeof *held);

    *count = 0;
    for (int i = 0; held != NULL && i < rows; i++) {
        if (is_granted(snapshot->locks, i))
            held[(*count)++] = (Held){snapshot->locks, i, group_of(snapshot, i)};
    }
    if (held != NULL)
        qsort(held, (size_t)*count, sizeof *held, compare_held);
    return held;
}

/* The first that is `pid`'s of the lock at `row`, or where it would be. */
static int find_held(const Held *held, int count, int row, int pid)
{
    int low = 0;
    int high = count;

    while (low < high) {
        int middle = low + (high - low) / 2;
        int order = compare_tags(held[middle].locks, held[middle].row, row);

        if (order < 0 || (order == 0 && held[middle].pid < pid))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool modes_of(const PGresult *locks, int left, int right, LockMode *a, LockMode *b)
{
    return mode_of_lock(PQgetvalue(locks, left, LOCKS_MODE), a) &&
           mode_of_lock(PQgetvalue(locks, right, LOCKS_MODE), b);
}

/* What the edge's blocker holds that is in the way: the strongest, or the nth prepared one's. */
static void find_holding(const Snapshot *snapshot, const Held *held, int count, BlockedEdge *edge)
{
    LockMode strongest = MODE_ACCESS_SHARE;
    int nth = 0;

    for (int i = find_held(held, count, edge->lock, edge->pid);
         i < count && held[i].pid == edge->pid &&
         compare_tags(snapshot->locks, held[i].row, edge->lock) == 0;
         i++) {
        LockMode mode;
        LockMode wanted;

        if (!modes_of(snapshot->locks, held[i].row, edge->lock, &mode, &wanted) ||
            !mode_conflicts(mode, wanted))
            continue;
        if (edge->pid == 0) {
            if (nth++ == edge->nth) {
                edge->holding = held[i].row;
                edge->prepared = snapshot_lock_prepared(snapshot, held[i].row);
            }
        } else if (edge->holding == ROW_NONE || mode > strongest) {
            edge->holding = held[i].row;
            strongest = mode;
        }
    }
}

/* Is it the wait in which that session was seen? See the top, and LOOK_13. */
static bool is_same_wait(const Snapshot *snapshot, int lock, int waiter)
{
    if (PQnfields(snapshot->locks) > LOCKS_BLOCKERS)
        return strcmp(PQgetvalue(snapshot->locks, lock, LOCKS_BLOCKERS),
                      PQgetvalue(snapshot->sessions, waiter, SESSIONS_BLOCKERS)) == 0;
    return !PQgetisnull(snapshot->locks, lock, LOCKS_WAIT_START) &&
           strtoll(PQgetvalue(snapshot->locks, lock, LOCKS_WAIT_START), NULL, 10) <=
               strtoll(PQgetvalue(snapshot->sessions, waiter, SESSIONS_SEEN_AT), NULL, 10);
}

static bool find_locks(Blocked *blocked, Error *err)
{
    const Snapshot *snapshot = &blocked->snapshot;
    int rows = PQntuples(snapshot->sessions);
    int *waited_for = calloc((size_t)rows + 1, sizeof *waited_for); /* and 1, by session */
    int count = 0;
    Held *held = sort_held(snapshot, &count);
    bool ok = waited_for != NULL && held != NULL;

    for (int i = 0; ok && i < PQntuples(snapshot->locks); i++) {
        int session =
            is_granted(snapshot->locks, i) ? ROW_NONE : snapshot_lock_session(snapshot, i);

        if (session != ROW_NONE && !PQgetisnull(snapshot->sessions, session, SESSIONS_BLOCKERS) &&
            is_same_wait(snapshot, i, session))
            waited_for[session] = i + 1;
    }
    for (int i = 0; ok && i < blocked->count; i++) {
        BlockedEdge *edge = &blocked->edges[i];

        if (waited_for[edge->waiter] == 0)
            continue;
        edge->lock = waited_for[edge->waiter] - 1;
        find_holding(snapshot, held, count, edge);
    }
    free(waited_for);
    free(held);
    return ok || out_of_memory(err);
}

bool blocked_look(Blocked *blocked, Session *session, Error *err)
{
    Snapshot *snapshot = &blocked->snapshot;
    const char *values[] = {blocked->pids};
    PGresult *results[3] = {NULL, NULL, NULL};
    bool ok = false;

    if (!session_open(session, err))
        return false;
    if (!session_pipeline(session,
                          (Statement[]){{.sql = LOOK_TIMEOUT_SQL},
                                        {.sql = PREPARED_SQL},
                                        {.sql = session->server_version < 140000 ? LOOK_13 : LOOK,
                                         .count = 1,
                                         .types = TYPES,
                                         .values = values}},
                          3, results, WAIT_NORMAL, err))
        goto out;
    snapshot_add_locks(snapshot, &results[1], &results[2]);
    ok = snapshot_read_holders(snapshot, err) && find_locks(blocked, err);
    blocked->looked = ok;
out:
    for (int i = 0; i < 3; i++)
        PQclear(results[i]);
    return ok;
}

/* ---- order and fields ------------------------------------------------------------------------ */

/* Since when, in microseconds; INT64_MAX where that is not known. */
static int64_t waiting_since(const Blocked *blocked, const BlockedEdge *edge)
{
    const PGresult *locks = blocked->snapshot.locks;

    if (edge->lock == ROW_NONE || PQgetisnull(locks, edge->lock, LOCKS_WAIT_START))
        return INT64_MAX;
    return strtoll(PQgetvalue(locks, edge->lock, LOCKS_WAIT_START), NULL, 10);
}

static int compare_edges(const void *left, const void *right, void *context)
{
    const Blocked *blocked = context;
    int i = *(const int *)left;
    int j = *(const int *)right;
    const BlockedEdge *a = &blocked->edges[i];
    const BlockedEdge *b = &blocked->edges[j];
    int64_t since_a;
    int64_t since_b;
    int order = 0;

    if (a->waiter != b->waiter) {
        since_a = waiting_since(blocked, a);
        since_b = waiting_since(blocked, b);
        order = (since_a > since_b) - (since_a < since_b);
        if (order == 0)
            order = snapshot_compare_running(&blocked->snapshot, a->waiter, b->waiter);
    }
    return order != 0 ? order : i - j;
}

void blocked_sort(const Blocked *blocked, int *edges, int count)
{
    qsort_r(edges, (size_t)count, sizeof *edges, compare_edges, (void *)blocked);
}

bool blocked_knows(LockField field)
{
    return field == LOCK_PID || field == LOCK_GRANTED;
}

void blocked_lock(const Blocked *blocked, const BlockedEdge *edge, LockField field, Value *value)
{
    const Snapshot *snapshot = &blocked->snapshot;

    if (field == LOCK_PID) {
        snapshot_session(snapshot, edge->waiter, SESSION_PID, value);
    } else if (field == LOCK_GRANTED) {
        value->kind = VALUE_BOOLEAN;
        value->boolean = false;
    } else if (edge->lock != ROW_NONE) {
        snapshot_lock(snapshot, edge->lock, field, value);
    } else {
        value->kind = VALUE_NONE;
    }
}

void blocked_mode(const Blocked *blocked, const BlockedEdge *edge, Value *value)
{
    if (edge->holding != ROW_NONE)
        snapshot_lock(&blocked->snapshot, edge->holding, LOCK_MODE, value);
    else
        value->kind = VALUE_NONE;
}
