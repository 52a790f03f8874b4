#include "runner/store_sql.h"

#include <stdio.h>
#include <string.h>

void array_begin(PQExpBuffer array)
{
    initPQExpBuffer(array);
    appendPQExpBufferChar(array, '{');
}

static void separate(PQExpBuffer array)
{
    if (array->len > 1)
        appendPQExpBufferChar(array, ',');
}

void array_text(PQExpBuffer array, const char *text)
{
    separate(array);
    if (text == NULL) {
        appendPQExpBufferStr(array, "NULL");
        return;
    }
    appendPQExpBufferChar(array, '"');
    for (size_t plain = strcspn(text, "\"\\"); text[0] != '\0'; plain = strcspn(text, "\"\\")) {
        appendBinaryPQExpBuffer(array, text, plain);
        text += plain;
        if (text[0] != '\0') {
            appendPQExpBufferChar(array, '\\');
            appendPQExpBufferChar(array, *text++);
        }
    }
    appendPQExpBufferChar(array, '"');
}

void array_integer(PQExpBuffer array, int64_t number)
{
    separate(array);
    appendPQExpBufferStr(array, INTEGER(number));
}

void array_number(PQExpBuffer array, double number)
{
    separate(array);
    appendPQExpBuffer(array, "%.17g", number);
}

void array_boolean(PQExpBuffer array, bool value)
{
    separate(array);
    appendPQExpBufferChar(array, value ? 't' : 'f');
}

void array_end(PQExpBuffer array)
{
    appendPQExpBufferChar(array, '}');
}

void array_texts(PQExpBuffer array, const char *const *texts, int count)
{
    array_begin(array);
    for (int i = 0; i < count; i++)
        array_text(array, texts[i]);
    array_end(array);
}

bool arrays_are_whole(const PQExpBufferData *arrays, int count, Error *err)
{
    for (int i = 0; i < count; i++) {
        if (PQExpBufferDataBroken(arrays[i]))
            return error_set(err, ERROR_SQL, "out of memory");
    }
    return true;
}

void arrays_free(PQExpBufferData *arrays, int count)
{
    for (int i = 0; i < count; i++)
        termPQExpBuffer(&arrays[i]);
}

/* ---- results --------------------------------------------------------------------------------- */

int64_t field_integer(const PGresult *result, int row, int column)
{
    return strtoll(PQgetvalue(result, row, column), NULL, 10);
}

int64_t field_instant(const PGresult *result, int row, int column)
{
    return PQgetisnull(result, row, column) ? STORE_NO_TIME : field_integer(result, row, column);
}

bool field_boolean(const PGresult *result, int row, int column)
{
    return PQgetvalue(result, row, column)[0] == 't';
}

/* Columns, as RUN_COLUMNS has them. */
enum { RUN_ID, RUN_JOB, RUN_ORIGIN, RUN_SLOT, RUN_ATTEMPT, RUN_PARENT, RUN_DUE_AT, RUN_STATE,
       RUN_REASON };

static bool read_run(StoreRun *run, const PGresult *result, int row, Error *err)
{
    int origin = store_word(RUN_ORIGIN_NAMES, PQgetvalue(result, row, RUN_ORIGIN));
    int state = store_word(RUN_STATE_NAMES, PQgetvalue(result, row, RUN_STATE));

    if (origin < 0 || state < 0)
        return error_set(err, ERROR_SQL, "run %s has an origin or a state that is not known here",
                         PQgetvalue(result, row, RUN_ID));
    *run = (StoreRun){
        .id = field_integer(result, row, RUN_ID),
        .job = PQgetvalue(result, row, RUN_JOB),
        .origin = (RunOrigin)origin,
        .slot_us = field_integer(result, row, RUN_SLOT),
        .attempt = (int)field_integer(result, row, RUN_ATTEMPT),
        .parent = field_integer(result, row, RUN_PARENT),
        .due_us = field_integer(result, row, RUN_DUE_AT),
        .state = (RunState)state,
        .reason = PQgetvalue(result, row, RUN_REASON),
    };
    return true;
}

bool runs_read(StoreRuns *runs, PGresult *result, bool (*keep)(const StoreRun *run), Error *err)
{
    int rows = PQntuples(result);

    *runs = (StoreRuns){.result = result, .runs = calloc((size_t)rows + 1, sizeof *runs->runs)};
    if (runs->runs == NULL) {
        error_set(err, ERROR_SQL, "out of memory");
        goto failed;
    }
    for (int row = 0; row < rows; row++) {
        StoreRun *run = &runs->runs[runs->count];

        if (!read_run(run, result, row, err))
            goto failed;
        if (keep == NULL || keep(run))
            runs->count++;
    }
    return true;
failed:
    store_runs_clear(runs);
    return false;
}

void store_runs_clear(StoreRuns *runs)
{
    PQclear(runs->result);
    free(runs->runs);
    *runs = (StoreRuns){0};
}
