#include "host/state.h"

#include "base/clock.h"
#include "base/process.h"
#include "bind/args.h"
#include "bind/module.h"
#include "host/coroutine.h"
#include "host/describe.h"
#include "host/embedded.h"
#include "host/memory.h"
#include "host/screen.h"
#include "host/serve.h"
#include "host/signals.h"
#include "host/watcher.h"
#include "host/work.h"
#include "pg/conninfo.h"
#include "pg/wait.h"

#include <errno.h>
#include <lauxlib.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- our modules ----------------------------------------------------------------------------- */

/* Searcher for the modules in the binary; comes before those that look at files. */
static int search_embedded(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);

    for (const EmbeddedLua *file = EMBEDDED_LUA; file->module != NULL; file++) {
        if (strcmp(file->module, name) == 0) {
            if (luaL_loadbufferx(L, (const char *)file->code, file->size, name, "b") != LUA_OK)
                return lua_error(L);
            return 1;
        }
    }
    lua_pushfstring(L, "no module '%s' in lockkeeper", name);
    return 1;
}

static void add_searcher(lua_State *L)
{
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "searchers");
    for (lua_Integer i = luaL_len(L, -1); i >= 2; i--) { /* after the first, package.preload */
        lua_rawgeti(L, -1, i);
        lua_rawseti(L, -2, i + 1);
    }
    lua_pushcfunction(L, search_embedded);
    lua_rawseti(L, -2, 2);
    lua_pop(L, 2);
}

static void use_directory(lua_State *L, const char *directory)
{
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "path");
    lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", directory, directory, lua_tostring(L, -1));
    lua_setfield(L, -3, "path");
    lua_pop(L, 2);
}

/* ---- what the Lua half asks of the host ------------------------------------------------------ */

static void set_text(lua_State *L, const char *name, const char *text)
{
    lua_pushstring(L, text);
    lua_setfield(L, -2, name);
}

static int push_embedded(lua_State *L, const Embedded *embedded)
{
    lua_createtable(L, 0, 6);
    set_text(L, "data", embedded->data);
    set_text(L, "socket", embedded->socket);
    set_text(L, "bindir", embedded->bindir);
    set_text(L, "url", embedded->url);
    lua_pushinteger(L, embedded->version);
    lua_setfield(L, -2, "version");
    lua_pushinteger(L, embedded->pid);
    lua_setfield(L, -2, "pid");
    return 1;
}

/* embedded_status(): a table { data, socket, bindir, url, version, pid } */
static int host_embedded_status(lua_State *L)
{
    Embedded embedded;
    Error err;

    if (!embedded_status(&embedded, &err))
        return args_raise(L, &err);
    return push_embedded(L, &embedded);
}

/* embedded_start(): the same, running */
static int host_embedded_start(lua_State *L)
{
    Embedded embedded;
    Error err;

    if (!embedded_start(&embedded, &err))
        return args_raise(L, &err);
    return push_embedded(L, &embedded);
}

/* embedded_stop(): was it running? */
static int host_embedded_stop(lua_State *L)
{
    bool was_running;
    Error err;

    if (!embedded_stop(&was_running, &err))
        return args_raise(L, &err);
    lua_pushboolean(L, was_running);
    return 1;
}

/* interrupted(): the signal that interrupted this process, or nil */
static int host_interrupted(lua_State *L)
{
    if (wait_interrupted() == 0)
        lua_pushnil(L);
    else
        lua_pushinteger(L, wait_interrupted());
    return 1;
}

/* catch_signals(): Ctrl-C and its like interrupt, from now on */
static int host_catch_signals(lua_State *L)
{
    Error err;

    if (!signals_interrupt(&err))
        return args_raise(L, &err);
    return 0;
}

/* forward_signals(): from now on they are read from the descriptor that is returned */
static int host_forward_signals(lua_State *L)
{
    Error err;
    int fd = signals_forward(&err);

    if (fd < 0)
        return args_raise(L, &err);
    lua_pushinteger(L, fd);
    return 1;
}

/* terminal(fd): its width in columns, or nil where it is no terminal */
static int host_terminal(lua_State *L)
{
    int fd = (int)luaL_checkinteger(L, 1);
    struct winsize size;

    if (!isatty(fd))
        return 0;
    lua_pushinteger(L, ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80);
    return 1;
}

/* traceback(thread-or-nil, level): the script's lines */
static int host_traceback(lua_State *L)
{
    args_push_traceback(L, L, (int)luaL_optinteger(L, 1, 0));
    return 1;
}

/* unsetenv(name) */
static int host_unsetenv(lua_State *L)
{
    if (unsetenv(luaL_checkstring(L, 1)) != 0)
        return luaL_error(L, "unsetenv: %s", strerror(errno));
    return 0;
}

/* monotonic(): seconds on a clock that never goes back */
static int host_monotonic(lua_State *L)
{
    lua_pushnumber(L, (double)clock_monotonic_us() / 1e6);
    return 1;
}

/* check_conninfo(text): raises a usage error where it is malformed */
static int host_check_conninfo(lua_State *L)
{
    Error err;

    if (!conninfo_check(args_text(L, 1, "the conninfo"), &err))
        return args_raise(L, &err);
    return 0;
}

/*
 * untrusted(file, folder | nil): why an open file, found in that folder, should not be run: others
 * could have put it there, or what is in it. Else nil. Without a folder, the file alone is judged.
 */
static int host_untrusted(lua_State *L)
{
    const luaL_Stream *stream = luaL_checkudata(L, 1, LUA_FILEHANDLE);
    const char *path = luaL_optstring(L, 2, NULL);
    struct stat file, folder;

    if (fstat(fileno(stream->f), &file) != 0 || (path != NULL && stat(path, &folder) != 0))
        lua_pushstring(L, strerror(errno));
    else if (geteuid() == 0 && (file.st_mode & S_IWOTH) != 0)
        lua_pushliteral(L, "anybody may write to it, and root runs this");
    else if (path != NULL && file.st_uid != geteuid() && file.st_uid != 0 &&
             (folder.st_mode & S_IWOTH) != 0)
        lua_pushliteral(L, "it is another user's, in a folder that anybody may write to");
    else
        lua_pushnil(L);
    return 1;
}

/* replace(argv): become another program; returns only the error, and whether it was not found */
static int host_replace(lua_State *L)
{
    const char **argv = args_texts(L, 1);

    fflush(NULL);
    execvp(argv[0], (char *const *)argv);
    lua_pushboolean(L, errno == ENOENT);
    lua_pushstring(L, strerror(errno));
    lua_insert(L, -2);
    return 2;
}

/* Where a script was refused memory first; "": nowhere since the limit was set. */
static char refused_at[300];

static void note_refusal(void *main_state)
{
    /* From 5.4.6 on Lua's stack can't be looked at while it grows, and asks for memory. */
#if LUA_VERSION_RELEASE_NUM < 50406
    lua_State *L = *fiber_slot(FIBER_COROUTINE);

    if (refused_at[0] == '\0')
        args_where(L == NULL ? main_state : L, refused_at, sizeof refused_at);
#else
    (void)main_state;
#endif
    if (refused_at[0] == '\0')
        text_copy(refused_at, sizeof refused_at, "?");
}

/*
 * memory_limit(bytes): what Lua may have from now on, garbage included; memory_limit(nil): no
 * limit; returns the script's place where memory was refused since, "?" where no script ran, or nil
 */
static int host_memory_limit(lua_State *L)
{
    lua_Integer bytes = luaL_optinteger(L, 1, 0);
    void *memory;

    lua_getallocf(L, &memory);
    if (bytes > 0) {
        refused_at[0] = '\0';
        memory_set_limit(memory, (size_t)bytes, note_refusal, L);
        return 0;
    }
    memory_set_limit(memory, 0, NULL, NULL);
    if (refused_at[0] == '\0')
        return 0;
    lua_pushstring(L, refused_at);
    refused_at[0] = '\0';
    return 1;
}

/* spare_strays(): children that this process has now are none of what end_strays ends */
static int host_spare_strays(lua_State *L)
{
    (void)L;
    process_spare_strays();
    return 0;
}

/* end_strays(): ends what was started since by os.execute, io.popen and their like, and still runs */
static int host_end_strays(lua_State *L)
{
    (void)L;
    process_end_strays();
    return 0;
}

/* same_stream(): do standard output and standard error go to the same place? */
static int host_same_stream(lua_State *L)
{
    struct stat out, err;

    lua_pushboolean(L, fstat(STDOUT_FILENO, &out) == 0 && fstat(STDERR_FILENO, &err) == 0 &&
                           out.st_dev == err.st_dev && out.st_ino == err.st_ino);
    return 1;
}

static int open_host(lua_State *L)
{
    luaL_newlib(L, ((luaL_Reg[]){{"embedded_status", host_embedded_status},
                                 {"embedded_start", host_embedded_start},
                                 {"embedded_stop", host_embedded_stop},
                                 {"interrupted", host_interrupted},
                                 {"catch_signals", host_catch_signals},
                                 {"forward_signals", host_forward_signals},
                                 {"terminal", host_terminal},
                                 {"traceback", host_traceback},
                                 {"unsetenv", host_unsetenv},
                                 {"monotonic", host_monotonic},
                                 {"check_conninfo", host_check_conninfo},
                                 {"untrusted", host_untrusted},
                                 {"replace", host_replace},
                                 {"watched", watcher_watched},
                                 {"memory_limit", host_memory_limit},
                                 {"same_stream", host_same_stream},
                                 {"spare_strays", host_spare_strays},
                                 {"end_strays", host_end_strays},
                                 {NULL, NULL}}));
    describe_register(L);
    screen_register(L);
    serve_register(L);
    work_register(L);
    return 1;
}

/* ---- the state ------------------------------------------------------------------------------- */

static void preload(lua_State *L, const char *module, lua_CFunction open)
{
    luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
    lua_pushcfunction(L, open);
    lua_setfield(L, -2, module);
    lua_pop(L, 1);
}

/* os.exit([code]): as in stock Lua, but it always closes the state, so that no lock stays. */
static int close_and_exit(lua_State *L)
{
    int code = lua_isboolean(L, 1) ? !lua_toboolean(L, 1) : (int)luaL_optinteger(L, 1, 0);

    state_close(L);
    exit(code);
}

static void replace_exit(lua_State *L)
{
    lua_getglobal(L, LUA_OSLIBNAME);
    lua_pushcfunction(L, close_and_exit);
    lua_setfield(L, -2, "exit");
    lua_pop(L, 1);
}

static struct {
    bool on;
    bool continued; /* the last piece was not the end of its message */
} warnings;

/* What Lua's warn() says, as in the stock interpreter: "@on" and "@off" switch it. */
static void show_warning(void *unused, const char *piece, int more)
{
    (void)unused;
    if (!warnings.continued && !more && piece[0] == '@') {
        if (strcmp(piece, "@on") == 0)
            warnings.on = true;
        else if (strcmp(piece, "@off") == 0)
            warnings.on = false;
        return;
    }
    if (warnings.on)
        fprintf(stderr, "%s%s%s", warnings.continued ? "" : "Lua warning: ", piece,
                more ? "" : "\n");
    warnings.continued = more != 0;
}

void state_close(lua_State *L)
{
    void *memory;

    lua_getallocf(L, &memory);
    lua_close(L);
    memory_free(memory);
}

lua_State *state_new(void)
{
    Memory *memory = memory_new();
    lua_State *L = memory == NULL ? NULL : lua_newstate(memory_allocate, memory);
    const char *directory = getenv("LOCKKEEPER_LUA_DIR");

    if (L == NULL) {
        memory_free(memory);
        return NULL;
    }
    lua_setwarnf(L, show_warning, NULL);
    luaL_openlibs(L);
    coroutine_track(L);
    replace_exit(L);
    preload(L, "lockkeeper.core", luaopen_lockkeeper_core);
    preload(L, "lockkeeper.host", open_host);
    if (directory != NULL && directory[0] != '\0')
        use_directory(L, directory);
    else
        add_searcher(L);
    return L;
}

/* The command line, protected: argc and argv come as light userdata. */
static int protected_run(lua_State *L)
{
    int argc = (int)lua_tointeger(L, 1);
    char **argv = lua_touserdata(L, 2);

    lua_getglobal(L, "require");
    lua_pushliteral(L, "lockkeeper.cli");
    lua_call(L, 1, 1);
    luaL_checkstack(L, argc + 2, "too many arguments");
    for (int i = 1; i < argc; i++)
        lua_pushstring(L, argv[i]);
    lua_call(L, argc - 1, 1);
    return 1;
}

int state_run(lua_State *L, int argc, char **argv)
{
    int code = 1;

    lua_pushcfunction(L, protected_run);
    lua_pushinteger(L, argc);
    lua_pushlightuserdata(L, argv);
    if (lua_pcall(L, 2, 1, 0) == LUA_OK)
        code = (int)lua_tointeger(L, -1);
    else /* the command line shows every error of its own; this is one of ours */
        fprintf(stderr, "lockkeeper: %s\n", luaL_tolstring(L, -1, NULL));
    lua_settop(L, 0);
    return code;
}
