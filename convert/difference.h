/* Where two models of one architecture differ. Both are read under diffusers' names, whatever their files call the tensors. */
#ifndef VULORA_CONVERT_DIFFERENCE_H
#define VULORA_CONVERT_DIFFERENCE_H

#include "formats/checkpoint.h"

/* All of the part's tensors are in both models, with the same shapes ([out, in] is [out, in, 1, 1]). The error names the first that is
   not. */
bool difference_possible(const checkpoint *base, const checkpoint *tuned, checkpoint_part part, error *err);

/* The other model's tensor; only of models that difference_possible holds for. */
const checkpoint_tensor *difference_partner(const checkpoint *tuned, checkpoint_part part, const checkpoint_tensor *t);

/* Equal as far as the coarser of the two types can tell: a model saved again in another precision is not another model. */
bool difference_none(const checkpoint_tensor *a, const checkpoint_tensor *b);

/* tuned - base: [elements]. Freed by the caller; NULL on error (memory, NaN or infinity in either). */
float *difference_values(const checkpoint_tensor *base, const checkpoint_tensor *tuned, error *err);

/* Of the difference, and of the base's tensor. */
typedef struct difference_size {
    double norm, base_norm; /* Frobenius */
    double largest;         /* of the absolute values of the difference */
} difference_size;

bool difference_measure(const checkpoint_tensor *base, const checkpoint_tensor *tuned, difference_size *out, error *err);

#endif
