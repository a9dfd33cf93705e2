/* From text to the pieces that byte-pair merging works on: Unicode NFC, lower case, CLIP's splitting rules. */
#ifndef VULORA_TEXT_ENCODER_BPE_SPLIT_H
#define VULORA_TEXT_ENCODER_BPE_SPLIT_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Offset of the first byte that is not valid UTF-8, or `size`. */
size_t bpe_utf8_check(const char *text, size_t size);

/* NFC and lower case as the `tokenizers` package has them (each character by itself, no final sigma), zero-terminated and freed by
   the caller. `text` is valid UTF-8. White space is left as it is: it only separates. */
char *bpe_normalize(const char *text, size_t size, size_t *out_size, error *err);

/* The size of the piece that starts at or after `*start`, which is moved onto it; 0 at the end of the text.
   `text`: [size] normalized. Pieces: CLIP's contractions ('s 't 're 've 'm 'll 'd), runs of letters, single digits, runs of anything
   else that is not white space. */
size_t bpe_next_piece(const char *text, size_t size, size_t *start);

#endif
