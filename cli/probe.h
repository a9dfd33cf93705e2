/* The parts of `vulora probe`: each reads p->in, computes, and adds its results to p->out. */
#ifndef VULORA_CLI_PROBE_H
#define VULORA_CLI_PROBE_H

#include "cli/session.h"
#include "cli/tensors.h"

enum { PROBE_BLOCKS = 16 };

/* What the command prepares for a part. */
enum { PROBE_MODEL = 1, PROBE_INPUT = 2, PROBE_OUTPUT = 4, PROBE_ONE_LORA = 8 };

typedef struct probe {
    const options *options;
    session session;
    safetensors in;
    safetensors_writer out;
    void *blocks[PROBE_BLOCKS]; /* freed after the results are written */
    int block_count;
} probe;

typedef struct probe_part {
    const char *name;
    int needs;
    bool (*run)(probe *p, error *err);
} probe_part;

/* Tensors in and out, owned by p. As tensors_read. */
bool probe_read(probe *p, const char *name, const char *shape, int rank, int64_t *dims, float **values, error *err);
bool probe_read_ints(probe *p, const char *name, const char *shape, int rank, int64_t *dims, int32_t low, int32_t high, int32_t **values,
                     error *err);
float *probe_new(probe *p, int64_t a, int64_t b, int64_t c, int64_t d, error *err);
void *probe_own(probe *p, void *block); /* returns the block */
bool probe_result(probe *p, const char *name, int rank, const int64_t *dims, const float *values, error *err);

bool probe_text_encoder(probe *p, error *err);
bool probe_unet(probe *p, error *err);
bool probe_vae_encode(probe *p, error *err);
bool probe_vae_decode(probe *p, error *err);
bool probe_train_grad(probe *p, error *err);
bool probe_schedule(probe *p, error *err);
bool probe_denoise(probe *p, error *err);
bool probe_tokenizer(probe *p, error *err);

#endif
