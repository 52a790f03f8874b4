/* Row locks in Lua: what lua/lockkeeper/row_locks.lua is made of. */
#ifndef LOCKKEEPER_BIND_ROWS_H
#define LOCKKEEPER_BIND_ROWS_H

#include <lua.h>

/* Add row_locks to the table on top. */
void bind_rows_register(lua_State *L);

#endif
