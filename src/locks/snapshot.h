/*
 * What pg_locks and the activity of all sessions say at one moment. Sources: PostgreSQL manual,
 * "pg_locks", "pg_stat_activity" and "pg_prepared_xacts".
 *
 * A snapshot keeps what the server has sent, and reads a field of it when it is asked for. It is
 * zeroed first ((Snapshot){0}), then taken, and cleared at the end. Its texts live as long as it.
 *
 * No relation is read, only functions: a session that is warm gets its answer while somebody holds
 * ACCESS EXCLUSIVE on a catalog. What relations, databases and roles are called is asked apart from
 * it (snapshot_name); until then, and where that failed, they are called by their oids.
 */
#ifndef LOCKKEEPER_LOCKS_SNAPSHOT_H
#define LOCKKEEPER_LOCKS_SNAPSHOT_H

#include "locks/key.h"
#include "pg/session.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

/* A row of `locks` that says which prepared transaction its holder is. */
typedef struct {
    int lock, prepared;
} SnapshotHolder;

typedef struct {
    PGresult *sessions; /* one row a session */
    PGresult *prepared; /* one row a prepared transaction; NULL: not asked for */
    PGresult *locks;    /* rows of pg_locks; NULL: not asked for */
    PGresult *relations, *databases, *roles; /* their names, by oid; NULL: not known */
    bool named;                              /* snapshot_name was called */
    const int *to_name;                      /* see snapshot_name_only */
    int to_name_count;

    double taken_at; /* epoch seconds by the server's clock: durations end here */
    Oid database;    /* whose locks it is about */
    int asker;       /* the backend that answered: it does not show itself */

    int *by_pid; /* the rows of `sessions`, in the order of their pids */
    SnapshotHolder *holders;
    int holder_count;
    int *order; /* the rows of `locks` that are meant, in the order to show them in */
    int count;  /* how many */
} Snapshot;

/* No session, no prepared transaction, no lock. */
enum { ROW_NONE = -1 };

/*
 * Look: every lock of this database and of what all databases share; of those that are of no
 * database (transaction ids), the ones of this database's sessions and prepared transactions; the
 * sessions of the whole server; the prepared transactions. Not the asking session's own locks.
 * Waiting ones come first, the longest wait first, then those of the longest running statement.
 * One round trip, and one transaction; gives up (55P03) when a lock is in the way for 500 ms.
 */
bool snapshot_take(Snapshot *snapshot, Session *session, Error *err);

void snapshot_clear(Snapshot *snapshot);

/*
 * The rows of `locks` whose relations are to be named, instead of all: the array must last until
 * snapshot_name has been called. NULL: all.
 */
void snapshot_name_only(Snapshot *snapshot, const int *rows, int count);

/*
 * Ask for the names of what is in it, as far as they are to be had: what can't be asked, since a
 * catalog is locked for more than 500 ms, keeps its oid, and so does what is of another database.
 * One round trip. False only where the caller was interrupted.
 */
bool snapshot_name(Snapshot *snapshot, Session *session, Error *err);

/*
 * For blocked.c, which asks for itself: read what came into `sessions`, and into `prepared` and
 * `locks`. In between snapshot_add_locks takes the latter two over, whose names are not known yet.
 */
bool snapshot_read_sessions(Snapshot *snapshot, Error *err);
void snapshot_add_locks(Snapshot *snapshot, PGresult **prepared, PGresult **locks);
bool snapshot_read_holders(Snapshot *snapshot, Error *err);

/* ---- fields ---------------------------------------------------------------------------------- */

typedef enum {
    VALUE_NONE, /* it does not apply, or this role may not see it */
    VALUE_INTEGER,
    VALUE_NUMBER,
    VALUE_BOOLEAN,
    VALUE_TEXT,
    VALUE_KEY,
} ValueKind;

typedef struct {
    ValueKind kind;
    int64_t integer;
    double number;
    bool boolean;
    const char *text;
    LockKey key;
} Value;

typedef enum {
    LOCK_PID,
    LOCK_TYPE,
    LOCK_MODE,
    LOCK_GRANTED,
    LOCK_FASTPATH,
    LOCK_RELATION,
    LOCK_RELATION_KIND,
    LOCK_SCHEMA,
    LOCK_DATABASE,
    LOCK_KEY,
    LOCK_CLASSID,
    LOCK_OBJID,
    LOCK_OBJSUBID,
    LOCK_TRANSACTIONID,
    LOCK_VIRTUALXID,
    LOCK_PAGE,
    LOCK_TUPLE,
    LOCK_WAIT_START,
    LOCK_WAIT_DURATION,
    LOCK_FIELDS,
} LockField;

typedef enum {
    SESSION_PID,
    SESSION_LEADER_PID,
    SESSION_USER,
    SESSION_DATABASE,
    SESSION_APPLICATION_NAME,
    SESSION_CLIENT_ADDR,
    SESSION_BACKEND_TYPE,
    SESSION_STATE,
    SESSION_WAIT_EVENT_TYPE,
    SESSION_WAIT_EVENT,
    SESSION_QUERY,
    SESSION_QUERY_ID,
    SESSION_BACKEND_START,
    SESSION_XACT_START,
    SESSION_QUERY_START,
    SESSION_STATE_CHANGE,
    SESSION_DURATION,
    SESSION_XACT_DURATION,
    SESSION_STATE_DURATION,
    SESSION_HIDDEN, /* true where this role may not see the rest; else none */
    SESSION_FIELDS,
} SessionField;

/* "pid" and so on. */
extern const char *const LOCK_FIELD_NAMES[LOCK_FIELDS];
extern const char *const SESSION_FIELD_NAMES[SESSION_FIELDS];

/* Is it a name? Then snapshot_name comes first. */
bool lock_field_is_name(LockField field);
bool session_field_is_name(SessionField field);

/* A field of a row of `locks`, or of `sessions`. */
void snapshot_lock(const Snapshot *snapshot, int row, LockField field, Value *value);
void snapshot_session(const Snapshot *snapshot, int row, SessionField field, Value *value);

/* A row of `prepared`. */
typedef struct {
    const char *gid;
    Value user, database;
    double at; /* epoch seconds */
} PreparedTransaction;

void snapshot_prepared(const Snapshot *snapshot, int row, PreparedTransaction *prepared);

/* Whose lock it is: a row of `sessions`, else one of `prepared`, else ROW_NONE. */
int snapshot_lock_session(const Snapshot *snapshot, int row);
int snapshot_lock_prepared(const Snapshot *snapshot, int row);

/* The row of `sessions` of a pid, or ROW_NONE. */
int snapshot_find_session(const Snapshot *snapshot, int pid);

/* The relation that it is a lock of, or 0: of this database, or one that all share. */
Oid snapshot_lock_relation(const Snapshot *snapshot, int row);

/* Which session has run its statement for longer: as qsort has it. ROW_NONE is the last. */
int snapshot_compare_running(const Snapshot *snapshot, int left, int right);

#endif
