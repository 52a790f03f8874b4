/*
 * Row locks: a query with a locking clause. Source: PostgreSQL manual, "SELECT", "The Locking
 * Clause", and "Row-Level Locks".
 */
#ifndef LOCKKEEPER_LOCKS_ROWS_H
#define LOCKKEEPER_LOCKS_ROWS_H

#include "pg/session.h"

#include <stdint.h>

typedef struct {
    Statement query; /* with its locking clause */
    bool has_timeout;   /* else the session's lock_timeout holds */
    int64_t timeout_us; /* 0: try once (the clause says NOWAIT); DURATION_ENDLESS: for ever */
} RowsRequest;

/*
 * Lock the rows of a query until the transaction, which must be open, ends, and give them. Not
 * acquired: "not_acquired" (a try) or "lock_timeout", with the transaction still usable, as after
 * every other error. lock_timeout is what it was before. One round trip, one more where it fails.
 */
PGresult *rows_lock(Session *session, const RowsRequest *request, Error *err);

/*
 * session_describe under the same timeout and with the same care for the transaction: parsing the
 * query already waits for its tables. Three round trips.
 */
PGresult *rows_describe(Session *session, const RowsRequest *request, Error *err);

#endif
