#include "lora/modules.h"

#include "base/memory.h"
#include "formats/checkpoint_names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *part_prefix(checkpoint_part part) { return part == CHECKPOINT_UNET ? "lora_unet_" : "lora_te_"; }

static void flatten(char *text) {
    for (; *text; text++)
        if (*text == '.') *text = '_';
}

bool module_flat_name(checkpoint_part part, const char *path, char *out, size_t size) {
    int n = snprintf(out, size, "%s%s", part_prefix(part), path);
    if (n < 0 || (size_t)n >= size) return false;
    flatten(out);
    return true;
}

static int module_order(const void *a, const void *b) { return strcmp(((const module_info *)a)->flat, ((const module_info *)b)->flat); }

/* Linear layers and convolutions; the text encoder's embeddings are matrices too, but no layer that an adapter could change. */
static bool is_module(checkpoint_part part, const checkpoint_tensor *t) {
    size_t n = strlen(t->name);
    if (n <= 7 || strcmp(t->name + n - 7, ".weight") != 0 || (t->rank != 1 && t->rank != 2 && t->rank != 4)) return false;
    return part == CHECKPOINT_UNET || strstr(t->name, ".layers.");
}

static bool table_add(module_table *table, const checkpoint *c, checkpoint_part part, const checkpoint_tensor *t, error *err) {
    if (t->rank == 4 && (t->dims[2] != t->dims[3] || (t->dims[2] != 1 && t->dims[2] != 3)))
        return error_set(err, "%s: tensor %s: convolutions of %lldx%lld are not supported", t->file, t->stored, (long long)t->dims[2],
                         (long long)t->dims[3]);
    table->modules = memory_grow(table->modules, (size_t)table->count + 1, sizeof *table->modules);
    module_info *m = &table->modules[table->count++];
    *m = (module_info){
        .part = part, .out = t->dims[0], .in = t->rank > 1 ? t->dims[1] : 1, .kernel = 1, .convolution = t->rank == 4, .weight = t};
    if (m->convolution) m->kernel = (int)t->dims[2];
    if (t->rank == 1) m->kernel = 0;
    m->name = memory_string(t->name);
    m->name[strlen(m->name) - 7] = 0;
    char *bias = memory_format("%s.bias", m->name);
    m->bias = checkpoint_find(c, part, bias) != NULL;
    free(bias);
    m->flat = memory_format("%s%s", part_prefix(part), m->name);
    flatten(m->flat);
    return true;
}

module_table *module_table_create(const checkpoint *c, error *err) {
    static const checkpoint_part parts[] = {CHECKPOINT_UNET, CHECKPOINT_TEXT_ENCODER};
    module_table *table = memory_new(1, sizeof *table);
    for (int p = 0; p < 2; p++) {
        const checkpoint_table *tensors = &c->parts[parts[p]];
        for (size_t i = 0; i < tensors->count; i++) {
            if (!is_module(parts[p], &tensors->tensors[i])) continue;
            if (!table_add(table, c, parts[p], &tensors->tensors[i], err)) {
                module_table_free(table);
                return NULL;
            }
        }
    }
    if (table->count > 0) qsort(table->modules, (size_t)table->count, sizeof *table->modules, module_order);
    return table;
}

void module_table_free(module_table *table) {
    if (!table) return;
    for (int i = 0; i < table->count; i++) {
        free(table->modules[i].name);
        free(table->modules[i].flat);
    }
    free(table->modules);
    free(table);
}

const module_info *module_table_find(const module_table *table, const char *flat) {
    int low = 0, high = table->count;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(flat, table->modules[middle].flat);
        if (order == 0) return &table->modules[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* ---- The original spelling ---- */

/* "12_", or "12" at the end. */
static const char *skip_number(const char *s) {
    const char *digits = s;
    while (*s >= '0' && *s <= '9') s++;
    if (s == digits || (*s && *s != '_')) return NULL;
    return *s ? s + 1 : s;
}

/* LDM's name with the dots that checkpoint_unet_name looks at put back: those of the block's numbers, and those before the number of a
   layer in a resnet. What is inside a transformer stays flat: there both spellings agree. */
static bool ldm_with_dots(const char *flat, char *out, size_t size) {
    static const char *const blocks[] = {"input_blocks_", "output_blocks_", "middle_block_"};
    static const char *const numbered[] = {"time_embed_", "out_", "in_layers_", "out_layers_", "emb_layers_"};
    const char *tail = flat;
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(blocks[i]);
        if (strncmp(flat, blocks[i], n) != 0) continue;
        tail = skip_number(flat + n);
        if (tail && i < 2) tail = skip_number(tail); /* the middle block has one number */
        if (!tail) return false;
    }
    int n = snprintf(out, size, "%s.", flat);
    if (n < 0 || (size_t)n >= size) return false;
    char *head_end = out + (tail - flat);
    if (tail != flat) {
        const char *first = strstr(out, strncmp(out, "middle", 6) == 0 ? "block_" : "blocks_");
        for (char *p = out + (strchr(first, '_') - out); p < head_end; p++)
            if (*p == '_') *p = '.';
    }
    for (size_t i = 0; i < sizeof numbered / sizeof *numbered; i++) {
        size_t length = strlen(numbered[i]);
        if (strncmp(head_end, numbered[i], length) == 0 && head_end[length] >= '0' && head_end[length] <= '9') head_end[length - 1] = '.';
    }
    return true;
}

bool module_flat_from_ldm(const char *flat, char *out, size_t size) {
    char ldm[256], name[256];
    if (strncmp(flat, "lora_unet_", 10) != 0 || !ldm_with_dots(flat + 10, ldm, sizeof ldm)) return false;
    if (!checkpoint_unet_name(ldm, name, sizeof name)) return false;
    size_t n = strlen(name);
    if (n > 0 && name[n - 1] == '.') name[n - 1] = 0;
    return module_flat_name(CHECKPOINT_UNET, name, out, size);
}
