#include "bind/environment.h"

#include "bind/args.h"
#include "bind/session.h"
#include "pg/passfile.h"

#include <lauxlib.h>
#include <string.h>

static const char ENVIRONMENT[] = "lockkeeper.Environment";

typedef struct {
    const char *kind;
    Passfile passfile;
    PQconninfoOption *options; /* while they are read */
} Environment;

static int environment_close(lua_State *L)
{
    Environment *environment = args_to_kind(L, 1, ENVIRONMENT);

    PQconninfoFree(environment->options);
    environment->options = NULL;
    passfile_close(&environment->passfile);
    return 0;
}

/* table[name] = value, or false where there is none: not even the one that we have */
static void set_variable(lua_State *L, const char *name, const char *value)
{
    if (value == NULL || value[0] == '\0')
        lua_pushboolean(L, false);
    else
        lua_pushstring(L, value);
    lua_setfield(L, -2, name);
}

static bool is_one_of(const char *keyword, const char *const *list)
{
    for (; *list != NULL; list++) {
        if (strcmp(*list, keyword) == 0)
            return true;
    }
    return false;
}

/* The value for a command, which is to come to the same server, not just to one like it. */
static const char *value_for_command(const PQconninfoOption *option, const Environment *environment,
                                     const PGconn *conn)
{
    static const char *const ABOUT_FINDING[] = {"service", "target_session_attrs",
                                                "load_balance_hosts", "password", NULL};

    if (is_one_of(option->keyword, ABOUT_FINDING))
        return NULL;
    if (strcmp(option->keyword, "host") == 0)
        return PQhost(conn);
    if (strcmp(option->keyword, "hostaddr") == 0)
        return option->val == NULL || option->val[0] == '\0' ? NULL : PQhostaddr(conn);
    if (strcmp(option->keyword, "port") == 0)
        return PQport(conn);
    if (strcmp(option->keyword, "passfile") == 0 && environment->passfile.path[0] != '\0')
        return environment->passfile.path;
    return option->val;
}

/*
 * environment(session): a table of libpq's variables, name = text or false, and what removes the
 * password file when it is closed
 */
static int core_environment(lua_State *L)
{
    /* The command's own affair: what it is called, in what it reads and writes. */
    static const char *const LEFT_ALONE[] = {"application_name", "fallback_application_name",
                                             "client_encoding", NULL};
    Session *session = bind_session_check(L, 1);
    Environment *environment;
    Error err;

    if (!session_open(session, &err))
        return args_raise(L, &err);
    lua_newtable(L);
    environment = lua_newuserdatauv(L, sizeof *environment, 0);
    *environment = (Environment){.passfile.slot = -1};
    args_set_kind(L, ENVIRONMENT);
    if (!passfile_open(&environment->passfile, session->conn, &err))
        return args_raise(L, &err);
    environment->options = PQconninfo(session->conn);
    if (environment->options == NULL)
        return luaL_error(L, "not enough memory");
    lua_pushvalue(L, -2);
    for (const PQconninfoOption *option = environment->options; option->keyword != NULL; option++) {
        if (option->envvar != NULL && !is_one_of(option->keyword, LEFT_ALONE))
            set_variable(L, option->envvar, value_for_command(option, environment, session->conn));
    }
    lua_pop(L, 1);
    PQconninfoFree(environment->options);
    environment->options = NULL;
    return 2;
}

void bind_environment_register(lua_State *L)
{
    lua_pushcfunction(L, core_environment);
    lua_setfield(L, -2, "environment");
    args_new_kind(L, ENVIRONMENT);
    lua_pushcfunction(L, environment_close);
    lua_setfield(L, -2, "__close");
    lua_pushcfunction(L, environment_close);
    lua_setfield(L, -2, "__gc");
    lua_pop(L, 1);
}
