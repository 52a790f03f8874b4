/*
 * Advisory keys: how a name becomes one, and how pg_locks shows it.
 *
 * A key is one bigint or a pair of int4s; PostgreSQL keeps the two kinds apart.
 */
#ifndef LOCKKEEPER_LOCKS_KEY_H
#define LOCKKEEPER_LOCKS_KEY_H

#include "base/error.h"
#include "pg/session.h"

#include <stdint.h>

/* Which tool's way of making a key from a name (peers.md has their rules). */
typedef enum {
    SCHEME_PGLOCK,             /* django-pglock */
    SCHEME_PGLOCKS,            /* django-pglocks */
    SCHEME_POSTGRESQL_LOCK,    /* postgresql-lock */
    SCHEME_WITH_ADVISORY_LOCK, /* with_advisory_lock (Ruby); the second key is its prefix */
    SCHEME_HASHTEXT,           /* the server's hashtext(name): has to be asked */
} KeyScheme;

typedef struct {
    bool pair;
    int64_t key;           /* of a bigint key */
    int32_t first, second; /* of a pair */
} LockKey;

/* As in pg_locks: unsigned halves, and 1 for a bigint or 2 for a pair. */
typedef struct {
    uint32_t classid, objid;
    int objsubid;
} LockKeyParts;

enum { KEY_TEXT_SIZE = 32 };

/* "pglock" and so on; an unknown one is a usage error that names the nearest. */
bool key_scheme_parse(const char *name, KeyScheme *scheme, Error *err);

/*
 * The key of a name. `prefix` is with_advisory_lock's. `session` is asked for SCHEME_HASHTEXT only
 * (one round trip) and may be NULL otherwise.
 */
bool key_from_name(KeyScheme scheme, const char *name, size_t length, int32_t prefix,
                   Session *session, LockKey *key, Error *err);

LockKeyParts key_parts(const LockKey *key);

/* "1054880662928880172" or "907060870,0". */
void key_text(const LockKey *key, char text[KEY_TEXT_SIZE]);

bool key_equal(const LockKey *a, const LockKey *b);

/*
 * The order in which several locks are taken, everywhere: bigint keys by their signed value, then
 * pairs by their first and second. Negative, 0 or positive, as for qsort.
 */
int key_compare(const LockKey *a, const LockKey *b);

#endif
