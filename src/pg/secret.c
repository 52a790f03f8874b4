#include "pg/secret.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

static const char WORD[] = "password";

/* Put "***" in place of text[from..to), for which it may be too short. */
static void hide(char *from, char *to)
{
    size_t length = (size_t)(to - from);

    if (length <= 3) {
        memset(from, '*', length);
    } else {
        memcpy(from, "***", 3);
        memmove(from + 3, to, strlen(to) + 1);
    }
}

/*
 * The end of the literal that begins at p with a quote. A literal inside a literal begins with two
 * quotes, or four; what looks so but is an empty one hides more than it must.
 */
static char *literal_end(char *p, bool escapes, size_t *quotes)
{
    *quotes = strspn(p, "'");
    for (p += *quotes; *p != '\0'; p++) {
        size_t run = strspn(p, "'");

        if (escapes && *p == '\\' && p[1] != '\0')
            p++;
        else if (run / *quotes % 2 == 1)
            return p;
        else if (run > 0)
            p += run - 1;
    }
    return p;
}

/* The end of the $tag$…$tag$ that begins at p, or p where none does; *open: the tag's length. */
static char *dollar_end(char *p, size_t *open)
{
    size_t length = strcspn(p + 1, "$ \t\n'\"");
    char *q;

    if (*p != '$' || p[1 + length] != '$')
        return p;
    *open = length + 2;
    for (q = p + *open; *q != '\0'; q++) {
        if (strncmp(q, p, *open) == 0)
            return q;
    }
    return q;
}

/* Hide what stands after the word PASSWORD, which ends at p. */
static void hide_value(char *p)
{
    size_t open = 0;
    bool is_word;
    bool escapes;
    char *end;

    p += strspn(p, " \t\r\n");
    is_word = *p == '='; /* as in a connection string */
    if (is_word)
        p += 1 + strspn(p + 1, " \t\r\n");
    escapes = (*p == 'e' || *p == 'E') && p[1] == '\'';
    if (escapes)
        p++;
    else if ((*p == 'u' || *p == 'U') && p[1] == '&' && p[2] == '\'')
        p += 2;
    if (*p == '\'') {
        end = literal_end(p, escapes, &open);
        hide(p + open, end);
    } else if (*p == '$') {
        end = dollar_end(p, &open);
        if (end > p)
            hide(p + open, end);
    } else if (is_word) {
        hide(p, p + strcspn(p, " \t\r\n'\""));
    }
}

/* Hide the password in each scheme://user:password@host. */
static void hide_in_uris(char *text)
{
    char *p = text;

    while ((p = strstr(p, "://")) != NULL) {
        size_t length = strcspn(p + 3, " \t\r\n'\"");
        char *colon;
        char *at;

        p += 3;
        colon = memchr(p, ':', length);
        at = memrchr(p, '@', length);
        if (colon != NULL && at != NULL && colon < at)
            hide(colon + 1, at);
    }
}

/* Hide message[from..to) where it stands somewhere in `secret`. */
static bool hide_piece(char *from, char *to, const char *secret)
{
    if (from >= to || memmem(secret, strlen(secret), from, (size_t)(to - from)) == NULL)
        return false;
    hide(from, to);
    return true;
}

/* Hide what is in double quotes, and may hold some itself, where it stands in `secret`. */
static void hide_quoted(char *message, const char *secret)
{
    char *open = strchr(message, '"');
    char *close = strrchr(message, '"');

    if (open == close || hide_piece(open + 1, close, secret))
        return;
    for (; open != NULL; open = strchr(close + 1, '"')) {
        close = strchr(open + 1, '"');
        if (close == NULL)
            return;
        hide_piece(open + 1, close, secret);
        close = strchr(open + 1, '"');
    }
}

/* Could the message quote what could not be read: SQL, or a connection string? */
static bool is_malformed(const char *sqlstate)
{
    return strcmp(sqlstate, "42601") == 0 || strncmp(sqlstate, "08", 2) == 0 ||
           strncmp(sqlstate, "HV", 2) == 0;
}

void secret_hide(Error *err, const char *sql)
{
    const char *word = strcasestr(sql, WORD);
    const char *uri = strstr(sql, "://");
    bool malformed = is_malformed(err->sqlstate);
    char *p = err->statement;

    if (malformed && (word != NULL || uri != NULL)) {
        const char *secret = word == NULL || (uri != NULL && uri < word) ? uri : word;

        hide_quoted(err->message, secret);
        hide_quoted(err->detail, secret);
        hide_quoted(err->hint, secret);
    }
    hide_in_uris(err->statement);
    while ((p = strcasestr(p, WORD)) != NULL) {
        p += strlen(WORD);
        if (malformed) {
            hide(p + (*p == ' '), p + strlen(p));
            return;
        }
        hide_value(p);
    }
}
