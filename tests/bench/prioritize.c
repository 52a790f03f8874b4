/*
 * The limit for prioritize: bare libpq, one connection whose UPDATE waits behind ACCESS EXCLUSIVE,
 * and another that looks every 10 ms who blocks it and terminates that one.
 *
 *   bench_prioritize CONNINFO ROUNDS      milliseconds from block to go, one a line
 */
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { INTERVAL_MS = 10 };

static const char TABLE[] = "CREATE TABLE IF NOT EXISTS bench_prioritize (v int);"
                            "DELETE FROM bench_prioritize; INSERT INTO bench_prioritize VALUES (0)";
static const char BLOCK[] = "BEGIN; LOCK TABLE bench_prioritize IN ACCESS EXCLUSIVE MODE";
static const char UPDATE[] = "UPDATE bench_prioritize SET v = v + 1";
static const char LOOK[] = "SELECT pg_terminate_backend(p) FROM unnest(pg_blocking_pids($1)) p";

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void fail(PGconn *conn)
{
    fprintf(stderr, "%s", PQerrorMessage(conn));
    exit(1);
}

static PGconn *connect_to(const char *conninfo)
{
    PGconn *conn = PQconnectdb(conninfo);

    if (PQstatus(conn) != CONNECTION_OK)
        fail(conn);
    return conn;
}

static void check(PGconn *conn, PGresult *result)
{
    if (PQresultStatus(result) != PGRES_COMMAND_OK && PQresultStatus(result) != PGRES_TUPLES_OK)
        fail(conn);
    PQclear(result);
}

/* Wait for the answer of `conn`, and look on `side` whenever that takes the interval. */
static void wait_and_look(PGconn *conn, PGconn *side, const char *pid)
{
    struct pollfd fd = {.fd = PQsocket(conn), .events = POLLIN};
    PGresult *result;

    while (poll(&fd, 1, INTERVAL_MS) == 0)
        check(side, PQexecPrepared(side, "look", 1, (const char *const[]){pid}, NULL, NULL, 0));
    while ((result = PQgetResult(conn)) != NULL)
        check(conn, result);
}

int main(int argc, char **argv)
{
    PGconn *conn;
    PGconn *side;
    char pid[16];

    if (argc != 3) {
        fprintf(stderr, "usage: bench_prioritize CONNINFO ROUNDS\n");
        return 2;
    }
    conn = connect_to(argv[1]);
    side = connect_to(argv[1]);
    snprintf(pid, sizeof pid, "%d", PQbackendPID(conn));
    check(conn, PQexec(conn, "SET client_min_messages = warning"));
    check(conn, PQexec(conn, TABLE));
    check(side, PQprepare(side, "look", LOOK, 1, (const Oid[]){23}));
    for (long i = strtol(argv[2], NULL, 10); i > 0; i--) {
        PGconn *blocker = connect_to(argv[1]);
        double start;

        check(blocker, PQexec(blocker, BLOCK));
        start = now_ms();
        if (PQsendQuery(conn, UPDATE) == 0)
            fail(conn);
        wait_and_look(conn, side, pid);
        printf("%.3f\n", now_ms() - start);
        PQfinish(blocker);
    }
    PQfinish(side);
    PQfinish(conn);
    return 0;
}
