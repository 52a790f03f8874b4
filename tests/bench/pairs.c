/*
 * The limit for acquiring and releasing a lock: bare libpq, prepared statements.
 *
 *   bench_pairs CONNINFO SECONDS MODE    pairs a second; microseconds of our CPU time a pair; the same
 *                                        with the backend's (a server of this machine)
 *   bench_pairs CONNINFO COUNTx MODE     the same, of so many pairs
 *   bench_pairs CONNINFO 0 once          connect, lock, release, exit: for timing a process
 *   bench_pairs CONNINFO 0 exec COMMAND  the same, with a command under the lock
 *
 * MODE: try; timed (lock_timeout 5 s, touched only by a wait); naive (set, lock, reset, unlock);
 * shared; xact (BEGIN, try, COMMIT); nested (two locks, one inside the other: two pairs);
 * model (BEGIN, LOCK TABLE, COMMIT).
 */
#include <libpq-fe.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

static const char *const STATEMENTS[][3] = {
    {"try", "SELECT pg_try_advisory_lock($1)", "1"},
    {"timed",
     "SELECT CASE WHEN pg_try_advisory_lock($1) THEN false"
     " WHEN set_config('lock_timeout', $2, true) IS NOT NULL"
     " THEN pg_advisory_lock($1)::text = '' END",
     "2"},
    {"lock", "SELECT pg_advisory_lock($1)", "1"},
    {"unlock", "SELECT pg_advisory_unlock($1)", "1"},
    {"try shared", "SELECT pg_try_advisory_lock_shared($1)", "1"},
    {"unlock shared", "SELECT pg_advisory_unlock_shared($1)", "1"},
    {"try xact", "SELECT pg_try_advisory_xact_lock($1)", "1"},
    {"set", "SET lock_timeout = '5s'", "0"},
    {"reset", "RESET lock_timeout", "0"},
    {"begin", "BEGIN", "0"},
    {"commit", "COMMIT", "0"},
    {"lock table", "LOCK TABLE bench_model IN SHARE MODE", "0"},
};

static const struct {
    const char *name;
    const char *steps[5]; /* '+': with the other key */
    int pairs;
} MODES[] = {
    {"try", {"try", "unlock"}, 1},
    {"timed", {"timed", "unlock"}, 1},
    {"naive", {"set", "lock", "reset", "unlock"}, 1},
    {"shared", {"try shared", "unlock shared"}, 1},
    {"xact", {"begin", "try xact", "commit"}, 1},
    {"nested", {"try", "+try", "+unlock", "unlock"}, 2},
    {"model", {"begin", "lock table", "commit"}, 1},
};
enum { MODE_COUNT = sizeof MODES / sizeof MODES[0], BATCH = 100, BATCHES_MAX = 1000000 };

static double seconds_of(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Seconds of CPU time of the backend; 0 where that can't be read. */
static double backend_seconds(PGconn *conn)
{
    char path[64];
    double ns = 0;
    FILE *file;

    snprintf(path, sizeof path, "/proc/%d/schedstat", PQbackendPID(conn));
    file = fopen(path, "r");
    if (file != NULL) {
        if (fscanf(file, "%lf", &ns) != 1)
            ns = 0;
        fclose(file);
    }
    return ns / 1e9;
}

static void check(PGconn *conn, PGresult *result)
{
    if (PQresultStatus(result) != PGRES_TUPLES_OK && PQresultStatus(result) != PGRES_COMMAND_OK) {
        fprintf(stderr, "%s", PQerrorMessage(conn));
        exit(1);
    }
    PQclear(result);
}

static void prepare_all(PGconn *conn)
{
    const Oid types[2] = {20, 25};

    for (size_t i = 0; i < sizeof STATEMENTS / sizeof STATEMENTS[0]; i++)
        check(conn, PQprepare(conn, STATEMENTS[i][0], STATEMENTS[i][1], atoi(STATEMENTS[i][2]),
                              types));
}

static int parameters_of(const char *name)
{
    for (size_t i = 0; i < sizeof STATEMENTS / sizeof STATEMENTS[0]; i++) {
        if (strcmp(STATEMENTS[i][0], name) == 0)
            return atoi(STATEMENTS[i][2]);
    }
    abort();
}

typedef struct {
    const char *name;
    int count;
    const char *values[2];
} Step;

static int steps_of(int mode, Step *steps)
{
    int count = 0;

    for (const char *const *name = MODES[mode].steps; *name != NULL; name++) {
        const char *bare = **name == '+' ? *name + 1 : *name;

        steps[count++] = (Step){bare, parameters_of(bare), {bare == *name ? "42" : "43", "5000"}};
    }
    return count;
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;

    return (a > b) - (a < b);
}

/* The median of batches, as windows.lua has it. */
static void measure(PGconn *conn, const char *amount, int mode)
{
    Step steps[5];
    int step_count = steps_of(mode, steps);
    int in_batch = BATCH * MODES[mode].pairs;
    long most = strchr(amount, 'x') != NULL ? (strtol(amount, NULL, 10) + in_batch - 1) / in_batch : -1;
    double seconds = strtod(amount, NULL);
    double *times = calloc(BATCHES_MAX, sizeof *times);
    double start, last, cpu, backend, done;
    long batches = 0;

    if (times == NULL)
        exit(1);
    prepare_all(conn);
    cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    backend = backend_seconds(conn);
    start = last = seconds_of(CLOCK_MONOTONIC);
    do {
        double now;

        for (int i = 0; i < BATCH; i++) {
            for (int j = 0; j < step_count; j++)
                check(conn, PQexecPrepared(conn, steps[j].name, steps[j].count, steps[j].values,
                                           NULL, NULL, 0));
        }
        now = seconds_of(CLOCK_MONOTONIC);
        times[batches++] = now - last;
        last = now;
    } while (batches < BATCHES_MAX && (most < 0 ? last - start < seconds : batches < most));
    cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    backend = backend_seconds(conn) - backend;
    done = (double)(batches * in_batch);
    qsort(times, (size_t)batches, sizeof *times, compare);
    printf("%.1f %.3f %.3f\n", in_batch / times[batches / 2], cpu * 1e6 / done,
           (cpu + backend) * 1e6 / done);
    free(times);
}

static void once(PGconn *conn, char **command)
{
    const char *values[1] = {"42"};
    const Oid types[1] = {20};
    pid_t pid;

    check(conn, PQexecParams(conn, "SELECT pg_try_advisory_lock($1)", 1, types, values, NULL, NULL,
                             0));
    if (command != NULL) {
        if (posix_spawnp(&pid, command[0], NULL, NULL, command, environ) != 0)
            exit(1);
        waitpid(pid, NULL, 0);
    }
    check(conn, PQexecParams(conn, "SELECT pg_advisory_unlock($1)", 1, types, values, NULL, NULL,
                             0));
}

int main(int argc, char **argv)
{
    PGconn *conn;
    int mode = 0;

    if (argc < 4) {
        fprintf(stderr, "usage: bench_pairs CONNINFO SECONDS|COUNTx MODE\n");
        return 2;
    }
    conn = PQconnectdb(argv[1]);
    if (PQstatus(conn) != CONNECTION_OK) {
        fprintf(stderr, "%s", PQerrorMessage(conn));
        return 1;
    }
    if (strcmp(argv[3], "once") == 0 || strcmp(argv[3], "exec") == 0) {
        once(conn, argc > 4 ? argv + 4 : NULL);
    } else {
        while (mode < MODE_COUNT && strcmp(MODES[mode].name, argv[3]) != 0)
            mode++;
        if (mode == MODE_COUNT) {
            fprintf(stderr, "no such mode: %s\n", argv[3]);
            return 2;
        }
        measure(conn, argv[2], mode);
    }
    PQfinish(conn);
    return 0;
}
