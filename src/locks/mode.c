#include "locks/mode.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

static const char *const MODE_NAMES[] = {
    [MODE_ACCESS_SHARE] = "ACCESS SHARE",
    [MODE_ROW_SHARE] = "ROW SHARE",
    [MODE_ROW_EXCLUSIVE] = "ROW EXCLUSIVE",
    [MODE_SHARE_UPDATE_EXCLUSIVE] = "SHARE UPDATE EXCLUSIVE",
    [MODE_SHARE] = "SHARE",
    [MODE_SHARE_ROW_EXCLUSIVE] = "SHARE ROW EXCLUSIVE",
    [MODE_EXCLUSIVE] = "EXCLUSIVE",
    [MODE_ACCESS_EXCLUSIVE] = "ACCESS EXCLUSIVE",
    [MODE_COUNT] = NULL,
};

static const char *const LOCK_NAMES[] = {
    [MODE_ACCESS_SHARE] = "AccessShareLock",
    [MODE_ROW_SHARE] = "RowShareLock",
    [MODE_ROW_EXCLUSIVE] = "RowExclusiveLock",
    [MODE_SHARE_UPDATE_EXCLUSIVE] = "ShareUpdateExclusiveLock",
    [MODE_SHARE] = "ShareLock",
    [MODE_SHARE_ROW_EXCLUSIVE] = "ShareRowExclusiveLock",
    [MODE_EXCLUSIVE] = "ExclusiveLock",
    [MODE_ACCESS_EXCLUSIVE] = "AccessExclusiveLock",
};

#define BIT(mode) (1U << MODE_##mode)

static const unsigned CONFLICTS[] = {
    [MODE_ACCESS_SHARE] = BIT(ACCESS_EXCLUSIVE),
    [MODE_ROW_SHARE] = BIT(EXCLUSIVE) | BIT(ACCESS_EXCLUSIVE),
    [MODE_ROW_EXCLUSIVE] =
        BIT(SHARE) | BIT(SHARE_ROW_EXCLUSIVE) | BIT(EXCLUSIVE) | BIT(ACCESS_EXCLUSIVE),
    [MODE_SHARE_UPDATE_EXCLUSIVE] = BIT(SHARE_UPDATE_EXCLUSIVE) | BIT(SHARE) |
                                    BIT(SHARE_ROW_EXCLUSIVE) | BIT(EXCLUSIVE) |
                                    BIT(ACCESS_EXCLUSIVE),
    [MODE_SHARE] = BIT(ROW_EXCLUSIVE) | BIT(SHARE_UPDATE_EXCLUSIVE) | BIT(SHARE_ROW_EXCLUSIVE) |
                   BIT(EXCLUSIVE) | BIT(ACCESS_EXCLUSIVE),
    [MODE_SHARE_ROW_EXCLUSIVE] = BIT(ROW_EXCLUSIVE) | BIT(SHARE_UPDATE_EXCLUSIVE) | BIT(SHARE) |
                                 BIT(SHARE_ROW_EXCLUSIVE) | BIT(EXCLUSIVE) | BIT(ACCESS_EXCLUSIVE),
    [MODE_EXCLUSIVE] = (1U << MODE_COUNT) - 1 - BIT(ACCESS_SHARE),
    [MODE_ACCESS_EXCLUSIVE] = (1U << MODE_COUNT) - 1,
};

const char *mode_name(LockMode mode)
{
    return MODE_NAMES[mode];
}

bool mode_parse(const char *name, LockMode *mode, Error *err)
{
    char upper[40];
    const char *nearest;

    for (int i = 0; i < MODE_COUNT; i++) {
        if (strcasecmp(name, MODE_NAMES[i]) == 0) {
            *mode = (LockMode)i;
            return true;
        }
    }
    text_copy(upper, sizeof upper, name);
    for (char *p = upper; *p != '\0'; p++)
        *p = (char)toupper((unsigned char)*p);
    nearest = text_nearest(upper, MODE_NAMES);
    return error_usage(err, "unknown lock mode \"%.60s\"%s%s%s", name,
                       nearest ? "; did you mean \"" : "", nearest ? nearest : "",
                       nearest ? "\"?" : "");
}

bool mode_of_lock(const char *name, LockMode *mode)
{
    for (int i = 0; i < MODE_COUNT; i++) {
        if (strcmp(name, LOCK_NAMES[i]) == 0) {
            *mode = (LockMode)i;
            return true;
        }
    }
    return false;
}

bool mode_conflicts(LockMode a, LockMode b)
{
    return (CONFLICTS[a] >> b & 1) != 0;
}
