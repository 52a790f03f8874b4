#include "pg/statement.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void statement_name(uint64_t number, char name[STATEMENT_NAME_SIZE])
{
    snprintf(name, STATEMENT_NAME_SIZE, "lockkeeper_%" PRIu64, number);
}

static void discard(StatementCache *cache, CachedStatement *cached)
{
    if (cached->prepared)
        cache->garbage[cache->garbage_count++] = cached->number;
    cached->prepared = false;
}

static void empty_place(CachedStatement *cached)
{
    free(cached->sql);
    free(cached->types);
    *cached = (CachedStatement){0};
}

static bool is_same(const CachedStatement *cached, const Statement *statement, size_t length)
{
    return cached->sql != NULL && cached->sql_length == length &&
           cached->count == statement->count && memcmp(cached->sql, statement->sql, length) == 0 &&
           (cached->count == 0 || memcmp(cached->types, statement->types,
                                         (size_t)cached->count * sizeof *cached->types) == 0);
}

static bool fill_place(CachedStatement *cached, const Statement *statement, size_t length)
{
    cached->sql = malloc(length + 1);
    cached->types = calloc((size_t)statement->count + 1, sizeof *cached->types);
    if (cached->sql == NULL || cached->types == NULL) {
        empty_place(cached);
        return false;
    }
    memcpy(cached->sql, statement->sql, length + 1);
    if (statement->count > 0)
        memcpy(cached->types, statement->types, (size_t)statement->count * sizeof *cached->types);
    cached->sql_length = length;
    cached->count = statement->count;
    return true;
}

static CachedStatement *used(StatementCache *cache, CachedStatement *cached)
{
    cached->last_use = cache->clock;
    return cached;
}

/* The place with this text, else one that is made for it: the one not used for longest. */
static CachedStatement *find_by_text(StatementCache *cache, const Statement *statement,
                                     uint8_t *hint, bool *seen_before)
{
    size_t length = strlen(statement->sql);
    CachedStatement *oldest = &cache->places[*hint];
    CachedStatement *found = NULL;

    if (length > STATEMENT_SQL_MAX || statement->count > STATEMENT_TYPES_MAX)
        return NULL;
    if (is_same(oldest, statement, length))
        found = oldest;
    for (int i = 0; i < STATEMENT_CACHE_SIZE && found == NULL; i++) {
        CachedStatement *cached = &cache->places[i];

        if (is_same(cached, statement, length))
            found = cached;
        else if (cached->last_use < oldest->last_use)
            oldest = cached;
    }
    *seen_before = found != NULL || cache->eager;
    if (found == NULL) {
        discard(cache, oldest);
        empty_place(oldest);
        if (!fill_place(oldest, statement, length))
            return NULL;
        found = oldest;
    }
    if (statement->constant)
        found->constant = statement->sql;
    *hint = (uint8_t)(found - cache->places);
    return used(cache, found);
}

CachedStatement *statement_cache_find(StatementCache *cache, const Statement *statement,
                                      bool *seen_before)
{
    uint8_t *hint = &cache->hints[(uintptr_t)statement->sql / 16 % sizeof cache->hints];
    CachedStatement *hinted = &cache->places[*hint];

    *seen_before = false;
    if (statement->unprepared)
        return NULL;
    cache->clock++;
    if (!statement->constant || hinted->constant != statement->sql)
        return find_by_text(cache, statement, hint, seen_before);
    *seen_before = true;
    return used(cache, hinted);
}

bool statement_cache_can_prepare(const StatementCache *cache, const CachedStatement *cached)
{
    return !cached->suspect && !cache->changing && cache->garbage_count <= STATEMENT_CACHE_SIZE;
}

void statement_cache_rename(StatementCache *cache, CachedStatement *cached)
{
    cached->number = ++cache->names;
    statement_name(cached->number, cached->name);
}

void statement_cache_suspect(StatementCache *cache, CachedStatement *cached)
{
    discard(cache, cached);
    cached->suspect = true;
}

void statement_cache_suspect_all(StatementCache *cache)
{
    cache->changing = true;
    for (int i = 0; i < STATEMENT_CACHE_SIZE; i++) {
        if (cache->places[i].prepared)
            statement_cache_suspect(cache, &cache->places[i]);
    }
}

void statement_cache_forget(StatementCache *cache)
{
    for (int i = 0; i < STATEMENT_CACHE_SIZE; i++) {
        cache->places[i].prepared = false;
        cache->places[i].suspect = false;
    }
    cache->garbage_count = 0;
}

void statement_cache_free(StatementCache *cache)
{
    for (int i = 0; i < STATEMENT_CACHE_SIZE; i++)
        empty_place(&cache->places[i]);
    cache->garbage_count = 0;
}
