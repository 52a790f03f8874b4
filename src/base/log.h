/*
 * Events on stderr, one line each, as logfmt or JSON:
 *
 *   time=2027-03-28T01:00:00.123Z level=info msg="lock acquired" id=nightly waited=0.25
 *
 * A line is written with one write(2), so that lines of several processes do not mix.
 */
#ifndef LOCKKEEPER_BASE_LOG_H
#define LOCKKEEPER_BASE_LOG_H

#include <stdbool.h>

typedef enum { LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ERROR } LogLevel;
typedef enum { LOG_LOGFMT, LOG_JSON } LogFormat;

typedef struct {
    const char *name;
    const char *value; /* NULL: the field is left out */
    bool bare;         /* JSON: written without quotes (a number, true, false) */
} LogField;

/* Lines below `level` are dropped. Default: LOG_INFO, LOG_LOGFMT. */
void log_configure(LogLevel level, LogFormat format);
bool log_enabled(LogLevel level);

/* "debug", "info", "warning" (or "warn"), "error" to *level; false if it is none of these. */
bool log_level_parse(const char *name, LogLevel *level);
bool log_format_parse(const char *name, LogFormat *format);

/* Where the lines go from now on, in place of standard error. */
void log_set_descriptor(int fd);

/* Write one event; `fields` ends with a NULL name, or is NULL. Keeps no argument. */
void log_write(LogLevel level, const char *message, const LogField *fields);

/* The same without fields, from a printf format. */
void log_printf(LogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * Fields of every event from now on, after its own; an event's own field of the same name is
 * stronger. Copied; NULL or none: no more. False where memory ran out: then there are none.
 */
bool log_set_common(const LogField *fields);

/* Call `listen` with each event, whatever its level; it may not log. NULL: no more. */
void log_set_listener(void (*listen)(LogLevel level, const char *message, const LogField *fields));

#endif
