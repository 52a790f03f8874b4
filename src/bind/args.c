#include "bind/args.h"

#include "base/duration.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Chunk names that begin so are ours. */
static char home[256] = "=(lockkeeper)";

enum { TRACEBACK_LEVELS = 20 };

void args_set_home(const char *prefix)
{
    text_copy(home, sizeof home, prefix);
}

/* ---- kinds of userdata ----------------------------------------------------------------------- */

void args_new_kind(lua_State *L, const char *kind)
{
    luaL_newmetatable(L, kind);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, kind);
}

void args_set_kind(lua_State *L, const char *kind)
{
    *(const char **)lua_touserdata(L, -1) = kind;
    lua_rawgetp(L, LUA_REGISTRYINDEX, kind);
    lua_setmetatable(L, -2);
}

void *args_to_kind(lua_State *L, int index, const char *kind)
{
    const char **object;

    if (lua_type(L, index) != LUA_TUSERDATA || lua_rawlen(L, index) < sizeof *object)
        return NULL;
    object = lua_touserdata(L, index);
    return *object == kind ? object : NULL;
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void set_text(lua_State *L, const char *name, const char *text)
{
    if (text[0] != '\0') {
        lua_pushstring(L, text);
        lua_setfield(L, -2, name);
    }
}

void args_push_error(lua_State *L, const Error *err)
{
    char where[300];

    lua_createtable(L, 0, 9);
    set_text(L, "kind", error_kind_name(err->kind));
    lua_pushboolean(L, error_is_busy(err));
    lua_setfield(L, -2, "busy");
    lua_pushstring(L, err->message);
    lua_setfield(L, -2, "message");
    set_text(L, "sqlstate", err->sqlstate);
    set_text(L, "detail", err->detail);
    set_text(L, "hint", err->hint);
    set_text(L, "statement", err->statement);
    args_where(L, where, sizeof where);
    set_text(L, "where", where);
    luaL_setmetatable(L, ERROR_TNAME);
}

int args_raise(lua_State *L, const Error *err)
{
    luaL_checkstack(L, 8, "error");
    args_push_error(L, err);
    args_push_traceback(L, L, 0);
    lua_setfield(L, -2, "traceback");
    lua_error(L);
    __builtin_unreachable();
}

int args_fail(lua_State *L, const Error *err)
{
    lua_pushnil(L);
    args_push_error(L, err);
    return 2;
}

int args_usage(lua_State *L, const char *format, ...)
{
    Error err;
    va_list args;

    error_clear(&err);
    err.kind = ERROR_USAGE;
    va_start(args, format);
    vsnprintf(err.message, sizeof err.message, format, args);
    va_end(args);
    args_raise(L, &err);
}

static void add_field(lua_State *L, luaL_Buffer *out, const char *name, const char *before)
{
    if (lua_getfield(L, 1, name) == LUA_TSTRING) {
        luaL_addstring(out, before);
        lua_pushvalue(L, -1);
        lua_remove(L, -2);
        luaL_addvalue(out);
    } else {
        lua_pop(L, 1);
    }
}

/* job.lua:12: message (SQLSTATE 55P03) */
static int error_tostring(lua_State *L)
{
    luaL_Buffer out;

    lua_settop(L, 1);
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_buffinit(L, &out);
    add_field(L, &out, "where", "");
    if (luaL_bufflen(&out) > 0)
        luaL_addstring(&out, ": ");
    add_field(L, &out, "message", "");
    add_field(L, &out, "sqlstate", " (SQLSTATE ");
    if (lua_getfield(L, 1, "sqlstate") == LUA_TSTRING)
        luaL_addstring(&out, ")");
    lua_pop(L, 1);
    luaL_pushresult(&out);
    return 1;
}

void args_register(lua_State *L)
{
    luaL_newmetatable(L, ERROR_TNAME);
    lua_pushcfunction(L, error_tostring);
    lua_setfield(L, -2, "__tostring");
    lua_pushliteral(L, ERROR_TNAME);
    lua_setfield(L, -2, "__name");
    lua_pop(L, 1);
}

/* ---- where ----------------------------------------------------------------------------------- */

bool args_is_script(const lua_Debug *frame)
{
    return frame->currentline > 0 && strncmp(frame->source, home, strlen(home)) != 0;
}

void args_where(lua_State *L, char *where, size_t size)
{
    lua_Debug frame;

    where[0] = '\0';
    for (int level = 0; lua_getstack(L, level, &frame) == 1; level++) {
        lua_getinfo(L, "Sl", &frame);
        if (args_is_script(&frame)) {
            snprintf(where, size, "%s:%d", frame.short_src, frame.currentline);
            return;
        }
    }
}

void args_push_traceback(lua_State *L, lua_State *from, int level)
{
    lua_Debug frame;
    luaL_Buffer out;
    int shown = 0;

    luaL_buffinit(L, &out);
    for (; lua_getstack(from, level, &frame) == 1 && shown < TRACEBACK_LEVELS; level++) {
        char line[400];

        lua_getinfo(from, "Slnt", &frame);
        if (!args_is_script(&frame))
            continue;
        if (*frame.what == 'm')
            snprintf(line, sizeof line, "%s:%d in the main chunk", frame.short_src,
                     frame.currentline);
        else if (frame.name != NULL)
            snprintf(line, sizeof line, "%s:%d in function '%.100s'", frame.short_src,
                     frame.currentline, frame.name);
        else
            snprintf(line, sizeof line, "%s:%d in the function at line %d", frame.short_src,
                     frame.currentline, frame.linedefined);
        if (shown++ > 0)
            luaL_addchar(&out, '\n');
        luaL_addstring(&out, line);
    }
    luaL_pushresult(&out);
}

/* ---- options --------------------------------------------------------------------------------- */

/* A conninfo that came where something else belongs. */
static bool may_hold_password(const char *text)
{
    return strstr(text, "://") != NULL || strcasestr(text, "password") != NULL;
}

void args_describe(lua_State *L, int index, char *text, size_t size)
{
    int type = lua_type(L, index);

    switch (type) {
    case LUA_TSTRING: {
        size_t length;
        const char *value = lua_tolstring(L, index, &length);

        if (length > 40 || may_hold_password(value))
            snprintf(text, size, "a text of %zu bytes", length);
        else
            snprintf(text, size, "\"%s\"", value);
        break;
    }
    case LUA_TNUMBER:
        if (lua_isinteger(L, index))
            snprintf(text, size, LUA_INTEGER_FMT, lua_tointeger(L, index));
        else
            snprintf(text, size, "%.14g", lua_tonumber(L, index));
        break;
    case LUA_TBOOLEAN:
        snprintf(text, size, "%s", lua_toboolean(L, index) ? "true" : "false");
        break;
    case LUA_TNIL:
    case LUA_TNONE:
        snprintf(text, size, "nil");
        break;
    default:
        snprintf(text, size, "a %s", lua_typename(L, type));
    }
}

bool args_has_options(lua_State *L, int index, const char *function)
{
    char got[64];

    if (lua_isnoneornil(L, index))
        return false;
    if (lua_istable(L, index))
        return true;
    args_describe(L, index, got, sizeof got);
    args_usage(L, "%s: the options must be a table, not %s", function, got);
}

int args_option(lua_State *L, const char *function, const char *const *names)
{
    char got[64];
    const char *name;
    const char *nearest;

    if (lua_type(L, -2) != LUA_TSTRING) {
        args_describe(L, -2, got, sizeof got);
        args_usage(L, "%s: an option's name must be a text, not %s", function, got);
    }
    name = lua_tostring(L, -2);
    for (int i = 0; names[i] != NULL; i++) {
        if (strcmp(name, names[i]) == 0)
            return i;
    }
    nearest = text_nearest(name, names);
    args_describe(L, -2, got, sizeof got);
    if (nearest != NULL)
        args_usage(L, "%s: unknown option %s; did you mean \"%s\"?", function, got, nearest);
    args_usage(L, "%s: unknown option %s", function, got);
}

const char *args_text(lua_State *L, int index, const char *what)
{
    char got[64];
    size_t length;
    const char *text;

    if (lua_type(L, index) != LUA_TSTRING) {
        args_describe(L, index, got, sizeof got);
        args_usage(L, "%s must be a text, not %s", what, got);
    }
    text = lua_tolstring(L, index, &length);
    if (strlen(text) != length)
        args_usage(L, "%s has a NUL byte (at byte %zu)", what, strlen(text) + 1);
    return text;
}

const char **args_texts(lua_State *L, int index)
{
    lua_Unsigned count;
    const char **texts;

    luaL_checktype(L, index, LUA_TTABLE);
    count = lua_rawlen(L, index);
    texts = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *texts, 0);
    for (lua_Unsigned i = 0; i < count; i++) {
        lua_rawgeti(L, index, (lua_Integer)i + 1);
        texts[i] = luaL_checkstring(L, -1);
        lua_pop(L, 1); /* the list keeps it */
    }
    texts[count] = NULL;
    return texts;
}

bool args_boolean(lua_State *L, int index, const char *what)
{
    char got[64];

    if (!lua_isboolean(L, index)) {
        args_describe(L, index, got, sizeof got);
        args_usage(L, "%s must be true or false, not %s", what, got);
    }
    return lua_toboolean(L, index);
}

int64_t args_duration(lua_State *L, int index, const char *what)
{
    char got[64];
    Error err;
    int64_t us = DURATION_ENDLESS;
    bool ok = true;

    if (lua_isboolean(L, index) && !lua_toboolean(L, index))
        return DURATION_ENDLESS;
    switch (lua_type(L, index)) {
    case LUA_TNUMBER:
        ok = duration_from_seconds(lua_tonumber(L, index), what, &us, &err);
        break;
    case LUA_TSTRING: {
        size_t length;
        const char *text = lua_tolstring(L, index, &length);

        ok = duration_parse(text, length, what, &us, &err);
        break;
    }
    default:
        args_describe(L, index, got, sizeof got);
        args_usage(L, "%s must be seconds, a text such as \"250ms\", or false for no limit; it is "
                      "%s", what, got);
    }
    if (!ok)
        args_raise(L, &err);
    return us;
}
