#include "base/process.h"

#include "base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * Heir and keeper are forked, never executed, from a process that may have other threads: they use
 * no malloc, no stdio and no lock, only system calls and what was prepared before the fork. All
 * signals are blocked in them; SIGCHLD is read from a signalfd.
 *
 * Both ends of the control socket speak in whole records (SOCK_SEQPACKET): orders go down, reports
 * come up. Its end, seen from above, means that heir and keeper are gone; seen from below, that
 * this process is.
 */

struct Process {
    int control;
    pid_t heir; /* 0: not forked */
    ProcessStatus status;
};

typedef enum { ORDER_SIGNAL, ORDER_STOP, ORDER_KILL } OrderKind;

typedef struct {
    OrderKind kind;
    int signo;
} Order;

typedef enum { REPORT_STARTED, REPORT_FAILED, REPORT_LOST, REPORT_ENDED } ReportKind;

/* The step of a start that failed. */
typedef enum {
    STEP_PROC,
    STEP_KEEPER,
    STEP_DESCRIPTORS,
    STEP_DIRECTORY,
    STEP_EXEC,
    STEP_INTERPRETER,
} Step;

typedef struct {
    ReportKind kind;
    Step step; /* REPORT_FAILED */
    int value; /* REPORT_FAILED: errno; REPORT_ENDED: the command's status as waitpid gives it */
} Report;

/* What the keeper polls; the watched sockets follow. */
enum { FD_CONTROL, FD_SIGNALS, FD_EXEC, FD_WATCHED };

/* Everything that heir, keeper and command need, made before the first fork. */
typedef struct {
    const ProcessSpec *spec;
    const char *const *env;
    const char *path;        /* where argv[0] is searched; NULL: argv[0] is a path itself */
    const char **shell_argv; /* "/bin/sh", the file, argv[1]...: for a script without "#!" */
    int control;             /* the end of heir and keeper */
    struct pollfd *fds;
    int fd_count;
    int *keep; /* room for the descriptors that heir or keeper keep */
} Launch;

enum {
    FREE_WAIT_US = 2 * 1000 * 1000,   /* how long process_free waits for the keeper's end */
    ORPHANS_FIRST_US = 5 * 1000,      /* orphans are looked for after 5 ms, 10 ms, 20 ms, ... */
    ORPHANS_LONGEST_US = 1000 * 1000, /* ... and at last every second */
    ROUND_SHORTEST_US = 1000,         /* between two rounds of SIGKILL */
    ROUND_LONGEST_US = 100 * 1000,
    ROUNDS_PER_FULL = 16,
    PID_LIMIT = 4 * 1024 * 1024, /* PID_MAX_LIMIT of a 64-bit kernel */
    DEPTH_LIMIT = 4096,          /* of a chain of parents */
    PROC_PATH_SIZE = 32,         /* "4194303/stat" and more */
    LISTING_SIZE = 64 * 1024,    /* of /proc read at once */
};

/*
 * The signals as they were when the program started, or the module was loaded: what a command
 * gets, whatever this process has ignored or blocked for itself since. (nohup is a SIGHUP that is
 * ignored at the start.)
 */
static sigset_t ignored_at_start;
static sigset_t blocked_at_start;

__attribute__((constructor)) static void remember_signals(void)
{
    struct sigaction action;

    sigemptyset(&ignored_at_start);
    for (int signo = 1; signo < NSIG; signo++) {
        if (sigaction(signo, NULL, &action) == 0 && action.sa_handler == SIG_IGN)
            sigaddset(&ignored_at_start, signo);
    }
    pthread_sigmask(SIG_SETMASK, NULL, &blocked_at_start);
}

/* --- The family: every descendant of this heir, keeper or other process --- */

typedef struct {
    int proc; /* /proc */
    pid_t root;
    unsigned long long started; /* the root's start, in clock ticks since boot */
    pid_t head;                 /* the root's own child that is signalled first, or 0 */
} Family;

/* The rounds of SIGKILL. */
typedef struct {
    int count;
    int64_t pause_us;
} Rounds;

typedef struct {
    pid_t pid;
    pid_t parent;
    unsigned long long started;
} ProcStat;

/* Pids, a bit each. Static, since a stack or a heap after fork has no room for them. */
typedef struct {
    int first, end; /* other words than these are 0; 0, 0: all are */
    uint64_t words[PID_LIMIT / 64];
} PidSet;

static void pid_set_add(PidSet *set, pid_t pid)
{
    int word = pid / 64;

    if (pid <= 0 || pid >= PID_LIMIT)
        return;
    if (word < set->first || set->end == 0)
        set->first = word;
    if (word >= set->end)
        set->end = word + 1;
    set->words[word] |= UINT64_C(1) << (pid % 64);
}

static void pid_set_remove(PidSet *set, pid_t pid)
{
    if (pid > 0 && pid < PID_LIMIT)
        set->words[pid / 64] &= ~(UINT64_C(1) << (pid % 64));
}

static void pid_set_clear(PidSet *set)
{
    memset(set->words + set->first, 0, (size_t)(set->end - set->first) * sizeof set->words[0]);
    set->first = set->end = 0;
}

static bool pid_set_has(const PidSet *set, pid_t pid)
{
    return pid > 0 && pid < PID_LIMIT && (set->words[pid / 64] >> (pid % 64) & 1) != 0;
}

/* The lowest member above pid, or 0. */
static pid_t pid_set_above(const PidSet *set, pid_t pid)
{
    uint64_t mask = ~UINT64_C(0) << (pid + 1) % 64;
    int word = (pid + 1) / 64;

    if (word < set->first) {
        word = set->first;
        mask = ~UINT64_C(0);
    }
    for (; word < set->end; word++) {
        if ((set->words[word] & mask) != 0)
            return word * 64 + __builtin_ctzll(set->words[word] & mask);
        mask = ~UINT64_C(0);
    }
    return 0;
}

/* The highest member below pid, or 0. */
static pid_t pid_set_below(const PidSet *set, pid_t pid)
{
    uint64_t mask = ~UINT64_C(0) >> (63 - (pid - 1) % 64);
    int word = (pid - 1) / 64;

    if (word >= set->end) {
        word = set->end - 1;
        mask = ~UINT64_C(0);
    }
    for (; word >= set->first && pid > 1; word--) {
        if ((set->words[word] & mask) != 0)
            return word * 64 + 63 - __builtin_clzll(set->words[word] & mask);
        mask = ~UINT64_C(0);
    }
    return 0;
}

static PidSet listed;    /* all processes at the begin of a walk over the family */
static PidSet found;     /* the descendants that this walk has come across */
static PidSet strangers; /* processes that are older than the root */
static PidSet asked;     /* the descendants that were sent SIGTERM ... */
static PidSet killed;    /* ... and SIGKILL */
static PidSet heirs;     /* this process's own: what descends from them is their affair */
static PidSet spared;    /* likewise; see process_spare_strays */

/* "123" and the suffix ("", "/stat") to `path`, without stdio. */
static void proc_path(char path[PROC_PATH_SIZE], pid_t pid, const char *suffix)
{
    char digits[PROC_PATH_SIZE];
    size_t count = 0;

    for (; pid > 0; pid /= 10)
        digits[count++] = (char)('0' + pid % 10);
    while (count > 0)
        *path++ = digits[--count];
    memcpy(path, suffix, strlen(suffix) + 1);
}

/*
 * Read /proc/[path] ("123/stat"). The name of the program may hold spaces and parentheses, hence
 * the search from the right. Source: proc(5): field 4 is the parent, 22 the start.
 */
static bool stat_read(int proc, const char *path, ProcStat *stat)
{
    char text[1024];
    int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    ssize_t length;
    char *p;

    if (fd < 0)
        return false;
    length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return false;
    text[length] = '\0';
    p = strrchr(text, ')');
    for (int field = 3; p != NULL && field <= 22; field++) {
        p = strchr(p + 1, ' ');
        if (p != NULL && field == 4)
            stat->parent = (pid_t)strtol(p, NULL, 10);
        if (p != NULL && field == 22)
            stat->started = strtoull(p, NULL, 10);
    }
    stat->pid = (pid_t)strtol(text, NULL, 10);
    return p != NULL;
}

/* The calling process becomes the root: orphans among its descendants come to it. */
static bool family_open(Family *family)
{
    ProcStat self;

    family->root = getpid();
    family->proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (family->proc < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0)
        return false;
    if (!stat_read(family->proc, "self/stat", &self))
        return false;
    family->started = self.started;
    errno = EXDEV; /* a /proc of another PID namespace would show us strangers */
    return self.pid == family->root;
}

/*
 * Climb from pid to the root, or to a process that is older and so is none of its descendants. A
 * parent that ends on the way has left its children to the root, so the climb begins again. A chain
 * that is too long gets shorter by the death of those above.
 */
static bool family_has(const Family *family, pid_t pid)
{
    pid_t chain[DEPTH_LIMIT];

    for (int tries = 0; tries < 8; tries++) {
        char path[PROC_PATH_SIZE];
        ProcStat stat;
        pid_t at = pid;
        int depth = 0;

        for (; depth < DEPTH_LIMIT; at = stat.parent) {
            proc_path(path, at, "/stat");
            if (!stat_read(family->proc, path, &stat))
                break;
            if (stat.started < family->started || stat.parent == 0 || pid_set_has(&heirs, at) ||
                pid_set_has(&spared, at)) {
                if (depth == 0)
                    pid_set_add(&strangers, pid);
                return false;
            }
            chain[depth++] = at;
            if (stat.parent == family->root || pid_set_has(&found, stat.parent)) {
                while (depth > 0)
                    pid_set_add(&found, chain[--depth]);
                return true;
            }
        }
        if (depth == 0 || depth == DEPTH_LIMIT)
            return false;
    }
    return false;
}

typedef enum { OLDEST_FIRST, NEWEST_FIRST, NEW_ORPHANS } Choice;

/* Is this a child of the root, by its parent's end, that was not sent SIGTERM? */
static bool family_has_new_orphan(const Family *family, pid_t pid)
{
    char path[PROC_PATH_SIZE];
    ProcStat stat;

    proc_path(path, pid, "/stat");
    return !pid_set_has(&asked, pid) && stat_read(family->proc, path, &stat) &&
           stat.parent == family->root;
}

/*
 * Returns whether this descendant was there and had not been sent the signal before. The open
 * directory names the process for good: a number that is used again is not hit.
 */
static bool family_signal_one(const Family *family, pid_t pid, int signo, Choice choice)
{
    PidSet *sent = signo == SIGTERM ? &asked : &killed;
    char path[PROC_PATH_SIZE];
    bool fresh = false;
    int fd;

    proc_path(path, pid, "");
    fd = openat(family->proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return false;
    if (choice == NEW_ORPHANS ? family_has_new_orphan(family, pid) : family_has(family, pid)) {
        pidfd_send_signal(fd, signo, NULL, 0);
        if (signo == SIGTERM)
            pidfd_send_signal(fd, SIGCONT, NULL, 0); /* a stopped one would not notice */
        fresh = !pid_set_has(sent, pid);
        pid_set_add(sent, pid);
    }
    close(fd);
    return fresh;
}

/* Fill `listed`; returns the highest pid. */
static pid_t family_list(const Family *family)
{
    static char listing[LISTING_SIZE] __attribute__((aligned(8)));
    pid_t highest = 0;
    ssize_t length;

    pid_set_clear(&listed);
    pid_set_clear(&found);
    lseek(family->proc, 0, SEEK_SET);
    while ((length = getdents64(family->proc, listing, sizeof listing)) > 0) {
        for (ssize_t at = 0; at < length;) {
            const struct dirent64 *entry = (const struct dirent64 *)(listing + at);
            pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10); /* 0 for a name */

            pid_set_add(&listed, pid);
            highest = pid > highest ? pid : highest;
            at += entry->d_reclen;
        }
    }
    return highest;
}

/*
 * Send a signal to every descendant that there was at the begin.
 *
 * OLDEST_FIRST: parents first, as far as numbers tell: a shell that sees its child end before it
 * has the signal itself would go on with its next step; and the processes that it starts to clean
 * up are not to get a SIGTERM meant for others.
 *
 * NEW_ORPHANS: for those that were born while the SIGTERM went round, if their parents have ended.
 * (Where the parent still waits for one, it may be cleaning up. It has until SIGKILL.)
 *
 * NEWEST_FIRST: for what survived SIGKILL: one that forks and exits again and again must be caught
 * between two forks, when it has the highest number; so no time is lost with strangers.
 *
 * Returns whether one was found that had not been sent the signal before.
 */
static bool family_signal(const Family *family, int signo, Choice choice)
{
    pid_t highest = family_list(family);
    pid_t pid = choice == NEWEST_FIRST ? highest + 1 : 0;
    bool fresh = false;

    if (choice == OLDEST_FIRST)
        pid_set_clear(&strangers);
    if (family->head > 0 && choice != NEW_ORPHANS)
        fresh = family_signal_one(family, family->head, signo, choice);
    for (;;) {
        pid = choice == NEWEST_FIRST ? pid_set_below(&listed, pid) : pid_set_above(&listed, pid);
        if (pid == 0)
            break;
        if (pid != family->root && pid != family->head && !pid_set_has(&strangers, pid))
            fresh = family_signal_one(family, pid, signo, choice) || fresh;
    }
    return fresh;
}

/*
 * One more round of SIGKILL; returns the pause before the next. It grows where no new descendant
 * came to light: then the kernel has not let go of one yet, or it may not be signalled. A number
 * that a stranger had may have gone to a descendant: every now and then all are looked at.
 */
static int64_t family_kill(const Family *family, Rounds *rounds)
{
    bool all = rounds->count++ % ROUNDS_PER_FULL == 0;

    if (family_signal(family, SIGKILL, all ? OLDEST_FIRST : NEWEST_FIRST))
        rounds->pause_us = ROUND_SHORTEST_US;
    else if (rounds->pause_us < ROUND_LONGEST_US)
        rounds->pause_us *= 2;
    return rounds->pause_us;
}

/* --- The command, before it is one --- */

static _Noreturn void command_fail(int report, Step step, int failure)
{
    Report failed = {.kind = REPORT_FAILED, .step = step, .value = failure};

    if (write(report, &failed, sizeof failed) < 0)
        _exit(126); /* the keeper is gone, and SIGKILL on its way */
    _exit(127);
}

/* Signals as the program got them; a handler of ours must not run here. */
static void command_restore_signals(void)
{
    for (int signo = 1; signo < NSIG; signo++) {
        struct sigaction action = {.sa_handler = SIG_DFL};

        if (sigismember(&ignored_at_start, signo) == 1)
            action.sa_handler = SIG_IGN;
        sigaction(signo, &action, NULL); /* fails for SIGKILL, SIGSTOP and libc's own */
    }
    sigprocmask(SIG_SETMASK, &blocked_at_start, NULL);
}

/* Make in, out and err 0, 1 and 2, whatever their numbers are. */
static bool command_set_descriptors(const ProcessSpec *spec)
{
    int given[3] = {spec->in, spec->out, spec->err};

    for (int i = 0; i < 3; i++) { /* out of the way, before the first of them is overwritten */
        if (given[i] >= 0 && given[i] < 3 && given[i] != i) {
            given[i] = fcntl(given[i], F_DUPFD_CLOEXEC, 3);
            if (given[i] < 0)
                return false;
        }
    }
    for (int i = 0; i < 3; i++) {
        if (given[i] == i ? fcntl(i, F_SETFD, 0) < 0 : given[i] >= 0 && dup2(given[i], i) < 0)
            return false;
    }
    return true;
}

/*
 * Execute one file, by the shell where the kernel knows no better (as execvp does). Returns, when
 * it could not, the errno; *step is set where the file is there and its interpreter is not.
 */
static int command_exec_file(const Launch *launch, const char *file, Step *step)
{
    char *const *env = (char *const *)launch->env;
    int failure;

    execve(file, (char *const *)launch->spec->argv, env);
    if (errno == ENOEXEC) {
        launch->shell_argv[1] = file;
        execve(launch->shell_argv[0], (char *const *)launch->shell_argv, env);
    }
    failure = errno;
    if (failure == ENOENT && access(file, F_OK) == 0)
        *step = STEP_INTERPRETER;
    return failure;
}

/* Does this errno mean no more than "not in this folder"? (As in glibc's execvp.) */
static bool search_goes_on(int failure)
{
    return failure == ENOENT || failure == ENOTDIR || failure == EACCES ||
           failure == ENAMETOOLONG || failure == ESTALE || failure == ENODEV ||
           failure == ETIMEDOUT;
}

/*
 * Search the PATH of the command's own environment, as env(1) does. A file that may not be
 * executed does not end the search, but is remembered; a folder that may not be searched is not.
 */
static _Noreturn void command_search(const Launch *launch, int report)
{
    const char *name = launch->spec->argv[0];
    size_t name_size = strlen(name) + 1;
    bool denied = false;
    Step step = STEP_EXEC;
    char file[PATH_MAX];

    for (const char *next = launch->path; next != NULL;) {
        const char *folder = next;
        size_t length = strcspn(folder, ":");
        int failure;

        next = folder[length] == ':' ? folder + length + 1 : NULL;
        if (length == 0) { /* an empty element means the working directory */
            folder = ".";
            length = 1;
        }
        if (length + 1 + name_size > sizeof file)
            continue;
        memcpy(file, folder, length);
        file[length] = '/';
        memcpy(file + length + 1, name, name_size);
        failure = command_exec_file(launch, file, &step);
        if (!search_goes_on(failure))
            command_fail(report, STEP_EXEC, failure);
        denied = denied || (failure == EACCES && access(file, F_OK) == 0);
    }
    if (denied)
        command_fail(report, STEP_EXEC, EACCES);
    command_fail(report, step, ENOENT);
}

static _Noreturn void command_exec(const Launch *launch, int report)
{
    Step step = STEP_EXEC;
    int failure;

    if (launch->path != NULL)
        command_search(launch, report);
    failure = command_exec_file(launch, launch->spec->argv[0], &step);
    command_fail(report, step, failure);
}

static _Noreturn void command_run(const Launch *launch, pid_t keeper, int report)
{
    /* Where the keeper ended before the first line, nobody would send that signal. */
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() != keeper)
        _exit(127);
    if (!command_set_descriptors(launch->spec))
        command_fail(report, STEP_DESCRIPTORS, errno);
    if (launch->spec->cwd != NULL && chdir(launch->spec->cwd) != 0)
        command_fail(report, STEP_DIRECTORY, errno);
    command_restore_signals();
    command_exec(launch, report);
}

/* --- The keeper --- */

typedef enum { PHASE_RUNNING, PHASE_STOPPING, PHASE_KILLING } Phase;

typedef struct {
    const Launch *launch;
    struct pollfd *fds; /* the launch's */
    int fd_count;
    Family family;
    pid_t command;
    bool failed; /* it could not be executed */
    bool over;   /* it has ended, with `status` */
    int status;
    Phase phase;
    int64_t orphans_us;       /* when new orphans are looked for, in PHASE_STOPPING */
    int64_t orphans_pause_us; /* since the last time */
    int64_t kill_us;          /* when SIGKILL is sent; the next time in PHASE_KILLING */
    Rounds rounds;
} Keeper;

/* There are few reports, so there is room; and where nobody listens any more, none is needed. */
static void send_report(const Launch *launch, ReportKind kind, Step step, int value)
{
    Report report = {.kind = kind, .step = step, .value = value};

    send(launch->control, &report, sizeof report, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static _Noreturn void start_fail(const Launch *launch, Step step)
{
    send_report(launch, REPORT_FAILED, step, errno);
    _exit(0);
}

/* Close all but what is polled and /proc: 0, 1 and 2 too, and pipes that others wait to end. */
static bool close_others(const Launch *launch, int proc)
{
    int *keep = launch->keep;
    int count = 0;
    unsigned next = 0;

    for (int i = 0; i <= launch->fd_count; i++) { /* insertion sort */
        int fd = i < launch->fd_count ? launch->fds[i].fd : proc;
        int at = count++;

        for (; at > 0 && keep[at - 1] > fd; at--)
            keep[at] = keep[at - 1];
        keep[at] = fd;
    }
    for (int i = 0; i < count; i++) {
        if (keep[i] < 0 || (unsigned)keep[i] < next) /* absent, or the same again */
            continue;
        if ((unsigned)keep[i] > next && close_range(next, (unsigned)keep[i] - 1, 0) != 0)
            return false;
        next = (unsigned)keep[i] + 1;
    }
    return close_range(next, ~0U, 0) == 0;
}

static void keeper_stop(Keeper *k)
{
    if (k->phase != PHASE_RUNNING)
        return;
    k->phase = PHASE_STOPPING;
    k->fd_count = FD_WATCHED; /* no longer polled, but still open */
    k->kill_us = clock_deadline(k->launch->spec->grace_us);
    k->orphans_pause_us = ORPHANS_FIRST_US;
    family_signal(&k->family, SIGTERM, OLDEST_FIRST);
    k->orphans_us = clock_deadline(k->orphans_pause_us);
}

/* The first round comes with the next turn of the loop. */
static void keeper_kill(Keeper *k)
{
    if (k->phase == PHASE_KILLING)
        return;
    k->phase = PHASE_KILLING;
    k->fd_count = FD_WATCHED;
    k->orphans_us = CLOCK_NEVER;
    k->kill_us = 0;
}

/* Send the signals whose time has come. */
static void keeper_signal_when_due(Keeper *k)
{
    int64_t now_us = clock_monotonic_us();

    if (now_us >= k->kill_us) {
        k->phase = PHASE_KILLING;
        k->orphans_us = CLOCK_NEVER;
        k->kill_us = clock_deadline(family_kill(&k->family, &k->rounds));
    } else if (now_us >= k->orphans_us) {
        family_signal(&k->family, SIGTERM, NEW_ORPHANS);
        if (k->orphans_pause_us < ORPHANS_LONGEST_US)
            k->orphans_pause_us *= 2;
        k->orphans_us = clock_deadline(k->orphans_pause_us);
    }
}

/* Reap all that have ended. False where no child, hence no descendant, is left. */
static bool keeper_reap(Keeper *k)
{
    pid_t pid;
    int status;

    while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0) {
        if (pid == k->command) {
            k->over = true;
            k->status = status;
            k->family.head = 0;
        }
    }
    return pid == 0;
}

static void keeper_take_orders(Keeper *k)
{
    Order order;
    ssize_t length;

    do {
        length = recv(k->launch->control, &order, sizeof order, MSG_DONTWAIT);
        if (length == 0) {              /* the caller is gone */
            k->fds[FD_CONTROL].fd = -1; /* whose hang-up would be reported without end */
            keeper_stop(k);
        } else if (length == (ssize_t)sizeof order) {
            if (order.kind == ORDER_KILL)
                keeper_kill(k);
            else if (order.kind == ORDER_STOP)
                keeper_stop(k);
            else if (!k->over)
                kill(k->command, order.signo); /* not reaped yet: the pid is its own */
        }
    } while (length > 0);
}

/* The report's pipe ended: by the exec, or after what made it fail. */
static void keeper_hear_exec(Keeper *k)
{
    Report report;
    ssize_t length = read(k->fds[FD_EXEC].fd, &report, sizeof report);

    if (length == (ssize_t)sizeof report) {
        k->failed = true;
        send_report(k->launch, REPORT_FAILED, report.step, report.value);
    } else {
        send_report(k->launch, REPORT_STARTED, STEP_EXEC, 0);
    }
    close(k->fds[FD_EXEC].fd);
    k->fds[FD_EXEC].fd = -1;
}

static void keeper_poll(Keeper *k)
{
    struct signalfd_siginfo info;
    int64_t next_us = k->kill_us < k->orphans_us ? k->kill_us : k->orphans_us;
    int64_t wait_ms = -1;

    if (next_us != CLOCK_NEVER) {
        wait_ms = (next_us - clock_monotonic_us() + 999) / 1000;
        wait_ms = wait_ms < 0 ? 0 : wait_ms > INT_MAX ? INT_MAX : wait_ms;
    }
    if (poll(k->fds, (nfds_t)k->fd_count, (int)wait_ms) <= 0)
        return;
    for (int i = FD_WATCHED; i < k->fd_count; i++) {
        if (k->fds[i].revents != 0) {
            send_report(k->launch, REPORT_LOST, STEP_EXEC, 0);
            keeper_stop(k);
        }
    }
    if (k->fds[FD_SIGNALS].revents != 0)
        while (read(k->fds[FD_SIGNALS].fd, &info, sizeof info) > 0)
            ; /* SIGCHLD: keeper_reap will see */
    if (k->fds[FD_EXEC].fd >= 0 && k->fds[FD_EXEC].revents != 0)
        keeper_hear_exec(k);
    if (k->fds[FD_CONTROL].revents != 0)
        keeper_take_orders(k);
}

/* A descriptor that does not stand where the command's 0, 1 and 2 will be put. */
static int above_standard(int fd)
{
    int moved = fd;

    if (fd >= 0 && fd < 3) {
        moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        close(fd);
    }
    return moved;
}

static void keeper_start_command(Keeper *k)
{
    sigset_t child;
    int pipe_fds[2];

    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    k->fds[FD_SIGNALS].fd = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    if (k->fds[FD_SIGNALS].fd < 0 || pipe2(pipe_fds, O_CLOEXEC) != 0)
        start_fail(k->launch, STEP_KEEPER);
    k->fds[FD_EXEC].fd = pipe_fds[0];
    pipe_fds[1] = above_standard(pipe_fds[1]);
    if (pipe_fds[1] < 0)
        start_fail(k->launch, STEP_KEEPER);
    k->command = fork();
    if (k->command < 0)
        start_fail(k->launch, STEP_KEEPER);
    k->family.head = k->command;
    if (k->command == 0)
        command_run(k->launch, k->family.root, pipe_fds[1]);
}

/*
 * Only now, with the command forked, does the keeper leave the session: the command stays in the
 * terminal's, and whoever kills this process's whole group does not kill the keeper too.
 */
static _Noreturn void keeper_run(const Launch *launch)
{
    Keeper k = {.launch = launch,
                .fds = launch->fds,
                .fd_count = launch->fd_count,
                .phase = PHASE_RUNNING,
                .orphans_us = CLOCK_NEVER,
                .kill_us = CLOCK_NEVER,
                .rounds.pause_us = ROUND_SHORTEST_US};

    if (!family_open(&k.family))
        start_fail(launch, STEP_PROC);
    keeper_start_command(&k);
    setsid();
    if (!close_others(launch, k.family.proc)) {
        k.failed = true;
        send_report(launch, REPORT_FAILED, STEP_KEEPER, errno);
        keeper_kill(&k);
    }
    while (keeper_reap(&k)) {
        if (k.over)
            keeper_stop(&k); /* what it left behind */
        keeper_signal_when_due(&k);
        keeper_poll(&k);
    }
    if (k.fds[FD_EXEC].fd >= 0 && !k.failed)
        keeper_hear_exec(&k);
    if (!k.failed)
        send_report(launch, REPORT_ENDED, STEP_EXEC, k.status);
    _exit(0); /* only now are the watched sockets closed */
}

/* --- The heir --- */

/*
 * It sleeps until the keeper ends. Where that was not of the keeper's own will (SIGKILL, out of
 * memory), the descendants are now the heir's: they are killed, and only then does it let go of
 * the watched sockets. Where the heir itself is killed, nothing changes for the keeper.
 */
static _Noreturn void heir_run(const Launch *launch)
{
    Family family = {0};
    pid_t keeper;
    pid_t pid;
    int status = 0;
    Rounds rounds = {.pause_us = ROUND_SHORTEST_US};

    signal(SIGCHLD, SIG_DFL); /* ignored, it would reap for us and forget the status */
    prctl(PR_SET_NAME, "keeper", 0, 0, 0);
    if (!family_open(&family))
        start_fail(launch, STEP_PROC);
    keeper = fork();
    if (keeper < 0)
        start_fail(launch, STEP_KEEPER);
    if (keeper == 0)
        keeper_run(launch);
    setsid();
    close_others(launch, family.proc); /* where it fails, it fails for the keeper, who says so */
    do
        pid = waitpid(keeper, &status, 0);
    while (pid < 0 && errno == EINTR);
    if (pid == keeper && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        _exit(0);
    do {
        struct timespec pause = {.tv_nsec = family_kill(&family, &rounds) * 1000};

        nanosleep(&pause, NULL);
        while ((pid = waitpid(-1, NULL, WNOHANG | __WALL)) > 0)
            ;
    } while (pid == 0);
    send_report(launch, REPORT_ENDED, STEP_EXEC, SIGKILL);
    _exit(0);
}

/* --- This process --- */

static const char *search_path(const char *const *env)
{
    for (; *env != NULL; env++) {
        if (strncmp(*env, "PATH=", 5) == 0)
            return *env + 5;
    }
    return "/bin:/usr/bin"; /* confstr(_CS_PATH) */
}

/* No command is begun without its lock. */
static bool check_watched(const Launch *launch, Error *err)
{
    bool lost = poll(launch->fds, (nfds_t)launch->fd_count, 0) > 0;

    for (int i = FD_WATCHED; i < launch->fd_count; i++)
        lost = lost || launch->fds[i].fd < 0; /* which poll passes over */
    if (lost)
        return error_set(err, ERROR_LOCK_LOST,
                         "command \"%s\" was not started: its lock's session has ended",
                         launch->spec->argv[0]);
    return true;
}

static bool launch_prepare(Launch *launch, const ProcessSpec *spec, Error *err)
{
    size_t argc = 0;

    if (spec->argv == NULL || spec->argv[0] == NULL)
        return error_usage(err, "there is no command");
    launch->spec = spec;
    launch->env = spec->env != NULL ? spec->env : (const char *const *)environ;
    if (strchr(spec->argv[0], '/') == NULL && spec->argv[0][0] != '\0')
        launch->path = search_path(launch->env);
    while (spec->argv[argc] != NULL)
        argc++;
    launch->fd_count = FD_WATCHED + spec->watched_count;
    launch->shell_argv = calloc(argc + 2, sizeof *launch->shell_argv);
    launch->fds = calloc((size_t)launch->fd_count, sizeof *launch->fds);
    launch->keep = calloc((size_t)launch->fd_count + 1, sizeof *launch->keep);
    if (launch->shell_argv == NULL || launch->fds == NULL || launch->keep == NULL)
        return error_usage(err, "command \"%s\": %s", spec->argv[0], strerror(ENOMEM));
    launch->shell_argv[0] = "/bin/sh";
    for (size_t i = 1; i < argc; i++)
        launch->shell_argv[i + 1] = spec->argv[i];
    for (int i = 0; i < launch->fd_count; i++) {
        launch->fds[i].fd = i < FD_WATCHED ? -1 : spec->watched[i - FD_WATCHED];
        launch->fds[i].events = i < FD_WATCHED ? POLLIN : POLLRDHUP;
    }
    return check_watched(launch, err);
}

/* Fork the heir with all signals blocked: no handler of ours may run in it. */
static bool launch_fork(Launch *launch, Process *p, Error *err)
{
    int pair[2] = {-1, -1};
    sigset_t all;
    sigset_t before;
    int failure;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        goto failed;
    p->control = above_standard(pair[0]);
    launch->control = above_standard(pair[1]);
    if (p->control < 0 || launch->control < 0)
        goto failed;
    launch->fds[FD_CONTROL].fd = launch->control;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    p->heir = fork();
    if (p->heir == 0)
        heir_run(launch);
    pid_set_add(&heirs, p->heir);
    failure = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = failure;
    if (p->heir > 0)
        return true;
    p->heir = 0;
failed:
    return error_usage(err, "command \"%s\" cannot be started: %s", launch->spec->argv[0],
                       strerror(errno));
}

/* The keeper's end of the control socket, too: the heir has it now. */
static void launch_clear(Launch *launch)
{
    if (launch->control >= 0)
        close(launch->control);
    free(launch->shell_argv);
    free(launch->fds);
    free(launch->keep);
    *launch = (Launch){.control = -1};
}

/* EXDEV is family_open's word for a /proc that shows other processes. */
static const char *reason(Step step, int failure)
{
    if (failure == ENOENT && step != STEP_PROC)
        return "not found";
    if (failure == EACCES)
        return "permission denied";
    if (failure == EXDEV && step == STEP_PROC)
        return "it belongs to another PID namespace";
    return strerror(failure);
}

static bool explain(const Report *report, const ProcessSpec *spec, int *exec_errno, Error *err)
{
    const char *name = spec->argv[0];
    const char *why = reason(report->step, report->value);

    switch (report->step) {
    case STEP_EXEC:
        *exec_errno = report->value;
        return error_usage(err, "command \"%s\": %s", name, why);
    case STEP_INTERPRETER:
        *exec_errno = report->value;
        return error_usage(err, "command \"%s\": its interpreter was not found", name);
    case STEP_DIRECTORY:
        return error_usage(err, "command \"%s\": directory \"%s\": %s", name, spec->cwd, why);
    case STEP_DESCRIPTORS:
        return error_usage(err, "command \"%s\": its input or output is not open: %s", name, why);
    case STEP_PROC:
        return error_usage(err, "command \"%s\" cannot be watched: /proc: %s", name, why);
    case STEP_KEEPER:
        break;
    }
    return error_usage(err, "command \"%s\" cannot be started: %s", name, why);
}

/* Receive one report. 0: both heir and keeper are gone; -1: nothing is there (with `flags`). */
static ssize_t receive(const Process *p, Report *report, int flags)
{
    ssize_t length;

    do /* ECONNRESET: the keeper left before it read all orders; its reports come after */
        length = recv(p->control, report, sizeof *report, flags);
    while (length < 0 && (errno == EINTR || errno == ECONNRESET));
    return length;
}

static void set_ended(Process *p, int status)
{
    p->status.state = PROCESS_ENDED;
    p->status.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    p->status.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* The first report tells how the start went; but a socket may hang up even before. */
static bool await_start(Process *p, const ProcessSpec *spec, int *exec_errno, Error *err)
{
    Report report;

    while (receive(p, &report, 0) > 0) {
        if (report.kind == REPORT_STARTED)
            return true;
        if (report.kind == REPORT_FAILED)
            return explain(&report, spec, exec_errno, err);
        if (report.kind == REPORT_ENDED)
            break;
        p->status.lost = true;
    }
    return error_usage(err, "command \"%s\" cannot be started: its keeper was killed",
                       spec->argv[0]);
}

bool process_start(Process **process, const ProcessSpec *spec, int *exec_errno, Error *err)
{
    Launch launch = {.control = -1};
    Process *p = NULL;
    bool ok = false;

    *process = NULL;
    *exec_errno = 0;
    if (!launch_prepare(&launch, spec, err))
        goto out;
    p = calloc(1, sizeof *p);
    if (p == NULL) {
        error_usage(err, "command \"%s\": %s", spec->argv[0], strerror(ENOMEM));
        goto out;
    }
    p->control = -1;
    if (!launch_fork(&launch, p, err))
        goto out;
    launch_clear(&launch);
    if (!await_start(p, spec, exec_errno, err))
        goto out;
    *process = p;
    p = NULL;
    ok = true;
out:
    process_free(p);
    launch_clear(&launch);
    return ok;
}

int process_fd(const Process *process)
{
    return process->control;
}

void process_read(Process *process, ProcessStatus *status)
{
    Report report;
    ssize_t length = -1;

    while (process->status.state == PROCESS_RUNNING &&
           (length = receive(process, &report, MSG_DONTWAIT)) > 0) {
        if (report.kind == REPORT_LOST)
            process->status.lost = true;
        else if (report.kind == REPORT_ENDED)
            set_ended(process, report.value);
    }
    if (length == 0)
        set_ended(process, SIGKILL);
    *status = process->status;
}

/*
 * Where the socket is full, the keeper has not run for hundreds of orders: it finds the end of
 * them instead, which means the same as a stop.
 */
static void give_order(Process *p, OrderKind kind, int signo)
{
    Order order = {.kind = kind, .signo = signo};

    if (send(p->control, &order, sizeof order, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 &&
        errno == EAGAIN && kind != ORDER_SIGNAL)
        shutdown(p->control, SHUT_WR);
}

void process_signal(Process *process, int signo)
{
    give_order(process, ORDER_SIGNAL, signo);
}

void process_stop(Process *process)
{
    give_order(process, ORDER_STOP, 0);
}

void process_kill(Process *process)
{
    give_order(process, ORDER_KILL, 0);
}

/* Wait until heir and keeper have closed their end, which they do by ending. */
static bool await_end(const Process *p)
{
    int64_t deadline_us = clock_deadline(FREE_WAIT_US);
    struct pollfd fd = {.fd = p->control, .events = POLLIN};
    int64_t left_us;
    Report report;

    while ((left_us = deadline_us - clock_monotonic_us()) > 0) {
        if (poll(&fd, 1, (int)(left_us / 1000) + 1) > 0 && receive(p, &report, MSG_DONTWAIT) == 0)
            return true;
    }
    return false;
}

void process_free(Process *process)
{
    bool gone = false;

    if (process == NULL)
        return;
    if (process->heir > 0) {
        process_kill(process);
        gone = await_end(process);
    }
    if (process->control >= 0)
        close(process->control);
    if (process->heir > 0) { /* ECHILD: other code of this process has reaped it */
        while (waitpid(process->heir, NULL, gone ? 0 : WNOHANG) < 0 && errno == EINTR)
            ;
        pid_set_remove(&heirs, process->heir);
    }
    free(process);
}

/* Where this is a subreaper, no child means no descendant. */
static bool has_children(void)
{
    siginfo_t ignored;

    return waitid(P_ALL, 0, &ignored, WEXITED | WNOHANG | WNOWAIT) == 0;
}

void process_spare_strays(void)
{
    Family family = {.proc = -1};

    pid_set_clear(&spared);
    pid_set_clear(&strangers);
    if (!has_children()) {
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    } else if (family_open(&family)) {
        family_list(&family);
        for (pid_t pid = pid_set_above(&listed, 0); pid > 0; pid = pid_set_above(&listed, pid)) {
            if (pid != family.root)
                family_has(&family, pid);
        }
        spared = found;
    }
    if (family.proc >= 0)
        close(family.proc);
}

void process_kill_strays(void)
{
    enum { ROUNDS = 3 }; /* more than one for those that fork meanwhile */
    Family family = {0};
    Rounds rounds = {.pause_us = ROUND_SHORTEST_US};

    if (!family_open(&family))
        return;
    for (int i = 0; i < ROUNDS; i++)
        family_kill(&family, &rounds);
    close(family.proc);
}

/* Those that were killed are gone, within this time, and leave no zombie of ours behind. */
enum { REAP_US = 200000, REAP_PAUSE_US = 2000 };

static bool reap_killed(void)
{
    bool all = true;

    for (pid_t pid = pid_set_above(&killed, 0); pid > 0; pid = pid_set_above(&killed, pid)) {
        if (waitpid(pid, NULL, WNOHANG) == 0)
            all = false;
        else /* it is reaped, or was another's child */
            pid_set_remove(&killed, pid);
    }
    return all;
}

void process_end_strays(void)
{
    int64_t deadline_us = clock_deadline(REAP_US);

    if (has_children())
        process_kill_strays();
    while (!reap_killed() && clock_monotonic_us() < deadline_us)
        usleep(REAP_PAUSE_US);
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
}
