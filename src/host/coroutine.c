#include "host/coroutine.h"

#include "pg/wait.h"

#include <lauxlib.h>
#include <lualib.h>
#include <signal.h>
#include <stddef.h>

typedef enum { NOTHING, ONE_CALL, EVERY_CALL } Pending;

static volatile sig_atomic_t pending;
static lua_Hook pending_hook;

/* On this fiber, the coroutine `L` runs now. */
static void runs(lua_State *L)
{
    *fiber_slot(FIBER_COROUTINE) = L;
}

/* lua_sethook may be called in a signal handler: it only sets fields. */
static void set_hook(void *coroutine)
{
    if (coroutine != NULL)
        lua_sethook(coroutine, pending_hook,
                    LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT, 1);
}

void coroutine_interrupt(lua_Hook hook)
{
    pending_hook = hook;
    pending = ONE_CALL;
    fiber_each_slot(FIBER_COROUTINE, set_hook);
}

void coroutine_noticed(lua_State *L)
{
    pending = NOTHING;
    lua_sethook(L, NULL, 0, 0);
}

void coroutine_stop(lua_Hook hook)
{
    pending_hook = hook;
    pending = EVERY_CALL;
    fiber_each_slot(FIBER_COROUTINE, set_hook);
}

void coroutine_go_on(void)
{
    if (pending == EVERY_CALL)
        pending = NOTHING;
}

/* `thread` is about to run. */
static void begins(lua_State *thread)
{
    runs(thread);
    if (pending == EVERY_CALL)
        set_hook(thread);
}

/*
 * L runs again. Where the other has ended, or never ran, with the hook set on it, L is to notice.
 * A signal between the two lines sets it on L.
 */
static void is_back(lua_State *L)
{
    runs(L);
    if (pending != NOTHING)
        set_hook(L);
}

/* The upvalue is the function that is replaced; given a thread, it raises nothing. */
static int tracked_resume(lua_State *L)
{
    lua_CFunction resume = lua_tocfunction(L, lua_upvalueindex(1));
    int results;

    luaL_checktype(L, 1, LUA_TTHREAD);
    begins(lua_tothread(L, 1));
    results = resume(L);
    is_back(L);
    return results;
}

/* It raises what a pending to-be-closed variable raised, hence the protected call. */
static int tracked_close(lua_State *L)
{
    int status;

    luaL_checktype(L, 1, LUA_TTHREAD);
    lua_settop(L, 1);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_pushvalue(L, 1);
    begins(lua_tothread(L, 1));
    status = lua_pcall(L, 1, LUA_MULTRET, 0);
    is_back(L);
    return status == LUA_OK ? lua_gettop(L) - 1 : lua_error(L);
}

/* As luaB_auxwrap of lcorolib.c: closes a coroutine that failed, puts the caller's place first. */
static int raise_from(lua_State *L, lua_State *thread)
{
    int status = lua_status(thread);

    if (status != LUA_OK && status != LUA_YIELD) {
        begins(thread);
        status = lua_resetthread(thread);
        is_back(L);
        lua_xmove(thread, L, 1);
    }
    if (status != LUA_ERRMEM && lua_type(L, -1) == LUA_TSTRING) {
        luaL_where(L, 1);
        lua_insert(L, -2);
        lua_concat(L, 2);
    }
    return lua_error(L);
}

/* What coroutine.wrap returns; upvalues: coroutine.resume as it was, the coroutine. */
static int call_wrapped(lua_State *L)
{
    lua_CFunction resume = lua_tocfunction(L, lua_upvalueindex(1));
    lua_State *thread = lua_tothread(L, lua_upvalueindex(2));
    int results;

    lua_pushvalue(L, lua_upvalueindex(2));
    lua_insert(L, 1);
    begins(thread);
    results = resume(L);
    is_back(L);
    return lua_toboolean(L, -results) ? results - 1 : raise_from(L, thread);
}

static int tracked_wrap(lua_State *L)
{
    lua_State *thread;

    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_pushvalue(L, lua_upvalueindex(1));
    thread = lua_newthread(L);
    lua_pushvalue(L, 1);
    lua_xmove(L, thread, 1);
    lua_pushcclosure(L, call_wrapped, 2);
    return 1;
}

/* coroutine[name] = function, with coroutine[kept] as it is now as its upvalue */
static void replace(lua_State *L, const char *name, const char *kept, lua_CFunction function)
{
    lua_getfield(L, -1, kept);
    lua_pushcclosure(L, function, 1);
    lua_setfield(L, -2, name);
}

void coroutine_track(lua_State *L)
{
    runs(L);
    lua_getglobal(L, LUA_COLIBNAME);
    replace(L, "wrap", "resume", tracked_wrap);
    replace(L, "resume", "resume", tracked_resume);
    replace(L, "close", "close", tracked_close);
    lua_pop(L, 1);
}
