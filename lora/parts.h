/* What the kinds share: checking, reading and making the tensors of a module. */
#ifndef VULORA_LORA_PARTS_H
#define VULORA_LORA_PARTS_H

#include "lora/kind.h"

/* [rows, columns], or [rows, columns, 1, 1]. */
bool part_is_matrix(const safetensors_tensor *t, int64_t rows, int64_t columns);
/* [out, in, kernel, kernel] */
bool part_is_kernel(const safetensors_tensor *t, int64_t out, int64_t in, int kernel);
/* An error that says the tensor's shape, and the shape of the model's weight there. Always false. */
bool part_shape_error(const adapter_module *m, const safetensors_tensor *t, error *err);
/* An error that names the part that is missing beside one that is there. Always false. */
bool part_missing_error(const adapter_group *g, const char *present, const char *missing, error *err);

/* Reads the part onto the device as tensor number `index`. */
bool part_load(adapter *a, adapter_module *m, int index, const adapter_part *part, adapter_layout layout, error *err);
/* The same, multiplied by factor. */
bool part_load_scaled(adapter *a, adapter_module *m, int index, const adapter_part *part, adapter_layout layout, float factor, error *err);
/* Sets scale and alpha of a module of that rank: `scale` counts, else alpha / rank, else what PEFT's configuration says, else 1. Trainers
   take an alpha of 0 as the rank. rank 0: there is none, the scale is 1 unless the file or PEFT's configuration
   says it. */
bool part_load_scale(adapter_module *m, const adapter_file *file, const adapter_group *g, int64_t rank, error *err);

typedef enum part_fill {
    PART_ZEROS,
    PART_KAIMING, /* uniform within 1 / sqrt(product of all dimensions but the first) of 0: kaiming_uniform(a = sqrt 5) */
    PART_NORMAL,  /* mean 0, standard deviation 1 */
    PART_NORMAL_TENTH,
    PART_NORMAL_RANK, /* standard deviation 1 / first dimension */
    PART_ONES
} part_fill;

/* Makes tensor number `index`, the kind's part of that number. Every tensor has random numbers of its own, whatever else there is. */
bool part_new(adapter *a, adapter_module *m, int index, int rank, const int64_t *dims, adapter_layout layout, part_fill fill, uint64_t seed,
              error *err);

/* The module's tensor as products use it: where a trained scalar multiplies it (adapter_kind.scaled), that product, on the tape. */
tensor *part_factor(const adapter_module *m, tape *t, int index);
/* Makes the scalar, 0. */
bool part_new_scalar(adapter *a, adapter_module *m, error *err);

/* The module's tensor, or NULL. */
static inline tensor *part_value(const adapter_module *m, int index) { return m->tensors[index].value; }

#endif
