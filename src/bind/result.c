#include "bind/result.h"

#include "bind/args.h"
#include "bind/value.h"
#include "pg/type.h"

#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>

static const char RESULT_TNAME[] = "lockkeeper.Result";

static int result_gc(lua_State *L)
{
    result_clear(luaL_checkudata(L, 1, RESULT_TNAME));
    return 0;
}

void result_register(lua_State *L)
{
    luaL_newmetatable(L, RESULT_TNAME);
    lua_pushcfunction(L, result_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}

PGresult **result_push(lua_State *L)
{
    PGresult **result = lua_newuserdatauv(L, sizeof(PGresult *), 0);

    *result = NULL;
    luaL_setmetatable(L, RESULT_TNAME);
    return result;
}

void result_clear(PGresult **result)
{
    PQclear(*result);
    *result = NULL;
}

/* ---- columns --------------------------------------------------------------------------------- */

static const char ELEMENTS_SQL[] =
    "SELECT t.typelem FROM pg_catalog.pg_type t WHERE t.oid OPERATOR(pg_catalog.=) $1::pg_catalog.oid"
    " AND t.typcategory OPERATOR(pg_catalog.=) 'A'::pg_catalog.\"char\""
    " AND t.typelem OPERATOR(pg_catalog.<>) 0::pg_catalog.oid";

enum { FIRST_USER_OID = 16384 };

/*
 * The element type of a user's own array type, 0 if it is none; asked once a session. The table of
 * what was asked is at stack index `known`.
 */
static Oid user_element(lua_State *L, Session *session, int known, Oid type)
{
    char text[16];
    Oid element = 0;
    PGresult *result;
    Error err;

    if (type < FIRST_USER_OID)
        return 0;
    if (lua_rawgeti(L, known, (lua_Integer)type) == LUA_TNUMBER) {
        element = (Oid)lua_tointeger(L, -1);
        lua_pop(L, 1);
        return element;
    }
    lua_pop(L, 1);
    if (session->activity != SESSION_FREE || session_transaction(session) == PQTRANS_INERROR)
        return 0;
    snprintf(text, sizeof text, "%u", type);
    result = session_query(session,
                           &(Statement){.sql = ELEMENTS_SQL,
                                        .count = 1,
                                        .types = (Oid[]){TYPE_TEXT},
                                        .values = (const char *[]){text}},
                           WAIT_NORMAL, &err);
    if (result == NULL)
        args_raise(L, &err);
    if (PQntuples(result) > 0)
        element = (Oid)strtoul(PQgetvalue(result, 0, 0), NULL, 10);
    PQclear(result);
    lua_pushinteger(L, (lua_Integer)element);
    lua_rawseti(L, known, (lua_Integer)type);
    return element;
}

Columns columns_at(lua_State *L, int types, int count)
{
    const Oid *memory = lua_touserdata(L, types);

    return (Columns){
        .count = count,
        .names = types + 1,
        .types = memory,
        .elements = memory + count,
    };
}

Columns columns_push(lua_State *L, Session *session, int known, const PGresult *result)
{
    int count = PQnfields(result);
    Oid *types;
    Columns columns;

    luaL_checkstack(L, 10, "columns");
    types = lua_newuserdatauv(L, (size_t)count * 2 * sizeof *types + 1, 0);
    lua_createtable(L, count, 0);
    columns = columns_at(L, lua_gettop(L) - 1, count);
    for (int i = 0; i < count; i++) {
        types[i] = PQftype(result, i);
        types[count + i] = user_element(L, session, known, types[i]);
        lua_pushstring(L, PQfname(result, i));
        lua_rawseti(L, columns.names, i + 1);
    }
    return columns;
}

void columns_push_field(lua_State *L, const Columns *columns, const PGresult *result, int row,
                        int column)
{
    if (PQgetisnull(result, row, column))
        lua_pushnil(L);
    else
        value_push(L, columns->types[column], columns->elements[column],
                   PQgetvalue(result, row, column), (size_t)PQgetlength(result, row, column));
}

void columns_push_row(lua_State *L, const Columns *columns, const PGresult *result, int row)
{
    lua_createtable(L, 0, columns->count);
    for (int i = 0; i < columns->count; i++) {
        lua_rawgeti(L, columns->names, i + 1);
        columns_push_field(L, columns, result, row, i);
        lua_rawset(L, -3);
    }
}
