/*
 * PostgreSQL's values in Lua, both ways.
 *
 *   int2, int4, int8, oid   integer          float4, float8   number
 *   bool                    boolean          null             nil (lock.null inside lists)
 *   json, jsonb             table            arrays           list (of lists)
 *   bytea                   the bytes        all else         text
 *   numeric                 integer where int64 holds it; float where it is a fraction of at most
 *                           15 significant digits without zeros at its end: those convert back to
 *                           the same text, here and in the server; else text
 *
 * A parameter has the type that it would have written as a literal: an integer is int4 or int8, a
 * float float8, a boolean bool, a table jsonb, lock.array{…} an array of what it holds (strings or
 * several kinds: left to infer, as texts); a string is left for the server to infer, like a quoted
 * literal.
 */
#ifndef LOCKKEEPER_BIND_VALUE_H
#define LOCKKEEPER_BIND_VALUE_H

#include "base/error.h"

#include <libpq-fe.h>
#include <lua.h>

/*
 * Push a field that came in text format; text == NULL is SQL's null. `element` is the element's
 * type where `type` is an array's that value_array_element does not know (a user's own), else 0.
 * Text that its type can't have is pushed as it is, and so is a box[].
 */
void value_push(lua_State *L, Oid type, Oid element, const char *text, size_t length);

/* The element type of a built-in array type (but box[]), 0 if it is none. */
Oid value_array_element(Oid type);

typedef struct {
    int count;
    Oid *types; /* 0: the server infers it */
    const char **values;
    int *lengths;
    int *formats;
    const char **bytea_arrays; /* NULL, or what the value is if the server takes it for bytea[] */
    bool ambiguous; /* a string holds a backslash, a NUL or bytes that are not UTF-8: what to send
                       depends on whether the server takes it for bytea; see value_params_settle */
} ValueParams;

/*
 * Make parameters of the values at `first`..top. What they point to is anchored on the Lua stack:
 * pushes 1 + count values (the arrays' memory and one value a parameter) which the caller leaves
 * there until the statement was sent. Or pushes nothing and returns false with *err set for what
 * can't be a parameter (a function, a table that JSON can't hold, …), naming it "parameter 2".
 */
bool value_params(lua_State *L, int first, ValueParams *params, Error *err);

/*
 * Settle ambiguous strings with the parameter types that the server inferred: bytea takes the bytes
 * (binary format), bytea[] the bytes of each element, everything else takes the text, which then
 * must be UTF-8 without NUL (usage error). Once for each value_params; right for every one of them.
 */
bool value_params_settle(ValueParams *params, const Oid *inferred, Error *err);

#endif
