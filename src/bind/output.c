#include "bind/output.h"

#include "base/log.h"
#include "base/tail.h"
#include "bind/args.h"

#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

static Tail *kept; /* NULL: nothing is kept now */

static void append(const char *text)
{
    tail_append(kept, text, strlen(text));
}

/* The server's notices are output of the job on whose session they come. */
static void listen(LogLevel level, const char *message, const LogField *fields)
{
    const char *severity = NULL;
    bool from_server = false;

    (void)level;
    for (; fields != NULL && fields->name != NULL; fields++) {
        if (strcmp(fields->name, "severity") == 0)
            severity = fields->value;
        else if (strcmp(fields->name, "from") == 0)
            from_server = fields->value != NULL && strcmp(fields->value, "server") == 0;
    }
    if (!from_server || severity == NULL)
        return;
    append(severity);
    append(":  ");
    append(message);
    append("\n");
}

static void drop(void)
{
    log_set_listener(NULL);
    free(kept);
    kept = NULL;
}

/* keep_output(): from now on, from an empty beginning */
static int core_keep_output(lua_State *L)
{
    drop();
    kept = calloc(1, sizeof *kept);
    if (kept == NULL)
        return luaL_error(L, "not enough memory");
    log_set_listener(listen);
    return 0;
}

/* append_output(text) */
static int core_append_output(lua_State *L)
{
    size_t length;
    const char *text = luaL_checklstring(L, 1, &length);

    if (kept != NULL)
        tail_append(kept, text, length);
    return 0;
}

/* take_output(): what was kept; nothing is any more */
static int core_take_output(lua_State *L)
{
    luaL_Buffer out;

    if (kept == NULL) {
        lua_pushliteral(L, "");
        return 1;
    }
    luaL_buffinitsize(L, &out, TAIL_SIZE);
    luaL_pushresultsize(&out, tail_copy(kept, luaL_buffaddr(&out)));
    drop();
    return 1;
}

/* log_common(names, values): fields of every event from now on; without arguments no more */
static int core_log_common(lua_State *L)
{
    lua_Unsigned count;
    LogField *fields;

    if (lua_isnoneornil(L, 1)) {
        log_set_common(NULL);
        return 0;
    }
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_checktype(L, 2, LUA_TTABLE);
    count = lua_rawlen(L, 1);
    fields = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *fields, 0);
    for (lua_Unsigned i = 0; i < count; i++) {
        bool is_number;

        lua_rawgeti(L, 1, (lua_Integer)i + 1);
        lua_rawgeti(L, 2, (lua_Integer)i + 1);
        is_number = lua_type(L, -1) == LUA_TNUMBER;
        fields[i] = (LogField){luaL_checkstring(L, -2), luaL_checkstring(L, -1), is_number};
        if (is_number) { /* a text by now */
            lua_pushvalue(L, -1);
            lua_rawseti(L, 2, (lua_Integer)i + 1);
        }
        lua_pop(L, 2); /* the lists keep them */
    }
    fields[count] = (LogField){NULL, NULL, false};
    if (!log_set_common(fields))
        return luaL_error(L, "not enough memory");
    return 0;
}

void bind_output_register(lua_State *L)
{
    luaL_setfuncs(L,
                  ((luaL_Reg[]){{"keep_output", core_keep_output},
                                {"append_output", core_append_output},
                                {"take_output", core_take_output},
                                {"log_common", core_log_common},
                                {NULL, NULL}}),
                  0);
}
