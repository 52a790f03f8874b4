#include "pg/heart.h"

#include <stdlib.h>

enum {
    BEAT_US = 4000000,    /* between two questions */
    ANSWER_US = 12000000, /* for one to be answered */
    SILENCE_US = 8000000, /* a failure that took so long was no answer */
};

struct Heart {
    Session *session;
    Session *beside; /* made when first needed */
    Fiber *fiber;
    void (*silent)(void *context);
    void *context;
};

/* Ask on a connection of our own. A refusal is an answer, too. */
static bool answers_beside(Heart *heart)
{
    int64_t start_us = clock_monotonic_us();
    bool ok;
    Error err;

    if (heart->beside == NULL)
        heart->beside = session_new(heart->session->conninfo, NULL, "lockkeeper: heart",
                                    heart->session->promise);
    if (heart->beside == NULL)
        return true;
    if (heart->beside->lost)
        session_close(heart->beside);
    ok = session_open(heart->beside, &err) && session_heartbeat(heart->beside, ANSWER_US, &err);
    return ok || err.kind == ERROR_CANCELLED || clock_monotonic_us() - start_us < SILENCE_US;
}

static bool answers(Heart *heart)
{
    Error err;

    if (heart->session->activity != SESSION_FREE)
        return answers_beside(heart);
    return session_heartbeat(heart->session, ANSWER_US, &err) || !heart->session->lost;
}

static void beat(void *argument)
{
    Heart *heart = argument;

    while (wait_for(NULL, 0, clock_deadline(BEAT_US), WAIT_NORMAL) == WAIT_DEADLINE) {
        if (heart->session->conn == NULL || heart->session->lost)
            return; /* whoever uses it finds out */
        if (!answers(heart)) {
            heart->silent(heart->context);
            return;
        }
    }
}

bool heart_start(Heart **heart, Session *session, void (*silent)(void *context), void *context,
                 Error *err)
{
    Heart *made = calloc(1, sizeof *made);

    if (made == NULL)
        return error_set(err, ERROR_USAGE, "out of memory");
    *made = (Heart){.session = session, .silent = silent, .context = context};
    if (!fiber_start(&made->fiber, beat, made, err)) {
        free(made);
        return false;
    }
    fiber_serve(made->fiber);
    *heart = made;
    return true;
}

void heart_stop(Heart *heart)
{
    if (heart == NULL)
        return;
    fiber_cancel(heart->fiber);
    fiber_join(heart->fiber);
    session_free(heart->beside);
    free(heart);
}
