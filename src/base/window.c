#include "base/window.h"

#include "base/calendar.h"

#include <ctype.h>
#include <string.h>

enum { TEXT_MAX = 40, US_PER_SECOND = 1000000 };

static int two_digits(const char *at)
{
    return isdigit((unsigned char)at[0]) && isdigit((unsigned char)at[1])
               ? (at[0] - '0') * 10 + (at[1] - '0')
               : -1;
}

/* "HH:MM" to seconds after midnight. */
static bool parse_time(const char *at, int32_t *seconds)
{
    int hour = two_digits(at);
    int minute = hour < 0 || at[2] != ':' ? -1 : two_digits(at + 3);

    *seconds = hour * SECONDS_PER_HOUR + minute * SECONDS_PER_MINUTE;
    return hour >= 0 && minute >= 0 && minute < 60 && *seconds <= SECONDS_PER_DAY;
}

bool window_parse(Window *window, const char *text, const Zone *zone, Error *err)
{
    static const size_t LENGTH = sizeof "01:00-03:45" - 1;

    if (strlen(text) > TEXT_MAX || !text_is_utf8(text, strlen(text)))
        return error_usage(err,
                           "window is a text of %zu bytes; expected one such as "
                           "\"01:00-03:45\"",
                           strlen(text));
    window->zone = zone;
    if (strlen(text) != LENGTH || text[5] != '-' || !parse_time(text, &window->from_s) ||
        window->from_s == SECONDS_PER_DAY || !parse_time(text + 6, &window->until_s))
        return error_usage(err,
                           "window \"%s\": expected hours and minutes, 00:00 to 24:00, as in "
                           "\"01:00-03:45\"",
                           text);
    if (window->from_s == window->until_s)
        return error_usage(err, "window \"%s\" is empty", text);
    if (window->from_s == 0 && window->until_s == SECONDS_PER_DAY)
        return error_usage(err, "window \"%s\" is the whole day; leave it out", text);
    return true;
}

/* Is it open when the clock shows this? Then *left is how long, if the clock is left alone. */
static bool is_open(const Window *window, int64_t wall, int64_t *left)
{
    int time;

    calendar_split(wall, &time);
    *left = window->until_s - time;
    if (window->from_s < window->until_s)
        return time >= window->from_s && time < window->until_s;
    if (time >= window->from_s)
        *left += SECONDS_PER_DAY;
    return *left > 0;
}

static int64_t whole_seconds(int64_t us)
{
    return us / US_PER_SECOND - (us % US_PER_SECOND < 0);
}

bool window_contains(const Window *window, int64_t instant_us)
{
    int64_t left;

    return is_open(window, zone_wall_at(window->zone, whole_seconds(instant_us)), &left);
}

int64_t window_end(const Window *window, int64_t instant_us)
{
    const Zone *zone = window->zone;
    int64_t instant = whole_seconds(instant_us);
    size_t i = zone_period_at(zone, instant);
    int64_t left;

    if (!is_open(window, instant + zone->periods[i].offset, &left))
        return instant_us;
    while (i + 1 < zone->count && instant + left >= zone->periods[i + 1].from) {
        instant = zone->periods[++i].from; /* the clock changes while it is open, or as it closes */
        if (!is_open(window, instant + zone->periods[i].offset, &left))
            return instant * US_PER_SECOND;
    }
    return (instant + left) * US_PER_SECOND;
}
