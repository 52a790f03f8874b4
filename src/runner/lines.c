#include "runner/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

void lines_open(Lines *lines, int fd, size_t most)
{
    *lines = (Lines){.fd = fd, .most = most};
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    initPQExpBuffer(&lines->text);
}

static void close_fd(Lines *lines)
{
    if (lines->fd >= 0)
        close(lines->fd);
    lines->fd = -1;
}

void lines_close(Lines *lines)
{
    close_fd(lines);
    termPQExpBuffer(&lines->text);
    lines->taken = 0;
}

/* Forget the lines that were taken. */
static void compact(Lines *lines)
{
    PQExpBuffer text = &lines->text;

    if (lines->taken == 0)
        return;
    memmove(text->data, text->data + lines->taken, text->len - lines->taken + 1);
    text->len -= lines->taken;
    lines->taken = 0;
}

bool lines_fill(Lines *lines)
{
    char piece[65536];
    ssize_t got;

    if (lines->fd < 0)
        return false;
    compact(lines);
    got = read(lines->fd, piece, sizeof piece);
    if (got > 0) {
        appendBinaryPQExpBuffer(&lines->text, piece, (size_t)got);
        if (!PQExpBufferDataBroken(lines->text))
            return true;
    } else if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        return true;
    }
    close_fd(lines);
    return false;
}

char *lines_next(Lines *lines)
{
    PQExpBuffer text = &lines->text;
    char *line, *end;
    size_t left;

    if (PQExpBufferDataBroken(*text))
        return NULL;
    line = text->data + lines->taken;
    left = text->len - lines->taken;
    end = memchr(line, '\n', left);
    if (end != NULL) {
        *end = '\0';
        lines->taken += (size_t)(end - line) + 1;
        return line;
    }
    if (left == 0 || (lines->fd >= 0 && left < lines->most))
        return NULL;
    lines->taken += left;
    return line;
}

char *lines_rest(Lines *lines)
{
    PQExpBuffer text = &lines->text;
    char *rest = text->data + lines->taken;

    if (PQExpBufferDataBroken(*text) || text->len == lines->taken)
        return NULL;
    lines->taken = text->len;
    return rest;
}
