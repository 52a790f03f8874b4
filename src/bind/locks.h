/* Locks in Lua: advisory, all, model, timeout, key and key_parts (lua-api.md). */
#ifndef LOCKKEEPER_BIND_LOCKS_H
#define LOCKKEEPER_BIND_LOCKS_H

#include "locks/key.h"

#include <lua.h>

/* Make the guards' metatables, and add the functions to the table on top. */
void bind_locks_register(lua_State *L);

/* Push a key: an integer, or the list of both int4 keys. */
void bind_locks_push_key(lua_State *L, const LockKey *key);

#endif
