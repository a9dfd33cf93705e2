#include "base/dtype.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static const struct {
    const char *name;
    size_t size;
} TYPES[DTYPE_COUNT] = {
    [DTYPE_F32] = {"F32", 4}, [DTYPE_F16] = {"F16", 2},   [DTYPE_BF16] = {"BF16", 2},       [DTYPE_F64] = {"F64", 8},
    [DTYPE_I64] = {"I64", 8}, [DTYPE_I32] = {"I32", 4},   [DTYPE_I16] = {"I16", 2},         [DTYPE_I8] = {"I8", 1},
    [DTYPE_U8] = {"U8", 1},   [DTYPE_BOOL] = {"BOOL", 1}, [DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [DTYPE_F8_E5M2] = {"F8_E5M2", 1},
};

size_t dtype_size(dtype type) { return TYPES[type].size; }

const char *dtype_name(dtype type) { return TYPES[type].name; }

dtype dtype_from_name(const char *name) {
    for (int i = 0; i < DTYPE_COUNT; i++)
        if (strcmp(TYPES[i].name, name) == 0) return (dtype)i;
    return DTYPE_COUNT;
}

static float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 1023u;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) {
        float value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t float_to_half(float value) {
    uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and up round to infinity */
    if (magnitude < 0x38800000) {                                  /* below 2^-14: denormal */
        float scaled = bits_to_float(magnitude) * 0x1p24f;
        uint32_t units = (uint32_t)scaled;
        float rest = scaled - (float)units;
        if (rest > 0.5f || (rest == 0.5f && (units & 1))) units++;
        return (uint16_t)(sign | units);
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (rounded - 0x38000000) >> 13);
}

float bfloat_to_float(uint16_t bits) { return bits_to_float((uint32_t)bits << 16); }

uint16_t float_to_bfloat(float value) {
    uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* 8-bit floats as in the OCP specification: E4M3 has no infinity (0x7f is NaN), E5M2 is a half cut short. */
static float e4m3_to_float(uint8_t bits) {
    float sign = bits & 0x80 ? -1.0f : 1.0f;
    int exponent = bits >> 3 & 15, mantissa = bits & 7;
    if (exponent == 15 && mantissa == 7) return bits_to_float(0x7fc00000);
    if (exponent == 0) return sign * (float)mantissa * 0x1p-9f;
    return sign * bits_to_float((uint32_t)(exponent + 120) << 23 | (uint32_t)mantissa << 20);
}

/* Element i of an array that may lie at any address: early safetensors writers did not align their data. */
static uint16_t word_at(const uint16_t *words, size_t i) {
    uint16_t word;
    memcpy(&word, (const char *)words + i * sizeof word, sizeof word);
    return word;
}

#if defined(__x86_64__)
__attribute__((target("avx2,f16c"))) static void halves_to_floats_f16c(float *out, const uint16_t *in, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)((const char *)in + 2 * i))));
    for (; i < n; i++) out[i] = half_to_float(word_at(in, i));
}
#endif

static void halves_to_floats(float *out, const uint16_t *in, size_t n) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
        halves_to_floats_f16c(out, in, n);
        return;
    }
#endif
    for (size_t i = 0; i < n; i++) out[i] = half_to_float(word_at(in, i));
}

#define CONVERT(type_) \
    for (size_t i = 0; i < n; i++) { \
        type_ value; \
        memcpy(&value, (const char *)in + i * sizeof value, sizeof value); \
        out[i] = (float)value; \
    } \
    break

void dtype_to_f32(float *out, const void *in, dtype type, size_t n) {
    const uint16_t *words = in;
    const uint8_t *bytes = in;
    switch (type) {
    case DTYPE_F32: memcpy(out, in, n * sizeof *out); break;
    case DTYPE_F16: halves_to_floats(out, words, n); break;
    case DTYPE_BF16:
        for (size_t i = 0; i < n; i++) out[i] = bfloat_to_float(word_at(words, i));
        break;
    case DTYPE_F64: CONVERT(double);
    case DTYPE_I64: CONVERT(int64_t);
    case DTYPE_I32: CONVERT(int32_t);
    case DTYPE_I16: CONVERT(int16_t);
    case DTYPE_I8: CONVERT(int8_t);
    case DTYPE_U8:
    case DTYPE_BOOL: CONVERT(uint8_t);
    case DTYPE_F8_E4M3:
        for (size_t i = 0; i < n; i++) out[i] = e4m3_to_float(bytes[i]);
        break;
    case DTYPE_F8_E5M2:
        for (size_t i = 0; i < n; i++) out[i] = half_to_float((uint16_t)(bytes[i] << 8));
        break;
    case DTYPE_COUNT: break;
    }
}

void dtype_from_f32(void *out, dtype type, const float *in, size_t n) {
    uint16_t *words = out;
    if (type == DTYPE_F32) memcpy(out, in, n * sizeof *in);
    if (type == DTYPE_F16)
        for (size_t i = 0; i < n; i++) words[i] = float_to_half(in[i]);
    if (type == DTYPE_BF16)
        for (size_t i = 0; i < n; i++) words[i] = float_to_bfloat(in[i]);
}
