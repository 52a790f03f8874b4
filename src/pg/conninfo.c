#include "pg/conninfo.h"

#include <ctype.h>
#include <stdio.h>
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

/* Does a place of the conninfo where `piece` stands overlap [start, end)? */
static bool overlaps(const char *piece, size_t length, const char *conninfo, const char *start,
                     const char *end)
{
    const char *stop = conninfo + strlen(conninfo);
    const char *found = conninfo;

    while ((found = memmem(found, (size_t)(stop - found), piece, length)) != NULL) {
        if (found < end && found + length > start)
            return true;
        found++;
    }
    return false;
}

/*
 * Could this piece of a conninfo that libpq could not read belong to a password? That is all from
 * the first ':' of the authority to the last '@' (the scheme may be misspelt, or missing), or to
 * the end of the authority where there is no '@'; and all behind the word "password" (what comes
 * after an unquoted blank in a password looks like a keyword to libpq).
 */
static bool is_secret(const char *piece, size_t length, const char *conninfo)
{
    const char *scheme = strstr(conninfo, "://");
    const char *authority = scheme == NULL ? conninfo : scheme + 3;
    const char *start = strchr(authority, ':');
    const char *at = strrchr(authority, '@');
    const char *word = strcasestr(conninfo, "password");

    if (length == 0)
        return false;
    if (at == NULL && scheme != NULL)
        at = authority + strcspn(authority, "/?");
    if (start != NULL && at != NULL && overlaps(piece, length, conninfo, start, at))
        return true;
    return word != NULL && overlaps(piece, length, conninfo, word, conninfo + strlen(conninfo));
}

/*
 * Copy libpq's reason why it could not read the conninfo. The piece of it that the reason shows
 * goes up to the reason's last quote: the piece may hold quotes itself.
 */
static void redact_reason(const char *reason, const char *conninfo, char *out, size_t size)
{
    static const char *const OPENINGS[] = {": \"", "after \"", "option \"", "found in \""};
    const char *piece = NULL;
    const char *close = strrchr(reason, '"');
    char shown[1024];

    for (size_t i = 0; i < sizeof OPENINGS / sizeof OPENINGS[0]; i++) {
        const char *opening = strstr(reason, OPENINGS[i]);

        if (opening != NULL && (piece == NULL || opening + strlen(OPENINGS[i]) < piece))
            piece = opening + strlen(OPENINGS[i]);
    }
    if (piece == NULL || close < piece || !is_secret(piece, (size_t)(close - piece), conninfo))
        snprintf(shown, sizeof shown, "%s", reason);
    else
        snprintf(shown, sizeof shown, "%.*s***%s", (int)(piece - reason), reason, close);
    shown[strcspn(shown, "\n")] = '\0';
    text_copy(out, size, shown);
}

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
        if (piece_length > 2 &&
            (options == NULL || is_secret_value(piece + 1, piece_length - 2, options))) {
            shown = "\"***\"";
            shown_length = 5;
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

static bool is_numeric_list(const char *text)
{
    return text[strspn(text, "0123456789,")] == '\0';
}

/*
 * Did libpq read part of a password as something else, which would be shown? Names what is wrong,
 * or NULL. In a URI that is so where the password has an "@", "/" or "?" that is not encoded.
 */
static const char *misread(const char *conninfo, const PQconninfoOption *options)
{
    const char *host = option_value(options, "host");
    const char *port = option_value(options, "port");
    const char *dbname = option_value(options, "dbname");

    if (is_uri(conninfo)) {
        if (host != NULL && strchr(host, '@') != NULL)
            return "its host has an \"@\"";
        if (port != NULL && !is_numeric_list(port))
            return "its port is not a number";
        if (dbname != NULL && strchr(dbname, '@') != NULL &&
            option_value(options, "user") == NULL)
            return "its database has an \"@\"";
    }
    for (; options->keyword != NULL; options++) {
        if (options->val != NULL && !is_secret_keyword(options->keyword) &&
            strcasestr(options->val, "password=") != NULL)
            return "it has \"password=\" in another option's value";
    }
    return NULL;
}

bool conninfo_check(const char *conninfo, Error *err)
{
    char *reason = NULL;
    PQconninfoOption *options = PQconninfoParse(conninfo, &reason);
    const char *problem = NULL;
    char shown[512];

    if (options == NULL) {
        redact_reason(reason == NULL ? "out of memory" : reason, conninfo, shown, sizeof shown);
        error_usage(err, "the conninfo is malformed: %s", shown);
    } else if ((problem = misread(conninfo, options)) != NULL) {
        error_usage(err, "the conninfo is malformed: %s", problem);
        if (is_uri(conninfo))
            error_hint(err, "Write special characters of a user or password percent-encoded: "
                            "\"@\" is %%40, \"/\" is %%2F, \":\" is %%3A, \"?\" is %%3F.");
    }
    PQfreemem(reason);
    PQconninfoFree(options);
    return options != NULL && problem == NULL;
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
    if (conninfo[strspn(conninfo, " \t\r\n\v\f")] != '\0') { /* blanks alone would be a name */
        keywords[n] = "dbname";
        values[n++] = conninfo;
    }
    keywords[n] = NULL;
    values[n] = NULL;
    return PQconnectdbParams(keywords, values, 1);
}
