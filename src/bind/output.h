/*
 * What a job prints, for Lua: its last bytes, kept apart from Lua's memory, and the fields that its
 * log lines have in common.
 */
#ifndef LOCKKEEPER_BIND_OUTPUT_H
#define LOCKKEEPER_BIND_OUTPUT_H

#include <lua.h>

/* Add keep_output, append_output, take_output and log_common to the table on top. */
void bind_output_register(lua_State *L);

#endif
