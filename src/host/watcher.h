/*
 * No job runs on without its lock.
 *
 * A thread of its own, the one lasting one there is, waits for the sockets of the sessions that
 * hold a job's locks to hang up, and for the end of the job's time. Then it signals the Lua thread,
 * whose handler stops it (wait_stop, coroutine_stop): every wait ends and an error is raised at
 * every instruction, until the job has unwound. A Lua thread that has not unwound 80 ms later, and
 * is not in a wait of ours, sits in a C function that nothing ends: then the process does, by
 * _exit. The watcher touches no Lua state and no PGconn.
 *
 * After SIGCONT the sockets are looked at before anything else runs: where one has hung up while
 * the process was stopped, it ends at once.
 */
#ifndef LOCKKEEPER_HOST_WATCHER_H
#define LOCKKEEPER_HOST_WATCHER_H

#include <lua.h>

/*
 * watched(sessions, { max_run = duration | nil }, fn, ...): calls fn(...) under watch of these
 * sessions, which must be connected; true and its results, or false and its error. Where it was
 * stopped, that error's kind is "lock_lost" or "timed_out", whatever fn made of it, every task that
 * it has left behind has ended, and the sessions that its tasks had by name are closed. Not nested.
 */
int watcher_watched(lua_State *L);

/*
 * Stop what is watched, or where nothing is, every wait of this thread (until wait_go_on) and the
 * next watch: the run is cancelled, the error's kind is "cancelled". Safe in a signal handler of
 * the Lua thread.
 */
void watcher_cancel(void);

#endif
