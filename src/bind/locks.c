#include "bind/locks.h"

#include "base/duration.h"
#include "base/log.h"
#include "bind/args.h"
#include "bind/session.h"
#include "locks/advisory.h"
#include "locks/all.h"
#include "locks/model.h"
#include "locks/timeout.h"

#include <lauxlib.h>
#include <stdio.h>
#include <string.h>

#define TIMEOUT_TNAME "lockkeeper.Timeout"

static const char GUARD[] = "lockkeeper.Guard";

/* How messages call a lock: "nightly-report", 42 or 1,2. At least KEY_TEXT_SIZE. */
enum { NAME_SIZE = 80 };

/* What to do when a lock can't be had. */
typedef enum { BUSY_DEFAULT, BUSY_RETURN, BUSY_RAISE, BUSY_SKIP } OnBusy;

static OnBusy check_on_busy(lua_State *L, int index, const char *function)
{
    static const char *const NAMES[] = {"return", "raise", "skip", NULL};
    char what[64];
    const char *name;
    const char *nearest;

    snprintf(what, sizeof what, "%s: on_busy", function);
    name = args_text(L, index, what);
    for (int i = 0; NAMES[i] != NULL; i++) {
        if (strcmp(name, NAMES[i]) == 0)
            return (OnBusy)(i + BUSY_RETURN);
    }
    nearest = text_nearest(name, NAMES);
    args_usage(L, "%s must be \"return\", \"raise\" or \"skip\", not \"%.40s\"%s%s%s", what, name,
               nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "");
}

/* nil and the error, or raise it. */
static int busy(lua_State *L, OnBusy on_busy, const Error *err)
{
    if (!error_is_busy(err) || on_busy == BUSY_RAISE)
        return args_raise(L, err);
    return args_fail(L, err);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static bool is_int32(lua_State *L, int index)
{
    return lua_isinteger(L, index) && lua_tointeger(L, index) >= INT32_MIN &&
           lua_tointeger(L, index) <= INT32_MAX;
}

static int32_t check_int32(lua_State *L, int index, const char *what)
{
    char got[64];

    if (!is_int32(L, index)) {
        args_describe(L, index, got, sizeof got);
        args_usage(L, "%s must be an integer from -2147483648 to 2147483647, not %s", what, got);
    }
    return (int32_t)lua_tointeger(L, index);
}

typedef struct {
    KeyScheme scheme;
    int32_t prefix;
    int using;           /* stack index of the session to ask for hashtext */
    lua_Integer element; /* of all's list, for messages; 0: the id stands alone */
} KeyOptions;

enum { PLACE_SIZE = 40 };

/* "all: element 3: " or nothing: what a message about an id begins with. */
static const char *id_place(const KeyOptions *options, char place[PLACE_SIZE])
{
    place[0] = '\0';
    if (options->element != 0)
        snprintf(place, PLACE_SIZE, "all: element " LUA_INTEGER_FMT ": ", options->element);
    return place;
}

static void check_pair(lua_State *L, int index, const KeyOptions *options, LockKey *key)
{
    lua_Unsigned length = lua_rawlen(L, index);
    char place[PLACE_SIZE];

    if (length != 2)
        args_usage(L, "%san id that is a table must be two int4 keys {a, b}; this one has %d "
                      "elements", id_place(options, place), (int)length);
    lua_rawgeti(L, index, 1);
    lua_rawgeti(L, index, 2);
    for (int i = 0; i < 2; i++) {
        char what[PLACE_SIZE + 40];

        if (is_int32(L, i - 2))
            continue;
        snprintf(what, sizeof what, "%san id's %s int4 key", id_place(options, place),
                 i == 0 ? "first" : "second");
        check_int32(L, i - 2, what);
    }
    *key = (LockKey){.pair = true,
                     .first = (int32_t)lua_tointeger(L, -2),
                     .second = (int32_t)lua_tointeger(L, -1)};
    lua_pop(L, 2);
}

/* The key of the id at `index`. */
static LockKey check_key(lua_State *L, int index, const KeyOptions *options)
{
    LockKey key = {0};
    Session *session = NULL;
    char place[PLACE_SIZE];
    char got[64];
    size_t length;
    const char *text;
    Error err;

    switch (lua_type(L, index)) {
    case LUA_TSTRING:
        text = lua_tolstring(L, index, &length);
        if (options->scheme == SCHEME_HASHTEXT)
            session = bind_session_using(L, options->using);
        if (!key_from_name(options->scheme, text, length, options->prefix, session, &key, &err))
            args_raise(L, &err);
        break;
    case LUA_TNUMBER:
        if (!lua_isinteger(L, index))
            args_usage(L, "%san id that is a number must be an integer, not the float %.14g",
                       id_place(options, place), lua_tonumber(L, index));
        key.key = lua_tointeger(L, index);
        break;
    case LUA_TTABLE:
        check_pair(L, index, options, &key);
        break;
    default:
        args_describe(L, index, got, sizeof got);
        args_usage(L, "%san id must be a text, an integer or {int4, int4}, not %s",
                   id_place(options, place), got);
    }
    return key;
}

/* The same; `name` gets what messages call it. */
static LockKey check_id(lua_State *L, int index, const KeyOptions *options, char name[NAME_SIZE])
{
    LockKey key = check_key(L, index, options);
    char got[64];

    if (lua_type(L, index) == LUA_TSTRING) {
        text_copy(got, sizeof got, lua_tostring(L, index));
        snprintf(name, NAME_SIZE, "\"%s\"", got);
    } else {
        key_text(&key, name);
    }
    return key;
}

static KeyScheme check_scheme(lua_State *L, int index)
{
    KeyScheme scheme;
    Error err;

    if (!key_scheme_parse(args_text(L, index, "scheme"), &scheme, &err))
        args_raise(L, &err);
    return scheme;
}

void bind_locks_push_key(lua_State *L, const LockKey *key)
{
    if (!key->pair) {
        lua_pushinteger(L, key->key);
        return;
    }
    lua_createtable(L, 2, 0);
    lua_pushinteger(L, key->first);
    lua_rawseti(L, -2, 1);
    lua_pushinteger(L, key->second);
    lua_rawseti(L, -2, 2);
}

/* A scheme's name, or a table: the same options as advisory's. `using` takes index 3's place. */
static KeyOptions check_key_options(lua_State *L, int index)
{
    static const char *const NAMES[] = {"scheme", "prefix", "using", NULL};
    KeyOptions options = {.scheme = SCHEME_PGLOCK, .using = 3};

    if (lua_type(L, index) == LUA_TSTRING) {
        options.scheme = check_scheme(L, index);
        return options;
    }
    if (!args_has_options(L, index, "key"))
        return options;
    lua_pushnil(L);
    while (lua_next(L, index) != 0) {
        int option = args_option(L, "key", NAMES);

        if (option == 0)
            options.scheme = check_scheme(L, -1);
        else if (option == 1)
            options.prefix = check_int32(L, -1, "prefix");
        lua_pop(L, 1);
    }
    if (lua_isnil(L, 3)) {
        lua_getfield(L, index, "using");
        lua_replace(L, 3);
    }
    return options;
}

/* key(id, scheme | options | nil, session | nil): the bigint key, or both int4 keys */
static int lock_key(lua_State *L)
{
    KeyOptions options;
    LockKey key;

    lua_settop(L, 3);
    options = check_key_options(L, 2);
    key = check_key(L, 1, &options);
    if (!key.pair) {
        lua_pushinteger(L, key.key);
        return 1;
    }
    lua_pushinteger(L, key.first);
    lua_pushinteger(L, key.second);
    return 2;
}

/* key_parts(key) or key_parts(a, b): classid, objid, objsubid, as pg_locks shows them */
static int lock_key_parts(lua_State *L)
{
    LockKey key = {0};
    LockKeyParts parts;

    if (!lua_isnoneornil(L, 2)) {
        key.pair = true;
        key.first = check_int32(L, 1, "the first int4 key");
        key.second = check_int32(L, 2, "the second int4 key");
    } else {
        key = check_key(L, 1, &(KeyOptions){.scheme = SCHEME_PGLOCK});
    }
    parts = key_parts(&key);
    lua_pushinteger(L, parts.classid);
    lua_pushinteger(L, parts.objid);
    lua_pushinteger(L, parts.objsubid);
    return 3;
}

/* ---- guards ----------------------------------------------------------------------------------
 *
 * A guard has no finalizer: dropping one releases nothing, the lock stays on its session's list.
 */

typedef struct {
    const char *kind;
    bool had;
    AdvisoryLock lock; /* once it was had */
} GuardObject;

/* User values; an integer id is the key itself and takes no place. */
enum { GUARD_SESSION = 1, GUARD_ID };

static AdvisoryLock *check_guard(lua_State *L, int index)
{
    GuardObject *guard = args_to_kind(L, index, GUARD);
    char got[64];

    if (guard == NULL) {
        args_describe(L, index, got, sizeof got);
        args_usage(L, "a guard was expected, not %s (call methods with a colon: held:release())",
                   got);
    }
    if (!guard->had)
        args_usage(L, "the guard holds nothing");
    return &guard->lock;
}

/* guard:release(); idempotent */
static int guard_release(lua_State *L)
{
    AdvisoryLock *lock = check_guard(L, 1);
    Error err;

    if (!advisory_release(lock, &err))
        return args_raise(L, &err);
    return 0;
}

/* What was left of a scope could not be released; an error under way (index 2) counts for more. */
static int release_failed(lua_State *L, const char *name, const Error *err)
{
    if (lua_isnoneornil(L, 2))
        return args_raise(L, err);
    if (err->kind != ERROR_LOCK_LOST && err->kind != ERROR_CONNECTION)
        log_printf(LOG_WARNING, "releasing lock %s: %s", name, err->message);
    return 0;
}

/* Leaving the scope. */
static int guard_close(lua_State *L)
{
    AdvisoryLock *lock = check_guard(L, 1);
    Error err;

    if (lock->xact || advisory_release(lock, &err))
        return 0;
    return release_failed(L, lock->name, &err);
}

/* guard:is_held(): asks the server */
static int guard_is_held(lua_State *L)
{
    AdvisoryLock *lock = check_guard(L, 1);
    bool held;
    Error err;

    if (!advisory_is_held(lock, &held, &err))
        return args_raise(L, &err);
    lua_pushboolean(L, held);
    return 1;
}

static int guard_index(lua_State *L)
{
    AdvisoryLock *lock;
    const char *name;

    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
        return 1;
    lock = check_guard(L, 1);
    name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
    if (strcmp(name, "id") == 0 && lua_getiuservalue(L, 1, GUARD_ID) != LUA_TNONE)
        return 1;
    if (strcmp(name, "id") == 0 || strcmp(name, "key") == 0)
        bind_locks_push_key(L, &lock->key);
    else if (strcmp(name, "shared") == 0)
        lua_pushboolean(L, lock->shared);
    else if (strcmp(name, "xact") == 0)
        lua_pushboolean(L, lock->xact);
    else if (strcmp(name, "waited") == 0)
        lua_pushnumber(L, lock->waited_s);
    else if (strcmp(name, "acquired_at") == 0)
        lua_pushnumber(L, lock->acquired_at);
    else
        lua_pushnil(L);
    return 1;
}

static int guard_tostring(lua_State *L)
{
    AdvisoryLock *lock = check_guard(L, 1);

    lua_pushfstring(L, "%s lock %s (%s)", lock->shared ? "shared" : "exclusive", lock->name,
                    advisory_on_list(lock) ? "held" : "released");
    return 1;
}

/* ---- advisory -------------------------------------------------------------------------------- */

typedef struct {
    const char *function; /* whose options: "advisory" or "all" */
    AdvisoryRequest request;
    OnBusy on_busy;
    KeyOptions key;
    int using; /* stack index, 0: none */
} AdvisoryOptions;

static bool check_advisory_boolean(lua_State *L, const AdvisoryOptions *options, const char *name)
{
    char what[32];

    if (lua_isboolean(L, -1))
        return lua_toboolean(L, -1);
    snprintf(what, sizeof what, "%s: %s", options->function, name);
    return args_boolean(L, -1, what);
}

static void check_release(lua_State *L, const AdvisoryOptions *options)
{
    char got[64];

    if (strcmp(args_text(L, -1, "release"), "deferred") == 0)
        return;
    args_describe(L, -1, got, sizeof got);
    args_usage(L, "%s: release can only be \"deferred\", not %s", options->function, got);
}

/* Read the options at `index`; a value that is needed later is left on the stack. */
static void check_advisory_options(lua_State *L, int index, AdvisoryOptions *options)
{
    static const char *const NAMES[] = {"timeout", "shared", "xact",   "on_busy", "poll",
                                        "using",   "scheme", "prefix", "release", NULL};

    if (!args_has_options(L, index, options->function))
        return;
    lua_pushnil(L);
    while (lua_next(L, index) != 0) {
        switch (args_option(L, options->function, NAMES)) {
        case 0:
            options->request.timeout_us = args_duration(L, -1, "timeout");
            options->request.has_timeout = true;
            break;
        case 1:
            options->request.shared = check_advisory_boolean(L, options, "shared");
            break;
        case 2:
            options->request.xact = check_advisory_boolean(L, options, "xact");
            break;
        case 3:
            options->on_busy = check_on_busy(L, -1, options->function);
            break;
        case 4:
            options->request.poll_us = args_duration(L, -1, "poll");
            if (options->request.poll_us == 0)
                args_usage(L, "%s: poll must be longer than 0; false is without polling",
                           options->function);
            break;
        case 5:
            if (options->using == 0) {
                lua_pushvalue(L, -1);
                lua_insert(L, -3); /* below the key that lua_next needs */
                options->using = lua_gettop(L) - 2;
            }
            break;
        case 6:
            options->key.scheme = check_scheme(L, -1);
            break;
        case 7:
            options->key.prefix = check_int32(L, -1, "prefix");
            break;
        default:
            check_release(L, options);
            options->request.release_ahead = true;
        }
        lua_pop(L, 1);
    }
}

/* The rules that tie options to each other and to whether a function is called under the lock. */
static void settle_on_busy(lua_State *L, AdvisoryOptions *options, bool with_function)
{
    if (options->on_busy == BUSY_SKIP && !with_function)
        args_usage(L, "%s: on_busy = \"skip\" needs a function to skip", options->function);
    if (options->on_busy == BUSY_RETURN && with_function)
        args_usage(L, "%s: on_busy = \"return\" is for calls without a function; use \"skip\" or "
                      "\"raise\"", options->function);
    if (options->on_busy == BUSY_DEFAULT)
        options->on_busy =
            !with_function && options->request.has_timeout ? BUSY_RETURN : BUSY_RAISE;
    if (options->request.poll_us == DURATION_ENDLESS)
        options->request.poll_us = 0;
    if (options->request.release_ahead && options->request.xact)
        args_usage(L, "%s: release = \"deferred\" is for session-level locks; what is taken with "
                      "xact ends with its transaction", options->function);
}

/*
 * advisory(session | nil, id, options | nil, with_function): a guard, or nil and the error.
 * The session is options.using's where none is given.
 */
static int lock_advisory(lua_State *L)
{
    AdvisoryOptions options = {.function = "advisory", .key.scheme = SCHEME_PGLOCK};
    char name[NAME_SIZE];
    Session *session;
    GuardObject *guard;
    Error err;

    lua_settop(L, 4);
    if (!lua_isnil(L, 1))
        options.using = 1;
    check_advisory_options(L, 3, &options);
    settle_on_busy(L, &options, lua_toboolean(L, 4));
    session = bind_session_using(L, options.using == 0 ? 1 : options.using);
    options.key.using = lua_gettop(L);
    options.request.key = check_id(L, 2, &options.key, name);
    options.request.name = name;

    guard = lua_newuserdatauv(L, sizeof *guard, lua_isinteger(L, 2) ? GUARD_SESSION : GUARD_ID);
    guard->had = false;
    args_set_kind(L, GUARD);
    lua_insert(L, -2);
    lua_setiuservalue(L, -2, GUARD_SESSION);
    if (!lua_isinteger(L, 2)) {
        lua_pushvalue(L, 2);
        lua_setiuservalue(L, -2, GUARD_ID);
    }
    guard->had = advisory_acquire(session, &options.request, &guard->lock, &err);
    return guard->had ? 1 : busy(L, options.on_busy, &err);
}

static int returned(lua_State *L, int status, lua_KContext unused)
{
    (void)status;
    (void)unused;
    return lua_gettop(L);
}

/*
 * advisory as scripts call it: (id [, options] [, fn, ...]), after a session where it is a method.
 * Without fn it goes no way round; with one it is the Lua half's (the upvalue), which may yield.
 */
static int advisory_method(lua_State *L)
{
    int top = lua_gettop(L);

    if (lua_isnoneornil(L, 4) && lua_type(L, 3) != LUA_TFUNCTION) {
        lua_settop(L, 3);
        return lock_advisory(L);
    }
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_callk(L, top, LUA_MULTRET, 0, returned);
    return returned(L, LUA_OK, 0);
}

static int advisory_function(lua_State *L)
{
    lua_pushnil(L);
    lua_insert(L, 1);
    return advisory_method(L);
}

/* advisory_forms(fn): the function and the method, with what runs them under a function */
static int advisory_forms(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    lua_pushvalue(L, 1);
    lua_pushcclosure(L, advisory_function, 1);
    lua_insert(L, 1);
    lua_pushcclosure(L, advisory_method, 1);
    return 2;
}

/* ---- all -------------------------------------------------------------------------------------
 *
 * One guard for all of them; it has no finalizer either.
 */

typedef struct {
    const char *kind;
    bool had;
    AllLocks locks; /* once they were had */
} AllGuardObject;

static const char ALL_GUARD[] = "lockkeeper.AllGuard";

/* User values: lists in the order in which the caller wrote them. */
enum { ALL_GUARD_SESSION = 1, ALL_GUARD_IDS, ALL_GUARD_KEYS };

enum { ALL_MAX = 1000000 }; /* the server's lock table ends long before */

static AllLocks *check_all_guard(lua_State *L)
{
    AllGuardObject *guard = args_to_kind(L, 1, ALL_GUARD);
    char got[64];

    if (guard == NULL) {
        args_describe(L, 1, got, sizeof got);
        args_usage(L, "a guard was expected, not %s (call methods with a colon: held:release())",
                   got);
    }
    if (!guard->had)
        args_usage(L, "the guard holds nothing");
    return &guard->locks;
}

/* guard:release(); idempotent */
static int all_guard_release(lua_State *L)
{
    Error err;

    return all_release(check_all_guard(L), &err) ? 0 : args_raise(L, &err);
}

/* Leaving the scope. */
static int all_guard_close(lua_State *L)
{
    AllLocks *locks = check_all_guard(L);
    Error err;

    if (locks->xact || all_release(locks, &err))
        return 0;
    return release_failed(L, locks->name, &err);
}

/* guard:is_held(): asks the server */
static int all_guard_is_held(lua_State *L)
{
    bool held;
    Error err;

    if (!all_is_held(check_all_guard(L), &held, &err))
        return args_raise(L, &err);
    lua_pushboolean(L, held);
    return 1;
}

static int all_guard_index(lua_State *L)
{
    AllLocks *locks;
    const char *name;

    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
        return 1;
    locks = check_all_guard(L);
    name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
    if (strcmp(name, "ids") == 0)
        lua_getiuservalue(L, 1, ALL_GUARD_IDS);
    else if (strcmp(name, "keys") == 0)
        lua_getiuservalue(L, 1, ALL_GUARD_KEYS);
    else if (strcmp(name, "xact") == 0)
        lua_pushboolean(L, locks->xact);
    else if (strcmp(name, "waited") == 0)
        lua_pushnumber(L, locks->waited_s);
    else if (strcmp(name, "acquired_at") == 0)
        lua_pushnumber(L, locks->acquired_at);
    else
        lua_pushnil(L);
    return 1;
}

static int all_guard_tostring(lua_State *L)
{
    AllLocks *locks = check_all_guard(L);

    lua_pushfstring(L, "locks %s (%s)", locks->name, all_on_list(locks) ? "held" : "released");
    return 1;
}

/* The list at index 2: at least one element, and nothing else. */
static lua_Integer check_list(lua_State *L)
{
    lua_Integer count;
    char got[64];

    if (!lua_istable(L, 2)) {
        args_describe(L, 2, got, sizeof got);
        args_usage(L, "all: a list of locks was expected, not %s", got);
    }
    count = (lua_Integer)lua_rawlen(L, 2);
    lua_pushnil(L);
    while (lua_next(L, 2) != 0) {
        lua_pop(L, 1);
        if (lua_isinteger(L, -1) && lua_tointeger(L, -1) >= 1 && lua_tointeger(L, -1) <= count)
            continue;
        args_describe(L, -1, got, sizeof got);
        args_usage(L, "all: the list of locks has a field %s; it must be a list such as "
                      "{ \"a\", { id = \"b\", shared = true } }", got);
    }
    if (count == 0)
        args_usage(L, "all: the list of locks is empty");
    return count;
}

/* { 1, 2, shared = true } would be read as an exclusive lock on a pair of keys. */
static void refuse_fields(lua_State *L, int element, const char *function)
{
    char got[64];

    lua_pushnil(L);
    while (lua_next(L, element) != 0) {
        lua_pop(L, 1);
        if (lua_type(L, -1) == LUA_TNUMBER)
            continue;
        args_describe(L, -1, got, sizeof got);
        args_usage(L, "%s: two int4 keys have no field %s; write { id = { 1, 2 }, shared = true }",
                   function, got);
    }
}

/* The element on top is replaced by its id. Is it to be shared? */
static bool check_element(lua_State *L, const AdvisoryOptions *options)
{
    static const char *const NAMES[] = {"id", "shared", NULL};
    bool shared = options->request.shared;
    int element = lua_gettop(L);
    char function[PLACE_SIZE];
    char what[PLACE_SIZE + 16];

    if (!lua_istable(L, element))
        return shared;
    snprintf(function, sizeof function, "all: element " LUA_INTEGER_FMT, options->key.element);
    if (lua_rawlen(L, element) > 0) {
        refuse_fields(L, element, function);
        return shared;
    }
    snprintf(what, sizeof what, "%s: shared", function);
    lua_pushnil(L);
    while (lua_next(L, element) != 0) {
        if (args_option(L, function, NAMES) == 1)
            shared = args_boolean(L, -1, what);
        lua_pop(L, 1);
    }
    lua_pushliteral(L, "id");
    lua_rawget(L, element);
    lua_replace(L, element);
    return shared;
}

/* Read the list at index 2. Pushes the array, which Lua owns, the list of ids and that of keys. */
static void check_locks(lua_State *L, AdvisoryOptions *options, AllRequest *request)
{
    lua_Integer count = check_list(L);
    int ids;
    int keys;

    if (count > ALL_MAX)
        args_usage(L, "all: more than %d locks", ALL_MAX);
    request->count = (int)count;
    request->locks = lua_newuserdatauv(L, (size_t)count * sizeof *request->locks, 0);
    lua_createtable(L, (int)count, 0);
    ids = lua_gettop(L);
    lua_createtable(L, (int)count, 0);
    keys = lua_gettop(L);
    for (int i = 0; i < request->count; i++) {
        AllEntry *lock = &request->locks[i];

        options->key.element = i + 1;
        lua_rawgeti(L, 2, i + 1);
        lock->shared = check_element(L, options);
        lock->key = check_key(L, keys + 1, &options->key);
        lua_settop(L, keys + 1);
        lock->text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL; /* ids keeps it */
        lua_rawseti(L, ids, i + 1);
        bind_locks_push_key(L, &lock->key);
        lua_rawseti(L, keys, i + 1);
    }
}

/*
 * all(session | nil, list, options | nil, with_function): a guard, or nil and the error. The
 * session is options.using's where none is given.
 */
static int lock_all(lua_State *L)
{
    AdvisoryOptions options = {.function = "all", .key.scheme = SCHEME_PGLOCK};
    AllRequest request = {0};
    AllGuardObject *guard;
    Session *session;
    Error err;

    lua_settop(L, 4);
    if (!lua_isnil(L, 1))
        options.using = 1;
    check_advisory_options(L, 3, &options);
    settle_on_busy(L, &options, lua_toboolean(L, 4));
    session = bind_session_using(L, options.using == 0 ? 1 : options.using);
    options.key.using = lua_gettop(L);
    check_locks(L, &options, &request);
    request.xact = options.request.xact;
    request.has_timeout = options.request.has_timeout;
    request.timeout_us = options.request.timeout_us;
    request.poll_us = options.request.poll_us;
    request.release_ahead = options.request.release_ahead;
    all_arrange(&request);

    guard = lua_newuserdatauv(L, sizeof *guard, ALL_GUARD_KEYS);
    guard->had = false;
    args_set_kind(L, ALL_GUARD);
    lua_pushvalue(L, options.key.using);
    lua_setiuservalue(L, -2, ALL_GUARD_SESSION);
    lua_pushvalue(L, -3);
    lua_setiuservalue(L, -2, ALL_GUARD_IDS);
    lua_pushvalue(L, -2);
    lua_setiuservalue(L, -2, ALL_GUARD_KEYS);
    guard->had = all_acquire(session, &request, &guard->locks, &err);
    return guard->had ? 1 : busy(L, options.on_busy, &err);
}

/* ---- model ----------------------------------------------------------------------------------- */

typedef struct {
    ModelRequest request;
    OnBusy on_busy;
    int using;
} ModelOptions;

static void check_model_options(lua_State *L, int index, ModelOptions *options)
{
    static const char *const NAMES[] = {"mode", "timeout", "on_busy", "only", "using", NULL};
    Error err;

    if (!args_has_options(L, index, "model"))
        return;
    lua_pushnil(L);
    while (lua_next(L, index) != 0) {
        switch (args_option(L, "model", NAMES)) {
        case 0:
            if (!mode_parse(args_text(L, -1, "model: mode"), &options->request.mode, &err))
                args_raise(L, &err);
            break;
        case 1:
            options->request.timeout_us = args_duration(L, -1, "timeout");
            options->request.has_timeout = true;
            break;
        case 2:
            options->on_busy = check_on_busy(L, -1, "model");
            break;
        case 3:
            options->request.only = args_boolean(L, -1, "model: only");
            break;
        default:
            if (options->using == 0) {
                lua_pushvalue(L, -1);
                lua_insert(L, -3);
                options->using = lua_gettop(L) - 2;
            }
        }
        lua_pop(L, 1);
    }
}

static void settle_model(lua_State *L, ModelOptions *options)
{
    if (options->on_busy == BUSY_SKIP)
        args_usage(L, "model: on_busy must be \"return\" or \"raise\": there is no function to "
                      "skip");
    if (options->on_busy == BUSY_DEFAULT)
        options->on_busy = options->request.has_timeout ? BUSY_RETURN : BUSY_RAISE;
}

/* The relations' names at `index`, one or a list; their memory is left on the stack. */
static void check_names(lua_State *L, int index, ModelRequest *request)
{
    const char **names;
    lua_Unsigned count = lua_istable(L, index) ? lua_rawlen(L, index) : 1;

    if (count > 10000)
        args_usage(L, "model: %d tables are too many", (int)count);
    names = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *names, 0);
    for (lua_Unsigned i = 0; i < count; i++) {
        if (lua_istable(L, index))
            lua_rawgeti(L, index, (lua_Integer)i + 1);
        else
            lua_pushvalue(L, index);
        names[i] = args_text(L, -1, "model: a table's name");
        if (names[i][0] == '\0')
            args_usage(L, "model: a table's name is empty");
        lua_pop(L, 1); /* the caller's list, or argument, keeps it */
    }
    request->names = names;
    request->count = (int)count;
}

/* model(session | nil, name | names, options | nil): true, or nil and the error */
static int lock_model(lua_State *L)
{
    ModelOptions options = {.request.mode = MODE_ACCESS_EXCLUSIVE};
    Session *session;
    Error err;

    lua_settop(L, 3);
    if (!lua_isnil(L, 1))
        options.using = 1;
    check_model_options(L, 3, &options);
    settle_model(L, &options);
    check_names(L, 2, &options.request);
    session = bind_session_using(L, options.using == 0 ? 1 : options.using);
    if (!model_lock(session, &options.request, &err))
        return busy(L, options.on_busy, &err);
    lua_pushboolean(L, true);
    return 1;
}

/* ---- timeout --------------------------------------------------------------------------------- */

typedef struct {
    Session *session; /* NULL once it was restored */
    LockTimeout timeout;
} TimeoutObject;

/* timeout(session | nil, duration, options | nil): what restores the value when it is closed */
static int lock_timeout(lua_State *L)
{
    static const char *const NAMES[] = {"using", NULL};
    int using = 1;
    int64_t us;
    Session *session;
    TimeoutObject *object;
    Error err;

    lua_settop(L, 3);
    us = args_duration(L, 2, "timeout");
    if (us == 0)
        args_usage(L, "timeout: 0 would mean no limit to PostgreSQL; write false for that");
    if (args_has_options(L, 3, "timeout")) {
        lua_pushnil(L);
        while (lua_next(L, 3) != 0) {
            args_option(L, "timeout", NAMES);
            lua_pop(L, 1);
        }
        if (lua_isnil(L, 1)) {
            lua_getfield(L, 3, "using");
            using = lua_gettop(L);
        }
    }
    object = lua_newuserdatauv(L, sizeof *object, 1);
    object->session = NULL;
    luaL_setmetatable(L, TIMEOUT_TNAME);
    session = bind_session_using(L, using);
    lua_setiuservalue(L, -2, 1);
    if (!timeout_set(session, us, &object->timeout, &err))
        return args_raise(L, &err);
    object->session = session;
    return 1;
}

static int timeout_close(lua_State *L)
{
    TimeoutObject *object = luaL_checkudata(L, 1, TIMEOUT_TNAME);
    bool failing = !lua_isnoneornil(L, 2);
    Session *session = object->session;
    Error err;

    object->session = NULL;
    if (session == NULL || timeout_restore(session, &object->timeout, &err))
        return 0;
    if (!failing)
        return args_raise(L, &err);
    log_printf(LOG_WARNING, "putting lock_timeout back: %s", err.message);
    return 0;
}

/* ---- registration ---------------------------------------------------------------------------- */

static void register_modes(lua_State *L)
{
    for (int i = 0; i < MODE_COUNT; i++) {
        char constant[40];

        text_copy(constant, sizeof constant, mode_name((LockMode)i));
        for (char *p = constant; *p != '\0'; p++)
            *p = *p == ' ' ? '_' : *p;
        lua_pushstring(L, mode_name((LockMode)i));
        lua_setfield(L, -2, constant);
    }
}

/* The metatable of one kind of guard; `index` has the methods as its upvalue. */
static void register_guard(lua_State *L, const char *kind, const luaL_Reg *metamethods,
                           const luaL_Reg *methods, lua_CFunction index)
{
    args_new_kind(L, kind);
    luaL_setfuncs(L, metamethods, 0);
    lua_newtable(L);
    luaL_setfuncs(L, methods, 0);
    lua_pushcclosure(L, index, 1);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
}

void bind_locks_register(lua_State *L)
{
    luaL_setfuncs(L,
                  ((luaL_Reg[]){{"advisory", lock_advisory},
                                {"advisory_forms", advisory_forms},
                                {"all", lock_all},
                                {"model", lock_model},
                                {"timeout", lock_timeout},
                                {"key", lock_key},
                                {"key_parts", lock_key_parts},
                                {NULL, NULL}}),
                  0);
    lua_newtable(L);
    register_modes(L);
    lua_setfield(L, -2, "modes");

    register_guard(L, GUARD,
                   (luaL_Reg[]){{"__close", guard_close},
                                {"__tostring", guard_tostring},
                                {NULL, NULL}},
                   (luaL_Reg[]){{"release", guard_release},
                                {"is_held", guard_is_held},
                                {NULL, NULL}},
                   guard_index);
    register_guard(L, ALL_GUARD,
                   (luaL_Reg[]){{"__close", all_guard_close},
                                {"__tostring", all_guard_tostring},
                                {NULL, NULL}},
                   (luaL_Reg[]){{"release", all_guard_release},
                                {"is_held", all_guard_is_held},
                                {NULL, NULL}},
                   all_guard_index);

    luaL_newmetatable(L, TIMEOUT_TNAME);
    lua_pushcfunction(L, timeout_close);
    lua_setfield(L, -2, "__close");
    lua_pop(L, 1);
}
