/*
 * The wait-for graph alone, without a server: bench_graph [WAITERS [OBJECTS]], 1,000 on 100 unless
 * said otherwise. On each object one holds, and each waiter wants it for himself, some of them
 * holding a weaker mode: the most edges that there can be. Says the median of 21 times, in
 * milliseconds, and the edges.
 */
#include "locks/graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void add(Graph *graph, int object, int party, LockMode mode, int64_t since_us)
{
    GraphLock *lock = &graph->locks[graph->lock_count];

    *lock = (GraphLock){.object = object,
                        .party = party,
                        .mode = mode,
                        .granted = since_us == 0,
                        .meant = true,
                        .since_us = since_us,
                        .row = graph->lock_count++};
}

static void make(Graph *graph, int waiters, int objects)
{
    graph->party_count = waiters + objects;
    graph->parties = calloc((size_t)graph->party_count, sizeof *graph->parties);
    graph->locks = calloc(2 * (size_t)graph->party_count, sizeof *graph->locks);
    if (graph->parties == NULL || graph->locks == NULL)
        exit(1);
    for (int i = 0; i < graph->party_count; i++) {
        graph->parties[i].pid = i + 1;
        graph->parties[i].leader = i;
    }
    for (int i = 0; i < objects; i++)
        add(graph, i, waiters + i, MODE_ACCESS_SHARE, 0);
    for (int i = 0; i < waiters; i++) {
        if (i % 3 == 0)
            add(graph, i % objects, i, MODE_ACCESS_SHARE, 0);
        add(graph, i % objects, i, MODE_ACCESS_EXCLUSIVE, (i + 1) * INT64_C(10000));
    }
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;

    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    enum { ROUNDS = 21 };
    int waiters = argc > 1 ? atoi(argv[1]) : 1000;
    int objects = argc > 2 ? atoi(argv[2]) : 100;
    double times[ROUNDS];
    int edges = 0;
    Error err;

    if (waiters < 1 || objects < 1)
        return 2;
    for (int i = 0; i < ROUNDS; i++) {
        Graph graph = {0};
        double start;

        make(&graph, waiters, objects);
        start = now_ms();
        if (!graph_build(&graph, &err) || !graph_settle(&graph, INT64_C(1000000000), &err)) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
        times[i] = now_ms() - start;
        edges = graph.edge_count;
        graph_clear(&graph);
    }
    qsort(times, ROUNDS, sizeof times[0], compare);
    printf("%.4f %d\n", times[ROUNDS / 2], edges);
    return 0;
}
