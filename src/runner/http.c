#include "runner/http.h"

#include "base/clock.h"
#include "base/log.h"
#include "runner/bell.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    VISITS_MAX = 64,
    VISIT_US = 30000000, /* of a connection, from its first to its last byte */
    SILENCE_S = 10,
    HEAD_MAX = 16384, /* bytes of a request's head, and of a connection's memory */
    BODY_MAX = 65536, /* nobody needs one */
    BACKLOG = 64,
    LAST_RUNS = 4,
};

/* A connection. */
typedef struct Visit {
    struct Visit *next, *previous;
    Http *http;
    struct MHD_Connection *connection;
    int64_t deadline_us;
    size_t received; /* of its request's body */
    bool suspended;  /* it waits for a text */
    bool served;     /* and has one */
    bool ended;      /* its time is over */
} Visit;

struct Http {
    HttpSpec spec;
    struct MHD_Daemon *daemon;
    int epoll_fd;
    Bell asked, made; /* a text */
    struct MHD_Response *text; /* the newest; NULL: none */
    bool closing;
    Visit *first, *last; /* oldest first */
};

/* ---- answers --------------------------------------------------------------------------------- */

static struct MHD_Response *response_of(size_t length, void *body, enum MHD_ResponseMemoryMode mode,
                                        const char *type)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(length, body, mode);

    if (response != NULL) {
        MHD_add_response_header(response, "Content-Type", type);
        MHD_add_response_header(response, "Cache-Control", "no-store");
        MHD_add_response_header(response, "Connection", "close");
    }
    return response;
}

/* MHD_NO ends the connection. */
static enum MHD_Result answer_text(struct MHD_Connection *connection, unsigned status,
                                   const char *text)
{
    struct MHD_Response *response =
        response_of(strlen(text), (void *)text, MHD_RESPMEM_MUST_COPY, "text/plain; charset=utf-8");
    enum MHD_Result queued;

    if (response == NULL)
        return MHD_NO;
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(response, "Allow", "GET, HEAD");
    queued = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return queued;
}

/* The connection sleeps until there is a text that was begun after it came. */
static enum MHD_Result answer_metrics(Visit *visit)
{
    Http *http = visit->http;

    if (http->closing)
        return answer_text(visit->connection, MHD_HTTP_SERVICE_UNAVAILABLE, "ending\n");
    if (!visit->served) {
        visit->suspended = true;
        MHD_suspend_connection(visit->connection);
        bell_ring(&http->asked);
        return MHD_YES;
    }
    if (http->text == NULL)
        return answer_text(visit->connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
    return MHD_queue_response(visit->connection, MHD_HTTP_OK, http->text);
}

static enum MHD_Result answer_ready(Visit *visit)
{
    const char *why = visit->http->spec.unready(visit->http->spec.supervisor);
    char text[256] = "ready\n";

    if (why != NULL) {
        text_copy(text, sizeof text - 1, why);
        strcat(text, "\n");
    }
    return answer_text(visit->connection,
                       why == NULL ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, text);
}

static enum MHD_Result route(Visit *visit, const char *path, const char *method)
{
    bool reads = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
    bool known = strcmp(path, "/metrics") == 0 || strcmp(path, "/healthz") == 0 ||
                 strcmp(path, "/readyz") == 0;

    if (!known)
        return answer_text(visit->connection, MHD_HTTP_NOT_FOUND,
                           "not found; there are /metrics, /healthz and /readyz\n");
    if (!reads)
        return answer_text(visit->connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    if (strcmp(path, "/metrics") == 0)
        return answer_metrics(visit);
    if (strcmp(path, "/readyz") == 0)
        return answer_ready(visit);
    return answer_text(visit->connection, MHD_HTTP_OK, "ok\n");
}

static bool announces_too_much(struct MHD_Connection *connection)
{
    const char *length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "Content-Length");

    return length != NULL && strtoull(length, NULL, 10) > BODY_MAX;
}

/* For libmicrohttpd: called with a request's head, with each piece of its body, and at its end. */
static enum MHD_Result on_request(void *context, struct MHD_Connection *connection,
                                  const char *path, const char *method, const char *version,
                                  const char *body, size_t *body_size, void **seen)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    Visit *visit = info == NULL ? NULL : info->socket_context;

    (void)context;
    (void)version;
    (void)body;
    if (visit == NULL)
        return MHD_NO;
    if (*seen == NULL) {
        *seen = visit;
        return announces_too_much(connection)
                   ? answer_text(connection, MHD_HTTP_CONTENT_TOO_LARGE, "no body is wanted\n")
                   : MHD_YES;
    }
    if (*body_size > 0) { /* dropped; an answer to half a request might not be read */
        visit->received += *body_size;
        *body_size = 0;
        return visit->received > BODY_MAX ? MHD_NO : MHD_YES;
    }
    return route(visit, path, method);
}

/* ---- connections ----------------------------------------------------------------------------- */

static void begin_visit(Http *http, struct MHD_Connection *connection, void **socket_context)
{
    Visit *visit = calloc(1, sizeof *visit);

    *socket_context = visit;
    if (visit == NULL) /* on_request ends it */
        return;
    visit->http = http;
    visit->connection = connection;
    visit->deadline_us = clock_deadline(VISIT_US);
    visit->previous = http->last;
    *(http->last == NULL ? &http->first : &http->last->next) = visit;
    http->last = visit;
}

static void end_visit(Http *http, Visit *visit)
{
    if (visit == NULL)
        return;
    *(visit->previous == NULL ? &http->first : &visit->previous->next) = visit->next;
    *(visit->next == NULL ? &http->last : &visit->next->previous) = visit->previous;
    free(visit);
}

static void on_connection(void *context, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode what)
{
    if (what == MHD_CONNECTION_NOTIFY_STARTED)
        begin_visit(context, connection, socket_context);
    else
        end_visit(context, *socket_context);
}

/* A connection can't be ended from here, but its socket can: libmicrohttpd finds that. */
static void end_old_visits(Http *http)
{
    int64_t now_us = clock_monotonic_us();

    for (Visit *visit = http->first; visit != NULL && visit->deadline_us <= now_us;
         visit = visit->next) {
        if (!visit->ended) {
            visit->ended = true;
            shutdown(MHD_get_connection_info(visit->connection,
                                             MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd,
                     SHUT_RDWR);
        }
    }
}

static int64_t next_end(const Http *http)
{
    const Visit *visit = http->first;

    while (visit != NULL && visit->ended)
        visit = visit->next;
    return visit == NULL ? CLOCK_NEVER : visit->deadline_us;
}

/* ---- the fibers ------------------------------------------------------------------------------ */

static int64_t next_deadline(const Http *http)
{
    MHD_UNSIGNED_LONG_LONG ms;
    int64_t end_us = next_end(http), own_us = CLOCK_NEVER;

    if (MHD_get_timeout(http->daemon, &ms) == MHD_YES)
        own_us = clock_deadline((int64_t)ms * 1000);
    return end_us < own_us ? end_us : own_us;
}

void http_serve(Http *http)
{
    for (;;) {
        struct pollfd fds[] = {{.fd = http->epoll_fd, .events = POLLIN},
                               {.fd = http->made.fd, .events = POLLIN}};

        if (wait_for(fds, 2, next_deadline(http), WAIT_NORMAL) == WAIT_INTERRUPTED)
            return;
        bell_quiet(&http->made);
        end_old_visits(http);
        MHD_run(http->daemon);
    }
}

static struct MHD_Response *make_text(Http *http, const MetricsNow *now, const Sample *sample)
{
    struct MHD_Response *response = NULL;
    PQExpBufferData text;

    initPQExpBuffer(&text);
    metrics_write(http->spec.metrics, now, sample, &text);
    if (!PQExpBufferDataBroken(text))
        response = response_of(text.len, text.data, MHD_RESPMEM_MUST_FREE,
                               "text/plain; version=0.0.4; charset=utf-8");
    if (response == NULL)
        termPQExpBuffer(&text);
    return response;
}

static void serve_visits(Http *http, struct MHD_Response *text)
{
    if (http->text != NULL)
        MHD_destroy_response(http->text);
    http->text = text;
    for (Visit *visit = http->first; visit != NULL; visit = visit->next) {
        if (visit->suspended) {
            visit->suspended = false;
            visit->served = true;
            MHD_resume_connection(visit->connection);
        }
    }
    bell_ring(&http->made);
}

void http_scrape(Http *http)
{
    while (bell_wait(&http->asked, CLOCK_NEVER) == WAIT_READY) {
        MetricsNow now;
        const Sample *sample;

        http->spec.look(http->spec.supervisor, http->spec.metrics, &now);
        sample = sampler_get(http->spec.sampler, now.linked);
        http->spec.look(http->spec.supervisor, http->spec.metrics, &now);
        serve_visits(http, make_text(http, &now, sample));
    }
}

/* ---- where it listens ------------------------------------------------------------------------ */

static bool is_port(const char *text)
{
    return text[0] != '\0' && strlen(text) < HTTP_PORT_SIZE &&
           strspn(text, "0123456789") == strlen(text) && atoi(text) <= 65535;
}

bool http_address_parse(const char *text, HttpAddress *address, Error *err)
{
    const char *colon = strrchr(text, ':');
    const char *host = text;
    size_t length = colon == NULL ? 0 : (size_t)(colon - text);

    if (length >= 2 && host[0] == '[' && host[length - 1] == ']') {
        host++;
        length -= 2;
    } else if (length > 0 && memchr(host, ':', length) != NULL) {
        return error_usage(err, "--listen: an IPv6 address is written as in [::1]:9187");
    }
    if (colon == NULL || !is_port(colon + 1) || length >= HTTP_HOST_SIZE)
        return error_usage(err, "--listen: expected an address and a port, as in 127.0.0.1:9187, "
                                "[::1]:9187 or :9187");
    memcpy(address->host, host, length);
    address->host[length] = '\0';
    text_copy(address->port, sizeof address->port, colon + 1);
    return true;
}

static int open_listener(const struct addrinfo *info)
{
    int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int yes = 1, no = 0;

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (info->ai_family == AF_INET6) /* "[::]" is for IPv4, too */
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
    if (bind(fd, info->ai_addr, info->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        int saved = errno;

        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

/* A name may have addresses of both kinds: IPv4 is what most ask for then. */
static int listen_on(const HttpAddress *address, Error *err)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
    };
    bool anywhere = address->host[0] == '\0'; /* then a socket for IPv6 takes both */
    const int families[] = {anywhere ? AF_INET6 : AF_INET, anywhere ? AF_INET : AF_INET6};
    struct addrinfo *infos = NULL;
    int fd = -1;
    int failed = getaddrinfo(anywhere ? NULL : address->host, address->port, &hints, &infos);

    if (failed != 0) {
        error_set(err, ERROR_USAGE, "cannot listen on %s: %s", address->host,
                  gai_strerror(failed));
        return -1;
    }
    for (size_t i = 0; i < 2; i++) {
        for (const struct addrinfo *info = infos; info != NULL && fd < 0; info = info->ai_next) {
            if (info->ai_family == families[i])
                fd = open_listener(info);
        }
    }
    if (fd < 0)
        error_set(err, ERROR_USAGE, "cannot listen on %s:%s: %s",
                  anywhere ? "*" : address->host, address->port, strerror(errno));
    freeaddrinfo(infos);
    return fd;
}

static void log_address(int fd)
{
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    char host[NI_MAXHOST], port[NI_MAXSERV], name[NI_MAXHOST + NI_MAXSERV + 4];

    if (getsockname(fd, (struct sockaddr *)&own, &length) != 0 ||
        getnameinfo((struct sockaddr *)&own, length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return;
    snprintf(name, sizeof name, own.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    log_write(LOG_INFO, "listening", (LogField[]){{.name = "address", .value = name}, {0}});
}

static bool start(Http *http, int fd, Error *err)
{
    const union MHD_DaemonInfo *info;

    http->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_request, http,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)VISITS_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)SILENCE_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)HEAD_MAX, MHD_OPTION_NOTIFY_CONNECTION, on_connection, http, MHD_OPTION_END);
    if (http->daemon == NULL)
        return error_set(err, ERROR_USAGE, "no HTTP server could be started");
    info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (info == NULL)
        return error_set(err, ERROR_USAGE, "libmicrohttpd has no epoll");
    http->epoll_fd = info->epoll_fd;
    return true;
}

Http *http_open(const HttpSpec *spec, Error *err)
{
    HttpAddress address;
    Http *http = calloc(1, sizeof *http);
    int fd = -1;

    if (http == NULL) {
        error_set(err, ERROR_USAGE, "out of memory");
        return NULL;
    }
    *http = (Http){.spec = *spec, .asked.fd = -1, .made.fd = -1};
    if (!bell_open(&http->asked, err) || !bell_open(&http->made, err) ||
        !http_address_parse(spec->listen, &address, err) ||
        (fd = listen_on(&address, err)) < 0 || !start(http, fd, err)) {
        if (fd >= 0 && http->daemon == NULL)
            close(fd);
        http_close(http);
        return NULL;
    }
    log_address(fd);
    return http;
}

/* Nobody may sleep when libmicrohttpd ends. */
static void wake_visits(Http *http)
{
    for (Visit *visit = http->first; visit != NULL; visit = visit->next) {
        if (visit->suspended) {
            visit->suspended = false;
            MHD_resume_connection(visit->connection);
        }
    }
    for (int i = 0; i < LAST_RUNS; i++)
        MHD_run(http->daemon);
}

void http_close(Http *http)
{
    if (http == NULL)
        return;
    http->closing = true;
    if (http->daemon != NULL) {
        wake_visits(http);
        MHD_stop_daemon(http->daemon);
    }
    if (http->text != NULL)
        MHD_destroy_response(http->text);
    bell_close(&http->asked);
    bell_close(&http->made);
    free(http);
}
