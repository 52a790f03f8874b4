/*
 * A heart asks again and again whether the other end of a session is still there, while something
 * depends on the session's locks. A socket hangs up where the other end closes it; a server that
 * hangs, or a proxy that swallows, is silent. It is noticed within 20 s (runner.md 19).
 *
 * It beats on a fiber, between the session's statements. While a long one runs, the same server is
 * asked on a connection of the heart's own.
 */
#ifndef LOCKKEEPER_PG_HEART_H
#define LOCKKEEPER_PG_HEART_H

#include "pg/session.h"

typedef struct Heart Heart;

/* `silent(context)` is called once, on the heart's fiber, when nothing has been heard for too long. */
bool heart_start(Heart **heart, Session *session, void (*silent)(void *context), void *context,
                 Error *err);

/* Stop and free. NULL is fine. */
void heart_stop(Heart *heart);

#endif
