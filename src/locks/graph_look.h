/*
 * The wait-for graph of a snapshot (graph.h), and what the server says where it is in doubt.
 */
#ifndef LOCKKEEPER_LOCKS_GRAPH_LOOK_H
#define LOCKKEEPER_LOCKS_GRAPH_LOOK_H

#include "locks/graph.h"
#include "locks/snapshot.h"

/*
 * Build the graph of a snapshot: of those who wait for what the snapshot means, and of whoever is
 * in their way, be it in another database. *graph is zeroed before and cleared at the end; its
 * locks' rows are the snapshot's. No round trip.
 */
bool graph_look(Graph *graph, const Snapshot *snapshot, Error *err);

/* What a party is: a row of `sessions`, else one of `prepared`, else ROW_NONE. */
int graph_look_session(const Snapshot *snapshot, int party);
int graph_look_prepared(const Snapshot *snapshot, int party);

/*
 * Ask pg_blocking_pids about those who are in doubt, or about `all` who wait; then what it says is
 * all that counts. One round trip, none where there is no doubt. The server goes on meanwhile: see
 * graph_answer.
 */
bool graph_confirm(Graph *graph, Session *session, bool all, Error *err);

#endif
