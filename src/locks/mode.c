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
