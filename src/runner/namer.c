#include "runner/namer.h"

#include "base/clock.h"
#include "base/log.h"

#include <stdlib.h>

enum {
    GATHER_US = 100000, /* how long names are gathered before they are written */
    AGAIN_US = 1000000, /* between two tries where the link is away */
    NAMES_MAX = 10000,  /* while it is away */
};

struct Namer {
    Link *link;
    json_t *names;
    Fiber *fiber;
    Bell bell; /* rung when there are names, and when it ends */
    bool closing;
};

static bool write_names(Session *session, const json_t *names, Error *err)
{
    int count = (int)json_array_size(names);
    StoreLockName *list = calloc((size_t)count, sizeof *list);
    bool ok;

    if (list == NULL)
        return error_set(err, ERROR_SQL, "out of memory");
    for (int i = 0; i < count; i++) {
        const json_t *name = json_array_get(names, (size_t)i);

        list[i] = (StoreLockName){
            .classid = (uint32_t)json_integer_value(json_array_get(name, 0)),
            .objid = (uint32_t)json_integer_value(json_array_get(name, 1)),
            .objsubid = (int)json_integer_value(json_array_get(name, 2)),
            .name = json_string_value(json_array_get(name, 3)),
        };
    }
    ok = store_name_locks(session, list, count, err);
    free(list);
    return ok;
}

/* False: they could not be written now. */
static bool write_all(Namer *namer)
{
    Session *session = link_begin(namer->link);
    json_t *names = namer->names;
    json_t *later;
    bool ok;
    Error err;

    if (session == NULL || (later = json_array()) == NULL) {
        if (session != NULL)
            link_end(namer->link, NULL);
        return false;
    }
    namer->names = later;
    ok = write_names(session, names, &err);
    link_end(namer->link, ok ? NULL : &err);
    if (!ok)
        log_printf(LOG_DEBUG, "names of locks: %s", err.message);
    if (!ok && err.kind == ERROR_CONNECTION)
        json_array_extend(later, names);
    else
        ok = true; /* another time would not help */
    json_decref(names);
    return ok;
}

static void namer_main(void *argument)
{
    Namer *namer = argument;

    while (!namer->closing) {
        if (json_array_size(namer->names) == 0)
            bell_wait(&namer->bell, CLOCK_NEVER);
        if (!namer->closing)
            bell_wait(&namer->bell, clock_deadline(GATHER_US));
        if (json_array_size(namer->names) > 0 && !write_all(namer) && !namer->closing)
            bell_wait(&namer->bell, clock_deadline(AGAIN_US));
    }
}

Namer *namer_new(Link *link, Error *err)
{
    Namer *namer = calloc(1, sizeof *namer);

    if (namer == NULL) {
        error_set(err, ERROR_USAGE, "out of memory");
        return NULL;
    }
    *namer = (Namer){.link = link, .names = json_array(), .bell.fd = -1};
    if (namer->names == NULL)
        error_set(err, ERROR_USAGE, "out of memory");
    if (namer->names == NULL || !bell_open(&namer->bell, err) ||
        !fiber_start(&namer->fiber, namer_main, namer, err)) {
        namer_free(namer);
        return NULL;
    }
    return namer;
}

static bool is_name(const json_t *name)
{
    return json_is_integer(json_array_get(name, 0)) && json_is_integer(json_array_get(name, 1)) &&
           json_is_integer(json_array_get(name, 2)) && json_is_string(json_array_get(name, 3));
}

void namer_add(Namer *namer, const json_t *names)
{
    bool none = json_array_size(namer->names) == 0;

    for (size_t i = 0; i < json_array_size(names); i++) {
        json_t *name = json_array_get(names, i);

        if (is_name(name) && json_array_size(namer->names) < NAMES_MAX)
            json_array_append(namer->names, name);
    }
    if (none && json_array_size(namer->names) > 0)
        bell_ring(&namer->bell);
}

void namer_free(Namer *namer)
{
    if (namer == NULL)
        return;
    namer->closing = true;
    if (namer->fiber != NULL) {
        bell_ring(&namer->bell);
        fiber_join(namer->fiber);
        if (json_array_size(namer->names) > 0)
            write_all(namer);
    }
    bell_close(&namer->bell);
    json_decref(namer->names);
    free(namer);
}
