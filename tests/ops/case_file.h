/* Reads float32 tensors from a fixture, and makes the inputs that go with it. Fixtures are our own (tests/reference/): looking a name up in
   the header's text is enough. */
#ifndef VULORA_TESTS_CASE_FILE_H
#define VULORA_TESTS_CASE_FILE_H

#include "base/file.h"
#include "base/memory.h"
#include "base/random.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct case_file {
    file_map map;
    char *header;
    const float *data;
} case_file;

static inline bool case_file_open(case_file *f, const char *name, error *err) {
    char path[1024];
    uint64_t length;
    snprintf(path, sizeof path, "%s/%s", TEST_DATA, name);
    if (!file_map_open(&f->map, path, err)) return false;
    memcpy(&length, f->map.data, sizeof length);
    f->header = memory_new(length + 1, 1);
    memcpy(f->header, f->map.data + 8, length);
    f->data = (const float *)(const void *)(f->map.data + 8 + length);
    return true;
}

static inline void case_file_close(case_file *f) {
    free(f->header);
    file_map_close(&f->map);
}

/* The values of a tensor; NULL when there is none of that name. dim: NULL, or [4], filled up with ones in front. */
static inline const float *case_file_find(const case_file *f, size_t *count, int64_t *dim, const char *name) {
    char key[256];
    snprintf(key, sizeof key, "\"%s\":{", name);
    const char *entry = strstr(f->header, key), *shape = entry ? strstr(entry, "\"shape\":[") : NULL;
    const char *offsets = entry ? strstr(entry, "\"data_offsets\":[") : NULL;
    if (!shape || !offsets) return NULL;
    char *end;
    unsigned long from = strtoul(offsets + 16, &end, 10), to = strtoul(end + 1, NULL, 10);
    *count = (to - from) / sizeof(float);
    if (dim) {
        int64_t read[4] = {1, 1, 1, 1};
        for (const char *p = shape + 9; *p != ']'; p = *end == ',' ? end + 1 : end) {
            memmove(read, read + 1, 3 * sizeof *read);
            read[3] = strtol(p, &end, 10);
        }
        memcpy(dim, read, sizeof read);
    }
    return f->data + from / sizeof(float);
}

/* The same; stops the program when it is missing. */
static inline const float *case_file_need(const case_file *f, size_t *count, int64_t *dim, const char *format, ...) {
    char name[192];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    const float *values = case_file_find(f, count, dim, name);
    if (values) return values;
    fprintf(stderr, "the fixture has no tensor %s\n", name);
    abort();
}

/* Multiples of scale / 256 in shift - scale .. shift + scale: exact in every storage type. As `values` in make_op_fixtures.py. */
static inline float *case_values(uint64_t stream, size_t count, float scale, float shift) {
    float *out = memory_new(count, sizeof *out);
    for (size_t i = 0; i < count; i++) out[i] = ((float)(random_bits(1, stream, i) >> 55) / 256 - 1) * scale + shift;
    return out;
}

/* Relative L2 error. What is zero but for rounding is measured against 1e-3 per element. */
static inline double relative_error(const float *values, const float *expected, size_t count) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        difference += pow((double)values[i] - (double)expected[i], 2);
        norm += pow((double)expected[i], 2);
    }
    return sqrt(difference / fmax(norm, 1e-6 * (double)count));
}

#endif
