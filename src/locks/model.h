/*
 * Table locks. Source: PostgreSQL manual, "LOCK".
 */
#ifndef LOCKKEEPER_LOCKS_MODEL_H
#define LOCKKEEPER_LOCKS_MODEL_H

#include "locks/mode.h"
#include "pg/session.h"

#include <stdint.h>

typedef struct {
    const char *const *names; /* as PostgreSQL parses them: orders, public.orders, "Odd Name" */
    int count;
    LockMode mode;
    bool only;          /* without descendants */
    bool has_timeout;   /* else the session's lock_timeout holds */
    int64_t timeout_us; /* 0: NOWAIT; DURATION_ENDLESS: for ever */
} ModelRequest;

/*
 * Lock tables until the transaction, which must be open, ends: all of them or none, in the order
 * of their oids. Each name is resolved once and then written with its schema. Not acquired:
 * "not_acquired" (NOWAIT) or "lock_timeout", with the transaction still usable, as after every
 * other error. Two round trips, one more where it fails.
 */
bool model_lock(Session *session, const ModelRequest *request, Error *err);

#endif
