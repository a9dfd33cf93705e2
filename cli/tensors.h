/* Tensors in and out of safetensors files, for `probe`: float32 arrays of checked shape. */
#ifndef VULORA_CLI_TENSORS_H
#define VULORA_CLI_TENSORS_H

#include "formats/safetensors.h"

/* Reads the tensor as float32 into *values (freed by the caller). shape: its dimensions as text, for messages ("[n, 4, h, w]");
   dims: [rank]; -1 takes any size from 1 on, which is stored there. False: missing, of another shape, or not finite. */
bool tensors_read(const safetensors *in, const char *name, const char *shape, int rank, int64_t *dims, float **values, error *err);
/* The same for whole numbers in low..high. The file may hold I64, I32 or floats without fractions. */
bool tensors_read_ints(const safetensors *in, const char *name, const char *shape, int rank, int64_t *dims, int32_t low, int32_t high,
                       int32_t **values, error *err);

/* What is to be written: values are copied pointers, kept by the caller until tensors_write. */
bool tensors_write(safetensors_writer *out, const char *path, error *err);

#endif
