#include "runner/store.h"

#include "base/clock.h"
#include "base/duration.h"
#include "locks/advisory.h"
#include "pg/type.h"
#include "runner/store_sql.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

/* ---- words ----------------------------------------------------------------------------------- */

const char *const RUN_STATE_NAMES[] = {
    [RUN_DUE] = "due",
    [RUN_CLAIMED] = "claimed",
    [RUN_RUNNING] = "running",
    [RUN_SUCCEEDED] = "succeeded",
    [RUN_FAILED] = "failed",
    [RUN_TIMED_OUT] = "timed_out",
    [RUN_CANCELLED] = "cancelled",
    [RUN_LOST] = "lost",
    [RUN_SKIPPED] = "skipped",
    NULL,
};
const char *const RUN_ORIGIN_NAMES[] = {
    [ORIGIN_SCHEDULE] = "schedule",
    [ORIGIN_TRIGGER] = "trigger",
    [ORIGIN_AFTER] = "after",
    [ORIGIN_START] = "start",
    NULL,
};
const char *const OVERLAP_NAMES[] = {
    [OVERLAP_SKIP] = "skip",
    [OVERLAP_QUEUE] = "queue",
    [OVERLAP_REPLACE] = "replace",
    [OVERLAP_ALLOW] = "allow",
    NULL,
};
const char *const CATCHUP_NAMES[] = {
    [CATCHUP_LAST] = "last",
    [CATCHUP_ALL] = "all",
    [CATCHUP_NONE] = "none",
    NULL,
};
const char *const AFTER_ON_NAMES[] = {
    [AFTER_SUCCEEDED] = "succeeded",
    [AFTER_FAILED] = "failed",
    [AFTER_FINISHED] = "finished",
    NULL,
};

int store_word(const char *const *names, const char *word)
{
    for (int i = 0; names[i] != NULL; i++) {
        if (strcmp(names[i], word) == 0)
            return i;
    }
    return -1;
}

/* ---- the clock ------------------------------------------------------------------------------- */

static const char CLOCK_SQL[] =
    "SELECT (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())"
    " OPERATOR(pg_catalog.*) '1e6'::pg_catalog.float8)::pg_catalog.int8";

enum { CLOCK_TRIES = 3 };

bool store_clock(Session *session, int64_t *offset_us, int64_t *error_us, Error *err)
{
    *error_us = INT64_MAX;
    for (int i = 0; i < CLOCK_TRIES; i++) {
        Statement statement = {.sql = CLOCK_SQL, .constant = true};
        PGresult *result;
        int64_t before_us;
        int64_t after_us;

        if (!session_open(session, err))
            return false;
        before_us = clock_monotonic_us();
        result = session_query(session, &statement, WAIT_NORMAL, err);
        after_us = clock_monotonic_us();
        if (result == NULL)
            return false;
        if ((after_us - before_us) / 2 < *error_us) {
            *error_us = (after_us - before_us) / 2;
            *offset_us = field_integer(result, 0, 0) - before_us - *error_us;
        }
        PQclear(result);
    }
    return true;
}

/* ---- runners --------------------------------------------------------------------------------- */

enum { REGISTER_TRIES = 20 };

/* A key of a kind, as PostgreSQL makes one of its halves. */
static int64_t key_of(const char *classid, int64_t objid)
{
    return strtoll(classid, NULL, 10) << 32 | (objid & 0xffffffff);
}

int64_t store_run_key(int64_t run)
{
    return key_of(RUN_CLASSID, run);
}

/* A random uuid (RFC 4122, version 4). */
static bool draw_uuid(char uuid[STORE_UUID_SIZE], Error *err)
{
    unsigned char b[16];

    if (getrandom(b, sizeof b, 0) != (ssize_t)sizeof b)
        return error_set(err, ERROR_SQL, "no random bytes are to be had: %m");
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    snprintf(uuid, STORE_UUID_SIZE,
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
    return true;
}

/* The key of a uuid that draw_uuid made. */
static int64_t runner_key(const char *uuid)
{
    return key_of(RUNNER_CLASSID, (int64_t)strtoul(uuid, NULL, 16));
}

/* $1 uuid, $2 key, $3 host, $4 version, $5 zones, $6 workers, $7 started or null. */
static const char BEAT_SQL[] =
    "INSERT INTO lockkeeper.runner AS r"
    "       (uuid, lock, host, version, zones, workers, started, last_seen)"
    " SELECT $1, $2, $3, $4, $5, $6, coalesce(" AT("$7") ", clock_timestamp()), clock_timestamp()"
    " ON CONFLICT (uuid) DO UPDATE SET last_seen = excluded.last_seen, workers = excluded.workers"
    " RETURNING " US("r.started");
static const Oid BEAT_TYPES[] = {TYPE_UUID, TYPE_INT8, TYPE_TEXT, TYPE_TEXT,
                                 TYPE_TEXT, TYPE_INT4, TYPE_INT8};

static const char LEAVE_SQL[] = "DELETE FROM lockkeeper.runner r WHERE r.uuid = $1";

/* Versions of time-zone data sort as their bytes do. */
static const char ZONES_SQL[] =
    "SELECT max(r.zones COLLATE \"C\") FROM lockkeeper.runner r"
    " WHERE EXISTS (SELECT FROM pg_lock_status() l"
    "   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
    "     AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())"
    "     AND l.classid = " RUNNER_CLASSID " AND l.objid = " OBJID("r.lock") ")";

static bool beat(Session *session, const StoreRunner *runner, const char *started,
                 int64_t *started_us, Error *err)
{
    Statement statement = {
        .sql = BEAT_SQL,
        .count = 7,
        .types = BEAT_TYPES,
        .values = (const char *[]){runner->uuid, INTEGER(runner_key(runner->uuid)), runner->host,
                                   runner->version, runner->zones, INTEGER(runner->workers),
                                   started},
        .constant = true,
    };
    PGresult *result = transact(session, &statement, TRANSACT_WRITE, WAIT_NORMAL, err);

    if (result == NULL)
        return false;
    *started_us = field_integer(result, 0, 0);
    PQclear(result);
    return true;
}

bool store_register(Session *session, StoreRunner *runner, Error *err)
{
    for (int tries = 1; tries <= REGISTER_TRIES; tries++) {
        AdvisoryRequest request = {.name = "of this runner", .has_timeout = true};
        bool waited;

        if (!draw_uuid(runner->uuid, err))
            return false;
        request.key.key = runner_key(runner->uuid);
        if (!advisory_check_session(session, false, err))
            return false;
        if (!advisory_take(session, &request, &waited, err)) {
            if (err->kind == ERROR_NOT_ACQUIRED) /* another one has drawn the same 32 bits */
                continue;
            return false;
        }
        if (beat(session, runner, NULL, &runner->started_us, err))
            return true;
        if (strcmp(err->sqlstate, "23505") != 0) /* another one has started in this microsecond */
            return false;
    }
    return false;
}

bool store_beat(Session *session, const StoreRunner *runner, Error *err)
{
    int64_t started_us;

    return beat(session, runner, INTEGER(runner->started_us), &started_us, err);
}

bool store_leave(Session *session, const StoreRunner *runner, Error *err)
{
    Statement statement = {
        .sql = LEAVE_SQL,
        .count = 1,
        .types = (Oid[]){TYPE_UUID},
        .values = (const char *[]){runner->uuid},
        .constant = true,
    };
    PGresult *result = transact(session, &statement, TRANSACT_WRITE, WAIT_CLEANUP, err);

    PQclear(result);
    return result != NULL;
}

bool store_newest_zones(Session *session, char *version, size_t size, Error *err)
{
    Statement statement = {.sql = ZONES_SQL, .constant = true};
    PGresult *result = transact(session, &statement, TRANSACT_READ, WAIT_NORMAL, err);

    if (result == NULL)
        return false;
    text_copy(version, size, PQgetvalue(result, 0, 0));
    PQclear(result);
    return true;
}

bool store_listen(Session *session, Error *err)
{
    return session_run(session, "LISTEN " STORE_CHANNEL, WAIT_NORMAL, err);
}

/* ---- jobs ------------------------------------------------------------------------------------ */

/*
 * $1 to $13: the columns of `given`; $14: files. Under a lock, so that hosts with other versions of
 * the files can't lock rows crosswise. A schedule that is new, that comes back or that is enabled
 * has no past.
 */
#define CHANGED(column) "j." column " IS DISTINCT FROM g." column
static const char RECORD_SQL[] =
    "WITH given AS MATERIALIZED ("
    "  SELECT g.*, string_to_array(g.retry_words, ',') AS retry_on, clock_timestamp() AS now"
    "    FROM (SELECT pg_advisory_xact_lock(" RECORD_LOCK ")) AS alone,"
    "         unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
    "           AS g(name, file, definition, enabled, overlap, catchup_window, schedule, follows,"
    "                follows_on, retry_attempts, retry_delay, retry_factor, retry_words)"
    "), changed AS ("
    "  SELECT g.* FROM given g LEFT JOIN lockkeeper.job j ON j.name = g.name"
    "   WHERE j.name IS NULL OR j.gone OR j.last_seen < g.now - '1 hour'::interval"
    "      OR j.definition::text <> g.definition OR " CHANGED("file") " OR " CHANGED("enabled")
    "      OR " CHANGED("overlap") " OR " CHANGED("catchup_window") " OR " CHANGED("schedule")
    "      OR " CHANGED("follows") " OR " CHANGED("follows_on") " OR " CHANGED("retry_attempts")
    "      OR " CHANGED("retry_delay") " OR " CHANGED("retry_factor") " OR " CHANGED("retry_on")
    "), written AS ("
    "  INSERT INTO lockkeeper.job AS j"
    "         (name, file, definition, enabled, overlap, catchup_window, schedule, schedule_since,"
    "          follows, follows_on, retry_attempts, retry_delay, retry_factor, retry_on,"
    "          first_seen, last_seen)"
    "  SELECT c.name, c.file, c.definition::json, c.enabled, c.overlap, c.catchup_window,"
    "         c.schedule, c.now, c.follows, c.follows_on, c.retry_attempts, c.retry_delay,"
    "         c.retry_factor, c.retry_on, c.now, c.now"
    "    FROM changed c ORDER BY c.name"
    "  ON CONFLICT (name) DO UPDATE SET"
    "    file = excluded.file, definition = excluded.definition, enabled = excluded.enabled,"
    "    overlap = excluded.overlap, catchup_window = excluded.catchup_window,"
    "    schedule = excluded.schedule, follows = excluded.follows,"
    "    follows_on = excluded.follows_on, retry_attempts = excluded.retry_attempts,"
    "    retry_delay = excluded.retry_delay, retry_factor = excluded.retry_factor,"
    "    retry_on = excluded.retry_on, last_seen = excluded.last_seen, gone = false,"
    "    schedule_since = CASE WHEN j.gone OR (excluded.enabled AND NOT j.enabled)"
    "        OR j.schedule IS DISTINCT FROM excluded.schedule THEN excluded.schedule_since"
    "      ELSE j.schedule_since END"
    "  RETURNING j.name"
    "), vanished AS ("
    "  UPDATE lockkeeper.job j SET gone = true"
    "   WHERE j.file = ANY ($14) AND NOT j.gone"
    "     AND NOT EXISTS (SELECT FROM given g WHERE g.name = j.name)"
    "  RETURNING j.name"
    "), left_waiting AS ("
    "  UPDATE lockkeeper.run r"
    "     SET state = 'skipped', reason = 'gone', ended_at = clock_timestamp()"
    "    FROM vanished v WHERE r.job = v.name AND r.state = 'due'"
    ")"
    " SELECT (SELECT count(*) FROM written), (SELECT count(*) FROM vanished)";
enum {
    RECORD_NAME, RECORD_FILE, RECORD_DEFINITION, RECORD_ENABLED, RECORD_OVERLAP,
    RECORD_CATCHUP_WINDOW, RECORD_SCHEDULE, RECORD_FOLLOWS, RECORD_FOLLOWS_ON,
    RECORD_RETRY_ATTEMPTS, RECORD_RETRY_DELAY, RECORD_RETRY_FACTOR, RECORD_RETRY_ON,
    RECORD_FILES, RECORD_COUNT,
};
static const Oid RECORD_TYPES[RECORD_COUNT] = {
    [RECORD_NAME] = TYPE_TEXT_ARRAY,
    [RECORD_FILE] = TYPE_TEXT_ARRAY,
    [RECORD_DEFINITION] = TYPE_TEXT_ARRAY,
    [RECORD_ENABLED] = TYPE_BOOL_ARRAY,
    [RECORD_OVERLAP] = TYPE_TEXT_ARRAY,
    [RECORD_CATCHUP_WINDOW] = TYPE_FLOAT8_ARRAY,
    [RECORD_SCHEDULE] = TYPE_TEXT_ARRAY,
    [RECORD_FOLLOWS] = TYPE_TEXT_ARRAY,
    [RECORD_FOLLOWS_ON] = TYPE_TEXT_ARRAY,
    [RECORD_RETRY_ATTEMPTS] = TYPE_INT4_ARRAY,
    [RECORD_RETRY_DELAY] = TYPE_FLOAT8_ARRAY,
    [RECORD_RETRY_FACTOR] = TYPE_FLOAT8_ARRAY,
    [RECORD_RETRY_ON] = TYPE_TEXT_ARRAY,
    [RECORD_FILES] = TYPE_TEXT_ARRAY,
};

static const char RETRY_ON_DEFAULT[] = "failed,timed_out,lost";

/* The words with commas between, in `words`; the default where there are none. */
static const char *join_words(PQExpBuffer words, const char *const *list)
{
    if (list == NULL)
        return RETRY_ON_DEFAULT;
    resetPQExpBuffer(words);
    for (int i = 0; list[i] != NULL; i++)
        appendPQExpBuffer(words, "%s%s", i == 0 ? "" : ",", list[i]);
    return words->data;
}

static void add_job(PQExpBufferData arrays[RECORD_COUNT], const StoreJob *job, PQExpBuffer words)
{
    bool endless = job->catchup_window_us == DURATION_ENDLESS;

    array_text(&arrays[RECORD_NAME], job->name);
    array_text(&arrays[RECORD_FILE], job->file);
    array_text(&arrays[RECORD_DEFINITION], job->definition);
    array_boolean(&arrays[RECORD_ENABLED], job->enabled);
    array_text(&arrays[RECORD_OVERLAP], OVERLAP_NAMES[job->overlap]);
    if (endless)
        array_text(&arrays[RECORD_CATCHUP_WINDOW], NULL);
    else
        array_number(&arrays[RECORD_CATCHUP_WINDOW], (double)job->catchup_window_us / 1e6);
    array_text(&arrays[RECORD_SCHEDULE], job->schedule);
    array_text(&arrays[RECORD_FOLLOWS], job->after);
    array_text(&arrays[RECORD_FOLLOWS_ON], job->after ? AFTER_ON_NAMES[job->after_on] : NULL);
    array_integer(&arrays[RECORD_RETRY_ATTEMPTS], job->retry_attempts);
    array_number(&arrays[RECORD_RETRY_DELAY], (double)job->retry_delay_us / 1e6);
    array_number(&arrays[RECORD_RETRY_FACTOR], job->retry_factor);
    array_text(&arrays[RECORD_RETRY_ON], join_words(words, job->retry_on));
}

bool store_record_jobs(Session *session, const StoreJob *jobs, int count, const char *const *files,
                       int file_count, Error *err)
{
    PQExpBufferData arrays[RECORD_COUNT];
    const char *values[RECORD_COUNT];
    PQExpBufferData words;
    PGresult *result = NULL;
    Statement statement = {
        .sql = RECORD_SQL,
        .count = RECORD_COUNT,
        .types = RECORD_TYPES,
        .values = values,
        .constant = true,
    };

    initPQExpBuffer(&words);
    for (int i = 0; i < RECORD_FILES; i++)
        array_begin(&arrays[i]);
    for (int i = 0; i < count; i++)
        add_job(arrays, &jobs[i], &words);
    for (int i = 0; i < RECORD_FILES; i++)
        array_end(&arrays[i]);
    array_texts(&arrays[RECORD_FILES], files, file_count);
    for (int i = 0; i < RECORD_COUNT; i++)
        values[i] = arrays[i].data;
    if (arrays_are_whole(arrays, RECORD_COUNT, err) && arrays_are_whole(&words, 1, err))
        result = transact(session, &statement, TRANSACT_WRITE, WAIT_NORMAL, err);
    arrays_free(arrays, RECORD_COUNT);
    termPQExpBuffer(&words);
    PQclear(result);
    return result != NULL;
}

static const char FACTS_SQL[] =
    "SELECT j.name IS NOT NULL, j.paused, " US("j.schedule_since") ", " US("newest.slot") ","
    "       " US("ended.ended_at") ","
    "       EXISTS (SELECT FROM lockkeeper.run r WHERE r.job = a.name AND r.state IN " ACTIVE ")"
    "  FROM unnest($1) WITH ORDINALITY AS a(name, place)"
    "  LEFT JOIN lockkeeper.job j ON j.name = a.name"
    "  LEFT JOIN LATERAL (SELECT r.slot FROM lockkeeper.run r"
    "    WHERE r.job = a.name AND r.origin = 'schedule'"
    "    ORDER BY r.origin DESC, r.slot DESC LIMIT 1) newest ON true"
    "  LEFT JOIN LATERAL (SELECT r.ended_at FROM lockkeeper.run r"
    "    WHERE r.job = a.name AND r.ended_at IS NOT NULL"
    "    ORDER BY r.job DESC, r.ended_at DESC LIMIT 1) ended ON true"
    " ORDER BY a.place";

bool store_facts(Session *session, const char *const *names, int count, StoreFacts *facts,
                 Error *err)
{
    PQExpBufferData array;
    PGresult *result = NULL;
    Statement statement = {
        .sql = FACTS_SQL,
        .count = 1,
        .types = (Oid[]){TYPE_TEXT_ARRAY},
        .constant = true,
    };

    array_texts(&array, names, count);
    statement.values = (const char *[]){array.data};
    if (arrays_are_whole(&array, 1, err))
        result = transact(session, &statement, TRANSACT_READ, WAIT_NORMAL, err);
    termPQExpBuffer(&array);
    if (result == NULL)
        return false;
    for (int i = 0; i < count; i++)
        facts[i] = (StoreFacts){
            .known = field_boolean(result, i, 0),
            .paused = field_boolean(result, i, 1),
            .since_us = field_instant(result, i, 2),
            .newest_us = field_instant(result, i, 3),
            .last_end_us = field_instant(result, i, 4),
            .at_work = field_boolean(result, i, 5),
        };
    PQclear(result);
    return true;
}

/* ---- names of locks -------------------------------------------------------------------------- */

static const char NAME_LOCKS_SQL[] =
    "INSERT INTO lockkeeper.lock_name AS n (classid, objid, objsubid, name)"
    " SELECT a.classid, a.objid, a.objsubid, a.name"
    "   FROM unnest($1, $2, $3, $4) AS a(classid, objid, objsubid, name)"
    "  WHERE NOT EXISTS (SELECT FROM lockkeeper.lock_name o WHERE o.classid = a.classid"
    "    AND o.objid = a.objid AND o.objsubid = a.objsubid AND o.name = a.name)"
    "  ORDER BY a.classid, a.objid, a.objsubid, a.name COLLATE \"C\""
    " ON CONFLICT DO NOTHING";

bool store_name_locks(Session *session, const StoreLockName *names, int count, Error *err)
{
    PQExpBufferData arrays[4];
    PGresult *result = NULL;
    Statement statement = {
        .sql = NAME_LOCKS_SQL,
        .count = 4,
        .types = (Oid[]){TYPE_INT8_ARRAY, TYPE_INT8_ARRAY, TYPE_INT4_ARRAY, TYPE_TEXT_ARRAY},
        .constant = true,
    };

    for (int i = 0; i < 4; i++)
        array_begin(&arrays[i]);
    for (int i = 0; i < count; i++) {
        array_integer(&arrays[0], names[i].classid);
        array_integer(&arrays[1], names[i].objid);
        array_integer(&arrays[2], names[i].objsubid);
        array_text(&arrays[3], names[i].name);
    }
    for (int i = 0; i < 4; i++)
        array_end(&arrays[i]);
    statement.values =
        (const char *[]){arrays[0].data, arrays[1].data, arrays[2].data, arrays[3].data};
    if (arrays_are_whole(arrays, 4, err))
        result = transact(session, &statement, TRANSACT_HELP, WAIT_NORMAL, err);
    arrays_free(arrays, 4);
    PQclear(result);
    return result != NULL;
}
