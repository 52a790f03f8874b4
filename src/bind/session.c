#include "bind/session.h"

#include "base/duration.h"
#include "bind/args.h"
#include "bind/buffer.h"
#include "bind/number.h"
#include "bind/result.h"
#include "bind/stream.h"
#include "bind/task.h"
#include "bind/value.h"
#include "pg/quote.h"
#include "pg/type.h"

#include <lauxlib.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Registry: name -> session; a weak set of all sessions; sessions that hold locks though dropped. */
static const char NAMED[] = "lockkeeper.sessions.named";
static const char ALL[] = "lockkeeper.sessions.all";
static const char KEPT[] = "lockkeeper.sessions.kept";
static const char DEFAULT_CONNINFO[] = "lockkeeper.conninfo";
static const char ON_CLOSE[] = "lockkeeper.sessions.on_close"; /* a function that is told which */

static const char DEFAULT_NAME[] = "default";

static const char SESSION[] = "lockkeeper.Session";
static const char TRANSACTION[] = "lockkeeper.Transaction";

/* User value of a session: the element types of a user's own array types. */
enum { UV_KNOWN_TYPES = 1 };
/* User value of what belongs to a session: the session. */
enum { UV_SESSION = 1 };

static char application_name[64] = "lockkeeper";

void bind_session_application(const char *application)
{
    text_copy(application_name, sizeof application_name, application);
}

const char *bind_session_application_name(void)
{
    return application_name;
}

void bind_session_default_conninfo(lua_State *L, const char *conninfo)
{
    lua_pushstring(L, conninfo);
    lua_setfield(L, LUA_REGISTRYINDEX, DEFAULT_CONNINFO);
}

/* ---- objects --------------------------------------------------------------------------------- */

typedef struct {
    const char *kind;
    Session *session; /* NULL before it was made, or after __gc */
    bool closed;      /* by close(): only reconnect() opens it again */
    bool kept;        /* a job runs on it: close() and reconnect() are refused */
    int lent_to;      /* of the task that has it by name (task_session_finder); else LUA_NOREF */
} SessionObject;

typedef struct {
    const char *kind;
    Session *session; /* kept alive by the user value */
    uint64_t serial;
} TransactionObject;

/* Push a session object, unopened. */
static Session *new_session(lua_State *L, const char *conninfo, const char *name,
                            PoolerPromise promise)
{
    SessionObject *object = lua_newuserdatauv(L, sizeof *object, 1);

    *object = (SessionObject){.session = NULL, .lent_to = LUA_NOREF};
    args_set_kind(L, SESSION);
    lua_newtable(L);
    lua_setiuservalue(L, -2, UV_KNOWN_TYPES);
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
    SessionObject *object = luaL_checkudata(L, 1, SESSION);
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

static Session *usable_session(lua_State *L, const SessionObject *object)
{
    if (object->session == NULL || object->closed)
        args_usage(L, "the session is closed");
    return object->session;
}

static Session *check_session_object(lua_State *L, int index)
{
    return usable_session(L, luaL_checkudata(L, index, SESSION));
}

static bool is_open(const TransactionObject *tx)
{
    return session_block_is_open(tx->session, tx->serial);
}

Session *bind_session_check(lua_State *L, int index)
{
    SessionObject *object = args_to_kind(L, index, SESSION);
    TransactionObject *tx;
    char got[64];

    if (object != NULL)
        return usable_session(L, object);
    tx = args_to_kind(L, index, TRANSACTION);
    if (tx == NULL) {
        args_describe(L, index, got, sizeof got);
        args_usage(L, "a session was expected, not %s (call methods with a colon: db:query(…))",
                   got);
    }
    if (!is_open(tx))
        args_usage(L, "the transaction is already over");
    return tx->session;
}

void bind_session_push_object(lua_State *L, int index)
{
    if (args_to_kind(L, index, TRANSACTION) != NULL)
        lua_getiuservalue(L, index, UV_SESSION);
    else
        lua_pushvalue(L, index);
}

void bind_session_push_known_types(lua_State *L, int index)
{
    bind_session_push_object(L, index);
    lua_getiuservalue(L, -1, UV_KNOWN_TYPES);
    lua_remove(L, -2);
}

/* The session object at `index`, or the one of the transaction there; it may be closed. */
static SessionObject *any_session_object(lua_State *L, int index)
{
    SessionObject *object;

    if (args_to_kind(L, index, TRANSACTION) == NULL)
        return luaL_checkudata(L, index, SESSION);
    lua_getiuservalue(L, index, UV_SESSION);
    object = lua_touserdata(L, -1);
    lua_pop(L, 1); /* the transaction keeps it */
    return object;
}

/* ---- names ----------------------------------------------------------------------------------- */

/* Where a session that says nothing else connects to. Valid while nothing sets it anew. */
static const char *default_conninfo(lua_State *L)
{
    const char *conninfo = getenv("DATABASE_URL");

    if (lua_getfield(L, LUA_REGISTRYINDEX, DEFAULT_CONNINFO) == LUA_TSTRING)
        conninfo = lua_tostring(L, -1); /* kept by the registry */
    lua_pop(L, 1);
    return conninfo == NULL ? "" : conninfo;
}

/* Push the object of the name at `index`; the default one is made where there is none. */
static void push_named(lua_State *L, int index)
{
    const char *name = args_text(L, index, "using");
    char got[64];

    lua_getfield(L, LUA_REGISTRYINDEX, NAMED);
    if (lua_getfield(L, -1, name) == LUA_TNIL) {
        if (strcmp(name, DEFAULT_NAME) != 0) {
            args_describe(L, index, got, sizeof got);
            args_usage(L, "there is no session named %s: declare it with "
                          "lock.database(name, conninfo)", got);
        }
        lua_pop(L, 1);
        new_session(L, default_conninfo(L), name, POOLER_UNKNOWN);
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

/* Push what the name at `index` stands for: in a task, a session of its own. */
static void push_by_name(lua_State *L, int index)
{
    int finder = task_session_finder();

    if (finder == LUA_NOREF) {
        push_named(L, index);
        return;
    }
    lua_rawgeti(L, LUA_REGISTRYINDEX, finder);
    lua_pushvalue(L, index);
    lua_call(L, 1, 1);
}

/*
 * borrowed_session(name): a new session from the recipe that the named one is, or the one given
 * (index 2) from the group's idle ones; this task's until it gives it back
 */
static int core_borrowed_session(lua_State *L)
{
    SessionObject *object;

    lua_settop(L, 2);
    if (lua_isnil(L, 2)) {
        push_named(L, 1);
        object = luaL_checkudata(L, 3, SESSION);
        if (object->session == NULL)
            args_usage(L, "the session is closed");
        new_session(L, object->session->conninfo, object->session->name,
                    object->session->promise);
    }
    object = luaL_checkudata(L, -1, SESSION);
    object->lent_to = task_session_finder();
    return 1;
}

/* name_session(name, session | nil): that name's from now on; returns the one it was, or nil */
static int core_name_session(lua_State *L)
{
    args_text(L, 1, "the name");
    lua_settop(L, 2);
    if (!lua_isnil(L, 2))
        luaL_checkudata(L, 2, SESSION);
    lua_getfield(L, LUA_REGISTRYINDEX, NAMED);
    lua_pushvalue(L, 1);
    lua_gettable(L, -2);
    lua_insert(L, 1);
    lua_insert(L, 2);
    lua_rawset(L, 2);
    lua_settop(L, 1);
    return 1;
}

/* connected_sessions(): a set of those that are, without those that other tasks have by name */
static int core_connected_sessions(lua_State *L)
{
    int finder = task_session_finder();

    lua_newtable(L);
    lua_getfield(L, LUA_REGISTRYINDEX, ALL);
    for (lua_pushnil(L); lua_next(L, -2) != 0; lua_pop(L, 1)) {
        const SessionObject *object = lua_touserdata(L, -2);

        if (object->session == NULL || object->session->conn == NULL ||
            (object->lent_to != LUA_NOREF && object->lent_to != finder))
            continue;
        lua_pushvalue(L, -2);
        lua_pushboolean(L, true);
        lua_rawset(L, -6);
    }
    lua_pop(L, 1);
    return 1;
}

/* keep_session(session, kept): may a script close it? */
static int core_keep_session(lua_State *L)
{
    SessionObject *object = luaL_checkudata(L, 1, SESSION);

    object->kept = lua_toboolean(L, 2);
    return 0;
}

static void refuse_kept(lua_State *L, const SessionObject *object, const char *verb)
{
    Error err;

    if (!object->kept)
        return;
    error_usage(&err, "the job's session can't be %s inside the job: the job's locks are on it",
                verb);
    error_hint(&err, "lock.connect gives a session of its own.");
    args_raise(L, &err);
}

/* prepare_at_once(session): its statements are prepared when they are sent for the first time */
static int core_prepare_at_once(lua_State *L)
{
    bind_session_check(L, 1)->cache.eager = true;
    return 0;
}

/* is_clean(session): has its user left nothing open or held on it? */
static int core_is_clean(lua_State *L)
{
    const SessionObject *object = luaL_checkudata(L, 1, SESSION);
    const Session *session = object->session;

    lua_pushboolean(L, session != NULL && !object->closed && !session->lost &&
                           session->activity == SESSION_FREE &&
                           session->holds.next == &session->holds &&
                           session_transaction(session) == PQTRANS_IDLE);
    return 1;
}

/* renew(session): see session_renew; false: something is left on it */
static int core_renew(lua_State *L)
{
    bool renewed;
    Error err;

    if (!session_renew(bind_session_check(L, 1), &renewed, &err))
        return args_raise(L, &err);
    lua_pushboolean(L, renewed);
    return 1;
}

Session *bind_session_using(lua_State *L, int index)
{
    Session *session;

    if (lua_isnoneornil(L, index)) {
        lua_pushstring(L, DEFAULT_NAME);
        push_by_name(L, lua_gettop(L));
        lua_remove(L, -2);
    } else if (lua_type(L, index) == LUA_TSTRING) {
        push_by_name(L, index);
    } else {
        session = bind_session_check(L, index);
        bind_session_push_object(L, index);
        return session;
    }
    return check_session_object(L, -1);
}

void bind_session_each(lua_State *L, void (*visit)(Session *session, void *context), void *context)
{
    int finder = task_session_finder();

    lua_getfield(L, LUA_REGISTRYINDEX, ALL);
    lua_pushnil(L);
    while (lua_next(L, -2) != 0) {
        SessionObject *object = lua_touserdata(L, -2);

        if (object->session != NULL &&
            (object->lent_to == LUA_NOREF || object->lent_to == finder))
            visit(object->session, context);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

void bind_session_close_lent(lua_State *L)
{
    lua_getfield(L, LUA_REGISTRYINDEX, ALL);
    lua_pushnil(L);
    while (lua_next(L, -2) != 0) {
        SessionObject *object = lua_touserdata(L, -2);

        if (object->session != NULL && object->lent_to != LUA_NOREF) {
            session_close(object->session);
            object->closed = true;
        }
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
    char got[64];
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
                if (strcmp(pooler, "session") != 0) {
                    args_describe(L, -1, got, sizeof got);
                    args_usage(L, "connect: pooler can only be \"session\", not %s", got);
                }
                promise = POOLER_SESSION;
            }
            lua_pop(L, 1);
        }
    }
    session = new_session(L, conninfo == NULL ? default_conninfo(L) : conninfo, name, promise);
    if (!session_open(session, &err))
        return args_raise(L, &err);
    if (name != NULL)
        name_session(L, name);
    return 1;
}

/* beside(session): a new session to where that one connects, not connected yet */
static int core_beside(lua_State *L)
{
    const Session *session = bind_session_check(L, 1);

    new_session(L, session->conninfo, NULL, session->promise);
    return 1;
}

/* backend_pid(session): the server's process, or nil where it is not connected; never connects */
static int core_backend_pid(lua_State *L)
{
    const SessionObject *object;

    lua_settop(L, 1);
    object = any_session_object(L, 1);
    if (object->session == NULL || object->session->lost || object->session->pid == 0)
        lua_pushnil(L);
    else
        lua_pushinteger(L, object->session->pid);
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

Statement bind_session_statement(lua_State *L, Session *session)
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
        Oid *inferred = lua_newuserdatauv(L, (size_t)params.count * sizeof *inferred, 0);
        PGresult *description = session_describe(session, &statement, &err);

        if (description == NULL)
            args_raise(L, &err);
        for (int i = 0; i < params.count; i++)
            inferred[i] = PQparamtype(description, i);
        PQclear(description);
        if (!value_params_settle(&params, inferred, &err))
            args_raise(L, &err);
    }
    return statement;
}

/* Run the statement at index 2; its result is left on the stack, in its own object. */
static PGresult **run_statement(lua_State *L, Session *session)
{
    int parameters = lua_gettop(L) - 2;
    PGresult **result;
    Statement statement;
    Error err;

    check_sql(L, 2);
    luaL_checkstack(L, parameters + 20, "too many parameters");
    if (parameters > 0) {
        statement = bind_session_statement(L, session);
        result = result_push(L);
        *result = session_query(session, &statement, WAIT_NORMAL, &err);
    } else {
        result = result_push(L);
        *result = session_script(session, check_sql(L, 2), &err);
    }
    if (*result == NULL || session_owes(session, &err))
        args_raise(L, &err);
    return result;
}

/* ---- results --------------------------------------------------------------------------------- */

static Columns push_columns(lua_State *L, Session *session, const PGresult *result)
{
    bind_session_push_known_types(L, 1);
    return columns_push(L, session, lua_gettop(L), result);
}

/* db:query(sql, …): a list of rows */
static int session_lua_query(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    PGresult **result = run_statement(L, session);
    Columns columns = push_columns(L, session, *result);
    int rows = PQntuples(*result);

    lua_createtable(L, rows, 0);
    for (int i = 0; i < rows; i++) {
        columns_push_row(L, &columns, *result, i);
        lua_rawseti(L, -2, i + 1);
    }
    result_clear(result);
    return 1;
}

/* db:one(sql, …): the first row, or nil */
static int session_lua_one(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    PGresult **result = run_statement(L, session);
    Columns columns = push_columns(L, session, *result);

    if (PQntuples(*result) == 0)
        lua_pushnil(L);
    else
        columns_push_row(L, &columns, *result, 0);
    result_clear(result);
    return 1;
}

/* db:value(sql, …): the first row's first column, or nil */
static int session_lua_value(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    PGresult **result = run_statement(L, session);
    Columns columns = push_columns(L, session, *result);

    if (PQntuples(*result) == 0 || columns.count == 0)
        lua_pushnil(L);
    else
        columns_push_field(L, &columns, *result, 0, 0);
    result_clear(result);
    return 1;
}

/* db:exec(sql, …): the number of rows affected */
static int session_lua_exec(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    PGresult **result = run_statement(L, session);

    lua_pushinteger(L, strtoll(PQcmdTuples(*result), NULL, 10));
    result_clear(result);
    return 1;
}

/* ---- text ------------------------------------------------------------------------------------ */

/* Argument `i` of format at `index`; a number is made a text there. */
static QuoteArgument format_argument(lua_State *L, int index, int i)
{
    QuoteArgument argument = {NULL, 0};
    char text[NUMBER_SIZE];

    switch (lua_type(L, index)) {
    case LUA_TNUMBER:
        if (!lua_isinteger(L, index) && isfinite(lua_tonumber(L, index))) {
            number_text(lua_tonumber(L, index), text);
            lua_pushstring(L, text);
            lua_replace(L, index);
        }
        /* fall through */
    case LUA_TSTRING:
        argument.text = lua_tolstring(L, index, &argument.length);
        break;
    case LUA_TBOOLEAN:
        argument = (QuoteArgument){lua_toboolean(L, index) ? "t" : "f", 1};
        break;
    case LUA_TNIL:
    case LUA_TLIGHTUSERDATA: /* lock.null */
        break;
    default:
        args_usage(L, "format: argument %d is a %s", i, luaL_typename(L, index));
    }
    return argument;
}

/* db:format(text, …), as PostgreSQL's format() */
static int session_lua_format(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    const char *format = args_text(L, 2, "the format");
    int count = lua_gettop(L) - 2;
    QuoteArgument *args = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *args, 0);
    PQExpBuffer out;
    Error err;

    for (int i = 0; i < count; i++)
        args[i] = format_argument(L, i + 3, i + 1);
    if (!session_open(session, &err))
        return args_raise(L, &err);
    out = buffer_push(L);
    if (!quote_format(out, session->conn, format, strlen(format), args, count, &err))
        return args_raise(L, &err);
    buffer_to_string(L);
    return 1;
}

/* lock.ident(name), as PostgreSQL's quote_ident() */
static int lock_ident(lua_State *L)
{
    const char *name = args_text(L, 1, "ident: the name");
    PQExpBuffer out = buffer_push(L);
    Error err;

    if (!quote_ident(out, name, strlen(name), &err))
        return args_raise(L, &err);
    buffer_to_string(L);
    return 1;
}

/* ---- notifications --------------------------------------------------------------------------- */

static int run_on_channel(lua_State *L, const char *verb)
{
    Session *session = bind_session_check(L, 1);
    const char *channel = args_text(L, 2, "the channel");
    PQExpBuffer sql = buffer_push(L);
    Error err;

    appendPQExpBuffer(sql, "%s ", verb);
    if (!quote_ident(sql, channel, strlen(channel), &err) ||
        !session_run(session, sql->data, WAIT_NORMAL, &err))
        return args_raise(L, &err);
    return 0;
}

/* db:listen(channel) */
static int session_lua_listen(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    Error err;

    if (!session_open(session, &err))
        return args_raise(L, &err);
    if (!session_keeps_state(session)) {
        error_usage(&err, "LISTEN is refused here: a pooler stands between, which may give the "
                          "session, and what it would hear, to another client");
        error_hint(&err, "Connect to PostgreSQL itself, or say pooler = \"session\" if the pooler "
                         "keeps a session for a client.");
        return args_raise(L, &err);
    }
    return run_on_channel(L, "LISTEN");
}

/* db:unlisten(channel) */
static int session_lua_unlisten(lua_State *L)
{
    return run_on_channel(L, "UNLISTEN");
}

/* db:notify(channel [, text]) */
static int session_lua_notify(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    const char *values[2] = {
        args_text(L, 2, "the channel"),
        lua_isnoneornil(L, 3) ? "" : args_text(L, 3, "the notification's text"),
    };
    Error err;

    if (!session_commands(session,
                          &(Statement){.sql = "SELECT pg_catalog.pg_notify($1, $2)",
                                       .count = 2,
                                       .types = (Oid[]){TYPE_TEXT, TYPE_TEXT},
                                       .values = values},
                          1, WAIT_NORMAL, &err))
        return args_raise(L, &err);
    return 0;
}

/* The next one until then: { channel, payload, pid }, or nil */
static int push_notification(lua_State *L, Session *session, int64_t deadline_us)
{
    PQExpBuffer payload = buffer_push(L);
    PGnotify *notification;
    char channel[64]; /* NAMEDATALEN */
    int pid;
    Error err;

    if (!session_settle(session, &err) || session_owes(session, &err))
        return args_raise(L, &err);
    notification = session_notification(session, deadline_us, &err);
    if (notification == NULL) {
        if (err.kind != ERROR_NONE)
            return args_raise(L, &err);
        lua_pushnil(L);
        return 1;
    }
    text_copy(channel, sizeof channel, notification->relname);
    appendPQExpBufferStr(payload, notification->extra);
    pid = notification->be_pid;
    PQfreemem(notification);
    buffer_to_string(L);
    lua_createtable(L, 0, 3);
    lua_insert(L, -2);
    lua_setfield(L, -2, "payload");
    lua_pushstring(L, channel);
    lua_setfield(L, -2, "channel");
    lua_pushinteger(L, pid);
    lua_setfield(L, -2, "pid");
    return 1;
}

/* db:wait_notify([timeout]): a notification, or nil when the time is over */
static int session_lua_wait_notify(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    int64_t us = lua_isnoneornil(L, 2) ? DURATION_ENDLESS : args_duration(L, 2, "wait_notify");

    return push_notification(L, session, clock_deadline(us));
}

/* db:poll(): a notification that has arrived, or nil; notices a session that has ended */
static int session_lua_poll(lua_State *L)
{
    return push_notification(L, bind_session_check(L, 1), 0);
}

/* db:fd(): the descriptor of its socket, for another event loop: when it is readable, db:poll() */
static int session_lua_fd(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    Error err;

    if (!session_open(session, &err))
        return args_raise(L, &err);
    lua_pushinteger(L, PQsocket(session->conn));
    return 1;
}

/* ---- transactions ---------------------------------------------------------------------------- */

static const char *isolation_level(lua_State *L, int index)
{
    static const char *const LEVELS[] = {"read committed", "repeatable read", "serializable",
                                         "read uncommitted", NULL};
    const char *level = args_text(L, index, "begin: isolation");
    const char *nearest;
    char got[64];

    for (int i = 0; LEVELS[i] != NULL; i++) {
        if (strcasecmp(level, LEVELS[i]) == 0)
            return LEVELS[i];
    }
    nearest = text_nearest(level, LEVELS);
    args_describe(L, index, got, sizeof got);
    args_usage(L, "begin: unknown isolation %s%s%s%s", got,
               nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "");
}

/* db:begin [{ isolation = …, read_only = …, deferrable = … }] */
static int session_lua_begin(lua_State *L)
{
    static const char *const NAMES[] = {"isolation", "read_only", "deferrable", NULL};
    Session *session = bind_session_check(L, 1);
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
    args_set_kind(L, TRANSACTION);
    bind_session_push_object(L, 1);
    lua_setiuservalue(L, -2, UV_SESSION);
    if (!session_begin(session, options, &tx->serial, &err))
        return args_raise(L, &err);
    return 1;
}

static int end_transaction(lua_State *L, bool (*end)(Session *, uint64_t, Error *))
{
    TransactionObject *tx = luaL_checkudata(L, 1, TRANSACTION);
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
    TransactionObject *tx = luaL_checkudata(L, 1, TRANSACTION);
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
    Session *session = bind_session_check(L, 1);
    int64_t start_us = clock_monotonic_us();
    Error err;

    if (!session_run(session, "SELECT", WAIT_NORMAL, &err) || session_owes(session, &err))
        return args_fail(L, &err);
    lua_pushboolean(L, true);
    lua_pushnumber(L, (double)(clock_monotonic_us() - start_us) / 1e6);
    return 2;
}

/* db:reconnect(): ends the connection, if there is one, and opens it again; returns the session */
static int session_lua_reconnect(lua_State *L)
{
    SessionObject *object = any_session_object(L, 1);
    Error err;

    if (object->session == NULL)
        args_usage(L, "the session is closed");
    refuse_kept(L, object, "connected again");
    if (!session_reconnect(object->session, &err))
        return args_raise(L, &err);
    object->closed = false;
    lua_settop(L, 1);
    return 1;
}

/* on_close(fn): fn(session) is called before a session is closed; only one */
static int core_on_close(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    lua_setfield(L, LUA_REGISTRYINDEX, ON_CLOSE);
    return 0;
}

/* The session, or transaction, at index 1 is about to close. */
static void tell_closing(lua_State *L)
{
    if (lua_getfield(L, LUA_REGISTRYINDEX, ON_CLOSE) == LUA_TFUNCTION) {
        bind_session_push_object(L, 1);
        lua_call(L, 1, 0);
    } else {
        lua_pop(L, 1);
    }
}

/* db:close(): ends the connection, and every lock with it; idempotent. Raises what is still owed. */
static int session_lua_close(lua_State *L)
{
    SessionObject *object = any_session_object(L, 1);
    bool failing = !lua_isnoneornil(L, 2); /* as __close */
    bool owes;
    Error err;

    if (object->session == NULL || object->closed)
        return 0;
    refuse_kept(L, object, "closed");
    if (object->session->activity == SESSION_BUSY)
        args_usage(L, "the session is in use by another task");
    tell_closing(L);
    session_settle(object->session, &err);
    owes = !failing && session_owes(object->session, &err);
    session_close(object->session);
    object->closed = true;
    return owes ? args_raise(L, &err) : 0;
}

/* What is known of a session without asking the server; true where that was pushed. */
static bool push_known_property(lua_State *L, const SessionObject *object, const char *name)
{
    const Session *session = object->session;

    if (strcmp(name, "name") == 0)
        lua_pushstring(L, session == NULL ? NULL : session->name);
    else if (strcmp(name, "in_transaction") == 0)
        lua_pushboolean(L, session != NULL && session_transaction(session) != PQTRANS_IDLE);
    else
        return false;
    return true;
}

/* What is known once it is connected. */
static bool push_server_property(lua_State *L, int index, const char *name)
{
    static const char *const NAMES[] = {"pid", "server_version", "in_recovery", "database",
                                        "keeps_state"};
    Session *session;
    size_t which = 0;
    Error err;

    while (which < 5 && strcmp(name, NAMES[which]) != 0)
        which++;
    if (which == 5)
        return false;
    session = check_session_object(L, index);
    if (!session_open(session, &err))
        args_raise(L, &err);
    if (which == 0)
        lua_pushinteger(L, session->pid);
    else if (which == 1)
        lua_pushinteger(L, session->server_version);
    else if (which == 2)
        lua_pushboolean(L, session->in_recovery);
    else if (which == 3)
        lua_pushstring(L, PQdb(session->conn));
    else
        lua_pushboolean(L, session_keeps_state(session));
    return true;
}

/* Methods first (the upvalue), then properties. */
static int session_index(lua_State *L)
{
    lua_settop(L, 2);
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
        return 1;
    lua_settop(L, 2);
    if (lua_type(L, 2) == LUA_TSTRING) {
        bind_session_push_object(L, 1); /* index 3 */
        if (push_known_property(L, any_session_object(L, -1), lua_tostring(L, 2)) ||
            push_server_property(L, 3, lua_tostring(L, 2)))
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

/* session replica (database app, pid 4711) */
static int session_tostring(lua_State *L)
{
    SessionObject *object = luaL_checkudata(L, 1, SESSION);
    Session *session = object->session;
    const char *name = session == NULL || session->name == NULL ? "" : session->name;
    const char *space = name[0] == '\0' ? "" : " ";

    if (session == NULL || object->closed)
        lua_pushfstring(L, "session%s%s (closed)", space, name);
    else if (session->conn == NULL)
        lua_pushfstring(L, "session%s%s (not connected)", space, name);
    else if (session->lost)
        lua_pushfstring(L, "session%s%s (lost)", space, name);
    else
        lua_pushfstring(L, "session%s%s (database %s, pid %d)", space, name, PQdb(session->conn),
                        session->pid);
    return 1;
}

static int transaction_tostring(lua_State *L)
{
    TransactionObject *tx = luaL_checkudata(L, 1, TRANSACTION);

    lua_pushfstring(L, "transaction (%s)", is_open(tx) ? "open" : "over");
    return 1;
}

/* ---- registration ---------------------------------------------------------------------------- */

static const luaL_Reg SESSION_METHODS[] = {
    {"query", session_lua_query},
    {"one", session_lua_one},
    {"value", session_lua_value},
    {"exec", session_lua_exec},
    {"rows", stream_rows},
    {"format", session_lua_format},
    {"listen", session_lua_listen},
    {"unlisten", session_lua_unlisten},
    {"notify", session_lua_notify},
    {"wait_notify", session_lua_wait_notify},
    {"poll", session_lua_poll},
    {"fd", session_lua_fd},
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
    {"beside", core_beside},
    {"on_close", core_on_close},
    {"backend_pid", core_backend_pid},
    {"database", lock_database},
    {"session", lock_session},
    {"borrowed_session", core_borrowed_session},
    {"name_session", core_name_session},
    {"keep_session", core_keep_session},
    {"connected_sessions", core_connected_sessions},
    {"prepare_at_once", core_prepare_at_once},
    {"is_clean", core_is_clean},
    {"renew", core_renew},
    {"ident", lock_ident},
    {NULL, NULL},
};

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

    result_register(L);
    stream_register(L);
    luaL_setfuncs(L, FUNCTIONS, 0);
    luaL_newlib(L, SESSION_METHODS);

    args_new_kind(L, SESSION);
    lua_pushcfunction(L, session_gc);
    lua_setfield(L, -2, "__gc");
    lua_pushcfunction(L, session_lua_close);
    lua_setfield(L, -2, "__close");
    lua_pushcfunction(L, session_tostring);
    lua_setfield(L, -2, "__tostring");
    lua_pushvalue(L, -2);
    lua_pushcclosure(L, session_index, 1);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);

    args_new_kind(L, TRANSACTION);
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
