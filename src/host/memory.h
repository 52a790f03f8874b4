/*
 * The memory of the host's Lua state. Lua makes and drops small blocks all the time, and tells
 * their size when it does: blocks of up to 512 bytes come from lists of free blocks, one a size,
 * which is several times as quick as malloc. Everything is given back at the end, at once.
 */
#ifndef LOCKKEEPER_HOST_MEMORY_H
#define LOCKKEEPER_HOST_MEMORY_H

#include <stddef.h>

typedef struct Memory Memory;

/* NULL where memory ran out. */
Memory *memory_new(void);

/* A lua_Alloc; `memory` is a Memory. */
void *memory_allocate(void *memory, void *block, size_t old_size, size_t new_size);

/* After lua_close. NULL is fine. */
void memory_free(Memory *memory);

#endif
