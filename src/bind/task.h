/*
 * Tasks in Lua: a function that runs on a fiber (pg/wait.h) of its own. lock.tasks is made of them
 * in lua/lockkeeper/tasks.lua.
 *
 * Each task is a Lua thread of the same state. Fibers change only inside waits, hence inside C
 * functions, so a Lua thread never sees the other's.
 */
#ifndef LOCKKEEPER_BIND_TASK_H
#define LOCKKEEPER_BIND_TASK_H

#include <lua.h>

/* Add task, await, tell, fiber, cancel, absolve, raise_cancelled and find_sessions_by to the table.  */
void bind_task_register(lua_State *L);

/*
 * The registry's reference of the function that gives the running task its session of a name;
 * LUA_NOREF outside tasks. It also tells tasks' sessions apart.
 */
int task_session_finder(void);

/* Wait, uninterruptibly, for the end of every task that was not joined, and forget it. */
void bind_task_join_all(lua_State *L);

#endif
