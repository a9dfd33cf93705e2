/* CLIP's tokenizer: text to token ids as transformers' CLIPTokenizer gives them (lower case, NFC, byte-pair merges).
   The same for all of Unicode 15 (utf8proc 2.8 knows no newer capitals and combining marks). */
#ifndef VULORA_TEXT_ENCODER_TOKENIZER_H
#define VULORA_TEXT_ENCODER_TOKENIZER_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define TOKENIZER_LENGTH 77 /* start, 75 tokens, end */
#define TOKENIZER_CHUNK 75

typedef struct tokenizer tokenizer;

/* The tokenizer embedded in the program; NULL on error. */
tokenizer *tokenizer_open_builtin(error *err);

/* The tokenizer of a diffusers model: its `tokenizer` folder, with vocab.json and merges.txt, or tokenizer.json. NULL on error. */
tokenizer *tokenizer_open_folder(const char *folder, error *err);

void tokenizer_close(tokenizer *tok);

/* Rows that the token embedding must have (CLIP: 49408), and the ids of the special tokens. */
int32_t tokenizer_vocabulary(const tokenizer *tok);
int32_t tokenizer_start(const tokenizer *tok);
int32_t tokenizer_end(const tokenizer *tok);
int32_t tokenizer_pad(const tokenizer *tok);

/* The ids of a text or of a fragment of one, without start, end and padding. `text` is `size` bytes of UTF-8 (bad UTF-8 is an error
   that names the byte). `*ids` is freed by the caller, and NULL for none. Safe to call from several threads. */
bool tokenizer_encode(const tokenizer *tok, const char *text, size_t size, int32_t **ids, size_t *count, error *err);

/* What the text encoder gets for a training caption: start, at most 75 tokens, end, padding. `lost` (may be NULL) is set to the
   number of tokens cut off. */
bool tokenizer_encode_77(const tokenizer *tok, const char *text, size_t size, int32_t ids[TOKENIZER_LENGTH], size_t *lost, error *err);

#endif
