#include "host/state.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include <lua.h>

int main(int argc, char **argv)
{
    lua_State *L;
    int code;

    /* Inherited as ignored, it would hide how children end. */
    signal(SIGCHLD, SIG_DFL);
    L = state_new();
    if (L == NULL) {
        fprintf(stderr, "lockkeeper: out of memory\n");
        return EXIT_FAILURE;
    }
    code = state_run(L, argc, argv);
    lua_close(L);
    exit(code);
}
