/* The one way to wait: deadlines, descriptors, fibers that go on meanwhile, cancelling, interrupts. */
#include "pg/wait.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *promise;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("not ok - %s\n# line %d: %s\n", promise, __LINE__, #condition);                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static void passed(void)
{
    printf("ok - %s\n", promise);
}

static char trail[256];

static void note(const char *text)
{
    strncat(trail, text, sizeof trail - strlen(trail) - 1);
}

static Fiber *start(void (*run)(void *), void *argument)
{
    Fiber *fiber;
    Error err;

    CHECK(fiber_start(&fiber, run, argument, &err));
    return fiber;
}

static void test_deadline(void)
{
    int64_t start_us = clock_monotonic_us();

    promise = "a wait without descriptors is a sleep until its deadline";
    CHECK(wait_for(NULL, 0, clock_deadline(20000), WAIT_NORMAL) == WAIT_DEADLINE);
    CHECK(clock_monotonic_us() - start_us >= 20000);
    passed();
}

static void test_ready(void)
{
    int ends[2];
    struct pollfd fds[2];

    promise = "a descriptor that is ready ends a wait, and says what it is ready for";
    CHECK(pipe(ends) == 0);
    fds[0] = (struct pollfd){.fd = ends[0], .events = POLLIN};
    fds[1] = (struct pollfd){.fd = ends[1], .events = POLLOUT};
    CHECK(wait_for(fds, 2, CLOCK_NEVER, WAIT_NORMAL) == WAIT_READY);
    CHECK(fds[0].revents == 0 && fds[1].revents == POLLOUT);
    close(ends[1]);
    CHECK(wait_for(fds, 1, CLOCK_NEVER, WAIT_NORMAL) == WAIT_READY);
    CHECK(fds[0].revents & POLLHUP);
    close(ends[0]);
    passed();
}

typedef struct {
    const char *name;
    int64_t step_us;
} Sleeper;

static void sleep_thrice(void *argument)
{
    Sleeper *sleeper = argument;

    for (int i = 0; i < 3; i++) {
        CHECK(wait_for(NULL, 0, clock_deadline(sleeper->step_us), WAIT_NORMAL) == WAIT_DEADLINE);
        note(sleeper->name);
    }
}

static void test_fibers(void)
{
    Sleeper quick = {"q", 20000};
    Sleeper slow = {"S", 150000};
    Fiber *a, *b;

    promise = "while one fiber waits the others go on";
    trail[0] = '\0';
    a = start(sleep_thrice, &slow);
    b = start(sleep_thrice, &quick);
    fiber_join(a);
    fiber_join(b);
    CHECK(strcmp(trail, "qqqSSS") == 0);
    passed();
}

typedef struct {
    int ends[2];
    int got;
} Relay;

/* Passes a byte on, one more each time, over two pipes between two fibers. */
static void relay(void *argument)
{
    Relay *both = argument;

    for (int i = 0; i < 500; i++) {
        struct pollfd fd = {.fd = both[0].ends[0], .events = POLLIN};
        unsigned char byte;

        CHECK(wait_for(&fd, 1, CLOCK_NEVER, WAIT_NORMAL) == WAIT_READY);
        CHECK(read(both[0].ends[0], &byte, 1) == 1);
        both[0].got++;
        CHECK(write(both[1].ends[1], &byte, 1) == 1);
    }
}

static void relay_back(void *argument)
{
    Relay *both = argument;
    Relay turned[2] = {both[1], both[0]};

    relay(turned);
    both[1].got = turned[0].got;
}

static void test_relay(void)
{
    Relay both[2] = {0};
    Fiber *a, *b;

    promise = "two fibers that wait for each other's bytes both come through";
    CHECK(pipe(both[0].ends) == 0 && pipe(both[1].ends) == 0);
    CHECK(write(both[0].ends[1], "x", 1) == 1);
    a = start(relay, both);
    b = start(relay_back, both);
    fiber_join(a);
    fiber_join(b);
    CHECK(both[0].got == 500 && both[1].got == 500);
    for (int i = 0; i < 4; i++)
        close(both[i / 2].ends[i % 2]);
    passed();
}

static void wait_long(void *argument)
{
    *(WaitEnd *)argument = wait_for(NULL, 0, clock_deadline(10000000), WAIT_NORMAL);
    CHECK(wait_for(NULL, 0, clock_deadline(1000), WAIT_CLEANUP) == WAIT_DEADLINE);
    CHECK(wait_for(NULL, 0, clock_deadline(1000), WAIT_NORMAL) == WAIT_INTERRUPTED);
}

static void test_cancel(void)
{
    WaitEnd end = WAIT_READY;
    int64_t start_us = clock_monotonic_us();
    Fiber *fiber = start(wait_long, &end);

    promise = "cancelling a fiber ends its wait and every further one, but not a cleanup's";
    CHECK(wait_for(NULL, 0, clock_deadline(1000), WAIT_NORMAL) == WAIT_DEADLINE);
    fiber_cancel(fiber);
    fiber_join(fiber);
    CHECK(end == WAIT_INTERRUPTED);
    CHECK(clock_monotonic_us() - start_us < 5000000);
    CHECK(!wait_is_interrupted());
    passed();
}

static void wait_for_word(void *argument)
{
    bool *said = argument;

    while (!*said)
        CHECK(wait_told(said, WAIT_NORMAL) == WAIT_READY);
    note("told ");
}

static void test_told(void)
{
    bool said = false;
    bool other = false;
    Fiber *a = start(wait_for_word, &said);
    Fiber *b = start(wait_for_word, &said);
    Fiber *c = start(wait_for_word, &other);

    promise = "what a fiber tells wakes all who wait to be told of it, and nobody else";
    trail[0] = '\0';
    CHECK(wait_for(NULL, 0, clock_deadline(1000), WAIT_NORMAL) == WAIT_DEADLINE);
    wait_tell(&said); /* not yet: they look again */
    CHECK(wait_for(NULL, 0, clock_deadline(1000), WAIT_NORMAL) == WAIT_DEADLINE);
    CHECK(trail[0] == '\0');
    said = true;
    wait_tell(&said);
    fiber_join(a);
    fiber_join(b);
    CHECK(strcmp(trail, "told told ") == 0);
    other = true;
    wait_tell(&other);
    fiber_join(c);
    passed();
}

static void cancel_main(void *argument)
{
    fiber_cancel(argument);
}

static void test_absolve(void)
{
    Fiber *fiber = start(cancel_main, fiber_current());

    promise = "a fiber that was cancelled and absolved waits as before";
    CHECK(wait_told(&promise, WAIT_NORMAL) == WAIT_INTERRUPTED);
    CHECK(wait_is_interrupted());
    fiber_absolve(fiber_current());
    CHECK(wait_for(NULL, 0, clock_deadline(1000), WAIT_NORMAL) == WAIT_DEADLINE);
    fiber_join(fiber);
    passed();
}

static void deep(void *argument)
{
    volatile char room[4096];
    int depth = *(int *)argument - 1;

    memset((void *)room, depth, sizeof room);
    if (depth > 0)
        deep(&depth);
    else
        CHECK(wait_for(NULL, 0, clock_deadline(1000), WAIT_NORMAL) == WAIT_DEADLINE);
    CHECK(room[17] == (char)*(int *)argument - 1);
}

static void test_many(void)
{
    enum { COUNT = 1000 };
    static Fiber *fibers[COUNT];
    int depth = 100;

    promise = "a thousand fibers with deep stacks wait side by side";
    for (int i = 0; i < COUNT; i++)
        fibers[i] = start(deep, &depth);
    for (int i = 0; i < COUNT; i++)
        fiber_join(fibers[i]);
    passed();
}

static void on_alarm(int signo)
{
    wait_interrupt(signo);
}

static void stop_all(void *argument)
{
    (void)argument;
    wait_stop(STOP_LOCK_LOST);
    CHECK(wait_for(NULL, 0, clock_deadline(1000), WAIT_CLEANUP) == WAIT_DEADLINE);
}

static void test_stop(void)
{
    Fiber *fiber;
    Error err;

    promise = "a stop ends the waits of all fibers, until all go on";
    CHECK(wait_enable_interrupt(&err));
    fiber = start(stop_all, NULL);
    CHECK(wait_for(NULL, 0, CLOCK_NEVER, WAIT_NORMAL) == WAIT_INTERRUPTED);
    CHECK(wait_stopped() == STOP_LOCK_LOST);
    CHECK(!wait_interrupted_error(&err) && err.kind == ERROR_LOCK_LOST);
    CHECK(wait_for(NULL, 0, CLOCK_NEVER, WAIT_NORMAL) == WAIT_INTERRUPTED);
    fiber_join(fiber);
    wait_go_on();
    CHECK(wait_for(NULL, 0, clock_deadline(1000), WAIT_NORMAL) == WAIT_DEADLINE);
    passed();
}

static void test_serve(void)
{
    Sleeper server = {"s", 1000};
    Sleeper other = {"o", 1000};
    Fiber *a = start(sleep_thrice, &server);
    Fiber *b = start(sleep_thrice, &other);
    int64_t end_us = clock_deadline(100000);

    promise = "wait_serve lets serving fibers go on, and nobody else";
    trail[0] = '\0';
    fiber_serve(a);
    while (clock_monotonic_us() < end_us)
        wait_serve();
    CHECK(strcmp(trail, "sss") == 0);
    fiber_join(b);
    fiber_join(a);
    passed();
}

static void test_interrupt(void)
{
    WaitEnd end = WAIT_READY;
    Fiber *fiber;
    Error err;

    promise = "a signal interrupts every wait from then on, but not a cleanup's";
    CHECK(wait_enable_interrupt(&err));
    signal(SIGALRM, on_alarm);
    fiber = start(wait_long, &end);
    ualarm(20000, 0);
    CHECK(wait_for(NULL, 0, CLOCK_NEVER, WAIT_NORMAL) == WAIT_INTERRUPTED);
    CHECK(wait_is_interrupted() && wait_interrupted() == SIGALRM);
    fiber_join(fiber);
    CHECK(end == WAIT_INTERRUPTED);
    CHECK(wait_for(NULL, 0, clock_deadline(1000), WAIT_CLEANUP) == WAIT_DEADLINE);
    CHECK(!wait_interrupted_error(&err) && err.kind == ERROR_CANCELLED);
    passed();
}

int main(void)
{
    test_deadline();
    test_ready();
    test_fibers();
    test_relay();
    test_cancel();
    test_told();
    test_absolve();
    test_many();
    test_serve();
    test_stop();
    test_interrupt(); /* last: an interrupt stays */
    return 0;
}
