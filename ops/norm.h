/* What the files of the norms share. */
#ifndef VULORA_OPS_NORM_H
#define VULORA_OPS_NORM_H

#include "graph/tape.h"

/* Adds to the gradients of gamma and beta [c], where they need any, those of y = act((x - mean) * rstd * gamma + beta).
   x: [images, ..., c]. stats: mean and rstd, of `groups` groups of channels of each image, or (groups 0) of every row. silu: act is SiLU.
 */
void grad_add_norm(tape *t, tensor *dy, tensor *x, tensor *gamma, tensor *beta, tensor *stats, int64_t groups, bool silu);

/* How kernels that are put together as shaders/group_pixels.glsl says share out [images, pixels, channels]: `block` pixels and `step`
   channels times its columns to a workgroup. most_step: the channels a thread may take. */
typedef struct norm_blocks {
    int64_t step, column_groups, block, blocks;
} norm_blocks;
norm_blocks norm_blocks_of(int64_t images, int64_t pixels, int64_t channels, int64_t most_step);

/* What a thread of the gradients' kernels takes: more elements take registers that waves need. */
enum { NORM_GRAD_STEP = 4, NORM_PIXELS = 64 /* that group_pixels.glsl takes in whole rounds */ };

#endif
