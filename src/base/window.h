/*
 * Windows: the hours of the day in which a job's runs may start, as its zone's wall clock shows
 * them. "01:00-03:45" is open from 01:00:00 to before 03:45:00; "22:00-06:00" goes over midnight;
 * the end may be 24:00. What counts is what the clock shows: an hour that a change of the clock
 * repeats is open twice, and of one that it leaves out nothing is.
 *
 * A window is a value without memory of its own; it must not outlive its zone. Instants are
 * microseconds since the Unix epoch.
 */
#ifndef LOCKKEEPER_BASE_WINDOW_H
#define LOCKKEEPER_BASE_WINDOW_H

#include "base/error.h"
#include "base/zone.h"

#include <stdbool.h>

typedef struct {
    const Zone *zone;
    int32_t from_s; /* after midnight */
    int32_t until_s;
} Window;

/* Keeps `zone`. False with *err for a malformed text, an empty window and one of the whole day. */
bool window_parse(Window *window, const char *text, const Zone *zone, Error *err);

bool window_contains(const Window *window, int64_t instant_us);

/*
 * When the window that is open at an instant closes: the first instant after it at which the clock
 * shows a time outside. The instant itself if the window is closed then.
 */
int64_t window_end(const Window *window, int64_t instant_us);

#endif
