/* Prompts as stable-diffusion-webui users write them. From the text to what the text encoder gets:
     prompt_parse        <lora:...> taken out, [a:b:0.5] and [a|b] laid out over the steps
     prompt_fragments    one of those texts as pieces with weights: (a), [a], (a:1.3), BREAK
     prompt_chunks_build pieces as token ids, in chunks of 77
     prompt_emphasize    the weights applied to the text encoder's output */
#ifndef VULORA_DIFFUSION_PROMPT_H
#define VULORA_DIFFUSION_PROMPT_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PROMPT_CHUNK = 77, PROMPT_CHUNK_TEXT = 75 };

/* <lora:NAME:TE:UNET>, <lora:NAME:te=A:unet=B>, or with <lyco:: one weight goes for both, none is 1. :lbw=BLOCKS may follow. */
typedef struct prompt_lora {
    char *name;
    char *blocks; /* what stands behind lbw=, or NULL */
    float te_weight, unet_weight;
} prompt_lora;

/* A text and the last step (counted from 0) that uses it. */
typedef struct prompt_stage {
    char *text;
    int last_step;
} prompt_stage;

typedef struct prompt_plan {
    prompt_lora *loras;
    int lora_count;
    prompt_stage *stages; /* at least one, in order of last_step */
    int stage_count;
} prompt_plan;

/* steps: of the sampler. [before:after:WHEN], [after:WHEN], [before::WHEN]: WHEN with a decimal point is a share of the steps, else a
   step; [a|b|c] changes in every step. The counting is webui's: the last step of a stage WHEN is WHEN itself, counted from 0.
   `<` of any other kind, and brackets that do not match, are text.
   Refused: AND (not in a negative prompt, where webui takes it as a word), <lora:...> in a negative prompt, a third or `dyn` number,
   <hypernet:...>, what is not a number where one belongs. */
bool prompt_parse(prompt_plan *prompt, const char *text, int steps, bool negative, error *err);
void prompt_free(prompt_plan *prompt);

/* Index of the stage for step i (from 0). */
int prompt_stage_at(const prompt_plan *prompt, int i);

typedef struct prompt_fragment {
    char *text;
    float weight;
    bool is_break; /* BREAK: fill up the chunk here; text is "" */
} prompt_fragment;

typedef struct prompt_fragments {
    prompt_fragment *items; /* at least one */
    int count;
} prompt_fragments;

/* (a) is 1.1, [a] is 1/1.1, (a:1.3) is 1.3, nested ones multiply; \( \) \[ \] \\ are the characters. Brackets left open are closed at the
   end. */
bool prompt_fragments_parse(prompt_fragments *fragments, const char *text, error *err);
void prompt_fragments_free(prompt_fragments *fragments);

typedef struct prompt_tokenizer {
    /* Writes at most `capacity` ids of the text, without start and end; returns how many there are. */
    size_t (*encode)(void *user, const char *text, int32_t *ids, size_t capacity);
    void *user;
    int32_t start_id, end_id; /* CLIP: 49406, 49407; end_id pads too */
    /* How many ids from this one on must not be parted by the end of a chunk (at most 75). NULL: 1 always. */
    int (*together)(void *user, int32_t id);
} prompt_tokenizer;

typedef struct prompt_chunks {
    int count;      /* at least 1 */
    int32_t *ids;   /* [count, 77] */
    float *weights; /* [count, 77], 1 for start, end and padding */
    int tokens;     /* of the prompt itself */
} prompt_chunks;

/* Chunks of 75 tokens between start and end. If a chunk is full and its last comma is at most 20 tokens back, what stands behind that comma
   moves to the next chunk (webui's default). */
void prompt_chunks_build(prompt_chunks *chunks, const prompt_fragments *fragments, const prompt_tokenizer *tokenizer);
void prompt_chunks_free(prompt_chunks *chunks);

/* hidden: [77, width], the text encoder's output for one chunk; weights: [77]. Multiplies each token's row by its weight, then all by one
   factor that restores the mean (webui's "Original" emphasis). Does nothing when all weights are 1. */
void prompt_emphasize(float *hidden, const float *weights, size_t width);

#endif
