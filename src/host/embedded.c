#include "host/embedded.h"

#include "base/clock.h"
#include "host/bindir.h"
#include "host/place.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/*
 * In the folder:
 *   data/             the data directory
 *   data.new-XXXXXX/  one that initdb is still making; it becomes data/ when it is whole
 *   lock              flock(2)ed by whoever starts, stops or makes the server
 *   log               what the server says
 *   run/              the socket (elsewhere where its path would be too long)
 */
enum { PIDFILE_SIZE = 4096, LOG_TAIL_SIZE = 1500, LOG_TAIL_LINES = 8 };

static const char SOCKET_NAME[] = ".s.PGSQL.5432";

static const int64_t START_WAIT_US = 60 * INT64_C(1000000);
static const int64_t STOP_WAIT_US = 60 * INT64_C(1000000);
static const int64_t LOCK_WAIT_US = 300 * INT64_C(1000000);
static const int64_t LOCK_NOTICE_US = INT64_C(1000000);
/* How long the processes that a killed postmaster left behind may keep its shared memory. */
static const int64_t ORPHANS_WAIT_US = 10 * INT64_C(1000000);

typedef enum { POSTMASTER_DOWN, POSTMASTER_STARTING, POSTMASTER_READY, POSTMASTER_STOPPING } State;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* One line on stderr, in one write. */
static void say(const char *format, ...)
{
    char line[PLACE_BASE_SIZE + 256];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    dprintf(STDERR_FILENO, "lockkeeper: %s\n", line);
}

static void sleep_ms(int ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

    nanosleep(&t, NULL);
}

/* Take the lock that keeps starting, stopping and making apart; it ends with *fd. */
static bool place_lock(const Place *place, int *fd, Error *err)
{
    int64_t begin = clock_monotonic_us();
    bool said = false;

    *fd = place_open(place, "lock", O_RDWR | O_CREAT);
    if (*fd < 0)
        return place_blame(place, errno, err);
    while (flock(*fd, LOCK_EX | LOCK_NB) != 0) {
        int64_t waited = clock_monotonic_us() - begin;

        if (errno != EWOULDBLOCK && errno != EINTR)
            return place_blame(place, errno, err);
        if (waited > LOCK_WAIT_US)
            return error_set(err, ERROR_CONNECTION,
                             "another command has been starting or stopping the embedded "
                             "PostgreSQL in %s for %d s",
                             place->base, (int)(LOCK_WAIT_US / 1000000));
        if (waited > LOCK_NOTICE_US && !said) {
            say("waiting for another command that starts or stops the embedded PostgreSQL");
            said = true;
        }
        sleep_ms(10);
    }
    return true;
}

/* What there is */

static uint64_t fnv1a(const char *text)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (; *text != '\0'; text++)
        hash = (hash ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
    return hash;
}

/* Where the socket of a server in this folder is; the folder need not exist. */
static void choose_socket(const Place *place, Embedded *embedded)
{
    struct sockaddr_un address;
    size_t room = sizeof address.sun_path - sizeof "/" - strlen(SOCKET_NAME);

    snprintf(embedded->socket, sizeof embedded->socket, "%s/run", place->base);
    /* To libpq, a comma separates hosts. */
    if (strlen(embedded->socket) > room || strchr(embedded->socket, ',') != NULL)
        snprintf(embedded->socket, sizeof embedded->socket, "/tmp/lockkeeper-%lu-%016" PRIx64,
                 (unsigned long)place->user.uid, fnv1a(place->base));
}

static void make_url(Embedded *embedded)
{
    static const char UNRESERVED[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                     "0123456789-._~";
    static const char START[] = "postgresql://postgres@/postgres?host=";
    size_t used = sizeof START - 1;

    memcpy(embedded->url, START, sizeof START);
    for (const char *p = embedded->socket; *p != '\0'; p++) {
        bool plain = strchr(UNRESERVED, *p) != NULL;

        used += (size_t)snprintf(embedded->url + used, sizeof embedded->url - used,
                                 plain ? "%c" : "%%%02X", (unsigned char)*p);
    }
    /* Said, so that a PGPORT in the environment changes nothing. */
    snprintf(embedded->url + used, sizeof embedded->url - used, "&port=5432");
}

/* Read a small file of the data directory; false where there is none. */
static bool read_data_file(const Place *place, const char *name, char *text, size_t size)
{
    int fd = place_open(place, name, O_RDONLY);
    ssize_t n;

    if (fd < 0)
        return false;
    n = read(fd, text, size - 1);
    close(fd);
    text[n < 0 ? 0 : n] = '\0';
    return n >= 0;
}

/* Fill in all but bindir and pid. */
static void describe(const Place *place, Embedded *embedded)
{
    char text[16];

    memset(embedded, 0, sizeof *embedded);
    snprintf(embedded->data, sizeof embedded->data, "%s/data", place->base);
    choose_socket(place, embedded);
    make_url(embedded);
    if (read_data_file(place, "data/PG_VERSION", text, sizeof text))
        embedded->version = (int)strtol(text, NULL, 10);
}

/* A process of the server's user with this pid? */
static bool is_process_of(pid_t pid, uid_t uid)
{
    char path[32];
    struct stat info;

    snprintf(path, sizeof path, "/proc/%d", (int)pid);
    return stat(path, &info) == 0 && info.st_uid == uid;
}

/*
 * Is this process the postmaster of our data directory, not just one that got its pid? A
 * postmaster works in its data directory. (Of a zombie, the link is gone.)
 */
static bool is_postmaster(const Place *place, const Embedded *embedded, pid_t pid)
{
    char path[32];
    struct stat cwd, data;

    if (!is_process_of(pid, place->user.uid))
        return false;
    snprintf(path, sizeof path, "/proc/%d/cwd", (int)pid);
    if (stat(path, &cwd) != 0)
        return errno == EACCES; /* kept from us: take the file's word for it */
    return stat(embedded->data, &data) == 0 && cwd.st_dev == data.st_dev &&
           cwd.st_ino == data.st_ino;
}

/* The lines of postmaster.pid, as PostgreSQL 10 and newer write them (utils/pidfile.h). */
enum { PIDFILE_PID = 0, PIDFILE_SOCKET = 4, PIDFILE_STATUS = 7, PIDFILE_LINES = 8 };

/* Cut postmaster.pid into its lines; those not written yet are "". False where there is no file. */
static bool read_pidfile(const Place *place, char text[static PIDFILE_SIZE],
                         const char *lines[static PIDFILE_LINES])
{
    char *rest = text;

    if (!read_data_file(place, "data/postmaster.pid", text, PIDFILE_SIZE))
        return false;
    for (int i = 0; i < PIDFILE_LINES; i++) {
        char *line = strsep(&rest, "\n");

        lines[i] = line == NULL ? "" : line;
    }
    return true;
}

static pid_t parse_pid(const char *text)
{
    long pid = strtol(text, NULL, 10);

    return pid > 1 && pid <= INT_MAX ? (pid_t)pid : 0;
}

/*
 * What the postmaster does, from its pid file; spawns nothing. Sets embedded->pid (0: down) and,
 * where it is ready, *elsewhere: it listens in another folder than embedded->socket.
 */
static State look_at_postmaster(const Place *place, Embedded *embedded, bool *elsewhere)
{
    char text[PIDFILE_SIZE];
    const char *lines[PIDFILE_LINES];
    pid_t pid;

    embedded->pid = 0;
    *elsewhere = false;
    if (!read_pidfile(place, text, lines))
        return POSTMASTER_DOWN;
    pid = parse_pid(lines[PIDFILE_PID]);
    if (pid == 0 || !is_postmaster(place, embedded, pid))
        return POSTMASTER_DOWN;
    embedded->pid = (int)pid;
    *elsewhere = strcmp(lines[PIDFILE_SOCKET], embedded->socket) != 0;
    if (strncmp(lines[PIDFILE_STATUS], "ready", 5) == 0 ||
        strncmp(lines[PIDFILE_STATUS], "standby", 7) == 0)
        return POSTMASTER_READY;
    return strncmp(lines[PIDFILE_STATUS], "stopping", 8) == 0 ? POSTMASTER_STOPPING
                                                              : POSTMASTER_STARTING;
}

/*
 * The socket's folder lets in nobody but the server's user (and root); that is what guards the
 * server. Below /tmp another user may have been there first.
 */
static bool check_socket_folder(const Place *place, const Embedded *embedded, Error *err)
{
    struct stat info;

    if (lstat(embedded->socket, &info) != 0)
        return error_set(err, ERROR_CONNECTION, "cannot use %s for the server's socket: %s",
                         embedded->socket, strerror(errno));
    if (S_ISDIR(info.st_mode) && info.st_uid == place->user.uid && (info.st_mode & 07777) == 0700)
        return true;
    return error_set(err, ERROR_CONNECTION,
                     "cannot use %s for the server's socket: it is not a folder of mode 0700 that "
                     "belongs to %s",
                     embedded->socket, place->user.name);
}

/* The running postmaster is ready: is it one that a client can reach and trust? */
static bool check_joinable(const Place *place, const Embedded *embedded, bool elsewhere, Error *err)
{
    char path[EMBEDDED_PATH_SIZE + 32];
    struct stat info;

    snprintf(path, sizeof path, "%s/%s", embedded->socket, SOCKET_NAME);
    if (elsewhere || (lstat(path, &info) != 0 && errno == ENOENT)) {
        error_set(err, ERROR_CONNECTION,
                  "the embedded PostgreSQL (pid %d) runs, but does not listen on %s", embedded->pid,
                  path);
        return error_hint(err, "Was its folder moved, or the socket removed? Stop it with "
                               "`lockkeeper db stop`; it then starts anew.");
    }
    return check_socket_folder(place, embedded, err);
}

/* Which binaries the running postmaster has is known without a search. */
static void name_running_binaries(Embedded *embedded)
{
    char path[32];
    ssize_t length;
    char *slash;

    snprintf(path, sizeof path, "/proc/%d/exe", embedded->pid);
    length = readlink(path, embedded->bindir, sizeof embedded->bindir - 1);
    embedded->bindir[length < 0 ? 0 : length] = '\0';
    slash = strrchr(embedded->bindir, '/');
    if (slash != NULL)
        *slash = '\0';
}

/* Making it */

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info;
    (void)type;
    (void)walk;
    remove(path); /* what stays is in nobody's way and is tried again next time */
    return 0;
}

static void remove_tree(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* Remove what interrupted initdbs left. None is at work: it would hold the lock. */
static void sweep(const Place *place)
{
    static const char PREFIX[] = "data.new-";
    char path[EMBEDDED_PATH_SIZE + NAME_MAX];
    struct dirent *entry;
    DIR *dir = opendir(place->base);

    if (dir == NULL)
        return;
    while ((entry = readdir(dir)) != NULL) {
        if (strncmp(entry->d_name, PREFIX, sizeof PREFIX - 1) != 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", place->base, entry->d_name);
        remove_tree(path);
    }
    closedir(dir);
}

/* Append our settings to the fresh postgresql.conf. Returns 0 or an errno. */
static int configure(const char *data)
{
    /*
     * Where it listens is said at its start, so that the folder can be moved; here only for
     * someone who starts it by hand.
     */
    static const char SETTINGS[] = "\n# Lockkeeper's embedded server\n"
                                   "listen_addresses = ''\n"
                                   "max_prepared_transactions = 10\n";
    char path[EMBEDDED_PATH_SIZE + 32];
    ssize_t written;
    int error = 0;
    int fd;

    snprintf(path, sizeof path, "%s/postgresql.conf", data);
    fd = open(path, O_WRONLY | O_APPEND | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno;
    written = write(fd, SETTINGS, sizeof SETTINGS - 1);
    if (written < 0 || fsync(fd) != 0)
        error = errno;
    else if ((size_t)written < sizeof SETTINGS - 1)
        error = ENOSPC;
    close(fd);
    return error;
}

/* Give the finished data directory its name, for good. Returns 0 or an errno. */
static int publish(const Place *place, const char *fresh, const char *data)
{
    int error = 0;
    int fd;

    if (rename(fresh, data) != 0)
        return errno;
    fd = open(place->base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        error = errno;
    if (fd >= 0)
        close(fd);
    return error;
}

static bool has_locale(const char *name)
{
    locale_t locale = newlocale(LC_ALL_MASK, name, (locale_t)0);

    if (locale == (locale_t)0)
        return false;
    freelocale(locale);
    return true;
}

/*
 * The system's accounts are no help in a server of one's own: whoever gets into the socket's
 * folder, of mode 0700, is its owner, so local connections are trusted. Should someone turn TCP
 * on, nobody gets in that way until they have written rules of their own.
 */
static bool make_data(const Place *place, const Embedded *embedded, const Bindir *bindir,
                      int lock_fd, Error *err)
{
    char initdb[BINDIR_PATH_SIZE + 16];
    char fresh[EMBEDDED_PATH_SIZE];
    char output[LOG_TAIL_SIZE];
    const char *argv[] = {initdb,
                          "--pgdata",
                          fresh,
                          "--username=postgres",
                          "--auth-local=trust",
                          "--auth-host=reject",
                          "--encoding=UTF8",
                          has_locale("C.UTF-8") ? "--locale=C.UTF-8" : "--locale=C",
                          NULL};
    int error;

    say("making an embedded PostgreSQL %d in %s (once, some seconds)", bindir->version,
        place->base);
    snprintf(initdb, sizeof initdb, "%s/initdb", bindir->path);
    snprintf(fresh, sizeof fresh, "%s/data.new-XXXXXX", place->base);
    if (mkdtemp(fresh) == NULL)
        return place_blame(place, errno, err);
    /* initdb holds the lock too: should we be killed, nobody sweeps while it is still writing. */
    if (!bindir_run(argv, &place->user, STDERR_FILENO, lock_fd, output, sizeof output, err)) {
        remove_tree(fresh);
        return error_hint(err, "The embedded server's data directory could not be made in %s.",
                          place->base);
    }
    error = configure(fresh);
    if (error == 0)
        error = publish(place, fresh, embedded->data);
    if (error == 0)
        return true;
    remove_tree(fresh);
    return place_blame(place, error, err);
}

/* Starting it */

static bool find_binaries(const Place *place, const Embedded *embedded, Bindir *bindir, Error *err)
{
    if (bindir_find(embedded->version, &place->user, bindir))
        return true;
    if (bindir->version != 0) {
        error_set(err, ERROR_CONNECTION,
                  "%s was made by PostgreSQL %d, but the server found here (%s) is PostgreSQL %d",
                  embedded->data, embedded->version, bindir->path, bindir->version);
        return error_hint(err,
                          "apt-get install postgresql-%d, set PG_BINDIR to the folder of its "
                          "binaries, or set %s to another folder.",
                          embedded->version, PLACE_VARIABLE);
    }
    error_set(err, ERROR_CONNECTION,
              "no PostgreSQL server is installed: there is no postgres and initdb in $PG_BINDIR, "
              "`pg_config --bindir`, /usr/lib/postgresql/*/bin or /usr/pgsql-*/bin");
    if (embedded->version != 0)
        return error_hint(err,
                          "apt-get install postgresql-%d, or set PG_BINDIR to the folder of "
                          "its binaries.",
                          embedded->version);
    return error_hint(err, "apt-get install postgresql-15 (or the default version: postgresql), "
                           "or set PG_BINDIR to the folder of its binaries.");
}

/* Is there a socket that no process listens on? */
static bool is_socket_dead(const Embedded *embedded)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char path[EMBEDDED_PATH_SIZE + 32];
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool dead;

    if (fd < 0)
        return false;
    snprintf(path, sizeof path, "%s/%s", embedded->socket, SOCKET_NAME);
    text_copy(address.sun_path, sizeof address.sun_path, path);
    dead = connect(fd, (struct sockaddr *)&address, sizeof address) != 0 && errno == ECONNREFUSED;
    close(fd);
    return dead;
}

/* Remove a lock file of PostgreSQL's (its first line is a pid) whose pid is in use again. */
static void forget_reused_pid(const Place *place, const char *path)
{
    char text[32];
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t n;
    pid_t pid;

    if (fd < 0)
        return;
    n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n < 0 ? 0 : n] = '\0';
    pid = parse_pid(text);
    if (pid != 0 && is_process_of(pid, place->user.uid))
        unlink(path);
}

/*
 * After a crash of the machine or of a container, the pid in a stale lock file may by now be
 * another process of this user's (or a zombie, where nobody reaps); PostgreSQL then refuses to
 * start. We hold the lock, we know that there is no postmaster of this data directory, and the
 * socket tells that there is none in another container either: such files go. (Orphaned backends,
 * should there be any, still stop a start: PostgreSQL finds their shared memory by the data
 * directory itself.)
 */
static void forget_reused_pids(const Place *place, const Embedded *embedded)
{
    char path[EMBEDDED_PATH_SIZE + 32];

    if (!is_socket_dead(embedded))
        return;
    snprintf(path, sizeof path, "%s/postmaster.pid", embedded->data);
    forget_reused_pid(place, path);
    snprintf(path, sizeof path, "%s/%s.lock", embedded->socket, SOCKET_NAME);
    forget_reused_pid(place, path);
}

static bool make_socket_folder(const Place *place, const Embedded *embedded, Error *err)
{
    if (mkdir(embedded->socket, 0700) != 0 && errno != EEXIST)
        return error_set(err, ERROR_CONNECTION, "cannot make %s for the server's socket: %s",
                         embedded->socket, strerror(errno));
    return check_socket_folder(place, embedded, err);
}

/* The value of unix_socket_directories, a list: the folder as a quoted identifier. */
static void quote_socket(const char *folder, char quoted[static 2 * EMBEDDED_PATH_SIZE])
{
    *quoted++ = '"';
    for (; *folder != '\0'; folder++) {
        if (*folder == '"')
            *quoted++ = '"';
        *quoted++ = *folder;
    }
    *quoted++ = '"';
    *quoted = '\0';
}

/* Everything about where it listens is said here, over what the configuration files may say. */
static bool launch(const Place *place, const Embedded *embedded, int log_fd, pid_t *starter,
                   Error *err)
{
    char postgres[EMBEDDED_PATH_SIZE + 16];
    char quoted[2 * EMBEDDED_PATH_SIZE];
    char socket[2 * EMBEDDED_PATH_SIZE + 32];
    const char *argv[] = {postgres,
                          "-D",
                          embedded->data,
                          "--port=5432",
                          "--listen_addresses=",
                          socket,
                          "--unix_socket_permissions=0700",
                          NULL};

    quote_socket(embedded->socket, quoted);
    snprintf(socket, sizeof socket, "--unix_socket_directories=%s", quoted);
    snprintf(postgres, sizeof postgres, "%s/postgres", embedded->bindir);
    forget_reused_pids(place, embedded);
    return bindir_launch(argv, &place->user, log_fd, starter, err);
}

/* Put the last lines that the log got since `from` into err->detail. */
static void quote_log(const Place *place, off_t from, Error *err)
{
    char text[LOG_TAIL_SIZE];
    int fd = place_open(place, "log", O_RDONLY);
    off_t end;
    ssize_t n;
    char *start;

    if (fd < 0)
        return;
    end = lseek(fd, 0, SEEK_END);
    if (end - from > LOG_TAIL_SIZE - 1)
        from = end - (LOG_TAIL_SIZE - 1);
    n = pread(fd, text, sizeof text - 1, from);
    close(fd);
    if (n <= 0)
        return;
    while (n > 0 && text[n - 1] == '\n')
        n--;
    text[n] = '\0';
    start = text + n;
    for (int lines = 0; start > text; start--) {
        if (start[-1] == '\n' && ++lines == LOG_TAIL_LINES)
            break;
    }
    text_copy(err->detail, sizeof err->detail, start);
}

typedef struct {
    int lock_fd;
    int log_fd;
    off_t log_start; /* where the log ended before this start */
    pid_t starter;   /* of the postmaster that we launched; 0: none at work */
    bool crashed;    /* the last postmaster left its pid file behind */
    int64_t begun;   /* when we began to wait */
} Start;

static bool start_error(const Place *place, const Embedded *embedded, const Start *start,
                        const char *what, Error *err)
{
    error_set(err, ERROR_CONNECTION, "the embedded PostgreSQL %d %s", embedded->version, what);
    quote_log(place, start->log_start, err);
    return error_hint(err, "Its log is %s/log.", place->base);
}

/* There is no postmaster: find binaries, make the data directory, open the log. */
static bool prepare(const Place *place, Embedded *embedded, Start *start, Error *err)
{
    Bindir bindir;

    if (!find_binaries(place, embedded, &bindir, err))
        return false;
    memcpy(embedded->bindir, bindir.path, sizeof bindir.path);
    if (!make_socket_folder(place, embedded, err))
        return false;
    sweep(place);
    if (embedded->version == 0) {
        if (!make_data(place, embedded, &bindir, start->lock_fd, err))
            return false;
        embedded->version = bindir.version;
    }
    start->crashed = place_has(place, "data/postmaster.pid");
    start->log_fd = place_open(place, "log", O_WRONLY | O_APPEND | O_CREAT);
    if (start->log_fd < 0)
        return error_set(err, ERROR_CONNECTION, "cannot open %s/log: %s", place->base,
                         strerror(errno));
    start->log_start = lseek(start->log_fd, 0, SEEK_END);
    say("starting the embedded PostgreSQL %d", embedded->version);
    start->begun = clock_monotonic_us();
    return true;
}

/*
 * Wait until the postmaster is ready, and launch it where there is none. One that another command
 * launched may be starting still (it was killed meanwhile), or be stopping by itself.
 */
static bool bring_up(const Place *place, Embedded *embedded, Start *start, Error *err)
{
    bool elsewhere;

    start->begun = clock_monotonic_us();
    for (;;) {
        State state = look_at_postmaster(place, embedded, &elsewhere);
        int64_t waited;

        if (state == POSTMASTER_READY) {
            name_running_binaries(embedded);
            return check_joinable(place, embedded, elsewhere, err);
        }
        if (state == POSTMASTER_DOWN && start->log_fd < 0 && !prepare(place, embedded, start, err))
            return false;
        waited = clock_monotonic_us() - start->begun;
        if (start->starter > 0 && bindir_ended(start->starter)) {
            start->starter = 0;
            if (!start->crashed || waited > ORPHANS_WAIT_US)
                return start_error(place, embedded, start, "did not start", err);
            sleep_ms(200);
        } else if (waited > START_WAIT_US) {
            return start_error(place, embedded, start,
                               state == POSTMASTER_STOPPING ? "is still shutting down after 60 s"
                                                            : "is still starting after 60 s",
                               err);
        } else if (state == POSTMASTER_DOWN && start->starter == 0) {
            if (!launch(place, embedded, start->log_fd, &start->starter, err))
                return false;
        } else {
            sleep_ms(5);
        }
    }
}

static bool start_slowly(Place *place, Embedded *embedded, Error *err)
{
    Start start = {.lock_fd = -1, .log_fd = -1};
    bool ok = false;

    if (!place_make(place, err) || !place_check_ours(place, err))
        goto out;
    if (chmod(place->base, 0700) != 0) {
        place_blame(place, errno, err);
        goto out;
    }
    if (!place_lock(place, &start.lock_fd, err))
        goto out;
    describe(place, embedded);
    if (embedded->version == 0 && place_has(place, "data")) {
        error_set(err, ERROR_CONNECTION, "%s is not a data directory of PostgreSQL",
                  embedded->data);
        goto out;
    }
    ok = bring_up(place, embedded, &start, err);
out:
    if (start.starter > 0)
        bindir_release(start.starter);
    if (start.log_fd >= 0)
        close(start.log_fd);
    if (start.lock_fd >= 0)
        close(start.lock_fd);
    return ok;
}

/* Join a running server, the case that has to be quick; what is in the way, start_slowly says. */
static bool join(Place *place, Embedded *embedded)
{
    bool exists;
    bool elsewhere;
    Error ignored;

    if (!place_look(place, &exists, &ignored) || !exists)
        return false;
    describe(place, embedded);
    if (look_at_postmaster(place, embedded, &elsewhere) != POSTMASTER_READY ||
        !check_joinable(place, embedded, elsewhere, &ignored))
        return false;
    name_running_binaries(embedded);
    return true;
}

bool embedded_start(Embedded *embedded, Error *err)
{
    Place place;
    bool ok;

    if (!place_choose(&place, err) || !server_user_enter(&place.user, err))
        return false;
    ok = join(&place, embedded) || start_slowly(&place, embedded, err);
    server_user_leave(&place.user);
    return ok;
}

bool embedded_status(Embedded *embedded, Error *err)
{
    Place place;
    Bindir bindir;
    bool exists;
    bool elsewhere;
    bool ok;

    if (!place_choose(&place, err) || !server_user_enter(&place.user, err))
        return false;
    ok = place_look(&place, &exists, err);
    if (ok) {
        describe(&place, embedded);
        if (look_at_postmaster(&place, embedded, &elsewhere) != POSTMASTER_DOWN)
            name_running_binaries(embedded);
        else if (bindir_find(embedded->version, &place.user, &bindir))
            memcpy(embedded->bindir, bindir.path, sizeof bindir.path);
    }
    server_user_leave(&place.user);
    return ok;
}

/* Called with the lock held. */
static bool stop(const Place *place, Embedded *embedded, bool *was_running, Error *err)
{
    int64_t begin = clock_monotonic_us();
    bool elsewhere;
    pid_t pid;

    look_at_postmaster(place, embedded, &elsewhere);
    pid = (pid_t)embedded->pid;
    *was_running = pid != 0;
    /* What `pg_ctl stop -m fast` does, without the need for binaries of the right version. */
    if (pid != 0 && kill(pid, SIGINT) != 0 && errno != ESRCH)
        return error_set(err, ERROR_CONNECTION, "cannot stop the embedded PostgreSQL (pid %d): %s",
                         (int)pid, strerror(errno));
    while (pid != 0 && is_postmaster(place, embedded, pid)) {
        if (clock_monotonic_us() - begin > STOP_WAIT_US) {
            error_set(err, ERROR_CONNECTION,
                      "the embedded PostgreSQL (pid %d) is still shutting down after 60 s",
                      (int)pid);
            return error_hint(err, "Its log is %s/log.", place->base);
        }
        sleep_ms(5);
    }
    return true;
}

bool embedded_stop(bool *was_running, Error *err)
{
    Place place;
    Embedded embedded;
    bool exists;
    bool ok;
    int lock_fd = -1;

    *was_running = false;
    if (!place_choose(&place, err) || !server_user_enter(&place.user, err))
        return false;
    ok = place_look(&place, &exists, err);
    /* Without either there never was a server, and a folder of something else stays as it is. */
    if (ok && exists && (place_has(&place, "lock") || place_has(&place, "data/PG_VERSION"))) {
        describe(&place, &embedded);
        ok = place_lock(&place, &lock_fd, err) && stop(&place, &embedded, was_running, err);
    }
    if (lock_fd >= 0)
        close(lock_fd);
    server_user_leave(&place.user);
    return ok;
}
