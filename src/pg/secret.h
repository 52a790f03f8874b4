/*
 * Passwords in SQL, which must not be shown with an error.
 */
#ifndef LOCKKEEPER_PG_SECRET_H
#define LOCKKEEPER_PG_SECRET_H

#include "base/error.h"

/*
 * Make *err, an error of the server's, show no password of the statement `sql`: hidden are the
 * literal (or the rest of a connection string's word) after "password", also in a literal inside
 * a literal, and the password in a URI. Where the statement or a connection string in it was
 * malformed, all that follows "password" is hidden, and so is each piece of it that the messages
 * quote. err->statement is a copy of `sql`, possibly cut.
 */
void secret_hide(Error *err, const char *sql);

#endif
