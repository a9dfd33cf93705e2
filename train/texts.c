/* Captions to token ids, and to the text encoder's states when it is frozen. */
#include "base/memory.h"
#include "train/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The states of captions are computed this many at a time. */
enum { CAPTIONS_PER_RUN = 4 };

typedef struct numbered {
    const char *caption;
    size_t image;
} numbered;

static int by_caption(const void *a, const void *b) {
    const numbered *x = a, *y = b;
    int order = strcmp(x->caption, y->caption);
    return order ? order : (x->image > y->image) - (x->image < y->image);
}

size_t train_count_captions(const dataset *data, size_t *of) {
    numbered *list = memory_new(data->count, sizeof *list);
    size_t different = 0;
    for (size_t i = 0; i < data->count; i++) list[i] = (numbered){data->images[i].caption, i};
    qsort(list, data->count, sizeof *list, by_caption);
    for (size_t i = 0; i < data->count; i++) {
        different += i == 0 || strcmp(list[i - 1].caption, list[i].caption) != 0;
        if (of) of[list[i].image] = different - 1;
    }
    free(list);
    return different;
}

/* Each different caption once. */
static bool encode_states(trainer *t, error *err) {
    size_t each = (size_t)(t->pipeline->text.positions * t->pipeline->text.width);
    t->caption_of = memory_new(t->data->count, sizeof *t->caption_of);
    size_t count = train_count_captions(t->data, t->caption_of);
    t->contexts = memory_new(count * each, sizeof *t->contexts);
    int32_t *ids = memory_new(count * TOKENIZER_LENGTH, sizeof *ids);
    for (size_t i = 0; i < t->data->count; i++)
        memcpy(ids + t->caption_of[i] * TOKENIZER_LENGTH, t->ids + i * TOKENIZER_LENGTH, TOKENIZER_LENGTH * sizeof *ids);
    bool ok = true;
    for (size_t i = 0; ok && i < count; i += CAPTIONS_PER_RUN) {
        int n = (int)(count - i < CAPTIONS_PER_RUN ? count - i : CAPTIONS_PER_RUN);
        ok = pipeline_encode_text(t->pipeline, ids + i * TOKENIZER_LENGTH, n, t->options.learner.clip_skip, t->contexts + i * each, err);
    }
    pipeline_release(t->pipeline, CHECKPOINT_TEXT_ENCODER);
    free(ids);
    return ok;
}

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
    return learner_trains_text(t->learner) || encode_states(t, err);
}
