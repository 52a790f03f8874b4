#include "pg/quote.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The keywords that must be quoted: those of the categories column name, type or function name,
 * and reserved, of any of PostgreSQL 13 to 18. A word that only one of them knows is quoted for
 * all, which is always right; a word that is missing here would not be.
 * Sorted by bytes. Source: pg_get_keywords(), and src/include/parser/kwlist.h of each version.
 */
static const char *const KEYWORDS[] = {
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization",
    "between", "bigint", "binary", "bit", "boolean", "both", "case", "cast", "char", "character",
    "check", "coalesce", "collate", "collation", "column", "concurrently", "constraint", "create",
    "cross", "current_catalog", "current_date", "current_role", "current_schema", "current_time",
    "current_timestamp", "current_user", "dec", "decimal", "default", "deferrable", "desc",
    "distinct", "do", "else", "end", "except", "exists", "extract", "false", "fetch", "float",
    "for", "foreign", "freeze", "from", "full", "grant", "greatest", "group", "grouping", "having",
    "ilike", "in", "initially", "inner", "inout", "int", "integer", "intersect", "interval", "into",
    "is", "isnull", "join", "json", "json_array", "json_arrayagg", "json_exists", "json_object",
    "json_objectagg", "json_query", "json_scalar", "json_serialize", "json_table", "json_value",
    "lateral", "leading", "least", "left", "like", "limit", "localtime", "localtimestamp",
    "merge_action", "national", "natural", "nchar", "none", "normalize", "not", "notnull", "null",
    "nullif", "numeric", "offset", "on", "only", "or", "order", "out", "outer", "overlaps",
    "overlay", "placing", "position", "precision", "primary", "real", "references", "returning",
    "right", "row", "select", "session_user", "setof", "similar", "smallint", "some", "substring",
    "symmetric", "system_user", "table", "tablesample", "then", "time", "timestamp", "to",
    "trailing", "treat", "trim", "true", "union", "unique", "user", "using", "values", "varchar",
    "variadic", "verbose", "when", "where", "window", "with", "xmlattributes", "xmlconcat",
    "xmlelement", "xmlexists", "xmlforest", "xmlnamespaces", "xmlparse", "xmlpi", "xmlroot",
    "xmlserialize", "xmltable",
};

static int compare_keyword(const void *word, const void *entry)
{
    return strcmp(word, *(const char *const *)entry);
}

/* The text is made of [a-z0-9_], so that it has no NUL before its end. */
static bool is_keyword(const char *text, size_t length)
{
    enum { LONGEST = 31 };
    char word[LONGEST + 1];

    if (length > LONGEST)
        return false;
    memcpy(word, text, length);
    word[length] = '\0';
    return bsearch(word, KEYWORDS, sizeof KEYWORDS / sizeof KEYWORDS[0], sizeof KEYWORDS[0],
                   compare_keyword) != NULL;
}

/* Does the text stand for itself without quotes? */
static bool is_plain_ident(const char *text, size_t length)
{
    if (text[0] >= '0' && text[0] <= '9')
        return false;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];

        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'))
            return false;
    }
    return !is_keyword(text, length);
}

/* Append `text` with every `quote` in it doubled. */
static void append_doubled(PQExpBuffer out, const char *text, size_t length, char quote)
{
    const char *end = text + length;

    while (text < end) {
        const char *found = memchr(text, quote, (size_t)(end - text));
        const char *stop = found == NULL ? end : found + 1;

        appendBinaryPQExpBuffer(out, text, (size_t)(stop - text));
        if (found != NULL)
            appendPQExpBufferChar(out, quote);
        text = stop;
    }
}

static bool check_text(const char *what, const char *text, size_t length, Error *err)
{
    if (memchr(text, '\0', length) != NULL)
        return error_usage(err, "%s has a NUL byte", what);
    if (!text_is_utf8(text, length))
        return error_usage(err, "%s is not valid UTF-8", what);
    return true;
}

static bool check_memory(PQExpBuffer out, Error *err)
{
    return !PQExpBufferBroken(out) || error_usage(err, "out of memory");
}

bool quote_ident(PQExpBuffer out, const char *text, size_t length, Error *err)
{
    if (length == 0)
        return error_usage(err, "an identifier is empty");
    if (!check_text("an identifier", text, length, err))
        return false;
    if (is_plain_ident(text, length)) {
        appendBinaryPQExpBuffer(out, text, length);
    } else {
        appendPQExpBufferChar(out, '"');
        append_doubled(out, text, length, '"');
        appendPQExpBufferChar(out, '"');
    }
    return check_memory(out, err);
}

bool quote_literal(PQExpBuffer out, PGconn *conn, const char *text, size_t length, Error *err)
{
    char *quoted;

    if (!check_text("a literal", text, length, err))
        return false;
    quoted = PQescapeLiteral(conn, text, length);
    if (quoted == NULL) {
        error_usage(err, "%s", conn == NULL ? "no connection" : PQerrorMessage(conn));
        err->message[strcspn(err->message, "\n")] = '\0';
        return false;
    }
    /* libpq sets E'' apart from a word before it with a space, which quote_literal() does not. */
    appendPQExpBufferStr(out, quoted[0] == ' ' ? quoted + 1 : quoted);
    PQfreemem(quoted);
    return check_memory(out, err);
}

/* The server's limit for a text, which it checks by running out of memory. */
enum { WIDTH_MAX = 0x3fffffff };

typedef struct {
    PQExpBuffer out;
    PGconn *conn;
    const char *start;
    const char *spec; /* the percent sign of the conversion being read */
    const char *at;
    const char *end;
    const QuoteArgument *args;
    int count;
    int next; /* the argument that a conversion without a position takes, from 0 */
    Error *err;
} Formatter;

typedef struct {
    int position;       /* from 1; 0: the next argument */
    bool left;          /* the flag `-` */
    bool indirect;      /* `*` */
    int width_position; /* of `*`, from 1; 0: the next argument */
    int width;
} Conversion;

/* A usage error that names the conversion being read, and where in the format it stands. */
static bool refuse(const Formatter *f, const char *what)
{
    enum { SHOWN_MAX = 40 };
    char shown[SHOWN_MAX + 1];
    const char *stop = f->at < f->end ? f->at + 1 : f->end;
    size_t length;

    while (stop < f->end && ((unsigned char)*stop & 0xc0) == 0x80)
        stop++;
    length = (size_t)(stop - f->spec);
    if (length > SHOWN_MAX)
        length = SHOWN_MAX;
    memcpy(shown, f->spec, length);
    shown[length] = '\0';
    return error_usage(f->err, "%s at byte %zu of the format: %s", shown,
                       (size_t)(f->spec - f->start) + 1, what);
}

/* Step to the next byte, which must be there. */
static bool advance(Formatter *f)
{
    f->at++;
    return f->at < f->end || refuse(f, "the conversion is unfinished; write %% for a percent sign");
}

/* Read digits, if there are any: *number is 0 if not. */
static bool read_number(Formatter *f, bool *found, int *number)
{
    *found = false;
    *number = 0;
    while (*f->at >= '0' && *f->at <= '9') {
        int digit = *f->at - '0';

        if (*number > (INT_MAX - digit) / 10)
            return refuse(f, "a number is out of range");
        *number = *number * 10 + digit;
        *found = true;
        if (!advance(f))
            return false;
    }
    return true;
}

/* What follows `*`: nothing, or a position such as 2$. */
static bool read_width_position(Formatter *f, Conversion *conversion)
{
    bool found;

    if (!advance(f) || !read_number(f, &found, &conversion->width_position))
        return false;
    conversion->indirect = true;
    if (!found)
        return true;
    if (*f->at != '$')
        return refuse(f, "the position of a width must end in $");
    if (conversion->width_position == 0)
        return refuse(f, "arguments are numbered from 1");
    return advance(f);
}

/* Read what is between % and the letter: [position$][flags][width]. */
static bool read_conversion(Formatter *f, Conversion *conversion)
{
    bool found;
    int number;

    *conversion = (Conversion){0};
    if (!read_number(f, &found, &number))
        return false;
    if (found && *f->at != '$') {
        conversion->width = number;
        return true;
    }
    if (found) {
        if (number == 0)
            return refuse(f, "arguments are numbered from 1");
        conversion->position = number;
        if (!advance(f))
            return false;
    }
    while (*f->at == '-') {
        conversion->left = true;
        if (!advance(f))
            return false;
    }
    if (*f->at == '*')
        return read_width_position(f, conversion);
    return read_number(f, &found, &conversion->width);
}

/* The argument at `position`, or the next one; what comes after it is next then. */
static const QuoteArgument *take_argument(Formatter *f, int position)
{
    int index = position > 0 ? position - 1 : f->next;
    char what[64];

    if (index >= f->count) {
        snprintf(what, sizeof what, "there is no argument %d (there are %d)", index + 1, f->count);
        refuse(f, what);
        return NULL;
    }
    f->next = index + 1;
    return &f->args[index];
}

static const char *skip_blanks(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || (*p >= '\t' && *p <= '\r')))
        p++;
    return p;
}

/* A width that is an argument: null is 0, negative means the flag `-`. */
static bool read_width(Formatter *f, const QuoteArgument *arg, int *width)
{
    const char *p = arg->text;
    const char *end = p + arg->length;
    bool negative;
    const char *digits;
    int64_t value = 0;

    *width = 0;
    if (p == NULL)
        return true;
    p = skip_blanks(p, end);
    negative = p < end && *p == '-';
    if (p < end && (*p == '-' || *p == '+'))
        p++;
    digits = p;
    for (; p < end && *p >= '0' && *p <= '9'; p++) {
        value = value * 10 + (*p - '0');
        if (value > INT_MAX)
            return refuse(f, "the width is out of range");
    }
    if (p == digits || skip_blanks(p, end) != end)
        return refuse(f, "the width is not an integer");
    *width = (int)(negative ? -value : value);
    return true;
}

static void append_spaces(PQExpBuffer out, size_t count)
{
    if (enlargePQExpBuffer(out, count + 1)) {
        memset(out->data + out->len, ' ', count);
        out->len += count;
        out->data[out->len] = '\0';
    }
}

/* Fill what was appended since `start` up to |width| characters. */
static void pad(PQExpBuffer out, size_t start, int width, bool left)
{
    size_t length = out->len - start;
    size_t wanted = (size_t)(width < 0 ? -width : width);
    size_t characters = 0;

    for (size_t i = start; i < out->len; i++)
        characters += ((unsigned char)out->data[i] & 0xc0) != 0x80;
    if (characters >= wanted)
        return;
    append_spaces(out, wanted - characters);
    if (left || width < 0 || PQExpBufferBroken(out))
        return;
    memmove(out->data + start + (wanted - characters), out->data + start, length);
    memset(out->data + start, ' ', wanted - characters);
}

/* Append the argument as `letter` says: s, I or L. */
static bool append_argument(Formatter *f, char letter, const QuoteArgument *arg)
{
    char what[64];
    bool ok;

    if (arg->text == NULL) {
        if (letter == 'I')
            return refuse(f, "the argument is null, which is no identifier");
        if (letter == 'L')
            appendPQExpBufferStr(f->out, "NULL");
        return true;
    }
    if (letter == 'I') {
        ok = quote_ident(f->out, arg->text, arg->length, f->err);
    } else if (letter == 'L') {
        ok = quote_literal(f->out, f->conn, arg->text, arg->length, f->err);
    } else {
        ok = check_text("a text", arg->text, arg->length, f->err);
        if (ok)
            appendBinaryPQExpBuffer(f->out, arg->text, arg->length);
    }
    if (!ok) {
        text_copy(what, sizeof what, f->err->message);
        refuse(f, what);
    }
    return ok;
}

/* Do the conversion that begins at f->at, and go past it. */
static bool convert(Formatter *f)
{
    Conversion conversion;
    const QuoteArgument *arg;
    char letter;
    size_t start = f->out->len;

    f->spec = f->at;
    if (!advance(f))
        return false;
    if (*f->at == '%') {
        appendPQExpBufferChar(f->out, '%');
        f->at++;
        return true;
    }
    if (!read_conversion(f, &conversion))
        return false;
    letter = *f->at;
    if (letter != 's' && letter != 'I' && letter != 'L')
        return refuse(f, "there is no such conversion; there are %s, %I, %L and %%");
    if (conversion.indirect) {
        arg = take_argument(f, conversion.width_position);
        if (arg == NULL || !read_width(f, arg, &conversion.width))
            return false;
    }
    if (conversion.width > WIDTH_MAX || conversion.width < -WIDTH_MAX)
        return refuse(f, "the width is out of range");
    arg = take_argument(f, conversion.position);
    if (arg == NULL || !append_argument(f, letter, arg))
        return false;
    pad(f->out, start, conversion.width, conversion.left);
    f->at++;
    return true;
}

bool quote_format(PQExpBuffer out, PGconn *conn, const char *format, size_t length,
                  const QuoteArgument *args, int count, Error *err)
{
    Formatter f = {.out = out,
                   .conn = conn,
                   .start = format,
                   .at = format,
                   .end = format + length,
                   .args = args,
                   .count = count,
                   .err = err};

    if (!check_text("the format", format, length, err))
        return false;
    while (f.at < f.end) {
        const char *percent = memchr(f.at, '%', (size_t)(f.end - f.at));
        const char *stop = percent == NULL ? f.end : percent;

        appendBinaryPQExpBuffer(out, f.at, (size_t)(stop - f.at));
        f.at = stop;
        if (percent != NULL && !convert(&f))
            return false;
    }
    return check_memory(out, err);
}
