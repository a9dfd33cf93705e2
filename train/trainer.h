/* A training: a pipeline, a dataset and settings in; an adapter file, and beside it the state to go on from, out. Every random choice is a
   pure function of the seed and of what it is for, so a resumed training makes the bytes an uninterrupted one would have made. */
#ifndef VULORA_TRAIN_TRAINER_H
#define VULORA_TRAIN_TRAINER_H

#include "datasets/dataset.h"
#include "lora/save.h"
#include "train/learner.h"
#include "train/rates.h"

typedef struct train_options {
    const char *output;      /* adapter file */
    adapter_options adapter; /* train_text_encoder follows from text_rate */
    learner_options learner; /* checkpoint is decided by `checkpoint` below */
    double unet_rate, text_rate;
    rate_schedule schedule;
    double warmup;         /* updates; below 1 a part of all */
    int64_t steps, epochs; /* updates; at most one is given, the other 0; both 0: 1600 pictures' worth of updates */
    int batch_size;
    int width, height; /* of --resolution, for the metadata */
    uint64_t seed;
    int checkpoint; /* 1, 0, or -1: only when memory needs it */

    dtype save_type;
    int64_t save_every_steps, save_every_epochs; /* 0: only at the end */
    double state_every_seconds;                  /* the state is written when the last is as old; 0: only with the adapter */
    bool metadata;                               /* ss_* settings, or only what names the kind */
    const char *comment;                         /* or NULL */
    const char *cache_folder;                    /* of encoded pictures; NULL: none is kept */
    int64_t preview_every_steps, preview_every_epochs;
    bool preview_at_end;
    bool resume;
    const char *trace_folder; /* or NULL */
    int64_t trace_tensors;    /* steps whose tensors are traced */
} train_options;

typedef struct train_progress {
    int64_t step, steps, epoch, epochs; /* done, of so many; epochs count from 1 */
    float loss, average;                /* of this update, and of the last hundred */
    float grad_norm;
    double seconds, seconds_left; /* of this step, and expected */
    float unet_rate;
} train_progress;

typedef struct train_events {
    void *user;
    void (*note)(void *user, const char *text);                  /* a sentence worth reading */
    void (*encoded)(void *user, size_t done, size_t all);        /* pictures encoded */
    void (*begun)(void *user, int64_t step, int64_t steps);      /* before the first update; `step` are done. May be NULL */
    void (*stepped)(void *user, const train_progress *progress); /* after each update */
    void (*saved)(void *user, const char *path);
    bool (*preview)(void *user, int64_t step, int64_t epoch, error *err); /* draw samples now; may be NULL */
    bool (*stop)(void *user);                                             /* asked after each update */
} train_events;

/* What a training will be: for --dry-run and for the first lines of a run. */
typedef struct train_outlook {
    int64_t steps, epochs, batches; /* batches: of an epoch */
    int modules[CHECKPOINT_PARTS];
    int64_t parameters;
    /* On the device, in bytes. */
    size_t constant_bytes; /* frozen weights */
    size_t adapter_bytes;  /* values, gradients and moments, and what the update works in */
    size_t arena_bytes;    /* activations and working memory */
    size_t live_bytes;     /* of those, what one moment needs at most: no arena could be smaller */
    size_t preview_bytes;  /* what previews need beside that: a second part of the model, a larger arena */
    size_t encode_bytes;   /* adapter, VAE and its activations, while pictures are encoded before the first step */
    size_t cache_bytes;    /* in the machine's memory: encoded pictures and captions */
    bool checkpoint;       /* activations are recomputed, */
    size_t kept_bytes;     /* because so much would be needed without; 0: the options say so */
    uint64_t free_bytes;   /* of the device, before anything is loaded */
    bool fits;             /* into what is free now */
    bool possible;         /* with other programs' pages driven out; on Vulkan the same as `fits` */
    int64_t resumed;       /* updates already done */
} train_outlook;

/* Of the training steps: everything at once. */
size_t train_outlook_bytes(const train_outlook *outlook);

typedef struct trainer trainer;

/* Makes (or, with options->resume, reads back) the adapter and puts it on the pipeline's stack. Everything passed stays the caller's and
   must outlive the trainer. NULL on error. */
trainer *trainer_create(pipeline *p, const dataset *data, const train_options *options, error *err);
void trainer_free(trainer *t);
/* Loads nothing. Turns recomputing on where memory needs it and the options leave it open. */
bool trainer_measure(trainer *t, train_outlook *outlook, error *err);
/* False when the training cannot fit: the error names options with which it would. */
bool trainer_check_memory(trainer *t, const train_outlook *outlook, error *err);
adapter *trainer_adapter(const trainer *t);

/* STOPPED_EARLY: before the first step, nothing was written. */
typedef enum train_result { TRAIN_DONE, TRAIN_STOPPED, TRAIN_STOPPED_EARLY, TRAIN_FAILED } train_result;

/* Trains to the end, or until events->stop; saves adapter and state in both cases. Failed: err says why and what is kept. What was saved
   last is whole, and what was trained since is saved too where the failure has left it intact: not after a loss that is not finite, and
   not on a device that was lost or hangs. */
train_result trainer_run(trainer *t, const train_events *events, error *err);

/* The state file that belongs to an adapter file: "me.safetensors" -> "me.state.safetensors". Freed by the caller. */
char *trainer_state_path(const char *output);

#endif
