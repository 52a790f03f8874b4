#include "pg/conninfo.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_uri(const char *conninfo)
{
    return strncmp(conninfo, "postgres://", 11) == 0 || strncmp(conninfo, "postgresql://", 13) == 0;
}

static const char *option_value(const PQconninfoOption *options, const char *keyword)
{
    for (; options->keyword != NULL; options++) {
        if (strcmp(options->keyword, keyword) == 0)
            return options->val;
    }
    return NULL;
}

static bool is_secret_keyword(const char *keyword)
{
    return strcmp(keyword, "password") == 0 || strcmp(keyword, "sslpassword") == 0;
}

/*
 * Could this piece of the conninfo belong to a password? In a URI all from the first ':' of the
 * authority to the last '@'; in a keyword string all behind the word "password" (what comes after
 * an unquoted blank in a password looks like a keyword to libpq); in both a password option's value.
 */
static bool is_secret(const char *piece, size_t length, const char *conninfo)
{
    const char *start = NULL;
    const char *end = conninfo + strlen(conninfo);

    if (length == 0)
        return false;
    if (is_uri(conninfo)) {
        const char *authority = strstr(conninfo, "://") + 3;
        const char *at = strrchr(authority, '@');

        start = strchr(authority, ':');
        if (start != NULL && at != NULL && start < at && memmem(start, (size_t)(at - start) + 1,
                                                               piece, length) != NULL)
            return true;
    }
    start = strcasestr(conninfo, "password");
    return start != NULL && memmem(start, (size_t)(end - start), piece, length) != NULL;
}

/* The same where libpq could read the conninfo: the values are known, so nothing else is hidden. */
static bool is_secret_value(const char *piece, size_t length, const PQconninfoOption *options)
{
    for (; options->keyword != NULL; options++) {
        if (is_secret_keyword(options->keyword) && options->val != NULL && length > 0 &&
            memmem(options->val, strlen(options->val), piece, length) != NULL)
            return true;
    }
    return false;
}

void conninfo_redact(const char *message, const char *conninfo, char *out, size_t size)
{
    PQconninfoOption *options = PQconninfoParse(conninfo, NULL);
    size_t used = 0;
    size_t length = strlen(message);
    bool cut = false;

    while (length > 0 && isspace((unsigned char)message[length - 1]))
        length--;
    for (size_t i = 0; i < length && !cut;) {
        const char *piece = message + i;
        size_t piece_length = 1;
        const char *shown = piece;
        size_t shown_length;

        /* What is in double quotes came from the conninfo, or from the server. */
        if (*piece == '"') {
            const char *close = memchr(piece + 1, '"', length - i - 1);

            if (close != NULL)
                piece_length = (size_t)(close - piece) + 1;
        }
        shown_length = piece_length;
        if (piece_length > 2) {
            const char *inner = piece + 1;
            size_t inner_length = piece_length - 2;

            if (is_uri(conninfo) || options == NULL
                    ? is_secret(inner, inner_length, conninfo)
                    : is_secret_value(inner, inner_length, options)) {
                shown = "\"***\"";
                shown_length = 5;
            }
        }
        cut = used + shown_length >= size;
        if (!cut) {
            memcpy(out + used, shown, shown_length);
            used += shown_length;
        }
        i += piece_length;
    }
    out[used] = '\0';
    PQconninfoFree(options);
}

bool conninfo_check(const char *conninfo, Error *err)
{
    char *reason = NULL;
    PQconninfoOption *options = PQconninfoParse(conninfo, &reason);
    const char *host;
    bool ok = false;

    if (options == NULL) {
        char shown[512];

        conninfo_redact(reason == NULL ? "out of memory" : reason, conninfo, shown, sizeof shown);
        error_usage(err, "the conninfo is malformed: %s", shown);
        goto out;
    }
    host = option_value(options, "host");
    if (is_uri(conninfo) && host != NULL && strchr(host, '@') != NULL) {
        error_usage(err, "the conninfo is malformed: its host has an \"@\"");
        error_hint(err, "Write special characters of a user or password percent-encoded: \"@\" is "
                        "%%40, \"/\" is %%2F, \":\" is %%3A.");
        goto out;
    }
    ok = true;
out:
    PQconninfoFree(options);
    PQfreemem(reason);
    return ok;
}

bool conninfo_has_several_hosts(const char *conninfo)
{
    static const char *const VARIABLES[] = {"PGHOST", "PGHOSTADDR"};
    static const char *const KEYWORDS[] = {"host", "hostaddr"};
    PQconninfoOption *options = PQconninfoParse(conninfo, NULL);
    bool several = false;

    for (int i = 0; i < 2; i++) {
        const char *value = options == NULL ? NULL : option_value(options, KEYWORDS[i]);

        if (value == NULL)
            value = getenv(VARIABLES[i]);
        several = several || (value != NULL && strchr(value, ',') != NULL);
    }
    PQconninfoFree(options);
    return several;
}

PGconn *conninfo_connect(const char *conninfo, const char *application)
{
    /* Of several values for a keyword the last one counts, so the user's conninfo comes last; a
     * PG* variable counts only where a keyword has none, so those we set must yield by hand. */
    static const char *const DEFAULTS[][3] = {
        {"keepalives", "1", NULL},
        {"keepalives_idle", "4", NULL},
        {"keepalives_interval", "4", NULL},
        {"keepalives_count", "3", NULL},
        {"tcp_user_timeout", "14000", NULL},
        {"connect_timeout", "10", "PGCONNECT_TIMEOUT"},
        {"client_encoding", "UTF8", NULL},
        {"target_session_attrs", "read-write", "PGTARGETSESSIONATTRS"},
    };
    enum { COUNT = sizeof DEFAULTS / sizeof DEFAULTS[0] };
    const char *keywords[COUNT + 3];
    const char *values[COUNT + 3];
    int n = 0;

    for (int i = 0; i < COUNT; i++) {
        const char *variable = DEFAULTS[i][2];

        if (variable != NULL && getenv(variable) != NULL)
            continue;
        if (strcmp(DEFAULTS[i][0], "target_session_attrs") == 0 &&
            !conninfo_has_several_hosts(conninfo))
            continue;
        keywords[n] = DEFAULTS[i][0];
        values[n++] = DEFAULTS[i][1];
    }
    keywords[n] = "fallback_application_name";
    values[n++] = application;
    keywords[n] = "dbname";
    values[n++] = conninfo;
    keywords[n] = NULL;
    values[n] = NULL;
    return PQconnectdbParams(keywords, values, 1);
}
