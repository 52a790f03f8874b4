/*
 * Pieces of statements, and values for them: for the files of the store only.
 *
 * Statements are run by transact (transact.h), so only tables are qualified.
 */
#ifndef LOCKKEEPER_RUNNER_STORE_SQL_H
#define LOCKKEEPER_RUNNER_STORE_SQL_H

#include "base/pqbuffer.h"
#include "runner/store.h"
#include "runner/transact.h"

#include <stdlib.h>

/* clang-format off */

/* An instant as microseconds since the epoch, both ways; exact until the year 2200. */
#define AT(us)      "('epoch'::timestamptz + " us " * '1 microsecond'::interval)"
#define US(instant) "(date_part('epoch', " instant ") * 1e6)::int8"

/*
 * Advisory keys are bigints; pg_locks shows their halves as classid and objid: a constant a kind,
 * and a number that tells which: a run's own, or the first 32 bits of a runner's uuid.
 */
#define RUNNER_CLASSID "1282102133" /* 0x4c6b5375, "LkSu" */
#define RUN_CLASSID    "1282101877" /* 0x4c6b5275, "LkRu" */
#define OBJID(key)     "(" key " & 4294967295)::oid"

/* Definitions are recorded by one host at a time, history is pruned by one ("LkJo", "LkPr"). */
#define RECORD_LOCK "5506576809992388608"
#define PRUNE_LOCK  "5506583419947057152"

#define ACTIVE "('due', 'claimed', 'running')"

/*
 * The same as r.state = 'due', where r is to be found by its job or number: plans are made when next to
 * nothing is due, and must not walk through all that is when there is much.
 */
#define IS_DUE(r)     "CASE " r ".state WHEN 'due' THEN true END"
#define IS_CLAIMED(r) "CASE " r ".state WHEN 'claimed' THEN true END"

/* The same for running ones; all of them are found by the index run_running. */
#define IS_RUNNING(r) "CASE " r ".state WHEN 'running' THEN true END"

/* A run r that replaces those of its job with an earlier slot. */
#define REPLACES(r)                                                                                \
    r ".state IN " ACTIVE " AND " r ".overlap = 'replace' AND " r ".attempt = 1"                   \
    " AND NOT " r ".catches_up"

/* The columns that runs_read reads, of an alias of lockkeeper.run. */
#define RUN_COLUMNS(r)                                                                             \
    r ".id, " r ".job, " r ".origin, " US(r ".slot") ", " r ".attempt, " r ".parent, "             \
    US(r ".due_at") ", " r ".state, " r ".reason"

/* A claimed run r was not begun: it waits for the next claim, unless it was cancelled meanwhile. */
#define COMES_BACK                                                                                 \
    "state = CASE WHEN r.cancel_at IS NULL THEN 'due' ELSE 'cancelled' END,"                       \
    " ended_at = CASE WHEN r.cancel_at IS NOT NULL THEN clock_timestamp() END,"                    \
    " runner = NULL, host = NULL, claimed_at = NULL"

/* Does the job j follow a run e that ended so? */
#define FOLLOWS(e, j)                                                                              \
    "CASE " j ".follows_on WHEN 'succeeded' THEN " e ".state = 'succeeded'"                        \
    " WHEN 'failed' THEN " e ".state IN ('failed', 'timed_out', 'lost')"                           \
    " ELSE " e ".state IN ('succeeded', 'failed', 'timed_out', 'lost', 'cancelled') END"

/* Tell others, once, if `rows` has any. */
#define TELL(what, rows) "(SELECT pg_notify('" STORE_CHANNEL "', '" what "')::text" rows " LIMIT 1)"

/*
 * What becomes of new runs, as far as it can be seen (runner.md 10). From
 *   fresh(job, origin, slot, parent, overlap, catches_up, skip, paused)
 * it makes
 *   decided(…, reason, begins): the reason for which it is skipped, or null; could it begin now?
 *
 * A run of the job that waits for another attempt is still at work. What can't be seen yet, since
 * another host inserts it at this moment, is left to the unique indexes and to the job's own lock.
 */
#define DECIDE                                                                                     \
    "live AS ("                                                                                    \
    "  SELECT f.*, f.skip IS NULL AND f.paused IS NOT TRUE AS lives FROM fresh f"                  \
    "), placed AS ("                                                                               \
    "  SELECT l.*, row_number() OVER w AS place, "                                           \
    "         count(*) OVER (PARTITION BY l.job, l.lives) AS places"                               \
    "    FROM live l WINDOW w AS (PARTITION BY l.job, l.lives ORDER BY l.slot)"                    \
    "), decided AS ("                                                                              \
    "  SELECT p.job, p.origin, p.slot, p.parent, p.overlap, p.catches_up,"                         \
    "         CASE WHEN p.skip IS NOT NULL THEN p.skip"                                            \
    "              WHEN NOT p.lives THEN 'paused'"                                                 \
    "              WHEN p.catches_up THEN NULL"                                                    \
    "              WHEN p.overlap = 'skip' AND (s.at_work OR p.place > 1) THEN 'busy'"             \
    "              WHEN p.overlap = 'queue' AND s.queue THEN 'busy'"                               \
    "              WHEN p.overlap = 'replace' AND s.newer THEN 'busy'"                             \
    "              WHEN p.overlap = 'replace' AND p.place < p.places THEN 'replaced' END AS reason,"   \
    "         CASE WHEN p.overlap = 'allow' AND NOT p.catches_up THEN true"                        \
    "              WHEN p.overlap = 'replace' THEN NOT s.at_work"                                  \
    "              ELSE NOT s.at_work AND p.place = 1 END AS begins"                               \
    "    FROM placed p CROSS JOIN LATERAL ("                                                       \
    "      SELECT count(*) > 0 AS at_work, coalesce(bool_or(r.slot > p.slot), false) AS newer,"    \
    "             coalesce(bool_or(r.state = 'due' AND r.overlap = 'queue' AND r.claims = 0"       \
    "               AND r.attempt = 1 AND NOT r.catches_up), false) AS queue"                      \
    "        FROM lockkeeper.run r"                                                                \
    "       WHERE p.lives AND r.job = p.job AND r.state IN " ACTIVE ") s"                          \
    ")"

/*
 * What follows runs that have ended (runner.md 8). From
 *   ended(id, job, origin, slot, attempt, parent, overlap, catches_up, state, error_kind,
 *         cancel_at, retry_after)
 * (retry_after: seconds; -1: never; -2: as the job's policy says) it makes
 *   again(id, follows): attempts that were inserted, and whose they are
 *   followed(id, job, state): runs of jobs that come after it
 * A run is over for those once no attempt is to come. Where REFUSED, another host has queued a run of
 * one of those jobs in the same instant: skip_refused_followers records what is missing.
 */
#define REFUSED "(SELECT count(*) FROM decided) > (SELECT count(*) FROM followed)"
#define RETRY_MAX "86400"
#define FOLLOW                                                                                     \
    "retried AS ("                                                                                 \
    "  SELECT e.*, CASE WHEN e.retry_after >= 0 THEN e.retry_after"                                \
    "    WHEN e.retry_after > -2 THEN NULL"                                                        \
    "    ELSE least(" RETRY_MAX ", j.retry_delay * exp(greatest(-40, least(40,"                    \
    "           (e.attempt - 1) * ln(greatest(j.retry_factor, 1e-9)))))) END AS delay"             \
    "    FROM ended e LEFT JOIN lockkeeper.job j ON j.name = e.job"                                \
    "   WHERE e.cancel_at IS NULL"                                                                 \
    "     AND CASE WHEN e.retry_after > -2 THEN e.retry_after >= 0"                                \
    "           ELSE e.state IN ('failed', 'timed_out', 'lost') AND e.attempt < j.retry_attempts"  \
    "             AND (e.state = ANY (j.retry_on) OR e.error_kind = ANY (j.retry_on)) END"         \
    "), again AS ("                                                                                \
    "  INSERT INTO lockkeeper.run AS r"                                                            \
    "         (job, origin, slot, attempt, parent, state, due_at, overlap, catches_up)"            \
    "  SELECT t.job, t.origin, t.slot, t.attempt + 1, t.parent, 'due',"                            \
    "         clock_timestamp() + make_interval(secs => t.delay), t.overlap, t.catches_up"         \
    "    FROM retried t ORDER BY t.job, t.slot"                                                    \
    "  ON CONFLICT DO NOTHING"                                                                     \
    "  RETURNING r.id, r.job"                                                                      \
    "), fresh AS ("                                                                                \
    "  SELECT j.name AS job, 'after'::text AS origin, e.slot, e.id AS parent, j.overlap,"          \
    "         false AS catches_up, NULL::text AS skip, j.paused"                                   \
    "    FROM ended e JOIN lockkeeper.job j ON j.follows = e.job AND j.enabled AND NOT j.gone"     \
    "   WHERE NOT EXISTS (SELECT FROM retried t WHERE t.id = e.id)"                                \
    "     AND " FOLLOWS("e", "j")                                                                  \
    "), " DECIDE ", followed AS ("                                                                 \
    "  INSERT INTO lockkeeper.run AS r"                                                            \
    "         (job, origin, slot, parent, state, reason, overlap, ended_at)"                       \
    "  SELECT d.job, d.origin, d.slot, d.parent,"                                                  \
    "         CASE WHEN d.reason IS NULL THEN 'due' ELSE 'skipped' END, d.reason, d.overlap,"      \
    "         CASE WHEN d.reason IS NOT NULL THEN clock_timestamp() END"                           \
    "    FROM decided d ORDER BY d.job, d.slot"                                                    \
    "  ON CONFLICT DO NOTHING"                                                                     \
    "  RETURNING r.id, r.job, r.state"                                                             \
    ")"
/* clang-format on */

/* A list as PostgreSQL's array: any of these, then array_end. */
void array_begin(PQExpBuffer array);
void array_text(PQExpBuffer array, const char *text); /* NULL: null */
void array_integer(PQExpBuffer array, int64_t number);
void array_number(PQExpBuffer array, double number);
void array_boolean(PQExpBuffer array, bool value);
void array_end(PQExpBuffer array);

/* The whole of a list of texts. */
void array_texts(PQExpBuffer array, const char *const *texts, int count);

/* Out of memory in one of these? Then false with *err. */
bool arrays_are_whole(const PQExpBufferData *arrays, int count, Error *err);
void arrays_free(PQExpBufferData *arrays, int count);

/* An integer as a parameter's text. */
#define INTEGER(number) text_integer((char[TEXT_INTEGER_SIZE]){0}, number)

/* A field as a number; STORE_NO_TIME where it is null. */
int64_t field_instant(const PGresult *result, int row, int column);
int64_t field_integer(const PGresult *result, int row, int column); /* 0 where it is null */
bool field_boolean(const PGresult *result, int row, int column);

/*
 * Read the rows of a result, whose first columns are RUN_COLUMNS, where `keep` (NULL: all) says so.
 * The result is theirs then, also where this fails.
 */
bool runs_read(StoreRuns *runs, PGresult *result, bool (*keep)(const StoreRun *run), Error *err);

#endif
