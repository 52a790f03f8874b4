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

/* OpenSSL's look-up of an algorithm takes longer than the digest of a name: it is done once. */
typedef struct {
    const char *name;
    EVP_MD *algorithm;
    EVP_MD_CTX *context;
} Digest;

static Digest sha256 = {.name = "SHA256"};
static Digest sha1 = {.name = "SHA1"};

static bool digest_ready(Digest *kind)
{
    if (kind->algorithm == NULL)
        kind->algorithm = EVP_MD_fetch(NULL, kind->name, NULL);
    if (kind->context == NULL)
        kind->context = EVP_MD_CTX_new();
    return kind->algorithm != NULL && kind->context != NULL;
}

static bool digest(Digest *kind, const char *name, size_t length, bool little_endian,
                   LockKey *key, Error *err)
{
    unsigned char bytes[EVP_MAX_MD_SIZE];

    if (!digest_ready(kind) || EVP_DigestInit_ex2(kind->context, kind->algorithm, NULL) != 1 ||
        EVP_DigestUpdate(kind->context, name, length) != 1 ||
        EVP_DigestFinal_ex(kind->context, bytes, NULL) != 1)
        return error_set(err, ERROR_USAGE, "%s is not to be had from OpenSSL here", kind->name);
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
        return digest(&sha256, name, length, true, key, err);
    case SCHEME_POSTGRESQL_LOCK:
        return digest(&sha1, name, length, false, key, err);
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

static int compare(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

int key_compare(const LockKey *a, const LockKey *b)
{
    if (a->pair != b->pair)
        return a->pair ? 1 : -1;
    if (!a->pair)
        return compare(a->key, b->key);
    return a->first == b->first ? compare(a->second, b->second) : compare(a->first, b->first);
}
