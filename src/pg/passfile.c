#include "pg/passfile.h"

#include "base/pqbuffer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPEN_MAX_FILES = 64 };

/* The open ones, for passfile_remove_all. A slot that is taken but not set is being written. */
static struct {
    atomic_bool taken;
    atomic_bool set;
    char path[PASSFILE_PATH_SIZE];
} slots[OPEN_MAX_FILES];

static int take_slot(void)
{
    for (int i = 0; i < OPEN_MAX_FILES; i++) {
        bool free_one = false;

        if (atomic_compare_exchange_strong(&slots[i].taken, &free_one, true))
            return i;
    }
    return -1;
}

static void give_slot_back(int slot)
{
    atomic_store(&slots[slot].set, false);
    atomic_store(&slots[slot].taken, false);
}

static void append_field(PQExpBuffer out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == ':' || *text == '\\')
            appendPQExpBufferChar(out, '\\');
        appendPQExpBufferChar(out, *text);
    }
}

/* host:port:*:user:password */
static void append_line(PQExpBuffer out, const PGconn *conn, const char *host)
{
    if (host == NULL || host[0] == '\0')
        return;
    append_field(out, host);
    appendPQExpBufferChar(out, ':');
    append_field(out, PQport(conn));
    appendPQExpBufferStr(out, ":*:");
    append_field(out, PQuser(conn));
    appendPQExpBufferChar(out, ':');
    append_field(out, PQpass(conn));
    appendPQExpBufferChar(out, '\n');
}

static bool write_all(int fd, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, text, length);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        text += written;
        length -= (size_t)written;
    }
    return true;
}

/* The first of the folders where a file could be made; its descriptor, or -1. */
static int make_file(char path[PASSFILE_PATH_SIZE])
{
    const char *folders[] = {getenv("XDG_RUNTIME_DIR"), getenv("TMPDIR"), "/tmp"};

    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        int fd;

        if (folders[i] == NULL || folders[i][0] != '/' ||
            (size_t)snprintf(path, PASSFILE_PATH_SIZE, "%s/lockkeeper-pass-XXXXXX", folders[i]) >=
                PASSFILE_PATH_SIZE)
            continue;
        fd = mkostemp(path, O_CLOEXEC);
        if (fd >= 0)
            return fd;
    }
    return -1;
}

bool passfile_open(Passfile *file, const PGconn *conn, Error *err)
{
    PQExpBufferData text;
    int fd;
    int failure;
    bool ok;

    *file = (Passfile){.slot = -1};
    if (PQpass(conn) == NULL || PQpass(conn)[0] == '\0')
        return true;
    file->slot = take_slot();
    if (file->slot < 0)
        return error_usage(err, "too many commands have a password file at once (%d)",
                           OPEN_MAX_FILES);
    fd = make_file(file->path);
    if (fd < 0) {
        error_usage(err, "the password file for commands can't be made: %s", strerror(errno));
        give_slot_back(file->slot);
        *file = (Passfile){.slot = -1};
        return false;
    }
    memcpy(slots[file->slot].path, file->path, sizeof file->path);
    atomic_store(&slots[file->slot].set, true);
    initPQExpBuffer(&text);
    append_line(&text, conn, PQhost(conn));
    if (PQhost(conn) != NULL && PQhost(conn)[0] == '/') /* libpq's name for its default folder */
        append_line(&text, conn, "localhost");
    append_line(&text, conn, PQhostaddr(conn));
    ok = !PQExpBufferDataBroken(text) && fchmod(fd, S_IRUSR | S_IWUSR) == 0 &&
         write_all(fd, text.data, text.len);
    failure = errno;
    if (text.data != NULL)
        explicit_bzero(text.data, text.len);
    termPQExpBuffer(&text);
    close(fd);
    if (ok)
        return true;
    error_usage(err, "the password file for commands can't be written: %s", strerror(failure));
    passfile_close(file);
    return false;
}

void passfile_close(Passfile *file)
{
    if (file->path[0] == '\0')
        return;
    unlink(file->path);
    give_slot_back(file->slot);
    *file = (Passfile){.slot = -1};
}

void passfile_remove_all(void)
{
    for (int i = 0; i < OPEN_MAX_FILES; i++) {
        if (atomic_load(&slots[i].set))
            unlink(slots[i].path);
    }
}
