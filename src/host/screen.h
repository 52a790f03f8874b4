/*
 * The terminal as a screen of cells, for Lua, over ncurses: `lockkeeper top`.
 *
 * While the screen is open, standard error is kept aside where it is a terminal too, so that no
 * message is written into the picture; it is shown when the screen closes. However the process
 * ends, short of SIGKILL, the terminal is then as it was before.
 */
#ifndef LOCKKEEPER_HOST_SCREEN_H
#define LOCKKEEPER_HOST_SCREEN_H

#include <lua.h>

/*
 * Add to the table on top of the stack:
 *
 *   screen_open()   a screen, on standard input and output; raises a usage error where these are no
 *                   terminal, or one that can't place its cursor. There is one at a time.
 *
 * Its methods; lines and columns count from 1, and what would be outside is left out:
 *
 *   size()                  lines, columns
 *   clear()                 begin a new picture
 *   put(line, column, text, width[, style])
 *                           text of UTF-8, cut or filled up to `width` columns; what is no
 *                           character that can be shown is replaced. `style`: parameters of SGR,
 *                           "1;31": 1 bold, 2 dim, 4 underlined, 7 reverse, 31 to 37 colours,
 *                           which $NO_COLOR leaves out
 *   redraw()                the next picture is drawn from nothing
 *   show([line, column])    show the picture, the cursor there, or hidden
 *   key(seconds)            wait for a key: a character, or a name such as "up", "enter", "ctrl-l";
 *                           "resize" where the picture has to be made anew; nil when the time is
 *                           over. Other tasks go on meanwhile. Raises when it is interrupted, or
 *                           the terminal went away.
 *   said()                  what was written to standard error since the last call, or nil
 *   close()                 also at the end of its scope
 */
void screen_register(lua_State *L);

/*
 * Give the terminal back, if a screen is open. Safe in a signal handler; nothing may follow but the
 * process' end.
 */
void screen_abandon(void);

#endif
