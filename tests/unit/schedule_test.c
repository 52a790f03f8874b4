/*
 * Schedules, zones and windows: runner.md 2 to 4.
 *
 * Usage: schedule_test [DIVISOR [SEED]]: the samples of the slow tests are divided by DIVISOR (by
 * default 1, under sanitizers 10); another SEED makes others.
 */
#include "base/calendar.h"
#include "base/schedule.h"
#include "base/window.h"
#include "base/zones.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *promise;
static Zones *zones;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("not ok - %s\n# line %d: %s\n", promise, __LINE__, #condition);                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* The same, and says what it was about. */
#define CHECK_FOR(condition, ...)                                                                  \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("not ok - %s\n# line %d: %s\n# ", promise, __LINE__, #condition);               \
            printf(__VA_ARGS__);                                                                   \
            printf("\n# time-zone data: %s\n", zones_version(zones));                              \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static void passed(void)
{
    printf("ok - %s\n", promise);
}

enum { SECOND_US = 1000000, TEXT_SIZE = 256 };

static const Zone *zone_of(const char *name)
{
    Error err = {0};
    const Zone *zone = zones_get(zones, name, &err);

    CHECK_FOR(zone != NULL, "%s", err.message);
    return zone;
}

static Schedule cron_of(const char *text, const Zone *zone)
{
    Schedule schedule;
    Error err = {0};

    CHECK_FOR(schedule_from_cron(&schedule, text, zone, "job", &err), "%s", err.message);
    return schedule;
}

/* "2027-03-28T01:00:00Z" to seconds. */
static int64_t instant_of(const char *text)
{
    struct tm tm = {0};

    CHECK_FOR(strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm) != NULL, "%s", text);
    return timegm(&tm);
}

static const char *text_of(int64_t instant)
{
    static char texts[4][32];
    static int next;
    struct tm tm;
    time_t time = instant;

    next = (next + 1) % 4;
    strftime(texts[next], sizeof texts[next], "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&time, &tm));
    return texts[next];
}

/* The next due second after a second; INT64_MAX: never. */
static int64_t next_of(const Schedule *schedule, int64_t after)
{
    int64_t due = schedule_next(schedule, after * SECOND_US);

    if (due == SCHEDULE_NEVER)
        return INT64_MAX;
    CHECK(due % SECOND_US == 0);
    return due / SECOND_US;
}

/* ---- The C library as a second opinion ---- */

static void use_libc_zone(const char *name)
{
    CHECK(setenv("TZ", name, 1) == 0);
    tzset();
}

/* What the wall clock shows at an instant, by the C library. */
static int64_t libc_wall(int64_t instant)
{
    struct tm tm;
    time_t time = instant;

    localtime_r(&time, &tm);
    return instant + tm.tm_gmtoff;
}

static uint64_t random_state = 20270328;

static int random_below(int limit)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((random_state >> 33) % (uint64_t)limit);
}

/* ---- Expressions ---- */

static const struct {
    const char *zone;
    const char *text;
    const char *after;
    const char *due;
} CASES[] = {
    /* zones without a change */
    {"UTC", "0 0 1 1 *", "2027-06-01T00:00:00Z", "2028-01-01T00:00:00Z"},
    {"UTC", "*/20 9-10 * * mon-fri", "2027-01-01T10:30:00Z",
     "2027-01-01T10:40:00Z 2027-01-04T09:00:00Z 2027-01-04T09:20:00Z 2027-01-04T09:40:00Z "
     "2027-01-04T10:00:00Z"},
    {"UTC", "5-50/15 12 * * *", "2027-01-01T00:00:00Z",
     "2027-01-01T12:05:00Z 2027-01-01T12:20:00Z 2027-01-01T12:35:00Z 2027-01-01T12:50:00Z"},
    {"UTC", "50/3 12 * * *", "2027-01-01T00:00:00Z",
     "2027-01-01T12:50:00Z 2027-01-01T12:53:00Z 2027-01-01T12:56:00Z 2027-01-01T12:59:00Z "
     "2027-01-02T12:50:00Z"},
    {"UTC", "0 12 13 * 5", "2027-01-01T13:00:00Z",
     "2027-01-08T12:00:00Z 2027-01-13T12:00:00Z 2027-01-15T12:00:00Z 2027-01-22T12:00:00Z "
     "2027-01-29T12:00:00Z"},
    {"UTC", "0 12 */2 * 5", "2027-01-01T13:00:00Z",
     "2027-01-15T12:00:00Z 2027-01-29T12:00:00Z 2027-02-05T12:00:00Z"},
    {"UTC", "0 12 1-7 * */6", "2027-01-01T13:00:00Z",
     "2027-01-02T12:00:00Z 2027-01-03T12:00:00Z 2027-02-06T12:00:00Z"},
    {"UTC", "0 12 L * *", "2027-01-31T12:00:00Z",
     "2027-02-28T12:00:00Z 2027-03-31T12:00:00Z 2027-04-30T12:00:00Z"},
    {"UTC", "0 12 L-3,15 2 *", "2027-02-01T00:00:00Z",
     "2027-02-15T12:00:00Z 2027-02-25T12:00:00Z 2028-02-15T12:00:00Z"},
    {"UTC", "0 12 L-30 * *", "2027-01-31T12:00:00Z", "2027-03-01T12:00:00Z 2027-05-01T12:00:00Z"},
    {"UTC", "0 12 * * 5L", "2027-01-30T00:00:00Z",
     "2027-02-26T12:00:00Z 2027-03-26T12:00:00Z 2027-04-30T12:00:00Z"},
    {"UTC", "0 12 * * FRI#3,7#1", "2027-01-01T13:00:00Z",
     "2027-01-03T12:00:00Z 2027-01-15T12:00:00Z 2027-02-07T12:00:00Z 2027-02-19T12:00:00Z"},
    {"UTC", "0 12 * * mon#5", "2027-01-01T13:00:00Z", "2027-03-29T12:00:00Z 2027-05-31T12:00:00Z"},
    {"UTC", "0 12 10 * 0#1", "2027-01-01T13:00:00Z",
     "2027-01-03T12:00:00Z 2027-01-10T12:00:00Z 2027-02-07T12:00:00Z"},
    {"UTC", "0 12 * * SAT-SUN", "2027-01-01T13:00:00Z",
     "2027-01-02T12:00:00Z 2027-01-03T12:00:00Z 2027-01-09T12:00:00Z"},
    {"UTC", "0 12 * JUL-aug,Dec 7", "2027-07-24T13:00:00Z",
     "2027-07-25T12:00:00Z 2027-08-01T12:00:00Z 2027-08-08T12:00:00Z"},
    {"UTC", "*/20 59 23 31 12 *", "2026-12-31T00:00:00Z",
     "2026-12-31T23:59:00Z 2026-12-31T23:59:20Z 2026-12-31T23:59:40Z"},
    {"UTC", "10,40 0 0 * * *", "2027-01-01T00:00:10Z", "2027-01-01T00:00:40Z 2027-01-02T00:00:10Z"},
    {"Asia/Kathmandu", "0 0 * * *", "2027-03-01T00:00:00Z",
     "2027-03-01T18:15:00Z 2027-03-02T18:15:00Z"},
    {"Asia/Tokyo", "30 2 1 * *", "2027-03-01T00:00:00Z",
     "2027-03-31T17:30:00Z 2027-04-30T17:30:00Z"},
    /* Europe/Paris 2027 */
    {"Europe/Paris", "30 2 * * *", "2027-03-27T12:00:00Z",
     "2027-03-28T01:00:00Z 2027-03-29T00:30:00Z"},
    {"Europe/Paris", "0,15,45 2,3 * * *", "2027-03-28T00:00:00Z",
     "2027-03-28T01:00:00Z 2027-03-28T01:15:00Z 2027-03-28T01:45:00Z 2027-03-29T00:00:00Z"},
    {"Europe/Paris", "15 1-4 * * *", "2027-03-27T23:00:00Z",
     "2027-03-28T00:15:00Z 2027-03-28T01:00:00Z 2027-03-28T01:15:00Z 2027-03-28T02:15:00Z "
     "2027-03-28T23:15:00Z"},
    {"Europe/Paris", "*/30 1-3 * * *", "2027-03-27T23:00:00Z",
     "2027-03-28T00:00:00Z 2027-03-28T00:30:00Z 2027-03-28T01:00:00Z 2027-03-28T01:30:00Z "
     "2027-03-28T23:00:00Z"},
    {"Europe/Paris", "30 * * * *", "2027-03-28T00:00:00Z",
     "2027-03-28T00:30:00Z 2027-03-28T01:30:00Z"},
    {"Europe/Paris", "30 2 * * *", "2027-10-30T12:00:00Z",
     "2027-10-31T00:30:00Z 2027-11-01T01:30:00Z"},
    {"Europe/Paris", "0,30 1-3 * * *", "2027-10-30T22:59:00Z",
     "2027-10-30T23:00:00Z 2027-10-30T23:30:00Z 2027-10-31T00:00:00Z 2027-10-31T00:30:00Z "
     "2027-10-31T02:00:00Z 2027-10-31T02:30:00Z 2027-11-01T00:00:00Z"},
    {"Europe/Paris", "0 3 * * *", "2027-10-31T01:30:00Z",
     "2027-10-31T02:00:00Z 2027-11-01T02:00:00Z"},
    {"Europe/Paris", "30 2 * * *", "2027-10-31T00:45:00Z", "2027-11-01T01:30:00Z"},
    {"Europe/Paris", "*/30 2 * * *", "2027-10-30T12:00:00Z",
     "2027-10-31T00:00:00Z 2027-10-31T00:30:00Z 2027-10-31T01:00:00Z 2027-10-31T01:30:00Z "
     "2027-11-01T01:00:00Z"},
    {"Europe/Paris", "0 * * * *", "2027-10-30T23:30:00Z",
     "2027-10-31T00:00:00Z 2027-10-31T01:00:00Z 2027-10-31T02:00:00Z 2027-10-31T03:00:00Z"},
    {"Europe/Paris", "30 2 28 3 *", "2027-01-01T00:00:00Z",
     "2027-03-28T01:00:00Z 2028-03-28T00:30:00Z"},
    {"Europe/Paris", "30 2 * * 0L", "2027-03-01T00:00:00Z",
     "2027-03-28T01:00:00Z 2027-04-25T00:30:00Z"},
    {"Europe/Paris", "0 30 2 * * *", "2027-03-27T12:00:00Z",
     "2027-03-28T01:00:00Z 2027-03-29T00:30:00Z"},
    {"Europe/Paris", "*/20 30 2 * * *", "2027-10-30T12:00:00Z",
     "2027-10-31T00:30:00Z 2027-10-31T00:30:20Z 2027-10-31T00:30:40Z 2027-11-01T01:30:00Z"},
    {"Europe/Paris", "*/20 30 2 * * *", "2027-03-28T00:00:00Z",
     "2027-03-28T01:00:00Z 2027-03-29T00:30:00Z"},
    /* America/New_York 2027 */
    {"America/New_York", "30 2 * * *", "2027-03-13T12:00:00Z",
     "2027-03-14T07:00:00Z 2027-03-15T06:30:00Z"},
    {"America/New_York", "30 1 * * *", "2027-11-06T12:00:00Z",
     "2027-11-07T05:30:00Z 2027-11-08T06:30:00Z"},
    {"America/New_York", "*/30 1 * * *", "2027-11-06T12:00:00Z",
     "2027-11-07T05:00:00Z 2027-11-07T05:30:00Z 2027-11-07T06:00:00Z 2027-11-07T06:30:00Z "
     "2027-11-08T06:00:00Z"},
    /* America/St_Johns 2027 */
    {"America/St_Johns", "5 2 * * *", "2027-03-13T12:00:00Z",
     "2027-03-14T05:30:00Z 2027-03-15T04:35:00Z"},
    {"America/St_Johns", "1 1 * * *", "2027-11-06T12:00:00Z",
     "2027-11-07T03:31:00Z 2027-11-08T04:31:00Z"},
    {"America/St_Johns", "0 */1 * * *", "2027-11-07T02:00:00Z",
     "2027-11-07T02:30:00Z 2027-11-07T03:30:00Z 2027-11-07T04:30:00Z 2027-11-07T05:30:00Z"},
    /* Australia/Lord_Howe 2027: half an hour */
    {"Australia/Lord_Howe", "45 1 * * *", "2027-04-03T00:00:00Z",
     "2027-04-03T14:45:00Z 2027-04-04T15:15:00Z"},
    {"Australia/Lord_Howe", "45 * * * *", "2027-04-03T13:00:00Z",
     "2027-04-03T13:45:00Z 2027-04-03T14:45:00Z 2027-04-03T15:15:00Z 2027-04-03T16:15:00Z"},
    {"Australia/Lord_Howe", "15 2 * * *", "2027-10-02T00:00:00Z",
     "2027-10-02T15:30:00Z 2027-10-03T15:15:00Z"},
    {"Australia/Lord_Howe", "15,30 2 * * *", "2027-10-02T00:00:00Z",
     "2027-10-02T15:30:00Z 2027-10-03T15:15:00Z 2027-10-03T15:30:00Z"},
    {"Australia/Lord_Howe", "15 * * * *", "2027-10-02T14:00:00Z",
     "2027-10-02T14:45:00Z 2027-10-02T16:15:00Z 2027-10-02T17:15:00Z"},
    /* Africa/Casablanca 2027: Ramadan */
    {"Africa/Casablanca", "30 2 * * *", "2027-02-06T12:00:00Z",
     "2027-02-07T01:30:00Z 2027-02-08T02:30:00Z"},
    {"Africa/Casablanca", "30 2 * * *", "2027-03-13T12:00:00Z",
     "2027-03-14T02:00:00Z 2027-03-15T01:30:00Z"},
    {"Africa/Casablanca", "*/30 2 * * *", "2027-02-06T12:00:00Z",
     "2027-02-07T01:00:00Z 2027-02-07T01:30:00Z 2027-02-07T02:00:00Z 2027-02-07T02:30:00Z "
     "2027-02-08T02:00:00Z"},
    {"Africa/Casablanca", "*/30 2 * * *", "2027-03-13T12:00:00Z",
     "2027-03-15T01:00:00Z 2027-03-15T01:30:00Z"},
    /* changes at midnight */
    {"America/Sao_Paulo", "0 0 * * *", "2018-11-03T12:00:00Z",
     "2018-11-04T03:00:00Z 2018-11-05T02:00:00Z"},
    {"America/Sao_Paulo", "30 0 4 11 *", "2018-11-03T12:00:00Z", "2018-11-04T03:00:00Z"},
    {"America/Sao_Paulo", "30 23 * * *", "2018-02-17T12:00:00Z",
     "2018-02-18T01:30:00Z 2018-02-19T02:30:00Z"},
    {"America/Sao_Paulo", "*/30 23 * * *", "2018-02-17T12:00:00Z",
     "2018-02-18T01:00:00Z 2018-02-18T01:30:00Z 2018-02-18T02:00:00Z 2018-02-18T02:30:00Z "
     "2018-02-19T02:00:00Z"},
    {"Africa/Cairo", "15 0 * * *", "2027-04-29T12:00:00Z",
     "2027-04-29T22:00:00Z 2027-04-30T21:15:00Z"},
    {"Africa/Cairo", "30 23 * * *", "2027-10-28T12:00:00Z",
     "2027-10-28T20:30:00Z 2027-10-29T21:30:00Z"},
    {"Asia/Beirut", "0 0 28 3 *", "2027-03-01T00:00:00Z", "2027-03-27T22:00:00Z"},
    {"Asia/Beirut", "30 23 * * *", "2027-10-30T12:00:00Z",
     "2027-10-30T20:30:00Z 2027-10-31T21:30:00Z"},
    {"Atlantic/Azores", "30 0 * * *", "2027-03-27T12:00:00Z",
     "2027-03-28T01:00:00Z 2027-03-29T00:30:00Z"},
    {"Atlantic/Azores", "30 0 * * *", "2027-10-30T12:00:00Z",
     "2027-10-31T00:30:00Z 2027-11-01T01:30:00Z"},
    {"America/Santiago", "0 0 * * *", "2027-09-04T12:00:00Z",
     "2027-09-05T04:00:00Z 2027-09-06T03:00:00Z"},
    {"America/Santiago", "30 23 * * 6", "2027-04-03T12:00:00Z",
     "2027-04-04T02:30:00Z 2027-04-11T03:30:00Z"},
    {"America/Havana", "0 0 * * *", "2027-03-13T12:00:00Z",
     "2027-03-14T05:00:00Z 2027-03-15T04:00:00Z"},
    /* days left out */
    {"Pacific/Apia", "30 2 * * *", "2011-12-29T00:00:00Z",
     "2011-12-29T12:30:00Z 2011-12-30T10:00:00Z 2011-12-30T12:30:00Z 2011-12-31T12:30:00Z"},
    {"Pacific/Apia", "0 0 * * *", "2011-12-29T00:00:00Z",
     "2011-12-29T10:00:00Z 2011-12-30T10:00:00Z 2011-12-31T10:00:00Z"},
    {"Pacific/Apia", "0 9 30 12 *", "2011-12-29T00:00:00Z",
     "2011-12-30T10:00:00Z 2012-12-29T19:00:00Z"},
    {"Pacific/Apia", "* 9 30 12 *", "2011-12-29T00:00:00Z", "2012-12-29T19:00:00Z"},
    {"Pacific/Kwajalein", "0 8 * * *", "1993-08-20T00:00:00Z",
     "1993-08-20T20:00:00Z 1993-08-21T12:00:00Z 1993-08-21T20:00:00Z"},
    /* negative DST, two hours, quarters of an hour, beyond 2037 */
    {"Europe/Dublin", "30 1 * * *", "2027-03-27T12:00:00Z",
     "2027-03-28T01:00:00Z 2027-03-29T00:30:00Z"},
    {"Europe/Dublin", "30 1 * * *", "2050-10-29T12:00:00Z",
     "2050-10-30T00:30:00Z 2050-10-31T01:30:00Z"},
    {"Europe/Dublin", "0 12 1 1,7 *", "2050-01-01T00:00:00Z",
     "2050-01-01T12:00:00Z 2050-07-01T11:00:00Z 2051-01-01T12:00:00Z"},
    {"Antarctica/Troll", "30 2 * * *", "2027-03-27T12:00:00Z",
     "2027-03-28T01:00:00Z 2027-03-29T00:30:00Z"},
    {"Antarctica/Troll", "*/40 1 * * *", "2027-10-30T12:00:00Z",
     "2027-10-30T23:00:00Z 2027-10-30T23:40:00Z 2027-10-31T01:00:00Z 2027-10-31T01:40:00Z "
     "2027-11-01T01:00:00Z"},
    {"Pacific/Chatham", "0 3 * * *", "2027-09-25T00:00:00Z",
     "2027-09-25T14:00:00Z 2027-09-26T13:15:00Z"},
    {"America/Nuuk", "30 23 * * *", "2027-03-26T12:00:00Z",
     "2027-03-27T01:30:00Z 2027-03-28T01:00:00Z 2027-03-29T00:30:00Z"},
    {"Asia/Gaza", "30 2 * * *", "2099-03-26T12:00:00Z",
     "2099-03-27T00:30:00Z 2099-03-28T00:00:00Z 2099-03-28T23:30:00Z"},
    {"Australia/Lord_Howe", "15 2 * * *", "2120-10-04T00:00:00Z",
     "2120-10-04T15:45:00Z 2120-10-05T15:30:00Z 2120-10-06T15:15:00Z"},
};

static void test_cases(void)
{
    promise = "runner.md 2 and 4: what is due, in twenty-one zones, around their changes";
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        Schedule schedule = cron_of(CASES[i].text, zone_of(CASES[i].zone));
        int64_t at = instant_of(CASES[i].after);

        for (const char *due = CASES[i].due; *due != '\0'; due += strspn(due, " ")) {
            at = next_of(&schedule, at);
            CHECK_FOR(at == instant_of(due), "%s %s: %s, not %.20s", CASES[i].zone, CASES[i].text,
                      text_of(at), due);
            due += strlen("2027-03-28T01:00:00Z");
        }
    }
    passed();
}

static const struct {
    const char *macro;
    const char *text;
} MACROS[] = {
    {"@hourly", "0 * * * *"},     {"@daily", "0 0 * * *"},   {"@Midnight", "0 0 * * *"},
    {"@weekly", "0 0 * * SUN"},   {"@monthly", "0 0 1 * *"}, {"@YEARLY", "0 0 1 JAN *"},
    {" @annually ", "0 0 1 1 *"},
};

static void test_macros(void)
{
    const Zone *zone = zone_of("Europe/Paris");
    Schedule start = cron_of("@start", zone);

    promise = "runner.md 2: macros mean what they stand for; @start is never due by the clock";
    for (size_t i = 0; i < sizeof MACROS / sizeof MACROS[0]; i++) {
        Schedule a = cron_of(MACROS[i].macro, zone);
        Schedule b = cron_of(MACROS[i].text, zone);
        int64_t at = instant_of("2027-03-27T12:00:00Z");

        for (int n = 0; n < 100; n++) {
            CHECK_FOR(next_of(&a, at) == next_of(&b, at), "%s", MACROS[i].macro);
            at = next_of(&a, at);
        }
    }
    CHECK(start.kind == SCHEDULE_START && schedule_next(&start, 0) == SCHEDULE_NEVER);
    passed();
}

static const struct {
    const char *text;
    const char *message; /* what stands in it */
} REFUSED[] = {
    {"", "it has 0 fields"},
    {"0 0 * *", "it has 4 fields"},
    {"0 0 0 * * * *", "it has 7 fields"},
    {"0 25 * * *", "hour \"25\" at column 3: expected 0 to 23"},
    {"60 0 * * *", "minute \"60\" at column 1: expected 0 to 59"},
    {"60 0 0 * * *", "second \"60\" at column 1: expected 0 to 59"},
    {"  0  0  1,32 * *", "day of month \"32\" at column 11: expected 1 to 31"},
    {"0 0 0 * *", "day of month \"0\" at column 5"},
    {"0 0 * 13 *", "month \"13\" at column 7: expected 1 to 12 or jan to dec"},
    {"0 0 * janu *", "month \"janu\" at column 7"},
    {"0 0 * * 8", "day of week \"8\" at column 9: expected 0 to 7 or sun to sat"},
    {"0 0 * * L", "day of week \"L\""},
    {"0 0 * * 5#6", "expected 1 to 5 after the #"},
    {"0 0 * * 5#0", "expected 1 to 5 after the #"},
    {"0 0 * * 5#", "expected 1 to 5 after the #"},
    {"0 0 * * 5L/2", "day of week \"5L/2\""},
    {"0 0 L-31 * *", "day of month \"L-31\""},
    {"0 0 L/2 * *", "day of month \"L/2\""},
    {"0 0 15W * *", "day of month \"15W\""},
    {"0 0 ? * *", "day of month \"?\""},
    {"0 22-3 * * *",
     "hour \"22-3\" at column 3: the range falls; write it as two, as in 22-23,0-3"},
    {"0 22~3 * * *", "the range falls"},
    {"*/0 * * * *", "minute \"*/0\" at column 1: expected a step of 1 to 60 after the /"},
    {"*/61 * * * *", "expected a step of 1 to 60"},
    {"0 */25 * * *", "expected a step of 1 to 24"},
    {"*/ * * * *", "expected a step"},
    {"*/5/5 * * * *", "minute \"*/5/5\""},
    {"*5 * * * *", "minute \"*5\""},
    {"1, * * * *", "minute \"\" at column 3"},
    {",1 * * * *", "minute \"\" at column 1"},
    {"1-,2 * * * *", "minute \"1-\""},
    {"-1 * * * *", "minute \"-1\""},
    {"1-2-3 * * * *", "minute \"1-2-3\""},
    {"0000 * * * *", "minute \"0000\""},
    {"+5 * * * *", "minute \"+5\""},
    {"5.5 * * * *", "minute \"5.5\""},
    {"0\n0 * * * *", "minute \"0\n0\""},
    {"@reboot", "expected one of @hourly, @daily"},
    {"@every 5m", "expected one of @hourly"},
    {"@daily @daily", "expected one of @hourly"},
    {"0 0 30 2 *", "can never fire"},
    {"0 0 31 2,4,6,9,11 *", "can never fire"},
    {"0 0 L-29 2 *", "can never fire"},
    {"0 0 */30 2 1#3", "can never fire"},
    {"0 0 */29 4 1#3", "can never fire"},
    {"\xff * * * *", "is not UTF-8"},
};

static void test_refused(void)
{
    const Zone *zone = zone_of("UTC");
    char text[1000];
    Schedule schedule;
    Error err;

    promise = "runner.md 2: an error names field, text, column and what is allowed";
    for (size_t i = 0; i < sizeof REFUSED / sizeof REFUSED[0]; i++) {
        CHECK_FOR(!schedule_from_cron(&schedule, REFUSED[i].text, zone, "job", &err), "%s",
                  REFUSED[i].text);
        CHECK_FOR(err.kind == ERROR_USAGE && strstr(err.message, REFUSED[i].message) != NULL,
                  "%s: %s", REFUSED[i].text, err.message);
    }
    memset(text, '1', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    CHECK(!schedule_from_cron(&schedule, text, zone, "job", &err));
    CHECK(strstr(err.message, "too long") != NULL);
    CHECK(!schedule_from_cron(&schedule, "~ * * * *", zone, NULL, &err));
    CHECK(strstr(err.message, "picked by a job's name") != NULL);
    passed();
}

static void test_rare(void)
{
    const Zone *zone = zone_of("UTC");
    Schedule leap = cron_of("0 0 29 2 *", zone);
    Schedule monday = cron_of("0 0 */28 2 1#5", zone); /* February 29th, a Monday */
    Schedule hidden = cron_of("*/5 2 * 3 0L", zone_of("Europe/Paris"));

    promise =
        "runner.md 2: what is due once in decades is found, and what a gap always hides is not";
    CHECK(next_of(&leap, instant_of("2096-03-01T00:00:00Z")) == instant_of("2104-02-29T00:00:00Z"));
    CHECK(next_of(&monday, instant_of("2027-01-01T00:00:00Z")) ==
          instant_of("2044-02-29T00:00:00Z"));
    CHECK(next_of(&monday, instant_of("2072-03-01T00:00:00Z")) ==
          instant_of("2112-02-29T00:00:00Z"));
    CHECK(next_of(&hidden, instant_of("2027-01-01T00:00:00Z")) == INT64_MAX);
    CHECK(next_of(&leap, ZONE_END) == INT64_MAX);
    CHECK(schedule_next(&leap, INT64_MAX) == SCHEDULE_NEVER);
    CHECK(schedule_next(&leap, INT64_MIN) / SECOND_US == instant_of("1904-02-29T00:00:00Z"));
    passed();
}

static void test_instants(void)
{
    Schedule minute = cron_of("* * * * *", zone_of("UTC"));

    promise = "what is due is after the instant asked for, by a microsecond or more";
    CHECK(schedule_next(&minute, 0) == INT64_C(60) * SECOND_US);
    CHECK(schedule_next(&minute, -1) == 0);
    CHECK(schedule_next(&minute, INT64_C(60) * SECOND_US - 1) == INT64_C(60) * SECOND_US);
    CHECK(schedule_next(&minute, INT64_C(60) * SECOND_US) == INT64_C(120) * SECOND_US);
    passed();
}

/* ---- What a job's name picks ---- */

static void test_picked(void)
{
    const Zone *zone = zone_of("UTC");
    int seen[60] = {0};
    int agree = 0;
    Schedule schedule, other;
    Error err;

    promise = "runner.md 2: ~ picks by the job's name, evenly, the same for ever";
    for (int i = 0; i < 6000; i++) {
        char job[32];
        int64_t due;

        snprintf(job, sizeof job, "job-%d", i);
        CHECK(schedule_from_cron(&schedule, "~ 4~7 * * *", zone, job, &err));
        due = next_of(&schedule, 0);
        seen[due / 60 % 60]++;
        CHECK(due / 3600 >= 4 && due / 3600 <= 7);
        CHECK(next_of(&schedule, due) == due + SECONDS_PER_DAY);
        agree += due / 60 % 60 / 15 == due / 3600 - 4; /* minute and hour are picked apart */
        CHECK(schedule_from_cron(&other, "0 ~ 4~7 * * *", zone, job, &err));
        CHECK(next_of(&other, 0) == due);
    }
    for (int i = 0; i < 60; i++)
        CHECK_FOR(seen[i] > 60 && seen[i] < 140, "minute %d: %d", i, seen[i]);
    CHECK_FOR(agree > 1300 && agree < 1700, "%d", agree);

    CHECK(schedule_from_cron(&schedule, "~ ~ ~ * *", zone, "vacuum-orders", &err));
    CHECK_FOR(next_of(&schedule, 0) == instant_of("1970-01-23T07:15:00Z"), "%s",
              text_of(next_of(&schedule, 0)));
    CHECK(schedule_from_cron(&schedule, "~/15 3 * * *", zone, "vacuum-orders", &err));
    CHECK_FOR(next_of(&schedule, 0) == instant_of("1970-01-01T03:00:00Z"), "%s",
              text_of(next_of(&schedule, 0)));
    passed();
}

static void test_picked_ranges(void)
{
    static const struct {
        const char *text;
        int least; /* of what it can pick */
        int most;
        int count; /* due in an hour, or in a day of the week, or in a month */
    } RANGES[] = {{"~ 0 1 1 *", 0, 59, 1},        {"10~20 0 1 1 *", 10, 20, 1},
                  {"50~ 0 1 1 *", 50, 59, 1},     {"~5 0 1 1 *", 0, 5, 1},
                  {"~/10 0 1 1 *", 0, 9, 6},      {"30~39/5 0 1 1 *", 30, 34, 2},
                  {"30~33/20 0 1 1 *", 30, 33, 1}};
    const Zone *zone = zone_of("UTC");
    Error err;

    promise = "runner.md 2: ~ stays within its range, and with a step picks where it starts";
    for (size_t i = 0; i < sizeof RANGES / sizeof RANGES[0]; i++) {
        bool least = false;
        bool most = false;

        for (int n = 0; n < 1000; n++) {
            char job[32];
            Schedule schedule;
            int64_t first;
            int count = 0;

            snprintf(job, sizeof job, "%d", n);
            CHECK(schedule_from_cron(&schedule, RANGES[i].text, zone, job, &err));
            first = next_of(&schedule, -1);
            for (int64_t at = first; at < 3600; at = next_of(&schedule, at))
                count++;
            CHECK_FOR(count == RANGES[i].count, "%s: %d", RANGES[i].text, count);
            CHECK_FOR(first / 60 >= RANGES[i].least && first / 60 <= RANGES[i].most, "%s: %d",
                      RANGES[i].text, (int)first);
            least = least || first / 60 == RANGES[i].least;
            most = most || first / 60 == RANGES[i].most;
        }
        CHECK_FOR(least && most, "%s", RANGES[i].text);
    }
    for (int n = 0; n < 1000; n++) {
        char job[32];
        Schedule schedule;
        int64_t at = -1;

        snprintf(job, sizeof job, "%d", n);
        CHECK(schedule_from_cron(&schedule, "0 0 ~ * *", zone, job, &err));
        for (int month = 0; month < 12; month++)
            at = next_of(&schedule, at);
        CHECK(at < 365 * (int64_t)SECONDS_PER_DAY); /* every month has it */
    }
    passed();
}

static void test_every(void)
{
    static const int64_t PERIODS[] = {1, 60, 600, 3600, 86400, 604800, 1000003};
    int64_t hour_us = INT64_C(3600) * SECOND_US;
    Schedule schedule, again;
    Error err;
    int seen[10] = {0};

    promise = "runner.md 3: every is a grid from the epoch, set off by the job's name";
    for (size_t i = 0; i < sizeof PERIODS / sizeof PERIODS[0]; i++) {
        int64_t at = INT64_C(1800000000);
        int64_t first;

        CHECK(schedule_from_every(&schedule, PERIODS[i] * SECOND_US, "job", &err));
        first = next_of(&schedule, -1);
        CHECK(first >= 0 && first < PERIODS[i]);
        for (int n = 0; n < 1000; n++) {
            int64_t due = next_of(&schedule, at);

            CHECK(due > at && due - at <= PERIODS[i] && (due - first) % PERIODS[i] == 0);
            at = due + (n % 3 == 0 ? random_below((int)PERIODS[i]) : 0);
        }
        CHECK(next_of(&schedule, first - 1 - 3 * PERIODS[i]) == first - 3 * PERIODS[i]);
    }
    for (int i = 0; i < 1000; i++) {
        char job[32];

        snprintf(job, sizeof job, "job-%d", i);
        CHECK(schedule_from_every(&schedule, hour_us, job, &err));
        CHECK(schedule_from_every(&again, hour_us, job, &err));
        CHECK(next_of(&schedule, 0) == next_of(&again, 0));
        seen[next_of(&schedule, -1) / 360]++;
    }
    for (int i = 0; i < 10; i++)
        CHECK_FOR(seen[i] > 60 && seen[i] < 140, "%d: %d", i, seen[i]);
    CHECK(schedule_from_every(&schedule, hour_us, "vacuum-orders", &err));
    CHECK_FOR(next_of(&schedule, 0) == 2139, "%" PRId64, next_of(&schedule, 0));

    CHECK(!schedule_from_every(&schedule, 0, "job", &err));
    CHECK(!schedule_from_every(&schedule, SECOND_US / 2, "job", &err));
    CHECK(!schedule_from_every(&schedule, SECOND_US * INT64_C(3) / 2, "job", &err));
    CHECK(strstr(err.message, "whole seconds") != NULL);
    CHECK(!schedule_from_every(&schedule, INT64_C(3651) * 86400 * SECOND_US, "job", &err));
    CHECK(!schedule_from_every(&schedule, INT64_MAX - INT64_MAX % SECOND_US, "job", &err));
    passed();
}

static void test_finish(void)
{
    Schedule schedule;
    Error err;

    promise = "runner.md 3: from the finish, the first whole second after the delay";
    CHECK(schedule_from_finish(&schedule, INT64_C(600) * SECOND_US, &err));
    CHECK(schedule.kind == SCHEDULE_FINISH);
    CHECK(schedule_next(&schedule, INT64_C(5) * SECOND_US) == INT64_C(605) * SECOND_US);
    CHECK(schedule_next(&schedule, INT64_C(5) * SECOND_US + 1) == INT64_C(606) * SECOND_US);
    CHECK(schedule_next(&schedule, INT64_C(6) * SECOND_US - 1) == INT64_C(606) * SECOND_US);
    CHECK(!schedule_from_finish(&schedule, 0, &err));
    passed();
}

/* ---- Against a scan of every minute or second ---- */

enum { VALUES = 64 };

/* An expression as sets, made beside its text and never read from it. */
typedef struct {
    char text[TEXT_SIZE];
    bool seconds[VALUES], minutes[VALUES], hours[VALUES];
    bool days[VALUES], months[VALUES], weekdays[VALUES];
    int last_day;         /* L-n; -1: not in it */
    int nth_weekday, nth; /* nth 6: the last; 0: not in it */
    bool both_days, real_time;
} Sample;

/* Adds a random field to the text and its values to the set. Returns whether it begins with "*". */
static bool random_field(Sample *sample, bool *set, int min, int max, int stars)
{
    char *text = sample->text;
    bool star = random_below(100) < stars;
    int items = star ? 1 : 1 + random_below(3);

    for (int i = 0; i < items; i++) {
        size_t length = strlen(text);
        char *end = text + length;
        size_t room = TEXT_SIZE - length;
        const char *comma = i > 0 ? "," : "";
        int first = min + random_below(max - min + 1);
        int last = first + random_below(max - first + 1);
        int step = 1;

        if (star && random_below(2) == 0) {
            snprintf(end, room, "*");
            first = min;
            last = max;
        } else if (star) {
            step = 1 + random_below(max - min + 1);
            snprintf(end, room, "*/%d", step);
            first = min;
            last = max;
        } else {
            switch (random_below(4)) {
            case 0:
                step = 1 + random_below(9 < max - min ? 9 : max - min);
                snprintf(end, room, "%s%d-%d/%d", comma, first, last, step);
                break;
            case 1:
                snprintf(end, room, "%s%d-%d", comma, first, last);
                break;
            case 2:
                step = 1 + random_below(max - min);
                snprintf(end, room, "%s%d/%d", comma, first, step);
                last = max;
                break;
            default:
                snprintf(end, room, "%s%d", comma, first);
                last = first;
            }
        }
        for (int value = first; value <= last; value += step)
            set[value] = true;
    }
    return star;
}

static void add_text(Sample *sample, const char *text)
{
    strncat(sample->text, text, TEXT_SIZE - strlen(sample->text) - 1);
}

static void random_sample(Sample *sample, bool with_seconds)
{
    bool star;

    memset(sample, 0, sizeof *sample);
    sample->last_day = -1;
    sample->seconds[0] = true;
    if (with_seconds) {
        sample->seconds[0] = false;
        random_field(sample, sample->seconds, 0, 59, 30);
        add_text(sample, " ");
    }
    sample->real_time = random_field(sample, sample->minutes, 0, 59, 20);
    add_text(sample, " ");
    if (random_below(2) == 0) { /* hours in which clocks change */
        add_text(sample, "0-3");
        for (int hour = 0; hour <= 3; hour++)
            sample->hours[hour] = true;
    } else if (random_field(sample, sample->hours, 0, 23, 30)) {
        sample->real_time = true;
    }
    add_text(sample, " ");
    star = random_field(sample, sample->days, 1, 31, 60);
    if (!star && random_below(3) == 0) {
        char text[16];

        sample->last_day = random_below(5);
        snprintf(text, sizeof text, sample->last_day == 0 ? ",L" : ",L-%d", sample->last_day);
        add_text(sample, text);
    }
    sample->both_days = star;
    add_text(sample, " ");
    random_field(sample, sample->months, 1, 12, 80);
    add_text(sample, " ");
    star = random_field(sample, sample->weekdays, 0, 6, 60);
    if (!star && random_below(3) == 0) {
        char text[16];

        sample->nth_weekday = random_below(7);
        sample->nth = 1 + random_below(6);
        if (sample->nth == 6)
            snprintf(text, sizeof text, ",%dL", sample->nth_weekday);
        else
            snprintf(text, sizeof text, ",%d#%d", sample->nth_weekday, sample->nth);
        add_text(sample, text);
    }
    sample->both_days = sample->both_days || star;
}

static bool sample_matches(const Sample *sample, const struct tm *tm)
{
    int length = calendar_month_length(tm->tm_year + 1900, tm->tm_mon + 1);
    bool day = sample->days[tm->tm_mday] ||
               (sample->last_day >= 0 && tm->tm_mday == length - sample->last_day);
    bool weekday =
        sample->weekdays[tm->tm_wday] ||
        (sample->nth > 0 && tm->tm_wday == sample->nth_weekday &&
         (sample->nth == 6 ? tm->tm_mday + 7 > length : (tm->tm_mday + 6) / 7 == sample->nth));

    return sample->seconds[tm->tm_sec] && sample->minutes[tm->tm_min] &&
           sample->hours[tm->tm_hour] && sample->months[tm->tm_mon + 1] &&
           (sample->both_days ? day && weekday : day || weekday);
}

/*
 * Rule 4, as a scan in small steps: real time matches what the clock shows; fixed time matches all
 * that it shows, or jumps over, for the first time.
 */
static bool scan_step(const Sample *sample, int64_t instant, int step, int64_t *latest)
{
    time_t time = instant;
    struct tm tm;
    int64_t wall;
    bool due = false;

    localtime_r(&time, &tm);
    wall = instant + tm.tm_gmtoff;
    if (sample->real_time)
        return sample_matches(sample, &tm);
    for (; *latest < wall; *latest += step) {
        time_t shown = *latest + step;

        gmtime_r(&shown, &tm);
        due = due || sample_matches(sample, &tm);
    }
    return due;
}

static const char *const CHANGING[] = {
    "Europe/Paris",      "America/New_York",     "Australia/Lord_Howe", "Africa/Casablanca",
    "America/St_Johns",  "America/Sao_Paulo",    "Africa/Cairo",        "Asia/Beirut",
    "Atlantic/Azores",   "Pacific/Apia",         "Europe/Dublin",       "America/Santiago",
    "Antarctica/Troll",  "Pacific/Chatham",      "America/Nuuk",        "Asia/Gaza",
    "Pacific/Kwajalein", "Asia/Kathmandu",       "Antarctica/Casey",    "America/Caracas",
    "Asia/Pyongyang",    "America/Scoresbysund", "Africa/El_Aaiun",     "Asia/Tehran",
};

static void compare_with_scan(const Sample *sample, const Zone *zone, int64_t after, int64_t until,
                              int step)
{
    static const int64_t BEFORE = INT64_C(26) * 3600; /* as far as a clock was ever set back */
    int64_t start = after - BEFORE - after % 60;
    int64_t latest = libc_wall(start);
    Schedule schedule;
    Error err = {0};
    int64_t due;

    if (!schedule_from_cron(&schedule, sample->text, zone, "job", &err)) {
        CHECK_FOR(strstr(err.message, "never fire") != NULL, "%s", err.message);
        return;
    }
    due = next_of(&schedule, after);
    for (int64_t at = start + step; at <= until; at += step) {
        bool expected = scan_step(sample, at, step, &latest);

        if (at <= after)
            continue;
        CHECK_FOR(expected == (due == at), "%s %s: at %s; after %s: %s", zone->name, sample->text,
                  text_of(at), text_of(after), text_of(due == INT64_MAX ? 0 : due));
        if (due == at)
            due = next_of(&schedule, at);
    }
    CHECK_FOR(due > until, "%s %s: %s", zone->name, sample->text, text_of(due));
}

/* An instant within two days before one of a zone's changes, or any, from 1980 to 2079. */
static int64_t random_instant(const Zone *zone)
{
    static const int64_t FROM = INT64_C(315532800);
    static const int64_t UNTIL = INT64_C(3471292800);
    size_t first = zone_period_at(zone, FROM) + 1;
    size_t end = zone_period_at(zone, UNTIL) + 1;

    if (first < end && random_below(4) != 0) {
        size_t period = first + (size_t)random_below((int)(end - first));

        return zone->periods[period].from - random_below(2 * SECONDS_PER_DAY);
    }
    return FROM + (int64_t)random_below(INT32_MAX) * 3 / 2;
}

static void test_scan(int divisor)
{
    enum {
        ZONES = sizeof CHANGING / sizeof CHANGING[0],
        MINUTE_SAMPLES = 600,
        SECOND_SAMPLES = 24
    };

    promise =
        "runner.md 2 and 4: random expressions are due as a scan by the C library's clock says";
    for (int i = 0; i < MINUTE_SAMPLES / divisor + SECOND_SAMPLES / divisor; i++) {
        bool by_second = i >= MINUTE_SAMPLES / divisor;
        const Zone *zone = zone_of(CHANGING[i % ZONES]);
        int64_t after = random_instant(zone);
        int days = by_second ? 2 : random_below(20) == 0 ? 30 : 4;
        Sample sample;

        use_libc_zone(zone->name);
        random_sample(&sample, by_second);
        compare_with_scan(&sample, zone, after, after + days * (int64_t)SECONDS_PER_DAY,
                          by_second ? 1 : 60);
    }
    passed();
}

/* ---- All zones ---- */

/* Calls check(zone, index) with every zone that the data's own list names; links are other names.
 */
static int for_each_zone(void (*check)(const Zone *zone, int index), bool links, int divisor)
{
    FILE *list = fopen("/usr/share/zoneinfo/tzdata.zi", "re");
    char line[256];
    int count = 0;

    CHECK(list != NULL);
    while (fgets(line, sizeof line, list) != NULL) {
        char *save;
        char *kind = strtok_r(line, " \n", &save);
        char *name = strtok_r(NULL, " \n", &save);

        if (kind == NULL || name == NULL || (strcmp(kind, "Z") != 0 && strcmp(kind, "L") != 0))
            continue;
        if (strcmp(kind, "L") == 0)
            name = strtok_r(NULL, " \n", &save);
        if (strcmp(kind, "L") == 0 && !links)
            continue;
        if (count++ % divisor != 0)
            continue;
        use_libc_zone(name);
        check(zone_of(name), count);
    }
    fclose(list);
    return count;
}

static void check_offsets(const Zone *zone, int index)
{
    (void)index;
    for (size_t i = 0; i <= zone->count; i++) {
        int64_t at = zone->periods[i].from;

        for (int64_t near = at - 1; near <= at + 1; near++) {
            if (near >= ZONE_BEGIN && near < ZONE_END)
                CHECK_FOR(zone_wall_at(zone, near) == libc_wall(near), "%s at %s", zone->name,
                          text_of(near));
        }
    }
    for (int64_t at = ZONE_BEGIN; at < ZONE_END; at += 200 * (int64_t)SECONDS_PER_DAY)
        CHECK_FOR(zone_wall_at(zone, at) == libc_wall(at), "%s at %s", zone->name, text_of(at));
}

static void test_offsets(int divisor)
{
    promise = "every zone has the C library's offsets, from 1900 to 2299";
    CHECK(for_each_zone(check_offsets, true, divisor) > 400);
    passed();
}

/* Is it the first instant at which the clock shows `wall` or later? */
static bool is_first(int64_t instant, int64_t wall)
{
    static const int SET_BACK[] = {1, 1200, 1800, 3600, 5400, 7200, 10800, 82800, 86400};

    for (size_t i = 0; i < sizeof SET_BACK / sizeof SET_BACK[0]; i++) {
        if (libc_wall(instant - SET_BACK[i]) >= wall)
            return false;
    }
    return libc_wall(instant) >= wall;
}

/* Every day at a time, over 50 years: each wall time is due once, none is due otherwise. */
static void check_once_a_day(const Zone *zone, int hour, int minute)
{
    static const int64_t FROM = INT64_C(567993600);   /* 1988-01-01 */
    static const int64_t UNTIL = INT64_C(2145916800); /* 2038-01-01 */
    char text[32];
    Schedule schedule;
    int64_t due, previous = 0;
    int64_t wall; /* that is due next */

    snprintf(text, sizeof text, "%d %d * * *", minute, hour);
    schedule = cron_of(text, zone);
    due = next_of(&schedule, FROM);
    wall = libc_wall(due);
    wall += hour * SECONDS_PER_HOUR + minute * SECONDS_PER_MINUTE - wall % SECONDS_PER_DAY;
    while (due < UNTIL) {
        int64_t shown = libc_wall(due);

        if (due - previous == SECONDS_PER_DAY && shown == wall) {
            wall += SECONDS_PER_DAY; /* the clock was left alone since */
        } else {
            CHECK_FOR(is_first(due, wall), "%s %s: %s", zone->name, text, text_of(due));
            while (wall <= shown)
                wall += SECONDS_PER_DAY;
        }
        previous = due;
        due = next_of(&schedule, due);
    }
    CHECK_FOR(previous > UNTIL - INT64_C(2) * SECONDS_PER_DAY, "%s %s ends at %s", zone->name, text,
              text_of(previous));
}

static void check_once(const Zone *zone, int index)
{
    static const int TIMES[][2] = {{0, 0}, {0, 30}, {1, 30}, {2, 0}, {2, 30}, {23, 30}, {3, 0}};
    int which = index % (int)(sizeof TIMES / sizeof TIMES[0]);

    check_once_a_day(zone, TIMES[which][0], TIMES[which][1]);
}

/* The zones whose changes differ most, with times in half of the half hours that any of them
 * touches. */
static void check_changing(int divisor)
{
    for (size_t i = 0; i < sizeof CHANGING / sizeof CHANGING[0]; i++) {
        use_libc_zone(CHANGING[i]);
        for (int half = (int)i % 2; half < 8; half += 2) {
            if ((half + (int)i) / 2 % divisor == 0)
                check_once_a_day(zone_of(CHANGING[i]), half == 7 ? 23 : half / 2,
                                 half % 2 * 30 + 15);
        }
    }
}

static void test_once(int divisor)
{
    promise = "runner.md 4: fixed time is due once a day, in every zone, over 50 years";
    CHECK(for_each_zone(check_once, false, divisor) > 300);
    check_changing(divisor);
    passed();
}

/* ---- Zones ---- */

static const struct {
    const char *name;
    const char *message;
} UNKNOWN[] = {
    {"Europe/Pari", "unknown time zone \"Europe/Pari\"; did you mean \"Europe/Paris\"?"},
    {"Paris", "\"Europe/Paris\""},
    {"Pari", "\"Europe/Paris\""},
    {"Qwertyuiop/Asdfgh", "unknown time zone \"Qwertyuiop/Asdfgh\""},
    {"europe/paris", "\"Europe/Paris\""},
    {"America/New York", "\"America/New_York\""},
    {"America/Argentina/Buenos-Aires", "\"America/Argentina/Buenos_Aires\""},
    {"Kolkata", "\"Asia/Kolkata\""},
    {"", "unknown time zone \"\""},
    {"Europe", "unknown time zone \"Europe\""},
    {"Europe/", "unknown time zone"},
    {"../../etc/passwd", "unknown time zone"},
    {"/etc/localtime", "unknown time zone"},
    {"localtime", "unknown time zone"},
    {"right/Europe/Paris", "\"Europe/Paris\""},
    {"posixrules", "unknown time zone"},
    {"tzdata.zi", "unknown time zone"},
    {"UTC+1", "unknown time zone"},
    {"Europe/Par\xff", "not UTF-8"},
};

static void test_unknown(void)
{
    Zones *nowhere = zones_new("/nonexistent");
    Error err;

    promise = "runner.md 4: an unknown zone is an error that names the nearest known ones";
    for (size_t i = 0; i < sizeof UNKNOWN / sizeof UNKNOWN[0]; i++) {
        CHECK_FOR(zones_get(zones, UNKNOWN[i].name, &err) == NULL, "%s", UNKNOWN[i].name);
        CHECK_FOR(err.kind == ERROR_USAGE && strstr(err.message, UNKNOWN[i].message) != NULL,
                  "%s: %s", UNKNOWN[i].name, err.message);
    }
    CHECK(zones_get(nowhere, "Europe/Paris", &err) == NULL);
    CHECK(strstr(err.message, "no time-zone data in /nonexistent") != NULL);
    CHECK(zones_get(nowhere, "UTC", &err) != NULL);
    CHECK(strcmp(zones_version(nowhere), "") == 0);
    zones_free(nowhere);
    CHECK(strlen(zones_version(zones)) >= 5 && strncmp(zones_version(zones), "20", 2) == 0);
    CHECK(zones_get(zones, "Europe/Paris", &err) == zones_get(zones, "Europe/Paris", &err));
    passed();
}

/*
 * A clock that is set again and again within hours, as no real one is, against a scan: a change may
 * come while an earlier one's hours are still repeated.
 */
static void test_crowded(void)
{
    static const int64_t FROM = INT64_C(1800000000);
    static const int64_t UNTIL = FROM + INT64_C(20) * 3600;

    promise = "runner.md 4: fixed time is due once, however close the changes of a clock are";
    for (int round = 0; round < 300; round++) {
        Zone *zone = zone_new("Crowded", 8);
        Schedule schedule;
        int64_t change = FROM;
        int64_t latest = FROM - 1;
        int64_t due;

        CHECK(zone != NULL);
        for (int i = 0; i < 8; i++) {
            change += INT64_C(600) * (1 + random_below(12));
            zone_add(zone, change, 600 * (random_below(25) - 12));
        }
        zone_finish(zone);
        schedule = cron_of("0,20,50 0-23 * * *", zone);
        due = next_of(&schedule, FROM - 1);
        for (int64_t at = FROM; at < UNTIL; at += 600) {
            int64_t wall = zone_wall_at(zone, at);
            bool expected = false;

            CHECK(zone_latest_wall(zone, at) == (wall > latest ? wall : latest));
            for (int64_t shown = latest - latest % 600 + 600; shown <= wall; shown += 600) {
                CHECK(zone_first_instant(zone, shown) == at);
                expected =
                    expected || shown % 3600 == 0 || shown % 3600 == 1200 || shown % 3600 == 3000;
            }
            CHECK((due == at) == expected);
            if (due == at)
                due = next_of(&schedule, at);
            /* All that the clock shows until the next step. */
            latest = wall + 599 > latest ? wall + 599 : latest;
        }
        free(zone);
    }
    passed();
}

/* A folder of zone files of our own. */
static char folder[] = "/tmp/schedule_test.XXXXXX";
static const char *const OWN_FILES[] = {"Test", "+VERSION", "tzdata.zi"};

static void remove_folder(void)
{
    for (size_t i = 0; i < sizeof OWN_FILES / sizeof OWN_FILES[0]; i++) {
        char path[sizeof folder + 32];

        snprintf(path, sizeof path, "%s/%s", folder, OWN_FILES[i]);
        unlink(path);
    }
    rmdir(folder);
}

static void write_file(const char *name, const void *bytes, size_t size)
{
    char path[sizeof folder + 32];
    FILE *stream;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path); /* or some file systems write the old bytes to the disk first */
    stream = fopen(path, "we");
    CHECK(stream != NULL);
    CHECK(fwrite(bytes, 1, size, stream) == size);
    CHECK(fclose(stream) == 0);
}

/* The zone "Test" of a file of these bytes: its wall time at an instant, or false with *err. */
static bool read_own(const void *bytes, size_t size, int64_t instant, int64_t *wall, Error *err)
{
    Zones *own;
    const Zone *zone;

    write_file("Test", bytes, size);
    own = zones_new(folder);
    zone = zones_get(own, "Test", err);
    if (zone != NULL) {
        *wall = zone_wall_at(zone, instant);
        for (size_t i = 0; i < zone->count; i++)
            CHECK(zone->periods[i].from < zone->periods[i + 1].from &&
                  zone->periods[i].wall_before <= zone->periods[i + 1].wall_before);
    }
    zones_free(own);
    return zone != NULL;
}

static size_t read_system(const char *path, unsigned char *bytes, size_t room)
{
    FILE *stream = fopen(path, "re");
    size_t size;

    CHECK(stream != NULL);
    size = fread(bytes, 1, room, stream);
    fclose(stream);
    CHECK(size > 100 && size < room);
    return size;
}

static void test_damaged(int divisor)
{
    static unsigned char paris[65536], bytes[65536];
    size_t size = read_system("/usr/share/zoneinfo/Europe/Paris", paris, sizeof paris);
    int64_t wall;
    Error err;
    int refused = 0;

    promise = "a damaged zone file is an error, whatever the damage";
    CHECK(read_own(paris, size, 1800000000, &wall, &err) && wall == 1800003600);
    for (size_t length = 0; length < size; length += 1 + (size_t)divisor) {
        CHECK_FOR(!read_own(paris, length, 0, &wall, &err), "%zu bytes", length);
        CHECK(strstr(err.message, "damaged") != NULL);
    }
    for (int i = 0; i < 3000 / divisor; i++) {
        memcpy(bytes, paris, size);
        for (int n = 1 + random_below(4); n > 0; n--)
            bytes[random_below(random_below(2) == 0 ? 64 : (int)size)] =
                (unsigned char)random_below(256);
        refused += !read_own(bytes, size, 1800000000, &wall, &err);
    }
    CHECK(refused > 500 / divisor);
    bytes[0] = 'x';
    CHECK(!read_own(bytes, size, 0, &wall, &err) && strstr(err.message, "does not begin") != NULL);
    passed();
}

static void test_version(void)
{
    Zones *own;

    promise = "runner.md 4: the data's version is known";
    write_file("+VERSION", "2099z\n", strlen("2099z\n"));
    own = zones_new(folder);
    CHECK(strcmp(zones_version(own), "2099z") == 0);
    zones_free(own);
    write_file("tzdata.zi", "# version 2100a-1\nR", strlen("# version 2100a-1\nR"));
    own = zones_new(folder);
    CHECK(strcmp(zones_version(own), "2100a-1") == 0);
    zones_free(own);
    passed();
}

/* A file without a table: one offset of 0, and a footer. */
static size_t footer_file(const char *footer, unsigned char *bytes)
{
    unsigned char *at = bytes;

    for (int block = 0; block < 2; block++) {
        memcpy(at, "TZif2", 6);
        memset(at + 6, 0, 38 + 6 + 4);
        at[39] = 1; /* one type */
        at[43] = 4; /* four bytes of designation */
        memcpy(at + 44 + 6, "XXX", 4);
        at += 44 + 6 + 4;
    }
    at += sprintf((char *)at, "\n%s\n", footer);
    return (size_t)(at - bytes);
}

/* The zone of a file of the first version: one change, of a type, to an offset, and leap seconds.
 */
static bool read_old(int64_t time, unsigned char type, int32_t offset, unsigned char leap_seconds,
                     int64_t *wall, Error *err)
{
    unsigned char bytes[44 + 4 + 1 + 6 + 4 + 8] = "TZif";

    bytes[31] = leap_seconds;
    bytes[35] = 1; /* change */
    bytes[39] = 1; /* type */
    bytes[43] = 4; /* bytes of designation */
    for (int i = 0; i < 4; i++) {
        bytes[44 + i] = (unsigned char)(time >> (24 - 8 * i));
        bytes[49 + i] = (unsigned char)((uint32_t)offset >> (24 - 8 * i));
    }
    bytes[48] = type;
    memcpy(bytes + 55, "XXX", 4);
    return read_own(bytes, sizeof bytes - (leap_seconds == 0 ? 8 : 0), 1800000000, wall, err);
}

static void test_old_files(void)
{
    int64_t wall;
    Error err;

    promise = "a zone file of the first version is read, one that counts leap seconds is refused";
    CHECK(read_old(-1000, 0, 3600, 0, &wall, &err) && wall == 1800003600);
    CHECK(read_old(1000, 0, -3600, 0, &wall, &err) && wall == 1799996400);
    CHECK(!read_old(0, 1, 3600, 0, &wall, &err) && strstr(err.message, "no known type") != NULL);
    CHECK(!read_old(0, 0, 93600, 0, &wall, &err) && strstr(err.message, "out of range") != NULL);
    CHECK(!read_old(0, 0, -93600, 0, &wall, &err) && strstr(err.message, "out of range") != NULL);
    CHECK(!read_old(0, 0, 3600, 1, &wall, &err) && strstr(err.message, "leap seconds") != NULL);
    passed();
}

static void test_year_round(void)
{
    static const int64_t NEW_YEAR = INT64_C(1672531200);
    unsigned char bytes[512];
    size_t size = footer_file("XXX3EDT4,0/0,J365/23", bytes);
    int64_t wall;
    Error err;

    promise = "summer time all year round has no first hours without it (RFC 8536, 3.3.1)";
    for (int64_t at = NEW_YEAR - 14400; at <= NEW_YEAR + 14400; at += 3600)
        CHECK(read_own(bytes, size, at, &wall, &err) && wall == at - 14400);
    passed();
}

static void test_footers(void)
{
    static const char *const RULES[] = {
        "IST-1GMT0,M10.5.0,M3.5.0/1",     "<-02>2<-01>,M3.5.0/-1,M10.5.0/0",
        "EET-2EEST,M3.4.4/50,M10.4.4/50", "AAA-5:30BBB-6:15:10,J60/1:30,J300/4",
        "AAA5BBB,59/1,300/-20:00:30",     "AAA-14:00BBB,M9.5.0/167,M4.1.0/-167",
    };
    static const char *const BAD[] = {"A0",
                                      "AAA",
                                      "AAA25",
                                      "AAA0BBB",
                                      "AAA0:60",
                                      "<AAA0",
                                      "AAA0BBB,M1.1.1",
                                      "AAA0BBB,M13.1.1,J1",
                                      "AAA0BBB,M1.6.1,J1",
                                      "AAA0BBB,M1.0.1,J1",
                                      "AAA0BBB,M1.1.7,J1",
                                      "AAA0BBB,J0,J1",
                                      "AAA0BBB,366,J1",
                                      "AAA0BBB,J1/168,J9",
                                      "AAA0BBB,J1,J9x",
                                      "AAA0 "};
    static const int64_t FROM = INT64_C(1672531200); /* 2023-01-01, a year before a leap year */
    unsigned char bytes[512];
    Zones *own;
    const Zone *zone;
    Error err = {0};

    promise = "the rule that ends a zone file holds for ever, in all its forms";
    for (size_t i = 0; i < sizeof RULES / sizeof RULES[0]; i++) {
        size_t size = footer_file(RULES[i], bytes);

        use_libc_zone(RULES[i]);
        write_file("Test", bytes, size);
        own = zones_new(folder);
        zone = zones_get(own, "Test", &err);
        CHECK_FOR(zone != NULL, "%s: %s", RULES[i], err.message);
        for (int64_t at = FROM; at < FROM + 2 * INT64_C(366) * SECONDS_PER_DAY; at += 1800)
            CHECK_FOR(zone_wall_at(zone, at) == libc_wall(at), "%s at %s", RULES[i], text_of(at));
        for (int n = 0; n < 1000; n++) {
            int64_t at = FROM + (int64_t)random_below(INT32_MAX) * 4;

            CHECK_FOR(zone_wall_at(zone, at) == libc_wall(at), "%s at %s", RULES[i], text_of(at));
        }
        zones_free(own);
    }
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        int64_t wall;

        CHECK_FOR(!read_own(bytes, footer_file(BAD[i], bytes), 0, &wall, &err), "%s", BAD[i]);
        CHECK(strstr(err.message, "damaged") != NULL);
    }
    passed();
}

/* ---- Windows ---- */

static const struct {
    const char *zone;
    const char *text;
    const char *at;
    const char *end; /* NULL: closed then */
} WINDOWS[] = {
    {"UTC", "01:00-03:45", "2027-01-01T00:59:59Z", NULL},
    {"UTC", "01:00-03:45", "2027-01-01T01:00:00Z", "2027-01-01T03:45:00Z"},
    {"UTC", "01:00-03:45", "2027-01-01T03:44:59Z", "2027-01-01T03:45:00Z"},
    {"UTC", "01:00-03:45", "2027-01-01T03:45:00Z", NULL},
    {"UTC", "22:00-06:00", "2027-01-01T23:00:00Z", "2027-01-02T06:00:00Z"},
    {"UTC", "22:00-06:00", "2027-01-01T05:00:00Z", "2027-01-01T06:00:00Z"},
    {"UTC", "22:00-06:00", "2027-01-01T06:00:00Z", NULL},
    {"UTC", "22:00-24:00", "2027-01-01T23:59:59Z", "2027-01-02T00:00:00Z"},
    {"UTC", "22:00-00:00", "2027-01-01T23:59:59Z", "2027-01-02T00:00:00Z"},
    {"UTC", "22:00-24:00", "2027-01-02T00:00:00Z", NULL},
    {"UTC", "00:00-00:01", "1969-12-31T00:00:30Z", "1969-12-31T00:01:00Z"},
    /* the clock goes from 02:00 to 03:00 */
    {"Europe/Paris", "01:00-03:45", "2027-03-28T00:30:00Z", "2027-03-28T01:45:00Z"},
    {"Europe/Paris", "01:00-02:30", "2027-03-28T00:30:00Z", "2027-03-28T01:00:00Z"},
    {"Europe/Paris", "02:00-02:30", "2027-03-28T01:00:00Z", NULL},
    {"Europe/Paris", "22:00-06:00", "2027-03-27T22:00:00Z", "2027-03-28T04:00:00Z"},
    /* the clock goes from 03:00 to 02:00 */
    {"Europe/Paris", "01:00-03:45", "2027-10-31T00:30:00Z", "2027-10-31T02:45:00Z"},
    {"Europe/Paris", "01:00-02:30", "2027-10-31T00:15:00Z", "2027-10-31T00:30:00Z"},
    {"Europe/Paris", "01:00-02:30", "2027-10-31T00:45:00Z", NULL},
    {"Europe/Paris", "01:00-02:30", "2027-10-31T01:15:00Z", "2027-10-31T01:30:00Z"},
    {"Europe/Paris", "01:00-03:00", "2027-10-31T00:15:00Z", "2027-10-31T02:00:00Z"},
    {"Europe/Paris", "02:30-03:30", "2027-10-31T00:45:00Z", "2027-10-31T01:00:00Z"},
    {"Australia/Lord_Howe", "01:00-02:10", "2027-10-02T15:00:00Z", "2027-10-02T15:30:00Z"},
    {"America/Sao_Paulo", "23:00-00:30", "2018-11-04T02:30:00Z", "2018-11-04T03:00:00Z"},
    {"Pacific/Apia", "23:00-22:00", "2011-12-30T09:30:00Z", "2011-12-31T08:00:00Z"},
};

static void test_windows(void)
{
    static const char *const BAD[] = {"",
                                      "1:00-2:00",
                                      "01:00",
                                      "01:00-",
                                      "01:00-25:00",
                                      "01:60-02:00",
                                      "24:00-02:00",
                                      "01:00-24:01",
                                      "01:00 02:00",
                                      "01:00-02:00 ",
                                      "aa:00-02:00",
                                      "00:00-24:00",
                                      "03:00-03:00",
                                      "\xff\xff:00-02:00"};
    Window window;
    Error err = {0};

    promise = "windows are open by what the zone's clock shows, and tell when they close";
    for (size_t i = 0; i < sizeof WINDOWS / sizeof WINDOWS[0]; i++) {
        int64_t at = instant_of(WINDOWS[i].at);
        int64_t end = WINDOWS[i].end == NULL ? at : instant_of(WINDOWS[i].end);

        CHECK_FOR(window_parse(&window, WINDOWS[i].text, zone_of(WINDOWS[i].zone), &err), "%s",
                  err.message);
        CHECK_FOR(window_contains(&window, at * SECOND_US) == (WINDOWS[i].end != NULL),
                  "%s %s at %s", WINDOWS[i].zone, WINDOWS[i].text, WINDOWS[i].at);
        CHECK_FOR(window_end(&window, at * SECOND_US) == end * SECOND_US, "%s %s at %s: %s",
                  WINDOWS[i].zone, WINDOWS[i].text, WINDOWS[i].at,
                  text_of(window_end(&window, at * SECOND_US) / SECOND_US));
    }
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        CHECK_FOR(!window_parse(&window, BAD[i], zone_of("UTC"), &err), "%s", BAD[i]);
        CHECK(err.kind == ERROR_USAGE);
    }
    passed();
}

/* Against a scan: every minute of a few days around changes of the clock. */
static void test_window_scan(int divisor)
{
    promise = "windows agree with a scan by the C library's clock";
    for (int i = 0; i < 200 / divisor; i++) {
        const Zone *zone = zone_of(CHANGING[(size_t)i % (sizeof CHANGING / sizeof CHANGING[0])]);
        int from = random_below(1440);
        int until = (from + 1 + random_below(1439)) % 1440;
        int64_t start = random_instant(zone);
        int64_t closes = INT64_MIN; /* what window_end said last */
        char text[32];
        Window window;
        Error err;

        use_libc_zone(zone->name);
        start -= libc_wall(start) % 60;
        snprintf(text, sizeof text, "%02d:%02d-%02d:%02d", from / 60, from % 60, until / 60,
                 until % 60);
        CHECK(window_parse(&window, text, zone, &err));
        for (int64_t at = start; at < start + INT64_C(4) * SECONDS_PER_DAY; at += 60) {
            int minute = (int)(libc_wall(at) % SECONDS_PER_DAY / 60);
            bool open =
                from < until ? minute >= from && minute < until : minute >= from || minute < until;

            CHECK_FOR(window_contains(&window, at * SECOND_US) == open, "%s %s at %s", zone->name,
                      text, text_of(at));
            CHECK_FOR(closes == INT64_MIN || open == (at < closes), "%s %s at %s", zone->name, text,
                      text_of(at));
            closes = open ? window_end(&window, at * SECOND_US) / SECOND_US : INT64_MIN;
            CHECK_FOR(!open || closes > at, "%s %s at %s", zone->name, text, text_of(at));
        }
    }
    passed();
}

/* ---- Nonsense ---- */

static void test_nonsense(int divisor)
{
    static const char LETTERS[] = "0123456789,,--//~~**##LlWw@ \t  ?jJanfrisunMON\x80\xc3\xa9";
    static const char *const FORMS[] = {"* ",    "* ",   "*/%d ", "%d ",  "%d,%d ", "%d-%d ",
                                        "~/%d ", "%d~ ", "L-%d ", "%dL ", "%d#%d ", "fri-sun "};
    const Zone *zone = zone_of("America/New_York");
    int accepted = 0;

    promise = "of random text some is a schedule, and none does harm";
    for (int i = 0; i < 400000 / divisor; i++) {
        char text[64];
        int length = random_below(20);
        char *end = text;
        Schedule schedule;
        Window window;
        Error err;
        int64_t at = INT64_C(1800000000);

        if (i % 2 == 0) { /* five fields, mostly sound ones */
            for (int n = 0; n < 5; n++)
                end += sprintf(end, FORMS[random_below((int)(sizeof FORMS / sizeof FORMS[0]))],
                               random_below(14), random_below(14));
            length = random_below(6) == 0;
        }
        for (int n = 0; n < length; n++)
            *end++ = LETTERS[random_below((int)sizeof LETTERS - 1)];
        *end = '\0';
        (void)window_parse(&window, text, zone, &err);
        if (!schedule_from_cron(&schedule, text, zone, "job", &err)) {
            CHECK_FOR(err.kind == ERROR_USAGE && err.message[0] != '\0', "%s", text);
            continue;
        }
        accepted++;
        for (int n = 0; n < 5 && at != INT64_MAX; n++) {
            int64_t due = next_of(&schedule, at);

            CHECK_FOR(due > at, "%s", text);
            at = due;
        }
    }
    CHECK_FOR(accepted > 4000 / divisor, "%d", accepted);
    passed();
}

int main(int argc, char **argv)
{
#ifdef __SANITIZE_ADDRESS__
    int divisor = 10;
#else
    int divisor = 1;
#endif

    if (argc > 1)
        divisor = (int)strtol(argv[1], NULL, 10);
    if (argc > 2)
        random_state = strtoull(argv[2], NULL, 10);
    promise = "the test starts";
    CHECK(divisor > 0);
    zones = zones_new(NULL);
    CHECK(zones != NULL && mkdtemp(folder) != NULL && atexit(remove_folder) == 0);
    test_cases();
    test_macros();
    test_refused();
    test_rare();
    test_instants();
    test_picked();
    test_picked_ranges();
    test_every();
    test_finish();
    test_unknown();
    test_crowded();
    test_damaged(divisor);
    test_version();
    test_old_files();
    test_year_round();
    test_footers();
    test_offsets(divisor);
    test_windows();
    test_window_scan(divisor);
    test_scan(divisor);
    test_once(divisor);
    test_nonsense(divisor);
    zones_free(zones);
    return 0;
}
