#include "runner/link.h"

#include "base/clock.h"
#include "base/log.h"
#include "runner/schema.h"

#include <string.h>

enum {
    STANDBY_US = 2000000, /* between two looks whether it was promoted */
    STEP_US = 1000000,
};

bool link_init(Link *link, const char *conninfo, bool stateless, const StoreRunner *runner,
               Error *err)
{
    *link = (Link){
        .conninfo = conninfo,
        .stateless = stateless,
        .runner = *runner,
        .lost.fd = -1,
    };
    return bell_open(&link->lost, err);
}

void link_free(Link *link)
{
    link_close(link, false);
    bell_close(&link->lost);
}

/* ---- connecting ------------------------------------------------------------------------------ */

static bool open_session(Session **session, const char *conninfo, Error *err)
{
    *session = session_new(conninfo, NULL, "lockkeeper: serve", POOLER_UNKNOWN);
    if (*session == NULL)
        return error_set(err, ERROR_USAGE, "out of memory");
    if (!session_open(*session, err))
        return false;
    if (session_keeps_state(*session))
        return true;
    error_usage(err, "a pooler stands between the runner and its database, which may give its session "
                     "to other clients");
    return error_hint(err, "Connect to the server itself, or to a pool in session mode.");
}

static bool is_standby(Session *session, bool *standby, Error *err)
{
    static const Statement STATEMENT = {.sql = "SELECT pg_catalog.pg_is_in_recovery()", .constant = true};
    PGresult *result = session_query(session, &STATEMENT, WAIT_NORMAL, err);

    if (result == NULL)
        return false;
    *standby = PQgetvalue(result, 0, 0)[0] == 't';
    PQclear(result);
    return true;
}

/* One session is enough to wait on (runner.md 25). */
static bool await_primary(Session *session, Error *err)
{
    bool standby = session->in_recovery;

    if (!standby)
        return true;
    log_printf(LOG_WARNING, "the server is a standby: waiting for its promotion");
    while (standby) {
        if (wait_for(NULL, 0, clock_deadline(STANDBY_US), WAIT_NORMAL) == WAIT_INTERRUPTED)
            return wait_interrupted_error(err);
        if (!is_standby(session, &standby, err))
            return false;
    }
    return session_reconnect(session, err);
}

/* The schema as this program knows it: made or migrated, where it is not and may be. */
static bool prepare_schema(Session *session, Error *err)
{
    int version, before, after;

    if (!schema_version(session, &version, err))
        return false;
    if (version < schema_newest()) {
        if (!schema_migrate(session, &before, &after, err))
            return false;
        if (after != before)
            log_printf(LOG_INFO, "the schema lockkeeper was brought from version %d to %d", before,
                       after);
    }
    return schema_check(session, err);
}

static bool become_runner(Link *link, Error *err)
{
    if (!link->stateless)
        return store_register(link->ears, &link->runner, err) && store_listen(link->ears, err);
    link->runner.started_us = link_now(link);
    return true;
}

bool link_connect(Link *link, Error *err)
{
    int64_t error_us;

    bell_quiet(&link->lost);
    if (!open_session(&link->ears, link->conninfo, err) || !await_primary(link->ears, err) ||
        !open_session(&link->asks, link->conninfo, err) ||
        !(link->stateless || prepare_schema(link->asks, err)) ||
        !store_clock(link->asks, &link->offset_us, &error_us, err) || !become_runner(link, err)) {
        link_close(link, false);
        return false;
    }
    link->serving_since_us = link_now(link);
    return true;
}

void link_serve(Link *link)
{
    link->serving = true;
    wait_tell(link);
}

void link_close(Link *link, bool leave)
{
    Error ignored;

    link->serving = false;
    turn_take(&link->turn);
    if (leave && !link->stateless && link->asks != NULL)
        store_leave(link->asks, &link->runner, &ignored);
    session_free(link->asks);
    session_free(link->ears);
    link->asks = link->ears = NULL;
    turn_give(&link->turn);
}

/* ---- asking ---------------------------------------------------------------------------------- */

Session *link_begin(Link *link)
{
    turn_take(&link->turn);
    if (link->serving && link->asks != NULL && !link->asks->lost)
        return link->asks;
    turn_give(&link->turn);
    return NULL;
}

void link_end(Link *link, const Error *err)
{
    if (link->asks->lost || (err != NULL && err->kind == ERROR_CONNECTION)) {
        link->serving = false;
        bell_ring(&link->lost);
    }
    turn_give(&link->turn);
}

int64_t link_now(const Link *link)
{
    return clock_monotonic_us() + link->offset_us;
}

int64_t link_when(const Link *link, int64_t instant_us)
{
    return instant_us == INT64_MAX ? CLOCK_NEVER : instant_us - link->offset_us;
}

bool link_measure(Link *link, Session *session, bool *back, Error *err)
{
    int64_t before_us = link->offset_us, error_us;

    if (!store_clock(session, &link->offset_us, &error_us, err))
        return false;
    *back = link->offset_us < before_us - STEP_US;
    if (*back || link->offset_us > before_us + STEP_US)
        log_printf(LOG_WARNING, "the database's clock was set %s by %.1f s", *back ? "back" : "forward",
                   (double)(*back ? before_us - link->offset_us : link->offset_us - before_us) / 1e6);
    return true;
}
