/*
 * Writes the names of the locks that workers take into lockkeeper.lock_name, many at once and a
 * moment later: a help for those who look, for which no run waits.
 */
#ifndef LOCKKEEPER_RUNNER_NAMER_H
#define LOCKKEEPER_RUNNER_NAMER_H

#include "runner/link.h"

#include <jansson.h>

typedef struct Namer Namer;

/* Borrows the link. */
Namer *namer_new(Link *link, Error *err);

/* [[classid, objid, objsubid, name], …]; NULL is fine. What can't be kept is left out. */
void namer_add(Namer *namer, const json_t *names);

/* Write what is left, if the link is there, and free. NULL is fine. */
void namer_free(Namer *namer);

#endif
