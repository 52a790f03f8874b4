#include "host/serve.h"

#include "base/duration.h"
#include "bind/args.h"
#include "runner/http.h"
#include "runner/supervisor.h"

#include <lauxlib.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static struct {
    bool wanted;
    SupervisorOptions options;
    const char **paths;
} serving;

/* A copy that lasts; the process ends with it. NULL where there is no text. */
static const char *copy_field(lua_State *L, const char *name)
{
    const char *text = lua_getfield(L, 1, name) == LUA_TNIL ? NULL : luaL_checkstring(L, -1);
    char *copy = text == NULL ? NULL : strdup(text);

    if (text != NULL && copy == NULL)
        luaL_error(L, "not enough memory");
    lua_pop(L, 1);
    return copy;
}

/* Is where to listen, if it is to, an address? */
static void check_address(lua_State *L, const char *name)
{
    const char *text = lua_getfield(L, 1, name) == LUA_TNIL ? NULL : luaL_checkstring(L, -1);
    HttpAddress ignored;
    Error err;

    if (text != NULL && !http_address_parse(text, &ignored, &err))
        args_raise(L, &err);
    lua_pop(L, 1);
}

static int integer_field(lua_State *L, const char *name)
{
    int number;

    lua_getfield(L, 1, name);
    number = (int)luaL_optinteger(L, -1, 0);
    lua_pop(L, 1);
    return number;
}

/* Seconds, or false: without limit. */
static int64_t duration_field(lua_State *L, const char *name)
{
    int64_t us = DURATION_ENDLESS;

    if (lua_getfield(L, 1, name) == LUA_TNUMBER)
        us = args_duration(L, -1, name);
    lua_pop(L, 1);
    return us;
}

static void copy_paths(lua_State *L)
{
    lua_Unsigned count;

    lua_getfield(L, 1, "paths");
    count = lua_rawlen(L, -1);
    serving.paths = calloc((size_t)count + 1, sizeof *serving.paths);
    for (lua_Unsigned i = 0; serving.paths != NULL && i < count; i++) {
        lua_rawgeti(L, -1, (lua_Integer)i + 1);
        serving.paths[i] = strdup(luaL_checkstring(L, -1));
        lua_pop(L, 1);
        if (serving.paths[i] == NULL)
            luaL_error(L, "not enough memory");
    }
    if (serving.paths == NULL)
        luaL_error(L, "not enough memory");
    lua_pop(L, 1);
}

/* serve(options) */
static int host_serve(lua_State *L)
{
    SupervisorOptions *options = &serving.options;

    luaL_checktype(L, 1, LUA_TTABLE);
    check_address(L, "listen");
    options->workers = integer_field(L, "workers");
    options->warm = integer_field(L, "warm");
    options->drain_us = duration_field(L, "drain");
    options->keep_us = duration_field(L, "keep");
    options->keep_runs = integer_field(L, "keep_runs");
    copy_paths(L);
    options->paths = serving.paths;
    options->conninfo = copy_field(L, "conninfo");
    options->config = copy_field(L, "config");
    options->log_level = copy_field(L, "log_level");
    options->log_format = copy_field(L, "log_format");
    options->listen = copy_field(L, "listen");
    options->act = copy_field(L, "act");
    lua_getfield(L, 1, "watch");
    options->watch = lua_toboolean(L, -1);
    lua_getfield(L, 1, "stateless");
    options->stateless = lua_toboolean(L, -1);
    serving.wanted = true;
    return 0;
}

void serve_register(lua_State *L)
{
    lua_pushcfunction(L, host_serve);
    lua_setfield(L, -2, "serve");
}

void serve_block_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

bool serve_is_wanted(void)
{
    return serving.wanted;
}

int serve_run(void)
{
    return supervisor_run(&serving.options);
}
