#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const KIND_NAMES[] = {
    [ERROR_NONE] = "none",
    [ERROR_USAGE] = "usage",
    [ERROR_LOCK_TIMEOUT] = "lock_timeout",
    [ERROR_NOT_ACQUIRED] = "not_acquired",
    [ERROR_DEADLOCK] = "deadlock",
    [ERROR_LOCK_LOST] = "lock_lost",
    [ERROR_CONNECTION] = "connection",
    [ERROR_SQL] = "sql",
    [ERROR_CANCELLED] = "cancelled",
    [ERROR_TIMED_OUT] = "timed_out",
};

static const char ELLIPSIS[] = "\xe2\x80\xa6";

const char *error_kind_name(ErrorKind kind)
{
    return KIND_NAMES[kind];
}

bool error_is_busy(const Error *err)
{
    return err->kind == ERROR_LOCK_TIMEOUT || err->kind == ERROR_NOT_ACQUIRED;
}

void error_clear(Error *err)
{
    err->kind = ERROR_NONE;
    err->sqlstate[0] = '\0';
    err->message[0] = '\0';
    err->detail[0] = '\0';
    err->hint[0] = '\0';
    err->statement[0] = '\0';
}

/* Cut buffer[0..size) after the last whole character that leaves room for the ellipsis. */
static void cut_with_ellipsis(char *buffer, size_t size)
{
    size_t at = size - sizeof ELLIPSIS;

    while (at > 0 && ((unsigned char)buffer[at] & 0xc0) == 0x80)
        at--;
    memcpy(buffer + at, ELLIPSIS, sizeof ELLIPSIS);
}

static void format_text(char *buffer, size_t size, const char *format, va_list args)
{
    int needed = vsnprintf(buffer, size, format, args);

    if (needed >= 0 && (size_t)needed >= size)
        cut_with_ellipsis(buffer, size);
}

void text_copy(char *buffer, size_t size, const char *text)
{
    size_t length = strlen(text);

    if (length < size) {
        memcpy(buffer, text, length + 1);
    } else {
        memcpy(buffer, text, size);
        cut_with_ellipsis(buffer, size);
    }
}

const char *text_integer(char buffer[TEXT_INTEGER_SIZE], int64_t number)
{
    char digits[TEXT_INTEGER_SIZE];
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    size_t count = 0;
    char *end = buffer;

    do {
        digits[count++] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (number < 0)
        *end++ = '-';
    while (count > 0)
        *end++ = digits[--count];
    *end = '\0';
    return buffer;
}

bool error_set(Error *err, ErrorKind kind, const char *format, ...)
{
    va_list args;

    error_clear(err);
    err->kind = kind;
    va_start(args, format);
    format_text(err->message, sizeof err->message, format, args);
    va_end(args);
    return false;
}

bool error_usage(Error *err, const char *format, ...)
{
    va_list args;

    error_clear(err);
    err->kind = ERROR_USAGE;
    va_start(args, format);
    format_text(err->message, sizeof err->message, format, args);
    va_end(args);
    return false;
}

bool error_hint(Error *err, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    format_text(err->hint, sizeof err->hint, format, args);
    va_end(args);
    return false;
}

enum { NEAREST_LENGTH = 40 };

static size_t smallest(size_t a, size_t b, size_t c)
{
    size_t least = a < b ? a : b;

    return least < c ? least : c;
}

/* Levenshtein's distance; both words are at most NEAREST_LENGTH long. */
static size_t edit_distance(const char *a, size_t a_length, const char *b, size_t b_length)
{
    size_t row[NEAREST_LENGTH + 1];

    for (size_t j = 0; j <= b_length; j++)
        row[j] = j;
    for (size_t i = 1; i <= a_length; i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= b_length; j++) {
            size_t above = row[j];

            row[j] = smallest(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[b_length];
}

const char *text_nearest(const char *word, const char *const *known)
{
    const char *nearest = NULL;
    size_t length = strlen(word);
    size_t limit = length / 3 > 2 ? length / 3 : 2;
    size_t best = limit + 1;

    if (length > NEAREST_LENGTH)
        return NULL;
    for (; *known != NULL; known++) {
        size_t known_length = strlen(*known);
        size_t distance;

        if (known_length > NEAREST_LENGTH)
            continue;
        distance = edit_distance(word, length, *known, known_length);
        if (distance < best && distance < known_length) {
            best = distance;
            nearest = *known;
        }
    }
    return nearest;
}

bool text_is_utf8(const char *text, size_t length)
{
    const unsigned char *p = (const unsigned char *)text;
    const unsigned char *end = p + length;

    while (p < end) {
        uint32_t code;
        int more;

        if (*p == 0)
            return false;
        if (*p < 0x80) {
            p++;
            continue;
        }
        if ((*p & 0xe0) == 0xc0) {
            code = *p & 0x1fU;
            more = 1;
        } else if ((*p & 0xf0) == 0xe0) {
            code = *p & 0x0fU;
            more = 2;
        } else if ((*p & 0xf8) == 0xf0) {
            code = *p & 0x07U;
            more = 3;
        } else {
            return false;
        }
        if (end - p <= more)
            return false;
        for (int i = 1; i <= more; i++) {
            if ((p[i] & 0xc0) != 0x80)
                return false;
            code = code << 6 | (p[i] & 0x3fU);
        }
        if ((more == 1 && code < 0x80) || (more == 2 && code < 0x800) ||
            (more == 3 && (code < 0x10000 || code > 0x10ffff)) || (code >= 0xd800 && code < 0xe000))
            return false;
        p += more + 1;
    }
    return true;
}
