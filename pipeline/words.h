/* Words that adapters bring along (lora/words.h) in prompts: their vectors are ids behind the model's vocabulary. */
#ifndef VULORA_PIPELINE_WORDS_H
#define VULORA_PIPELINE_WORDS_H

#include "pipeline/pipeline.h"

/* As prompt_tokenizer.encode, user being the pipeline. A word is found by its tokens, as webui finds it; the longest counts, and of the
   same word that of the adapter on top. The text is valid UTF-8. */
size_t pipeline_encode_words(void *user, const char *text, int32_t *ids, size_t capacity);
/* As prompt_tokenizer.together: how many vectors begin with that id, 1 for anything else. */
int pipeline_word_length(void *user, int32_t id);

/* All vectors in the order of their ids, [*count, width]; freed by the caller. NULL: there are none. */
float *pipeline_word_vectors(const pipeline *p, int64_t *count);

#endif
