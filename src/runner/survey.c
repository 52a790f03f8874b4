#include "runner/survey.h"

#include "base/log.h"
#include "base/process.h"
#include "pg/wait.h"
#include "runner/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    LINE_MAX = 64 * 1024 * 1024,
    OUTPUT_LINE_MAX = 8192,
};

/* ---- sets ------------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
    const Job *const *first = a, *const *second = b;

    return strcmp((*first)->record.name, (*second)->record.name);
}

static int compare_name(const void *name, const void *element)
{
    const Job *const *job = element;

    return strcmp(name, (*job)->record.name);
}

Job *job_set_find(const JobSet *set, const char *name)
{
    Job **found = set->count == 0
                      ? NULL
                      : bsearch(name, set->jobs, set->count, sizeof *set->jobs, compare_name);

    return found == NULL ? NULL : *found;
}

void job_set_clear(JobSet *set)
{
    for (size_t i = 0; i < set->count; i++)
        job_free(set->jobs[i]);
    free(set->jobs);
    for (size_t i = 0; i < set->file_count; i++)
        free(set->files[i]);
    free(set->files);
    *set = (JobSet){0};
}

/* ---- what a survey finds --------------------------------------------------------------------- */

struct Survey {
    Zones *zones;
    Job **found; /* owned until they are in a set */
    size_t count, room;
    struct {
        char *path; /* owned until it is in a set */
        bool broken;
    } *files;
    size_t file_count, file_room;
    JobFile *file; /* that the next jobs are of; NULL: a broken one */
    int faults;
    bool ended; /* by its last line */
};

/* Room for one more element of that size in a list; NULL: no memory. */
static void *with_room(void *list, size_t count, size_t *room, size_t size)
{
    size_t more = *room == 0 ? 64 : *room * 2;
    void *grown = count < *room ? list : realloc(list, more * size);

    if (grown != NULL && count >= *room)
        *room = more;
    return grown;
}

static bool out_of_memory(Error *err)
{
    return error_set(err, ERROR_USAGE, "out of memory");
}

static bool take_file(Survey *s, const json_t *line, Error *err)
{
    const char *path = json_string_value(json_object_get(line, "file"));
    const char *sha256 = json_string_value(json_object_get(line, "sha256"));
    bool broken = json_is_true(json_object_get(line, "broken"));
    void *grown = with_room(s->files, s->file_count, &s->file_room, sizeof *s->files);

    job_file_release(s->file);
    s->file = NULL;
    if (grown == NULL)
        return out_of_memory(err);
    s->files = grown;
    s->files[s->file_count].broken = broken;
    s->files[s->file_count].path = strdup(path);
    if (s->files[s->file_count].path == NULL)
        return out_of_memory(err);
    s->file_count++;
    if (!broken)
        s->file = job_file_new(path, sha256 == NULL ? "" : sha256,
                               json_string_value(json_object_get(line, "text")));
    return broken || s->file != NULL || out_of_memory(err);
}

static void log_fault(const char *file, int64_t line, const char *message)
{
    char number[TEXT_INTEGER_SIZE];
    LogField fields[] = {
        {.name = "file", .value = file},
        {.name = "line", .value = line > 0 ? text_integer(number, line) : NULL, .bare = true},
        {0},
    };

    log_write(LOG_ERROR, message, fields);
}

static void take_fault(Survey *s, const json_t *fault)
{
    const char *message = json_string_value(json_object_get(fault, "message"));

    s->faults++;
    log_fault(json_string_value(json_object_get(fault, "file")),
              json_integer_value(json_object_get(fault, "line")), message == NULL ? "" : message);
}

static bool take_job(Survey *s, const json_t *description, Error *err)
{
    Job *job = s->file == NULL ? NULL : job_new(description, s->file, s->zones, err);
    void *grown;

    if (s->file == NULL)
        return true;
    if (job == NULL)
        return false;
    grown = with_room(s->found, s->count, &s->room, sizeof *s->found);
    if (grown == NULL) {
        job_free(job);
        return out_of_memory(err);
    }
    s->found = grown;
    s->found[s->count++] = job;
    return true;
}

static bool take_line(Survey *s, const char *text, Error *err)
{
    json_error_t problem;
    json_t *line = json_loads(text, 0, &problem);
    const json_t *part;
    bool ok = true;

    if (line == NULL)
        return error_set(err, ERROR_USAGE, "what a survey says is no JSON: %s", problem.text);
    if ((part = json_object_get(line, "job")) != NULL)
        ok = take_job(s, part, err);
    else if ((part = json_object_get(line, "fault")) != NULL)
        take_fault(s, part);
    else if (json_object_get(line, "file") != NULL)
        ok = take_file(s, line, err);
    else
        s->ended = true;
    json_decref(line);
    return ok;
}

/* ---- the new set ----------------------------------------------------------------------------- */

/* Is it that file, or one of that folder? */
static bool is_of(const char *path, const char *whole)
{
    size_t length = strlen(whole);

    while (length > 1 && whole[length - 1] == '/')
        length--;
    return strncmp(path, whole, length) == 0 && (path[length] == '\0' || path[length] == '/');
}

/* A folder that is away, or empty, is broken as a whole. */
static bool is_broken(const Survey *s, const char *path)
{
    for (size_t i = 0; i < s->file_count; i++) {
        if (s->files[i].broken && is_of(path, s->files[i].path))
            return true;
    }
    return false;
}

/* What is known of the job of that name goes on, but for another schedule's past. */
static void take_over(Job *job, const Job *old)
{
    const char *schedule = job->record.schedule, *before = old->record.schedule;

    job->paused = old->paused;
    job->started = old->started;
    job->waits_us = old->waits_us;
    if (schedule == NULL || before == NULL || strcmp(schedule, before) != 0)
        return;
    job->known = old->known;
    job->due_us = old->due_us;
    job->due.since_us = old->due.since_us;
    job->due.newest_us = old->due.newest_us;
    job->due.evaluated_us = old->due.evaluated_us;
    job->due.last_end_us = old->due.last_end_us;
    job->due.at_work = old->due.at_work;
    job->due.serving_since_us = old->due.serving_since_us;
}

/* The old jobs that stay, which are those of broken files, into `set`. */
static void keep(const Survey *s, const JobSet *old, JobSet *set)
{
    for (size_t i = 0; i < old->count; i++) {
        if (!is_broken(s, old->jobs[i]->file->path))
            continue;
        old->jobs[i]->file->replaced = true;
        set->jobs[set->count++] = old->jobs[i];
    }
}

/* Those that were found, unless a job of that name stays. */
static void add_found(Survey *s, const JobSet *old, JobSet *set)
{
    size_t kept = 0;

    for (size_t i = 0; i < s->count; i++) {
        Job *job = s->found[i];
        const Job *before = job_set_find(old, job->record.name);

        if (before != NULL && is_broken(s, before->file->path)) {
            s->faults++;
            log_fault(job->file->path, 0, "a job here has the name of one that a broken file keeps");
            s->found[kept++] = job;
            continue;
        }
        if (before != NULL)
            take_over(job, before);
        set->jobs[set->count++] = job;
    }
    s->count = kept;
}

/* Free the old jobs that are not in the new set. */
static void drop_old(JobSet *old, const JobSet *set)
{
    for (size_t i = 0; i < old->count; i++) {
        if (job_set_find(set, old->jobs[i]->record.name) != old->jobs[i])
            job_free(old->jobs[i]);
    }
    free(old->jobs);
    free(old->files);
}

static bool has_file(const JobSet *set, const char *path)
{
    for (size_t i = 0; i < set->file_count; i++) {
        if (strcmp(set->files[i], path) == 0)
            return true;
    }
    return false;
}

static void add_files(Survey *s, const JobSet *old, JobSet *set)
{
    for (size_t i = 0; i < old->file_count; i++)
        set->files[set->file_count++] = old->files[i];
    for (size_t i = 0; i < s->file_count; i++) {
        if (!has_file(set, s->files[i].path)) {
            set->files[set->file_count++] = s->files[i].path;
            s->files[i].path = NULL;
        }
    }
}

bool survey_swap(Survey *s, JobSet *set, Error *err)
{
    JobSet made = {
        .jobs = calloc(s->count + set->count + 1, sizeof *made.jobs),
        .files = calloc(s->file_count + set->file_count + 1, sizeof *made.files),
    };

    if (made.jobs == NULL || made.files == NULL) {
        free(made.jobs);
        free(made.files);
        return out_of_memory(err);
    }
    keep(s, set, &made);
    add_found(s, set, &made);
    add_files(s, set, &made);
    qsort(made.jobs, made.count, sizeof *made.jobs, compare);
    drop_old(set, &made);
    *set = made;
    return true;
}

int survey_faults(const Survey *s)
{
    return s->faults;
}

void survey_free(Survey *s)
{
    if (s == NULL)
        return;
    for (size_t i = 0; i < s->count; i++)
        job_free(s->found[i]);
    free(s->found);
    for (size_t i = 0; i < s->file_count; i++)
        free(s->files[i].path);
    free(s->files);
    job_file_release(s->file);
    free(s);
}

/* ---- the child ------------------------------------------------------------------------------- */

typedef struct {
    Process *process;
    Lines report, output;
} SurveyChild;

static void log_output(Lines *output)
{
    const char *line;

    while ((line = lines_next(output)) != NULL)
        log_write(LOG_INFO, line, (LogField[]){{.name = "from", .value = "survey"}, {0}});
}

static const char **argv_of(const SurveySpec *spec)
{
    size_t count = 0, at = 0;
    const char **argv;

    while (spec->paths[count] != NULL)
        count++;
    argv = calloc(count + 7, sizeof *argv);
    if (argv == NULL)
        return NULL;
    argv[at++] = "/proc/self/exe";
    argv[at++] = "survey";
    if (spec->stateless)
        argv[at++] = "--stateless";
    if (spec->config != NULL) {
        argv[at++] = "--config";
        argv[at++] = spec->config;
    }
    argv[at++] = "--";
    for (size_t i = 0; i < count; i++)
        argv[at++] = spec->paths[i];
    return argv;
}

static bool start(SurveyChild *child, const SurveySpec *spec, Error *err)
{
    const char **argv = argv_of(spec);
    ProcessSpec what = {.argv = argv, .in = -1, .out = -1, .err = -1};
    int report[2] = {-1, -1}, output[2] = {-1, -1};
    int ignored;
    bool ok = false;

    if (argv == NULL) {
        out_of_memory(err);
        goto out;
    }
    if (pipe2(report, O_CLOEXEC) != 0 || pipe2(output, O_CLOEXEC) != 0) {
        error_set(err, ERROR_USAGE, "pipe: %s", strerror(errno));
        goto out;
    }
    lines_open(&child->report, report[0], LINE_MAX);
    lines_open(&child->output, output[0], OUTPUT_LINE_MAX);
    report[0] = output[0] = -1;
    what.in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    what.out = report[1];
    what.err = output[1];
    ok = process_start(&child->process, &what, &ignored, err);
out:
    for (int i = 0; i < 2; i++) {
        if (report[i] >= 0)
            close(report[i]);
        if (output[i] >= 0)
            close(output[i]);
    }
    if (what.in >= 0)
        close(what.in);
    free(argv);
    return ok;
}

static bool read_report(Survey *s, Lines *report, Error *err)
{
    const char *line;

    lines_fill(report);
    while ((line = lines_next(report)) != NULL) {
        if (!take_line(s, line, err))
            return false;
    }
    return true;
}

static bool watch(Survey *s, SurveyChild *child, Error *err)
{
    ProcessStatus status = {.state = PROCESS_RUNNING};

    while (status.state == PROCESS_RUNNING || child->report.fd >= 0 || child->output.fd >= 0) {
        struct pollfd fds[3] = {
            {.fd = status.state == PROCESS_RUNNING ? process_fd(child->process) : -1,
             .events = POLLIN},
            {.fd = child->report.fd, .events = POLLIN},
            {.fd = child->output.fd, .events = POLLIN},
        };

        if (wait_for(fds, 3, CLOCK_NEVER, WAIT_NORMAL) != WAIT_READY)
            return wait_interrupted_error(err);
        if (fds[0].revents != 0)
            process_read(child->process, &status);
        if (fds[1].revents != 0 && !read_report(s, &child->report, err))
            return false;
        if (fds[2].revents != 0) {
            lines_fill(&child->output);
            log_output(&child->output);
        }
    }
    if (s->ended)
        return true;
    return error_set(err, ERROR_USAGE, "the files could not be surveyed: the process that did it has "
                     "ended with code %d", status.exit_code);
}

Survey *survey_run(const SurveySpec *spec, Zones *zones, Error *err)
{
    SurveyChild child = {.report.fd = -1, .output.fd = -1};
    Survey *s = calloc(1, sizeof *s);
    bool ok = false;

    if (s == NULL) {
        out_of_memory(err);
        return NULL;
    }
    s->zones = zones;
    ok = start(&child, spec, err) && watch(s, &child, err);
    lines_close(&child.report);
    lines_close(&child.output);
    process_free(child.process);
    if (ok)
        return s;
    survey_free(s);
    return NULL;
}
