/*
 * What goes on between two calls: rows that come one by one, and COPY.
 */
#ifndef LOCKKEEPER_BIND_STREAM_H
#define LOCKKEEPER_BIND_STREAM_H

#include <lua.h>

/* Make the metatables, and add run_alone, start_copy_in and start_copy_out to the table on top. */
void stream_register(lua_State *L);

/* db:rows(sql, …) */
int stream_rows(lua_State *L);

#endif
