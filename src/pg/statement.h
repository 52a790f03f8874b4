/*
 * A statement to send, and what a session remembers of the statements it has sent.
 *
 * A statement is prepared on the server when it is sent for the second time, or at once. At most
 * STATEMENT_CACHE_SIZE are kept a session; the one not used for longest gives way.
 */
#ifndef LOCKKEEPER_PG_STATEMENT_H
#define LOCKKEEPER_PG_STATEMENT_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *sql; /* one statement */
    int count;       /* of parameters */
    const Oid *types;
    const char *const *values;
    const int *lengths; /* NULL where all are text */
    const int *formats; /* NULL: all text */
    bool unprepared;    /* never prepare it: it must work whatever was deallocated */
    bool constant;      /* text and types never change: the text's address tells which it is */
    bool sync;          /* in a pipeline: an error stops what follows only up to here */
} Statement;

enum {
    STATEMENT_CACHE_SIZE = 64,
    STATEMENT_NAME_SIZE = 32,
    STATEMENT_SQL_MAX = 16384, /* longer texts are sent as they are, each time */
    STATEMENT_TYPES_MAX = 64,
};

typedef struct {
    const char *constant; /* the address of a constant statement's text, once seen */
    uint64_t last_use;
    bool prepared;
    bool suspect; /* its plan may be outdated by DDL or gone: send it unprepared */
    int count;
    char name[STATEMENT_NAME_SIZE]; /* "lockkeeper_<number>" */
    uint64_t number;
    char *sql; /* owned; NULL: a free place */
    size_t sql_length;
    Oid *types; /* owned */
} CachedStatement;

typedef struct {
    CachedStatement places[STATEMENT_CACHE_SIZE];
    uint8_t hints[16]; /* where a text was found last, by its address: the first place to look */
    uint64_t clock;
    uint64_t names;
    /* Prepared on the server, to be deallocated. Nothing is prepared while there are more of them
     * than places, so that there is room for those of all places at any time. */
    uint64_t garbage[2 * STATEMENT_CACHE_SIZE];
    int garbage_count;
    bool eager;    /* prepare what is sent for the first time, too */
    bool changing; /* the open transaction has DDL, whose plans may not outlive it: prepare none */
} StatementCache;

/*
 * The statement's place, made where there is none; *seen_before tells which (true of all that are
 * to be prepared at once). NULL where it is not to be kept (unprepared, too long, out of memory).
 * Valid until the next call.
 */
CachedStatement *statement_cache_find(StatementCache *cache, const Statement *statement,
                                      bool *seen_before);

/* Would a plan be of use, and last? */
bool statement_cache_can_prepare(const StatementCache *cache, const CachedStatement *cached);

/* Give it a new name, to be prepared under. */
void statement_cache_rename(StatementCache *cache, CachedStatement *cached);
void statement_name(uint64_t number, char name[STATEMENT_NAME_SIZE]);

/* Its plan is outdated: it is sent unprepared until it could be deallocated. */
void statement_cache_suspect(StatementCache *cache, CachedStatement *cached);

/* After DDL: so may be all of them, and those that its transaction would prepare. */
void statement_cache_suspect_all(StatementCache *cache);

/* After DEALLOCATE ALL, DISCARD ALL or a new connection: nothing is prepared any more. */
void statement_cache_forget(StatementCache *cache);

void statement_cache_free(StatementCache *cache);

#endif
