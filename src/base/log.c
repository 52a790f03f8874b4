#include "base/log.h"

#include "base/error.h"
#include "base/pqbuffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static LogLevel threshold = LOG_INFO;
static LogFormat chosen_format = LOG_LOGFMT;
static int descriptor = STDERR_FILENO;

/* What log_set_common was given: texts in one block with the fields; NULL: nothing. */
static LogField *common;
static void (*listener)(LogLevel level, const char *message, const LogField *fields);

static const char *const LEVEL_NAMES[] = {"debug", "info", "warning", "error"};

void log_configure(LogLevel level, LogFormat format)
{
    threshold = level;
    chosen_format = format;
}

void log_set_descriptor(int fd)
{
    descriptor = fd;
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

bool log_set_common(const LogField *fields)
{
    size_t count = 0;
    size_t size = 0;
    char *text;

    free(common);
    common = NULL;
    for (; fields != NULL && fields[count].name != NULL; count++)
        size += strlen(fields[count].name) + strlen(fields[count].value) + 2;
    if (count == 0)
        return true;
    common = malloc((count + 1) * sizeof *common + size);
    if (common == NULL)
        return false;
    text = (char *)(common + count + 1);
    for (size_t i = 0; i < count; i++) {
        common[i] = (LogField){text, stpcpy(text, fields[i].name) + 1, fields[i].bare};
        text = stpcpy((char *)common[i].value, fields[i].value) + 1;
    }
    common[count] = (LogField){NULL, NULL, false};
    return true;
}

void log_set_listener(void (*listen)(LogLevel level, const char *message, const LogField *fields))
{
    listener = listen;
}

static bool has_field(const LogField *fields, const char *name)
{
    for (; fields != NULL && fields->name != NULL; fields++) {
        if (fields->value != NULL && strcmp(fields->name, name) == 0)
            return true;
    }
    return false;
}

static void append_fields(PQExpBuffer out, const LogField *fields, const LogField *stronger)
{
    for (; fields != NULL && fields->name != NULL; fields++) {
        if (fields->value != NULL && !has_field(stronger, fields->name))
            append_field(out, fields->name, fields->value, fields->bare);
    }
}

void log_write(LogLevel level, const char *message, const LogField *fields)
{
    PQExpBufferData out;
    size_t written = 0;

    if (listener != NULL)
        listener(level, message, fields);
    if (!log_enabled(level))
        return;
    initPQExpBuffer(&out);
    append_time(&out);
    append_field(&out, "level", LEVEL_NAMES[level], false);
    append_field(&out, "msg", message, false);
    append_fields(&out, fields, NULL);
    append_fields(&out, common, fields);
    appendPQExpBufferStr(&out, chosen_format == LOG_JSON ? "}\n" : "\n");
    while (!PQExpBufferDataBroken(out) && written < out.len) {
        ssize_t n = write(descriptor, out.data + written, out.len - written);

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

    if (!log_enabled(level) && listener == NULL)
        return;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    log_write(level, message, NULL);
}
