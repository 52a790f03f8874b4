/* The wait-for graph, from made-up locks: edges, the queue, groups, doubt and answers, cycles,
 * weights. */
#include "locks/graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *promise;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("not ok - %s\n# line %d: %s\n", promise, __LINE__, #condition);                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static void passed(void)
{
    printf("ok - %s\n", promise);
}

enum { SECOND = 1000000, NOW = 1000 };

static Graph graph;
static Error err;

/* Parties 0, 1, … have pids 100, 101, … */
static void begin(int parties, int locks)
{
    graph_clear(&graph);
    graph.parties = calloc((size_t)parties + 1, sizeof *graph.parties);
    graph.locks = calloc((size_t)locks + 1, sizeof *graph.locks);
    CHECK(graph.parties != NULL && graph.locks != NULL);
    graph.party_count = parties;
    for (int i = 0; i < parties; i++) {
        graph.parties[i].pid = 100 + i;
        graph.parties[i].leader = i;
    }
}

static GraphLock *add(int object, int party, LockMode mode)
{
    GraphLock *lock = &graph.locks[graph.lock_count];

    *lock = (GraphLock){
        .object = object, .party = party, .mode = mode, .meant = true, .row = graph.lock_count++};
    return lock;
}

static void hold(int object, int party, LockMode mode)
{
    add(object, party, mode)->granted = true;
}

/* It has waited since that second. */
static void want(int object, int party, LockMode mode, int second)
{
    add(object, party, mode)->since_us = (int64_t)second * SECOND;
}

static void settle(void)
{
    CHECK(graph_settle(&graph, (int64_t)NOW * SECOND, &err));
}

static void build(void)
{
    CHECK(graph_build(&graph, &err));
}

static const GraphEdge *edge_of(int waiter, int blocker)
{
    const GraphParty *party = &graph.parties[waiter];

    for (int i = party->first; i < party->first + party->count; i++) {
        if (graph.edges[i].blocker == blocker)
            return &graph.edges[i];
    }
    return NULL;
}

static bool is_edge(int waiter, int blocker, EdgeCertainty certainty)
{
    const GraphEdge *edge = edge_of(waiter, blocker);

    return edge != NULL && edge->certainty == certainty;
}

static int count_edges(void)
{
    int count = 0;

    for (int i = 0; i < graph.party_count; i++)
        count += graph.parties[i].count;
    return count;
}

static void test_empty(void)
{
    promise = "nobody, and nobody who waits, have no edges";
    begin(0, 0);
    build();
    settle();
    CHECK(count_edges() == 0);
    begin(2, 2);
    hold(0, 0, MODE_SHARE);
    hold(0, 1, MODE_SHARE);
    build();
    settle();
    CHECK(count_edges() == 0);
    passed();
}

static void test_pile_up(void)
{
    promise = "holders are hard edges, those before in the queue soft ones";
    begin(4, 4);
    hold(0, 0, MODE_ROW_EXCLUSIVE);
    want(0, 1, MODE_ACCESS_EXCLUSIVE, 900);
    want(0, 2, MODE_ACCESS_SHARE, 910);
    want(0, 3, MODE_ACCESS_SHARE, 920);
    build();
    settle();
    CHECK(count_edges() == 3);
    CHECK(is_edge(1, 0, EDGE_HARD) && is_edge(2, 1, EDGE_SOFT) && is_edge(3, 1, EDGE_SOFT));
    CHECK(edge_of(2, 1)->holding == GRAPH_NONE);
    CHECK(graph.parties[0].behind == 3 && graph.parties[1].behind == 2);
    CHECK(graph.parties[0].weight_us == (100 + 90 + 80) * (int64_t)SECOND);
    CHECK(!graph.parties[1].in_cycle && graph.parties[1].doubt == DOUBT_NONE);
    passed();
}

static void test_strongest(void)
{
    promise = "an edge names the strongest lock in the way, not one that is in nobody's";
    begin(2, 4);
    hold(0, 0, MODE_SHARE);
    hold(0, 0, MODE_SHARE_ROW_EXCLUSIVE);
    hold(0, 0, MODE_ACCESS_SHARE);
    want(0, 1, MODE_ROW_EXCLUSIVE, 1);
    build();
    settle();
    CHECK(count_edges() == 1);
    CHECK(graph.locks[edge_of(1, 0)->holding].mode == MODE_SHARE_ROW_EXCLUSIVE);
    passed();
}

static void test_queue(void)
{
    promise = "who holds what a waiter wants stands before him, though it came later";
    begin(3, 4);
    hold(0, 0, MODE_ACCESS_SHARE);
    hold(0, 2, MODE_ACCESS_SHARE);
    want(0, 1, MODE_ACCESS_EXCLUSIVE, 1);
    want(0, 2, MODE_ACCESS_EXCLUSIVE, 2);
    build();
    settle();
    CHECK(is_edge(1, 0, EDGE_HARD) && is_edge(1, 2, EDGE_HARD) && is_edge(2, 0, EDGE_HARD));
    CHECK(edge_of(2, 1) == NULL); /* no deadlock */
    CHECK(graph.parties[1].doubt == DOUBT_HELD && graph.parties[2].doubt == DOUBT_HELD);
    passed();
}

static void test_answers(void)
{
    int both[] = {100, 101};
    int other[] = {999};

    promise = "an answer confirms and drops; one of another wait changes nothing";
    begin(4, 5);
    hold(0, 0, MODE_SHARE);
    hold(0, 3, MODE_ROW_SHARE);
    want(0, 1, MODE_EXCLUSIVE, 1);
    want(0, 2, MODE_ROW_EXCLUSIVE, 2);
    want(0, 3, MODE_EXCLUSIVE, 3); /* before 1, as it holds what 1 wants */
    build();
    CHECK(is_edge(2, 3, EDGE_SOFT) && is_edge(2, 1, EDGE_SOFT) && is_edge(2, 0, EDGE_HARD));
    CHECK(graph_answer(&graph, 2, other, 1, false, &err));
    CHECK(is_edge(2, 3, EDGE_SOFT) && is_edge(2, 1, EDGE_SOFT) && is_edge(2, 0, EDGE_HARD));
    CHECK(graph_answer(&graph, 2, both, 2, false, &err));
    CHECK(is_edge(2, 0, EDGE_CONFIRMED) && is_edge(2, 1, EDGE_CONFIRMED) && edge_of(2, 3) == NULL);
    CHECK(graph_answer(&graph, 2, other, 1, true, &err));
    CHECK(graph.parties[2].count == 0);
    CHECK(graph_answer(&graph, 1, both, 2, false, &err)); /* after edges were dropped */
    CHECK(is_edge(1, 0, EDGE_CONFIRMED) && is_edge(1, 3, EDGE_HARD));
    passed();
}

static void test_ties(void)
{
    int first[] = {100, 102};

    promise = "those who began together are in doubt; an answer that is the same changes nothing";
    begin(3, 3);
    hold(0, 0, MODE_EXCLUSIVE);
    want(0, 1, MODE_EXCLUSIVE, 1);
    want(0, 2, MODE_EXCLUSIVE, 1);
    build();
    CHECK(graph.parties[1].doubt == DOUBT_TIED && graph.parties[2].doubt == DOUBT_TIED);
    CHECK(is_edge(2, 1, EDGE_SOFT) && edge_of(1, 2) == NULL);
    CHECK(graph_answer(&graph, 1, first, 2, false, &err)); /* it was the other way round */
    CHECK(graph_answer(&graph, 2, first, 1, false, &err));
    CHECK(is_edge(1, 2, EDGE_CONFIRMED) && is_edge(1, 0, EDGE_HARD) && edge_of(2, 1) == NULL);
    passed();
}

static void test_groups(void)
{
    promise = "a parallel group is one: never in its own way, but on extension locks";
    begin(4, 5);
    graph.parties[1].leader = graph.parties[2].leader = 0;
    hold(0, 0, MODE_ACCESS_SHARE);
    hold(0, 1, MODE_ROW_EXCLUSIVE);
    want(0, 2, MODE_ACCESS_EXCLUSIVE, 1);
    want(0, 3, MODE_SHARE, 2);
    build();
    settle();
    CHECK(graph.parties[2].count == 0); /* all that it would wait for is its own group's */
    CHECK(is_edge(3, 0, EDGE_HARD) && graph.parties[3].count == 1);
    CHECK(graph.locks[edge_of(3, 0)->holding].party == 1);
    begin(3, 2);
    graph.parties[1].leader = graph.parties[2].leader = 0;
    hold(0, 1, MODE_EXCLUSIVE);
    want(0, 2, MODE_EXCLUSIVE, 1);
    graph.locks[0].extend = graph.locks[1].extend = true;
    build();
    settle();
    CHECK(is_edge(2, 1, EDGE_HARD));
    passed();
}

static void test_cycle(void)
{
    promise = "who wait for each other, and who waits behind them";
    begin(4, 6);
    hold(0, 0, MODE_EXCLUSIVE);
    hold(1, 1, MODE_EXCLUSIVE);
    want(1, 0, MODE_EXCLUSIVE, 990);
    want(0, 1, MODE_EXCLUSIVE, 991);
    want(0, 2, MODE_EXCLUSIVE, 992);
    build();
    settle();
    CHECK(graph.parties[0].in_cycle && graph.parties[1].in_cycle && !graph.parties[2].in_cycle);
    CHECK(graph.parties[0].component == graph.parties[1].component);
    CHECK(graph.parties[0].behind == 2 && graph.parties[1].behind == 2);
    CHECK(graph.parties[0].weight_us == (9 + 8) * (int64_t)SECOND);
    passed();
}

static void test_meant(void)
{
    promise = "who is not asked about is kept only where he is in the way";
    begin(6, 6);
    hold(0, 0, MODE_EXCLUSIVE);
    want(0, 1, MODE_EXCLUSIVE, 1);
    hold(1, 1, MODE_EXCLUSIVE);
    want(1, 2, MODE_EXCLUSIVE, 2);
    hold(2, 3, MODE_EXCLUSIVE);
    want(2, 4, MODE_EXCLUSIVE, 3);
    graph.locks[1].meant = graph.locks[5].meant = false;
    build();
    settle();
    CHECK(is_edge(2, 1, EDGE_HARD) && is_edge(1, 0, EDGE_HARD) && graph.parties[4].count == 0);
    CHECK(graph.parties[0].behind == 2 && graph.parties[3].behind == 0);
    passed();
}

static void test_twice(void)
{
    promise = "a second wait of one backend, which only a file can have, is left out";
    begin(2, 4);
    hold(0, 0, MODE_EXCLUSIVE);
    hold(1, 0, MODE_EXCLUSIVE);
    want(0, 1, MODE_EXCLUSIVE, 1);
    want(1, 1, MODE_EXCLUSIVE, 1);
    build();
    settle();
    CHECK(graph.parties[1].count == 1 && graph.parties[0].behind == 1);
    passed();
}

/* All want the same, each for himself: as many edges as there can be. */
static void test_many(void)
{
    enum { MANY = 700 };

    promise = "a long queue: each waits for all before him, more than 64 are weighed";
    begin(MANY, MANY);
    hold(0, 0, MODE_EXCLUSIVE);
    for (int i = 1; i < MANY; i++)
        want(0, i, MODE_EXCLUSIVE, i);
    build();
    settle();
    CHECK(count_edges() == MANY * (MANY - 1) / 2);
    for (int i = 0; i < MANY; i++)
        CHECK(graph.parties[i].behind == MANY - 1 - i && !graph.parties[i].in_cycle);
    passed();
}

int main(void)
{
    test_empty();
    test_pile_up();
    test_strongest();
    test_queue();
    test_answers();
    test_ties();
    test_groups();
    test_cycle();
    test_meant();
    test_twice();
    test_many();
    graph_clear(&graph);
    return 0;
}
