/* The C half of `require "lockkeeper"`. */
#ifndef LOCKKEEPER_BIND_MODULE_H
#define LOCKKEEPER_BIND_MODULE_H

#include <lua.h>

/* `require "lockkeeper.core"`: pushes the table that lua/lockkeeper/init.lua builds on. */
__attribute__((visibility("default"))) int luaopen_lockkeeper_core(lua_State *L);

#endif
