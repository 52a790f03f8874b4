/*
 * Compiled time-zone data: TZif (RFC 8536).
 *
 * GLib's GTimeZone is not used for it: 2.74 gives Europe/Dublin the wrong offset in every winter
 * from 2038 on, takes a truncated file for a zone without a complaint and crashes on a damaged one.
 */
#ifndef LOCKKEEPER_BASE_ZONE_FILE_H
#define LOCKKEEPER_BASE_ZONE_FILE_H

#include "base/error.h"
#include "base/zone.h"

/*
 * The zone that a file describes, with what its last rule brings up to ZONE_END. Every count, index
 * and offset is checked. NULL with *err (ERROR_USAGE) for a file that cannot be read, is damaged or
 * counts leap seconds.
 */
Zone *zone_file_read(const char *path, const char *name, Error *err);

#endif
