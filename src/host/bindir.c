#include "host/bindir.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <grp.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char SERVER_USER[] = "postgres";
static const char DEFAULT_PATH[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/* What a child exits with when it could not become the program. */
enum { EXIT_NOT_SWITCHED = 126, EXIT_NOT_EXECUTED = 127 };

enum { ENVIRONMENT_MAX = 4, HELD_DESCRIPTOR = 3, PASSWD_SIZE = 16384 };

bool server_user_find(ServerUser *user, Error *err)
{
    char text[PASSWD_SIZE];
    struct passwd entry;
    struct passwd *found = NULL;

    memset(user, 0, sizeof *user);
    user->switched = geteuid() == 0;
    if (!user->switched) {
        user->uid = geteuid();
        user->gid = getegid();
        if (getpwuid_r(user->uid, &entry, text, sizeof text, &found) == 0 && found != NULL)
            text_copy(user->name, sizeof user->name, found->pw_name);
        else
            snprintf(user->name, sizeof user->name, "%lu", (unsigned long)user->uid);
        return true;
    }
    if (getpwnam_r(SERVER_USER, &entry, text, sizeof text, &found) != 0 || found == NULL ||
        found->pw_uid == 0) {
        error_set(err, ERROR_CONNECTION,
                  "PostgreSQL refuses to run as root, and there is no user \"%s\" to run it as",
                  SERVER_USER);
        return error_hint(err, "The package postgresql makes that user (apt-get install "
                               "postgresql); or run lockkeeper as an ordinary user.");
    }
    text_copy(user->name, sizeof user->name, found->pw_name);
    user->uid = found->pw_uid;
    user->gid = found->pw_gid;
    user->group_count = SERVER_GROUPS_MAX;
    if (getgrouplist(user->name, user->gid, user->groups, &user->group_count) < 0)
        user->group_count = SERVER_GROUPS_MAX;
    return true;
}

/*
 * What follows runs in a child of a process that may have threads: between fork and exec only
 * async-signal-safe calls are allowed, so everything else (environment, groups) is made before.
 */

static bool stays_ignored(int signo)
{
    struct sigaction action;

    return (signo == SIGHUP || signo == SIGINT || signo == SIGQUIT) &&
           sigaction(signo, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

/*
 * fork, with no handler of ours ever running in the child. Its signals are as in a fresh login,
 * but for the terminal's, which `nohup` and a shell's `&` have ignored.
 */
static pid_t fork_clean(void)
{
    sigset_t all, before;
    pid_t pid;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid = fork();
    if (pid == 0) {
        for (int signo = 1; signo < NSIG; signo++) {
            if (!stays_ignored(signo))
                signal(signo, SIG_DFL);
        }
        sigemptyset(&before);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pid;
}

static void become(const ServerUser *user)
{
    if (user != NULL && user->switched &&
        (setgroups((size_t)user->group_count, user->groups) != 0 ||
         setresgid(user->gid, user->gid, user->gid) != 0 ||
         setresuid(user->uid, user->uid, user->uid) != 0))
        _exit(EXIT_NOT_SWITCHED);
    if (chdir("/") != 0)
        _exit(EXIT_NOT_SWITCHED);
}

/* Make fds[i] the descriptor i, and close all others. */
static void take_descriptors(const int *fds, int count)
{
    int copies[HELD_DESCRIPTOR + 1];

    /* Out of the way first: one of them may sit where another has to go. */
    for (int i = 0; i < count; i++)
        copies[i] = fcntl(fds[i], F_DUPFD, HELD_DESCRIPTOR + 1);
    for (int i = 0; i < count; i++) {
        if (copies[i] < 0 || dup2(copies[i], i) < 0)
            _exit(EXIT_NOT_EXECUTED);
    }
    closefrom(count);
}

/* execvpe takes argv and the environment as `char *const *` but changes neither. */
static _Noreturn void execute(const char *const *argv, char *const *environment)
{
    execvpe(argv[0], (char *const *)argv, environment);
    _exit(EXIT_NOT_EXECUTED);
}

/* End of what runs in a child. */

static void environment_free(char **environment)
{
    for (char **p = environment; *p != NULL; p++)
        free(*p);
}

static bool environment_make(char *environment[ENVIRONMENT_MAX], Error *err)
{
    static const char *const NAMES[] = {"PATH", "LD_LIBRARY_PATH", "TZ"};
    int count = 0;

    memset(environment, 0, ENVIRONMENT_MAX * sizeof *environment);
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        const char *value = getenv(NAMES[i]);

        if (value == NULL && i == 0)
            value = DEFAULT_PATH;
        if (value == NULL)
            continue;
        if (asprintf(&environment[count], "%s=%s", NAMES[i], value) < 0) {
            environment[count] = NULL;
            environment_free(environment);
            return error_set(err, ERROR_CONNECTION, "out of memory");
        }
        count++;
    }
    return true;
}

/* Read to the end and keep what fits, the last of it. */
static void read_tail(int fd, char *output, size_t size)
{
    char chunk[4096];
    size_t used = 0;

    for (;;) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        size_t length, excess;
        const char *from = chunk;

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        length = (size_t)n;
        if (length > size - 1) {
            from += length - (size - 1);
            length = size - 1;
        }
        excess = used + length > size - 1 ? used + length - (size - 1) : 0;
        memmove(output, output + excess, used - excess);
        used -= excess;
        memcpy(output + used, from, length);
        used += length;
    }
    output[used] = '\0';
}

static bool check_exit(int status, const char *program, const ServerUser *user, Error *err)
{
    const char *name = user == NULL ? "" : user->name;

    if (WIFSIGNALED(status))
        return error_set(err, ERROR_CONNECTION, "%s was ended by signal %d (%s)", program,
                         WTERMSIG(status), strsignal(WTERMSIG(status)));
    switch (WEXITSTATUS(status)) {
    case 0:
        return true;
    case EXIT_NOT_SWITCHED:
        return error_set(err, ERROR_CONNECTION, "cannot run %s as user %s", program, name);
    case EXIT_NOT_EXECUTED:
        return error_set(err, ERROR_CONNECTION, "cannot execute %s", program);
    default:
        return error_set(err, ERROR_CONNECTION, "%s failed (exit code %d)", program,
                         WEXITSTATUS(status));
    }
}

bool bindir_run(const char *const *argv, const ServerUser *user, int captured, int held,
                char *output, size_t size, Error *err)
{
    char *environment[ENVIRONMENT_MAX];
    int ends[2] = {-1, -1};
    int null = -1;
    int status;
    pid_t pid;
    bool ok = false;

    output[0] = '\0';
    if (!environment_make(environment, err))
        return false;
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || pipe2(ends, O_CLOEXEC) != 0 || (pid = fork_clean()) < 0) {
        error_set(err, ERROR_CONNECTION, "cannot run %s: %s", argv[0], strerror(errno));
        goto out;
    }
    if (pid == 0) {
        const int fds[] = {null, captured == STDOUT_FILENO ? ends[1] : null,
                           captured == STDERR_FILENO ? ends[1] : null, held};

        become(user);
        take_descriptors(fds, held < 0 ? HELD_DESCRIPTOR : HELD_DESCRIPTOR + 1);
        execute(argv, environment);
    }
    close(ends[1]);
    ends[1] = -1;
    read_tail(ends[0], output, size);
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) {
            error_set(err, ERROR_CONNECTION, "cannot wait for %s: %s", argv[0], strerror(errno));
            goto out;
        }
    }
    ok = check_exit(status, argv[0], user, err);
    if (!ok) {
        for (size_t n = strlen(output); n > 0 && output[n - 1] == '\n'; n--)
            output[n - 1] = '\0';
        text_copy(err->detail, sizeof err->detail, output);
    }
out:
    if (null >= 0)
        close(null);
    for (int i = 0; i < 2; i++) {
        if (ends[i] >= 0)
            close(ends[i]);
    }
    environment_free(environment);
    return ok;
}

/* The starter's whole life; in the child. */
static _Noreturn void start_and_wait(const char *const *argv, char *const *environment,
                                     pid_t parent)
{
    int status;
    pid_t pid;

    setsid(); /* a terminal's Ctrl-C and hang-up are for us, not for the server */
    pid = fork();
    if (pid < 0)
        _exit(EXIT_NOT_EXECUTED);
    if (pid == 0)
        execute(argv, environment);
    /* The starter has no task without us. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(0);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    _exit(1);
}

bool bindir_launch(const char *const *argv, const ServerUser *user, int log_fd, pid_t *starter,
                   Error *err)
{
    char *environment[ENVIRONMENT_MAX];
    pid_t parent = getpid();
    bool ok = false;
    int null;

    if (!environment_make(environment, err))
        return false;
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || (*starter = fork_clean()) < 0) {
        error_set(err, ERROR_CONNECTION, "cannot run %s: %s", argv[0], strerror(errno));
        goto out;
    }
    if (*starter == 0) {
        const int fds[] = {null, log_fd, log_fd};

        become(user);
        take_descriptors(fds, HELD_DESCRIPTOR);
        start_and_wait(argv, environment, parent);
    }
    ok = true;
out:
    if (null >= 0)
        close(null);
    environment_free(environment);
    return ok;
}

bool bindir_ended(pid_t starter)
{
    return waitpid(starter, NULL, WNOHANG) != 0;
}

void bindir_release(pid_t starter)
{
    kill(starter, SIGKILL);
    while (waitpid(starter, NULL, 0) < 0 && errno == EINTR)
        ;
}

static bool is_program(const char *folder, const char *name)
{
    char path[BINDIR_PATH_SIZE + 16];
    struct stat info;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    return stat(path, &info) == 0 && S_ISREG(info.st_mode) && (info.st_mode & 0111) != 0;
}

/* The major version of the server in this folder, 0 where there is none that `user` can run. */
static int version_in(const char *folder, const ServerUser *user)
{
    static const char BEFORE[] = "(PostgreSQL) ";
    char path[BINDIR_PATH_SIZE + 16];
    const char *argv[] = {path, "--version", NULL};
    char output[256];
    const char *number;
    Error ignored;

    if (!is_program(folder, "postgres") || !is_program(folder, "initdb"))
        return 0;
    snprintf(path, sizeof path, "%s/postgres", folder);
    if (!bindir_run(argv, user, STDOUT_FILENO, -1, output, sizeof output, &ignored))
        return 0;
    number = strstr(output, BEFORE);
    return number == NULL ? 0 : (int)strtol(number + strlen(BEFORE), NULL, 10);
}

/* Is this folder what is looked for? The first that only has another version is kept in *found. */
static bool consider(const char *folder, int version, const ServerUser *user, Bindir *found)
{
    int here;

    if (folder[0] != '/' || strlen(folder) >= BINDIR_PATH_SIZE)
        return false;
    here = version_in(folder, user);
    if (here == 0 || (here != version && version != 0 && found->version != 0))
        return false;
    text_copy(found->path, sizeof found->path, folder);
    found->version = here;
    return version == 0 || here == version;
}

static bool consider_given(int version, const ServerUser *user, Bindir *found)
{
    const char *given = getenv("PG_BINDIR");
    char *folder = given == NULL ? NULL : realpath(given, NULL);
    bool ok = folder != NULL && consider(folder, version, user, found);

    free(folder);
    return ok;
}

static bool consider_configured(int version, const ServerUser *user, Bindir *found)
{
    static const char *const ARGV[] = {"pg_config", "--bindir", NULL};
    char folder[BINDIR_PATH_SIZE + 1];
    Error ignored;

    if (!bindir_run(ARGV, NULL, STDOUT_FILENO, -1, folder, sizeof folder, &ignored))
        return false;
    folder[strcspn(folder, "\n")] = '\0';
    return consider(folder, version, user, found);
}

static int newest_first(const void *a, const void *b)
{
    return strverscmp(*(char *const *)b, *(char *const *)a);
}

static bool consider_all(const char *pattern, int version, const ServerUser *user, Bindir *found)
{
    glob_t folders;
    bool ok = false;

    if (glob(pattern, 0, NULL, &folders) != 0)
        return false;
    qsort(folders.gl_pathv, folders.gl_pathc, sizeof *folders.gl_pathv, newest_first);
    for (size_t i = 0; !ok && i < folders.gl_pathc; i++)
        ok = consider(folders.gl_pathv[i], version, user, found);
    globfree(&folders);
    return ok;
}

bool bindir_find(int version, const ServerUser *user, Bindir *found)
{
    found->path[0] = '\0';
    found->version = 0;
    return consider_given(version, user, found) || consider_configured(version, user, found) ||
           consider_all("/usr/lib/postgresql/*/bin", version, user, found) ||
           consider_all("/usr/pgsql-*/bin", version, user, found);
}
