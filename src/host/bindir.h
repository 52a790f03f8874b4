/*
 * The PostgreSQL server's programs on this machine: where they are, which version they have, and
 * running them as the user that a server may run as.
 *
 * Children get a small environment of their own (PATH, LD_LIBRARY_PATH, TZ): a server outlives us
 * and must not keep our passwords, nor take PGPORT, PGDATA and their kin from us. They get no
 * descriptor but those named here, no signal handler, and "/" as working directory.
 */
#ifndef LOCKKEEPER_HOST_BINDIR_H
#define LOCKKEEPER_HOST_BINDIR_H

#include "base/error.h"

#include <sys/types.h>

enum { BINDIR_PATH_SIZE = 1024, SERVER_GROUPS_MAX = 64 };

typedef struct {
    char name[64];
    uid_t uid;
    gid_t gid;
    gid_t groups[SERVER_GROUPS_MAX]; /* supplementary; where there are more, the first of them */
    int group_count;
    bool switched; /* we are root and become this user */
} ServerUser;

typedef struct {
    char path[BINDIR_PATH_SIZE]; /* "": none */
    int version;                 /* major */
} Bindir;

/* The user that a server of ours runs as: us, or `postgres` where we are root. */
bool server_user_find(ServerUser *user, Error *err);

/*
 * The first folder with a server of this major version (0: of any). Searched in this order:
 * $PG_BINDIR, `pg_config --bindir`, Debian's folders, the PGDG packages' folders, the last two
 * with the newest first. Returns false where there is none; then *found is the first of another
 * version, or empty. Runs `pg_config` and `postgres --version`.
 */
bool bindir_find(int version, const ServerUser *user, Bindir *found);

/*
 * Run a program to its end and keep the last `size - 1` bytes of its stdout (captured is
 * STDOUT_FILENO) or of its stderr (STDERR_FILENO).
 *   user  NULL: stay who we are
 *   held  a descriptor that it and its children keep open, -1: none
 * True when it exited with 0; else false with *err set (ERROR_CONNECTION) and what was captured
 * in `output` and in err->detail. argv[0] is looked up in PATH.
 */
bool bindir_run(const char *const *argv, const ServerUser *user, int captured, int held,
                char *output, size_t size, Error *err);

/*
 * Start a program that outlives us, in a session of its own, with stdout and stderr in log_fd.
 *
 *   this process ──fork──> starter ──fork, exec──> the program
 *
 * The starter does nothing but wait for the program, and exits when it does: as long as
 * bindir_ended says false, the program runs. bindir_release ends the starter, and the program
 * then is no child of ours, so that nobody here has to reap it.
 */
bool bindir_launch(const char *const *argv, const ServerUser *user, int log_fd, pid_t *starter,
                   Error *err);
bool bindir_ended(pid_t starter);
void bindir_release(pid_t starter);

#endif
