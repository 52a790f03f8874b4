/*
 * A description: what a file of the user's defines, told by a child process, so that a file that
 * loops, prints without end, grows without end or ends its process harms nobody else.
 *
 * The child is this program again. It reports on a descriptor of its own, so that nothing that the
 * file prints gets between; what it prints, and its descendants, are bounded like itself. Where a
 * bound is passed, the child tells the line that the file was at.
 */
#ifndef LOCKKEEPER_HOST_DESCRIBE_H
#define LOCKKEEPER_HOST_DESCRIBE_H

#include <lua.h>

/*
 * Add to the table on top:
 *
 *   described(words)     runs `describe --fd N` and these words; returns a table { report, output,
 *                        ending, reason, line, source }: what it reported and printed, how it ended:
 *                        "reported", "stopped" (reason "time" or "output", with the line where that
 *                        is known), "exited" (reason: a text)
 *   describing(fd)       in the child: from now on the bounds of time and output hold
 *   report(text)         in the child: its report; the bounds end
 *   lua_files(folder)    the names of its *.lua, or nil where it is no folder
 *   sha256(text)         64 hexadecimal digits
 */
void describe_register(lua_State *L);

#endif
