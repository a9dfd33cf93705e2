/* An adapter that is read to be written again: the file, a model's modules or those that the file itself tells, and the adapter on the
   CPU. */
#ifndef VULORA_CONVERT_SOURCE_H
#define VULORA_CONVERT_SOURCE_H

#include "lora/adapter.h"
#include "lora/file.h"

/* What all sources of one run share. */
typedef struct source_base {
    device *device;
    bool has_model;
    checkpoint model;
    module_table *table; /* of the model, or NULL */
} source_base;

/* model: a checkpoint, or NULL. */
bool source_base_open(source_base *b, const char *model, int threads, error *err);
void source_base_close(source_base *b);

typedef struct source {
    adapter_file file;
    const checkpoint *model; /* NULL: there is none */
    module_table *outline;   /* NULL: the model's table is used */
    adapter *adapter;
    adapter_report report; /* modules that the model does not have */
} source;

bool source_open(source *s, const source_base *b, const char *path, error *err);
void source_close(source *s);

/* The part of the file that module number `index` of the adapter was read from. */
const adapter_group *source_group(const source *s, int index);

#endif
