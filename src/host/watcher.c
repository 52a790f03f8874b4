#include "host/watcher.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/process.h"
#include "bind/args.h"
#include "bind/session.h"
#include "bind/task.h"
#include "host/coroutine.h"
#include "pg/heart.h"
#include "pg/passfile.h"
#include "pg/wait.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    WATCHED_MAX = 64,
    LOOK_US = 10000,   /* between two looks at a Lua thread that is to unwind */
    UNWIND_US = 80000, /* how long it has for that */
    SERVE_US = 1000000, /* the hearts of a job that never waits are let beat so often */
};

/* What a stop means for who reads the exit code, or the error's kind. */
static const struct {
    int exit_code;
    const char *kind;
    const char *message;
} STOPS[] = {
    [STOP_LOCK_LOST] = {125, "lock_lost", "the job's lock was lost"},
    [STOP_TIMED_OUT] = {124, "timed_out", "max_run has passed"},
    [STOP_CANCELLED] = {143, "cancelled", "the run was cancelled"},
};

/*
 * What is watched. Written by the Lua thread while `lock` is held; read by the watcher under the
 * lock too, and by the Lua thread's own signal handler. The sockets are duplicates: their numbers
 * are used for nothing else before the watch is over.
 */
static struct {
    pthread_mutex_t lock;
    pthread_t lua_thread;
    int changed; /* eventfd: look again at what is watched */
    bool started;
    volatile sig_atomic_t on;
    unsigned serial; /* of the watch that is on, or was */
    int sockets[WATCHED_MAX];
    Heart *hearts[WATCHED_MAX]; /* NULL: none could be started */
    volatile sig_atomic_t count;
    int64_t deadline_us;
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = -1};

/* ---- on the Lua thread ----------------------------------------------------------------------- */

static void raise_stop(lua_State *L, lua_Debug *frame)
{
    Error err;

    (void)frame;
    if (wait_stopped() == STOP_NONE) { /* left over on a coroutine that did not run since */
        lua_sethook(L, NULL, 0, 0);
        return;
    }
    wait_interrupted_error(&err);
    args_raise(L, &err);
}

/* Does any of the sessions have one of these events within the time? */
static bool has_event(short events, int ms)
{
    struct pollfd fds[WATCHED_MAX];
    nfds_t count = (nfds_t)watch.count;

    for (nfds_t i = 0; i < count; i++)
        fds[i] = (struct pollfd){.fd = watch.sockets[i], .events = events};
    return poll(fds, count, ms) > 0;
}

static bool has_hung_up(void)
{
    return has_event(POLLRDHUP, 0);
}

/*
 * A session that is terminated tells of it first, then gives its locks back, and hangs up last: where
 * something was told, a hang-up is waited for.
 */
static bool is_hanging_up(void)
{
    enum { LAST_WORDS_MS = 100 };

    return has_hung_up() || (has_event(POLLIN, 0) && has_event(POLLRDHUP, LAST_WORDS_MS));
}

static void stop(WaitStop why)
{
    wait_stop(why);
    coroutine_stop(raise_stop);
}

static int stop_signal(void)
{
    return SIGRTMIN + 1;
}

static int serve_signal(void)
{
    return SIGRTMIN + 2;
}

/* Once; where a stop has come meanwhile, the hook is its own. */
static void serve(lua_State *L, lua_Debug *frame)
{
    (void)frame;
    lua_sethook(L, NULL, 0, 0);
    wait_serve();
}

static void set_serve_hook(void *coroutine)
{
    if (coroutine != NULL && lua_gethook(coroutine) == NULL)
        lua_sethook(coroutine, serve, LUA_MASKCOUNT, 1);
}

/* From the watcher: this thread has not waited for long. */
static void on_serve(int signo)
{
    (void)signo;
    if (watch.on && wait_stopped() == STOP_NONE)
        fiber_each_slot(FIBER_COROUTINE, set_serve_hook);
}

/* A heart has not heard of its server. Runs on the heart's fiber. */
static void is_silent(void *unused)
{
    (void)unused;
    if (watch.on)
        stop(STOP_LOCK_LOST);
}

/* From the watcher; it may have been meant for the watch before. */
static void on_stop(int signo)
{
    int saved = errno;

    (void)signo;
    if (watch.on && has_hung_up())
        stop(STOP_LOCK_LOST);
    else if (watch.on && clock_monotonic_us() >= watch.deadline_us)
        stop(STOP_TIMED_OUT);
    errno = saved;
}

/*
 * The process was stopped. Where a session has ended meanwhile, another may hold the lock by now:
 * not one instruction more, not even a flush of what was written.
 */
static void on_continue(int signo)
{
    static const char WORDS[] = "lockkeeper: the job's lock was lost while the process was stopped: "
                                "it ends\n";
    int saved = errno;

    (void)signo;
    if (watch.on && is_hanging_up()) {
        process_kill_strays();
        passfile_remove_all();
        (void)!write(2, WORDS, sizeof WORDS - 1);
        _exit(STOPS[STOP_LOCK_LOST].exit_code);
    }
    errno = saved;
}

/* ---- the watcher ----------------------------------------------------------------------------- */

/* Returns how many of `fds`, the first being `changed`, are to be polled; 1 where nothing is on. */
static nfds_t copy_watch(struct pollfd *fds, int64_t *deadline_us, unsigned *serial)
{
    nfds_t count = 1;

    pthread_mutex_lock(&watch.lock);
    fds[0] = (struct pollfd){.fd = watch.changed, .events = POLLIN};
    *deadline_us = CLOCK_NEVER;
    if (watch.on) {
        for (sig_atomic_t i = 0; i < watch.count; i++)
            fds[count++] = (struct pollfd){.fd = watch.sockets[i], .events = POLLRDHUP};
        *deadline_us = watch.deadline_us;
    }
    *serial = watch.serial;
    pthread_mutex_unlock(&watch.lock);
    return count;
}

/* As poll(2), until a time of the monotonic clock. */
static int poll_until(struct pollfd *fds, nfds_t count, int64_t deadline_us)
{
    struct timespec timeout;
    int64_t left_us;

    if (deadline_us == CLOCK_NEVER)
        return ppoll(fds, count, NULL, NULL);
    left_us = deadline_us - clock_monotonic_us();
    left_us = left_us < 0 ? 0 : left_us;
    timeout = (struct timespec){.tv_sec = left_us / 1000000, .tv_nsec = left_us % 1000000 * 1000};
    return ppoll(fds, count, &timeout, NULL);
}

static bool is_on(unsigned serial)
{
    bool on;

    pthread_mutex_lock(&watch.lock);
    on = watch.on && watch.serial == serial;
    pthread_mutex_unlock(&watch.lock);
    return on;
}

static _Noreturn void end_process(WaitStop why)
{
    char message[160];

    process_kill_strays();
    passfile_remove_all();
    snprintf(message, sizeof message,
             "lockkeeper: %s while the job was inside a C function: the process ends\n",
             STOPS[why].message);
    (void)!write(2, message, strlen(message));
    if (ftrylockfile(stdout) == 0) /* the Lua thread may sit in a write to it */
        fflush(stdout);
    _exit(STOPS[why].exit_code);
}

/* The Lua thread was told to stop: see that it does. Returns when the watch is over. */
static void supervise(unsigned serial, WaitStop why)
{
    struct pollfd changed = {.fd = watch.changed, .events = POLLIN};
    int64_t late_us = clock_deadline(UNWIND_US);
    unsigned begun = wait_begun();
    bool stuck = false;
    uint64_t news;

    while (is_on(serial)) {
        unsigned now;
        bool was_stuck = stuck;

        if (poll_until(&changed, 1, clock_deadline(LOOK_US)) > 0)
            (void)!read(watch.changed, &news, sizeof news);
        now = wait_begun();
        stuck = !wait_is_inside() && now == begun;
        begun = now;
        if (is_on(serial) && clock_monotonic_us() >= late_us && stuck && was_stuck)
            end_process(why);
    }
}

static void *run_watcher(void *unused)
{
    struct pollfd fds[WATCHED_MAX + 1];

    (void)unused;
    for (;;) {
        int64_t deadline_us;
        unsigned serial;
        nfds_t count = copy_watch(fds, &deadline_us, &serial);
        int64_t serve_us = count > 1 ? clock_deadline(SERVE_US) : CLOCK_NEVER;
        unsigned begun = wait_begun();
        int ready;
        uint64_t news;
        bool lost = false;

        if (is_on(serial) && wait_stopped() == STOP_CANCELLED) { /* watcher_cancel */
            supervise(serial, STOP_CANCELLED);
            continue;
        }
        ready = poll_until(fds, count, serve_us < deadline_us ? serve_us : deadline_us);
        if (ready < 0)
            continue;
        if (ready == 0 && clock_monotonic_us() < deadline_us) {
            if (wait_begun() == begun && !wait_is_inside())
                pthread_kill(watch.lua_thread, serve_signal());
            continue;
        }
        for (nfds_t i = 1; i < count; i++)
            lost = lost || fds[i].revents != 0;
        if (ready > 0 && !lost) {
            (void)!read(watch.changed, &news, sizeof news);
        } else if (is_on(serial)) {
            pthread_kill(watch.lua_thread, stop_signal());
            supervise(serial, lost ? STOP_LOCK_LOST : STOP_TIMED_OUT);
        }
    }
    return NULL;
}

/* ---- beginning and ending a watch ------------------------------------------------------------ */

static void set_handler(int signo, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};

    sigemptyset(&action.sa_mask);
    sigaction(signo, &action, NULL);
}

static bool start_thread(Error *err)
{
    sigset_t all, before;
    pthread_t thread;
    int failure;

    if (watch.started)
        return true;
    if (!wait_enable_interrupt(err))
        return false;
    watch.changed = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (watch.changed < 0)
        return error_set(err, ERROR_USAGE, "eventfd: %s", strerror(errno));
    watch.lua_thread = pthread_self();
    set_handler(stop_signal(), on_stop, 0); /* no SA_RESTART: a read(2) is to end */
    set_handler(serve_signal(), on_serve, SA_RESTART);
    set_handler(SIGCONT, on_continue, SA_RESTART);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failure = pthread_create(&thread, NULL, run_watcher, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure != 0)
        return error_set(err, ERROR_USAGE, "no watcher could be started: %s", strerror(failure));
    pthread_detach(thread);
    watch.started = true;
    return true;
}

static void tell_watcher(void)
{
    uint64_t one = 1;

    (void)!write(watch.changed, &one, sizeof one);
}

static void begin_watch(int64_t deadline_us)
{
    pthread_mutex_lock(&watch.lock);
    watch.deadline_us = deadline_us;
    watch.serial++;
    watch.on = 1;
    pthread_mutex_unlock(&watch.lock);
    tell_watcher();
}

/* The job has unwound. Nothing stops this thread any more when it returns. */
static void end_watch(void)
{
    pthread_mutex_lock(&watch.lock);
    watch.on = 0;
    pthread_mutex_unlock(&watch.lock);
    tell_watcher();
    for (sig_atomic_t i = 0; i < watch.count; i++) {
        heart_stop(watch.hearts[i]);
        close(watch.sockets[i]);
    }
    watch.count = 0;
    coroutine_go_on();
    wait_go_on();
}

/* Take the sockets of the sessions in the list at index 1. */
static void take_sockets(lua_State *L)
{
    lua_Unsigned count;

    luaL_checktype(L, 1, LUA_TTABLE);
    count = lua_rawlen(L, 1);
    if (watch.on || count > WATCHED_MAX)
        luaL_error(L, watch.on ? "watched: a watch is on already" : "watched: too many sessions");
    for (lua_Unsigned i = 0; i < count; i++) {
        Session *session;
        Heart *heart = NULL;
        int duplicate = -1;
        Error err;

        lua_rawgeti(L, 1, (lua_Integer)i + 1);
        session = bind_session_check(L, lua_gettop(L));
        lua_pop(L, 1);
        if (session->conn != NULL && PQsocket(session->conn) >= 0)
            duplicate = fcntl(PQsocket(session->conn), F_DUPFD_CLOEXEC, 3);
        if (duplicate < 0) {
            end_watch();
            args_usage(L, "watched: session %d is not connected", (int)i + 1);
        }
        if (!heart_start(&heart, session, is_silent, NULL, &err))
            log_printf(LOG_WARNING, "the session is not watched for silence: %s", err.message);
        watch.hearts[watch.count] = heart;
        watch.sockets[watch.count++] = duplicate;
    }
}

static int64_t check_deadline(lua_State *L)
{
    int64_t deadline_us = CLOCK_NEVER;

    luaL_checktype(L, 2, LUA_TTABLE);
    if (lua_getfield(L, 2, "max_run") != LUA_TNIL)
        deadline_us = clock_deadline(args_duration(L, -1, "max_run"));
    lua_pop(L, 1);
    return deadline_us;
}

/* Push the error for a stop: the one that unwound the job, or, where it hid that, a new one. */
static void push_stop_error(lua_State *L, int status, WaitStop why)
{
    Error err;
    bool same = false;

    if (status != LUA_OK && lua_istable(L, -1)) {
        lua_getfield(L, -1, "kind");
        same = lua_type(L, -1) == LUA_TSTRING &&
               strcmp(lua_tostring(L, -1), STOPS[why].kind) == 0;
        lua_pop(L, 1);
    }
    if (same)
        return;
    wait_interrupted_error(&err);
    args_push_error(L, &err);
}

void watcher_cancel(void)
{
    if (!watch.on) {
        wait_stop(STOP_CANCELLED);
        return;
    }
    stop(STOP_CANCELLED);
    tell_watcher();
}

int watcher_watched(lua_State *L)
{
    int64_t deadline_us;
    WaitStop why;
    int status;
    Error err;

    luaL_checktype(L, 3, LUA_TFUNCTION);
    deadline_us = check_deadline(L);
    if (!start_thread(&err))
        return args_raise(L, &err);
    take_sockets(L);
    begin_watch(deadline_us);
    if (wait_stopped() != STOP_NONE) /* cancelled before it was on */
        stop(wait_stopped());
    status = lua_pcall(L, lua_gettop(L) - 3, LUA_MULTRET, 0);
    why = wait_stopped();
    if (why != STOP_NONE) {
        process_kill_strays(); /* what io.popen has started would else be waited for */
        bind_task_join_all(L);
        push_stop_error(L, status, why);
        status = LUA_ERRRUN;
    }
    end_watch();
    if (why != STOP_NONE)
        bind_session_close_lent(L);
    lua_pushboolean(L, status == LUA_OK);
    if (status != LUA_OK) {
        lua_insert(L, -2);
        return 2;
    }
    lua_replace(L, 2); /* the limits' place, below the results */
    return lua_gettop(L) - 1;
}
