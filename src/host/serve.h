/*
 * From the command line to the supervisor: `serve` leaves its options here, the Lua state is closed,
 * and then the supervisor runs (src/runner/supervisor.h).
 */
#ifndef LOCKKEEPER_HOST_SERVE_H
#define LOCKKEEPER_HOST_SERVE_H

#include <lua.h>
#include <stdbool.h>

/*
 * Add to the table on top:
 *
 *   serve(options)   serve once the Lua state is closed: { conninfo, config, paths, log_level,
 *                    log_format, listen, workers, warm, watch, drain, keep, keep_runs }, durations in
 *                    seconds
 */
void serve_register(lua_State *L);

/* Is there something to serve? */
bool serve_is_wanted(void);

/* SIGHUP reads files anew: one that comes before there is a supervisor waits for it. */
void serve_block_signals(void);

/* Serve, with no Lua state any more. Returns the exit code. */
int serve_run(void);

#endif
