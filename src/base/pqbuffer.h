/*
 * libpq's growing text, PQExpBuffer. Its header was made for PostgreSQL's own tools, and leaves
 * it to them to define this one macro and size_t.
 */
#ifndef LOCKKEEPER_BASE_PQBUFFER_H
#define LOCKKEEPER_BASE_PQBUFFER_H

#include <stddef.h>

#ifndef pg_attribute_printf
#define pg_attribute_printf(format_index, first_argument)                                          \
    __attribute__((format(printf, format_index, first_argument)))
#endif

#include <internal/pqexpbuffer.h>

#endif
