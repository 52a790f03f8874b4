#include "bind/task.h"

#include "bind/args.h"
#include "pg/wait.h"

#include <lauxlib.h>

static const char TASK[] = "lockkeeper.Task";

/* Registry: the tasks that run, or were not joined; nothing else may keep them alive. */
static const char UNJOINED[] = "lockkeeper.tasks";

typedef struct {
    const char *kind;
    Fiber *fiber; /* NULL once joined */
    lua_State *thread;
    int arguments;
    bool failed;
    bool joining;
    int finder; /* see task_session_finder */
    bool owns_finder;
} TaskObject;

enum { UV_THREAD = 1 };

static TaskObject *current_task(void)
{
    return *fiber_slot(FIBER_TASK);
}

int task_session_finder(void)
{
    const TaskObject *task = current_task();

    return task == NULL ? LUA_NOREF : task->finder;
}

static TaskObject *check_task(lua_State *L)
{
    TaskObject *task = args_to_kind(L, 1, TASK);

    if (task == NULL || task->joining)
        args_usage(L, "a task that was not joined was expected");
    return task;
}

/* Keep the task at index 1 alive, or let go. */
static void set_unjoined(lua_State *L, bool unjoined)
{
    lua_getfield(L, LUA_REGISTRYINDEX, UNJOINED);
    lua_pushvalue(L, 1);
    if (unjoined)
        lua_pushboolean(L, true);
    else
        lua_pushnil(L);
    lua_rawset(L, -3);
    lua_pop(L, 1);
}

/* fn, ...: what the task does, unless it was cancelled before it began */
static int begin(lua_State *L)
{
    Error err;

    if (wait_is_interrupted()) {
        wait_interrupted_error(&err);
        return args_raise(L, &err);
    }
    lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
    return lua_gettop(L);
}

static void run(void *argument)
{
    TaskObject *task = argument;

    *fiber_slot(FIBER_TASK) = task;
    *fiber_slot(FIBER_COROUTINE) = task->thread;
    task->failed = lua_pcall(task->thread, task->arguments, LUA_MULTRET, 0) != LUA_OK;
}

/* task(fn, ...): runs fn(...) on a fiber of its own, beginning when the caller next waits */
static int core_task(lua_State *L)
{
    int arguments = lua_gettop(L);
    TaskObject *task;
    Error err;

    luaL_checktype(L, 1, LUA_TFUNCTION);
    task = lua_newuserdatauv(L, sizeof *task, 1);
    *task = (TaskObject){.arguments = arguments, .finder = task_session_finder()};
    args_set_kind(L, TASK);
    lua_insert(L, 1);
    task->thread = lua_newthread(L);
    lua_setiuservalue(L, 1, UV_THREAD);
    if (!lua_checkstack(task->thread, arguments + LUA_MINSTACK))
        return luaL_error(L, "not enough memory");
    lua_pushcfunction(task->thread, begin);
    lua_xmove(L, task->thread, arguments);
    set_unjoined(L, true);
    if (!fiber_start(&task->fiber, run, task, &err)) {
        set_unjoined(L, false);
        return args_raise(L, &err);
    }
    return 1;
}

/* task:cancel(): raises "cancelled" where it waits, and at every further wait */
static int task_cancel(lua_State *L)
{
    fiber_cancel(check_task(L)->fiber);
    return 0;
}

/* task:join(): waits, uninterruptibly; true and its results, or false and its error */
static int task_join(lua_State *L)
{
    TaskObject *task = check_task(L);
    int results;

    task->joining = true;
    fiber_join(task->fiber);
    task->fiber = NULL;
    set_unjoined(L, false);
    if (task->owns_finder)
        luaL_unref(L, LUA_REGISTRYINDEX, task->finder);
    results = lua_gettop(task->thread);
    luaL_checkstack(L, results + 1, "too many results");
    lua_pushboolean(L, !task->failed);
    lua_xmove(task->thread, L, results);
    return results + 1;
}

void bind_task_join_all(lua_State *L)
{
    lua_getfield(L, LUA_REGISTRYINDEX, UNJOINED);
    for (lua_pushnil(L); lua_next(L, -2) != 0; lua_pushnil(L)) { /* the first, until none is left */
        TaskObject *task = lua_touserdata(L, -2);

        lua_pop(L, 1);
        if (!task->joining) {
            task->joining = true;
            fiber_join(task->fiber);
            task->fiber = NULL;
            if (task->owns_finder)
                luaL_unref(L, LUA_REGISTRYINDEX, task->finder);
        }
        lua_pushnil(L);
        lua_rawset(L, -3);
    }
    lua_pop(L, 1);
}

/* find_sessions_by(fn): from now on fn(name) gives this task, and those it starts, its sessions */
static int core_find_sessions_by(lua_State *L)
{
    TaskObject *task = current_task();

    luaL_checktype(L, 1, LUA_TFUNCTION);
    if (task == NULL || task->owns_finder)
        return luaL_error(L, "find_sessions_by: no task, or called before");
    lua_settop(L, 1);
    task->finder = luaL_ref(L, LUA_REGISTRYINDEX);
    task->owns_finder = true;
    return 0;
}

/* await(object): until tell(object) is called; false where it was interrupted. Look again then. */
static int core_await(lua_State *L)
{
    lua_pushboolean(L, wait_told(lua_topointer(L, 1), WAIT_NORMAL) == WAIT_READY);
    return 1;
}

static int core_tell(lua_State *L)
{
    wait_tell(lua_topointer(L, 1));
    return 0;
}

/* fiber(): the one that runs, as cancel and absolve take it; valid while it runs */
static int core_fiber(lua_State *L)
{
    lua_pushlightuserdata(L, fiber_current());
    return 1;
}

static int core_cancel(lua_State *L)
{
    fiber_cancel(lua_touserdata(L, 1));
    return 0;
}

/* absolve(fiber): takes one cancel(fiber) back */
static int core_absolve(lua_State *L)
{
    fiber_absolve(lua_touserdata(L, 1));
    return 0;
}

/* raise_cancelled(): what a wait that was interrupted raises */
static int core_raise_cancelled(lua_State *L)
{
    Error err;

    wait_interrupted_error(&err);
    return args_raise(L, &err);
}

void bind_task_register(lua_State *L)
{
    lua_newtable(L);
    lua_setfield(L, LUA_REGISTRYINDEX, UNJOINED);
    luaL_setfuncs(L,
                  ((luaL_Reg[]){{"task", core_task},
                                {"await", core_await},
                                {"tell", core_tell},
                                {"fiber", core_fiber},
                                {"cancel", core_cancel},
                                {"absolve", core_absolve},
                                {"raise_cancelled", core_raise_cancelled},
                                {"find_sessions_by", core_find_sessions_by},
                                {NULL, NULL}}),
                  0);
    args_new_kind(L, TASK);
    luaL_newlib(L, ((luaL_Reg[]){{"cancel", task_cancel}, {"join", task_join}, {NULL, NULL}}));
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
}
