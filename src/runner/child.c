#include "runner/child.h"

#include "base/process.h"
#include "runner/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MESSAGE_MAX = 16 * 1024 * 1024,
    OUTPUT_LINE_MAX = 8192,
    GRACE_US = 500000, /* when this process has gone, it has that long to unwind */
    SAY_US = 5000000,
    WORDS_MAX = 8,
};

struct Child {
    Process *process;
    ProcessStatus status;
    Lines said, out, err;
    const LogField *fields;
    Tail *tail;
};

/* ---- starting -------------------------------------------------------------------------------- */

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* A pipe whose read end `lines` has from now on; returns the other one, -1 where there is none. */
static int open_pipe(Lines *lines)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    lines_open(lines, ends[0], OUTPUT_LINE_MAX);
    return ends[1];
}

/* The log's descriptor and the socket's are inherited, by their numbers. */
static bool start(Child *child, int socket, Error *err)
{
    char fd[TEXT_INTEGER_SIZE], log_fd[TEXT_INTEGER_SIZE];
    int log = fcntl(STDERR_FILENO, F_DUPFD, 3);
    const char *const argv[WORDS_MAX] = {
        "/proc/self/exe", "work", "--fd", text_integer(fd, socket), "--log-fd",
        text_integer(log_fd, log), NULL,
    };
    ProcessSpec spec = {.argv = argv, .grace_us = GRACE_US};
    int ignored;
    bool ok = false;

    spec.in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    spec.out = open_pipe(&child->out);
    spec.err = open_pipe(&child->err);
    if (log < 0 || spec.in < 0 || spec.out < 0 || spec.err < 0)
        error_set(err, ERROR_USAGE, "no descriptor for a worker: %s", strerror(errno));
    else
        ok = process_start(&child->process, &spec, &ignored, err);
    close_fd(log);
    close_fd(spec.in);
    close_fd(spec.out);
    close_fd(spec.err);
    return ok;
}

bool child_start(Child **made, const json_t *settings, Error *err)
{
    Child *child = calloc(1, sizeof *child);
    json_t *message = NULL;
    int ends[2] = {-1, -1};
    bool ok = false;

    *made = NULL;
    if (child == NULL) {
        error_set(err, ERROR_USAGE, "out of memory");
        goto out;
    }
    child->said.fd = child->out.fd = child->err.fd = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        error_set(err, ERROR_USAGE, "socketpair: %s", strerror(errno));
        goto out;
    }
    lines_open(&child->said, ends[0], MESSAGE_MAX);
    fcntl(ends[1], F_SETFD, 0);
    message = json_pack("{s:O}", "settings", settings);
    ok = start(child, ends[1], err) && child_say(child, message, err);
out:
    close_fd(ends[1]);
    json_decref(message);
    if (ok)
        *made = child;
    else
        child_free(child);
    return ok;
}

/* ---- speaking and hearing -------------------------------------------------------------------- */

bool child_say(Child *child, const json_t *message, Error *err)
{
    char *text = message == NULL ? NULL : json_dumps(message, JSON_COMPACT);
    size_t length = text == NULL ? 0 : strlen(text), sent = 0;
    int64_t deadline_us = clock_deadline(SAY_US);

    if (text == NULL)
        return error_set(err, ERROR_USAGE, "out of memory");
    text[length] = '\n'; /* in the place of its NUL */
    while (child->said.fd >= 0 && sent <= length) {
        ssize_t now = send(child->said.fd, text + sent, length + 1 - sent, MSG_NOSIGNAL);
        struct pollfd fd = {.fd = child->said.fd, .events = POLLOUT};

        if (now > 0)
            sent += (size_t)now;
        else if (errno != EINTR &&
                 (errno != EAGAIN || wait_for(&fd, 1, deadline_us, WAIT_CLEANUP) != WAIT_READY))
            break;
    }
    free(text);
    return sent > length || error_set(err, ERROR_USAGE, "the worker does not listen");
}

void child_set_fields(Child *child, const LogField *fields, Tail *tail)
{
    child->fields = fields;
    child->tail = tail;
}

/* `whole`: also what has no end yet. */
static void log_lines(const Child *child, Lines *lines, const char *from, bool whole)
{
    enum { FIELDS_MAX = 8 };
    LogField fields[FIELDS_MAX] = {{.name = "from", .value = from}};
    int count = 1;
    const char *line;

    for (const LogField *field = child->fields; field != NULL && field->name != NULL; field++) {
        if (count < FIELDS_MAX - 1)
            fields[count++] = *field;
    }
    while ((line = lines_next(lines)) != NULL || (whole && (line = lines_rest(lines)) != NULL)) {
        log_write(LOG_INFO, line, fields);
        if (child->tail == NULL)
            continue;
        tail_append(child->tail, line, strlen(line));
        tail_append(child->tail, "\n", 1);
    }
}

static void read_output(Child *child, bool whole)
{
    lines_fill(&child->out);
    log_lines(child, &child->out, "stdout", whole);
    lines_fill(&child->err);
    log_lines(child, &child->err, "stderr", whole);
}

void child_drain(Child *child)
{
    read_output(child, true);
}

/* The next message of those that were read. What is none is logged. */
static json_t *next_message(Child *child)
{
    const char *line;

    while ((line = lines_next(&child->said)) != NULL) {
        json_t *message = json_loads(line, 0, NULL);

        if (message != NULL)
            return message;
        log_printf(LOG_WARNING, "a worker said what is no JSON: %.200s", line);
    }
    return NULL;
}

static bool is_over(const Child *child)
{
    return child->status.state == PROCESS_ENDED && child->said.fd < 0 && child->out.fd < 0 &&
           child->err.fd < 0;
}

ChildNews child_wait(Child *child, const Bell *bell, int64_t deadline_us, json_t **message)
{
    while ((*message = next_message(child)) == NULL) {
        struct pollfd fds[5] = {
            {.fd = bell->fd, .events = POLLIN},
            {.fd = child->status.state == PROCESS_RUNNING ? process_fd(child->process) : -1,
             .events = POLLIN},
            {.fd = child->said.fd, .events = POLLIN},
            {.fd = child->out.fd, .events = POLLIN},
            {.fd = child->err.fd, .events = POLLIN},
        };
        WaitEnd end;

        if (is_over(child))
            return CHILD_ENDED;
        end = wait_for(fds, 5, deadline_us, WAIT_NORMAL);
        if (end != WAIT_READY)
            return end == WAIT_DEADLINE ? CHILD_DEADLINE : CHILD_CANCELLED;
        if (fds[1].revents != 0)
            process_read(child->process, &child->status);
        if (fds[2].revents != 0)
            lines_fill(&child->said);
        if (fds[3].revents != 0 || fds[4].revents != 0)
            read_output(child, false);
        if (fds[0].revents != 0) {
            bell_quiet(bell);
            return CHILD_RUNG;
        }
    }
    return CHILD_SAID;
}

/* ---- ending ---------------------------------------------------------------------------------- */

void child_cancel(Child *child)
{
    process_signal(child->process, SIGTERM);
}

void child_dismiss(Child *child)
{
    if (child->said.fd >= 0)
        shutdown(child->said.fd, SHUT_WR);
}

void child_kill(Child *child)
{
    process_kill(child->process);
}

int child_exit_code(const Child *child)
{
    return child->status.exit_code;
}

void child_free(Child *child)
{
    if (child == NULL)
        return;
    process_free(child->process);
    lines_close(&child->said);
    lines_close(&child->out);
    lines_close(&child->err);
    free(child);
}
