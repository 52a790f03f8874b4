#include "bind/session.h"

#include "base/duration.h"
#include "base/pqbuffer.h"
#include "bind/args.h"
#include "bind/json.h"
#include "bind/value.h"
#include "pg/quote.h"

#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Registry: name -> session; a weak set of all sessions; sessions that hold locks though dropped. */
static const char NAMED[] = "lockkeeper.sessions.named";
static const char ALL[] = "lockkeeper.sessions.all";
static const char KEPT[] = "lockkeeper.sessions.kept";
static const char DEFAULT_CONNINFO[] = "lockkeeper.conninfo";

static const char RESULT_TNAME[] = "lockkeeper.Result";
static const char BUFFER_TNAME[] = "lockkeeper.Buffer";
static const char ROWS_TNAME[] = "lockkeeper.Rows";
static const char COPY_TNAME[] = "lockkeeper.Copy";

/* User value of a session: the table of element types of its own array types. */
enum { UV_ELEMENTS = 1 };
/* User value of what belongs to a session: the session. */
enum { UV_SESSION = 1 };

static char application_name[64] = "lockkeeper";

void bind_session_application(const char *application)
{
    text_copy(application_name, sizeof application_name, application);
}

void bind_session_default_conninfo(lua_State *L, const char *conninfo)
{
    lua_pushstring(L, conninfo);
    lua_setfield(L, LUA_REGISTRYINDEX, DEFAULT_CONNINFO);
}

/* ---- objects --------------------------------------------------------------------------------- */

typedef struct {
    Session *session; /* NULL before it was made, or after __gc */
} SessionObject;

typedef struct {
    Session *session; /* kept alive by the user value */
    uint64_t serial;
} TransactionObject;

/* What a C function must not lose to an error: cleared by __gc, or at once by the function. */
typedef struct {
    PGresult *result;
} ResultObject;

static ResultObject *new_result(lua_State *L)
{
    ResultObject *object = lua_newuserdatauv(L, sizeof *object, 0);

    object->result = NULL;
    luaL_setmetatable(L, RESULT_TNAME);
    return object;
}

static int result_gc(lua_State *L)
{
    ResultObject *object = luaL_checkudata(L, 1, RESULT_TNAME);

    PQclear(object->result);
    object->result = NULL;
    return 0;
}

typedef struct {
    PQExpBufferData data;
} BufferObject;

static PQExpBuffer new_buffer(lua_State *L)
{
    BufferObject *object = lua_newuserdatauv(L, sizeof *object, 0);

    initPQExpBuffer(&object->data);
    luaL_setmetatable(L, BUFFER_TNAME);
    return &object->data;
}

static int buffer_gc(lua_State *L)
{
    BufferObject *object = luaL_checkudata(L, 1, BUFFER_TNAME);

    termPQExpBuffer(&object->data);
    return 0;
}

/* Push a session object, unopened. */
static Session *new_session(lua_State *L, const char *conninfo, const char *name,
                            PoolerPromise promise)
{
    SessionObject *object = lua_newuserdatauv(L, sizeof *object, 1);

    object->session = NULL;
    luaL_setmetatable(L, SESSION_TNAME);
    lua_newtable(L);
    lua_setiuservalue(L, -2, UV_ELEMENTS);
    object->session = session_new(conninfo, name, application_name, promise);
    if (object->session == NULL)
        luaL_error(L, "not enough memory");
    lua_getfield(L, LUA_REGISTRYINDEX, ALL);
    lua_pushvalue(L, -2);
    lua_pushboolean(L, true);
    lua_rawset(L, -3);
    lua_pop(L, 1);
    return object->session;
}

/*
 * Garbage collection never releases a lock: a session that was dropped while it holds one stays
 * until the state is closed, when keeper_gc, the last finalizer of all, frees it.
 */
static int session_gc(lua_State *L)
{
    SessionObject *object = luaL_checkudata(L, 1, SESSION_TNAME);
    Session *session = object->session;

    if (session == NULL)
        return 0;
    if (session->conn != NULL && !session->lost && session->holds.next != &session->holds) {
        lua_getfield(L, LUA_REGISTRYINDEX, KEPT);
        lua_pushvalue(L, 1);
        lua_pushboolean(L, true);
        lua_rawset(L, -3);
        return 0;
    }
    object->session = NULL;
    session_free(session);
    return 0;
}

static int keeper_gc(lua_State *L)
{
    lua_getfield(L, LUA_REGISTRYINDEX, KEPT);
    lua_pushnil(L);
    while (lua_next(L, -2) != 0) {
        SessionObject *object = lua_touserdata(L, -2);

        session_free(object->session);
        object->session = NULL;
        lua_pop(L, 1);
    }
    return 0;
}

static Session *check_session_object(lua_State *L, int index)
{
    SessionObject *object = luaL_checkudata(L, index, SESSION_TNAME);

    if (object->session == NULL)
        args_usage(L, "the session is closed for good");
    return object->session;
}

static bool is_open(const TransactionObject *tx)
{
    return session_block_is_open(tx->session, tx->serial);
}

/* A method's session: a session, or a transaction that must still be open. */
static Session *check_session(lua_State *L, int index)
{
    TransactionObject *tx = luaL_testudata(L, index, TRANSACTION_TNAME);
    char got[64];

    if (tx != NULL) {
        if (!is_open(tx))
            args_usage(L, "the transaction is already over");
        return tx->session;
    }
    if (luaL_testudata(L, index, SESSION_TNAME) == NULL) {
        args_describe(L, index, got, sizeof got);
        args_usage(L, "a session was expected, not %s (call methods with a colon: db:query(…))",
                   got);
    }
    return check_session_object(L, index);
}

/* Push the session object behind a session or a transaction. */
static void push_session_object(lua_State *L, int index)
{
    if (luaL_testudata(L, index, TRANSACTION_TNAME) != NULL)
        lua_getiuservalue(L, index, UV_SESSION);
    else
        lua_pushvalue(L, index);
}

/* ---- names ----------------------------------------------------------------------------------- */

static void push_default_session(lua_State *L)
{
    const char *conninfo = getenv("DATABASE_URL");

    lua_getfield(L, LUA_REGISTRYINDEX, DEFAULT_CONNINFO);
    if (lua_isstring(L, -1))
        conninfo = lua_tostring(L, -1);
    new_session(L, conninfo == NULL ? "" : conninfo, "default", POOLER_UNKNOWN);
    lua_remove(L, -2);
}

/* Push the session of that name; a usage error names the nearest where there is none. */
static void push_named(lua_State *L, const char *name)
{
    lua_getfield(L, LUA_REGISTRYINDEX, NAMED);
    if (lua_getfield(L, -1, name) == LUA_TNIL) {
        if (strcmp(name, "default") != 0)
            args_usage(L, "there is no session named \"%.100s\": declare it with "
                          "lock.database(name, conninfo)", name);
        lua_pop(L, 1);
        push_default_session(L);
        lua_pushvalue(L, -1);
        lua_setfield(L, -3, name);
    }
    lua_remove(L, -2);
}

static void name_session(lua_State *L, const char *name)
{
    lua_getfield(L, LUA_REGISTRYINDEX, NAMED);
    lua_pushvalue(L, -2);
    lua_setfield(L, -2, name);
    lua_pop(L, 1);
}

Session *bind_session_using(lua_State *L, int index)
{
    Session *session;

    if (lua_isnoneornil(L, index)) {
        push_named(L, "default");
    } else if (lua_type(L, index) == LUA_TSTRING) {
        push_named(L, args_text(L, index, "using"));
    } else {
        session = check_session(L, index);
        push_session_object(L, index);
        return session;
    }
    return check_session_object(L, -1);
}

void bind_session_each(lua_State *L, void (*visit)(Session *session, void *context), void *context)
{
    lua_getfield(L, LUA_REGISTRYINDEX, ALL);
    lua_pushnil(L);
    while (lua_next(L, -2) != 0) {
        SessionObject *object = lua_touserdata(L, -2);

        if (object->session != NULL)
            visit(object->session, context);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

/* ---- connecting ------------------------------------------------------------------------------ */

/* lock.connect { conninfo = …, name = …, pooler = … } */
static int lock_connect(lua_State *L)
{
    static const char *const NAMES[] = {"conninfo", "name", "pooler", NULL};
    const char *conninfo = NULL;
    const char *name = NULL;
    const char *pooler;
    PoolerPromise promise = POOLER_UNKNOWN;
    Session *session;
    Error err;

    lua_settop(L, 1);
    if (args_has_options(L, 1, "connect")) {
        lua_pushnil(L);
        while (lua_next(L, 1) != 0) {
            switch (args_option(L, "connect", NAMES)) {
            case 0:
                conninfo = args_text(L, -1, "connect: conninfo");
                break;
            case 1:
                name = args_text(L, -1, "connect: name");
                break;
            default:
                pooler = args_text(L, -1, "connect: pooler");
                if (strcmp(pooler, "session") != 0)
                    args_usage(L, "connect: pooler can only be \"session\", not \"%.40s\"", pooler);
                promise = POOLER_SESSION;
            }
            lua_pop(L, 1);
        }
    }
    if (conninfo == NULL)
        conninfo = getenv("DATABASE_URL");
    session = new_session(L, conninfo == NULL ? "" : conninfo, name, promise);
    if (!session_open(session, &err))
        return args_raise(L, &err);
    if (name != NULL)
        name_session(L, name);
    return 1;
}

/* lock.database(name, conninfo): declares, connects at first use */
static int lock_database(lua_State *L)
{
    const char *name = args_text(L, 1, "database: the name");
    const char *conninfo = args_text(L, 2, "database: the conninfo");

    lua_settop(L, 2);
    new_session(L, conninfo, name, POOLER_UNKNOWN);
    name_session(L, name);
    return 0;
}

/* session(name): the session of that name; the default one without */
static int lock_session(lua_State *L)
{
    lua_settop(L, 1);
    bind_session_using(L, 1);
    return 1;
}

/* ---- sending --------------------------------------------------------------------------------- */

/* The SQL text at `index`, of any length, without NUL. */
static const char *check_sql(lua_State *L, int index)
{
    return args_text(L, index, "the statement");
}

/*
 * Make the statement at index 2 with the parameters from index 3 on. What it points to stays on
 * the Lua stack.
 */
static Statement check_statement(lua_State *L, Session *session)
{
    Statement statement = {.sql = check_sql(L, 2)};
    ValueParams params;
    Error err;

    if (!value_params(L, 3, &params, &err))
        args_raise(L, &err);
    statement.count = params.count;
    statement.types = params.types;
    statement.values = params.values;
    statement.lengths = params.lengths;
    statement.formats = params.formats;
    if (params.ambiguous) {
        PGresult *description = session_describe(session, &statement, &err);
        Oid *inferred;

        if (description == NULL)
            args_raise(L, &err);
        inferred = params.types; /* the settled parameters need no other types */
        for (int i = 0; i < params.count; i++)
            inferred[i] = PQparamtype(description, i);
        PQclear(description);
        if (!value_params_settle(&params, inferred, &err))
            args_raise(L, &err);
    }
    return statement;
}

/* Run the statement at index 2; its result is left on the stack, in its own object. */
static ResultObject *run_statement(lua_State *L, Session *session)
{
    int parameters = lua_gettop(L) - 2;
    ResultObject *object;
    Statement statement;
    Error err;

    luaL_checkstack(L, parameters + 20, "too many parameters");
    if (parameters > 0) {
        statement = check_statement(L, session);
        object = new_result(L);
        object->result = session_query(session, &statement, WAIT_NORMAL, &err);
    } else {
        object = new_result(L);
        object->result = session_script(session, check_sql(L, 2), &err);
    }
    if (object->result == NULL)
        args_raise(L, &err);
    return object;
}

/* ---- results --------------------------------------------------------------------------------- */

static const char ELEMENTS_SQL[] =
    "SELECT t.typelem FROM pg_catalog.pg_type t WHERE t.oid OPERATOR(pg_catalog.=) $1::pg_catalog.oid"
    " AND t.typcategory OPERATOR(pg_catalog.=) 'A'::pg_catalog.\"char\""
    " AND t.typelem OPERATOR(pg_catalog.<>) 0::pg_catalog.oid";

enum { FIRST_USER_OID = 16384 };

/*
 * The element type of a user's own array type, 0 if it is none; asked once a session. The elements
 * table is at stack index `elements`.
 */
static Oid user_element(lua_State *L, Session *session, int elements, Oid type)
{
    char text[16];
    Oid element = 0;
    PGresult *result;
    Error err;

    if (type < FIRST_USER_OID)
        return 0;
    if (lua_rawgeti(L, elements, (lua_Integer)type) == LUA_TNUMBER) {
        element = (Oid)lua_tointeger(L, -1);
        lua_pop(L, 1);
        return element;
    }
    lua_pop(L, 1);
    if (session->activity != SESSION_FREE || session_transaction(session) == PQTRANS_INERROR)
        return 0;
    snprintf(text, sizeof text, "%u", type);
    result = session_query(
        session,
        &(Statement){
            .sql = ELEMENTS_SQL, .count = 1, .types = (Oid[]){25}, .values = (const char *[]){text}},
        WAIT_NORMAL, &err);
    if (result == NULL)
        args_raise(L, &err);
    if (PQntuples(result) > 0)
        element = (Oid)strtoul(PQgetvalue(result, 0, 0), NULL, 10);
    PQclear(result);
    lua_pushinteger(L, (lua_Integer)element);
    lua_rawseti(L, elements, (lua_Integer)type);
    return element;
}

/* Columns' names and types, made once for all rows. On the stack: names in one table. */
typedef struct {
    int count;
    int names;      /* stack index of the list of names */
    Oid *types;     /* in a userdata on the stack */
    Oid *elements;
} Columns;

/* Push three values: the elements table, the columns' memory, their names. */
static Columns push_columns(lua_State *L, Session *session, int session_index,
                            const PGresult *result)
{
    Columns columns = {.count = PQnfields(result)};
    int elements;

    luaL_checkstack(L, 10, "columns");
    push_session_object(L, session_index);
    lua_getiuservalue(L, -1, UV_ELEMENTS);
    lua_remove(L, -2);
    elements = lua_gettop(L);
    columns.types = lua_newuserdatauv(L, (size_t)columns.count * 2 * sizeof(Oid) + 1, 0);
    columns.elements = columns.types + columns.count;
    lua_createtable(L, columns.count, 0);
    columns.names = lua_gettop(L);
    for (int i = 0; i < columns.count; i++) {
        columns.types[i] = PQftype(result, i);
        columns.elements[i] = user_element(L, session, elements, columns.types[i]);
        lua_pushstring(L, PQfname(result, i));
        lua_rawseti(L, columns.names, i + 1);
    }
    return columns;
}

static void push_field(lua_State *L, const Columns *columns, const PGresult *result, int row,
                       int column)
{
    if (PQgetisnull(result, row, column))
        lua_pushnil(L);
    else
        value_push(L, columns->types[column], columns->elements[column],
                   PQgetvalue(result, row, column), (size_t)PQgetlength(result, row, column));
}

static void push_row(lua_State *L, const Columns *columns, const PGresult *result, int row)
{
    lua_createtable(L, 0, columns->count);
    for (int i = 0; i < columns->count; i++) {
        lua_rawgeti(L, columns->names, i + 1);
        push_field(L, columns, result, row, i);
        lua_rawset(L, -3);
    }
}

/* db:query(sql, …): a list of rows */
static int session_lua_query(lua_State *L)
{
    Session *session = check_session(L, 1);
    ResultObject *object = run_statement(L, session);
    Columns columns = push_columns(L, session, 1, object->result);
    int rows = PQntuples(object->result);

    lua_createtable(L, rows, 0);
    for (int i = 0; i < rows; i++) {
        push_row(L, &columns, object->result, i);
        lua_rawseti(L, -2, i + 1);
    }
    PQclear(object->result);
    object->result = NULL;
    return 1;
}

/* db:one(sql, …): the first row, or nil */
static int session_lua_one(lua_State *L)
{
    Session *session = check_session(L, 1);
    ResultObject *object = run_statement(L, session);
    Columns columns = push_columns(L, session, 1, object->result);

    if (PQntuples(object->result) == 0)
        lua_pushnil(L);
    else
        push_row(L, &columns, object->result, 0);
    PQclear(object->result);
    object->result = NULL;
    return 1;
}

/* db:value(sql, …): the first row's first column, or nil */
static int session_lua_value(lua_State *L)
{
    Session *session = check_session(L, 1);
    ResultObject *object = run_statement(L, session);
    Columns columns = push_columns(L, session, 1, object->result);

    if (PQntuples(object->result) == 0 || columns.count == 0)
        lua_pushnil(L);
    else
        push_field(L, &columns, object->result, 0, 0);
    PQclear(object->result);
    object->result = NULL;
    return 1;
}

/* db:exec(sql, …): the number of rows affected */
static int session_lua_exec(lua_State *L)
{
    Session *session = check_session(L, 1);
    ResultObject *object = run_statement(L, session);

    lua_pushinteger(L, strtoll(PQcmdTuples(object->result), NULL, 10));
    PQclear(object->result);
    object->result = NULL;
    return 1;
}

/* ---- streams --------------------------------------------------------------------------------- */

typedef struct {
    Session *session; /* NULL once it has ended */
    bool started;     /* the columns are known */
} RowsObject;

enum { ROWS_SESSION = 1, ROWS_COLUMNS, ROWS_NAMES, ROWS_VALUES };

/* The next row, or nil: what the for loop calls. */
static int rows_next(lua_State *L)
{
    RowsObject *rows = luaL_checkudata(L, 1, ROWS_TNAME);
    ResultObject *object;
    Columns columns;
    bool done;
    Error err;

    lua_settop(L, 1);
    if (rows->session == NULL)
        return 0;
    object = new_result(L);
    object->result = session_stream_next(rows->session, &done, &err);
    if (object->result == NULL) {
        rows->session = NULL;
        return done ? 0 : args_raise(L, &err);
    }
    columns.count = PQnfields(object->result);
    lua_getiuservalue(L, 1, ROWS_COLUMNS);
    columns.types = lua_touserdata(L, -1);
    columns.elements = columns.types + columns.count;
    lua_getiuservalue(L, 1, ROWS_NAMES);
    columns.names = lua_gettop(L);
    push_row(L, &columns, object->result, 0);
    PQclear(object->result);
    object->result = NULL;
    return 1;
}

static int rows_close(lua_State *L)
{
    RowsObject *rows = luaL_checkudata(L, 1, ROWS_TNAME);
    Session *session = rows->session;

    rows->session = NULL;
    if (session != NULL)
        session_stream_drain(session);
    return 0;
}

/*
 * for row in db:rows(sql, …): one row at a time. The statement is described first, so that the
 * types of its columns are known before rows begin to come.
 */
static int session_lua_rows(lua_State *L)
{
    Session *session = check_session(L, 1);
    Statement statement;
    ResultObject *description;
    RowsObject *rows;
    Columns columns;
    Error err;

    luaL_checkstack(L, lua_gettop(L) + 20, "too many parameters");
    statement = check_statement(L, session);
    description = new_result(L);
    description->result = session_describe(session, &statement, &err);
    if (description->result == NULL)
        return args_raise(L, &err);
    columns = push_columns(L, session, 1, description->result);
    rows = lua_newuserdatauv(L, sizeof *rows, ROWS_NAMES);
    rows->session = NULL;
    luaL_setmetatable(L, ROWS_TNAME);
    push_session_object(L, 1);
    lua_setiuservalue(L, -2, ROWS_SESSION);
    lua_pushvalue(L, columns.names - 1);
    lua_setiuservalue(L, -2, ROWS_COLUMNS);
    lua_pushvalue(L, columns.names);
    lua_setiuservalue(L, -2, ROWS_NAMES);
    if (!session_stream(session, &statement, &err))
        return args_raise(L, &err);
    rows->session = session;
    lua_pushnil(L);
    lua_pushnil(L);
    lua_pushvalue(L, -3);
    return 4; /* the iterator, no state, no control value, what closes it */
}

typedef struct {
    Session *session; /* NULL once it has ended */
} CopyObject;

/* copy:put(text) */
static int copy_put(lua_State *L)
{
    CopyObject *copy = luaL_checkudata(L, 1, COPY_TNAME);
    size_t length;
    const char *data = luaL_checklstring(L, 2, &length);
    Error err;

    if (copy->session == NULL)
        args_usage(L, "the copy is already over");
    if (!session_copy_put(copy->session, data, length, &err))
        return args_raise(L, &err);
    return 0;
}

/* copy:get(): the next piece, or nil at the end */
static int copy_get(lua_State *L)
{
    CopyObject *copy = luaL_checkudata(L, 1, COPY_TNAME);
    BufferObject *object;
    size_t length;
    char *data;
    Error err;

    if (copy->session == NULL)
        args_usage(L, "the copy is already over");
    new_buffer(L);
    object = lua_touserdata(L, -1);
    data = session_copy_get(copy->session, &length, &err);
    if (data == NULL)
        return err.kind == ERROR_NONE ? 0 : args_raise(L, &err);
    resetPQExpBuffer(&object->data);
    appendBinaryPQExpBuffer(&object->data, data, length);
    PQfreemem(data);
    if (PQExpBufferDataBroken(object->data))
        return luaL_error(L, "not enough memory");
    lua_pushlstring(L, object->data.data, length);
    return 1;
}

/* copy:finish(): the number of rows */
static int copy_finish(lua_State *L)
{
    CopyObject *copy = luaL_checkudata(L, 1, COPY_TNAME);
    Session *session = copy->session;
    int64_t rows;
    Error err;

    if (session == NULL)
        args_usage(L, "the copy is already over");
    copy->session = NULL;
    if (!session_copy_end(session, NULL, &rows, &err))
        return args_raise(L, &err);
    lua_pushinteger(L, rows);
    return 1;
}

/* Left without finish: nothing is copied. */
static int copy_close(lua_State *L)
{
    CopyObject *copy = luaL_checkudata(L, 1, COPY_TNAME);
    Session *session = copy->session;
    int64_t rows;
    Error ignored;

    copy->session = NULL;
    if (session != NULL)
        session_copy_end(session, "the copy was left before its end", &rows, &ignored);
    return 0;
}

static int start_copy(lua_State *L, bool (*start)(Session *, const char *, Error *))
{
    Session *session = check_session(L, 1);
    const char *sql = check_sql(L, 2);
    CopyObject *copy = lua_newuserdatauv(L, sizeof *copy, 1);
    Error err;

    copy->session = NULL;
    luaL_setmetatable(L, COPY_TNAME);
    push_session_object(L, 1);
    lua_setiuservalue(L, -2, UV_SESSION);
    if (!start(session, sql, &err))
        return args_raise(L, &err);
    copy->session = session;
    return 1;
}

static int session_lua_start_copy_in(lua_State *L)
{
    return start_copy(L, session_copy_in);
}

static int session_lua_start_copy_out(lua_State *L)
{
    return start_copy(L, session_copy_out);
}

/* ---- text ------------------------------------------------------------------------------------ */

/* db:format(text, …), as PostgreSQL's format() */
static int session_lua_format(lua_State *L)
{
    Session *session = check_session(L, 1);
    int count = lua_gettop(L) - 2;
    size_t length;
    const char *format = luaL_checklstring(L, 2, &length);
    QuoteArgument *args = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *args, 0);
    PQExpBuffer out;
    Error err;

    for (int i = 0; i < count; i++) {
        int type = lua_type(L, i + 3);

        args[i] = (QuoteArgument){NULL, 0};
        if (type == LUA_TSTRING || type == LUA_TNUMBER) /* a number becomes a text where it is */
            args[i].text = lua_tolstring(L, i + 3, &args[i].length);
        else if (type == LUA_TBOOLEAN)
            args[i] = (QuoteArgument){lua_toboolean(L, i + 3) ? "t" : "f", 1};
        else if (type != LUA_TNIL && !(type == LUA_TLIGHTUSERDATA))
            args_usage(L, "format: argument %d is a %s", i + 1, lua_typename(L, type));
    }
    if (!session_open(session, &err))
        return args_raise(L, &err);
    out = new_buffer(L);
    if (!quote_format(out, session->conn, format, length, args, count, &err))
        return args_raise(L, &err);
    if (PQExpBufferBroken(out))
        return luaL_error(L, "not enough memory");
    lua_pushlstring(L, out->data, out->len);
    return 1;
}

/* lock.ident(name), as PostgreSQL's quote_ident() */
static int lock_ident(lua_State *L)
{
    size_t length;
    const char *name;
    PQExpBuffer out;
    Error err;

    args_text(L, 1, "ident: the name");
    name = lua_tolstring(L, 1, &length);
    out = new_buffer(L);
    if (!quote_ident(out, name, length, &err))
        return args_raise(L, &err);
    lua_pushlstring(L, out->data, out->len);
    return 1;
}

/* ---- notifications --------------------------------------------------------------------------- */

static int run_on_channel(lua_State *L, const char *verb)
{
    Session *session = check_session(L, 1);
    const char *channel = args_text(L, 2, "the channel");
    PQExpBuffer sql = new_buffer(L);
    Error err;

    appendPQExpBuffer(sql, "%s ", verb);
    if (!quote_ident(sql, channel, strlen(channel), &err) ||
        !session_run(session, sql->data, WAIT_NORMAL, &err))
        return args_raise(L, &err);
    return 0;
}

static int session_lua_listen(lua_State *L)
{
    return run_on_channel(L, "LISTEN");
}

static int session_lua_unlisten(lua_State *L)
{
    return run_on_channel(L, "UNLISTEN");
}

/* db:notify(channel [, text]) */
static int session_lua_notify(lua_State *L)
{
    Session *session = check_session(L, 1);
    const char *values[2] = {
        args_text(L, 2, "the channel"),
        lua_isnoneornil(L, 3) ? "" : args_text(L, 3, "the notification's text"),
    };
    Error err;

    if (!session_commands(session,
                          &(Statement){.sql = "SELECT pg_catalog.pg_notify($1, $2)",
                                       .count = 2,
                                       .types = (Oid[]){25, 25},
                                       .values = values},
                          1, WAIT_NORMAL, &err))
        return args_raise(L, &err);
    return 0;
}

/* db:wait_notify([timeout]): { channel, payload, pid }, or nil when the time is over */
static int session_lua_wait_notify(lua_State *L)
{
    Session *session = check_session(L, 1);
    int64_t us = lua_isnoneornil(L, 2) ? DURATION_ENDLESS : args_duration(L, 2, "wait_notify");
    PGnotify *notification;
    char channel[64];
    int pid;
    PQExpBuffer payload = new_buffer(L);
    Error err;

    notification = session_notification(session, clock_deadline(us), &err);
    if (notification == NULL)
        return err.kind == ERROR_NONE ? 0 : args_raise(L, &err);
    text_copy(channel, sizeof channel, notification->relname);
    appendPQExpBufferStr(payload, notification->extra);
    pid = notification->be_pid;
    PQfreemem(notification);
    lua_createtable(L, 0, 3);
    lua_pushstring(L, channel);
    lua_setfield(L, -2, "channel");
    lua_pushstring(L, payload->data);
    lua_setfield(L, -2, "payload");
    lua_pushinteger(L, pid);
    lua_setfield(L, -2, "pid");
    return 1;
}

/* ---- transactions ---------------------------------------------------------------------------- */

static const char *isolation_level(lua_State *L, int index)
{
    static const char *const LEVELS[] = {"read committed", "repeatable read", "serializable",
                                         "read uncommitted", NULL};
    const char *level = args_text(L, index, "begin: isolation");
    const char *nearest;

    for (int i = 0; LEVELS[i] != NULL; i++) {
        if (strcasecmp(level, LEVELS[i]) == 0)
            return LEVELS[i];
    }
    nearest = text_nearest(level, LEVELS);
    args_usage(L, "begin: unknown isolation \"%.40s\"%s%s%s", level,
               nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "");
}

/* db:begin [{ isolation = …, read_only = …, deferrable = … }] */
static int session_lua_begin(lua_State *L)
{
    static const char *const NAMES[] = {"isolation", "read_only", "deferrable", NULL};
    Session *session = check_session(L, 1);
    const char *isolation = NULL;
    const char *access = "";
    const char *deferrable = "";
    char options[128];
    TransactionObject *tx;
    Error err;

    lua_settop(L, 2);
    if (args_has_options(L, 2, "begin")) {
        lua_pushnil(L);
        while (lua_next(L, 2) != 0) {
            switch (args_option(L, "begin", NAMES)) {
            case 0:
                isolation = isolation_level(L, -1);
                break;
            case 1:
                access = args_boolean(L, -1, "begin: read_only") ? " READ ONLY" : " READ WRITE";
                break;
            default:
                deferrable =
                    args_boolean(L, -1, "begin: deferrable") ? " DEFERRABLE" : " NOT DEFERRABLE";
            }
            lua_pop(L, 1);
        }
    }
    snprintf(options, sizeof options, "%s%s%s%s", isolation ? "ISOLATION LEVEL " : "",
             isolation ? isolation : "", access, deferrable);
    tx = lua_newuserdatauv(L, sizeof *tx, 1);
    tx->session = session;
    tx->serial = 0;
    luaL_setmetatable(L, TRANSACTION_TNAME);
    push_session_object(L, 1);
    lua_setiuservalue(L, -2, UV_SESSION);
    if (!session_begin(session, options, &tx->serial, &err))
        return args_raise(L, &err);
    return 1;
}

static int end_transaction(lua_State *L, bool (*end)(Session *, uint64_t, Error *))
{
    TransactionObject *tx = luaL_checkudata(L, 1, TRANSACTION_TNAME);
    Error err;

    if (!end(tx->session, tx->serial, &err))
        return args_raise(L, &err);
    return 0;
}

static int transaction_commit(lua_State *L)
{
    return end_transaction(L, session_commit);
}

static int transaction_rollback(lua_State *L)
{
    return end_transaction(L, session_rollback);
}

/* Left without commit: roll back. With an error under way (index 2), that one counts. */
static int transaction_close(lua_State *L)
{
    TransactionObject *tx = luaL_checkudata(L, 1, TRANSACTION_TNAME);
    bool failing = !lua_isnoneornil(L, 2);
    Error err;

    if (!is_open(tx) || session_rollback(tx->session, tx->serial, &err) || failing)
        return 0;
    return args_raise(L, &err);
}

/* ---- the session itself ---------------------------------------------------------------------- */

/* db:ping(): true and the round trip in seconds, or nil and the error */
static int session_lua_ping(lua_State *L)
{
    Session *session = check_session(L, 1);
    int64_t start_us = clock_monotonic_us();
    Error err;

    if (!session_run(session, "SELECT", WAIT_NORMAL, &err))
        return args_fail(L, &err);
    lua_pushboolean(L, true);
    lua_pushnumber(L, (double)(clock_monotonic_us() - start_us) / 1e6);
    return 2;
}

static int session_lua_reconnect(lua_State *L)
{
    Session *session = check_session_object(L, 1);
    Error err;

    if (!session_reconnect(session, &err))
        return args_raise(L, &err);
    lua_settop(L, 1);
    return 1;
}

/* db:close(): ends the connection, and every lock with it; idempotent */
static int session_lua_close(lua_State *L)
{
    SessionObject *object = luaL_checkudata(L, 1, SESSION_TNAME);

    if (object->session == NULL)
        return 0;
    if (object->session->activity == SESSION_BUSY)
        args_usage(L, "the session is in use by another task");
    session_close(object->session);
    return 0;
}

static bool push_property(lua_State *L, Session *session, const char *name)
{
    Error err;

    if (strcmp(name, "name") == 0)
        return lua_pushstring(L, session->name), true;
    if (strcmp(name, "in_transaction") == 0)
        return lua_pushboolean(L, session_transaction(session) != PQTRANS_IDLE), true;
    if (strcmp(name, "pid") != 0 && strcmp(name, "server_version") != 0 &&
        strcmp(name, "in_recovery") != 0 && strcmp(name, "database") != 0)
        return false;
    if (!session_open(session, &err))
        args_raise(L, &err);
    if (strcmp(name, "pid") == 0)
        lua_pushinteger(L, session->pid);
    else if (strcmp(name, "server_version") == 0)
        lua_pushinteger(L, session->server_version);
    else if (strcmp(name, "in_recovery") == 0)
        lua_pushboolean(L, session->in_recovery);
    else
        lua_pushstring(L, PQdb(session->conn));
    return true;
}

/* Methods first (the upvalue), then properties. */
static int session_index(lua_State *L)
{
    lua_settop(L, 2);
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
        return 1;
    if (lua_type(L, 2) == LUA_TSTRING) {
        TransactionObject *tx = luaL_testudata(L, 1, TRANSACTION_TNAME);
        Session *session = tx != NULL ? tx->session : check_session_object(L, 1);

        if (push_property(L, session, lua_tostring(L, 2)))
            return 1;
    }
    lua_pushnil(L);
    return 1;
}

/* A transaction's own methods come before its session's (the second upvalue). */
static int transaction_index(lua_State *L)
{
    lua_settop(L, 2);
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(2)) != LUA_TNIL)
        return 1;
    lua_pop(L, 1);
    return session_index(L);
}

static int session_tostring(lua_State *L)
{
    SessionObject *object = luaL_checkudata(L, 1, SESSION_TNAME);
    Session *session = object->session;

    if (session == NULL || session->conn == NULL)
        lua_pushfstring(L, "session %s (not connected)",
                        session != NULL && session->name != NULL ? session->name : "");
    else if (session->lost)
        lua_pushfstring(L, "session %s (lost)", session->name != NULL ? session->name : "");
    else
        lua_pushfstring(L, "session %s (database %s, pid %d)",
                        session->name != NULL ? session->name : "", PQdb(session->conn),
                        session->pid);
    return 1;
}

static int transaction_tostring(lua_State *L)
{
    TransactionObject *tx = luaL_checkudata(L, 1, TRANSACTION_TNAME);

    lua_pushfstring(L, "transaction (%s)", is_open(tx) ? "open" : "over");
    return 1;
}

/* ---- registration ---------------------------------------------------------------------------- */

static const luaL_Reg SESSION_METHODS[] = {
    {"query", session_lua_query},
    {"one", session_lua_one},
    {"value", session_lua_value},
    {"exec", session_lua_exec},
    {"rows", session_lua_rows},
    {"format", session_lua_format},
    {"listen", session_lua_listen},
    {"unlisten", session_lua_unlisten},
    {"notify", session_lua_notify},
    {"wait_notify", session_lua_wait_notify},
    {"begin", session_lua_begin},
    {"ping", session_lua_ping},
    {"reconnect", session_lua_reconnect},
    {"close", session_lua_close},
    {NULL, NULL},
};

static const luaL_Reg TRANSACTION_METHODS[] = {
    {"commit", transaction_commit},
    {"rollback", transaction_rollback},
    {NULL, NULL},
};

static const luaL_Reg FUNCTIONS[] = {
    {"connect", lock_connect},
    {"database", lock_database},
    {"session", lock_session},
    {"ident", lock_ident},
    {"start_copy_in", session_lua_start_copy_in},
    {"start_copy_out", session_lua_start_copy_out},
    {NULL, NULL},
};

static void register_closable(lua_State *L, const char *tname, lua_CFunction close)
{
    luaL_newmetatable(L, tname);
    lua_pushcfunction(L, close);
    lua_setfield(L, -2, "__gc");
    lua_pushcfunction(L, close);
    lua_setfield(L, -2, "__close");
}

static void register_table(lua_State *L, const char *key, const char *mode)
{
    lua_newtable(L);
    if (mode != NULL) {
        lua_createtable(L, 0, 1);
        lua_pushstring(L, mode);
        lua_setfield(L, -2, "__mode");
        lua_setmetatable(L, -2);
    }
    lua_setfield(L, LUA_REGISTRYINDEX, key);
}

/* Made before every session, so that its finalizer runs after all of theirs. */
static void register_keeper(lua_State *L)
{
    lua_newuserdatauv(L, 1, 0);
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, keeper_gc);
    lua_setfield(L, -2, "__gc");
    lua_setmetatable(L, -2);
    lua_setfield(L, LUA_REGISTRYINDEX, "lockkeeper.sessions.keeper");
}

void bind_session_register(lua_State *L)
{
    register_keeper(L);
    register_table(L, NAMED, NULL);
    register_table(L, ALL, "k");
    register_table(L, KEPT, NULL);

    register_closable(L, RESULT_TNAME, result_gc);
    register_closable(L, BUFFER_TNAME, buffer_gc);
    lua_pop(L, 2);

    register_closable(L, ROWS_TNAME, rows_close);
    lua_pushcfunction(L, rows_next);
    lua_setfield(L, -2, "__call");
    register_closable(L, COPY_TNAME, copy_close);
    luaL_newlib(L, ((luaL_Reg[]){{"put", copy_put},
                                 {"get", copy_get},
                                 {"finish", copy_finish},
                                 {NULL, NULL}}));
    lua_setfield(L, -2, "__index");
    lua_pop(L, 2);

    luaL_setfuncs(L, FUNCTIONS, 0);
    luaL_newlib(L, SESSION_METHODS);

    register_closable(L, SESSION_TNAME, session_gc);
    lua_pushcfunction(L, session_lua_close);
    lua_setfield(L, -2, "__close");
    lua_pushcfunction(L, session_tostring);
    lua_setfield(L, -2, "__tostring");
    lua_pushvalue(L, -2);
    lua_pushcclosure(L, session_index, 1);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);

    luaL_newmetatable(L, TRANSACTION_TNAME);
    lua_pushcfunction(L, transaction_close);
    lua_setfield(L, -2, "__close");
    lua_pushcfunction(L, transaction_tostring);
    lua_setfield(L, -2, "__tostring");
    lua_pushvalue(L, -2);
    luaL_newlib(L, TRANSACTION_METHODS);
    lua_pushcclosure(L, transaction_index, 2);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);

    lua_setfield(L, -2, "session_methods");
}
