/*
 * PostgreSQL's eight table lock modes, weakest first, which locks of other kinds have too. Source:
 * manual, "Explicit Locking".
 */
#ifndef LOCKKEEPER_LOCKS_MODE_H
#define LOCKKEEPER_LOCKS_MODE_H

#include "base/error.h"

typedef enum {
    MODE_ACCESS_SHARE,
    MODE_ROW_SHARE,
    MODE_ROW_EXCLUSIVE,
    MODE_SHARE_UPDATE_EXCLUSIVE,
    MODE_SHARE,
    MODE_SHARE_ROW_EXCLUSIVE,
    MODE_EXCLUSIVE,
    MODE_ACCESS_EXCLUSIVE,
    MODE_COUNT,
} LockMode;

/* "ACCESS SHARE" and so on, as SQL writes them. */
const char *mode_name(LockMode mode);

/* The same in any case; an unknown one is a usage error that names the nearest. */
bool mode_parse(const char *name, LockMode *mode, Error *err);

/* The mode that pg_locks calls "AccessExclusiveLock"; false where it is none of the eight. */
bool mode_of_lock(const char *name, LockMode *mode);

/* Would one be waited for while another session holds the other? Source: ibid., table 13.2. */
bool mode_conflicts(LockMode a, LockMode b);

#endif
