/* Schedules and windows in Lua (base/schedule.h, base/window.h). */
#ifndef LOCKKEEPER_BIND_SCHEDULE_H
#define LOCKKEEPER_BIND_SCHEDULE_H

#include <lua.h>

/* Add schedule, window, check_timezone and utc_offset to the table on top. */
void bind_schedule_register(lua_State *L);

#endif
