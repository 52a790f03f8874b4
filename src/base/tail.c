#include "base/tail.h"

#include <string.h>

void tail_append(Tail *tail, const char *text, size_t length)
{
    if (length > TAIL_SIZE) {
        tail->written += length - TAIL_SIZE;
        text += length - TAIL_SIZE;
        length = TAIL_SIZE;
    }
    while (length > 0) {
        size_t at = tail->written % TAIL_SIZE;
        size_t piece = length < TAIL_SIZE - at ? length : TAIL_SIZE - at;

        memcpy(tail->bytes + at, text, piece);
        tail->written += piece;
        text += piece;
        length -= piece;
    }
}

/* Where the first whole line begins, else the first whole character. */
static size_t whole_from(const char *text, size_t length)
{
    const char *end = memchr(text, '\n', length);
    size_t from = 0;

    if (end != NULL && end + 1 < text + length)
        return (size_t)(end + 1 - text);
    while (from < length && from < 4 && ((unsigned char)text[from] & 0xc0) == 0x80)
        from++;
    return from;
}

size_t tail_copy(const Tail *tail, char *text)
{
    size_t at = tail->written % TAIL_SIZE;
    size_t from;

    if (tail->written <= TAIL_SIZE) {
        memcpy(text, tail->bytes, (size_t)tail->written);
        return (size_t)tail->written;
    }
    memcpy(text, tail->bytes + at, TAIL_SIZE - at);
    memcpy(text + TAIL_SIZE - at, tail->bytes, at);
    from = whole_from(text, TAIL_SIZE);
    memmove(text, text + from, TAIL_SIZE - from);
    return TAIL_SIZE - from;
}
