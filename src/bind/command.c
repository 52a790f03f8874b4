#include "bind/command.h"

#include "base/duration.h"
#include "base/log.h"
#include "base/pqbuffer.h"
#include "base/process.h"
#include "bind/args.h"
#include "bind/session.h"
#include "pg/heart.h"
#include "pg/wait.h"

#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define COMMAND_TNAME "lockkeeper.Command"

enum {
    DEFAULT_GRACE_US = 5000000,
    WATCHED_MAX = 64,
};

extern char **environ;

/*
 * Our ends of its pipes, what came out of them, what is still to go in. All freed by __gc. Its
 * user values are the functions that get what it writes, if there are any.
 */
typedef struct {
    Process *process;
    int in, out, err;
    int in_file, out_file, err_file; /* open files of the caller's in place of pipes; -1: none */
    bool out_sink, err_sink;         /* a function gets it, not the text */
    PQExpBufferData out_text, err_text;
    const char *input; /* kept by the Lua stack */
    size_t input_left;
} Command;

enum { UV_OUT_SINK = 1, UV_ERR_SINK };

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void release_process(Command *command)
{
    process_free(command->process);
    command->process = NULL;
}

/* Leaves it valid, and empty. */
static void release(Command *command)
{
    release_process(command);
    close_fd(&command->in);
    close_fd(&command->out);
    close_fd(&command->err);
    termPQExpBuffer(&command->out_text);
    termPQExpBuffer(&command->err_text);
}

static int command_gc(lua_State *L)
{
    release(luaL_checkudata(L, 1, COMMAND_TNAME));
    return 0;
}

static Command *new_command(lua_State *L)
{
    Command *command = lua_newuserdatauv(L, sizeof *command, 2);

    *command =
        (Command){.in = -1, .out = -1, .err = -1, .in_file = -1, .out_file = -1, .err_file = -1};
    initPQExpBuffer(&command->out_text);
    initPQExpBuffer(&command->err_text);
    luaL_setmetatable(L, COMMAND_TNAME);
    return command;
}

/* ---- words ----------------------------------------------------------------------------------- */

/* The list at index 1 as an argv; its memory is left on the stack, its texts in the list. */
static const char *const *check_argv(lua_State *L)
{
    lua_Unsigned count;
    const char **argv;

    if (!lua_istable(L, 1))
        args_usage(L, "sh: a list of the command and its arguments was expected, not a text: no "
                      "shell is involved");
    count = lua_rawlen(L, 1);
    if (count == 0)
        args_usage(L, "sh: there is no command");
    argv = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *argv, 0);
    for (lua_Unsigned i = 0; i < count; i++) {
        char what[40];

        snprintf(what, sizeof what, "sh: argument %d", (int)i);
        lua_rawgeti(L, 1, (lua_Integer)i + 1);
        if (lua_type(L, -1) == LUA_TNUMBER) {
            lua_tostring(L, -1);
            lua_pushvalue(L, -1);
            lua_rawseti(L, 1, (lua_Integer)i + 1);
        }
        argv[i] = args_text(L, -1, what);
        lua_pop(L, 1);
    }
    argv[count] = NULL;
    return argv;
}

static bool is_named(const char *entry, const char *name)
{
    size_t length = strlen(name);

    return strncmp(entry, name, length) == 0 && entry[length] == '=';
}

/* Check the variable whose name is at `index`, its value after it. */
static const char *check_variable(lua_State *L, int index)
{
    const char *name;
    char what[80];
    char got[64];

    if (lua_type(L, index) != LUA_TSTRING)
        args_usage(L, "sh: env is a table of name = value");
    name = args_text(L, index, "sh: a variable's name");
    if (name[0] == '\0' || strchr(name, '=') != NULL)
        args_usage(L, "sh: a variable's name can't be empty or have a \"=\"");
    snprintf(what, sizeof what, "sh: env: %.60s", name);
    if (lua_type(L, index + 1) == LUA_TSTRING) {
        args_text(L, index + 1, what);
    } else if (lua_type(L, index + 1) != LUA_TNUMBER &&
               !(lua_isboolean(L, index + 1) && !lua_toboolean(L, index + 1))) {
        args_describe(L, index + 1, got, sizeof got);
        args_usage(L, "%s must be a text, a number or false, not %s", what, got);
    }
    return name;
}

/* Ours with the table at `index` laid over it: name = value, or name = false to leave it out. */
static const char *const *check_env(lua_State *L, int index)
{
    size_t count = 0;
    size_t used = 0;
    const char **env;
    int texts;

    while (environ[count] != NULL)
        count++;
    lua_pushnil(L);
    for (; lua_next(L, index) != 0; lua_pop(L, 1))
        count++;
    env = lua_newuserdatauv(L, (count + 1) * sizeof *env, 0);
    lua_newtable(L);
    texts = lua_gettop(L);
    for (char **entry = environ; *entry != NULL; entry++)
        env[used++] = *entry;
    lua_pushnil(L);
    while (lua_next(L, index) != 0) {
        const char *name = check_variable(L, lua_gettop(L) - 1);

        for (size_t i = 0; i < used; i++) {
            if (is_named(env[i], name))
                env[i--] = env[--used];
        }
        if (!lua_isboolean(L, -1)) {
            lua_pushfstring(L, "%s=%s", name, lua_tostring(L, -1));
            env[used++] = lua_tostring(L, -1);
            lua_rawseti(L, texts, (lua_Integer)used);
        }
        lua_pop(L, 1);
    }
    env[used] = NULL;
    return env;
}

/* The descriptor of the open file on top, with nothing left in its buffer; -1: it is no file. */
static int file_descriptor(lua_State *L, const char *what)
{
    const luaL_Stream *stream = luaL_testudata(L, -1, LUA_FILEHANDLE);

    if (stream == NULL)
        return -1;
    if (stream->closef == NULL)
        args_usage(L, "sh: %s is a closed file", what);
    fflush(stream->f);
    return fileno(stream->f);
}

static void check_input(lua_State *L, Command *command)
{
    command->in_file = file_descriptor(L, "stdin");
    if (command->in_file >= 0)
        return;
    if (lua_type(L, -1) != LUA_TSTRING)
        args_usage(L, "sh: stdin must be a text or an open file");
    command->input = lua_tolstring(L, -1, &command->input_left);
}

/* A function or an open file, on top; `command` is at index 3. */
static void check_output(lua_State *L, const char *what, int *file, bool *sink, int uservalue)
{
    char got[64];

    *file = file_descriptor(L, what);
    if (*file >= 0)
        return;
    if (!lua_isfunction(L, -1)) {
        args_describe(L, -1, got, sizeof got);
        args_usage(L, "sh: %s must be a function of a text or an open file, not %s", what, got);
    }
    *sink = true;
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 3, uservalue);
}

/* { stdin, stdout, stderr, env = {…}, cwd = text, grace = duration }, at index 2 */
static void check_options(lua_State *L, Command *command, ProcessSpec *spec)
{
    static const char *const NAMES[] = {"stdin", "env", "cwd", "grace", "stdout", "stderr", NULL};

    if (!args_has_options(L, 2, "sh"))
        return;
    lua_pushnil(L);
    while (lua_next(L, 2) != 0) {
        int option = args_option(L, "sh", NAMES);

        if (option == 0) {
            check_input(L, command);
        } else if (option == 4) {
            check_output(L, "stdout", &command->out_file, &command->out_sink, UV_OUT_SINK);
        } else if (option == 5) {
            check_output(L, "stderr", &command->err_file, &command->err_sink, UV_ERR_SINK);
        } else if (option == 1) {
            if (!lua_istable(L, -1))
                args_usage(L, "sh: env is a table of name = value");
        } else if (option == 2) {
            spec->cwd = args_text(L, -1, "sh: cwd");
        } else {
            spec->grace_us = args_duration(L, -1, "sh: grace");
        }
        lua_pop(L, 1);
    }
    if (lua_getfield(L, 2, "env") == LUA_TTABLE)
        spec->env = check_env(L, lua_gettop(L));
}

/* ---- running --------------------------------------------------------------------------------- */

/* The sessions that hold a lock: the command ends with them. */
typedef struct {
    int sockets[WATCHED_MAX];
    Session *sessions[WATCHED_MAX];
    Heart *hearts[WATCHED_MAX];
    int count;
    Process *process;
    bool lost; /* a session did not answer any more */
} Watched;

static void watch_session(Session *session, void *context)
{
    Watched *watched = context;

    if (session->conn == NULL || session->lost || session->holds.next == &session->holds ||
        watched->count == WATCHED_MAX)
        return;
    watched->sessions[watched->count] = session;
    watched->sockets[watched->count++] = PQsocket(session->conn);
}

static void fall_silent(void *context)
{
    Watched *watched = context;

    watched->lost = true;
    process_stop(watched->process);
}

static void start_hearts(Watched *watched, Process *process)
{
    Error err;

    watched->process = process;
    for (int i = 0; i < watched->count; i++) {
        if (!heart_start(&watched->hearts[i], watched->sessions[i], fall_silent, watched, &err))
            log_printf(LOG_WARNING, "the session is not watched for silence: %s", err.message);
    }
}

static void stop_hearts(Watched *watched)
{
    for (int i = 0; i < watched->count; i++)
        heart_stop(watched->hearts[i]);
}

static bool open_pipe(int *ours, int *theirs, bool in, Error *err)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) != 0)
        return error_set(err, ERROR_USAGE, "pipe: %s", strerror(errno));
    *ours = ends[in ? 1 : 0];
    *theirs = ends[in ? 0 : 1];
    fcntl(*ours, F_SETFL, O_NONBLOCK);
    return true;
}

/* The command's end: a file of the caller's, else of a pipe whose other end is ours. */
static bool open_end(int *ours, int *theirs, int file, bool in, Error *err)
{
    if (file < 0)
        return open_pipe(ours, theirs, in, err);
    *theirs = fcntl(file, F_DUPFD_CLOEXEC, 0);
    return *theirs >= 0 || error_set(err, ERROR_USAGE, "fcntl: %s", strerror(errno));
}

static bool start(Command *command, ProcessSpec *spec, Error *err)
{
    bool no_input = command->input == NULL && command->in_file < 0;
    int ignored;
    bool ok;

    spec->in = spec->out = spec->err = -1;
    if (no_input)
        spec->in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    ok = (no_input || open_end(&command->in, &spec->in, command->in_file, true, err)) &&
         open_end(&command->out, &spec->out, command->out_file, false, err) &&
         open_end(&command->err, &spec->err, command->err_file, false, err) &&
         process_start(&command->process, spec, &ignored, err);
    close_fd(&spec->in);
    close_fd(&spec->out);
    close_fd(&spec->err);
    return ok;
}

/* write(2) to a pipe that nobody may read: EPIPE without the signal. */
static ssize_t write_quietly(int fd, const char *data, size_t length)
{
    sigset_t pipe_set, before;
    ssize_t written;
    int saved;

    sigemptyset(&pipe_set);
    sigaddset(&pipe_set, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_set, &before);
    written = write(fd, data, length);
    saved = errno;
    if (written < 0 && saved == EPIPE && sigismember(&before, SIGPIPE) == 0)
        sigtimedwait(&pipe_set, NULL, &(struct timespec){0, 0});
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = saved;
    return written;
}

static void feed(Command *command)
{
    ssize_t written = write_quietly(command->in, command->input, command->input_left);

    if (written < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (written >= 0) {
        command->input += written;
        command->input_left -= (size_t)written;
    }
    if (written < 0 || command->input_left == 0)
        close_fd(&command->in);
}

typedef struct {
    const char *data;
    size_t length;
} Piece;

/* sink, piece: what lua_pcall calls, since a text has to be made */
static int call_sink(lua_State *L)
{
    const Piece *piece = lua_touserdata(L, 2);

    lua_settop(L, 1);
    lua_pushlstring(L, piece->data, piece->length);
    lua_call(L, 1, 0);
    return 0;
}

/*
 * Read what is there into the text, or give it to the sink, if `sink` is its user value's number.
 * Returns false where the sink raised an error, which is on the stack then.
 */
static bool drain(lua_State *L, int *fd, PQExpBuffer text, int sink)
{
    char data[65536];
    ssize_t got = read(*fd, data, sizeof data);

    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
        close_fd(fd);
    } else if (got > 0 && sink == 0) {
        appendBinaryPQExpBuffer(text, data, (size_t)got);
    } else if (got > 0) {
        Piece piece = {data, (size_t)got};

        lua_pushcfunction(L, call_sink);
        lua_getiuservalue(L, 3, sink);
        lua_pushlightuserdata(L, &piece);
        return lua_pcall(L, 2, 0, 0) == LUA_OK;
    }
    return true;
}

/* What happened while it ran; an error of a sink's is on the Lua stack. */
typedef struct {
    bool interrupted;
    bool sink_failed;
} RunEnd;

static void drain_both(lua_State *L, Command *command, const struct pollfd fds[2], RunEnd *end)
{
    if (fds[0].revents != 0 && !end->sink_failed)
        end->sink_failed =
            !drain(L, &command->out, &command->out_text, command->out_sink ? UV_OUT_SINK : 0);
    if (fds[1].revents != 0 && !end->sink_failed)
        end->sink_failed =
            !drain(L, &command->err, &command->err_text, command->err_sink ? UV_ERR_SINK : 0);
    if (end->sink_failed) { /* nobody wants to know the rest */
        close_fd(&command->out);
        close_fd(&command->err);
        process_stop(command->process);
    }
}

/* Until both its end and the end of its output have arrived, in either order. */
static void run(lua_State *L, Command *command, ProcessStatus *status, RunEnd *end)
{
    *end = (RunEnd){.interrupted = false};
    process_read(command->process, status);
    while (status->state == PROCESS_RUNNING || command->out >= 0 || command->err >= 0) {
        struct pollfd fds[4] = {
            {.fd = status->state == PROCESS_RUNNING ? process_fd(command->process) : -1,
             .events = POLLIN},
            {.fd = command->out, .events = POLLIN},
            {.fd = command->err, .events = POLLIN},
            {.fd = command->in, .events = POLLOUT},
        };

        if (wait_for(fds, 4, CLOCK_NEVER, end->interrupted ? WAIT_CLEANUP : WAIT_NORMAL) ==
            WAIT_INTERRUPTED) {
            end->interrupted = true;
            process_stop(command->process);
            continue;
        }
        if (fds[0].revents != 0)
            process_read(command->process, status);
        drain_both(L, command, fds + 1, end);
        if (fds[3].revents != 0)
            feed(command);
    }
}

/* nil in place of the text where a function or a file got it */
static void push_output(lua_State *L, PQExpBuffer text, bool elsewhere)
{
    if (elsewhere)
        lua_pushnil(L);
    else
        lua_pushlstring(L, text->data, text->len);
}

/* command({ "pg_dump", … }, options | nil): exit code, stdout, stderr */
static int core_command(lua_State *L)
{
    ProcessSpec spec = {.grace_us = DEFAULT_GRACE_US};
    Watched watched = {.count = 0};
    Command *command;
    ProcessStatus status;
    RunEnd end;
    Error err;

    lua_settop(L, 2);
    command = new_command(L);
    spec.argv = check_argv(L);
    check_options(L, command, &spec);
    bind_session_each(L, watch_session, &watched);
    spec.watched = watched.sockets;
    spec.watched_count = watched.count;
    if (!start(command, &spec, &err))
        return args_raise(L, &err);
    if (command->in >= 0 && command->input_left == 0)
        close_fd(&command->in);
    luaL_checkstack(L, 8, "sh");
    start_hearts(&watched, command->process);
    run(L, command, &status, &end);
    stop_hearts(&watched);
    release_process(command);
    if (status.lost || watched.lost) {
        error_set(&err, ERROR_LOCK_LOST,
                  "the session that held a lock ended while \"%.100s\" ran: "
                  "it was stopped",
                  spec.argv[0]);
        return args_raise(L, &err);
    }
    if (end.interrupted) {
        wait_interrupted_error(&err);
        return args_raise(L, &err);
    }
    if (end.sink_failed)
        return lua_error(L);
    if (PQExpBufferDataBroken(command->out_text) || PQExpBufferDataBroken(command->err_text))
        return luaL_error(L, "not enough memory for the output of \"%s\"", spec.argv[0]);
    lua_pushinteger(L, status.exit_code);
    push_output(L, &command->out_text, command->out_sink || command->out_file >= 0);
    push_output(L, &command->err_text, command->err_sink || command->err_file >= 0);
    release(command);
    return 3;
}

/* Pass on what the descriptor says of signals (two bytes each), but not what the terminal sent. */
static void pass_signals(Process *process, int fd)
{
    unsigned char told[2];

    while (read(fd, told, sizeof told) == (ssize_t)sizeof told) {
        if (told[1] == 0)
            process_signal(process, told[0]);
    }
}

/*
 * foreground({ "pg_dump", … }, { env, grace, max_run, signals }): runs with our own standard
 * streams. Returns the exit code and how it ended: "exited", "lost" or "timed_out"; nil, the
 * reason ("not_found", "not_executable") and an error where it could not be executed. `signals` is
 * the descriptor that tells of signals to pass on.
 */
static int core_foreground(lua_State *L)
{
    ProcessSpec spec = {.in = -1, .out = -1, .err = -1};
    Watched watched = {.count = 0};
    Command *command;
    ProcessStatus status;
    int64_t deadline_us;
    int signals;
    int exec_errno;
    bool timed_out = false;
    Error err;

    lua_settop(L, 2);
    luaL_checktype(L, 2, LUA_TTABLE);
    command = new_command(L);
    spec.argv = check_argv(L);
    lua_getfield(L, 2, "env");
    spec.env = check_env(L, lua_gettop(L));
    lua_getfield(L, 2, "grace");
    spec.grace_us = lua_isnil(L, -1) ? DEFAULT_GRACE_US : args_duration(L, -1, "grace");
    lua_getfield(L, 2, "max_run");
    deadline_us = lua_isnil(L, -1) ? CLOCK_NEVER : clock_deadline(args_duration(L, -1, "max_run"));
    lua_getfield(L, 2, "signals");
    signals = (int)luaL_checkinteger(L, -1);
    bind_session_each(L, watch_session, &watched);
    spec.watched = watched.sockets;
    spec.watched_count = watched.count;
    if (!process_start(&command->process, &spec, &exec_errno, &err)) {
        if (exec_errno == 0)
            return args_raise(L, &err);
        lua_pushnil(L);
        lua_pushstring(L, exec_errno == ENOENT ? "not_found" : "not_executable");
        args_push_error(L, &err);
        return 3;
    }
    start_hearts(&watched, command->process);
    for (process_read(command->process, &status); status.state == PROCESS_RUNNING;
         process_read(command->process, &status)) {
        struct pollfd fds[2] = {
            {.fd = process_fd(command->process), .events = POLLIN},
            {.fd = signals, .events = POLLIN},
        };

        if (wait_for(fds, 2, deadline_us, WAIT_CLEANUP) == WAIT_DEADLINE) {
            timed_out = true;
            deadline_us = CLOCK_NEVER;
            process_stop(command->process);
        }
        pass_signals(command->process, signals);
    }
    stop_hearts(&watched);
    release_process(command);
    lua_pushinteger(L, status.exit_code);
    lua_pushstring(L, status.lost || watched.lost ? "lost" : timed_out ? "timed_out" : "exited");
    return 2;
}

void bind_command_register(lua_State *L)
{
    lua_pushcfunction(L, core_command);
    lua_setfield(L, -2, "command");
    lua_pushcfunction(L, core_foreground);
    lua_setfield(L, -2, "foreground");
    luaL_newmetatable(L, COMMAND_TNAME);
    lua_pushcfunction(L, command_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
