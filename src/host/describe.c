#include "host/describe.h"

#include "base/clock.h"
#include "base/process.h"
#include "bind/args.h"
#include "bind/buffer.h"
#include "pg/wait.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#define CHILD_TNAME  "lockkeeper.Description"
#define FOLDER_TNAME "lockkeeper.Folder"

enum {
    TIME_US = 5000000,      /* for the whole of it */
    CHILD_TIME_US = 4000000, /* the child's own watch: so that it can still tell the line */
    CHILD_LAST_US = 400000,  /* where the file sits in a C function by then */
    OUTPUT_MAX = 1024 * 1024,
    REPORT_MAX = 64 * 1024 * 1024,
    STOPPED_SIZE = 1024,
    INSTRUCTIONS = 1000, /* between two looks whether it is to end */
};

/* What begins the report of a child that was stopped: no JSON text does. */
static const char STOPPED = '!';

/* ---- the child: its bounds, and its end ------------------------------------------------------ */

static struct {
    int fd;
    volatile sig_atomic_t stopping; /* the reason's letter */
} child = {.fd = -1};

static size_t append(char *text, size_t length, const char *piece)
{
    while (*piece != '\0' && length < STOPPED_SIZE)
        text[length++] = *piece++;
    return length;
}

/* Tell why, and at which line of the file, and end. */
static void end_stopped(lua_State *L, char reason)
{
    char number[TEXT_INTEGER_SIZE];
    char text[STOPPED_SIZE] = {STOPPED, reason};
    size_t length = 2;
    lua_Debug frame;
    int level = 0;

    while (lua_getstack(L, level++, &frame) == 1) {
        lua_getinfo(L, "Sl", &frame);
        if (!args_is_script(&frame))
            continue;
        length = append(text, length, text_integer(number, frame.currentline));
        length = append(text, length, " ");
        length = append(text, length, frame.source);
        break;
    }
    (void)!write(child.fd, text, length);
    _exit(EXIT_FAILURE);
}

/* Now and then, in every coroutine, since each new one takes over its maker's hook. */
static void on_count(lua_State *L, lua_Debug *frame)
{
    (void)frame;
    if (child.stopping != 0)
        end_stopped(L, (char)child.stopping);
}

/*
 * The hook is to notice. Where none comes until the alarm rings again, the file sits in a C
 * function: nothing changes the state's stack meanwhile, so that it can be read from here.
 */
static void on_alarm(int signo)
{
    lua_State *L = *fiber_slot(FIBER_COROUTINE);

    (void)signo;
    if (child.stopping != 0 && L != NULL)
        end_stopped(L, (char)child.stopping);
    child.stopping = 't';
}

static void on_output(int signo)
{
    (void)signo;
    child.stopping = 'o';
}

/* describing(fd) */
static int host_describing(lua_State *L)
{
    struct sigaction alarm_action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct sigaction output_action = {.sa_handler = on_output, .sa_flags = SA_RESTART};
    struct itimerval timer = {
        .it_value = {CHILD_TIME_US / 1000000, CHILD_TIME_US % 1000000},
        .it_interval = {0, CHILD_LAST_US},
    };

    child.fd = (int)luaL_checkinteger(L, 1);
    if (fcntl(child.fd, F_SETFD, FD_CLOEXEC) != 0)
        args_usage(L, "--fd: %d is no open descriptor", child.fd);
    sigemptyset(&alarm_action.sa_mask);
    sigemptyset(&output_action.sa_mask);
    sigaction(SIGALRM, &alarm_action, NULL);
    sigaction(SIGUSR1, &output_action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    lua_sethook(L, on_count, LUA_MASKCOUNT, INSTRUCTIONS);
    return 0;
}

/* report(text) */
static int host_report(lua_State *L)
{
    size_t length;
    const char *text = luaL_checklstring(L, 1, &length);

    signal(SIGUSR1, SIG_IGN);
    signal(SIGALRM, SIG_IGN);
    lua_sethook(L, NULL, 0, 0);
    while (length > 0) {
        ssize_t written = write(child.fd, text, length);

        if (written < 0 && errno != EINTR)
            return luaL_error(L, "cannot report: %s", strerror(errno));
        if (written > 0) {
            text += written;
            length -= (size_t)written;
        }
    }
    return 0;
}

/* ---- the parent ------------------------------------------------------------------------------ */

typedef struct {
    Process *process;
    int report, output; /* our ends */
    PQExpBufferData report_text, output_text;
    bool too_much;
} Child;

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void release(Child *description)
{
    process_free(description->process);
    description->process = NULL;
    close_fd(&description->report);
    close_fd(&description->output);
    termPQExpBuffer(&description->report_text);
    termPQExpBuffer(&description->output_text);
}

static int child_gc(lua_State *L)
{
    release(luaL_checkudata(L, 1, CHILD_TNAME));
    return 0;
}

static Child *new_child(lua_State *L)
{
    Child *description = lua_newuserdatauv(L, sizeof *description, 0);

    *description = (Child){.report = -1, .output = -1};
    initPQExpBuffer(&description->report_text);
    initPQExpBuffer(&description->output_text);
    luaL_setmetatable(L, CHILD_TNAME);
    return description;
}

/* The program, "describe --fd N", and the words at index 1; left on the stack. */
static const char **push_argv(lua_State *L, const char *fd)
{
    lua_Unsigned count = lua_rawlen(L, 1);
    const char **argv = lua_newuserdatauv(L, (size_t)(count + 5) * sizeof *argv, 0);

    argv[0] = "/proc/self/exe";
    argv[1] = "describe";
    argv[2] = "--fd";
    argv[3] = fd;
    for (lua_Unsigned i = 0; i < count; i++) {
        lua_rawgeti(L, 1, (lua_Integer)i + 1);
        argv[i + 4] = luaL_checkstring(L, -1);
        lua_pop(L, 1); /* the list keeps it */
    }
    argv[count + 4] = NULL;
    return argv;
}

static bool start(Child *description, const char **argv, char fd[TEXT_INTEGER_SIZE], Error *err)
{
    ProcessSpec spec = {.argv = argv, .in = -1, .out = -1};
    int report[2] = {-1, -1}, output[2] = {-1, -1};
    int ignored;
    bool ok = false;

    if (pipe2(report, O_CLOEXEC) != 0 || pipe2(output, O_CLOEXEC) != 0) {
        error_set(err, ERROR_USAGE, "pipe: %s", strerror(errno));
        goto out;
    }
    description->report = report[0];
    description->output = output[0];
    fcntl(report[0], F_SETFL, O_NONBLOCK);
    fcntl(output[0], F_SETFL, O_NONBLOCK);
    fcntl(report[1], F_SETFD, 0); /* inherited, by its number */
    text_integer(fd, report[1]);
    spec.in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    spec.out = spec.err = output[1];
    ok = process_start(&description->process, &spec, &ignored, err);
out:
    close_fd(&spec.in);
    close_fd(&report[1]);
    close_fd(&output[1]);
    return ok;
}

/* Read what there is, and keep it up to `most` bytes. Returns whether there was no more room. */
static bool drain(int *fd, PQExpBuffer text, size_t most)
{
    char piece[65536];
    ssize_t got = read(*fd, piece, sizeof piece);

    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        close_fd(fd);
    if (got <= 0)
        return false;
    if (text->len + (size_t)got > most)
        return true;
    appendBinaryPQExpBuffer(text, piece, (size_t)got);
    return false;
}

typedef enum { END_BY_ITSELF, END_TIME, END_INTERRUPT } End;

/* Until it and its descendants have ended, and what they wrote was read. */
static End watch(Child *description, ProcessStatus *status)
{
    int64_t deadline_us = clock_deadline(TIME_US);
    End end = END_BY_ITSELF;

    process_read(description->process, status);
    while (status->state == PROCESS_RUNNING || description->report >= 0 ||
           description->output >= 0) {
        struct pollfd fds[3] = {
            {.fd = status->state == PROCESS_RUNNING ? process_fd(description->process) : -1,
             .events = POLLIN},
            {.fd = description->report, .events = POLLIN},
            {.fd = description->output, .events = POLLIN},
        };
        WaitEnd woke = wait_for(fds, 3, end == END_BY_ITSELF ? deadline_us : CLOCK_NEVER,
                                end == END_BY_ITSELF ? WAIT_NORMAL : WAIT_CLEANUP);

        if (woke != WAIT_READY) {
            end = woke == WAIT_DEADLINE ? END_TIME : END_INTERRUPT;
            process_kill(description->process);
            continue;
        }
        if (fds[0].revents != 0)
            process_read(description->process, status);
        if (fds[1].revents != 0)
            drain(&description->report, &description->report_text, REPORT_MAX);
        if (fds[2].revents != 0 &&
            drain(&description->output, &description->output_text, OUTPUT_MAX) &&
            !description->too_much) {
            description->too_much = true;
            process_signal(description->process, SIGUSR1);
        }
    }
    return end;
}

static void set_text(lua_State *L, const char *name, const char *text)
{
    lua_pushstring(L, text);
    lua_setfield(L, -2, name);
}

static void push_buffer(lua_State *L, const char *name, const PQExpBufferData *buffer)
{
    lua_pushlstring(L, buffer->data, buffer->len);
    lua_setfield(L, -2, name);
}

/* "!t12 @job.lua", as end_stopped writes it */
static void set_place(lua_State *L, const char *report)
{
    char *rest;
    long line = strtol(report + 2, &rest, 10);

    if (line > 0 && *rest == ' ') {
        lua_pushinteger(L, line);
        lua_setfield(L, -2, "line");
        set_text(L, "source", rest + 1);
    }
}

static void push_ending(lua_State *L, const Child *description, End end,
                        const ProcessStatus *status)
{
    const char *report = description->report_text.data;
    bool is_stopped = report[0] == STOPPED;
    bool is_output = is_stopped ? report[1] == 'o' : description->too_much;

    if (is_stopped || end == END_TIME || description->too_much) {
        set_text(L, "ending", "stopped");
        set_text(L, "reason", is_output ? "output" : "time");
        if (is_stopped)
            set_place(L, report);
    } else if (status->exit_code == 0 && description->report_text.len > 0) {
        set_text(L, "ending", "reported");
        push_buffer(L, "report", &description->report_text);
    } else {
        set_text(L, "ending", "exited");
        if (status->signal != 0)
            lua_pushfstring(L, "its process was ended by signal %d", status->signal);
        else
            lua_pushfstring(L, "its process ended with exit code %d", status->exit_code);
        lua_setfield(L, -2, "reason");
    }
}

/* described(words) */
static int host_described(lua_State *L)
{
    char fd[TEXT_INTEGER_SIZE];
    Child *description;
    const char **argv;
    ProcessStatus status;
    End end;
    Error err;

    lua_settop(L, 1);
    luaL_checktype(L, 1, LUA_TTABLE);
    description = new_child(L);
    argv = push_argv(L, fd);
    if (!start(description, argv, fd, &err))
        return args_raise(L, &err);
    end = watch(description, &status);
    if (end == END_INTERRUPT) {
        wait_interrupted_error(&err);
        return args_raise(L, &err);
    }
    if (PQExpBufferDataBroken(description->report_text) ||
        PQExpBufferDataBroken(description->output_text))
        return luaL_error(L, "not enough memory for a description");
    lua_newtable(L);
    push_ending(L, description, end, &status);
    push_buffer(L, "output", &description->output_text);
    release(description);
    return 1;
}

/* ---- files ------------------------------------------------------------------------------------ */

static void folder_close(DIR **folder)
{
    if (*folder != NULL)
        closedir(*folder);
    *folder = NULL;
}

static int folder_gc(lua_State *L)
{
    folder_close(luaL_checkudata(L, 1, FOLDER_TNAME));
    return 0;
}

/* lua_files(folder): the names of its *.lua, in no order; nil where it is no folder */
static int host_lua_files(lua_State *L)
{
    DIR **place = lua_newuserdatauv(L, sizeof *place, 0);
    lua_Integer count = 0;
    struct dirent *entry;

    *place = NULL;
    luaL_setmetatable(L, FOLDER_TNAME);
    *place = opendir(luaL_checkstring(L, 1));
    if (*place == NULL)
        return 0;
    lua_newtable(L);
    while ((entry = readdir(*place)) != NULL) {
        size_t length = strlen(entry->d_name);

        if (entry->d_name[0] == '.' || length < 4 || strcmp(entry->d_name + length - 4, ".lua") != 0 ||
            entry->d_type == DT_DIR)
            continue;
        lua_pushstring(L, entry->d_name);
        lua_rawseti(L, -2, ++count);
    }
    folder_close(place);
    return 1;
}

/* sha256(text) */
static int host_sha256(lua_State *L)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    char hex[2 * EVP_MAX_MD_SIZE + 1];
    unsigned int size;
    size_t length;
    const char *text = luaL_checklstring(L, 1, &length);

    if (EVP_Digest(text, length, digest, &size, EVP_sha256(), NULL) != 1)
        return luaL_error(L, "SHA-256 is not to be had from OpenSSL here");
    for (unsigned int i = 0; i < size; i++)
        snprintf(hex + 2 * (size_t)i, 3, "%02x", digest[i]);
    lua_pushlstring(L, hex, 2 * (size_t)size);
    return 1;
}

static void register_gc(lua_State *L, const char *tname, lua_CFunction gc)
{
    luaL_newmetatable(L, tname);
    lua_pushcfunction(L, gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}

void describe_register(lua_State *L)
{
    register_gc(L, CHILD_TNAME, child_gc);
    register_gc(L, FOLDER_TNAME, folder_gc);
    luaL_setfuncs(L,
                  ((luaL_Reg[]){{"described", host_described},
                                {"describing", host_describing},
                                {"report", host_report},
                                {"lua_files", host_lua_files},
                                {"sha256", host_sha256},
                                {NULL, NULL}}),
                  0);
}
