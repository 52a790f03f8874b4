/*
 * Durations: how long, in microseconds.
 *
 * As text: "250ms", "5s", "2m", "1h30m", "1d": numbers with a unit each, units falling, each at
 * most once; the last may have a fraction ("1.5s"). As a number: seconds. A duration is 0 or at
 * least 1 ms.
 */
#ifndef LOCKKEEPER_BASE_DURATION_H
#define LOCKKEEPER_BASE_DURATION_H

#include "base/error.h"

#include <stdint.h>

#define DURATION_ENDLESS INT64_MAX

/* Text of `length` bytes to *us; `what` names the thing in the error ("timeout"). */
bool duration_parse(const char *text, size_t length, const char *what, int64_t *us, Error *err);

/* Seconds to *us, refusing NaN, infinities, negatives and what lies between 0 and 1 ms. */
bool duration_from_seconds(double seconds, const char *what, int64_t *us, Error *err);

/*
 * As the text of a PostgreSQL setting in milliseconds ("1500"), rounded up; endless is "0".
 * Refuses more than 2^31-1 ms. `text` has room for DURATION_SETTING_SIZE bytes.
 */
enum { DURATION_SETTING_SIZE = TEXT_INTEGER_SIZE };
bool duration_setting(int64_t us, const char *what, char *text, Error *err);

#endif
