/* Textual inversions that come in an adapter's file (formats.md 2.3): a word of the prompt stands for vectors that take the place of its
   tokens' embeddings, whatever the adapter's strength. webui's spelling is bundle_emb.WORD.string_to_param.*, OneTrainer's
   bundle_emb.WORD.clip_l. */
#ifndef VULORA_LORA_WORDS_H
#define VULORA_LORA_WORDS_H

#include "lora/adapter.h"
#include "lora/file.h"

enum { ADAPTER_WORD_MOST = 75 /* vectors; as many as a chunk of a prompt holds */ };

typedef struct adapter_word {
    char *name;
    int64_t count, width;
    float *vectors; /* [count, width] */
} adapter_word;

/* Is this tensor of a file a word for the text encoder of these modules? Refused: one of another width, or too many vectors. *taken is
   false, and nothing is done, when it is none. */
bool adapter_word_load(adapter *a, const adapter_file *file, const safetensors_tensor *t, bool *taken, error *err);
void adapter_words_free(adapter *a);

#endif
