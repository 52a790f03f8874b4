/*
 * HTTP of the supervisor (runner.md 29): /metrics, /healthz and /readyz, answered by libmicrohttpd
 * on the fibers of the one thread: http_serve runs it whenever its descriptors are ready.
 *
 * A connection has one request, and 30 s in all; there are at most 64. What waits for the database
 * is bounded (sample.h), and keeps nobody else waiting.
 */
#ifndef LOCKKEEPER_RUNNER_HTTP_H
#define LOCKKEEPER_RUNNER_HTTP_H

#include "base/error.h"
#include "runner/metrics.h"
#include "runner/sample.h"

#include <stdbool.h>
#include <stddef.h>

enum { HTTP_HOST_SIZE = 256, HTTP_PORT_SIZE = 6 };

/* Where to listen. */
typedef struct {
    char host[HTTP_HOST_SIZE]; /* a name or a number; "": everywhere */
    char port[HTTP_PORT_SIZE]; /* 0: one that is free */
} HttpAddress;

/* "127.0.0.1:9187", "[::1]:9187", "localhost:9187", ":9187". False with a usage error. */
bool http_address_parse(const char *text, HttpAddress *address, Error *err);

typedef struct {
    const char *listen;
    Metrics *metrics;
    Sampler *sampler;
    void *supervisor; /* for these two, which may not wait: */
    /* Tell of the jobs (metrics_job), and of the moment. */
    void (*look)(void *supervisor, Metrics *metrics, MetricsNow *now);
    /* NULL: ready; else why not: a constant. */
    const char *(*unready)(void *supervisor);
} HttpSpec;

typedef struct Http Http;

/* Listen, and log where. NULL with *err. */
Http *http_open(const HttpSpec *spec, Error *err);

/* Main functions of two fibers, until these are cancelled: requests, and texts of metrics. */
void http_serve(Http *http);
void http_scrape(Http *http);

/* Once they have ended. NULL is fine. */
void http_close(Http *http);

#endif
