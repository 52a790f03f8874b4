#include "bind/graph.h"

#include "bind/args.h"
#include "bind/session.h"
#include "bind/snapshot.h"
#include "locks/graph_look.h"

#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

static const char GRAPH[] = "lockkeeper.core.Graph";

/* Its user value: the look that it was made of, or nil. */
typedef struct {
    const char *kind;
    Graph graph;
} GraphObject;

static int graph_gc(lua_State *L)
{
    GraphObject *object = lua_touserdata(L, 1);

    graph_clear(&object->graph);
    return 0;
}

static GraphObject *check_graph(lua_State *L, int index)
{
    GraphObject *object = args_to_kind(L, index, GRAPH);

    if (object == NULL)
        luaL_typeerror(L, index, "graph");
    return object;
}

static GraphObject *push_graph(lua_State *L)
{
    GraphObject *object = lua_newuserdatauv(L, sizeof *object, 1);

    *object = (GraphObject){.kind = GRAPH};
    args_set_kind(L, GRAPH);
    return object;
}

/* graph_look(look): the graph of what was looked at */
static int core_graph_look(lua_State *L)
{
    const Snapshot *snapshot = bind_snapshot_check(L, 1);
    GraphObject *object = push_graph(L);
    Error err;

    lua_pushvalue(L, 1);
    lua_setiuservalue(L, -2, 1);
    if (!graph_look(&object->graph, snapshot, &err))
        return args_raise(L, &err);
    return 1;
}

/* ---- from tables ----------------------------------------------------------------------------- */

static lua_Integer integer_field(lua_State *L, const char *name, lua_Integer least,
                                 lua_Integer most)
{
    lua_Integer value;
    int is_integer;

    lua_getfield(L, -1, name);
    value = lua_tointegerx(L, -1, &is_integer);
    lua_pop(L, 1);
    if (!is_integer || value < least || value > most)
        luaL_error(L, "graph: bad %s", name);
    return value;
}

static bool boolean_field(lua_State *L, const char *name)
{
    bool value;

    lua_getfield(L, -1, name);
    value = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return value;
}

/* The table on top is one of `parties`. */
static void read_party(lua_State *L, GraphParty *party, int count)
{
    party->pid = (int)integer_field(L, "pid", 0, INT32_MAX);
    party->leader = (int)integer_field(L, "leader", 1, count) - 1;
}

/* The table on top is one of `locks`, the one with that row; false: it is in nobody's way. */
static bool read_lock(lua_State *L, GraphLock *lock, int row, int count)
{
    static const double LAST_SECOND = 1e12;
    const char *mode;
    bool known;
    double since;
    Error err;

    *lock = (GraphLock){.row = row, .meant = true};
    lua_getfield(L, -1, "mode");
    mode = lua_tostring(L, -1);
    known = mode != NULL && mode_parse(mode, &lock->mode, &err);
    lua_pop(L, 1);
    if (!known)
        return false;
    lock->object = (int)integer_field(L, "object", 1, INT32_MAX);
    lock->party = (int)integer_field(L, "party", 1, count) - 1;
    lock->granted = boolean_field(L, "granted");
    lock->extend = boolean_field(L, "extend");
    lua_getfield(L, -1, "since");
    since = lua_tonumber(L, -1);
    lock->since_us = lua_isnumber(L, -1) && since > -LAST_SECOND && since < LAST_SECOND
                         ? (int64_t)(since * 1e6)
                         : GRAPH_UNKNOWN;
    lua_pop(L, 1);
    return true;
}

static void *new_array(lua_State *L, lua_Unsigned count, size_t size)
{
    void *array = count < INT32_MAX ? calloc((size_t)count + 1, size) : NULL;

    if (array == NULL)
        luaL_error(L, "out of memory");
    return array;
}

/*
 * graph_of(parties, locks): a graph without a server. parties: { pid = 0 of a prepared transaction,
 * leader = place in parties }; locks: { object = integer, party = place, mode, granted, extend,
 * since }
 */
static int core_graph_of(lua_State *L)
{
    GraphObject *object;
    Graph *graph;
    Error err;

    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_checktype(L, 2, LUA_TTABLE);
    object = push_graph(L);
    graph = &object->graph;
    graph->parties = new_array(L, lua_rawlen(L, 1), sizeof *graph->parties);
    graph->locks = new_array(L, lua_rawlen(L, 2), sizeof *graph->locks);
    graph->party_count = (int)lua_rawlen(L, 1);
    for (int i = 0; i < graph->party_count; i++) {
        lua_rawgeti(L, 1, i + 1);
        read_party(L, &graph->parties[i], graph->party_count);
        lua_pop(L, 1);
    }
    for (int i = 0; i < graph->party_count; i++) {
        const GraphParty *leader = &graph->parties[graph->parties[i].leader];

        luaL_argcheck(L, leader->leader == graph->parties[i].leader, 1, "a leader is led itself");
    }
    for (int i = 0; i < (int)lua_rawlen(L, 2); i++) {
        lua_rawgeti(L, 2, i + 1);
        graph->lock_count += read_lock(L, &graph->locks[graph->lock_count], i, graph->party_count);
        lua_pop(L, 1);
    }
    if (!graph_build(graph, &err))
        return args_raise(L, &err);
    return 1;
}

/* ---- answers, and what came out -------------------------------------------------------------- */

/* graph_confirm(graph, session, all): asks the server where it is in doubt, or about all */
static int core_graph_confirm(lua_State *L)
{
    GraphObject *object = check_graph(L, 1);
    Error err;

    if (!graph_confirm(&object->graph, bind_session_check(L, 2), lua_toboolean(L, 3), &err))
        return args_raise(L, &err);
    return 0;
}

/* graph_settle(graph, taken_at): the last step; epoch seconds */
static int core_graph_settle(lua_State *L)
{
    GraphObject *object = check_graph(L, 1);
    Error err;

    if (!graph_settle(&object->graph, (int64_t)(luaL_checknumber(L, 2) * 1e6), &err))
        return args_raise(L, &err);
    return 0;
}

static void set_integer(lua_State *L, const char *name, lua_Integer value)
{
    lua_pushinteger(L, value);
    lua_setfield(L, -2, name);
}

/*
 * graph_edges(graph): a list of numbers, five an edge: waiter and blocker (places among the
 * parties, from 1), the rows of what is waited for and of what is held (from 0; -1: only queued),
 * and 0 hard, 1 soft, 2 confirmed
 */
static int core_graph_edges(lua_State *L)
{
    const Graph *graph = &check_graph(L, 1)->graph;
    lua_Integer at = 0;

    lua_createtable(L, 5 * graph->edge_count, 0);
    for (int i = 0; i < graph->party_count; i++) {
        const GraphParty *party = &graph->parties[i];

        for (int j = party->first; j < party->first + party->count; j++) {
            const GraphEdge *edge = &graph->edges[j];
            int values[] = {
                edge->waiter + 1,
                edge->blocker + 1,
                graph->locks[edge->lock].row,
                edge->holding == GRAPH_NONE ? GRAPH_NONE : graph->locks[edge->holding].row,
                (int)edge->certainty,
            };

            for (size_t k = 0; k < sizeof values / sizeof values[0]; k++) {
                lua_pushinteger(L, values[k]);
                lua_rawseti(L, -2, ++at);
            }
        }
    }
    return 1;
}

static void push_party(lua_State *L, const Graph *graph, const Snapshot *snapshot, int number)
{
    const GraphParty *party = &graph->parties[number];

    lua_createtable(L, 0, 8);
    if (party->pid != 0)
        set_integer(L, "pid", party->pid);
    set_integer(L, "leader", party->leader + 1);
    set_integer(L, "behind", party->behind);
    set_integer(L, "component", party->component);
    lua_pushnumber(L, (double)party->weight_us / 1e6);
    lua_setfield(L, -2, "weight");
    lua_pushboolean(L, party->in_cycle);
    lua_setfield(L, -2, "in_cycle");
    if (snapshot != NULL) {
        bind_snapshot_push_activity(L, 2, graph_look_session(snapshot, number),
                                    graph_look_prepared(snapshot, number), party->pid);
        lua_setfield(L, -2, "activity");
    }
}

/*
 * graph_parties(graph): by place, those who wait or are waited for: { pid, leader, behind,
 * component, weight, in_cycle, activity (where it was made of a look) }
 */
static int core_graph_parties(lua_State *L)
{
    const Graph *graph = &check_graph(L, 1)->graph;
    const Snapshot *snapshot = NULL;

    lua_settop(L, 1);
    if (lua_getiuservalue(L, 1, 1) != LUA_TNIL)
        snapshot = bind_snapshot_check(L, 2);
    lua_newtable(L);
    for (int i = 0; i < graph->party_count; i++) {
        const GraphParty *party = &graph->parties[i];

        /* itself, its leader, and its blockers */
        for (int j = -2; party->count > 0 && j < party->count; j++) {
            int number = j == -2   ? i
                         : j == -1 ? party->leader
                                   : graph->edges[party->first + j].blocker;

            if (lua_rawgeti(L, 3, number + 1) == LUA_TNIL) {
                push_party(L, graph, snapshot, number);
                lua_rawseti(L, 3, number + 1);
            }
            lua_pop(L, 1);
        }
    }
    return 1;
}

/*
 * graph_tuples(graph): by place, the row in pg_locks (from 0) of the row lock that a waiter holds.
 * Who waits for a transaction because it has locked a row holds that row's place in the queue.
 */
static int core_graph_tuples(lua_State *L)
{
    const Graph *graph = &check_graph(L, 1)->graph;
    const Snapshot *snapshot;
    Value type;
    Value granted;

    lua_settop(L, 1);
    lua_getiuservalue(L, 1, 1);
    snapshot = bind_snapshot_check(L, 2);
    lua_newtable(L);
    for (int i = 0; graph->edge_count > 0 && i < PQntuples(snapshot->locks); i++) {
        int session;

        snapshot_lock(snapshot, i, LOCK_TYPE, &type);
        if (type.kind != VALUE_TEXT || strcmp(type.text, "tuple") != 0)
            continue;
        snapshot_lock(snapshot, i, LOCK_GRANTED, &granted);
        session = snapshot_lock_session(snapshot, i);
        if (!granted.boolean || session == ROW_NONE || graph->parties[session].count == 0)
            continue;
        lua_pushinteger(L, i);
        lua_rawseti(L, 3, session + 1);
    }
    return 1;
}

static const luaL_Reg FUNCTIONS[] = {
    {"graph_look", core_graph_look},       {"graph_of", core_graph_of},
    {"graph_confirm", core_graph_confirm}, {"graph_settle", core_graph_settle},
    {"graph_edges", core_graph_edges},     {"graph_parties", core_graph_parties},
    {"graph_tuples", core_graph_tuples},   {NULL, NULL},
};

void bind_graph_register(lua_State *L)
{
    luaL_setfuncs(L, FUNCTIONS, 0);

    args_new_kind(L, GRAPH);
    lua_pushcfunction(L, graph_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
