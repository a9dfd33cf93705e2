#include "base/memory.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *checked(void *block) {
    if (!block) {
        fputs("vulora: out of memory\n", stderr);
        abort();
    }
    return block;
}

void *memory_new(size_t count, size_t size) { return checked(calloc(count ? count : 1, size ? size : 1)); }

void *memory_grow(void *block, size_t count, size_t size) {
    if (size && count > SIZE_MAX / size) checked(NULL);
    return checked(realloc(block, count && size ? count * size : 1));
}

char *memory_string(const char *text) { return checked(strdup(text)); }

char *memory_format(const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = memory_new((size_t)length + 1, 1);
    vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}

void *memory_try_aligned(size_t bytes) {
    if (bytes > SIZE_MAX - 64) return NULL;
    return aligned_alloc(64, (bytes + 63) / 64 * 64 + (bytes ? 0 : 64));
}
