#include "bind/schedule.h"

#include "base/schedule.h"
#include "base/window.h"
#include "base/zones.h"
#include "bind/args.h"

#include <lauxlib.h>
#include <math.h>
#include <string.h>

#define SCHEDULE_TNAME "lockkeeper.Schedule"
#define ZONES_TNAME    "lockkeeper.Zones"

/* Registry: the zones, made when one is first asked for. They outlive all schedules of the state. */
static const char ZONES[] = "lockkeeper.zones";

/* Instants in Lua are seconds, which a float holds exactly up to here. */
static const double INSTANT_MAX = 9007199254.0;

static int zones_gc(lua_State *L)
{
    Zones **zones = luaL_checkudata(L, 1, ZONES_TNAME);

    zones_free(*zones);
    *zones = NULL;
    return 0;
}

static Zones *zones_of(lua_State *L)
{
    Zones **zones;

    if (lua_getfield(L, LUA_REGISTRYINDEX, ZONES) == LUA_TUSERDATA) {
        zones = lua_touserdata(L, -1);
        lua_pop(L, 1); /* the registry keeps it */
        return *zones;
    }
    zones = lua_newuserdatauv(L, sizeof *zones, 0);
    *zones = NULL;
    luaL_setmetatable(L, ZONES_TNAME);
    *zones = zones_new(NULL);
    if (*zones == NULL)
        luaL_error(L, "not enough memory");
    lua_setfield(L, LUA_REGISTRYINDEX, ZONES);
    lua_pop(L, 1);
    return *zones;
}

/* The zone of the name at `index`; none or nil is UTC. */
static const Zone *check_zone(lua_State *L, int index)
{
    const char *name = lua_isnoneornil(L, index) ? "UTC" : args_text(L, index, "timezone");
    const Zone *zone;
    Error err;

    zone = zones_get(zones_of(L), name, &err);
    if (zone == NULL)
        args_raise(L, &err);
    return zone;
}

/* An instant in seconds since the epoch, as microseconds. */
static int64_t check_instant(lua_State *L, int index)
{
    double seconds = luaL_checknumber(L, index);

    if (!(fabs(seconds) <= INSTANT_MAX))
        args_usage(L, "an instant must be seconds since the epoch, not %g", seconds);
    return (int64_t)llround(seconds * 1e6);
}

/* ---- schedules ------------------------------------------------------------------------------- */

/* The text of a field of the table at index 1, left on the stack; NULL where there is none. */
static const char *optional_text(lua_State *L, const char *name)
{
    return lua_getfield(L, 1, name) == LUA_TNIL ? NULL : args_text(L, -1, name);
}

/*
 * schedule { cron = text | every = duration [, from = "finish"] [, timezone = name] [, job = name] }
 */
static int core_schedule(lua_State *L)
{
    Schedule *schedule;
    const char *cron;
    const char *job;
    const char *from;
    int64_t period_us;
    bool ok;
    Error err;

    lua_settop(L, 1);
    luaL_checktype(L, 1, LUA_TTABLE);
    cron = optional_text(L, "cron");
    job = optional_text(L, "job");
    from = optional_text(L, "from");
    schedule = lua_newuserdatauv(L, sizeof *schedule, 0);
    luaL_setmetatable(L, SCHEDULE_TNAME);
    if (cron != NULL) {
        lua_getfield(L, 1, "timezone");
        ok = schedule_from_cron(schedule, cron, check_zone(L, lua_gettop(L)), job, &err);
    } else {
        lua_getfield(L, 1, "every");
        period_us = args_duration(L, -1, "every");
        ok = from != NULL && strcmp(from, "finish") == 0
                 ? schedule_from_finish(schedule, period_us, &err)
                 : schedule_from_every(schedule, period_us, job == NULL ? "" : job, &err);
    }
    if (!ok)
        return args_raise(L, &err);
    lua_pop(L, 1);
    return 1;
}

/* schedule:next(instant): the first due one after it, in seconds, or nil */
static int schedule_lua_next(lua_State *L)
{
    const Schedule *schedule = luaL_checkudata(L, 1, SCHEDULE_TNAME);
    int64_t due_us = schedule_next(schedule, check_instant(L, 2));

    if (due_us == SCHEDULE_NEVER)
        lua_pushnil(L);
    else
        lua_pushinteger(L, due_us / 1000000);
    return 1;
}

/* schedule:kind(): "cron", "every", "finish" or "start" */
static int schedule_lua_kind(lua_State *L)
{
    static const char *const NAMES[] = {
        [SCHEDULE_CRON] = "cron",
        [SCHEDULE_EVERY] = "every",
        [SCHEDULE_FINISH] = "finish",
        [SCHEDULE_START] = "start",
    };
    const Schedule *schedule = luaL_checkudata(L, 1, SCHEDULE_TNAME);

    lua_pushstring(L, NAMES[schedule->kind]);
    return 1;
}

/* ---- windows and zones ----------------------------------------------------------------------- */

/*
 * window(text, timezone | nil [, instant]): seconds until the window that is open at that instant
 * closes, or nil where it is closed; without an instant only the text is checked
 */
static int core_window(lua_State *L)
{
    Window window;
    int64_t instant_us;
    Error err;

    lua_settop(L, 3);
    if (!window_parse(&window, args_text(L, 1, "window"), check_zone(L, 2), &err))
        return args_raise(L, &err);
    if (lua_isnil(L, 3))
        return 0;
    instant_us = check_instant(L, 3);
    if (!window_contains(&window, instant_us))
        return 0;
    lua_pushnumber(L, (double)(window_end(&window, instant_us) - instant_us) / 1e6);
    return 1;
}

/* check_timezone(name): true; a usage error where it is no zone's, or its data is damaged */
static int core_check_timezone(lua_State *L)
{
    check_zone(L, 1);
    lua_pushboolean(L, true);
    return 1;
}

/* utc_offset(timezone | nil, instant): seconds east of UTC that its clocks show */
static int core_utc_offset(lua_State *L)
{
    const Zone *zone;
    int64_t instant;

    lua_settop(L, 2);
    zone = check_zone(L, 1);
    instant = check_instant(L, 2) / 1000000;
    lua_pushinteger(L, zone->periods[zone_period_at(zone, instant)].offset);
    return 1;
}

void bind_schedule_register(lua_State *L)
{
    luaL_setfuncs(L,
                  ((luaL_Reg[]){{"schedule", core_schedule},
                                {"window", core_window},
                                {"check_timezone", core_check_timezone},
                                {"utc_offset", core_utc_offset},
                                {NULL, NULL}}),
                  0);
    luaL_newmetatable(L, ZONES_TNAME);
    lua_pushcfunction(L, zones_gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);

    luaL_newmetatable(L, SCHEDULE_TNAME);
    luaL_newlib(L, ((luaL_Reg[]){{"next", schedule_lua_next},
                                 {"kind", schedule_lua_kind},
                                 {NULL, NULL}}));
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
}
