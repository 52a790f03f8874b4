#include "bind/snapshot.h"

#include "bind/args.h"
#include "bind/buffer.h"
#include "bind/locks.h"
#include "bind/session.h"
#include "locks/blocked.h"
#include "locks/snapshot.h"

#include <lauxlib.h>
#include <stdio.h>
#include <string.h>

static const char LOOK[] = "lockkeeper.Look";

/* Registry: the tables of fields by name. */
static const char FIELDS[] = "lockkeeper.look.fields";
static const char SESSION_FIELD_IDS[] = "lockkeeper.look.session_fields";

/*
 * A row's key of where it is found. Nothing else can have it, and JSON refuses it: a row of which
 * only some fields have been read yet is not taken for a whole one.
 */
static char ROW;

/* What the server was asked, and has said. For lock.locks its `blocked` has no edges. */
typedef struct {
    const char *kind;
    Blocked blocked;
} LookObject;

enum {
    UV_ASK = 1,    /* ask(what, look): asks for "names", "locks" or "lock_names" */
    UV_ACTIVITIES, /* by row of `sessions` from 1, prepared ones from -1 down; their metatable: 0 */
    UV_LOCK_NAMES, /* by key; nil before it was asked for */
    UV_COUNT = 3,
};

/* Which edges a list has, in which order. Sorted when a row's first field is read. */
typedef struct {
    int count;
    bool sorted;
    int edges[];
} Order;

/* Fields of rows, after those of locks. */
enum {
    FIELD_LOCK_NAME = LOCK_FIELDS,
    FIELD_ACTIVITY,
    FIELD_LOCKS_END, /* of blocked rows only: */
    FIELD_BLOCKING_PID = FIELD_LOCKS_END,
    FIELD_BLOCKING_ACTIVITY,
    FIELD_BLOCKING_MODE,
    FIELD_BLOCKED_END,
};

static const char *field_name(int field)
{
    static const char *const NAMES[] = {"lock_name", "activity", "blocking_pid",
                                        "blocking_activity", "blocking_mode"};

    return field < LOCK_FIELDS ? LOCK_FIELD_NAMES[field] : NAMES[field - LOCK_FIELDS];
}

/* ---- looks ----------------------------------------------------------------------------------- */

static int look_gc(lua_State *L)
{
    LookObject *look = lua_touserdata(L, 1);

    blocked_clear(&look->blocked);
    return 0;
}

static LookObject *check_look(lua_State *L, int index)
{
    LookObject *look = args_to_kind(L, index, LOOK);

    if (look == NULL)
        luaL_typeerror(L, index, "look");
    return look;
}

/* Push a look that nothing was asked in yet; its function `ask` is at `index`. */
static LookObject *push_look(lua_State *L, int index)
{
    LookObject *look = lua_newuserdatauv(L, sizeof *look, UV_COUNT);

    *look = (LookObject){.kind = LOOK};
    args_set_kind(L, LOOK);
    lua_pushvalue(L, index);
    lua_setiuservalue(L, -2, UV_ASK);
    lua_newtable(L);
    lua_setiuservalue(L, -2, UV_ACTIVITIES);
    return look;
}

/* look_locks(session, ask): looks at all locks */
static int core_look_locks(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    LookObject *look;
    Error err;

    luaL_checktype(L, 2, LUA_TFUNCTION);
    look = push_look(L, 2);
    if (!snapshot_take(&look->blocked.snapshot, session, &err))
        return args_raise(L, &err);
    return 1;
}

/* Push the list of pids at `index` as PostgreSQL's array. */
static const char *push_pids(lua_State *L, int index)
{
    PQExpBuffer out = buffer_push(L);

    appendPQExpBufferChar(out, '{');
    for (lua_Integer i = 1; lua_rawgeti(L, index, i) != LUA_TNIL; i++) {
        appendPQExpBuffer(out, "%s%d", i == 1 ? "" : ",", (int)luaL_checkinteger(L, -1));
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    appendPQExpBufferChar(out, '}');
    buffer_to_string(L);
    return lua_tostring(L, -1);
}

/* look_blocked(session, ask, pids): looks who is blocked; pids: only these, or nil */
static int core_look_blocked(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    const char *pids = NULL;
    LookObject *look;
    Error err;

    luaL_checktype(L, 2, LUA_TFUNCTION);
    if (!lua_isnoneornil(L, 3)) {
        luaL_checktype(L, 3, LUA_TTABLE);
        pids = push_pids(L, 3);
    }
    look = push_look(L, 2);
    if (!blocked_take(&look->blocked, session, pids, &err))
        return args_raise(L, &err);
    return 1;
}

/* The list of row numbers at `index` as an array, whose memory is left on the stack. */
static int *push_rows(lua_State *L, int index, const Snapshot *snapshot, int *count)
{
    int *rows;

    luaL_checktype(L, index, LUA_TTABLE);
    *count = (int)lua_rawlen(L, index);
    rows = lua_newuserdatauv(L, ((size_t)*count + 1) * sizeof *rows, 0);
    for (int i = 0; i < *count; i++) {
        lua_Integer row;

        lua_rawgeti(L, index, i + 1);
        row = lua_tointeger(L, -1);
        lua_pop(L, 1);
        luaL_argcheck(L, row >= 0 && row < PQntuples(snapshot->locks), index, "no row");
        rows[i] = (int)row;
    }
    return rows;
}

/* look_names(look, session, numbers | nil): asks for the names, of relations those of these rows */
static int core_look_names(lua_State *L)
{
    LookObject *look = check_look(L, 1);
    Snapshot *snapshot = &look->blocked.snapshot;
    Session *session = bind_session_check(L, 2);
    const int *rows = NULL;
    int count = 0;
    bool ok;
    Error err;

    if (!lua_isnoneornil(L, 3))
        rows = push_rows(L, 3, snapshot, &count);
    snapshot_name_only(snapshot, rows, count);
    ok = snapshot_name(snapshot, session, &err);
    snapshot_name_only(snapshot, NULL, 0);
    return ok ? 0 : args_raise(L, &err);
}

/* look_further(look, session): asks for the locks that are waited for */
static int core_look_further(lua_State *L)
{
    LookObject *look = check_look(L, 1);
    Error err;

    if (!look->blocked.looked && !blocked_look(&look->blocked, bind_session_check(L, 2), &err))
        return args_raise(L, &err);
    return 0;
}

/* look_count(look): how many locks */
static int core_look_count(lua_State *L)
{
    lua_pushinteger(L, check_look(L, 1)->blocked.snapshot.count);
    return 1;
}

/* look_facts(look): when it was (epoch seconds), and is there a session that may not be seen? */
static int core_look_facts(lua_State *L)
{
    const Snapshot *snapshot = &check_look(L, 1)->blocked.snapshot;
    Value hidden = {.kind = VALUE_NONE};

    for (int i = 0; i < PQntuples(snapshot->sessions) && hidden.kind == VALUE_NONE; i++)
        snapshot_session(snapshot, i, SESSION_HIDDEN, &hidden);
    lua_pushnumber(L, snapshot->taken_at);
    lua_pushboolean(L, hidden.kind != VALUE_NONE);
    return 2;
}

/* Call ask(what, look) for the look at `index`. */
static void ask_for(lua_State *L, int index, const char *what)
{
    luaL_checkstack(L, 6, NULL);
    lua_getiuservalue(L, index, UV_ASK);
    lua_pushstring(L, what);
    lua_pushvalue(L, index);
    lua_call(L, 2, 0);
}

static void need_names(lua_State *L, int index, LookObject *look)
{
    if (look->blocked.snapshot.named)
        return;
    ask_for(L, index, "names");
    look->blocked.snapshot.named = true; /* as far as they were to be had */
}

static void need_locks(lua_State *L, int index, LookObject *look)
{
    if (look->blocked.looked)
        return;
    ask_for(L, index, "locks");
    if (!look->blocked.looked)
        luaL_error(L, "the locks were not looked at");
}

/* ---- values ---------------------------------------------------------------------------------- */

/* What a key is known by in tables: an integer, or "1,2" for two int4. */
static void push_key_name(lua_State *L, const LockKey *key)
{
    char text[KEY_TEXT_SIZE];

    if (key->pair) {
        key_text(key, text);
        lua_pushstring(L, text);
    } else {
        lua_pushinteger(L, key->key);
    }
}

static void push_value(lua_State *L, const Value *value)
{
    switch (value->kind) {
    case VALUE_NONE:
        lua_pushnil(L);
        break;
    case VALUE_INTEGER:
        lua_pushinteger(L, value->integer);
        break;
    case VALUE_NUMBER:
        lua_pushnumber(L, value->number);
        break;
    case VALUE_BOOLEAN:
        lua_pushboolean(L, value->boolean);
        break;
    case VALUE_TEXT:
        lua_pushstring(L, value->text);
        break;
    case VALUE_KEY:
        bind_locks_push_key(L, &value->key);
        break;
    }
}

/* Push the name of an advisory lock's key, or nil. */
static void push_lock_name(lua_State *L, int index, const Value *key)
{
    if (key->kind != VALUE_KEY) {
        lua_pushnil(L);
        return;
    }
    if (lua_getiuservalue(L, index, UV_LOCK_NAMES) != LUA_TTABLE) {
        lua_pop(L, 1);
        ask_for(L, index, "lock_names");
        if (lua_getiuservalue(L, index, UV_LOCK_NAMES) != LUA_TTABLE) {
            lua_pop(L, 1);
            lua_pushnil(L);
            return;
        }
    }
    push_key_name(L, &key->key);
    lua_rawget(L, -2);
    lua_remove(L, -2);
}

/* ---- activities ------------------------------------------------------------------------------ */

static void push_session_field(lua_State *L, int index, LookObject *look, int row,
                               SessionField field)
{
    Value value;

    if (session_field_is_name(field))
        need_names(L, index, look);
    snapshot_session(&look->blocked.snapshot, row, field, &value);
    push_value(L, &value);
}

/* Where the row at index 1 is found; false where all of it was read already. */
static bool find_row(lua_State *L, int *row)
{
    bool found;

    luaL_checktype(L, 1, LUA_TTABLE);
    found = lua_rawgetp(L, 1, &ROW) == LUA_TNUMBER;
    *row = (int)lua_tointeger(L, -1);
    lua_pop(L, 1);
    return found;
}

/* Push the number of the field that the key at index 2 names, from the table at `names`. */
static bool find_field(lua_State *L, int names, int *field)
{
    bool found;

    lua_pushvalue(L, 2);
    found = lua_rawget(L, names) == LUA_TNUMBER;
    *field = (int)lua_tointeger(L, -1);
    lua_pop(L, 1);
    return found;
}

/* Keep the value on top in the row at index 1, under the key at index 2. */
static int keep_field(lua_State *L)
{
    if (!lua_isnil(L, -1)) {
        lua_pushvalue(L, 2);
        lua_pushvalue(L, -2);
        lua_rawset(L, 1);
    }
    return 1;
}

/* Let the row at index 1 be a table like others, with all that is in it, and return its pairs. */
static int next_field(lua_State *L)
{
    lua_settop(L, 2);
    return lua_next(L, 1) != 0 ? 2 : 0;
}

static int return_pairs(lua_State *L)
{
    lua_pushnil(L);
    lua_rawsetp(L, 1, &ROW);
    lua_pushcfunction(L, next_field);
    lua_pushvalue(L, 1);
    lua_pushnil(L);
    return 3;
}

/* Set a field of the row at index 1 to the value on top, which is popped, unless it has it. */
static void fill_field(lua_State *L, const char *name)
{
    lua_pushstring(L, name);
    lua_pushvalue(L, -1);
    if (lua_rawget(L, 1) != LUA_TNIL) {
        lua_pop(L, 3);
        return;
    }
    lua_pop(L, 1);
    lua_insert(L, -2);
    lua_rawset(L, 1);
}

/* upvalues: the look, the fields by name */
static int activity_index(lua_State *L)
{
    int look_index = lua_upvalueindex(1);
    int field;
    int row;

    if (!find_field(L, lua_upvalueindex(2), &field) || !find_row(L, &row))
        return 0;
    push_session_field(L, look_index, lua_touserdata(L, look_index), row, (SessionField)field);
    return keep_field(L);
}

static int activity_pairs(lua_State *L)
{
    int look_index = lua_upvalueindex(1);
    int row;

    lua_settop(L, 1);
    if (find_row(L, &row)) {
        for (int field = 0; field < SESSION_FIELDS; field++) {
            push_session_field(L, look_index, lua_touserdata(L, look_index), row,
                               (SessionField)field);
            fill_field(L, SESSION_FIELD_NAMES[field]);
        }
    }
    return return_pairs(L);
}

/* Push a metatable for rows: its functions' upvalues are the look, `fields` and `order`. */
static void push_metatable(lua_State *L, int index, const char *fields, int order,
                           lua_CFunction index_function, lua_CFunction pairs_function)
{
    lua_CFunction functions[] = {index_function, pairs_function};

    lua_createtable(L, 0, 2);
    for (int i = 0; i < 2; i++) {
        lua_pushvalue(L, index);
        lua_getfield(L, LUA_REGISTRYINDEX, fields);
        if (order == 0)
            lua_pushnil(L);
        else
            lua_pushvalue(L, order);
        lua_pushcclosure(L, functions[i], 3);
        lua_setfield(L, -2, i == 0 ? "__index" : "__pairs");
    }
}

/* Push a new row that is found at `row`, with the metatable at `metatable`. */
static void push_row(lua_State *L, int row, int metatable)
{
    lua_createtable(L, 0, 4); /* room for some fields */
    lua_pushinteger(L, row);
    lua_rawsetp(L, -2, &ROW);
    lua_pushvalue(L, metatable);
    lua_setmetatable(L, -2);
}

static void push_activity_row(lua_State *L, int index, int activities, int row)
{
    if (lua_rawgeti(L, activities, 0) == LUA_TNIL) {
        lua_pop(L, 1);
        push_metatable(L, index, SESSION_FIELD_IDS, 0, activity_index, activity_pairs);
        lua_pushvalue(L, -1);
        lua_rawseti(L, activities, 0);
    }
    push_row(L, row, lua_gettop(L));
    lua_remove(L, -2);
}

static void set_value(lua_State *L, const char *name, const Value *value)
{
    push_value(L, value);
    lua_setfield(L, -2, name);
}

/* A prepared transaction has no session, but an owner, a database, and a state since a moment. */
static void push_prepared(lua_State *L, int index, LookObject *look, int row)
{
    const Snapshot *snapshot = &look->blocked.snapshot;
    PreparedTransaction prepared;
    double duration;

    need_names(L, index, look);
    snapshot_prepared(snapshot, row, &prepared);
    duration = snapshot->taken_at - prepared.at;
    lua_createtable(L, 0, 7);
    lua_pushliteral(L, "prepared");
    lua_setfield(L, -2, "state");
    lua_pushstring(L, prepared.gid);
    lua_setfield(L, -2, "gid");
    set_value(L, "user", &prepared.user);
    set_value(L, "database", &prepared.database);
    lua_pushnumber(L, prepared.at);
    lua_setfield(L, -2, "state_change");
    lua_pushnumber(L, duration > 0 ? duration : 0);
    lua_setfield(L, -2, "state_duration");
}

/*
 * Push the activity of a row of `sessions`, else of one of `prepared`, else of a session that had
 * ended when the sessions were read: of that one there is only the pid, if there is one.
 */
static void push_activity(lua_State *L, int index, LookObject *look, int session, int prepared,
                          int pid)
{
    lua_Integer place = session != ROW_NONE ? session + 1 : -(lua_Integer)prepared - 1;
    int activities;

    luaL_checkstack(L, 10, NULL);
    if (session == ROW_NONE && prepared == ROW_NONE) {
        lua_createtable(L, 0, 1);
        if (pid != 0) {
            lua_pushinteger(L, pid);
            lua_setfield(L, -2, "pid");
        }
        return;
    }
    lua_getiuservalue(L, index, UV_ACTIVITIES);
    activities = lua_gettop(L);
    if (lua_rawgeti(L, activities, place) == LUA_TNIL) {
        lua_pop(L, 1);
        if (session != ROW_NONE)
            push_activity_row(L, index, activities, session);
        else
            push_prepared(L, index, look, prepared);
        lua_pushvalue(L, -1);
        lua_rawseti(L, activities, place);
    }
    lua_remove(L, activities);
}

const Snapshot *bind_snapshot_check(lua_State *L, int index)
{
    return &check_look(L, index)->blocked.snapshot;
}

void bind_snapshot_push_activity(lua_State *L, int index, int session, int prepared, int pid)
{
    push_activity(L, index, check_look(L, index), session, prepared, pid);
}

/* ---- rows of lock.locks ---------------------------------------------------------------------- */

static void push_lock_field(lua_State *L, int index, LookObject *look, int row, int field)
{
    const Snapshot *snapshot = &look->blocked.snapshot;
    Value value;

    switch (field) {
    case FIELD_LOCK_NAME:
        snapshot_lock(snapshot, row, LOCK_KEY, &value);
        push_lock_name(L, index, &value);
        return;
    case FIELD_ACTIVITY:
        snapshot_lock(snapshot, row, LOCK_PID, &value);
        push_activity(L, index, look, snapshot_lock_session(snapshot, row),
                      snapshot_lock_prepared(snapshot, row),
                      value.kind == VALUE_NONE ? 0 : (int)value.integer);
        return;
    default:
        if (lock_field_is_name((LockField)field))
            need_names(L, index, look);
        snapshot_lock(snapshot, row, (LockField)field, &value);
        push_value(L, &value);
    }
}

static int lock_index(lua_State *L)
{
    int look_index = lua_upvalueindex(1);
    int field;
    int row;

    if (!find_field(L, lua_upvalueindex(2), &field) || field >= FIELD_LOCKS_END ||
        !find_row(L, &row))
        return 0;
    push_lock_field(L, look_index, lua_touserdata(L, look_index), row, field);
    return keep_field(L);
}

static int lock_pairs(lua_State *L)
{
    int look_index = lua_upvalueindex(1);
    int row;

    lua_settop(L, 1);
    if (find_row(L, &row)) {
        for (int field = 0; field < FIELD_LOCKS_END; field++) {
            push_lock_field(L, look_index, lua_touserdata(L, look_index), row, field);
            fill_field(L, field_name(field));
        }
    }
    return return_pairs(L);
}

/* lock_rows(look, relations): a list of rows, in order; relations: a set of oids, or nil for all */
static int core_lock_rows(lua_State *L)
{
    const Snapshot *snapshot = &check_look(L, 1)->blocked.snapshot;
    bool all = lua_isnoneornil(L, 2);
    lua_Integer count = 0;

    lua_settop(L, 2);
    push_metatable(L, 1, FIELDS, 0, lock_index, lock_pairs);
    lua_createtable(L, all ? snapshot->count : 0, 0);
    for (int i = 0; i < snapshot->count; i++) {
        int row = snapshot->order[i];

        if (!all) {
            bool wanted =
                lua_rawgeti(L, 2, (lua_Integer)snapshot_lock_relation(snapshot, row)) != LUA_TNIL;

            lua_pop(L, 1);
            if (!wanted)
                continue;
        }
        push_row(L, row, 3);
        lua_rawseti(L, 4, ++count);
    }
    return 1;
}

/* lock_rows_at(look, numbers): a list of the rows with these numbers, which are pg_locks' from 0 */
static int core_lock_rows_at(lua_State *L)
{
    const Snapshot *snapshot = &check_look(L, 1)->blocked.snapshot;
    const int *rows;
    int count;

    lua_settop(L, 2);
    rows = push_rows(L, 2, snapshot, &count); /* 3 */
    push_metatable(L, 1, FIELDS, 0, lock_index, lock_pairs);
    lua_createtable(L, count, 0);
    for (int i = 0; i < count; i++) {
        push_row(L, rows[i], 4);
        lua_rawseti(L, 5, i + 1);
    }
    return 1;
}

/* ---- rows of lock.blocked -------------------------------------------------------------------- */

static void push_edge_field(lua_State *L, int index, LookObject *look, int row, int field)
{
    const BlockedEdge *edge = &look->blocked.edges[row];
    Value value;

    switch (field) {
    case FIELD_LOCK_NAME:
        need_locks(L, index, look);
        blocked_lock(&look->blocked, edge, LOCK_KEY, &value);
        push_lock_name(L, index, &value);
        return;
    case FIELD_ACTIVITY:
        push_activity(L, index, look, edge->waiter, ROW_NONE, 0);
        return;
    case FIELD_BLOCKING_PID:
        if (edge->pid == 0)
            lua_pushnil(L);
        else
            lua_pushinteger(L, edge->pid);
        return;
    case FIELD_BLOCKING_ACTIVITY:
        if (edge->pid == 0)
            need_locks(L, index, look);
        push_activity(L, index, look, edge->blocker, edge->prepared, edge->pid);
        return;
    case FIELD_BLOCKING_MODE:
        need_locks(L, index, look);
        blocked_mode(&look->blocked, edge, &value);
        break;
    default:
        if (!blocked_knows((LockField)field))
            need_locks(L, index, look);
        if (lock_field_is_name((LockField)field))
            need_names(L, index, look);
        blocked_lock(&look->blocked, edge, (LockField)field, &value);
    }
    push_value(L, &value);
}

/*
 * The edge that the row at index 1 stands for, which is found at `row`: where the list has an order
 * (the third upvalue), that is a place in it.
 */
static int edge_at(lua_State *L, LookObject *look, int row)
{
    Order *order = lua_touserdata(L, lua_upvalueindex(3));

    if (order == NULL)
        return row;
    if (!order->sorted) {
        need_locks(L, lua_upvalueindex(1), look);
        blocked_sort(&look->blocked, order->edges, order->count);
        order->sorted = true;
    }
    return order->edges[row];
}

static int edge_index(lua_State *L)
{
    int look_index = lua_upvalueindex(1);
    LookObject *look = lua_touserdata(L, look_index);
    int field;
    int row;

    if (!find_field(L, lua_upvalueindex(2), &field) || !find_row(L, &row))
        return 0;
    push_edge_field(L, look_index, look, edge_at(L, look, row), field);
    return keep_field(L);
}

static int edge_pairs(lua_State *L)
{
    int look_index = lua_upvalueindex(1);
    LookObject *look = lua_touserdata(L, look_index);
    int row;

    lua_settop(L, 1);
    if (find_row(L, &row)) {
        int edge = edge_at(L, look, row);

        for (int field = 0; field < FIELD_BLOCKED_END; field++) {
            push_edge_field(L, look_index, look, edge, field);
            fill_field(L, field_name(field));
        }
    }
    return return_pairs(L);
}

/* edge_rows(look): a list of rows, in the order in which the server said them */
static int core_edge_rows(lua_State *L)
{
    const LookObject *look = check_look(L, 1);

    lua_settop(L, 1);
    push_metatable(L, 1, FIELDS, 0, edge_index, edge_pairs);
    lua_createtable(L, look->blocked.count, 0);
    for (int i = 0; i < look->blocked.count; i++) {
        push_row(L, i, 2);
        lua_rawseti(L, 3, i + 1);
    }
    return 1;
}

/*
 * edges_on(look, relations, places): of these places in edge_rows, or of all where it is nil, those
 * that wait for a lock of one of the relations, a set of oids
 */
static int core_edges_on(lua_State *L)
{
    LookObject *look = check_look(L, 1);
    bool all = lua_isnoneornil(L, 3);
    int count = all ? look->blocked.count : (int)lua_rawlen(L, 3);
    lua_Integer found = 0;

    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 3);
    need_locks(L, 1, look);
    lua_newtable(L);
    for (int i = 1; i <= count; i++) {
        int place = i;
        int lock;

        if (!all) {
            lua_rawgeti(L, 3, i);
            place = (int)lua_tointeger(L, -1);
            lua_pop(L, 1);
        }
        luaL_argcheck(L, place >= 1 && place <= look->blocked.count, 3, "no edge");
        lock = look->blocked.edges[place - 1].lock;
        if (lock == ROW_NONE)
            continue;
        if (lua_rawgeti(L, 2, (lua_Integer)snapshot_lock_relation(&look->blocked.snapshot, lock)) !=
            LUA_TNIL) {
            lua_pushinteger(L, place);
            lua_rawseti(L, 4, ++found);
        }
        lua_pop(L, 1);
    }
    return 1;
}

/* Push the order of these: a list of places in edge_rows, or nil for all. */
static Order *push_order(lua_State *L, const Blocked *blocked, int list)
{
    bool all = lua_isnoneornil(L, list);
    int count = all ? blocked->count : (int)lua_rawlen(L, list);
    Order *order = lua_newuserdatauv(L, sizeof *order + (size_t)count * sizeof order->edges[0], 0);

    order->count = count;
    order->sorted = true;
    for (int i = 0; i < count; i++) {
        order->edges[i] = i;
        if (!all) {
            lua_rawgeti(L, list, i + 1);
            order->edges[i] = (int)lua_tointeger(L, -1) - 1;
            lua_pop(L, 1);
        }
        luaL_argcheck(L, order->edges[i] >= 0 && order->edges[i] < blocked->count, list, "no edge");
        if (blocked->edges[order->edges[i]].waiter != blocked->edges[order->edges[0]].waiter)
            order->sorted = false;
    }
    return order;
}

/*
 * blocked_rows(look, places): a list of rows, the longest wait first, and its order; places: of
 * those in edge_rows that are meant, or nil for all. Which row is which is settled when a field of
 * one is read.
 */
static int core_blocked_rows(lua_State *L)
{
    const LookObject *look = check_look(L, 1);
    const Order *order;

    lua_settop(L, 2);
    order = push_order(L, &look->blocked, 2);
    push_metatable(L, 1, FIELDS, 3, edge_index, edge_pairs);
    lua_createtable(L, order->count, 0);
    for (int i = 0; i < order->count; i++) {
        push_row(L, i, 4);
        lua_rawseti(L, 5, i + 1);
    }
    lua_pushvalue(L, 3);
    return 2;
}

/*
 * edge_activities(look, order, count, blocking): the activities of those who wait, or block, in a
 * list of `count` rows, each once; nil where its rows have to be asked instead: they were told
 * apart or taken out since, or prepared transactions are among them
 */
static int core_edge_activities(lua_State *L)
{
    LookObject *look = check_look(L, 1);
    const Order *order = lua_touserdata(L, 2);
    bool blocking = lua_toboolean(L, 4);
    lua_Integer count = 0;

    if (order == NULL || order->sorted || order->count != lua_tointeger(L, 3))
        return 0;
    lua_settop(L, 1);
    lua_newtable(L); /* 2: the list */
    lua_newtable(L); /* 3: the pids that are in it */
    for (int i = 0; i < order->count; i++) {
        const BlockedEdge *edge = &look->blocked.edges[order->edges[i]];
        lua_Integer key = blocking ? edge->pid : -edge->waiter - 1;

        if (blocking && edge->pid == 0)
            return 0;
        if (lua_rawgeti(L, 3, key) == LUA_TNIL) {
            lua_pushboolean(L, true);
            lua_rawseti(L, 3, key);
            push_activity(L, 1, look, blocking ? edge->blocker : edge->waiter, ROW_NONE, edge->pid);
            lua_rawseti(L, 2, ++count);
        }
        lua_pop(L, 1);
    }
    lua_settop(L, 2);
    return 1;
}

/* ---- names of keys --------------------------------------------------------------------------- */

static void add_key(lua_State *L, const Value *key)
{
    if (key->kind != VALUE_KEY)
        return;
    push_key_name(L, &key->key);
    lua_pushboolean(L, true);
    lua_rawset(L, -3);
}

/* look_keys(look): the set of advisory keys in it, integers and "1,2" */
static int core_look_keys(lua_State *L)
{
    const Blocked *blocked = &check_look(L, 1)->blocked;
    Value key;

    lua_newtable(L);
    for (int i = 0; i < blocked->snapshot.count; i++) {
        snapshot_lock(&blocked->snapshot, blocked->snapshot.order[i], LOCK_KEY, &key);
        add_key(L, &key);
    }
    for (int i = 0; i < blocked->count; i++) {
        blocked_lock(blocked, &blocked->edges[i], LOCK_KEY, &key);
        add_key(L, &key);
    }
    return 1;
}

/* look_lock_names(look, names): from now on keys have these names */
static int core_look_lock_names(lua_State *L)
{
    check_look(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    lua_setiuservalue(L, 1, UV_LOCK_NAMES);
    return 0;
}

static void add_held(Session *session, void *context)
{
    lua_State *L = context;

    for (SessionHold *hold = session->holds.next; hold != &session->holds; hold = hold->next) {
        size_t length = strlen(hold->name);

        if (length < 2 || hold->name[0] != '"' || hold->name[length - 1] != '"')
            continue; /* a key, or a name too long for messages */
        lua_pushlstring(L, hold->name + 1, length - 2);
        lua_rawseti(L, 1, (lua_Integer)lua_rawlen(L, 1) + 1);
    }
}

/* held_names(): a list of the names of locks that this process holds */
static int core_held_names(lua_State *L)
{
    lua_settop(L, 0);
    lua_newtable(L);
    bind_session_each(L, add_held, L);
    lua_settop(L, 1);
    return 1;
}

/* ---- sessions -------------------------------------------------------------------------------- */

/*
 * What a session that looks needs: nothing that is done with it waits for long behind a lock. Where
 * a pooler could give the session to others nothing is set.
 */
static const char PREPARE_SQL[] =
    "SELECT pg_catalog.set_config('application_name', 'lockkeeper: locks', false),"
    " pg_catalog.set_config('lock_timeout', '500ms', false)";

/* look_prepare(session): makes it ready to look */
static int core_look_prepare(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    Error err;

    if (!session_open(session, &err) ||
        (session_keeps_state(session) && !session_run(session, PREPARE_SQL, WAIT_NORMAL, &err)))
        return args_raise(L, &err);
    return 0;
}

/* place(session): a text that is the same for sessions that connect to the same place */
static int core_place(lua_State *L)
{
    const Session *session = bind_session_check(L, 1);

    lua_pushfstring(L, "%d %s", (int)session->promise, session->conninfo);
    return 1;
}

/* is_elsewhere(a, b): are both connected, but to different servers? */
static int core_is_elsewhere(lua_State *L)
{
    const Session *a = bind_session_check(L, 1);
    const Session *b = bind_session_check(L, 2);

    lua_pushboolean(L, a->conn != NULL && b->conn != NULL && !a->lost && !b->lost &&
                           (strcmp(PQhost(a->conn), PQhost(b->conn)) != 0 ||
                            strcmp(PQport(a->conn), PQport(b->conn)) != 0));
    return 1;
}

/* ---- registration ---------------------------------------------------------------------------- */

static const luaL_Reg FUNCTIONS[] = {
    {"look_locks", core_look_locks},
    {"look_blocked", core_look_blocked},
    {"look_names", core_look_names},
    {"look_further", core_look_further},
    {"look_count", core_look_count},
    {"look_facts", core_look_facts},
    {"look_keys", core_look_keys},
    {"look_lock_names", core_look_lock_names},
    {"held_names", core_held_names},
    {"lock_rows", core_lock_rows},
    {"lock_rows_at", core_lock_rows_at},
    {"edge_rows", core_edge_rows},
    {"blocked_rows", core_blocked_rows},
    {"edge_activities", core_edge_activities},
    {"edges_on", core_edges_on},
    {"look_prepare", core_look_prepare},
    {"place", core_place},
    {"is_elsewhere", core_is_elsewhere},
    {NULL, NULL},
};

void bind_snapshot_register(lua_State *L)
{
    luaL_setfuncs(L, FUNCTIONS, 0);

    args_new_kind(L, LOOK);
    lua_pushcfunction(L, look_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);

    lua_createtable(L, 0, FIELD_BLOCKED_END);
    for (int field = 0; field < FIELD_BLOCKED_END; field++) {
        lua_pushinteger(L, field);
        lua_setfield(L, -2, field_name(field));
    }
    lua_setfield(L, LUA_REGISTRYINDEX, FIELDS);
    lua_createtable(L, 0, SESSION_FIELDS);
    for (int field = 0; field < SESSION_FIELDS; field++) {
        lua_pushinteger(L, field);
        lua_setfield(L, -2, SESSION_FIELD_NAMES[field]);
    }
    lua_setfield(L, LUA_REGISTRYINDEX, SESSION_FIELD_IDS);
}
