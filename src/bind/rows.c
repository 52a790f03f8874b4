#include "bind/rows.h"

#include "bind/args.h"
#include "bind/result.h"
#include "bind/session.h"
#include "bind/value.h"
#include "locks/rows.h"

#include <lauxlib.h>

enum { SESSION = 1, SQL, TIMEOUT, RAISES, FIRST_PARAMETER };

/* Fill in the parameters. What they point to stays on the Lua stack. */
static bool read_parameters(lua_State *L, Session *session, RowsRequest *request, Error *err)
{
    ValueParams params;
    Oid *inferred;
    PGresult *description;

    if (!value_params(L, FIRST_PARAMETER, &params, err))
        return false;
    request->query.count = params.count;
    request->query.types = params.types;
    request->query.values = params.values;
    request->query.lengths = params.lengths;
    request->query.formats = params.formats;
    if (!params.ambiguous)
        return true;
    inferred = lua_newuserdatauv(L, (size_t)params.count * sizeof *inferred, 0);
    description = rows_describe(session, request, err);
    if (description == NULL)
        return false;
    for (int i = 0; i < params.count; i++)
        inferred[i] = PQparamtype(description, i);
    PQclear(description);
    return value_params_settle(&params, inferred, err);
}

static void push_rows(lua_State *L, Session *session, const PGresult *result)
{
    Columns columns;
    int count = PQntuples(result);

    bind_session_push_known_types(L, SESSION);
    columns = columns_push(L, session, lua_gettop(L), result);
    lua_createtable(L, count, 0);
    for (int i = 0; i < count; i++) {
        columns_push_row(L, &columns, result, i);
        lua_rawseti(L, -2, i + 1);
    }
}

/*
 * row_locks(session, sql, timeout | nil, raises, …): the rows of the query, which has its locking
 * clause. Where they can't be had, the error is raised, or given after nil.
 */
static int row_locks(lua_State *L)
{
    RowsRequest request = {.query.unprepared = true};
    Session *session = bind_session_check(L, SESSION);
    PGresult **result;
    Error err;

    luaL_checkstack(L, lua_gettop(L) + 20, "too many parameters");
    request.query.sql = args_text(L, SQL, "row_locks: the query");
    request.has_timeout = !lua_isnil(L, TIMEOUT);
    if (request.has_timeout)
        request.timeout_us = args_duration(L, TIMEOUT, "timeout");

    if (!read_parameters(L, session, &request, &err))
        goto failed;
    result = result_push(L);
    *result = rows_lock(session, &request, &err);
    if (*result == NULL)
        goto failed;
    push_rows(L, session, *result);
    result_clear(result);
    return 1;
failed:
    return error_is_busy(&err) && !lua_toboolean(L, RAISES) ? args_fail(L, &err)
                                                            : args_raise(L, &err);
}

void bind_rows_register(lua_State *L)
{
    lua_pushcfunction(L, row_locks);
    lua_setfield(L, -2, "row_locks");
}
