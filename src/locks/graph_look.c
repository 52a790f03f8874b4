#include "locks/graph_look.h"

#include "base/pqbuffer.h"
#include "locks/snapshot_sql.h"
#include "pg/type.h"

#include <stdlib.h>
#include <string.h>

static const char CONFIRM[] = "SELECT w.pid, pg_catalog.pg_blocking_pids(w.pid)"
                              " FROM pg_catalog.unnest($1::pg_catalog.int4[]) AS w(pid)";

static bool out_of_memory(Error *err)
{
    return error_set(err, ERROR_SQL, "out of memory");
}

static void *new_array(int count, size_t size)
{
    return calloc((size_t)count + 1, size);
}

static bool is_true(const PGresult *result, int row, int column)
{
    return PQgetvalue(result, row, column)[0] == 't';
}

/* ---- objects: what is waited for ------------------------------------------------------------- */

/* Lock tags by number, in a hash table with open addresses. */
typedef struct {
    const PGresult *locks;
    struct {
        uint64_t hash;
        int row; /* and 1: the first lock with that tag; 0: none */
        int object;
    } * places;
    size_t mask;
    int count;
} Objects;

static bool objects_new(Objects *objects, const PGresult *locks, int tags)
{
    size_t size = 16;

    while (size < 2 * (size_t)tags)
        size *= 2;
    objects->locks = locks;
    objects->mask = size - 1;
    objects->places = calloc(size, sizeof *objects->places);
    return objects->places != NULL;
}

/* FNV-1a. A null field and an empty one differ: none that is not null is empty. */
static uint64_t hash_tag(const PGresult *locks, int row)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (int column = LOCKS_TYPE; column <= LOCKS_OBJSUBID; column++) {
        const char *text = PQgetvalue(locks, row, column);

        do
            hash = (hash ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
        while (*text++ != '\0');
    }
    return hash;
}

static bool is_same_tag(const PGresult *locks, int left, int right)
{
    for (int column = LOCKS_TYPE; column <= LOCKS_OBJSUBID; column++) {
        if (strcmp(PQgetvalue(locks, left, column), PQgetvalue(locks, right, column)) != 0)
            return false;
    }
    return true;
}

/* The object of a lock; GRAPH_NONE where it is not known and not to be added. */
static int find_object(Objects *objects, int row, bool add)
{
    uint64_t hash = hash_tag(objects->locks, row);
    size_t at = (size_t)hash & objects->mask;

    for (; objects->places[at].row != 0; at = (at + 1) & objects->mask) {
        if (objects->places[at].hash == hash &&
            is_same_tag(objects->locks, objects->places[at].row - 1, row))
            return objects->places[at].object;
    }
    if (!add)
        return GRAPH_NONE;
    objects->places[at].hash = hash;
    objects->places[at].row = row + 1;
    objects->places[at].object = objects->count;
    return objects->count++;
}

/* ---- parties --------------------------------------------------------------------------------- */

int graph_look_session(const Snapshot *snapshot, int party)
{
    return party < PQntuples(snapshot->sessions) ? party : ROW_NONE;
}

int graph_look_prepared(const Snapshot *snapshot, int party)
{
    int place = party - PQntuples(snapshot->sessions);

    return place >= 0 && place < PQntuples(snapshot->prepared) ? place : ROW_NONE;
}

static int number_at(const PGresult *result, int row, int column)
{
    return (int)strtol(PQgetvalue(result, row, column), NULL, 10);
}

static int leader_of(const Snapshot *snapshot, int session)
{
    int leader;

    if (PQgetisnull(snapshot->sessions, session, SESSIONS_LEADER_PID))
        return session;
    leader = snapshot_find_session(snapshot,
                                   number_at(snapshot->sessions, session, SESSIONS_LEADER_PID));
    return leader != ROW_NONE && PQgetisnull(snapshot->sessions, leader, SESSIONS_LEADER_PID)
               ? leader
               : session;
}

/*
 * Sessions, then prepared transactions, then whoever has locks and is neither: sessions that had
 * ended, or prepared transactions that came, between the two looks. `unknown`: a row of `locks` of
 * each of these; the caller has made room.
 */
typedef struct {
    const Snapshot *snapshot;
    int *unknown;
    int unknown_count;
} Parties;

static int find_unknown(Parties *parties, int row)
{
    const PGresult *locks = parties->snapshot->locks;
    int known = PQntuples(parties->snapshot->sessions) + PQntuples(parties->snapshot->prepared);
    int i = 0;

    while (i < parties->unknown_count &&
           (strcmp(PQgetvalue(locks, parties->unknown[i], LOCKS_PID),
                   PQgetvalue(locks, row, LOCKS_PID)) != 0 ||
            strcmp(PQgetvalue(locks, parties->unknown[i], LOCKS_HOLDER),
                   PQgetvalue(locks, row, LOCKS_HOLDER)) != 0))
        i++;
    if (i == parties->unknown_count)
        parties->unknown[parties->unknown_count++] = row;
    return known + i;
}

static int find_party(Parties *parties, int row)
{
    int session = snapshot_lock_session(parties->snapshot, row);
    int prepared = session == ROW_NONE ? snapshot_lock_prepared(parties->snapshot, row) : ROW_NONE;

    if (session != ROW_NONE)
        return session;
    if (prepared != ROW_NONE)
        return PQntuples(parties->snapshot->sessions) + prepared;
    return find_unknown(parties, row);
}

static bool make_parties(Graph *graph, const Parties *from)
{
    const Snapshot *snapshot = from->snapshot;
    int sessions = PQntuples(snapshot->sessions);
    int known = sessions + PQntuples(snapshot->prepared);

    graph->party_count = known + from->unknown_count;
    graph->parties = new_array(graph->party_count, sizeof *graph->parties);
    if (graph->parties == NULL)
        return false;
    for (int i = 0; i < graph->party_count; i++) {
        GraphParty *party = &graph->parties[i];

        party->leader = i < sessions ? leader_of(snapshot, i) : i;
        if (i < sessions)
            party->pid = number_at(snapshot->sessions, i, SESSIONS_PID);
        else if (i >= known)
            party->pid = number_at(snapshot->locks, from->unknown[i - known], LOCKS_PID);
    }
    return true;
}

/* ---- locks ----------------------------------------------------------------------------------- */

/* SIREAD locks are in nobody's way, and of a mode that a later PostgreSQL adds nothing is known. */
static void add_lock(Graph *graph, Parties *parties, int object, int row)
{
    const PGresult *locks = parties->snapshot->locks;
    GraphLock *lock = &graph->locks[graph->lock_count];

    if (!mode_of_lock(PQgetvalue(locks, row, LOCKS_MODE), &lock->mode))
        return;
    lock->object = object;
    lock->party = find_party(parties, row);
    lock->granted = is_true(locks, row, LOCKS_GRANTED);
    lock->extend = strcmp(PQgetvalue(locks, row, LOCKS_TYPE), "extend") == 0;
    lock->since_us = PQgetisnull(locks, row, LOCKS_WAIT_START)
                         ? GRAPH_UNKNOWN
                         : strtoll(PQgetvalue(locks, row, LOCKS_WAIT_START), NULL, 10);
    lock->row = row;
    graph->lock_count++;
}

static int compare_rows(const void *left, const void *right)
{
    return ((const GraphLock *)left)->row - ((const GraphLock *)right)->row;
}

/* Mark those who wait for what the snapshot means: they come first in its order. */
static void mark_meant(Graph *graph, const Snapshot *snapshot)
{
    for (int i = 0; i < snapshot->count; i++) {
        int row = snapshot->order[i];
        GraphLock *lock;

        if (is_true(snapshot->locks, row, LOCKS_GRANTED))
            break;
        lock = bsearch(&(GraphLock){.row = row}, graph->locks, (size_t)graph->lock_count,
                       sizeof *lock, compare_rows);
        if (lock != NULL)
            lock->meant = true;
    }
}

bool graph_look(Graph *graph, const Snapshot *snapshot, Error *err)
{
    const PGresult *locks = snapshot->locks;
    int rows = PQntuples(locks);
    int waiting = 0;
    int *found = new_array(rows, sizeof *found); /* the object of each row */
    int involved = 0;
    Objects objects = {0};
    Parties parties = {.snapshot = snapshot};
    bool ok = false;

    for (int i = 0; i < rows; i++)
        waiting += !is_true(locks, i, LOCKS_GRANTED);
    if (found == NULL || !objects_new(&objects, locks, waiting))
        goto out;
    for (int i = 0; waiting > 0 && i < rows; i++) {
        if (!is_true(locks, i, LOCKS_GRANTED))
            find_object(&objects, i, true);
    }
    for (int i = 0; waiting > 0 && i < rows; i++) {
        found[i] = find_object(&objects, i, false);
        involved += found[i] != GRAPH_NONE;
    }
    graph->locks = new_array(involved, sizeof *graph->locks);
    parties.unknown = new_array(involved, sizeof *parties.unknown);
    if (graph->locks == NULL || parties.unknown == NULL)
        goto out;
    for (int i = 0; involved > 0 && i < rows; i++) {
        if (found[i] != GRAPH_NONE)
            add_lock(graph, &parties, found[i], i);
    }
    mark_meant(graph, snapshot);
    ok = make_parties(graph, &parties);
out:
    free(found);
    free(objects.places);
    free(parties.unknown);
    return ok ? graph_build(graph, err) : out_of_memory(err);
}

/* ---- confirmation ---------------------------------------------------------------------------- */

/* The pids of those to ask about, as PostgreSQL's array; how many. */
static int append_pids(PQExpBuffer out, const Graph *graph, bool all)
{
    char text[TEXT_INTEGER_SIZE];
    int count = 0;

    appendPQExpBufferChar(out, '{');
    for (int i = 0; i < graph->party_count; i++) {
        const GraphParty *party = &graph->parties[i];

        if (party->waits == GRAPH_NONE || (!all && party->doubt == DOUBT_NONE))
            continue;
        if (count++ > 0)
            appendPQExpBufferChar(out, ',');
        appendPQExpBufferStr(out, text_integer(text, party->pid));
    }
    appendPQExpBufferChar(out, '}');
    return count;
}

/* The numbers of "{1,2}" into `pids`, which has room; returns how many. */
static int read_pids(const char *text, int *pids)
{
    int count = 0;
    char *end;

    while (*text == '{' || *text == ',') {
        long pid = strtol(text + 1, &end, 10);

        if (end == text + 1)
            break;
        pids[count++] = (int)pid;
        text = end;
    }
    return count;
}

/* The answers are in the order of the question, which is that of the parties. */
static bool read_answers(Graph *graph, const PGresult *answers, bool all, Error *err)
{
    int row = 0;
    bool ok = true;

    for (int i = 0; ok && i < graph->party_count && row < PQntuples(answers); i++) {
        const GraphParty *party = &graph->parties[i];
        int *pids;

        if (party->waits == GRAPH_NONE || (!all && party->doubt == DOUBT_NONE))
            continue;
        pids = new_array(PQgetlength(answers, row, 1), sizeof *pids);
        ok = pids != NULL || out_of_memory(err);
        ok = ok &&
             graph_answer(graph, i, pids, read_pids(PQgetvalue(answers, row, 1), pids), all, err);
        free(pids);
        row++;
    }
    return ok;
}

bool graph_confirm(Graph *graph, Session *session, bool all, Error *err)
{
    static const Oid TEXT[] = {TYPE_TEXT};
    PQExpBufferData pids;
    const char *values[1];
    PGresult *results[2] = {NULL, NULL};
    bool ok = true;

    initPQExpBuffer(&pids);
    if (append_pids(&pids, graph, all) == 0)
        goto out;
    ok = !PQExpBufferDataBroken(pids) || out_of_memory(err);
    values[0] = pids.data;
    ok = ok && session_open(session, err) &&
         session_pipeline(
             session,
             (Statement[]){{.sql = LOOK_TIMEOUT_SQL},
                           {.sql = CONFIRM, .count = 1, .types = TEXT, .values = values}},
             2, results, WAIT_NORMAL, err) &&
         read_answers(graph, results[1], all, err);
out:
    PQclear(results[0]);
    PQclear(results[1]);
    termPQExpBuffer(&pids);
    return ok;
}
