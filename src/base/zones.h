/*
 * The time zones of the system's data, by name.
 */
#ifndef LOCKKEEPER_BASE_ZONES_H
#define LOCKKEEPER_BASE_ZONES_H

#include "base/error.h"
#include "base/zone.h"

/* The zones of one version of the data; each is read when it is first asked for. */
typedef struct Zones Zones;

/*
 * `directory`: where the data is; NULL for the environment's TZDIR, else /usr/share/zoneinfo.
 * Needs no such directory as long as only UTC is asked for. NULL: out of memory.
 */
Zones *zones_new(const char *directory);

/* Frees its zones too. NULL is fine. */
void zones_free(Zones *zones);

/*
 * The data's version when `zones` was made ("2025b"; a later one sorts after an earlier one by
 * strcmp), "" if the data does not tell. It is never NULL.
 */
const char *zones_version(const Zones *zones);

/*
 * The zone of an IANA name ("Europe/Paris"); "UTC" needs no file. Shared, and lives as long as
 * `zones`. NULL with *err (ERROR_USAGE) for an unknown name, naming the nearest known ones, and for
 * a file that is damaged or counts leap seconds.
 */
const Zone *zones_get(Zones *zones, const char *name, Error *err);

#endif
