/* lock.sh in Lua: commands that do not outlive the locks they run under. */
#ifndef LOCKKEEPER_BIND_COMMAND_H
#define LOCKKEEPER_BIND_COMMAND_H

#include <lua.h>

/* Make the metatable, and add command to the table on top. */
void bind_command_register(lua_State *L);

#endif
