#include "bind/stream.h"

#include "bind/args.h"
#include "bind/result.h"
#include "bind/session.h"

#include <lauxlib.h>

static const char ROWS_TNAME[] = "lockkeeper.Rows";
static const char COPY_TNAME[] = "lockkeeper.Copy";

/* ---- rows ------------------------------------------------------------------------------------ */

typedef struct {
    Session *session; /* NULL once it has ended */
    uint64_t use;     /* the session's, while it goes on */
    int count;        /* of columns; -1 until they are known */
} Rows;

/* User values: the session; what it knows of types; of the columns, their types and names. */
enum { ROWS_SESSION = 1, ROWS_KNOWN, ROWS_TYPES, ROWS_NAMES };

/* Push what is known of the columns, which is read from the first row. */
static Columns push_columns(lua_State *L, Rows *rows, const PGresult *row)
{
    int types;

    if (rows->count < 0) {
        lua_getiuservalue(L, 1, ROWS_KNOWN);
        columns_push(L, rows->session, lua_gettop(L), row);
        lua_setiuservalue(L, 1, ROWS_NAMES);
        lua_setiuservalue(L, 1, ROWS_TYPES);
        rows->count = PQnfields(row);
    }
    lua_getiuservalue(L, 1, ROWS_TYPES);
    types = lua_gettop(L);
    lua_getiuservalue(L, 1, ROWS_NAMES);
    return columns_at(L, types, rows->count);
}

/* The next row, or nil: what the for loop calls. */
static int rows_next(lua_State *L)
{
    Rows *rows = luaL_checkudata(L, 1, ROWS_TNAME);
    Session *session = rows->session;
    PGresult **row;
    Columns columns;
    bool done;
    Error err;

    lua_settop(L, 1);
    if (session == NULL)
        return 0;
    if (!session_is_in_use(session, rows->use)) {
        rows->session = NULL;
        args_usage(L, "these rows ended with their transaction or their connection");
    }
    row = result_push(L);
    *row = session_stream_next(session, &done, &err);
    if (*row == NULL) {
        rows->session = NULL;
        return done && !session_owes(session, &err) ? 0 : args_raise(L, &err);
    }
    columns = push_columns(L, rows, *row);
    columns_push_row(L, &columns, *row, 0);
    result_clear(row);
    return 1;
}

static int rows_close(lua_State *L)
{
    Rows *rows = luaL_checkudata(L, 1, ROWS_TNAME);
    Session *session = rows->session;

    rows->session = NULL;
    if (session != NULL && session_is_in_use(session, rows->use))
        session_abandon(session);
    return 0;
}

/*
 * for row in db:rows(sql, …): one row at a time. The statement is described first: where it has
 * arrays of a user's own types, their elements are asked for before rows begin to come.
 */
int stream_rows(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    Statement statement;
    PGresult **description;
    Rows *rows;
    Error err;

    luaL_checkstack(L, lua_gettop(L) + 20, "too many parameters");
    statement = bind_session_statement(L, session);
    description = result_push(L);
    *description = session_describe(session, &statement, &err);
    if (*description == NULL)
        return args_raise(L, &err);
    rows = lua_newuserdatauv(L, sizeof *rows, ROWS_NAMES);
    *rows = (Rows){.count = -1};
    luaL_setmetatable(L, ROWS_TNAME);
    bind_session_push_object(L, 1);
    lua_setiuservalue(L, -2, ROWS_SESSION);
    bind_session_push_known_types(L, 1);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, -3, ROWS_KNOWN);
    columns_push(L, session, lua_gettop(L), *description);
    result_clear(description);
    lua_pop(L, 3);
    if (!session_stream(session, &statement, &err))
        return args_raise(L, &err);
    rows->session = session;
    rows->use = session->uses;
    lua_pushnil(L);
    lua_pushnil(L);
    lua_pushvalue(L, -3);
    return 4; /* the iterator, no state, no control value, what closes it */
}

/*
 * run_alone(session, sql): one statement, whose rows are dropped as they come. By the extended protocol,
 * so that the server refuses a text with a second statement in it.
 */
static int run_alone(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    Statement statement = {.sql = luaL_checkstring(L, 2)};
    PGresult *row;
    bool done = false;
    Error err;

    if (!session_stream(session, &statement, &err))
        return args_raise(L, &err);
    while ((row = session_stream_next(session, &done, &err)) != NULL)
        PQclear(row);
    if (!done || session_owes(session, &err))
        return args_raise(L, &err);
    return 0;
}

/* ---- COPY ------------------------------------------------------------------------------------ */

typedef struct {
    Session *session; /* NULL once it has ended */
    uint64_t use;     /* the session's, while it goes on */
    char *piece;      /* from libpq, until it is Lua's */
} Copy;

enum { COPY_SESSION = 1 };

static Copy *check_copy(lua_State *L)
{
    Copy *copy = luaL_checkudata(L, 1, COPY_TNAME);

    if (copy->session == NULL || !session_is_in_use(copy->session, copy->use))
        args_usage(L, "the copy is already over");
    return copy;
}

/* copy:put(text) */
static int copy_put(lua_State *L)
{
    Copy *copy = check_copy(L);
    char got[64];
    size_t length;
    const char *data = lua_tolstring(L, 2, &length);
    Error err;

    if (data == NULL) {
        args_describe(L, 2, got, sizeof got);
        args_usage(L, "copy_in: the source must give texts, not %s", got);
    }
    if (!session_copy_put(copy->session, data, length, &err))
        return args_raise(L, &err);
    return 0;
}

/* copy:get(): the next piece, or nil at the end */
static int copy_get(lua_State *L)
{
    Copy *copy = check_copy(L);
    size_t length;
    Error err;

    PQfreemem(copy->piece); /* left by lack of memory */
    copy->piece = session_copy_get(copy->session, &length, &err);
    if (copy->piece == NULL)
        return err.kind == ERROR_NONE ? 0 : args_raise(L, &err);
    lua_pushlstring(L, copy->piece, length);
    PQfreemem(copy->piece);
    copy->piece = NULL;
    return 1;
}

/* copy:finish(): the number of rows */
static int copy_finish(lua_State *L)
{
    Copy *copy = check_copy(L);
    Session *session = copy->session;
    int64_t rows;
    Error err;

    copy->session = NULL;
    if (!session_copy_end(session, NULL, &rows, &err) || session_owes(session, &err))
        return args_raise(L, &err);
    lua_pushinteger(L, rows);
    return 1;
}

/* Left without finish: nothing is copied. */
static int copy_close(lua_State *L)
{
    Copy *copy = luaL_checkudata(L, 1, COPY_TNAME);
    Session *session = copy->session;

    copy->session = NULL;
    PQfreemem(copy->piece);
    copy->piece = NULL;
    if (session != NULL && session_is_in_use(session, copy->use))
        session_abandon(session);
    return 0;
}

static int start_copy(lua_State *L, bool (*start)(Session *, const char *, Error *))
{
    Session *session = bind_session_check(L, 1);
    const char *sql = args_text(L, 2, "the statement");
    Copy *copy = lua_newuserdatauv(L, sizeof *copy, COPY_SESSION);
    Error err;

    *copy = (Copy){.session = NULL};
    luaL_setmetatable(L, COPY_TNAME);
    bind_session_push_object(L, 1);
    lua_setiuservalue(L, -2, COPY_SESSION);
    if (!start(session, sql, &err))
        return args_raise(L, &err);
    copy->session = session;
    copy->use = session->uses;
    return 1;
}

static int start_copy_in(lua_State *L)
{
    return start_copy(L, session_copy_in);
}

static int start_copy_out(lua_State *L)
{
    return start_copy(L, session_copy_out);
}

/* ---- registration ---------------------------------------------------------------------------- */

static void new_closable(lua_State *L, const char *tname, lua_CFunction close)
{
    luaL_newmetatable(L, tname);
    lua_pushcfunction(L, close);
    lua_setfield(L, -2, "__gc");
    lua_pushcfunction(L, close);
    lua_setfield(L, -2, "__close");
}

void stream_register(lua_State *L)
{
    new_closable(L, ROWS_TNAME, rows_close);
    lua_pushcfunction(L, rows_next);
    lua_setfield(L, -2, "__call");
    new_closable(L, COPY_TNAME, copy_close);
    luaL_newlib(L, ((luaL_Reg[]){{"put", copy_put},
                                 {"get", copy_get},
                                 {"finish", copy_finish},
                                 {NULL, NULL}}));
    lua_setfield(L, -2, "__index");
    lua_pop(L, 2);
    luaL_setfuncs(L, ((luaL_Reg[]){{"run_alone", run_alone},
                                   {"start_copy_in", start_copy_in},
                                   {"start_copy_out", start_copy_out},
                                   {NULL, NULL}}), 0);
}
