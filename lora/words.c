#include "lora/words.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

static const char PREFIX[] = "bundle_emb.", *const ENDINGS[] = {".string_to_param.*", ".clip_l"};

/* The word in a tensor's name; 0: there is none. */
static size_t word_length(const char *name) {
    size_t prefix = sizeof PREFIX - 1, n = strlen(name);
    if (strncmp(name, PREFIX, prefix) != 0) return 0;
    for (size_t i = 0; i < sizeof ENDINGS / sizeof *ENDINGS; i++) {
        size_t ending = strlen(ENDINGS[i]);
        if (n > prefix + ending && strcmp(name + n - ending, ENDINGS[i]) == 0) return n - prefix - ending;
    }
    return 0;
}

static const safetensors *source_of(const adapter_file *file, const safetensors_tensor *t) {
    for (int s = 0; s < file->source_count; s++)
        for (size_t i = 0; i < file->sources[s].count; i++)
            if (&file->sources[s].tensors[i] == t) return &file->sources[s];
    return NULL;
}

bool adapter_word_load(adapter *a, const adapter_file *file, const safetensors_tensor *t, bool *taken, error *err) {
    size_t length = word_length(t->name);
    const module_info *layer = module_table_find(a->table, "lora_te_text_model_encoder_layers_0_mlp_fc1");
    *taken = length > 0 && layer;
    if (!*taken) return true;
    int64_t count = t->rank == 2 ? t->dims[0] : 1, width = t->rank > 0 ? t->dims[t->rank - 1] : 0;
    if (t->rank < 1 || t->rank > 2 || width != layer->in)
        return error_set(err, "%s: tensor %s holds vectors %lld wide, but this model's text encoder is %lld wide", file->path, t->name,
                         (long long)width, (long long)layer->in);
    if (count < 1 || count > ADAPTER_WORD_MOST)
        return error_set(err, "%s: tensor %s holds %lld vectors; a prompt takes 1 to %d for a word", file->path, t->name, (long long)count,
                         ADAPTER_WORD_MOST);
    adapter_part part = {.name = t->name, .tensor = t, .source = source_of(file, t)};
    float *vectors = adapter_part_read(&part, err);
    if (!vectors) return error_prefix(err, "%s", file->path);
    a->words = memory_grow(a->words, (size_t)a->word_count + 1, sizeof *a->words);
    a->words[a->word_count++] = (adapter_word){memory_format("%.*s", (int)length, t->name + sizeof PREFIX - 1), count, width, vectors};
    return true;
}

void adapter_words_free(adapter *a) {
    for (int i = 0; i < a->word_count; i++) {
        free(a->words[i].name);
        free(a->words[i].vectors);
    }
    free(a->words);
}
