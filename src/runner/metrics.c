#include "runner/metrics.h"

#include "base/clock.h"
#include "base/schedule.h"

#include <inttypes.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* So many jobs' lines are written before others may go on. */
enum { JOBS_AT_ONCE = 256 };

/* ---- histograms ------------------------------------------------------------------------------ */

enum { BOUNDS_MAX = 12, STATES = RUN_SKIPPED + 1 };

typedef struct {
    double most;
    const char *text; /* the label, as it stands in the text for ever */
} Bound;

/* Seconds; the last one's text is NULL, and stands for +Inf. */
static const Bound RUN_BOUNDS[] = {
    {0.01, "0.01"}, {0.1, "0.1"}, {1, "1"},       {5, "5"},         {15, "15"},       {60, "60"},
    {300, "300"},   {900, "900"}, {3600, "3600"}, {14400, "14400"}, {43200, "43200"}, {0, NULL}};
static const Bound WAIT_BOUNDS[] = {
    {0.001, "0.001"}, {0.01, "0.01"}, {0.1, "0.1"}, {1, "1"},     {5, "5"},      {15, "15"},
    {60, "60"},       {300, "300"},   {900, "900"}, {3600, "3600"}, {0, NULL}};
static const Bound LATE_BOUNDS[] = {
    {0.001, "0.001"}, {0.005, "0.005"}, {0.01, "0.01"}, {0.025, "0.025"}, {0.05, "0.05"},
    {0.1, "0.1"},     {0.25, "0.25"},   {0.5, "0.5"},   {1, "1"},         {5, "5"},
    {30, "30"},       {0, NULL}};

typedef struct {
    uint64_t counts[BOUNDS_MAX]; /* of each range */
    double sum;
} Histogram;

static void observe(Histogram *histogram, const Bound *bounds, double value)
{
    int i = 0;

    while (bounds[i].text != NULL && value > bounds[i].most)
        i++;
    histogram->counts[i]++;
    histogram->sum += value;
}

static bool is_empty(const Histogram *histogram)
{
    for (int i = 0; i < BOUNDS_MAX; i++) {
        if (histogram->counts[i] > 0)
            return false;
    }
    return true;
}

/* ---- what is counted ------------------------------------------------------------------------- */

/* Of one job; once there, it stays, as counters do. */
typedef struct {
    char *job;
    char *label; /* the name, escaped */
    uint64_t ended[STATES];
    Histogram ran, waited;
    uint64_t told; /* when it was told last: at which metrics_begin_jobs */
    int64_t due_us;
} Series;

struct Metrics {
    void *by_job; /* a tree of Series (tsearch) */
    Series **series;
    size_t count, room;
    uint64_t tellings;
    Histogram late;
};

static int compare(const void *left, const void *right)
{
    return strcmp(((const Series *)left)->job, ((const Series *)right)->job);
}

/* A label's value: well-formed UTF-8, with what would end it escaped. */
static void append_label(PQExpBuffer text, const char *value)
{
    bool whole = text_is_utf8(value, strlen(value));

    for (const char *c = value; *c != '\0'; c++) {
        if (*c == '\\' || *c == '"')
            appendPQExpBufferChar(text, '\\');
        if (*c == '\n')
            appendPQExpBufferStr(text, "\\n");
        else
            appendPQExpBufferChar(text, whole || (unsigned char)*c < 0x80 ? *c : '?');
    }
}

static void series_free(Series *series)
{
    if (series == NULL)
        return;
    free(series->job);
    free(series->label);
    free(series);
}

static Series *series_new(const char *job)
{
    Series *series = calloc(1, sizeof *series);
    PQExpBufferData label;

    if (series == NULL)
        return NULL;
    series->due_us = SCHEDULE_NEVER;
    series->job = strdup(job);
    initPQExpBuffer(&label);
    append_label(&label, job);
    series->label = PQExpBufferDataBroken(label) ? NULL : strdup(label.data);
    termPQExpBuffer(&label);
    if (series->job == NULL || series->label == NULL) {
        series_free(series);
        return NULL;
    }
    return series;
}

static bool add_series(Metrics *metrics, Series *series)
{
    if (metrics->count == metrics->room) {
        size_t more = metrics->room == 0 ? 64 : metrics->room * 2;
        Series **grown = realloc(metrics->series, more * sizeof(Series *));

        if (grown == NULL)
            return false;
        metrics->series = grown;
        metrics->room = more;
    }
    if (tsearch(series, &metrics->by_job, compare) == NULL)
        return false;
    metrics->series[metrics->count++] = series;
    return true;
}

/* The job's, made where there is none. NULL where memory ran out: then it is not counted. */
static Series *series_of(Metrics *metrics, const char *job)
{
    Series wanted = {.job = (char *)job};
    void *found = tfind(&wanted, &metrics->by_job, compare);
    Series *series;

    if (found != NULL)
        return *(Series **)found;
    series = series_new(job);
    if (series != NULL && !add_series(metrics, series)) {
        series_free(series);
        series = NULL;
    }
    return series;
}

Metrics *metrics_new(void)
{
    return calloc(1, sizeof(Metrics));
}

void metrics_free(Metrics *metrics)
{
    if (metrics == NULL)
        return;
    for (size_t i = 0; i < metrics->count; i++) {
        tdelete(metrics->series[i], &metrics->by_job, compare);
        series_free(metrics->series[i]);
    }
    free(metrics->series);
    free(metrics);
}

void metrics_ended(Metrics *metrics, const char *job, RunState state, double waited_s,
                   double ran_s)
{
    Series *series = metrics == NULL ? NULL : series_of(metrics, job);

    if (series == NULL)
        return;
    series->ended[state]++;
    if (waited_s >= 0)
        observe(&series->waited, WAIT_BOUNDS, waited_s);
    if (ran_s >= 0)
        observe(&series->ran, RUN_BOUNDS, ran_s);
}

void metrics_claimed(Metrics *metrics, int64_t late_us)
{
    if (metrics != NULL)
        observe(&metrics->late, LATE_BOUNDS, late_us < 0 ? 0 : (double)late_us / 1e6);
}

void metrics_begin_jobs(Metrics *metrics)
{
    metrics->tellings++;
}

void metrics_job(Metrics *metrics, const char *job, int64_t due_us)
{
    Series *series = series_of(metrics, job);

    if (series == NULL)
        return;
    series->told = metrics->tellings;
    if (due_us != 0)
        series->due_us = due_us;
}

/* ---- the text -------------------------------------------------------------------------------- */

static void append_head(PQExpBuffer text, const char *name, const char *type, const char *help)
{
    appendPQExpBuffer(text, "# HELP lockkeeper_%s %s\n# TYPE lockkeeper_%s %s\n", name, help, name,
                      type);
}

/* The shortest decimals that give the number again. */
static void append_number(PQExpBuffer text, double number)
{
    char digits[32];

    for (int precision = 15; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, number);
        if (strtod(digits, NULL) == number)
            break;
    }
    appendPQExpBufferStr(text, digits);
}

static void append_gauge(PQExpBuffer text, const char *name, const char *help, double number)
{
    append_head(text, name, "gauge", help);
    appendPQExpBuffer(text, "lockkeeper_%s ", name);
    append_number(text, number);
    appendPQExpBufferChar(text, '\n');
}

/* `label`: of all lines, without braces; "": none. */
static void append_histogram(PQExpBuffer text, const char *name, const char *label,
                             const Histogram *histogram, const Bound *bounds)
{
    const char *comma = label[0] == '\0' ? "" : ",";
    const char *open = label[0] == '\0' ? "" : "{", *close = label[0] == '\0' ? "" : "}";
    uint64_t count = 0;
    bool last = false;

    for (int i = 0; !last; i++) {
        last = bounds[i].text == NULL;
        count += histogram->counts[i];
        appendPQExpBuffer(text, "lockkeeper_%s_bucket{%s%sle=\"%s\"} %" PRIu64 "\n", name, label,
                          comma, last ? "+Inf" : bounds[i].text, count);
    }
    appendPQExpBuffer(text, "lockkeeper_%s_sum%s%s%s ", name, open, label, close);
    append_number(text, histogram->sum);
    appendPQExpBuffer(text, "\nlockkeeper_%s_count%s%s%s %" PRIu64 "\n", name, open, label, close,
                      count);
}

/* ---- of each job ----------------------------------------------------------------------------- */

typedef void AppendJob(PQExpBuffer text, const Metrics *metrics, const Series *series);

/* Job by job; other fibers go on now and then, and may add jobs. */
static void append_jobs(PQExpBuffer text, const Metrics *metrics, AppendJob *append)
{
    for (size_t i = 0; i < metrics->count; i++) {
        append(text, metrics, metrics->series[i]);
        if (i % JOBS_AT_ONCE == JOBS_AT_ONCE - 1)
            wait_for(NULL, 0, clock_monotonic_us(), WAIT_NORMAL);
    }
}

/* Zeros, too, where an alert may wait for the first one that is none. */
static void append_ended(PQExpBuffer text, const Metrics *metrics, const Series *series)
{
    (void)metrics;
    for (int state = RUN_SUCCEEDED; state < STATES; state++) {
        if (series->ended[state] > 0 || state == RUN_SUCCEEDED || state == RUN_FAILED)
            appendPQExpBuffer(text,
                              "lockkeeper_runs_total{job=\"%s\",state=\"%s\"} %" PRIu64 "\n",
                              series->label, RUN_STATE_NAMES[state], series->ended[state]);
    }
}

static void append_job_histogram(PQExpBuffer text, const char *name, const Series *series,
                                 const Histogram *histogram, const Bound *bounds)
{
    PQExpBufferData label;

    if (is_empty(histogram))
        return;
    initPQExpBuffer(&label);
    appendPQExpBuffer(&label, "job=\"%s\"", series->label);
    append_histogram(text, name, label.data, histogram, bounds);
    termPQExpBuffer(&label);
}

static void append_ran(PQExpBuffer text, const Metrics *metrics, const Series *series)
{
    (void)metrics;
    append_job_histogram(text, "run_seconds", series, &series->ran, RUN_BOUNDS);
}

static void append_waited(PQExpBuffer text, const Metrics *metrics, const Series *series)
{
    (void)metrics;
    append_job_histogram(text, "wait_seconds", series, &series->waited, WAIT_BOUNDS);
}

/* Only of jobs that are there. */
static void append_due(PQExpBuffer text, const Metrics *metrics, const Series *series)
{
    if (series->told == metrics->tellings && series->due_us != SCHEDULE_NEVER)
        appendPQExpBuffer(text,
                          "lockkeeper_next_due_timestamp_seconds{job=\"%s\"} %" PRId64
                          ".%06" PRId64 "\n",
                          series->label, series->due_us / 1000000, series->due_us % 1000000);
}

/* ---- of the database ------------------------------------------------------------------------- */

static bool is_of(const PGresult *rows, int row, const char *kind)
{
    return strcmp(PQgetvalue(rows, row, SAMPLE_KIND), kind) == 0;
}

static double value_of(const PGresult *rows, int row)
{
    return strtod(PQgetvalue(rows, row, SAMPLE_VALUE), NULL);
}

/* A gauge of the rows of a kind; `first`, `second`: the labels' names; NULL: none. */
static void append_rows(PQExpBuffer text, const PGresult *rows, const char *kind,
                        const char *name, const char *first, const char *second, const char *help)
{
    append_head(text, name, "gauge", help);
    for (int row = 0; row < PQntuples(rows); row++) {
        if (!is_of(rows, row, kind))
            continue;
        appendPQExpBuffer(text, "lockkeeper_%s", name);
        if (first != NULL) {
            appendPQExpBuffer(text, "{%s=\"", first);
            append_label(text, PQgetvalue(rows, row, SAMPLE_FIRST));
        }
        if (second != NULL) {
            appendPQExpBuffer(text, "\",%s=\"", second);
            append_label(text, PQgetvalue(rows, row, SAMPLE_SECOND));
        }
        appendPQExpBufferStr(text, first == NULL ? " " : "\"} ");
        append_number(text, value_of(rows, row));
        appendPQExpBufferChar(text, '\n');
    }
}

static void append_sample(PQExpBuffer text, const Sample *sample)
{
    append_gauge(text, "sample_age_seconds", "How long ago the database said what follows.",
                 (double)(clock_monotonic_us() - sample->taken_us) / 1e6);
    append_rows(text, sample->locks, "blocked", "blocked_sessions", NULL, NULL,
                "Sessions that wait for a lock in this database.");
    append_rows(text, sample->locks, "longest", "longest_wait_seconds", NULL, NULL,
                "How long the one that waits longest has waited.");
    append_rows(text, sample->locks, "locks", "locks", "type", "granted",
                "Locks of this database, held and waited for, by pg_locks.locktype.");
    if (sample->state == NULL)
        return;
    append_rows(text, sample->state, "runs", "active_runs", "state", NULL,
                "Runs that have not ended, of all hosts.");
    append_rows(text, sample->state, "paused", "job_paused", "job", NULL,
                "1 for each job that is paused.");
    append_rows(text, sample->state, "findings", "findings", "audit", "severity",
                "Open findings of audits, of all hosts.");
    append_rows(text, sample->state, "supervisors", "supervisors", NULL, NULL,
                "Supervisors that serve, on all hosts.");
}

static int count_told(const Metrics *metrics)
{
    int count = 0;

    for (size_t i = 0; i < metrics->count; i++)
        count += metrics->series[i]->told == metrics->tellings;
    return count;
}

static void append_workers(PQExpBuffer text, const MetricsNow *now)
{
    append_head(text, "workers", "gauge", "Runs that can be at work here at once.");
    appendPQExpBuffer(text,
                      "lockkeeper_workers{state=\"busy\"} %d\n"
                      "lockkeeper_workers{state=\"free\"} %d\n",
                      now->busy_workers, now->workers - now->busy_workers);
}

void metrics_write(const Metrics *metrics, const MetricsNow *now, const Sample *sample,
                   PQExpBuffer text)
{
    append_head(text, "build_info", "gauge", "The version that runs.");
    appendPQExpBufferStr(text, "lockkeeper_build_info{version=\"" LOCKKEEPER_VERSION "\"} 1\n");
    append_gauge(text, "up", "Whether this supervisor is linked to its database.", now->linked);
    append_gauge(text, "jobs", "Jobs that the files define.", count_told(metrics));
    append_workers(text, now);
    if (sample != NULL)
        append_sample(text, sample);
    append_head(text, "claim_latency_seconds", "histogram",
                "From a run's due time until it was claimed here.");
    append_histogram(text, "claim_latency_seconds", "", &metrics->late, LATE_BOUNDS);
    append_head(text, "runs_total", "counter", "Runs that ended or were skipped here.");
    append_jobs(text, metrics, append_ended);
    append_head(text, "run_seconds", "histogram", "How long runs took, with their guards held.");
    append_jobs(text, metrics, append_ran);
    append_head(text, "wait_seconds", "histogram", "How long runs waited for their guards.");
    append_jobs(text, metrics, append_waited);
    append_head(text, "next_due_timestamp_seconds", "gauge",
                "When the job is due next, by the database's clock.");
    append_jobs(text, metrics, append_due);
}
