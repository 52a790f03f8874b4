/*
 * The supervisor's link to the state tables: one session that hears news and holds the runner's
 * lock, and one on which all else is asked, in turns. Where either is lost, both are made anew,
 * with a new uuid (runner.md 22 and 25).
 */
#ifndef LOCKKEEPER_RUNNER_LINK_H
#define LOCKKEEPER_RUNNER_LINK_H

#include "runner/bell.h"
#include "runner/store.h"

typedef struct {
    const char *conninfo;
    bool stateless;            /* there are no state tables: nothing is registered, heard or left */
    StoreRunner runner;
    bool serving;              /* linked: all else here holds */
    int64_t offset_us;         /* of the database's clock to the monotonic one */
    int64_t serving_since_us;  /* by the database's clock */
    Session *ears, *asks;      /* NULL: none */
    Turn turn;
    Bell lost;                 /* rung when a session was found to be lost */
} Link;

/* Borrows the texts of `runner`. */
bool link_init(Link *link, const char *conninfo, bool stateless, const StoreRunner *runner,
               Error *err);
void link_free(Link *link);

/*
 * Connect and become a runner. On a standby it waits until that is promoted. False with *err; kind
 * "connection": try again; else nothing that time alone would mend.
 */
bool link_connect(Link *link, Error *err);

/* From now on `serving`; whoever waits with wait_told(link) is told. */
void link_serve(Link *link);

/* Not serving any more. Both sessions are closed; `leave`: the runner's row is removed before. */
void link_close(Link *link, bool leave);

/*
 * The session to ask on, for oneself until link_end; NULL: not linked. link_end gets the error of
 * what was asked, or NULL: where the connection is lost, the link will be made anew.
 */
Session *link_begin(Link *link);
void link_end(Link *link, const Error *err);

/* The database's time. */
int64_t link_now(const Link *link);

/* When that time will be, by the monotonic clock. */
int64_t link_when(const Link *link, int64_t instant_us);

/* Measure the clock anew, on a session of link_begin. *back: it was set back by a second or more. */
bool link_measure(Link *link, Session *session, bool *back, Error *err);

#endif
