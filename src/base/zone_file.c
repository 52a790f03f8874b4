#include "base/zone_file.h"

#include "base/calendar.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    FILE_MAX_SIZE = 1024 * 1024,
    FIRST_YEAR = 1900, /* of ZONE_BEGIN */
    LAST_YEAR = 2299,  /* before ZONE_END */
    RULE_CHANGES = 2 * (LAST_YEAR - FIRST_YEAR + 3),
    OFFSET_MAX = 26 * SECONDS_PER_HOUR,       /* RFC 8536, 3.2 */
    RULE_TIME_MAX_HOURS = 167,                /* RFC 8536, 3.3.1 */
    FOOTER_OFFSET_MAX_HOURS = 24,             /* POSIX, TZ */
    RULE_TIME_DEFAULT = 2 * SECONDS_PER_HOUR, /* POSIX, TZ */
};

/* ---- Reading a file ---- */

typedef struct {
    const char *name;
    const char *path;
    unsigned char *bytes;
    size_t size;
    Error *err;
} File;

static bool damaged(const File *file, const char *what)
{
    error_usage(file->err, "time zone \"%s\": the file %s is damaged: %s", file->name, file->path,
                what);
    return false;
}

static int64_t big_endian(const unsigned char *bytes, size_t size)
{
    uint64_t value = (bytes[0] & 0x80) != 0 ? UINT64_MAX : 0;

    for (size_t i = 0; i < size; i++)
        value = value << 8 | bytes[i];
    return (int64_t)value;
}

/* Reads the whole of an open file into file->bytes, which the caller frees. */
static bool file_read(File *file, FILE *stream)
{
    struct stat status;

    if (fstat(fileno(stream), &status) != 0)
        return error_usage(file->err, "time zone \"%s\": %s: %s", file->name, file->path,
                           strerror(errno));
    if (status.st_size > FILE_MAX_SIZE)
        return damaged(file, "it is too large");
    file->bytes = malloc((size_t)status.st_size + 1);
    if (file->bytes == NULL)
        return error_usage(file->err, "out of memory");
    file->size = fread(file->bytes, 1, (size_t)status.st_size, stream);
    if (ferror(stream))
        return error_usage(file->err, "time zone \"%s\": %s cannot be read", file->name,
                           file->path);
    file->bytes[file->size] = '\0';
    return true;
}

/* One of the data blocks: where its arrays are. */
typedef struct {
    char version;
    size_t time_size; /* 4 or 8 bytes an instant */
    size_t time_count;
    size_t type_count;
    const unsigned char *times;   /* time_count instants */
    const unsigned char *indices; /* time_count types */
    const unsigned char *types;   /* type_count of offset (4 bytes), is DST, designation */
    size_t end;                   /* the first byte after the block */
} Block;

enum { HEADER_SIZE = 44, TYPE_SIZE = 6 };

/* Find the block that begins at `start`. */
static bool block_find(const File *file, size_t start, size_t time_size, Block *block)
{
    const unsigned char *header = file->bytes + start;
    size_t counts[6]; /* UT marks, standard marks, leap seconds, times, types, designations */
    size_t needed;

    if (file->size - start < HEADER_SIZE || memcmp(header, "TZif", 4) != 0)
        return damaged(file, "it does not begin as time-zone data does");
    for (size_t i = 0; i < 6; i++) {
        int64_t count = big_endian(header + 20 + 4 * i, 4);

        if (count < 0 || count > FILE_MAX_SIZE)
            return damaged(file, "a count is out of range");
        counts[i] = (size_t)count;
    }
    if (counts[4] == 0)
        return damaged(file, "it has no local time types");
    needed = counts[0] + counts[1] + counts[2] * (time_size + 4) + counts[3] * (time_size + 1) +
             counts[4] * TYPE_SIZE + counts[5];
    if (file->size - start - HEADER_SIZE < needed)
        return damaged(file, "it is cut off");
    if (counts[2] != 0) {
        error_usage(file->err, "time zone \"%s\": the file %s counts leap seconds", file->name,
                    file->path);
        return false;
    }
    block->version = (char)header[4];
    block->time_size = time_size;
    block->time_count = counts[3];
    block->type_count = counts[4];
    block->times = header + HEADER_SIZE;
    block->indices = block->times + counts[3] * time_size;
    block->types = block->indices + counts[3];
    block->end = start + HEADER_SIZE + needed;
    return true;
}

/* ---- The footer: what holds after the last change of the table ---- */

typedef enum { RULE_MONTH, RULE_JULIAN, RULE_DAY_OF_YEAR } RuleKind;

/* When in a year the clock changes. */
typedef struct {
    RuleKind kind;
    int month; /* RULE_MONTH: the `week`th `day` (0: Sunday) of the month; 5: the last */
    int week;
    int day;  /* RULE_JULIAN: 1 to 365, never February 29th; RULE_DAY_OF_YEAR: 0 to 365 */
    int time; /* seconds after midnight, by the clock before the change */
} Rule;

typedef struct {
    bool has_dst;
    int standard; /* seconds east of UTC */
    int dst;
    Rule dst_begin;
    Rule dst_end;
} Footer;

/* A number of at most three digits; -1 if there is none, or it is greater than `max`. */
static int footer_number(const char **at, int max)
{
    int number = 0;
    int digits = 0;

    for (; isdigit((unsigned char)**at) && digits < 3; digits++, (*at)++)
        number = number * 10 + (**at - '0');
    return digits == 0 || number > max ? -1 : number;
}

static bool footer_char(const char **at, char expected)
{
    if (**at != expected)
        return false;
    (*at)++;
    return true;
}

/* [+-]hh[:mm[:ss]] to seconds. */
static bool footer_time(const char **at, int max_hours, int *seconds)
{
    bool negative = **at == '-';
    int hours;
    int minutes = 0;
    int rest = 0;

    if (negative || **at == '+')
        (*at)++;
    hours = footer_number(at, max_hours);
    if (footer_char(at, ':')) {
        minutes = footer_number(at, 59);
        if (footer_char(at, ':'))
            rest = footer_number(at, 59);
    }
    *seconds = hours * SECONDS_PER_HOUR + minutes * SECONDS_PER_MINUTE + rest;
    if (negative)
        *seconds = -*seconds;
    return hours >= 0 && minutes >= 0 && rest >= 0;
}

/* A zone's abbreviation: three letters or more, or anything in angle brackets. */
static bool footer_designation(const char **at)
{
    const char *start = *at;

    if (footer_char(at, '<')) {
        while (isalnum((unsigned char)**at) || **at == '+' || **at == '-')
            (*at)++;
        return footer_char(at, '>');
    }
    while (isalpha((unsigned char)**at))
        (*at)++;
    return *at - start >= 3;
}

static bool footer_rule(const char **at, Rule *rule)
{
    *rule = (Rule){.time = RULE_TIME_DEFAULT};
    if (!footer_char(at, ','))
        return false;
    if (footer_char(at, 'M')) {
        rule->kind = RULE_MONTH;
        rule->month = footer_number(at, 12);
        if (rule->month < 1 || !footer_char(at, '.'))
            return false;
        rule->week = footer_number(at, 5);
        if (rule->week < 1 || !footer_char(at, '.'))
            return false;
        rule->day = footer_number(at, 6);
    } else if (footer_char(at, 'J')) {
        rule->kind = RULE_JULIAN;
        rule->day = footer_number(at, 365);
        if (rule->day == 0)
            return false;
    } else {
        rule->kind = RULE_DAY_OF_YEAR;
        rule->day = footer_number(at, 365);
    }
    if (rule->day < 0)
        return false;
    return !footer_char(at, '/') || footer_time(at, RULE_TIME_MAX_HOURS, &rule->time);
}

/* The POSIX TZ string between two newlines that ends a file. */
static bool footer_parse(const char *text, Footer *footer)
{
    const char **at = &text;
    int west;

    if (!footer_designation(at) || !footer_time(at, FOOTER_OFFSET_MAX_HOURS, &west))
        return false;
    footer->standard = -west;
    footer->has_dst = **at != '\n';
    if (footer->has_dst) {
        footer->dst = footer->standard + SECONDS_PER_HOUR;
        if (!footer_designation(at))
            return false;
        if (**at != ',') {
            if (!footer_time(at, FOOTER_OFFSET_MAX_HOURS, &west))
                return false;
            footer->dst = -west;
        }
        if (!footer_rule(at, &footer->dst_begin) || !footer_rule(at, &footer->dst_end))
            return false;
    }
    return footer_char(at, '\n') && **at == '\0';
}

/* The wall time, by the clock before the change, at which the rule changes it in a year. */
static int64_t rule_wall(const Rule *rule, int year)
{
    int64_t day = calendar_day(year, 1, 1);

    switch (rule->kind) {
    case RULE_MONTH:
        day = calendar_day(year, rule->month, 1);
        day += (rule->day - calendar_weekday(day) + 7) % 7 + 7 * (rule->week - 1);
        if (rule->week == 5 &&
            day >= calendar_day(year, rule->month, 1) + calendar_month_length(year, rule->month))
            day -= 7;
        break;
    case RULE_JULIAN:
        day += rule->day - 1;
        if (rule->day > 59 && calendar_month_length(year, 2) == 29)
            day++;
        break;
    case RULE_DAY_OF_YEAR:
        day += rule->day;
        break;
    }
    return day * SECONDS_PER_DAY + rule->time;
}

/* ---- Building a zone ---- */

/* The changes of the table; *last is the last one's instant. */
static bool add_table(const File *file, const Block *block, Zone *zone, int64_t *last)
{
    for (size_t i = 0; i < block->type_count; i++) {
        int64_t offset = big_endian(block->types + i * TYPE_SIZE, 4);

        if (offset <= -OFFSET_MAX || offset >= OFFSET_MAX)
            return damaged(file, "an offset is out of range");
    }
    zone_add(zone, ZONE_BEGIN, (int)big_endian(block->types, 4));
    for (size_t i = 0; i < block->time_count; i++) {
        int64_t time = big_endian(block->times + i * block->time_size, block->time_size);
        size_t type = block->indices[i];

        if (i > 0 && time <= *last)
            return damaged(file, "its changes are not in order");
        if (type >= block->type_count)
            return damaged(file, "a change is of no known type");
        zone_add(zone, time, (int)big_endian(block->types + type * TYPE_SIZE, 4));
        *last = time;
    }
    return true;
}

/* The changes that the rules make after the table's last one. */
static bool add_rules(const File *file, const Footer *footer, Zone *zone, int64_t last)
{
    int64_t added = INT64_MIN;

    for (int year = FIRST_YEAR - 1; footer->has_dst && year <= LAST_YEAR + 1; year++) {
        int64_t begin = rule_wall(&footer->dst_begin, year) - footer->standard;
        int64_t end = rule_wall(&footer->dst_end, year) - footer->dst;
        bool begin_first = begin < end;
        int64_t times[2] = {begin_first ? begin : end, begin_first ? end : begin};

        for (int i = 0; i < 2; i++) {
            bool to_dst = (i == 0) == begin_first;

            if (times[i] < added)
                return damaged(file, "the changes of its rules overlap");
            added = times[i];
            if (times[i] > last)
                zone_add(zone, times[i], to_dst ? footer->dst : footer->standard);
        }
    }
    return true;
}

static Zone *file_build(const File *file)
{
    Zone *zone = NULL;
    Block block = {0};
    Footer footer = {0};
    int64_t last = INT64_MIN;

    if (!block_find(file, 0, 4, &block))
        return NULL;
    if (block.version != '\0') { /* the same again, with 64 bits and a footer */
        if (!block_find(file, block.end, 8, &block))
            return NULL;
        if (file->bytes[block.end] != '\n') {
            damaged(file, "its footer is missing");
            return NULL;
        }
        if (memcmp(file->bytes + block.end, "\n\n", 3) != 0 && /* it may be empty */
            !footer_parse((const char *)file->bytes + block.end + 1, &footer)) {
            damaged(file, "its footer is malformed");
            return NULL;
        }
    }
    zone = zone_new(file->name, block.time_count + RULE_CHANGES);
    if (zone == NULL) {
        error_usage(file->err, "out of memory");
        return NULL;
    }
    if (!add_table(file, &block, zone, &last) || !add_rules(file, &footer, zone, last)) {
        free(zone);
        return NULL;
    }
    zone_finish(zone);
    return zone;
}

Zone *zone_file_read(const char *path, const char *name, Error *err)
{
    File file = {.name = name, .path = path, .err = err};
    FILE *stream = fopen(path, "re");
    Zone *zone = NULL;

    if (stream == NULL) {
        error_usage(err, "time zone \"%s\": %s: %s", name, path, strerror(errno));
        return NULL;
    }
    if (file_read(&file, stream))
        zone = file_build(&file);
    free(file.bytes);
    fclose(stream);
    return zone;
}
