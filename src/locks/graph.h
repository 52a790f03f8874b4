/*
 * The wait-for graph: who waits for whom, worked out from the rows of pg_locks. Knows no server: it
 * is given who there is and what they hold and wait for. Sources: PostgreSQL's lock manager
 * (src/backend/storage/lmgr/README, proc.c: JoinWaitQueue), and pg_blocking_pids.
 *
 * Somebody waits for those who hold a mode that conflicts with the wanted one (hard edges), and for
 * those who stand before it in the queue and want such a mode (soft edges). pg_locks does not show
 * the queue's order. It is what inserting the waiters gives, in the order in which they began to
 * wait: at the end, but before the first who wants what conflicts with a mode that the newcomer
 * already holds.
 *
 * That order is wrong where a waiter left after others had been placed by it, where the server's
 * deadlock check has rearranged the queue, or where two began at the same time. Those who may be
 * concerned are marked as doubtful: whoever can asks the server, and gives its answers to
 * graph_answer.
 *
 *   Graph graph = {.parties = …, .locks = …};   (owned by the graph from now on)
 *   graph_build, then graph_answer for each of the doubtful, then graph_settle, graph_clear.
 *
 * Memory: linear in the locks and the edges. Where n wait for one lock that each wants for itself,
 * there are n * n / 2 edges.
 */
#ifndef LOCKKEEPER_LOCKS_GRAPH_H
#define LOCKKEEPER_LOCKS_GRAPH_H

#include "base/error.h"
#include "locks/mode.h"

#include <stdbool.h>
#include <stdint.h>

enum { GRAPH_NONE = -1 };

/* When the beginning of a wait is not known. */
#define GRAPH_UNKNOWN INT64_MAX

/* Who is asked about, and how certain what was worked out is. */
typedef enum {
    DOUBT_NONE,
    DOUBT_TIED, /* rarely wrong: an answer that is the same changes nothing */
    DOUBT_HELD, /* a waiter holds there too: what the answer names becomes `confirmed` */
} GraphDoubt;

/* A backend, or a prepared transaction. What is below `leader` is worked out. */
typedef struct {
    int pid;    /* 0: a prepared transaction */
    int leader; /* the party that leads its parallel group; itself where there is none */

    int waits;        /* what it waits for, in `locks`, or GRAPH_NONE */
    int first, count; /* its edges */
    GraphDoubt doubt;
    int next_member; /* the next party of its group, or GRAPH_NONE */
    int component;   /* who wait for each other have the same */
    bool in_cycle;
    int behind;        /* how many wait for it, also through others; of a leader, for its group */
    int64_t weight_us; /* how long these have waited, together */
} GraphParty;

/* What a party holds or waits for. Of each object there must be all locks. */
typedef struct {
    int object; /* 0, 1, …: the same for the same lock tag */
    int party;
    LockMode mode;
    bool granted;
    bool meant;       /* of those who wait: whether it is asked about */
    bool extend;      /* of an extension lock, where a parallel group gets in its own way */
    int64_t since_us; /* of those who wait: since when, or GRAPH_UNKNOWN */
    int row;          /* what the caller knows it by */
} GraphLock;

typedef enum { EDGE_HARD, EDGE_SOFT, EDGE_CONFIRMED } EdgeCertainty;

typedef struct {
    int waiter;  /* a party */
    int blocker; /* a party: the leader of a parallel group, unless the waiter is of it */
    int lock;    /* what is waited for, in `locks` */
    int holding; /* the strongest lock in the way that the blocker's group holds there, in `locks`;
                    GRAPH_NONE where it only stands before the waiter in the queue */
    EdgeCertainty certainty;
} GraphEdge;

typedef struct {
    GraphParty *parties;
    int party_count;
    GraphLock *locks; /* graph_build sorts them by object */
    int lock_count;
    GraphEdge *edges; /* those of parties[i] are edges[first] … edges[first + count - 1] */
    int edge_count, edge_room;
    int *scratch; /* by party */
    int stamp;
} Graph;

/* Work out the edges, and who is doubtful. False where there is no memory. */
bool graph_build(Graph *graph, Error *err);

/*
 * What the server says of a waiter: these pids block it (0: a prepared transaction does). An edge
 * that it does not name is dropped if it was soft; a hard one is true of the moment of the rows. If
 * it names none of those who can be in the way, the wait is over by now, and nothing is changed.
 * `strict`: what is not named is dropped in any case.
 */
bool graph_answer(Graph *graph, int party, const int *pids, int count, bool strict, Error *err);

/*
 * Keep the edges of those who are asked about and of those who are in their way, also through
 * others; find the cycles, count who is behind whom. `now_us`: when the rows were read.
 */
bool graph_settle(Graph *graph, int64_t now_us, Error *err);

void graph_clear(Graph *graph);

#endif
