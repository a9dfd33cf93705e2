/* Element types of tensors, in memory and in safetensors files. */
#ifndef VULORA_BASE_DTYPE_H
#define VULORA_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>

typedef enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F64,
    DTYPE_I64,
    DTYPE_I32,
    DTYPE_I16,
    DTYPE_I8,
    DTYPE_U8,
    DTYPE_BOOL,
    DTYPE_F8_E4M3,
    DTYPE_F8_E5M2,
    DTYPE_COUNT
} dtype;

/* Bytes per element. */
size_t dtype_size(dtype type);

/* The name safetensors uses ("F32", "BF16", ...). */
const char *dtype_name(dtype type);

/* The type with that safetensors name, or DTYPE_COUNT. */
dtype dtype_from_name(const char *name);

/* Conversions of n elements, round to nearest even; infinities and NaN are kept. Any DTYPE_* is read, F32/F16/BF16 are written. */
void dtype_to_f32(float *out, const void *in, dtype type, size_t n);
void dtype_from_f32(void *out, dtype type, const float *in, size_t n);

/* One element. */
float half_to_float(uint16_t half);
uint16_t float_to_half(float value);
float bfloat_to_float(uint16_t bits);
uint16_t float_to_bfloat(float value);

#endif
