#include "pg/wait.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

enum { FIBER_STACK_SIZE = 1024 * 1024 };

typedef enum { FIBER_RUNNABLE, FIBER_WAITING, FIBER_ENDED } FiberState;

struct Fiber {
    ucontext_t context;
    char *stack; /* NULL: the thread's own */
    void (*run)(void *);
    void *argument;
    FiberState state;
    int cancels;
    void *volatile slots[FIBER_SLOTS];
    Fiber *volatile next; /* in the ring of all fibers */
    /* what it waits for, while FIBER_WAITING */
    struct pollfd *fds;
    nfds_t count;
    const void *about; /* NULL: nothing that is told */
    int64_t deadline_us;
    WaitMode mode;
    WaitEnd end;
#ifdef __SANITIZE_ADDRESS__
    void *fake_stack;
    const void *stack_bottom;
    size_t stack_size;
#endif
};

static Fiber main_fiber = {.next = &main_fiber};
static Fiber *current = &main_fiber;

static int interrupt_fd = -1;
static volatile sig_atomic_t interrupt_signal;
static bool interrupt_told;
static bool (*signal_check)(void);

/* Every waiting fiber's descriptors, for one poll; kept between calls, grown as needed. */
static struct pollfd *polled;
static size_t polled_size;

bool wait_enable_interrupt(Error *err)
{
    if (interrupt_fd >= 0)
        return true;
    interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (interrupt_fd < 0)
        return error_set(err, ERROR_USAGE, "eventfd: %s", strerror(errno));
    return true;
}

void wait_interrupt(int signo)
{
    int saved = errno;
    uint64_t one = 1;

    interrupt_signal = signo;
    /* Never read back: the descriptor stays readable, so no wait can miss it. */
    (void)!write(interrupt_fd, &one, sizeof one);
    errno = saved;
}

int wait_interrupted(void)
{
    return interrupt_signal;
}

bool wait_is_interrupted(void)
{
    return interrupt_signal != 0 || current->cancels > 0;
}

void wait_set_check(bool (*check)(void))
{
    signal_check = check;
}

bool wait_interrupted_error(Error *err)
{
    interrupt_told = interrupt_signal != 0;
    if (interrupt_signal != 0)
        return error_set(err, ERROR_CANCELLED, "interrupted by signal %d (%s)",
                         (int)interrupt_signal, strsignal(interrupt_signal));
    return error_set(err, ERROR_CANCELLED, "cancelled");
}

/* The fiber that gave way last, and the one it gave way to. */
static Fiber *switched_from, *switched_to;

bool wait_interrupt_told(void)
{
    return interrupt_told;
}

/* Runs on the new stack after each switch to it. */
static void arrived(void)
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(switched_to->fake_stack, &switched_from->stack_bottom,
                                    &switched_from->stack_size);
#endif
    current = switched_to;
}

static void switch_to(Fiber *to)
{
    Fiber *from = current;

    if (to == from)
        return;
    switched_from = from;
    switched_to = to;
#ifdef __SANITIZE_ADDRESS__
    /* An ended fiber's fake stack is given up: NULL says so. */
    __sanitizer_start_switch_fiber(from->state == FIBER_ENDED ? NULL : &from->fake_stack,
                                   to->stack_bottom, to->stack_size);
#endif
    swapcontext(&from->context, &to->context);
    arrived();
}

static bool interrupted(const Fiber *fiber)
{
    return fiber->mode == WAIT_NORMAL && (interrupt_signal != 0 || fiber->cancels > 0);
}

static void wake(Fiber *fiber, WaitEnd end)
{
    fiber->end = end;
    fiber->state = FIBER_RUNNABLE;
}

static void poll_room(size_t count)
{
    if (count > polled_size) {
        struct pollfd *grown = realloc(polled, count * sizeof *polled);

        if (grown == NULL)
            abort(); /* a few hundred bytes: there is nothing left to run on */
        polled = grown;
        polled_size = count;
    }
}

/* Gather what all waiting fibers wait for; the earliest deadline goes to *deadline_us. */
static nfds_t gather(int64_t *deadline_us)
{
    nfds_t count = 0;
    Fiber *fiber = current;

    *deadline_us = CLOCK_NEVER;
    poll_room(1);
    polled[count++] = (struct pollfd){.fd = interrupt_fd, .events = POLLIN};
    do {
        if (fiber->state == FIBER_WAITING) {
            poll_room(count + fiber->count);
            for (nfds_t i = 0; i < fiber->count; i++) {
                polled[count] = fiber->fds[i];
                polled[count++].revents = 0;
            }
            if (fiber->deadline_us < *deadline_us)
                *deadline_us = fiber->deadline_us;
        }
        fiber = fiber->next;
    } while (fiber != current);
    /* Once an interrupt came, its descriptor is ready for ever: cleanup waits must not spin. */
    if (interrupt_signal != 0)
        polled[0].fd = -1;
    return count;
}

/* Hand out what poll found, in the order of gather; `deadline_us` is the earliest of all. */
static void distribute(int64_t deadline_us)
{
    int64_t now = deadline_us == CLOCK_NEVER ? 0 : clock_monotonic_us();
    nfds_t at = 1;
    Fiber *fiber = current;

    do {
        if (fiber->state == FIBER_WAITING) {
            bool ready = false;

            for (nfds_t i = 0; i < fiber->count; i++) {
                fiber->fds[i].revents = polled[at++].revents;
                ready = ready || fiber->fds[i].revents != 0;
            }
            if (interrupted(fiber))
                wake(fiber, WAIT_INTERRUPTED);
            else if (ready)
                wake(fiber, WAIT_READY);
            else if (now >= fiber->deadline_us)
                wake(fiber, WAIT_DEADLINE);
        }
        fiber = fiber->next;
    } while (fiber != current);
}

/* A signal that a foreign handler took for an interrupt ends the waits of this moment. */
static void interrupt_waiting(void)
{
    Fiber *fiber = current;

    do {
        if (fiber->state == FIBER_WAITING && fiber->mode == WAIT_NORMAL)
            wake(fiber, WAIT_INTERRUPTED);
        fiber = fiber->next;
    } while (fiber != current);
}

static void poll_all(void)
{
    int64_t deadline_us;
    nfds_t count = gather(&deadline_us);
    struct timespec timeout;
    struct timespec *bound = NULL;

    if (deadline_us != CLOCK_NEVER) {
        int64_t left = deadline_us - clock_monotonic_us();

        left = left < 0 ? 0 : left;
        timeout.tv_sec = left / 1000000;
        timeout.tv_nsec = left % 1000000 * 1000;
        bound = &timeout;
    }
    if (ppoll(polled, count, bound, NULL) < 0) {
        if (signal_check != NULL && signal_check())
            interrupt_waiting();
        for (nfds_t i = 0; i < count; i++)
            polled[i].revents = 0;
    }
    distribute(deadline_us);
}

/* Run whoever can run next; returns when it is the current fiber's turn again. */
static void schedule(void)
{
    for (;;) {
        Fiber *fiber = current->next;

        while (fiber != current && fiber->state != FIBER_RUNNABLE)
            fiber = fiber->next;
        if (fiber->state == FIBER_RUNNABLE) {
            switch_to(fiber);
            return;
        }
        poll_all();
    }
}

/* The usual case, one fiber with a descriptor or two, without the book-keeping for many. */
enum { ALONE_MAX = 3 };

static WaitEnd wait_alone(struct pollfd *fds, nfds_t count)
{
    struct pollfd all[ALONE_MAX + 1];
    int ready;

    for (;;) {
        for (nfds_t i = 0; i < count; i++)
            all[i] = fds[i];
        all[count] = (struct pollfd){.fd = interrupt_fd, .events = POLLIN};
        ready = ppoll(all, count + 1, NULL, NULL);
        if (interrupt_signal != 0 || (ready < 0 && signal_check != NULL && signal_check()))
            return WAIT_INTERRUPTED;
        if (ready > 0) {
            for (nfds_t i = 0; i < count; i++)
                fds[i].revents = all[i].revents;
            return WAIT_READY;
        }
    }
}

WaitEnd wait_for(struct pollfd *fds, nfds_t count, int64_t deadline_us, WaitMode mode)
{
    current->fds = fds;
    current->count = count;
    current->about = NULL;
    current->deadline_us = deadline_us;
    current->mode = mode;
    if (interrupted(current))
        return WAIT_INTERRUPTED;
    if (current->next == current && deadline_us == CLOCK_NEVER && mode == WAIT_NORMAL &&
        count <= ALONE_MAX)
        return wait_alone(fds, count);
    current->state = FIBER_WAITING;
    schedule();
    return current->end;
}

WaitEnd wait_told(const void *about, WaitMode mode)
{
    current->count = 0;
    current->about = about;
    current->deadline_us = CLOCK_NEVER;
    current->mode = mode;
    if (interrupted(current))
        return WAIT_INTERRUPTED;
    current->state = FIBER_WAITING;
    schedule();
    return current->end;
}

void wait_tell(const void *about)
{
    for (Fiber *fiber = current->next; fiber != current; fiber = fiber->next) {
        if (fiber->state == FIBER_WAITING && fiber->about == about)
            wake(fiber, WAIT_READY);
    }
}

static void fiber_main(void)
{
    arrived();
    current->run(current->argument);
    current->state = FIBER_ENDED;
    wait_tell(current);
    schedule(); /* never comes back */
}

bool fiber_start(Fiber **fiber, void (*run)(void *), void *argument, Error *err)
{
    long page = sysconf(_SC_PAGESIZE);
    Fiber *made = calloc(1, sizeof *made);
    char *stack;

    if (made == NULL)
        return error_set(err, ERROR_USAGE, "out of memory");
    stack = mmap(NULL, FIBER_STACK_SIZE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) {
        free(made);
        return error_set(err, ERROR_USAGE, "no memory for a task's stack: %s", strerror(errno));
    }
    mprotect(stack, (size_t)page, PROT_NONE); /* an overflow hits this, not a neighbour */
    made->stack = stack;
    made->run = run;
    made->argument = argument;
    made->state = FIBER_RUNNABLE;
#ifdef __SANITIZE_ADDRESS__
    made->stack_bottom = stack;
    made->stack_size = FIBER_STACK_SIZE;
#endif
    getcontext(&made->context);
    made->context.uc_stack.ss_sp = stack;
    made->context.uc_stack.ss_size = FIBER_STACK_SIZE;
    made->context.uc_link = NULL;
    makecontext(&made->context, fiber_main, 0);
    made->next = current->next;
    current->next = made;
    *fiber = made;
    return true;
}

void fiber_cancel(Fiber *fiber)
{
    fiber->cancels++;
    if (fiber->state == FIBER_WAITING && fiber->mode == WAIT_NORMAL)
        wake(fiber, WAIT_INTERRUPTED);
}

void fiber_absolve(Fiber *fiber)
{
    fiber->cancels--;
}

static void unlink_fiber(Fiber *fiber)
{
    Fiber *before = fiber;

    while (before->next != fiber)
        before = before->next;
    before->next = fiber->next;
}

void fiber_join(Fiber *fiber)
{
    while (fiber->state != FIBER_ENDED)
        wait_told(fiber, WAIT_CLEANUP);
    unlink_fiber(fiber);
    munmap(fiber->stack, FIBER_STACK_SIZE);
    free(fiber);
}

Fiber *fiber_current(void)
{
    return current;
}

void *volatile *fiber_slot(int slot)
{
    return &current->slots[slot];
}

void fiber_each_slot(int slot, void (*visit)(void *value))
{
    Fiber *first = current;
    Fiber *fiber = first;

    do {
        visit(fiber->slots[slot]);
        fiber = fiber->next;
    } while (fiber != first);
}
