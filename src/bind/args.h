/*
 * What every function that Lua calls needs: options, durations, errors.
 *
 * A raised error is a table { kind, busy, message, sqlstate, detail, hint, statement, where,
 * traceback } with a __tostring; `where` and `traceback` name the script's lines, not ours.
 */
#ifndef LOCKKEEPER_BIND_ARGS_H
#define LOCKKEEPER_BIND_ARGS_H

#include "base/error.h"

#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>

#define ERROR_TNAME "lockkeeper.Error"

/* Make the metatable of errors. */
void args_register(lua_State *L);

/*
 * Chunk names that begin with this are our own Lua files: left out of `where` and tracebacks.
 * Copied.
 */
void args_set_home(const char *prefix);

/*
 * Kinds of userdata: what luaL_newmetatable, luaL_setmetatable and luaL_testudata do, at a fraction
 * of their cost, for objects that are in every call. Such an object begins with a `const char
 * *kind`, which args_set_kind sets to the address of the kind's name, a static array.
 */
void args_new_kind(lua_State *L, const char *kind);
void args_set_kind(lua_State *L, const char *kind);
void *args_to_kind(lua_State *L, int index, const char *kind);

/* Is this a line of a script's? `frame` was filled in for "Sl". */
bool args_is_script(const lua_Debug *frame);

/* Push the error as a table. */
void args_push_error(lua_State *L, const Error *err);

/* Raise it, with a traceback. Never returns. */
int args_raise(lua_State *L, const Error *err) __attribute__((noreturn));

/* Push nil and the error: the alternative return. Returns 2. */
int args_fail(lua_State *L, const Error *err);

/* Raise a usage error from a printf format. */
int args_usage(lua_State *L, const char *format, ...)
    __attribute__((noreturn, format(printf, 2, 3)));

/* "job.lua:12", or "" where no script is on the stack. `where` has room for `size` bytes. */
void args_where(lua_State *L, char *where, size_t size);

/* Push the script's lines on the stack of `from`, beginning at `level`, one a line. */
void args_push_traceback(lua_State *L, lua_State *from, int level);

/* No value, nil or a table; anything else is a usage error "advisory: the options must be …". */
bool args_has_options(lua_State *L, int index, const char *function);

/*
 * The option whose name is at stack index -2 (as lua_next leaves it): its place in `names`. An
 * unknown name is a usage error that names the nearest.
 */
int args_option(lua_State *L, const char *function, const char *const *names);

/* A text without NUL bytes; `what` names it in the usage error otherwise. */
const char *args_text(lua_State *L, int index, const char *what);

/*
 * The list of texts at `index` as an array that ends with NULL. Its memory is left on the stack, its
 * texts are the list's.
 */
const char **args_texts(lua_State *L, int index);

bool args_boolean(lua_State *L, int index, const char *what);

/* Seconds, a text with units, or false for endless. */
int64_t args_duration(lua_State *L, int index, const char *what);

/* What a value is, for messages: "a table", "nil", "42", "\"text…\"". */
void args_describe(lua_State *L, int index, char *text, size_t size);

#endif
