#include "pg/errand.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Shared by the two threads; the one that lets go last cleans up. */
typedef struct {
    void (*work)(void *);
    void (*dispose)(void *);
    void *argument;
    int done_fd;
    atomic_int users;
    atomic_bool abandoned;
} Errand;

static void let_go(Errand *errand)
{
    if (atomic_fetch_sub(&errand->users, 1) > 1)
        return;
    if (atomic_load(&errand->abandoned))
        errand->dispose(errand->argument);
    close(errand->done_fd);
    free(errand);
}

static void *errand_main(void *argument)
{
    Errand *errand = argument;
    uint64_t one = 1;

    errand->work(errand->argument);
    (void)!write(errand->done_fd, &one, sizeof one);
    let_go(errand);
    return NULL;
}

/* Signals are for the main thread: its handlers know what a signal means. */
static int start_thread(pthread_t *thread, Errand *errand)
{
    sigset_t all, before;
    int failure;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failure = pthread_create(thread, NULL, errand_main, errand);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failure;
}

WaitEnd errand_run(void (*work)(void *), void (*dispose)(void *), void *argument,
                   int64_t deadline_us, WaitMode mode, Error *err)
{
    Errand *errand = calloc(1, sizeof *errand);
    struct pollfd done = {.events = POLLIN};
    pthread_t thread;
    int failure;
    WaitEnd end;

    if (errand == NULL) {
        dispose(argument);
        error_set(err, ERROR_CONNECTION, "out of memory");
        return WAIT_DEADLINE;
    }
    errand->work = work;
    errand->dispose = dispose;
    errand->argument = argument;
    errand->done_fd = eventfd(0, EFD_CLOEXEC);
    atomic_init(&errand->users, 2);
    failure = errand->done_fd < 0 ? errno : start_thread(&thread, errand);
    if (failure != 0) {
        atomic_store(&errand->users, 1);
        atomic_store(&errand->abandoned, true);
        let_go(errand);
        error_set(err, ERROR_CONNECTION, "cannot start a thread: %s", strerror(failure));
        return WAIT_DEADLINE;
    }
    done.fd = errand->done_fd;
    end = wait_for(&done, 1, deadline_us, mode);
    if (end == WAIT_READY) {
        pthread_join(thread, NULL); /* it has only its own end left to do */
    } else {
        pthread_detach(thread);
        atomic_store(&errand->abandoned, true);
    }
    let_go(errand);
    return end;
}
