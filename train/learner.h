/* One adapter being trained: the gradient tapes (one plan a batch shape), AdamW and its state. Knows nothing of files and folders. */
#ifndef VULORA_TRAIN_LEARNER_H
#define VULORA_TRAIN_LEARNER_H

#include "diffusion/schedule.h"
#include "pipeline/pipeline.h"

typedef struct learner learner;

typedef struct learner_options {
    int clip_skip;       /* 1: all layers of the text encoder */
    bool checkpoint;     /* recompute activations in the backward pass */
    int accumulation;    /* batches per update */
    float max_grad_norm; /* 0: no clipping */
    float beta1, beta2, eps, weight_decay;
} learner_options;

/* 0.9, 0.999, 1e-8, 0.01 as torch.optim.AdamW; clipping to 1. */
learner_options learner_default_options(void);

/* adapter: trainable and in the pipeline's stack; stays the caller's. NULL on error. */
learner *learner_create(pipeline *p, adapter *a, const learner_options *options, error *err);
void learner_free(learner *l);

/* Whether activations are recomputed in the backward pass from now on. */
void learner_set_checkpoint(learner *l, bool recompute);

/* Whether any of the adapter's modules is in the text encoder: batches then need ids, else context. */
bool learner_trains_text(const learner *l);

typedef struct learner_batch {
    int n, h, w;
    const float *latents, *noise; /* [n, 4, h, w], latents scaled */
    const int *timesteps;         /* [n], 0..999 */
    const int32_t *ids;           /* [n, 77]: the text encoder runs inside the step (and may be trained); NULL: */
    const float *context;         /* [n, tokens, width] is given */
    int tokens;
    uint64_t number; /* of the batch in the training: dropouts are drawn by it */
} learner_batch;

/* Noise prediction loss (mean squared error over everything) and its gradient divided by `accumulation`, added to the gradients so far. */
bool learner_accumulate(learner *l, const learner_batch *batch, float *loss, error *err);

/* One AdamW step from the accumulated gradients, which are then zero. rates: by part (checkpoint_part), which a tensor's own
   factor multiplies. grad_norm: before clipping.
 *applied false: the gradients were not finite. In fp16 that lowers the loss scale and training goes on; in fp32 it never helps. */
bool learner_update(learner *l, const float rates[CHECKPOINT_PARTS], float *grad_norm, bool *applied, error *err);

/* Host copies in the file's layout, by index of adapter_tensor_at. */
bool learner_read_value(learner *l, int index, float *out, error *err);
bool learner_read_grad(learner *l, int index, float *out, error *err); /* without the loss scale */
/* AdamW's moments; with learner_steps they are the whole state beside the values. */
bool learner_read_moments(learner *l, int index, float *m, float *v, error *err);
bool learner_write_state(learner *l, int index, const float *value, const float *m, const float *v, error *err);
int64_t learner_steps(const learner *l); /* updates applied so far */
void learner_set_steps(learner *l, int64_t steps);
float learner_loss_scale(const learner *l);
void learner_set_loss_scale(learner *l, float scale, int good_steps);
int learner_good_steps(const learner *l); /* since the loss scale last changed */

/* What one batch shape will take, with activations kept or recomputed; nothing is loaded or made for it. */
bool learner_measure(learner *l, int n, int h, int w, int tokens, bool text_inside, bool recompute, plan_size *size, error *err);
/* Of the update's own working memory, which is there from the beginning. */
size_t learner_update_bytes(const learner *l);
/* Sets that much aside, so that the arena need not grow later (growing makes every shape's plan anew). */
bool learner_reserve(learner *l, size_t bytes, error *err);
/* Adds what a step of every shape so far and an update send to a Vulkan device (see plan_count). */
void learner_count(const learner *l, gpu_counts *sum);
/* Seconds per op on the CPU so far, over all shapes. */
void learner_profile(const learner *l, void (*report)(void *user, const char *op, int records, double seconds, double flops), void *user);

#endif
