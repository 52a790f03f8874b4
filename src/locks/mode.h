/* PostgreSQL's eight table lock modes, weakest first. Source: manual, "Explicit Locking". */
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

#endif
