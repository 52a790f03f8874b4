#include "locks/snapshot.h"

#include "base/pqbuffer.h"
#include "locks/mode.h"
#include "locks/snapshot_sql.h"
#include "pg/type.h"

#include <stdlib.h>
#include <string.h>

const char *const LOCK_FIELD_NAMES[] = {
    [LOCK_PID] = "pid",
    [LOCK_TYPE] = "type",
    [LOCK_MODE] = "mode",
    [LOCK_GRANTED] = "granted",
    [LOCK_FASTPATH] = "fastpath",
    [LOCK_RELATION] = "relation",
    [LOCK_RELATION_KIND] = "relation_kind",
    [LOCK_SCHEMA] = "schema",
    [LOCK_DATABASE] = "database",
    [LOCK_KEY] = "key",
    [LOCK_CLASSID] = "classid",
    [LOCK_OBJID] = "objid",
    [LOCK_OBJSUBID] = "objsubid",
    [LOCK_TRANSACTIONID] = "transactionid",
    [LOCK_VIRTUALXID] = "virtualxid",
    [LOCK_PAGE] = "page",
    [LOCK_TUPLE] = "tuple",
    [LOCK_WAIT_START] = "wait_start",
    [LOCK_WAIT_DURATION] = "wait_duration",
};

const char *const SESSION_FIELD_NAMES[] = {
    [SESSION_PID] = "pid",
    [SESSION_LEADER_PID] = "leader_pid",
    [SESSION_USER] = "user",
    [SESSION_DATABASE] = "database",
    [SESSION_APPLICATION_NAME] = "application_name",
    [SESSION_CLIENT_ADDR] = "client_addr",
    [SESSION_BACKEND_TYPE] = "backend_type",
    [SESSION_STATE] = "state",
    [SESSION_WAIT_EVENT_TYPE] = "wait_event_type",
    [SESSION_WAIT_EVENT] = "wait_event",
    [SESSION_QUERY] = "query",
    [SESSION_QUERY_ID] = "query_id",
    [SESSION_BACKEND_START] = "backend_start",
    [SESSION_XACT_START] = "xact_start",
    [SESSION_QUERY_START] = "query_start",
    [SESSION_STATE_CHANGE] = "state_change",
    [SESSION_DURATION] = "duration",
    [SESSION_XACT_DURATION] = "xact_duration",
    [SESSION_STATE_DURATION] = "state_duration",
    [SESSION_HIDDEN] = "hidden",
};

/* The moment is the asking session's row, while the sessions are read; the locks come after it. */
/* clang-format off */
#define SESSIONS_SQL(query_id)                                                                     \
    "SELECT " SESSIONS_COLUMNS(query_id) ","                                                       \
    " CASE WHEN a.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() THEN "                    \
    EPOCH_US("pg_catalog.clock_timestamp()") " END"                                                \
    " FROM pg_catalog.pg_stat_get_activity(NULL) a"
#define LOCKS_SQL(wait_start)                                                                      \
    "SELECT " LOCKS_COLUMNS(wait_start) " FROM pg_catalog.pg_lock_status() l"
/* clang-format on */

static const char SESSIONS[] = SESSIONS_SQL("a.query_id");
static const char SESSIONS_13[] = SESSIONS_SQL(NO_INTEGER);
static const char LOCKS[] = LOCKS_SQL(EPOCH_US("l.waitstart"));
static const char LOCKS_13[] = LOCKS_SQL(NO_INTEGER);

/* Joined, since `= ANY` of a long list goes through it for each row where a generic plan scans. */
#define WANTED "pg_catalog.unnest($1::pg_catalog.oid[]) AS o(oid)"
static const char RELATIONS[] =
    "SELECT c.oid, c.relname, n.nspname, c.relkind FROM " WANTED
    " JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) o.oid"
    " JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace ORDER BY c.oid";
static const char DATABASES[] =
    "SELECT d.oid, d.datname FROM " WANTED
    " JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) o.oid ORDER BY d.oid";
static const char ROLES[] =
    "SELECT r.oid, r.rolname FROM " WANTED
    " JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) o.oid ORDER BY r.oid";

/* ---- reading --------------------------------------------------------------------------------- */

/* A field that the server wrote as an integer; 0 where it is null. */
static int64_t integer_at(const PGresult *result, int row, int column)
{
    const char *text = PQgetvalue(result, row, column);
    bool negative = *text == '-';
    int64_t value = 0;

    for (text += negative; *text >= '0' && *text <= '9'; text++)
        value = value * 10 + (*text - '0');
    return negative ? -value : value;
}

static Oid oid_at(const PGresult *result, int row, int column)
{
    return (Oid)integer_at(result, row, column);
}

static bool is_true(const PGresult *result, int row, int column)
{
    return PQgetvalue(result, row, column)[0] == 't';
}

static double seconds_at(const PGresult *result, int row, int column)
{
    return (double)integer_at(result, row, column) / 1e6;
}

static bool out_of_memory(Error *err)
{
    return error_set(err, ERROR_SQL, "out of memory");
}

/* Room for `count` of them, and one more, so that none is no failure. */
static void *new_array(int count, size_t size)
{
    return calloc((size_t)count + 1, size);
}

/* ---- names of oids --------------------------------------------------------------------------- */

enum { NAME_OID, NAME_NAME, NAME_SCHEMA, NAME_KIND };

static void forget_names(Snapshot *snapshot)
{
    PQclear(snapshot->relations);
    PQclear(snapshot->databases);
    PQclear(snapshot->roles);
    snapshot->relations = snapshot->databases = snapshot->roles = NULL;
    snapshot->named = false;
}

void snapshot_clear(Snapshot *snapshot)
{
    PQclear(snapshot->sessions);
    PQclear(snapshot->prepared);
    PQclear(snapshot->locks);
    forget_names(snapshot);
    free(snapshot->by_pid);
    free(snapshot->holders);
    free(snapshot->order);
    *snapshot = (Snapshot){0};
}

/* The row of an oid in a result that is in their order, or ROW_NONE. NULL has none. */
static int find_name(const PGresult *names, Oid oid)
{
    int low = 0;
    int high = PQntuples(names) - 1;

    while (low <= high) {
        int middle = low + (high - low) / 2;
        Oid found = oid_at(names, middle, NAME_OID);

        if (found == oid)
            return middle;
        if (found < oid)
            low = middle + 1;
        else
            high = middle - 1;
    }
    return ROW_NONE;
}

static void set_text(Value *value, const char *text)
{
    value->kind = VALUE_TEXT;
    value->text = text;
}

/* What the oid in this field is called, else its digits; none where it is null, or 0. */
static void set_name(Value *value, const PGresult *names, const PGresult *result, int row,
                     int column)
{
    Oid oid = oid_at(result, row, column);
    int found = find_name(names, oid);

    if (found != ROW_NONE)
        set_text(value, PQgetvalue(names, found, NAME_NAME));
    else if (oid != 0)
        set_text(value, PQgetvalue(result, row, column));
    else
        value->kind = VALUE_NONE;
}

/* ---- sessions -------------------------------------------------------------------------------- */

static int pid_at(const Snapshot *snapshot, int row)
{
    return (int)integer_at(snapshot->sessions, row, SESSIONS_PID);
}

static int compare_pids(const void *left, const void *right, void *context)
{
    int a = pid_at(context, *(const int *)left);
    int b = pid_at(context, *(const int *)right);

    return (a > b) - (a < b);
}

bool snapshot_read_sessions(Snapshot *snapshot, Error *err)
{
    int rows = PQntuples(snapshot->sessions);
    bool found = false;

    snapshot->by_pid = new_array(rows, sizeof *snapshot->by_pid);
    if (snapshot->by_pid == NULL)
        return out_of_memory(err);
    for (int i = 0; i < rows; i++) {
        snapshot->by_pid[i] = i;
        if (is_true(snapshot->sessions, i, SESSIONS_ASKS)) {
            found = true;
            snapshot->asker = pid_at(snapshot, i);
            snapshot->database = oid_at(snapshot->sessions, i, SESSIONS_DATID);
            snapshot->taken_at = seconds_at(snapshot->sessions, i, SESSIONS_SEEN_AT);
        }
    }
    qsort_r(snapshot->by_pid, (size_t)rows, sizeof *snapshot->by_pid, compare_pids, snapshot);
    return found || error_set(err, ERROR_SQL, "the server does not show the session that asks");
}

int snapshot_find_session(const Snapshot *snapshot, int pid)
{
    int low = 0;
    int high = PQntuples(snapshot->sessions) - 1;

    while (low <= high) {
        int middle = low + (high - low) / 2;
        int row = snapshot->by_pid[middle];
        int found = pid_at(snapshot, row);

        if (found == pid)
            return row;
        if (found < pid)
            low = middle + 1;
        else
            high = middle - 1;
    }
    return ROW_NONE;
}

int snapshot_compare_running(const Snapshot *snapshot, int left, int right)
{
    bool left_known =
        left != ROW_NONE && !PQgetisnull(snapshot->sessions, left, SESSIONS_QUERY_START);
    bool right_known =
        right != ROW_NONE && !PQgetisnull(snapshot->sessions, right, SESSIONS_QUERY_START);
    int64_t a;
    int64_t b;

    if (!left_known || !right_known)
        return left_known ? -1 : right_known ? 1 : 0;
    a = integer_at(snapshot->sessions, left, SESSIONS_QUERY_START);
    b = integer_at(snapshot->sessions, right, SESSIONS_QUERY_START);
    return (a > b) - (a < b);
}

/* ---- prepared transactions ------------------------------------------------------------------- */

static const char *holder_at(const Snapshot *snapshot, int row)
{
    return PQgetvalue(snapshot->locks, row, LOCKS_HOLDER);
}

static int compare_holders(const void *left, const void *right, void *context)
{
    return strcmp(holder_at(context, ((const SnapshotHolder *)left)->lock),
                  holder_at(context, ((const SnapshotHolder *)right)->lock));
}

/* The row of `prepared` with the transaction id of a row of `locks`, or ROW_NONE. */
static int find_prepared(const Snapshot *snapshot, int row)
{
    const char *xid = PQgetvalue(snapshot->locks, row, LOCKS_TRANSACTIONID);

    for (int i = 0; i < PQntuples(snapshot->prepared); i++) {
        if (strcmp(PQgetvalue(snapshot->prepared, i, PREPARED_XID), xid) == 0)
            return i;
    }
    return ROW_NONE;
}

void snapshot_add_locks(Snapshot *snapshot, PGresult **prepared, PGresult **locks)
{
    snapshot->prepared = *prepared;
    snapshot->locks = *locks;
    *prepared = *locks = NULL;
    forget_names(snapshot);
}

/*
 * A prepared transaction's locks say no pid, nor which transaction it is; but one of them is that
 * of its transaction id.
 */
bool snapshot_read_holders(Snapshot *snapshot, Error *err)
{
    int room = PQntuples(snapshot->prepared);

    snapshot->holders = new_array(room, sizeof *snapshot->holders);
    if (snapshot->holders == NULL)
        return out_of_memory(err);
    for (int i = 0; i < PQntuples(snapshot->locks) && snapshot->holder_count < room; i++) {
        int prepared;

        if (PQgetisnull(snapshot->locks, i, LOCKS_HOLDER) ||
            PQgetisnull(snapshot->locks, i, LOCKS_TRANSACTIONID))
            continue;
        prepared = find_prepared(snapshot, i);
        if (prepared != ROW_NONE)
            snapshot->holders[snapshot->holder_count++] = (SnapshotHolder){i, prepared};
    }
    qsort_r(snapshot->holders, (size_t)snapshot->holder_count, sizeof *snapshot->holders,
            compare_holders, snapshot);
    return true;
}

int snapshot_lock_prepared(const Snapshot *snapshot, int row)
{
    int low = 0;
    int high = snapshot->holder_count - 1;

    if (PQgetisnull(snapshot->locks, row, LOCKS_HOLDER))
        return ROW_NONE;
    while (low <= high) {
        int middle = low + (high - low) / 2;
        int order =
            strcmp(holder_at(snapshot, snapshot->holders[middle].lock), holder_at(snapshot, row));

        if (order == 0)
            return snapshot->holders[middle].prepared;
        if (order < 0)
            low = middle + 1;
        else
            high = middle - 1;
    }
    return ROW_NONE;
}

void snapshot_prepared(const Snapshot *snapshot, int row, PreparedTransaction *prepared)
{
    prepared->gid = PQgetvalue(snapshot->prepared, row, PREPARED_GID);
    prepared->at = seconds_at(snapshot->prepared, row, PREPARED_AT);
    set_name(&prepared->user, snapshot->roles, snapshot->prepared, row, PREPARED_OWNER);
    set_name(&prepared->database, snapshot->databases, snapshot->prepared, row, PREPARED_DATABASE);
}

/* ---- which locks, and their order ------------------------------------------------------------ */

int snapshot_lock_session(const Snapshot *snapshot, int row)
{
    if (PQgetisnull(snapshot->locks, row, LOCKS_PID))
        return ROW_NONE;
    return snapshot_find_session(snapshot, (int)integer_at(snapshot->locks, row, LOCKS_PID));
}

/* Is it of this database, or of what all share? Then its relation can be looked up here. */
static bool is_local(const Snapshot *snapshot, int row)
{
    Oid database;

    if (PQgetisnull(snapshot->locks, row, LOCKS_DATABASE))
        return false;
    database = oid_at(snapshot->locks, row, LOCKS_DATABASE);
    return database == snapshot->database || database == 0;
}

Oid snapshot_lock_relation(const Snapshot *snapshot, int row)
{
    return is_local(snapshot, row) ? oid_at(snapshot->locks, row, LOCKS_RELATION) : 0;
}

/* A lock that is of no database is of the one that its session or prepared transaction is in. */
static bool is_meant(const Snapshot *snapshot, int row, int session)
{
    int prepared;

    if (!PQgetisnull(snapshot->locks, row, LOCKS_DATABASE))
        return is_local(snapshot, row);
    if (session != ROW_NONE)
        return oid_at(snapshot->sessions, session, SESSIONS_DATID) == snapshot->database;
    prepared = snapshot_lock_prepared(snapshot, row);
    return prepared != ROW_NONE &&
           oid_at(snapshot->prepared, prepared, PREPARED_DATABASE) == snapshot->database;
}

typedef struct {
    int row;
    int rank;           /* of its session, by how long its statement has run */
    int64_t waiting_us; /* since when; INT64_MAX where that is not known */
} OrderedLock;

static int compare_waiting(const void *left, const void *right)
{
    const OrderedLock *a = left;
    const OrderedLock *b = right;

    if (a->waiting_us != b->waiting_us)
        return a->waiting_us < b->waiting_us ? -1 : 1;
    if (a->rank != b->rank)
        return a->rank - b->rank;
    return a->row - b->row;
}

static int compare_sessions(const void *left, const void *right, void *context)
{
    int a = *(const int *)left;
    int b = *(const int *)right;
    int order = snapshot_compare_running(context, a, b);

    return order != 0 ? order : pid_at(context, a) - pid_at(context, b);
}

/* ranks[row]: the place of that row of `sessions` among all, by how long its statement has run. */
static bool rank_sessions(Snapshot *snapshot, int *ranks)
{
    int rows = PQntuples(snapshot->sessions);
    int *sorted = new_array(rows, sizeof *sorted);

    if (sorted == NULL)
        return false;
    for (int i = 0; i < rows; i++)
        sorted[i] = i;
    qsort_r(sorted, (size_t)rows, sizeof *sorted, compare_sessions, snapshot);
    for (int i = 0; i < rows; i++)
        ranks[sorted[i]] = i;
    free(sorted);
    return true;
}

/* The session of a lock, quickly where it is that of the lock before. */
static int next_session(const Snapshot *snapshot, int row, int *pid, int session)
{
    int next = PQgetisnull(snapshot->locks, row, LOCKS_PID)
                   ? 0
                   : (int)integer_at(snapshot->locks, row, LOCKS_PID);

    if (next == *pid)
        return session;
    *pid = next;
    return next == 0 ? ROW_NONE : snapshot_find_session(snapshot, next);
}

/*
 * Choose the locks that are meant, and order them. There are few sessions and many locks: those
 * that are granted are put in the places that are counted out for their session's rank.
 */
static bool order_locks(Snapshot *snapshot, Error *err)
{
    int rows = PQntuples(snapshot->locks);
    int sessions = PQntuples(snapshot->sessions);
    int *ranks = new_array(sessions, sizeof *ranks);
    int *places = new_array(sessions + 1, sizeof *places); /* the last: of no session */
    OrderedLock *chosen = new_array(rows, sizeof *chosen);
    int waiting = 0;
    int granted = 0;
    int session = ROW_NONE;
    int pid = 0;
    int place;
    bool ok = false;

    snapshot->order = new_array(rows, sizeof *snapshot->order);
    if (ranks == NULL || places == NULL || chosen == NULL || snapshot->order == NULL ||
        !rank_sessions(snapshot, ranks))
        goto out;
    for (int i = 0; i < rows; i++) {
        OrderedLock *lock;

        session = next_session(snapshot, i, &pid, session);
        if ((pid != 0 && pid == snapshot->asker) || !is_meant(snapshot, i, session))
            continue;
        /* The waiting ones from the front, the granted ones from the back. */
        lock = is_true(snapshot->locks, i, LOCKS_GRANTED) ? &chosen[rows - ++granted]
                                                          : &chosen[waiting++];
        *lock = (OrderedLock){i, session == ROW_NONE ? sessions : ranks[session], INT64_MAX};
        if (!PQgetisnull(snapshot->locks, i, LOCKS_WAIT_START))
            lock->waiting_us = integer_at(snapshot->locks, i, LOCKS_WAIT_START);
    }
    qsort(chosen, (size_t)waiting, sizeof *chosen, compare_waiting);
    for (int i = 0; i < waiting; i++)
        snapshot->order[i] = chosen[i].row;
    for (int i = rows - granted; i < rows; i++)
        places[chosen[i].rank]++;
    place = waiting;
    for (int i = 0; i <= sessions; i++) {
        int count = places[i];

        places[i] = place;
        place += count;
    }
    for (int i = rows - 1; i >= rows - granted; i--)
        snapshot->order[places[chosen[i].rank]++] = chosen[i].row;
    snapshot->count = waiting + granted;
    ok = true;
out:
    free(ranks);
    free(places);
    free(chosen);
    return ok || out_of_memory(err);
}

bool snapshot_take(Snapshot *snapshot, Session *session, Error *err)
{
    PGresult *results[4] = {NULL, NULL, NULL, NULL};
    bool is_13;
    bool ok = false;

    if (!session_open(session, err))
        return false;
    is_13 = session->server_version < 140000;
    if (!session_pipeline(session,
                          (Statement[]){{.sql = LOOK_TIMEOUT_SQL},
                                        {.sql = is_13 ? SESSIONS_13 : SESSIONS},
                                        {.sql = PREPARED_SQL},
                                        {.sql = is_13 ? LOCKS_13 : LOCKS}},
                          4, results, WAIT_NORMAL, err))
        goto out;
    snapshot->sessions = results[1];
    results[1] = NULL;
    snapshot_add_locks(snapshot, &results[2], &results[3]);
    ok = snapshot_read_sessions(snapshot, err) && snapshot_read_holders(snapshot, err) &&
         order_locks(snapshot, err);
out:
    for (int i = 0; i < 4; i++)
        PQclear(results[i]);
    return ok;
}

/* ---- names ----------------------------------------------------------------------------------- */

typedef struct {
    Oid *oids;
    int count;
} OidList;

static void add_oid(OidList *list, Oid oid)
{
    /* Neighbours are often the same; the rest is sorted out by unique_oids. */
    if (oid != 0 && (list->count == 0 || list->oids[list->count - 1] != oid))
        list->oids[list->count++] = oid;
}

static int compare_oids(const void *left, const void *right)
{
    Oid a = *(const Oid *)left;
    Oid b = *(const Oid *)right;

    return (a > b) - (a < b);
}

static void unique_oids(OidList *list)
{
    int kept = 0;

    qsort(list->oids, (size_t)list->count, sizeof *list->oids, compare_oids);
    for (int i = 0; i < list->count; i++) {
        if (kept == 0 || list->oids[kept - 1] != list->oids[i])
            list->oids[kept++] = list->oids[i];
    }
    list->count = kept;
}

void snapshot_name_only(Snapshot *snapshot, const int *rows, int count)
{
    snapshot->to_name = rows;
    snapshot->to_name_count = count;
}

static void relation_oids(const Snapshot *snapshot, OidList *list)
{
    bool all = snapshot->to_name == NULL;
    int count = all ? PQntuples(snapshot->locks) : snapshot->to_name_count;

    for (int i = 0; i < count; i++) {
        int row = all ? i : snapshot->to_name[i];

        if (!PQgetisnull(snapshot->locks, row, LOCKS_RELATION))
            add_oid(list, snapshot_lock_relation(snapshot, row));
    }
    unique_oids(list);
}

static void database_oids(const Snapshot *snapshot, OidList *list)
{
    for (int i = 0; i < PQntuples(snapshot->sessions); i++)
        add_oid(list, oid_at(snapshot->sessions, i, SESSIONS_DATID));
    for (int i = 0; i < PQntuples(snapshot->prepared); i++)
        add_oid(list, oid_at(snapshot->prepared, i, PREPARED_DATABASE));
    for (int i = 0; i < PQntuples(snapshot->locks); i++)
        add_oid(list, oid_at(snapshot->locks, i, LOCKS_DATABASE));
    unique_oids(list);
}

static void role_oids(const Snapshot *snapshot, OidList *list)
{
    for (int i = 0; i < PQntuples(snapshot->sessions); i++)
        add_oid(list, oid_at(snapshot->sessions, i, SESSIONS_USESYSID));
    for (int i = 0; i < PQntuples(snapshot->prepared); i++)
        add_oid(list, oid_at(snapshot->prepared, i, PREPARED_OWNER));
    unique_oids(list);
}

/* PostgreSQL's array of them. */
static void append_oids(PQExpBuffer out, const OidList *list)
{
    char text[TEXT_INTEGER_SIZE];

    appendPQExpBufferChar(out, '{');
    for (int i = 0; i < list->count; i++) {
        if (i > 0)
            appendPQExpBufferChar(out, ',');
        appendPQExpBufferStr(out, text_integer(text, list->oids[i]));
    }
    appendPQExpBufferChar(out, '}');
}

/*
 * Each in a transaction of its own, since each may have to give up. `values` has room for one value
 * a statement, `arrays` is its memory.
 */
static void name_statements(const Snapshot *snapshot, OidList *list, PQExpBuffer arrays,
                            const char **values, Statement *statements)
{
    static const Oid TEXT[] = {TYPE_TEXT};
    static const struct {
        void (*gather)(const Snapshot *, OidList *);
        const char *sql;
    } NAMES[] = {{relation_oids, RELATIONS}, {database_oids, DATABASES}, {role_oids, ROLES}};

    for (int i = 0; i < 3; i++) {
        list->count = 0;
        NAMES[i].gather(snapshot, list);
        append_oids(&arrays[i], list);
        values[i] = arrays[i].data;
        statements[2 * i] = (Statement){.sql = LOOK_TIMEOUT_SQL};
        statements[2 * i + 1] = (Statement){
            .sql = NAMES[i].sql, .count = 1, .types = TEXT, .values = &values[i], .sync = true};
    }
}

static PGresult *take_names(PGresult **result)
{
    PGresult *taken = *result;

    if (PQresultStatus(taken) != PGRES_TUPLES_OK)
        return NULL;
    *result = NULL;
    return taken;
}

bool snapshot_name(Snapshot *snapshot, Session *session, Error *err)
{
    int room =
        PQntuples(snapshot->locks) + PQntuples(snapshot->sessions) + PQntuples(snapshot->prepared);
    OidList list = {new_array(room, sizeof *list.oids), 0};
    PQExpBufferData arrays[3];
    const char *values[3];
    Statement statements[6];
    PGresult *results[6] = {NULL};
    bool ok = true;

    for (int i = 0; i < 3; i++)
        initPQExpBuffer(&arrays[i]);
    snapshot->named = true;
    if (list.oids == NULL)
        goto out;
    name_statements(snapshot, &list, arrays, values, statements);
    if (!session_pipeline(session, statements, 6, results, WAIT_NORMAL, err))
        ok = err->kind != ERROR_CANCELLED;
    snapshot->relations = take_names(&results[1]);
    snapshot->databases = take_names(&results[3]);
    snapshot->roles = take_names(&results[5]);
out:
    for (int i = 0; i < 6; i++)
        PQclear(results[i]);
    for (int i = 0; i < 3; i++)
        termPQExpBuffer(&arrays[i]);
    free(list.oids);
    return ok;
}

/* ---- fields ---------------------------------------------------------------------------------- */

bool lock_field_is_name(LockField field)
{
    return field == LOCK_RELATION || field == LOCK_RELATION_KIND || field == LOCK_SCHEMA ||
           field == LOCK_DATABASE;
}

bool session_field_is_name(SessionField field)
{
    return field == SESSION_USER || field == SESSION_DATABASE;
}

static void set_number(Value *value, double number)
{
    value->kind = VALUE_NUMBER;
    value->number = number;
}

static void set_integer(Value *value, int64_t integer)
{
    value->kind = VALUE_INTEGER;
    value->integer = integer;
}

static void set_boolean(Value *value, bool boolean)
{
    value->kind = VALUE_BOOLEAN;
    value->boolean = boolean;
}

/* Fields as they came. */
static void read_text(Value *value, const PGresult *result, int row, int column)
{
    if (!PQgetisnull(result, row, column))
        set_text(value, PQgetvalue(result, row, column));
}

static void read_integer(Value *value, const PGresult *result, int row, int column)
{
    if (!PQgetisnull(result, row, column))
        set_integer(value, integer_at(result, row, column));
}

static void read_moment(Value *value, const PGresult *result, int row, int column)
{
    if (!PQgetisnull(result, row, column))
        set_number(value, seconds_at(result, row, column));
}

/* From that moment to the snapshot's, in seconds; what began in between took no time. */
static void read_duration(Value *value, const Snapshot *snapshot, const PGresult *result, int row,
                          int column)
{
    double duration;

    if (PQgetisnull(result, row, column))
        return;
    duration = snapshot->taken_at - seconds_at(result, row, column);
    set_number(value, duration > 0 ? duration : 0);
}

/* "ACCESS EXCLUSIVE"; a mode that is none of the eight is called as pg_locks does. */
static void read_mode(Value *value, const PGresult *locks, int row)
{
    const char *text = PQgetvalue(locks, row, LOCKS_MODE);
    LockMode mode;

    set_text(value, mode_of_lock(text, &mode) ? mode_name(mode) : text);
}

static const char *relation_kind(const char *relkind)
{
    static const char *const KINDS[] = {
        ['r'] = "table",
        ['i'] = "index",
        ['S'] = "sequence",
        ['t'] = "toast table",
        ['v'] = "view",
        ['m'] = "materialized view",
        ['c'] = "composite type",
        ['f'] = "foreign table",
        ['p'] = "partitioned table",
        ['I'] = "partitioned index",
    };
    size_t kind = (unsigned char)relkind[0];

    return kind < sizeof KINDS / sizeof KINDS[0] && KINDS[kind] != NULL ? KINDS[kind] : relkind;
}

static void read_relation(Value *value, const Snapshot *snapshot, int row, LockField field)
{
    Oid oid = snapshot_lock_relation(snapshot, row);
    int found = oid == 0 ? ROW_NONE : find_name(snapshot->relations, oid);

    if (found == ROW_NONE) {
        if (field == LOCK_RELATION)
            read_text(value, snapshot->locks, row, LOCKS_RELATION);
    } else if (field == LOCK_RELATION) {
        set_text(value, PQgetvalue(snapshot->relations, found, NAME_NAME));
    } else if (field == LOCK_SCHEMA) {
        set_text(value, PQgetvalue(snapshot->relations, found, NAME_SCHEMA));
    } else {
        set_text(value, relation_kind(PQgetvalue(snapshot->relations, found, NAME_KIND)));
    }
}

/* An advisory lock's, by the rule of key_parts. */
static void read_key(Value *value, const PGresult *locks, int row)
{
    Oid classid = oid_at(locks, row, LOCKS_CLASSID);
    Oid objid = oid_at(locks, row, LOCKS_OBJID);
    int64_t form = integer_at(locks, row, LOCKS_OBJSUBID);

    if (strcmp(PQgetvalue(locks, row, LOCKS_TYPE), "advisory") != 0 || (form != 1 && form != 2))
        return;
    value->kind = VALUE_KEY;
    if (form == 1)
        value->key = (LockKey){.key = (int64_t)((uint64_t)classid << 32 | objid)};
    else
        value->key = (LockKey){.pair = true, .first = (int32_t)classid, .second = (int32_t)objid};
}

void snapshot_lock(const Snapshot *snapshot, int row, LockField field, Value *value)
{
    const PGresult *locks = snapshot->locks;

    value->kind = VALUE_NONE;
    switch (field) {
    case LOCK_PID:
        read_integer(value, locks, row, LOCKS_PID);
        break;
    case LOCK_TYPE:
        read_text(value, locks, row, LOCKS_TYPE);
        break;
    case LOCK_MODE:
        read_mode(value, locks, row);
        break;
    case LOCK_GRANTED:
        set_boolean(value, is_true(locks, row, LOCKS_GRANTED));
        break;
    case LOCK_FASTPATH:
        set_boolean(value, is_true(locks, row, LOCKS_FASTPATH));
        break;
    case LOCK_RELATION:
    case LOCK_RELATION_KIND:
    case LOCK_SCHEMA:
        read_relation(value, snapshot, row, field);
        break;
    case LOCK_DATABASE:
        set_name(value, snapshot->databases, locks, row, LOCKS_DATABASE);
        break;
    case LOCK_KEY:
        read_key(value, locks, row);
        break;
    case LOCK_CLASSID:
        read_integer(value, locks, row, LOCKS_CLASSID);
        break;
    case LOCK_OBJID:
        read_integer(value, locks, row, LOCKS_OBJID);
        break;
    case LOCK_OBJSUBID:
        read_integer(value, locks, row, LOCKS_OBJSUBID);
        break;
    case LOCK_TRANSACTIONID:
        read_integer(value, locks, row, LOCKS_TRANSACTIONID);
        break;
    case LOCK_VIRTUALXID:
        read_text(value, locks, row, LOCKS_VIRTUALXID);
        break;
    case LOCK_PAGE:
        read_integer(value, locks, row, LOCKS_PAGE);
        break;
    case LOCK_TUPLE:
        read_integer(value, locks, row, LOCKS_TUPLE);
        break;
    case LOCK_WAIT_START:
        read_moment(value, locks, row, LOCKS_WAIT_START);
        break;
    case LOCK_WAIT_DURATION:
        read_duration(value, snapshot, locks, row, LOCKS_WAIT_START);
        break;
    case LOCK_FIELDS:
        break;
    }
}

void snapshot_session(const Snapshot *snapshot, int row, SessionField field, Value *value)
{
    const PGresult *sessions = snapshot->sessions;

    value->kind = VALUE_NONE;
    switch (field) {
    case SESSION_PID:
        read_integer(value, sessions, row, SESSIONS_PID);
        break;
    case SESSION_LEADER_PID:
        read_integer(value, sessions, row, SESSIONS_LEADER_PID);
        break;
    case SESSION_USER:
        set_name(value, snapshot->roles, sessions, row, SESSIONS_USESYSID);
        break;
    case SESSION_DATABASE:
        set_name(value, snapshot->databases, sessions, row, SESSIONS_DATID);
        break;
    case SESSION_APPLICATION_NAME:
        read_text(value, sessions, row, SESSIONS_APPLICATION_NAME);
        break;
    case SESSION_CLIENT_ADDR:
        read_text(value, sessions, row, SESSIONS_CLIENT_ADDR);
        break;
    case SESSION_BACKEND_TYPE:
        read_text(value, sessions, row, SESSIONS_BACKEND_TYPE);
        break;
    case SESSION_STATE:
        read_text(value, sessions, row, SESSIONS_STATE);
        break;
    case SESSION_WAIT_EVENT_TYPE:
        read_text(value, sessions, row, SESSIONS_WAIT_EVENT_TYPE);
        break;
    case SESSION_WAIT_EVENT:
        read_text(value, sessions, row, SESSIONS_WAIT_EVENT);
        break;
    case SESSION_QUERY:
        read_text(value, sessions, row, SESSIONS_QUERY);
        break;
    case SESSION_QUERY_ID:
        read_integer(value, sessions, row, SESSIONS_QUERY_ID);
        break;
    case SESSION_BACKEND_START:
        read_moment(value, sessions, row, SESSIONS_BACKEND_START);
        break;
    case SESSION_XACT_START:
        read_moment(value, sessions, row, SESSIONS_XACT_START);
        break;
    case SESSION_QUERY_START:
        read_moment(value, sessions, row, SESSIONS_QUERY_START);
        break;
    case SESSION_STATE_CHANGE:
        read_moment(value, sessions, row, SESSIONS_STATE_CHANGE);
        break;
    case SESSION_DURATION:
        read_duration(value, snapshot, sessions, row, SESSIONS_QUERY_START);
        break;
    case SESSION_XACT_DURATION:
        read_duration(value, snapshot, sessions, row, SESSIONS_XACT_START);
        break;
    case SESSION_STATE_DURATION:
        read_duration(value, snapshot, sessions, row, SESSIONS_STATE_CHANGE);
        break;
    case SESSION_HIDDEN:
        if (is_true(sessions, row, SESSIONS_HIDDEN))
            set_boolean(value, true);
        break;
    case SESSION_FIELDS:
        break;
    }
}
