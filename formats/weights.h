/* One part of a model (U-Net, VAE, text encoder) on a device: its tensors by diffusers name. They take no memory before a plan that reads
   them is made. */
#ifndef VULORA_FORMATS_WEIGHTS_H
#define VULORA_FORMATS_WEIGHTS_H

#include "formats/checkpoint.h"
#include "graph/tape.h"

typedef struct weights weights;

/* The checkpoint must stay open as long as the weights live. */
weights *weights_open(const checkpoint *c, checkpoint_part part, device *d);
void weights_close(weights *w);
const checkpoint *weights_checkpoint(const weights *w);
checkpoint_part weights_part(const weights *w);

/* The tensor NAME in the layout that ops want: linear and 1x1 convolution [out, in], other convolutions [taps, out, in], vectors [n].
   NULL, with the failure noted on the tape, when the model lacks it. */
tensor *weights_get(weights *w, tape *t, const char *name);
/* The same for a tensor that may be missing (biases): NULL without a failure. */
tensor *weights_get_optional(weights *w, const char *name);

#endif
