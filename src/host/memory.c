#include "host/memory.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
    STEP = 16, /* sizes are rounded up to it, so that all blocks are aligned for everything */
    SMALL_MAX = 512,
    CLASS_COUNT = SMALL_MAX / STEP + 1,
    CHUNK_SIZE = 64 * 1024,
};

typedef struct FreeBlock {
    struct FreeBlock *next;
} FreeBlock;

typedef struct Chunk {
    struct Chunk *next;
    _Alignas(STEP) char bytes[CHUNK_SIZE];
} Chunk;

struct Memory {
    FreeBlock *free[CLASS_COUNT];
    Chunk *chunks;
    size_t used; /* of the first chunk */
};

Memory *memory_new(void)
{
    return calloc(1, sizeof(Memory));
}

void memory_free(Memory *memory)
{
    if (memory == NULL)
        return;
    while (memory->chunks != NULL) {
        Chunk *chunk = memory->chunks;

        memory->chunks = chunk->next;
        free(chunk);
    }
    free(memory);
}

static size_t class_of(size_t size)
{
    return (size + STEP - 1) / STEP;
}

static bool is_small(size_t size)
{
#ifdef __SANITIZE_ADDRESS__
    (void)size;
    return false; /* the sanitizer is to see every block */
#else
    return size <= SMALL_MAX;
#endif
}

static void *take_small(Memory *memory, size_t size)
{
    size_t class = class_of(size);
    FreeBlock *block = memory->free[class];
    Chunk *chunk;
    char *fresh;

    if (block != NULL) {
        memory->free[class] = block->next;
        return block;
    }
    if (memory->chunks == NULL || memory->used + class * STEP > CHUNK_SIZE) {
        chunk = malloc(sizeof *chunk);
        if (chunk == NULL)
            return NULL;
        chunk->next = memory->chunks;
        memory->chunks = chunk;
        memory->used = 0;
    }
    fresh = memory->chunks->bytes + memory->used;
    memory->used += class * STEP;
    return fresh;
}

static void *take(Memory *memory, size_t size)
{
    return is_small(size) ? take_small(memory, size) : malloc(size);
}

static void give_back(Memory *memory, void *block, size_t size)
{
    FreeBlock *freed = block;

    if (!is_small(size)) {
        free(block);
        return;
    }
    freed->next = memory->free[class_of(size)];
    memory->free[class_of(size)] = freed;
}

void *memory_allocate(void *ud, void *block, size_t old_size, size_t new_size)
{
    Memory *memory = ud;
    void *moved;

    if (block == NULL) /* old_size then tells a kind of object */
        return new_size == 0 ? NULL : take(memory, new_size);
    if (new_size == 0) {
        give_back(memory, block, old_size);
        return NULL;
    }
    if (!is_small(old_size) && !is_small(new_size))
        return realloc(block, new_size);
    if (is_small(old_size) && is_small(new_size) && class_of(old_size) == class_of(new_size))
        return block;
    moved = take(memory, new_size);
    if (moved == NULL) /* Lua relies on it that shrinking does not fail */
        return new_size <= old_size ? block : NULL;
    memcpy(moved, block, old_size < new_size ? old_size : new_size);
    give_back(memory, block, old_size);
    return moved;
}
