#include "base/log.h"

#include "base/error.h"
#include "base/pqbuffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static LogLevel threshold = LOG_INFO;
static LogFormat chosen_format = LOG_LOGFMT;

static const char *const LEVEL_NAMES[] = {"debug", "info", "warning", "error"};

void log_configure(LogLevel level, LogFormat format)
{
    threshold = level;
    chosen_format = format;
}

bool log_enabled(LogLevel level)
{
    return level >= threshold;
}

bool log_level_parse(const char *name, LogLevel *level)
{
    for (int i = LOG_DEBUG; i <= LOG_ERROR; i++) {
        if (strcmp(name, LEVEL_NAMES[i]) == 0) {
            *level = (LogLevel)i;
            return true;
        }
    }
    if (strcmp(name, "warn") == 0) {
        *level = LOG_WARNING;
        return true;
    }
    return false;
}

bool log_format_parse(const char *name, LogFormat *format)
{
    if (strcmp(name, "logfmt") == 0)
        *format = LOG_LOGFMT;
    else if (strcmp(name, "json") == 0)
        *format = LOG_JSON;
    else
        return false;
    return true;
}

static void append_quoted(PQExpBuffer out, const char *text)
{
    appendPQExpBufferChar(out, '"');
    for (const unsigned char *p = (const unsigned char *)text; *p != '\0'; p++) {
        if (*p == '"' || *p == '\\')
            appendPQExpBuffer(out, "\\%c", *p);
        else if (*p == '\n')
            appendPQExpBufferStr(out, "\\n");
        else if (*p == '\t')
            appendPQExpBufferStr(out, "\\t");
        else if (*p < 0x20 || *p == 0x7f)
            appendPQExpBuffer(out, "\\u%04x", *p);
        else
            appendPQExpBufferChar(out, (char)*p);
    }
    appendPQExpBufferChar(out, '"');
}

/* logfmt needs quotes only where a reader could not tell the end of the value. */
static bool needs_quotes(const char *text)
{
    if (*text == '\0')
        return true;
    for (const unsigned char *p = (const unsigned char *)text; *p != '\0'; p++) {
        if (*p <= 0x20 || *p == 0x7f || *p == '"' || *p == '=' || *p == '\\')
            return true;
    }
    return false;
}

static void append_field(PQExpBuffer out, const char *name, const char *value, bool bare)
{
    if (chosen_format == LOG_JSON) {
        appendPQExpBufferChar(out, out->len == 0 ? '{' : ',');
        append_quoted(out, name);
        appendPQExpBufferChar(out, ':');
        if (bare)
            appendPQExpBufferStr(out, value);
        else
            append_quoted(out, value);
        return;
    }
    if (out->len > 0)
        appendPQExpBufferChar(out, ' ');
    appendPQExpBufferStr(out, name);
    appendPQExpBufferChar(out, '=');
    if (needs_quotes(value))
        append_quoted(out, value);
    else
        appendPQExpBufferStr(out, value);
}

static void append_time(PQExpBuffer out)
{
    struct timespec now;
    struct tm utc;
    char seconds[32];
    char text[48];

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(seconds, sizeof seconds, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text, sizeof text, "%s.%03dZ", seconds, (int)(now.tv_nsec / 1000000));
    append_field(out, "time", text, false);
}

void log_write(LogLevel level, const char *message, const LogField *fields)
{
    PQExpBufferData out;
    size_t written = 0;

    if (!log_enabled(level))
        return;
    initPQExpBuffer(&out);
    append_time(&out);
    append_field(&out, "level", LEVEL_NAMES[level], false);
    append_field(&out, "msg", message, false);
    for (; fields != NULL && fields->name != NULL; fields++) {
        if (fields->value != NULL)
            append_field(&out, fields->name, fields->value, fields->bare);
    }
    appendPQExpBufferStr(&out, chosen_format == LOG_JSON ? "}\n" : "\n");
    while (!PQExpBufferDataBroken(out) && written < out.len) {
        ssize_t n = write(STDERR_FILENO, out.data + written, out.len - written);

        if (n <= 0)
            break; /* nobody reads stderr: there is no better place to say so */
        written += (size_t)n;
    }
    termPQExpBuffer(&out);
}

void log_printf(LogLevel level, const char *format, ...)
{
    char message[2048];
    va_list args;

    if (!log_enabled(level))
        return;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    log_write(level, message, NULL);
}
