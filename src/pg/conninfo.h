/*
 * Connection options: what is added to the user's conninfo, and what must not be shown of it.
 *
 * A conninfo is a URI or a keyword string, as libpq takes them ("" means all from PG* variables,
 * the service file and defaults).
 */
#ifndef LOCKKEEPER_PG_CONNINFO_H
#define LOCKKEEPER_PG_CONNINFO_H

#include "base/error.h"

#include <libpq-fe.h>

/*
 * Check the words before anything is connected to. An error names the fault and its place, never
 * the text itself where that could be part of a password.
 */
bool conninfo_check(const char *conninfo, Error *err);

/* A host list in it, or in PGHOST and PGHOSTADDR? Then a primary is wanted by default. */
bool conninfo_has_several_hosts(const char *conninfo);

/*
 * Connect, blocking (run it in an errand). Adds, where the user said nothing else: the keepalives
 * of runner.md 19 (a silent network is noticed within 20 s), a connect_timeout of 10 s a host,
 * client_encoding UTF8, target_session_attrs=read-write for several hosts, and
 * fallback_application_name.
 * The result is never NULL unless memory ran out; ask PQstatus. The caller PQfinishes it.
 */
PGconn *conninfo_connect(const char *conninfo, const char *application);

/* Copy a message of libpq's without its trailing newline and without what `conninfo` keeps secret. */
void conninfo_redact(const char *message, const char *conninfo, char *out, size_t size);

#endif
