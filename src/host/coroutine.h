/*
 * Which coroutine runs: a debug hook belongs to one, and a signal handler has to set it where it
 * will be noticed.
 *
 * coroutine.resume, wrap and close are replaced by functions that do the same and keep count.
 * (A C module that resumes a coroutine by itself is not seen: its hook is noticed at its end.)
 */
#ifndef LOCKKEEPER_HOST_COROUTINE_H
#define LOCKKEEPER_HOST_COROUTINE_H

#include <lua.h>

/* Begin: L is the main thread of a state that has the coroutine library. */
void coroutine_track(lua_State *L);

/*
 * Call `hook` at the next instruction of the coroutine that runs, on each fiber; where the coroutine
 * ends before it has another, of the one that resumed it. Safe in a signal handler.
 */
void coroutine_interrupt(lua_Hook hook);

/*
 * The same at every instruction, of each coroutine that runs or is resumed, until coroutine_go_on.
 * The hook may find itself called after that: it then takes itself off (lua_sethook).
 */
void coroutine_stop(lua_Hook hook);
void coroutine_go_on(void);

/* To be called by coroutine_interrupt's hook first: it has been noticed. */
void coroutine_noticed(lua_State *L);

#endif
