/* The merges embedded at build time: the head of CLIP's gzip file, see cmake/bpe.cmake. */
#ifndef VULORA_TEXT_ENCODER_BPE_BUILTIN_H
#define VULORA_TEXT_ENCODER_BPE_BUILTIN_H

#include <stddef.h>

extern const unsigned char bpe_builtin[];
extern const size_t bpe_builtin_size;

#endif
