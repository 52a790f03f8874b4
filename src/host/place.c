#include "host/place.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <unistd.h>

const char PLACE_VARIABLE[] = "LOCKKEEPER_EMBEDDED_DIR";

static const char ROOT_BASE[] = "/var/lib/lockkeeper/pg";

bool server_user_enter(const ServerUser *user, Error *err)
{
    if (!user->switched)
        return true;
    setfsgid(user->gid);
    setfsuid(user->uid);
    if ((uid_t)setfsuid((uid_t)-1) == user->uid)
        return true;
    setfsgid(getegid());
    return error_set(err, ERROR_CONNECTION, "cannot act as user %s", user->name);
}

void server_user_leave(const ServerUser *user)
{
    if (!user->switched)
        return;
    setfsuid(geteuid());
    setfsgid(getegid());
}

static bool place_set(Place *place, const char *variable, const char *folder, const char *below,
                      Error *err)
{
    char *cwd = NULL;
    const char *slash = "";
    int length;

    place->variable = variable;
    place->fault = variable == PLACE_VARIABLE ? ERROR_USAGE : ERROR_CONNECTION;
    if (folder[0] != '/') {
        cwd = getcwd(NULL, 0);
        if (cwd == NULL)
            return error_set(err, place->fault,
                             "%s is relative, and the current folder has no "
                             "name: %s",
                             variable, strerror(errno));
        slash = "/";
    }
    length = snprintf(place->base, sizeof place->base, "%s%s%s%s", cwd == NULL ? "" : cwd, slash,
                      folder, below);
    free(cwd);
    if (length < 0 || (size_t)length >= sizeof place->base)
        return error_set(err, place->fault, "%s is longer than %d bytes", variable,
                         PLACE_BASE_SIZE - 1);
    while (length > 1 && place->base[length - 1] == '/')
        place->base[--length] = '\0';
    /* postmaster.pid, by which a running server is known, has one name a line. */
    for (const char *p = place->base; *p != '\0'; p++) {
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            return error_set(err, place->fault, "%s holds a control character", variable);
    }
    return true;
}

bool place_choose(Place *place, Error *err)
{
    const char *dir = getenv(PLACE_VARIABLE);
    const char *state = getenv("XDG_STATE_HOME");
    const char *home = getenv("HOME");
    char text[16384];
    struct passwd entry;
    struct passwd *found = NULL;

    if (!server_user_find(&place->user, err))
        return false;
    if (dir != NULL && dir[0] != '\0')
        return place_set(place, PLACE_VARIABLE, dir, "", err);
    if (state != NULL && state[0] == '/') /* the XDG specification: a relative one is ignored */
        return place_set(place, "XDG_STATE_HOME", state, "/lockkeeper/pg", err);
    if (place->user.switched)
        return place_set(place, NULL, ROOT_BASE, "", err);
    if (home == NULL || home[0] != '/') {
        if (getpwuid_r(place->user.uid, &entry, text, sizeof text, &found) != 0 || found == NULL)
            return error_set(err, ERROR_CONNECTION,
                             "no folder for the embedded server: HOME is not set");
        home = found->pw_dir;
    }
    return place_set(place, "HOME", home, "/.local/state/lockkeeper/pg", err);
}

/* "/a/b (from HOME)": for messages about the folder. */
static const char *place_named(const Place *place, char text[static PLACE_PATH_SIZE])
{
    if (place->variable == NULL)
        text_copy(text, PLACE_PATH_SIZE, place->base);
    else
        snprintf(text, PLACE_PATH_SIZE, "%s (from %s)", place->base, place->variable);
    return text;
}

/* Names the parent that is closed where that is why. */
bool place_blame(const Place *place, int error, Error *err)
{
    char named[PLACE_PATH_SIZE];
    char parent[PLACE_BASE_SIZE + 4];
    struct stat info;

    place_named(place, named);
    for (const char *p = strchr(place->base + 1, '/'); error == EACCES && p != NULL;
         p = strchr(p + 1, '/')) {
        int length = (int)(p - place->base);

        snprintf(parent, sizeof parent, "%.*s/.", length, place->base);
        if (stat(parent, &info) != 0 && errno == EACCES) {
            error_set(err, place->fault, "cannot use %s: user %s cannot enter %.*s", named,
                      place->user.name, length, parent);
            if (place->user.switched)
                error_hint(err,
                           "Invoked by root, the embedded server runs as user %s; set %s to "
                           "a folder that this user can reach.",
                           place->user.name, PLACE_VARIABLE);
            return false;
        }
    }
    error_set(err, place->fault, "cannot use %s: %s", named, strerror(error));
    if (place->variable != PLACE_VARIABLE)
        error_hint(err, "%s names another folder.", PLACE_VARIABLE);
    return false;
}

bool place_look(Place *place, bool *exists, Error *err)
{
    char named[PLACE_PATH_SIZE];
    char text[16384];
    char owner[64];
    struct passwd entry;
    struct passwd *found = NULL;
    struct stat info;
    char *real = realpath(place->base, NULL);
    size_t length;

    *exists = false;
    if (real == NULL)
        return errno == ENOENT || place_blame(place, errno, err);
    length = strlen(real);
    if (length < sizeof place->base)
        memcpy(place->base, real, length + 1);
    free(real);
    place_named(place, named);
    if (length >= sizeof place->base)
        return error_set(err, place->fault, "%s is, in full, longer than %d bytes", named,
                         PLACE_BASE_SIZE - 1);
    if (stat(place->base, &info) != 0)
        return place_blame(place, errno, err);
    if (!S_ISDIR(info.st_mode))
        return error_set(err, place->fault, "cannot use %s: it is not a folder", named);
    if (info.st_uid != place->user.uid) {
        if (getpwuid_r(info.st_uid, &entry, text, sizeof text, &found) == 0 && found != NULL)
            text_copy(owner, sizeof owner, found->pw_name);
        else
            snprintf(owner, sizeof owner, "%lu", (unsigned long)info.st_uid);
        error_set(err, place->fault, "cannot use %s: it belongs to user %s, not to %s", named,
                  owner, place->user.name);
        if (place->user.switched)
            error_hint(err,
                       "Invoked by root, the embedded server runs as user %s: give it the "
                       "folder (chown), or name one that does not exist yet.",
                       place->user.name);
        return false;
    }
    *exists = true;
    return true;
}

/* Make the parents of the folder. Returns 0 or an errno. */
static int make_parents(const Place *place)
{
    char path[PLACE_BASE_SIZE];

    memcpy(path, place->base, sizeof path);
    for (char *p = strchr(path + 1, '/'); p != NULL; p = strchr(p + 1, '/')) {
        *p = '\0';
        if (mkdir(path, 0755) != 0 && errno != EEXIST) {
            int error = errno;
            struct stat info;

            /* Of one that is there (say, on a read-only file system) only that matters. */
            if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode))
                return error;
        }
        *p = '/';
    }
    return 0;
}

/*
 * Make the last folder itself: under another name first, since root has to give it away before
 * others may find it. rename(2) replaces at most an empty folder, made by another who does the
 * same. Returns 0 or an errno.
 */
static int make_base(const Place *place)
{
    char fresh[PLACE_BASE_SIZE + 16];
    int error = 0;
    int fd;

    snprintf(fresh, sizeof fresh, "%s.new-XXXXXX", place->base);
    if (mkdtemp(fresh) == NULL)
        return errno;
    if (place->user.switched) {
        fd = open(fresh, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 || fchown(fd, place->user.uid, place->user.gid) != 0)
            error = errno;
        if (fd >= 0)
            close(fd);
    }
    if (error == 0 && rename(fresh, place->base) != 0)
        error = errno == EEXIST ? ENOTEMPTY : errno;
    if (error != 0)
        rmdir(fresh);
    return error == ENOTEMPTY ? 0 : error;
}

bool place_make(Place *place, Error *err)
{
    bool exists;
    mode_t mask;
    int error;

    if (!place_look(place, &exists, err) || exists)
        return exists;
    server_user_leave(&place->user);
    /* The server's user has to pass through what root makes; others' state is nobody's business. */
    mask = umask(place->user.switched ? 022 : 077);
    error = make_parents(place);
    if (error == 0)
        error = make_base(place);
    umask(mask);
    if (!server_user_enter(&place->user, err))
        return false;
    if (error != 0)
        return place_blame(place, error, err);
    if (!place_look(place, &exists, err))
        return false;
    return exists || place_blame(place, ENOENT, err);
}

int place_open(const Place *place, const char *name, int flags)
{
    char path[PLACE_PATH_SIZE];

    snprintf(path, sizeof path, "%s/%s", place->base, name);
    return open(path, flags | O_NOFOLLOW | O_CLOEXEC, 0600);
}

bool place_has(const Place *place, const char *name)
{
    char path[PLACE_PATH_SIZE];
    struct stat info;

    snprintf(path, sizeof path, "%s/%s", place->base, name);
    return lstat(path, &info) == 0;
}

bool place_check_ours(const Place *place, Error *err)
{
    char named[PLACE_PATH_SIZE];
    struct dirent *entry;
    bool empty = true;
    DIR *dir;

    if (place_has(place, "lock") || place_has(place, "data/PG_VERSION"))
        return true;
    dir = opendir(place->base);
    if (dir == NULL)
        return place_blame(place, errno, err);
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            empty = false;
    }
    closedir(dir);
    /* Looked at again: another may have taken it into use in between. */
    if (empty || place_has(place, "lock"))
        return true;
    error_set(err, place->fault, "cannot use %s: it holds other files", place_named(place, named));
    return error_hint(err, "Name a folder that is empty or does not exist yet.");
}
