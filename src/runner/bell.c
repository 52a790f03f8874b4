#include "runner/bell.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

bool bell_open(Bell *bell, Error *err)
{
    bell->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return bell->fd >= 0 || error_set(err, ERROR_USAGE, "eventfd: %s", strerror(errno));
}

void bell_close(Bell *bell)
{
    if (bell->fd >= 0)
        close(bell->fd);
    bell->fd = -1;
}

void bell_ring(const Bell *bell)
{
    uint64_t one = 1;

    (void)!write(bell->fd, &one, sizeof one);
}

void bell_quiet(const Bell *bell)
{
    uint64_t count;

    (void)!read(bell->fd, &count, sizeof count);
}

WaitEnd bell_wait(const Bell *bell, int64_t deadline_us)
{
    struct pollfd fd = {.fd = bell->fd, .events = POLLIN};
    WaitEnd end = wait_for(&fd, 1, deadline_us, WAIT_NORMAL);

    if (end == WAIT_READY)
        bell_quiet(bell);
    return end;
}

void turn_take(Turn *turn)
{
    while (turn->taken)
        wait_told(turn, WAIT_CLEANUP);
    turn->taken = true;
}

void turn_give(Turn *turn)
{
    turn->taken = false;
    wait_tell(turn);
}
