/* The host's Lua state: our modules inside, os.exit that closes it, errors shown to people. */
#ifndef LOCKKEEPER_HOST_STATE_H
#define LOCKKEEPER_HOST_STATE_H

#include <lua.h>
#include <stddef.h>

/* The Lua files, compiled into the binary; ends with a NULL name. */
typedef struct {
    const char *module; /* "lockkeeper.cli.run" */
    const unsigned char *code;
    size_t size;
} EmbeddedLua;

extern const EmbeddedLua EMBEDDED_LUA[];

/*
 * A new state with the standard libraries and, to `require`, our modules: from the binary, or from
 * the directory $LOCKKEEPER_LUA_DIR while developing. NULL where memory ran out.
 */
lua_State *state_new(void);

/* Close it and free all its memory. */
void state_close(lua_State *L);

/* Run the command line; returns the exit code. The state is closed by the caller. */
int state_run(lua_State *L, int argc, char **argv);

#endif
