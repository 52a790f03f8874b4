/*
 * Text that becomes SQL: identifiers, literals, and PostgreSQL's format().
 *
 * All append to `out` and return false with *err set where the text can't be quoted: it has a NUL
 * byte, or is not valid in the session's encoding.
 */
#ifndef LOCKKEEPER_PG_QUOTE_H
#define LOCKKEEPER_PG_QUOTE_H

#include "base/error.h"

#include <libpq-fe.h>
#include <pqexpbuffer.h>

/*
 * As quote_ident() does: in double quotes where it is needed, which is also where the word is a
 * keyword of any server from 13 to 18 that is not unreserved. The text is UTF-8.
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
 * sign, with positions (%2$I), the flag `-` and widths (%-10s, %*s, %*2$s). Too few arguments, an
 * unknown conversion and a null for %I are usage errors that name the place.
 * Source: PostgreSQL manual, "String Functions and Operators", format.
 */
bool quote_format(PQExpBuffer out, PGconn *conn, const char *format, size_t length,
                  const QuoteArgument *args, int count, Error *err);

#endif
