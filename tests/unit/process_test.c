/*
 * base/process: commands end with what they depend on, and leave nothing behind.
 *
 * The end of a pipe that a command and its descendants hold open tells that all of them are gone.
 * This process is a subreaper, so that a descendant that escaped its keeper would become a child
 * of ours: each test ends with the check that there is none, and that no descriptor was left open.
 */
#include "base/clock.h"
#include "base/process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const int64_t SECOND = 1000000;
static const int64_t MS = 1000;

enum { PATIENCE_MS = 20000 };

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            printf("not ok - line %d: %s\n", __LINE__, #what);                                     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define SHELL(script) ((const char *[]){"/bin/sh", "-c", (script), NULL})
#define SELF(role)    ((const char *[]){"/proc/self/exe", (role), NULL})

/* A command with its output in a pipe. */
typedef struct {
    ProcessSpec spec;
    Process *process;
    ProcessStatus status;
    int output; /* the end that we read */
    int exec_errno;
    Error err;
    char text[8192]; /* what was read so far */
    size_t length;
} Run;

static void run_init(Run *run, const char *const *argv)
{
    *run = (Run){.output = -1};
    run->spec =
        (ProcessSpec){.argv = argv, .in = -1, .out = -1, .err = -1, .grace_us = 10 * SECOND};
}

static bool run_start(Run *run)
{
    int ends[2];
    bool ok;

    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    run->output = ends[0];
    run->spec.out = ends[1];
    ok = process_start(&run->process, &run->spec, &run->exec_errno, &run->err);
    close(ends[1]);
    return ok;
}

static bool readable(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    return poll(&poll_fd, 1, PATIENCE_MS) == 1;
}

/* Read what is there, waiting for something. False at the output's end. */
static bool run_read_more(Run *run)
{
    ssize_t got;

    CHECK(readable(run->output));
    got = read(run->output, run->text + run->length, sizeof run->text - 1 - run->length);
    CHECK(got >= 0);
    run->length += (size_t)got;
    return got > 0;
}

/* Read until the output ends (NULL), or holds a text. */
static void run_read(Run *run, const char *until)
{
    while (until == NULL || strstr(run->text, until) == NULL) {
        if (!run_read_more(run)) {
            CHECK(until == NULL);
            return;
        }
    }
}

static void run_read_lines(Run *run, int lines)
{
    for (;;) {
        int count = 0;

        for (const char *p = run->text; (p = strchr(p, '\n')) != NULL; p++)
            count++;
        if (count >= lines)
            return;
        CHECK(run_read_more(run));
    }
}

static void run_wait(Run *run)
{
    do {
        CHECK(readable(process_fd(run->process)));
        process_read(run->process, &run->status);
    } while (run->status.state == PROCESS_RUNNING);
}

static void run_close(Run *run)
{
    process_free(run->process);
    if (run->output >= 0)
        close(run->output);
    run->output = -1;
}

static void check_no_child(void)
{
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
}

/* The pid in the output after "name=". */
static pid_t pid_in(const Run *run, const char *name)
{
    const char *p = strstr(run->text, name);

    CHECK(p != NULL);
    return (pid_t)strtol(p + strlen(name), NULL, 10);
}

static bool is_gone(pid_t pid)
{
    return kill(pid, 0) == -1 && errno == ESRCH;
}

static pid_t parent_of(pid_t pid)
{
    char path[64];
    char text[512];
    FILE *file;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    file = fopen(path, "re");
    CHECK(file != NULL && fgets(text, sizeof text, file) != NULL);
    fclose(file);
    return (pid_t)strtol(strrchr(text, ')') + strlen(") S "), NULL, 10);
}

/* --- Starting and ending --- */

static void run_to_end(Run *run)
{
    CHECK(run_start(run));
    run_read(run, NULL);
    run_wait(run);
    run_close(run);
}

static void test_status(void)
{
    Run run;

    run_init(&run, SHELL("echo out; exit 7"));
    run_to_end(&run);
    CHECK(strcmp(run.text, "out\n") == 0);
    CHECK(run.status.exit_code == 7 && run.status.signal == 0 && !run.status.lost);

    run_init(&run, SHELL("exit 0"));
    run_to_end(&run);
    CHECK(run.status.exit_code == 0 && run.status.signal == 0);

    run_init(&run, SHELL("kill -KILL $$"));
    run_to_end(&run);
    CHECK(run.status.exit_code == 128 + SIGKILL && run.status.signal == SIGKILL);
}

static void check_fails(const char *const *argv, int exec_errno, const char *message)
{
    Run run;

    run_init(&run, argv);
    CHECK(!run_start(&run));
    CHECK(run.process == NULL && run.err.kind == ERROR_USAGE);
    if (run.exec_errno != exec_errno || strcmp(run.err.message, message) != 0)
        printf("errno %d, \"%s\"\n", run.exec_errno, run.err.message);
    CHECK(run.exec_errno == exec_errno && strcmp(run.err.message, message) == 0);
    run_close(&run);
    check_no_child();
}

static void test_failures(const char *folder)
{
    char script[256];
    char message[512];
    const char *argv[] = {script, NULL};
    const char *none[] = {NULL};
    Run run;
    FILE *file;

    check_fails(none, 0, "there is no command");
    check_fails((const char *[]){"nosuch-command", NULL}, ENOENT,
                "command \"nosuch-command\": not found");
    check_fails((const char *[]){"", NULL}, ENOENT, "command \"\": not found");
    check_fails((const char *[]){"/etc/passwd", NULL}, EACCES,
                "command \"/etc/passwd\": permission denied");
    check_fails((const char *[]){"/etc/passwd/x", NULL}, ENOTDIR,
                "command \"/etc/passwd/x\": Not a directory");
    snprintf(script, sizeof script, "%s/bad-interpreter", folder);
    file = fopen(script, "we");
    CHECK(file != NULL);
    fputs("#!/nosuch/interpreter\n", file);
    CHECK(fclose(file) == 0 && chmod(script, 0755) == 0);
    snprintf(message, sizeof message, "command \"%s\": its interpreter was not found", script);
    check_fails(argv, ENOENT, message);
    unlink(script);

    run_init(&run, SHELL("true"));
    run.spec.cwd = "/nosuch";
    CHECK(!run_start(&run) && run.exec_errno == 0);
    CHECK(strcmp(run.err.message, "command \"/bin/sh\": directory \"/nosuch\": not found") == 0);
    run_close(&run);
    run_init(&run, SHELL("true"));
    run.spec.in = 999;
    CHECK(!run_start(&run) && run.exec_errno == 0);
    CHECK(strstr(run.err.message, "input or output is not open") != NULL);
    run_close(&run);
    check_no_child();
}

static void test_search(const char *folder)
{
    char file[256];
    char denied[256];
    char path[1024];
    const char *env[] = {"A=1", path, NULL};
    Run run;
    FILE *script;

    snprintf(file, sizeof file, "%s/by-shell", folder);
    script = fopen(file, "we");
    CHECK(script != NULL);
    fputs("echo \"$A:$2:$#\"\nexit 3\n", script); /* no "#!": the shell runs it */
    CHECK(fclose(script) == 0 && chmod(file, 0755) == 0);
    snprintf(path, sizeof path, "PATH=/nosuch:/etc/passwd:%s", folder);
    run_init(&run, (const char *[]){"by-shell", "one", "two words", NULL});
    run.spec.env = env;
    run_to_end(&run);
    CHECK(strcmp(run.text, "1:two words:2\n") == 0 && run.status.exit_code == 3);

    snprintf(path, sizeof path, "PATH=/nosuch:"); /* the working directory */
    run.spec.cwd = folder;
    run.spec.argv = (const char *[]){"by-shell", NULL};
    run.length = 0;
    run_to_end(&run);
    CHECK(run.status.exit_code == 3);

    snprintf(denied, sizeof denied, "%s/denied", folder);
    CHECK(mkdir(denied, 0755) == 0);
    snprintf(path, sizeof path, "PATH=%s:/nosuch", folder);
    run.spec.argv = (const char *[]){"denied", NULL};
    CHECK(!run_start(&run) && run.exec_errno == EACCES);
    run_close(&run);
    CHECK(rmdir(denied) == 0 && unlink(file) == 0);
}

/* A set of signals in the text of /proc/[pid]/status. */
static unsigned long long status_signals(const Run *run, const char *name)
{
    const char *line = strstr(run->text, name);

    CHECK(line != NULL);
    return strtoull(line + strlen(name) + 1, NULL, 16);
}

static void test_surroundings(void)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    struct sigaction before;
    sigset_t all;
    sigset_t mask;
    Run run;

    sigfillset(&all);
    sigaction(SIGUSR1, &ignore, &before);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    run_init(&run, SHELL("pwd; cat /proc/self/status; ls /proc/self/fd"));
    run.spec.cwd = "/usr";
    run_to_end(&run);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    sigaction(SIGUSR1, &before, NULL);
    CHECK(strncmp(run.text, "/usr\n", 5) == 0);
    CHECK((status_signals(&run, "SigIgn") >> (SIGUSR1 - 1) & 1) == 0);
    CHECK(status_signals(&run, "SigBlk") == 0 && status_signals(&run, "SigCgt") == 0);
    CHECK(strcmp(run.text + run.length - 9, "\n0\n1\n2\n3\n") == 0); /* 3 is ls's own */
    CHECK(run.status.exit_code == 0);
}

/* The shell below ignores SIGHUP before this program starts again as "report-ignored". */
static int role_report_ignored(void)
{
    struct sigaction handled = {.sa_handler = SIG_DFL};
    Run run;

    sigaction(SIGHUP, &handled, NULL); /* as a program would that handles it itself */
    signal(SIGUSR1, SIG_IGN);
    run_init(&run, SHELL("grep SigIgn /proc/self/status"));
    run_to_end(&run);
    fputs(run.text, stdout);
    return run.status.exit_code;
}

static void test_ignored_signals(void)
{
    char self[256];
    char script[512];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    Run run;

    CHECK(length > 0);
    self[length] = '\0';
    snprintf(script, sizeof script, "trap '' HUP; exec '%s' report-ignored", self);
    run_init(&run, SHELL(script));
    run_to_end(&run);
    CHECK((status_signals(&run, "SigIgn") >> (SIGHUP - 1) & 1) == 1);
    CHECK((status_signals(&run, "SigIgn") >> (SIGUSR1 - 1) & 1) == 0);
}

static void check_line(int fd, const char *line)
{
    char text[64] = "";

    CHECK(readable(fd) && read(fd, text, sizeof text - 1) > 0);
    CHECK(strcmp(text, line) == 0);
    close(fd);
}

static void test_crossed_descriptors(void)
{
    int saved[3];
    int one[2];
    int two[2];
    Run run;
    bool ok;

    run_init(&run, SHELL("echo to-out; echo to-err >&2"));
    CHECK(pipe2(one, O_CLOEXEC) == 0 && pipe2(two, O_CLOEXEC) == 0);
    fflush(stdout);
    for (int i = 0; i < 3; i++)
        saved[i] = fcntl(i, F_DUPFD_CLOEXEC, 10);
    dup3(one[1], 1, O_CLOEXEC);
    dup3(two[1], 2, O_CLOEXEC);
    close(0); /* so that the next descriptor to be opened gets 0 */
    run.spec.out = 2;
    run.spec.err = 1;
    ok = process_start(&run.process, &run.spec, &run.exec_errno, &run.err);
    for (int i = 0; i < 3; i++) {
        dup2(saved[i], i);
        close(saved[i]);
    }
    close(one[1]);
    close(two[1]);
    CHECK(ok);
    check_line(two[0], "to-out\n");
    check_line(one[0], "to-err\n");
    run_wait(&run);
    run_close(&run);
}

static void test_signal(void)
{
    Run run;

    run_init(&run, SHELL("trap 'echo hup' HUP; sleep 1000 & echo ready; wait; wait; kill $!"));
    CHECK(run_start(&run));
    run_read(&run, "ready");
    process_signal(run.process, SIGHUP);
    run_read(&run, "hup");
    process_signal(run.process, SIGKILL);
    run_wait(&run);
    run_read(&run, NULL);
    CHECK(run.status.signal == SIGKILL);
    run_close(&run);
}

/* --- Descendants --- */

/* Two descendants in sessions of their own, their parents gone. They say so in a line each. */
#define STRAY                                                                                      \
    "(setsid sh -c '(setsid sleep 1000 & echo inner=$!) & echo outer=$$; exec sleep 1000' &) & "

/*
 * A shell that waits. "ready" comes from the child, when it has been executed: before that it has
 * the shell's trap, which would swallow the signal.
 */
#define WAIT "sh -c 'echo ready; exec sleep 1000' & wait"

static void test_left_behind(void)
{
    Run run;
    int64_t begun = clock_monotonic_us();

    run_init(&run, SHELL(STRAY "trap 'exit 5' USR1; " WAIT));
    CHECK(run_start(&run));
    run_read_lines(&run, 3);
    process_signal(run.process, SIGUSR1);
    run_read(&run, NULL);
    run_wait(&run);
    CHECK(clock_monotonic_us() - begun < 5 * SECOND);
    CHECK(run.status.exit_code == 5 && !run.status.lost);
    CHECK(is_gone(pid_in(&run, "inner=")) && is_gone(pid_in(&run, "outer=")));
    run_close(&run);
}

static void test_stop(void)
{
    Run run;
    int64_t begun;

    run_init(&run, SHELL(STRAY "trap 'echo term; exit 6' TERM; " WAIT));
    CHECK(run_start(&run));
    run_read(&run, "ready");
    process_stop(run.process);
    process_stop(run.process);
    run_read(&run, NULL);
    run_wait(&run);
    CHECK(strstr(run.text, "term") != NULL && run.status.exit_code == 6);
    run_close(&run);

    /* One that ignores SIGTERM is killed after `grace`, no sooner. */
    run_init(&run, SHELL("trap '' TERM; echo ready; while :; do sleep 1000; done"));
    run.spec.grace_us = 300 * MS;
    CHECK(run_start(&run));
    run_read(&run, "ready");
    begun = clock_monotonic_us();
    process_stop(run.process);
    run_wait(&run);
    CHECK(clock_monotonic_us() - begun >= 300 * MS && clock_monotonic_us() - begun < 3 * SECOND);
    CHECK(run.status.exit_code == 137);
    run_close(&run);

    /* process_kill does not wait for the grace that is under way. */
    run_init(&run, SHELL("trap '' TERM; echo ready; while :; do sleep 1000; done"));
    run.spec.grace_us = CLOCK_NEVER;
    CHECK(run_start(&run));
    run_read(&run, "ready");
    process_stop(run.process);
    process_kill(run.process);
    run_wait(&run);
    CHECK(run.status.signal == SIGKILL);
    run_close(&run);

    /* A stopped one notices, too. */
    run_init(&run, SHELL("echo ready; kill -STOP $$; sleep 1000"));
    CHECK(run_start(&run));
    run_read(&run, "ready");
    process_stop(run.process);
    run_wait(&run);
    CHECK(run.status.signal == SIGTERM);
    run_close(&run);
}

static void test_free(void)
{
    Run run;

    run_init(&run, SHELL(STRAY "trap '' TERM; echo ready; while :; do sleep 1000; done"));
    CHECK(run_start(&run));
    run_read(&run, "ready");
    process_free(run.process);
    run.process = NULL;
    check_no_child();
    run_read(&run, NULL);
    run_close(&run);
    process_free(NULL);
}

/* Forks and exits without end, each time with a new number. */
static _Noreturn void role_hopper(void)
{
    signal(SIGTERM, SIG_IGN);
    for (;;) {
        pid_t pid = fork();

        if (pid > 0)
            _exit(0);
        if (pid < 0)
            usleep(1000);
    }
}

/* Doubles until the limit on processes is reached, in sessions of their own. */
static _Noreturn void role_bomb(void)
{
    signal(SIGTERM, SIG_IGN);
    for (;;) {
        if (fork() < 0)
            usleep(1000);
        else
            setsid();
    }
}

/* Has a child every moment: some are born while the SIGTERM goes round. */
static _Noreturn void role_brood(void)
{
    for (int i = 0; i < 300; i++) {
        if (fork() == 0)
            break;
    }
    for (;;)
        pause();
}

/* A chain of `left` children, each the parent of the next. */
static _Noreturn void role_chain(int left)
{
    while (left-- > 0) {
        if (fork() != 0)
            break;
    }
    signal(SIGTERM, SIG_IGN);
    if (left < 0 && write(1, "ready\n", 6) < 0)
        _exit(1);
    for (;;)
        pause();
}

static void check_killed(const char *role, int64_t grace_us)
{
    Run run;
    int64_t begun;

    run_init(&run, SELF(role));
    run.spec.grace_us = grace_us;
    begun = clock_monotonic_us();
    CHECK(run_start(&run));
    if (strcmp(role, "chain") == 0)
        run_read(&run, "ready");
    else if (strcmp(role, "brood") != 0)
        usleep(100000); /* into full swing */
    process_stop(run.process);
    run_read(&run, NULL);
    run_wait(&run);
    printf("# %s: gone %d ms after its start\n", role,
           (int)((clock_monotonic_us() - begun) / 1000));
    run_close(&run);
    check_no_child();
}

static void test_forkers(void)
{
    check_killed("brood", CLOCK_NEVER);
    check_killed("chain", 50 * MS);
    check_killed("hopper", 50 * MS);
    check_killed("hoppers", 50 * MS);
    check_killed("bomb", 50 * MS);
}

/* --- Watched sockets, and the deaths of those above --- */

static void test_lost(void)
{
    int ends[2];
    Run run;

    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    run_init(&run, SHELL(STRAY "trap 'exit 0' TERM; " WAIT));
    run.spec.watched = &ends[0];
    run.spec.watched_count = 1;
    CHECK(run_start(&run));
    run_read(&run, "ready");
    CHECK(write(ends[1], "data", 4) == 4); /* is no hang-up, and not for the keeper to read */
    CHECK(poll(&(struct pollfd){.fd = process_fd(run.process), .events = POLLIN}, 1, 100) == 0);
    close(ends[1]);
    run_wait(&run);
    run_read(&run, NULL);
    CHECK(run.status.lost && run.status.exit_code == 0);
    CHECK(read(ends[0], run.text, 8) == 4);
    run_close(&run);

    /* Lost before the start: nothing is started. */
    run_init(&run, SHELL("echo started"));
    run.spec.watched = &ends[0];
    run.spec.watched_count = 1;
    CHECK(!run_start(&run) && run.err.kind == ERROR_LOCK_LOST && run.exec_errno == 0);
    run_read(&run, NULL);
    CHECK(run.length == 0);
    run_close(&run);
    run.spec.watched = &(int){-1};
    CHECK(!run_start(&run) && run.err.kind == ERROR_LOCK_LOST);
    run_close(&run);
    close(ends[0]);
}

/*
 * A caller of its own: it starts `run` with one watched socket (the other end is *far) and sleeps.
 * Only it has the near end.
 */
static pid_t start_caller(Run *run, int *far)
{
    int ends[2];
    int output[2];
    char byte;
    pid_t pid;

    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    CHECK(pipe2(output, O_CLOEXEC) == 0);
    fflush(stdout);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        close(ends[1]);
        close(output[0]);
        run->spec.out = output[1];
        run->spec.watched = &ends[0];
        run->spec.watched_count = 1;
        if (!process_start(&run->process, &run->spec, &run->exec_errno, &run->err))
            _exit(1);
        close(output[1]);
        if (write(ends[0], "", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(ends[0]);
    close(output[1]);
    CHECK(readable(ends[1]) && read(ends[1], &byte, 1) == 1);
    *far = ends[1];
    run->output = output[0];
    return pid;
}

/* After the caller's death its heir is our child, since we are a subreaper. */
static void reap_caller(pid_t caller)
{
    CHECK(waitpid(caller, NULL, 0) == caller);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    check_no_child();
}

static void test_caller_killed(void)
{
    char byte;
    int far;
    Run run;
    pid_t caller;

    run_init(&run, SHELL(STRAY "trap 'sleep 0.2; echo cleaned; exit' TERM; " WAIT));
    caller = start_caller(&run, &far);
    run_read(&run, "ready");
    kill(caller, SIGKILL);
    /* The watched socket (the lock) outlives the caller, but not before the command is gone. */
    CHECK(readable(far) && read(far, &byte, 1) == 0);
    CHECK(poll(&(struct pollfd){.fd = run.output, .events = POLLIN}, 1, 0) == 1);
    run_read(&run, NULL);
    CHECK(strstr(run.text, "cleaned") != NULL);
    close(far);
    run_close(&run);
    reap_caller(caller);
}

static void test_caller_stopped(void)
{
    int far;
    Run run;
    pid_t caller;

    run_init(&run, SHELL(STRAY "echo ready; sleep 1000"));
    caller = start_caller(&run, &far);
    run_read(&run, "ready");
    kill(caller, SIGSTOP);
    CHECK(waitpid(caller, NULL, WUNTRACED) == caller);
    close(far);
    run_read(&run, NULL);
    run_close(&run);
    kill(caller, SIGKILL);
    reap_caller(caller);
}

static void test_keeper_killed(void)
{
    int ends[2];
    char byte;
    Run run;
    pid_t command;

    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    run_init(&run, SHELL("echo self=$$; " STRAY "trap '' TERM; while :; do sleep 1000; done"));
    run.spec.watched = &ends[0];
    run.spec.watched_count = 1;
    CHECK(run_start(&run));
    run_read_lines(&run, 3);
    close(ends[0]);
    command = pid_in(&run, "self=");
    kill(parent_of(command), SIGKILL);
    CHECK(readable(ends[1]) && read(ends[1], &byte, 1) == 0);
    CHECK(is_gone(command) && is_gone(pid_in(&run, "inner=")) && is_gone(pid_in(&run, "outer=")));
    run_wait(&run);
    CHECK(run.status.signal == SIGKILL && run.status.exit_code == 137 && !run.status.lost);
    run_close(&run);
    close(ends[1]);
}

static void test_heir_killed(void)
{
    Run run;

    run_init(&run, SHELL("echo self=$$; " STRAY "trap 'exit 4' TERM; " WAIT));
    CHECK(run_start(&run));
    run_read_lines(&run, 4);
    kill(parent_of(parent_of(pid_in(&run, "self="))), SIGKILL);
    process_stop(run.process);
    run_read(&run, NULL);
    run_wait(&run);
    CHECK(run.status.exit_code == 4);
    run_close(&run);
    while (waitpid(-1, NULL, 0) > 0) /* the keeper came to us */
        ;
}

static void test_group_killed(void)
{
    char byte;
    int far;
    Run run;
    pid_t caller;

    run_init(&run, SHELL(STRAY "echo ready; sleep 1000"));
    caller = start_caller(&run, &far);
    CHECK(setpgid(caller, caller) == 0); /* the command's group is still ours: the worst case */
    run_read(&run, "ready");
    kill(-caller, SIGKILL);
    CHECK(readable(far) && read(far, &byte, 1) == 0);
    run_read(&run, NULL);
    close(far);
    run_close(&run);
    reap_caller(caller);
}

/* --- Hostile calls --- */

static void test_reaped_by_others(void)
{
    Run run;

    run_init(&run, SHELL("exit 3"));
    CHECK(run_start(&run));
    run_wait(&run);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    run_close(&run);
    signal(SIGCHLD, SIG_IGN);
    run_init(&run, SHELL("exit 3"));
    run_to_end(&run);
    signal(SIGCHLD, SIG_DFL);
    CHECK(run.status.exit_code == 3);
}

static void test_orders_after_the_end(void)
{
    Run run;

    run_init(&run, SHELL("echo ready; exec sleep 0.1"));
    CHECK(run_start(&run));
    for (int i = 0; i < 20000; i++) {
        process_signal(run.process, i % 2 == 0 ? SIGCONT : 0);
        process_signal(run.process, 12345);
    }
    run_wait(&run);
    CHECK(run.status.exit_code == 0 && run.status.signal == 0);
    process_stop(run.process);
    process_kill(run.process);
    process_read(run.process, &run.status);
    CHECK(run.status.exit_code == 0 && run.status.signal == 0);
    run_close(&run);
}

static void test_no_descriptors(void)
{
    struct rlimit limit;
    struct rlimit few;
    Run run;
    int succeeded = 0;

    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    run_init(&run, SHELL("exit 3"));
    for (rlim_t count = 3; count < 24; count++) {
        bool ok;

        few = (struct rlimit){.rlim_cur = count, .rlim_max = limit.rlim_max};
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        ok = process_start(&run.process, &run.spec, &run.exec_errno, &run.err);
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        CHECK(ok || strstr(run.err.message, "Too many open files") != NULL);
        if (ok) {
            run_wait(&run);
            succeeded++;
        }
        process_free(run.process);
        check_no_child();
    }
    CHECK(succeeded > 0);
}

static int count_descriptors(void)
{
    int count = 0;

    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void promise(const char *text, int descriptors)
{
    check_no_child();
    CHECK(count_descriptors() == descriptors);
    printf("ok - %s\n", text);
    fflush(stdout);
}

static int play_role(const char *role)
{
    if (strcmp(role, "report-ignored") == 0)
        return role_report_ignored();
    if (strcmp(role, "chain") == 0)
        role_chain(150);
    if (strcmp(role, "brood") == 0)
        role_brood();
    if (strcmp(role, "bomb") == 0) {
        /* The limit does not hold for root, so it is one of a user's who has no other process. */
        struct rlimit limit = {.rlim_cur = 200, .rlim_max = 200};

        setrlimit(RLIMIT_NPROC, &limit);
        if (getuid() == 0 && setuid(64999) != 0)
            return 1;
        role_bomb();
    }
    for (int i = 0; strcmp(role, "hoppers") == 0 && i < 8; i++) {
        if (fork() == 0)
            break;
    }
    role_hopper();
}

int main(int argc, char **argv)
{
    char folder[] = "/tmp/process_test_XXXXXX";
    int open_now;

    if (argc > 1)
        return play_role(argv[1]);
    /* What was passed to us must not be taken for a leak. */
    CHECK(close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) == 0);
    CHECK(mkdtemp(folder) != NULL);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
    open_now = count_descriptors();
    test_status();
    promise("a command's own status is reported", open_now);
    test_failures(folder);
    promise("what cannot be executed is named, with its errno", open_now);
    test_search(folder);
    promise("the PATH of the given environment is searched", open_now);
    test_surroundings();
    promise("a command gets no descriptor, mask or handler of ours", open_now);
    test_ignored_signals();
    promise("signals ignored at the program's start stay so, others do not", open_now);
    test_crossed_descriptors();
    promise("descriptors may change places", open_now);
    test_signal();
    promise("a signal reaches the command", open_now);
    test_left_behind();
    promise("what a command leaves behind is stopped", open_now);
    test_stop();
    promise("stop: SIGTERM, SIGKILL after grace, or at once", open_now);
    test_free();
    promise("free: all are gone when it returns", open_now);
    test_forkers();
    promise("those that fork without end are killed", open_now);
    test_lost();
    promise("a hang-up of a watched socket stops the command", open_now);
    test_caller_killed();
    promise("kill -9 of the caller: the socket stays open until the command is gone", open_now);
    test_caller_stopped();
    promise("a caller that is stopped does not hinder the keeper", open_now);
    test_keeper_killed();
    promise("kill -9 of the keeper: nothing is left, and the socket closed last", open_now);
    test_heir_killed();
    promise("kill -9 of the heir: the keeper goes on", open_now);
    test_group_killed();
    promise("kill -9 of the caller's group: the keeper goes on", open_now);
    test_reaped_by_others();
    promise("other code may reap the keeper, or ignore SIGCHLD", open_now);
    test_orders_after_the_end();
    promise("orders beyond number, and after the end, do no harm", open_now);
    test_no_descriptors();
    promise("without descriptors to be had there is an error, and nothing left", open_now);
    CHECK(rmdir(folder) == 0);
    return 0;
}
