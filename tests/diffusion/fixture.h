/* Reads float32 tensors from a fixture file. The files are our own (tests/reference/make_diffusion_fixtures.py), so looking a name up in
   the header's text is enough. */
#ifndef VULORA_TESTS_DIFFUSION_FIXTURE_H
#define VULORA_TESTS_DIFFUSION_FIXTURE_H

#include "base/file.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct fixture {
    file_map map;
    char *header;
    const float *data;
} fixture;

static inline bool fixture_open(fixture *f, const char *name) {
    char path[1024];
    uint64_t length;
    snprintf(path, sizeof path, "%s/%s", TEST_DATA, name);
    if (!file_map_open(&f->map, path, NULL)) return false;
    memcpy(&length, f->map.data, sizeof length);
    f->header = malloc(length + 1);
    memcpy(f->header, f->map.data + 8, length);
    f->header[length] = 0;
    f->data = (const float *)(const void *)(f->map.data + 8 + length);
    return true;
}

static inline void fixture_close(fixture *f) {
    free(f->header);
    file_map_close(&f->map);
}

/* A tensor's values and their number; stops the program if it is missing. */
static inline const float *fixture_tensor(const fixture *f, size_t *count, const char *format, ...) {
    char name[128], key[160];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    snprintf(key, sizeof key, "\"%s\":{", name);
    const char *entry = strstr(f->header, key), *offsets = entry ? strstr(entry, "\"data_offsets\":[") : NULL;
    unsigned long from, to;
    if (!offsets || sscanf(offsets, "\"data_offsets\":[%lu,%lu]", &from, &to) != 2) {
        fprintf(stderr, "fixture has no tensor %s\n", name);
        abort();
    }
    *count = (to - from) / sizeof(float);
    return f->data + from / sizeof(float);
}

#endif
