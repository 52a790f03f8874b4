/*
 * The state tables in Lua, as core.store_… and core.schema_…: for the worker, the commands and the
 * specs. Options and rows are tables with the names of runner/store.h's structs and of the tables'
 * columns; durations are seconds, instants seconds since the epoch by the database's clock. What
 * fails is raised.
 */
#ifndef LOCKKEEPER_BIND_STORE_H
#define LOCKKEEPER_BIND_STORE_H

#include <lua.h>

/* Add the functions to the table on top. */
void bind_store_register(lua_State *L);

#endif
