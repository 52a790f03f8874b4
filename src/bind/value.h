/*
 * PostgreSQL's values in Lua, both ways.
 *
 *   int2, int4, int8, oid   integer          float4, float8   number
 *   bool                    boolean          null             nil (lock.null inside lists)
 *   json, jsonb             table            arrays           list (of lists)
 *   bytea                   the bytes        all else         text
 *   numeric                 integer or number where that converts back to the same text, else text
 *
 * A parameter has the type that it would have written as a literal: an integer is int4 or int8, a
 * float float8, a boolean bool, a table jsonb, lock.array{…} an array of what it holds; a string
 * is left for the server to infer, like a quoted literal.
 */
#ifndef LOCKKEEPER_BIND_VALUE_H
#define LOCKKEEPER_BIND_VALUE_H

#include "base/error.h"

#include <libpq-fe.h>
#include <lua.h>

/*
 * Push a field that came in text format. `element` is the element's type where `type` is an
 * array's that value_array_element does not know (a user's own), else 0. Text that its type can't
 * have is pushed as it is.
 */
void value_push(lua_State *L, Oid type, Oid element, const char *text, size_t length);

/* The element type of a built-in array type, 0 if it is none. */
Oid value_array_element(Oid type);

typedef struct {
    int count;
    Oid *types; /* 0: the server infers it */
    const char **values;
    int *lengths;
    int *formats;
    bool ambiguous; /* a string holds a backslash, a NUL or bytes that are not UTF-8: what to send
                       depends on whether the server takes it for bytea; see value_params_settle */
} ValueParams;

/*
 * Make parameters of the values at `first`..top. What they point to is anchored on the Lua stack:
 * pushes a fixed number of values (the arrays' memory and one value a parameter) which the caller
 * leaves there until the statement was sent. False with *err set for what can't be a parameter
 * (a function, a table that JSON can't hold, …), naming it "parameter 2".
 */
bool value_params(lua_State *L, int first, ValueParams *params, Error *err);

/*
 * Settle ambiguous strings with the parameter types that the server inferred: bytea takes the bytes
 * (binary format), everything else takes the text, which then must have no NUL (usage error).
 */
bool value_params_settle(ValueParams *params, const Oid *inferred, Error *err);

#endif
