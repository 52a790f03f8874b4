/*
 * What went wrong, as a value.
 *
 * Every function that can fail takes an `Error *` last and returns false or NULL when it did. The
 * texts are kept in the value itself: an Error owns no memory, so it may be left behind by a
 * longjmp (lua_error) and needs no freeing. Texts that do not fit are cut at a character and end
 * in "…".
 */
#ifndef LOCKKEEPER_BASE_ERROR_H
#define LOCKKEEPER_BASE_ERROR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    ERROR_NONE,
    ERROR_USAGE,        /* the caller's words are wrong; nothing was done */
    ERROR_LOCK_TIMEOUT, /* 55P03: a wait for a lock was longer than lock_timeout */
    ERROR_NOT_ACQUIRED, /* a try found the lock taken: false from a try function, or NOWAIT */
    ERROR_DEADLOCK,     /* 40P01 */
    ERROR_LOCK_LOST,    /* the session ended, or the lock was unlocked, while it should be held */
    ERROR_CONNECTION,   /* no connection, or one that broke while it held no lock */
    ERROR_SQL,          /* every other error that the server raised */
    ERROR_CANCELLED,    /* a signal, or the task or job was cancelled */
    ERROR_TIMED_OUT,    /* max_run passed */
} ErrorKind;

typedef struct Error {
    ErrorKind kind;
    char sqlstate[6]; /* "" where the server said nothing */
    char message[2048];
    char detail[2048];
    char hint[1024];
    char statement[1024];
} Error;

/* Make *err empty (kind ERROR_NONE). Cheap: it does not clear the text buffers. */
void error_clear(Error *err);

/* Set *err from a printf format. Always returns false, so that a caller can `return error_set()`. */
bool error_set(Error *err, ErrorKind kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* error_set(err, ERROR_USAGE, …). */
bool error_usage(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Add a hint (replacing an earlier one); returns false. */
bool error_hint(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "lock_timeout" and so on: the `kind` that Lua sees. */
const char *error_kind_name(ErrorKind kind);

/* Is this a lock that was not to be had (not_acquired or lock_timeout)? */
bool error_is_busy(const Error *err);

/* Copy text into a buffer of `size` bytes, cut at a UTF-8 character and marked with "…". */
void text_copy(char *buffer, size_t size, const char *text);

/* The decimal digits of a number; returns the buffer. Much quicker than printf. */
enum { TEXT_INTEGER_SIZE = 24 };
const char *text_integer(char buffer[TEXT_INTEGER_SIZE], int64_t number);

/*
 * The known word nearest to `word` (edit distance at most a third of its length, at least 2), or
 * NULL. `known` ends with NULL.
 */
const char *text_nearest(const char *word, const char *const *known);

/* Is this well-formed UTF-8 without NUL? (RFC 3629: no surrogates, no overlong forms.) */
bool text_is_utf8(const char *text, size_t length);

#endif
