/* Slots are claimed, and rows that are due are taken (runner.md 7 to 10). */
#include "pg/type.h"
#include "runner/store_sql.h"

#include <string.h>

/* ---- the tick -------------------------------------------------------------------------------- */

/*
 * $1 runner, $2 its host, $3 free workers, $4 to $9: the columns of `asked`.
 *
 * Rows that are there already, which in a contest are most, cost one look into the index (OFFSET 0
 * keeps the planner from joining instead: it takes the list for a short one). The rest is inserted
 * in order, so that hosts wait for each other in one direction only. Rows with number 0 were
 * refused, although nothing was seen that forbids them: another host has inserted the same
 * meanwhile, or has queued another run of the job.
 */
static const char CLAIM_SQL[] =
    "WITH asked AS MATERIALIZED ("
    "  SELECT a.job COLLATE \"C\" AS job, a.origin, " AT("a.slot") " AS slot, a.overlap,"
    "         a.catches_up, a.skip"
    "    FROM unnest($4, $5, $6, $7, $8, $9) AS a(job, origin, slot, overlap, catches_up, skip)"
    "), fresh AS MATERIALIZED ("
    "  SELECT a.*, 0::int8 AS parent, j.paused"
    "    FROM asked a LEFT JOIN lockkeeper.job j ON j.name = a.job"
    "   WHERE NOT EXISTS (SELECT FROM lockkeeper.run r"
    "           WHERE r.job = a.job AND r.origin = a.origin AND r.slot = a.slot"
    "             AND r.attempt = 1 AND r.parent = 0 OFFSET 0)"
    "), " DECIDE ", counted AS ("
    "  SELECT d.*, d.reason IS NULL AND d.begins"
    "              AND row_number() OVER (PARTITION BY d.reason IS NULL AND d.begins"
    "                                     ORDER BY d.slot, d.job) <= $3 AS claims"
    "    FROM decided d"
    "), inserted AS ("
    "  INSERT INTO lockkeeper.run AS r (job, origin, slot, state, reason, overlap, catches_up,"
    "         due_at, claims, claimed_at, runner, host, ended_at)"
    "  SELECT c.job, c.origin, c.slot,"
    "         CASE WHEN c.reason IS NOT NULL THEN 'skipped' WHEN c.claims THEN 'claimed'"
    "              ELSE 'due' END,"
    "         c.reason, c.overlap, c.catches_up, c.slot, c.claims::int4,"
    "         CASE WHEN c.claims THEN clock_timestamp() END,"
    "         CASE WHEN c.claims THEN $1 END, CASE WHEN c.claims THEN $2 END,"
    "         CASE WHEN c.reason IS NOT NULL THEN clock_timestamp() END"
    "    FROM counted c ORDER BY c.job, c.slot, c.origin"
    "  ON CONFLICT DO NOTHING"
    "  RETURNING r.*"
    ")"
    " SELECT " RUN_COLUMNS("i") ", " TELL("due", " FROM inserted WHERE state = 'due'")
    "   FROM inserted i"
    " UNION ALL"
    " SELECT 0, c.job, c.origin, " US("c.slot") ", 1, 0, 0, 'skipped', 'busy', NULL"
    "   FROM counted c"
    "  WHERE c.overlap = 'queue' AND c.reason IS NULL AND NOT c.catches_up"
    "    AND (c.job, c.origin, c.slot) NOT IN (SELECT i.job, i.origin, i.slot FROM inserted i)";
enum { CLAIM_JOB, CLAIM_ORIGIN, CLAIM_SLOT, CLAIM_OVERLAP, CLAIM_CATCHES_UP, CLAIM_SKIP,
       CLAIM_ARRAYS };
enum { CLAIM_BEFORE_ARRAYS = 3, CLAIM_PARAMETERS = CLAIM_BEFORE_ARRAYS + CLAIM_ARRAYS };
static const Oid CLAIM_TYPES[] = {TYPE_UUID,       TYPE_TEXT,       TYPE_INT8,
                                  TYPE_TEXT_ARRAY, TYPE_TEXT_ARRAY, TYPE_INT8_ARRAY,
                                  TYPE_TEXT_ARRAY, TYPE_BOOL_ARRAY, TYPE_TEXT_ARRAY};

static PGresult *claim(Session *session, const StoreRunner *runner, const StoreSlot *slots,
                       int count, int workers, Error *err)
{
    PQExpBufferData arrays[CLAIM_ARRAYS];
    const char *values[CLAIM_PARAMETERS] = {runner->uuid, runner->host, INTEGER(workers)};
    PGresult *result = NULL;
    Statement statement = {
        .sql = CLAIM_SQL,
        .count = CLAIM_PARAMETERS,
        .types = CLAIM_TYPES,
        .values = values,
        .constant = true,
    };

    for (int i = 0; i < CLAIM_ARRAYS; i++)
        array_begin(&arrays[i]);
    for (int i = 0; i < count; i++) {
        array_text(&arrays[CLAIM_JOB], slots[i].job);
        array_text(&arrays[CLAIM_ORIGIN], RUN_ORIGIN_NAMES[slots[i].origin]);
        array_integer(&arrays[CLAIM_SLOT], slots[i].slot_us);
        array_text(&arrays[CLAIM_OVERLAP], OVERLAP_NAMES[slots[i].overlap]);
        array_boolean(&arrays[CLAIM_CATCHES_UP], slots[i].catches_up);
        array_text(&arrays[CLAIM_SKIP], slots[i].skip);
    }
    for (int i = 0; i < CLAIM_ARRAYS; i++) {
        array_end(&arrays[i]);
        values[CLAIM_BEFORE_ARRAYS + i] = arrays[i].data;
    }
    if (arrays_are_whole(arrays, CLAIM_ARRAYS, err))
        result = transact(session, &statement, TRANSACT_CLAIM, WAIT_NORMAL, err);
    arrays_free(arrays, CLAIM_ARRAYS);
    return result;
}

/* Those of a state to the place `at`, in their order. Returns where they end. */
static int gather(StoreRuns *all, int at, RunState state)
{
    for (int i = at; i < all->count; i++) {
        StoreRun run = all->runs[i];

        if (run.id == 0 || run.state != state)
            continue;
        all->runs[i] = all->runs[at];
        all->runs[at++] = run;
    }
    return at;
}

static void count_run(StoreTally *tally, const StoreRun *run)
{
    if (run->id == 0)
        return;
    tally->lost--;
    if (run->state == RUN_CLAIMED)
        tally->claimed++;
    else if (run->state == RUN_DUE)
        tally->due++;
    else
        tally->skipped++;
}

/* Record those that the queue had no room for: they are skipped. Once more, and no further. */
static bool skip_refused(Session *session, const StoreRunner *runner, const StoreRuns *all,
                         int count, StoreTally *tally, Error *err)
{
    StoreSlot *slots = calloc((size_t)count, sizeof *slots);
    int filled = 0;
    PGresult *result;

    if (slots == NULL)
        return error_set(err, ERROR_SQL, "out of memory");
    for (int i = 0; i < all->count; i++) {
        const StoreRun *run = &all->runs[i];

        if (run->id == 0)
            slots[filled++] = (StoreSlot){
                .job = run->job,
                .origin = run->origin,
                .slot_us = run->slot_us,
                .overlap = OVERLAP_QUEUE,
                .skip = run->reason,
            };
    }
    result = claim(session, runner, slots, filled, 0, err);
    if (result != NULL) {
        tally->skipped += PQntuples(result);
        tally->lost -= PQntuples(result);
    }
    PQclear(result);
    free(slots);
    return result != NULL;
}

bool store_claim(Session *session, const StoreRunner *runner, const StoreSlot *slots, int count,
                 int workers, StoreRuns *claimed, StoreTally *tally, Error *err)
{
    StoreTally counted = {.lost = count};
    PGresult *result = claim(session, runner, slots, count, workers, err);
    int refused = 0;
    int kept;
    Error ignored;

    *claimed = (StoreRuns){0};
    if (result == NULL || !runs_read(claimed, result, NULL, err))
        return false;
    for (int i = 0; i < claimed->count; i++) {
        count_run(&counted, &claimed->runs[i]);
        refused += claimed->runs[i].id == 0;
    }
    /* What was claimed is ours, whatever comes now; a slot without a row is listed again. */
    if (refused > 0)
        skip_refused(session, runner, claimed, refused, &counted, &ignored);
    kept = gather(claimed, 0, RUN_CLAIMED);
    claimed->skipped = gather(claimed, kept, RUN_SKIPPED) - kept;
    claimed->count = kept;
    if (tally != NULL)
        *tally = counted;
    return true;
}

/* ---- rows that are due ----------------------------------------------------------------------- */

/*
 * Can r begin, as far as its job is concerned? A row that is replaced by a later one can't; one that
 * replaces need not wait for those before it that have not begun. Nor does it begin beside a run whose
 * slot is later: one after another job has that one's slot.
 */
#define REPLACED(r)                                                                                \
    "EXISTS (SELECT FROM lockkeeper.run n"                                                         \
    " WHERE n.job = " r ".job AND n.slot > " r ".slot AND " REPLACES("n") " OFFSET 0)"
#define CAN_BEGIN(r)                                                                               \
    "(" r ".overlap = 'allow' AND NOT " r ".catches_up OR NOT EXISTS ("                            \
    " SELECT FROM lockkeeper.run e"                                                                \
    "  WHERE e.job = " r ".job AND e.state IN " ACTIVE " AND e.id <> " r ".id"                     \
    "    AND CASE WHEN e.state <> 'due' AND " r ".overlap <> 'allow' THEN true"                    \
    "             WHEN e.state = 'due' AND " r ".overlap = 'replace' AND NOT " r ".catches_up"     \
    "               THEN false"                                                                    \
    "             ELSE (e.slot, e.id) < (" r ".slot, " r ".id) END))"                              \
    " AND NOT " REPLACED(r)

static const char WAITING_SQL[] =
    "SELECT r.job, NULL::int8, min(r.due_at)"
    "  FROM lockkeeper.run r"
    " WHERE r.state = 'due' AND r.due_at <= now()"
    "   AND NOT EXISTS (SELECT FROM lockkeeper.job j WHERE j.name = r.job AND j.paused)"
    "   AND " CAN_BEGIN("r")
    " GROUP BY r.job"
    " UNION ALL"
    " SELECT NULL, " US("min(r.due_at)") ", NULL"
    "   FROM lockkeeper.run r WHERE r.state = 'due' AND r.due_at > now()"
    " ORDER BY 3 NULLS LAST, 1";

bool store_waiting(Session *session, StoreWaiting *waiting, Error *err)
{
    Statement statement = {.sql = WAITING_SQL, .constant = true};

    *waiting = (StoreWaiting){0};
    waiting->result = transact(session, &statement, TRANSACT_READ, WAIT_NORMAL, err);
    if (waiting->result == NULL)
        return false;
    waiting->count = PQntuples(waiting->result) - 1;
    waiting->next_us = field_instant(waiting->result, waiting->count, 1);
    return true;
}

const char *store_waiting_job(const StoreWaiting *waiting, int index)
{
    return PQgetvalue(waiting->result, index, 0);
}

void store_waiting_clear(StoreWaiting *waiting)
{
    PQclear(waiting->result);
    *waiting = (StoreWaiting){0};
}

/*
 * $1 runner, $2 its host, $3 free workers, $4 jobs. A row that another host has locked is about to
 * become its run. The states are looked at again where they are changed, since a row may have
 * changed between.
 */
static const char TAKE_SQL[] =
    "WITH outdated AS ("
    "  SELECT r.id FROM lockkeeper.run r"
    "   WHERE r.id = ANY (ARRAY("
    "           SELECT d.id FROM lockkeeper.run n CROSS JOIN LATERAL ("
    "             SELECT e.id FROM lockkeeper.run e"
    "              WHERE e.job = n.job AND e.slot < n.slot AND e.state IN " ACTIVE
    "                AND " IS_DUE("e") " OFFSET 0) d"
    "            WHERE n.job = ANY ($4) AND " REPLACES("n") "))"
    "     AND " IS_DUE("r")
    "     FOR UPDATE OF r SKIP LOCKED"
    "), replaced AS ("
    "  UPDATE lockkeeper.run r"
    "     SET state = 'skipped', reason = 'replaced', ended_at = clock_timestamp()"
    "   WHERE r.id = ANY (ARRAY(SELECT o.id FROM outdated o)) AND " IS_DUE("r")
    "), chosen AS ("
    "  SELECT r.id FROM lockkeeper.run r"
    "   WHERE r.state = 'due' AND r.due_at <= now() AND r.job = ANY ($4)"
    "     AND NOT EXISTS (SELECT FROM lockkeeper.job j WHERE j.name = r.job AND j.paused)"
    "     AND " CAN_BEGIN("r")
    "   ORDER BY r.due_at LIMIT $3"
    "     FOR UPDATE OF r SKIP LOCKED"
    "), taken AS ("
    "  UPDATE lockkeeper.run r"
    "     SET state = 'claimed', runner = $1, host = $2, claimed_at = clock_timestamp(),"
    "         claims = r.claims + 1"
    "   WHERE r.id = ANY (ARRAY(SELECT c.id FROM chosen c)) AND " IS_DUE("r")
    "  RETURNING r.*"
    ")"
    " SELECT " RUN_COLUMNS("t") " FROM taken t ORDER BY t.due_at";

bool store_take(Session *session, const StoreRunner *runner, const char *const *jobs, int count,
                int workers, StoreRuns *taken, Error *err)
{
    PQExpBufferData array;
    PGresult *result = NULL;
    Statement statement = {
        .sql = TAKE_SQL,
        .count = 4,
        .types = (Oid[]){TYPE_UUID, TYPE_TEXT, TYPE_INT8, TYPE_TEXT_ARRAY},
        .constant = true,
    };

    *taken = (StoreRuns){0};
    array_texts(&array, jobs, count);
    statement.values =
        (const char *[]){runner->uuid, runner->host, INTEGER(workers), array.data};
    if (arrays_are_whole(&array, 1, err))
        result = transact(session, &statement, TRANSACT_CLAIM, WAIT_NORMAL, err);
    termPQExpBuffer(&array);
    return result != NULL && runs_read(taken, result, NULL, err);
}

static const char GIVE_BACK_SQL[] =
    "WITH given AS ("
    "  UPDATE lockkeeper.run r"
    "     SET " COMES_BACK ","
    "         due_at = CASE WHEN $3 THEN clock_timestamp()"
    "                       + least(2 ^ least(r.claims - 1, 5), 30) * '1 second'::interval"
    "                  ELSE r.due_at END"
    "   WHERE r.id = $1 AND r.runner = $2 AND r.state = 'claimed'"
    "  RETURNING r.claims"
    ")"
    " SELECT coalesce(max(claims), 0), " TELL("due", " FROM given") " FROM given";

bool store_give_back(Session *session, const StoreRunner *runner, int64_t run, bool later, int *claims,
                     Error *err)
{
    Statement statement = {
        .sql = GIVE_BACK_SQL,
        .count = 3,
        .types = (Oid[]){TYPE_INT8, TYPE_UUID, TYPE_BOOL},
        .values = (const char *[]){INTEGER(run), runner->uuid, later ? "true" : "false"},
        .constant = true,
    };
    PGresult *result = transact(session, &statement, TRANSACT_WRITE, WAIT_CLEANUP, err);

    if (result == NULL)
        return false;
    *claims = (int)field_integer(result, 0, 0);
    PQclear(result);
    return true;
}
