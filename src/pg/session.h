/*
 * A session: one connection to PostgreSQL, what runs on it, and what would be lost with it.
 *
 * A session is made unopened and connects when it is first used. It is never silently reconnected:
 * once the connection broke, every use fails ("lock_lost" where it held a lock, else "connection")
 * until session_reconnect. One caller at a time: a second one gets a usage error.
 *
 * Functions return false or NULL with *err set. Results belong to the caller (PQclear).
 */
#ifndef LOCKKEEPER_PG_SESSION_H
#define LOCKKEEPER_PG_SESSION_H

#include "base/error.h"
#include "pg/statement.h"
#include "pg/wait.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum { POOLER_UNKNOWN, POOLER_SESSION } PoolerPromise;

/* What ends with the session, or with its transaction: a lock. Lives in the lock's own memory. */
typedef struct SessionHold {
    struct SessionHold *next, *previous;
    struct Session *session; /* NULL: no longer held, or the session has gone */
    const char *kind;        /* one constant a kind of lock, told apart by its address */
    bool in_transaction;     /* ends with the transaction */
    void (*gone)(struct SessionHold *hold); /* it is off the list: what becomes of its memory */
    char name[64];           /* for messages */
} SessionHold;

/* What the session does at this moment, so that a second user is refused. */
typedef enum {
    SESSION_FREE,
    SESSION_BUSY,
    SESSION_STREAMS,
    SESSION_COPIES_IN,
    SESSION_COPIES_OUT,
} SessionActivity;

typedef enum {
    DEFER_USABLE, /* once the transaction has not failed any more, or is over */
    DEFER_IDLE,   /* once no transaction is open */
} DeferUntil;

typedef struct Deferred Deferred;

/* What becomes of a statement whose reply is read later. */
typedef void StatementDone(void *context, const PGresult *result);

/* A statement that was sent, and whose reply is still to be read. */
enum { SESSION_AHEAD_MAX = 32 };
typedef struct {
    uint64_t preparing; /* the number it is prepared under by the way, or 0 */
    StatementDone *done;
    void *context;
} SentAhead;

/* Read-only outside src/pg. What every use looks at comes first, what is large last. */
typedef struct Session {
    char *conninfo;
    char *name; /* for `using`; may be NULL */
    char *application;
    PoolerPromise promise;

    PGconn *conn; /* NULL: not open */
    bool lost;    /* the connection broke; `loss` says why */
    bool in_recovery;
    bool pooled; /* statements may reach different backends: nothing of a session is kept */
    int pid;            /* of the backend */
    int server_version; /* server_version_num, e.g. 150018 */

    SessionActivity activity;
    uint64_t uses;       /* grows with each use: the number of the one under way */
    WaitMode mode;       /* of what is under way */
    int64_t deadline_us; /* give up then: set once an interrupt came, and by a heartbeat */
    bool cancelled;      /* what is under way was cancelled because of an interrupt */
    bool deferring;
    bool in_block;   /* a transaction was open when the last statement ended */
    int depth;       /* how many blocks are open */
    int ahead_count; /* what was sent ahead: libpq is in pipeline mode where there is any */
    uint64_t serials;
    uint64_t era; /* grows when a transaction block ends: "is it still the same one?" */
    Deferred *deferred;
    SessionHold holds; /* ring with this as its anchor */

    StatementCache cache;
    uint64_t transactions[32]; /* the open blocks' serial numbers, outermost first */
    bool savepoints[32];       /* is block i a savepoint? */
    SentAhead ahead[SESSION_AHEAD_MAX]; /* oldest first */
    Error owed; /* what was found wrong with one of them, until somebody is told; or kind NONE */
    Error loss;
} Session;

/* `name` may be NULL. NULL where memory ran out. */
Session *session_new(const char *conninfo, const char *name, const char *application,
                     PoolerPromise promise);

/* Close and free. NULL is fine. */
void session_free(Session *session);

/* Connect unless it is connected. Asks what it is connected to and sets what a lock needs. */
bool session_open(Session *session, Error *err);

/*
 * End the connection and with it every lock; it opens again at its next use. What was sent ahead is
 * settled before; an error that is then owed is logged.
 */
void session_close(Session *session);

/* Close and open again. */
bool session_reconnect(Session *session, Error *err);

/*
 * Put what its user has set, made or heard on it back to how it was after connecting: settings, role,
 * temporary tables, cursors, channels, advisory locks, notifications. What we have prepared stays.
 * One round trip. *renewed: false where something is left (statements that were prepared by SQL).
 * Not in a transaction.
 */
bool session_renew(Session *session, bool *renewed, Error *err);

/*
 * While a reason is set no session connects or is used: a usage error says the reason. For files
 * that are loaded to see what they define. NULL: they are. Copied.
 */
void session_forbid(const char *reason);

/* The reason that is set, or NULL. */
const char *session_forbidden(void);

/* Has the session the right to session-level state: no pooler between, or one that keeps it? */
bool session_keeps_state(const Session *session);

/* PQtransactionStatus: PQTRANS_IDLE (also where it is not open, or lost), PQTRANS_INTRANS, … */
PGTransactionStatusType session_transaction(const Session *session);

/*
 * Ask whether the other end is still there, and still the same backend, and give it `within_us` to
 * answer; if not, the session is lost. For a session that has nothing else to do while something
 * depends on its locks: TCP alone does not notice a server that hangs, or a proxy that does.
 */
bool session_heartbeat(Session *session, int64_t within_us, Error *err);

/* ---- statements ---------------------------------------------------------------------------- */

/*
 * One statement with parameters. Tuples or a command's result. In WAIT_CLEANUP mode, which is for
 * giving back, an interrupt does not end it; the server then has some seconds left to answer.
 */
PGresult *session_query(Session *session, const Statement *statement, WaitMode mode, Error *err);

/*
 * Several, in one round trip. `results` has room for `count`; each is set, NULL or PGRES_FATAL_ERROR
 * or PGRES_PIPELINE_ABORTED where it failed. False with the first error; the caller clears all.
 */
bool session_pipeline(Session *session, const Statement *statements, int count,
                      PGresult **results, WaitMode mode, Error *err);

/* session_pipeline for commands whose results do not matter. At most SESSION_COMMANDS_MAX. */
enum { SESSION_COMMANDS_MAX = 8 };
bool session_commands(Session *session, const Statement *statements, int count, WaitMode mode,
                      Error *err);

/* A text without parameters, possibly of several statements. The last one's result. */
PGresult *session_script(Session *session, const char *sql, Error *err);

/* The same, with the result thrown away. */
bool session_run(Session *session, const char *sql, WaitMode mode, Error *err);

/*
 * What the server makes of a statement without running it: the result's PQparamtype says the
 * parameters' types, PQftype the columns'. One round trip.
 */
PGresult *session_describe(Session *session, const Statement *statement, Error *err);

/* Set *err from a failed result, and note what it means for the session. Returns false. */
bool session_result_error(Session *session, const PGresult *result, const char *sql, Error *err);

/* ---- streams --------------------------------------------------------------------------------- */

/* Start a statement whose rows come one by one. */
bool session_stream(Session *session, const Statement *statement, Error *err);

/* The next row (one tuple), or NULL: with *done at the end, without it after an error. */
PGresult *session_stream_next(Session *session, bool *done, Error *err);


/* COPY … FROM STDIN: start, put pieces, end (with an `abort` reason: nothing is copied). */
bool session_copy_in(Session *session, const char *sql, Error *err);
bool session_copy_put(Session *session, const char *data, size_t length, Error *err);

/* COPY … TO STDOUT: start, get pieces (PQfreemem; NULL at the end or on error). */
bool session_copy_out(Session *session, const char *sql, Error *err);
char *session_copy_get(Session *session, size_t *length, Error *err);

/* End either. *rows: how many were copied. */
bool session_copy_end(Session *session, const char *abort, int64_t *rows, Error *err);

/*
 * Does the stream or the copy still go on which was `use` (session->uses) when it had begun? It may
 * have been ended by the rollback of its transaction, or with the connection.
 */
bool session_is_in_use(const Session *session, uint64_t use);

/* End what streams or copies, if something does: rows left are read, what was put is not copied. */
void session_abandon(Session *session);

/* ---- transactions ---------------------------------------------------------------------------- */

/* BEGIN with `options` ("ISOLATION LEVEL … READ ONLY", may be ""), or a savepoint inside one. */
bool session_begin(Session *session, const char *options, uint64_t *serial, Error *err);

/* Is this block still open? */
bool session_block_is_open(const Session *session, uint64_t serial);

/* End it and all inside it. Committing a block that has failed is an error, and rolls it back. */
bool session_commit(Session *session, uint64_t serial, Error *err);
bool session_rollback(Session *session, uint64_t serial, Error *err);

/* ---- notifications --------------------------------------------------------------------------- */

/* Wait for one. NULL without *err (kind ERROR_NONE): the deadline passed. PQfreemem it. */
PGnotify *session_notification(Session *session, int64_t deadline_us, Error *err);

/* ---- what would be lost ---------------------------------------------------------------------- */

void session_hold(Session *session, SessionHold *hold);
void session_let_go(SessionHold *hold);

/*
 * Run a statement as soon as the session can take it (at once if it can now), because now its
 * transaction has failed, or is open. Its text is a constant; its values (at most 2, none NULL) are
 * copied. `done` is called with its result (NULL: it failed, or will never run since the session
 * ended).
 */
bool session_defer(Session *session, DeferUntil until, const Statement *statement,
                   StatementDone *done, void *context);

/*
 * Send a statement now and read its reply at the session's next use, or when it is settled or
 * closed. Only where no transaction is open. `done` is called with the reply, which may be an
 * error's (NULL: the session ended before it came); it may call session_defer and session_owe, no
 * more. It is never called where this fails.
 */
bool session_send_ahead(Session *session, const Statement *statement, StatementDone *done,
                        void *context, Error *err);

/* Read all replies to what was sent ahead. An interrupt does not end it; it has some seconds. */
bool session_settle(Session *session, Error *err);

/* There is an error to be told, by whoever uses the session next. A second one is logged. */
void session_owe(Session *session, const Error *err);

/* Is there one? Then it is in *err, and not owed any more. */
bool session_owes(Session *session, Error *err);

#endif
