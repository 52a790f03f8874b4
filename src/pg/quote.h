/*
 * Text that becomes SQL: identifiers, literals, and PostgreSQL's format().
 *
 * All append to `out` and return false with *err set where the text can't be quoted: it has a NUL
 * byte, or is not valid UTF-8, which is the encoding of every session. What was appended by then
 * stays there.
 */
#ifndef LOCKKEEPER_PG_QUOTE_H
#define LOCKKEEPER_PG_QUOTE_H

#include "base/error.h"
#include "base/pqbuffer.h"

#include <libpq-fe.h>

/*
 * As quote_ident() does: in double quotes where it is needed, which is also where the word is a
 * keyword of any server from 13 to 18 that is not unreserved. The text is UTF-8, and not empty.
 */
bool quote_ident(PQExpBuffer out, const char *text, size_t length, Error *err);

/* As quote_literal() does: 'it''s', E'back\\slash'. */
bool quote_literal(PQExpBuffer out, PGconn *conn, const char *text, size_t length, Error *err);

typedef struct {
    const char *text; /* NULL: SQL's null */
    size_t length;
} QuoteArgument;

/*
 * As format() does: %s as it is, %I an identifier, %L a literal (NULL for null), %% a percent
 * sign, with positions (%2$I), the flag `-` and widths in characters (%-10s, %*s, %*2$s). Too few
 * arguments, an unknown conversion and a null or empty text for %I (which the server would make
 * "", no identifier) are usage errors that name the place. Format and texts are UTF-8.
 * Source: PostgreSQL manual, "String Functions and Operators", format.
 */
bool quote_format(PQExpBuffer out, PGconn *conn, const char *format, size_t length,
                  const QuoteArgument *args, int count, Error *err);

#endif
