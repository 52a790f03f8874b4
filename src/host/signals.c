#include "host/signals.h"

#include "bind/args.h"
#include "host/coroutine.h"
#include "host/screen.h"
#include "pg/wait.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static int forward_pipe[2] = {-1, -1};

/* Runs on the Lua thread, at the next instruction after the signal. */
static void raise_interrupt(lua_State *L, lua_Debug *frame)
{
    Error err;

    (void)frame;
    coroutine_noticed(L);
    if (wait_interrupt_told()) /* by a wait that the signal ended */
        return;
    wait_interrupted_error(&err);
    args_raise(L, &err);
}

static void on_interrupt(int signo)
{
    if (wait_interrupted() != 0) {
        screen_abandon();
        _exit(128 + signo);
    }
    wait_interrupt(signo);
    coroutine_interrupt(raise_interrupt);
}

static void on_forward(int signo, siginfo_t *info, void *context)
{
    unsigned char told[2] = {(unsigned char)signo, info->si_code == SI_KERNEL};
    int saved = errno;

    (void)context;
    (void)!write(forward_pipe[1], told, sizeof told);
    errno = saved;
}

/*
 * SIGHUP that was ignored when we started (nohup) stays so. SIGINT does not: a shell without job
 * control ignores it for what it starts in the background, yet whoever sends it means us.
 */
static void set_handler(int signo, const struct sigaction *action)
{
    struct sigaction before;

    if (signo != SIGHUP || (sigaction(signo, NULL, &before) == 0 && before.sa_handler != SIG_IGN))
        sigaction(signo, action, NULL);
}

bool signals_interrupt(Error *err)
{
    struct sigaction action = {.sa_handler = on_interrupt};

    if (!wait_enable_interrupt(err))
        return false;
    sigemptyset(&action.sa_mask);
    set_handler(SIGINT, &action);
    set_handler(SIGTERM, &action);
    set_handler(SIGHUP, &action);
    return true;
}

int signals_forward(Error *err)
{
    static const int FORWARDED[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
    struct sigaction action = {.sa_sigaction = on_forward, .sa_flags = SA_SIGINFO | SA_RESTART};

    if (forward_pipe[0] < 0 && pipe2(forward_pipe, O_CLOEXEC | O_NONBLOCK) != 0) {
        error_set(err, ERROR_USAGE, "pipe: %s", strerror(errno));
        return -1;
    }
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof FORWARDED / sizeof FORWARDED[0]; i++)
        set_handler(FORWARDED[i], &action);
    return forward_pipe[0];
}
