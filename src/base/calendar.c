#include "base/calendar.h"

#include <stdbool.h>

/*
 * Years are counted here from March to February: the leap day is the last of its year, and the
 * lengths of the months before it repeat every five (31 30 31 30 31, 153 days together).
 */
enum {
    EPOCH = 719468, /* days from March 1st of the year 0 to 1970-01-01 */
    DAYS_PER_400_YEARS = 146097,
    DAYS_PER_5_MONTHS = 153,
};

static int64_t days_before_year(int64_t march_year)
{
    return 365 * march_year + march_year / 4 - march_year / 100 + march_year / 400;
}

/* `month` 0 is March. */
static int days_before_month(int month)
{
    return (DAYS_PER_5_MONTHS * month + 2) / 5;
}

int64_t calendar_day(int year, int month, int day)
{
    int march_year = month <= 2 ? year - 1 : year;

    return days_before_year(march_year) + days_before_month((month + 9) % 12) + day - 1 - EPOCH;
}

CalendarDate calendar_date(int64_t day)
{
    int64_t since = day + EPOCH;
    int64_t year = since * 400 / DAYS_PER_400_YEARS; /* right, or one off at a year's first days */
    int of_year;
    int month;

    while (days_before_year(year) > since)
        year--;
    while (days_before_year(year + 1) <= since)
        year++;
    of_year = (int)(since - days_before_year(year));
    month = (5 * of_year + 2) / DAYS_PER_5_MONTHS;
    return (CalendarDate){
        .year = (int)year + (month >= 10),
        .month = month < 10 ? month + 3 : month - 9,
        .day = of_year - days_before_month(month) + 1,
    };
}

int calendar_weekday(int64_t day)
{
    int weekday = (int)((day + 4) % 7); /* 1970-01-01 was a Thursday */

    return weekday < 0 ? weekday + 7 : weekday;
}

int calendar_month_length(int year, int month)
{
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);

    if (month == 2)
        return leap ? 29 : 28;
    return month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
}

int64_t calendar_split(int64_t seconds, int *second_of_day)
{
    int64_t day = seconds / SECONDS_PER_DAY;
    int rest = (int)(seconds % SECONDS_PER_DAY);

    if (rest < 0) {
        rest += SECONDS_PER_DAY;
        day--;
    }
    *second_of_day = rest;
    return day;
}
