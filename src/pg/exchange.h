/*
 * What happens between a session and its server while one caller uses it: inside src/pg only.
 *
 *   exchange_enter … send … exchange_receive … exchange_leave
 */
#ifndef LOCKKEEPER_PG_EXCHANGE_H
#define LOCKKEEPER_PG_EXCHANGE_H

#include "pg/session.h"

/*
 * Begin to use the session: open it, refuse a second user and, in WAIT_NORMAL mode, an interrupt;
 * then settle what was sent ahead.
 */
bool exchange_enter(Session *session, SessionActivity activity, WaitMode mode, Error *err);

/* End the use: note the transaction's state, and run what was deferred until now. */
void exchange_leave(Session *session);

/*
 * Wait until the socket has news, sending what is still unsent. An interrupt cancels the statement
 * and leaves it some seconds to end.
 */
bool exchange_wait(Session *session, Error *err);

/* Wait until all is sent: when there is nothing to be received before. */
bool exchange_flush(Session *session, Error *err);

/* The next result, NULL at the end of a statement's. False: the session is lost. */
bool exchange_receive(Session *session, PGresult **result, Error *err);

/* The connection broke: make the session lost, say so in *err. Returns false. */
bool exchange_broke(Session *session, Error *err);

/* Read results until the statement's end. For after an error. */
void exchange_drain(Session *session);

/* Note what a command's result means for the session; false with *err set where it is an error. */
bool exchange_check(Session *session, PGresult *result, const char *sql, Error *err);

/* Send one statement, outside pipeline mode, never preparing it. */
bool exchange_send(Session *session, const Statement *statement);

/* Run what was deferred and can run now; in transaction.c. */
void deferred_run(Session *session);

/* Drop all of it, and what was sent ahead, since the session has ended. */
void deferred_drop(Session *session);

#endif
