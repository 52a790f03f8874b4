/*
 * Results in Lua: who owns a PGresult, and rows as tables.
 */
#ifndef LOCKKEEPER_BIND_RESULT_H
#define LOCKKEEPER_BIND_RESULT_H

#include "pg/session.h"

#include <lua.h>

/* Make the metatable. */
void result_register(lua_State *L);

/*
 * Push a userdata for a result, which is freed with it: what a C function must not lose to an
 * error. The caller fills it, and calls result_clear as soon as it is done with it.
 */
PGresult **result_push(lua_State *L);

void result_clear(PGresult **result);

/* The columns of a result: names and types, read once for all rows. */
typedef struct {
    int count;
    int names; /* stack index of the list of names */
    const Oid *types;
    const Oid *elements; /* of a user's own array types; else 0 */
} Columns;

/*
 * Read them, pushing two values to be kept on the stack: the memory of the types, and the names.
 * The element types of a user's own arrays are asked for, once a session, where the session can;
 * they are remembered in the table at stack index `known`.
 */
Columns columns_push(lua_State *L, Session *session, int known, const PGresult *result);

/* The same columns, when the two values are found at stack index `types` and after it. */
Columns columns_at(lua_State *L, int types, int count);

/* Push one field, or a row as a table by column name. */
void columns_push_field(lua_State *L, const Columns *columns, const PGresult *result, int row,
                        int column);
void columns_push_row(lua_State *L, const Columns *columns, const PGresult *result, int row);

#endif
