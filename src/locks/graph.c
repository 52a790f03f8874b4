#include "locks/graph.h"

#include <stdlib.h>
#include <string.h>

/*
 * A wait's beginning is noted a moment after the waiter has joined the queue: those that are this
 * close may have joined in the other order.
 */
static const int64_t TIE_US = 5000;

/* The locks of one object: first those that are granted, then the queue. */
typedef struct {
    int first, granted, count;
} Object;

static bool out_of_memory(Error *err)
{
    return error_set(err, ERROR_SQL, "out of memory");
}

/* Room for `count` of them, and one more, so that none is no failure. */
static void *new_array(int count, size_t size)
{
    return calloc((size_t)count + 1, size);
}

void graph_clear(Graph *graph)
{
    free(graph->parties);
    free(graph->locks);
    free(graph->edges);
    free(graph->scratch);
    *graph = (Graph){0};
}

static int group_of(const Graph *graph, const GraphLock *lock)
{
    return graph->parties[lock->party].leader;
}

/* Can these two be in each other's way at all? */
static bool is_apart(const Graph *graph, const GraphLock *a, const GraphLock *b)
{
    if (a->party == b->party)
        return false;
    return a->extend || group_of(graph, a) != group_of(graph, b);
}

static bool is_in_the_way(const Graph *graph, const GraphLock *of, const GraphLock *other)
{
    return is_apart(graph, of, other) && mode_conflicts(of->mode, other->mode);
}

/* ---- edges ----------------------------------------------------------------------------------- */

static bool add_edge(Graph *graph, GraphEdge edge, Error *err)
{
    if (graph->edge_count == graph->edge_room) {
        int room = graph->edge_room == 0 ? 64 : 2 * graph->edge_room;
        GraphEdge *edges = graph->edge_room > INT32_MAX / 2
                               ? NULL
                               : realloc(graph->edges, (size_t)room * sizeof *edges);

        if (edges == NULL)
            return out_of_memory(err);
        graph->edges = edges;
        graph->edge_room = room;
    }
    graph->edges[graph->edge_count++] = edge;
    return true;
}

/*
 * The place of a blocker in `scratch`, which says which edge of the present waiter it has: those of
 * earlier waiters are below `stamp`.
 */
static GraphEdge *edge_to(const Graph *graph, int blocker)
{
    int at = graph->scratch[blocker];

    return at < graph->stamp ? NULL : &graph->edges[at];
}

/* A leader stands for its group, but not where a parallel group gets in its own way. */
static int blocker_of(const Graph *graph, const GraphLock *waiting, const GraphLock *other)
{
    int leader = group_of(graph, other);

    return leader == group_of(graph, waiting) ? other->party : leader;
}

static bool add_blocker(Graph *graph, int waiting, int other, Error *err)
{
    const GraphLock *lock = &graph->locks[waiting];
    const GraphLock *in_the_way = &graph->locks[other];
    int blocker = blocker_of(graph, lock, in_the_way);
    GraphEdge *edge = edge_to(graph, blocker);

    if (edge != NULL) {
        if (in_the_way->granted &&
            (edge->holding == GRAPH_NONE || graph->locks[edge->holding].mode < in_the_way->mode))
            edge->holding = other;
        return true;
    }
    graph->scratch[blocker] = graph->edge_count;
    return add_edge(graph,
                    (GraphEdge){.waiter = lock->party,
                                .blocker = blocker,
                                .lock = waiting,
                                .holding = in_the_way->granted ? other : GRAPH_NONE,
                                .certainty = in_the_way->granted ? EDGE_HARD : EDGE_SOFT},
                    err);
}

/* Begin the edges of a waiter. */
static void start_edges(Graph *graph, int party)
{
    graph->stamp = graph->edge_count;
    graph->parties[party].first = graph->edge_count;
}

static void end_edges(Graph *graph, int party)
{
    graph->parties[party].count = graph->edge_count - graph->parties[party].first;
}

/* Some of its edges move or go: `scratch` must not say any more where they are. */
static void forget_edges(Graph *graph)
{
    for (int i = graph->stamp; i < graph->edge_count; i++)
        graph->scratch[graph->edges[i].blocker] = GRAPH_NONE;
}

/* The edges of the waiter at `waiting`: to holders, and to those before it. */
static bool add_edges(Graph *graph, const Object *object, int waiting, Error *err)
{
    const GraphLock *lock = &graph->locks[waiting];

    start_edges(graph, lock->party);
    for (int i = object->first; i < waiting; i++) {
        if (is_in_the_way(graph, lock, &graph->locks[i]) && !add_blocker(graph, waiting, i, err))
            return false;
    }
    end_edges(graph, lock->party);
    return true;
}

/* ---- the queue ------------------------------------------------------------------------------- */

/* The granted ones before those that wait, these by when they began, an unknown moment last. */
static int compare_locks(const void *left, const void *right)
{
    const GraphLock *a = left;
    const GraphLock *b = right;

    if (a->object != b->object)
        return a->object < b->object ? -1 : 1;
    if (a->granted != b->granted)
        return a->granted ? -1 : 1;
    if (!a->granted && a->since_us != b->since_us)
        return a->since_us < b->since_us ? -1 : 1;
    return (a->row > b->row) - (a->row < b->row);
}

/* The modes that its group holds on the object, as bits. */
static unsigned held_modes(const Graph *graph, const Object *object, const GraphLock *lock)
{
    unsigned modes = 0;

    for (int i = object->first; i < object->first + object->granted; i++) {
        if (group_of(graph, &graph->locks[i]) == group_of(graph, lock))
            modes |= 1U << graph->locks[i].mode;
    }
    return modes;
}

static bool conflicts_with_any(LockMode mode, unsigned modes)
{
    for (LockMode other = MODE_ACCESS_SHARE; other < MODE_COUNT; other++) {
        if ((modes >> other & 1) != 0 && mode_conflicts(mode, other))
            return true;
    }
    return false;
}

/* Let the lock at `from` stand at `to`, which is before it. */
static void move_up(GraphLock *locks, int from, int to)
{
    GraphLock moved = locks[from];

    memmove(&locks[to + 1], &locks[to], (size_t)(from - to) * sizeof *locks);
    locks[to] = moved;
}

/* Mark those whose place is doubtful, before the queue is replayed: by when they began. */
static void find_ties(Graph *graph, const Object *object)
{
    GraphLock *queue = &graph->locks[object->first + object->granted];
    int length = object->count - object->granted;

    for (int i = 1; i < length; i++) {
        /* Neighbours that do not conflict may stand in any order, but not those around them. */
        for (int j = i - 1; j >= 0; j--) {
            bool is_close = queue[j].since_us == GRAPH_UNKNOWN ||
                            (queue[i].since_us != GRAPH_UNKNOWN &&
                             queue[i].since_us - queue[j].since_us < TIE_US);

            if (!is_close)
                break;
            if (!is_in_the_way(graph, &queue[i], &queue[j]))
                continue;
            graph->parties[queue[i].party].doubt = DOUBT_TIED;
            graph->parties[queue[j].party].doubt = DOUBT_TIED;
            break;
        }
    }
}

static void replay_queue(Graph *graph, const Object *object)
{
    int start = object->first + object->granted;
    int end = object->first + object->count;
    bool holds = false;

    find_ties(graph, object);
    for (int i = start; i < end; i++) {
        unsigned held = held_modes(graph, object, &graph->locks[i]);

        holds = holds || held != 0;
        for (int j = start; held != 0 && j < i; j++) {
            if (group_of(graph, &graph->locks[j]) != group_of(graph, &graph->locks[i]) &&
                conflicts_with_any(graph->locks[j].mode, held)) {
                move_up(graph->locks, i, j);
                break;
            }
        }
    }
    for (int i = start; holds && end - start > 1 && i < end; i++)
        graph->parties[graph->locks[i].party].doubt = DOUBT_HELD;
}

static bool read_object(Graph *graph, const Object *object, Error *err)
{
    replay_queue(graph, object);
    for (int i = object->first + object->granted; i < object->first + object->count; i++) {
        GraphParty *party = &graph->parties[graph->locks[i].party];

        if (party->waits != GRAPH_NONE)
            continue; /* a backend waits for one lock only; a file may say anything */
        party->waits = i;
        if (!add_edges(graph, object, i, err))
            return false;
    }
    return true;
}

/* The object of the lock at `first`, where it begins. */
static Object object_at(const Graph *graph, int first)
{
    Object object = {.first = first};

    for (int i = first;
         i < graph->lock_count && graph->locks[i].object == graph->locks[first].object; i++) {
        object.count++;
        object.granted += graph->locks[i].granted;
    }
    return object;
}

/* ---- cycles ---------------------------------------------------------------------------------- */

/* Where Tarjan's search is: at an edge of a member of a group. */
typedef struct {
    int node;   /* a leader */
    int member; /* of its group */
    int edge;   /* of the member's */
} Visit;

typedef struct {
    int *index; /* by node: when it was found, from 1 */
    int *low;   /* by node: the earliest that it leads back to */
    bool *open; /* by node: whether it is in `stack` */
    int *stack; /* nodes whose component is not known yet */
    Visit *visits;
    int found, depth, height, components;
} Search;

static void search_enter(Search *search, int node)
{
    search->index[node] = search->low[node] = ++search->found;
    search->stack[search->height++] = node;
    search->open[node] = true;
    search->visits[search->depth++] = (Visit){node, node, 0};
}

static void search_leave(Graph *graph, Search *search)
{
    int node = search->visits[--search->depth].node;
    int size = 0;
    int member;

    if (search->depth > 0) {
        int before = search->visits[search->depth - 1].node;

        if (search->low[node] < search->low[before])
            search->low[before] = search->low[node];
    }
    if (search->low[node] != search->index[node])
        return;
    do {
        member = search->stack[--search->height];
        search->open[member] = false;
        graph->parties[member].component = search->components;
        graph->parties[member].in_cycle = size++ > 0 || member != node;
    } while (member != node);
    search->components++;
}

/* The next node that the visited one waits for, or GRAPH_NONE. */
static int search_next(const Graph *graph, Visit *visit)
{
    while (visit->member != GRAPH_NONE) {
        const GraphParty *party = &graph->parties[visit->member];

        if (visit->edge < party->count) {
            const GraphEdge *edge = &graph->edges[party->first + visit->edge++];

            return graph->parties[edge->blocker].leader;
        }
        visit->member = party->next_member;
        visit->edge = 0;
    }
    return GRAPH_NONE;
}

/*
 * Find who wait for each other (R. Tarjan, "Depth-first search and linear graph algorithms"). A
 * component's number is higher than those of all that it waits for.
 */
static bool find_components(Graph *graph, Error *err)
{
    int count = graph->party_count;
    Search search = {
        .index = new_array(count, sizeof *search.index),
        .low = new_array(count, sizeof *search.low),
        .open = new_array(count, sizeof *search.open),
        .stack = new_array(count, sizeof *search.stack),
        .visits = new_array(count, sizeof *search.visits),
    };
    bool ok = search.index != NULL && search.low != NULL && search.open != NULL &&
              search.stack != NULL && search.visits != NULL;

    for (int i = 0; ok && i < count; i++) {
        if (graph->parties[i].leader != i || search.index[i] != 0)
            continue;
        search_enter(&search, i);
        while (search.depth > 0) {
            Visit *visit = &search.visits[search.depth - 1];
            int next = search_next(graph, visit);

            if (next == GRAPH_NONE)
                search_leave(graph, &search);
            else if (search.index[next] == 0)
                search_enter(&search, next);
            else if (search.open[next] && search.index[next] < search.low[visit->node])
                search.low[visit->node] = search.index[next];
        }
    }
    for (int i = 0; ok && i < count; i++) {
        const GraphParty *leader = &graph->parties[graph->parties[i].leader];

        graph->parties[i].component = leader->component;
        graph->parties[i].in_cycle = leader->in_cycle;
    }
    free(search.index);
    free(search.low);
    free(search.open);
    free(search.stack);
    free(search.visits);
    return ok || out_of_memory(err);
}

/*
 * A cycle through soft edges: the server rearranges the queue to undo such a one, a second after
 * the last has begun to wait.
 */
static void doubt_cycles(Graph *graph)
{
    for (int i = 0; i < graph->edge_count; i++) {
        const GraphEdge *edge = &graph->edges[i];
        GraphParty *waiter = &graph->parties[edge->waiter];

        if (edge->certainty == EDGE_SOFT && waiter->doubt == DOUBT_NONE && waiter->in_cycle &&
            waiter->component == graph->parties[edge->blocker].component)
            waiter->doubt = DOUBT_TIED;
    }
}

bool graph_build(Graph *graph, Error *err)
{
    graph->scratch = new_array(graph->party_count, sizeof *graph->scratch);
    if (graph->scratch == NULL)
        return out_of_memory(err);
    for (int i = 0; i < graph->party_count; i++) {
        GraphParty *party = &graph->parties[i];

        graph->scratch[i] = GRAPH_NONE;
        party->waits = party->next_member = GRAPH_NONE;
        party->first = party->count = 0;
        party->doubt = DOUBT_NONE;
    }
    for (int i = 0; i < graph->party_count; i++) {
        GraphParty *leader = &graph->parties[graph->parties[i].leader];

        if (leader == &graph->parties[i])
            continue;
        graph->parties[i].next_member = leader->next_member;
        leader->next_member = i;
    }
    qsort(graph->locks, (size_t)graph->lock_count, sizeof *graph->locks, compare_locks);
    for (int i = 0; i < graph->lock_count;) {
        Object object = object_at(graph, i);

        if (object.granted < object.count && !read_object(graph, &object, err))
            return false;
        i += object.count;
    }
    if (!find_components(graph, err))
        return false;
    doubt_cycles(graph);
    return true;
}

/* ---- answers --------------------------------------------------------------------------------- */

static bool is_named(const Graph *graph, int blocker, const int *pids, int count)
{
    for (int i = 0; i < count; i++) {
        if (pids[i] == graph->parties[blocker].pid)
            return true;
    }
    return false;
}

/* Is it soft by what was worked out? */
static bool was_soft(const Graph *graph, const GraphParty *party, int blocker)
{
    for (int i = party->first; i < party->first + party->count; i++) {
        if (graph->edges[i].blocker == blocker)
            return graph->edges[i].certainty == EDGE_SOFT;
    }
    return false;
}

bool graph_answer(Graph *graph, int party, const int *pids, int count, bool strict, Error *err)
{
    GraphParty before = graph->parties[party];
    int kept = 0;
    bool some_named = false;
    Object object;
    int first = before.waits;

    if (first == GRAPH_NONE)
        return true;
    while (first > 0 && graph->locks[first - 1].object == graph->locks[first].object)
        first--;
    object = object_at(graph, first);
    start_edges(graph, party);
    for (int i = object.first; i < object.first + object.count; i++) {
        if (is_in_the_way(graph, &graph->locks[before.waits], &graph->locks[i]) &&
            !add_blocker(graph, before.waits, i, err))
            return false;
    }
    forget_edges(graph);
    for (int i = graph->stamp; i < graph->edge_count; i++) {
        GraphEdge edge = graph->edges[i];
        bool named = is_named(graph, edge.blocker, pids, count);

        some_named = some_named || named;
        if (!named && (strict || edge.certainty == EDGE_SOFT))
            continue;
        if (named && (strict || before.doubt == DOUBT_HELD ||
                      (edge.certainty == EDGE_SOFT && !was_soft(graph, &before, edge.blocker))))
            edge.certainty = EDGE_CONFIRMED;
        graph->edges[graph->stamp + kept++] = edge;
    }
    graph->edge_count = graph->stamp + kept;
    end_edges(graph, party);
    if (!some_named && !strict)
        graph->parties[party] = before;
    return true;
}

/* ---- settling -------------------------------------------------------------------------------- */

static void push_node(int *stack, int *height, bool *seen, int node)
{
    if (!seen[node]) {
        seen[node] = true;
        stack[(*height)++] = node;
    }
}

/* Leave out who is neither asked about nor in the way of those who are. */
static bool keep_meant(Graph *graph, Error *err)
{
    bool *seen = new_array(graph->party_count, sizeof *seen);
    int *stack = new_array(graph->party_count, sizeof *stack);
    int height = 0;
    bool ok = seen != NULL && stack != NULL;

    for (int i = 0; ok && i < graph->party_count; i++) {
        const GraphParty *party = &graph->parties[i];

        if (party->waits != GRAPH_NONE && graph->locks[party->waits].meant)
            push_node(stack, &height, seen, party->leader);
    }
    while (ok && height > 0) {
        for (int i = stack[--height]; i != GRAPH_NONE; i = graph->parties[i].next_member) {
            const GraphParty *party = &graph->parties[i];

            for (int j = party->first; j < party->first + party->count; j++)
                push_node(stack, &height, seen, graph->parties[graph->edges[j].blocker].leader);
        }
    }
    for (int i = 0; ok && i < graph->party_count; i++) {
        if (!seen[graph->parties[i].leader])
            graph->parties[i].count = 0;
    }
    free(seen);
    free(stack);
    return ok || out_of_memory(err);
}

/* By component: which of 64 nodes it is, and which it waits for, also through others. */
typedef struct {
    uint64_t own, reached;
} Reach;

/* The leaders whom somebody waits for; returns how many. */
static int find_blockers(const Graph *graph, int *blockers, bool *seen)
{
    int count = 0;

    for (int i = 0; i < graph->party_count; i++) {
        const GraphParty *party = &graph->parties[i];

        for (int j = party->first; j < party->first + party->count; j++)
            push_node(blockers, &count, seen, graph->parties[graph->edges[j].blocker].leader);
    }
    return count;
}

/* parties[order[0]], … are in the order of their components. */
static void order_by_component(const Graph *graph, int *order, int *places)
{
    int place = 0;

    for (int i = 0; i < graph->party_count; i++)
        places[graph->parties[i].component]++;
    for (int i = 0; i < graph->party_count; i++) {
        int count = places[i];

        places[i] = place;
        place += count;
    }
    for (int i = 0; i < graph->party_count; i++)
        order[places[graph->parties[i].component]++] = i;
}

/* What all parties reach of the nodes whose `own` bits are set. */
static void reach_all(const Graph *graph, const int *order, Reach *reach)
{
    for (int i = 0; i < graph->party_count; i++) {
        const GraphParty *party = &graph->parties[order[i]];
        Reach *from = &reach[party->component];

        if (party->in_cycle)
            from->reached |= from->own;
        for (int j = party->first; j < party->first + party->count; j++) {
            const Reach *to = &reach[graph->parties[graph->edges[j].blocker].component];

            from->reached |= to->reached | to->own;
        }
    }
}

static int64_t waited_us(const Graph *graph, const GraphParty *party, int64_t now_us)
{
    int64_t since = graph->locks[party->waits].since_us;

    return since == GRAPH_UNKNOWN || since > now_us ? 0 : now_us - since;
}

static void count_behind(Graph *graph, const int *nodes, int count, const Reach *reach,
                         int64_t now_us)
{
    for (int i = 0; i < graph->party_count; i++) {
        const GraphParty *party = &graph->parties[i];
        uint64_t bits = party->count > 0 ? reach[party->component].reached : 0;

        for (int bit = 0; bits != 0 && bit < count; bit++) {
            GraphParty *node = &graph->parties[nodes[bit]];

            if ((bits >> bit & 1) == 0 || party->leader == nodes[bit])
                continue;
            node->behind++;
            node->weight_us += waited_us(graph, party, now_us);
        }
    }
}

/* Who is behind whom, for 64 at a time. */
static bool weigh(Graph *graph, int64_t now_us, Error *err)
{
    int parties = graph->party_count;
    int *order = new_array(parties, sizeof *order);
    int *places = new_array(parties, sizeof *places);
    int *blockers = new_array(parties, sizeof *blockers);
    bool *seen = new_array(parties, sizeof *seen);
    Reach *reach = new_array(parties, sizeof *reach);
    bool ok = order != NULL && places != NULL && blockers != NULL && seen != NULL && reach != NULL;
    int count = ok ? find_blockers(graph, blockers, seen) : 0;

    if (ok)
        order_by_component(graph, order, places);
    for (int i = 0; i < parties; i++) {
        graph->parties[i].behind = 0;
        graph->parties[i].weight_us = 0;
    }
    for (int i = 0; i < count; i += 64) {
        int batch = count - i < 64 ? count - i : 64;

        memset(reach, 0, (size_t)parties * sizeof *reach);
        for (int j = 0; j < batch; j++)
            reach[graph->parties[blockers[i + j]].component].own |= UINT64_C(1) << j;
        reach_all(graph, order, reach);
        count_behind(graph, &blockers[i], batch, reach, now_us);
    }
    free(order);
    free(places);
    free(blockers);
    free(seen);
    free(reach);
    return ok || out_of_memory(err);
}

bool graph_settle(Graph *graph, int64_t now_us, Error *err)
{
    return keep_meant(graph, err) && find_components(graph, err) && weigh(graph, now_us, err);
}
