/* Allocation of small host objects. Running out of memory for them is not recoverable: the process stops with one clear line.
   Large blocks (weights, arenas, images) go through memory_try_*, which report failure to the caller. */
#ifndef VULORA_BASE_MEMORY_H
#define VULORA_BASE_MEMORY_H

#include <stddef.h>

void *memory_new(size_t count, size_t size); /* zeroed */
void *memory_grow(void *block, size_t count, size_t size);
char *memory_string(const char *text); /* a copy */
char *memory_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* 64-byte aligned, not cleared; NULL when there is no room. Freed with free(). */
void *memory_try_aligned(size_t bytes);

#endif
