/*
 * PostgreSQL's arrays in text format and Lua's lists, both ways.
 */
#ifndef LOCKKEEPER_BIND_ARRAY_H
#define LOCKKEEPER_BIND_ARRAY_H

#include "base/error.h"

#include <libpq-fe.h>
#include <lua.h>

/*
 * Push the list (of lists) that an array's text says, with elements as value_push makes them of
 * `element` and lock.null for NULL; lower bounds are not kept. Or push nothing and return false, if
 * this is no array's text. Elements must be set apart by commas, as those of all types but box are.
 */
bool array_push(lua_State *L, Oid element, const char *text, size_t length);

typedef struct {
    Oid type;       /* int4[], int8[], float8[] or bool[]; TYPE_INFER for strings, mixed and none */
    bool ambiguous; /* strings in it are written otherwise for bytea[] than for all else */
} ArrayInfo;

/*
 * Push the text of the array that the list at `index` is, and then the same for bytea[], where
 * strings are the bytes ("" unless it is ambiguous). Or push nothing and return false with *err
 * naming what an array can't hold ("array[2] is a function"). Lists inside it are further
 * dimensions, whatever their metatables; nil and lock.null are NULL.
 */
bool array_encode(lua_State *L, int index, ArrayInfo *info, Error *err);

#endif
