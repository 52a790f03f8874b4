/*
 * What pg_locks says, in Lua: the rows that lua/lockkeeper/query.lua makes lists of.
 *
 * A row is a table that is empty at first. A field is read from the server's answer when it is
 * asked for, and kept in the table then; pairs() reads them all. What takes another question to the
 * server (names; of blocked rows their locks, and the order they stand in) is asked for when the
 * first field needs it.
 */
#ifndef LOCKKEEPER_BIND_SNAPSHOT_H
#define LOCKKEEPER_BIND_SNAPSHOT_H

#include "locks/snapshot.h"

#include <lua.h>

/* Add the functions to the table on top. After bind_session_register. */
void bind_snapshot_register(lua_State *L);

/* For bind/graph.c: the snapshot of the look at `index`, which must be one. The look owns it. */
const Snapshot *bind_snapshot_check(lua_State *L, int index);

/*
 * Push the activity of a row of `sessions`, else of one of `prepared`, else of a session that is in
 * neither: of that one there is only the pid, if there is one. `index`: the look.
 */
void bind_snapshot_push_activity(lua_State *L, int index, int session, int prepared, int pid);

#endif
