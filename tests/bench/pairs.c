/*
 * The limit for acquiring and releasing an advisory lock: bare libpq, two round trips a pair.
 *
 *   bench_pairs CONNINFO SECONDS try|timed      pairs a second, on stdout
 *   bench_pairs CONNINFO 0 once                 connect, lock, release, exit: for timing a process
 */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char TRY[] = "SELECT pg_try_advisory_lock($1)";
static const char TIMED[] =
    "SELECT CASE WHEN pg_try_advisory_lock($1) THEN false"
    " WHEN set_config('lock_timeout', $2, true) IS NOT NULL THEN pg_advisory_lock($1)::text = '' END";
static const char UNLOCK[] = "SELECT pg_advisory_unlock($1)";

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void check(PGconn *conn, PGresult *result, ExecStatusType wanted)
{
    if (PQresultStatus(result) != wanted) {
        fprintf(stderr, "%s", PQerrorMessage(conn));
        exit(1);
    }
    PQclear(result);
}

static void prepare(PGconn *conn, const char *name, const char *sql)
{
    const Oid types[2] = {20, 25};

    check(conn, PQprepare(conn, name, sql, strcmp(name, "timed") == 0 ? 2 : 1, types),
          PGRES_COMMAND_OK);
}

static void pair(PGconn *conn, const char *lock, const char *key)
{
    const char *values[2] = {key, "5000"};

    check(conn,
          PQexecPrepared(conn, lock, strcmp(lock, "timed") == 0 ? 2 : 1, values, NULL, NULL, 0),
          PGRES_TUPLES_OK);
    check(conn, PQexecPrepared(conn, "unlock", 1, values, NULL, NULL, 0), PGRES_TUPLES_OK);
}

int main(int argc, char **argv)
{
    PGconn *conn;
    double start;
    double seconds;
    long pairs = 0;

    if (argc != 4) {
        fprintf(stderr, "usage: bench_pairs CONNINFO SECONDS try|timed|once\n");
        return 2;
    }
    conn = PQconnectdb(argv[1]);
    if (PQstatus(conn) != CONNECTION_OK) {
        fprintf(stderr, "%s", PQerrorMessage(conn));
        return 1;
    }
    if (strcmp(argv[3], "once") == 0) {
        const char *values[1] = {"42"};
        const Oid types[1] = {20};

        check(conn, PQexecParams(conn, TRY, 1, types, values, NULL, NULL, 0), PGRES_TUPLES_OK);
        check(conn, PQexecParams(conn, UNLOCK, 1, types, values, NULL, NULL, 0), PGRES_TUPLES_OK);
        PQfinish(conn);
        return 0;
    }
    prepare(conn, "try", TRY);
    prepare(conn, "timed", TIMED);
    prepare(conn, "unlock", UNLOCK);
    seconds = strtod(argv[2], NULL);
    start = now();
    do {
        for (int i = 0; i < 100; i++)
            pair(conn, argv[3], "42");
        pairs += 100;
    } while (now() - start < seconds);
    printf("%.0f\n", (double)pairs / (now() - start));
    PQfinish(conn);
    return 0;
}
