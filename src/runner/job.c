#include "runner/job.h"

#include "base/duration.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CATCHUP_WINDOW_US (86400 * INT64_C(1000000))
#define GRACE_US          (5 * INT64_C(1000000))

JobFile *job_file_new(const char *path, const char *sha256, const char *text)
{
    JobFile *file = calloc(1, sizeof *file);

    if (file == NULL)
        return NULL;
    file->uses = 1;
    file->path = strdup(path);
    file->text = text == NULL ? NULL : strdup(text);
    text_copy(file->sha256, sizeof file->sha256, sha256);
    if (file->path == NULL || (text != NULL && file->text == NULL)) {
        job_file_release(file);
        return NULL;
    }
    return file;
}

void job_file_release(JobFile *file)
{
    if (file == NULL || --file->uses > 0)
        return;
    free(file->path);
    free(file->text);
    free(file);
}

/* ---- values ---------------------------------------------------------------------------------- */

static const char *text_of(const json_t *object, const char *key, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text != NULL ? text : otherwise;
}

/* Seconds to microseconds; false stands for no limit. */
static int64_t duration_of(const json_t *object, const char *key, int64_t otherwise_us)
{
    const json_t *value = json_object_get(object, key);

    if (json_is_false(value))
        return DURATION_ENDLESS;
    if (!json_is_number(value))
        return otherwise_us;
    return json_number_value(value) < 9e12 ? llround(json_number_value(value) * 1e6)
                                           : DURATION_ENDLESS;
}

/* The place of one of the words, 0 where it is none of them. */
static int choice(const json_t *object, const char *key, const char *const *words)
{
    int place = store_word(words, text_of(object, key, ""));

    return place < 0 ? 0 : place;
}

static bool copy_text(const char **place, const char *text)
{
    if (text == NULL)
        return true;
    *place = strdup(text);
    return *place != NULL;
}

static bool read_schedule(Job *job, const json_t *description, Zones *zones, Error *err)
{
    const json_t *spec = json_object_get(description, "schedule");
    const char *cron = text_of(spec, "cron", NULL);
    const char *zone_name = text_of(description, "timezone", "UTC");
    const Zone *zone;

    if (spec == NULL)
        return true;
    job->scheduled = true;
    if (cron == NULL) {
        int64_t period_us = duration_of(spec, "every", 0);

        if (strcmp(text_of(spec, "from", "epoch"), "finish") == 0)
            return schedule_from_finish(&job->schedule, period_us, err);
        return schedule_from_every(&job->schedule, period_us, job->record.name, err);
    }
    zone = zones_get(zones, zone_name, err);
    if (zone == NULL)
        return false;
    return schedule_from_cron(&job->schedule, cron, zone, job->record.name, err);
}

/* A word, or a list of them. */
static bool read_retry_on(Job *job, const json_t *on)
{
    size_t count = json_is_array(on) ? json_array_size(on) : json_is_string(on) ? 1 : 0;

    if (count == 0)
        return true;
    job->retry_words = calloc(count + 1, sizeof *job->retry_words);
    if (job->retry_words == NULL)
        return false;
    for (size_t i = 0; i < count; i++) {
        const json_t *word = json_is_array(on) ? json_array_get(on, i) : on;

        job->retry_words[i] = strdup(json_is_string(word) ? json_string_value(word) : "");
        if (job->retry_words[i] == NULL)
            return false;
    }
    job->record.retry_on = (const char *const *)job->retry_words;
    return true;
}

/* What the database is told; false: out of memory. */
static bool read_record(Job *job, const json_t *description)
{
    const json_t *settings = json_object_get(description, "settings");
    const json_t *after = json_object_get(description, "after");
    const json_t *retry = json_object_get(settings, "retry");
    const json_t *schedule = json_object_get(description, "schedule");
    StoreJob *record = &job->record;
    char *text = NULL;

    record->file = job->file->path;
    record->overlap = (Overlap)choice(settings, "overlap", OVERLAP_NAMES);
    record->catchup_window_us = duration_of(settings, "catchup_window", CATCHUP_WINDOW_US);
    job->grace_us = duration_of(settings, "grace", GRACE_US);
    record->after_on = (AfterOn)choice(after, "on", AFTER_ON_NAMES);
    record->retry_attempts = (int)json_integer_value(json_object_get(retry, "attempts"));
    record->retry_attempts = record->retry_attempts < 1 ? 1 : record->retry_attempts;
    record->retry_delay_us = duration_of(retry, "delay", 0);
    record->retry_factor = json_is_number(json_object_get(retry, "factor"))
                               ? json_number_value(json_object_get(retry, "factor"))
                               : 1;
    job->catchup = (Catchup)choice(settings, "catchup", CATCHUP_NAMES);
    if (schedule != NULL) { /* its zone is part of it */
        json_t *whole = json_pack("{s:O, s:s}", "schedule", (json_t *)(uintptr_t)schedule, "timezone",
                                  text_of(description, "timezone", "UTC"));

        text = json_dumps(whole, JSON_COMPACT | JSON_SORT_KEYS);
        json_decref(whole);
        record->schedule = text;
    }
    return (schedule == NULL || text != NULL) &&
           copy_text(&record->after, text_of(after, "job", NULL)) &&
           read_retry_on(job, json_object_get(retry, "on")) &&
           copy_text(&record->name, text_of(description, "name", "")) &&
           (record->definition = json_dumps(description, JSON_COMPACT)) != NULL;
}

static void set_due(Job *job)
{
    job->due = (DueJob){
        .schedule = &job->schedule,
        .catchup = job->catchup,
        .catchup_window_us = job->record.catchup_window_us,
        .newest_us = STORE_NO_TIME,
        .evaluated_us = STORE_NO_TIME,
        .last_end_us = STORE_NO_TIME,
    };
    job->due_us = SCHEDULE_NEVER;
    job->waits_us = STORE_NO_TIME;
}

/* ---- jobs ------------------------------------------------------------------------------------ */

Job *job_new(const json_t *description, JobFile *file, Zones *zones, Error *err)
{
    Job *job = calloc(1, sizeof *job);

    if (job == NULL)
        goto out_of_memory;
    job->file = file;
    file->uses++;
    job->enabled = !json_is_false(json_object_get(description, "enabled"));
    job->record.enabled = job->enabled;
    job->zoned = strcmp(text_of(description, "timezone", "UTC"), "UTC") != 0;
    if (!read_record(job, description))
        goto out_of_memory;
    set_due(job);
    if (read_schedule(job, description, zones, err))
        return job;
    job_free(job);
    return NULL;
out_of_memory:
    job_free(job);
    error_set(err, ERROR_USAGE, "out of memory");
    return NULL;
}

void job_free(Job *job)
{
    if (job == NULL)
        return;
    job_file_release(job->file);
    free((char *)(uintptr_t)job->record.name);
    free((char *)(uintptr_t)job->record.schedule);
    free((char *)(uintptr_t)job->record.definition);
    free((char *)(uintptr_t)job->record.after);
    for (char **word = job->retry_words; word != NULL && *word != NULL; word++)
        free(*word);
    free(job->retry_words);
    free(job);
}
