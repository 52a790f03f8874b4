/* What leads a command to a session's database: libpq's variables and a password file, for Lua. */
#ifndef LOCKKEEPER_BIND_ENVIRONMENT_H
#define LOCKKEEPER_BIND_ENVIRONMENT_H

#include <lua.h>

/* Add environment(session) to the table on top. */
void bind_environment_register(lua_State *L);

#endif
