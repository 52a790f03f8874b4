#include "base/schedule.h"

#include "base/calendar.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum {
    TEXT_MAX = 255,
    US_PER_SECOND = 1000000,
    PERIOD_MAX_DAYS = 3650,
    DAYS_A_WEEK = 7,
    NTH_SLOTS = 6, /* first to fifth, last */
    NTH_LAST = 6,
    EVERY_MONTHS_DAYS = 28,
    LAST_YEAR = 2300, /* ZONE_END, as some zones' clocks show it */
};

#define WALL_NEVER INT64_MAX

/* ---- What a job's name picks ---- */

/*
 * A number from a job's name. It must never change: the slots of every job that is spread by its
 * name would move. FNV-1a, then a mixing of the high bits into the low ones, which FNV leaves poor.
 */
static uint64_t name_number(const char *job, uint64_t purpose)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (const char *p = job; *p != '\0'; p++)
        hash = (hash ^ (unsigned char)*p) * UINT64_C(0x100000001b3);
    hash = (hash ^ purpose) * UINT64_C(0x100000001b3);
    for (int i = 0; i < 2; i++)
        hash = (hash ^ hash >> 32) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ hash >> 32;
}

/* ---- Reading an expression ---- */

/* In this order for ever: a field's number is part of what a job's name picks for it. */
typedef enum { SECOND, MINUTE, HOUR, DAY, MONTH, WEEKDAY, FIELD_COUNT } Field;

static const char *const MONTH_NAMES[] = {"jan", "feb", "mar", "apr", "may", "jun", "jul",
                                          "aug", "sep", "oct", "nov", "dec", NULL};
static const char *const WEEKDAY_NAMES[] = {"sun", "mon", "tue", "wed", "thu", "fri", "sat", NULL};

enum { SUNDAY_AS_LAST = 7 };

static const struct {
    const char *name;
    int min;
    int max;
    int highest;              /* that may be written; WEEKDAY: also 7 */
    const char *const *names; /* of the values from `min` on */
    const char *allowed;
} FIELDS[FIELD_COUNT] = {
    [SECOND] = {"second", 0, 59, 59, NULL, "0 to 59"},
    [MINUTE] = {"minute", 0, 59, 59, NULL, "0 to 59"},
    [HOUR] = {"hour", 0, 23, 23, NULL, "0 to 23"},
    [DAY] = {"day of month", 1, 31, 31, NULL, "1 to 31, L (the last) or L-1 to L-30"},
    [MONTH] = {"month", 1, 12, 12, MONTH_NAMES, "1 to 12 or jan to dec"},
    [WEEKDAY] = {"day of week", 0, 6, SUNDAY_AS_LAST, WEEKDAY_NAMES,
                 "0 to 7 or sun to sat, 5L (the month's last Friday) or 5#3 (its third)"},
};

static const struct {
    const char *name;
    const char *expression; /* NULL: @start */
} MACROS[] = {
    {"@hourly", "0 * * * *"},   {"@daily", "0 0 * * *"},   {"@midnight", "0 0 * * *"},
    {"@weekly", "0 0 * * 0"},   {"@monthly", "0 0 1 * *"}, {"@yearly", "0 0 1 1 *"},
    {"@annually", "0 0 1 1 *"}, {"@start", NULL},
};

typedef struct {
    const char *text; /* the whole expression */
    const char *job;
    ScheduleCron *cron;
    Error *err;
    Field field;
    int item;         /* how many items the field had before */
    const char *from; /* the item ... */
    const char *end;  /* ... and where it ends */
    const char *at;   /* what is to be read next */
} Reader;

/* An error at reader->from: `text` says what is wrong with the item, or what would be right. */
static bool refuse(const Reader *reader, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool refuse(const Reader *reader, const char *format, ...)
{
    char text[512];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    error_usage(reader->err, "schedule \"%s\": %s \"%.*s\" at column %d: %s", reader->text,
                FIELDS[reader->field].name, (int)(reader->end - reader->from), reader->from,
                (int)(reader->from - reader->text) + 1, text);
    return error_hint(reader->err,
                      "%s: %s; written as *, a, a-b or a~b, each also with /step, and several "
                      "with commas between",
                      FIELDS[reader->field].name, FIELDS[reader->field].allowed);
}

static bool refuse_value(const Reader *reader)
{
    return refuse(reader, "expected %s", FIELDS[reader->field].allowed);
}

/* Take the character if it is the next one of the item, in any case. */
static bool take(Reader *reader, char expected)
{
    if (reader->at == reader->end || toupper((unsigned char)*reader->at) != expected)
        return false;
    reader->at++;
    return true;
}

/* A decimal number of at most three digits. */
static bool read_number(Reader *reader, int *number)
{
    const char *start = reader->at;

    *number = 0;
    while (reader->at < reader->end && isdigit((unsigned char)*reader->at) &&
           reader->at - start < 3)
        *number = *number * 10 + (*reader->at++ - '0');
    return reader->at > start &&
           (reader->at == reader->end || !isdigit((unsigned char)*reader->at));
}

/* A value of the field, as a number or a name. */
static bool read_value(Reader *reader, int *value)
{
    const char *const *names = FIELDS[reader->field].names;

    for (size_t i = 0; names != NULL && names[i] != NULL; i++) {
        if (reader->end - reader->at >= 3 && strncasecmp(reader->at, names[i], 3) == 0) {
            reader->at += 3;
            *value = FIELDS[reader->field].min + (int)i;
            return true;
        }
    }
    return read_number(reader, value) && *value >= FIELDS[reader->field].min &&
           *value <= FIELDS[reader->field].highest;
}

/* The bitmap of a field; all but the second's and minute's are narrower. */
static void set_values(Reader *reader, int first, int last, int step)
{
    ScheduleCron *cron = reader->cron;
    uint64_t bits = 0;

    for (int value = first; value <= last; value += step)
        bits |= UINT64_C(1) << (reader->field == WEEKDAY ? value % DAYS_A_WEEK : value);
    switch (reader->field) {
    case SECOND:
        cron->seconds |= bits;
        break;
    case MINUTE:
        cron->minutes |= bits;
        break;
    case HOUR:
        cron->hours |= (uint32_t)bits;
        break;
    case DAY:
        cron->days |= (uint32_t)bits;
        break;
    case MONTH:
        cron->months |= (uint16_t)bits;
        break;
    case WEEKDAY:
        cron->weekdays |= (uint8_t)bits;
        break;
    case FIELD_COUNT:
        break;
    }
}

/* L or L-n, after the L. */
static bool read_last_day(Reader *reader)
{
    int before = 0;

    if (take(reader, '-') && (!read_number(reader, &before) || before > 30))
        return refuse_value(reader);
    if (reader->at != reader->end)
        return refuse_value(reader);
    reader->cron->last_days |= UINT32_C(1) << before;
    return true;
}

/* 5L or 5#3, after the 5. */
static bool read_nth_weekday(Reader *reader, int weekday)
{
    int nth = NTH_LAST;

    if (!take(reader, 'L')) {
        reader->at++;
        if (!read_number(reader, &nth) || nth < 1 || nth > 5)
            return refuse(reader, "expected 1 to 5 after the #");
    }
    if (reader->at != reader->end)
        return refuse_value(reader);
    reader->cron->nth_weekdays |= UINT64_C(1) << (NTH_SLOTS * (weekday % DAYS_A_WEEK) + nth - 1);
    return true;
}

/* The values of an item before its step, and how it was written. */
typedef struct {
    int first;
    int last;
    bool alone;  /* a single value */
    bool picked; /* with "~" */
} Range;

/* What a "~" without an upper bound goes up to. */
static int picked_last(const Reader *reader, int first)
{
    if (reader->field == DAY && first <= EVERY_MONTHS_DAYS)
        return EVERY_MONTHS_DAYS;
    return FIELDS[reader->field].max;
}

/* What follows the first value, up to a step. */
static bool read_range(Reader *reader, Range *range)
{
    range->picked = take(reader, '~');
    range->alone = !range->picked && !take(reader, '-');
    range->last = range->first;
    if (range->alone)
        return true;
    if (range->picked && (reader->at == reader->end || *reader->at == '/'))
        range->last = picked_last(reader, range->first);
    else if (!read_value(reader, &range->last))
        return refuse_value(reader);
    else if (reader->field == WEEKDAY && range->last == 0 && range->first > 0)
        range->last = SUNDAY_AS_LAST; /* fri-sun */
    if (range->last >= range->first)
        return true;
    if (range->picked)
        return refuse(reader, "the range falls");
    return refuse(reader, "the range falls; write it as two, as in %d-%d,%d-%d", range->first,
                  FIELDS[reader->field].max, FIELDS[reader->field].min, range->last);
}

/* The end of an item: nothing or a step. Then its values are set. */
static bool read_step(Reader *reader, Range *range)
{
    int values = FIELDS[reader->field].max - FIELDS[reader->field].min + 1;
    bool stepped = take(reader, '/');
    int step = 1;
    int span;

    if (stepped) {
        if (!read_number(reader, &step) || step < 1 || step > values)
            return refuse(reader, "expected a step of 1 to %d after the /", values);
        if (range->alone && range->first <= FIELDS[reader->field].max)
            range->last = FIELDS[reader->field].max;
    }
    if (reader->at != reader->end)
        return refuse_value(reader);
    span = range->last - range->first + 1;
    if (range->picked) {
        uint64_t number;

        if (reader->job == NULL)
            return refuse(reader, "~ is picked by a job's name, and there is none here");
        number = name_number(reader->job, (uint64_t)(reader->field << 8 | (reader->item & 0xff)));
        range->first += (int)(number % (uint64_t)(stepped && step < span ? step : span));
        if (!stepped)
            range->last = range->first;
    }
    set_values(reader, range->first, range->last, step);
    return true;
}

/* One of the parts of a field between commas. */
static bool read_item(Reader *reader)
{
    Range range = {.first = FIELDS[reader->field].min, .last = FIELDS[reader->field].max};

    if (take(reader, '*'))
        return read_step(reader, &range);
    if (reader->field == DAY && take(reader, 'L'))
        return read_last_day(reader);
    if (reader->at == reader->end || *reader->at != '~') {
        if (!read_value(reader, &range.first))
            return refuse_value(reader);
        if (reader->field == WEEKDAY && reader->at < reader->end &&
            (*reader->at == '#' || toupper((unsigned char)*reader->at) == 'L'))
            return read_nth_weekday(reader, range.first);
    }
    return read_range(reader, &range) && read_step(reader, &range);
}

static bool read_field(Reader *reader, const char *from, const char *end)
{
    for (reader->item = 0; from <= end; reader->item++, from = reader->end + 1) {
        const char *comma = memchr(from, ',', (size_t)(end - from));

        reader->from = reader->at = from;
        reader->end = comma == NULL ? end : comma;
        if (!read_item(reader))
            return false;
    }
    return true;
}

static bool read_macro(Schedule *schedule, const char *text, const Zone *zone, Error *err)
{
    const char *end = text + strcspn(text, " \t");
    char known[160] = "";
    size_t length = 0;
    const char *names[sizeof MACROS / sizeof MACROS[0]];

    for (size_t i = 0; i < sizeof MACROS / sizeof MACROS[0]; i++) {
        names[i] = MACROS[i].name;
        if (strlen(names[i]) == (size_t)(end - text) && end[strspn(end, " \t")] == '\0' &&
            strncasecmp(text, names[i], (size_t)(end - text)) == 0) {
            if (MACROS[i].expression != NULL)
                return schedule_from_cron(schedule, MACROS[i].expression, zone, NULL, err);
            *schedule = (Schedule){.kind = SCHEDULE_START};
            return true;
        }
        length += (size_t)snprintf(known + length, sizeof known - length, "%s%s",
                                   i == 0 ? "" : ", ", names[i]);
    }
    return error_usage(err, "schedule \"%s\": expected one of %s, and nothing after it", text,
                       known);
}

static bool begins_with_star(const char *field)
{
    return field[0] == '*';
}

static int64_t next_matching_day(const ScheduleCron *cron, int64_t day);

bool schedule_from_cron(Schedule *schedule, const char *text, const Zone *zone, const char *job,
                        Error *err)
{
    static const char BLANKS[] = " \t";
    const char *from[FIELD_COUNT];
    const char *end[FIELD_COUNT];
    Reader reader = {.text = text, .job = job, .cron = &schedule->cron, .err = err};
    size_t count = 0;
    size_t skipped; /* fields that are not written: the second */
    ScheduleCron *cron = &schedule->cron;
    int second_of_day;

    if (strlen(text) > TEXT_MAX)
        return error_usage(err, "a schedule of %zu bytes is too long; at most %d are allowed",
                           strlen(text), TEXT_MAX);
    if (!text_is_utf8(text, strlen(text)))
        return error_usage(err, "a schedule's text is not UTF-8");
    if (text[strspn(text, BLANKS)] == '@')
        return read_macro(schedule, text + strspn(text, BLANKS), zone, err);
    *schedule = (Schedule){.kind = SCHEDULE_CRON, .cron = {.zone = zone}};
    for (const char *p = text + strspn(text, BLANKS); *p != '\0'; p += strspn(p, BLANKS)) {
        size_t length = strcspn(p, BLANKS);

        if (count < FIELD_COUNT) {
            from[count] = p;
            end[count] = p + length;
        }
        count++;
        p += length;
    }
    if (count != FIELD_COUNT && count != FIELD_COUNT - 1)
        return error_usage(err,
                           "schedule \"%s\": it has %zu field%s; expected 5 (minute, hour, day of "
                           "month, month, day of week), or 6 with second first",
                           text, count, count == 1 ? "" : "s");
    skipped = FIELD_COUNT - count;
    if (skipped > 0)
        cron->seconds = 1;
    for (size_t i = 0; i < count; i++) {
        reader.field = (Field)(i + skipped);
        if (!read_field(&reader, from[i], end[i]))
            return false;
    }
    cron->real_time =
        begins_with_star(from[MINUTE - skipped]) || begins_with_star(from[HOUR - skipped]);
    cron->both_days =
        begins_with_star(from[DAY - skipped]) || begins_with_star(from[WEEKDAY - skipped]);
    if (next_matching_day(cron, calendar_split(ZONE_BEGIN, &second_of_day)) == WALL_NEVER)
        return error_usage(err,
                           "schedule \"%s\": it can never fire: no year has a day that its day "
                           "of month, month and day of week allow",
                           text);
    return true;
}

/* ---- Periods ---- */

static bool check_period(int64_t period_us, const char *what, Error *err)
{
    if (period_us < US_PER_SECOND || period_us % US_PER_SECOND != 0)
        return error_usage(err, "%s must be whole seconds, at least 1", what);
    if (period_us / US_PER_SECOND > (int64_t)PERIOD_MAX_DAYS * SECONDS_PER_DAY)
        return error_usage(err, "%s is longer than %d days", what, PERIOD_MAX_DAYS);
    return true;
}

bool schedule_from_every(Schedule *schedule, int64_t period_us, const char *job, Error *err)
{
    int64_t period_s = period_us / US_PER_SECOND;

    if (!check_period(period_us, "every", err))
        return false;
    *schedule = (Schedule){
        .kind = SCHEDULE_EVERY,
        .every = {.period_s = period_s,
                  .offset_s = (int64_t)(name_number(job, FIELD_COUNT << 8) % (uint64_t)period_s)},
    };
    return true;
}

bool schedule_from_finish(Schedule *schedule, int64_t delay_us, Error *err)
{
    if (!check_period(delay_us, "every, from = \"finish\",", err))
        return false;
    *schedule =
        (Schedule){.kind = SCHEDULE_FINISH, .every = {.period_s = delay_us / US_PER_SECOND}};
    return true;
}

/* ---- What is due next ---- */

/* The lowest set bit from bit `from` on; -1: none. */
static int next_bit(uint64_t bits, int from)
{
    bits = bits >> from << from;
    return bits == 0 ? -1 : __builtin_ctzll(bits);
}

/* The days of a month that match; bit n stands for the nth. */
static uint32_t matching_days(const ScheduleCron *cron, int year, int month)
{
    /* Every seventh day from the first on: a week's bits times this are those of five weeks. */
    static const uint64_t WEEKS = UINT64_C(1) << 0 | UINT64_C(1) << 7 | UINT64_C(1) << 14 |
                                  UINT64_C(1) << 21 | UINT64_C(1) << 28;
    int length = calendar_month_length(year, month);
    int first_weekday = calendar_weekday(calendar_day(year, month, 1));
    unsigned weekdays = cron->weekdays;
    unsigned week = (weekdays >> first_weekday | weekdays << (DAYS_A_WEEK - first_weekday)) & 0x7f;
    uint32_t by_week = (uint32_t)(week * WEEKS << 1);
    uint32_t by_month = cron->days;
    uint32_t all = (uint32_t)((UINT64_C(2) << length) - 2);

    for (uint32_t rest = cron->last_days; rest != 0; rest &= rest - 1) {
        int before = __builtin_ctz(rest);

        if (before < length)
            by_month |= UINT32_C(1) << (length - before);
    }
    for (uint64_t rest = cron->nth_weekdays; rest != 0; rest &= rest - 1) {
        int slot = __builtin_ctzll(rest);
        int nth = slot % NTH_SLOTS + 1;
        int first = 1 + (slot / NTH_SLOTS - first_weekday + DAYS_A_WEEK) % DAYS_A_WEEK;
        int day = nth == NTH_LAST ? first + (length - first) / DAYS_A_WEEK * DAYS_A_WEEK
                                  : first + (nth - 1) * DAYS_A_WEEK;

        if (day <= length)
            by_week |= UINT32_C(1) << day;
    }
    return all & (cron->both_days ? by_month & by_week : by_month | by_week);
}

/* The first matching day from `day` on; WALL_NEVER: none before the end of LAST_YEAR. */
static int64_t next_matching_day(const ScheduleCron *cron, int64_t day)
{
    CalendarDate date = calendar_date(day);

    while (date.year <= LAST_YEAR) {
        int month = next_bit(cron->months, date.month);
        int found;

        if (month == date.month) {
            found = next_bit(matching_days(cron, date.year, month), date.day);
            if (found >= 0)
                return calendar_day(date.year, month, found);
            month = next_bit(cron->months, date.month + 1);
        }
        date =
            month >= 0 ? (CalendarDate){date.year, month, 1} : (CalendarDate){date.year + 1, 1, 1};
    }
    return WALL_NEVER;
}

/* The first matching second of a day from `from` on; -1: none. */
static int next_matching_time(const ScheduleCron *cron, int from)
{
    int hour = from / SECONDS_PER_HOUR;
    int minute = from / SECONDS_PER_MINUTE % 60;
    int second = -1;

    if (next_bit(cron->hours, hour) != hour) {
        minute = -1;
    } else {
        if (next_bit(cron->minutes, minute) == minute)
            second = next_bit(cron->seconds, from % SECONDS_PER_MINUTE);
        if (second < 0)
            minute = next_bit(cron->minutes, minute + 1);
    }
    if (minute < 0) {
        hour = next_bit(cron->hours, hour + 1);
        if (hour < 0)
            return -1;
        minute = next_bit(cron->minutes, 0);
    }
    if (second < 0)
        second = next_bit(cron->seconds, 0);
    return hour * SECONDS_PER_HOUR + minute * SECONDS_PER_MINUTE + second;
}

/* The first matching wall time from `wall` on, or WALL_NEVER. */
static int64_t next_matching_wall(const ScheduleCron *cron, int64_t wall)
{
    int second_of_day;
    int64_t day = calendar_split(wall, &second_of_day);
    int64_t found = next_matching_day(cron, day);
    int time = next_matching_time(cron, found == day ? second_of_day : 0);

    if (time < 0) { /* today, but no more */
        found = next_matching_day(cron, day + 1);
        time = next_matching_time(cron, 0);
    }
    return found == WALL_NEVER ? WALL_NEVER : found * SECONDS_PER_DAY + time;
}

/* Each wall time once: what is due is the first that is later than all that were shown. */
static int64_t next_fixed(const ScheduleCron *cron, int64_t after)
{
    int64_t wall = next_matching_wall(cron, zone_latest_wall(cron->zone, after) + 1);

    return wall == WALL_NEVER ? ZONE_END : zone_first_instant(cron->zone, wall);
}

/* Whatever the clock shows: period by period, since none of them repeats a wall time. */
static int64_t next_real(const ScheduleCron *cron, int64_t after)
{
    const ZonePeriod *periods = cron->zone->periods;
    int64_t searched = WALL_NEVER; /* `found` is the first match from here on */
    int64_t found = WALL_NEVER;

    for (size_t i = zone_period_at(cron->zone, after + 1); i < cron->zone->count; i++) {
        int64_t from = periods[i].from > after + 1 ? periods[i].from : after + 1;
        int64_t wall = from + periods[i].offset;

        if (wall < searched || wall > found) {
            searched = wall;
            found = next_matching_wall(cron, wall);
        }
        if (found == WALL_NEVER)
            break;
        if (found - periods[i].offset < periods[i + 1].from)
            return found - periods[i].offset;
    }
    return ZONE_END;
}

/* Rounded down. */
static int64_t divide(int64_t dividend, int64_t divisor)
{
    return dividend / divisor - (dividend % divisor < 0);
}

int64_t schedule_next(const Schedule *schedule, int64_t after_us)
{
    int64_t after = divide(after_us, US_PER_SECOND);
    int64_t due = ZONE_END;

    if (after < ZONE_BEGIN)
        after = ZONE_BEGIN - 1;
    if (after >= ZONE_END - 1)
        return SCHEDULE_NEVER;
    switch (schedule->kind) {
    case SCHEDULE_CRON:
        due = schedule->cron.real_time ? next_real(&schedule->cron, after)
                                       : next_fixed(&schedule->cron, after);
        break;
    case SCHEDULE_EVERY: {
        int64_t period = schedule->every.period_s;
        int64_t offset = schedule->every.offset_s;

        due = offset + (divide(after - offset, period) + 1) * period;
        break;
    }
    case SCHEDULE_FINISH:
        due = after + (after_us % US_PER_SECOND != 0) + schedule->every.period_s;
        break;
    case SCHEDULE_START:
        break;
    }
    return due >= ZONE_END ? SCHEDULE_NEVER : due * US_PER_SECOND;
}
