/*
 * libpq's growing text, owned by Lua: it is freed even where an error is raised while it is in use.
 */
#ifndef LOCKKEEPER_BIND_BUFFER_H
#define LOCKKEEPER_BIND_BUFFER_H

#include "base/pqbuffer.h"

#include <lua.h>

/*
 * Push a userdata that holds an empty buffer, and return the buffer; it lives as long as the
 * userdata is on the stack. Appending to it never raises: lack of memory shows at the end.
 */
PQExpBuffer buffer_push(lua_State *L);

/* Replace the buffer at the top of the stack by its text. Raises when memory ran out. */
void buffer_to_string(lua_State *L);

/* Pop the buffer at the top of the stack, and free its memory at once. */
void buffer_pop(lua_State *L);

#endif
