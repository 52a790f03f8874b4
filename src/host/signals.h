/*
 * What a signal does to this process.
 *
 * SIGINT, SIGTERM and SIGHUP interrupt: every wait ends, and Lua code raises at its next
 * instruction. A second one ends the process at once (the server then frees its locks). While a
 * command runs in the foreground they are passed on to it instead.
 */
#ifndef LOCKKEEPER_HOST_SIGNALS_H
#define LOCKKEEPER_HOST_SIGNALS_H

#include "base/error.h"

/* From now on signals interrupt the Lua state whose coroutines are tracked (host/coroutine.h). */
bool signals_interrupt(Error *err);

/*
 * From now on SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are told through the descriptor
 * that is returned (-1: *err is set): a byte with the signal's number, and one that is 1 where the
 * terminal sent it, so that the command, in the same process group, has got it too.
 */
int signals_forward(Error *err);

#endif
