/* What the files of train/ share. */
#ifndef VULORA_TRAIN_INTERNAL_H
#define VULORA_TRAIN_INTERNAL_H

#include "train/trainer.h"

#include <stdio.h>

/* A picture as the VAE's posterior, in memory. */
typedef struct posterior {
    float *mean, *logvar; /* [4, h, w] */
} posterior;

struct trainer {
    pipeline *pipeline;
    const dataset *data;
    train_options options;
    adapter *adapter;
    learner *learner;
    int64_t step, steps;   /* updates done, and in all */
    int64_t kept;          /* the update whose state is on disk; 0: none */
    double kept_at;        /* when it was written, or the first step began */
    bool spoilt;           /* the adapter is not what it was after `step`, or not worth keeping */
    int64_t batches;       /* in an epoch */
    posterior *latents[2]; /* by flip, then image */
    int32_t *ids;          /* [images, 77] */
    size_t *caption_of;    /* by image: the number of its caption among the different ones */
    float *contexts;       /* [different captions, 77, width]; NULL when the text encoder is trained */
    dataset_plan plan;     /* the batches of */
    int64_t planned_epoch; /* this epoch; -1: none yet */
    size_t arena_bytes;    /* of the largest batch; 0: not measured yet */
    FILE *trace;
};

/* latents.c: encodes every picture once, through the cache. *stopped: events->stop asked for it before the last. */
bool train_encode_pictures(trainer *t, const train_events *events, bool *stopped, error *err);
/* texts.c: token ids of every caption, and their states when the text encoder is frozen. */
bool train_encode_captions(trainer *t, const train_events *events, error *err);
/* How many different captions there are. of: by image, the number of its caption; or NULL. */
size_t train_count_captions(const dataset *data, size_t *of);

/* state.c */
bool train_state_save(trainer *t, error *err);
bool train_state_load(trainer *t, error *err);

/* pissa.c: gives the modules that have such their first values. */
bool train_pissa_begin(const adapter *a, error *err);

/* metadata.c: sd-scripts' ss_* and modelspec.* pairs for the adapter file, as of t->step. name: the file's, without folder and ending. */
typedef struct train_metadata {
    safetensors_pair *pairs;
    size_t count;
} train_metadata;

train_metadata train_metadata_make(const trainer *t, const char *name);
/* What is for ss_network_args beside what the adapter itself tells; *lycoris: some of it only LyCORIS has. */
train_metadata train_network_arguments(const trainer *t, bool *lycoris);
void train_metadata_free(train_metadata *m);

/* One batch of an update, and what it was made of. */
typedef struct traced_batch {
    const dataset_item *items;
    learner_batch tensors;
    int32_t *ids; /* [n, 77] */
} traced_batch;

typedef struct traced_step {
    int64_t step, epoch;
    const traced_batch *batches;
    int batch_count;
    float loss, grad_norm;
    double rates[CHECKPOINT_PARTS];
    double seconds;
} traced_step;

/* The tensors of one step, gathered until they are written. Zero-initialised. */
typedef struct trace_tensors {
    safetensors_writer writer;
    float **buffers;
    int count;
} trace_tensors;

/* trace.c */
bool train_trace_open(trainer *t, error *err);
bool train_trace_line(trainer *t, const traced_step *step, error *err);
bool train_trace_wants_tensors(const trainer *t, int64_t step);
bool train_trace_adapter(trainer *t, trace_tensors *x, const char *prefix /* "before", "grad" or "after" */, error *err);
bool train_trace_batch(trainer *t, trace_tensors *x, const traced_batch *b, int number, float *states /* [n, 77, width] */, error *err);
bool train_trace_tensors_write(trainer *t, trace_tensors *x, int64_t step, const float *loss, error *err);
void train_trace_tensors_free(trace_tensors *x);

/* leftovers.c: temporary files beside the output that belong to no running program; step-*.safetensors of an older trace. */
void train_remove_orphans(const char *output);
void train_remove_old_tensors(const char *trace_folder);

/* outlook.c: bytes of the arena of the largest batch. */
bool train_measure_arena(trainer *t, size_t *bytes, error *err);

/* trainer.c */
int64_t train_epochs(const trainer *t);

#endif
