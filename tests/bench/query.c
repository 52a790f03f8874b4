/*
 * The limits for looking at locks, by bare libpq, and the scene to look at.
 *
 *   bench_query CONNINFO scene LOCKS WAITERS   holds advisory locks, and a table that others wait
 *                                              for; says "ready", and ends with stdin
 *   bench_query CONNINFO read                  milliseconds to read every column of pg_locks
 *   bench_query CONNINFO trip                  milliseconds of a round trip
 */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WARM_UP = 3 };

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static PGconn *connect(const char *conninfo)
{
    PGconn *conn = PQconnectdb(conninfo);

    if (PQstatus(conn) != CONNECTION_OK) {
        fprintf(stderr, "%s", PQerrorMessage(conn));
        exit(1);
    }
    return conn;
}

static PGresult *run(PGconn *conn, const char *sql)
{
    PGresult *result = PQexec(conn, sql);

    if (PQresultStatus(result) != PGRES_TUPLES_OK && PQresultStatus(result) != PGRES_COMMAND_OK) {
        fprintf(stderr, "%s: %s", sql, PQerrorMessage(conn));
        exit(1);
    }
    return result;
}

/* Read each field once, as whoever shows them must. */
static size_t read_all(const PGresult *result)
{
    size_t bytes = 0;

    for (int row = 0; row < PQntuples(result); row++) {
        for (int column = 0; column < PQnfields(result); column++)
            bytes += strlen(PQgetvalue(result, row, column));
    }
    return bytes;
}

static double time_of(PGconn *conn, const char *sql)
{
    double start = now_ms();
    PGresult *result = run(conn, sql);

    if (read_all(result) == 0)
        exit(1);
    PQclear(result);
    return now_ms() - start;
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;

    return (a > b) - (a < b);
}

static void time_median(PGconn *conn, const char *sql)
{
    enum { ROUNDS = 21 };
    double times[ROUNDS];

    for (int i = 0; i < WARM_UP; i++)
        time_of(conn, sql);
    for (int i = 0; i < ROUNDS; i++)
        times[i] = time_of(conn, sql);
    qsort(times, ROUNDS, sizeof times[0], compare);
    printf("%.4f\n", times[ROUNDS / 2]);
}

static void set_scene(const char *conninfo, const char *locks, int waiters)
{
    PGconn *holder = connect(conninfo);
    char sql[128];
    char line[16];

    snprintf(sql, sizeof sql, "SELECT count(pg_advisory_lock(i)) FROM generate_series(1, %s) i",
             locks);
    PQclear(run(holder, sql));
    PQclear(run(holder, "SET client_min_messages = warning"));
    PQclear(run(holder, "CREATE TABLE IF NOT EXISTS bench_query (id int)"));
    PQclear(run(holder, "BEGIN; LOCK TABLE bench_query"));
    for (int i = 0; i < waiters; i++)
        PQsendQuery(connect(conninfo), "SELECT count(*) FROM bench_query");
    for (;;) {
        PGresult *result = run(holder, "SELECT count(*) FROM pg_locks WHERE NOT granted");
        int waiting = atoi(PQgetvalue(result, 0, 0));

        PQclear(result);
        if (waiting == waiters)
            break;
    }
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL)
        continue;
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[2], "scene") == 0) {
        set_scene(argv[1], argv[3], atoi(argv[4]));
        return 0;
    }
    if (argc != 3) {
        fprintf(stderr, "usage: bench_query CONNINFO scene LOCKS WAITERS|read|trip\n");
        return 2;
    }
    time_median(connect(argv[1]),
                strcmp(argv[2], "read") == 0 ? "SELECT * FROM pg_locks" : "SELECT 1");
    return 0;
}
