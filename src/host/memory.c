#include "host/memory.h"

#include <stdbool.h>
#include <stdint.h>
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
    size_t used;  /* of the first chunk */
    size_t lent;  /* what Lua has, by its own count */
    size_t limit; /* SIZE_MAX: none */
    void (*refused)(void *context);
    void *refused_context;
};

Memory *memory_new(void)
{
    Memory *memory = calloc(1, sizeof *memory);

    if (memory != NULL)
        memory->limit = SIZE_MAX;
    return memory;
}

size_t memory_used(const Memory *memory)
{
    return memory->lent;
}

void memory_set_limit(Memory *memory, size_t limit, void (*refused)(void *context), void *context)
{
    memory->limit = limit == 0 ? SIZE_MAX : limit;
    memory->refused = refused;
    memory->refused_context = context;
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

static void *move(Memory *memory, void *block, size_t old_size, size_t new_size)
{
    void *moved;

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

static bool is_too_much(Memory *memory, size_t old_size, size_t new_size)
{
    if (new_size <= old_size ||
        (memory->lent < memory->limit && new_size - old_size <= memory->limit - memory->lent))
        return false;
    if (memory->refused != NULL)
        memory->refused(memory->refused_context);
    return true;
}

void *memory_allocate(void *ud, void *block, size_t old_size, size_t new_size)
{
    Memory *memory = ud;
    void *given;

    if (block == NULL)
        old_size = 0; /* it tells a kind of object */
    if (is_too_much(memory, old_size, new_size))
        return NULL;
    if (new_size == 0) {
        if (block != NULL)
            give_back(memory, block, old_size);
        given = NULL;
    } else {
        given = block == NULL ? take(memory, new_size) : move(memory, block, old_size, new_size);
        if (given == NULL)
            return NULL;
    }
    memory->lent += new_size - old_size;
    return given;
}
