#include "pg/wait.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
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
    bool serves;
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
static Fiber *served; /* in wait_serve: it and the serving fibers run, and nobody else */

static int interrupt_fd = -1;
static volatile sig_atomic_t interrupt_signal;
static bool interrupt_told;
static volatile sig_atomic_t stop_reason;
static _Atomic bool inside;
static _Atomic unsigned begun;
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

void wait_stop(WaitStop why)
{
    int saved = errno;
    uint64_t one = 1;

    if (stop_reason == STOP_NONE)
        stop_reason = (sig_atomic_t)why;
    (void)!write(interrupt_fd, &one, sizeof one);
    errno = saved;
}

WaitStop wait_stopped(void)
{
    return (WaitStop)stop_reason;
}

void wait_go_on(void)
{
    uint64_t count;

    if (stop_reason == STOP_NONE)
        return;
    stop_reason = STOP_NONE;
    (void)!read(interrupt_fd, &count, sizeof count);
    if (interrupt_signal != 0) /* what was read may have been its */
        wait_interrupt((int)interrupt_signal);
}

bool wait_is_inside(void)
{
    return inside;
}

unsigned wait_begun(void)
{
    return begun;
}

/* Every wait, by anyone? */
static bool all_interrupted(void)
{
    return interrupt_signal != 0 || stop_reason != STOP_NONE;
}

bool wait_is_interrupted(void)
{
    return all_interrupted() || current->cancels > 0;
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
    if (stop_reason == STOP_LOCK_LOST)
        return error_set(err, ERROR_LOCK_LOST, "the session that held the job's lock has ended: the "
                                               "job is stopped");
    if (stop_reason == STOP_TIMED_OUT)
        return error_set(err, ERROR_TIMED_OUT, "max_run has passed: the job is stopped");
    if (stop_reason == STOP_CANCELLED)
        return error_set(err, ERROR_CANCELLED, "the run is cancelled: the job is stopped");
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
    return fiber->mode == WAIT_NORMAL && (all_interrupted() || fiber->cancels > 0);
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
    /* Once an interrupt came, its descriptor is ready for long: cleanup waits must not spin. */
    if (all_interrupted())
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

/* ppoll(2), with what wait_is_inside tells of it. */
static int poll_inside(struct pollfd *fds, nfds_t count, const struct timespec *bound)
{
    int ready;

    atomic_fetch_add_explicit(&begun, 1, memory_order_relaxed);
    atomic_store_explicit(&inside, true, memory_order_relaxed);
    ready = ppoll(fds, count, bound, NULL);
    atomic_store_explicit(&inside, false, memory_order_relaxed);
    return ready;
}

/* What interrupts all may have come while none of them polled. */
static bool wake_interrupted(void)
{
    bool woken = false;
    Fiber *fiber = current;

    do {
        if (fiber->state == FIBER_WAITING && interrupted(fiber)) {
            wake(fiber, WAIT_INTERRUPTED);
            woken = true;
        }
        fiber = fiber->next;
    } while (fiber != current);
    return woken;
}

static void poll_all(void)
{
    int64_t deadline_us;
    nfds_t count;
    struct timespec timeout;
    struct timespec *bound = NULL;

    if (all_interrupted() && wake_interrupted())
        return;
    count = gather(&deadline_us);
    if (deadline_us != CLOCK_NEVER) {
        int64_t left = deadline_us - clock_monotonic_us();

        left = left < 0 ? 0 : left;
        timeout.tv_sec = left / 1000000;
        timeout.tv_nsec = left % 1000000 * 1000;
        bound = &timeout;
    }
    if (poll_inside(polled, count, bound) < 0) {
        if (signal_check != NULL && signal_check())
            interrupt_waiting();
        for (nfds_t i = 0; i < count; i++)
            polled[i].revents = 0;
    }
    distribute(deadline_us);
}

static bool may_run(const Fiber *fiber)
{
    return fiber->state == FIBER_RUNNABLE && (served == NULL || fiber == served || fiber->serves);
}

/* Run whoever can run next; returns when it is the current fiber's turn again. */
static void schedule(void)
{
    for (;;) {
        Fiber *fiber = current->next;

        while (fiber != current && !may_run(fiber))
            fiber = fiber->next;
        if (may_run(fiber)) {
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
        ready = poll_inside(all, count + 1, NULL);
        if (all_interrupted() || (ready < 0 && signal_check != NULL && signal_check()))
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

/* ---- stacks ---------------------------------------------------------------------------------- */

/* To map and unmap one costs more than a short task does. */
enum { STACKS_KEPT = 64 };

static char *kept_stacks[STACKS_KEPT];
static unsigned kept_count;

static char *stack_new(void)
{
    char *stack;

    if (kept_count > 0)
        return kept_stacks[--kept_count];
    stack = mmap(NULL, FIBER_STACK_SIZE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return NULL;
    /* an overflow hits this, not a neighbour */
    mprotect(stack, (size_t)sysconf(_SC_PAGESIZE), PROT_NONE);
    return stack;
}

static void stack_free(char *stack)
{
#ifdef __SANITIZE_ADDRESS__
    bool keep = false; /* it is to find what points to one whose fiber has ended */
#else
    bool keep = kept_count < STACKS_KEPT;
#endif

    if (keep)
        kept_stacks[kept_count++] = stack;
    else
        munmap(stack, FIBER_STACK_SIZE);
}

/* ---- fibers ---------------------------------------------------------------------------------- */

bool fiber_start(Fiber **fiber, void (*run)(void *), void *argument, Error *err)
{
    Fiber *made = calloc(1, sizeof *made);

    if (made == NULL)
        return error_set(err, ERROR_USAGE, "out of memory");
    made->stack = stack_new();
    if (made->stack == NULL) {
        free(made);
        return error_set(err, ERROR_USAGE, "no memory for a task's stack: %s", strerror(errno));
    }
    made->run = run;
    made->argument = argument;
    made->state = FIBER_RUNNABLE;
#ifdef __SANITIZE_ADDRESS__
    made->stack_bottom = made->stack;
    made->stack_size = FIBER_STACK_SIZE;
#endif
    getcontext(&made->context);
    made->context.uc_stack.ss_sp = made->stack;
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

void fiber_serve(Fiber *fiber)
{
    fiber->serves = true;
}

void wait_serve(void)
{
    if (served != NULL)
        return;
    served = current;
    wait_for(NULL, 0, 0, WAIT_CLEANUP);
    served = NULL;
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
    stack_free(fiber->stack);
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
