/*
 * The limit for handing a lock over: bare libpq, one connection a waiter, all in one process. Each waits
 * for the lock inside the server, and gives it back as soon as it has it.
 *
 *   bench_handover CONNINFO WAITERS ROUNDS    milliseconds from the holder's release to the last one's
 *                                             having had it: the median
 */
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

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

static void check(PGconn *conn, PGresult *result)
{
    if (PQresultStatus(result) != PGRES_COMMAND_OK && PQresultStatus(result) != PGRES_TUPLES_OK)
        fail(conn);
    PQclear(result);
}

static PGconn *connect_to(const char *conninfo)
{
    const Oid types[1] = {20};
    PGconn *conn = PQconnectdb(conninfo);

    if (PQstatus(conn) != CONNECTION_OK)
        fail(conn);
    check(conn, PQprepare(conn, "lock", "SELECT pg_advisory_lock($1)", 1, types));
    check(conn, PQprepare(conn, "unlock", "SELECT pg_advisory_unlock($1)", 1, types));
    return conn;
}

static const char *const KEY[1] = {"77"};

static void send(PGconn *conn, const char *name)
{
    if (PQsendQueryPrepared(conn, name, 1, KEY, NULL, NULL, 0) == 0)
        fail(conn);
}

static void wait_until_all_wait(PGconn *conn, int count)
{
    static const char SQL[] = "SELECT count(*) FROM pg_locks WHERE NOT granted";

    for (;;) {
        PGresult *result = PQexec(conn, SQL);
        int waiting = PQntuples(result) == 1 ? atoi(PQgetvalue(result, 0, 0)) : -1;

        PQclear(result);
        if (waiting == count)
            return;
        usleep(1000);
    }
}

/* Each of `waiters` gets its answer, unlocks, and is done when that is answered too. */
static double hand_over(PGconn *holder, PGconn **waiters, struct pollfd *fds, int *left, int count)
{
    double start = now_ms();
    int done = 0;

    check(holder, PQexecPrepared(holder, "unlock", 1, KEY, NULL, NULL, 0));
    while (done < count) {
        poll(fds, (nfds_t)count, -1);
        for (int i = 0; i < count; i++) {
            PGresult *result;

            if ((fds[i].revents & POLLIN) == 0)
                continue;
            if (PQconsumeInput(waiters[i]) == 0)
                fail(waiters[i]);
            if (PQisBusy(waiters[i]))
                continue;
            while ((result = PQgetResult(waiters[i])) != NULL)
                check(waiters[i], result);
            if (--left[i] == 1)
                send(waiters[i], "unlock");
            else
                done++;
        }
    }
    return now_ms() - start;
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;

    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    int count = argc == 4 ? atoi(argv[2]) : 0;
    int rounds = argc == 4 ? atoi(argv[3]) : 0;
    PGconn *holder;
    PGconn **waiters;
    struct pollfd *fds;
    int *left;
    double *times;

    if (count < 1 || rounds < 1) {
        fprintf(stderr, "usage: bench_handover CONNINFO WAITERS ROUNDS\n");
        return 2;
    }
    holder = connect_to(argv[1]);
    waiters = calloc((size_t)count, sizeof(PGconn *));
    fds = calloc((size_t)count, sizeof *fds);
    left = calloc((size_t)count, sizeof *left);
    times = calloc((size_t)rounds, sizeof *times);
    if (waiters == NULL || fds == NULL || left == NULL || times == NULL)
        return 1;
    for (int i = 0; i < count; i++) {
        waiters[i] = connect_to(argv[1]);
        fds[i] = (struct pollfd){.fd = PQsocket(waiters[i]), .events = POLLIN};
    }
    for (int round = 0; round < rounds; round++) {
        check(holder, PQexecPrepared(holder, "lock", 1, KEY, NULL, NULL, 0));
        for (int i = 0; i < count; i++) {
            left[i] = 2;
            send(waiters[i], "lock");
            if (PQflush(waiters[i]) != 0)
                fail(waiters[i]);
        }
        wait_until_all_wait(holder, count);
        times[round] = hand_over(holder, waiters, fds, left, count);
    }
    qsort(times, (size_t)rounds, sizeof *times, compare);
    printf("%.4f\n", times[rounds / 2]);
    for (int i = 0; i < count; i++)
        PQfinish(waiters[i]);
    PQfinish(holder);
    free(waiters);
    free(fds);
    free(left);
    free(times);
    return 0;
}
