/*
 * The Gregorian calendar, as day numbers: 0 is 1970-01-01. For years from 1 on.
 */
#ifndef LOCKKEEPER_BASE_CALENDAR_H
#define LOCKKEEPER_BASE_CALENDAR_H

#include <stdint.h>

enum { SECONDS_PER_MINUTE = 60, SECONDS_PER_HOUR = 3600, SECONDS_PER_DAY = 86400 };

typedef struct {
    int year;
    int month; /* 1 to 12 */
    int day;   /* 1 to 31 */
} CalendarDate;

/* The number of a day that exists. */
int64_t calendar_day(int year, int month, int day);

CalendarDate calendar_date(int64_t day);

/* 0 (Sunday) to 6. */
int calendar_weekday(int64_t day);

int calendar_month_length(int year, int month);

/* Seconds to whole days, rounded down; the rest goes to *second_of_day. */
int64_t calendar_split(int64_t seconds, int *second_of_day);

#endif
