/*
 * Sessions in Lua: lock.connect, lock.db, lock.database, and the methods of a session and of a
 * transaction (lua-api.md, "Sessions").
 */
#ifndef LOCKKEEPER_BIND_SESSION_H
#define LOCKKEEPER_BIND_SESSION_H

#include "pg/session.h"

#include <lua.h>

/*
 * Make the metatables and the table of named sessions, and add connect, database, session and the
 * table session_methods to the table on top.
 */
void bind_session_register(lua_State *L);

/* Where the default session connects to; default: $DATABASE_URL, else libpq's own environment. */
void bind_session_default_conninfo(lua_State *L, const char *conninfo);

/* application_name of sessions made from now on, where the conninfo names none. Copied. */
void bind_session_application(const char *application);
const char *bind_session_application_name(void);

/*
 * The session at `index`: a session, an open transaction's session, or a session's name; nil or
 * none is the default session. Pushes its userdata, to be kept with what depends on it.
 */
Session *bind_session_using(lua_State *L, int index);

/* A method's session, at `index`: a session, or a transaction that must still be open. */
Session *bind_session_check(lua_State *L, int index);

/* Push the session object behind the session or transaction at `index`. */
void bind_session_push_object(lua_State *L, int index);

/* Push the table of what it knows of a user's own types (see bind/result.h). */
void bind_session_push_known_types(lua_State *L, int index);

/*
 * Make the statement at index 2 with the parameters from index 3 on. What it points to stays on
 * the Lua stack.
 */
Statement bind_session_statement(lua_State *L, Session *session);

/* Call `visit` for every session, but those that other tasks have by name. */
void bind_session_each(lua_State *L, void (*visit)(Session *session, void *context),
                       void *context);

/* Close the sessions that tasks had by name and did not give back. */
void bind_session_close_lent(lua_State *L);

#endif
