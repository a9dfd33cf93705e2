/* Captions to token ids, and to the text encoder's states when it is frozen. */
#include "base/memory.h"
#include "train/internal.h"

#include <stdio.h>
#include <string.h>

/* The states of captions are computed this many at a time. */
enum { CAPTIONS_PER_RUN = 4 };

bool train_encode_captions(trainer *t, const train_events *events, error *err) {
    size_t count = t->data->count, cut = 0;
    t->ids = memory_new(count * TOKENIZER_LENGTH, sizeof *t->ids);
    for (size_t i = 0; i < count; i++) {
        const char *caption = t->data->images[i].caption;
        size_t lost;
        if (!tokenizer_encode_77(t->pipeline->tokenizer, caption, strlen(caption), t->ids + i * TOKENIZER_LENGTH, &lost, err))
            return error_prefix(err, "caption of %s", t->data->images[i].path);
        cut += lost > 0;
    }
    if (cut && events->note) {
        char text[160];
        snprintf(text, sizeof text, "%zu of %zu captions are longer than %d tokens; what comes after is not used", cut, count,
                 TOKENIZER_CHUNK);
        events->note(events->user, text);
    }
    if (learner_trains_text(t->learner)) return true;
    size_t each = (size_t)(t->pipeline->text.positions * t->pipeline->text.width);
    t->contexts = memory_new(count * each, sizeof *t->contexts);
    for (size_t i = 0; i < count; i += CAPTIONS_PER_RUN) {
        int n = (int)(count - i < CAPTIONS_PER_RUN ? count - i : CAPTIONS_PER_RUN);
        if (!pipeline_encode_text(t->pipeline, t->ids + i * TOKENIZER_LENGTH, n, t->options.learner.clip_skip, t->contexts + i * each, err))
            return false;
    }
    pipeline_release(t->pipeline, CHECKPOINT_TEXT_ENCODER);
    return true;
}
