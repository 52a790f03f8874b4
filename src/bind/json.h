/*
 * JSON in Lua, over Jansson, which keeps 64-bit integers exact.
 *
 * Objects and arrays are tables; null is `lock.null` (a light userdata NULL). A table is written
 * as an array where its keys are 1..n (n > 0) or where it was made by lock.array or decoded from a
 * JSON array; else as an object. An empty table is an object, an empty decoded array stays one
 * (only the empty ones are marked by a metatable). nil inside a marked array is written as null.
 */
#ifndef LOCKKEEPER_BIND_JSON_H
#define LOCKKEEPER_BIND_JSON_H

#include "base/error.h"

#include <lua.h>

/* The metatable of arrays that must stay arrays in JSON, and of lock.array's for PostgreSQL. */
#define JSON_ARRAY_TNAME "lockkeeper.json_array"
#define SQL_ARRAY_TNAME  "lockkeeper.array"

/* lock.null: one value for JSON's null, and for null inside lists. */
void json_push_null(lua_State *L);

/* Has the table at `index` the metatable that the registry knows as `tname`? */
bool json_has_metatable(lua_State *L, int index, const char *tname);

/*
 * Push the value that `text` says, or push nothing and return false with *err set (line and
 * column named): also for what Lua can't hold, such as 1e999 or a NUL in a key. Integers beyond 64
 * bits become floats; of two equal keys the last counts. Raises only when memory runs out, and
 * leaks nothing then.
 */
bool json_push(lua_State *L, const char *text, size_t length, Error *err);

/*
 * Push the value at `index` as a JSON text, or push nothing and return false with *err naming
 * what JSON can't hold and where ("value.rows[3].at is a function"): functions, userdata,
 * threads, NaN and infinities, keys that are neither all strings nor 1..n, cycles, more than 1,000
 * levels, text that is not UTF-8. Integers are written exactly, floats so that they read back the
 * same, and as floats (1.0). Keys are sorted by bytes. Metamethods are not called.
 */
bool json_encode(lua_State *L, int index, Error *err);

/* Push the table { encode = function(value), decode = function(text) }; both raise usage errors. */
void json_push_library(lua_State *L);

#endif
