/*
 * The last bytes of a text that may be endless: a ring. What a job has printed is kept so.
 */
#ifndef LOCKKEEPER_BASE_TAIL_H
#define LOCKKEEPER_BASE_TAIL_H

#include <stddef.h>
#include <stdint.h>

enum { TAIL_SIZE = 64 * 1024 };

/* All zero is an empty one. */
typedef struct {
    char bytes[TAIL_SIZE];
    uint64_t written; /* of all that was appended */
} Tail;

void tail_append(Tail *tail, const char *text, size_t length);

/*
 * Copy what is kept to `text`, which has room for TAIL_SIZE bytes; returns its length. What lost
 * its beginning begins with the first whole line, or where there is none, with a whole character
 * of UTF-8.
 */
size_t tail_copy(const Tail *tail, char *text);

#endif
