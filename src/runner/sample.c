#include "runner/sample.h"

#include "base/clock.h"
#include "base/log.h"
#include "runner/bell.h"
#include "runner/transact.h"

#include <stdlib.h>

enum {
    FRESH_US = 2000000,
    STALE_US = 15000000,
    PATIENCE_US = 1500000, /* what two glances may take, and a connection on a good day */
    AGAIN_US = 5000000, /* after one that failed */
    IDLE_US = 120000000,
};

struct Sampler {
    const char *conninfo;
    bool tables;
    Session *session; /* NULL: none */
    Sample newest;    /* what came last; its locks are NULL where there is none */
    Sample given;     /* what the caller has */
    int64_t again_us; /* do not ask before */
    uint64_t answers; /* grows with each try that is over */
    bool wanted;
    Bell asked, answered;
};

/* ---- what is asked --------------------------------------------------------------------------- */

/* clang-format off */

/*
 * Only functions are read, no relation that somebody might have locked. Locks of this database, of
 * what all databases share, and those of no database (transaction ids) that its sessions have.
 * `since` is when a lock began to be waited for.
 */
#define LOCKS_SQL(since)                                                                           \
    "WITH here AS MATERIALIZED ("                                                                  \
    "  SELECT a.pid, a.query_start FROM pg_stat_get_activity(NULL) a"                              \
    "   WHERE a.datid = (SELECT d.datid FROM pg_stat_get_activity(pg_backend_pid()) d)"            \
    "), locks AS MATERIALIZED ("                                                                   \
    "  SELECT l.locktype, l.granted, l.pid, " since " AS since"                                    \
    "    FROM pg_lock_status() l LEFT JOIN here h ON h.pid = l.pid"                                \
    "   WHERE l.pid IS DISTINCT FROM pg_backend_pid()"                                             \
    "     AND CASE WHEN l.database IS NULL THEN h.pid IS NOT NULL"                                 \
    "              ELSE l.database IN (0, (SELECT d.datid"                                         \
    "                FROM pg_stat_get_activity(pg_backend_pid()) d)) END"                          \
    ")"                                                                                            \
    " SELECT 'locks', coalesce(l.locktype, k.locktype), coalesce(l.granted, k.granted)::text,"     \
    "        count(l.locktype)::float8"                                                            \
    "   FROM locks l FULL JOIN (SELECT t.locktype, g.granted"                                      \
    "          FROM unnest('{relation,extend,page,tuple,transactionid,virtualxid,object,"          \
                           "advisory}'::text[]) AS t(locktype)"                                    \
    "          CROSS JOIN (VALUES (true), (false)) AS g(granted)) k"                               \
    "     ON k.locktype = l.locktype AND k.granted = l.granted"                                    \
    "  GROUP BY 2, 3"                                                                              \
    " UNION ALL"                                                                                   \
    " SELECT 'blocked', NULL, NULL, count(DISTINCT l.pid)::float8 FROM locks l WHERE NOT l.granted"\
    " UNION ALL"                                                                                   \
    " SELECT 'longest', NULL, NULL, coalesce(max(greatest(0,"                                      \
    "        date_part('epoch', clock_timestamp() - l.since))), 0)"                                \
    "   FROM locks l WHERE NOT l.granted"                                                          \
    " ORDER BY 1, 2, 3"

static const char LOCKS_SQL_13[] = LOCKS_SQL("h.query_start");
static const char LOCKS_SQL_14[] = LOCKS_SQL("l.waitstart");

static const char STATE_SQL[] =
    "SELECT 'runs', s.state, NULL::text, s.runs::float8"
    "  FROM (SELECT count(*) FILTER (WHERE r.state = 'due') AS due,"
    "               count(*) FILTER (WHERE r.state = 'claimed') AS claimed,"
    "               count(*) FILTER (WHERE r.state = 'running') AS running"
    "          FROM lockkeeper.run r WHERE r.state IN ('due', 'claimed', 'running')) c"
    "  CROSS JOIN LATERAL (VALUES ('due', c.due), ('claimed', c.claimed), ('running', c.running))"
    "    AS s(state, runs)"
    " UNION ALL"
    " SELECT 'paused', j.name, NULL, 1 FROM lockkeeper.job j WHERE j.paused AND NOT j.gone"
    " UNION ALL"
    " SELECT 'findings', f.audit, f.severity, count(*)::float8"
    "   FROM lockkeeper.finding f WHERE f.closed_at IS NULL GROUP BY 2, 3"
    " UNION ALL"
    " SELECT 'supervisors', NULL, NULL, count(*)::float8 FROM lockkeeper.runner"
    " ORDER BY 1, 2, 3";

/* clang-format on */

static bool ask(Sampler *sampler, Sample *sample, Error *err)
{
    Session *session = sampler->session;
    Statement locks = {.constant = true}, state = {.sql = STATE_SQL, .constant = true};

    locks.sql = session->server_version < 140000 ? LOCKS_SQL_13 : LOCKS_SQL_14;
    sample->locks = transact(session, &locks, TRANSACT_GLANCE, WAIT_NORMAL, err);
    if (sample->locks == NULL)
        return false;
    if (!sampler->tables)
        return true;
    sample->state = transact(session, &state, TRANSACT_GLANCE, WAIT_NORMAL, err);
    return sample->state != NULL;
}

/* ---- asking ---------------------------------------------------------------------------------- */

static void sample_clear(Sample *sample)
{
    PQclear(sample->locks);
    PQclear(sample->state);
    *sample = (Sample){0};
}

static void disconnect(Sampler *sampler)
{
    session_free(sampler->session);
    sampler->session = NULL;
}

static bool connect_once(Sampler *sampler, Error *err)
{
    if (sampler->session != NULL)
        return true;
    sampler->session =
        session_new(sampler->conninfo, NULL, "lockkeeper: metrics", POOLER_UNKNOWN);
    if (sampler->session == NULL)
        return error_set(err, ERROR_USAGE, "out of memory");
    if (session_open(sampler->session, err))
        return true;
    disconnect(sampler);
    return false;
}

/* Half of a sample is of use, too: what was not to be had is not known. */
static void take(Sampler *sampler)
{
    Sample sample = {0};
    Error err;

    if (!connect_once(sampler, &err) || !ask(sampler, &sample, &err)) {
        log_write(LOG_WARNING, "metrics could not be asked of the database",
                  (LogField[]){{.name = "error", .value = err.message}, {0}});
        sampler->again_us = clock_deadline(AGAIN_US);
        if (err.kind == ERROR_CONNECTION)
            disconnect(sampler);
    }
    if (sample.locks != NULL) {
        sample.taken_us = clock_monotonic_us();
        sample_clear(&sampler->newest);
        sampler->newest = sample;
    }
    sampler->answers++;
    bell_ring(&sampler->answered);
}

void sampler_run(Sampler *sampler)
{
    for (;;) {
        switch (bell_wait(&sampler->asked, clock_deadline(IDLE_US))) {
        case WAIT_READY:
            if (sampler->wanted)
                take(sampler);
            sampler->wanted = false;
            break;
        case WAIT_DEADLINE:
            disconnect(sampler);
            break;
        case WAIT_INTERRUPTED:
            disconnect(sampler);
            return;
        }
    }
}

static void adopt_newest(Sampler *sampler)
{
    if (sampler->newest.locks == NULL)
        return;
    sample_clear(&sampler->given);
    sampler->given = sampler->newest;
    sampler->newest = (Sample){0};
}

static bool is_younger(const Sample *sample, int64_t us)
{
    return sample->locks != NULL && clock_monotonic_us() - sample->taken_us < us;
}

const Sample *sampler_get(Sampler *sampler, bool linked)
{
    int64_t deadline_us = clock_deadline(PATIENCE_US);
    uint64_t answers = sampler->answers;

    adopt_newest(sampler);
    if (linked && !is_younger(&sampler->given, FRESH_US) &&
        clock_monotonic_us() >= sampler->again_us) {
        sampler->wanted = true;
        bell_ring(&sampler->asked);
        while (sampler->answers == answers &&
               bell_wait(&sampler->answered, deadline_us) == WAIT_READY)
            ;
        adopt_newest(sampler);
    }
    return is_younger(&sampler->given, STALE_US) ? &sampler->given : NULL;
}

/* ---- making it ------------------------------------------------------------------------------- */

Sampler *sampler_new(const char *conninfo, bool tables, Error *err)
{
    Sampler *sampler = calloc(1, sizeof *sampler);

    if (sampler == NULL) {
        error_set(err, ERROR_USAGE, "out of memory");
        return NULL;
    }
    *sampler = (Sampler){
        .conninfo = conninfo, .tables = tables, .asked.fd = -1, .answered.fd = -1};
    if (!bell_open(&sampler->asked, err) || !bell_open(&sampler->answered, err)) {
        sampler_free(sampler);
        return NULL;
    }
    return sampler;
}

void sampler_free(Sampler *sampler)
{
    if (sampler == NULL)
        return;
    disconnect(sampler);
    sample_clear(&sampler->newest);
    sample_clear(&sampler->given);
    bell_close(&sampler->asked);
    bell_close(&sampler->answered);
    free(sampler);
}
