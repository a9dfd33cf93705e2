/* What tests of adapter files need, made once: a model with Stable Diffusion 1.5's modules in small, a CPU, and a folder. */
#ifndef VULORA_TESTS_LORA_PLACE_H
#define VULORA_TESTS_LORA_PLACE_H

#include "lora/modules.h"
#include "tests/lora/memory_model.h"
#include "tests/support/folder.h"

static checkpoint model; /* SD1.5's sizes divided by 16: 320 -> 20, 768 -> 48, 1280 -> 80 */
static module_table *table;
static device *cpu;
static char *folder;

static inline int lora_place_open(void **state) {
    (void)state;
    error err;
    memory_model_sd15(&model, 16);
    table = module_table_create(&model, &err);
    cpu = device_open("cpu", "fp32", 1, &err);
    folder = folder_make("lora");
    return table && cpu ? 0 : -1;
}

static inline int lora_place_close(void **state) {
    (void)state;
    module_table_free(table);
    memory_model_free(&model);
    device_close(cpu);
    folder_remove(folder);
    return 0;
}

/* A path in the folder, until the next call. */
static inline const char *in_folder(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

#endif
