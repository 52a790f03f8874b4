#include "base/zones.h"

#include "base/zone_file.h"

#include <ctype.h>
#include <dirent.h>
#include <limits.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { NAME_MAX_LENGTH = 64, VERSION_SIZE = 32, SUGGESTIONS_MAX = 3, TREE_DEPTH_MAX = 4 };

struct Zones {
    void *tree; /* tsearch: of Zone, by name */
    char version[VERSION_SIZE];
    char directory[];
};

/* ---- Names ---- */

/* All of them begin with a capital; "posix", "right", "localtime", "tzdata.zi" are none. */
static bool is_name(const char *name)
{
    size_t length = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                 "0123456789_+-/");

    return name[length] == '\0' && length <= NAME_MAX_LENGTH && isupper((unsigned char)name[0]) &&
           name[length - 1] != '/' && strstr(name, "//") == NULL;
}

typedef struct {
    char **names; /* ends with NULL */
    size_t count;
    size_t room;
} NameList;

/* Without memory for it, the list must do as it is. */
static void names_add(NameList *list, const char *name)
{
    char *copy;

    if (list->count + 1 >= list->room) {
        size_t room = list->room == 0 ? 1024 : 2 * list->room;
        char **grown = realloc(list->names, room * sizeof *grown);

        if (grown == NULL)
            return;
        list->names = grown;
        list->room = room;
    }
    copy = strdup(name);
    if (copy == NULL)
        return;
    list->names[list->count++] = copy;
    list->names[list->count] = NULL;
}

static void names_free(NameList *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->names[i]);
    free(list->names);
}

/* Every zone below directory/prefix, in order; what cannot be read is left out. */
static void names_list(NameList *list, const char *directory, const char *prefix, int depth)
{
    char path[PATH_MAX];
    struct dirent **entries;
    int count;

    snprintf(path, sizeof path, "%s/%s", directory, prefix);
    count = scandir(path, &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char name[NAME_MAX_LENGTH + NAME_MAX + 2];
        struct stat status;

        snprintf(name, sizeof name, "%s%s%s", prefix, prefix[0] == '\0' ? "" : "/",
                 entries[i]->d_name);
        free(entries[i]);
        snprintf(path, sizeof path, "%s/%s", directory, name);
        if (!is_name(name) || stat(path, &status) != 0)
            continue;
        if (S_ISDIR(status.st_mode) && depth < TREE_DEPTH_MAX)
            names_list(list, directory, name, depth + 1);
        else if (S_ISREG(status.st_mode))
            names_add(list, name);
    }
    if (count >= 0)
        free(entries);
}

static const char *last_part(const char *name)
{
    const char *slash = strrchr(name, '/');

    return slash == NULL ? name : slash + 1;
}

/* Are they the same but for case, and a space or hyphen for "_"? */
static bool is_alike(const char *a, const char *b)
{
    for (; *a != '\0' && *b != '\0'; a++, b++) {
        char of_a = (char)(*a == ' ' || *a == '-' ? '_' : tolower((unsigned char)*a));
        char of_b = (char)(*b == '-' ? '_' : tolower((unsigned char)*b));

        if (of_a != of_b)
            return false;
    }
    return *a == *b;
}

/* The name that is nearest as a whole or else in its last part; NULL: none is near. */
static const char *nearest_name(const NameList *list, const char *name)
{
    const char **parts;
    const char *near;

    if (list->count == 0)
        return NULL;
    near = text_nearest(name, (const char *const *)list->names);
    parts = near != NULL ? NULL : calloc(list->count + 1, sizeof *parts);
    if (parts == NULL)
        return near;
    for (size_t i = 0; i < list->count; i++)
        parts[i] = last_part(list->names[i]);
    near = text_nearest(last_part(name), parts);
    for (size_t i = 0; near != NULL && i < list->count; i++) {
        if (parts[i] == near) {
            near = list->names[i];
            break;
        }
    }
    free(parts);
    return near;
}

/* Sets the error for a name that is none, with the names that may have been meant. */
static void unknown_name(const Zones *zones, const char *name, Error *err)
{
    const char *found[SUGGESTIONS_MAX];
    NameList list = {0};
    char text[SUGGESTIONS_MAX * (NAME_MAX_LENGTH + 8) + 32] = "";
    char *end = text;
    size_t count = 0;
    const char *near = NULL;

    names_list(&list, zones->directory, "", 1);
    for (size_t i = 0; i < list.count && count < SUGGESTIONS_MAX; i++) {
        if (is_alike(name, list.names[i]) || is_alike(last_part(name), last_part(list.names[i])))
            found[count++] = list.names[i];
    }
    if (count == 0)
        near = nearest_name(&list, name);
    if (near != NULL)
        found[count++] = near;
    for (size_t i = 0; i < count; i++)
        end += sprintf(end, "%s\"%s\"",
                       i == 0          ? "; did you mean "
                       : i + 1 < count ? ", "
                                       : " or ",
                       found[i]);
    if (list.count == 0)
        error_usage(err, "unknown time zone \"%s\": there is no time-zone data in %s", name,
                    zones->directory);
    else
        error_usage(err, "unknown time zone \"%s\"%s%s", name, text, count > 0 ? "?" : "");
    error_hint(err, "a time zone is an IANA name such as \"Europe/Paris\", or \"UTC\"");
    names_free(&list);
}

/* ---- The zones of the system ---- */

static int compare_zones(const void *a, const void *b)
{
    return strcmp(((const Zone *)a)->name, ((const Zone *)b)->name);
}

/* tzdata.zi begins with "# version 2025b"; some systems have +VERSION with the version alone. */
static void read_version(Zones *zones)
{
    static const struct {
        const char *file;
        const char *before;
    } PLACES[] = {{"tzdata.zi", "# version "}, {"+VERSION", ""}};

    for (size_t i = 0; i < sizeof PLACES / sizeof PLACES[0] && zones->version[0] == '\0'; i++) {
        size_t skipped = strlen(PLACES[i].before);
        char path[PATH_MAX];
        char line[VERSION_SIZE + 16] = "";
        FILE *stream;

        snprintf(path, sizeof path, "%s/%s", zones->directory, PLACES[i].file);
        stream = fopen(path, "re");
        if (stream == NULL)
            continue;
        if (fgets(line, sizeof line, stream) != NULL &&
            strncmp(line, PLACES[i].before, skipped) == 0) {
            line[skipped + strcspn(line + skipped, " \t\r\n")] = '\0';
            if (text_is_utf8(line + skipped, strlen(line + skipped)))
                text_copy(zones->version, sizeof zones->version, line + skipped);
        }
        fclose(stream);
    }
}

Zones *zones_new(const char *directory)
{
    Zones *zones;

    if (directory == NULL)
        directory = getenv("TZDIR");
    if (directory == NULL || directory[0] == '\0')
        directory = "/usr/share/zoneinfo";
    zones = calloc(1, sizeof *zones + strlen(directory) + 1);
    if (zones != NULL) {
        memcpy(zones->directory, directory, strlen(directory) + 1);
        read_version(zones);
    }
    return zones;
}

void zones_free(Zones *zones)
{
    if (zones == NULL)
        return;
    tdestroy(zones->tree, free);
    free(zones);
}

const char *zones_version(const Zones *zones)
{
    return zones->version;
}

static Zone *zone_load(Zones *zones, const char *name, Error *err)
{
    char path[PATH_MAX];
    struct stat status;

    if (!text_is_utf8(name, strlen(name))) {
        error_usage(err, "a time zone's name is not UTF-8");
        return NULL;
    }
    if (!is_name(name)) {
        unknown_name(zones, name, err);
        return NULL;
    }
    if (strcmp(name, "UTC") == 0) {
        Zone *zone = zone_new(name, 0);

        if (zone == NULL)
            error_usage(err, "out of memory");
        else
            zone_finish(zone);
        return zone;
    }
    snprintf(path, sizeof path, "%s/%s", zones->directory, name);
    if (stat(path, &status) != 0 || !S_ISREG(status.st_mode)) { /* never open a FIFO */
        unknown_name(zones, name, err);
        return NULL;
    }
    return zone_file_read(path, name, err);
}

const Zone *zones_get(Zones *zones, const char *name, Error *err)
{
    Zone wanted = {.name = name};
    void *node = tfind(&wanted, &zones->tree, compare_zones);
    Zone *zone;

    if (node != NULL)
        return *(Zone *const *)node;
    zone = zone_load(zones, name, err);
    if (zone != NULL && tsearch(zone, &zones->tree, compare_zones) == NULL) {
        error_usage(err, "out of memory");
        free(zone);
        zone = NULL;
    }
    return zone;
}
