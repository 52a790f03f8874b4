#include "base/duration.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    double us;
} UNITS[] = {{"d", 86400e6}, {"h", 3600e6}, {"m", 60e6}, {"s", 1e6}, {"ms", 1e3}};

enum { UNIT_COUNT = sizeof UNITS / sizeof UNITS[0], TEXT_MAX = 40 };

static const char EXPECTED[] =
    "expected seconds as a number, or a text such as \"250ms\", \"5s\", \"1h30m\"";

/* Checks what numbers and texts have in common. */
static bool from_us(double us, const char *shown, const char *what, int64_t *out, Error *err)
{
    if (isnan(us) || isinf(us))
        return error_usage(err, "%s is %s; %s", what, shown, EXPECTED);
    if (us < 0)
        return error_usage(err, "%s is negative: %s", what, shown);
    if (us > 0 && us < 1000)
        return error_usage(err, "%s is shorter than 1 ms: %s", what, shown);
    if (us >= 9.2e18)
        return error_usage(err, "%s is too long: %s", what, shown);
    *out = (int64_t)llround(us);
    return true;
}

bool duration_from_seconds(double seconds, const char *what, int64_t *us, Error *err)
{
    char shown[40];

    if (seconds == 0 || (seconds >= 0.001 && seconds < 9e12)) { /* the usual: nothing to show */
        *us = (int64_t)llround(seconds * 1e6);
        return true;
    }
    snprintf(shown, sizeof shown, "%.15g", seconds);
    return from_us(seconds * 1e6, shown, what, us, err);
}

/* Find the unit at p (letters only); its length goes to *length. -1 if there is none. */
static int unit_at(const char *p, size_t *length)
{
    size_t n = 0;

    while (isalpha((unsigned char)p[n]))
        n++;
    *length = n;
    for (int i = 0; i < UNIT_COUNT; i++) {
        if (strlen(UNITS[i].name) == n && strncmp(UNITS[i].name, p, n) == 0)
            return i;
    }
    return -1;
}

bool duration_parse(const char *text, size_t length, const char *what, int64_t *us, Error *err)
{
    char copy[TEXT_MAX + 1];
    char shown[TEXT_MAX + 3];
    const char *p = copy;
    double total = 0;
    int last_unit = -1;
    bool fraction = false;

    if (length > TEXT_MAX)
        return error_usage(err, "%s is a text of %zu bytes; %s", what, length, EXPECTED);
    memcpy(copy, text, length);
    copy[length] = '\0';
    shown[0] = '"';
    memcpy(shown + 1, copy, length);
    memcpy(shown + 1 + length, "\"", 2);
    if (length == 0 || strlen(copy) != length)
        goto malformed;
    if (copy[0] == '-')
        return error_usage(err, "%s is negative: %s", what, shown);
    while (*p != '\0') {
        char *end;
        double number;
        size_t unit_length;
        int unit;

        if (!isdigit((unsigned char)*p) || fraction)
            goto malformed;
        end = (char *)p + strspn(p, "0123456789");
        if (*end == '.') {
            size_t digits = strspn(end + 1, "0123456789");

            if (digits == 0)
                goto malformed;
            end += 1 + digits;
            fraction = true;
        }
        number = strtod(p, NULL);
        unit = unit_at(end, &unit_length);
        if (unit_length == 0)
            return error_usage(err, "%s has no unit: %s; write %s for seconds", what, shown,
                               "\"5s\"");
        if (unit < 0 || unit <= last_unit)
            goto malformed;
        last_unit = unit;
        total += number * UNITS[unit].us;
        p = end + unit_length;
    }
    return from_us(total, shown, what, us, err);
malformed:
    return error_usage(err, "%s is %s; %s", what, shown, EXPECTED);
}

bool duration_setting(int64_t us, const char *what, char *text, Error *err)
{
    int64_t ms;

    if (us == DURATION_ENDLESS) {
        memcpy(text, "0", sizeof "0");
        return true;
    }
    ms = us / 1000 + (us % 1000 != 0);
    if (ms > INT32_MAX)
        return error_usage(err, "%s is longer than PostgreSQL can count (2147483647 ms)", what);
    text_integer(text, ms);
    return true;
}
