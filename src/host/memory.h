/*
 * The memory of the host's Lua state. Lua makes and drops small blocks all the time, and tells
 * their size when it does: blocks of up to 512 bytes come from lists of free blocks, one a size,
 * which is several times as quick as malloc. Everything is given back at the end, at once.
 *
 * What Lua has may be bounded for a while (a job's memory_limit). Lua then collects garbage before
 * it gives up, and raises "not enough memory" where that does not help; freeing and shrinking are
 * never refused.
 */
#ifndef LOCKKEEPER_HOST_MEMORY_H
#define LOCKKEEPER_HOST_MEMORY_H

#include <stddef.h>

typedef struct Memory Memory;

/* NULL where memory ran out. */
Memory *memory_new(void);

/* A lua_Alloc; `memory` is a Memory. */
void *memory_allocate(void *memory, void *block, size_t old_size, size_t new_size);

/* Bytes that Lua has at this moment. */
size_t memory_used(const Memory *memory);

/*
 * From now on refuse what would give Lua more than `limit` bytes; 0: no limit. `refused`, which may
 * be NULL, is called with `context` each time, in the middle of Lua's work: it may not allocate.
 */
void memory_set_limit(Memory *memory, size_t limit, void (*refused)(void *context), void *context);

/* After lua_close. NULL is fine. */
void memory_free(Memory *memory);

#endif
