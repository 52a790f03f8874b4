#include "host/work.h"

#include "base/log.h"
#include "bind/args.h"
#include "host/watcher.h"
#include "pg/passfile.h"
#include "pg/wait.h"
#include "runner/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MESSAGE_MAX = 16 * 1024 * 1024,
    EXIT_TERMINATED = 128 + SIGTERM,
};

static Lines heard = {.fd = -1};
static volatile sig_atomic_t accepting;

/* Has the other side gone? */
static bool is_alone(void)
{
    struct pollfd fd = {.fd = heard.fd, .events = POLLRDHUP};

    return heard.fd < 0 || poll(&fd, 1, 0) > 0;
}

static void on_terminate(int signo)
{
    int saved = errno;

    (void)signo;
    if (is_alone()) {
        passfile_remove_all();
        _exit(EXIT_TERMINATED);
    }
    if (accepting)
        watcher_cancel();
    errno = saved;
}

/* The terminal's signals are for the supervisor; what we start gets them as they were. */
static void on_terminal(int signo)
{
    (void)signo;
}

static void set_handler(int signo, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};

    sigemptyset(&action.sa_mask);
    sigaction(signo, &action, NULL);
}

/* work_open(fd, log_fd) */
static int host_work_open(lua_State *L)
{
    int fd = (int)luaL_checkinteger(L, 1);
    int log_fd = (int)luaL_checkinteger(L, 2);
    Error err;

    if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || fcntl(log_fd, F_SETFD, FD_CLOEXEC) != 0)
        args_usage(L, "--fd, --log-fd: no open descriptor");
    if (!wait_enable_interrupt(&err))
        return args_raise(L, &err);
    setpgid(0, 0);
    lines_open(&heard, fd, MESSAGE_MAX);
    log_set_descriptor(log_fd);
    set_handler(SIGTERM, on_terminate, 0);
    set_handler(SIGINT, on_terminal, SA_RESTART);
    set_handler(SIGHUP, on_terminal, SA_RESTART);
    return 0;
}

static int push_line(lua_State *L, const char *line)
{
    lua_pushstring(L, line);
    return 1;
}

/* work_hear() */
static int host_work_hear(lua_State *L)
{
    const char *line;

    while ((line = lines_next(&heard)) == NULL) {
        struct pollfd fd = {.fd = heard.fd, .events = POLLIN};

        if (heard.fd < 0)
            return 0;
        if (wait_for(&fd, 1, CLOCK_NEVER, WAIT_CLEANUP) == WAIT_READY)
            lines_fill(&heard);
    }
    return push_line(L, line);
}

/* work_heard() */
static int host_work_heard(lua_State *L)
{
    const char *line;

    if (heard.fd >= 0)
        lines_fill(&heard);
    line = lines_next(&heard);
    if (line != NULL)
        return push_line(L, line);
    lua_pushnil(L);
    lua_pushboolean(L, heard.fd >= 0);
    return 2;
}

/* work_say(text) */
static int host_work_say(lua_State *L)
{
    size_t length, sent = 0;
    const char *text;

    luaL_checkstring(L, 1);
    lua_settop(L, 1);
    lua_pushliteral(L, "\n");
    lua_concat(L, 2);
    text = lua_tolstring(L, 1, &length);
    while (heard.fd >= 0 && sent < length) {
        ssize_t now = send(heard.fd, text + sent, length - sent, MSG_NOSIGNAL);
        struct pollfd fd = {.fd = heard.fd, .events = POLLOUT};

        if (now > 0)
            sent += (size_t)now;
        else if (errno == EAGAIN)
            wait_for(&fd, 1, CLOCK_NEVER, WAIT_CLEANUP);
        else if (errno != EINTR)
            break; /* nobody listens: it will be noticed where something is heard */
    }
    return 0;
}

/* work_accept(yes) */
static int host_work_accept(lua_State *L)
{
    accepting = lua_toboolean(L, 1);
    if (!accepting)
        wait_go_on();
    return 0;
}

void work_register(lua_State *L)
{
    luaL_setfuncs(L,
                  ((luaL_Reg[]){{"work_open", host_work_open},
                                {"work_hear", host_work_hear},
                                {"work_heard", host_work_heard},
                                {"work_say", host_work_say},
                                {"work_accept", host_work_accept},
                                {NULL, NULL}}),
                  0);
}
