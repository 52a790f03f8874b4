/* Locks in Lua: advisory, all, model, timeout, key and key_parts (lua-api.md). */
#ifndef LOCKKEEPER_BIND_LOCKS_H
#define LOCKKEEPER_BIND_LOCKS_H

#include <lua.h>

/* Make the guards' metatables, and add the functions to the table on top. */
void bind_locks_register(lua_State *L);

#endif
