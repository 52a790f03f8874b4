/*
 * What snapshot.c and blocked.c ask, and in which columns the answers come. Where a column is newer
 * than PostgreSQL 13, the statement is made twice, with NULL in its place for 13.
 */
#ifndef LOCKKEEPER_LOCKS_SNAPSHOT_SQL_H
#define LOCKKEEPER_LOCKS_SNAPSHOT_SQL_H

/* clang-format off */

/*
 * For the transaction of the statements that are sent with it. A server of SQL_ASCII converts
 * nothing, but refuses to send what is no UTF-8 to whom it is to be: one session's statement in
 * Latin 1 would hide all the others. What is shown is made UTF-8 later.
 */
#define LOOK_TIMEOUT_SQL                                                                           \
    "SELECT pg_catalog.set_config('lock_timeout', '500ms', true),"                                 \
    " CASE WHEN pg_catalog.current_setting('server_encoding') OPERATOR(pg_catalog.=) 'SQL_ASCII'"  \
    " THEN pg_catalog.set_config('client_encoding', 'SQL_ASCII', true) END"

/* Since the epoch, in microseconds: no setting changes how an integer is written. */
#define EPOCH_US(moment)                                                                           \
    "(pg_catalog.date_part('epoch', " moment                                                       \
    ") OPERATOR(pg_catalog.*) '1e6'::pg_catalog.float8)::pg_catalog.int8"
#define NO_INTEGER "NULL::pg_catalog.int8"

/* A role that may not see a session is shown this in place of its query, and no times. */
#define IS_HIDDEN                                                                                  \
    "(a.backend_start IS NULL AND a.query OPERATOR(pg_catalog.=) '<insufficient privilege>')"

/* The columns of sessions. `query_id` is one, of PostgreSQL 14. */
#define SESSIONS_COLUMNS(query_id)                                                                 \
    "a.datid, a.pid, a.usesysid, a.application_name, a.state,"                                     \
    " CASE WHEN NOT " IS_HIDDEN " THEN a.query END AS query, a.wait_event_type, a.wait_event, "    \
    EPOCH_US("a.xact_start") " AS xact_start, "                                                    \
    EPOCH_US("a.query_start") " AS query_start, "                                                  \
    EPOCH_US("a.backend_start") " AS backend_start, "                                              \
    EPOCH_US("a.state_change") " AS state_change,"                                                 \
    " pg_catalog.host(a.client_addr) AS client_addr, a.backend_type, a.leader_pid, "               \
    query_id " AS query_id, " IS_HIDDEN " AS hidden,"                                              \
    " a.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AS asks"

enum {
    SESSIONS_DATID,
    SESSIONS_PID,
    SESSIONS_USESYSID,
    SESSIONS_APPLICATION_NAME,
    SESSIONS_STATE,
    SESSIONS_QUERY,
    SESSIONS_WAIT_EVENT_TYPE,
    SESSIONS_WAIT_EVENT,
    SESSIONS_XACT_START,
    SESSIONS_QUERY_START,
    SESSIONS_BACKEND_START,
    SESSIONS_STATE_CHANGE,
    SESSIONS_CLIENT_ADDR,
    SESSIONS_BACKEND_TYPE,
    SESSIONS_LEADER_PID,
    SESSIONS_QUERY_ID,
    SESSIONS_HIDDEN,
    SESSIONS_ASKS,     /* this is the session that asks */
    SESSIONS_SEEN_AT,  /* the clock: where it asks, and where it waits (blocked.c) */
    SESSIONS_BLOCKERS, /* blocked.c only: where it waits, the pids that block it */
    SESSIONS_UNSEEN,   /* blocked.c only: where it asks, may others wait unseen? */
};

/* The columns of locks. `wait_start` is one, of PostgreSQL 14. */
#define LOCKS_COLUMNS(wait_start)                                                                  \
    "l.locktype, l.database, l.relation, l.page, l.tuple, l.virtualxid, l.transactionid,"          \
    " l.classid, l.objid, l.objsubid,"                                                             \
    " CASE WHEN l.pid IS NULL THEN l.virtualtransaction END AS holder,"                            \
    " l.pid, l.mode, l.granted, l.fastpath, " wait_start " AS wait_start"

enum {
    LOCKS_TYPE, /* up to LOCKS_OBJSUBID: the lock's tag */
    LOCKS_DATABASE,
    LOCKS_RELATION,
    LOCKS_PAGE,
    LOCKS_TUPLE,
    LOCKS_VIRTUALXID,
    LOCKS_TRANSACTIONID,
    LOCKS_CLASSID,
    LOCKS_OBJID,
    LOCKS_OBJSUBID,
    LOCKS_HOLDER, /* of a prepared transaction: which one, as the server numbers them */
    LOCKS_PID,
    LOCKS_MODE,
    LOCKS_GRANTED,
    LOCKS_FASTPATH,
    LOCKS_WAIT_START,
    LOCKS_BLOCKERS, /* blocked.c with PostgreSQL 13 only */
};

#define PREPARED_SQL                                                                               \
    "SELECT p.transaction, p.gid, " EPOCH_US("p.prepared") ", p.ownerid, p.dbid"                   \
    " FROM pg_catalog.pg_prepared_xact() p"

/* clang-format on */

enum { PREPARED_XID, PREPARED_GID, PREPARED_AT, PREPARED_OWNER, PREPARED_DATABASE };

#endif
