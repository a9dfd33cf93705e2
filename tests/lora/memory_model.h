/* A checkpoint made in memory, for tests of what only needs its tables. */
#ifndef VULORA_TESTS_LORA_MEMORY_MODEL_H
#define VULORA_TESTS_LORA_MEMORY_MODEL_H

#include "base/memory.h"
#include "formats/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* data: kept by the caller; NULL where only the shape counts. */
static inline void memory_model_add(checkpoint *c, checkpoint_part part, const char *name, int rank, const int64_t *dims,
                                    const float *data) {
    checkpoint_table *table = &c->parts[part];
    table->tensors = memory_grow(table->tensors, table->count + 1, sizeof *table->tensors);
    checkpoint_tensor *t = &table->tensors[table->count++];
    *t = (checkpoint_tensor){.name = memory_string(name), .file = "memory", .type = DTYPE_F32, .rank = rank, .elements = 1, .data = data};
    t->stored = t->name;
    for (int i = 0; i < rank; i++) {
        t->dims[i] = dims[i];
        t->elements *= (size_t)dims[i];
    }
    t->bytes = t->elements * sizeof(float);
}

static inline int memory_model_order(const void *a, const void *b) {
    return strcmp(((const checkpoint_tensor *)a)->name, ((const checkpoint_tensor *)b)->name);
}

static inline void memory_model_finish(checkpoint *c) {
    for (int p = 0; p < CHECKPOINT_PARTS; p++)
        if (c->parts[p].count) qsort(c->parts[p].tensors, c->parts[p].count, sizeof *c->parts[p].tensors, memory_model_order);
}

static inline void memory_model_free(checkpoint *c) {
    for (int p = 0; p < CHECKPOINT_PARTS; p++) {
        for (size_t i = 0; i < c->parts[p].count; i++) free(c->parts[p].tensors[i].name);
        free(c->parts[p].tensors);
    }
    *c = (checkpoint){0};
}

/* One row of tests/fixtures/sd15_modules.tsv. */
typedef struct sd15_row {
    char kohya[160], diffusers[160], ldm[160], kind[32];
    int64_t out, in;
    int kernel, bias;
} sd15_row;

/* rows: [at least 463]. Returns how many. */
static inline int sd15_rows_read(sd15_row *rows, int most) {
    FILE *f = fopen(TEST_DATA "/sd15_modules.tsv", "r");
    char line[1024];
    int count = 0;
    if (!f) return 0;
    if (!fgets(line, sizeof line, f)) line[0] = 0;
    while (count < most && fgets(line, sizeof line, f)) {
        sd15_row *r = &rows[count];
        long long out, in;
        if (sscanf(line, "%159s %159s %159s %31s %lld %lld %d %d", r->kohya, r->diffusers, r->ldm, r->kind, &out, &in, &r->kernel,
                   &r->bias) != 8)
            continue;
        r->out = out;
        r->in = in;
        count++;
    }
    fclose(f);
    return count;
}

static inline checkpoint_part sd15_part(const sd15_row *r) {
    return strncmp(r->diffusers, "unet.", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
}
static inline const char *sd15_path(const sd15_row *r) { return strchr(r->diffusers, '.') + 1; }
static inline bool sd15_is_norm(const sd15_row *r) { return strstr(r->kind, "norm") != NULL; }

/* Stable Diffusion 1.5's shapes, with all sizes but kernels divided by `divisor` (sizes below it become 1). */
static inline void memory_model_sd15(checkpoint *c, int divisor) {
    sd15_row *rows = memory_new(500, sizeof *rows);
    int count = sd15_rows_read(rows, 500);
    for (int i = 0; i < count; i++) {
        const sd15_row *r = &rows[i];
        char name[192];
        int64_t out = r->out / divisor ? r->out / divisor : 1, in = r->in / divisor ? r->in / divisor : 1;
        int64_t dims[4] = {out, in, r->kernel, r->kernel};
        snprintf(name, sizeof name, "%s.weight", sd15_path(r));
        memory_model_add(c, sd15_part(r), name, sd15_is_norm(r) ? 1 : strncmp(r->kind, "conv", 4) == 0 ? 4 : 2, dims, NULL);
    }
    static const int64_t embedding[2] = {49408, 768};
    memory_model_add(c, CHECKPOINT_TEXT_ENCODER, "text_model.embeddings.token_embedding.weight", 2, embedding, NULL);
    memory_model_finish(c);
    free(rows);
}

#endif
