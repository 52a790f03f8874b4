#include "bind/buffer.h"

#include <lauxlib.h>

static const char BUFFER_TNAME[] = "lockkeeper.buffer";

static int buffer_gc(lua_State *L)
{
    /* Leaves it valid: data is then libpq's static empty text, which it never frees. */
    termPQExpBuffer(luaL_checkudata(L, 1, BUFFER_TNAME));
    return 0;
}

static void push_metatable(lua_State *L)
{
    luaL_newmetatable(L, BUFFER_TNAME);
    lua_pushcfunction(L, buffer_gc); /* always: memory may have run out here the first time */
    lua_setfield(L, -2, "__gc");
}

PQExpBuffer buffer_push(lua_State *L)
{
    PQExpBuffer buffer;

    luaL_checkstack(L, 4, NULL);
    push_metatable(L); /* first, as it can raise */
    buffer = lua_newuserdatauv(L, sizeof *buffer, 0);
    lua_rotate(L, -2, 1);
    *buffer = (PQExpBufferData){0};
    termPQExpBuffer(buffer); /* valid, and without memory until it is Lua's to free */
    lua_setmetatable(L, -2);
    initPQExpBuffer(buffer);
    return buffer;
}

void buffer_to_string(lua_State *L)
{
    PQExpBuffer buffer = lua_touserdata(L, -1);

    if (PQExpBufferBroken(buffer))
        luaL_error(L, "not enough memory");
    lua_pushlstring(L, buffer->data, buffer->len);
    lua_insert(L, -2);
    buffer_pop(L);
}

void buffer_pop(lua_State *L)
{
    termPQExpBuffer(lua_touserdata(L, -1));
    lua_pop(L, 1);
}
