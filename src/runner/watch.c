#include "runner/watch.h"

#include "base/clock.h"
#include "pg/wait.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

enum { QUIET_US = 200000 };

typedef struct {
    int wd;
    const char *name; /* in the folder that is watched; NULL: each *.lua. Part of the path */
} Watched;

struct Watch {
    int fd;
    size_t count;
    Watched watched[];
};

static bool is_folder(const char *path)
{
    struct stat info;

    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static bool add(Watch *watch, const char *path, Error *err)
{
    const uint32_t events = IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE;
    const char *slash = strrchr(path, '/');
    Watched *watched = &watch->watched[watch->count];
    char *folder;

    if (is_folder(path)) {
        folder = strdup(path);
    } else {
        watched->name = slash == NULL ? path : slash + 1;
        folder = slash == NULL ? strdup(".") : strndup(path, (size_t)(slash - path) + 1);
    }
    if (folder == NULL)
        return error_set(err, ERROR_USAGE, "out of memory");
    watched->wd = inotify_add_watch(watch->fd, folder, events);
    free(folder);
    if (watched->wd < 0)
        return error_set(err, ERROR_USAGE, "%s cannot be watched: %s", path, strerror(errno));
    watch->count++;
    return true;
}

Watch *watch_open(const char *const *paths, Error *err)
{
    size_t count = 0;
    Watch *watch;

    while (paths[count] != NULL)
        count++;
    watch = calloc(1, sizeof *watch + count * sizeof watch->watched[0]);
    if (watch == NULL) {
        error_set(err, ERROR_USAGE, "out of memory");
        return NULL;
    }
    watch->fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (watch->fd < 0) {
        error_set(err, ERROR_USAGE, "inotify: %s", strerror(errno));
        free(watch);
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        if (!add(watch, paths[i], err)) {
            watch_close(watch);
            return NULL;
        }
    }
    return watch;
}

void watch_close(Watch *watch)
{
    if (watch == NULL)
        return;
    close(watch->fd);
    free(watch);
}

static bool is_lua(const char *name)
{
    size_t length = strlen(name);

    return length > 4 && name[0] != '.' && strcmp(name + length - 4, ".lua") == 0;
}

static bool concerns(const Watch *watch, const struct inotify_event *event)
{
    if ((event->mask & IN_Q_OVERFLOW) != 0)
        return true;
    for (size_t i = 0; event->len > 0 && i < watch->count; i++) {
        const Watched *watched = &watch->watched[i];

        if (watched->wd == event->wd && (watched->name == NULL ? is_lua(event->name)
                                                               : strcmp(watched->name, event->name) == 0))
            return true;
    }
    return false;
}

static bool read_events(const Watch *watch)
{
    _Alignas(struct inotify_event) char events[16384];
    ssize_t length = read(watch->fd, events, sizeof events);
    bool any = false;

    for (ssize_t at = 0; at < length;) {
        const struct inotify_event *event = (const void *)(events + at);

        any = any || concerns(watch, event);
        at += (ssize_t)(sizeof *event + event->len);
    }
    return any;
}

bool watch_wait(Watch *watch)
{
    int64_t deadline_us = CLOCK_NEVER;

    for (;;) {
        struct pollfd fd = {.fd = watch->fd, .events = POLLIN};
        WaitEnd end = wait_for(&fd, 1, deadline_us, WAIT_NORMAL);

        if (end == WAIT_INTERRUPTED)
            return false;
        if (end == WAIT_DEADLINE)
            return true;
        if (read_events(watch))
            deadline_us = clock_deadline(QUIET_US);
    }
}
