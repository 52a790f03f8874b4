#include "base/zone.h"

#include <stdlib.h>
#include <string.h>

Zone *zone_new(const char *name, size_t changes)
{
    size_t size = sizeof(Zone) + (changes + 2) * sizeof(ZonePeriod);
    Zone *zone = malloc(size + strlen(name) + 1);

    if (zone != NULL) {
        char *copy = (char *)zone + size;

        memcpy(copy, name, strlen(name) + 1);
        zone->name = copy;
        zone->count = 1;
        zone->periods[0] = (ZonePeriod){.from = ZONE_BEGIN};
    }
    return zone;
}

void zone_add(Zone *zone, int64_t from, int offset)
{
    ZonePeriod *last = &zone->periods[zone->count - 1];

    if (from >= ZONE_END)
        return;
    if (from <= last->from) {
        last->offset = offset;
    } else if (offset != last->offset) {
        zone->periods[zone->count++] = (ZonePeriod){.from = from, .offset = offset};
    }
}

void zone_finish(Zone *zone)
{
    ZonePeriod *periods = zone->periods;

    periods[0].wall_before = periods[0].from + periods[0].offset;
    periods[zone->count] = (ZonePeriod){.from = ZONE_END};
    for (size_t i = 1; i <= zone->count; i++) {
        int64_t end = periods[i].from + periods[i - 1].offset;
        int64_t before = periods[i - 1].wall_before;

        periods[i].wall_before = end > before ? end : before;
    }
}

size_t zone_period_at(const Zone *zone, int64_t instant)
{
    size_t low = 0;
    size_t high = zone->count;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (zone->periods[middle].from <= instant)
            low = middle;
        else
            high = middle;
    }
    return low;
}

int64_t zone_wall_at(const Zone *zone, int64_t instant)
{
    return instant + zone->periods[zone_period_at(zone, instant)].offset;
}

int64_t zone_first_instant(const Zone *zone, int64_t wall)
{
    size_t low = 0;
    size_t high = zone->count + 1;
    int64_t instant;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (zone->periods[middle].wall_before <= wall)
            low = middle;
        else
            high = middle;
    }
    if (low == zone->count)
        return ZONE_END;
    instant = wall - zone->periods[low].offset;
    return instant > zone->periods[low].from ? instant : zone->periods[low].from;
}

int64_t zone_latest_wall(const Zone *zone, int64_t instant)
{
    const ZonePeriod *period = &zone->periods[zone_period_at(zone, instant)];
    int64_t wall = instant + period->offset;

    return wall >= period->wall_before ? wall : period->wall_before - 1;
}
