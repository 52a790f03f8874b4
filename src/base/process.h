/*
 * A command that never outlives what it depends on.
 *
 *   this process ──fork──> heir ──fork──> keeper ──fork, exec──> the command ──> its descendants
 *
 * The keeper is a small process that runs no user code and no libpq: it is the subreaper of the
 * command and of all its descendants and watches, by poll(2) alone, the control socket to this
 * process and the sockets of the sessions that hold the command's locks. When one of them hangs
 * up (the session was terminated, this process was killed with SIGKILL, or is stopped while its
 * session ends), the command and every descendant get SIGTERM, and SIGKILL after `grace`. Because
 * the keeper has the watched sockets open, a lock whose holder was killed is freed by the server
 * only when the command is gone.
 *
 * The same happens to what the command leaves behind when it ends: descendants do not outlive it.
 * A descendant that leaves its session or process group, or whose parents have ended, is found all
 * the same; what another process starts on its behalf (a daemon, cron, a container's manager) is
 * none. One that the keeper may not signal (set-user-ID root) is waited for.
 *
 * The heir does nothing unless the keeper is killed (SIGKILL, out of memory): then the command is
 * killed by its parent death signal, and the descendants, by now the heir's, by the heir, which
 * has the watched sockets open too. Where the heir is killed, the keeper goes on. Only where both
 * are killed at once do descendants stay (the command itself does not, unless it is set-user-ID).
 *
 * The command stays in this process's process group, so that a terminal's Ctrl-C, Ctrl-Z and input
 * reach it as if it had been started without us; heir and keeper have sessions of their own, so
 * that no signal to that group reaches them. The command gets ignored and blocked signals as they
 * were when this program started (or loaded the module), and every descriptor without FD_CLOEXEC.
 * Needs Linux 5.9 (close_range) and /proc.
 */
#ifndef LOCKKEEPER_BASE_PROCESS_H
#define LOCKKEEPER_BASE_PROCESS_H

#include "base/error.h"

#include <stdint.h>

typedef struct Process Process;

typedef struct {
    const char *const *argv; /* argv[0] is looked up in the PATH of `env`; NULL-terminated */
    const char *const *env;  /* whole environment as "NAME=value", NULL-terminated; NULL: ours */
    const char *cwd;         /* NULL: ours. Relative paths, argv[0]'s too, begin here */
    int in, out, err;        /* descriptors that become 0, 1, 2; -1: inherited. Not closed here */
    const int *watched;      /* sockets whose hang-up stops the command */
    int watched_count;
    int64_t grace_us; /* between SIGTERM and SIGKILL */
} ProcessSpec;

typedef enum {
    PROCESS_RUNNING,
    PROCESS_ENDED, /* the command and every descendant are gone */
} ProcessState;

/* exit_code and signal are the command's own; where the keeper was killed, those of SIGKILL. */
typedef struct {
    ProcessState state;
    bool lost;     /* it was stopped because a watched socket hung up; set before it has ended */
    int exit_code; /* 0..255 where it exited by itself; 128 + N where signal N ended it */
    int signal;    /* N, or 0 */
} ProcessStatus;

/*
 * Start a command. Returns when it has been executed, or could not be: then false, with *err set
 * and *exec_errno the errno of execve (ENOENT: not found), 0 where something else failed.
 * ERROR_LOCK_LOST: a watched socket had hung up before anything was started; else ERROR_USAGE.
 * Keeps no argument. The keeper is a child of this process: code that waits for any child
 * (waitpid(-1)) does no harm, but may see it.
 */
bool process_start(Process **process, const ProcessSpec *spec, int *exec_errno, Error *err);

/* A descriptor that becomes readable when process_read has something new to say. */
int process_fd(const Process *process);

/* Read what is new, without waiting, into *status. After PROCESS_ENDED nothing is new. */
void process_read(Process *process, ProcessStatus *status);

/* Pass a signal on to the command itself, not to its descendants. */
void process_signal(Process *process, int signo);

/* SIGTERM to the command and all its descendants, SIGKILL after `grace`. Does not wait. */
void process_stop(Process *process);

/* The same with SIGKILL at once. Does not wait. */
void process_kill(Process *process);

/*
 * SIGKILL to every descendant of this process that no Process has started (system(3), popen(3)),
 * for a process that is about to end itself. Those of a Process are ended by their keeper. It makes
 * this process a subreaper.
 */
void process_kill_strays(void);

/*
 * From now on spare those that are there now, and what descends from them. Makes this process a
 * subreaper, so that what is left behind later is known.
 */
void process_spare_strays(void);

/*
 * process_kill_strays for a process that goes on: waits a moment until they are gone, and makes
 * this process no subreaper any more. What io.popen has started and was killed can't tell how it
 * ended.
 */
void process_end_strays(void);

/*
 * Forget it; where it still runs, it and its descendants are killed at once and waited for, at
 * most 2 s (one that the kernel does not let go stays the keeper's). NULL is fine.
 */
void process_free(Process *process);

#endif
