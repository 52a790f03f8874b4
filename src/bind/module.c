#include "bind/module.h"

#include "base/duration.h"
#include "base/log.h"
#include "bind/args.h"
#include "bind/command.h"
#include "bind/environment.h"
#include "bind/graph.h"
#include "bind/json.h"
#include "bind/locks.h"
#include "bind/output.h"
#include "bind/rows.h"
#include "bind/schedule.h"
#include "bind/session.h"
#include "bind/snapshot.h"
#include "bind/store.h"
#include "bind/task.h"
#include "pg/wait.h"

#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

/* sleep(duration): lets other tasks go on */
static int core_sleep(lua_State *L)
{
    int64_t us = args_duration(L, 1, "sleep");
    Error err;

    if (wait_for(NULL, 0, clock_deadline(us), WAIT_NORMAL) == WAIT_INTERRUPTED) {
        wait_interrupted_error(&err);
        return args_raise(L, &err);
    }
    return 0;
}

/* duration(text or number): seconds, false for endless; a usage error names `what` (index 2) */
static int core_duration(lua_State *L)
{
    int64_t us = args_duration(L, 1, luaL_optstring(L, 2, "the duration"));

    if (us == DURATION_ENDLESS)
        lua_pushboolean(L, false);
    else
        lua_pushnumber(L, (double)us / 1e6);
    return 1;
}

/* now(): epoch seconds by this host's clock */
static int core_now(lua_State *L)
{
    lua_pushnumber(L, clock_epoch_s());
    return 1;
}

/* monotonic(): seconds on a clock that never goes back */
static int core_monotonic(lua_State *L)
{
    lua_pushnumber(L, (double)clock_monotonic_us() / 1e6);
    return 1;
}

/* fail(kind, message, raises): nil and an error of that kind, or raises it */
static int core_fail(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);
    ErrorKind kind = ERROR_USAGE;
    Error err;

    while (kind <= ERROR_TIMED_OUT && strcmp(name, error_kind_name(kind)) != 0)
        kind++;
    luaL_argcheck(L, kind <= ERROR_TIMED_OUT, 1, "unknown kind of error");
    error_set(&err, kind, "%s", luaL_checkstring(L, 2));
    return lua_toboolean(L, 3) ? args_raise(L, &err) : args_fail(L, &err);
}

/* usage(message): raises a usage error */
static int core_usage(lua_State *L)
{
    args_usage(L, "%s", luaL_checkstring(L, 1));
}

/* nearest(word, list): the nearest of the words, or nil */
static int core_nearest(lua_State *L)
{
    const char *word = luaL_checkstring(L, 1);
    const char **known = args_texts(L, 2);

    lua_pushstring(L, text_nearest(word, known));
    return 1;
}

/* array(list): marks it as a PostgreSQL array */
static int core_array(lua_State *L)
{
    char got[64];

    if (!lua_istable(L, 1)) {
        args_describe(L, 1, got, sizeof got);
        args_usage(L, "array: a list was expected, not %s", got);
    }
    lua_settop(L, 1);
    luaL_setmetatable(L, SQL_ARRAY_TNAME);
    return 1;
}

/* log(level, text, names, values): one event; the lists are of names, and of
 * texts or numbers, in the order to write them */
static int core_log(lua_State *L)
{
    const char *level_name = args_text(L, 1, "log: the level");
    const char *text = luaL_checkstring(L, 2);
    LogLevel level;
    lua_Unsigned count;
    LogField *fields;

    if (!log_level_parse(level_name, &level))
        args_usage(L, "log: the level must be debug, info, warning or error, not \"%.40s\"",
                   level_name);
    luaL_checktype(L, 3, LUA_TTABLE);
    luaL_checktype(L, 4, LUA_TTABLE);
    count = lua_rawlen(L, 3);
    fields = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *fields, 0);
    for (lua_Unsigned i = 0; i < count; i++) {
        bool is_number;

        lua_rawgeti(L, 3, (lua_Integer)i + 1);
        lua_rawgeti(L, 4, (lua_Integer)i + 1);
        is_number = lua_type(L, -1) == LUA_TNUMBER;
        fields[i] = (LogField){luaL_checkstring(L, -2), luaL_checkstring(L, -1), is_number};
        if (is_number) { /* a text by now */
            lua_pushvalue(L, -1);
            lua_rawseti(L, 4, (lua_Integer)i + 1);
        }
        lua_pop(L, 2); /* the lists keep them */
    }
    fields[count] = (LogField){NULL, NULL, false};
    log_write(level, text, fields);
    return 0;
}

/* log_configure(level | nil, format | nil): false and the name that is wrong */
static int core_log_configure(lua_State *L)
{
    static LogLevel level = LOG_INFO;
    static LogFormat format = LOG_LOGFMT;

    if (!lua_isnoneornil(L, 1) && !log_level_parse(luaL_checkstring(L, 1), &level))
        args_usage(L, "--log-level must be debug, info, warning or error, not \"%.40s\"",
                   lua_tostring(L, 1));
    if (!lua_isnoneornil(L, 2) && !log_format_parse(luaL_checkstring(L, 2), &format))
        args_usage(L, "--log-format must be logfmt or json, not \"%.40s\"", lua_tostring(L, 2));
    log_configure(level, format);
    return 0;
}

/* forbid(reason | nil): while it is set no session connects or is used; returns the earlier one */
static int core_forbid(lua_State *L)
{
    lua_settop(L, 1);
    lua_pushstring(L, session_forbidden());
    session_forbid(luaL_optstring(L, 1, NULL));
    return 1;
}

/* set_home(prefix): chunk names that begin so are our own */
static int core_set_home(lua_State *L)
{
    args_set_home(luaL_checkstring(L, 1));
    return 0;
}

/* set_default(conninfo): where the default session connects to */
static int core_set_default(lua_State *L)
{
    bind_session_default_conninfo(L, luaL_checkstring(L, 1));
    return 0;
}

/* set_application(name): application_name of sessions made from now on; returns what it was */
static int core_set_application(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);

    lua_pushstring(L, bind_session_application_name());
    bind_session_application(name);
    return 1;
}

/* traceback(level): the script's lines */
static int core_traceback(lua_State *L)
{
    args_push_traceback(L, L, (int)luaL_optinteger(L, 1, 0));
    return 1;
}

static const luaL_Reg FUNCTIONS[] = {
    {"sleep", core_sleep},
    {"duration", core_duration},
    {"now", core_now},
    {"monotonic", core_monotonic},
    {"fail", core_fail},
    {"usage", core_usage},
    {"nearest", core_nearest},
    {"array", core_array},
    {"log", core_log},
    {"log_configure", core_log_configure},
    {"forbid", core_forbid},
    {"set_home", core_set_home},
    {"set_default", core_set_default},
    {"set_application", core_set_application},
    {"traceback", core_traceback},
    {NULL, NULL},
};

/*
 * In stock Lua a Ctrl-C sets a hook that raises at the next instruction: a wait must end for it to
 * come.
 */
static lua_State *main_state;

static bool hook_is_set(void)
{
    return lua_gethook(main_state) != NULL;
}

static int forget_main_state(lua_State *L)
{
    (void)L;
    wait_set_check(NULL);
    return 0;
}

static void watch_for_interrupt(lua_State *L)
{
    lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
    main_state = lua_tothread(L, -1);
    lua_pop(L, 1);
    wait_set_check(hook_is_set);
    lua_newuserdatauv(L, 1, 0);
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, forget_main_state);
    lua_setfield(L, -2, "__gc");
    lua_setmetatable(L, -2);
    lua_setfield(L, LUA_REGISTRYINDEX, "lockkeeper.interrupt");
}

int luaopen_lockkeeper_core(lua_State *L)
{
    luaL_checkversion(L);
    luaL_newlib(L, FUNCTIONS);
    args_register(L);
    bind_task_register(L);
    bind_session_register(L);
    bind_locks_register(L);
    bind_rows_register(L);
    bind_schedule_register(L);
    bind_command_register(L);
    bind_environment_register(L);
    bind_output_register(L);
    bind_snapshot_register(L);
    bind_graph_register(L);
    bind_store_register(L);
    luaL_newmetatable(L, SQL_ARRAY_TNAME);
    luaL_newmetatable(L, JSON_ARRAY_TNAME);
    lua_pop(L, 2);
    json_push_null(L);
    lua_setfield(L, -2, "null");
    json_push_library(L);
    lua_setfield(L, -2, "json");
    lua_pushliteral(L, LOCKKEEPER_VERSION);
    lua_setfield(L, -2, "version");
    watch_for_interrupt(L);
    return 1;
}
