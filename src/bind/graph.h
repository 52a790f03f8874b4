/*
 * The wait-for graph in Lua: what lua/lockkeeper/graph.lua is made of.
 */
#ifndef LOCKKEEPER_BIND_GRAPH_H
#define LOCKKEEPER_BIND_GRAPH_H

#include <lua.h>

/* Add the functions to the table on top. After bind_snapshot_register. */
void bind_graph_register(lua_State *L);

#endif
