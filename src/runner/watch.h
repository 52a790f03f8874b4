/* Watches files and folders for changes (inotify): `serve --watch`. */
#ifndef LOCKKEEPER_RUNNER_WATCH_H
#define LOCKKEEPER_RUNNER_WATCH_H

#include "base/error.h"

#include <stdbool.h>

typedef struct Watch Watch;

/*
 * Watch the *.lua of the folders, and the files, among `paths` (ends with NULL; a path that is not
 * there yet is taken for a file). A file is watched by its name in its folder: also where it is
 * replaced by another one.
 */
Watch *watch_open(const char *const *paths, Error *err);
void watch_close(Watch *watch); /* NULL is fine */

/*
 * Wait for a change, and until none has come for a moment, so that what is written by and by is
 * read once. False: the fiber was cancelled.
 */
bool watch_wait(Watch *watch);

#endif
