#include "host/serve.h"
#include "host/state.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lua.h>

/* What was printed may still wait in a buffer: a full disk is found out only now. */
static void check_stdout(void)
{
    if (fclose(stdout) != 0 && errno != EPIPE && errno != EBADF) {
        fprintf(stderr, "lockkeeper: cannot write to standard output: %s\n", strerror(errno));
        _exit(EXIT_FAILURE);
    }
}

int main(int argc, char **argv)
{
    lua_State *L;
    int code;

    /* Inherited as ignored, it would hide how children end. */
    signal(SIGCHLD, SIG_DFL);
    if (argc > 1 && strcmp(argv[1], "serve") == 0)
        serve_block_signals();
    atexit(check_stdout);
    mallopt(M_ARENA_MAX, 1); /* threads only connect: room of their own costs more than it saves */
    L = state_new();
    if (L == NULL) {
        fprintf(stderr, "lockkeeper: out of memory\n");
        return EXIT_FAILURE;
    }
    code = state_run(L, argc, argv);
    state_close(L);
    if (serve_is_wanted())
        code = serve_run();
    exit(code);
}
