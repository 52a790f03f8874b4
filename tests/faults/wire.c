/*
 * A proxy between clients and a PostgreSQL, over Unix sockets, that cuts the wire when it is told to.
 *
 * Usage: wire SOCKET SERVER_SOCKET CONTROL REPORT
 *   SOCKET         where clients connect (libpq: FOLDER/.s.PGSQL.PORT)
 *   SERVER_SOCKET  where the server listens
 *   CONTROL        a FIFO with commands, one a line
 *   REPORT         a file that gets a line for each kill
 *
 * Commands:
 *   pass   bytes go through (it begins with `hold`)
 *   hold   no byte goes through and no connection is made; what was sent arrives with the next `pass`,
 *          as after a network's silence
 *   cut    all connections are ended, new ones too
 *   kill WHEN N WHOSE VICTIM
 *          SIGKILL at the N-th statement from now on. WHEN: `before` the server gets it, or `after` it
 *          has answered and before the client knows. WHOSE statements count: of the process with this
 *          pid, or, -PID, of all others. VICTIM: a pid; 0: whose statement it is.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    BUFFER = 1 << 16,
    TEXT = 90,       /* of a statement, in the report */
    CONNECTIONS = 256,
    LENGTH_SIZE = 4, /* a message's length counts itself */
};

typedef enum { HOLD, PASS, CUT } Mode;

/* A prepared statement's name and the beginning of its text. */
typedef struct Prepared {
    struct Prepared *next;
    char name[64];
    char text[TEXT];
} Prepared;

typedef struct {
    int client, server;
    pid_t peer;
    char up[BUFFER], down[BUFFER]; /* to the server; to the client */
    size_t up_begin, up_end, down_begin, down_end;
    /* the client's messages, as they pass */
    bool started;       /* the start-up message is over */
    unsigned char head[5];
    size_t head_length; /* of the current message, as far as it was read */
    size_t body_left;
    char body[TEXT + 128];
    size_t body_length;
    char text[TEXT]; /* of the statement before the next Sync */
    Prepared *prepared;
    bool answering; /* killed when the server has answered */
} Connection;

static Connection *connections[CONNECTIONS];
static Mode mode = HOLD;
static const char *server_path;
static FILE *report;

static struct {
    bool on, after;
    int left;
    pid_t whose, victim;
} plan;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "too long: %s\n", path);
        exit(1);
    }
    strcpy(address.sun_path, path);
    return address;
}

/* ---- statements ------------------------------------------------------------------------------- */

/* Of a transaction in one flight, the statement that says most. */
static void note_text(Connection *c, const char *text)
{
    if (strcmp(text, "COMMIT") != 0)
        memcpy(c->text, text, TEXT);
}

static void copy_text(char *to, size_t size, const char *from)
{
    size_t length = 0;

    for (; *from != '\0' && length + 1 < size; from++) {
        if (*from != '\n' || (length > 0 && to[length - 1] != ' '))
            to[length++] = *from == '\n' ? ' ' : *from;
    }
    to[length] = '\0';
}

static void note_parse(Connection *c)
{
    const char *name = c->body;
    const char *text = name + strlen(name) + 1;
    Prepared *prepared = calloc(1, sizeof *prepared);

    if (prepared == NULL)
        fail("calloc");
    copy_text(prepared->name, sizeof prepared->name, name);
    copy_text(prepared->text, sizeof prepared->text, text < c->body + c->body_length ? text : "");
    prepared->next = c->prepared;
    c->prepared = prepared;
    note_text(c, prepared->text);
}

static void note_bind(Connection *c)
{
    const char *name = c->body + strlen(c->body) + 1;

    for (const Prepared *p = c->prepared; p != NULL; p = p->next) {
        if (strcmp(p->name, name) == 0) {
            note_text(c, p->text);
            return;
        }
    }
}

static void kill_victim(const Connection *c)
{
    pid_t victim = plan.victim == 0 ? c->peer : plan.victim;

    kill(victim, SIGKILL);
    fprintf(report, "%d %s %s\n", (int)victim, plan.after ? "after" : "before", c->text);
    fflush(report);
    plan.on = false;
}

/* A statement is whole. True: the server is not to get it. */
static bool is_last(Connection *c)
{
    bool counts = plan.whose > 0 ? c->peer == plan.whose : c->peer != -plan.whose;

    if (!plan.on || !counts || --plan.left > 0)
        return false;
    if (plan.after)
        c->answering = true;
    else
        kill_victim(c);
    return !plan.after;
}

static size_t big_endian(const unsigned char *bytes)
{
    return (size_t)bytes[0] << 24 | (size_t)bytes[1] << 16 | (size_t)bytes[2] << 8 | bytes[3];
}

static bool note_message(Connection *c)
{
    char type = (char)c->head[0];

    c->body[c->body_length] = c->body[c->body_length + 1] = '\0';
    if (!c->started) {
        c->started = true;
        return false;
    }
    if (type == 'P')
        note_parse(c);
    else if (type == 'B')
        note_bind(c);
    else if (type == 'Q')
        copy_text(c->text, TEXT, c->body);
    return (type == 'Q' || type == 'S') && is_last(c);
}

/* Read what goes to the server. False: it is not to go there. */
static bool note_bytes(Connection *c, const char *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        size_t head_size = c->started ? 5 : 4;

        if (c->head_length < head_size) {
            c->head[c->head_length++] = (unsigned char)bytes[i];
            if (c->head_length < head_size)
                continue;
            c->body_left = big_endian(c->head + head_size - 4) - LENGTH_SIZE;
            c->body_length = 0;
        } else {
            if (c->body_length < sizeof c->body - 2)
                c->body[c->body_length++] = bytes[i];
            c->body_left--;
        }
        if (c->body_left == 0) {
            c->head_length = 0;
            if (note_message(c))
                return false;
        }
    }
    return true;
}

/* Has the server answered, to its ReadyForQuery? */
static bool has_answered(const char *bytes, size_t length)
{
    return length >= 6 && memcmp(bytes + length - 6, "Z\0\0\0\5", 5) == 0;
}

/* ---- connections ------------------------------------------------------------------------------ */

static void end_connection(int i)
{
    Connection *c = connections[i];

    close(c->client);
    close(c->server);
    while (c->prepared != NULL) {
        Prepared *next = c->prepared->next;

        free(c->prepared);
        c->prepared = next;
    }
    free(c);
    connections[i] = NULL;
}

static void accept_one(int listener)
{
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct sockaddr_un address = address_of(server_path);
    struct ucred peer;
    socklen_t size = sizeof peer;
    Connection *c;

    if (client < 0)
        return;
    if (mode == CUT) {
        close(client);
        return;
    }
    for (int i = 0; i < CONNECTIONS; i++) {
        if (connections[i] != NULL)
            continue;
        c = calloc(1, sizeof *c);
        if (c == NULL || getsockopt(client, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
            fail("accept");
        c->client = client;
        c->peer = peer.pid;
        c->server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        connections[i] = c;
        if (connect(c->server, (struct sockaddr *)&address, sizeof address) != 0)
            end_connection(i);
        else
            fcntl(c->server, F_SETFL, O_NONBLOCK);
        return;
    }
    close(client);
}

/* False: the connection is over. */
static bool read_some(int fd, char *buffer, size_t *begin, size_t *end)
{
    ssize_t got = read(fd, buffer, BUFFER);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (got <= 0)
        return false;
    *begin = 0;
    *end = (size_t)got;
    return true;
}

static bool write_some(int fd, const char *buffer, size_t *begin, const size_t *end)
{
    ssize_t put = send(fd, buffer + *begin, *end - *begin, MSG_NOSIGNAL);

    if (put < 0)
        return errno == EAGAIN || errno == EINTR;
    *begin += (size_t)put;
    return true;
}

static short events_of(bool empty, short full)
{
    return empty ? POLLIN : full;
}

static void set_events(const Connection *c, struct pollfd *fds)
{
    bool up_empty = c->up_begin == c->up_end;
    bool down_empty = c->down_begin == c->down_end;

    fds[0] = (struct pollfd){.fd = mode == PASS ? c->client : -1};
    fds[1] = (struct pollfd){.fd = mode == PASS ? c->server : -1};
    fds[0].events = (short)(events_of(up_empty, 0) | (down_empty ? 0 : POLLOUT));
    fds[1].events = (short)(events_of(down_empty, 0) | (up_empty ? 0 : POLLOUT));
}

static bool serve(Connection *c, const struct pollfd *fds)
{
    bool is_over = false;

    if (fds[0].revents != 0 && c->up_begin == c->up_end) {
        if (!read_some(c->client, c->up, &c->up_begin, &c->up_end))
            is_over = true;
        else if (!note_bytes(c, c->up + c->up_begin, c->up_end - c->up_begin))
            return false;
    }
    if (fds[1].revents != 0 && c->down_begin == c->down_end) {
        if (!read_some(c->server, c->down, &c->down_begin, &c->down_end))
            is_over = true;
        if (c->answering && has_answered(c->down + c->down_begin, c->down_end - c->down_begin)) {
            kill_victim(c);
            return false;
        }
    }
    if (c->up_begin < c->up_end && !write_some(c->server, c->up, &c->up_begin, &c->up_end))
        return false;
    if (c->down_begin < c->down_end &&
        !write_some(c->client, c->down, &c->down_begin, &c->down_end))
        return false;
    return !is_over;
}

/* ---- commands --------------------------------------------------------------------------------- */

static void obey(const char *line)
{
    char when[8];
    int left, whose, victim;

    if (strcmp(line, "pass") == 0) {
        mode = PASS;
    } else if (strcmp(line, "hold") == 0) {
        mode = HOLD;
    } else if (strcmp(line, "cut") == 0) {
        mode = CUT;
        for (int i = 0; i < CONNECTIONS; i++) {
            if (connections[i] != NULL)
                end_connection(i);
        }
    } else if (sscanf(line, "kill %7s %d %d %d", when, &left, &whose, &victim) == 4) {
        plan.on = true;
        plan.after = strcmp(when, "after") == 0;
        plan.left = left;
        plan.whose = whose;
        plan.victim = victim;
    } else {
        fprintf(stderr, "unknown command: %s\n", line);
    }
}

static void hear(int control)
{
    static char line[128];
    static size_t length;
    char byte;

    while (read(control, &byte, 1) == 1) {
        if (byte == '\n') {
            line[length] = '\0';
            length = 0;
            obey(line);
        } else if (length + 1 < sizeof line) {
            line[length++] = byte;
        }
    }
}

int main(int argc, char **argv)
{
    static struct pollfd fds[2 + 2 * CONNECTIONS];
    struct sockaddr_un address;
    int listener, control;

    if (argc != 5) {
        fprintf(stderr, "usage: wire SOCKET SERVER_SOCKET CONTROL REPORT\n");
        return 2;
    }
    server_path = argv[2];
    address = address_of(argv[1]);
    control = open(argv[3], O_RDWR | O_NONBLOCK | O_CLOEXEC);
    report = fopen(argv[4], "w");
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (control < 0 || report == NULL || listener < 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 128) != 0)
        fail("wire");
    for (;;) {
        fds[0] = (struct pollfd){.fd = control, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = mode == HOLD ? -1 : listener, .events = POLLIN};
        for (int i = 0; i < CONNECTIONS; i++) {
            fds[2 + 2 * i].fd = fds[3 + 2 * i].fd = -1;
            if (connections[i] != NULL)
                set_events(connections[i], &fds[2 + 2 * i]);
        }
        if (poll(fds, 2 + 2 * CONNECTIONS, -1) < 0 && errno != EINTR)
            fail("poll");
        for (int i = 0; i < CONNECTIONS; i++) {
            if (connections[i] != NULL && !serve(connections[i], &fds[2 + 2 * i]))
                end_connection(i);
        }
        if (fds[1].revents != 0)
            accept_one(listener);
        if (fds[0].revents != 0)
            hear(control);
    }
}
