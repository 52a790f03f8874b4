/*
 * A worker process's side of the socket to its supervisor (src/runner/child.h): lines of JSON, and
 * SIGTERM, which cancels the run that is at work.
 *
 * Where the supervisor itself has gone, SIGTERM ends the process at once: its run is for others to
 * find lost.
 */
#ifndef LOCKKEEPER_HOST_WORK_H
#define LOCKKEEPER_HOST_WORK_H

#include <lua.h>

/*
 * Add to the table on top:
 *
 *   work_open(fd, log_fd)  speak over the socket, log to the other one, in a process group of our own
 *   work_hear()            the next line; waits; nil: there will be none
 *   work_heard()           the next line, if it is here already; nil, false where there will be none
 *   work_say(text)         a line
 *   work_accept(yes)       true: SIGTERM cancels what runs, and what runs next; false: no more, and
 *                          what was cancelled may wait again, to put things in order
 */
void work_register(lua_State *L);

#endif
