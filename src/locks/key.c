#include "locks/key.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static const char *const SCHEME_NAMES[] = {
    [SCHEME_PGLOCK] = "pglock",
    [SCHEME_PGLOCKS] = "pglocks",
    [SCHEME_POSTGRESQL_LOCK] = "postgresql-lock",
    [SCHEME_WITH_ADVISORY_LOCK] = "with_advisory_lock",
    [SCHEME_HASHTEXT] = "hashtext",
    NULL,
};

static const char HASHTEXT_SQL[] = "SELECT pg_catalog.hashtext($1)";

bool key_scheme_parse(const char *name, KeyScheme *scheme, Error *err)
{
    const char *nearest;

    for (int i = 0; SCHEME_NAMES[i] != NULL; i++) {
        if (strcmp(name, SCHEME_NAMES[i]) == 0) {
            *scheme = (KeyScheme)i;
            return true;
        }
    }
    nearest = text_nearest(name, SCHEME_NAMES);
    error_usage(err, "unknown scheme \"%.60s\"%s%s%s", name, nearest ? "; did you mean \"" : "",
                nearest ? nearest : "", nearest ? "\"?" : "");
    return error_hint(err, "Schemes are pglock, pglocks, postgresql-lock, with_advisory_lock and "
                           "hashtext.");
}

static uint64_t from_bytes(const unsigned char *bytes, bool little_endian)
{
    uint64_t number = 0;

    for (int i = 0; i < 8; i++)
        number = number << 8 | bytes[little_endian ? 7 - i : i];
    return number;
}

static bool digest(const EVP_MD *kind, const char *name, size_t length, bool little_endian,
                   LockKey *key, Error *err)
{
    unsigned char bytes[EVP_MAX_MD_SIZE];

    if (EVP_Digest(name, length, bytes, NULL, kind, NULL) != 1)
        return error_set(err, ERROR_USAGE, "%s is not to be had from OpenSSL here",
                         EVP_MD_get0_name(kind));
    *key = (LockKey){.key = (int64_t)from_bytes(bytes, little_endian)};
    return true;
}

static uint32_t crc(const char *name, size_t length)
{
    return (uint32_t)crc32_z(crc32_z(0, NULL, 0), (const Bytef *)name, length);
}

static bool ask_hashtext(Session *session, const char *name, size_t length, LockKey *key,
                         Error *err)
{
    PGresult *result;

    if (memchr(name, '\0', length) != NULL)
        return error_usage(err, "the id has a NUL byte, which PostgreSQL's hashtext can't take");
    result = session_query(session,
                           &(Statement){.sql = HASHTEXT_SQL,
                                        .count = 1,
                                        .types = (Oid[]){25}, /* text */
                                        .values = (const char *[]){name}},
                           WAIT_NORMAL, err);
    if (result == NULL)
        return false;
    *key = (LockKey){.key = strtoll(PQgetvalue(result, 0, 0), NULL, 10)};
    PQclear(result);
    return true;
}

bool key_from_name(KeyScheme scheme, const char *name, size_t length, int32_t prefix,
                   Session *session, LockKey *key, Error *err)
{
    switch (scheme) {
    case SCHEME_PGLOCK:
        return digest(EVP_sha256(), name, length, true, key, err);
    case SCHEME_POSTGRESQL_LOCK:
        return digest(EVP_sha1(), name, length, false, key, err);
    case SCHEME_PGLOCKS:
        *key = (LockKey){.key = (int32_t)crc(name, length)};
        return true;
    case SCHEME_WITH_ADVISORY_LOCK:
        *key = (LockKey){
            .pair = true,
            .first = (int32_t)(crc(name, length) & 0x7fffffff),
            .second = prefix,
        };
        return true;
    case SCHEME_HASHTEXT:
        return ask_hashtext(session, name, length, key, err);
    }
    return error_usage(err, "unknown scheme");
}

LockKeyParts key_parts(const LockKey *key)
{
    if (key->pair)
        return (LockKeyParts){(uint32_t)key->first, (uint32_t)key->second, 2};
    return (LockKeyParts){(uint32_t)((uint64_t)key->key >> 32), (uint32_t)(uint64_t)key->key, 1};
}

void key_text(const LockKey *key, char text[KEY_TEXT_SIZE])
{
    if (key->pair)
        snprintf(text, KEY_TEXT_SIZE, "%" PRId32 ",%" PRId32, key->first, key->second);
    else
        text_integer(text, key->key);
}

bool key_equal(const LockKey *a, const LockKey *b)
{
    if (a->pair != b->pair)
        return false;
    return a->pair ? a->first == b->first && a->second == b->second : a->key == b->key;
}
