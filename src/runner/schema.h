/*
 * The schema `lockkeeper` of the state tables: made and migrated, one numbered migration a change.
 *
 * No statement of this floor runs as it stands in the session's settings: each is in a transaction
 * of its own with search_path "pg_catalog, pg_temp" (see transact.h), so that no object of a user's
 * is ever taken for one of the server's. Tables are always named with their schema.
 */
#ifndef LOCKKEEPER_RUNNER_SCHEMA_H
#define LOCKKEEPER_RUNNER_SCHEMA_H

#include "base/pqbuffer.h"
#include "pg/session.h"

/* The version that this program makes and understands. */
int schema_newest(void);

/* What is in this database; 0: no schema. Two round trips. */
bool schema_version(Session *session, int *version, Error *err);

/*
 * Make what is missing. Hosts that start together wait for each other, for 30 s at most.
 *   before, after  out: the versions; both the same where there was nothing to do
 * Fails where the schema is newer than this program, and where the role lacks a right, naming the
 * GRANT that gives it. All of it or nothing.
 */
bool schema_migrate(Session *session, int *before, int *after, Error *err);

/*
 * May this role work with the schema as it is? Fails, with a hint of what to do, where there is no
 * schema (SQLSTATE 3F000), where it is older or newer than this program, and where the role may not
 * read and write its tables.
 */
bool schema_check(Session *session, Error *err);

/* Append the SQL that makes and migrates it, for psql; it does no harm where it was run before. */
void schema_sql(PQExpBuffer text);

#endif
