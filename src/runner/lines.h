/* Lines read from a descriptor, by a fiber: what children say, one event or one line of output each. */
#ifndef LOCKKEEPER_RUNNER_LINES_H
#define LOCKKEEPER_RUNNER_LINES_H

#include "base/pqbuffer.h"
#include "pg/wait.h"

typedef struct {
    int fd; /* owned; -1: none, or at its end */
    size_t most;
    size_t taken;
    PQExpBufferData text;
} Lines;

/* Read from `fd`, which becomes non-blocking. A line longer than `most` bytes comes in pieces. */
void lines_open(Lines *lines, int fd, size_t most);
void lines_close(Lines *lines);

/* Read what is there. False: it has ended, or memory has. */
bool lines_fill(Lines *lines);

/*
 * The next whole line of what was read, without its end, or, where the descriptor has ended, what
 * is left. NULL: there is none. Valid until the next call.
 */
char *lines_next(Lines *lines);

/* What is left of a line that has not ended yet. NULL: nothing. Valid until the next call. */
char *lines_rest(Lines *lines);

#endif
