#include "bind/store.h"

#include "base/duration.h"
#include "bind/args.h"
#include "bind/buffer.h"
#include "bind/result.h"
#include "bind/session.h"
#include "runner/due.h"
#include "runner/schema.h"

#include <lauxlib.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RUNS_TNAME "lockkeeper.StoreRuns"
#define WAITING_TNAME "lockkeeper.StoreWaiting"

/* ---- options --------------------------------------------------------------------------------- */

/* Push the field; what is read of it lives as long as the table does. */
static int field(lua_State *L, int table, const char *name)
{
    return lua_getfield(L, table, name);
}

/* A text; NULL where it is nil. */
static const char *text_field(lua_State *L, int table, const char *name)
{
    const char *text = NULL;

    if (field(L, table, name) != LUA_TNIL)
        text = args_text(L, -1, name);
    lua_pop(L, 1);
    return text;
}

static const char *required_text(lua_State *L, int table, const char *name)
{
    const char *text = text_field(L, table, name);

    if (text == NULL)
        args_usage(L, "%s is missing", name);
    return text;
}

static lua_Integer integer_field(lua_State *L, int table, const char *name, lua_Integer otherwise)
{
    lua_Integer value = otherwise;
    int is_integer = 1;

    if (field(L, table, name) != LUA_TNIL)
        value = lua_tointegerx(L, -1, &is_integer);
    lua_pop(L, 1);
    if (!is_integer)
        args_usage(L, "%s must be an integer", name);
    return value;
}

static double number_field(lua_State *L, int table, const char *name, double otherwise)
{
    double value = otherwise;
    int is_number = 1;

    if (field(L, table, name) != LUA_TNIL)
        value = lua_tonumberx(L, -1, &is_number);
    lua_pop(L, 1);
    if (!is_number)
        args_usage(L, "%s must be a number", name);
    return value;
}

static bool boolean_field(lua_State *L, int table, const char *name)
{
    bool value;

    field(L, table, name);
    value = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return value;
}

static int64_t to_us(double seconds)
{
    return (int64_t)llround(seconds * 1e6);
}

/* An instant or a duration in seconds; `otherwise` where it is nil. */
static int64_t us_field(lua_State *L, int table, const char *name, int64_t otherwise)
{
    double seconds = number_field(L, table, name, NAN);

    return isnan(seconds) ? otherwise : to_us(seconds);
}

/* One of the words; the first where it is nil. */
static int word_field(lua_State *L, int table, const char *name, const char *const *words)
{
    const char *word = text_field(L, table, name);
    int place = word == NULL ? 0 : store_word(words, word);

    if (place < 0)
        args_usage(L, "%s can't be \"%.60s\"", name, word);
    return place;
}

/*
 * The list of texts at `index`, with NULL at its end; where that is nil, an empty one. Pushes its
 * memory. *count (may be NULL) is how many there are.
 */
static const char **list_at(lua_State *L, int index, const char *what, int *count)
{
    lua_Unsigned length = 0;
    const char **list;

    if (!lua_isnil(L, index)) {
        luaL_checktype(L, index, LUA_TTABLE);
        length = lua_rawlen(L, index);
    }
    list = lua_newuserdatauv(L, (size_t)(length + 1) * sizeof *list, 0);
    for (lua_Unsigned i = 0; i < length; i++) {
        lua_rawgeti(L, index, (lua_Integer)i + 1);
        list[i] = args_text(L, -1, what);
        lua_pop(L, 1); /* the list keeps it */
    }
    list[length] = NULL;
    if (count != NULL)
        *count = (int)length;
    return list;
}

/* The same, of a field. */
static const char **list_field(lua_State *L, int table, const char *name, int *count)
{
    const char **list;
    int at;

    field(L, table, name);
    at = lua_gettop(L);
    list = list_at(L, at, name, count);
    lua_remove(L, at); /* the table keeps it */
    return list;
}

/* How many tables the list at `index` has. */
static int check_list(lua_State *L, int index)
{
    luaL_checktype(L, index, LUA_TTABLE);
    return (int)lua_rawlen(L, index);
}

/* ---- results --------------------------------------------------------------------------------- */

static int runs_gc(lua_State *L)
{
    store_runs_clear(luaL_checkudata(L, 1, RUNS_TNAME));
    return 0;
}

/* Push an empty list of runs, which is freed with its userdata. */
static StoreRuns *runs_push(lua_State *L)
{
    StoreRuns *runs = lua_newuserdatauv(L, sizeof *runs, 0);

    *runs = (StoreRuns){0};
    luaL_setmetatable(L, RUNS_TNAME);
    return runs;
}

static void set_instant(lua_State *L, const char *name, int64_t us)
{
    if (us == STORE_NO_TIME)
        return;
    lua_pushnumber(L, (double)us / 1e6);
    lua_setfield(L, -2, name);
}

static void set_text(lua_State *L, const char *name, const char *text)
{
    lua_pushstring(L, text);
    lua_setfield(L, -2, name);
}

static void set_integer(lua_State *L, const char *name, lua_Integer value)
{
    lua_pushinteger(L, value);
    lua_setfield(L, -2, name);
}

static void set_boolean(lua_State *L, const char *name, bool value)
{
    lua_pushboolean(L, value);
    lua_setfield(L, -2, name);
}

static void push_run(lua_State *L, const StoreRun *run)
{
    lua_createtable(L, 0, 9);
    set_integer(L, "id", run->id);
    set_text(L, "job", run->job);
    set_text(L, "origin", RUN_ORIGIN_NAMES[run->origin]);
    set_instant(L, "slot", run->slot_us);
    set_integer(L, "attempt", run->attempt);
    if (run->parent != 0)
        set_integer(L, "parent", run->parent);
    set_instant(L, "due_at", run->due_us);
    set_text(L, "state", RUN_STATE_NAMES[run->state]);
    if (run->reason[0] != '\0')
        set_text(L, "reason", run->reason);
}

/* Push them as a list, and free them. */
static void push_runs(lua_State *L, StoreRuns *runs)
{
    lua_createtable(L, runs->count, 0);
    for (int i = 0; i < runs->count; i++) {
        push_run(L, &runs->runs[i]);
        lua_rawseti(L, -2, i + 1);
    }
    store_runs_clear(runs);
}

/* Push the rows of a result, which is at the top of the stack, as a list of tables. */
static void push_rows(lua_State *L, Session *session, PGresult **result)
{
    Columns columns;
    int count = PQntuples(*result);

    bind_session_push_known_types(L, 1);
    columns = columns_push(L, session, lua_gettop(L), *result);
    lua_createtable(L, count, 0);
    for (int i = 0; i < count; i++) {
        columns_push_row(L, &columns, *result, i);
        lua_rawseti(L, -2, i + 1);
    }
    result_clear(result);
}

/* ---- the schema ------------------------------------------------------------------------------ */

/* schema_newest(): the version that this program makes */
static int core_schema_newest(lua_State *L)
{
    lua_pushinteger(L, schema_newest());
    return 1;
}

/* schema_version(session): what is there; 0: none */
static int core_schema_version(lua_State *L)
{
    int version;
    Error err;

    if (!schema_version(bind_session_check(L, 1), &version, &err))
        return args_raise(L, &err);
    lua_pushinteger(L, version);
    return 1;
}

/* schema_migrate(session): the versions before and after */
static int core_schema_migrate(lua_State *L)
{
    int before;
    int after;
    Error err;

    if (!schema_migrate(bind_session_check(L, 1), &before, &after, &err))
        return args_raise(L, &err);
    lua_pushinteger(L, before);
    lua_pushinteger(L, after);
    return 2;
}

/* schema_check(session): raises where this role can't work with it */
static int core_schema_check(lua_State *L)
{
    Error err;

    if (!schema_check(bind_session_check(L, 1), &err))
        return args_raise(L, &err);
    return 0;
}

/* schema_sql(): the text for psql */
static int core_schema_sql(lua_State *L)
{
    PQExpBuffer text = buffer_push(L);

    schema_sql(text);
    buffer_to_string(L);
    return 1;
}

/* ---- runners and jobs ------------------------------------------------------------------------ */

/* A runner, as store_register gives it. */
static StoreRunner check_runner(lua_State *L, int index)
{
    StoreRunner runner = {0};
    const char *uuid;

    luaL_checktype(L, index, LUA_TTABLE);
    uuid = text_field(L, index, "uuid");
    if (uuid != NULL)
        text_copy(runner.uuid, sizeof runner.uuid, uuid);
    runner.host = required_text(L, index, "host");
    runner.version = required_text(L, index, "version");
    runner.zones = required_text(L, index, "zones");
    runner.workers = (int)integer_field(L, index, "workers", 1);
    runner.started_us = us_field(L, index, "started", 0);
    return runner;
}

/* store_clock(session): seconds to be added to the monotonic clock, and how far they may be off */
static int core_store_clock(lua_State *L)
{
    int64_t offset_us;
    int64_t error_us;
    Error err;

    if (!store_clock(bind_session_check(L, 1), &offset_us, &error_us, &err))
        return args_raise(L, &err);
    lua_pushnumber(L, (double)offset_us / 1e6);
    lua_pushnumber(L, (double)error_us / 1e6);
    return 2;
}

/* store_register(session, { host =, version =, zones =, workers = }): the runner, with its uuid */
static int core_store_register(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreRunner runner = check_runner(L, 2);
    Error err;

    if (!store_register(session, &runner, &err))
        return args_raise(L, &err);
    lua_createtable(L, 0, 6);
    set_text(L, "uuid", runner.uuid);
    set_text(L, "host", runner.host);
    set_text(L, "version", runner.version);
    set_text(L, "zones", runner.zones);
    set_integer(L, "workers", runner.workers);
    set_instant(L, "started", runner.started_us);
    return 1;
}

static int core_store_beat(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreRunner runner = check_runner(L, 2);
    Error err;

    if (!store_beat(session, &runner, &err))
        return args_raise(L, &err);
    return 0;
}

static int core_store_leave(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreRunner runner = check_runner(L, 2);
    Error err;

    if (!store_leave(session, &runner, &err))
        return args_raise(L, &err);
    return 0;
}

static int core_store_newest_zones(lua_State *L)
{
    char version[64];
    Error err;

    if (!store_newest_zones(bind_session_check(L, 1), version, sizeof version, &err))
        return args_raise(L, &err);
    lua_pushstring(L, version);
    return 1;
}

static int core_store_listen(lua_State *L)
{
    Error err;

    if (!store_listen(bind_session_check(L, 1), &err))
        return args_raise(L, &err);
    return 0;
}

/* A job at the top of the stack; false for catchup_window is without limit. */
static StoreJob read_job(lua_State *L)
{
    int at = lua_gettop(L);
    StoreJob job = {.enabled = true};

    luaL_checktype(L, at, LUA_TTABLE);
    job.name = required_text(L, at, "name");
    job.file = required_text(L, at, "file");
    job.definition = required_text(L, at, "definition");
    job.schedule = text_field(L, at, "schedule");
    job.overlap = (Overlap)word_field(L, at, "overlap", OVERLAP_NAMES);
    if (field(L, at, "enabled") == LUA_TBOOLEAN)
        job.enabled = lua_toboolean(L, -1);
    if (field(L, at, "catchup_window") == LUA_TBOOLEAN)
        job.catchup_window_us = DURATION_ENDLESS;
    else
        job.catchup_window_us = us_field(L, at, "catchup_window", 86400000000);
    lua_pop(L, 2);
    job.after = text_field(L, at, "after");
    job.after_on = (AfterOn)word_field(L, at, "after_on", AFTER_ON_NAMES);
    job.retry_attempts = (int)integer_field(L, at, "retry_attempts", 1);
    job.retry_delay_us = us_field(L, at, "retry_delay", 0);
    job.retry_factor = number_field(L, at, "retry_factor", 1);
    return job;
}

/* store_record_jobs(session, jobs, files) */
static int core_store_record_jobs(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    int count = check_list(L, 2);
    StoreJob *jobs;
    const char **files;
    int file_count;
    Error err;

    lua_settop(L, 3);
    jobs = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *jobs, 0);
    luaL_checkstack(L, 2 * count + 20, "too many jobs");
    for (int i = 0; i < count; i++) {
        bool has_words;
        int at;

        lua_rawgeti(L, 2, i + 1);
        jobs[i] = read_job(L);
        at = lua_gettop(L);
        has_words = field(L, at, "retry_on") != LUA_TNIL;
        lua_pop(L, 1);
        if (has_words)
            jobs[i].retry_on = list_field(L, at, "retry_on", NULL); /* stays on the stack */
        lua_remove(L, at); /* the list of jobs keeps it */
    }
    files = list_at(L, 3, "the files", &file_count);
    if (!store_record_jobs(session, jobs, count, files, file_count, &err))
        return args_raise(L, &err);
    return 0;
}

/* store_facts(session, names): a list of tables; an unknown job's has only `at_work` */
static int core_store_facts(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    const char **names;
    StoreFacts *facts;
    int count;
    Error err;

    names = list_at(L, 2, "the names", &count);
    facts = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *facts, 0);
    if (!store_facts(session, names, count, facts, &err))
        return args_raise(L, &err);
    lua_createtable(L, count, 0);
    for (int i = 0; i < count; i++) {
        lua_createtable(L, 0, 6);
        set_boolean(L, "known", facts[i].known);
        set_boolean(L, "paused", facts[i].paused);
        set_instant(L, "since", facts[i].since_us);
        set_instant(L, "newest", facts[i].newest_us);
        set_instant(L, "last_end", facts[i].last_end_us);
        set_boolean(L, "at_work", facts[i].at_work);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* store_name_locks(session, { { classid =, objid =, objsubid =, name = }, … }) */
static int core_store_name_locks(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    int count = check_list(L, 2);
    StoreLockName *names = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *names, 0);
    Error err;

    for (int i = 0; i < count; i++) {
        int at;

        lua_rawgeti(L, 2, i + 1);
        at = lua_gettop(L);
        luaL_checktype(L, at, LUA_TTABLE);
        names[i] = (StoreLockName){
            .classid = (uint32_t)integer_field(L, at, "classid", 0),
            .objid = (uint32_t)integer_field(L, at, "objid", 0),
            .objsubid = (int)integer_field(L, at, "objsubid", 1),
            .name = required_text(L, at, "name"),
        };
        lua_pop(L, 1); /* the list keeps it */
    }
    if (!store_name_locks(session, names, count, &err))
        return args_raise(L, &err);
    return 0;
}

/* ---- claims ---------------------------------------------------------------------------------- */

/*
 * store_claim(session, runner, slots, workers): the claimed runs, and how many were claimed, due,
 * skipped and lost
 */
static int core_store_claim(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreRunner runner = check_runner(L, 2);
    int count = check_list(L, 3);
    int workers = (int)luaL_checkinteger(L, 4);
    StoreSlot *slots = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *slots, 0);
    StoreRuns *claimed = runs_push(L);
    StoreTally tally;
    Error err;

    for (int i = 0; i < count; i++) {
        int at;

        lua_rawgeti(L, 3, i + 1);
        at = lua_gettop(L);
        luaL_checktype(L, at, LUA_TTABLE);
        slots[i] = (StoreSlot){
            .job = required_text(L, at, "job"),
            .origin = (RunOrigin)word_field(L, at, "origin", RUN_ORIGIN_NAMES),
            .slot_us = us_field(L, at, "slot", 0),
            .overlap = (Overlap)word_field(L, at, "overlap", OVERLAP_NAMES),
            .catches_up = boolean_field(L, at, "catches_up"),
            .skip = text_field(L, at, "skip"),
        };
        lua_pop(L, 1); /* the list keeps it */
    }
    if (!store_claim(session, &runner, slots, count, workers, claimed, &tally, &err))
        return args_raise(L, &err);
    push_runs(L, claimed);
    lua_createtable(L, 0, 4);
    set_integer(L, "claimed", tally.claimed);
    set_integer(L, "due", tally.due);
    set_integer(L, "skipped", tally.skipped);
    set_integer(L, "lost", tally.lost);
    return 2;
}

static int waiting_gc(lua_State *L)
{
    store_waiting_clear(luaL_checkudata(L, 1, WAITING_TNAME));
    return 0;
}

/* store_waiting(session): a list of jobs, and when the next row becomes due or nil */
static int core_store_waiting(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreWaiting *waiting = lua_newuserdatauv(L, sizeof *waiting, 0);
    Error err;

    *waiting = (StoreWaiting){0};
    luaL_setmetatable(L, WAITING_TNAME);
    if (!store_waiting(session, waiting, &err))
        return args_raise(L, &err);
    lua_createtable(L, waiting->count, 0);
    for (int i = 0; i < waiting->count; i++) {
        lua_pushstring(L, store_waiting_job(waiting, i));
        lua_rawseti(L, -2, i + 1);
    }
    if (waiting->next_us == STORE_NO_TIME)
        lua_pushnil(L);
    else
        lua_pushnumber(L, (double)waiting->next_us / 1e6);
    store_waiting_clear(waiting);
    return 2;
}

/* store_take(session, runner, jobs, workers): a list of runs */
static int core_store_take(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreRunner runner = check_runner(L, 2);
    int workers = (int)luaL_checkinteger(L, 4);
    StoreRuns *taken;
    const char **jobs;
    int count;
    Error err;

    jobs = list_at(L, 3, "the jobs", &count);
    taken = runs_push(L);
    if (!store_take(session, &runner, jobs, count, workers, taken, &err))
        return args_raise(L, &err);
    push_runs(L, taken);
    return 1;
}

/* store_give_back(session, runner, run [, later]): was it still ours? */
static int core_store_give_back(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreRunner runner = check_runner(L, 2);
    int claims;
    Error err;

    if (!store_give_back(session, &runner, luaL_checkinteger(L, 3), lua_toboolean(L, 4), &claims, &err))
        return args_raise(L, &err);
    lua_pushboolean(L, claims > 0);
    return 1;
}

/* ---- one run --------------------------------------------------------------------------------- */

/* store_run_key(run): the bigint key of its liveness lock */
static int core_store_run_key(lua_State *L)
{
    lua_pushinteger(L, store_run_key(luaL_checkinteger(L, 1)));
    return 1;
}

/* store_run(session, run): its row */
static int core_store_run(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    lua_Integer run = luaL_checkinteger(L, 2);
    PGresult **result = result_push(L);
    Error err;

    *result = store_run(session, run, &err);
    if (*result == NULL)
        return args_raise(L, &err);
    push_rows(L, session, result);
    lua_rawgeti(L, -1, 1);
    return 1;
}

/*
 * store_step(session, { run =, runner =, guards =, conflicts =, grace =, guarded =, waited =,
 * fenced =, backend_start = }): "running", its fence or nil, when it had its guards, the
 * backend_start (an integer) of the session's next step; or "wait", nil, when, the run that it waits
 * for, seconds at most; or "gone"; or "cancelled"
 */
static int core_store_step(lua_State *L)
{
    static const char *const ENDS[] = {
        [STEP_RUNNING] = "running",
        [STEP_WAIT] = "wait",
        [STEP_GONE] = "gone",
        [STEP_CANCELLED] = "cancelled",
    };
    Session *session = bind_session_check(L, 1);
    StoreStep step = {0};
    StoreStepped stepped;
    Error err;

    luaL_checktype(L, 2, LUA_TTABLE);
    step.run = integer_field(L, 2, "run", 0);
    step.runner = required_text(L, 2, "runner");
    step.guards = list_field(L, 2, "guards", &step.guard_count);
    step.conflicts = list_field(L, 2, "conflicts", &step.conflict_count);
    step.grace_us = us_field(L, 2, "grace", 0);
    step.guarded_us = us_field(L, 2, "guarded", STORE_NO_TIME);
    step.backend_start_us = integer_field(L, 2, "backend_start", STORE_NO_TIME);
    step.waited_s = number_field(L, 2, "waited", 0);
    step.fenced = boolean_field(L, 2, "fenced");
    if (!store_step(session, &step, &stepped, &err))
        return args_raise(L, &err);
    lua_pushstring(L, ENDS[stepped.end]);
    if (stepped.end == STEP_RUNNING && step.fenced)
        lua_pushinteger(L, stepped.fence);
    else
        lua_pushnil(L);
    lua_pushnumber(L, (double)stepped.guarded_us / 1e6);
    if (stepped.end == STEP_RUNNING) {
        lua_pushinteger(L, stepped.backend_start_us);
        return 4;
    }
    if (stepped.end != STEP_WAIT)
        return 3;
    lua_pushinteger(L, stepped.other);
    lua_pushnumber(L, (double)stepped.wait_us / 1e6);
    return 5;
}

/*
 * store_others(session, { conflicts =, guarded = }): of a run without a row, the run that it waits
 * for or nil, and when it had its guards
 */
static int core_store_others(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreStep step = {0};
    StoreStepped stepped;
    Error err;

    luaL_checktype(L, 2, LUA_TTABLE);
    step.conflicts = list_field(L, 2, "conflicts", &step.conflict_count);
    step.guarded_us = us_field(L, 2, "guarded", STORE_NO_TIME);
    if (!store_others(session, &step, &stepped, &err))
        return args_raise(L, &err);
    if (stepped.end == STEP_WAIT)
        lua_pushinteger(L, stepped.other);
    else
        lua_pushnil(L);
    lua_pushnumber(L, (double)stepped.guarded_us / 1e6);
    return 2;
}

/* Seconds, "policy", or nil: never. */
static int64_t retry_field(lua_State *L, int table)
{
    bool by_policy = field(L, table, "retry_after") == LUA_TSTRING;

    lua_pop(L, 1);
    return by_policy ? STORE_RETRY_POLICY : us_field(L, table, "retry_after", STORE_RETRY_NONE);
}

/*
 * store_end(session, { run =, runner =, state =, reason =, error =, error_kind =, sqlstate =,
 * detail =, result =, output =, waited =, ran =, retry_after = }): did it end it?, the run that
 * tries it again or nil
 */
static int core_store_end(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreEnd end = {0};
    int64_t retry;
    bool ended;
    Error err;

    luaL_checktype(L, 2, LUA_TTABLE);
    end.run = integer_field(L, 2, "run", 0);
    end.runner = required_text(L, 2, "runner");
    required_text(L, 2, "state");
    end.state = (RunState)word_field(L, 2, "state", RUN_STATE_NAMES);
    if (end.state < RUN_SUCCEEDED)
        args_usage(L, "a run does not end as %s", RUN_STATE_NAMES[end.state]);
    end.reason = text_field(L, 2, "reason");
    end.error_kind = text_field(L, 2, "error_kind");
    end.sqlstate = text_field(L, 2, "sqlstate");
    end.result = text_field(L, 2, "result");
    if (field(L, 2, "error") != LUA_TNIL) /* what was raised: NUL bytes end it */
        end.error = luaL_checkstring(L, -1);
    if (field(L, 2, "detail") != LUA_TNIL)
        end.detail = luaL_checkstring(L, -1);
    if (field(L, 2, "output") != LUA_TNIL)
        end.output = luaL_checklstring(L, -1, &end.output_length);
    end.waited_s = number_field(L, 2, "waited", -1);
    end.ran_s = number_field(L, 2, "ran", -1);
    end.retry_after_us = retry_field(L, 2);
    if (!store_end(session, &end, &ended, &retry, &err))
        return args_raise(L, &err);
    lua_pushboolean(L, ended);
    if (retry == 0)
        lua_pushnil(L);
    else
        lua_pushinteger(L, retry);
    return 2;
}

/* store_output(session, run, runner, text) */
static int core_store_output(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    size_t length;
    const char *text = luaL_checklstring(L, 4, &length);
    Error err;

    if (!store_output(session, luaL_checkinteger(L, 2), args_text(L, 3, "the runner"), text, length,
                      &err))
        return args_raise(L, &err);
    return 0;
}

/* ---- requests, looks, history ---------------------------------------------------------------- */

/* store_requests(session, runner): its runs that are to be cancelled */
static int core_store_requests(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreRunner runner = check_runner(L, 2);
    StoreRuns *runs = runs_push(L);
    Error err;

    if (!store_requests(session, &runner, runs, &err))
        return args_raise(L, &err);
    push_runs(L, runs);
    return 1;
}

/* store_look(session, own): the runs that were changed; `own`: a run to be left alone, or nil */
static int core_store_look(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    int64_t own = luaL_optinteger(L, 2, 0);
    StoreRuns *runs = runs_push(L);
    Error err;

    if (!store_look(session, &own, own == 0 ? 0 : 1, runs, &err))
        return args_raise(L, &err);
    push_runs(L, runs);
    return 1;
}

/* store_trigger(session, job): the run */
static int core_store_trigger(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    const char *job = args_text(L, 2, "the job's name");
    StoreRuns *runs = runs_push(L);
    Error err;

    if (!store_trigger(session, job, runs, &err))
        return args_raise(L, &err);
    push_runs(L, runs);
    lua_rawgeti(L, -1, 1);
    return 1;
}

/* store_pause(session, job, pause): was it not so before? */
static int core_store_pause(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    const char *job = args_text(L, 2, "the job's name");
    bool changed;
    Error err;

    if (!store_pause(session, job, lua_toboolean(L, 3), &changed, &err))
        return args_raise(L, &err);
    lua_pushboolean(L, changed);
    return 1;
}

/* store_cancel(session, job or run): the runs, as they are now */
static int core_store_cancel(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    bool by_number = lua_type(L, 2) == LUA_TNUMBER;
    const char *job = by_number ? NULL : args_text(L, 2, "the job's name");
    int64_t run = by_number ? luaL_checkinteger(L, 2) : 0;
    StoreRuns *runs = runs_push(L);
    Error err;

    if (!store_cancel(session, job, run, runs, &err))
        return args_raise(L, &err);
    push_runs(L, runs);
    return 1;
}

/* store_history(session, { job =, states =, since =, limit = }): rows, newest first */
static int core_store_history(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    StoreHistory filter = {0};
    PGresult **result;
    bool has_states;
    Error err;

    luaL_checktype(L, 2, LUA_TTABLE);
    filter.job = text_field(L, 2, "job");
    filter.since_us = us_field(L, 2, "since", STORE_NO_TIME);
    filter.limit = (int)integer_field(L, 2, "limit", 100);
    has_states = field(L, 2, "states") != LUA_TNIL;
    if (has_states)
        filter.states = list_field(L, 2, "states", NULL);
    result = result_push(L);
    *result = store_history(session, &filter, &err);
    if (*result == NULL)
        return args_raise(L, &err);
    push_rows(L, session, result);
    return 1;
}

/* store_jobs(session): rows */
static int core_store_jobs(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    PGresult **result = result_push(L);
    Error err;

    *result = store_jobs(session, &err);
    if (*result == NULL)
        return args_raise(L, &err);
    push_rows(L, session, result);
    return 1;
}

/* store_runners(session): rows */
static int core_store_runners(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    PGresult **result = result_push(L);
    Error err;

    *result = store_runners(session, &err);
    if (*result == NULL)
        return args_raise(L, &err);
    push_rows(L, session, result);
    return 1;
}

/* store_prune(session, seconds or false, runs, after): how many went; nil, or `after` of the next call */
static int core_store_prune(lua_State *L)
{
    Session *session = bind_session_check(L, 1);
    PQExpBuffer after = (lua_settop(L, 4), buffer_push(L));
    int64_t keep_us = lua_isboolean(L, 2) ? DURATION_ENDLESS : to_us(luaL_checknumber(L, 2));
    int64_t pruned;
    bool more;
    Error err;

    appendPQExpBufferStr(after, luaL_optstring(L, 4, ""));
    if (!store_prune(session, keep_us, (int)luaL_checkinteger(L, 3), after, &more, &pruned, &err))
        return args_raise(L, &err);
    lua_pushinteger(L, pruned);
    if (more)
        lua_pushstring(L, after->data);
    else
        lua_pushnil(L);
    return 2;
}

static const luaL_Reg FUNCTIONS[] = {
    {"schema_newest", core_schema_newest},
    {"schema_version", core_schema_version},
    {"schema_migrate", core_schema_migrate},
    {"schema_check", core_schema_check},
    {"schema_sql", core_schema_sql},
    {"store_clock", core_store_clock},
    {"store_register", core_store_register},
    {"store_beat", core_store_beat},
    {"store_leave", core_store_leave},
    {"store_newest_zones", core_store_newest_zones},
    {"store_listen", core_store_listen},
    {"store_record_jobs", core_store_record_jobs},
    {"store_facts", core_store_facts},
    {"store_name_locks", core_store_name_locks},
    {"store_claim", core_store_claim},
    {"store_waiting", core_store_waiting},
    {"store_take", core_store_take},
    {"store_give_back", core_store_give_back},
    {"store_run_key", core_store_run_key},
    {"store_run", core_store_run},
    {"store_step", core_store_step},
    {"store_others", core_store_others},
    {"store_end", core_store_end},
    {"store_output", core_store_output},
    {"store_requests", core_store_requests},
    {"store_look", core_store_look},
    {"store_trigger", core_store_trigger},
    {"store_pause", core_store_pause},
    {"store_cancel", core_store_cancel},
    {"store_history", core_store_history},
    {"store_jobs", core_store_jobs},
    {"store_runners", core_store_runners},
    {"store_prune", core_store_prune},
    {NULL, NULL},
};

static void new_metatable(lua_State *L, const char *name, lua_CFunction gc)
{
    luaL_newmetatable(L, name);
    lua_pushcfunction(L, gc);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}

void bind_store_register(lua_State *L)
{
    luaL_setfuncs(L, FUNCTIONS, 0);
    new_metatable(L, RUNS_TNAME, runs_gc);
    new_metatable(L, WAITING_TNAME, waiting_gc);
}
