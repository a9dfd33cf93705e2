/* The three models of a checkpoint on one device, with an adapter stack: text to states, latents to noise, pictures to latents and back.
   Host arrays are as PyTorch has them: images and latents [n, c, h, w], fp32. Weights are uploaded when a part is first used; the plan of
   the last shape of each part is kept, so calls of one shape after the other only run. */
#ifndef VULORA_PIPELINE_PIPELINE_H
#define VULORA_PIPELINE_PIPELINE_H

#include "graph/plan.h"
#include "lora/stack.h"
#include "text_encoder/text_encoder.h"
#include "text_encoder/tokenizer.h"

typedef struct pipeline {
    device *device;
    checkpoint model;
    module_table *modules;
    adapter_stack *adapters;
    tokenizer *tokenizer;
    text_encoder_sizes text;
    weights *weights[CHECKPOINT_PARTS]; /* NULL: not uploaded yet, or released */
    struct pipeline_plan *plans;        /* one of each kind */
    shared_arena *arena;                /* borrowed; NULL: every plan has its own */
} pipeline;

/* vae, tokenizer_folder: replacements, or NULL. The device stays the caller's. NULL on error. */
pipeline *pipeline_open(const char *model, const char *vae, const char *tokenizer_folder, device *d, error *err);
void pipeline_close(pipeline *p);

/* To be called after the adapter stack changed: what was recorded with the old one is dropped. */
void pipeline_adapters_changed(pipeline *p);
/* Frees a part's weights and plans; it is loaded again when used again. */
void pipeline_release(pipeline *p, checkpoint_part part);
/* Plans that fit into `arena` are placed in it from now on; NULL: none is. It must not be freed before this is called again. */
void pipeline_use_arena(pipeline *p, shared_arena *arena);
/* The scope to append a part's forward pass to a tape with. */
layer_scope pipeline_scope(pipeline *p, tape *t, checkpoint_part part);

/* ids: [n, 77]. out: [n, 77, width]: the states after the final layer norm; clip_skip 1 = all layers. */
bool pipeline_encode_text(pipeline *p, const int32_t *ids, int n, int clip_skip, float *out, error *err);
/* last, penultimate: [n, 77, width]; pooled: [n, width], the last state of the first end token (the highest id of the row). */
bool pipeline_encode_text_all(pipeline *p, const int32_t *ids, int n, float *last, float *penultimate, float *pooled, error *err);

/* Noise prediction. sample, out: [n, 4, h, w]; timesteps: [n]; context: [n, tokens, width]. */
bool pipeline_predict(pipeline *p, const float *sample, int n, int h, int w, const float *timesteps, const float *context, int tokens,
                      float *out, error *err);

/* image: [n, 3, height, width] in -1..1, sides multiples of 8. mean, logvar: [n, 4, height / 8, width / 8], before the scaling factor;
   logvar within -30..20 as in diffusers. */
bool pipeline_vae_encode(pipeline *p, const float *image, int n, int height, int width, float *mean, float *logvar, error *err);
/* latents: [n, 4, h, w] after division by the scaling factor. image: [n, 3, 8h, 8w], not clamped. */
bool pipeline_vae_decode(pipeline *p, const float *latents, int n, int h, int w, float *image, error *err);

/* What these take on the device; nothing is loaded or made for it. */
bool pipeline_measure_encode_text(pipeline *p, int n, plan_size *size, error *err);
bool pipeline_measure_predict(pipeline *p, int n, int h, int w, int tokens, plan_size *size, error *err);
bool pipeline_measure_vae_encode(pipeline *p, int n, int height, int width, plan_size *size, error *err);
bool pipeline_measure_vae_decode(pipeline *p, int n, int h, int w, plan_size *size, error *err);

/* Adds what the last plan of a part sends to a Vulkan device (see plan_count). */
void pipeline_count(const pipeline *p, checkpoint_part part, gpu_counts *sum);
/* Seconds per op of the last plan of a part (see plan_profile); nothing when there is none. */
void pipeline_profile(const pipeline *p, checkpoint_part part,
                      void (*report)(void *user, const char *op, int records, double seconds, double flops), void *user);

/* Between [n, c, h, w] and [n, h, w, c]. */
void pipeline_channels_last(const float *in, int n, int c, int64_t pixels, float *out);
void pipeline_channels_first(const float *in, int n, int c, int64_t pixels, float *out);

#endif
